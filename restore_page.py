"""Restores whole pages: finds their columns and characters, restores each, and puts the page together again.

python restore_page.py page.jpg                            # writes page_restored.png and page_layout.json
python restore_page.py page.jpg --text page.txt --compare   # each character guided by a transcription
python restore_page.py page.jpg --read --text auto          # read, and each character guided by its readings
python restore_page.py pages/ restored/ --xml --characters
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from restoration import flags, layout_files
from restoration.drawing import MEAN, Drawing
from restoration.jobs import STANDARD, Job, check_outputs, plan
from restoration.layout import DIRECTIONS, FREE
from restoration.page import Canvas, Page, find_page, is_blank, restore_page
from restoration.pipeline import POLARITIES, STYLES, Restored, Restorer, load_restorer
from restoration.reading import Reader, load_reader
from util import images, script
from util.files import replacing, write_json
from util.settings import number

AUTO = Path("auto")  # instead of a transcription: what the reader takes the characters for
COMPARED, GAP = 4000, 16  # maximum width of a compare sheet, and between its pictures, in pixels


def outputs(job: Job, args: argparse.Namespace) -> dict[str, Path]:
    """The files to write for a page: "restored", "layout", if requested "compare", "xml", "read" and "characters" (a folder)."""
    beside, stem = job.target.parent, job.target.stem.removesuffix("_restored")
    files = {"restored": job.target, "layout": beside / f"{stem}_layout.json"}
    names = {
        "compare": f"{stem}_compare.png",
        "xml": f"{stem}.xml",
        "read": f"{stem}_text.txt",
        "characters": f"{stem}_characters",
    }
    return files | {kind: beside / name for kind, name in names.items() if getattr(args, kind)}


def restore_one(job: Job, restorer: Restorer, args: argparse.Namespace, reader: Reader | None = None) -> Iterator[str]:
    """Restores a page and writes its files; yields notes to print. Nothing is written if anything fails."""
    picture = images.read(job.source)
    if note := images.first_of_several(picture):
        yield note
    given = layout_files.read(args.layout, picture.size[::-1]) if args.layout else None
    page = find_page(picture, args.polarity, args.direction, args.columns, given)
    if args.text and args.text != AUTO:
        try:
            text = args.text.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{args.text}: not UTF-8; save the transcription as UTF-8") from None
        layout, notes = layout_files.named(page.layout, text)
        page = Page(page.bright, layout)
        yield from notes
    if args.specimens and args.text != AUTO and not any(one.char for one in page.layout.characters):
        raise ValueError("--specimens guide what is told, and no character is: pass --text FILE or --text auto")
    yield describe(page)
    if given is None and args.columns and len(page.layout.columns) != args.columns:
        yield f"of the {args.columns} columns of --columns, {len(page.layout.columns)} hold characters"
    if given is None and page.layout.freedom < FREE:
        yield "strokes cross the edges of most cells: a single character is for restore.py; for a page pass --columns or --layout"
    files, canvas, restored, kept, unfitting = outputs(job, args), Canvas(page), [], [], []
    drawing = Drawing(args.steps, args.guidance)
    specimens = reader.specimens(one for *_, one in restore_page(page, restorer, MEAN, False)) if args.specimens else None
    if args.specimens:
        yield f"specimens of {len(specimens)} characters are read for certain as they are, and guide the others"
    with tqdm(total=len(page.layout.characters), unit="character", desc=job.source.name, disable=None, leave=False) as bar:
        for character, part, one in restore_page(page, restorer, drawing, True, reader, args.text == AUTO, specimens):
            bar.update()
            if given is None and character.char is None and is_blank(one):
                continue
            kept.append(character)
            canvas.put(part, one)
            if character.char and not one.guide_fits:
                unfitting.append(character)
            if args.characters:
                restored.append(one)
    if not kept:
        raise ValueError("all cells are blank, or hold specks at most; pass the boxes of characters as --layout")
    if blank := len(page.layout.characters) - len(kept):
        yield f"cells taken for blank, as they hold specks at most: {blank}"
    page = Page(page.bright, page.layout.only(kept))
    if unfitting:
        places = (
            f"{one.char} (column {number_}, {row})"
            for number_, column in enumerate(page.layout.columns, 1)
            for row, one in enumerate(column, 1)
            if one in unfitting
        )
        yield f"restored without a guide, as the transcription does not fit what survives: {', '.join(places)}"
    whole = canvas.picture(args.style, args.threshold)
    whole.info["dpi"] = images.resolution(picture)
    if args.characters:
        write_characters(files["characters"], page, restored, args)
    if args.compare:
        images.write_png(files["compare"], compare(picture, whole))
    if args.xml:
        with replacing(files["xml"]) as part:
            part.write_bytes(layout_files.to_xml(page.layout, job.source.name))
    if args.read:
        with replacing(files["read"]) as part:
            part.write_text(layout_files.to_text(page.layout), encoding="utf-8")
    write_json(files["layout"], layout_files.to_json(page.layout))
    images.write_png(files["restored"], whole)


def write_characters(folder: Path, page: Page, restored: list[Restored], args: argparse.Namespace) -> None:
    """Each character as <column>_<row>.png, degraded | restored, in three digits, counted from 1; then those of before go."""
    of_before = set(folder.glob("[0-9][0-9][0-9]_[0-9][0-9][0-9].png"))
    of_character = iter(restored)
    for number_, column in enumerate(page.layout.columns, 1):
        for row, _ in enumerate(column, 1):
            path = folder / f"{number_:03}_{row:03}.png"
            images.write_png(path, next(of_character).compare(args.style, args.threshold))
            of_before.discard(path)
    for path in of_before:
        path.unlink()


def compare(before: Image.Image, after: Image.Image) -> Image.Image:
    """The page before and after, side by side, at most COMPARED pixels wide."""
    left, right = (images.small_copy(one, (COMPARED - GAP) // 2, one.height) for one in (before, after))
    sheet = Image.new("RGB", (left.width + GAP + right.width, left.height), (128, 128, 128))
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + GAP, 0))
    return sheet


def describe(page: Page) -> str:
    layout = page.layout
    told = sum(one.char is not None for one in layout.characters)
    counts = f"{len(layout.characters)} characters in {len(layout.columns)} columns"
    return f"{layout.polarity} strokes, {counts}, skew {layout.skew:g}°{f', {told} told' if told else ''}"


def restore_all(args: argparse.Namespace) -> int:
    """Restores all pages, prints notes and errors, and returns the number of errors."""
    if STANDARD in (args.input, args.output):
        raise ValueError("pages are not read from standard input or written to standard output; pass files")
    jobs = plan(args.input, args.output)
    for name in ("layout", "text"):
        file = getattr(args, name)
        if file == AUTO:
            continue
        if file and args.input.is_dir():
            raise ValueError(f"{args.input}: --{name} is for one page, not for a folder")
        if file and not file.is_file():
            raise FileNotFoundError(f"{file}: no such file")
    transcription = [] if args.text in (None, AUTO) else [args.text]
    check_outputs(jobs, lambda job: outputs(job, args).values(), args.overwrite, transcription)
    restorer = load_restorer(args.checkpoint, args.runtime, args.device)
    if args.text and not restorer.takes_guide:
        raise ValueError("this network takes no guide; drop --text")
    reader = load_reader(restorer) if args.read or args.specimens or args.text == AUTO else None
    failed = 0
    for job in jobs:
        try:
            for note in restore_one(job, restorer, args, reader):
                print(f"{job.source}: {note}", file=sys.stderr)
        except (OSError, ValueError) as error:
            name = "" if str(job.source) in str(error) else f"{job.source}: "
            print(f"error: {name}{error}", file=sys.stderr)
            failed += 1
    if len(jobs) > 1:
        print(f"{len(jobs) - failed} of {len(jobs)} pages restored")
    return failed


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Restores whole pages of characters in columns.", allow_abbrev=False)
    add = parser.add_argument
    add("input", type=Path, metavar="IN", help="a picture of a page, or a folder of them")
    add(
        "output",
        type=Path,
        metavar="OUT",
        nargs="?",
        help="a .png file or a folder (default: next to IN, with _restored added to the name)",
    )
    flags.add_network_flags(parser)
    add = parser.add_argument_group("about the page").add_argument
    add("--direction", choices=DIRECTIONS, default="rtl",
        help="rtl: columns from the right (default); ltr: columns from the left; horizontal: lines from the top")  # fmt: skip
    add("--columns", type=number(int, 1, 500), metavar="N", help="number of columns or lines (default: found)")
    add("--layout", type=Path, metavar="FILE", help="a layout corrected by hand: page_layout.json or PAGE XML")
    add("--text", type=Path, metavar="FILE",
        help="a transcription, a line for each column, □ for what is not known: the guides; auto: likely readings")  # fmt: skip
    add("--specimens", action="store_true",
        help="read the page first; its best preserved specimens guide damaged ones before the standard glyphs do")  # fmt: skip
    add("--polarity", choices=("auto", *POLARITIES), default="auto", help="of the strokes (default: detected)")
    flags.add_drawing_flags(parser)
    add = parser.add_argument_group("outputs").add_argument
    add("--style", choices=STYLES, help="ink: dark strokes on light; rubbing: light on dark (default: as the input)")
    add("--threshold", action="store_true", help="black and white")
    add("--compare", action="store_true", help="also write <page>_compare.png: before | after")
    add(
        "--characters",
        action="store_true",
        help="also write each character, before and after, as <page>_characters/001_012.png",
    )
    add("--read", action="store_true",
        help="also read the characters: candidates in the layout, and <page>_text.txt, a line for each column")  # fmt: skip
    add("--xml", action="store_true", help="also write the layout as PAGE XML")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 if anything failed."""
    return script.run(restore_all, parse_args(argv))


if __name__ == "__main__":
    script.as_script(main)
