"""How far made damage is from real damage: statistics of both, and whether a simple classifier can tell them apart.

    python tools/realism.py path/to/scans --preset rubbing

The folder holds pictures of one character each, of any size, colour and polarity. Against them stands handwriting of the pack,
damaged by the preset. Every picture of both kinds is cut to the box of its ink with a margin (size and place of a character in
its frame are the photographer's, not the damage's), scaled to 224 pixels, and described by ten numbers:

    specks         strokes' components (8 neighbours) from 2 pixels to 0.3 % of the picture; strokes are above Otsu's threshold
    speck_area     their median area in pixels; 0 without any
    ink            share of the picture that is strokes, in per cent
    holes          ground's components (4 neighbours) from 2 pixels to 0.3 % of the picture
    stroke_level   median grey of the strokes, 0 … 255
    ground_level   median grey of the ground, 0 … 255
    stroke_sd      standard deviation of the grey of strokes, 3 pixels and more from their edge
    ground_sd      the same of the ground
    roughness      length of the strokes' edge over its length after a Gaussian of sigma 3 and a new threshold
    softness       width of the edge in pixels: how many are between a quarter and three quarters of the way from ground to strokes,
                   for each pixel of the edge's length

A logistic regression on them is fitted to four fifths and judges the other fifth, in turns. Its AUC is the distance: 0.5 where the
two cannot be told apart, 1 where they always can.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.degradation import Degradation, preset_names, sample_keys, scored_preset
from datasets.pack import Pack, open_pack
from datasets.pairs import smooth
from util import images

SIDE, MARGIN, SPECK = 224, 0.06, 0.003
NAMES = (
    "specks",
    "speck_area",
    "ink",
    "holes",
    "stroke_level",
    "ground_level",
    "stroke_sd",
    "ground_sd",
    "roughness",
    "softness",
)
COUNTS = [NAMES.index(name) for name in ("specks", "speck_area", "holes")]  # skewed: the regression sees their logarithms


def _areas(mask: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """The components of a mask, 4 or 8 neighbours: their labels (H, W) and areas, that of label 0 being 0."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask, np.ones((3, 3)) if neighbours == 8 else None)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    return labels, areas


def fit(x: np.ndarray) -> np.ndarray:
    """(H, W), strokes bright → (224, 224): the box of the ink and a margin of 6 % of it, specks not counted."""
    labels, areas = _areas(images.strokes(x), 8)
    big = (areas > SPECK * x.size)[labels]
    if big.any():
        rows, columns = np.flatnonzero(big.any(1)), np.flatnonzero(big.any(0))
        margin = round(MARGIN * max(np.ptp(rows), np.ptp(columns)))
        x = x[max(rows[0] - margin, 0) : rows[-1] + margin + 1, max(columns[0] - margin, 0) : columns[-1] + margin + 1]
    return images.to_square(x, images.whole(*x.shape), SIDE)


def statistics(x: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1], strokes bright → the ten numbers, as NAMES has them; a picture without strokes has zeros."""
    from scipy import ndimage

    ink = images.strokes(x)
    if not ink.any():
        return np.zeros(len(NAMES))
    components = _areas(ink, 8)[1], _areas(~ink, 4)[1]
    specks, holes = (areas[(areas >= 2) & (areas <= SPECK * x.size)] for areas in components)
    high, low = np.median(x[ink]), np.median(x[~ink])
    inner = [ndimage.binary_erosion(mask, iterations=3, border_value=1) for mask in (ink, ~ink)]
    sd = [x[mask].std() if mask.any() else 0.0 for mask in inner]
    smooth_ink = ndimage.gaussian_filter(ink.astype(np.float32), 3) > 0.5
    length, smooth_length = _edge(ink), max(_edge(smooth_ink), 1)
    between = ((x > low + (high - low) / 4) & (x < high - (high - low) / 4)).sum()
    return np.array([
        len(specks), np.median(specks) if len(specks) else 0, 100 * ink.mean(), len(holes),
        255 * high, 255 * low, 255 * sd[0], 255 * sd[1], length / smooth_length, between / max(length, 1),
    ])  # fmt: skip


def _edge(mask: np.ndarray) -> int:
    """Length of a mask's edge: the sides that pixels within share with pixels without."""
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


