"""Layouts as files: JSON, PAGE XML (PRImA's format, which kraken, eScriptorium and Transkribus read), and transcriptions."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from restoration.layout import DIRECTIONS, Character, Layout
from restoration.reading import SURE

PAGE = "http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15"
LOST = "□"  # in a transcription, a character that is not known
LIKELY = 0.15  # probability from which on a reading is written as one of several
READING = {"rtl": "right-to-left", "ltr": "left-to-right", "horizontal": "top-to-bottom"}  # order of the columns or lines


def read(path: str | Path, size: tuple[int, int]) -> Layout:
    """Reads a layout, by its suffix: .json as `to_json`, .xml as PAGE. size: (height, width) of the picture.

    Raises FileNotFoundError, and ValueError if the file is not a layout.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = path.read_bytes()
        return _from_xml(content, size) if path.suffix.lower() == ".xml" else from_json(json.loads(content), size)
    except (ValueError, KeyError, TypeError, AttributeError, ET.ParseError) as error:
        raise ValueError(f"{path}: not a layout as page_layout.json or PAGE XML ({error})") from error


def to_json(layout: Layout) -> dict:
    """{"polarity", "skew", "direction", "columns"}: in reading order, each {"characters"}: each {"box": [left, top, width, height],
    "confidence"}, "char" if it is told, and "readings" if it was read: [{"char", "probability"}]. In pixels of the picture."""
    columns = [{"characters": [_character(one) for one in column]} for column in layout.columns]
    return {"polarity": layout.polarity, "skew": layout.skew, "direction": layout.direction, "columns": columns}


def _character(one: Character) -> dict:
    about = {"box": [one.left, one.top, one.edge, one.edge], "confidence": one.confidence}
    about |= {"char": one.char} if one.char else {}
    return about | ({"readings": [{"char": char, "probability": p} for char, p in one.readings]} if one.readings else {})


def from_json(data: dict, size: tuple[int, int]) -> Layout:
    """The inverse of `to_json`; only "columns" and the boxes are needed, and a box that is no square is extended to one."""
    columns = [
        [
            _square(
                *one["box"],
                one.get("confidence", 1.0),
                one.get("char") or None,
                [(reading["char"], reading["probability"]) for reading in one.get("readings", ())],
            )
            for one in column["characters"]
        ]
        for column in data["columns"]
    ]
    return _layout(size, columns, data.get("polarity", "bright"), data.get("skew", 0.0), data.get("direction", "rtl"))


def _layout(size: tuple[int, int], columns: list, polarity: str, skew: float, direction: str) -> Layout:
    if polarity not in ("bright", "dark") or direction not in DIRECTIONS:
        raise ValueError("polarity must be bright or dark, direction rtl, ltr or horizontal")
    if not any(columns):
        raise ValueError("there are no boxes of characters; in PAGE XML these are Glyph elements")
    return Layout(size, [column for column in columns if column], polarity, float(skew), direction)


def _square(
    left: float,
    top: float,
    width: float,
    height: float,
    confidence: float = 1.0,
    char: str | None = None,
    readings: Iterable[tuple[str, float]] = (),
) -> Character:
    """The smallest square with the centre of a box."""
    readings = tuple(sorted(((one, float(p)) for one, p in readings), key=lambda reading: -reading[1]))
    for one in (char or LOST, *(one for one, _ in readings)):
        if len(one) != 1:
            raise ValueError(f"a box holds one character, not {one}")
    edge = round(max(width, height))
    left, top = round(left + width / 2 - edge / 2), round(top + height / 2 - edge / 2)
    return Character(left, top, edge, float(confidence), char, readings)


# --- PAGE XML -----------------------------------------------------------------------------------------------------------


def to_xml(layout: Layout, picture: str) -> bytes:
    """PAGE XML: a region of text, a line for each column, a glyph for each character. picture: the file's name.

    A character that is told is the text of its glyph; readings are texts with a `conf`. Of a box over the edge of the picture only
    the part inside is written, as the format has no negative coordinates.
    """
    height, width = layout.size
    root = ET.Element("PcGts", xmlns=PAGE)
    metadata = ET.SubElement(root, "Metadata")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for name, text in (("Creator", "RestoreCAE-Zi"), ("Created", now), ("LastChange", now)):
        ET.SubElement(metadata, name).text = text
    page = ET.SubElement(root, "Page", imageFilename=picture, imageWidth=str(width), imageHeight=str(height))
    script = "left-to-right" if layout.direction == "horizontal" else "top-to-bottom"
    custom = f"polarity {layout.polarity}; skew {layout.skew:g}"
    region = ET.SubElement(
        page, "TextRegion", id="page", readingDirection=script, textLineOrder=READING[layout.direction], custom=custom
    )
    _coordinates(region, layout.characters, layout.size)
    for number, column in enumerate(layout.columns, 1):
        line = ET.SubElement(region, "TextLine", id=f"column_{number}")
        _coordinates(line, column, layout.size)
        word = ET.SubElement(line, "Word", id=f"column_{number}_text")
        _coordinates(word, column, layout.size)
        for place, one in enumerate(column, 1):
            glyph = ET.SubElement(word, "Glyph", id=f"character_{number}_{place}")
            _coordinates(glyph, [one], layout.size, conf=f"{one.confidence:g}")
            if one.char:
                _text(glyph, one.char)
            for index, (char, p) in enumerate(one.readings):
                _text(glyph, char, index=str(index), conf=f"{p:g}")
        if any(one.char or one.readings for one in column):
            for parent in (word, line):
                _text(parent, "".join(written(one) for one in column))
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def _coordinates(parent: ET.Element, characters: list[Character], size: tuple[int, int], **attributes: str) -> None:
    left, top = (max(0, min(one[axis] for one in characters)) for axis in (0, 1))
    right, bottom = (min(size[1 - axis], max(one[axis] + one.edge for one in characters)) for axis in (0, 1))
    points = f"{left},{top} {right},{top} {right},{bottom} {left},{bottom}"
    ET.SubElement(parent, "Coords", points=points, **attributes)


