"""Restores pictures of degraded characters with a trained network: what restore.py, the page and evaluate.py run.

A picture → its content, without margins → the mix of its colours that shows the strokes best, without a red seal, evenly lit →
strokes bright → the rotation and the box of the character → the network's square → the probability of ink → back to the picture's
place, size and polarity. Where the pixels leave the polarity in doubt, the network restores both and decides.
"""

import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from datasets.pack import read_guide
from restoration import confidence, exported, margins, place
from restoration.drawing import AGREEMENT, DEFAULT, MEAN, Drawer, Drawing, First, Predict, sigmoid, two_sizes
from restoration.guide import soften
from util import images, squares
from util.squares import Box

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "weights" / "restorer_convnext_atto.safetensors"
PACK = ROOT / "data" / "zi.pack"
COPYLEFT = PACK.with_name("copyleft.pack")
BATCH = 16  # pictures restored at a time
CERTAIN = 0.98  # certainty of the polarity below which the network is asked
EVIDENCE = 8  # the odds of a polarity grow with this power of the edges in its mean
ABOUT = "A reconstruction by RestoreCAE-Zi: strokes may be drawn that the picture does not show."
POLARITIES, STYLES = ("bright", "dark"), ("ink", "rubbing")


@dataclass(frozen=True)
class Prepared:
    """A picture prepared for the network.

    shown: the picture upright, in 8 bits. bright: (H, W) float32 in [0, 1], strokes bright, margins filled with ground. polarity:
    of the strokes in the picture. certainty: the probability that the polarity is right, by the pixels; 1 if you passed it. box:
    where the character is, and its rotation. guide: what the guide is, a character, several, or a file, or None. x: (1 + K,
    img_size, img_size) float32 in [0, 1]: the square, and for a network that takes guides, K of them, zeros for none. dpi: the
    picture's resolution, if known. other: the same picture with the other polarity, if in doubt. shares: (K,) of the guides, 1 at
    most together.
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
    shares: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Restored:
    """A restored picture.

    prepared: what it was restored from. square: the character as drawn, in the box, (img_size, img_size) in [0, 1]. mean: likewise,
    the probability of ink. others: further hypotheses like `square`, the likelier ones first. origin: how it was made, by name;
    of_others: what that is otherwise of the others.
    agreement: of the guide, or the best of several, with what survives, in [-1, 1]; None if there was no guide or it was not laid
    over the character.
    """

    prepared: Prepared
    square: np.ndarray
    mean: np.ndarray
    others: tuple[np.ndarray, ...] = ()
    origin: dict = field(default_factory=dict)
    of_others: dict = field(default_factory=dict)
    agreement: float | None = None

    @cached_property
    def ink(self) -> np.ndarray:
        """The character as drawn, as large as the picture: (H, W) float32 in [0, 1]."""
        return squares.from_square(self.square, self.prepared.box, *self.prepared.bright.shape)

    @cached_property
    def probability(self) -> np.ndarray:
        """The probability of ink, as large as the picture: (H, W) float32 in [0, 1]."""
        return squares.from_square(self.mean, self.prepared.box, *self.prepared.bright.shape)

    @property
    def guide_fits(self) -> bool:
        """Whether the guide, if any, agrees enough with what survives to be followed at all."""
        return self.agreement is None or self.agreement > AGREEMENT[0]

    @property
    def hypotheses(self) -> list["Restored"]:
        """All drawings, the likeliest first, each as a restored picture."""
        others = [replace(self, square=square, others=(), origin=self.origin | self.of_others) for square in self.others]
        return [replace(self, others=()), *others]

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
        return labelled(picture, self.origin)

    def compare(self, style: str | None = None, threshold: bool = False) -> Image.Image:
        """Degraded | restored | what changed (RGB); arguments as for `picture`."""
        height, width = self.ink.shape
        panels = [self.prepared.shown, self.picture(style, threshold), self.changes]
        strip = max(2, width // 40)
        sheet = Image.new("RGB", (3 * width + 2 * strip, height), (128, 128, 128))
        for i, panel in enumerate(panels):
            sheet.paste(panel.convert("RGB"), (i * (width + strip), 0))
        return labelled(sheet, self.origin)

    @cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """Masks of the strokes kept, added, removed and doubtful; see `restoration.confidence.parts`."""
        return confidence.parts(self.prepared.bright, self.ink, self.probability)

    @cached_property
    def changes(self) -> Image.Image:
        """The parts in colours (RGB), as large as the picture."""
        return confidence.colours(self.parts, self.probability)

    def confidence(self) -> Image.Image:
        """The parts in colours, with a legend below."""
        return labelled(confidence.with_legend(self.changes), self.origin)

    def numbers(self) -> dict:
        """What was found, and those of `confidence.numbers`.

        {"polarity", "polarity_certainty", "box": [left, top, width, height] in pixels, "rotation": clockwise, in degrees, "guide":
        if it was followed, "agreement", ...}
        """
        prepared, box = self.prepared, self.prepared.box
        return {
            "polarity": prepared.polarity,
            "polarity_certainty": round(prepared.certainty, 4),
            "box": [box.left, box.top, box.edge, box.edge],
            "rotation": box.angle,
            "guide": prepared.guide if self.guide_fits else None,
            "agreement": self.agreement,
            **confidence.numbers(self.parts, self.ink, self.probability),
        }


def labelled(picture: Image.Image, origin: dict) -> Image.Image:
    """The same picture, with metadata for `images.save_png` that say what it is. origin: see `Restored`."""
    picture.info["about"] = {"Description": ABOUT, "restoration": json.dumps(origin, ensure_ascii=False)}
    return picture


class Restorer:
    """Restores pictures of any size, tone and colour.

    Args:
        predict: (N, in_chans, img_size, img_size) float32, strokes bright → logits of ink (N, img_size, img_size).
        settings: of the network's run; needs "img_size" and "in_chans" (see `restoration.drawing.Drawer`).
        pack: the handwriting set that holds the guide's glyphs.
        runtime: what `predict` runs on, "onnx" or "torch".
        weights: names the network's weights in the pictures' metadata.
        small: loads the restorer with smaller squares, of "small_size" in `settings`, if the network was trained on such too. It
            restores small characters, and is asked where this one is unsure.
    """

    def __init__(
        self,
        predict: Predict,
        settings: dict,
        pack: str | Path = PACK,
        runtime: str = "torch",
        weights: str = "unknown",
        small: Callable[[], "Restorer"] | None = None,
    ):
        self.predict, self.settings, self.pack, self.runtime, self.weights = predict, settings, pack, runtime, weights
        self.img_size, self.in_chans = settings["img_size"], settings["in_chans"]
        self.takes_guide, self.draws = self.in_chans > 1, self.in_chans == 4
        self._guides: dict[str, np.ndarray | None] = {}
        self._small = cache(small) if small else None
        self._mean = two_sizes(predict, lambda: (self._small().predict, self._small().img_size)) if small else predict

    def for_edge(self, edge: float) -> "Restorer":
        """The restorer for characters of `edge` pixels: with smaller squares, if there is one and they are no smaller than that.

        A third of the work at 128 instead of 224 pixels, and characters of a page are read more often.
        """
        return self._small() if self._small and edge <= self.settings["small_size"] else self

    def __call__(
        self,
        picture: Image.Image | np.ndarray,
        *,
        char: str | None = None,
        guide: Image.Image | None = None,
        polarity: str = "auto",
        box: Box | None = None,
        rotation: float | None = None,
        drawing: Drawing = DEFAULT,
        **look,
    ) -> Image.Image:
        """Returns the restored picture: 8-bit grey, as large as `picture` (EXIF orientation applied), in its polarity.

        Args:
            picture: a Pillow image of any mode, or an array that Pillow takes: (H, W) or (H, W, 3|4) uint8, (H, W) uint16, or
                (H, W) float32 in [0, 1].
            char: the character in the picture, if known; its standard glyph guides a network that takes a guide.
            guide: a picture of the same character in any hand, well preserved, as the guide instead.
            polarity: of the strokes: "bright", "dark", or "auto" to detect it.
            box: the square of the character in the picture; None to detect it. What is outside is left out.
            rotation: of the character, clockwise, in degrees; None to detect it, up to 10.
            drawing: how to draw what is lost.
            look: see `Restored.picture`.
        """
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        return self.restore([self.prepare(picture, char, polarity, box, rotation, guide)], drawing)[0].picture(**look)

    def prepare(
        self,
        picture: Image.Image,
        char: str | None = None,
        polarity: str = "auto",
        box: Box | None = None,
        rotation: float | None = None,
        guide: Image.Image | None = None,
    ) -> Prepared:
        """Prepares a picture for `restore`; arguments as for `__call__`. Raises ValueError for arguments that make no sense."""
        if polarity not in ("auto", *POLARITIES):
            raise ValueError(f"polarity must be auto, bright or dark, not {polarity}")
        if char and len(char) != 1:
            raise ValueError(f"the guide must be one character, not '{char}'")
        if (char or guide) and not self.takes_guide:
            raise ValueError("this network takes no guide: leave the character out")
        picture = ImageOps.exif_transpose(picture)
        channels = images.to_channels(picture)
        within = (box or squares.whole(*channels.shape[:2])).part(*channels.shape[:2])
        if any(edge.start >= edge.stop for edge in within):
            raise ValueError("the box is outside the picture")
        sheet = margins.find_sheet(channels)
        covered = sheet.cover(channels)
        content = tuple(
            slice(outer.start + inner.start, outer.start + inner.stop)
            for outer, inner in zip(within, margins.find_content(covered[within]), strict=True)
        )
        grey = place.even(place.separate(covered[content]))
        down, across = (edge.start for edge in content)
        glyph = self.specimen(guide) if guide else self.guide(char) if char else None
        named = Path(getattr(guide, "filename", "a picture")).name if guide else char if glyph is not None else None
        shown, dpi = images.from_grey(channels), images.resolution(picture)

        def oriented(polarity: str, certainty: float, other: Prepared | None = None) -> Prepared:
            inner = 1 - grey if polarity == "dark" else grey
            angle = (sheet.angle or place.find_rotation(inner)) if rotation is None else rotation
            here = Box(box.top - down, box.left - across, box.edge, angle) if box else place.find_box(inner, angle)
            x = np.zeros((1 + self.takes_guide, self.img_size, self.img_size), dtype=np.float32)
            x[0] = squares.to_square(inner, here, self.img_size, contrast=True)
            if glyph is not None:
                x[1] = glyph
            bright = np.full(channels.shape[:2], np.median(squares.border(inner)), dtype=np.float32)
            bright[content] = inner
            there = Box(here.top + down, here.left + across, here.edge, angle)
            return Prepared(shown, bright, polarity, certainty, there, named, x, dpi, other)

        if polarity != "auto":
            return oriented(polarity, 1.0)
        probability = squares.bright_probability(grey)
        dark, bright = ("dark", 1 - probability), ("bright", probability)
        if probability == 0.5:  # one tone: no strokes, on ground as it is
            return oriented("bright" if grey.mean() < 0.5 else "dark", 0.5)
        likelier, other = (bright, dark) if probability > 0.5 else (dark, bright)
        return oriented(*likelier, oriented(*other) if likelier[1] < CERTAIN else None)

    def told(self, prepared: Prepared, chars: dict[str, float], specimens: dict[str, np.ndarray] | None = None) -> Prepared:
        """The picture, in this polarity, with characters as its guides: their specimens, or else their standard glyphs.

        chars: the share of each, up to 1. specimens: (img_size, img_size) in [0, 1], strokes bright. Characters without a glyph are
        left out. Raises ValueError for several with a network that takes one guide at most.
        """
        glyphs = {char: (specimens or {}).get(char, self.guide(char)) for char in chars}
        edge = prepared.x.shape[-1]
        glyphs = {char: squares.resize(glyph, edge, edge) for char, glyph in glyphs.items() if glyph is not None}
        if not self.draws and len(glyphs) > self.takes_guide:
            raise ValueError("this network does not take several guides")
        if not glyphs:
            return replace(prepared, x=prepared.x * (np.arange(len(prepared.x)) == 0)[:, None, None], guide=None, other=None)
        shares = tuple(chars[char] for char in glyphs)
        return replace(prepared, x=np.stack([prepared.x[0], *glyphs.values()]), guide="".join(glyphs), other=None, shares=shares)

    def restore(self, prepared: list[Prepared], drawing: Drawing = DEFAULT) -> list[Restored]:
        """Restores pictures in one batch, those in doubt with both polarities; the likelier one by certainty and `_edges` is kept.

        A network without state and time gives its mean in one pass, whatever `drawing` says.

        Raises ValueError if the network's output is not finite.
        """
        candidates = [*prepared, *(one.other for one in prepared if one.other)]
        drawer = Drawer(self.predict, self.in_chans, drawing, self._mean)
        most = max(len(one.x) for one in candidates)
        x = np.stack([np.pad(one.x, ((0, most - len(one.x)), (0, 0), (0, 0))) for one in candidates])
        shares = np.array([[*one.shares, *[0.0] * most][: most - 1] for one in candidates], np.float32)
        first = drawer.first(x, shares)
        if not np.isfinite(first.logits).all():
            raise ValueError("the network's output is not finite: its training has diverged")
        mean, of_others, chosen = sigmoid(first.logits), iter(range(len(prepared), len(candidates))), []
        for position, one in enumerate(prepared):
            pair = [position, next(of_others)] if one.other else [position]
            chosen.append(max(pair, key=lambda i: candidates[i].certainty * _edges(mean[i]) ** EVIDENCE))
        prepared, mean = [candidates[i] for i in chosen], mean[chosen]
        first = First(*(part[chosen] for part in first))
        agreements = [
            round(float(a[: len(one.x) - 1].max()), 3) if self.draws and one.guide else None
            for one, a in zip(prepared, first.agreement, strict=True)
        ]
        restored = [
            Restored(one, hypotheses[0], probability, tuple(hypotheses[1:]), agreement=agreement)
            for one, probability, hypotheses, agreement in zip(prepared, mean, drawer.draw(first), agreements, strict=True)
        ]
        return [self._with_origin(one, drawer.drawing) for one in restored]

    def means(self, files: list[Path]) -> Iterator[Restored]:
        """The means of pictures in files, without guides, in their order. Raises what `images.read` raises."""
        for start in range(0, len(files), BATCH):
            yield from self.restore([self.prepare(images.read(file)) for file in files[start : start + BATCH]], MEAN)

    def _with_origin(self, restored: Restored, drawing: Drawing) -> Restored:
        """With how it was restored, for its metadata: {"weights", "steps", "seed", "guidance", "guide"}; the seed is None of what
        was drawn without noise, the last two if no guide was followed."""
        guide = restored.prepared.guide
        followed = guide is not None and restored.guide_fits
        origin = {
            "weights": self.weights,
            "steps": drawing.steps_for(followed),
            "seed": None,
            "guidance": drawing.guidance if followed else None,
            "guide": guide if followed else None,
        }
        return replace(restored, origin=origin, of_others={"steps": drawing.steps_for(followed, True), "seed": drawing.seed})

    def specimen(self, picture: Image.Image) -> np.ndarray:
        """A picture of a character as a guide: (img_size, img_size) in [0, 1], strokes bright."""
        return self.prepare(picture).x[0]

    def read_guides(self, chars: Iterable[str]) -> set[str]:
        """Reads the standard glyphs of many characters at once. Returns the characters that have none."""
        wanted = set(chars) - self._guides.keys()
        glyphs = read_guide(self.pack, wanted) if wanted else {}
        self._guides |= {char: soften(glyphs[char], self.img_size) if char in glyphs else None for char in wanted}
        return {char for char in chars if self._guides[char] is None}

    def guide(self, char: str) -> np.ndarray | None:
        """The standard glyph of a character, (img_size, img_size) in [0, 1], strokes bright, if it has one."""
        self.read_guides([char])
        return self._guides[char]


def _edges(mean: np.ndarray) -> float:
    """The total variation of a mean (S, S): with the wrong polarity strokes are lost, and a large loss becomes blank ground."""
    return float(sum(np.abs(np.diff(mean, axis=axis)).sum() for axis in (0, 1)))


def char_in(name: str) -> str | None:
    """The first Chinese character in a file's name."""
    return next((char for char in name if "CJK UNIFIED IDEOGRAPH" in unicodedata.name(char, "")), None)


