"""Build the handwriting set from fonts; describe it, draw it, and write pairs of pictures or whole pages.

    python prepare_data.py build --fonts build/fonts --output data/zi.pack
    python prepare_data.py describe
    python prepare_data.py preview --output sheet.png
    python prepare_data.py pairs --split test --count 100 --seed 0 --output_dir pairs
    python prepare_data.py pairs --benchmark rubbing --output_dir pairs
    python prepare_data.py pages --count 20 --seed 0 --output_dir pages

Existing output is replaced only with --overwrite.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import fontTools
import numpy as np
import opencc
import PIL
from PIL import Image, ImageDraw, ImageFont, features
from torch import Tensor
from tqdm import tqdm

from datasets import hands as fonts
from datasets.degradation import OPERATIONS, Degradation, load_preset, preset_names
from datasets.pack import Pack, open_pack, write_pack
from datasets.pages import draw_page
from datasets.pairs import HandwritingSet, smooth
from datasets.rng import sample_keys
from datasets.split import SPLITS, forms, group_of, split_hash, split_of
from evaluation import benchmark
from restoration.exemplars import preset_of
from util import images, script
from util.files import write_json
from util.settings import number

MANIFEST = Path(__file__).resolve().parent / "data" / "hands.yaml"
PAIR = ("degraded", "clean")  # folders


def build(folders: list[str], out: str | Path, manifest: str | Path, jobs: int) -> None:
    """Draws every hand in folders of fonts, leaves out near copies, prints a report, and writes the pack.

    jobs: number of processes. Raises ValueError if no font has a wanted character.
    """
    listed, excluded = fonts.find_hands(folders, manifest)
    written = fonts.wanted_forms(manifest)
    guided = written | {form: char for form, char in fonts.owners(fonts.big5_level1()).items() if form not in written}
    wanted = [guided if hand.hand.role == "guide" else written for hand in listed]
    print(f"{len(listed)} hands; {len(excluded)} font files excluded by {Path(manifest).name}")

    drawn: list[fonts.Drawn] = []
    total = 2 * sum(map(len, wanted))  # each glyph is measured, then drawn
    with ProcessPoolExecutor(jobs) as pool, tqdm(total=total, unit="glyph", smoothing=0) as bar:
        for hand, chars in zip(listed, wanted, strict=True):
            bar.set_description(hand.hand.name)
            before = bar.n
            drawn.append(fonts.draw_hand(hand, chars, pool, bar.update))
            bar.update(2 * len(chars) - (bar.n - before))
    matrix = fonts.iou_matrix(drawn)
    kept = _keep(listed, drawn, matrix)
    if not kept:
        raise ValueError(f"no font in {', '.join(map(str, folders))} has a wanted Han character")

    rows = [(hand, chars[form], form) for hand, at in enumerate(kept) for chars in [wanted[at]] for form in drawn[at].forms]
    checksum = write_pack(
        out,
        img_size=fonts.IMG_SIZE,
        hands=[listed[at].hand for at in kept],
        character=np.array([ord(character) for _, character, _ in rows], np.uint32),
        form=np.array([ord(form) for _, _, form in rows], np.uint32),
        group=np.array([ord(group_of(form)) for _, _, form in rows], np.uint32),
        hand=np.array([hand for hand, _, _ in rows], np.uint8),
        bits=np.concatenate([drawn[at].bits for at in kept]),
        medians=fonts.read_medians(folders, manifest, written),
        meta={
            "versions": {
                "fonttools": fontTools.version,
                "freetype": features.version("freetype2"),
                "opencc": opencc.__version__,
                "pillow": PIL.__version__,
            },
            "fonts": {listed[at].hand.name: listed[at].fingerprint() for at in kept},
            "left_out": {listed[at].hand.name: dict(sorted(drawn[at].reasons().items())) for at in kept},
        },
    )
    print(f"{out}: {len(rows)} glyphs, {Path(out).stat().st_size / 1e6:.1f} MB, checksum {checksum}")


def _keep(listed: list[fonts.FontHand], drawn: list[fonts.Drawn], matrix: np.ndarray) -> list[int]:
    """Prints the glyphs and the similarity of the hands; returns the positions of those to keep, without near copies."""
    kept: list[int] = []
    for at, (hand, glyphs) in enumerate(zip(listed, drawn, strict=True)):
        name = hand.hand.name
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(glyphs.reasons().items())) or "none"
        print(f"{name:<20} {hand.hand.family:<16} {hand.hand.role:<8} {len(glyphs.forms):>5} glyphs; left out: {reasons}")
        copied = [other for other in kept if matrix[at, other] > fonts.NEAR_COPY]
        if not glyphs.forms:
            print(f"{name} is left out: it has none of the characters")
        elif copied:
            other = copied[0]
            print(f"{name} is left out: a near copy of {listed[other].hand.name} (median IoU {matrix[at, other]:.2f})")
        else:
            kept.append(at)
    print("\nmedian IoU of the hands in per cent, by number (-: fewer than 20 common forms)")
    print(" " * 24 + " ".join(f"{at:>3}" for at in range(len(listed))))
    for at, hand in enumerate(listed):
        cells = " ".join("  -" if np.isnan(value) else f"{100 * value:3.0f}" for value in matrix[at])
        print(f"{at:>3} {hand.hand.name:<20}{cells}")
    families = {listed[at].hand.family for at in kept if listed[at].hand.role != "guide"}
    print(f"{len(families)} families besides the guide")
    return kept


def describe(pack: Pack) -> dict:
    """The content of a pack. `characters`, `glyphs`, `hands` and `split` count handwriting without the guide."""
    guide = np.array([hand.role == "guide" for hand in pack.hands])
    counts = Counter(pack.hand.tolist())
    numbers = {hand.name: counts[at] for at, hand in enumerate(pack.hands)}
    handwritten = ~guide[pack.hand]
    groups = dict(zip(pack.character[handwritten].tolist(), pack.group[handwritten].tolist(), strict=True))
    splits = Counter(split_of(chr(group)) for group in groups.values())
    return {
        "img_size": pack.img_size,
        "characters": len(groups),
        "glyphs": int(handwritten.sum()),
        "hands": {hand.name: numbers[hand.name] for hand in pack.hands if hand.role != "guide"},
        "held_out_hands": [hand.name for hand in pack.hands if hand.role == "held_out"],
        "split": {split: splits[split] for split in SPLITS},
        "families": len({hand.family for hand in pack.hands if hand.role != "guide"}),
        "guide_glyphs": int((~handwritten).sum()),
        "guides": {hand.name: numbers[hand.name] for hand in pack.hands if hand.role == "guide"},
        "split_hash": split_hash(map(chr, groups.values())),
        "checksum": pack.checksum,
        "versions": pack.meta.get("versions", {}),
    }


def characters(pack: Pack, split: str) -> str:
    """The characters of a split in all their forms, by code point."""
    groups = dict(zip(pack.form.tolist(), pack.group.tolist(), strict=True))
    return "".join(chr(form) for form, group in sorted(groups.items()) if split_of(chr(group)) == split)


def table(pack: Pack) -> str:
    """The hands of a pack as a Markdown table."""
    counts = Counter(pack.hand.tolist())
    lines = [
        "| hand | family | style | role | source | licence | glyphs |",
        "| --- | --- | --- | --- | --- | --- | ---: |",
    ]
    for at, hand in enumerate(pack.hands):
        cells = (hand.name, hand.family, hand.style, hand.role.replace("_", " "), hand.source, hand.licence)
        lines.append(f"| {' | '.join(cells)} | {counts[at]:,} |")
    return "\n".join(lines)


def sheet(pack: Pack, characters: str, img_size: int, preset: str | None, seed: int) -> Image.Image:
    """A row for each hand: the characters, each in a form that the hand has, clean above degraded; without a preset clean only."""
    row_of = {key: row for row, key in enumerate(zip(pack.hand.tolist(), map(chr, pack.form.tolist()), strict=True))}
    lines, label = 1 if preset is None else 2, 128
    picture = Image.new("L", (label + img_size * len(characters), img_size * lines * len(pack.hands)))
    writer, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for at, hand in enumerate(pack.hands):
        top = at * lines * img_size
        writer.text((4, top + 4), f"{hand.name}\n{hand.style}, {hand.role}".replace("_", " "), fill=255, font=font)
        choices = [[row_of[at, form] for form in (char, *forms(char)) if (at, form) in row_of] for char in characters]
        columns = [column for column, rows in enumerate(choices) if rows]
        if not columns:
            continue
        ids = np.array([choices[column][0] for column in columns])
        cells = [smooth(pack.glyphs(ids), img_size)]
        if preset is not None:
            degraded, cells[0] = Degradation(preset, img_size)(cells[0], sample_keys(seed, 0, ids))
            cells.append(degraded)
        for line, batch in enumerate(cells):
            for column, cell in zip(columns, batch, strict=True):
                picture.paste(images.from_grey(cell[0].numpy()), (label + column * img_size, top + line * img_size))
    return picture


def damage_sheet(pack: Pack, characters: str, img_size: int, tables: dict[str, tuple[dict, float]], seed: int) -> Image.Image:
    """A row for each named damage, (preset's table, severity), below a row of clean characters, each by another hand."""
    brushes = [at for at, hand in enumerate(pack.hands) if hand.role != "guide"]
    row_of = {key: row for row, key in enumerate(zip(pack.hand.tolist(), map(chr, pack.form.tolist()), strict=True))}
    ids = []
    for place, char in enumerate(characters):
        wanted = [(hand, form) for hand in brushes[place % len(brushes) :] + brushes for form in (char, *forms(char))]
        ids += [next((row_of[key] for key in wanted if key in row_of), None)]
    ids = np.array([row for row in ids if row is not None])
    if not len(ids):
        raise ValueError(f"no hand of the pack has any of {characters}")
    clean = smooth(pack.glyphs(ids), img_size)
    label, lines = 128, [("clean", clean)]
    for name, (row, severity) in tables.items():
        lines.append((name, Degradation({**row, "clean": 0.0}, img_size)(clean, sample_keys(seed, 0, ids), severity)[0]))
    picture = Image.new("L", (label + img_size * len(ids), img_size * len(lines)))
    writer, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for line, (name, batch) in enumerate(lines):
        writer.text((4, line * img_size + 4), name, fill=255, font=font)
        for column, cell in enumerate(batch):
            picture.paste(images.from_grey(cell[0].numpy()), (label + column * img_size, line * img_size))
    return picture


def operation_tables() -> dict[str, tuple[dict, float]]:
    """Each operation alone, with probability 1 and the parameters of the first preset that has it, "mixed" before the others."""
    rows = {}
    for preset in ("mixed", *preset_names()):
        for name, row in load_preset(preset).items():
            if name in OPERATIONS:
                rows.setdefault(name, ({name: {**row, "p": 1.0}}, 0.5))
    return rows


def preset_tables() -> dict[str, tuple[dict, float]]:
    """Each preset at three severities."""
    return {f"{preset}\nseverity {s}": (load_preset(preset), s) for preset in preset_names() for s in (0.1, 0.5, 0.9)}


def pairs(
    pack: Pack, out: str | Path, split: str, count: int, seed: int, hands: str, preset: str, img_size: int, overwrite: bool
) -> None:
    """Writes `count` pairs as out/degraded/<form>_<hand>.png and out/clean/<same name>.png: 8-bit grey, strokes bright.

    The choice of glyphs and their damage depend on the seed alone. Raises ValueError if there are fewer than `count`, and
    FileExistsError if `out` is not empty.
    """
    glyphs = HandwritingSet(pack, split, hands, img_size)
    if not 0 < count <= len(glyphs):
        raise ValueError(f"--count {count}: the {split} split of {hands} hands has 1 to {len(glyphs)} pairs")
    chosen = np.random.Generator(np.random.Philox(seed)).permutation(len(glyphs))[:count]
    safe = [re.sub(r"[^\w.-]+", "-", hand.name) for hand in pack.hands]
    names = [f"{chr(pack.form[row])}_{safe[pack.hand[row]]}.png" for row in glyphs.ids[chosen]]
    if len(set(names)) < len(names):
        raise ValueError("two hands have names that make the same file name; rename one in the manifest and build again")
    degradation = Degradation(preset_of(preset), img_size)
    with _replacing_pairs(out, overwrite) as folder:
        for start in tqdm(range(0, count, 64), unit="batch"):
            sample = glyphs.batch(chosen[start : start + 64])
            pictures = degradation(sample["clean"], sample_keys(seed, 0, sample["id"]))
            _write_pairs(folder, names[start : start + 64], pictures)


def benchmark_pairs(pack: Pack, out: str | Path, which: str, overwrite: bool) -> str:
    """Writes the pictures of the frozen benchmark (of a preset, or "all") like `pairs`, and its name to out/benchmark.txt.

    `evaluate.py --predictions` expects the restored pictures under the same names. Returns the benchmark's name. Raises ValueError
    if this machine draws other pictures.
    """
    frozen = benchmark.Benchmark(pack, benchmark.PRESETS if which == "all" else (which,))
    frozen.verify()
    with _replacing_pairs(out, overwrite) as folder:
        for batch in tqdm(frozen.batches(), unit="batch"):
            _write_pairs(folder, [frozen.rows[position]["file"] for position in batch], frozen.pictures(batch))
        (folder / "benchmark.txt").write_text(frozen.name + "\n", encoding="utf-8")
    return frozen.name


@contextmanager
def _replacing_pairs(out: str | Path, overwrite: bool) -> Iterator[Path]:
    """Yields a folder to write degraded/*.png, clean/*.png and benchmark.txt to; they replace those in `out` at the end.

    After an error or Ctrl-C, `out` is as before. Its other files are kept.
    """
    out = Path(out)
    _refuse_existing(out, overwrite)
    out.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".pairs-", dir=out))
    try:
        yield part
    except BaseException:
        shutil.rmtree(part)
        raise
    (out / "benchmark.txt").unlink(missing_ok=True)  # it names the pictures, so it is removed first and written last
    for name in PAIR:
        old, new = out / name, part / name
        if old.exists():
            for other in old.iterdir():
                if other.suffix != ".png":
                    other.rename(new / other.name)
            old.rename(part / f"old {name}")
        new.rename(old)
    if (part / "benchmark.txt").exists():
        (part / "benchmark.txt").rename(out / "benchmark.txt")
    shutil.rmtree(part)


