"""Makes the handwriting set out of fonts, and says and shows what is in it.

    python prepare_data.py build --fonts build/fonts --out data/zi.pack
    python prepare_data.py describe data/zi.pack
    python prepare_data.py preview data/zi.pack --out sheet.png
    python prepare_data.py pairs data/zi.pack --split test --count 100 --seed 0 --out pairs
    python prepare_data.py pairs data/zi.pack --benchmark rubbing --out pairs

What is there already is replaced only with --overwrite.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import fontTools
import numpy as np
import opencc
import PIL
from PIL import Image, ImageDraw, ImageFont, features
from torch import Tensor
from tqdm import tqdm

from datasets import benchmark
from datasets import hands as fonts
from datasets.degradation import OPERATIONS, Degradation, load_preset, preset_names, sample_keys
from datasets.pack import Pack, open_pack, write_pack
from datasets.pairs import HandwritingSet, smooth
from datasets.split import SIDES, forms, group_of, side_of, split_hash
from util import images
from util.files import replacing

MANIFEST = Path(__file__).resolve().parent / "data" / "hands.yaml"


def build(folders: list[str], out: str | Path, manifest: str | Path = MANIFEST, jobs: int | None = None) -> None:
    """Draws every hand found in folders of fonts, leaves out near copies, reports, and writes the pack.

    ValueError if no font has a character that is wanted.
    """
    listed, passed = fonts.find_hands(folders, manifest)
    written = fonts.owners(fonts.gb2312_level1())
    guided = written | {form: own for form, own in fonts.owners(fonts.big5_level1()).items() if form not in written}
    wanted = [guided if hand.hand.role == "guide" else written for hand in listed]
    print(f"{len(listed)} hands; {len(passed)} font files passed over, as {Path(manifest).name} tells")

    drawn: list[fonts.Drawn] = []
    total = 2 * sum(map(len, wanted))  # each is measured, then drawn
    with ProcessPoolExecutor(jobs or os.cpu_count()) as pool, tqdm(total=total, unit="glyph", smoothing=0) as bar:
        for hand, chars in zip(listed, wanted, strict=True):
            bar.set_description(hand.hand.name)
            before = bar.n
            drawn.append(fonts.draw_hand(hand, chars, pool, bar.update))
            bar.update(2 * len(chars) - (bar.n - before))
    matrix = fonts.iou_matrix(drawn)
    kept = _keep(listed, drawn, matrix)
    if not kept:
        raise ValueError(f"no font in {', '.join(map(str, folders))} has a Han character that is wanted")

    rows = [(hand, chars[form], form) for hand, at in enumerate(kept) for chars in [wanted[at]] for form in drawn[at].forms]
    checksum = write_pack(
        out,
        side=fonts.SIDE,
        hands=[listed[at].hand for at in kept],
        character=np.array([ord(character) for _, character, _ in rows], np.uint32),
        form=np.array([ord(form) for _, _, form in rows], np.uint32),
        group=np.array([ord(group_of(form)) for _, _, form in rows], np.uint32),
        hand=np.array([hand for hand, _, _ in rows], np.uint8),
        bits=np.concatenate([drawn[at].bits for at in kept]),
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
    """Prints what each hand has and how alike the hands are; the positions of those to keep, near copies left out."""
    kept: list[int] = []
    for at, (hand, glyphs) in enumerate(zip(listed, drawn, strict=True)):
        name = hand.hand.name
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(glyphs.reasons().items())) or "none"
        print(f"{name:<20} {hand.hand.family:<16} {hand.hand.role:<8} {len(glyphs.forms):>5} glyphs; left out: {told}")
        copied = [other for other in kept if matrix[at, other] > fonts.NEAR_COPY]
        if not glyphs.forms:
            print(f"{name} is left out: it has none of the characters")
        elif copied:
            other = copied[0]
            print(f"{name} is left out: a near copy of {listed[other].hand.name} (median IoU {matrix[at, other]:.2f})")
        else:
            kept.append(at)
    print("\nmedian IoU of the hands, in per cent, by number (-: fewer than 20 forms in common)")
    print(" " * 24 + " ".join(f"{number:>3}" for number in range(len(listed))))
    for at, hand in enumerate(listed):
        cells = " ".join("  -" if np.isnan(value) else f"{100 * value:3.0f}" for value in matrix[at])
        print(f"{at:>3} {hand.hand.name:<20}{cells}")
    families = {listed[at].hand.family for at in kept if listed[at].hand.role != "guide"}
    print(f"{len(families)} families besides the guide")
    return kept


def describe(pack: Pack) -> dict:
    """What is in a pack. `characters`, `glyphs`, `hands` and `split` count handwriting; the guide stands apart."""
    guide = np.array([hand.role == "guide" for hand in pack.hands])
    counts = Counter(pack.hand.tolist())
    numbers = {hand.name: counts[at] for at, hand in enumerate(pack.hands)}
    handwritten = ~guide[pack.hand]
    groups = dict(zip(pack.character[handwritten].tolist(), pack.group[handwritten].tolist(), strict=True))
    sides = Counter(side_of(chr(group)) for group in groups.values())
    return {
        "side": pack.side,
        "characters": len(groups),
        "glyphs": int(handwritten.sum()),
        "hands": {hand.name: numbers[hand.name] for hand in pack.hands if hand.role != "guide"},
        "held_out_hands": [hand.name for hand in pack.hands if hand.role == "held_out"],
        "split": {side: sides[side] for side in SIDES},
        "families": len({hand.family for hand in pack.hands if hand.role != "guide"}),
        "guide_glyphs": int((~handwritten).sum()),
        "guides": {hand.name: numbers[hand.name] for hand in pack.hands if hand.role == "guide"},
        "split_hash": split_hash(map(chr, groups.values())),
        "checksum": pack.checksum,
        "versions": pack.meta["versions"],
    }


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


def sheet(pack: Pack, characters: str, side: int, preset: str | None, seed: int) -> Image.Image:
    """A row for each hand: the characters, in the form that it has, clean above damaged; clean alone without a preset."""
    row_of = {key: row for row, key in enumerate(zip(pack.hand.tolist(), map(chr, pack.form.tolist()), strict=True))}
    lines, label = 1 if preset is None else 2, 128
    picture = Image.new("L", (label + side * len(characters), side * lines * len(pack.hands)))
    writer, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for at, hand in enumerate(pack.hands):
        top = at * lines * side
        writer.text((4, top + 4), f"{hand.name}\n{hand.style}, {hand.role}".replace("_", " "), fill=255, font=font)
        had = [[row_of[at, form] for form in (char, *forms(char)) if (at, form) in row_of] for char in characters]
        columns = [column for column, rows in enumerate(had) if rows]
        if not columns:
            continue
        ids = np.array([had[column][0] for column in columns])
        cells = [smooth(pack.glyphs(ids), side)]
        if preset is not None:
            damaged, cells[0] = Degradation(preset, side)(cells[0], sample_keys(seed, 0, ids))
            cells.append(damaged)
        for line, batch in enumerate(cells):
            for column, cell in zip(columns, batch, strict=True):
                picture.paste(images.from_grey(cell[0].numpy()), (label + column * side, top + line * side))
    return picture


def damage_sheet(pack: Pack, characters: str, side: int, tables: dict[str, tuple[dict, float]], seed: int) -> Image.Image:
    """A row for each damage, named: (preset's table, severity). The clean characters, each by another hand, stand on top."""
    brushes = [at for at, hand in enumerate(pack.hands) if hand.role != "guide"]
    row_of = {key: row for row, key in enumerate(zip(pack.hand.tolist(), map(chr, pack.form.tolist()), strict=True))}
    ids = []
    for place, char in enumerate(characters):
        wanted = [(hand, form) for hand in brushes[place % len(brushes) :] + brushes for form in (char, *forms(char))]
        ids += [next((row_of[key] for key in wanted if key in row_of), None)]
    ids = np.array([row for row in ids if row is not None])
    if not len(ids):
        raise ValueError(f"no hand of the pack has any of {characters}")
    clean = smooth(pack.glyphs(ids), side)
    label, lines = 128, [("clean", clean)]
    for name, (row, severity) in tables.items():
        lines.append((name, Degradation({**row, "clean": 0.0}, side)(clean, sample_keys(seed, 0, ids), severity)[0]))
    picture = Image.new("L", (label + side * len(ids), side * len(lines)))
    writer, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for line, (name, batch) in enumerate(lines):
        writer.text((4, line * side + 4), name, fill=255, font=font)
        for column, cell in enumerate(batch):
            picture.paste(images.from_grey(cell[0].numpy()), (label + column * side, line * side))
    return picture


def operation_tables() -> dict[str, tuple[dict, float]]:
    """Each operation alone, on every picture, as the first preset that has it does it, "mixed" before the others."""
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
    pack: Pack, out: str | Path, split: str, count: int, seed: int, hands: str, preset: str, side: int, overwrite: bool
) -> None:
    """Writes `count` pairs as out/degraded/<form>_<hand>.png and out/clean/<the same>.png: 8-bit grey, strokes bright.

    Which and how damaged depends on the seed alone. ValueError if there are fewer than `count`, FileExistsError if `out`
    holds something already.
    """
    glyphs = HandwritingSet(pack, split, hands, side)
    if not 0 < count <= len(glyphs):
        raise ValueError(f"--count {count}: the {split} split of {hands} hands has 1 to {len(glyphs)} pairs to give")
    chosen = np.random.Generator(np.random.Philox(seed)).permutation(len(glyphs))[:count]
    safe = [re.sub(r"[^\w.-]+", "-", hand.name) for hand in pack.hands]
    names = [f"{chr(pack.form[row])}_{safe[pack.hand[row]]}.png" for row in glyphs.ids[chosen]]
    if len(set(names)) < len(names):
        raise ValueError("two hands have names that make the same file name; rename one in the manifest and build again")
    folders = _pair_folders(out, overwrite)
    degradation = Degradation(preset, side)
    for start in tqdm(range(0, count, 64), unit="batch"):
        part = glyphs.batch(chosen[start : start + 64])
        batches = degradation(part["clean"], sample_keys(seed, 0, part["id"]))
        _write_pairs(folders, names[start : start + 64], batches)


