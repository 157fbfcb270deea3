"""Restores a picture of a degraded character, or a folder of them. From Python: `restoration.pipeline.load_restorer`.

python restore.py rubbing.jpg --char 佛 --confidence
python restore.py rubbings/ restored/ --char_from_name --compare --json
python restore.py rubbing.jpg --read --char auto
cat rubbing.jpg | python restore.py - > restored.png
"""

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from restoration import flags
from restoration.drawing import MEAN, Drawing
from restoration.jobs import STANDARD, Job, check_outputs, plan
from restoration.layout import is_page
from restoration.pipeline import BATCH, POLARITIES, STYLES, Prepared, Restored, Restorer, char_in, load_restorer
from restoration.reading import Reader, Reading, load_reader, sheet
from util import images, script
from util.settings import number
from util.squares import Box, ink_mask

PIXELS = 1 << 24  # in a batch, if that is reached before BATCH pictures; up to three batches are in memory at a time
LARGE = 600  # longer edge in pixels from which on a picture may show a page
AUTO = "auto"  # instead of a character: what the reader takes it for


def outputs(target: Path, args: argparse.Namespace) -> dict[str, Path]:
    """The files to write for one picture: "restored", and if requested "compare", "confidence", "readings", hypotheses 1, 2, …"""
    kinds = [kind for kind in ("compare", "confidence") if getattr(args, kind)] + ["readings"] * args.read
    kinds += [str(number) for number in range(1, args.hypotheses + 1) if args.hypotheses > 1]
    return {"restored": target, **{kind: target.with_name(f"{target.stem}_{kind}.png") for kind in kinds}}


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
    except Exception:  # as in `images.read`, which reports the error
        return 0


def restore_jobs(
    jobs: list[Job],
    restorer: Restorer,
    args: argparse.Namespace,
    reader: Reader | None = None,
    specimens: dict[str, np.ndarray] | None = None,
) -> Iterator[tuple[Job, dict | Exception]]:
    """Yields each job, in order, with its information (see --json) or its error.

    While the network works on a batch, threads read the next one and write the previous one.
    """

    specimen = images.read(args.guide) if args.guide else None
    drawing = Drawing(args.steps, args.guidance, args.hypotheses, args.seed)

    def read(job: Job) -> tuple[Prepared, float]:
        start = time.perf_counter()
        picture = images.read(io.BytesIO(sys.stdin.buffer.read()) if job.source == STANDARD else job.source)
        if note := images.first_of_several(picture):
            tqdm.write(f"{job.source}: {note}", file=sys.stderr)
        prepared = restorer.prepare(picture, job.char, args.polarity, args.box, args.rotate, specimen)
        if max(picture.size) >= LARGE and not args.box and is_page(prepared.bright):
            tqdm.write(f"{job.source}: looks like a page; restore_page.py restores its characters one by one", file=sys.stderr)
        return prepared, time.perf_counter() - start

    def restore(prepared: list[Prepared]) -> list[tuple[Restored, list[Reading]]]:
        restored = restorer.restore(prepared, drawing)
        if reader is None:
            return [(one, []) for one in restored]
        readings = reader.read(restored)
        under = reader.under_each(restored, readings, drawing) if args.read else [[] for _ in restored]
        if args.char == AUTO:
            pairs = zip(restored, readings, strict=True)
            restored = restorer.restore([reader.guided(*pair, specimens) for pair in pairs], drawing)
        elif specimens:
            guides = [dict.fromkeys(one.prepared.guide or "", 1.0) for one in restored]
            restored = restorer.restore(
                [restorer.told(one.prepared, chars, specimens) for one, chars in zip(restored, guides, strict=True)], drawing
            )
        return list(zip(restored, under, strict=True))

    def write(job: Job, restored: Restored, readings: list[Reading], seconds: float) -> dict:
        start = time.perf_counter()
        look = args.style, args.threshold, args.size, args.transparent
        if job.target == STANDARD:
            images.save_png(restored.picture(*look), sys.stdout.buffer)
        else:
            files = outputs(job.target, args)
            images.write_png(files["restored"], restored.picture(*look))
            if args.hypotheses > 1:
                for number, hypothesis in enumerate(restored.hypotheses, 1):
                    images.write_png(files[str(number)], hypothesis.picture(*look))
            if args.compare:
                images.write_png(files["compare"], restored.compare(args.style, args.threshold))
            if args.confidence:
                images.write_png(files["confidence"], restored.confidence())
            if args.read:
                images.write_png(files["readings"], sheet(restorer, restored, readings, args.style, args.threshold))
        if not ink_mask(restored.prepared.bright).any():
            tqdm.write(f"{job.source}: has no strokes, it is of one tone", file=sys.stderr)
        elif restored.prepared.certainty < 0.5:  # the network decided against the pixels
            other = next(one for one in POLARITIES if one != restored.prepared.polarity)
            tqdm.write(f"{job.source}: the polarity is in doubt; --polarity {other} if this is wrong", file=sys.stderr)
        if not restored.guide_fits:
            note = f"{restored.prepared.guide} does not fit what survives ({restored.agreement:.2f}): restored without a guide"
            tqdm.write(f"{job.source}: {note}", file=sys.stderr)
        numbers = restored.numbers() if args.json or args.verbose else {}
        numbers |= {"readings": [one.numbers() for one in readings]} if args.read else {}
        seconds += time.perf_counter() - start
        return {"input": str(job.source), "output": str(job.target), **numbers, "seconds": round(seconds, 3)}

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
            start = time.perf_counter()
            batch = restore([prepared for prepared, _ in ready.values()]) if ready else []
            share = (time.perf_counter() - start) / max(len(ready), 1)
            yield from ((job, future.result()) for job, future in writing)
            done = {job: (*pair, ready[job][1] + share) for job, pair in zip(ready, batch, strict=True)}
            writing = [(job, pool.submit(attempt, write, job, *done[job]) if job in done else future) for job, future in reading]
            reading = following
        yield from ((job, future.result()) for job, future in writing)


