"""Restores a picture of a damaged character, or a folder of them.

    python restore.py damaged.jpg restored.png
    python restore.py rubbings/ restored/ --compare --checkpoint runs/demo/best.pth

From Python:

    from restore import load_restorer
    restorer = load_restorer("runs/demo/best.pth")
    restored = restorer(Image.open("damaged.jpg"))
"""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import models
from util import images

DEFAULT_CHECKPOINT = Path(__file__).resolve().parent / "runs" / "demo" / "best.pth"


class Restorer:
    """Restores pictures of any size, tone and colour.

    Args:
        network: (1, in_chans, side, side) in [0, 1], strokes bright -> logits (1, 1, side, side).
        side: of the square that the network is given, in pixels.
        in_chans: 1, or 2 for a network that takes a guide glyph as well; it is given none, a channel of zeros.
        device: where the network is.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        side: int,
        in_chans: int = 1,
        device: torch.device | str = "cpu",
    ):
        self.network, self.side, self.in_chans, self.device = network, side, in_chans, device

    def __call__(self, picture: Image.Image | np.ndarray, polarity: str = "auto") -> Image.Image:
        """The restored picture: 8-bit grey, as large as `picture` (EXIF orientation obeyed), strokes of its polarity.

        Args:
            picture: a Pillow picture of any mode, or an array that Pillow takes: (H, W) or (H, W, 3|4) uint8, (H, W)
                uint16, or (H, W) float32 in [0, 1].
            polarity: of the strokes: "bright", "dark", or "auto", which looks at the border and at the share of ink.
        """
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        return images.from_grey(self.restore_grey(images.to_grey(picture), polarity))

    def restore_grey(self, x: np.ndarray, polarity: str = "auto") -> np.ndarray:
        """The same for an array: (H, W) float32 in [0, 1] -> (H, W) float32 in [0, 1].

        The network's own levels come back, ground near one end and strokes near the other, however pale `x` was.
        """
        if polarity not in ("auto", "bright", "dark"):
            raise ValueError(f"polarity must be auto, bright or dark, not {polarity}")
        small = images.scale_to(x, self.side)
        if polarity == "auto":
            polarity = images.find_polarity(small)
        if polarity == "dark":
            small = 1 - small
        square, window = images.pad_to_square(images.stretch(small), self.side)
        restored = images.resize(self._run(square)[window], *x.shape)
        return 1 - restored if polarity == "dark" else restored

    @torch.inference_mode()
    def _run(self, square: np.ndarray) -> np.ndarray:
        x = torch.zeros(1, self.in_chans, self.side, self.side, device=self.device)
        x[:, 0] = torch.from_numpy(square)
        return self.network(x).float().sigmoid()[0, 0].cpu().numpy()


def load_restorer(checkpoint: str | Path | None = None, device: str = "auto") -> Restorer:
    """The restorer of a checkpoint, by default of the demo's run.

    `device`: "auto" (a GPU where there is one), "cpu" or "cuda". Errors: FileNotFoundError, ValueError.
    """
    path = DEFAULT_CHECKPOINT if checkpoint is None else Path(checkpoint)
    if not path.is_file():
        way_out = "train one with `make demo`, or give --checkpoint" if checkpoint is None else "give a run's best.pth"
        raise FileNotFoundError(f"{path}: no checkpoint; {way_out}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no GPU that torch can use; leave --device out, or give --device cpu")
    model, settings = models.load(path, device)
    return Restorer(model, settings["side"], settings["in_chans"], device)


def plan(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Which picture goes into which file: one pair for a picture, one for each picture of a folder (not of its folders).

    A folder's pictures are known by their suffix, and what else lies there is left alone.
    """
    if source.is_dir():
        if target.is_file():
            raise ValueError(f"{target}: a file, but the input is a folder; give a folder")
        pictures = sorted(p for p in source.iterdir() if p.suffix.lower() in images.SUFFIXES and p.is_file())
        if not pictures:
            raise ValueError(f"{source}: no pictures in it ({' '.join(sorted(images.SUFFIXES))})")
        return [(picture, target / f"{picture.stem}.png") for picture in pictures]
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if target.is_dir():
        return [(source, target / f"{source.stem}.png")]
    if target.suffix.lower() != ".png":
        raise ValueError(f"{target}: pictures are written as PNG; give a name in .png, or a folder that exists")
    return [(source, target)]


def compare_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}_compare.png")


def check_outputs(jobs: list[tuple[Path, Path]], compare: bool, overwrite: bool) -> None:
    """ValueError for an output that is an input, that two inputs share, or that exists and may not be overwritten."""
    inputs = {source.resolve() for source, _ in jobs}
    owner: dict[Path, Path] = {}
    existing = []
    for source, target in jobs:
        for output in (target, compare_path(target)) if compare else (target,):
            place = output.resolve()
            if place in inputs:
                raise ValueError(f"{output}: this output is an input, which is never written to; choose another place")
            if place in owner:
                raise ValueError(f"{output}: {owner[place]} and {source} would both be written there; rename one")
            owner[place] = source
            if output.exists():
                existing.append(output)
    if existing and not overwrite:
        others = f", and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise ValueError(f"{existing[0]}: exists already{others}; give --overwrite, or another place")


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two (H, W) next to each other, a grey strip between."""
    strip = np.full((left.shape[0], max(2, left.shape[1] // 40)), 0.5, dtype=np.float32)
    return np.concatenate([left, strip, right], axis=1)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Restores a picture of a damaged character, or a folder of them.")
    parser.add_argument("input", type=Path, metavar="IN", help="a picture, or a folder of pictures")
    parser.add_argument("output", type=Path, metavar="OUT", help="a .png, or a folder, which gets the names of IN in .png")
    parser.add_argument("--checkpoint", type=Path, help="a run's checkpoint (default: runs/demo/best.pth)")
    parser.add_argument("--polarity", choices=("auto", "bright", "dark"), default="auto",
                        help="of the strokes (default: found out for each picture)")  # fmt: skip
    parser.add_argument("--compare", action="store_true", help="also write <stem>_compare.png: damaged | restored")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="default: a GPU where there is one")  # fmt: skip
    return parser.parse_args(arguments)


def restore_all(args: argparse.Namespace) -> int:
    """Restores what can be restored, names the rest, and returns how many those are."""
    jobs = plan(args.input, args.output)
    check_outputs(jobs, args.compare, args.overwrite)
    restorer = load_restorer(args.checkpoint, args.device)
    failed = 0
    for source, target in tqdm(jobs, unit="picture", disable=len(jobs) == 1 or None):
        try:
            damaged = images.read_grey(source)
            restored = restorer.restore_grey(damaged, args.polarity)
            images.write_png(target, images.from_grey(restored))
            if args.compare:
                images.write_png(compare_path(target), images.from_grey(side_by_side(damaged, restored)))
        except (OSError, ValueError) as error:
            tqdm.write(f"error: {error}", file=sys.stderr)
            failed += 1
    if len(jobs) > 1:
        print(f"{len(jobs) - failed} of {len(jobs)} pictures restored into {args.output}")
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 1 if anything could not be done."""
    args = parse_arguments(arguments)
    try:
        return 1 if restore_all(args) else 0
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as on Ctrl-C, a half-written output is cleared away
    sys.exit(main())
