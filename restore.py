"""Restores a picture of a damaged character, or a folder of them.

    python restore.py damaged.jpg --char 佛 --sureness
    python restore.py rubbings/ restored/ --char_from_name --compare --json
    cat damaged.jpg | python restore.py - > restored.png

From Python:

    from restore import load_restorer
    restorer = load_restorer()
    restored = restorer(Image.open("damaged.jpg"), char="佛")
"""

import argparse
import io
import json
import signal
import sys
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from restoring import POLARITIES, STYLES, WEIGHTS, Prepared, Restored, Restorer, load_restorer
from util import images

BATCH = 16  # pictures, or
PIXELS = 1 << 24  # so many in all of them, whatever comes first: three batches are in memory at a time
STANDARD = Path("-")  # input or output

__all__ = ["Restorer", "load_restorer", "main"]


class Job(NamedTuple):
    """A picture to restore, the file that it becomes, and the character that it shows, if that was told."""

    source: Path
    target: Path
    char: str | None = None


# --- what goes where ----------------------------------------------------------------------------------------------------


def plan(source: Path, target: Path | None) -> list[Job]:
    """Which picture goes into which file: one job for a picture, one for each picture of a folder and of its folders.

    A folder's pictures are known by their suffix, and what else lies there is left alone; its tree and names are kept. Without
    a target the outputs lie beside the input, `_restored` added to its name.
    """
    if source != STANDARD and not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if target == STANDARD and source.is_dir():
        raise ValueError(f"{source}: a folder cannot go to standard output; give a folder to write to")
    if target == STANDARD or (source, target) == (STANDARD, None):
        return [Job(source, STANDARD)]
    if target is None:
        target = source.with_name(f"{source.name}_restored" if source.is_dir() else f"{source.stem}_restored.png")
    if source.is_dir():
        if target.is_file():
            raise ValueError(f"{target}: a file, but the input is a folder; give a folder")
        if source.resolve() in target.resolve().parents:
            raise ValueError(f"{target}: lies within the input folder, whose pictures it would join; choose another place")
        pictures = images.pictures_in(source)
        if not pictures:
            raise ValueError(f"{source}: no pictures in it ({' '.join(sorted(images.SUFFIXES))})")
        return [Job(picture, (target / picture.relative_to(source)).with_suffix(".png")) for picture in pictures]
    if target.is_dir() and source != STANDARD:
        return [Job(source, target / f"{source.stem}.png")]
    if target.suffix.lower() != ".png":
        raise ValueError(f"{target}: pictures are written as PNG; give a name in .png, or a folder that exists")
    return [Job(source, target)]


def outputs(target: Path, args: argparse.Namespace) -> dict[str, Path]:
    """All files that one picture becomes, by kind: the restored one and those beside it that were asked for."""
    beside = {kind: target.with_name(f"{target.stem}_{kind}.png") for kind in ("compare", "sureness") if getattr(args, kind)}
    return {"restored": target, **beside}


def check_outputs(jobs: list[Job], args: argparse.Namespace) -> None:
    """ValueError for an output that is an input, that two inputs share, or that exists and may not be overwritten."""
    inputs = {job.source.resolve() for job in jobs}
    owner: dict[Path, Path] = {}
    existing = []
    for source, target, _ in jobs:
        if target == STANDARD:
            if args.compare or args.sureness:
                raise ValueError("standard output carries one picture: with -, leave --compare and --sureness out")
            continue
        for output in outputs(target, args).values():
            place = output.resolve()
            if place in inputs:
                raise ValueError(f"{output}: this output is an input, which is never written to; choose another place")
            if place in owner:
                raise ValueError(f"{output}: {owner[place]} and {source} would both be written there; rename one")
            owner[place] = source
            if output.exists():
                existing.append(output)
    if existing and not args.overwrite:
        others = f", and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise ValueError(f"{existing[0]}: exists already{others}; give --overwrite, or another place")


def char_in(name: str) -> str | None:
    """The first Chinese character of a file's name."""
    return next((char for char in name if "CJK UNIFIED IDEOGRAPH" in unicodedata.name(char, "")), None)


