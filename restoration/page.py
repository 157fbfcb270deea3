"""A page in, a page out: its characters are cut out, restored, and put back in their places on clean ground."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy import ndimage

from restoration import margins, place
from restoration.drawing import DEFAULT, Drawing
from restoration.layout import Character, Layout, find_layout
from restoration.pipeline import BATCH, POLARITIES, Restored, Restorer, labelled
from restoration.reading import Reader
from util import images
from util.squares import Box, bright_probability, ink_mask

LARGE, STRIP = 4096, 512  # longer edge in pixels from which a page is prepared in strips of so many rows
FAINT, SPECK = 0.05, 0.15  # of a blank cell: the most expected ink, and the length of its longest mark, relative to its edge
SOFT = 0.04  # width of the soft border of a character that is put back, relative to its edge


@dataclass(frozen=True)
class Page:
    """A page and its layout. bright: (H, W) uint8, strokes bright, evenly lit, margins in the tone of the ground."""

    bright: np.ndarray
    layout: Layout


def find_page(
    picture: Image.Image,
    polarity: str = "auto",
    direction: str = "rtl",
    columns: int | None = None,
    layout: Layout | None = None,
) -> Page:
    """Finds the characters of a page, or takes a layout as it is.

    polarity: of the strokes, or "auto": each cell of the likelier one's layout has a vote. columns: their number, if known.

    Raises ValueError if nothing is found, and for a layout that reaches outside the picture.
    """
    size = picture.size[::-1]
    grey, content = _prepare(picture)
    if layout is not None:
        _check(layout, size)
        polarity = layout.polarity if polarity == "auto" else polarity
        return Page(_framed(_oriented(grey, polarity), content, size), replace(layout, polarity=polarity))
    step = -(-max(grey.shape) // LARGE)
    small = grey[::step, ::step]
    tried = [polarity] if polarity in POLARITIES else sorted(POLARITIES, key=lambda one: -_probability(small, one))
    for one in tried:
        bright = _oriented(small, one) / np.float32(255)
        found = find_layout(bright, direction, columns)
        votes = [bright_probability(bright[inside(character, bright.shape)]) for character in found.characters]
        if len(tried) == 1 or (votes and np.mean(votes) > 0.5):
            break
    if not found.characters:
        raise ValueError("no columns of characters were found; for a single character use restore.py, or pass --layout")
    down, across = (edge.start for edge in content)

    def in_picture(character: Character) -> Character:
        left, top, edge = (step * length for length in character[:3])
        return character._replace(left=left + across, top=top + down, edge=edge)

    columns = [[in_picture(character) for character in column] for column in found.columns]
    return Page(_framed(_oriented(grey, one), content, size), replace(found, size=size, columns=columns, polarity=one))


def _prepare(picture: Image.Image) -> tuple[np.ndarray, tuple[slice, slice]]:
    """The content of a page in the mix of its colours that shows strokes best, evenly lit: (H, W) uint8; and where it is.

    A large one is looked at in a smaller size, and then prepared strip by strip.
    """
    scale = max(1.0, max(picture.size) / LARGE)
    small = picture.resize([round(edge / scale) for edge in picture.size], Image.Resampling.BOX) if scale > 1 else picture
    channels = images.to_channels(small)
    sheet = margins.find_sheet(channels)
    covered = sheet.cover(channels)
    content = margins.find_content(covered)
    mix = place.find_mix(covered[content])
    light = place.find_light(place.mixed(covered[content], mix))
    top, bottom, left, right = (min(round(scale * end), edge) for part, edge in zip(content, picture.size[::-1], strict=True)
                                for end in (part.start, part.stop))  # fmt: skip
    grey = np.empty((bottom - top, right - left), np.uint8)
    rows = len(grey) if scale == 1 else STRIP
    for start in range(0, len(grey), rows):
        strip = grey[start : start + rows]
        if scale == 1:
            part = covered[content]
        else:
            part = images.to_channels(picture.crop((0, top + start, picture.width, top + start + len(strip))), small)
            part = sheet.cover(part, picture.size[::-1], top + start)[:, left:right]
        x = place.mixed(part, mix)
        if light is not None:
            x = place.evened(x, light, (start / len(grey), (start + len(strip)) / len(grey)))
        strip[:] = (x * 255).round()
    return grey, (slice(top, bottom), slice(left, right))


def _probability(grey: np.ndarray, polarity: str) -> float:
    bright = bright_probability(grey / np.float32(255))
    return bright if polarity == "bright" else 1 - bright


def _oriented(grey: np.ndarray, polarity: str) -> np.ndarray:
    return 255 - grey if polarity == "dark" else grey


def _framed(bright: np.ndarray, content: tuple[slice, slice], size: tuple[int, int]) -> np.ndarray:
    if bright.shape == size:
        return bright
    page = np.full(size, round(float(np.median(bright[::8, ::8]))), np.uint8)
    page[content] = bright
    return page


def inside(character: Character, size: tuple[int, int]) -> tuple[slice, slice]:
    """The part of a character's square within a picture of that size."""
    return tuple(
        slice(max(0, start), min(end, start + character.edge))
        for start, end in zip((character.top, character.left), size, strict=True)
    )


def _check(layout: Layout, size: tuple[int, int]) -> None:
    for number, column in enumerate(layout.columns, 1):
        for place_in, one in enumerate(column, 1):
            if one.edge < 4 or any(part.stop - part.start < one.edge / 2 for part in inside(one, size)):
                box = [one.left, one.top, one.edge, one.edge]
                raise ValueError(f"the layout does not fit the picture: character {place_in} of column {number} is at {box}")


# --- restoring ----------------------------------------------------------------------------------------------------------


