"""Scores of a restored picture that only the evaluation uses; `util.metrics` has those of validation.

Every function takes batches (N, 1, H, W), float in [0, 1], strokes bright, and returns (N,) float32 per picture.
"""

import torch
import torch.nn.functional as F

from util.binarise import otsu
from util.metrics import PSNR_CAP, check_pair

DEGRADED = 0.5  # a pixel is in the degraded area if the degraded and the clean picture differ by more
GREY = (0.15, 0.85)  # a value between them is neither ground nor ink


def area_psnr(x: torch.Tensor, degraded: torch.Tensor, clean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """PSNR of `x` in dB, at most 60, over the degraded and over the intact area of each picture: two of (N,).

    The degraded area is where |degraded - clean| > DEGRADED, half of the range: tone and texture, which change every pixel, do
    not count. NaN if a picture has no such pixel.
    """
    check_pair(x, clean)
    check_pair(degraded, clean)
    error = (x.float() - clean.float()).square()
    area = (degraded - clean).abs() > DEGRADED
    errors = [torch.where(mask, error, 0).sum((1, 2, 3)) / mask.sum((1, 2, 3)) for mask in (area, ~area)]  # 0 / 0 is NaN
    return tuple(-10 * mse.clamp(min=10 ** (-PSNR_CAP / 10)).log10() for mse in errors)


def grey(x: torch.Tensor) -> torch.Tensor:
    """Share of the pixels between the values of GREY."""
    return ((x > GREY[0]) & (x < GREY[1])).float().mean((1, 2, 3))


def _drd_window(device: torch.device) -> torch.Tensor:
    """(1, 1, 5, 5): the reciprocal distance from the centre, 0 at the centre; the sum is 1."""
    offset = torch.arange(-2, 3, dtype=torch.float32, device=device)
    window = 1 / torch.hypot(offset[:, None], offset[None]).clamp(min=0.5)
    window[2, 2] = 0
    return (window / window.sum())[None, None]


def drd(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Distance reciprocal distortion of a's strokes against b's, each picture binarised by Otsu; 0 is perfect, no upper bound.

    Lu, Kot & Shi, "Distance-reciprocal distortion measure for binary document images", IEEE Signal Processing Letters 11(2),
    2004, as the DIBCO contests use it: a wrong pixel is weighted by the share of its 5×5 neighbourhood in the clean picture that
    differs from it, near pixels counting more; the sum is divided by the number of 8×8 blocks of the clean picture that are
    neither all ink nor all ground (at least 1). Pixels outside the picture and incomplete blocks at its end are ignored.
    """
    check_pair(a, b)
    strokes_a, strokes_b = otsu(a.float()), otsu(b.float())
    window = _drd_window(a.device)
    ink = F.conv2d(strokes_b, window, padding=2)  # weighted share of ink in the neighbourhood in b
    full = F.conv2d(torch.ones_like(strokes_b[:1]), window, padding=2)
    wrong = (strokes_a - strokes_b).abs()
    distortion = (wrong * torch.where(strokes_a > 0, full - ink, ink)).sum((1, 2, 3))
    share = F.avg_pool2d(strokes_b, 8)
    return distortion / ((share > 0) & (share < 1)).sum((1, 2, 3)).clamp(min=1)
