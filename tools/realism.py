"""The distance of synthetic damage from real damage: statistics of both, and the AUC of a classifier that separates them.

    python tools/realism.py path/to/scans --preset rubbing

The folder holds pictures of one character each, of any size, colour and polarity. They are compared with handwriting of the pack,
degraded by the preset. Every picture of both kinds is cropped to the box of its ink with a margin (size and place of a character
in its frame are the photographer's, not the damage's), scaled to 224 pixels, and described by ten numbers:

    specks         stroke components (8 neighbours) from 2 pixels to 0.3 % of the picture; strokes are above Otsu's threshold
    speck_area     their median area in pixels; 0 without any
    ink            fraction of the picture that is strokes, in per cent
    holes          ground components (4 neighbours) from 2 pixels to 0.3 % of the picture
    stroke_level   median grey of the strokes, 0 … 255
    ground_level   median grey of the ground, 0 … 255
    stroke_sd      standard deviation of the grey of strokes, at least 3 pixels from their edge
    ground_sd      the same of the ground
    roughness      length of the stroke edges, divided by their length after a Gaussian of sigma 3 and a new threshold
    softness       width of the edge in pixels: number of pixels between a quarter and three quarters of the way from ground to
                   strokes, per pixel of edge length

A logistic regression on these numbers is scored by five-fold cross-validation. Its AUC is the distance: 0.5 if real and synthetic
pictures are indistinguishable, 1 if they are always separated.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.degradation import Degradation, preset_names, scored_preset
from datasets.pack import Pack, open_pack
from datasets.pairs import smooth
from datasets.rng import sample_keys
from restoration.exemplars import preset_of
from restoration.pipeline import PACK, Restorer
from util import images, script, squares

IMG_SIZE, MARGIN, SPECK = 224, 0.06, 0.003
NAMES = ("specks", "speck_area", "ink", "holes", "stroke_level", "ground_level", "stroke_sd", "ground_sd", "roughness", "softness")
COUNTS = [NAMES.index(name) for name in ("specks", "speck_area", "holes")]  # skewed: the regression takes their logarithms


def _areas(mask: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """The components of a mask, by 4 or 8 neighbours: (labels (H, W), area of each label; 0 for label 0, the rest)."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)) if neighbours == 8 else None)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    return labels, areas


def fit(x: np.ndarray) -> np.ndarray:
    """(H, W), strokes bright → (224, 224): the box of the ink, ignoring specks, with a margin of 6 %."""
    labels, areas = _areas(squares.ink_mask(x), 8)
    big = (areas > SPECK * x.size)[labels]
    if big.any():
        rows, columns = np.flatnonzero(big.any(1)), np.flatnonzero(big.any(0))
        margin = round(MARGIN * max(np.ptp(rows), np.ptp(columns)))
        x = x[max(rows[0] - margin, 0) : rows[-1] + margin + 1, max(columns[0] - margin, 0) : columns[-1] + margin + 1]
    return squares.to_square(x, squares.whole(*x.shape), IMG_SIZE)


def statistics(x: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1], strokes bright → (10,), in the order of NAMES; zeros for a picture without strokes."""
    ink = squares.ink_mask(x)
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
    """Length of a mask's edge: the number of adjacent pixel pairs of which one is inside."""
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


