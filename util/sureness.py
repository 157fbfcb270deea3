"""How sure a restored picture is: strokes kept, added, removed and doubtful, as numbers and in colours.

A restored value is the probability of ink (how far that can be believed is scored by evaluate.py): at .5 the network does not
know. Both arguments are (H, W) float32 in [0, 1], strokes bright.
"""

import numpy as np
from PIL import Image, ImageDraw

from util import images

COLOURS = {"kept": (40, 40, 40), "added": (30, 110, 200), "removed": (240, 180, 170), "doubtful": (240, 150, 20)}
DOUBT = 0.25  # a value within so much of .5 is doubtful


def parts(damaged: np.ndarray, restored: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (H, W), by the names of COLOURS; no pixel is in two of them. The soft rim of a sure stroke is no doubt."""
    before, after, between = images.strokes(damaged), restored > 0.5, np.abs(restored - 0.5) < DOUBT
    doubtful = _wide(between, max(1, round(max(restored.shape) / 75)))
    return {
        "kept": (before & after & ~doubtful) | (between & (before | after) & ~doubtful),
        "added": ~before & after & ~between,
        "removed": before & ~after & ~between,
        "doubtful": doubtful,
    }


def _wide(mask: np.ndarray, radius: int) -> np.ndarray:
    """The mask without what is narrower than 2 radius + 1 pixels (a morphological opening)."""
    size = 2 * radius + 1
    eroded = _count(mask, size) == size**2
    return _count(eroded, size) > 0


def _count(mask: np.ndarray, size: int) -> np.ndarray:
    """How many pixels of the mask (H, W) lie in the window of size × size around each pixel."""
    sums = np.pad(mask.astype(np.int32), ((size // 2 + 1, size // 2),) * 2).cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)
    return sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]


def numbers(damaged: np.ndarray, restored: np.ndarray) -> dict[str, float]:
    """{"sureness": mean probability of being right, over what is ink in either picture; "kept", "added", "removed", "doubtful":
    shares of those pixels and of the doubtful ones together}; all 0 … 1, a picture without any ink has sureness 1."""
    masks = parts(damaged, restored)
    of_interest = np.any(list(masks.values()), axis=0)
    count = max(int(of_interest.sum()), 1)
    right = np.maximum(restored, 1 - restored)[of_interest]
    shares = {name: round(float(mask.sum()) / count, 4) for name, mask in masks.items()}
    return {"sureness": round(float(right.mean()), 4) if right.size else 1.0, **shares}


def colours(damaged: np.ndarray, restored: np.ndarray) -> Image.Image:
    """Strokes in the colours of their part, the paler the less sure, on white: RGB of the same size."""
    canvas = np.full((*restored.shape, 3), 255, dtype=np.float32)
    strength = 0.5 + np.abs(restored - 0.5)[..., None]
    for name, mask in parts(damaged, restored).items():
        canvas[mask] = (255 + strength * (np.array(COLOURS[name], dtype=np.float32) - 255))[mask]
    return Image.fromarray(canvas.round().astype(np.uint8))


def picture(damaged: np.ndarray, restored: np.ndarray) -> Image.Image:
    """`colours`, and below them a legend."""
    strokes = colours(damaged, restored)
    size = max(10, min(strokes.width // 12, 24))
    sheet = Image.new("RGB", (max(strokes.width, 12 * size), strokes.height + 5 * size // 2), "white")
    sheet.paste(strokes, ((sheet.width - strokes.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for i, (name, colour) in enumerate(COLOURS.items()):
        x, y = (i % 2) * sheet.width // 2 + size // 2, strokes.height + size // 4 + (i // 2) * size
        draw.rectangle((x, y + size // 8, x + size * 3 // 4, y + size * 7 // 8), fill=colour)
        draw.text((x + size, y), name, fill=(0, 0, 0), font_size=size * 3 // 4)
    return sheet
