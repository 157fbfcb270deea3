"""Fonts → glyphs: finds the characters that a hand really has, and draws them at one size with nothing cut off.

A *hand* is one font, in one file or in many (a web font has about a hundred files, each for a range of characters). `find_hands`
groups files into hands, `draw_hand` draws one, and `iou_matrix` shows which are near copies.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml
from fontTools.ttLib import TTCollection, TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont

from datasets.pack import ROLES, Hand, Medians
from datasets.split import forms, group_of
from util.settings import nearest

IMG_SIZE = 224  # pixels
MARGIN = 8  # pixels that stay empty at each side
EM = 256  # the font size in pixels at which glyphs are measured
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc", ".woff2", ".woff")
NEAR_COPY = 0.9  # median IoU above which two fonts count as one hand
_ABSENT = "\U0010fffe"  # a noncharacter, which every font draws as its .notdef
_CHUNK = 256  # glyphs per task

Box = tuple[float, float, float, float]  # left, top, right, bottom, relative to the origin on the baseline


@dataclass(frozen=True)
class Face:
    """One font in one file; `index` counts the fonts of a collection (TTC)."""

    path: Path
    index: int = 0


@dataclass(frozen=True)
class FontHand:
    """A hand and the faces with its glyphs; the first face that has a character draws it."""

    hand: Hand
    faces: tuple[Face, ...]

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over the font files."""
        digest = hashlib.sha256()
        for path in dict.fromkeys(face.path for face in self.faces):
            digest.update(path.read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Frame:
    """How a hand is placed in the picture: font size in pixels, and the point, in em, that is at the centre."""

    size: float
    middle: tuple[float, float]


@dataclass(frozen=True)
class Drawn:
    """The glyphs of one hand: n forms, and their bits (n, IMG_SIZE * IMG_SIZE / 8) uint8, strokes 1."""

    forms: list[str]
    bits: np.ndarray
    left_out: dict[str, str]  # {form: reason}
    frame: Frame | None

    def reasons(self) -> Counter[str]:
        """How many forms were left out for each reason."""
        return Counter(self.left_out.values())


# --- characters ------------------------------------------------------------------------------------------------------


def gb2312_level1() -> list[str]:
    """The 3,755 characters of GB 2312 level 1 (rows 16 to 55), in the order of the standard."""
    codes = (bytes((0xA0 + row, 0xA0 + cell)) for row in range(16, 56) for cell in range(1, 95))
    return [char for code in codes if (char := code.decode("gb2312", "ignore"))]


def big5_level1() -> list[str]:
    """The 5,401 characters of Big5 level 1 (A440 to C67E), in the order of the standard."""
    trails = (*range(0x40, 0x7F), *range(0xA1, 0xFF))
    codes = (bytes((lead, trail)) for lead in range(0xA4, 0xC7) for trail in trails if (lead, trail) <= (0xC6, 0x7E))
    return [char for code in codes if (char := code.decode("big5", "ignore"))]


def owners(characters: Iterable[str]) -> dict[str, str]:
    """{form: the character that it is a form of}: itself if it is listed, else the first listed character with this form."""
    listed = list(dict.fromkeys(characters))
    owner = {char: char for char in listed}
    for char in listed:
        for form in forms(char):
            owner.setdefault(form, char)
    return owner


# --- fonts -----------------------------------------------------------------------------------------------------------


def font_files(folders: Iterable[str | Path]) -> list[Path]:
    """The font files in folders and their subfolders (or named directly), by name; a .woff next to its .woff2 is skipped.

    Raises FileNotFoundError if a folder does not exist or has no fonts.
    """
    files: list[Path] = []
    for folder in map(Path, folders):
        if not folder.exists():
            raise FileNotFoundError(f"no folder {folder}; tools/fetch_fonts.sh fetches the fonts")
        inside = [folder] if folder.is_file() else folder.rglob("*")
        fonts = [path for path in inside if path.suffix.lower() in SUFFIXES and path.is_file()]
        if not fonts:
            raise FileNotFoundError(f"no font ({', '.join(SUFFIXES)}) in {folder}; tools/fetch_fonts.sh fetches some")
        files += fonts
    unique = {path.resolve(): path for path in files}
    web = {path.with_suffix("") for path in unique if path.suffix.lower() == ".woff2"}
    kept = [path for path in unique if path.suffix.lower() != ".woff" or path.with_suffix("") not in web]
    return sorted(kept, key=lambda path: (path.name, str(path)))


def package_versions(folders: Iterable[str | Path]) -> dict[str, str]:
    """{package: version} from `versions.txt` (lines `package version`), which tools/fetch_fonts.sh writes into a folder."""
    versions: dict[str, str] = {}
    for file in (Path(folder) / "versions.txt" for folder in folders):
        if file.is_file():
            versions |= dict(line.split(maxsplit=1) for line in file.read_text().splitlines() if " " in line.strip())
    return versions


def read_medians(folders: Iterable[str | Path], manifest: str | Path, wanted: Iterable[str]) -> Medians:
    """The stroke medians of the wanted forms, from the manifest's package below one of the folders; {} if it names none.

    Raises FileNotFoundError if the package is in none of them.
    """
    package = _read_manifest(Path(manifest)).get("medians", {}).get("package")
    if not package:
        return {}
    name = package.partition("@")[0]
    place = next((path for folder in folders for path in Path(folder).rglob(name) if path.is_dir()), None)
    if place is None:
        raise FileNotFoundError(f"no package {name} in {', '.join(map(str, folders))}; tools/fetch_fonts.sh fetches it")
    files = {form: place / f"{form}.json" for form in wanted}
    found = {form: json.loads(file.read_text(encoding="utf-8"))["medians"] for form, file in files.items() if file.is_file()}
    strokes = {form: [np.array(median, np.int16) for median in medians if len(median) > 1] for form, medians in found.items()}
    return {ord(form): medians for form, medians in strokes.items() if medians}


def wanted_forms(manifest: str | Path) -> dict[str, str]:
    """{form: character} of the manifest's lists of characters, by default GB 2312 level 1."""
    lists = {"gb2312": gb2312_level1, "big5": big5_level1}
    found: dict[str, str] = {}
    for name in _read_manifest(Path(manifest)).get("characters", ["gb2312"]):
        if name not in lists:
            raise ValueError(f"{manifest}: no list of characters '{name}'{nearest(name, lists)}")
        found |= {form: char for form, char in owners(lists[name]()).items() if form not in found}
    return found


def find_hands(folders: Iterable[str | Path], manifest: str | Path) -> tuple[list[FontHand], list[Path]]:
    """Returns the hands in folders of fonts, and the files that the manifest excludes (`pass_over`).

    The hands of the manifest come first, in its order. Other fonts follow by name, each as a training hand and a family of its own,
    with the name, version and licence in its name table. Raises ValueError for a file that is not a font, or a wrong manifest.
    """
    folders = list(folders)
    listed = _read_manifest(Path(manifest))
    files, versions = font_files(folders), package_versions(folders)
    hands, taken = [], set()
    for entry in listed["hands"]:
        mine = [path for pattern in entry["files"] for path in files if fnmatch.fnmatchcase(path.name, pattern)]
        taken.update(mine)
        package = entry["package"]
        package = package[: package.rfind("@")] if package.rfind("@") > 0 else package  # @scope/name@version
        source = f"{package} {versions.get(package, '(version unknown)')}"
        hand = Hand(entry["name"], entry["family"], entry["style"], entry["role"], source, entry["licence"])
        if mine:
            hands.append(FontHand(hand, tuple(Face(path) for path in dict.fromkeys(mine))))
    excluded = [path for path in files if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in listed["pass_over"])]
    excluded = [path for path in excluded if path not in taken]
    faces: dict[str, list[Face]] = defaultdict(list)
    info: dict[str, tuple[str, str]] = {}
    for path in files:
        if path not in taken and path not in excluded:
            for face, name, version, licence in _faces(path):
                faces[name].append(face)
                info.setdefault(name, (version, licence))
    names = {hand.hand.name for hand in hands}
    for name in sorted(faces):
        version, licence = info[name]
        unique = name if name not in names else f"{name} (own)"
        hands.append(FontHand(Hand(unique, unique, "unknown", "train", version, licence), tuple(faces[name])))
    return hands, excluded


