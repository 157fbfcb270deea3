"""Convolutions that train faster on a CPU: only their backward passes differ from torch's."""

import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` of stride 1, one filter per channel, an odd square kernel and "same" padding.

    The weight gradient of torch on a CPU takes up to thirty times as long as the forward pass. Here it is a matrix product for each
    row of the kernel: with rows of the gradient G (rows, W) and of the padded input X (rows, W + k - 1), element (i, i + j) of GᵀX
    is the contribution of column i of the picture to column j of the kernel, so the sums along the diagonals are the gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not _is_trained_on_cpu(x):
            return super().forward(x)
        return _Depthwise.apply(_autocast(x), self.weight, self.bias)


class TransposedConv2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` whose stride is its kernel, without padding and groups.

    The bias gradient of torch on a CPU takes up to three times as long as all the rest of the layer. Here it is a sum.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not _is_trained_on_cpu(x):
            return super().forward(x, output_size)
        return _Transposed.apply(_autocast(x), self.weight, self.bias)


def speed_up(network: nn.Module) -> None:
    """Replaces the depthwise convolutions of timm's ConvNeXt blocks by `DepthwiseConv2d`, in place; the parameters are kept."""
    for module in network.modules():
        if isinstance(module, ConvNeXtBlock):
            module.conv_dw.__class__ = DepthwiseConv2d


def _is_trained_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled()


def _autocast(x: Tensor) -> Tensor:
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x


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
        rows = F.pad(x, (k // 2,) * 4).permute(1, 2, 0, 3).contiguous()  # (C, H + k - 1, N, W + k - 1)
        g_rows = g.permute(1, 3, 2, 0).reshape(c, w, -1)  # (C, W, H · N)
        g_weight = torch.empty_like(weight)
        for i in range(k):
            product = g_rows @ rows[:, i : i + h].reshape(c, -1, w + k - 1)  # (C, W, W + k - 1)
            diagonals = product.as_strided((c, w, k), (product.stride(0), product.stride(1) + 1, 1))
            g_weight[:, 0, i] = diagonals.sum(1, dtype=weight.dtype)
        return g_x, g_weight, g.sum((0, 2, 3), dtype=weight.dtype)


class _Transposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv_transpose2d(x, weight.to(x.dtype), bias.to(x.dtype), stride=weight.shape[2:])

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        layer = (None, weight.shape[2:], (0, 0), (1, 1), True, (0, 0), 1)  # stride, padding, dilation, transposed, …, groups
        needed = (ctx.needs_input_grad[0], True, False)
        g_x, g_weight, _ = torch.ops.aten.convolution_backward(g, x, weight.to(g.dtype), *layer, needed)
        return g_x, g_weight.to(weight.dtype), g.sum((0, 2, 3), dtype=weight.dtype)
