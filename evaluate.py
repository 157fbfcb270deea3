"""Scores a checkpoint, or any method's pictures, on characters that it never saw.

    python evaluate.py --checkpoint runs/demo/best.pth --output_dir runs/demo/eval
    torchrun --nproc_per_node=2 evaluate.py --checkpoint runs/demo/best.pth --benchmark all --output_dir runs/demo/benchmark
    python evaluate.py --predictions OTHER/restored --benchmark rubbing --output_dir OTHER/scores

Without --benchmark, the test characters of the pack, in the hands of training ("seen_hands") and in hands that training never
sees ("unseen_hands"), are damaged with a fixed seed at the network's own side, every one of them. With it, the pictures are
those of the frozen benchmark, whose name two results must share to compare; `prepare_data.py pairs --benchmark` writes them
as files for other methods. Scored against the clean picture are the restored one and what any method must beat: the damaged
picture unchanged, Otsu's threshold, the median filter before it, and a local threshold. With a recogniser, how well all of
them can be read comes first. Every picture is scored once, however many processes there are. Writes into --output_dir:

    metrics.json      means over all pictures with their 95 % intervals, by split, preset, severity and hand; what was scored
    per_picture.csv   one row a picture
    sheet.png         best, median and worst pictures by gain in PSNR: damaged, restored, clean
    report.html       all of it to look at, in one file
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import models
from datasets import benchmark, degradation
from datasets.benchmark import Benchmark, spread
from datasets.degradation import Degradation, scored_preset
from datasets.pack import Pack, open_pack
from datasets.pairs import HandwritingSet
from engine import EVALUATION_SEED
from models import recogniser
from scoring import METHODS, SPLITS, FolderRestorer, FreeSet, FrozenSet, NetworkRestorer, Reader, Scorer, score_all
from util import distributed, report
from util.files import replacing
from util.images import from_grey, write_png
from util.statistics import bootstrap_interval, calibration
from util.version import commit

RECOGNISER = Path(__file__).resolve().parent / "weights" / "recogniser_convnext_atto.safetensors"
SHEET_COLUMNS, TILE, CAPTION = 8, 112, 28  # pictures a row; pixels
BLOCKS = ("best", "median", "worst")


def means(scores: np.ndarray, names: tuple[str, ...], characters: np.ndarray) -> dict:
    """{"n", "characters", "degraded", "restored", "baselines"} of (n, methods, scores), and "clean" where it was read.

    Each method: the mean of each score over the pictures that have it, and in "ci95" the interval over characters.
    """
    known = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, scores, 0).sum(0) / known.sum(0)
    low, high = bootstrap_interval(scores, characters)
    by_method = {}
    for row, method in enumerate(METHODS):
        columns = [column for column in range(len(names)) if known[:, row, column].any()]
        if columns:
            by_method[method] = {names[column]: round(float(mean[row, column]), 5) for column in columns}
            interval = {names[c]: [round(float(low[row, c]), 5), round(float(high[row, c]), 5)] for c in columns}
            by_method[method]["ci95"] = interval
    baselines = {"unchanged": by_method["degraded"], **{name: by_method[name] for name in METHODS[2:-1]}}
    return {
        "n": len(scores),
        "characters": len(np.unique(characters)),
        **{name: by_method[name] for name in ("clean", "degraded", "restored") if name in by_method},
        "baselines": baselines,
    }


def write_csv(path: Path, rows: list[dict], scores: np.ndarray, names: tuple[str, ...]) -> None:
    """One line a picture; a score that a picture does not have stays empty."""
    some = [(m, s) for m in range(len(METHODS)) for s in range(len(names)) if not np.isnan(scores[:, m, s]).all()]
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*rows[0], *(f"{METHODS[m]}_{names[s]}" for m, s in some)])
        for row, values in zip(rows, scores, strict=True):
            writer.writerow([*row.values(), *("" if np.isnan(values[m, s]) else f"{values[m, s]:.5f}" for m, s in some)])


def pick_tiles(scorer: Scorer, scores: np.ndarray) -> dict[str, list[tuple[str, list[Image.Image]]]]:
    """Best, median and worst pictures by gain in PSNR: for each block (caption, [damaged, restored, clean]) of each picture."""
    damaged, restored = (scores[:, METHODS.index(name), scorer.scores.index("psnr")] for name in ("degraded", "restored"))
    rows = scorer.source.rows
    order = np.argsort(damaged - restored, kind="stable")
    inwards = np.argsort(np.abs(np.arange(len(order)) - len(order) // 2), kind="stable")
    blocks = {}
    for name, ranked in zip(BLOCKS, (order, order[inwards], order[::-1]), strict=True):
        first = {rows[at]["character"]: at for at in ranked[::-1]}  # each character once, with its first picture
        chosen = [at for at in ranked if first[rows[at]["character"]] == at][:SHEET_COLUMNS]
        blocks[name] = []
        for at in chosen:
            triple = [from_grey(x[0, 0].cpu().numpy()) for x in scorer.pictures(np.array([at]))]
            small = [x.resize((TILE, TILE), Image.Resampling.BICUBIC) for x in triple]
            blocks[name].append((f"{rows[at]['hand'][:20]}\n{damaged[at]:.1f} > {restored[at]:.1f} dB", small))
    return blocks


def draw_sheet(blocks: dict[str, list[tuple[str, list[Image.Image]]]]) -> Image.Image:
    """The blocks of `pick_tiles` one below the other."""
    font, step = ImageFont.load_default(11), TILE + 4
    sheet = Image.new("L", (len(blocks["best"]) * step, len(blocks) * (3 * step + 2 * CAPTION)), 255)
    pen = ImageDraw.Draw(sheet)
    for block, (name, tiles) in enumerate(blocks.items()):
        top = block * (3 * step + 2 * CAPTION)
        pen.text((2, top + 6), f"{name} gain in PSNR (rows: damaged, restored, clean)", fill=0, font=font)
        for column, (caption, triple) in enumerate(tiles):
            for line, tile in enumerate(triple):
                sheet.paste(tile, (column * step, top + CAPTION + line * step))
            pen.text((column * step, top + CAPTION + 3 * step), caption, fill=0, font=font, spacing=0)
    return sheet


def show(result: dict) -> None:
    """The small table at the end."""
    whole = {**({"clean": result["clean"]} if "clean" in result else {}), **result["baselines"], "restored": result["restored"]}
    lines = [(f"{name}, all", result["n"], row) for name, row in whole.items()]
    for group in ("by_split", "by_preset"):
        for part_name, part in result[group].items() if len(result[group]) > 1 else ():
            lines += [(f"{name}, {part_name}", part["n"], part[name]) for name in ("degraded", "restored")]
    columns = [column for column in report.COLUMNS if column.key in result["restored"]]
    print(f"{'':26}{'n':>7}" + "".join(f"{column.short:>10}" for column in columns))
    for name, n, row in lines:
        cells = [column.form(row[column.key]) if column.key in row else "" for column in columns]
        print(f"{name.replace('_', ' '):26}{n:7}" + "".join(f"{cell:>10}" for cell in cells))
    print(f"expected calibration error {result['calibration']['ece']:.4f}")


def set_up(args: argparse.Namespace, pack: Pack, device: torch.device) -> tuple[Scorer, dict]:
    """The scorer, and what is to be said of the method, the pictures and the recogniser."""
    about: dict = {"data": {"path": str(args.data), "checksum": pack.checksum, "split": "test"}}
    frozen = None
    if args.benchmark:
        presets = benchmark.PRESETS if args.benchmark == "all" else (args.benchmark,)
        frozen = Benchmark(pack, presets)
        about["benchmark"] = {"name": frozen.name, "names": frozen.names, "per_cell": benchmark.PER_CELL}
        about["benchmark"] |= {"severities": benchmark.SEVERITIES, "generator": degradation.VERSION}
        about["damage"] = {"preset": args.benchmark, "table": frozen.tables, "seed": frozen.seed}
    if args.predictions:
        restore = FolderRestorer(args.predictions, [row["file"] for row in frozen.rows], frozen.side)
        about["predictions"] = str(args.predictions)
    else:
        model, settings = models.load(args.checkpoint, device)
        restore = NetworkRestorer(model)
        about["checkpoint"] = {"path": str(args.checkpoint), **{key: settings[key] for key in ("model", "epoch", "side")}}
    about["side"] = frozen.side if frozen else settings["side"]

    guided = not args.predictions and args.guide and settings["in_chans"] == 2
    if args.checkpoint:
        about["guide"] = guided
    if frozen:
        guides = HandwritingSet(pack, "test", "all", settings["side"], guide=True, device=device) if guided else None
        source = FrozenSet(frozen, device, guides)
    else:
        data = HandwritingSet(pack, "test", "all", settings["side"], guide=guided, device=device)
        damage = Degradation(scored_preset(args.preset), settings["side"], device)
        source = FreeSet(data, damage, Path(args.preset).stem, args.seed, spread(pack, data.ids, args.limit))
        about["damage"] = {"preset": str(args.preset), "table": damage.table, "seed": args.seed}
        about["limit"] = args.limit

    read = None
    if path := args.recogniser or (RECOGNISER if RECOGNISER.is_file() else None):
        network, info = recogniser.load_recogniser(path, device)
        read = Reader(network, info, pack.group[[row["id"] for row in source.rows]])
        about["recogniser"] = {"path": Path(path).name, **{key: value for key, value in info.items() if key != "groups"}}
    return Scorer(source, restore, read), about


def tabulate(pack: Pack, rows: list[dict], scores: np.ndarray, names: tuple[str, ...]) -> dict:
    """The means of all pictures, and by split, hand, preset, severity, and ("cells") preset, severity and split together.

    A severity is the benchmark's, or the middle of the fifth of the range that a drawn one lies in.
    """
    column = {key: np.array([row[key] for row in rows]) for key in ("character", "split", "hand", "preset", "severity")}
    level = column["severity"]
    if len(np.unique(level)) > len(benchmark.SEVERITIES):
        level = ((np.minimum(level, 0.999) * 5).astype(int) * 2 + 1) / 10

    def of(mask: np.ndarray) -> dict:
        return means(scores[mask], names, column["character"][mask])

    def by(values: np.ndarray, known: list) -> dict:
        return {str(value): of(values == value) for value in known if (values == value).any()}

    levels, presets = np.unique(level).tolist(), list(dict.fromkeys(column["preset"].tolist()))
    cells = []
    for preset in presets:
        for severity in levels:
            for split in SPLITS:
                mask = (column["preset"] == preset) & (level == severity) & (column["split"] == split)
                if mask.any():
                    cells.append({"preset": preset, "severity": severity, "split": split, **of(mask)})
    return {
        **of(np.full(len(rows), True)),
        "by_split": by(column["split"], SPLITS),
        "by_hand": by(column["hand"], [hand.name for hand in pack.hands]),
        "by_preset": by(column["preset"], presets),
        "by_severity": by(level, levels),
        "cells": cells,
    }


def evaluate(args: argparse.Namespace, device: torch.device) -> dict:
    """Scores, and on the first process writes the files. Returns what metrics.json holds."""
    pack = open_pack(args.data)
    scorer, about = set_up(args, pack, device)
    if "benchmark" in about and distributed.rank() == 0:
        print(f"benchmark {about['benchmark']['name']}: {len(scorer.source.rows)} pictures")
    scores, sums = score_all(scorer, args.batch_size)
    if distributed.rank() == 0:
        rows = scorer.source.rows
        result = {
            **tabulate(pack, rows, scores, scorer.scores),
            "calibration": calibration(sums),
            **about,
            "commit": commit(),
            "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        }
        out = Path(args.output_dir)
        tiles = pick_tiles(scorer, scores)
        write_csv(out / "per_picture.csv", rows, scores, scorer.scores)
        write_png(out / "sheet.png", draw_sheet(tiles))
        held_out = {hand.name for hand in pack.hands if hand.role == "held_out"}
        with replacing(out / "report.html") as part:
            part.write_text(report.html(result, tiles, held_out), encoding="utf-8")
        with replacing(out / "metrics.json") as part:  # last: where it stands, the others stand too
            part.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        show(result)
        print(f"written to {out}")
    distributed.barrier()
    return result if distributed.rank() == 0 else {}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", help="a run's best.pth or last.pth")
    add("--predictions", metavar="DIR", help="instead: pictures that any method made of the benchmark's, by the same names")
    add("--data", default="data/zi.pack", help="the handwriting set")
    add("--output_dir", required=True, help="gets metrics.json, per_picture.csv, sheet.png, report.html; earlier ones are replaced")
    add("--benchmark", nargs="?", const="all", choices=(*benchmark.PRESETS, "all"), help="score the frozen pictures; alone: all")
    add("--recogniser", help="weights that judge legibility (weights/recogniser_convnext_atto.safetensors where it is)")
    add("--guide", action=argparse.BooleanOptionalAction, default=True, help="give the standard glyph to a network that takes one")
    add("--limit", type=int, default=0, help="score so many pictures, spread over hands and characters; 0: all of them")
    add("--preset", default="mixed", help="damage: a name of configs/damage/ or a YAML file")
    add("--seed", type=int, default=EVALUATION_SEED, help="of the damage; scores compare only with the same")
    add("--batch_size", type=int, default=64, help="pictures per process; a benchmark has its own")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # from torch.distributed.launch
    args = parser.parse_args(arguments)
    if args.batch_size < 1 or args.limit < 0 or args.seed < 0:
        parser.error("--batch_size is at least 1, --limit and --seed at least 0")
    if (args.checkpoint is None) == (args.predictions is None):
        parser.error("give either --checkpoint or --predictions")
    if args.predictions and not args.benchmark:
        parser.error("--predictions goes with --benchmark, whose pictures they are made of")
    if args.benchmark and (args.limit, args.preset, args.seed) != (0, "mixed", EVALUATION_SEED):
        parser.error("--limit, --preset and --seed do not go with --benchmark, which is frozen")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        evaluate(args, distributed.start(args.device, args.local_rank))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