def _read_manifest(path: Path) -> dict:
    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(listed, dict) or not isinstance(listed.get("hands"), list) or not isinstance(listed.get("pass_over"), list):
        raise ValueError(f"{path} needs two lists, `hands` and `pass_over`")
    wanted = ("name", "files", "family", "style", "role", "package", "licence")
    for entry in listed["hands"]:
        if missing := [key for key in wanted if key not in entry]:
            raise ValueError(f"{path}: hand {entry.get('name', entry)} lacks {', '.join(missing)}")
        if entry["role"] not in ROLES:
            raise ValueError(f"{path}: the role of {entry['name']} is {entry['role']!r}, not one of {', '.join(ROLES)}")
    return listed


def _faces(path: Path) -> list[tuple[Face, str, str, str]]:
    """(face, name, version, licence) of each font in a file, from its name table."""
    faces = []
    for index, font in enumerate(_open(path)):
        names = font.get("name")

        def text_of(*ids: int, names=names) -> str:
            texts = [names.getDebugName(number) for number in ids] if names else []
            return next((" ".join(text.split()) for text in texts if text and text.strip()), "")

        family, style = text_of(16, 1) or path.stem, text_of(17, 2)
        name = family if style in ("", "Regular") else f"{family} {style}"
        faces.append((Face(path, index), name, text_of(5) or "unknown version", text_of(13, 14)[:200] or "unknown"))
    return faces


