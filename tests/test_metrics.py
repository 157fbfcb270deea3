import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as tm_psnr
from torchmetrics.functional.image import structural_similarity_index_measure as tm_ssim

from tests.pictures import glyph_like
from util.metrics import PSNR_CAP, ink_f1, psnr, ssim


@pytest.fixture(params=["random", "glyphs", "faint"])
def pair(request) -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches (5, 1, 48, 48)."""
    generator = torch.Generator().manual_seed(1)
    if request.param == "random":
        return torch.rand(5, 1, 48, 48, generator=generator), torch.rand(5, 1, 48, 48, generator=generator)
    clean = glyph_like(5, seed=2)
    noise = 0.1 * torch.randn(clean.shape, generator=generator)
    scale = 1.0 if request.param == "glyphs" else 0.02
    return (clean + noise).clamp(0, 1) * scale, clean * scale


def test_psnr_is_that_of_torchmetrics_and_scikit_image(pair):
    a, b = pair
    ours = psnr(a, b)
    assert ours.shape == (5,)
    theirs = tm_psnr(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(ours, theirs.clamp(max=PSNR_CAP), rtol=1e-5, atol=1e-5)
    x, y = a.double().numpy(), b.double().numpy()
    scikit = [peak_signal_noise_ratio(y[i], x[i], data_range=1) for i in range(5)]
    np.testing.assert_allclose(ours.numpy(), np.minimum(scikit, PSNR_CAP), rtol=1e-5)


def test_ssim_is_that_of_torchmetrics_and_scikit_image(pair):
    a, b = pair
    ours = ssim(a, b)
    assert ours.shape == (5,)
    torch.testing.assert_close(ours, tm_ssim(a, b, data_range=1.0, reduction="none"), rtol=1e-4, atol=1e-5)
    # scikit-image leaves out a border of 5: mirrored outwards by as much, the two agree.
    mirrored = (np.pad(x[:, 0].double().numpy(), ((0, 0), (5, 5), (5, 5)), mode="reflect") for x in pair)
    for x, y, value in zip(*mirrored, ours, strict=True):
        settings = {"data_range": 1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        assert abs(structural_similarity(x, y, **settings) - value.item()) < 1e-4


def test_f1_is_that_of_precision_and_recall(pair):
    levels = [(x * 255).round().byte().numpy() for x in pair]
    ours = ink_f1(*(torch.from_numpy(x) / 255 for x in levels))
    for x, y, value in zip(*levels, ours, strict=True):
        found, true = x > threshold_otsu(x), y > threshold_otsu(y)
        precision, recall = (found & true).sum() / found.sum(), (found & true).sum() / true.sum()
        assert value.item() == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-5)


def test_identical_pictures_are_perfect():
    x = glyph_like(3)
    assert psnr(x, x).tolist() == pytest.approx([60] * 3)
    torch.testing.assert_close(ssim(x, x), torch.ones(3))
    assert ink_f1(x, x).tolist() == [1.0] * 3


def test_known_values():
    a, b = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 0.1)
    assert psnr(a, b).item() == pytest.approx(20, abs=1e-4)
    assert psnr(a, torch.ones_like(a)).item() == pytest.approx(0, abs=1e-6)
    assert ssim(a, torch.ones_like(a)).item() == pytest.approx(1e-4 / 1.0001, rel=1e-3)
    half, quarter = a.clone(), a.clone()
    half[..., :8] = 1
    quarter[..., :4] = 0.6
    assert ink_f1(half, quarter).item() == pytest.approx(2 * 4 / 12)
    assert ink_f1(half, 1 - half).item() == 0


def test_pictures_without_strokes():
    blank, other = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 0.4)
    inked = blank.clone()
    inked[..., 5:9, 5:9] = 1
    assert ink_f1(blank, other).item() == 1
    assert ink_f1(blank, inked).item() == ink_f1(inked, blank).item() == 0
    for score in (psnr, ssim):
        assert torch.isfinite(score(blank, inked)).all()


def test_scores_do_not_depend_on_the_batch(pair):
    a, b = pair
    for score in (psnr, ssim, ink_f1):
        alone = torch.cat([score(a[i : i + 1], b[i : i + 1]) for i in range(len(a))])
        torch.testing.assert_close(score(a, b), alone, rtol=1e-5, atol=1e-6)


def test_wrong_shapes_are_refused():
    for score in (psnr, ssim, ink_f1):
        with pytest.raises(ValueError, match="one shape"):
            score(torch.rand(2, 1, 16, 16), torch.rand(1, 1, 16, 16))
    with pytest.raises(ValueError, match="at least 11"):
        ssim(torch.rand(1, 1, 10, 16), torch.rand(1, 1, 10, 16))
