"""How far a restored picture can be trusted: strokes kept, added, removed and doubtful, as numbers and in colours.

A drawing shows one character that could have been; the mean of all is the probability of ink, and evaluate.py measures its
calibration. At .5 the network does not know. All pictures are (H, W) float32 in [0, 1], strokes bright.
"""

import numpy as np
from PIL import Image, ImageDraw

from util import squares

COLOURS = {"kept": (40, 40, 40), "added": (30, 110, 200), "removed": (240, 180, 170), "doubtful": (240, 150, 20)}
DOUBT = 0.25  # a value within this distance of .5 is doubtful


def parts(degraded: np.ndarray, drawn: np.ndarray, probability: np.ndarray) -> dict[str, np.ndarray]:
    """Disjoint masks (H, W) named as in COLOURS. The soft edge of a certain stroke is not doubtful."""
    before, after, between = squares.ink_mask(degraded), drawn > 0.5, np.abs(probability - 0.5) < DOUBT
    doubtful = areas(between)
    return {
        "kept": (before & after & ~doubtful) | (between & (before | after) & ~doubtful),
        "added": ~before & after & ~between,
        "removed": before & ~after & ~between,
        "doubtful": doubtful,
    }


def areas(mask: np.ndarray) -> np.ndarray:
    """The mask (H, W) without what is as narrow as the soft edge of a stroke."""
    return opening(mask, max(1, round(max(mask.shape) / 75)))


def opening(mask: np.ndarray, radius: int) -> np.ndarray:
    """The mask without what is narrower than 2 radius + 1 pixels."""
    size = 2 * radius + 1
    eroded = _count(mask, size) == size**2
    return _count(eroded, size) > 0


def _count(mask: np.ndarray, size: int) -> np.ndarray:
    """The number of pixels of the mask (H, W) in the window of size × size around each pixel."""
    sums = np.pad(mask.astype(np.int32), ((size // 2 + 1, size // 2),) * 2).cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)
    return sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]


def numbers(masks: dict[str, np.ndarray], drawn: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """{"confidence": mean probability that the drawing is right over the pixels of all parts; and the share of each part in them}.

    All in [0, 1]. A picture without ink has confidence 1.
    """
    of_interest = np.any(list(masks.values()), axis=0)
    count = max(int(of_interest.sum()), 1)
    right = np.where(drawn > 0.5, probability, 1 - probability)[of_interest]
    shares = {name: round(float(mask.sum()) / count, 4) for name, mask in masks.items()}
    return {"confidence": round(float(right.mean()), 4) if right.size else 1.0, **shares}


def colours(masks: dict[str, np.ndarray], probability: np.ndarray) -> Image.Image:
    """The parts in their colours on white, paler where the probability is nearer to .5: RGB of the same size."""
    canvas = np.full((*probability.shape, 3), 255, dtype=np.float32)
    strength = 0.5 + np.abs(probability - 0.5)[..., None]
    for name, mask in masks.items():
        canvas[mask] = (255 + strength * (np.array(COLOURS[name], dtype=np.float32) - 255))[mask]
    return Image.fromarray(canvas.round().astype(np.uint8))


def with_legend(picture: Image.Image) -> Image.Image:
    """A picture of `colours` with a legend below."""
    size = max(10, min(picture.width // 12, 24))
    sheet = Image.new("RGB", (max(picture.width, 12 * size), picture.height + 5 * size // 2), "white")
    sheet.paste(picture, ((sheet.width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for i, (name, colour) in enumerate(COLOURS.items()):
        x, y = (i % 2) * sheet.width // 2 + size // 2, picture.height + size // 4 + (i // 2) * size
        draw.rectangle((x, y + size // 8, x + size * 3 // 4, y + size * 7 // 8), fill=colour)
        draw.text((x + size, y), name, fill=(0, 0, 0), font_size=size * 3 // 4)
    return sheet
