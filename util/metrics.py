"""Scores of a restored picture against the clean one, per picture.

Every function takes two batches (N, 1, H, W), float in [0, 1], strokes bright, and gives (N,) float32. The data range
is 1, always: it is never read off the pixels. Nothing is cropped and nothing is averaged over the batch.
"""

import torch
import torch.nn.functional as F

from util.binarise import otsu

DAMAGED = 0.5  # a pixel is damaged where the damaged and the clean picture differ by more: ink is missing, or ink is there
PSNR_CAP = 60.0  # dB: a perfect picture would be infinite and would carry every mean away
WINDOW, SIGMA = 11, 1.5  # of SSIM, in pixels
K1, K2 = 0.01, 0.03


def _check(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 1:
        raise ValueError(f"two batches (N, 1, H, W) of one shape are needed, not {tuple(a.shape)} and {tuple(b.shape)}")


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, at most 60."""
    _check(a, b)
    mse = (a.float() - b.float()).square().mean((1, 2, 3))
    return -10 * mse.clamp(min=10 ** (-PSNR_CAP / 10)).log10()


def area_psnr(x: torch.Tensor, damaged: torch.Tensor, clean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """PSNR of `x` in dB, at most 60, over the damaged and over the intact pixels of each picture: two of (N,).

    Damaged is where |damaged - clean| > DAMAGED: half of the range, so that tone and texture, which change every pixel, do
    not count. NaN where a picture has no such pixel.
    """
    _check(x, clean)
    _check(damaged, clean)
    error = (x.float() - clean.float()).square()
    hit = (damaged - clean).abs() > DAMAGED
    parts = [torch.where(part, error, 0).sum((1, 2, 3)) / part.sum((1, 2, 3)) for part in (hit, ~hit)]  # 0 / 0 is NaN
    return tuple(-10 * mse.clamp(min=10 ** (-PSNR_CAP / 10)).log10() for mse in parts)


def _blur_matrix(n: int, device: torch.device) -> torch.Tensor:
    """(n, n): what the Gaussian window, mirrored at both ends, does to n pixels in a row.

    As two products of matrices the blur of one channel is ten times as fast on a CPU as two convolutions.
    """
    offset = torch.arange(WINDOW, device=device, dtype=torch.float64) - WINDOW // 2
    window = torch.exp(-offset.square() / (2 * SIGMA**2))
    identity = F.pad(torch.eye(n, device=device, dtype=torch.float64)[None], (WINDOW // 2,) * 2, mode="reflect")[0]
    return (identity.unfold(1, WINDOW, 1) @ (window / window.sum())).T


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al., IEEE Trans. Image Processing 13(4), 2004), in [-1, 1].

    Gaussian window of 11×11 with sigma 1.5 at every pixel, the picture mirrored at its borders, as torchmetrics does
    (scikit-image leaves out a border of 5 pixels). Pictures must be at least 11×11.
    """
    return ssim_both(a, b)[0]


def ssim_both(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM of (a, b) and of (1 - a, 1 - b), each (N,): its luminance term sees differences on dark ground better than on
    bright ground, so the polarity matters."""
    _check(a, b)
    if min(a.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {WINDOW}×{WINDOW}, not {a.shape[-2]}×{a.shape[-1]}")
    # In float64: autocast and TF32 leave it alone, and the differences of squares below stay exact enough.
    a, b = a.double(), b.double()
    rows, columns = _blur_matrix(a.shape[-2], a.device), _blur_matrix(a.shape[-1], a.device)
    stack = torch.cat([a, b, a * a, b * b, a * b])
    mean_a, mean_b, square_a, square_b, product = (rows @ stack @ columns.T).chunk(5)
    variance_a, variance_b = square_a - mean_a**2, square_b - mean_b**2
    covariance = product - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)  # the same in both polarities

    def of(mean_a: torch.Tensor, mean_b: torch.Tensor) -> torch.Tensor:
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        return (luminance * structure).mean((1, 2, 3)).float()

    return of(mean_a, mean_b), of(1 - mean_a, 1 - mean_b)


def ink_f1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """F1 of the stroke pixels, each picture's own by Otsu: 2·both / (strokes of a + strokes of b), in [0, 1].

    Two pictures without strokes (each of one level) agree: 1. A picture of one level against one with strokes: 0.
    """
    _check(a, b)
    strokes_a, strokes_b = otsu(a.float()), otsu(b.float())
    both = (strokes_a * strokes_b).sum((1, 2, 3))
    strokes = strokes_a.sum((1, 2, 3)) + strokes_b.sum((1, 2, 3))
    return torch.where(strokes > 0, 2 * both / strokes.clamp(min=1), torch.ones_like(both))


def _drd_window(device: torch.device) -> torch.Tensor:
    """(1, 1, 5, 5): one over the distance from the centre, which itself is 0; the sum is 1."""
    offset = torch.arange(-2, 3, dtype=torch.float32, device=device)
    window = 1 / torch.hypot(offset[:, None], offset[None]).clamp(min=0.5)
    window[2, 2] = 0
    return (window / window.sum())[None, None]


def drd(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Distance reciprocal distortion of a's strokes against b's, each picture's own by Otsu; 0 is perfect, no upper bound.

    Lu, Kot & Shi, "Distance-reciprocal distortion measure for binary document images", IEEE Signal Processing Letters 11(2),
    2004, as the DIBCO contests use it: each wrong pixel counts by how much of its 5×5 neighbourhood in the clean picture
    differs from it, near pixels more; the sum is divided by the number of 8×8 blocks of the clean picture that are neither
    all ink nor all ground (at least 1). Outside the picture nothing is counted; incomplete blocks at its end are left out.
    """
    _check(a, b)
    strokes_a, strokes_b = otsu(a.float()), otsu(b.float())
    window = _drd_window(a.device)
    ink = F.conv2d(strokes_b, window, padding=2)  # share of the neighbourhood that is ink in b
    all_ = F.conv2d(torch.ones_like(strokes_b[:1]), window, padding=2)
    wrong = (strokes_a - strokes_b).abs()
    distortion = (wrong * torch.where(strokes_a > 0, all_ - ink, ink)).sum((1, 2, 3))
    share = F.avg_pool2d(strokes_b, 8)
    return distortion / ((share > 0) & (share < 1)).sum((1, 2, 3)).clamp(min=1)
