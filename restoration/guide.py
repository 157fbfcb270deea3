"""The guide of a known character: its standard glyph, or a specimen in another hand, laid over the character in the square."""

import numpy as np
from PIL import Image

from util.squares import resize

SIZE, STEPS = 56, (0.06, 0.03, 0.015)  # pixels at which guide and character are compared; moves, relative to the square
THRESHOLDS, USUAL = (0.5, 0.15), (0.1, 0.1, 0.9, 0.9)  # of the mean, whose boxes are tried first; the usual box of a character
SMOOTH, ITERATIONS = (1.0, 1.5), 100  # pixels at SIZE: of what is compared when strokes are bent, of the displacement; steps
FLAT = 0.005  # a squared slope below which little moves
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
    """Lays a guide over a character and bends its strokes onto what survives: `lay`, whose agreement is returned, and `bend`."""
    laid, agreement = lay(guide, mean)
    return (bend(laid, mean) if agreement < 1 else laid), agreement


def lay(guide: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, float]:
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
        laid = _move(small, source, box)
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
    return _move(guide, source, box), best


def bend(laid: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Bends the strokes of a laid guide onto those of the mean where that is sure; what is lost moves with its surroundings.

    Each step moves every pixel along the guide's gradient, as far as guide and mean differ there and the mean is sure, and smooths
    the displacement (Thirion, "Image matching as a diffusion process: an analogy with Maxwell's demons", 1998). (S, S) in [0, 1].
    """
    blur, smooth = map(_gaussian, SMOOTH)
    small, target, sure = (blur @ resize(x, SIZE, SIZE) @ blur.T for x in (laid, mean, np.abs(2 * mean - 1)))
    moved, place = np.zeros((2, SIZE, SIZE)), np.indices((SIZE, SIZE))
    for _ in range(ITERATIONS):
        now = _at(small, place + moved)
        slope, difference = np.array(np.gradient(now)), sure * (target - now)
        moved = smooth @ (moved + difference * slope / (np.square(slope).sum(0) + np.square(difference) + FLAT)) @ smooth.T
    moved = [np.asarray(Image.fromarray(part.astype(np.float32)).resize(laid.shape, Image.Resampling.BILINEAR)) for part in moved]
    return _at(laid, np.indices(laid.shape) + np.array(moved) * len(laid) / SIZE).astype(np.float32)


def _gaussian(sigma: float) -> np.ndarray:
    """(SIZE, SIZE): the matrix that smooths a row, the weights of its pixels adding up to 1 at the edges, too."""
    weights = np.exp(-np.square(np.subtract.outer(np.arange(SIZE), np.arange(SIZE)) / sigma) / 2)
    return weights / weights.sum(1, keepdims=True)


def _at(x: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(S, S) at points (2, H, W), row and column in pixels, bilinear; points outside are moved to the edge."""
    points = points.clip(0, len(x) - 1)
    i, j = whole = np.minimum(points.astype(int), len(x) - 2)
    down, across = points - whole
    above, below = ((1 - across) * x[row, j] + across * x[row, j + 1] for row in (i, i + 1))
    return (1 - down) * above + down * below


def _ends(ink: np.ndarray, outside: float) -> np.ndarray | None:
    """(4,): top, left, bottom and right in [0, 1] of ink (S, S), but for a share `outside` on each side; None if there is none."""
    sums = [ink.sum(axis).cumsum() for axis in (1, 0)]
    if not sums[0][-1]:
        return None
    first = [np.searchsorted(one, outside * one[-1], side="right") for one in sums]
    last = [np.searchsorted(one, (1 - outside) * one[-1]) + 1 for one in sums]
    return np.array([*first, *last]) / len(ink)


def _move(x: np.ndarray, source: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Moves what is in the box `source` of (S, S) into another box, both (4,) in [0, 1]; the rest is 0."""
    scale = (source[2:] - source[:2]) / np.maximum(box[2:] - box[:2], 0.05)
    shift = len(x) * (source[:2] - scale * box[:2])
    affine = (scale[1], 0, shift[1], 0, scale[0], shift[0])
    image = Image.fromarray(np.ascontiguousarray(x, np.float32))
    return np.asarray(image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)).clip(0, 1)
