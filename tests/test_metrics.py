import math

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as tm_psnr
from torchmetrics.functional.image import structural_similarity_index_measure as tm_ssim

from evaluation.measures import area_psnr, drd, grey
from tests.pictures import glyph_like
from tests.test_strokes import changed, cross
from util.metrics import PSNR_CAP, ink_f1, psnr, ssim, ssim_both


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


def test_psnr_matches_torchmetrics_and_scikit_image(pair):
    a, b = pair
    ours = psnr(a, b)
    assert ours.shape == (5,)
    expected = tm_psnr(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(ours, expected.clamp(max=PSNR_CAP), rtol=1e-5, atol=1e-5)
    x, y = a.double().numpy(), b.double().numpy()
    scikit = [peak_signal_noise_ratio(y[i], x[i], data_range=1) for i in range(5)]
    np.testing.assert_allclose(ours.numpy(), np.minimum(scikit, PSNR_CAP), rtol=1e-5)


def test_ssim_matches_torchmetrics_and_scikit_image(pair):
    a, b = pair
    ours = ssim(a, b)
    assert ours.shape == (5,)
    torch.testing.assert_close(ours, tm_ssim(a, b, data_range=1.0, reduction="none"), rtol=1e-4, atol=1e-5)
    # scikit-image leaves out a border of 5: the two agree on pictures extended by as much.
    mirrored = (np.pad(x[:, 0].double().numpy(), ((0, 0), (5, 5), (5, 5)), mode="reflect") for x in pair)
    for x, y, value in zip(*mirrored, ours, strict=True):
        settings = {"data_range": 1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        assert abs(structural_similarity(x, y, **settings) - value.item()) < 1e-4


def test_f1_matches_precision_and_recall(pair):
    levels = [(x * 255).round().byte().numpy() for x in pair]
    ours = ink_f1(*(torch.from_numpy(x) / 255 for x in levels))
    for x, y, value in zip(*levels, ours, strict=True):
        strokes, true = x > threshold_otsu(x), y > threshold_otsu(y)
        precision, recall = (strokes & true).sum() / strokes.sum(), (strokes & true).sum() / true.sum()
        assert value.item() == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-5)


def test_identical_pictures_have_perfect_scores():
    x = glyph_like(3)
    assert psnr(x, x).tolist() == pytest.approx([60] * 3)
    torch.testing.assert_close(ssim(x, x), torch.ones(3))
    assert ink_f1(x, x).tolist() == [1.0] * 3


def test_ssim_of_the_other_polarity(pair):
    a, b = pair
    plain, inverse = ssim_both(a, b)
    torch.testing.assert_close(plain, ssim(a, b))
    torch.testing.assert_close(inverse, tm_ssim(1 - a, 1 - b, data_range=1.0, reduction="none"), rtol=1e-4, atol=1e-5)


def naive_drd(result: np.ndarray, clean: np.ndarray) -> float:
    """Lu, Kot & Shi (2004), pixel by pixel; (H, W) of 0 and 1."""
    weight = {(m, n): 1 / math.hypot(m, n) if m or n else 0.0 for m in range(-2, 3) for n in range(-2, 3)}
    total, norm = 0.0, sum(weight.values())
    height, width = clean.shape
    for y, x in zip(*np.nonzero(result != clean), strict=True):
        for (m, n), w in weight.items():
            if 0 <= y + m < height and 0 <= x + n < width:
                total += w / norm * abs(int(clean[y + m, x + n]) - int(result[y, x]))
    blocks = [clean[y : y + 8, x : x + 8] for y in range(0, height - 7, 8) for x in range(0, width - 7, 8)]
    return total / max(1, sum(0 < block.sum() < 64 for block in blocks))


def test_drd_matches_naive_loops(pair):
    levels = [(x * 255).round().byte().numpy()[:, 0] for x in pair]
    ours = drd(*(torch.from_numpy(x)[:, None] / 255 for x in levels))
    for x, y, value in zip(*levels, ours, strict=True):
        assert value.item() == pytest.approx(naive_drd(x > threshold_otsu(x), y > threshold_otsu(y)), rel=1e-4)


@pytest.mark.parametrize("kind, expected", [("hole", 2.7282), ("shift", 14.8403), ("blob", 9.6603)])
def test_drd_matches_the_contests_tool(kind, expected):
    # expected: by version 0.9.9 of the doxapy package, which agrees with their tool
    a, b = (torch.from_numpy(x).float()[None, None] for x in (changed(kind), cross()))
    assert drd(a, b).item() == pytest.approx(expected, abs=1e-3)


def test_drd_of_pictures_without_strokes():
    blank, inked = torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
    inked[..., 8:24, 10:14] = 1
    assert drd(blank, blank).item() == drd(inked, inked).item() == 0
    assert 0 < drd(blank, inked).item() < drd(inked, blank).item() < float("inf")


def test_psnr_of_the_degraded_and_of_the_intact_area(pair):
    x, clean = pair
    degraded = clean.clone()
    degraded[..., :20, :30] = 1 - degraded[..., :20, :30]
    ours = area_psnr(x, degraded, clean)
    for i in range(len(x)):
        a, b, c = (t[i, 0].double().numpy() for t in (x, degraded, clean))
        for mask, values in zip((np.abs(b - c) > 0.5, np.abs(b - c) <= 0.5), ours, strict=True):
            if mask.any():
                expected = peak_signal_noise_ratio(c[mask], a[mask], data_range=1)
                assert values[i].item() == pytest.approx(min(expected, PSNR_CAP), rel=1e-4)
            else:
                assert values[i].isnan()
    assert area_psnr(x, clean, clean)[0].isnan().all()
    torch.testing.assert_close(area_psnr(x, clean, clean)[1], psnr(x, clean))


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


def test_scores_of_pictures_without_strokes():
    blank, other = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 0.4)
    inked = blank.clone()
    inked[..., 5:9, 5:9] = 1
    assert ink_f1(blank, other).item() == 1
    assert ink_f1(blank, inked).item() == ink_f1(inked, blank).item() == 0
    for score in (psnr, ssim):
        assert torch.isfinite(score(blank, inked)).all()


def test_scores_do_not_depend_on_the_batch(pair):
    a, b = pair
    for score in (psnr, ssim, ink_f1, drd):
        alone = torch.cat([score(a[i : i + 1], b[i : i + 1]) for i in range(len(a))])
        torch.testing.assert_close(score(a, b), alone, rtol=1e-5, atol=1e-6)


def test_wrong_shapes_are_refused():
    for score in (psnr, ssim, ink_f1):
        with pytest.raises(ValueError, match="one shape"):
            score(torch.rand(2, 1, 16, 16), torch.rand(1, 1, 16, 16))
    with pytest.raises(ValueError, match="at least 11"):
        ssim(torch.rand(1, 1, 10, 16), torch.rand(1, 1, 10, 16))


def test_grey_is_the_share_of_pixels_that_are_neither_ground_nor_ink():
    x = torch.tensor([[0.0, 0.14, 0.16, 0.5], [1.0, 0.86, 0.84, 0.3], [0.0, 1.0, 0.0, 1.0]]).view(3, 1, 2, 2)
    assert grey(x).tolist() == [0.5, 0.5, 0.0]
