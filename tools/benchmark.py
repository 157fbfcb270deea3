"""Measures how fast the parts of this project are, on the machine at hand.

    python tools/benchmark.py damage --pack data/zi.pack
    python tools/benchmark.py train             # a training step against a plain one
    python tools/benchmark.py train --grow      # its cost at growing sides and sizes, and a model of many GPUs
    python tools/benchmark.py data              # glyphs and damage against the training step
    python tools/benchmark.py infer --checkpoint runs/demo/best.pth
    python tools/benchmark.py restore           # from the shell, warm, and a folder

Prints the hardware and the versions, a row for each thing measured (median and spread of n runs), and last a verdict; exits with
status 1 when an aim is missed. Rows are measured in turns, so that a slower minute of the machine befalls all of them. Times are
wall times; for damage on a CPU, one thread, it is the processor's, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import engine
import main_denoise_cae
from datasets import pairs
from datasets.degradation import Degradation, preset_names, sample_keys
from datasets.pack import open_pack
from datasets.pairs import HandwritingSet
from models.convnext_cae import SIZES
from tools.measure import (
    Row,
    Trainer,
    Turns,
    at_least,
    at_most,
    build_plain,
    forward_flops,
    in_turns,
    matrix_peak,
    print_header,
    print_table,
    timed,
    trained_or_fresh,
    verdict,
)
from tools.restore_speed import restore
from util import distributed, metrics
from util.prefetch import prefetch
from util.stop import StopSignal

HELP = {
    "model": "network",
    "side": "pixels of a picture",
    "device": "cpu or cuda",
    "threads": "of the CPU",
    "pack": "handwriting",
    "preset": f"damage: {', '.join(preset_names())}, or a YAML file",
    "batch_size": "pictures in a batch",
    "batches": "in a run",
    "pictures": "in a run",
    "runs": "measured, after one more",
    "processes": "CPU: also share a batch and the threads out to so many; 1: not",
    "sides": "with --grow",
    "sizes": "with --grow",
    "gpu_step_ms": "with --grow: a GPU's training step, for the model of many",
    "link_gbs": "with --grow: GB/s that a GPU sends to the next",
}


# --- damage -----------------------------------------------------------------------------------------------------------


def classic_opencv(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Three of the four classic operations on one picture (H, W) uint8, as training code for this task has done them."""
    import cv2

    side = picture.shape[0]
    for operation in rng.choice(4, 3, replace=False):
        if operation == 0:
            kernel = np.ones(rng.integers(1, 6, 2), np.uint8)
            picture = (cv2.erode if rng.random() < 0.5 else cv2.dilate)(picture, kernel)
        elif operation == 1:
            for (x, y), (w, h) in zip(rng.integers(0, side, (10, 2)), rng.integers(1, 50, (10, 2)), strict=True):
                cv2.rectangle(picture, (int(x), int(y)), (int(x + w), int(y + h)), 255 if rng.random() < 0.5 else 0, -1)
        elif operation == 2:
            size = int(rng.integers(1, 6)) * 2 + 1
            picture = cv2.GaussianBlur(picture, (size, size), 0)
        else:
            for x, y in rng.integers(0, side - 15, (10, 2)):
                square = picture[y : y + 15, x : x + 15].astype(np.int16) + rng.integers(-64, 65)
                picture[y : y + 15, x : x + 15] = square.clip(0, 255)
    return picture


def damage(args: Namespace) -> bool:
    """The damage generator against a plain OpenCV pipeline of the classic operations, a picture at a time, on one core."""
    import cv2

    device = torch.device(args.device)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    glyphs = HandwritingSet(open_pack(args.pack), "train", side=args.side, device=device)
    batches = np.random.default_rng(0).choice(len(glyphs), (args.batches, args.batch_size))
    samples = [glyphs.batch(positions) for positions in batches]
    degradation, epochs, rng = Degradation(args.preset, args.side, device), itertools.count(), np.random.default_rng(0)
    pictures = [(sample["clean"][:, 0].cpu().numpy() * 255).round().astype(np.uint8) for sample in samples]

    def ours() -> None:
        epoch = next(epochs)
        for sample in samples:
            degradation(sample["clean"], sample_keys(0, epoch, sample["id"]))

    def opencv() -> None:
        for batch in pictures:
            np.stack([classic_opencv(picture.copy(), rng) for picture in batch]).astype(np.float32) / 255

    print_header(device, cv2)
    print(f"damage '{args.preset}', side {args.side}, runs of {args.batches} × {args.batch_size} pictures")
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    tasks = {args.preset: timed(ours, device, clock), "classic, OpenCV": timed(opencv, device, clock)}
    rows = {name: Row(seconds, batches.size) for name, seconds in in_turns(tasks, args.runs).items()}
    print_table(rows)
    got, classic = (row.speed for row in rows.values())
    return verdict(at_least("{:.0f} pictures/s", got, args.aim), (f"{got / classic:.2f} times the OpenCV pipeline", True))


