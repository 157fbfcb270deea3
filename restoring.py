"""Restores pictures of damaged characters by a trained network: what restore.py, the page and other programs share.

A picture → strokes bright, by the mix of its colours that shows them best → the box of the character → the network's square → the
probability of ink → back to the picture's place, size and polarity.
"""

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from datasets.pack import read_guide
from util import exported, images, sureness
from util.images import Box

ROOT = Path(__file__).resolve().parent
WEIGHTS = ROOT / "weights" / "restorer_convnext_atto.safetensors"
PACK = ROOT / "data" / "zi.pack"
POLARITIES, STYLES = ("bright", "dark"), ("ink", "rubbing")


@dataclass(frozen=True)
class Prepared:
    """A picture made ready for the network.

    shown: as it came, upright, 8 bits. bright: (H, W) float32 in [0, 1], strokes bright. polarity: of the strokes as they came.
    box: where the character stands. guide: the character whose standard glyph is given along, or None. x: (in_chans, side, side)
    float32 in [0, 1]. dpi: resolution of the picture, if it has one.
    """

    shown: Image.Image
    bright: np.ndarray
    polarity: str
    box: Box
    guide: str | None
    x: np.ndarray
    dpi: tuple[float, float] | None


@dataclass(frozen=True)
class Restored:
    """A restored picture. given: what it was made from. square: the probability of ink in the box, (side, side)."""

    given: Prepared
    square: np.ndarray

    @cached_property
    def ink(self) -> np.ndarray:
        """The probability of ink, as large as the picture: (H, W) float32 in [0, 1]."""
        return images.from_square(self.square, self.given.box, *self.given.bright.shape)

    def picture(
        self, style: str | None = None, threshold: bool = False, size: int | None = None, transparent: bool = False
    ) -> Image.Image:
        """The restored picture, 8-bit grey, as large as the damaged one, of its polarity and resolution.

        Args:
            style: "ink", dark strokes on light, or "rubbing", light on dark.
            threshold: only black and white: ink is what is more likely ink than not.
            size: the character alone, in the middle of a square of so many pixels.
            transparent: strokes on nothing (mode LA), the more opaque the surer.
        """
        ink = images.resize(self.square, size, size) if size else self.ink
        ink = (ink > 0.5).astype(np.float32) if threshold else ink
        dark = style == "ink" if style else self.given.polarity == "dark"
        picture = images.from_grey(1 - ink if dark else ink)
        if transparent:
            alpha = ImageOps.invert(picture) if dark else picture
            picture = Image.merge("LA", [Image.new("L", alpha.size, 0 if dark else 255), alpha])
        if self.given.dpi and not size:
            picture.info["dpi"] = self.given.dpi
        return picture

    def compare(self, style: str | None = None, threshold: bool = False) -> Image.Image:
        """Damaged | restored | what changed (RGB); arguments as of `picture`."""
        height, width = self.ink.shape
        panels = [self.given.shown, self.picture(style, threshold), sureness.colours(self.given.bright, self.ink)]
        strip = max(2, width // 40)
        sheet = Image.new("RGB", (3 * width + 2 * strip, height), (128, 128, 128))
        for i, panel in enumerate(panels):
            sheet.paste(panel.convert("RGB"), (i * (width + strip), 0))
        return sheet

    def sureness(self) -> Image.Image:
        """Strokes kept, added, removed and doubtful in colours, with a legend below."""
        return sureness.picture(self.given.bright, self.ink)

    def numbers(self) -> dict:
        """{"polarity", "box": [top, left, edge] in pixels, "guide": character or None, and those of `sureness.numbers`}."""
        given = self.given
        return {
            "polarity": given.polarity,
            "box": list(given.box),
            "guide": given.guide,
            **sureness.numbers(given.bright, self.ink),
        }


class Restorer:
    """Restores pictures of any size, tone and colour.

    Args:
        network: (N, in_chans, side, side) float32 in [0, 1], strokes bright -> probability of ink (N, side, side).
        side: of the square that the network is given, in pixels.
        in_chans: 1, or 2 for a network that takes the standard glyph as a guide.
        pack: the handwriting set that holds the guide's glyphs.
    """

    def __init__(self, network: Callable[[np.ndarray], np.ndarray], side: int, in_chans: int = 1, pack: str | Path = PACK):
        self.network, self.side, self.in_chans, self.pack = network, side, in_chans, pack
        self._guides: dict[str, np.ndarray | None] = {}

    def __call__(
        self, picture: Image.Image | np.ndarray, *, char: str | None = None, polarity: str = "auto", **look
    ) -> Image.Image:
        """The restored picture: 8-bit grey, as large as `picture` (EXIF orientation obeyed), strokes of its polarity.

        Args:
            picture: a Pillow picture of any mode, or an array that Pillow takes: (H, W) or (H, W, 3|4) uint8, (H, W)
                uint16, or (H, W) float32 in [0, 1].
            char: the character that it shows, if known; a network that takes a guide is given its standard glyph.
            polarity: of the strokes: "bright", "dark", or "auto", which looks at the border and at the share of ink.
            look: see `Restored.picture`.
        """
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        return self.restore([self.prepare(picture, char, polarity)])[0].picture(**look)

    def prepare(self, picture: Image.Image, char: str | None = None, polarity: str = "auto") -> Prepared:
        """A picture made ready for `restore`; arguments as of `__call__`. ValueError for one that makes no sense."""
        if polarity not in ("auto", *POLARITIES):
            raise ValueError(f"polarity must be auto, bright or dark, not {polarity}")
        if char and len(char) != 1:
            raise ValueError(f"the guide is of one character, not of '{char}'")
        if char and self.in_chans == 1:
            raise ValueError("this network was trained without a guide; leave the character out")
        picture = ImageOps.exif_transpose(picture)
        channels = images.to_channels(picture)
        grey = images.separate(channels)
        if polarity == "auto":
            polarity = images.find_polarity(grey)
        bright = 1 - grey if polarity == "dark" else grey
        box = images.find_box(bright)
        x = np.zeros((self.in_chans, self.side, self.side), dtype=np.float32)
        x[0] = images.to_square(bright, box, self.side, contrast=True)
        guide = self._guide(char) if char else None
        if guide is not None:
            x[1] = guide
        return Prepared(
            images.from_grey(channels), bright, polarity, box, char if guide is not None else None, x, _resolution(picture)
        )

    def restore(self, prepared: list[Prepared]) -> list[Restored]:
        """Restores pictures in one batch."""
        squares = self.network(np.stack([given.x for given in prepared]))
        return [Restored(*pair) for pair in zip(prepared, squares, strict=True)]

    def read_guides(self, chars: Iterable[str]) -> set[str]:
        """Reads the standard glyphs of many characters at once, and returns the characters that the guide lacks."""
        wanted = set(chars) - self._guides.keys()
        glyphs = read_guide(self.pack, wanted) if wanted else {}
        self._guides |= {char: soften(glyphs[char], self.side) if char in glyphs else None for char in wanted}
        return {char for char in chars if self._guides[char] is None}

    def _guide(self, char: str) -> np.ndarray | None:
        self.read_guides([char])
        return self._guides[char]


def soften(glyph: np.ndarray, side: int) -> np.ndarray:
    """(S, S) of 0 and 1 -> (side, side) in [0, 1] with the soft edges of a scan, as `datasets.pairs.smooth` does for training."""
    x = glyph.astype(np.float32)
    if side != len(x):
        return np.asarray(Image.fromarray(x).resize((side, side), Image.Resampling.BILINEAR)).clip(0, 1)
    for _ in range(2):
        padded = np.pad(x, ((1, 1), (0, 0)))
        x = ((padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4).T
    return x


def _resolution(picture: Image.Image) -> tuple[float, float] | None:
    """Pixels per inch, across and down, as far as they can be believed: TIFF files without any say 1."""
    dpi = tuple(float(value) for value in picture.info.get("dpi", ()))
    return dpi if len(dpi) == 2 and all(math.isfinite(value) and 5 <= value <= 50_000 for value in dpi) else None


def load_restorer(checkpoint: str | Path | None = None, runtime: str = "auto", device: str = "auto") -> Restorer:
    """The restorer of trained weights, by default of those that come with the project.

    Args:
        checkpoint: a run's checkpoint, a safetensors file, or an ONNX file that export.py wrote.
        runtime: "onnx", fast to start and on the CPU; "torch"; or "auto": torch for a GPU that is asked for, else ONNX.
        device: of torch: "cpu", "cuda" (a GPU), or "auto": a GPU where there is one.

    Errors: FileNotFoundError, ValueError.
    """
    path = Path(checkpoint or WEIGHTS)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a run's best.pth, a .safetensors or an .onnx file")
    if runtime == "auto":
        runtime = "torch" if device == "cuda" else "onnx"
    if runtime == "onnx":
        if device == "cuda":
            raise ValueError("ONNX runs on the CPU; a GPU needs the runtime torch")
        network, settings = exported.load(path if path.suffix == ".onnx" else _exported(path))
    else:
        network, settings = _by_torch(path, device)
    return Restorer(network, settings["side"], settings["in_chans"])


def _exported(path: Path) -> Path:
    """The ONNX file of these weights, which is written the first time."""
    file = exported.cached(path)
    if not file.is_file():
        import models

        if sys.stderr.isatty():
            print(f"{path.name}: preparing it, once, for a fast start", file=sys.stderr)
        model, settings = models.load(path)
        try:
            models.export(model, settings, file)
        except OSError as error:
            way_out = "set XDG_CACHE_HOME to a folder that can be written to, or choose the runtime torch"
            raise OSError(f"{file.parent}: cannot keep the exported network there ({error.strerror}); {way_out}") from error
    return file


def _by_torch(path: Path, device: str) -> tuple[Callable[[np.ndarray], np.ndarray], dict]:
    if path.suffix == ".onnx":
        raise ValueError(f"{path}: torch does not run ONNX files; give a checkpoint or a .safetensors file")
    import torch

    import models

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no GPU that torch can use; leave the device out, or give cpu")
    model, settings = models.load(path, device)
    return models.runner(model, device), settings
