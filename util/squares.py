"""Grey pictures (H, W), float32 in [0, 1]: threshold, polarity, contrast, and the square that is the network's input."""

from typing import NamedTuple

import numpy as np
from PIL import Image

BORDER = 0.05  # width of the border, relative to the shorter edge
LEVELS = 256
THUMBNAIL = 64  # longer edge in pixels: enough to tell strokes from ground
BRIGHT_WEIGHTS = np.array([-2.67, -2.67, -1.59])  # of `phase_features`, by python -m evaluation.places fit


# --- strokes ------------------------------------------------------------------------------------------------------------


def otsu(x: np.ndarray) -> tuple[float, float]:
    """Otsu's threshold of pixels in [0, 1], and the fraction of the variance between its two classes; see `util.binarise`."""
    counts = np.bincount((x.ravel() * (LEVELS - 1)).round().astype(np.uint8), minlength=LEVELS)
    levels, n = np.arange(LEVELS), counts.sum()
    dark, dark_sum = counts.cumsum()[:-1], (counts * levels).cumsum()[:-1]
    total = float(counts @ levels)
    between = (dark_sum * float(n) - total * dark) ** 2 / np.maximum(dark * (n - dark), 1)
    variance = n * float(counts @ levels**2) - total**2
    if not variance:
        return (float(levels[counts > 0][0]) + 0.5) / (LEVELS - 1), 0.0
    best = int(between.argmax())
    return (best + 0.5) / (LEVELS - 1), float(between[best] / variance)


def ink_mask(x: np.ndarray) -> np.ndarray:
    """(H, W), strokes bright → bool, True above Otsu's threshold."""
    return x > otsu(x)[0]


def border(x: np.ndarray) -> np.ndarray:
    """The pixels within 5 % of the edge, at least one pixel wide, as (n,)."""
    width = max(1, round(BORDER * min(x.shape)))
    outside = np.ones(x.shape, dtype=bool)
    outside[width:-width, width:-width] = False
    return x[outside]


def find_polarity(x: np.ndarray) -> str:
    """Whether the strokes of (H, W) are "bright" or "dark"; see `bright_probability`. A picture of one tone counts as dark."""
    return "bright" if bright_probability(x) > 0.5 else "dark"


def bright_probability(x: np.ndarray) -> float:
    """The probability that the strokes of (H, W) are bright, from `phase_features`: a logistic function of BRIGHT_WEIGHTS."""
    return float(1 / (1 + np.exp(-(phase_features(x) @ BRIGHT_WEIGHTS))))


def phase_features(x: np.ndarray) -> np.ndarray:
    """What tells strokes from ground in (H, W): three logarithms that change their sign with the polarity, 0 for one tone.

    They are the odds of the pixels above Otsu's threshold in the border and in the picture, and the ratio of their mean depth to
    that of the others: the border is mostly ground, strokes cover less than ground does, and they are thin. The last one is
    clipped: strokes that have fused with lost stone are as thick as ground.
    """
    bright = ink_mask(scale_to(x, THUMBNAIL))
    if not bright.any():
        return np.zeros(3)
    edge, inside = border(bright).mean(), bright.mean()
    depth = np.log(_mean_depth(bright) / _mean_depth(~bright))
    odds = (edge + 0.3) / (1.3 - edge), (inside + 0.002) / (1.002 - inside)  # a border of one phase is no proof
    return np.append(np.log(odds), depth.clip(-0.3, 0.3))


def _mean_depth(mask: np.ndarray) -> float:
    """The mean chessboard distance of the pixels in a mask to the outside: the areas left by erosions, relative to the mask's."""
    areas, rest = [mask.sum()], mask
    while areas[-1] and len(areas) < THUMBNAIL:
        rest = np.pad(rest, 1, mode="edge")
        rest = rest[:-2] & rest[1:-1] & rest[2:]
        rest = rest[:, :-2] & rest[:, 1:-1] & rest[:, 2:]
        areas.append(rest.sum())
    return sum(areas) / areas[0]


def stretch(x: np.ndarray) -> np.ndarray:
    """Stretches the contrast of (H, W) so that the middle 99 % of the pixels fill [0, 1]; the rest is clipped.

    A picture with a contrast below 1/50 is nothing but noise and is returned unchanged.
    """
    low, high = np.percentile(x, (0.5, 99.5))
    if high - low < 0.02:
        return x
    return ((x - low) / (high - low)).clip(0, 1).astype(np.float32)