def real_statistics(folder: str | Path) -> np.ndarray:
    """(n, 10) of the pictures in a folder. FileNotFoundError without any, ValueError for one that cannot be read."""
    files = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in images.SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{folder}: no pictures")
    rows = []
    for path in files:
        x = images.read_grey(path)
        rows.append(statistics(fit(1 - x if images.find_polarity(x) == "dark" else x)))
    return np.stack(rows)


def made_statistics(pack: Pack, hands: list[str], preset: str, count: int, seed: int) -> np.ndarray:
    """(count, 10) of handwriting of these hands, damaged: any of the pack's characters, each picture with its own severity."""
    unknown = sorted(set(hands) - {hand.name for hand in pack.hands})
    if unknown:
        raise ValueError(f"no hand '{unknown[0]}' in the pack: one of {', '.join(hand.name for hand in pack.hands)}")
    of_hands = np.array([hand.name in hands for hand in pack.hands])[pack.hand]
    ids = np.random.default_rng(seed).permutation(np.flatnonzero(of_hands))[:count]
    degradation = Degradation(scored_preset(preset), SIDE)
    rows = []
    for start in range(0, len(ids), 32):
        part = ids[start : start + 32]
        damaged, _ = degradation(smooth(pack.glyphs(part), SIDE), sample_keys(seed, 0, part))
        rows += [statistics(fit((x.numpy() * 255).round() / np.float32(255))) for x in damaged[:, 0]]
    return np.stack(rows)


def told_apart(real: np.ndarray, made: np.ndarray, repeats: int = 5) -> tuple[float, float, np.ndarray]:
    """AUC of telling real statistics (n, 10) from made ones (m, 10), five-fold, its sd over repeats with other folds, and the
    regression's weights (10,): how much each statistic, in units of its spread, speaks for real."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if min(len(real), len(made)) < 5:
        raise ValueError(f"{len(real)} real and {len(made)} made pictures: five folds need at least five of each")
    x, y = np.concatenate([real, made]), np.repeat([1, 0], [len(real), len(made)])
    x[:, COUNTS] = np.log1p(x[:, COUNTS])
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    scores = []
    for seed in range(repeats):
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        scores.append(roc_auc_score(y, cross_val_predict(model, x, y, cv=folds, method="decision_function")))
    return float(np.mean(scores)), float(np.std(scores)), model.fit(x, y)[-1].coef_[0]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="How far made damage is from the real damage in a folder of pictures.")
    parser.add_argument("real", metavar="REAL_DIR", help="a folder of pictures, a character each")
    parser.add_argument("--preset", default="rubbing", help=f"the damage: {', '.join(preset_names())}, or a YAML file")
    parser.add_argument("--pack", default="data/zi.pack", metavar="FILE")
    parser.add_argument("--hands", nargs="+", metavar="NAME", help="hands to damage (regular and running ones of training)")
    parser.add_argument("--count", type=int, default=500, metavar="N", help="how many pictures to damage")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = arguments().parse_args(argv)
    torch.set_num_threads(1)  # many small pictures
    pack = open_pack(args.pack)
    hands = args.hands or [hand.name for hand in pack.hands if hand.style in ("regular", "running") and hand.role == "train"]
    real, made = real_statistics(args.real), made_statistics(pack, hands, args.preset, args.count, args.seed)
    auc, sd, weights = told_apart(real, made)
    print(f"{len(real)} real pictures; {len(made)} with damage '{args.preset}' of {', '.join(hands)}")
    print("median [10th – 90th percentile]; weight: what speaks for a real picture")
    print(f"{'':<14}{'real':>26}{'made':>26}{'weight':>9}")
    for column, name in enumerate(NAMES):
        cells = []
        for rows in (real, made):
            low, middle, high = np.percentile(rows[:, column], (10, 50, 90))
            cells.append(f"{middle:.2f} [{low:.2f} – {high:.2f}]")
        print(f"{name:<14}{cells[0]:>26}{cells[1]:>26}{weights[column]:>+9.2f}")
    print(f"AUC {auc:.3f} (sd {sd:.3f} over other folds): 0.5 cannot be told apart, 1 always can")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