def prepared(x: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] → (224, 224), strokes bright: what a restorer of that size is given."""
    return Restorer(None, {"img_size": IMG_SIZE, "in_chans": 1}).prepare(images.from_grey(x)).x[0]


def real_statistics(folder: str | Path, prepare: bool = False) -> np.ndarray:
    """(n, 10), the statistics of the pictures in a folder. FileNotFoundError without pictures, ValueError for an unreadable one."""
    files = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in images.SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{folder}: no pictures")
    rows = []
    for path in files:
        x = images.read_grey(path)
        x = prepared(x) if prepare else 1 - x if squares.find_polarity(x) == "dark" else x
        rows.append(statistics(fit(x)))
    return np.stack(rows)


def synthetic_statistics(pack: Pack, hands: list[str], preset: str, count: int, seed: int, prepare: bool = False) -> np.ndarray:
    """(count, 10), the statistics of random glyphs of these hands, degraded, each with its own severity."""
    unknown = sorted(set(hands) - {hand.name for hand in pack.hands})
    if unknown:
        raise ValueError(f"no hand '{unknown[0]}' in the pack: one of {', '.join(hand.name for hand in pack.hands)}")
    of_hands = np.array([hand.name in hands for hand in pack.hands])[pack.hand]
    ids = np.random.default_rng(seed).permutation(np.flatnonzero(of_hands))[:count]
    degradation = Degradation(scored_preset(preset_of(preset)), IMG_SIZE)
    rows = []
    for start in range(0, len(ids), 32):
        part = ids[start : start + 32]
        degraded, _ = degradation(smooth(pack.glyphs(part), IMG_SIZE), sample_keys(seed, 0, part))
        levels = ((x.numpy() * 255).round() / np.float32(255) for x in degraded[:, 0])
        rows += [statistics(fit(prepared(x) if prepare else x)) for x in levels]
    return np.stack(rows)


def separability(real: np.ndarray, synthetic: np.ndarray, repeats: int = 5) -> tuple[float, float, np.ndarray]:
    """How well a logistic regression separates real (n, 10) from synthetic (m, 10) statistics.

    Returns (five-fold AUC: mean over repeats with other folds, its standard deviation, the regression's weights (10,): positive if
    a larger value, in units of the statistic's spread, speaks for real).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if min(len(real), len(synthetic)) < 5:
        raise ValueError(f"{len(real)} real and {len(synthetic)} synthetic pictures: five folds need at least five of each")
    x, y = np.concatenate([real, synthetic]), np.repeat([1, 0], [len(real), len(synthetic)])
    x[:, COUNTS] = np.log1p(x[:, COUNTS])
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    scores = []
    for seed in range(repeats):
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        scores.append(roc_auc_score(y, cross_val_predict(model, x, y, cv=folds, method="decision_function")))
    return float(np.mean(scores)), float(np.std(scores)), model.fit(x, y)[-1].coef_[0]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("real", metavar="REAL_DIR", help="a folder of pictures of one character each")
    parser.add_argument("--data", default=PACK, metavar="FILE", help="the handwriting set")
    parser.add_argument(
        "--preset", default="rubbing", help=f"damage: {', '.join(preset_names())}, a YAML file, or a folder of scans"
    )
    parser.add_argument("--prepared", action="store_true", help="compare squares as a restorer is given them, not the pictures")
    parser.add_argument("--hands", nargs="+", metavar="NAME", help="hands to degrade (default: regular and running training hands)")
    parser.add_argument("--count", type=int, default=500, metavar="N", help="number of pictures to degrade")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def report(args: argparse.Namespace) -> None:
    pack = open_pack(args.data)
    hands = args.hands or [hand.name for hand in pack.hands if hand.style in ("regular", "running") and hand.role == "train"]
    real = real_statistics(args.real, args.prepared)
    synthetic = synthetic_statistics(pack, hands, args.preset, args.count, args.seed, args.prepared)
    auc, sd, weights = separability(real, synthetic)
    print(f"{len(real)} real pictures; {len(synthetic)} with damage '{args.preset}' of {', '.join(hands)}")
    print("median [10th – 90th percentile]; weight: positive speaks for a real picture")
    print(f"{'':<14}{'real':>26}{'synthetic':>26}{'weight':>9}")
    for column, name in enumerate(NAMES):
        cells = []
        for rows in (real, synthetic):
            low, middle, high = np.percentile(rows[:, column], (10, 50, 90))
            cells.append(f"{middle:.2f} [{low:.2f} – {high:.2f}]")
        print(f"{name:<14}{cells[0]:>26}{cells[1]:>26}{weights[column]:>+9.2f}")
    print(f"AUC {auc:.3f} (sd {sd:.3f} over other folds); 0.5: indistinguishable, 1: always separated")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    args = build_parser().parse_args(argv)
    torch.set_num_threads(1)  # many small pictures
    return script.run(report, args)


if __name__ == "__main__":
    script.as_script(main)
