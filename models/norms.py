"""Norms over the batch of all processes, on CPUs too."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.distributed import all_reduce_sum, rank, world_size


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that in training takes mean and variance over the batches of all processes, which have the same shape.

    So W processes compute the same as one with the same global batch. (`nn.SyncBatchNorm` does not support CPUs.) Raises ValueError
    in training on one value a channel.
    """

    def forward(self, x: Tensor) -> Tensor:
        count = x.numel() // x.shape[1] * world_size()
        if self.training and count < 2:
            raise ValueError("there is no norm over a batch of 1 picture: train with a batch size of 2 or more")
        if not self.training or world_size() == 1:
            return super().forward(x)
        with torch.no_grad():
            # As torch.var_mean, which takes forty times as long on a CPU. Those of a map in bfloat16 are in float32, since running
            # statistics in float32 are passed, which stay as they are.
            unused = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
            own = x.new_zeros(world_size(), 2, x.shape[1], dtype=self.running_mean.dtype)
            own[rank()] = torch.stack(torch.batch_norm_update_stats(x, *unused, 0.0))
            means, variances = all_reduce_sum(own).unbind(1)
            mean = means.mean(0)
            var = (variances + (means - mean).square()).mean(0)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        weight, bias = (self.weight, self.bias) if self.affine else (torch.ones_like(mean), torch.zeros_like(mean))
        return _Normalise.apply(x, weight, bias, mean, var, self.eps)


class _Normalise(torch.autograd.Function):
    """(N, C, H, W) by `mean` and `var` (C,) over all processes; the gradient includes the way through these statistics."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        constant = (mean, var, None, None, False, ctx.eps, [True] * 3)  # the statistics taken as constants
        g_x, g_weight, g_bias = torch.ops.aten.native_batch_norm_backward(g, x, weight, *constant)
        count = x.numel() // x.shape[1] * world_size()
        through_std, through_mean = all_reduce_sum(torch.stack([g_weight, g_bias])) / count
        scale = torch.rsqrt(var + ctx.eps)
        slope = weight * scale.square() * through_std
        offset = weight * scale * through_mean - mean * slope
        g_x -= F.batch_norm(x, torch.zeros_like(mean), torch.ones_like(var), slope, offset, eps=0)  # slope · x + offset, fast
        return g_x, g_weight, g_bias, None, None, None


@torch.no_grad()
def estimate(network: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Sets the running statistics of the norms over the batch to their means over the batches `inputs`.

    Averaged weights need it while the rate is high: the average of the statistics is not that of the averaged weights, and those of
    the latest batches are noisy. (Precise BatchNorm: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021.)
    """
    norms = [module for module in network.modules() if isinstance(module, BatchNorm2d)]
    if not norms:
        return
    usual = [norm.momentum for norm in norms]
    network.train()
    for n, x in enumerate(inputs, 1):
        for norm in norms:
            norm.momentum = 1 / n
        network(x)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
