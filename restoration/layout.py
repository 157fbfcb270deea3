"""Where the characters of a page are: columns, and characters in them, of steles, sutras and manuscripts written on a grid.

The page is worked on at WORK pixels, with its ground subtracted and ruled lines removed. The sums of the ink along the columns
repeat with their pitch, which is the first strong peak of their autocorrelation; dynamic programming cuts where there is little ink
and the pitch is kept. The same again, along each column, finds its characters. Of few columns, each number is tried.
"""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from restoration.place import FILL
from util.squares import otsu, scale_to

DIRECTIONS = ("rtl", "ltr", "horizontal")  # columns from the right, columns from the left, lines from the top
WORK = 1600  # longer edge in pixels at which a page is worked on
FEW, GOOD = 5, 0.8  # a page of so few columns, with boxes less free of ink, is cut into each number up to that, too
AS_GOOD = 0.9  # of those as free as this, relative to the freest, the one with the most characters counts
GLANCE, PLAIN, FREE = 400, 6, 0.65  # a page is plain at so many pixels, with as many columns and rows, and boxes as free of ink
SKEW = 5.0  # largest skew that is looked for, in degrees
STRONG, CLEAR = 0.5, 0.85  # peaks of the autocorrelation this high, relative to the highest, may be or are that of the pitch
MORE = 1.3  # so many times the least ink may be met by the cuts of a pitch
WIDE = 1.0  # cost of a column or character of twice the pitch, as of a cut through so many times the usual ink
HALF, THROUGH = 0.6, 0.2  # share of the ink beside it that a cut through characters meets, and cuts of which half do
SHARED = 0.3  # so much more ink the cuts of all columns may meet in one than its own do
COMMON = 0.2  # share of the columns that reach as high, or as low, as the text of a page does
FULL = 0.75  # ink, and no noise
ONE_GAP = 0.15  # between columns, relative to the width of their ink, where their number is given
BLANK = 0.2  # a cell is blank that is filled to less than this share of the way from the gaps between cells to the usual cell
STROKE = 0.5  # but not one of which a row is filled to this share: 一 fills little more
STRAY = 0.2  # share of the ink of a column or a character, below which what stands apart at its ends is the rest of a rule
BEND, STIFF = 0.25, 0.1  # how far a column of a bent page may be from its middle, in sizes of its characters, and the cost of that
CERTAIN = 0.4  # a cell is surely written whose strokes fill it to this share of what they fill the usual cell to
SHORTEST = 4.5  # a ruled line across columns is longer than this, in thirds of their width, as few 一 are


class Character(NamedTuple):
    """A character's square in the picture, in pixels.

    confidence: how free of ink its edge is, relative to its inside, 0 to 1. char: which character it is, if told. readings: what it
    could be, the likeliest first, each with its probability.
    """

    left: int
    top: int
    edge: int
    confidence: float = 1.0
    char: str | None = None
    readings: tuple[tuple[str, float], ...] = ()


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

    @property
    def freedom(self) -> float:
        """How free of ink the edges of the characters' squares are: the median of their confidences; below FREE they hardly fit."""
        return float(np.median([one.confidence for one in self.characters] or [0.0]))

    def only(self, characters: list[Character]) -> "Layout":
        """The same layout with these characters in place of those in the same squares, and without all others."""
        kept = {one[:3]: one for one in characters}
        columns = ([kept[one[:3]] for one in column if one[:3] in kept] for column in self.columns)
        return replace(self, columns=[column for column in columns if column])


def is_page(x: np.ndarray) -> bool:
    """Whether a picture (H, W) in [0, 1], strokes bright, plainly shows a page of characters and not a single one."""
    layout = find_layout(scale_to(x, GLANCE), try_few=False)
    rows = np.median([len(column) for column in layout.columns] or [0])
    return len(layout.columns) >= PLAIN and rows >= PLAIN and layout.freedom >= FREE


