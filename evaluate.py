"""Scores a checkpoint on characters that it never saw.

    python evaluate.py --checkpoint runs/demo/best.pth --output_dir runs/demo/eval
    torchrun --nproc_per_node=4 evaluate.py --checkpoint runs/mine/best.pth --output_dir runs/mine/eval --limit 2000

The test characters of the pack, in the hands of training ("seen_hands") and in hands that training never sees
("unseen_hands"), are damaged with a fixed seed, every one of them, and restored. PSNR, SSIM and ink F1 are taken against
the clean picture, of the restored one and of what any method must beat: the damaged picture unchanged, Otsu's threshold,
and the median filter before it. Every picture is scored once, however many processes there are. Writes into --output_dir:

    metrics.json      means over all pictures, by split and by hand, and what was scored
    per_picture.csv   one row a picture
    sheet.png         best, median and worst pictures by gain in PSNR: damaged, restored, clean
"""

import argparse
import csv
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

import models
from datasets.degradation import Degradation, scored_preset
from datasets.pack import Pack, open_pack
from datasets.pairs import HandwritingSet
from engine import EVALUATION_SEED, network_input
from util import checkpoint, distributed, metrics
from util.binarise import median, otsu
from util.files import replacing
from util.images import from_grey, write_png
from util.version import commit

METHODS = ("degraded", "restored", "otsu", "median_otsu")  # "degraded": the picture as it is, unchanged
SCORES = {"psnr": metrics.psnr, "ssim": metrics.ssim, "f1": metrics.ink_f1}
SPLITS = ("seen_hands", "unseen_hands")
SHEET_COLUMNS, TILE, CAPTION = 8, 112, 28  # pictures a row; pixels


def spread(pack: Pack, ids: np.ndarray, limit: int) -> np.ndarray:
    """Positions (limit,) of `ids` that take as many from each hand as there are, each hand's forms in the order of a hash.

    Neither depends on the order of the pack, and a larger limit contains a smaller one. 0: all positions.
    """
    if not 0 < limit < len(ids):
        return np.arange(len(ids))
    names = [pack.hands[hand].name for hand in pack.hand[ids]]
    hashes = [hashlib.sha256(f"{name} {form}".encode()).digest() for name, form in zip(names, pack.form[ids], strict=True)]
    turn = np.empty(len(ids), dtype=int)  # of each glyph within its hand
    for name in set(names):
        own = [i for i, other in enumerate(names) if other == name]
        turn[sorted(own, key=hashes.__getitem__)] = np.arange(len(own))
    return np.sort(sorted(range(len(ids)), key=lambda i: (turn[i], hashes[i]))[:limit])


