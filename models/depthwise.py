"""A depthwise convolution that trains faster on a CPU."""

import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` of stride 1, one filter per channel, an odd square kernel and "same" padding; only its backward pass differs.

    The weight gradient of torch on a CPU takes thirty times as long as the forward pass. Here it is a matrix product for each row
    of the kernel: with rows of the gradient G (rows, W) and of the padded input X (rows, W + k - 1), element (i, i + j) of GᵀX is
    the contribution of column i of the picture to column j of the kernel, so the sums along the diagonals are the gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return _Depthwise.apply(x.to(dtype), self.weight, self.bias)


def speed_up(network: nn.Module) -> None:
    """Replaces the depthwise convolutions of timm's ConvNeXt blocks by `DepthwiseConv2d`, in place; the parameters are kept."""
    for module in network.modules():
        if isinstance(module, ConvNeXtBlock):
            module.conv_dw.__class__ = DepthwiseConv2d


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=weight.shape[-1] // 2, groups=x.shape[1])

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        (_, c, h, w), k = x.shape, weight.shape[-1]
        g_x = None
        if ctx.needs_input_grad[0]:
            # stride 1 and an odd kernel: the transposed convolution is the convolution with the rotated filter
            g_x = F.conv2d(g, weight.flip(2, 3).to(g.dtype), padding=k // 2, groups=c)
        kind = torch.promote_types(weight.dtype, g.dtype)
        rows = F.pad(x, (k // 2,) * 4).to(kind).permute(1, 2, 0, 3).contiguous()  # (C, H + k - 1, N, W + k - 1)
        g_rows = g.to(kind).permute(1, 3, 2, 0).reshape(c, w, -1)  # (C, W, H · N)
        g_weight = torch.empty_like(weight)
        for i in range(k):
            product = g_rows @ rows[:, i : i + h].reshape(c, -1, w + k - 1)  # (C, W, W + k - 1)
            g_weight[:, 0, i] = product.as_strided((c, w, k), (product.stride(0), product.stride(1) + 1, 1)).sum(1)
        return g_x, g_weight, g.sum((0, 2, 3), dtype=kind)
