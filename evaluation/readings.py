"""Scores the reader, and what its readings gain as guides: `python -m evaluation.readings --split val --severity .8`.

Held-out characters are degraded, restored without a guide, and read. Printed: how often the first reading, and one of the five, is
the character, read in the degraded picture, in the restored one, and in both, as restore.py reads; the calibration error of the
first reading's probability; how well it tells characters that the reader never learnt from others (AUROC); and how many pictures
both judges read that were restored without a guide (none), guided by the readings (auto), and told the character (told).

The reader learnt the characters that are scored here, but not in the unseen hands; the restorer learnt neither.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from datasets.pack import open_pack
from datasets.pairs import HandwritingSet
from evaluation.predictors import PipelinePredictor
from evaluation.scoring import JUDGES, Recognition
from evaluation.sources import OnTheFlySource, held_out
from evaluation.statistics import bootstrap_interval, calibration_of_readings
from models.recogniser import load_recogniser
from restoration.pipeline import BATCH, PACK, load_restorer
from restoration.reading import Reader, load_reader
from util import images, script
from util.settings import number


def read_all(reader: Reader, pictures: torch.Tensor) -> dict[str, np.ndarray]:
    """{"degraded", "restored", "both": (N, classes)}: probabilities of pictures (N, 1, H, W) in [0, 1], strokes bright."""
    parts: dict[str, list[np.ndarray]] = {"degraded": [], "restored": [], "both": []}
    for batch in pictures.split(BATCH):
        restored = reader.restorer.restore([reader.restorer.prepare(images.from_grey(x)) for x in batch[:, 0].numpy()])
        parts["degraded"].append(reader.probabilities(one.prepared.x[0] for one in restored))
        parts["restored"].append(reader.probabilities(one.mean for one in restored))
        parts["both"].append(reader.odds(restored))
    return {name: np.concatenate(values) for name, values in parts.items()}


def measure(args: argparse.Namespace) -> None:
    """Prints the scores."""
    restorer = load_restorer(args.checkpoint)
    reader, pack = load_reader(restorer, *([args.reader] if args.reader else [])), open_pack(args.data)
    data = HandwritingSet(pack, args.split, args.hands, restorer.img_size)
    source = held_out(data, args.preset, args.limit, args.severity)
    rows = source.rows
    groups = pack.group[[row["id"] for row in rows]]
    degraded, *_ = source.pictures(np.arange(len(rows)))

    label = {group: i for i, group in enumerate(reader.groups)}
    labels = np.array([label.get(int(group), -1) for group in groups])
    known = labels >= 0
    print(f"{len(rows)} pictures, {known.sum()} of them of characters that the reader learnt")
    for name, odds in read_all(reader, degraded).items():
        rank = (odds > odds[np.arange(len(odds)), labels][:, None]).sum(1)
        trust = calibration_of_readings(np.where(known, rank == 0, np.nan), odds.max(1))
        line = f"reads {name:9} first {trust['top1']:6.1%}   among five {(rank[known] < 5).mean():6.1%}"
        line += f"   calibration error {trust['ece']:.4f}   mean probability {trust['probability']:.3f}"
        print(line + (f"   AUROC of unknown {trust['auroc']:.3f}" if trust["auroc"] else ""))
    if args.judge:
        judge(source, args, reader, groups, degraded)


def judge(source: OnTheFlySource, args: argparse.Namespace, reader: Reader, groups: np.ndarray, degraded: torch.Tensor) -> None:
    """Prints what both judges read of pictures restored in three ways."""
    judges = [Recognition(*load_recogniser(file), groups) for file in JUDGES.values()]
    forms, positions, none = [row["form"] for row in source.rows], np.arange(len(groups)), None
    for name, guides in (("none", {}), ("auto", {"reader": reader}), ("told", {"forms": forms})):
        predict = PipelinePredictor(reader.restorer, **guides)
        parts = np.split(positions, range(BATCH, len(positions), BATCH))
        with torch.inference_mode():
            x = torch.cat([predict(part, degraded[part], None).restored for part in parts])
            hits = np.stack([one(positions, x)[:, 0].numpy() for one in judges], axis=1)
        none = hits if none is None else none
        half = np.diff(bootstrap_interval(hits - none, groups), axis=0)[0] / 2
        print(f"restored {name}: " + "   ".join(
            f"judge {judge} {100 * value:.1f} % ({100 * gain:+.1f} ± {100 * width:.1f})"
            for judge, value, gain, width in zip(JUDGES, np.nanmean(hits, 0), np.nanmean(hits - none, 0), half, strict=True)
        ))  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=PACK, help="the handwriting set")
    add("--checkpoint", type=Path, help="of the restorer (default: the bundled weights)")
    add("--reader", type=Path, help="weights of the reader (default: the bundled ones)")
    add("--split", choices=("val", "test"), default="test", help="of the characters; decide on val, report on test")
    add("--hands", choices=("seen", "unseen", "all"), default="all")
    add("--preset", default="mixed", help="damage, as for evaluate.py")
    add("--severity", type=number(float, 0, 1), help="of the damage of all pictures (default: drawn from the preset)")
    add("--limit", type=number(int, 1), default=256, help="pictures, spread over hands and characters")
    add("--judge", action=argparse.BooleanOptionalAction, default=True, help="also let both judges read what is restored")
    return script.run(measure, parser.parse_args(argv))


if __name__ == "__main__":
    script.as_script(main)