def _open(path: Path) -> list[TTFont]:
    try:
        if path.suffix.lower() in (".ttc", ".otc"):
            return list(TTCollection(path, lazy=True).fonts)
        return [TTFont(path, lazy=True)]
    except (TTLibError, OSError, AssertionError) as error:
        raise ValueError(f"{path} cannot be read as a font ({error}); remove it from the folder") from error


def character_map(hand: FontHand, wanted: Iterable[str]) -> dict[str, Face]:
    """{character: the face that draws it} for the wanted characters that the hand's fonts list."""
    wanted = list(wanted)
    face_of: dict[str, Face] = {}
    opened: dict[Path, list[TTFont]] = {}
    for face in hand.faces:
        fonts = opened.setdefault(face.path, _open(face.path))
        listed = fonts[face.index].getBestCmap() or {}
        for char in wanted:
            if ord(char) in listed:
                face_of.setdefault(char, face)
    return {char: face_of[char] for char in wanted if char in face_of}


# --- drawing ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def _font(face: Face, size: float) -> ImageFont.FreeTypeFont:
    # the basic layout maps one character to one glyph; a shaping engine could substitute another
    return ImageFont.truetype(str(face.path), size, index=face.index, layout_engine=ImageFont.Layout.BASIC)


def _box(face: Face, char: str) -> Box | None:
    """The box of the ink in em; None for a blank, or an outline that FreeType rejects."""
    try:
        mask, (left, top) = _font(face, EM).getmask2(char, mode="L", anchor="ls")
    except OSError:
        return None
    inner = mask.getbbox()
    if inner is None:
        return None
    return tuple((edge + offset) / EM for edge, offset in zip(inner, (left, top, left, top), strict=True))


def measure(jobs: list[tuple[Face, str]]) -> list[Box | None]:
    """The box of each glyph's ink in em; None for a blank."""
    return [_box(face, char) for face, char in jobs]