# --- squares ------------------------------------------------------------------------------------------------------------


class Box(NamedTuple):
    """A square in a picture, in its pixels; it may reach beyond the picture. angle: clockwise, in degrees, about its centre."""

    top: int
    left: int
    edge: int
    angle: float = 0.0

    def part(self, height: int, width: int) -> tuple[slice, slice]:
        """The part of it within a picture of that size; of the square before its turn."""
        rows = slice(max(self.top, 0), min(self.top + self.edge, height))
        return rows, slice(max(self.left, 0), min(self.left + self.edge, width))


def whole(height: int, width: int) -> Box:
    """The smallest square around a picture of that size, centred."""
    edge = max(height, width)
    return Box((height - edge) // 2, (width - edge) // 2, edge)


def to_square(x: np.ndarray, box: Box, size: int, contrast: bool = False) -> np.ndarray:
    """Resizes the content of a box in (H, W) to (size, size), padded with the median of the content's border.

    `contrast`: whether to `stretch` the content.
    """
    if box.angle:
        zoom, ground = max(1, round(box.edge / size)), float(np.median(border(x[box.part(*x.shape)])))
        square = _sample(x, (size * zoom, size * zoom), _from_square(box, size * zoom), ground)
        square = np.asarray(Image.fromarray(square).reduce(zoom)).clip(0, 1)
        return stretch(square) if contrast else square
    window = _window(box, x.shape, size)
    small = resize(x[box.part(*x.shape)], *(edge.stop - edge.start for edge in window))
    small = stretch(small) if contrast else small
    square = np.full((size, size), np.median(border(small)), dtype=np.float32)
    square[window] = small
    return square


def from_square(square: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
    """The inverse of `to_square`: (size, size) → (height, width), 0 outside the box."""
    if box.angle:
        return _sample(square, (height, width), np.linalg.inv(_from_square(box, len(square))), 0.0).clip(0, 1)
    part = box.part(height, width)
    x = np.zeros((height, width), dtype=np.float32)
    x[part] = resize(square[_window(box, (height, width), len(square))], *(edge.stop - edge.start for edge in part))
    return x


def _from_square(box: Box, size: int) -> np.ndarray:
    """The affine map (3, 3) from points (x, y, 1) of a square of that size to points of the picture."""
    turn, scale = np.deg2rad(box.angle), box.edge / size
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    centre = np.array([box.left, box.top]) + box.edge / 2
    return np.vstack([np.column_stack([linear, centre - linear @ [size / 2, size / 2]]), [0, 0, 1]])


def _sample(x: np.ndarray, shape: tuple[int, int], points: np.ndarray, outside: float) -> np.ndarray:
    """(H, W) → `shape`, bicubic, each pixel from where the affine map `points` (3, 3) takes it."""
    image = Image.fromarray(np.ascontiguousarray(x, dtype=np.float32))
    coefficients = tuple(points[:2].ravel())
    return np.asarray(
        image.transform(shape[::-1], Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC, fillcolor=outside)
    )


def _window(box: Box, shape: tuple[int, ...], size: int) -> tuple[slice, slice]:
    """Where in the square the part of the box within the picture is; at least one pixel."""

    def along(part: slice, start: int) -> slice:
        first, last = ((edge - start) * size / box.edge for edge in (part.start, part.stop))
        at = min(round(first), size - 1)
        return slice(at, max(round(last), at + 1))

    rows, columns = box.part(*shape)
    return along(rows, box.top), along(columns, box.left)


def resize(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) in [0, 1] → (height, width) in [0, 1]; bicubic, with antialiasing."""
    if x.shape == (height, width):
        return x
    image = Image.fromarray(np.ascontiguousarray(x, dtype=np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)


def scale_to(x: np.ndarray, size: int) -> np.ndarray:
    """Resizes (H, W) to a longer edge of `size`, keeping the aspect ratio; the shorter edge has at least one pixel."""
    scale = size / max(x.shape)
    return resize(x, *(max(1, round(edge * scale)) for edge in x.shape))
