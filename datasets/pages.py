"""Made pages: columns of characters in one hand, with rules and damage, and the true place of every character.

They score how the layout of a page is found. Everything about a page depends on its key alone. Its damage is that of
`datasets.degradation`, which is made for squares of one character: a page is cut into overlapping tiles, each is degraded with its
own key, and they are cross-faded. What is alike over a page, such as its tone, is drawn once for all tiles.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.degradation import OPERATIONS, Degradation, scored_preset
from datasets.pairs import HandwritingSet, smooth
from datasets.rng import Stream, sample_keys

KINDS = ("plain", "plain", "ruled", "grid")  # half of the pages have no lines
EM, COLUMNS, ROWS = (40, 80), (6, 24), (8, 24)  # em in pixels; rows are the cells of a column
ACROSS, DOWN = (1.05, 1.6), (1.0, 1.25)  # distance between columns and between cells, in em
PLACE_SD, SIZE_SD, FARTHEST = 0.02, 0.03, 2.5  # of a character, in em; the largest deviation, in sd
PAD = 0.1  # em around the cells, so that no moved character is cut off
MARGIN, SCANNER_MARGIN = (0.0, 2.0), (-0.5, 1.5)  # of each side, in em; none if negative
TITLE, SCANNED = 0.15, 0.3  # probabilities, of a page: a title, a scanner's margin
LOWER, SHORT, BLANK = 0.1, 0.15, 0.03  # of a column: to start lower, to end early; of a cell: to be empty
SKEW, RULE = 3.0, (1, 3)  # degrees; pixels, the width of a rule

# Tiles of two sizes, multiples of 32 pixels: losses cover several characters, all else is as fine as for a single character.
LOSS_TILE, SURFACE_TILE = 160, 64
RAGGED, STEEP = 6, 8.0  # the layer of the noise that bends the lines between tiles, and the range of its logarithm
LOSSES = ("spalling", "breakage", "missing", "cracks", "sheet_loss", "blot", "rectangles", "squares")
ALIKE = ("edges", "grow_or_shrink", "tone", "texture", "blur", "noise", "jpeg")  # over the whole page
SURFACE = (*ALIKE, "vanish", "bleed", "fade", "veins", "specks", "pits")
LARGER = {"gradient": 0.0, "stain": [0.0, 0.0], "laid": 0.0}  # than a tile, so that tiles would not fit; see `_unevenness`
# A page is binarised as a whole. It has its own geometry, surroundings and mount; nothing is cut off; `em` is its resolution.


class Page(NamedTuple):
    """A made page.

    degraded, clean: (H, W) float32 in [0, 1], strokes bright. layout: as in page_layout.json: polarity, skew in degrees clockwise,
    direction, and columns from right to left with their characters from top to bottom. The box of a character, [left, top, width,
    height] in pixels, is an upright square around the centre of its em square, as large as this was before the page was skewed.
    about: hand, kind, em in pixels, preset and severity.
    """

    degraded: np.ndarray
    clean: np.ndarray
    layout: dict
    about: dict


class _Cells(NamedTuple):
    """n characters: column from 0 at the right, position in the pack, size of the em square in pixels, (n,), and centre (n, 2)."""

    column: np.ndarray
    glyph: np.ndarray
    size: np.ndarray
    centre: np.ndarray


class _Draw:
    """Random numbers for one page, one at a time."""

    def __init__(self, key: int, name: str):
        self.stream = Stream(np.array([key], dtype=np.uint64), name)

    def number(self, low: float, high: float) -> float:
        return float(self.stream.uniform(low, high)[0])

    def integer(self, low: int, high: int) -> int:
        """low … high, both included"""
        return int(self.number(low, high + 1))

    def chance(self, p: float) -> bool:
        return self.number(0, 1) < p

    def one_of(self, choices):
        return choices[self.integer(0, len(choices) - 1)]

    def margins(self, low: float, high: float) -> np.ndarray:
        """(2, 2): (top, bottom), (left, right)"""
        return self.stream.uniform(low, high, 4).reshape(2, 2)


def draw_page(
    glyphs: HandwritingSet,
    key: int,
    preset: str = "mixed",
    severity: float | None = None,
    columns: tuple[int, int] | None = None,
    heads: str = "",
) -> Page:
    """Draws a page with characters of `glyphs` in one of its hands.

    Args:
        key: uint64 of `sample_keys`.
        preset: see `datasets.degradation.load_preset`; of a mixture, one is drawn.
        severity: in [0, 1]; None draws it from the preset's Beta distribution.
        columns: the fewest and the most; None: COLUMNS.
        heads: characters of which one stands at the head of each column, as the hand writes them, of whichever split.

    Raises ValueError for a bad preset or severity, and for heads that the hand does not have.
    """
    draw = _Draw(key, "page")
    hands = glyphs.pack.hand[glyphs.ids]
    hand, kind, em = draw.one_of(np.unique(hands)), draw.one_of(KINDS), draw.number(*EM)
    skew = round(draw.number(-SKEW, SKEW), 2) if draw.chance(0.5) else 0.0
    clean, cells = _set(glyphs, glyphs.ids[hands == hand], key, kind, em, columns or COLUMNS, _written(glyphs, hand, heads))
    clean, centre = _turn(clean, cells.centre, skew)
    degraded, name, severity = _damage(clean, key, preset, severity)

    clean, degraded = clean.numpy(), degraded.numpy()
    if draw.chance(SCANNED):
        outer = (em * draw.margins(*SCANNER_MARGIN)).clip(0).round().astype(int)
        clean = np.pad(clean, outer)
        degraded = np.pad(degraded, outer, constant_values=draw.one_of((0.0, 1.0, draw.number(0, 1))))
        centre = centre + outer[::-1, 0]
    corner = np.round(centre - cells.size[:, None] / 2).astype(int)
    boxes = np.column_stack([corner, cells.size, cells.size]).tolist()
    chars = map(chr, glyphs.pack.form[cells.glyph].tolist())
    characters = [{"box": box, "char": char} for box, char in zip(boxes, chars, strict=True)]
    columns = [{"characters": [characters[i] for i in np.flatnonzero(cells.column == at)]} for at in np.unique(cells.column)]
    layout = {"polarity": "bright", "skew": skew, "direction": "rtl", "columns": columns}
    about = {"hand": glyphs.pack.hands[hand].name, "kind": kind, "em": round(em, 1), "preset": name, "severity": round(severity, 3)}
    return Page(degraded, clean, layout, about)


# --- the clean page -----------------------------------------------------------------------------------------------------


def _written(glyphs: HandwritingSet, hand: int, chars: str) -> np.ndarray:
    """Positions in the pack of these characters in a hand."""
    pack = glyphs.pack
    found = np.flatnonzero((pack.hand == hand) & np.isin(pack.form, [ord(char) for char in chars]))
    if missing := set(chars) - {chr(form) for form in pack.form[found]}:
        raise ValueError(f"hand {pack.hands[hand].name} has no {''.join(sorted(missing))}")
    return found


def _set(
    glyphs: HandwritingSet, ids: np.ndarray, key: int, kind: str, em: float, number: tuple[int, int], heads: np.ndarray
) -> tuple[Tensor, _Cells]:
    """Sets an upright page (H, W) of glyphs drawn from `ids`, those at the heads of columns from `heads`, by column and row."""
    draw = _Draw(key, "layout")
    columns, rows, across, down = draw.integer(*number), draw.integer(*ROWS), em * draw.number(*ACROSS), em * draw.number(*DOWN)
    times = np.ones(columns, dtype=int)  # the size of a column's cells
    times[0] += draw.chance(TITLE)
    (top, bottom), (left, right) = em * (PAD + draw.margins(*MARGIN))
    sides = left + across * (times.sum() - np.append(0, times.cumsum()))  # of the columns, from right to left
    page = torch.zeros(math.ceil(top + rows * down + bottom), math.ceil(sides[0] + right))

    stream = Stream(sample_keys(key, 0, np.arange(columns)), "column")
    first, end = stream.chance(LOWER) * np.floor(stream.uniform(1, 4)), rows // times
    end = np.where(stream.chance(SHORT), np.floor(stream.uniform(first + 1, end)), end)
    column, row = np.divmod(np.arange(columns * rows), rows)
    stream = Stream(sample_keys(key, 1, np.arange(columns * rows)), "cell")
    used = (row >= first[column]) & (row < end[column]) & ~stream.chance(BLANK)
    moved = stream.normal(k=3).clip(-FARTHEST, FARTHEST) * em * times[column, None]
    centre = np.column_stack([(sides[1:] + sides[:-1])[column] / 2, top + (row + 0.5) * times[column] * down])
    centre += PLACE_SD * moved[:, :2]
    size = np.round(em * times[column] + SIZE_SD * moved[:, 2]).astype(int)
    corner = np.round(centre - size[:, None] / 2).astype(int)
    glyph = ids[(stream.uniform() * len(ids)).astype(int)]
    if len(heads):
        head = np.flatnonzero(used)[np.unique(column[used], return_index=True)[1]]
        glyph[head] = heads[(Stream(sample_keys(key, 2, head), "head").uniform() * len(heads)).astype(int)]

    if kind == "ruled":
        gap = em * PAD / 2
        _rule(page, sides, (top - gap, top + rows * down + gap), np.full(columns, np.inf), draw.integer(*RULE))
    elif kind == "grid":
        _rule(page, sides, (top, top + rows * down), times * down, draw.integer(*RULE))
    for side in np.unique(size[used]):
        which = np.flatnonzero(used & (size == side))
        for ink, (x, y) in zip(smooth(glyphs.pack.glyphs(glyph[which]), side), corner[which], strict=True):
            place = page[y : y + side, x : x + side]
            torch.maximum(place, ink[0], out=place)
    return page, _Cells(column[used], glyph[used], size[used], (corner + size[:, None] / 2)[used])


def _rule(page: Tensor, sides: np.ndarray, ends: tuple[float, float], steps: np.ndarray, width: int) -> None:
    """Draws lines at the sides and the ends of the columns, and across each column after every step, in pixels."""
    (top, bottom), sides = (np.round(at - width / 2).astype(int) for at in (np.array(ends), sides))
    for right, left, step in zip(sides[:-1], sides[1:], steps, strict=True):
        for y in (*np.arange(top, bottom - 1, min(step, bottom - top)).round().astype(int), bottom):
            page[y : y + width, left : right + width] = 1
        for x in (left, right):
            page[top : bottom + width, x : x + width] = 1


def _turn(page: Tensor, centre: np.ndarray, degrees: float) -> tuple[Tensor, np.ndarray]:
    """Turns a page (H, W), and points (n, 2) on it, clockwise; the page grows so that nothing is cut off."""
    if not degrees:
        return page, centre
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    h, w = page.shape
    size = np.ceil([w * cos + h * abs(sin), h * cos + w * abs(sin)]).astype(int)  # width, height
    back = torch.tensor([[cos * size[0] / w, sin * size[1] / w, 0], [-sin * size[0] / h, cos * size[1] / h, 0]]).float()
    grid = F.affine_grid(back[None], [1, 1, size[1], size[0]], align_corners=False)
    turned = F.grid_sample(page[None, None], grid, align_corners=False)[0, 0]
    return turned, (centre - [w / 2, h / 2]) @ np.array([[cos, sin], [-sin, cos]]) + size / 2


# --- damage -------------------------------------------------------------------------------------------------------------


def _damage(clean: Tensor, key: int, preset: str, severity: float | None) -> tuple[Tensor, str, float]:
    """Degrades a page (H, W). Returns it, and the name of the preset and the severity that were drawn."""
    keys, draw = np.array([key], dtype=np.uint64), _Draw(key, "damage")
    mixture = Degradation(scored_preset(preset), SURFACE_TILE)
    name, table = list(mixture.presets.items())[mixture.drawn(keys)[0]]
    severity = float(mixture.severities(keys)[0]) if severity is None else severity
    losses = {operation: row for operation, row in table.items() if operation in LOSSES}
    surface = {operation: row for operation, row in table.items() if operation in SURFACE}
    alike = {operation: _alike(row, draw) for operation, row in surface.items() if operation in ALIKE}
    for operation, row in alike.items():
        surface[operation] = {parameter: LARGER.get(parameter, value) for parameter, value in row.items()}
    x = _in_tiles(clean, Degradation(losses, LOSS_TILE), key, severity)
    x = _in_tiles(x, Degradation(surface, SURFACE_TILE), key, severity)
    x = (x + _unevenness(x.shape, alike, draw)).clamp_(0, 1)
    row, stream = table.get("binarise", {"p": 0}), Stream(keys, "binarise")
    if stream.chance(row["p"]):  # the page as a whole: the threshold of an empty tile would be within its noise
        x = OPERATIONS["binarise"].function(mixture, x[None], stream, None, {**row, "local": 0.0})[0]
    return x, name or str(preset), severity


def _alike(row: dict, draw: _Draw) -> dict:
    """An operation's row of the preset for one page: it is applied to all tiles or none, with a tenth of each range."""
    row = {**row, "p": float(draw.chance(row["p"]))}
    for parameter, value in row.items():
        if isinstance(value, list):
            middle, reach = draw.number(*value), (value[1] - value[0]) / 20
            row[parameter] = [max(value[0], middle - reach), min(value[1], middle + reach)]
        elif parameter == "moved":
            row[parameter] = float(draw.chance(value))
    return row