def arrange(layout: Layout) -> Layout:
    """The same characters in columns and in reading order, whatever their order was."""
    if layout.direction == "horizontal":
        return _turned(arrange(replace(_turned(layout), direction="ltr")))
    edges, turn = [one.edge for one in layout.characters], np.deg2rad(layout.skew)
    middles = np.array([(one.left + one.edge / 2, one.top + one.edge / 2) for one in layout.characters]).reshape(-1, 2)
    upright = middles @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    columns: list[list[int]] = []
    for i in upright[:, 0].argsort(kind="stable"):
        if columns and upright[i, 0] - np.mean(upright[columns[-1], 0]) < np.median(edges) / 2:
            columns[-1].append(int(i))
        else:
            columns.append([int(i)])
    ordered = [[layout.characters[i] for i in sorted(column, key=lambda i: upright[i, 1])] for column in columns]
    return replace(layout, columns=ordered[::-1] if layout.direction == "rtl" else ordered)


# --- finding ------------------------------------------------------------------------------------------------------------


def find_layout(x: np.ndarray, direction: str = "rtl", columns: int | None = None, try_few: bool = True) -> Layout:
    """The layout of a page (H, W) in [0, 1], strokes bright. `columns`: their number if known. `try_few`: whether each number up to
    FEW is tried where the boxes of few columns are not free of ink.

    A page on which nothing repeats has no columns.
    """
    if direction == "horizontal":
        return _turned(find_layout(x.T, "ltr", columns, try_few))
    small = scale_to(x, WORK) if max(x.shape) > WORK else x
    skew = _skew(_ink(small, max(small.shape) / 40))
    upright = _rotate(small, skew)
    found = _find(upright, columns)
    if try_few and columns is None and len(found) <= FEW and _free(found) < GOOD:
        numbered = [found]
        for number in range(1, FEW + 1):
            with suppress(ValueError):
                numbered.append(_find(upright, number))
        numbered = [one for one in numbered if one is found or _free(one) >= FREE]
        best = max(map(_free, numbered))
        found = max((one for one in numbered if _free(one) >= AS_GOOD * best), key=lambda one: sum(map(len, one)))
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


def _find(upright: np.ndarray, columns: int | None) -> list[list[tuple[float, float, float, float]]]:
    """(row, column, edge, confidence) of each character of an upright page, by columns from the left."""
    radius = max(upright.shape) / 40
    for _ in range(2):  # again, with what the size of the characters is
        ink = _ink(upright, radius)
        rules = _rules(ink, radius)
        ink[rules] = 0
        filled = ((ink > FULL) | (upright > otsu(upright)[0])) & ~rules
        cells = _cells(ink, filled, columns)
        if not cells:
            break
        radius = float(np.median([right - left for left, right, _ in cells])) / 3
    return _characters(ink, filled, cells)


def _free(found: list[list[tuple]]) -> float:
    """The mean confidence of the characters; 0 if there is only one, which any picture can be cut into."""
    confidences = [one[3] for column in found for one in column]
    return float(np.mean(confidences)) if len(confidences) > 1 else 0.0


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


