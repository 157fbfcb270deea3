import numpy as np
import pytest
import torch
from scipy import linalg
from scipy.stats import bootstrap
from sklearn.metrics import roc_auc_score

from evaluation.statistics import (
    BINS,
    bootstrap_interval,
    calibration,
    calibration_of_readings,
    calibration_sums,
    frechet_distance,
)


def test_interval_matches_scipy_if_every_cluster_is_one_row():
    values = np.random.default_rng(0).gamma(2, size=(200, 2))
    low, high = bootstrap_interval(values, np.arange(200))
    for column in range(2):
        expected = bootstrap((values[:, column],), np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
        width = expected.high - expected.low
        assert low[column] == pytest.approx(expected.low, abs=0.08 * width)
        assert high[column] == pytest.approx(expected.high, abs=0.08 * width)
        assert low[column] < values[:, column].mean() < high[column]


def test_clusters_are_resampled_instead_of_pictures():
    of_character = np.random.default_rng(0).normal(size=50)
    values = np.repeat(of_character, 20)  # all pictures of a character have the same value
    clusters = np.repeat(np.arange(50), 20)
    low, high = bootstrap_interval(values, clusters)
    assert high - low == pytest.approx(2 * 1.96 * of_character.std() / np.sqrt(50), rel=0.15)
    naive = bootstrap_interval(values, np.arange(1000))
    assert high - low > 3 * (naive[1] - naive[0])


def test_interval_is_reproducible_and_independent_of_the_order():
    values, clusters = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) // 3
    first = bootstrap_interval(values, clusters)
    np.testing.assert_array_equal(first, bootstrap_interval(values, clusters))
    order = np.random.default_rng(1).permutation(60)
    np.testing.assert_allclose(first, bootstrap_interval(values[order], clusters[order]))
    assert not np.array_equal(first, bootstrap_interval(values, clusters, seed=1))


def test_absent_values_are_ignored():
    values = np.stack([np.full(30, 2.0), np.full(30, np.nan), np.arange(30.0)], axis=1)
    values[10:, 0] = np.nan
    low, high = bootstrap_interval(values, np.arange(30))
    assert low[0] == high[0] == 2 and np.isnan([low[1], high[1]]).all() and 0 < low[2] < 14.5 < high[2]
    assert bootstrap_interval(np.ones((4, 2, 3)), np.zeros(4)).shape == (2, 2, 3)


def test_a_paired_interval_is_narrower_than_those_of_the_two_methods():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=300)
    a, b = difficulty + 0.1 * rng.normal(size=300), difficulty + 0.1 * rng.normal(size=300) + 0.2
    low, high = bootstrap_interval(b - a, np.arange(300))
    assert 0 < low < 0.2 < high < 0.3
    assert high - low < 0.2 * np.diff(bootstrap_interval(a, np.arange(300)))


def test_frechet_distance_matches_its_formula():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)), rng.gamma(2, size=(400, 6)) @ rng.normal(size=(6, 6)) + 1
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_normal_distributions_in_one_dimension():
    a, b = np.random.default_rng(0).normal(size=(2, 100_000, 1)) * [[[2.0]], [[0.5]]] + [[[1.0]], [[-2.0]]]
    assert frechet_distance(a, b) == pytest.approx(3**2 + 1.5**2, rel=0.02)
    exact = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a.astype(np.float32), b.astype(np.float32)) == pytest.approx(exact, rel=1e-5)


def test_frechet_distance_of_features_without_variance():
    a = np.zeros((10, 4), np.float32)  # singular covariances
    assert frechet_distance(a, a + 2) == pytest.approx(16)


def test_calibration_of_known_pictures():
    restored = torch.tensor([0.0, 0.1, 0.5, 0.5, 0.9, 1.0]).view(1, 1, 2, 3)
    clean = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]).view(1, 1, 2, 3)
    result = calibration(calibration_sums(restored, clean))
    bins = result["bins"]
    assert result["ece"] == pytest.approx((0 + 0.1 + 0 + 0.1 + 0) / 6, abs=1e-4)
    assert sum(row["pixels"] for row in bins) == 6 and len(bins) == BINS
    assert bins[7] == {"pixels": 2, "restored": pytest.approx(0.5, abs=1e-4), "clean": 0.5}
    assert bins[14]["pixels"] == 1 and bins[3] == {"pixels": 0, "restored": None, "clean": None}


def test_calibration_error_of_a_calibrated_and_of_an_inverted_forecast():
    confidence = torch.rand(8, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    ink = (torch.rand(confidence.shape, generator=torch.Generator().manual_seed(1)) < confidence).float()
    assert calibration(calibration_sums(confidence, ink))["ece"] < 0.01
    naive = np.abs(np.histogram(confidence, BINS, (0, 1), weights=(1 - confidence - ink).numpy())[0]).sum() / confidence.numel()
    assert calibration(calibration_sums(1 - confidence, ink))["ece"] == pytest.approx(naive, abs=2e-3)


def test_calibration_does_not_depend_on_the_batches():
    generator = torch.Generator().manual_seed(0)
    restored, clean = (torch.rand(6, 1, 50, 50, generator=generator) for _ in range(2))
    whole = calibration_sums(restored, clean)
    parts = np.concatenate([calibration_sums(restored[i : i + 2], clean[i : i + 2]) for i in (4, 0, 2)])
    assert whole.dtype == np.int64 and (whole.sum(0) == parts.sum(0)).all()
    assert calibration(whole) == calibration(parts)


def test_calibration_of_readings():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=40_000)
    right = (rng.uniform(size=p.size) < p).astype(float)
    assert calibration_of_readings(right, p)["ece"] < 0.01
    sure = calibration_of_readings(right, np.sqrt(p))
    assert sure["ece"] == pytest.approx(np.sqrt(p).mean() - p.mean(), abs=0.01) and sure["auroc"] is None
    unknown = rng.uniform(size=p.size) < 0.2
    result = calibration_of_readings(np.where(unknown, np.nan, right), np.where(unknown, p**2, p))
    assert result["n"] + result["unknown"] == p.size and result["top1"] == pytest.approx(right[~unknown].mean(), abs=1e-5)
    assert result["auroc"] == pytest.approx(roc_auc_score(~unknown, np.where(unknown, p**2, p)), abs=1e-5)
    assert calibration_of_readings(np.array([np.nan]), np.array([0.5]))["ece"] is None