def benchmark_pairs(pack: Pack, out: str | Path, which: str, overwrite: bool) -> str:
    """Writes the pictures of a frozen benchmark ("all" or a preset's) as `pairs` does, under the names that
    `evaluate.py --predictions` wants the restored ones to have. Returns the benchmark's name, which out/benchmark.txt holds too.
    """
    frozen = benchmark.Benchmark(pack, benchmark.PRESETS if which == "all" else (which,))
    folders = _pair_folders(out, overwrite)
    for batch in tqdm(frozen.batches(), unit="batch"):
        _write_pairs(folders, [frozen.rows[position]["file"] for position in batch], frozen.pictures(batch))
    with replacing(Path(out) / "benchmark.txt") as part:  # last: where it stands, the pictures stand too
        part.write_text(frozen.name + "\n", encoding="utf-8")
    return frozen.name


def _pair_folders(out: str | Path, overwrite: bool) -> list[Path]:
    """out/degraded and out/clean, made, and emptied of earlier pictures."""
    folders = [Path(out) / "degraded", Path(out) / "clean"]
    _refuse_existing(out, overwrite)
    (Path(out) / "benchmark.txt").unlink(missing_ok=True)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.png"):
            old.unlink()
    return folders


def _write_pairs(folders: list[Path], names: list[str], batches: tuple[Tensor, Tensor]) -> None:
    for folder, batch in zip(folders, batches, strict=True):
        for name, picture in zip(names, batch, strict=True):
            images.write_png(folder / name, images.from_grey(picture[0].numpy()))