def mean_of_all(jobs: list[Job], restorer: Restorer, args: argparse.Namespace) -> Iterator[Restored]:
    """The means of all pictures that can be read, without guides."""
    for job in tqdm(jobs, "reading", unit="picture", disable=None, leave=False):
        with contextlib.suppress(OSError, ValueError):  # reported when it is restored
            yield restorer.restore([restorer.prepare(images.read(job.source), polarity=args.polarity)], MEAN)[0]


def restore_all(args: argparse.Namespace) -> int:
    """Restores all pictures, prints the errors, and returns their number."""
    jobs = plan(args.input, args.output)
    if args.read and (args.char_from_name or args.guide or args.char not in (None, AUTO)):
        raise ValueError("--read asks what the character is; drop --char, --char_from_name and --guide")
    if args.char != AUTO and (args.char or args.char_from_name):
        jobs = [job._replace(char=args.char or char_in(job.source.stem)) for job in jobs]
    if args.specimens and not (args.input.is_dir() and (args.char == AUTO or args.char_from_name)):
        raise ValueError("--specimens is for a folder with --char auto or --char_from_name")
    if args.hypotheses > 1 and args.steps == 1:
        raise ValueError("--steps 1 gives the mean, which is one; drop it or --hypotheses")
    if args.seed and args.hypotheses == 1:
        raise ValueError("--seed draws other hypotheses; pass --hypotheses, or drop it")
    if args.box and args.input.is_dir():
        raise ValueError(f"{args.input}: --box is for one picture, not for a folder")
    if jobs[0].target == STANDARD and len(outputs(STANDARD, args)) > 1:
        raise ValueError("standard output takes one picture; other outputs need an output file")
    check_outputs(jobs, lambda job: () if job.target == STANDARD else outputs(job.target, args).values(), args.overwrite)
    restorer = load_restorer(args.checkpoint, args.runtime, args.device)
    chars = {job.char for job in jobs if job.char}
    if (chars or args.guide) and not restorer.takes_guide:
        raise ValueError("this network takes no guide; drop --char, --char_from_name and --guide")
    reader = load_reader(restorer) if args.read or args.specimens or args.char == AUTO else None
    specimens = reader.specimens(mean_of_all(jobs, restorer, args)) if args.specimens else None
    if args.specimens:
        print(f"specimens of {len(specimens)} characters are read for certain as they are, and guide the others", file=sys.stderr)
    if args.hypotheses > 1 and not restorer.draws:
        raise ValueError("this network gives its mean only; drop --hypotheses")
    for char in sorted(restorer.read_guides(chars)):
        print(f"no standard glyph for {char}: restored without a guide", file=sys.stderr)

    stream = sys.stderr if jobs[0].target == STANDARD else sys.stdout
    failed = 0
    with tqdm(total=len(jobs), unit="picture", disable=len(jobs) == 1 or None) as bar:
        for job, result in restore_jobs(jobs, restorer, args, reader, specimens):
            bar.update()
            if isinstance(result, Exception):
                name = "" if str(job.source) in str(result) else f"{job.source}: "
                tqdm.write(f"error: {name}{result}", file=sys.stderr)
                failed += 1
                continue
            if args.json:
                tqdm.write(json.dumps(result, ensure_ascii=False), file=stream)
            if args.verbose:
                tqdm.write(describe(result), file=sys.stderr)
    if len(jobs) > 1:
        print(f"{len(jobs) - failed} of {len(jobs)} pictures restored", file=sys.stderr if args.json else None)
    return failed


