"""What a damaged character could be: a recogniser reads the degraded picture and the restored one.

The reader is a network of its own: it saw no picture that scores the restorer, and does not judge it.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from datasets.pack import guide_forms
from restoration import exported
from restoration.drawing import DEFAULT, Drawing
from restoration.guide import lay
from restoration.pipeline import BATCH, ROOT, Prepared, Restored, Restorer, labelled
from util import images
from util.squares import resize

WEIGHTS = ROOT / "weights" / "reader_resnet.safetensors"
TEMPERATURE = 0.6  # of the logits, by which probabilities are right as often as they say on validation characters
MOST, LEAST = 5, 0.02  # readings of a picture; probability of one that guides
SURE = 0.95  # probability from which on a reading is taken for certain


class Reading(NamedTuple):
    """What a picture could show: a character, its calibrated probability, and the picture restored as this character."""

    char: str
    probability: float
    restored: Restored

    def numbers(self) -> dict:
        """{"char", "probability", "agreement"}: of the character with what survives, in [-1, 1]."""
        return {"char": self.char, "probability": self.probability, "agreement": self.restored.agreement}


class Reader:
    """Reads restored pictures.

    Args:
        restorer: whose guides the readings are.
        run: (N, 1, S, S) float32 in [0, 1], strokes bright → logits (N, classes).
        info: of the recogniser: "groups" and "img_size", S; see `models.recogniser.load_recogniser`.

    Raises ValueError for a restorer that does not take several guides.
    """

    def __init__(self, restorer: Restorer, run: Callable[[np.ndarray], np.ndarray], info: dict):
        if not restorer.draws:
            raise ValueError("readings need a network that draws, trained with --in_chans 4")
        self.restorer, self.run, self.groups, self.img_size = restorer, run, info["groups"], info["img_size"]
        self.forms = guide_forms(restorer.pack)

    def probabilities(self, squares: Iterable[np.ndarray]) -> np.ndarray:
        """Squares (S, S) in [0, 1], strokes bright → (N, classes), in the order of `groups`."""
        small = np.stack([resize(square, self.img_size, self.img_size) for square in squares])[:, None]
        logits = self.run(small) / TEMPERATURE
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    def odds(self, restored: list[Restored]) -> np.ndarray:
        """(N, classes): the probabilities of what was restored without a guide, read in the degraded picture and in the mean."""
        both = self.probabilities(one.prepared.x[0] for one in restored) * self.probabilities(one.mean for one in restored)
        both = np.sqrt(both)
        return both / both.sum(1, keepdims=True)

    def read(self, restored: list[Restored]) -> list[dict[str, float]]:
        """{character: probability} of what each picture, restored without a guide, could be, the likeliest first, at most MOST.

        Of a character's variants, the one is named whose standard glyph agrees best with what survives.
        """
        odds = self.odds(restored)
        likeliest = odds.argsort(1)[:, : -MOST - 1 : -1]
        self.restorer.read_guides({form for row in likeliest for group in row for form in self._forms(group)})
        return [
            {self._form(group, one.mean): round(float(odds[row, group]), 4) for group in likeliest[row]}
            for row, one in enumerate(restored)
        ]

    def _forms(self, group: int) -> str:
        return self.forms.get(self.groups[group], chr(self.groups[group]))

    def _form(self, group: int, mean: np.ndarray) -> str:
        glyphs = {form: self.restorer.guide(form) for form in self._forms(group)}
        if len(glyphs) == 1:
            return next(iter(glyphs))
        return max(glyphs, key=lambda form: lay(resize(glyphs[form], *mean.shape), mean)[1])

    def guided(self, restored: Restored, readings: dict[str, float], specimens: dict[str, np.ndarray] | None = None) -> Prepared:
        """The picture to be restored with its likely readings as guides, each as far as it is probable."""
        return self.restorer.told(restored.prepared, {char: p for char, p in readings.items() if p >= LEAST}, specimens)

    def specimens(self, restored: Iterable[Restored]) -> dict[str, np.ndarray]:
        """{character: (img_size, img_size)}: the surest of each character's pictures that are read for certain as they are."""
        best: dict[str, tuple[float, np.ndarray]] = {}
        for one in restored:
            [odds] = self.probabilities([one.prepared.x[0]])
            group, p = int(odds.argmax()), float(odds.max())
            char = self._form(group, one.mean) if p > SURE else None
            if char and p > best.get(char, (0.0,))[0]:
                best[char] = p, one.mean
        return {char: square for char, (_, square) in best.items()}

    def under_each(
        self, restored: list[Restored], readings: list[dict[str, float]], drawing: Drawing = DEFAULT
    ) -> list[list[Reading]]:
        """Each picture restored under each of its readings."""
        jobs = [(row, char, p) for row, found in enumerate(readings) for char, p in found.items()]
        told: list[list[Reading]] = [[] for _ in restored]
        for start in range(0, len(jobs), BATCH):
            part = jobs[start : start + BATCH]
            prepared = [self.restorer.told(restored[row].prepared, {char: 1.0}) for row, char, _ in part]
            for (row, char, p), one in zip(part, self.restorer.restore(prepared, replace(drawing, hypotheses=1)), strict=True):
                told[row].append(Reading(char, p, one))
        return told


def load_reader(restorer: Restorer, weights: str | Path = WEIGHTS) -> Reader:
    """The reader of trained weights, by default the bundled ones. Raises FileNotFoundError and ValueError."""
    return Reader(restorer, *exported.load(exported.file_of(Path(weights), "recogniser"), kind="recogniser"))


def sheet(
    restorer: Restorer, restored: Restored, readings: list[Reading], style: str | None = None, threshold: bool = False
) -> Image.Image:
    """One row: the degraded character, then it restored under each reading, with the reading's standard glyph and probability."""
    edge, label = restorer.img_size, restorer.img_size // 4
    dark = restored.prepared.polarity == "dark" if style is None else style == "ink"
    x = restored.prepared.x[0]
    tiles = [images.from_grey(1 - x if dark else x), *(one.restored.picture(style, threshold, edge) for one in readings)]
    row = Image.new("L", (len(tiles) * (edge + 8) - 8, edge + label), 255)
    draw = ImageDraw.Draw(row)
    for i, tile in enumerate(tiles):
        row.paste(tile, (i * (edge + 8), 0))
    for i, one in enumerate(readings, 1):
        glyph = restorer.guide(one.char)
        if glyph is not None:
            row.paste(images.from_grey(1 - resize(glyph, label, label)), (i * (edge + 8), edge))
        draw.text((i * (edge + 8) + label + 8, edge + label // 4), f"{one.probability:.0%}", fill=0, font_size=label // 2)
    return labelled(row, restored.origin)