def restore_page(
    page: Page,
    restorer: Restorer,
    drawing: Drawing = DEFAULT,
    told: bool = True,
    reader: Reader | None = None,
    guided: bool = False,
    specimens: dict[str, np.ndarray] | None = None,
) -> Iterator[tuple[Character, tuple[slice, slice], Restored]]:
    """Restores the characters of a page in reading order: (character, its part of the page, restored).

    told: characters whose name is in the layout are restored with their standard glyph as the guide. reader: reads the others,
    which then have readings. guided: these guide, each as far as it is probable. specimens: guides in place of standard glyphs.
    """
    characters, polarity = page.layout.characters, page.layout.polarity
    restorer = restorer.for_edge(np.median([one.edge for one in characters]))
    own = _territories(characters)
    tone = (lambda x: x) if polarity == "bright" else (lambda x: 255 - x)
    if told and restorer.takes_guide:
        restorer.read_guides({one.char for one in characters if one.char})
    for start in range(0, len(characters), BATCH):
        group = range(start, min(start + BATCH, len(characters)))
        parts = [inside(characters[i], page.bright.shape) for i in group]
        prepared = [
            restorer.prepare(
                Image.fromarray(tone(cut(page.bright, part, own[i]))),
                characters[i].char if told and restorer.takes_guide else None,
                polarity,
                Box(characters[i].top - part[0].start, characters[i].left - part[1].start, characters[i].edge),
                page.layout.skew,
            )
            for i, part in zip(group, parts, strict=True)
        ]
        found = list(characters[start : start + BATCH])
        if told and specimens:
            prepared = [
                restorer.told(one, {character.char: 1.0}, specimens) if character.char in specimens else one
                for one, character in zip(prepared, found, strict=True)
            ]
        restored = restorer.restore(prepared, drawing)
        unknown = [i for i, one in enumerate(found) if reader and not one.char]
        if unknown:
            readings = reader.read([restored[i] for i in unknown])
            for i, reading in zip(unknown, readings, strict=True):
                found[i] = found[i]._replace(readings=tuple(reading.items()))
            if guided:
                again = [reader.guided(restored[i], reading, specimens) for i, reading in zip(unknown, readings, strict=True)]
                for i, one in zip(unknown, restorer.restore(again, drawing), strict=True):
                    restored[i] = one
        yield from zip(found, parts, restored, strict=True)


def is_blank(restored: Restored) -> bool:
    """Whether a restored square holds specks at most, so that its cell was blank.

    One whose character is lost holds more grey, or lies in lost stone: more than half of it is as bright as strokes.
    """
    if np.median(restored.prepared.bright) > 0.5:
        return False
    marks = ndimage.find_objects(ndimage.label(restored.mean > 0.5)[0])
    longest = max((part.stop - part.start for mark in marks for part in mark), default=0)
    return float(restored.mean.mean()) < FAINT and longest < SPECK * len(restored.mean)


def _territories(characters: list[Character]) -> np.ndarray:
    """(n, 4): top, left, bottom and right of each square, moved in to half way where it overlaps with another one."""
    squares = np.array([(one.top, one.left, one.top + one.edge, one.left + one.edge) for one in characters], float).reshape(-1, 4)
    own = squares.copy()
    for i, square in enumerate(squares):
        overlap = np.minimum(square[2:], squares[:, 2:]) - np.maximum(square[:2], squares[:, :2])
        for j in np.flatnonzero((overlap > 0).all(1)):
            if j != i:
                axis = int(overlap[j].argmin())  # that along which the two lie apart
                middle = (max(square[axis], squares[j, axis]) + min(square[axis + 2], squares[j, axis + 2])) / 2
                if square[axis] + square[axis + 2] < squares[j, axis] + squares[j, axis + 2]:
                    own[i, axis + 2] = min(own[i, axis + 2], middle)
                else:
                    own[i, axis] = max(own[i, axis], middle)
    return own


def cut(bright: np.ndarray, part: tuple[slice, slice], territory: np.ndarray) -> np.ndarray:
    """A part of a page (H, W) uint8; what is outside of the character's territory gets the tone of the ground."""
    x = bright[part].copy()
    ground = np.median(x[~ink_mask(x / np.float32(255))])
    top, left, bottom, right = (round(at - start) for at, start in zip(territory, [part[0].start, part[1].start] * 2, strict=True))
    outside = np.ones(x.shape, bool)
    outside[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = False
    x[outside] = ground
    return x


class Canvas:
    """The restored page, on which characters are put back: (H, W) uint8, strokes bright on black."""

    def __init__(self, page: Page):
        self.page, self.ink, self.origins = page, np.zeros(page.bright.shape, np.uint8), []

    def put(self, part: tuple[slice, slice], restored: Restored) -> None:
        """Puts a character back in its place, with soft borders."""
        x = restored.ink
        soft = [np.minimum(1, (np.minimum(np.arange(n), np.arange(n)[::-1]) + 1) / max(1, SOFT * n)) for n in x.shape]
        self.origins.append(restored.origin)
        self.ink[part] = np.maximum(self.ink[part], (x * soft[0][:, None] * soft[1] * 255).round().astype(np.uint8))

    def picture(self, style: str | None = None, threshold: bool = False) -> Image.Image:
        """The restored page: 8-bit grey, as large as the picture; style: "ink", "rubbing" or None, as the input.

        Its metadata are those of a character; its guide is a list, with None for each character that followed none.
        """
        dark = self.page.layout.polarity == "dark" if style is None else style == "ink"
        x = (self.ink > 127) * np.uint8(255) if threshold else self.ink
        guides = [origin.get("guide") for origin in self.origins]
        origin = next((one for one, guide in zip(self.origins, guides, strict=True) if guide), (self.origins or [{}])[0])
        return labelled(Image.fromarray(255 - x if dark else x), {**origin, "guide": guides if any(guides) else None})