def _rules(ink: np.ndarray, radius: float) -> np.ndarray:
    """Where straight lines along rows and columns are, longer than a tenth of the page, and those across than any stroke.

    radius: a third of the width of a column, as far as it is known.
    """
    mask, rules = (ink > 0.5).astype(np.float64), np.zeros(ink.shape, bool)
    for axis in (0, 1):
        length = max(ink.shape[axis] // 10, round(axis * SHORTEST * radius))
        along = _blur(mask, length / 4, (axis,))  # gaps in a line are bridged
        line = (along > 0.75) & (_blur(mask, max(ink.shape) / 200, (1 - axis,)) < 0.6)
        line |= (mask > 0) & (_blur(line.astype(np.float64), length / 4, (axis,)) > 0.5)  # where it crosses another one
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
    """The ink at the best cuts of a profile, relative to the usual."""
    return _between(profile, _cuts(profile, pitch, 1)[0], pitch)


def _between(profile: np.ndarray, cuts: list[int], pitch: float) -> float:
    """The ink at the cuts of a profile between its cells, relative to the usual."""
    inner = _blur(profile, pitch / 40, (0,))[cuts[1:-1]]
    return float(inner.mean() / max(profile[cuts[0] : cuts[-1]].mean(), 1e-9)) if len(inner) else 1.0


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
        start, end = _extent(_blur(across, len(across) / 80, (0,)))
        gap = ONE_GAP * (end - start) / columns
    if columns == 1:
        cuts = [max(0, round(start - gap / 2)), min(len(across), round(end + gap / 2))]
    elif columns:
        tried = [_cuts(across, ((end - start + gap) / columns) * factor) for factor in np.arange(0.7, 1.06, 0.025)]
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
    pitch = _pitch([sum(profiles), *profiles], 0.55 * usual, min(1.8 * usual, ink.shape[0] / 2))
    if pitch is None:
        return []
    fine = _blur(across, usual / 40, (0,))
    single = [right - left <= 1.6 * usual for left, right in spans]
    common = _cuts(np.mean([profile for profile, one in zip(profiles, single, strict=True) if one], 0), pitch, 1)[0]
    usually = max(THROUGH / 2, float(np.median([_between(profile, common, pitch) for profile in profiles])))
    cells = []
    for (left, right), profile, one in zip(spans, profiles, single, strict=True):
        cuts = _cuts(profile, pitch if one else 2 * pitch, 1)[0]
        if one and _between(profile, common, pitch) <= _between(profile, cuts, pitch) + SHARED:
            cuts = common  # the rows of the page are those of the column, and seen better in all
        start = cells[-1][0] if cells and cells[-1][1] == left and fine[left] > HALF * across[cells[-1][0] : right].mean() else left
        for first in sorted({start, left}):
            both = ink[:, first:right].mean(1)
            if one and _between(both, common, pitch) > 2 * usually and (double := _double(both, pitch)):
                cells = [cell for cell in cells if cell[0] < first]
                left, cuts = first, double
                break
        cells.append((left, right, cuts))
    return cells


def _double(profile: np.ndarray, pitch: float) -> list[int] | None:
    """The cuts between characters of twice the pitch, if there is ink half way between them, and less at them than at others."""
    cuts = _cuts(profile, 2 * pitch, 1)[0]
    if len(cuts) < 3:
        return None
    halves = [(top + bottom) // 2 for top, bottom in zip(cuts, cuts[1:])]
    met, least = _between(profile, [cuts[0], *halves, cuts[-1]], pitch), _met(profile, pitch)
    return cuts if met > HALF and least > THROUGH and _between(profile, cuts, pitch) < least / 3 else None


def _columns(filled: np.ndarray, cuts: list[int]) -> list[tuple[int, int]]:
    """The spans between cuts that hold ink."""
    sums = np.append(0, filled.sum(0).cumsum())
    amount = np.diff(sums[cuts])
    return [span for span, has in zip(zip(cuts[:-1], cuts[1:]), amount, strict=True) if has >= BLANK * np.median(amount)]


def _characters(
    ink: np.ndarray, filled: np.ndarray, cells: list[tuple[int, int, list[int]]]
) -> list[list[tuple[float, float, float, float]]]:
    """(row, column, edge, confidence) of each cell that is not blank; row and column of the middle of its character.

    The usual size of a character is that of all of them laid over each other, in which noise is level.
    """
    if not cells:
        return []
    extents = [_extent(filled[cuts[0] : cuts[-1], left:right].mean(0)) for left, right, cuts in cells]
    heights = []
    for left, right, cuts in cells:
        profile = filled[:, left:right].mean(1)
        at = [np.linspace(top, bottom - 1, 64) for top, bottom in zip(cuts, cuts[1:])]
        laid = [np.interp(one, np.arange(len(profile)), profile) for one in at]
        heights.append(-np.subtract(*_extent(np.mean(laid, 0))) / 64 * np.median(np.diff(cuts)))
    widths, pitches = [right - left for left, right, _ in cells], np.concatenate([np.diff(cuts) for *_, cuts in cells])
    pitch_down = float(np.median(pitches))
    pitch = min(float(np.median(widths)), pitch_down)
    usual = np.clip(max(np.median(np.diff(extents)), np.median(heights)), 0.65 * pitch, 6 / 7 * pitch)
    sizes = [usual * (1 + (np.median(np.diff(cuts)) > 1.6 * pitch_down)) for *_, cuts in cells]  # a title has double size
    middles = [left + _middle(extent, right - left, size)
               for (left, right, _), extent, size in zip(cells, extents, sizes, strict=True)]  # fmt: skip
    middles = _regular(np.array(middles), float(np.median(widths)))
    amounts, drawn, fullest = [], [], []  # shares of each cell's square that are filled, with strokes, and of its fullest row
    for (left, right, cuts), middle, size in zip(cells, middles, sizes, strict=True):
        column, start = filled[:, left:right], max(0, round(middle - size / 2) - left)
        for part, means in ((column, amounts), (column & ~_blots(column), drawn)):
            inside = part[:, start : start + round(size)].mean(1)
            tops = [max(0, round((top + bottom - size) / 2)) for top, bottom in zip(cuts, cuts[1:])]
            means.append([float(inside[top : top + round(size)].mean()) for top in tops])
        fullest.append([float(inside[top : top + round(size)].max()) for top in tops])
    gaps = [np.median([filled[cut - 1 : cut + 2, left:right].mean() for cut in cuts[1:-1]] or 0) for left, right, cuts in cells]
    usual_amount, usual_drawn = (float(np.percentile(np.concatenate(part), 60)) for part in (amounts, drawn))
    nothing, enough = (1 - BLANK) * np.percentile(gaps, 25) + BLANK * usual_amount, CERTAIN * usual_drawn
    certain = [np.flatnonzero(np.array(sure) >= enough) for sure in drawn]
    ends = np.array([(cuts[rows[0]], cuts[rows[-1]]) for (*_, cuts), rows in zip(cells, certain, strict=True) if len(rows)])
    if not len(ends):
        return []
    head, foot = (np.sort(one)[int(share * (len(ends) - 1))] for one, share in zip(ends.T, (COMMON, 1 - COMMON), strict=True))
    found = []
    for (left, right, cuts), middle, size, amount, full, sure in zip(cells, middles, sizes, amounts, fullest, certain, strict=True):
        if not len(sure):
            continue
        first, last = sure[0], sure[-1]
        while first and full[first - 1] >= STROKE and cuts[first - 1] > head - pitch_down / 2:  # 一 at the head of a column
            first -= 1
        while last + 1 < len(full) and full[last + 1] >= STROKE and cuts[last + 1] < foot + pitch_down / 2:
            last += 1
        rows = []
        for row in range(first, last + 1):
            if amount[row] >= nothing or full[row] >= STROKE:
                top, bottom = cuts[row : row + 2]
                extent = _extent(_blur(filled[top:bottom, left:right].mean(1), size / 20, (0,)))
                rows.append(top + _middle(extent, bottom - top, size))
        rows = _regular(np.array(rows), float(np.median(np.diff(cuts))))
        bent = _bent(filled, rows, middle, right - left, pitch_down, size)
        edge = size / FILL
        found.append([(row, at, edge, _freedom(ink, row, at, edge)) for row, at in zip(rows, bent, strict=True)])
    return _without_strays([column for column in found if column], pitch_down)


def _blots(filled: np.ndarray) -> np.ndarray:
    """What is filled over four times the width of the strokes: lost stone. Where strokes are dense, three times are filled too."""
    mask = filled.astype(np.float64)
    edges = sum(np.abs(np.diff(mask, axis=axis)).sum() for axis in (0, 1))
    width = 8 / np.pi * mask.sum() / max(edges, 1)  # the edges of a stroke are 8/π times as long as it, whichever its direction
    return _blur((_blur(mask, width) > 0.98).astype(np.float64), width) > 0


def _regular(at: np.ndarray, pitch: float) -> np.ndarray:
    """Positions on a grid of about that pitch, with gaps and half steps: moved half way to it, those that are off by more than the
    others usually are farther. Characters stand closer to the grid than the middles of their ink, which damage moves."""
    if len(at) < 4:
        return at
    index = np.append(0, (np.round(2 * np.diff(at) / pitch) / 2).cumsum())
    first, second = np.triu_indices(len(at), 1)
    apart = index[second] - index[first]
    grid = np.median((at[second] - at[first])[apart > 0] / apart[apart > 0]) * index
    off = at - grid - np.median(at - grid)
    limit = max(0.03 * pitch, 2.5 * float(np.median(np.abs(off))))
    return at - off + off.clip(-limit, limit) / 2


def _bent(filled: np.ndarray, rows: np.ndarray, middle: float, width: float, pitch: float, size: float) -> np.ndarray:
    """The middles across of the characters of a column, which are not the same where the page is bent: that of the column, moved by
    as much as the profile across of each character and its neighbours is off that of all of them; medians of five."""
    if len(rows) < 4:
        return np.full(len(rows), middle)
    reach, half = max(1, round(BEND * size)), round(0.75 * width)
    around = np.pad(filled, ((0, 0), (reach + half,) * 2))[:, round(middle) : round(middle) + 2 * (reach + half) + 1]

    def across(first: float, last: float) -> np.ndarray:
        """The profile of the rows of some characters."""
        return _blur(around[max(0, round(first - pitch / 2)) : round(last + pitch / 2)].mean(0), size / 20, (0,))

    whole = across(rows[0], rows[-1])[reach:-reach]
    whole = (whole - whole.mean()) / max(np.linalg.norm(whole - whole.mean()), 1e-9)
    cost, off = STIFF * np.square(np.arange(-reach, reach + 1) / reach), []
    for row in rows:
        here = sliding_window_view(across(max(row - pitch, rows[0]), min(row + pitch, rows[-1])), len(whole))
        here = here - here.mean(1, keepdims=True)
        alike = here @ whole / np.maximum(np.linalg.norm(here, axis=1), 1e-9)
        off.append(int((alike - cost).argmax()) - reach)
    smooth = np.median(sliding_window_view(np.pad(off, 2, mode="edge"), 5), axis=1)
    return middle + smooth - np.median(smooth)


def _middle(extent: tuple[float, float], length: float, size: float) -> float:
    """The middle of an extent within a cell, moved so that a character of that size stays within the cell."""
    reach = max(0.0, (length - size) / 2)
    return float(length / 2 + np.clip((extent[0] + extent[1] - length) / 2, -reach, reach))


def _without_strays(columns: list[list[tuple]], pitch: float) -> list[list[tuple]]:
    """Drops cells above or below where the columns begin and end, where less than a fifth of the columns have any, and columns at
    the sides whose cells are scattered, all but the last one."""
    if COMMON * len(columns) >= 1:
        ends = np.array([(column[0][0], column[-1][0]) for column in columns]).T
        first, last = (np.sort(one)[int(share * (len(columns) - 1))] for one, share in zip(ends, (COMMON, 1 - COMMON), strict=True))
        columns = [[one for one in column if first - 0.6 * pitch < one[0] < last + 0.6 * pitch] for column in columns]
    kept = [column for column in columns if column]

    def scattered(column: list[tuple]) -> bool:
        usual = np.median([one[0][2] for one in kept])
        return len(column) * column[0][2] / usual <= 0.6 * (column[-1][0] - column[0][0]) / pitch

    for end in (0, -1):
        while len(kept) > 1 and scattered(kept[end]):
            kept.pop(end)
    return kept


def _extent(profile: np.ndarray) -> tuple[float, float]:
    """From where to where a profile is a quarter above its least, without parts of less than STRAY of it, unless all are."""
    above = np.flatnonzero(profile > profile.min() + np.ptp(profile) / 4)
    if not len(above):
        return 0.0, float(len(profile))
    runs = np.split(above, np.flatnonzero(np.diff(above) > 1) + 1)
    kept = [run for run in runs if profile[run].sum() >= STRAY * profile[above].sum()] or runs
    return float(kept[0][0]), float(kept[-1][-1] + 1)


def _freedom(ink: np.ndarray, row: float, column: float, edge: float) -> float:
    """How free of ink the edge of a square is, relative to its inside: 0 to 1."""
    top, left, bottom, right = (max(0, round(at)) for at in (row - edge / 2, column - edge / 2, row + edge / 2, column + edge / 2))
    square = ink[top:bottom, left:right]
    if not square.size or not square.any():
        return 0.0
    border = np.concatenate([square[[0, -1]].ravel(), square[:, [0, -1]].ravel()])
    return float(np.clip(1 - border.mean() / square.mean(), 0, 1))