# --- train ------------------------------------------------------------------------------------------------------------


def settings(args: Namespace) -> Namespace:
    """Those of a training, as main_denoise_cae.py would read them."""
    flags = {key: getattr(args, key) for key in ("model", "side", "batch_size", "preset", "device")}
    flags |= {"data": args.pack, "log_every": args.batches, "workers": min(4, len(os.sched_getaffinity(0)))}
    return main_denoise_cae.build_parser().parse_args([f"--{key}={value}" for key, value in flags.items()])


def changed(s: Namespace, **values) -> Namespace:
    return Namespace(**{**vars(s), **values})


def first_batches(glyphs: HandwritingSet, s: Namespace, steps: int) -> list[np.ndarray]:
    """This process's first batches of a training, over as many epochs as they take."""
    rank, world = distributed.rank(), distributed.world_size()
    epochs = (pairs.shuffled_batches(len(glyphs), s.batch_size, s.seed, epoch, rank, world) for epoch in itertools.count())
    return list(itertools.islice(itertools.chain.from_iterable(epochs), steps))


def train_ours(turns: Turns, s: Namespace) -> None:
    """The training of main_denoise_cae.py."""
    device = turns.device
    glyphs = HandwritingSet(open_pack(s.data), "train", side=s.side, device=device)
    state = main_denoise_cae.start_state(s, device)
    if device.type == "cuda":
        main_denoise_cae.compile_or_tell(state.model, s, device)
    ddp = distributed.world_size() > 1
    model = DistributedDataParallel(state.model, gradient_as_bucket_view=True) if ddp else state.model
    samples = pairs.load(glyphs, first_batches(glyphs, s, turns.steps), device)
    generator = Degradation(s.preset, s.side, device)
    engine.prefetch = lambda items: turns.awaited(prefetch(items))  # what the loop waits for it is what it waits for data
    turns.begin()
    engine.train_one_epoch(
        state, model, samples, turns.steps, generator, s, StopSignal(), save=lambda state, now: turns.done(state.step)
    )


class OpenCVPictures(Dataset):
    """The glyphs of a pack, read and damaged one by one: (damaged, clean), both (1, side, side) float in [0, 1]."""

    def __init__(self, glyphs: HandwritingSet):
        self.bits, self.drawn, self.side = glyphs.bits.cpu().numpy(), glyphs.pack.side, glyphs.side

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        import cv2

        glyph = np.unpackbits(self.bits[position]).reshape(self.drawn, self.drawn) * np.uint8(255)
        clean = cv2.resize(glyph, (self.side, self.side), interpolation=cv2.INTER_AREA)
        damaged = classic_opencv(clean.copy(), np.random.default_rng(position))
        return tuple(torch.from_numpy(x)[None].float() / 255 for x in (damaged, clean))


