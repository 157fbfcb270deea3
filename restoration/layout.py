"""Where the characters of a page are: columns, and characters in them, of steles, sutras and manuscripts written on a grid.

The page is worked on at WORK pixels, with its ground subtracted and ruled lines removed. The sums of the ink along the columns
repeat with their pitch, which is the first strong peak of their autocorrelation; dynamic programming cuts where there is little ink
and the pitch is kept. The same again, along each column, finds its characters.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from util.squares import otsu, scale_to

DIRECTIONS = ("rtl", "ltr", "horizontal")  # columns from the right, columns from the left, lines from the top
WORK = 1600  # longer edge in pixels at which a page is worked on
GLANCE, PLAIN, FREE = 400, 6, 0.55  # a page is plain at so many pixels, with as many columns and rows, and boxes as free of ink
SKEW = 5.0  # largest skew that is looked for, in degrees
STRONG, CLEAR = 0.5, 0.85  # peaks of the autocorrelation this high, relative to the highest, may be or are that of the pitch
MORE = 1.3  # so many times the least ink may be met by the cuts of a pitch
WIDE = 1.0  # cost of a column or character of twice the pitch, as of a cut through so many times the usual ink
FULL = 0.75  # ink, and no noise
BLANK = 0.25  # a cell with less than this share of what the usual one is filled to is blank; one that is lost is filled


class Character(NamedTuple):
    """A character's square in the picture, in pixels. confidence: how free of ink its edge is, relative to its inside, 0 to 1."""

    left: int
    top: int
    edge: int
    confidence: float = 1.0
    char: str | None = None


@dataclass(frozen=True)
class Layout:
    """The characters of a page, by columns (or lines) in reading order.

    size: (height, width) of the picture. polarity: of the strokes. skew: clockwise, in degrees. direction: one of DIRECTIONS.
    """

    size: tuple[int, int]
    columns: list[list[Character]] = field(default_factory=list)
    polarity: str = "bright"
    skew: float = 0.0
    direction: str = "rtl"

    @property
    def characters(self) -> list[Character]:
        """All characters in reading order."""
        return [character for column in self.columns for character in column]


def is_page(x: np.ndarray) -> bool:
    """Whether a picture (H, W) in [0, 1], strokes bright, plainly shows a page of characters and not a single one."""
    layout = find_layout(scale_to(x, GLANCE))
    characters = layout.characters
    return (
        len(layout.columns) >= PLAIN
        and np.median([len(column) for column in layout.columns]) >= PLAIN
        and np.median([one.confidence for one in characters]) >= FREE
    )


# --- finding ------------------------------------------------------------------------------------------------------------


def find_layout(x: np.ndarray, direction: str = "rtl", columns: int | None = None) -> Layout:
    """The layout of a page (H, W) in [0, 1], strokes bright. `columns`: their number, if known.

    A page on which nothing repeats has no columns.
    """
    if direction == "horizontal":
        return _turned(find_layout(x.T, "ltr", columns))
    small = scale_to(x, WORK) if max(x.shape) > WORK else x
    radius, cells = max(small.shape) / 40, []
    skew = _skew(_ink(small, radius))
    upright = _rotate(small, skew)
    for _ in range(2):  # again, with what the size of the characters is
        ink = _ink(upright, radius)
        rules = _rules(ink)
        ink[rules] = 0
        filled = ((ink > FULL) | (upright > otsu(upright)[0])) & ~rules
        cells = _cells(ink, filled, columns)
        if not cells:
            break
        radius = float(np.median([right - left for left, right, _ in cells])) / 3
    found = _characters(ink, filled, cells)
    scale, (height, width) = max(x.shape) / max(small.shape), x.shape
    turn = np.deg2rad(skew)

    def in_picture(row: float, column: float, edge: float, confidence: float) -> Character:
        down, across = row - small.shape[0] / 2, column - small.shape[1] / 2
        middle = [width / 2 + scale * (across * np.cos(turn) - down * np.sin(turn)),
                  height / 2 + scale * (across * np.sin(turn) + down * np.cos(turn))]  # fmt: skip
        left, top = (round(at - scale * edge / 2) for at in middle)
        return Character(left, top, round(scale * edge), round(confidence, 3))

    found = [[in_picture(*one) for one in column] for column in found]
    return Layout(x.shape, found[::-1] if direction == "rtl" else found, skew=round(skew, 2), direction=direction)


