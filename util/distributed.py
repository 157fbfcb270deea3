"""Processes: the group of them that a launcher started, or just this one."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """Processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def start(device: str = "auto", local_rank: int | None = None) -> torch.device:
    """Joins the group that `torchrun` or `torch.distributed.launch` describes in the environment, if one does.

    Args:
        device: "auto" (a GPU where there is one), "cuda" or "cpu".
        local_rank: what `torch.distributed.launch` passes as `--local-rank`; `LOCAL_RANK` of the environment goes first.

    Returns: the device of this process. NCCL joins GPUs, Gloo CPUs. ValueError where there are fewer GPUs than processes.
    """
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    local_rank = int(os.environ.get("LOCAL_RANK", local_rank or 0))
    if use_cuda:
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {local_rank} of this machine has no GPU ({torch.cuda.device_count()} found): "
                "start no more processes than GPUs, or pass --device cpu"
            )
        torch.cuda.set_device(local_rank)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        limit = timedelta(minutes=10)
        store, rank, world = next(rendezvous("env://", timeout=limit))
        # torchrun keeps its store over restarts, and with it the addresses of processes that are gone
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group("nccl" if use_cuda else "gloo", store=store, rank=rank, world_size=world, timeout=limit)
    return torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def gather(value: object) -> list:
    """What every process passed, in the order of ranks, on every process."""
    values = [None] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
        return values
    return [value]


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        # Every process's loss depends on the sum, so each summand collects the gradients of all of them.
        return _AllReduceSum.forward(ctx, gradient)


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, with gradients; the backward pass sums the gradients of all processes."""
    return _AllReduceSum.apply(x) if world_size() > 1 else x
