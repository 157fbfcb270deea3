"""Measures how fast the parts of this project are, on the machine at hand.

    python tools/benchmark.py damage --pack data/zi.pack

Prints the hardware and the versions, a row for each thing measured (n, median and spread), and last a verdict; exits with status 1
when that is a failure. Times are processor times, so that other work on the machine disturbs them less; the rows are measured in
turns, so that a slower minute of the machine befalls all of them.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.degradation import Degradation, preset_names, sample_keys
from datasets.pack import open_pack
from datasets.pairs import HandwritingSet

AIM = 440  # pictures/s on one core at side 224: what a plain OpenCV pipeline of the four classic operations did when it was set


def hardware(device: torch.device) -> str:
    """The processor or GPU, and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name or platform.machine()}, {torch.get_num_threads()} threads"


def in_turns(tasks: dict[str, Callable[[int], None]], runs: int, device: torch.device) -> dict[str, np.ndarray]:
    """(runs,) seconds of each task, task after task in each run; a task gets the run's number, and first runs once unmeasured."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    taken = {name: np.empty(runs) for name in tasks}
    for run in range(-1, runs):
        for name, task in tasks.items():
            wait()
            start = clock()
            task(run % 1000)
            wait()
            if run >= 0:
                taken[name][run] = clock() - start
    return taken


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


def damage(args: argparse.Namespace) -> bool:
    """The damage generator against a plain OpenCV pipeline of the classic operations, a picture at a time, on one core."""
    import cv2

    device = torch.device(args.device)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    glyphs = HandwritingSet(open_pack(args.pack), "train", side=args.side, device=device)
    batches = np.random.default_rng(0).choice(len(glyphs), (args.batches, args.batch_size))
    samples = [glyphs.batch(positions) for positions in batches]
    degradation = Degradation(args.preset, args.side, device)
    pictures = [(sample["clean"][:, 0].cpu().numpy() * 255).round().astype(np.uint8) for sample in samples]

    def ours(run: int) -> None:
        for sample in samples:
            degradation(sample["clean"], sample_keys(0, run, sample["id"]))

    def opencv(run: int) -> None:
        rng = np.random.default_rng(run)
        for batch in pictures:
            np.stack([classic_opencv(picture.copy(), rng) for picture in batch]).astype(np.float32) / 255

    n = args.batches * args.batch_size
    print(f"{hardware(device)}; Python {platform.python_version()}, torch {torch.__version__}, OpenCV {cv2.__version__}")
    print(
        f"damage '{args.preset}', side {args.side}, batches of {args.batch_size}; {args.runs} runs of {n} pictures, after one more"
    )
    print(f"{'':<28}{'ms/picture: median':>18} {'[least – most]':>16}{'pictures/s':>12}")
    taken = in_turns({f"{args.preset}": ours, "classic, OpenCV": opencv}, args.runs, device)
    speed = {}
    for name, seconds in taken.items():
        ms = 1e3 * seconds / n
        speed[name] = 1e3 / np.median(ms)
        print(f"{name:<28}{np.median(ms):>18.2f} {f'[{ms.min():.2f} – {ms.max():.2f}]':>16}{speed[name]:>12.0f}")
    got, ratio = speed[args.preset], speed[args.preset] / speed["classic, OpenCV"]
    reached = got >= args.aim
    print(f"{'ok' if reached else 'FAILED'}: {got:.0f} pictures/s, aim {args.aim:.0f}; {ratio:.2f} times the OpenCV pipeline")
    return reached


def main(argv: list[str] | None = None) -> bool:
    parser = argparse.ArgumentParser(description="How fast the parts are, on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("damage", help=damage.__doc__)
    command.add_argument("--pack", default="data/zi.pack", metavar="FILE")
    command.add_argument("--preset", default="mixed", help=f"{', '.join(preset_names())}, or a YAML file")
    command.add_argument("--side", type=int, default=224, help="pixels of a picture")
    command.add_argument("--batch_size", type=int, default=32)
    command.add_argument("--batches", type=int, default=10, help="in a run")
    command.add_argument("--runs", type=int, default=7)
    command.add_argument("--aim", type=float, default=AIM, metavar="N", help="pictures/s to reach")
    command.add_argument("--device", default="cpu")
    command.set_defaults(measure=damage)
    args = parser.parse_args(argv)
    return args.measure(args)


if __name__ == "__main__":
    try:
        sys.exit(0 if main() else 1)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