def frame_of(boxes: Iterable[Box | None]) -> Frame | None:
    """The frame in which 95 % of a hand's glyphs are within the margin at their natural size and place; None if all are blank.

    The centre of the picture is the median centre of the glyphs.
    """
    inked = np.array([box for box in boxes if box is not None])
    if not len(inked):
        return None
    middle = np.median((inked[:, :2] + inked[:, 2:]) / 2, axis=0)
    reach = np.abs(inked - np.tile(middle, 2)).max(axis=1)
    size = (IMG_SIZE / 2 - MARGIN) / float(np.quantile(reach, 0.95))
    return Frame(round(size, 2), (float(middle[0]), float(middle[1])))


def draw(face: Face, char: str, box: Box, frame: Frame) -> np.ndarray:
    """One glyph, (IMG_SIZE, IMG_SIZE) bool, strokes True, in its natural place; shifted, then shrunk if it crosses the margin."""
    room = IMG_SIZE - 2 * MARGIN
    size = min(frame.size, room / (box[2] - box[0]), room / (box[3] - box[1]))
    origin = []
    for axis in (0, 1):
        start, end = box[axis] * size, box[axis + 2] * size
        natural = IMG_SIZE / 2 - frame.middle[axis] * size
        origin.append(min(max(natural, MARGIN - start), IMG_SIZE - MARGIN - end))
    image = Image.new("L", (IMG_SIZE, IMG_SIZE))
    ImageDraw.Draw(image).text(tuple(origin), char, fill=255, font=_font(face, round(size, 2)), anchor="ls")
    return np.asarray(image) >= 128