def _refuse_existing(out: str | Path, overwrite: bool) -> None:
    out = Path(out)
    if not overwrite and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise FileExistsError(f"{out} exists already; name another, or give --overwrite")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Makes the handwriting set out of fonts, and says and shows what is in it.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("build", help="fonts → the packed set")
    command.add_argument("--fonts", nargs="+", required=True, metavar="DIR", help="folders of fonts")
    command.add_argument("--out", required=True, metavar="FILE", help="the pack to write")
    command.add_argument("--manifest", default=MANIFEST, metavar="FILE", help="the known hands (data/hands.yaml)")
    command.add_argument("--jobs", type=int, metavar="N", help="processes (all cores)")
    command.add_argument("--overwrite", action="store_true", help="replace what is there")

    command = commands.add_parser("describe", help="what is in a pack, as JSON")
    command.add_argument("pack")
    command.add_argument("--markdown", action="store_true", help="the hands as a Markdown table instead")

    command = commands.add_parser("preview", help="a sheet of all hands, clean above damaged, or of the kinds of damage")
    command.add_argument("pack")
    command.add_argument("--out", required=True, metavar="FILE", help="the PNG to write")
    command.add_argument("--characters", default="永春明心山水風書龍愛國道", help="what to draw")
    command.add_argument("--side", type=int, default=64, help="pixels of a character")
    command.add_argument("--clean", action="store_true", help="without the damaged ones")
    command.add_argument("--show", choices=("hands", "operations", "presets"), default="hands",
                         help="a row for each hand, each operation alone, or each preset at severities .1, .5, .9")  # fmt: skip
    _damage(command)

    command = commands.add_parser("pairs", help="pairs of pictures, damaged and clean, for any method")
    command.add_argument("pack")
    command.add_argument("--out", required=True, metavar="DIR", help="gets degraded/*.png and clean/*.png")
    command.add_argument("--split", choices=SIDES, default="test", help="the side of the characters")
    command.add_argument("--hands", choices=("seen", "unseen", "all"), default="all", help="of training, held out, or all")
    command.add_argument("--count", type=int, default=100, metavar="N", help="how many pairs")
    command.add_argument("--side", type=int, default=224, help="pixels of a picture")
    command.add_argument("--benchmark", choices=(*benchmark.PRESETS, "all"),
                         help="write the frozen benchmark instead; only --out and --overwrite go with it")  # fmt: skip
    _damage(command)
    return parser