class Scorer:
    """Damages, restores and scores positions of the test set, always in the same way.

    Args:
        model: in eval mode, on `device`.
        data: the test set, on `device`. damage: likewise. seed: of the damage.
    """

    def __init__(self, model: torch.nn.Module, data: HandwritingSet, damage: Degradation, seed: int):
        self.model, self.data, self.damage, self.seed = model, data, damage, seed

    @torch.inference_mode()
    def pictures(self, positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(damaged, restored, clean) of N positions, each (N, 1, side, side) in [0, 1]."""
        x, clean = network_input(self.data.batch(positions), self.damage, self.seed, 0)
        return x[:, :1], self.model(x).float().sigmoid(), clean

    @torch.inference_mode()
    def scores(self, positions: np.ndarray) -> np.ndarray:
        """(N, methods, scores) float64, in the order of METHODS and SCORES."""
        damaged, restored, clean = self.pictures(positions)
        if not restored.isfinite().all():
            raise ValueError("the network gives values that are no numbers: its training has diverged")
        results = (damaged, restored, otsu(damaged), otsu(median(damaged)))
        table = [torch.stack([score(x, clean) for score in SCORES.values()], dim=1) for x in results]
        return torch.stack(table, dim=1).double().cpu().numpy()


def score_all(scorer: Scorer, chosen: np.ndarray, batch_size: int) -> np.ndarray:
    """(n, methods, scores) of the chosen positions, each scored by one process, on every process."""
    rank, world = distributed.rank(), distributed.world_size()
    mine = np.arange(rank, len(chosen), world)
    batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    bar = tqdm(batches, desc="scoring", unit="batch", disable=True if rank else None)
    parts = [(batch, scorer.scores(chosen[batch])) for batch in bar]

    scores = np.empty((len(chosen), len(METHODS), len(SCORES)))
    times = np.zeros(len(chosen), dtype=int)
    for batch, part in (pair for parts in distributed.gather(parts) for pair in parts):
        scores[batch] = part
        times[batch] += 1
    if not (times == 1).all():
        raise RuntimeError(f"{(times != 1).sum()} of {len(chosen)} pictures were not scored exactly once")
    return scores


def means(scores: np.ndarray) -> dict:
    """{"n", "degraded", "restored", "baselines"} of (n, methods, scores)."""
    rows = [dict(zip(SCORES, row, strict=True)) for row in scores.mean(0).round(5).tolist()]
    by_method = dict(zip(METHODS, rows, strict=True))
    baselines = {"unchanged": by_method["degraded"], **{name: by_method[name] for name in METHODS[2:]}}
    return {
        "n": len(scores),
        "degraded": by_method["degraded"],
        "restored": by_method["restored"],
        "baselines": baselines,
    }


def write_csv(path: Path, pictures: list[dict], scores: np.ndarray) -> None:
    names = [f"{method}_{score}" for method in METHODS for score in SCORES]
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*pictures[0], *names])
        for picture, row in zip(pictures, scores.reshape(len(scores), -1), strict=True):
            writer.writerow([*picture.values(), *(f"{value:.5f}" for value in row)])


def draw_sheet(scorer: Scorer, chosen: np.ndarray, pictures: list[dict], scores: np.ndarray) -> Image.Image:
    """Best, median and worst pictures by gain in PSNR: three blocks of damaged, restored and clean, with hand and PSNR."""
    damaged, restored = (scores[:, METHODS.index(name), 0] for name in ("degraded", "restored"))
    order = np.argsort(damaged - restored, kind="stable")
    k = min(SHEET_COLUMNS, len(order))
    middle = (len(order) - k) // 2
    blocks = {"best": order[:k], "median": order[middle : middle + k], "worst": order[-k:]}
    font = ImageFont.load_default(11)
    step = TILE + 4
    sheet = Image.new("L", (k * step, len(blocks) * (3 * step + 2 * CAPTION)), 255)
    pen = ImageDraw.Draw(sheet)
    for block, (name, rows) in enumerate(blocks.items()):
        top = block * (3 * step + 2 * CAPTION)
        pen.text((2, top + 6), f"{name} gain in PSNR (rows: damaged, restored, clean)", fill=0, font=font)
        triples = torch.cat(scorer.pictures(chosen[rows]), dim=1).cpu().numpy()  # (k, 3, side, side)
        for column, (row, triple) in enumerate(zip(rows, triples, strict=True)):
            for line, x in enumerate(triple):
                tile = from_grey(x).resize((TILE, TILE), Image.Resampling.BICUBIC)
                sheet.paste(tile, (column * step, top + CAPTION + line * step))
            caption = f"{pictures[row]['hand'][:20]}\n{damaged[row]:.1f} > {restored[row]:.1f} dB"
            pen.text((column * step, top + CAPTION + 3 * step), caption, fill=0, font=font, spacing=0)
    return sheet


def show(report: dict) -> None:
    """The small table at the end."""
    whole = {**report["baselines"], "restored": report["restored"]}
    rows = [(f"{name}, all", report["n"], row) for name, row in whole.items()]
    for split, part in report["by_split"].items():
        rows += [(f"{name}, {split}", part["n"], part[name]) for name in ("degraded", "restored")]
    print(f"{'':26}{'n':>7}{'PSNR dB':>9}{'SSIM':>8}{'ink F1':>8}")
    for name, n, row in rows:
        print(f"{name.replace('_', ' '):26}{n:7}{row['psnr']:9.2f}{row['ssim']:8.3f}{row['f1']:8.3f}")


def evaluate(args: argparse.Namespace, device: torch.device) -> dict:
    """Scores, and on the first process writes the three files. Returns what metrics.json holds."""
    model, settings = models.load(args.checkpoint, device)
    pack = open_pack(args.data)
    data = HandwritingSet(pack, "test", "all", settings["side"], guide=settings["in_chans"] == 2, device=device)
    damage = Degradation(scored_preset(args.preset), settings["side"], device)
    scorer = Scorer(model, data, damage, args.seed)
    chosen = spread(pack, data.ids, args.limit)
    scores = score_all(scorer, chosen, args.batch_size)

    hands = [pack.hands[hand] for hand in pack.hand[data.ids[chosen]]]
    pictures = [
        {
            "id": int(id_),
            "character": chr(pack.character[id_]),
            "form": chr(pack.form[id_]),
            "hand": hand.name,
            "split": SPLITS[hand.role == "held_out"],
        }
        for id_, hand in zip(data.ids[chosen], hands, strict=True)
    ]

    def by(key: str, known: list[str]) -> dict:
        column = np.array([picture[key] for picture in pictures])
        return {name: means(scores[column == name]) for name in known if (column == name).any()}

    report = {
        **means(scores),
        "by_split": by("split", SPLITS),
        "by_hand": by("hand", [hand.name for hand in pack.hands]),
        "characters": len({picture["character"] for picture in pictures}),
        "checkpoint": {
            "path": str(args.checkpoint),
            "model": settings["model"],
            "epoch": checkpoint.read(args.checkpoint).get("epoch"),
        },
        "data": {"path": str(args.data), "checksum": pack.checksum, "split": "test"},
        "damage": {"preset": str(args.preset), "table": damage.table, "seed": args.seed},
        "side": settings["side"],
        "limit": args.limit,
        "commit": commit(),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
    }
    if distributed.rank() == 0:
        out = Path(args.output_dir)
        write_csv(out / "per_picture.csv", pictures, scores)
        write_png(out / "sheet.png", draw_sheet(scorer, chosen, pictures, scores))
        with replacing(out / "metrics.json") as part:  # last: where it stands, the others stand too
            part.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        show(report)
        print(f"written to {out}")
    distributed.barrier()
    return report


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, help="a run's best.pth or last.pth")
    add("--data", default="data/zi.pack", help="the handwriting set")
    add(
        "--output_dir",
        required=True,
        help="gets metrics.json, per_picture.csv and sheet.png; earlier ones are replaced",
    )
    add("--limit", type=int, default=0, help="score so many pictures, spread over hands and characters; 0: all of them")
    add("--preset", default="mixed", help="damage: a name of configs/damage/ or a YAML file")
    add("--seed", type=int, default=EVALUATION_SEED, help="of the damage; scores compare only with the same")
    add("--batch_size", type=int, default=64, help="pictures per process")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # from torch.distributed.launch
    args = parser.parse_args(arguments)
    if args.batch_size < 1 or args.limit < 0 or args.seed < 0:
        parser.error("--batch_size is at least 1, --limit and --seed at least 0")
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
