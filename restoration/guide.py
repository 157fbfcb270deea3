"""The guide of a known character: its standard glyph, or a specimen in another hand, laid over the character in the square."""

import numpy as np
from PIL import Image

from util.squares import resize

SIZE, STEPS = 56, (0.06, 0.03, 0.015)  # pixels at which guide and character are compared; moves, relative to the square
THRESHOLDS, USUAL = (0.5, 0.15), (0.1, 0.1, 0.9, 0.9)  # of the mean, whose boxes are tried first; the usual box of a character
MOVES = [*np.eye(4), np.array([1, 0, 1, 0]), np.array([0, 1, 0, 1])]  # of each edge, of all: top, left, bottom, right


def soften(glyph: np.ndarray, size: int) -> np.ndarray:
    """(S, S) of 0 and 1 → (size, size) in [0, 1] with the soft edges of a scan, as `datasets.pairs.smooth` in training."""
    x = glyph.astype(np.float32)
    if size != len(x):
        return np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.BILINEAR)).clip(0, 1)
    for _ in range(2):
        padded = np.pad(x, ((1, 1), (0, 0)))
        x = ((padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4).T
    return x


def fit(guide: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, float]:
    """Lays a guide (S, S) over the character whose mean (S, S) the network gives without it; both in [0, 1], strokes bright.

    Returns the guide in its place and how well the two agree: their correlation there, in [-1, 1].

    The guide's ink fills the box of what is surely ink, of what could be, or the usual one; from each it is moved and stretched as
    long as the two agree better (correlation), and the best is kept. One start is not enough: where half of a character is lost,
    the box of the rest is not the character's. In training, the place of the guide is off by as much as this leaves; see
    `datasets.guide`. Without ink in either, the guide is returned unchanged, with an agreement of 1: nothing speaks against it.
    """
    source, boxes = _ends(guide > 0.5, 0.0), [_ends(mean * (mean > threshold), 0.01) for threshold in THRESHOLDS]
    if source is None or boxes[0] is None:
        return guide, 1.0
    small, target = (resize(x, SIZE, SIZE) for x in (guide, mean))
    target = target - target.mean()
    target = target / max(np.sqrt(np.square(target).sum()), 1e-6)

    def agreement(box: np.ndarray) -> float:
        laid = _lay(small, source, box)
        laid = laid - laid.mean()
        return float((laid * target).sum() / max(np.sqrt(np.square(laid).sum()), 1e-6))

    def climb(box: np.ndarray) -> tuple[float, np.ndarray]:
        best = agreement(box)
        for step in STEPS:
            for move in [sign * move for move in MOVES for sign in (step, -step)] * 2:
                if (value := agreement(box + move)) > best:
                    box, best = box + move, value
        return best, box

    best, box = max(map(climb, [*boxes, np.array(USUAL)]), key=lambda found: found[0])
    return _lay(guide, source, box), best


def _ends(ink: np.ndarray, outside: float) -> np.ndarray | None:
    """(4,): top, left, bottom and right in [0, 1] of ink (S, S), but for a share `outside` on each side; None if there is none."""
    sums = [ink.sum(axis).cumsum() for axis in (1, 0)]
    if not sums[0][-1]:
        return None
    first = [np.searchsorted(one, outside * one[-1], side="right") for one in sums]
    last = [np.searchsorted(one, (1 - outside) * one[-1]) + 1 for one in sums]
    return np.array([*first, *last]) / len(ink)


def _lay(x: np.ndarray, source: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Moves what is in the box `source` of (S, S) into another box, both (4,) in [0, 1]; the rest is 0."""
    scale = (source[2:] - source[:2]) / np.maximum(box[2:] - box[:2], 0.05)
    shift = len(x) * (source[:2] - scale * box[:2])
    affine = (scale[1], 0, shift[1], 0, scale[0], shift[0])
    image = Image.fromarray(np.ascontiguousarray(x, np.float32))
    return np.asarray(image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)).clip(0, 1)
