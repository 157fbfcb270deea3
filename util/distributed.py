"""The process group of a launcher, or this process alone."""

import argparse
import os
import platform
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from util.memory import keep_freed_memory


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """Processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def cpu_count() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS, Windows


def start(device: str = "auto", local_rank: int | None = None) -> torch.device:
    """Joins the process group that `torchrun` or `torch.distributed.launch` describes in the environment, if there is one.

    Args:
        device: "auto" (a GPU if there is one), "cuda" or "cpu".
        local_rank: `--local-rank` of `torch.distributed.launch`; the environment variable LOCAL_RANK overrides it.

    Returns the device of this process. The backend is NCCL on GPUs, Gloo on CPUs. Raises ValueError if there are fewer GPUs than
    processes.
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
        # torchrun keeps its store over restarts, with the addresses of processes that have ended
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group("nccl" if use_cuda else "gloo", store=store, rank=rank, world_size=world, timeout=limit)
    return torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether a training step is faster in bfloat16 on the device: on a CPU, with AMX, or AVX-512's instructions by AMD.

    With these it is 1.4 to 1.7 times as fast as in float32. It takes 1.1 to 2 times as long on Intel's processors without AMX, and
    ten times as long without any such instructions.
    """
    if device.type != "cpu" or torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and "AuthenticAMD" in processor()


def processor() -> str:
    """The name of the processor and its vendor, as the system gives them."""
    file, known = Path("/proc/cpuinfo"), {}
    if file.is_file():
        known = dict(map(str.strip, line.split(":", 1)) for line in file.read_text().splitlines() if ":" in line)
    names = [known[key] for key in ("model name", "vendor_id") if key in known]
    return ", ".join(names) or platform.processor() or platform.machine()


def run(work: Callable[[argparse.Namespace, torch.device], object], s: argparse.Namespace) -> int:
    """Calls work(s, device) within the process group. Returns the exit status; an expected error is one line on stderr, and 1.

    s: settings with device, local_rank and optionally threads, the CPU threads per process (0 divides the cores evenly), and bf16
    (None: `has_bf16`).
    """
    try:
        device = start(s.device, s.local_rank)
        if device.type == "cpu" and hasattr(s, "threads"):
            torch.set_num_threads(s.threads or max(1, cpu_count() // local_world_size()))
            keep_freed_memory()
        if "bf16" in s and s.bf16 is None:
            s.bf16 = has_bf16(device)
        work(s, device)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        stop()
    return 0


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def gather(value: object) -> list:
    """Gathers the values of all processes, in the order of ranks, on all processes."""
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
        # every process's loss depends on the sum, so the gradient of a summand is the sum over all processes
        return _AllReduceSum.forward(ctx, gradient)


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, with gradients; the backward pass sums the gradients of all processes."""
    return _AllReduceSum.apply(x) if world_size() > 1 else x
