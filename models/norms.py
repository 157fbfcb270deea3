"""Norms over the batch of all processes, on CPUs too."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.distributed import all_reduce_sum, world_size


class LatentNorm(nn.Module):
    """Standardises each element of the latent over the batch of all processes: BatchNorm without scale and shift.

    An untrained ConvNeXt maps all pictures to nearly the same vector, so the decoder learns the mean picture and gets no further;
    standardising prevents this. The statistics, gradients included, are summed over the processes, so that W processes compute
    the same as one with the same global batch. (`nn.SyncBatchNorm` does not support CPUs.)

    Input and output: (N, dim), computed in float32 (the dtype of the buffers). Raises ValueError in training on a global batch of
    one picture.
    """

    def __init__(self, dim: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def forward(self, z: Tensor) -> Tensor:
        z = z.to(self.running_mean.dtype)
        if not self.training:
            return (z - self.running_mean) * torch.rsqrt(self.running_var + self.eps)
        count = z.shape[0] * world_size()
        if count < 2:
            raise ValueError("the latent cannot be standardised over a batch of 1 picture: train with a batch size of 2 or more")
        mean = all_reduce_sum(z.sum(0)) / count
        var = all_reduce_sum((z - mean).square().sum(0)) / count
        with torch.no_grad():  # a non-finite batch leaves the statistics unchanged
            finite = var.isfinite().all()
            for running, new in ((self.running_mean, mean), (self.running_var, var * (count / (count - 1)))):
                running.copy_(torch.where(finite, running.lerp(new, self.momentum), running))
        return (z - mean) * torch.rsqrt(var + self.eps)


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that in training takes mean and variance over the batches of all processes, which have the same shape.

    So W processes compute the same as one with the same global batch. (`nn.SyncBatchNorm` does not support CPUs.)
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        count = x.numel() // x.shape[1] * world_size()
        with torch.no_grad():
            # as torch.var_mean, which takes forty times as long on a CPU
            own_mean, own_var = torch.batch_norm_update_stats(x.to(self.running_mean.dtype), None, None, 0.0)
            mean = all_reduce_sum(own_mean) / world_size()
            var = all_reduce_sum(own_var + (own_mean - mean).square()) / world_size()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        return _Normalise.apply(x, self.weight, self.bias, mean, var, self.eps)


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
        g_x -= torch.addcmul(offset[:, None, None], x, slope[:, None, None]).to(g_x.dtype)
        return g_x, g_weight, g_bias, None, None, None


def norms_of(network: nn.Module) -> list[LatentNorm | BatchNorm2d]:
    """The norms over the batch."""
    return [module for module in network.modules() if isinstance(module, LatentNorm | BatchNorm2d)]


@torch.no_grad()
def estimate(network: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Sets the running statistics of the norms over the batch to their means over the batches `inputs`.

    Averaged weights need it while the rate is high: the average of the statistics is not that of the averaged weights, and those of
    the latest batches are noisy. (Precise BatchNorm: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021.)
    """
    norms = norms_of(network)
    usual = [norm.momentum for norm in norms]
    network.train()
    for n, x in enumerate(inputs, 1):
        for norm in norms:
            norm.momentum = 1 / n
        network(x)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