def load_restorer(
    checkpoint: str | Path | None = None,
    runtime: str = "auto",
    device: str = "auto",
    data: str | Path = PACK,
    threads: int = 0,
    img_size: int | None = None,
) -> Restorer:
    """Loads the restorer of trained weights, by default the bundled ones.

    Args:
        checkpoint: a run's checkpoint, a safetensors file, or an ONNX file written by export.py.
        runtime: "onnx" (CPU; starts fast), "torch", or "auto": torch if device is "cuda", else ONNX.
        device: for torch: "cpu", "cuda", or "auto": a GPU if there is one.
        data: the handwriting set that holds the guide's glyphs.
        threads: CPU threads for ONNX; 0 uses all cores.
        img_size: of the squares, and the only one, if not those that the network was trained on; an ONNX file has its own one.

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
        file = path if path.suffix == ".onnx" else exported.file_of(path, img_size=img_size)
        predict, settings = exported.load(file, threads)
    else:
        predict, settings = _by_torch(path, device, img_size)
    small = None
    if settings.get("small_size") and not img_size and path.suffix != ".onnx":
        small = partial(load_restorer, path, runtime, device, data, threads, settings["small_size"])
    return Restorer(predict, settings, data, runtime, exported.digest(path), small)


def _by_torch(path: Path, device: str, img_size: int | None) -> tuple[Predict, dict]:
    if path.suffix == ".onnx":
        raise ValueError(f"{path}: torch does not run ONNX files; pass a checkpoint or a .safetensors file")
    import torch

    from models.files import load_network, predict_fn

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch finds no GPU; leave the device out, or pass cpu")
    model, settings = load_network(path, device)
    return predict_fn(model, device), {**settings, "img_size": img_size or settings["img_size"]}
