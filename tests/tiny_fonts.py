"""Small fonts for the tests: each glyph is a few straight strokes, always the same."""

import random
from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, TTFont

EM = 1000
Contour = list[tuple[int, int]]


def rectangle(left: int, bottom: int, right: int, top: int, hole: bool = False) -> Contour:
    corners = [(left, bottom), (left, top), (right, top), (right, bottom)]
    return corners[::-1] if hole else corners


def strokes(char: str, style: int = 0) -> list[Contour]:
    """Four slanted strokes that depend on the character and the style."""
    draw = random.Random(f"{char} {style}")
    contours = []
    for _ in range(4):
        x, y, slant = draw.randint(50, 500), draw.randint(-80, 750), draw.randint(-60, 60)
        width, height = draw.choice(
            [(draw.randint(250, 450), draw.randint(40, 90)), (draw.randint(40, 90), draw.randint(250, 350))]
        )
        contours.append([(x, y), (x + slant, y + height), (x + slant + width, y + height + slant), (x + width, y + slant)])
    return contours


BOX = [rectangle(100, 0, 900, 800), rectangle(150, 50, 850, 750, hole=True)]
CROSSED = [
    *BOX,
    [(150, 50), (150, 90), (810, 750), (850, 750), (850, 710), (190, 50)],
    [(150, 750), (190, 750), (850, 90), (850, 50), (810, 50), (150, 710)],
]
FILLED = [rectangle(100, 0, 900, 800)]
NOTDEF = [rectangle(200, 0, 700, 700), rectangle(300, 100, 600, 600, hole=True), rectangle(400, 200, 480, 500)]


def write_font(path: Path, glyphs: dict[str, list[Contour]], family: str = "Tiny Hand", licence: str = "OFL-1.1") -> Path:
    """A TrueType font with these glyphs, and NOTDEF for all others; the suffix .woff or .woff2 compresses it."""
    named = {char: f"u{ord(char):05X}" for char in glyphs}
    builder = FontBuilder(EM, isTTF=True)
    builder.setupGlyphOrder([".notdef", *named.values()])
    builder.setupCharacterMap({ord(char): name for char, name in named.items()})
    outlines = {}
    for name, contours in {".notdef": NOTDEF, **{named[char]: contours for char, contours in glyphs.items()}}.items():
        pen = TTGlyphPen(None)
        for contour in contours:
            pen.moveTo(contour[0])
            for point in contour[1:]:
                pen.lineTo(point)
            pen.closePath()
        outlines[name] = pen.glyph()
    builder.setupGlyf(outlines)
    builder.setupHorizontalMetrics({name: (EM, getattr(outline, "xMin", 0)) for name, outline in outlines.items()})
    builder.setupHorizontalHeader(ascent=880, descent=-120)
    builder.setupOS2(sTypoAscender=880, sTypoDescender=-120, usWinAscent=880, usWinDescent=120)
    builder.setupNameTable({"familyName": family, "styleName": "Regular", "version": "Version 1.0", "licenseDescription": licence})
    builder.setupPost()
    if path.suffix in (".woff", ".woff2"):
        builder.font.flavor = path.suffix[1:]
    builder.font["head"].created = builder.font["head"].modified = 0
    builder.save(path)
    return path


def write_collection(path: Path, fonts: list[Path]) -> Path:
    """A font collection (TTC) of these fonts."""
    collection = TTCollection()
    collection.fonts = [TTFont(font) for font in fonts]
    collection.save(path)
    return path
