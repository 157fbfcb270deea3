import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from skimage.filters import threshold_otsu

from evaluation.predictors import median, sauvola
from tests.pictures import glyph_like
from util.binarise import otsu, otsu_threshold


@pytest.mark.parametrize("make", [glyph_like, lambda n: torch.rand(n, 1, 31, 37), lambda n: torch.rand(n, 1, 9, 9) ** 4])
def test_otsu_classifies_the_pixels_as_scikit_image(make):
    torch.manual_seed(0)
    x = (make(12) * 255).round() / 255
    for picture, strokes in zip(x, otsu(x), strict=True):
        bytes_ = (picture[0] * 255).round().byte().numpy()
        np.testing.assert_array_equal(strokes[0].numpy() == 1, bytes_ > threshold_otsu(bytes_))


def test_threshold_of_a_float_picture_is_close_to_scikit_image():
    x = glyph_like(12, seed=3)
    ours = otsu_threshold(x)
    expected = torch.tensor([threshold_otsu(picture[0].numpy()) for picture in x])
    assert (ours - expected).abs().max() < 1.5 / 255


def test_each_picture_has_its_own_threshold():
    x = glyph_like(6, seed=1)
    alone = torch.cat([otsu_threshold(x[i : i + 1]) for i in range(6)])
    assert torch.equal(otsu_threshold(x), alone)
    assert len(alone.unique()) > 1


def test_two_levels_are_separated_and_one_level_has_no_strokes():
    two = torch.full((1, 1, 8, 8), 0.2)
    two[..., 3:5] = 0.7
    assert torch.equal(otsu(two), (two > 0.5).float())
    for level in (0.0, 0.3, 1.0):
        assert otsu(torch.full((1, 1, 8, 8), level)).sum() == 0


def test_values_outside_the_range_are_clamped():
    x = torch.tensor([-0.5, 0.0, 1.0, 1.5]).view(1, 1, 2, 2)
    assert otsu(x).flatten().tolist() == [0, 0, 1, 1]


def test_median_matches_numpy():
    x = torch.rand(2, 1, 13, 17)
    windows = sliding_window_view(np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge"), (3, 3), axis=(2, 3))
    np.testing.assert_array_equal(median(x).numpy(), np.median(windows, axis=(-2, -1)))


def test_sauvola_matches_its_formula():
    x = glyph_like(4, seed=6, img_size=64)
    dark = 1 - x.double().numpy()[:, 0]
    windows = sliding_window_view(np.pad(dark, ((0, 0), (8, 8), (8, 8)), mode="reflect"), (17, 17), axis=(1, 2))
    mean, deviation = windows.mean((-2, -1)), windows.std((-2, -1))
    expected = dark < mean * (1 + 0.2 * (deviation / 0.5 - 1))
    ours = sauvola(x)
    assert ours.shape == x.shape and ours.dtype == x.dtype and set(ours.unique().tolist()) == {0.0, 1.0}
    assert (ours[:, 0].bool().numpy() != expected).mean() < 1e-4


def test_sauvola_adapts_to_the_ground():
    ramp = torch.linspace(0, 0.5, 96).expand(1, 1, 96, 96).clone()
    ramp[..., 30:36, :] += 0.5
    assert (sauvola(ramp)[..., 30:36, :] == 1).all() and sauvola(ramp).mean() < 0.15
    assert (otsu(ramp)[..., 30:36, :48] == 1).all() and otsu(ramp).mean() > 0.2  # a global threshold cannot
    assert not sauvola(torch.zeros(1, 1, 32, 32)).any()