def describe(info: dict) -> str:
    """The line of --verbose."""
    left, top, edge, _ = info["box"]
    turned = f", turned by {info['rotation']:g}°" if info["rotation"] else ""
    box = f"character in {edge}×{edge} pixels at ({left}, {top}){turned}"
    agreement = f" ({info['agreement']:.2f})" if info["agreement"] is not None else ""
    guide = f"guide {info['guide']}{agreement}" if info["guide"] else f"no guide{agreement and f' followed{agreement}'}"
    sure = f"polarity certain to {info['polarity_certainty']:.0%}, confidence {info['confidence']:.2f}"
    read = "".join(f", {one['char']} {one['probability']:.0%}" for one in info.get("readings", ()))
    read = read and f", read as{read[1:]}"
    return f"{info['input']}: {info['polarity']} strokes, {box}, {guide}, {sure}{read}, {info['seconds']:.2f} s"


def one_character(text: str) -> str:
    if len(text) != 1 and text != AUTO:
        raise argparse.ArgumentTypeError(f"must be one character, not '{text}'")
    return text


def square(text: str) -> Box:
    """LEFT,TOP,WIDTH,HEIGHT → the smallest square with the same centre."""
    try:
        left, top, width, height = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be LEFT,TOP,WIDTH,HEIGHT in pixels, not '{text}'") from None
    if min(width, height) < 1:
        raise argparse.ArgumentTypeError(f"width and height must be at least 1, not '{text}'")
    edge = max(width, height)
    return Box(top + (height - edge) // 2, left + (width - edge) // 2, edge)


def rotation(text: str) -> float | None:
    return None if text == "auto" else number(float, -180, 180)(text)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Restores a picture of a degraded character, or a folder of them.", allow_abbrev=False
    )
    add = parser.add_argument
    add("input", type=Path, metavar="IN", help="a picture, a folder of pictures, or - for standard input")
    add("output", type=Path, metavar="OUT", nargs="?",
        help="a .png file, a folder, or - for standard output (default: next to IN, with _restored added to the name)")  # fmt: skip
    flags.add_network_flags(parser)

    group = parser.add_argument_group("about the picture")
    add = group.add_mutually_exclusive_group().add_argument
    add("--char", type=one_character, metavar="字",
        help="the character in the picture, whose standard glyph is the guide; auto: its likely readings, weighted")  # fmt: skip
    add("--char_from_name", action="store_true", help="use the first Chinese character in the file's name as --char")
    add("--guide", type=Path, metavar="FILE", help="a picture of the same character in any hand, well preserved, as the guide")
    group.add_argument("--specimens", action="store_true",
        help="read the folder first; its best preserved specimens guide damaged ones before the standard glyphs do")  # fmt: skip
    group.add_argument("--polarity", choices=("auto", *POLARITIES), default="auto",
                       help="of the strokes (default: detected for each picture)")  # fmt: skip
    group.add_argument("--box", type=square, metavar="LEFT,TOP,WIDTH,HEIGHT",
                       help="where the character is, in pixels; extended to a square; beyond the edge: --box=-9,0,80,80 "
                            "(default: detected)")  # fmt: skip
    group.add_argument("--rotate", type=rotation, metavar="DEGREES", default="auto",
                       help="clockwise rotation of the character, or auto (default: auto)")  # fmt: skip
    add = flags.add_drawing_flags(parser)
    add("--hypotheses", type=number(int, 1, 64), default=1, metavar="N",
        help="draw N, best first: <stem>_1.png, which is <stem>.png, <stem>_2.png, …")  # fmt: skip
    add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of the hypotheses after the first (default: 0)")
    add = parser.add_argument_group("look of the restored picture").add_argument
    add("--style", choices=STYLES, help="ink: dark strokes on light; rubbing: light on dark (default: as the input)")
    add("--threshold", action="store_true", help="black and white; ink where its probability is above one half")
    add("--size", type=number(int, 8, 8192), metavar="N", help="the character alone, on a square of N pixels")
    add("--transparent", action="store_true", help="strokes on a transparent ground")
    add = parser.add_argument_group("extra outputs").add_argument
    add("--compare", action="store_true", help="also write <stem>_compare.png: degraded | restored | what changed")
    add("--confidence", action="store_true", help="also write <stem>_confidence.png: strokes kept, added, removed, doubtful")
    add("--read", action="store_true",
        help="up to five readings with their probabilities, and <stem>_readings.png: the picture restored under each")  # fmt: skip
    add("--json", action="store_true", help="print a line of JSON per picture: confidence, changes, polarity, box, rotation, time")
    add("--verbose", action="store_true", help="print a line of text per picture: the same without the changes")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 if anything failed."""
    return script.run(restore_all, parse_args(argv))


if __name__ == "__main__":
    script.as_script(main)