def _unevenness(shape: tuple[int, int], table: dict, draw: _Draw) -> Tensor:
    """(H, W), to add to a page: a gradient as in "tone", and stains as in "texture", with a random level every 64 pixels."""
    size = [2 + length // 64 for length in shape]
    tone, texture = table.get("tone", {"p": 0, "gradient": 0}), table.get("texture", {"p": 0, "stain": (0, 0)})
    angle, slope = draw.number(0, 2 * math.pi), draw.number(-1, 1) * tone["p"] * tone["gradient"]
    down, across = (slope * part * np.linspace(-1, 1, n) for part, n in zip((math.sin(angle), math.cos(angle)), size, strict=True))
    stain = texture["p"] * draw.number(*texture["stain"]) * draw.stream.normal(k=math.prod(size)).reshape(size)
    coarse = torch.from_numpy(stain + down[:, None] + across).float()
    return F.interpolate(coarse[None, None], shape, mode="bicubic", align_corners=True)[0, 0]


def _in_tiles(x: Tensor, degradation: Degradation, key: int, severity: float) -> Tensor:
    """Degrades a page (H, W) of any size in tiles that overlap by a quarter. They are cross-faded along ragged lines: a straight
    line would show where it cuts a loss."""
    side, (h, w) = degradation.img_size, x.shape
    overlap = side // 4
    step = side - overlap
    rows, columns = (math.ceil((length + overlap) / step) for length in (h, w))
    padded = F.pad(x, (overlap, columns * step - w, overlap, rows * step - h))[None, None]
    tiles = F.unfold(padded, side, stride=step)[0].T.reshape(-1, 1, side, side)
    keys = sample_keys(key, side, np.arange(len(tiles)))
    degraded, _ = degradation(tiles, keys, severity)
    rise = torch.sin(math.pi / 2 * (torch.arange(overlap) + 0.5) / overlap) ** 2
    window = torch.cat([rise, torch.ones(side - 2 * overlap), rise.flip(0)])
    noise = degradation.noise.windows("ragged", Stream(keys, "fade").uniform(), RAGGED)
    weight = noise.mul_(STEEP).exp_() * window * window[:, None]
    total, weights = (
        F.fold(part.reshape(len(tiles), -1).T[None], padded.shape[2:], side, stride=step)[0, 0]
        for part in (degraded[:, 0] * weight, weight)
    )
    return (total / weights)[overlap : overlap + h, overlap : overlap + w].clamp(0, 1)
