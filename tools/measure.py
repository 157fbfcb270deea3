"""How tools/benchmark.py measures, in turns and in processes apart, and how it tells."""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import socket
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import NamedTuple, TypeVar

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import models
from util import distributed
from util.version import commit

T = TypeVar("T")

# --- the machine ------------------------------------------------------------------------------------------------------


def hardware(device: torch.device) -> str:
    """The processor or GPU, and the number of threads."""
    threads = f"{torch.get_num_threads()} threads"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {threads}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name or platform.machine()}, {threads}"


def print_header(device: torch.device, *more: ModuleType) -> None:
    versions = [f"{module.__name__} {module.__version__}" for module in (torch, timm, *more)]
    print(f"{hardware(device)}; Python {platform.python_version()}, {', '.join(versions)}; commit {commit()}")


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of six products of large matrices."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.rand(n, n, device=device).to(dtype)
    product = timed(lambda: a @ a, device)
    return 2 * n**3 / min(product() for _ in range(6))


def build_plain(s: Namespace) -> nn.Module:
    """The network of these settings with torch's own depthwise convolutions."""
    network = models.from_settings(vars(s))
    for module in network.modules():
        if isinstance(module, models.depthwise.DepthwiseConv2d):
            module.__class__ = nn.Conv2d
    return network


def trained_or_fresh(args: Namespace, in_chans: int = 1, device: torch.device | str = "cpu") -> tuple[Namespace, nn.Module]:
    """(settings, network): that of args.checkpoint, or a fresh one with a layer scale at which its blocks count."""
    if args.checkpoint:
        model, own = models.load(args.checkpoint, device)
        return Namespace(**own), model
    torch.manual_seed(0)
    own = {"model": args.model, "side": args.side, "in_chans": in_chans, "latent_dim": 768, "layer_scale": 1.0}
    return Namespace(**own), models.from_settings(own).to(device, memory_format=torch.channels_last).eval()


def forward_flops(s: Namespace) -> tuple[int, int]:
    """(FLOPs of the network's forward pass for one picture, its parameters).

    Training takes three times as many. They are not counted there, for torch 2.15's formula for the backward pass of a grouped
    convolution counts a full one.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build_plain(s).eval()
        network(torch.empty(1, s.in_chans, s.side, s.side))
    return counter.get_total_flops(), sum(p.numel() for p in network.parameters())


# --- time -------------------------------------------------------------------------------------------------------------


def timed(task: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """The task, returning the seconds that it took, those of the GPU included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def seconds() -> float:
        wait()
        start = clock()
        task()
        wait()
        return clock() - start

    return seconds


def in_turns(tasks: dict[str, Callable[[], T]], runs: int) -> dict[str, list[T]]:
    """What each task returned in each run, task after task, so that a slower minute of the machine befalls all of them; before
    that, each runs once for nothing."""
    for task in tasks.values():
        task()
    got: dict[str, list[T]] = {name: [] for name in tasks}
    for _ in range(runs):
        for name, task in tasks.items():
            got[name].append(task())
    return got


class Turn(NamedTuple):
    seconds: float
    waited: float  # seconds of them, for data
    memory: float  # bytes, the most until now


