"""Restores pictures of degraded characters with a trained network: what restore.py, the page and evaluate.py run.

A picture → its content, without margins → the mix of its colours that shows the strokes best, without a red seal, evenly lit →
strokes bright → the rotation and the box of the character → the network's square → the probability of ink → back to the picture's
place, size and polarity. Where the pixels leave the polarity in doubt, the network restores both and decides.
"""

import math
import sys
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from datasets.pack import read_guide
from restoration import confidence, exported, place
from util import images, squares
from util.squares import Box

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "weights" / "restorer_convnext_atto.safetensors"
PACK = ROOT / "data" / "zi.pack"
CERTAIN = 0.9  # certainty of the polarity below which the network is asked
POLARITIES, STYLES = ("bright", "dark"), ("ink", "rubbing")


@dataclass(frozen=True)
class Prepared:
    """A picture prepared for the network.

    shown: the picture upright, in 8 bits. bright: (H, W) float32 in [0, 1], strokes bright, margins filled with ground. polarity:
    of the strokes in the picture. certainty: the probability that the polarity is right, by the pixels; 1 if you passed it. box:
    where the character is, and its rotation. guide: the character whose standard glyph is the guide, or None. x: (in_chans,
    img_size, img_size) float32 in [0, 1]. dpi: the picture's resolution, if known. other: the same picture with the other
    polarity, if in doubt.
    """

    shown: Image.Image
    bright: np.ndarray
    polarity: str
    certainty: float
    box: Box
    guide: str | None
    x: np.ndarray
    dpi: tuple[float, float] | None
    other: "Prepared | None" = None


