"""Counts on how many pictures the polarity of the strokes is found, as they are and as their negatives.

    python tools/polarity.py --bright cao-quan fangshan --dark lanting zhang-menglong

The folders are told by the polarity that their pictures have. One that is twice as wide as high counts as two characters side by
side; of one with a longer edge above --page pixels, --crops random squares of 45 to 70 pixels are taken.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util import images


def characters(folder: Path, page: int, crops: int) -> Iterator[np.ndarray]:
    """Every character of a folder: (H, W) in [0, 1], read by the mix of colours that separates its strokes."""
    rng = np.random.default_rng(0)
    for path in images.pictures_in(folder):
        x = images.separate(images.to_channels(images.read(path)))
        height, width = x.shape
        if max(x.shape) > page:
            for _ in range(crops):
                edge = rng.integers(45, 71)
                top, left = rng.integers(0, (height - edge, width - edge))
                yield x[top : top + edge, left : left + edge]
        elif width == 2 * height:
            yield from np.hsplit(x, 2)
        else:
            yield x


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Counts on how many pictures the polarity of the strokes is found.")
    for polarity in ("bright", "dark"):
        parser.add_argument(f"--{polarity}", nargs="*", type=Path, default=[], metavar="FOLDER", help=f"of {polarity} strokes")
    parser.add_argument("--page", type=int, default=1000, help="longer edge above which a picture is a page (default: 1000)")
    parser.add_argument("--crops", type=int, default=100, help="of a page (default: 100)")
    args = parser.parse_args(arguments)
    for truth, other in (("bright", "dark"), ("dark", "bright")):
        for folder in getattr(args, truth):
            found = [[images.find_polarity(y) for y in (x, 1 - x)] for x in characters(folder, args.page, args.crops)]
            right = np.array(found).reshape(-1, 2) == [truth, other]
            if not found:
                print(f"error: {folder}: no pictures in it", file=sys.stderr)
                return 1
            print(f"{folder}: {truth}, {right[:, 0].sum()} / {len(right)}; negatives {right[:, 1].sum()} / {len(right)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
