"""Scores of a restored picture against the clean one, per picture.

Every function takes two batches (N, 1, H, W), float in [0, 1], strokes bright, and returns (N,) float32. The data range is
always 1, never taken from the pixels. Nothing is cropped, and nothing is averaged over the batch.
"""

import torch
import torch.nn.functional as F

from util.binarise import otsu

PSNR_CAP = 60.0  # dB; a perfect picture would be infinite and dominate every mean
WINDOW, SIGMA = 11, 1.5  # of SSIM, in pixels
C1, C2 = 0.01**2, 0.03**2


def check_pair(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 1:
        raise ValueError(f"expected two batches (N, 1, H, W) of one shape, not {tuple(a.shape)} and {tuple(b.shape)}")


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, at most 60."""
    check_pair(a, b)
    mse = (a.float() - b.float()).square().mean((1, 2, 3))
    return -10 * mse.clamp(min=10 ** (-PSNR_CAP / 10)).log10()


def _blur_matrix(n: int, device: torch.device) -> torch.Tensor:
    """(n, n): the matrix that blurs a row of n pixels, mirrored at both ends, by the Gaussian window.

    On a CPU, two matrix products blur one channel ten times as fast as two convolutions.
    """
    offset = torch.arange(WINDOW, device=device, dtype=torch.float64) - WINDOW // 2
    window = torch.exp(-offset.square() / (2 * SIGMA**2))
    identity = F.pad(torch.eye(n, device=device, dtype=torch.float64)[None], (WINDOW // 2,) * 2, mode="reflect")[0]
    return (identity.unfold(1, WINDOW, 1) @ (window / window.sum())).T


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al., IEEE Trans. Image Processing 13(4), 2004), in [-1, 1].

    Gaussian window of 11×11 with sigma 1.5 at every pixel, the picture mirrored at its borders, as in torchmetrics
    (scikit-image leaves out a border of 5 pixels). Raises ValueError for pictures smaller than 11×11.
    """
    return ssim_both(a, b)[0]


def ssim_both(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM of (a, b) and of (1 - a, 1 - b), each (N,). The polarity matters: the luminance term is more sensitive on dark ground
    than on bright ground."""
    check_pair(a, b)
    if min(a.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {WINDOW}×{WINDOW}, not {a.shape[-2]}×{a.shape[-1]}")
    # float64: autocast and TF32 do not touch it, and the differences of squares below stay precise enough.
    a, b = a.double(), b.double()
    rows, columns = _blur_matrix(a.shape[-2], a.device), _blur_matrix(a.shape[-1], a.device)
    stack = torch.cat([a, b, a * a, b * b, a * b])
    mean_a, mean_b, square_a, square_b, product = (rows @ stack @ columns.T).chunk(5)
    variance_a, variance_b = square_a - mean_a**2, square_b - mean_b**2
    covariance = product - mean_a * mean_b
    structure = (2 * covariance + C2) / (variance_a + variance_b + C2)  # the same in both polarities

    def of(mean_a: torch.Tensor, mean_b: torch.Tensor) -> torch.Tensor:
        luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
        return (luminance * structure).mean((1, 2, 3)).float()

    return of(mean_a, mean_b), of(1 - mean_a, 1 - mean_b)


def ink_f1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """F1 of the stroke pixels, each picture binarised by Otsu: 2·both / (strokes of a + strokes of b), in [0, 1].

    Two pictures without strokes (of one level each): 1. A picture without strokes against one with strokes: 0.
    """
    check_pair(a, b)
    strokes_a, strokes_b = otsu(a.float()), otsu(b.float())
    both = (strokes_a * strokes_b).sum((1, 2, 3))
    strokes = strokes_a.sum((1, 2, 3)) + strokes_b.sum((1, 2, 3))
    return torch.where(strokes > 0, 2 * both / strokes.clamp(min=1), torch.ones_like(both))