def _write_pairs(folder: Path, names: list[str], pictures: tuple[Tensor, Tensor]) -> None:
    for part, batch in zip(PAIR, pictures, strict=True):
        for name, picture in zip(names, batch, strict=True):
            images.write_png(folder / part / name, images.from_grey(picture[0].numpy()))


def pages(
    pack: Pack, out: str | Path, split: str, count: int, seed: int, preset: str, severity: float | None, overwrite: bool
) -> None:
    """Writes `count` made pages as out/<number>.png, 8-bit grey, strokes bright, and their layouts as out/<number>.json.

    Each page depends on the seed and its number alone; see `datasets.pages.draw_page`. The pages in `out` are replaced at the end,
    its other files are kept. Raises the errors of `draw_page`, and FileExistsError if `out` is not empty.
    """
    glyphs, out = HandwritingSet(pack, split, "all"), Path(out)
    load_preset(preset)
    _refuse_existing(out, overwrite)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pages-", dir=out) as name:
        part = Path(name)
        for number, key in enumerate(tqdm(sample_keys(seed, 0, np.arange(count)), unit="page")):
            page = draw_page(glyphs, key, preset, severity)
            images.write_png(part / f"{number:04}.png", images.from_grey(page.degraded))
            write_json(part / f"{number:04}.json", {**page.layout, "about": page.about})
        for old in sorted(out.iterdir()):
            if re.fullmatch(r"\d+\.(png|json)", old.name):
                old.unlink()
        for new in sorted(part.iterdir()):
            new.rename(out / new.name)