def _turned(layout: Layout) -> Layout:
    columns = [[one._replace(left=one.top, top=one.left) for one in column] for column in layout.columns]
    return replace(layout, size=layout.size[::-1], columns=columns, skew=-layout.skew, direction="horizontal")


def _blur(x: np.ndarray, radius: float, axes: tuple[int, ...] = (0, 1)) -> np.ndarray:
    """Two box filters of 2 radius + 1 pixels along each of the axes, borders repeated."""
    radius = max(1, round(radius))
    for axis in axes * 2:
        x = np.moveaxis(x, axis, 0)
        sums = np.cumsum(np.pad(x, [(radius + 1, radius), *[(0, 0)] * (x.ndim - 1)], mode="edge"), axis=0, dtype=np.float64)
        x = np.moveaxis((sums[2 * radius + 1 :] - sums[: -2 * radius - 1]) / (2 * radius + 1), 0, axis)
    return x


def _ink(x: np.ndarray, radius: float) -> np.ndarray:
    """How far each pixel is above its surroundings, in units of their contrast, cut to [0, 2]: large bright areas vanish."""
    rest = _blur(x, radius / 20) - _blur(x, radius)
    contrast = np.maximum(_blur(rest**2, 2 * radius), np.mean(rest**2))
    return np.clip(rest / np.sqrt(contrast + 1e-6), 0, 2)


