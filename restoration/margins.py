"""Where the margins of a picture end: flat borders, and the table around a sheet or beside a slip that lies askew."""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from util.squares import scale_to

FLAT, FLAT_SHARE = 10 / 255, 0.98  # a line is flat if this share of its pixels differs by less from its median
BLOCK = 8  # pixels: of JPEG, in which the edge of a margin is blurred
MIN_CONTENT = 2 * BLOCK
ASKEW = np.append(np.arange(-12.0, 0.0), np.arange(1.0, 13.0))  # degrees by which a sheet may be turned, first to whole ones
FINER = np.array([-0.5, -0.25, 0.0, 0.25, 0.5])  # degrees
SMALL = 128  # longer edge in pixels at which a sheet is looked for
LESS = 0.985  # what margins askew leave must be smaller by this than what upright ones leave
INSIDE = 2  # pixels of that size by which a sheet is cut smaller, for its edges are soft
OTHER = 3 * FLAT  # how much the tone beyond a sheet differs from that of its corners


# --- upright ------------------------------------------------------------------------------------------------------------


def find_content(channels: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of (H, W[, 3]) inside its margins: flat borders of any tone, on any side, one inside another.

    A border with the tone of the ground next to it belongs to the ground and is kept. A picture with less than MIN_CONTENT pixels
    between its margins is returned whole.
    """
    x = channels.reshape(*channels.shape[:2], -1)
    margins, before = [0, 0, 0, 0], None  # top, bottom, left, right
    while margins != before:
        before = margins.copy()
        for side in range(4):
            lines = _lines(x, margins, side)[margins[side] :]
            if not _flat(lines[:1])[0]:
                continue
            flat = _flat(lines)
            margins[side] += 0 if flat.all() else int(flat.argmin())
            if min(x.shape[0] - sum(margins[:2]), x.shape[1] - sum(margins[2:])) < MIN_CONTENT:
                return slice(0, x.shape[0]), slice(0, x.shape[1])
    grounds = [_ground(_lines(x, margins, side), margins[side], margins[side ^ 1]) for side in range(4)]
    top, bottom, left, right = (margin - ground for margin, ground in zip(margins, grounds, strict=True))
    return slice(top, x.shape[0] - bottom), slice(left, x.shape[1] - right)


def _lines(x: np.ndarray, margins: list[int], side: int) -> np.ndarray:
    """The lines of (H, W, channels) parallel to a side, from it on, without what the margins next to it cover."""
    lines = x if side < 2 else x.swapaxes(0, 1)
    start, stop = margins[2:] if side < 2 else margins[:2]
    lines = lines[::-1] if side % 2 else lines
    step = max(1, math.ceil((lines.shape[1] - start - stop) / 256))
    return lines[:, start : lines.shape[1] - stop : step]


def _flat(lines: np.ndarray) -> np.ndarray:
    """Which of (n, length, channels) are flat, with the tone of the first: its median."""
    return (np.abs(lines - np.median(lines[0], axis=0)) < FLAT).all(axis=2).mean(axis=1) >= FLAT_SHARE


def _ground(lines: np.ndarray, margin: int, opposite: int) -> int:
    """How many of the margin's lines, the last ones, belong to the ground of the content.

    They do if their tone is that of most of a line next to them, of both corners there, or of nearly half of the content.
    """
    if not margin:
        return 0
    tone = np.median(lines[margin - 1], axis=0)
    content = np.abs(lines[margin : len(lines) - opposite] - tone).max(axis=2)
    depth = max(1, min(BLOCK, min(content.shape) // 8))
    next_to, soft = content[depth : 2 * depth], max(FLAT, np.percentile(content, 98) / 3)  # strokes may have soft edges
    corners = [(near[:depth, :depth] < FLAT).mean() for near in (content, content[:, ::-1])]
    corners += [(near[:, depth : 2 * depth] < soft).mean() for near in (next_to, next_to[:, ::-1])]
    if (next_to < FLAT).mean() <= 0.5 and min(corners) <= 0.5 and (content < FLAT).mean() <= 0.45:
        return 0
    other = np.flatnonzero((np.abs(np.median(lines[:margin], axis=1) - tone) >= FLAT).any(axis=1))
    return margin - int(other[-1]) - 1 if len(other) else margin


# --- askew --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sheet:
    """A sheet in a picture, perhaps askew.

    angle: clockwise, in degrees. ends: its top, left, bottom and right when set upright, from the picture's centre, relative to the
    picture's longer edge; infinite where it ends at the picture's edge. ground: its tone, one for each channel.
    """

    angle: float
    ends: tuple[float, float, float, float]
    ground: np.ndarray

    def cover(self, channels: np.ndarray, shape: tuple[int, int] | None = None, first: int = 0) -> np.ndarray:
        """(H, W[, 3]), a picture, or rows of one of that `shape` from `first` on, with ground outside of the sheet."""
        if not np.isfinite(self.ends).any():
            return channels
        height, width = shape or channels.shape[:2]
        down = _from_centre(first + np.arange(len(channels)), height, max(height, width))[:, None]
        across = _from_centre(np.arange(width), width, max(height, width))
        lean, rise = _slopes(self.angle)
        across = across + lean * down
        down = down - rise * across
        top, left, bottom, right = self.ends
        outside = (down < top) | (down > bottom) | (across < left) | (across > right)
        covered = channels.copy()
        covered[outside] = self.ground if channels.ndim == 3 else self.ground[0]
        return covered


WHOLE = Sheet(0.0, (-np.inf, -np.inf, np.inf, np.inf), np.zeros(1))  # a picture without a table: its ground covers nothing


def find_sheet(channels: np.ndarray) -> Sheet:
    """The sheet or slip in (H, W[, 3]): what is inside of flat margins, which may be askew, such as those of a table.

    The picture is set upright by each angle; the right one leaves the smallest content. A sheet ends on two opposite sides, and
    three corners have another tone than what is beyond, unlike those around a character. Margins that are not askew are kept.
    """
    small = np.stack([scale_to(one, SMALL) for one in channels.reshape(*channels.shape[:2], -1).transpose(2, 0, 1)], axis=2)
    edges = small.shape[:2]

    def content(angle: float) -> tuple[float, float, tuple[slice, slice]]:
        ends = find_content(_upright(small, angle))
        left = [(one.stop - one.start) / n for one, n in zip(ends, edges, strict=True)]
        ended = any(one.start > 0 and one.stop < n for one, n in zip(ends, edges, strict=True))
        return math.prod(left) if ended else 1.0, angle, ends

    area, angle, _ = min(map(content, ASKEW), key=lambda one: one[0])
    if area >= LESS * content(0.0)[0]:
        return WHOLE
    _, angle, ends = min(map(content, angle + FINER), key=lambda one: one[0])
    upright, outside = _upright(small, angle), np.ones(edges, bool)
    outside[ends] = False
    sheet, beyond = upright[ends], np.median(upright[outside], axis=0)
    depth = max(1, min(BLOCK, min(sheet.shape[:2]) // 8))
    corners = np.stack([sheet[rows, columns] for rows, columns in product((slice(depth), slice(-depth, None)), repeat=2)])
    if ((np.abs(corners - beyond).max(axis=3) < OTHER).mean(axis=(1, 2)) > 0.5).sum() > 1:
        return WHOLE
    first = (_from_centre(one.start + INSIDE - 0.5, n, SMALL) if one.start else -np.inf for one, n in zip(ends, edges, strict=True))
    last = (_from_centre(one.stop - INSIDE - 0.5, n, SMALL) if one.stop < n else np.inf for one, n in zip(ends, edges, strict=True))
    return Sheet(float(angle), (*first, *last), np.median(corners, axis=(0, 1, 2)))


def _slopes(angle: float) -> tuple[float, float]:
    """Of the two shears that set upright what is turned clockwise by `angle`: of rows along, then of columns against themselves."""
    turn = math.radians(angle)
    return math.tan(turn), math.sin(turn) * math.cos(turn)


def _from_centre(at: np.ndarray | float, edge: int, longer: int) -> np.ndarray | float:
    """The middles of pixels `at` along an edge of so many, from its centre, relative to the longer edge; float32."""
    return np.float32(1) * (at + 0.5 - edge / 2) / longer


def _upright(x: np.ndarray, angle: float) -> np.ndarray:
    """(H, W, channels) set upright by two shears, which keep margins, as a rotation does not; pixels at the edges are repeated."""
    height, width = x.shape[:2]
    lean, rise = _slopes(angle)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    from_column = np.rint(columns - lean * (rows + 0.5 - height / 2)).clip(0, width - 1).astype(int)
    from_row = np.rint(rows + rise * (columns + 0.5 - width / 2)).clip(0, height - 1).astype(int)
    return x[rows, from_column][from_row, columns]