def draw_bits(jobs: list[tuple[Face, str, Box | None]], frame: Frame) -> np.ndarray:
    """The glyphs of n jobs: (n, IMG_SIZE * IMG_SIZE / 8) uint8; a blank is all zeros."""
    bits = np.zeros((len(jobs), IMG_SIZE * IMG_SIZE // 8), np.uint8)
    for row, (face, char, box) in zip(bits, jobs, strict=True):
        if box is not None:
            row[:] = np.packbits(draw(face, char, box, frame))
    return bits


def missing_glyph_shape(picture: np.ndarray) -> str | None:
    """The shape by which fonts show a missing glyph: "empty box", "crossed box", "filled box"; or None.

    picture: (height, width) bool, strokes True. A box has four straight sides without a gap.
    """
    rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
    if len(rows) < 2:
        return None
    crop = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = crop.shape
    if not 0.4 < height / width < 2.5 or min(crop.shape) < 16:
        return None
    if crop.mean() > 0.97:
        return "filled box"
    if min(edge.mean() for edge in (crop[1], crop[-2], crop[:, 1], crop[:, -2])) < 0.97:
        return None
    # thickness of the frame: the ink inwards at a quarter of the left and of the top side, and a pixel for the corner
    quarter_row, quarter_column = crop[height // 4], crop[:, width // 4]
    thick = 1 + max(int(np.argmin(quarter_row)), int(np.argmin(quarter_column)))
    inner = crop[thick:-thick, thick:-thick]
    if min(inner.shape, default=0) < 4:
        return None
    if inner.mean() < 0.01:
        return "empty box"
    # both diagonals, from corner to corner, have ink within two pixels everywhere
    padded = np.pad(crop, 2)
    near = np.logical_or.reduce([padded[y : y + height, x : x + width] for y in range(5) for x in range(5)])
    steps = np.linspace(0, 1, 4 * max(crop.shape))
    across, down, up = (
        np.rint(end * (size - 1)).astype(int) for end, size in ((steps, width), (steps, height), (steps[::-1], height))
    )
    return "crossed box" if min(near[down, across].mean(), near[up, across].mean()) > 0.97 else None


def sift(chars: list[str], bits: np.ndarray, absent: np.ndarray) -> dict[str, str]:
    """{character: reason} for those characters of one hand whose glyph is not one of theirs.

    Args:
        bits: (n, IMG_SIZE * IMG_SIZE / 8) uint8, the glyphs as drawn.
        absent: likewise, the .notdef shapes of the hand's faces.

    Reasons: "blank", ".notdef", "empty box", "crossed box", "filled box", "one shape for many" (characters of different groups
    share it, so at most one can be right), "same as another form" (of its character; the first form keeps the shape).
    """
    shapes: dict[bytes, list[str]] = defaultdict(list)
    for char, row in zip(chars, bits, strict=True):
        shapes[row.tobytes()].append(char)
    missing = {row.tobytes() for row in absent}
    reasons: dict[str, str] = {}
    for shape, sharing in shapes.items():
        picture = np.unpackbits(np.frombuffer(shape, np.uint8)).reshape(IMG_SIZE, IMG_SIZE).astype(bool)
        kind = missing_glyph_shape(picture)
        for char in sharing:
            if picture.sum() < 32:
                reasons[char] = "blank"
            elif shape in missing:
                reasons[char] = ".notdef"
            elif kind and not (kind == "empty box" and char in "口囗"):
                reasons[char] = kind
            elif len({group_of(other) for other in sharing}) > 1:
                reasons[char] = "one shape for many"
            elif char != sharing[0]:
                reasons[char] = "same as another form"
    return reasons


def draw_hand(hand: FontHand, wanted: Iterable[str], pool: Executor, progress=None) -> Drawn:
    """Draws the wanted forms that a hand really has. progress(n): called after n steps, of two per form that the fonts list."""
    faces = character_map(hand, wanted)
    jobs = [(face, char) for char, face in faces.items()]
    boxes: list[Box | None] = []
    for part in pool.map(measure, _chunks(jobs)):
        boxes += part
        if progress:
            progress(len(part))
    frame = frame_of(boxes)
    if frame is None:
        return Drawn([], np.zeros((0, IMG_SIZE * IMG_SIZE // 8), np.uint8), dict.fromkeys(faces, "blank"), None)
    parts = []
    tasks = _chunks([(*job, box) for job, box in zip(jobs, boxes, strict=True)])
    for part in pool.map(draw_bits, tasks, [frame] * len(tasks)):
        parts.append(part)
        if progress:
            progress(len(part))
    bits = np.concatenate(parts)
    absent = [(face, _ABSENT, _box(face, _ABSENT)) for face in dict.fromkeys(faces.values())]
    left_out = sift(list(faces), bits, draw_bits(absent, frame))
    kept = [number for number, char in enumerate(faces) if char not in left_out]
    return Drawn([jobs[number][1] for number in kept], bits[kept], left_out, frame)


def _chunks(items: list) -> list[list]:
    return [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]


# --- near copies -----------------------------------------------------------------------------------------------------


def median_iou(first: Drawn, second: Drawn, most: int = 200) -> float:
    """The median IoU of the ink over at most `most` evenly spaced common forms; nan if fewer than 20 are common."""
    place = {form: row for row, form in enumerate(second.forms)}
    common = [(row, place[form]) for row, form in enumerate(first.forms) if form in place]
    if len(common) < 20:
        return float("nan")
    chosen = np.array([common[number] for number in np.linspace(0, len(common) - 1, min(most, len(common))).astype(int)])
    one, other = (np.unpackbits(hand.bits[chosen[:, column]], axis=1) for column, hand in enumerate((first, second)))
    return float(np.median((one & other).sum(axis=1) / (one | other).sum(axis=1)))


def iou_matrix(hands: list[Drawn]) -> np.ndarray:
    """(hands, hands) `median_iou`, 1 on the diagonal."""
    matrix = np.eye(len(hands))
    for i, first in enumerate(hands):
        for j in range(i):
            matrix[i, j] = matrix[j, i] = median_iou(first, hands[j])
    return matrix