def train_plainly(turns: Turns, s: Namespace) -> None:
    """The same network trained as most would at first: eager fp32, torch's default AdamW, OpenCV's damage in worker processes."""
    import cv2

    cv2.setNumThreads(1)  # for the workers, as torch does for itself
    torch.manual_seed(s.seed)
    device, loss_of = turns.device, engine.LOSSES[s.loss]
    model = build_plain(s).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.lr * s.batch_size / 256)
    glyphs = HandwritingSet(open_pack(s.data), "train", side=s.side)
    batches = [positions.tolist() for positions in first_batches(glyphs, s, turns.steps)]
    loader = DataLoader(OpenCVPictures(glyphs), batch_sampler=batches, num_workers=s.workers, pin_memory=device.type == "cuda")
    turns.begin()
    for step, (damaged, clean) in enumerate(turns.awaited(loader), start=1):
        loss = loss_of(model(damaged.to(device)), clean.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        turns.done(step)


def train(args: Namespace) -> bool:
    """A training step against a plain one; with --grow, its cost at growing sides and sizes, and a model of many GPUs."""
    import cv2

    s, device = settings(args), torch.device(args.device)
    torch.set_num_threads(args.threads)
    print_header(device, cv2)
    if args.grow:
        return grow(args, s)
    share, rest = divmod(s.batch_size, args.processes)
    if rest:
        raise ValueError(f"a batch of {s.batch_size} cannot be shared out to {args.processes} processes")
    bf16, fp32 = (matrix_peak(device, dtype) for dtype in (torch.bfloat16, torch.float32))
    flops = 3 * forward_flops(s)[0]
    print(f"{s.model}, side {s.side}, runs of {args.batches} × {s.batch_size} pictures; processes share the threads")
    print(f"products of large matrices: {bf16 / 1e9:.0f} GFLOP/s in bf16, {fp32 / 1e9:.0f} in fp32")
    works = {"this project": (train_ours, s, 1), "baseline": (train_plainly, s, 1)}
    if args.processes > 1:
        works[f"{args.processes} processes"] = (train_ours, changed(s, batch_size=share), args.processes)
    taken = {}
    for names in [[name] for name in works] if args.apart else [list(works)]:
        with ExitStack() as stack:
            trainers = {}
            for name in names:
                work, its, processes = works[name]
                trainer = Trainer(work, its, args.runs + 1, args.batches, args.threads, processes)
                trainers[name] = stack.enter_context(trainer).turn
            taken |= in_turns(trainers, args.runs)
    pictures = args.batches * s.batch_size
    rows = {name: Row.of(turns, pictures, flops, fp32 if name == "baseline" else bf16) for name, turns in taken.items()}
    print_table(rows)
    ours, plain, *shared = rows.values()
    default_aim = 4 if args.device == "cuda" else 2.5
    parts = [
        at_least("{:.2f} times the baseline's speed", ours.speed / plain.speed, default_aim if args.aim is None else args.aim),
        at_most("waits for data {:.3f} of the time", ours.waited, args.aim_waiting),
    ]
    if args.device == "cuda":
        parts.append(at_least("{:.2f} of the matrix peak", ours.rate / bf16, args.aim_peak))
    else:
        parts.append(at_most("{:.2f} times its memory", ours.memory / plain.memory, args.aim_memory))
    told = f"{args.processes} processes {{:.2f}} times as fast as one"
    parts += [at_least(told, row.speed / ours.speed, args.aim_processes) for row in shared]
    return verdict(*parts)


def grow(args: Namespace, s: Namespace) -> bool:
    family = s.model.rsplit("_", 1)[0]
    tables = {
        f"{s.model}, as the side grows": {f"side {side}": changed(s, side=side) for side in args.sides},
        f"side {s.side}, as the network grows": {size: changed(s, model=f"{family}_{size}") for size in args.sizes},
    }
    print(f"runs of {args.batches} × {s.batch_size} pictures")
    parts = []
    for title, table in tables.items():
        rows = {}
        for name, changed_s in table.items():
            flops, parameters = forward_flops(changed_s)
            with Trainer(train_ours, changed_s, args.runs + 1, args.batches, args.threads) as trainer:
                turns = in_turns({name: trainer.turn}, args.runs)[name]
            rows[name] = Row.of(turns, args.batches * s.batch_size, 3 * flops, parameters=parameters)
        print(f"\n{title}")
        print_table(rows)
        first, last = list(rows)[0], list(rows)[-1]
        parts.append(at_least(f"{last}: {{:.2f}} times the FLOP/s of {first}", rows[last].rate / rows[first].rate, args.aim_grow))
    print_model(forward_flops(s)[1], args.gpu_step_ms, args.link_gbs)
    return verdict(*parts)


def print_model(parameters: int, step_ms: float, link_gbs: float) -> None:
    """What many GPUs would make of such steps, if gradients were sent only after all of them are known."""
    gradients = 4 * parameters  # bytes
    print(
        f"\nmodel, not measured: steps of {step_ms:g} ms, then {gradients / 1e6:.0f} MB of gradients, a ring at {link_gbs:g} GB/s"
    )
    for world in (4, 8, 64):
        ms = 1e3 * 2 * (world - 1) / world * gradients / (link_gbs * 1e9)
        print(f"{world:>3} GPUs: {ms:.1f} ms of sending, efficiency {step_ms / (step_ms + ms):.2f}")
    print()


# --- data -------------------------------------------------------------------------------------------------------------


def data(args: Namespace) -> bool:
    """Glyphs, and glyphs with their damage, as the thread beside the training makes them; against the training step."""
    s, device = settings(args), torch.device(args.device)
    torch.set_num_threads(args.threads)
    glyphs = HandwritingSet(open_pack(s.data), "train", side=s.side, device=device)
    generator = Degradation(s.preset, s.side, device)
    steps, epochs = first_batches(glyphs, s, 10 * args.batches), itertools.count()

    def unpacked() -> None:
        for _ in prefetch(pairs.load(glyphs, steps, device)):
            pass

    def damaged() -> None:
        epoch = next(epochs)
        for _ in prefetch(engine.network_input(sample, generator, s.seed, epoch) for sample in pairs.load(glyphs, steps, device)):
            pass

    print_header(device)
    print(
        f"damage '{s.preset}', side {s.side}, runs of {args.batches} × {s.batch_size} pictures in training, {len(steps)} × in data"
    )
    with Trainer(train_ours, s, args.runs + 1, args.batches, args.threads) as trainer:
        tasks = {
            "glyphs": timed(unpacked, device),
            "glyphs and damage": timed(damaged, device),
            s.model: lambda: trainer.turn().seconds,
        }
        taken = in_turns(tasks, args.runs)
    trained = args.batches * s.batch_size
    rows = {name: Row(seconds, trained if name == s.model else 10 * trained) for name, seconds in taken.items()}
    print_table(rows)
    alone, both, step = (row.speed for row in rows.values())
    return verdict(
        (f"glyphs take {step / alone:.4f} of a training step", True),
        at_most("with their damage {:.4f}", step / both, args.aim),
    )


# --- infer ------------------------------------------------------------------------------------------------------------


def infer(args: Namespace) -> bool:
    """The network in bf16 and channels-last, as validation runs it, against eager fp32."""
    device, n = torch.device(args.device), max(args.batch_size)
    torch.set_num_threads(args.threads)
    s, ours = trained_or_fresh(args, device=device)
    plain = build_plain(s).to(device).eval()
    plain.load_state_dict(ours.state_dict())
    glyphs = HandwritingSet(open_pack(args.pack), "test", side=s.side, guide=s.in_chans == 2, device=device)
    sample = glyphs.batch(np.arange(n) % len(glyphs))
    x, _ = engine.network_input(sample, Degradation(args.preset, s.side, device), engine.EVALUATION_SEED, 0)
    peaks, flops = [matrix_peak(device, dtype) for dtype in (torch.float32, torch.bfloat16)], forward_flops(s)[0]
    outputs = {}

    @torch.inference_mode()
    def run(network: torch.nn.Module, bf16: bool, batch_size: int) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            outputs[bf16] = torch.cat([network(part) for part in x.split(batch_size)]).float().sigmoid()

    print_header(device)
    print(f"{args.checkpoint or args.model}, side {s.side}, runs of {n} pictures")
    ways = {
        f"batches of {size}, {name}": (network, bf16, size)
        for size in args.batch_size
        for name, network, bf16 in (("this project", ours, True), ("baseline", plain, False))
    }
    taken = in_turns({name: timed(functools.partial(run, *way), device) for name, way in ways.items()}, args.runs)
    rows = {name: Row(seconds, n, flops, peaks[ways[name][1]]) for name, seconds in taken.items()}
    print_table(rows)
    speeds = [row.speed for row in rows.values()]
    gains = [
        at_least(f"batches of {size}: {{:.2f}} times the baseline's speed", fast / slow, args.aim)
        for size, fast, slow in zip(args.batch_size, speeds[::2], speeds[1::2], strict=True)
    ]
    largest = (outputs[True] - outputs[False]).abs().max().item()
    psnr = metrics.psnr(outputs[True], outputs[False]).min().item()
    return verdict(*gains, (f"outputs differ by {largest:.4f} at most", True), at_least("{:.1f} dB apart", psnr, args.aim_psnr))


# --- the command line -------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> bool:
    parser = argparse.ArgumentParser(description="How fast the parts are, on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    cuda, cores = torch.cuda.is_available(), len(os.sched_getaffinity(0))

    def command(measure: Callable, **defaults) -> argparse.ArgumentParser:
        kind = argparse.ArgumentDefaultsHelpFormatter
        made = commands.add_parser(measure.__name__, help=measure.__doc__, description=measure.__doc__, formatter_class=kind)
        made.set_defaults(measure=measure)
        for name, default in defaults.items():
            many = {"nargs": "+"} if isinstance(default, tuple) else {}
            first = default[0] if many else default
            made.add_argument(f"--{name}", type=type(first), default=default, help=HELP[name], **many)
        return made

    source = {"pack": "data/zi.pack", "preset": "mixed", "batch_size": 32}
    network = {"model": "cae_convnext_tiny", "side": 224, "device": "cuda" if cuda else "cpu", "threads": cores}
    one = command(damage, side=224, **source, batches=10, runs=7, device="cpu")
    # what a plain OpenCV pipeline of the four classic operations did on one core at side 224 when the aim was set
    one.add_argument("--aim", type=float, default=440, metavar="PICTURES/S")

    one = command(
        train, **network, **source, batches=20 if cuda else 1, runs=3, processes=1 if cuda else min(2, cores),
        sides=(64, 96, 128, 160, 224, 256), sizes=SIZES, gpu_step_ms=50.0, link_gbs=25.0,
    )  # fmt: skip
    one.add_argument("--apart", action="store_true", help="one row after the other, not in turns: for want of memory")
    one.add_argument("--grow", action="store_true", help="its cost at growing sides and sizes instead")
    one.add_argument("--aim", type=float, help="least speed, in baselines; None: 2.5 on a CPU, 4 on a GPU")
    one.add_argument("--aim_waiting", type=float, default=0.05, help="largest share of the time spent waiting for data")
    one.add_argument("--aim_memory", type=float, default=1.0, help="on a CPU: most memory, in baselines")
    one.add_argument("--aim_peak", type=float, default=0.15, help="on a GPU: least share of the matrix peak")
    one.add_argument("--aim_processes", type=float, default=0.9, help="least speed of several processes, in that of one")
    one.add_argument("--aim_grow", type=float, default=0.8, help="with --grow: least FLOP/s of the last, in those of the first")

    one = command(data, **network, **source, batches=20 if cuda else 1, runs=3)
    one.add_argument("--aim", type=float, default=0.05, help="largest share of the training step")

    one = command(infer, **network, **{**source, "batch_size": (1, 32)}, runs=5)
    one.add_argument("--checkpoint", help="take its trained network instead of a fresh one")
    one.add_argument("--aim", type=float, default=1.0, help="least speed, in baselines")
    one.add_argument("--aim_psnr", type=float, default=40.0, help="of the least alike outputs, in dB")

    one = command(
        restore, model="restorer_convnext_tiny", side=224, threads=cores, pack="data/zi.pack", preset="mixed",
        batch_size=(1, 8), pictures=64, runs=5,
    )  # fmt: skip
    one.add_argument("--checkpoint", help="take its trained network instead of a fresh one")
    one.add_argument("--aim_cold", type=float, default=1.0, help="most seconds from the shell to the written picture")
    one.add_argument(
        "--aim_cold_ratio", type=float, default=1 / 3, help="the same, in what torch and timm take to load the weights"
    )
    one.add_argument("--aim", type=float, default=2.0, help="least speed of the exported network, in that of eager fp32")
    one.add_argument("--aim_psnr", type=float, default=40.0, help="of the least alike outputs, in dB")
    one.add_argument("--aim_folder", type=float, default=0.9, help="least speed of a folder, in that of the bare network")
    args = parser.parse_args(argv)
    threads = torch.get_num_threads()
    try:
        return args.measure(args)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    try:
        sys.exit(0 if main() else 1)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
