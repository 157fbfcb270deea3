"""Layouts as files: JSON, PAGE XML (PRImA's format, which kraken, eScriptorium and Transkribus read), and transcriptions."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
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
        [_square(*one["box"], one.get("confidence", 1.0), one.get("char")) for one in column["characters"]]
        for column in data["columns"]
    ]
    return _layout(size, columns, data.get("polarity", "bright"), data.get("skew", 0.0), data.get("direction", "rtl"))


def _layout(size: tuple[int, int], columns: list, polarity: str, skew: float, direction: str) -> Layout:
    if polarity not in ("bright", "dark") or direction not in DIRECTIONS or not any(columns):
        raise ValueError("polarity must be bright or dark, direction rtl, ltr or horizontal, and there must be characters")
    return Layout(size, [column for column in columns if column], polarity, float(skew), direction)


def _square(left: float, top: float, width: float, height: float, confidence: float = 1.0, char: str | None = None) -> Character:
    """The smallest square with the centre of a box."""
    edge = round(max(width, height))
    return Character(round(left + width / 2 - edge / 2), round(top + height / 2 - edge / 2), edge, float(confidence), char)


# --- PAGE XML -----------------------------------------------------------------------------------------------------------


def to_xml(layout: Layout, picture: str) -> bytes:
    """PAGE XML: a region of text, a line for each column, a glyph for each character. picture: the file's name."""
    height, width = layout.size
    root = ET.Element("PcGts", xmlns=PAGE)
    metadata = ET.SubElement(root, "Metadata")
    ET.SubElement(metadata, "Creator").text = "RestoreCAE-Zi"
    page = ET.SubElement(root, "Page", imageFilename=picture, imageWidth=str(width), imageHeight=str(height))
    script = "left-to-right" if layout.direction == "horizontal" else "top-to-bottom"
    custom = f"polarity {layout.polarity}; skew {layout.skew:g}"
    region = ET.SubElement(
        page, "TextRegion", id="page", readingDirection=script, textLineOrder=READING[layout.direction], custom=custom
    )
    _coordinates(region, layout.characters)
    for number, column in enumerate(layout.columns, 1):
        line = ET.SubElement(region, "TextLine", id=f"column_{number}")
        _coordinates(line, column)
        word = ET.SubElement(line, "Word", id=f"column_{number}_text")
        _coordinates(word, column)
        for place, one in enumerate(column, 1):
            glyph = ET.SubElement(word, "Glyph", id=f"character_{number}_{place}")
            _coordinates(glyph, [one], conf=f"{one.confidence:g}")
            if one.char:
                _text(glyph, one.char)
            for index, (char, p) in enumerate(one.readings):
                _text(glyph, char, index=str(index), conf=f"{p:g}")
        if any(one.char or one.readings for one in column):
            for parent in (word, line):
                _text(parent, "".join(written(one) for one in column))
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def _coordinates(parent: ET.Element, characters: list[Character], **attributes: str) -> None:
    left, top = (min(one[axis] for one in characters) for axis in (0, 1))
    right, bottom = (max(one[axis] + one.edge for one in characters) for axis in (0, 1))
    points = f"{left},{top} {right},{top} {right},{bottom} {left},{bottom}"
    ET.SubElement(parent, "Coords", points=points, **attributes)


def _text(parent: ET.Element, text: str, **attributes: str) -> None:
    ET.SubElement(ET.SubElement(parent, "TextEquiv", **attributes), "Unicode").text = text


def _from_xml(content: bytes, size: tuple[int, int]) -> Layout:
    root = ET.fromstring(content)
    namespace = {"p": root.tag[1:].split("}")[0]}
    columns, polarity, skew, direction = [], "bright", 0.0, "rtl"
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
    text = glyph.find("p:TextEquiv/p:Unicode", namespace)
    char = text.text if text is not None and text.text and len(text.text) == 1 else None
    return _square(left, top, right - left, bottom - top, coordinates.get("conf", 1.0), char)


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
    """The layout with the characters of a transcription, a line for each column, □ for what is not known; and notes on misfits.

    A column with another number of characters than its line stays untold. Raises ValueError if there are more or fewer lines than
    columns.
    """
    lines = ["".join(line.split()) for line in text.splitlines() if line.strip()]
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
