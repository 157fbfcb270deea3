"""NAFNet's block, for resolutions at which a ConvNeXt block is too expensive."""

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn


class GatedBlock(nn.Module):
    """(N, dim, H, W) → the same: Chen et al., "Simple Baselines for Image Restoration", 2022.

    In place of activations one half of the channels is multiplied by the other, after a depthwise convolution and in place of an
    MLP; the mean of each channel over the picture scales it (channel attention).

    Args:
        ls_init_value: initial layer scale of both residual branches; the paper's 0 learns slower in a short training.
    """

    def __init__(self, dim: int, ls_init_value: float = 0.1):
        super().__init__()
        self.spatial_norm, self.channel_norm = LayerNorm2d(dim), LayerNorm2d(dim)
        self.expand, self.project = nn.Conv2d(dim, 2 * dim, 1), nn.Conv2d(dim, dim, 1)
        self.conv_dw = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim)
        self.attention = nn.Conv2d(dim, dim, 1)
        self.mlp_expand, self.mlp_project = nn.Conv2d(dim, 2 * dim, 1), nn.Conv2d(dim, dim, 1)
        self.spatial_scale, self.channel_scale = (nn.Parameter(torch.full((dim, 1, 1), ls_init_value)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = _gate(self.conv_dw(self.expand(self.spatial_norm(x))))
        y = y * self.attention(y.mean((2, 3), keepdim=True))
        x = x + self.project(y) * self.spatial_scale
        return x + self.mlp_project(_gate(self.mlp_expand(self.channel_norm(x)))) * self.channel_scale


def _gate(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=1)
    return first * second