# --- the work -----------------------------------------------------------------------------------------------------------


def batches(jobs: list[Job]) -> Iterator[list[Job]]:
    """Jobs in groups of at most BATCH pictures and about PIXELS pixels."""
    group, pixels = [], 0
    for job in jobs:
        size = _pixels(job.source)
        if group and (len(group) == BATCH or pixels + size > PIXELS):
            yield group
            group, pixels = [], 0
        group.append(job)
        pixels += size
    yield group


def _pixels(path: Path) -> int:
    try:
        with Image.open(path) as image:
            return image.width * image.height
    except Exception:  # `images.read` will say what is wrong with it
        return 0


def restore_jobs(jobs: list[Job], restorer: Restorer, args: argparse.Namespace) -> Iterator[tuple[Job, dict | Exception]]:
    """Each job, in order, with what is told of it or why it failed.

    Threads read the next batch and write the one before while the network works on one; no more is ever in memory.
    """

    def read(job: Job) -> tuple[Prepared, float]:
        began = time.perf_counter()
        picture = images.read(io.BytesIO(sys.stdin.buffer.read()) if job.source == STANDARD else job.source)
        return restorer.prepare(picture, job.char, args.polarity), time.perf_counter() - began

    def write(job: Job, restored: Restored, seconds: float) -> dict:
        began = time.perf_counter()
        picture = restored.picture(args.style, args.threshold, args.size, args.transparent)
        if job.target == STANDARD:
            picture.save(sys.stdout.buffer, format="PNG", dpi=picture.info.get("dpi"))
        else:
            make = {
                "restored": lambda: picture,
                "compare": lambda: restored.compare(args.style, args.threshold),
                "sureness": restored.sureness,
            }
            for kind, path in outputs(job.target, args).items():
                images.write_png(path, make[kind]())
        told = restored.numbers() if args.json or args.verbose else {}
        seconds += time.perf_counter() - began
        return {"input": str(job.source), "output": str(job.target), **told, "seconds": round(seconds, 3)}

    def attempt(task: Callable, *arguments: object) -> object:
        try:
            return task(*arguments)
        except (OSError, ValueError) as error:
            return error

    with ThreadPoolExecutor() as pool:
        groups = batches(jobs)
        reading = [(job, pool.submit(attempt, read, job)) for job in next(groups)]
        writing: list[tuple[Job, Future]] = []
        while reading:
            following = [(job, pool.submit(attempt, read, job)) for job in next(groups, [])]
            ready = {job: result for job, future in reading if not isinstance(result := future.result(), Exception)}
            began = time.perf_counter()
            restored = restorer.restore([prepared for prepared, _ in ready.values()]) if ready else []
            share = (time.perf_counter() - began) / max(len(ready), 1)
            yield from ((job, future.result()) for job, future in writing)
            new = {job: (one, ready[job][1] + share) for job, one in zip(ready, restored, strict=True)}
            writing = [(job, pool.submit(attempt, write, job, *new[job]) if job in new else future) for job, future in reading]
            reading = following
        yield from ((job, future.result()) for job, future in writing)


def restore_all(args: argparse.Namespace) -> int:
    """Restores what can be restored, names the rest, and returns how many those are."""
    jobs = plan(args.input, args.output)
    if args.char or args.char_from_name:
        jobs = [job._replace(char=args.char or char_in(job.source.stem)) for job in jobs]
    check_outputs(jobs, args)
    restorer = load_restorer(args.checkpoint, args.runtime, args.device)
    chars = {job.char for job in jobs if job.char}
    if chars and restorer.in_chans == 1:
        raise ValueError("this network was trained without a guide; leave --char and --char_from_name out")
    for char in sorted(restorer.read_guides(chars)):
        print(f"the guide has no {char}: done without", file=sys.stderr)

    told = sys.stderr if jobs[0].target == STANDARD else sys.stdout
    failed = 0
    with tqdm(total=len(jobs), unit="picture", disable=len(jobs) == 1 or None) as bar:
        for job, result in restore_jobs(jobs, restorer, args):
            bar.update()
            if isinstance(result, Exception):
                name = "" if str(job.source) in str(result) else f"{job.source}: "
                tqdm.write(f"error: {name}{result}", file=sys.stderr)
                failed += 1
                continue
            if args.json:
                tqdm.write(json.dumps(result, ensure_ascii=False), file=told)
            if args.verbose:
                tqdm.write(describe(result), file=sys.stderr)
    if len(jobs) > 1:
        print(f"{len(jobs) - failed} of {len(jobs)} pictures restored", file=sys.stderr if args.json else None)
    return failed


