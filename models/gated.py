"""NAFNet's block, for resolutions at which a ConvNeXt block is too expensive."""

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn


class GatedBlock(nn.Module):
    """(N, dim, H, W) → the same: Chen et al., "Simple Baselines for Image Restoration", 2022.

    In place of activations one half of the channels is multiplied by the other, after a depthwise convolution and in place of an
    MLP; the mean of each channel over the picture scales it (channel attention). Each half has layers of its own: to cut one map
    in two takes longer.

    Args:
        ls_init_value: initial layer scale of both residual branches; the paper's 0 learns slower in a short training.
    """

    def __init__(self, dim: int, ls_init_value: float = 0.1):
        super().__init__()

        def linear() -> nn.Conv2d:
            return nn.Conv2d(dim, dim, 1)

        def local() -> nn.Sequential:
            return nn.Sequential(linear(), nn.Conv2d(dim, dim, 3, padding=1, groups=dim))

        self.spatial_norm, self.channel_norm = LayerNorm2d(dim), LayerNorm2d(dim)
        self.spatial, self.spatial_gate, self.attention, self.spatial_project = local(), local(), linear(), linear()
        self.channel, self.channel_gate, self.channel_project = linear(), linear(), linear()
        self.spatial_scale, self.channel_scale = (nn.Parameter(torch.full((dim, 1, 1), ls_init_value)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.spatial_norm(x)
        y = self.spatial(y) * self.spatial_gate(y)
        y = y * self.attention(y.mean((2, 3), keepdim=True))
        x = x + self.spatial_project(y) * self.spatial_scale
        y = self.channel_norm(x)
        return x + self.channel_project(self.channel(y) * self.channel_gate(y)) * self.channel_scale
