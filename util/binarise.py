"""Otsu's threshold for batches, on any device.

Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. Systems, Man and Cybernetics 9(1), 1979.
"""

import torch

LEVELS = 256


def otsu_threshold(x: torch.Tensor) -> torch.Tensor:
    """The threshold between ground and strokes of each picture: (N, 1, H, W) in [0, 1] → (N,) in (0, 1].

    The histogram has 256 bins, centred on the levels k/255 of an 8-bit file, so a picture has the same threshold in memory and
    on disk, and its pixels are classified as by `skimage.filters.threshold_otsu` on the 8-bit picture. (For a float picture,
    scikit-image spreads the bins over the picture's own range; the thresholds then differ by about a level.) The threshold is
    half a level above the last level of the ground: `x > threshold` are the strokes. A picture of one level gets a threshold
    above that level, so it has no strokes.
    """
    n = x.shape[0]
    level = (x.reshape(n, -1).clamp(0, 1) * (LEVELS - 1)).round().long()
    counts = torch.zeros(n, LEVELS, dtype=torch.long, device=x.device)
    counts.scatter_add_(1, level, counts.new_ones(()).expand_as(level))  # torch.bincount would synchronise with the device

    # Sums of integers are exact, so the maximum of the variance is the same on every device and in every batch.
    dark = counts.cumsum(1)[:, :-1]
    dark_sum = (counts * torch.arange(LEVELS, device=x.device)).cumsum(1)
    total, total_sum = level.shape[1], dark_sum[:, -1:]
    bright = total - dark
    # Between-class variance up to a factor: dark · bright · (mean of dark - mean of bright)².
    distance = (dark_sum[:, :-1] * total - total_sum * dark).double()
    variance = distance.square() / (dark * bright).clamp(min=1)

    best = variance.argmax(1)
    flat = level.amax(1) == level.amin(1)
    return (torch.where(flat, level[:, 0], best) + 0.5).float() / (LEVELS - 1)


def otsu(x: torch.Tensor) -> torch.Tensor:
    """Strokes by Otsu's threshold: (N, 1, H, W) in [0, 1] → (N, 1, H, W) of 0 and 1, of the same type."""
    return (x > otsu_threshold(x)[:, None, None, None]).to(x.dtype)
