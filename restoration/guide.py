"""The guide of a known character: its standard glyph, or a specimen in another hand, laid over the character in the square."""

import numpy as np
from PIL import Image

from restoration.place import find_ink
from util.squares import ink_mask, resize


def soften(glyph: np.ndarray, size: int) -> np.ndarray:
    """(S, S) of 0 and 1 → (size, size) in [0, 1] with the soft edges of a scan, as `datasets.pairs.smooth` in training."""
    x = glyph.astype(np.float32)
    if size != len(x):
        return np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.BILINEAR)).clip(0, 1)
    for _ in range(2):
        padded = np.pad(x, ((1, 1), (0, 0)))
        x = ((padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4).T
    return x


def fit(guide: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Lays the ink of a guide (S, S) over the box of the character that is found in a square (S, S).

    Both in [0, 1], strokes bright. As `datasets.guide.fit` in training. A guide without ink is returned unchanged.
    """
    rows, columns = (np.flatnonzero(ink_mask(guide).any(axis)) for axis in (1, 0))
    if not len(rows):
        return guide
    ink = guide[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    top, left, bottom, right = find_ink(square)[0]
    fitted = np.zeros_like(guide)
    fitted[top:bottom, left:right] = resize(ink, bottom - top, right - left)
    return fitted