@dataclass(frozen=True)
class Restored:
    """A restored picture. prepared: what it was restored from. square: the probability of ink in the box, (img_size, img_size)."""

    prepared: Prepared
    square: np.ndarray

    @cached_property
    def ink(self) -> np.ndarray:
        """The probability of ink, as large as the picture: (H, W) float32 in [0, 1]."""
        return squares.from_square(self.square, self.prepared.box, *self.prepared.bright.shape)

    def picture(
        self, style: str | None = None, threshold: bool = False, size: int | None = None, transparent: bool = False
    ) -> Image.Image:
        """The restored picture, 8-bit grey, with the size, polarity and resolution of the degraded one.

        Args:
            style: "ink", dark strokes on light, or "rubbing", light on dark.
            threshold: black and white only; ink is where its probability is above one half.
            size: the character alone, on a square of so many pixels.
            transparent: strokes on a transparent ground (mode LA), opacity being the probability of ink.
        """
        ink = squares.resize(self.square, size, size) if size else self.ink
        ink = (ink > 0.5).astype(np.float32) if threshold else ink
        dark = style == "ink" if style else self.prepared.polarity == "dark"
        picture = images.from_grey(1 - ink if dark else ink)
        if transparent:
            alpha = ImageOps.invert(picture) if dark else picture
            picture = Image.merge("LA", [Image.new("L", alpha.size, 0 if dark else 255), alpha])
        if self.prepared.dpi and not size:
            picture.info["dpi"] = self.prepared.dpi
        return picture

    def compare(self, style: str | None = None, threshold: bool = False) -> Image.Image:
        """Degraded | restored | what changed (RGB); arguments as for `picture`."""
        height, width = self.ink.shape
        panels = [self.prepared.shown, self.picture(style, threshold), self.changes]
        strip = max(2, width // 40)
        sheet = Image.new("RGB", (3 * width + 2 * strip, height), (128, 128, 128))
        for i, panel in enumerate(panels):
            sheet.paste(panel.convert("RGB"), (i * (width + strip), 0))
        return sheet

    @cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """Masks of the strokes kept, added, removed and doubtful; see `restoration.confidence.parts`."""
        return confidence.parts(self.prepared.bright, self.ink)

    @cached_property
    def changes(self) -> Image.Image:
        """The parts in colours (RGB), as large as the picture."""
        return confidence.colours(self.parts, self.ink)

    def confidence(self) -> Image.Image:
        """The parts in colours, with a legend below."""
        return confidence.with_legend(self.changes)

    def numbers(self) -> dict:
        """What was found, and those of `confidence.numbers`.

        {"polarity", "polarity_certainty", "box": [top, left, edge] in pixels, "rotation": clockwise, in degrees, "guide", ...}
        """
        prepared = self.prepared
        return {
            "polarity": prepared.polarity,
            "polarity_certainty": round(prepared.certainty, 4),
            "box": list(prepared.box[:3]),
            "rotation": prepared.box.angle,
            "guide": prepared.guide,
            **confidence.numbers(self.parts, self.ink),
        }


class Restorer:
    """Restores pictures of any size, tone and colour.

    Args:
        predict: (N, in_chans, img_size, img_size) float32 in [0, 1], strokes bright → probability of ink (N, img_size, img_size).
        settings: of the network's run; needs "img_size" and "in_chans" (2: the network takes the standard glyph as a guide).
        pack: the handwriting set that holds the guide's glyphs.
        runtime: what `predict` runs on, "onnx" or "torch".
    """

    def __init__(
        self, predict: Callable[[np.ndarray], np.ndarray], settings: dict, pack: str | Path = PACK, runtime: str = "torch"
    ):
        self.predict, self.settings, self.pack, self.runtime = predict, settings, pack, runtime
        self.img_size, self.in_chans = settings["img_size"], settings["in_chans"]
        self._guides: dict[str, np.ndarray | None] = {}

    def __call__(
        self,
        picture: Image.Image | np.ndarray,
        *,
        char: str | None = None,
        polarity: str = "auto",
        box: Box | None = None,
        rotation: float | None = None,
        **look,
    ) -> Image.Image:
        """Returns the restored picture: 8-bit grey, as large as `picture` (EXIF orientation applied), in its polarity.

        Args:
            picture: a Pillow image of any mode, or an array that Pillow takes: (H, W) or (H, W, 3|4) uint8, (H, W) uint16, or
                (H, W) float32 in [0, 1].
            char: the character in the picture, if known; its standard glyph guides a network that takes a guide.
            polarity: of the strokes: "bright", "dark", or "auto" to detect it.
            box: the square of the character in the picture; None to detect it. What is outside is left out.
            rotation: of the character, clockwise, in degrees; None to detect it, up to 10.
            look: see `Restored.picture`.
        """
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        return self.restore([self.prepare(picture, char, polarity, box, rotation)])[0].picture(**look)

    def prepare(
        self,
        picture: Image.Image,
        char: str | None = None,
        polarity: str = "auto",
        box: Box | None = None,
        rotation: float | None = None,
    ) -> Prepared:
        """Prepares a picture for `restore`; arguments as for `__call__`. Raises ValueError for arguments that make no sense."""
        if polarity not in ("auto", *POLARITIES):
            raise ValueError(f"polarity must be auto, bright or dark, not {polarity}")
        if char and len(char) != 1:
            raise ValueError(f"the guide must be one character, not '{char}'")
        if char and self.in_chans == 1:
            raise ValueError("this network takes no guide: leave the character out")
        picture = ImageOps.exif_transpose(picture)
        channels = images.to_channels(picture)
        within = (box or squares.whole(*channels.shape[:2])).part(*channels.shape[:2])
        if any(edge.start >= edge.stop for edge in within):
            raise ValueError("the box is outside the picture")
        content = tuple(
            slice(outer.start + inner.start, outer.start + inner.stop)
            for outer, inner in zip(within, place.find_content(channels[within]), strict=True)
        )
        grey = place.even(place.separate(channels[content]))
        down, across = (edge.start for edge in content)
        guide = self._guide(char) if char else None
        shown, dpi = images.from_grey(channels), _resolution(picture)

        def oriented(polarity: str, certainty: float, other: Prepared | None = None) -> Prepared:
            inner = 1 - grey if polarity == "dark" else grey
            angle = place.find_rotation(inner) if rotation is None else rotation
            here = Box(box.top - down, box.left - across, box.edge, angle) if box else place.find_box(inner, angle)
            x = np.zeros((self.in_chans, self.img_size, self.img_size), dtype=np.float32)
            x[0] = squares.to_square(inner, here, self.img_size, contrast=True)
            if guide is not None:
                x[1] = guide
            bright = np.full(channels.shape[:2], np.median(squares.border(inner)), dtype=np.float32)
            bright[content] = inner
            there = Box(here.top + down, here.left + across, here.edge, angle)
            return Prepared(shown, bright, polarity, certainty, there, char if guide is not None else None, x, dpi, other)

        if polarity != "auto":
            return oriented(polarity, 1.0)
        probability = squares.bright_probability(grey)
        dark, bright = ("dark", 1 - probability), ("bright", probability)
        likelier, other = (bright, dark) if probability > 0.5 else (dark, bright)
        return oriented(*likelier, oriented(*other) if likelier[1] < CERTAIN else None)

    def restore(self, prepared: list[Prepared]) -> list[Restored]:
        """Restores pictures in one batch, those in doubt with both polarities: the one is kept that `_strangeness` is less of.

        Raises ValueError if the network's output is not finite.
        """
        others = [one.other for one in prepared if one.other]
        outputs = self.predict(np.stack([one.x for one in [*prepared, *others]]))
        if not np.isfinite(outputs).all():
            raise ValueError("the network's output is not finite: its training has diverged")
        restored = [Restored(*pair) for pair in zip([*prepared, *others], outputs, strict=True)]
        of_others = iter(restored[len(prepared) :])
        return [min(one, next(of_others), key=_strangeness) if one.prepared.other else one for one in restored[: len(prepared)]]

    def read_guides(self, chars: Iterable[str]) -> set[str]:
        """Reads the standard glyphs of many characters at once. Returns the characters that have none."""
        wanted = set(chars) - self._guides.keys()
        glyphs = read_guide(self.pack, wanted) if wanted else {}
        self._guides |= {char: soften(glyphs[char], self.img_size) if char in glyphs else None for char in wanted}
        return {char for char in chars if self._guides[char] is None}

    def _guide(self, char: str) -> np.ndarray | None:
        self.read_guides([char])
        return self._guides[char]


def _strangeness(restored: Restored) -> float:
    """How much the network changes the picture and is in doubt, per pixel: more with the wrong polarity."""
    return float((np.abs(restored.square - restored.prepared.x[0]) + np.minimum(restored.square, 1 - restored.square)).mean())


def soften(glyph: np.ndarray, size: int) -> np.ndarray:
    """(S, S) of 0 and 1 → (size, size) in [0, 1] with the soft edges of a scan, as `datasets.pairs.smooth` in training."""
    x = glyph.astype(np.float32)
    if size != len(x):
        return np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.BILINEAR)).clip(0, 1)
    for _ in range(2):
        padded = np.pad(x, ((1, 1), (0, 0)))
        x = ((padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4).T
    return x


def char_in(name: str) -> str | None:
    """The first Chinese character in a file's name."""
    return next((char for char in name if "CJK UNIFIED IDEOGRAPH" in unicodedata.name(char, "")), None)


def _resolution(picture: Image.Image) -> tuple[float, float] | None:
    """Pixels per inch, across and down, if plausible: TIFF files without a resolution say 1."""
    dpi = tuple(float(value) for value in picture.info.get("dpi", ()))
    return dpi if len(dpi) == 2 and all(math.isfinite(value) and 5 <= value <= 50_000 for value in dpi) else None


def load_restorer(
    checkpoint: str | Path | None = None, runtime: str = "auto", device: str = "auto", data: str | Path = PACK, threads: int = 0
) -> Restorer:
    """Loads the restorer of trained weights, by default the bundled ones.

    Args:
        checkpoint: a run's checkpoint, a safetensors file, or an ONNX file written by export.py.
        runtime: "onnx" (CPU; starts fast), "torch", or "auto": torch if device is "cuda", else ONNX.
        device: for torch: "cpu", "cuda", or "auto": a GPU if there is one.
        data: the handwriting set that holds the guide's glyphs.
        threads: CPU threads for ONNX; 0 uses all cores.

    Raises FileNotFoundError, ValueError, and OSError if the exported network cannot be cached.
    """
    path = Path(checkpoint or WEIGHTS)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; pass a run's best.pth, a .safetensors or an .onnx file")
    if runtime == "auto":
        runtime = "torch" if device == "cuda" else "onnx"
    if runtime == "onnx":
        if device == "cuda":
            raise ValueError("ONNX runs on the CPU; a GPU needs runtime torch")
        predict, settings = exported.load(path if path.suffix == ".onnx" else _exported(path), threads)
    else:
        predict, settings = _by_torch(path, device)
    return Restorer(predict, settings, data, runtime)


def _exported(path: Path) -> Path:
    """The cached ONNX file of these weights; it is written on first use."""
    file = exported.cached(path)
    if not file.is_file():
        from models.files import export_onnx, load_network

        if sys.stderr.isatty():
            print(f"exporting {path.name} once, for a fast start", file=sys.stderr)
        model, settings = load_network(path)
        try:
            export_onnx(model, settings, file)
        except OSError as error:
            hint = "set XDG_CACHE_HOME to a writable folder, or pass runtime torch"
            raise OSError(f"{file.parent}: cannot cache the exported network ({error.strerror}); {hint}") from error
    exported.mark_used(file)
    return file


def _by_torch(path: Path, device: str) -> tuple[Callable[[np.ndarray], np.ndarray], dict]:
    if path.suffix == ".onnx":
        raise ValueError(f"{path}: torch does not run ONNX files; pass a checkpoint or a .safetensors file")
    import torch

    from models.files import load_network, predict_fn

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch finds no GPU; leave the device out, or pass cpu")
    model, settings = load_network(path, device)
    return predict_fn(model, device), settings