def _refuse_existing(out: str | Path, overwrite: bool) -> None:
    out = Path(out)
    if not overwrite and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise FileExistsError(f"{out} already exists; choose another, or pass --overwrite")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, help: str) -> Callable:
        kind = argparse.ArgumentDefaultsHelpFormatter
        add = commands.add_parser(name, help=help, description=help, formatter_class=kind, allow_abbrev=False).add_argument
        if name != "build":
            add("--data", default="data/zi.pack", help="the pack")
        if name != "describe":
            add("--overwrite", action="store_true", help="replace existing output")
        if name in ("preview", "pairs", "pages"):
            names = ", ".join(preset_names())
            add("--preset", default="mixed", help=f"damage: {names}, a YAML file, or a mixture: mixed:.6,classic:.4")
            add("--seed", type=number(int, 0, 2**32 - 1), default=0)
        return add

    add = command("build", "draw a pack from fonts")
    add("--fonts", nargs="+", required=True, metavar="DIR", help="folders of fonts")
    add("--output", required=True, metavar="FILE", help="the pack to write")
    add("--manifest", default=MANIFEST, metavar="FILE", help="YAML file of the known hands")
    add("--jobs", type=number(int, 1), default=os.cpu_count(), metavar="N", help="processes")

    add = command("describe", "print the content of a pack")
    add("--show", choices=("all", "hands", *SPLITS), default="all",
        help="all as JSON, the hands as a Markdown table, or the characters of a split in all their forms")  # fmt: skip

    add = command("preview", "draw all hands, clean above degraded, or the kinds of damage")
    add("--output", required=True, metavar="FILE", help="the PNG to write")
    add("--characters", default="永春明心山水風書龍愛國道", help="the characters to draw")
    add("--img_size", type=number(int, 8), default=64, help="size of a character in pixels, a multiple of 8")
    add("--clean", action="store_true", help="draw clean characters only")
    add("--show", choices=("hands", "operations", "presets"), default="hands",
        help="a row for each hand, each operation, or each preset at severities 0.1, 0.5 and 0.9")  # fmt: skip

    add = command("pairs", "write pairs of pictures, degraded and clean")
    add("--output_dir", required=True, metavar="DIR", help="gets degraded/*.png and clean/*.png")
    add("--split", choices=SPLITS, default="test", help="split of the characters")
    add("--hands", choices=("seen", "unseen", "all"), default="all", help="training hands, held-out hands, or all")
    add("--count", type=number(int, 1), default=100, metavar="N", help="number of pairs")
    add("--img_size", type=number(int, 8), default=224, help="picture size in pixels, a multiple of 8")
    add("--benchmark", choices=(*benchmark.PRESETS, "all"),
        help="write the frozen benchmark instead, with --data, --output_dir and --overwrite only")  # fmt: skip

    add = command("pages", "write made pages and their layouts")
    add("--output_dir", required=True, metavar="DIR", help="gets <number>.png and <number>.json")
    add("--split", choices=SPLITS, default="test", help="split of the characters")
    add("--count", type=number(int, 1), default=20, metavar="N", help="number of pages")
    add("--severity", type=number(float, 0, 1), help="of the damage; drawn for each page by default")
    return parser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command == "pairs" and args.benchmark:
        usual = vars(parser.parse_args(["pairs", "--output_dir", args.output_dir]))
        idle = ("split", "hands", "count", "img_size", "preset", "seed")
        if given := [f"--{name}" for name in idle if getattr(args, name) != usual[name]]:
            parser.error(f"{', '.join(given)} do not go with --benchmark, which is frozen")
    return args