def _damage(command: argparse.ArgumentParser) -> None:
    command.add_argument("--preset", default="mixed", help=f"the damage: {', '.join(preset_names())}, or a YAML file")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--overwrite", action="store_true", help="replace what is there")


def main(argv: list[str] | None = None) -> None:
    args = arguments().parse_args(argv)
    if args.command == "build":
        _refuse_existing(args.out, args.overwrite)
        build(args.fonts, args.out, args.manifest, args.jobs)
        return
    pack = open_pack(args.pack)
    if args.command == "describe":
        print(table(pack) if args.markdown else json.dumps(describe(pack), indent=1, ensure_ascii=False))
    elif args.command == "preview":
        _refuse_existing(args.out, args.overwrite)
        if args.show == "hands":
            picture = sheet(pack, args.characters, args.side, None if args.clean else args.preset, args.seed)
        else:
            tables = operation_tables() if args.show == "operations" else preset_tables()
            picture = damage_sheet(pack, args.characters, args.side, tables, args.seed)
        images.write_png(args.out, picture)
    elif args.command == "pairs" and args.benchmark:
        print(f"{args.out}: benchmark {benchmark_pairs(pack, args.out, args.benchmark, args.overwrite)}")
    elif args.command == "pairs":
        pairs(pack, args.out, args.split, args.count, args.seed, args.hands, args.preset, args.side, args.overwrite)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