def _skew(ink: np.ndarray) -> float:
    """The clockwise angle at which the profile across the columns is sharpest."""
    rows, columns = np.nonzero(ink > 1)
    step = max(1, len(rows) // 200_000)
    rows, columns = rows[::step] - ink.shape[0] / 2, columns[::step]

    def sharpness(angle: float) -> float:
        at = np.rint(columns + rows * np.tan(np.deg2rad(angle))).astype(int)
        return float(np.square(np.diff(_blur(np.bincount(at - at.min()).astype(float), 2, (0,)))).sum())

    best = max(np.arange(-SKEW, SKEW + 0.1, 0.25), key=sharpness, default=0.0) if len(rows) else 0.0
    return float(max(best + np.arange(-0.25, 0.26, 0.05), key=sharpness)) if len(rows) else 0.0


def _rotate(x: np.ndarray, clockwise: float) -> np.ndarray:
    """Undoes a clockwise skew."""
    if abs(clockwise) < 0.05:
        return x
    image = Image.fromarray(x.astype(np.float32))
    return np.asarray(image.rotate(clockwise, Image.Resampling.BILINEAR, fillcolor=float(np.median(x))))


def _rules(ink: np.ndarray) -> np.ndarray:
    """Where straight lines along rows and columns are, longer than a tenth of the page."""
    mask, rules = (ink > 0.5).astype(np.float64), np.zeros(ink.shape, bool)
    for axis in (0, 1):
        length = ink.shape[axis] // 10
        along = _blur(mask, length / 4, (axis,))  # gaps in a line are bridged
        line = (along > 0.75) & (_blur(mask, max(ink.shape) / 200, (1 - axis,)) < 0.6)
        rules |= _blur(line.astype(np.float64), 1, (1 - axis,)) > 0
    return rules


def _pitch(profiles: list[np.ndarray], low: float, high: float) -> float | None:
    """The period, between low and high, with which profiles repeat; None if they do not.

    It is the first peak of the autocorrelation that is as high as the others, or whose cuts meet hardly more ink than the best do.
    """
    profiles = [profile for profile in profiles if len(profile) > high + 2]
    total, lags = np.zeros(int(high) + 2), np.arange(max(2, int(low)), int(high) + 1)
    for profile in profiles:
        rest = _blur(profile - _blur(profile, high, (0,)), low / 8, (0,))
        spectrum = np.abs(np.fft.rfft(rest, 2 * len(rest))) ** 2
        total += np.fft.irfft(spectrum)[: len(total)] / np.arange(len(rest), len(rest) - len(total), -1) * len(rest)
    peaks = lags[(total[lags] > 0) & (total[lags] >= total[lags - 1]) & (total[lags] > total[lags + 1])]
    peaks = peaks[total[peaks] >= STRONG * total[peaks].max()] if len(peaks) else peaks
    if len(peaks) < 2:
        return float(peaks[0]) if len(peaks) else None
    some = profiles[:: max(1, len(profiles) // 8)]
    met = np.array([np.mean([_met(profile, peak) for profile in some]) for peak in peaks])
    return float(peaks[(total[peaks] >= CLEAR * total[peaks].max()) | (met <= MORE * met.min() + 0.05)][0])


def _met(profile: np.ndarray, pitch: float) -> float:
    """The ink at the cuts of a profile, relative to the usual."""
    cuts = _cuts(profile, pitch, 1)[0][1:-1]
    return float(_blur(profile, pitch / 40, (0,))[cuts].mean() / max(profile.mean(), 1e-9)) if cuts else 1.0


def _cuts(profile: np.ndarray, pitch: float, widest: int = 2) -> tuple[list[int], float]:
    """Where to cut a profile into cells of about the pitch, or up to `widest` times as wide, and what it costs.

    The cost of a cut is the ink there, relative to the usual; that of a cell is how far it is from the pitch, and WIDE; that of a
    cell's worth of ink before the first or after the last cut is 1. Cuts are sought in steps, then moved to the least ink nearby.
    """
    step = max(1, int(pitch / 16))
    n, pitch = len(profile) // step, pitch / step
    fine = _blur(profile, step * pitch / 40, (0,))
    ink = np.append(fine[: n * step].reshape(n, step).mean(1), fine[-1]) / max(np.percentile(profile, 75), 1e-9)
    outside = np.append(0, ink[:-1].cumsum()) / pitch
    widths = [np.arange(round(0.7 * k * pitch), round(1.4 * k * pitch) + 1) for k in range(1, widest + 1)]
    cost = [np.square(np.log(w / (k * pitch)) / np.log(1.4)) + WIDE * (k - 1) for k, w in enumerate(widths, 1)]
    widths, cost = np.concatenate(widths), np.concatenate(cost)
    total, before = np.full(n + 1, np.inf), np.full(n + 1, -1)
    total[: int(pitch)] = (outside + ink)[: int(pitch)]
    for end in range(round(0.7 * pitch), n + 1):
        fits = widths <= end
        sums = total[end - widths[fits]] + cost[fits]
        best = int(sums.argmin())
        if sums[best] + ink[end] < total[end]:
            total[end], before[end] = sums[best] + ink[end], end - widths[fits][best]
    total += outside[-1] - outside
    last = max(0, n + 1 - int(pitch))
    end = last + int(total[last:].argmin())
    found, price = [], float(total[end])
    while end >= 0:
        start = max(0, (end - 1) * step)
        found.append(start + int(fine[start : (end + 1) * step + 1].argmin()))
        end = before[end]
    return found[::-1], price


def _cells(ink: np.ndarray, filled: np.ndarray, columns: int | None) -> list[tuple[int, int, list[int]]]:
    """The columns from left to right, each (left, right, its cuts from top to bottom)."""
    across = ink.mean(0)
    if columns:
        tried = [_cuts(across, ink.shape[1] / columns * factor) for factor in np.arange(0.7, 1.06, 0.025)]
        fitting = [one for one in tried if len(_columns(filled, one[0])) == columns]
        if not fitting:
            raise ValueError(f"this page cannot be cut into {columns} columns")
        cuts = min(fitting, key=lambda one: one[1])[0]
    else:
        pitch = _pitch([across], ink.shape[1] / 80, min(ink.shape[1] / 2, max(ink.shape) / 5))
        if pitch is None:
            return []
        cuts = _cuts(across, pitch)[0]
    spans = _columns(filled, cuts)
    if not spans:
        return []
    usual = float(np.median([right - left for left, right in spans]))
    profiles = [ink[:, left:right].mean(1) for left, right in spans]
    pitch = _pitch(profiles, 0.55 * usual, min(1.8 * usual, ink.shape[0] / 2))
    if pitch is None:
        return []
    cells = []
    for (left, right), profile in zip(spans, profiles, strict=True):
        double = right - left > 1.6 * usual
        cells.append((left, right, _cuts(profile, pitch * (1 + double), 1)[0]))
    return cells


def _columns(filled: np.ndarray, cuts: list[int]) -> list[tuple[int, int]]:
    """The spans between cuts that hold ink."""
    sums = np.append(0, filled.sum(0).cumsum())
    amount = np.diff(sums[cuts])
    return [span for span, has in zip(zip(cuts[:-1], cuts[1:]), amount, strict=True) if has >= BLANK / 2 * np.median(amount)]


def _characters(
    ink: np.ndarray, filled: np.ndarray, cells: list[tuple[int, int, list[int]]]
) -> list[list[tuple[float, float, float, float]]]:
    """(row, column, edge, confidence) of each cell that is not blank; row and column of the middle of its character.

    The usual size of a character is that of all of them laid over each other, in which noise is level.
    """
    if not cells:
        return []
    extents = [_extent(filled[cuts[0] : cuts[-1], left:right].mean(0)) for left, right, cuts in cells]
    heights, amounts = [], []
    for left, right, cuts in cells:
        profile, spans = filled[:, left:right].mean(1), list(zip(cuts[:-1], cuts[1:]))
        laid = [np.interp(np.linspace(top, bottom - 1, 64), np.arange(len(profile)), profile) for top, bottom in spans]
        heights.append(-np.subtract(*_extent(np.mean(laid, 0))) / 64 * np.median(np.diff(cuts)))
        amounts.append([float(profile[top:bottom].mean()) for top, bottom in spans])
    pitches = [right - left for left, right, _ in cells], np.concatenate([np.diff(cuts) for *_, cuts in cells])
    pitch = min(float(np.median(pitches[0])), float(np.median(pitches[1])))
    usual = np.clip(max(np.median(np.diff(extents)), np.median(heights)), 0.65 * pitch, 6 / 7 * pitch)
    enough, found = _enough(np.concatenate(amounts)), []
    for (left, right, cuts), extent, column in zip(cells, extents, amounts, strict=True):
        size = usual * 2 if right - left > 1.6 * np.median(pitches[0]) else usual  # a title of double size
        middle = left + _middle(extent, right - left, size)
        rows = [
            top + _middle(_extent(_blur(filled[top:bottom, left:right].mean(1), size / 20, (0,))), bottom - top, size)
            for top, bottom, amount in zip(cuts[:-1], cuts[1:], column, strict=True)
            if amount >= enough
        ]
        found.append([(row, middle, 7 / 6 * size, _freedom(ink, row, middle, 7 / 6 * size)) for row in rows])
    return _without_strays([column for column in found if column], float(np.median(pitches[1])))


def _middle(extent: tuple[float, float], length: float, size: float) -> float:
    """The middle of an extent within a cell, moved so that a character of that size stays within the cell."""
    reach = max(0.0, (length - size) / 2)
    return float(length / 2 + np.clip((extent[0] + extent[1] - length) / 2, -reach, reach))


def _without_strays(columns: list[list[tuple]], pitch: float) -> list[list[tuple]]:
    """Drops cells above or below where the columns begin and end, where less than a fifth of the columns have any, and those that
    are scattered at the sides."""
    if len(columns) < 5:
        return columns
    rows = [np.array([one[0] for one in column]) for column in columns]

    def common(row: float) -> bool:
        return bool(np.mean([(np.abs(others - row) < pitch / 2).any() for others in rows]) >= 0.2)

    kept = []
    for column in columns:
        shared = np.flatnonzero([common(one[0]) for one in column])
        if len(shared):
            kept.append(column[shared[0] : shared[-1] + 1])
    for end in (0, -1):
        while kept and len(kept[end]) <= 0.6 * (kept[end][-1][0] - kept[end][0][0]) / pitch:
            kept.pop(end)
    return kept


def _extent(profile: np.ndarray) -> tuple[float, float]:
    """From where to where a profile is a quarter above its least."""
    above = np.flatnonzero(profile > profile.min() + np.ptp(profile) / 4)
    return (float(above[0]), float(above[-1] + 1)) if len(above) else (0.0, float(len(profile)))


def _enough(amounts: np.ndarray) -> float:
    """What a cell must be filled to: half way between blank cells and others, if they differ clearly. Lost ones are filled most."""
    amounts = np.minimum(amounts, np.percentile(amounts, 60))
    threshold = otsu(amounts)[0]
    low, high = amounts[amounts <= threshold], amounts[amounts > threshold]
    if len(low) and len(high) and np.median(low) < np.median(high) / 2:
        return float(np.median(low) + np.median(high)) / 2
    return BLANK * float(np.median(amounts))


def _freedom(ink: np.ndarray, row: float, column: float, edge: float) -> float:
    """How free of ink the edge of a square is, relative to its inside: 0 to 1."""
    top, left, bottom, right = (max(0, round(at)) for at in (row - edge / 2, column - edge / 2, row + edge / 2, column + edge / 2))
    square = ink[top:bottom, left:right]
    if not square.size or not square.any():
        return 0.0
    border = np.concatenate([square[[0, -1]].ravel(), square[:, [0, -1]].ravel()])
    return float(np.clip(1 - border.mean() / square.mean(), 0, 1))