def run(args: argparse.Namespace) -> None:
    if args.command == "build":
        _refuse_existing(args.output, args.overwrite)
        build(args.fonts, args.output, args.manifest, args.jobs)
        return
    pack = open_pack(args.data)
    if args.command == "describe":
        if args.show in SPLITS:
            print(characters(pack, args.show))
        else:
            print(table(pack) if args.show == "hands" else json.dumps(describe(pack), indent=1, ensure_ascii=False))
    elif args.command == "preview":
        _refuse_existing(args.output, args.overwrite)
        if args.show == "hands":
            picture = sheet(pack, args.characters, args.img_size, None if args.clean else args.preset, args.seed)
        else:
            tables = operation_tables() if args.show == "operations" else preset_tables()
            picture = damage_sheet(pack, args.characters, args.img_size, tables, args.seed)
        images.write_png(args.output, picture)
    elif args.command == "pages":
        pages(pack, args.output_dir, args.split, args.count, args.seed, args.preset, args.severity, args.overwrite)
    elif args.benchmark:
        print(f"{args.output_dir}: benchmark {benchmark_pairs(pack, args.output_dir, args.benchmark, args.overwrite)}")
    else:
        pairs(pack, args.output_dir, args.split, args.count, args.seed, args.hands, args.preset, args.img_size, args.overwrite)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    return script.run(run, parse_args(argv))


if __name__ == "__main__":
    script.as_script(main)
