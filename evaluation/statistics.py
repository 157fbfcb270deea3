"""Confidence intervals of means, the Fréchet distance, and the calibration of restored pictures and of readings."""

import numpy as np
import torch
from scipy.stats import mannwhitneyu

DRAWS = 1000
LEVEL = 0.95
BINS = 15
_UNIT = 65535  # values are summed as integer multiples of 1/65535, so the sums do not depend on the order


def bootstrap_interval(values: np.ndarray, clusters: np.ndarray, seed: int = 0) -> np.ndarray:
    """95 % percentile bootstrap interval of the mean over all rows: (n, …) values, (n,) clusters → (2, …).

    Clusters (here: characters) are drawn with replacement, each with all its rows, because pictures of one character are not
    independent (Davison & Hinkley, Bootstrap Methods, 1997, section 3.8). NaN means absent, column by column; a column without
    values gives NaN. The same input and seed give the same interval. For the difference of two methods on the same pictures pass
    the differences of their values: the interval is then a paired one.
    """
    flat = values.reshape(len(values), -1)
    _, cluster = np.unique(clusters, return_inverse=True)
    known = ~np.isnan(flat)
    n = cluster.max() + 1
    sums, counts = np.zeros((n, flat.shape[1])), np.zeros((n, flat.shape[1]))
    np.add.at(sums, cluster, np.where(known, flat, 0))
    np.add.at(counts, cluster, known)
    times = np.random.Generator(np.random.Philox(seed)).multinomial(n, np.full(n, 1 / n), size=DRAWS)
    with np.errstate(invalid="ignore"):
        drawn = (times @ sums) / (times @ counts)  # a draw in which a column has no value is NaN
    tail = (1 - LEVEL) / 2
    interval = np.full((2, flat.shape[1]), np.nan)
    present = counts.sum(0) > 0
    if present.any():
        interval[:, present] = np.nanquantile(drawn[:, present], (tail, 1 - tail), axis=0)
    return interval.reshape(2, *values.shape[1:])


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance of two Gaussians fitted to features (n, d) and (m, d), the formula of FID.

    |mean a - mean b|² + trace(A + B - 2 √(A B)) with the covariances A and B: Heusel et al., "GANs trained by a two time-scale
    update rule converge to a local Nash equilibrium", NeurIPS 2017.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    # √A B √A is symmetric and has the eigenvalues of A B
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def calibration_sums(restored: torch.Tensor, clean: torch.Tensor) -> np.ndarray:
    """Two batches (N, 1, H, W) in [0, 1] → (N, 3, BINS) int64: for each picture and bin of the restored value, the number of
    pixels, the sum of their restored values and the sum of their clean values, in units of 1/65535.

    The bins have equal width; a value on the edge of two bins belongs to the upper one, and 1 to the last.
    """
    n = len(restored)
    level = [(x.reshape(n, -1).double().clamp(0, 1) * _UNIT).round().long() for x in (restored, clean)]
    place = (level[0] * BINS // _UNIT).clamp(max=BINS - 1)
    sums = torch.zeros(n, 3, BINS, dtype=torch.long, device=restored.device)
    for row, amount in enumerate((torch.ones_like(place), *level)):
        sums[:, row].scatter_add_(1, place, amount)
    return sums.cpu().numpy()


def calibration(sums: np.ndarray) -> dict:
    """The `calibration_sums` (N, 3, BINS) of all pictures → {"ece", "bins": [{"pixels", "restored", "clean"}, …]}.

    Of each bin: the number of pixels, the mean restored value (the confidence that there is ink) and the mean clean value (the
    share of ink), or None in an empty bin. "ece" is the expected calibration error (Naeini, Cooper & Hauskrecht, AAAI 2015):
    the mean distance between the two over all pixels.
    """
    count, restored, clean = sums.sum(0).astype(object)  # Python's integers do not overflow
    error = sum(abs(a - b) for a, b in zip(restored, clean, strict=True)) / (_UNIT * sum(count))
    bins = [
        {"pixels": n, "restored": round(a / n / _UNIT, 5) if n else None, "clean": round(b / n / _UNIT, 5) if n else None}
        for n, a, b in zip(count, restored, clean, strict=True)
    ]
    return {"ece": round(error, 5), "bins": bins}


def calibration_of_readings(right: np.ndarray, probability: np.ndarray) -> dict:
    """How far the probabilities (N,) of first readings can be trusted.

    right: (N,) 1 or 0; NaN where the reader never learnt the character.
    Returns {"n", "unknown": the number of pictures of characters that it learnt, and that it did not; "top1", "probability", "ece":
    share of the n that are right, mean probability and expected calibration error; "auroc": the chance that one of the n has a
    higher probability than an unknown one}; None where there is no such picture.
    """
    known = ~np.isnan(right)
    result = {"n": int(known.sum()), "unknown": int((~known).sum()), "top1": None, "probability": None, "ece": None, "auroc": None}
    if known.any():
        hits, p = right[known], probability[known]
        place = np.minimum((p * BINS).astype(int), BINS - 1)
        result |= {"top1": round(float(hits.mean()), 5), "probability": round(float(p.mean()), 5)}
        result["ece"] = round(float(np.abs(np.bincount(place, p - hits)).sum() / len(p)), 5)
        if not known.all():
            result["auroc"] = round(float(mannwhitneyu(p, probability[~known]).statistic / len(p) / (~known).sum()), 5)
    return result