def describe(told: dict) -> str:
    """A line for a person, of what --json tells."""
    top, left, edge = told["box"]
    guide = f"guide {told['guide']}" if told["guide"] else "no guide"
    place = f"character within {edge}×{edge} pixels from ({left}, {top})"
    return (
        f"{told['input']}: {told['polarity']} strokes, {place}, {guide}, sureness {told['sureness']:.2f}, {told['seconds']:.2f} s"
    )


# --- the command line ---------------------------------------------------------------------------------------------------


def one_character(text: str) -> str:
    if len(text) != 1:
        raise argparse.ArgumentTypeError(f"one character, not '{text}'")
    return text


def pixels(text: str) -> int:
    if not text.isdecimal() or not 8 <= int(text) <= 8192:
        raise argparse.ArgumentTypeError(f"8 to 8192 pixels, not '{text}'")
    return int(text)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Restores a picture of a damaged character, or a folder of them.", allow_abbrev=False
    )
    parser.add_argument("input", type=Path, metavar="IN", help="a picture, a folder of pictures, or - for standard input")
    parser.add_argument("output", type=Path, metavar="OUT", nargs="?",
                        help="a .png, a folder for the tree of IN, or - (default: beside IN, _restored added)")  # fmt: skip
    known = parser.add_argument_group("what is known of the picture")
    chars = known.add_mutually_exclusive_group()
    chars.add_argument("--char", type=one_character, metavar="字", help="the character that it shows: its standard form guides")
    chars.add_argument("--char_from_name", action="store_true", help="the same, by the first Chinese character of the file's name")
    known.add_argument("--polarity", choices=("auto", *POLARITIES), default="auto",
                       help="of the strokes (default: found out for each picture)")  # fmt: skip
    look = parser.add_argument_group("what the restored picture looks like")
    look.add_argument("--style", choices=STYLES, help="dark strokes on light, or light on dark (default: as it came)")
    look.add_argument("--threshold", action="store_true", help="black and white: ink is what is more likely ink than not")
    look.add_argument(
        "--size", type=pixels, help="the character alone, on a clean square of so many pixels (default: in its place)"
    )
    look.add_argument("--transparent", action="store_true", help="strokes on nothing")
    more = parser.add_argument_group("what else is told")
    more.add_argument("--compare", action="store_true", help="also write <stem>_compare.png: damaged | restored | what changed")
    more.add_argument("--sureness", action="store_true",
                      help="also write <stem>_sureness.png: strokes kept, added, removed and doubtful")  # fmt: skip
    more.add_argument("--json", action="store_true",
                      help="print a line of JSON for each picture: sureness, what changed, polarity, time")  # fmt: skip
    more.add_argument("--verbose", action="store_true", help="say for each picture how it was read")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE",
                        help=f"a run's checkpoint, a .safetensors or an .onnx file (default: weights/{WEIGHTS.name})")  # fmt: skip
    parser.add_argument("--runtime", choices=("auto", "onnx", "torch"), default="auto",
                        help="onnx: fast, on the CPU; torch: also on a GPU (default: torch with --device cuda)")  # fmt: skip
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="of torch (default: a GPU where there is one)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 1 if anything could not be done."""
    args = parse_arguments(arguments)
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata, and of sizes that `images.read` looks at itself
    try:
        return 1 if restore_all(args) else 0
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as on Ctrl-C, a half-written output is cleared away
    sys.exit(main())