def _text(parent: ET.Element, text: str, **attributes: str) -> None:
    ET.SubElement(ET.SubElement(parent, "TextEquiv", **attributes), "Unicode").text = text


def _from_xml(content: bytes, size: tuple[int, int]) -> Layout:
    root = ET.fromstring(content)
    namespace = {"p": root.tag[1:].split("}")[0]}
    columns, polarity, skew, direction = [], "bright", 0.0, "rtl"
    if (page := root.find("p:Page", namespace)) is None:
        raise ValueError("it has no Page element")
    stated = tuple(int(page.get(name, edge)) for name, edge in zip(("imageHeight", "imageWidth"), size, strict=True))
    if stated != size:
        raise ValueError(f"it is of a picture of {stated[1]}×{stated[0]} pixels; pass that one: this has {size[1]}×{size[0]}")
    for region in root.iterfind(".//p:TextRegion", namespace):
        settings = dict(part.split() for part in region.get("custom", "").split(";") if len(part.split()) == 2)
        polarity, skew = settings.get("polarity", polarity), float(settings.get("skew", skew))
        direction = {name: key for key, name in READING.items()}.get(region.get("textLineOrder"), direction)
        for line in region.iterfind("p:TextLine", namespace):
            columns.append([_glyph(glyph, namespace) for glyph in line.iterfind(".//p:Glyph", namespace)])
    return _layout(size, columns, polarity, skew, direction)


def _glyph(glyph: ET.Element, namespace: dict) -> Character:
    coordinates = glyph.find("p:Coords", namespace)
    points = [tuple(map(float, point.split(","))) for point in coordinates.get("points").split()]
    (left, top), (right, bottom) = (tuple(end(axis) for axis in zip(*points, strict=True)) for end in (min, max))
    told, readings = None, []
    for equivalent in glyph.iterfind("p:TextEquiv", namespace):
        char, p = equivalent.findtext("p:Unicode", "", namespace), equivalent.get("conf")
        if len(char) == 1 and p is not None:
            readings.append((char, p))
        elif len(char) == 1:
            told = told or char
    return _square(left, top, right - left, bottom - top, coordinates.get("conf", 1.0), told, readings)


# --- transcriptions -----------------------------------------------------------------------------------------------------


def written(character: Character) -> str:
    """A character in a transcription: itself if told or certain, else its likely readings as 〔林/森〕, □ if there is none."""
    likely = [char for char, p in character.readings if p >= LIKELY]
    if character.char or not likely:
        return character.char or LOST
    return likely[0] if character.readings[0][1] >= SURE else f"〔{'/'.join(likely)}〕"


def to_text(layout: Layout) -> str:
    """A line for each column, in reading order; see `written`."""
    return "".join("".join(map(written, column)) + "\n" for column in layout.columns)


def named(layout: Layout, text: str) -> tuple[Layout, list[str]]:
    """The layout with the characters of a transcription, a line for each column; and notes on misfits.

    □ and what is in doubt, 〔林/森〕, stay untold, as does a column with another number of characters than its line. Raises
    ValueError if there are more or fewer lines than columns.
    """
    lines = [re.sub("〔[^〕]*〕", LOST, "".join(line.split())) for line in text.splitlines() if line.strip()]
    if len(lines) != len(layout.columns):
        raise ValueError(
            f"the text has {len(lines)} lines, but {len(layout.columns)} columns were found: "
            f"pass --columns {len(lines)}, or correct the layout and pass it as --layout"
        )
    columns, notes = [], []
    for number, (column, line) in enumerate(zip(layout.columns, lines, strict=True), 1):
        if len(line) == len(column):
            columns.append([one._replace(char=None if char == LOST else char) for one, char in zip(column, line, strict=True)])
        else:
            columns.append([one._replace(char=None) for one in column])
            notes.append(f"column {number}: {len(column)} characters found, {len(line)} in the text; left untold")
    return replace(layout, columns=columns), notes
