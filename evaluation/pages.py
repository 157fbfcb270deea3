"""Columns and characters of made pages, where they are known: how many are found, in order, and how they read when cut by the tool.

    python -m evaluation.pages --count 40
    python -m evaluation.pages --count 10 --severity 0.5 --read

Half of the pages are shown in negative. A character is found if a box overlaps with its own by half (intersection over union); with
--read, cells that turn out blank when they are restored do not count, as in restore_page.py.
"order": of the found characters that follow each other in the truth, the share that is in the same order in what is found.
"""

import argparse
import time
from itertools import compress
from pathlib import Path

import numpy as np
import torch

from datasets.pack import open_pack
from datasets.pages import COLUMNS, draw_page
from datasets.pairs import HandwritingSet
from datasets.rng import sample_keys
from datasets.split import group_of
from evaluation.scoring import JUDGES, Recognition
from models.recogniser import load_recogniser
from restoration import layout_files, page
from restoration.layout import Character, Layout
from restoration.pipeline import PACK, Restorer, load_restorer
from util import images, script
from util.settings import number
from util.squares import resize

READ = 128  # size in pixels at which characters of the restored page are cut out for the judges


def match(found: Layout, truth: Layout) -> np.ndarray:
    """For each character of the truth, in reading order, the position of the one found for it, or -1."""
    boxes, places = (np.array([one[:3] for one in layout.characters], float).reshape(-1, 3) for layout in (found, truth))
    starts = np.maximum(boxes[:, None, :2], places[None, :, :2])
    ends = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], (places[:, :2] + places[:, 2:])[None])
    both = (ends - starts).clip(0).prod(2)
    iou = both / (boxes[:, None, 2] ** 2 + places[None, :, 2] ** 2 - both)
    matched = np.full(len(places), -1)
    for flat in np.argsort(-iou, axis=None):
        one, other = divmod(int(flat), len(places))
        if iou[one, other] < 0.5:
            break
        if matched[other] < 0 and one not in matched:
            matched[other] = one
    return matched


def score(found: Layout, truth: Layout) -> dict[str, float]:
    """Counts: of the truth's characters, those found, those right; of pairs that follow each other, and those in order."""
    matched = match(found, truth) if found.characters else np.full(len(truth.characters), -1)
    pairs = matched[:-1][(matched[:-1] >= 0) & (matched[1:] >= 0)], matched[1:][(matched[:-1] >= 0) & (matched[1:] >= 0)]
    counts = {"truth": len(matched), "found": len(found.characters), "right": int((matched >= 0).sum())}
    return counts | {"pairs": len(pairs[0]), "ordered": int((pairs[1] > pairs[0]).sum())}


def restore(bright: np.ndarray, layout: Layout, restorer: Restorer) -> tuple[np.ndarray, list[Character]]:
    """The restored page (H, W) uint8, strokes bright, and the characters of the layout that did not turn out blank."""
    canvas, kept = page.Canvas(page.Page(bright, layout)), []
    for character, part, one in page.restore_page(canvas.page, restorer, told=False):
        if not page.is_blank(one):
            kept.append(character)
            canvas.put(part, one)
    return canvas.ink, kept


def read(ink: np.ndarray, characters: list[Character], judges: dict) -> np.ndarray:
    """(judges,): how many of the characters each judge reads on a restored page, in their true boxes."""
    groups = np.array([ord(group_of(one.char)) for one in characters])
    cut = (ink[page.inside(one, ink.shape)] for one in characters)
    pictures = torch.from_numpy(np.stack([resize(x / np.float32(255), READ, READ) for x in cut]))[:, None]
    hits = (Recognition(*judge, groups)(np.arange(len(groups)), pictures)[:, 0] for judge in judges.values())
    return np.array([np.nansum(one.numpy()) for one in hits])


def measure(args: argparse.Namespace) -> None:
    """Prints the scores of all pages, and of those of each kind."""
    if args.columns[0] > args.columns[1]:
        raise ValueError(f"--columns takes the fewest first, not {args.columns[0]} {args.columns[1]}")
    glyphs = HandwritingSet(open_pack(args.data), args.split, "all")
    restorer = load_restorer(args.checkpoint) if args.read else None
    judges = {name: load_recogniser(file) for name, file in JUDGES.items()} if args.read else {}
    sums: dict[str, dict[str, float]] = {}
    hits, seconds, wrong = np.zeros((2, len(judges))), [], 0
    for position, key in enumerate(sample_keys(args.seed, 0, np.arange(args.count))):
        made = draw_page(glyphs, key, args.preset, args.severity, tuple(args.columns), args.heads)
        truth = layout_files.from_json(made.layout, made.degraded.shape)
        start = time.perf_counter()
        try:
            found = page.find_page(images.from_grey(1 - made.degraded if position % 2 else made.degraded))
        except ValueError:
            found = page.Page(np.zeros((1, 1), np.uint8), Layout(made.degraded.shape))
        seconds.append(time.perf_counter() - start)
        layout = found.layout
        wrong += layout.polarity != ("dark" if position % 2 else "bright")
        if args.read and layout.characters:
            ink, kept = restore(found.bright, layout, restorer)
            layout = layout.only(kept)
            there = list(compress(truth.characters, match(layout, truth) >= 0))
            if there:
                hits += [read(ink, there, judges), read(restore(found.bright, truth, restorer)[0], there, judges)]
        for name in ("all", made.about["kind"]):
            for key, value in {"pages": 1, **score(layout, truth)}.items():
                row = sums.setdefault(name, {})
                row[key] = row.get(key, 0) + value
    for name, n in sums.items():
        shares = {
            "recall": n["right"] / n["truth"],
            "precision": n["right"] / max(n["found"], 1),
            "order": n["ordered"] / max(n["pairs"], 1),
        }
        print(
            f"{name:12} {n['pages']} pages, {n['truth']} characters: "
            + ", ".join(f"{key} {value:.4f}" for key, value in shares.items())
        )
    print(f"polarity wrong on {wrong} pages; {np.median(seconds):.1f} s a page [{min(seconds):.1f} – {max(seconds):.1f}]")
    for column, name in enumerate(judges):
        found, truth = 100 * hits[:, column] / max(sums["all"]["right"], 1)
        print(f"judge {name}: {found:.1f} % cut by the tool, {truth:.1f} % cut by the truth")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, default=PACK, help="the handwriting set (default: %(default)s)")
    add("--checkpoint", type=Path, help="of the network that --read restores with (default: the bundled weights)")
    add("--split", choices=("val", "test"), default="test")
    add("--count", type=number(int, 1), default=40, help="pages (default: %(default)s)")
    add("--seed", type=number(int, 0), default=0, help="of the pages (default: %(default)s)")
    add("--preset", default="mixed", help="damage, as for prepare_data.py pages (default: %(default)s)")
    add("--severity", type=number(float, 0, 1), help="of the damage (default: drawn for each page)")
    add(
        "--columns", type=number(int, 1), nargs=2, default=COLUMNS, metavar=("LOW", "HIGH"), help="of a page (default: %(default)s)"
    )
    add("--heads", default="", help="characters, one of which stands at the head of each column, such as 一二三")
    add("--read", action="store_true", help="also restore all characters and let both judges read them")
    args = parser.parse_args(argv)
    return script.run(measure, args)


if __name__ == "__main__":
    script.as_script(main)
