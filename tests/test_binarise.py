import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.filters import threshold_otsu, threshold_sauvola

from tests.pictures import glyph_like
from util.binarise import median, otsu, otsu_threshold, sauvola


@pytest.mark.parametrize("make", [glyph_like, lambda n: torch.rand(n, 1, 31, 37), lambda n: torch.rand(n, 1, 9, 9) ** 4])
def test_parts_the_pixels_as_scikit_image_does(make):
    torch.manual_seed(0)
    x = (make(12) * 255).round() / 255
    for picture, strokes in zip(x, otsu(x), strict=True):
        bytes_ = (picture[0] * 255).round().byte().numpy()
        np.testing.assert_array_equal(strokes[0].numpy() == 1, bytes_ > threshold_otsu(bytes_))


def test_threshold_of_a_float_picture_is_near_that_of_scikit_image():
    x = glyph_like(12, seed=3)
    ours = otsu_threshold(x)
    theirs = torch.tensor([threshold_otsu(picture[0].numpy()) for picture in x])
    assert (ours - theirs).abs().max() < 1.5 / 255


def test_each_picture_has_its_own_threshold():
    x = glyph_like(6, seed=1)
    alone = torch.cat([otsu_threshold(x[i : i + 1]) for i in range(6)])
    assert torch.equal(otsu_threshold(x), alone)
    assert len(alone.unique()) > 1


def test_two_levels_are_parted_and_one_level_has_no_strokes():
    two = torch.full((1, 1, 8, 8), 0.2)
    two[..., 3:5] = 0.7
    assert torch.equal(otsu(two), (two > 0.5).float())
    for level in (0.0, 0.3, 1.0):
        assert otsu(torch.full((1, 1, 8, 8), level)).sum() == 0


def test_values_outside_the_range_are_taken_as_its_ends():
    x = torch.tensor([-0.5, 0.0, 1.0, 1.5]).view(1, 1, 2, 2)
    assert otsu(x).flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("size", [1, 3, 5])
def test_median_is_that_of_scipy(size):
    x = torch.rand(2, 1, 13, 17)
    expected = [ndimage.median_filter(picture[0].numpy(), size, mode="nearest") for picture in x]
    np.testing.assert_array_equal(median(x, size)[:, 0].numpy(), np.stack(expected))


def test_median_of_even_size_is_refused():
    with pytest.raises(ValueError, match="odd"):
        median(torch.rand(1, 1, 8, 8), 4)


def test_sauvola_is_that_of_scikit_image():
    x = glyph_like(4, seed=6, side=64)
    dark = 1 - x.double().numpy()[:, 0]
    expected = np.stack([picture < threshold_sauvola(picture, window_size=17, k=0.2, r=0.5) for picture in dark])
    ours = sauvola(x)
    assert ours.shape == x.shape and ours.dtype == x.dtype and set(ours.unique().tolist()) == {0.0, 1.0}
    assert (ours[:, 0].bool().numpy() != expected).mean() < 1e-4


def test_sauvola_follows_the_ground():
    ramp = torch.linspace(0, 0.5, 96).expand(1, 1, 96, 96).clone()
    ramp[..., 30:36, :] += 0.5
    assert (sauvola(ramp)[..., 30:36, :] == 1).all() and sauvola(ramp).mean() < 0.15
    assert (otsu(ramp)[..., 30:36, :48] == 1).all() and otsu(ramp).mean() > 0.2  # one threshold cannot
    assert not sauvola(torch.zeros(1, 1, 32, 32)).any()
