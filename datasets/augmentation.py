"""Augmentation of clean characters: moved, stretched, slanted, and with thicker or thinner strokes.

For training only, so that a network reads the place of a character and the width of its strokes from the picture instead of
learning those of the training hands. The guide is not augmented.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.degradation import gaussian_blur, to_device
from datasets.rng import Stream

# Scale of the glyph, which fills 0.8 of its square; ± of the logarithm of width over height; ± shear, relative to the height. The
# 280 characters of a clerical stele fill 0.59 to 0.84 of their picture's width and 0.33 to 0.83 of its height (5 % to 95 %).
SIZE, ASPECT, SLANT = (0.55, 1.05), 0.5, 0.15
# In pixels at img_size 224: the change of the width of the strokes, what is left of a stroke or of the gap between two, and the
# sigma that rounds their corners. The strokes of the training hands are 7 to 17 wide, those of bold ones up to 32.
WEIGHT, LEAST, ROUND = (-6.0, 18.0), 4.0, 1.6


def augment(clean: Tensor, keys: np.ndarray, share: float) -> Tensor:
    """Augments a random fraction `share` of the pictures: (N, 1, H, H) in [0, 1], strokes bright → the same shape.

    keys: (N,) uint64 of `sample_keys`. The result for a picture depends on its key alone, not on its batch.
    """
    stream = Stream(keys, "augment")
    chosen = np.flatnonzero(stream.chance(share))
    if not len(chosen):
        return clean
    stream, index = stream.rows(chosen), to_device(chosen, torch.long, clean.device)
    return clean.index_copy(0, index, change_stroke_width(move(clean[index], stream), stream))


def move(x: Tensor, stream: Stream) -> Tensor:
    """Scales, stretches and slants each picture, then moves it to a random place; only the slant can push it out of the square."""
    size, aspect = stream.uniform(*SIZE), np.exp(stream.uniform(-ASPECT, ASPECT) / 2)
    width, height, slant = np.minimum(size * aspect, 1.05), np.minimum(size / aspect, 1.05), stream.uniform(-SLANT, SLANT)
    room = np.maximum(1 - np.stack([width, height], 1), 0)
    across, down = (stream.uniform(-1, 1, 2) * room).T
    # the source of each pixel: the inverse of (u, v) → (width · u + slant · v + across, height · v + down)
    back = np.zeros((len(x), 2, 3))
    back[:, 0, 0], back[:, 1, 1], back[:, 0, 1] = 1 / width, 1 / height, -slant / (width * height)
    back[:, 0, 2], back[:, 1, 2] = slant * down / (width * height) - across / width, -down / height
    fine = [len(x), 1, 2 * x.shape[2], 2 * x.shape[3]]  # four samples per pixel, else downscaled edges are jagged
    grid = F.affine_grid(to_device(back, torch.float32, x.device), fine, align_corners=False)
    return F.avg_pool2d(F.grid_sample(x, grid, align_corners=False), 2)


def change_stroke_width(x: Tensor, stream: Stream) -> Tensor:
    """Makes the strokes of about half of the pictures thicker or thinner by WEIGHT, along the rows and along the columns.

    The ground of a picture whose strokes become thicker, or else its ink, shrinks; but as in a bold hand a gap stays a gap, and a
    thin stroke stays whole.
    """
    chosen = np.flatnonzero(stream.chance(0.5))
    if not len(chosen):
        return x
    wider = to_device(stream.uniform(*WEIGHT)[chosen], torch.float32, x.device)[:, None, None, None]
    index, px = to_device(chosen, torch.long, x.device), x.shape[-1] / 224
    bolder = wider > 0
    shrinking = ((x[index] > 0.5) ^ bolder).float()
    for _ in range(2):
        shrinking = shorten_runs(shrinking, wider.abs() * px / 2, LEAST * px).mT
    sigma = ROUND * px
    soft = gaussian_blur(shrinking[:, 0], torch.full_like(wider[:, 0, 0, 0], sigma), math.ceil(2.5 * sigma))[:, None]
    soft = ((soft - 0.5) * max(2.5 * sigma, 1) + 0.5).clamp_(0, 1)
    return x.index_copy(0, index, torch.where(bolder, 1 - soft, soft))


def shorten_runs(x: Tensor, by: Tensor, least: float) -> Tensor:
    """(N, 1, H, W) → the same shape, in [0, 1]: each run of pixels above 0 in a row loses `by` pixels, (N, 1, 1, 1), at both ends,
    but keeps `least`, if it has them. At the edge of the picture no run ends."""
    inside, far = x > 0, 4.0 * x.shape[-1]
    at = torch.arange(x.shape[-1], device=x.device, dtype=torch.float32)
    start = torch.where(inside, -far, at + 1).cummax(-1).values  # of the run that a pixel lies in
    end = torch.where(inside, far, at).flip(-1).cummin(-1).values.flip(-1)
    by = torch.minimum(by, (end - start - least).clamp_min(0) / 2)
    return torch.minimum(at + 1 - start - by, end - by - at).clamp(0, 1) * x
