"""Restores a picture of a damaged character, or a folder of them.

    python restore.py damaged.jpg restored.png --sureness
    python restore.py rubbings/ restored/ --compare --checkpoint runs/demo/best.pth

From Python:

    from restore import load_restorer
    restorer = load_restorer("runs/demo/best.pth")
    restored = restorer(Image.open("damaged.jpg"))
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import models
from util import images, sureness

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
        polarity = self.find_polarity(x, polarity)
        restored = self.restore_bright(1 - x if polarity == "dark" else x)
        return 1 - restored if polarity == "dark" else restored

    def find_polarity(self, x: np.ndarray, polarity: str = "auto") -> str:
        """ "bright" or "dark": of the strokes of (H, W)."""
        if polarity not in ("auto", "bright", "dark"):
            raise ValueError(f"polarity must be auto, bright or dark, not {polarity}")
        return images.find_polarity(images.scale_to(x, self.side)) if polarity == "auto" else polarity

    def restore_bright(self, x: np.ndarray) -> np.ndarray:
        """(H, W) in [0, 1], strokes bright -> the probability of ink (H, W)."""
        square, window = images.pad_to_square(images.stretch(images.scale_to(x, self.side)), self.side)
        return images.resize(self._run(square)[window], *x.shape)

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


def plan(source: Path, target: Path | None) -> list[tuple[Path, Path]]:
    """Which picture goes into which file: one pair for a picture, one for each picture of a folder and of its folders.

    A folder's pictures are known by their suffix, and what else lies there is left alone; its tree and names are kept. Without
    a target the outputs lie beside the input, `_restored` added to its name.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if target is None:
        target = source.with_name(f"{source.name}_restored" if source.is_dir() else f"{source.stem}_restored.png")
    if source.is_dir():
        if target.is_file():
            raise ValueError(f"{target}: a file, but the input is a folder; give a folder")
        if source.resolve() in target.resolve().parents:
            raise ValueError(f"{target}: lies within the input folder, whose pictures it would join; choose another place")
        pictures = sorted(p for p in source.rglob("*") if p.suffix.lower() in images.SUFFIXES and p.is_file())
        if not pictures:
            raise ValueError(f"{source}: no pictures in it ({' '.join(sorted(images.SUFFIXES))})")
        return [(picture, (target / picture.relative_to(source)).with_suffix(".png")) for picture in pictures]
    if target.is_dir():
        return [(source, target / f"{source.stem}.png")]
    if target.suffix.lower() != ".png":
        raise ValueError(f"{target}: pictures are written as PNG; give a name in .png, or a folder that exists")
    return [(source, target)]


def outputs(target: Path, args: argparse.Namespace) -> dict[str, Path]:
    """All files that one picture becomes, by kind: the restored one and those beside it that were asked for."""
    beside = {kind: target.with_name(f"{target.stem}_{kind}.png") for kind in ("compare", "sureness") if getattr(args, kind)}
    return {"restored": target, **beside}


def check_outputs(jobs: list[tuple[Path, Path]], args: argparse.Namespace) -> None:
    """ValueError for an output that is an input, that two inputs share, or that exists and may not be overwritten."""
    inputs = {source.resolve() for source, _ in jobs}
    owner: dict[Path, Path] = {}
    existing = []
    for source, target in jobs:
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


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one height next to each other, a grey strip between."""
    strip = max(2, pictures[0].width // 40)
    sheet = Image.new("RGB", (sum(p.width + strip for p in pictures) - strip, pictures[0].height), (128, 128, 128))
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + strip
    return sheet


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Restores a picture of a damaged character, or a folder of them.")
    parser.add_argument("input", type=Path, metavar="IN", help="a picture, or a folder of pictures")
    parser.add_argument("output", type=Path, metavar="OUT", nargs="?",
                        help="a .png, or a folder for the tree of IN (default: beside IN, _restored added)")  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, help="a run's checkpoint (default: runs/demo/best.pth)")
    parser.add_argument("--polarity", choices=("auto", "bright", "dark"), default="auto",
                        help="of the strokes (default: found out for each picture)")  # fmt: skip
    parser.add_argument("--style", choices=("ink", "rubbing"), help="dark strokes on light, or light on dark (default: as it came)")
    parser.add_argument("--threshold", action="store_true", help="black and white: ink is what is more likely ink than not")
    parser.add_argument("--compare", action="store_true", help="also write <stem>_compare.png: damaged | restored | what changed")
    parser.add_argument("--sureness", action="store_true",
                        help="also write <stem>_sureness.png: strokes kept, added, removed and doubtful")  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON for each picture: polarity, sureness, what changed"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="default: a GPU where there is one")  # fmt: skip
    return parser.parse_args(arguments)


def restore_file(restorer: Restorer, source: Path, target: Path, args: argparse.Namespace) -> None:
    """Restores one picture into its outputs, and with --json tells of it."""
    damaged = images.read_grey(source)
    polarity = restorer.find_polarity(damaged, args.polarity)
    bright = 1 - damaged if polarity == "dark" else damaged
    ink = restorer.restore_bright(bright)
    result = (ink > 0.5).astype(np.float32) if args.threshold else ink
    dark = args.style == "ink" if args.style else polarity == "dark"
    restored, paths = images.from_grey(1 - result if dark else result), outputs(target, args)
    images.write_png(target, restored)
    if "compare" in paths:
        images.write_png(paths["compare"], side_by_side([images.from_grey(damaged), restored, sureness.colours(bright, ink)]))
    if "sureness" in paths:
        images.write_png(paths["sureness"], sureness.picture(bright, ink))
    if args.json:
        told = {"input": str(source), "output": str(target), "polarity": polarity, **sureness.numbers(bright, ink)}
        tqdm.write(json.dumps(told, ensure_ascii=False))


def restore_all(args: argparse.Namespace) -> int:
    """Restores what can be restored, names the rest, and returns how many those are."""
    jobs = plan(args.input, args.output)
    check_outputs(jobs, args)
    restorer = load_restorer(args.checkpoint, args.device)
    failed = 0
    for source, target in tqdm(jobs, unit="picture", disable=len(jobs) == 1 or None):
        try:
            restore_file(restorer, source, target, args)
        except (OSError, ValueError) as error:
            tqdm.write(f"error: {error}", file=sys.stderr)
            failed += 1
    if len(jobs) > 1:
        print(f"{len(jobs) - failed} of {len(jobs)} pictures restored", file=sys.stderr if args.json else None)
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