class Turns:
    """One process's side of a `Trainer`: a turn of `batches` steps begins when the parent says so and ends in a report to it."""

    def __init__(self, pipe: Connection, device: torch.device, turns: int, batches: int):
        self.pipe, self.device, self.batches, self.steps = pipe, device, batches, turns * batches
        self.start = self.waited = 0.0

    def begin(self) -> None:
        self.pipe.recv()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.start, self.waited = time.perf_counter(), 0.0

    def done(self, step: int) -> None:
        """To be called after each step, from 1 on."""
        if step % self.batches:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            memory = torch.cuda.max_memory_allocated()
        else:
            memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.pipe.send(Turn(time.perf_counter() - self.start, self.waited, memory))
        if step < self.steps:
            self.begin()

    def awaited(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; the time until each comes counts as waiting."""
        items, end = iter(items), object()
        while True:
            start = time.perf_counter()
            item = next(items, end)
            self.waited += time.perf_counter() - start
            if item is end:
                return
            yield item


class Trainer:
    """A training in processes of its own: so trainings can take turns, and each has a peak of memory of its own.

    Args:
        work: `work(turns, s)` sets up, calls `turns.begin()`, and `turns.done(step)` after each of `turns.steps` steps.
        s: settings of a training.
        turns: how many there will be.
        threads: of all processes together.
    """

    def __init__(self, work: Callable, s: Namespace, turns: int, batches: int, threads: int, processes: int = 1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "WORLD_SIZE": processes}
        context, self.pipes, self.processes = multiprocessing.get_context("forkserver"), [], []
        context.set_forkserver_preload(["timm"])  # which takes seconds to import, torch with it
        for rank in range(processes):
            ours, its = context.Pipe()
            place = {key: str(value) for key, value in {**group, "RANK": rank, "LOCAL_RANK": rank}.items()}
            process = context.Process(target=_train, args=(its, place, max(1, threads // processes), turns, batches, work, s))
            process.start()
            its.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        for process in self.processes:
            if kind:
                process.terminate()
            process.join()

    def turn(self) -> Turn:
        """Of all processes: the longest time, the longest waiting, the sum of memory."""
        for pipe in self.pipes:
            with suppress(ConnectionError):  # a process that is gone has left word why
                pipe.send("begin")
        seconds, waited, memory = zip(*map(self._report, self.pipes), strict=True)
        return Turn(max(seconds), max(waited), sum(memory))

    @staticmethod
    def _report(pipe: Connection) -> Turn:
        try:
            report = pipe.recv()
        except (EOFError, ConnectionError):
            raise OSError("a training's process ended early, perhaps for want of memory") from None
        if isinstance(report, Exception):
            raise report
        return report


def _train(pipe: Connection, place: dict, threads: int, turns: int, batches: int, work: Callable, s: Namespace) -> None:
    os.environ.update(place)
    torch.set_num_threads(threads)
    try:
        work(Turns(pipe, distributed.start(s.device), turns, batches), s)
    except (OSError, ValueError) as error:
        pipe.send(error)
    finally:
        distributed.stop()


# --- what was measured ------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """A row of the table; what does not apply is None."""

    seconds: list[float]  # of each run
    pictures: int  # in a run
    flops: float | None = None  # of a picture
    peak: float | None = None  # FLOP/s of matrix products of this type
    parameters: int | None = None
    waited: float | None = None  # share of the time
    memory: float | None = None  # bytes

    @classmethod
    def of(cls, turns: list[Turn], *args, **kwargs) -> Row:
        seconds, waited, memory = zip(*turns, strict=True)
        return cls(seconds, *args, **kwargs, waited=sum(waited) / sum(seconds), memory=max(memory))

    @property
    def speed(self) -> float:
        """Pictures per second."""
        return self.pictures / median(self.seconds)

    @property
    def rate(self) -> float:
        """FLOP/s."""
        return self.flops * self.speed

    def cells(self) -> dict[str, str]:
        ms = [1e3 * f(self.seconds) / self.pictures for f in (median, min, max)]
        optional = {
            "M parameters": (self.parameters, lambda: f"{self.parameters / 1e6:.1f}"),
            "GFLOP/picture": (self.flops, lambda: f"{self.flops / 1e9:.2f}"),
            "GFLOP/s": (self.flops, lambda: f"{self.rate / 1e9:.1f}"),
            "of the peak": (self.peak, lambda: f"{self.rate / self.peak:.1%}"),
            "waiting": (self.waited, lambda: f"{self.waited:.2%}"),
            "peak memory": (self.memory, lambda: f"{self.memory / 1e9:.2f} GB"),
        }
        return {
            "ms/picture": f"{ms[0]:.2f}",
            "[least – most]": f"[{ms[1]:.2f} – {ms[2]:.2f}]",
            "n": str(len(self.seconds)),
            "pictures/s": f"{self.speed:.4g}",
            **{name: text() for name, (value, text) in optional.items() if value is not None},
        }


def print_table(rows: dict[str, Row]) -> None:
    lines = [{"": name, **row.cells()} for name, row in rows.items()]
    heads = list(dict.fromkeys(head for line in lines for head in line))
    widths = {head: max(len(head), *(len(line.get(head, "")) for line in lines)) for head in heads}
    for line in ({head: head for head in heads}, *lines):
        name, *cells = (line.get(head, "").rjust(widths[head]) for head in heads)
        print("  ".join([line[""].ljust(len(name)), *cells]))


def at_least(told: str, got: float, aim: float) -> tuple[str, bool]:
    """A part of the verdict; `told` has a place for the number."""
    return f"{told.format(got)} (aim ≥ {aim:g})", got >= aim


def at_most(told: str, got: float, aim: float) -> tuple[str, bool]:
    return f"{told.format(got)} (aim ≤ {aim:g})", got <= aim


def verdict(*parts: tuple[str, bool]) -> bool:
    """Prints and returns whether all aims were reached."""
    reached = all(ok for _, ok in parts)
    print(f"{'ok' if reached else 'FAILED'}: " + "; ".join(text if ok else f"MISSED {text}" for text, ok in parts))
    return reached
