"""Otsu's threshold and the median filter, in batches, on any device.

Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. Systems, Man and Cybernetics 9(1), 1979.
"""

import torch
import torch.nn.functional as F

LEVELS = 256


def otsu_threshold(x: torch.Tensor) -> torch.Tensor:
    """Threshold between ground and strokes of each picture: (N, 1, H, W) in [0, 1] -> (N,) in (0, 1].

    The histogram has 256 bins, centred on the levels k/255 of an 8-bit file, so a picture has the same threshold in
    memory and on disk, and its pixels are parted as `skimage.filters.threshold_otsu` parts those of the 8-bit picture.
    The value returned lies half a level above the last level of the ground: `x > threshold` are the strokes.
    (scikit-image spreads the bins of a float picture over its own range; the thresholds then differ by a level or so.)
    A picture of one level gets a threshold above that level, so it has no strokes.
    """
    n = x.shape[0]
    level = (x.reshape(n, -1).clamp(0, 1) * (LEVELS - 1)).round().long()
    counts = torch.zeros(n, LEVELS, dtype=torch.long, device=x.device)
    counts.scatter_add_(1, level, counts.new_ones(()).expand_as(level))  # torch.bincount would wait for the device

    # Sums of whole numbers are exact, so the largest variance is the same one on every device and for every batch.
    dark = counts.cumsum(1)[:, :-1]
    dark_sum = (counts * torch.arange(LEVELS, device=x.device)).cumsum(1)
    total, total_sum = level.shape[1], dark_sum[:, -1:]
    bright = total - dark
    # Variance between the classes, up to a factor: dark · bright · (mean of dark - mean of bright)².
    distance = (dark_sum[:, :-1] * total - total_sum * dark).double()
    variance = distance.square() / (dark * bright).clamp(min=1)

    best = variance.argmax(1)
    flat = level.amax(1) == level.amin(1)
    return (torch.where(flat, level[:, 0], best) + 0.5).float() / (LEVELS - 1)


def otsu(x: torch.Tensor) -> torch.Tensor:
    """Strokes by Otsu's threshold: (N, 1, H, W) in [0, 1] -> (N, 1, H, W) of 0 and 1, of the same type."""
    return (x > otsu_threshold(x)[:, None, None, None]).to(x.dtype)


def median(x: torch.Tensor, size: int = 3) -> torch.Tensor:
    """Median filter of `size` × `size` pixels, borders repeated: (N, C, H, W) -> (N, C, H, W). `size` is odd."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"the size of a median filter is odd, not {size}")
    h, w = x.shape[-2:]
    padded = F.pad(x, (size // 2,) * 4, mode="replicate")
    shifts = [padded[..., dy : dy + h, dx : dx + w] for dy in range(size) for dx in range(size)]
    return torch.stack(shifts).median(dim=0).values


def sauvola(x: torch.Tensor, k: float = 0.2) -> torch.Tensor:
    """Strokes by a local threshold: (N, 1, H, W) in [0, 1], strokes bright -> (N, 1, H, W) of 0 and 1, of the same type.

    Sauvola & Pietikäinen, "Adaptive document image binarization", Pattern Recognition 33(2), 2000. The method is made for
    dark text on bright paper, so it looks at 1 - x: strokes are where that lies below mean · (1 + k (sd / 0.5 - 1)) of the
    window around, which is a quarter of the shorter edge; the picture is mirrored at its borders.
    """
    half = max(1, min(x.shape[-2:]) // 8)
    y = 1 - x.double()  # differences of squares
    padded = F.pad(torch.cat([y, y.square()]), (half,) * 4, mode="reflect")
    sums = F.pad(padded.cumsum(2).cumsum(3), (1, 0, 1, 0))
    size = 2 * half + 1
    boxes = sums[..., size:, size:] - sums[..., :-size, size:] - sums[..., size:, :-size] + sums[..., :-size, :-size]
    mean, square = (boxes / size**2).chunk(2)
    sd = (square - mean.square()).clamp(min=0).sqrt()
    return (y < mean * (1 + k * (sd / 0.5 - 1))).to(x.dtype)
