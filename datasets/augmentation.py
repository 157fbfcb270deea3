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
# In pixels at img_size 224: change of the width of the strokes, and least sigma of the blur that a threshold then changes it with,
# which bears REACH times as much. The strokes of the training hands are 7 to 17 wide, those of bold ones up to 32.
WEIGHT, BLUR, REACH = (-6.0, 14.0), 2.3, 2.6
# A glyph does not bear a change of width that leaves less than THINNEST of its ink, or changes its number of strokes minus that of
# holes by more than LOST + LOST_SHARE of it. Smaller changes are then tried: these fractions of the first.
THINNEST, LOST, LOST_SHARE, TRIES = 0.45, 1, 0.15, (1.0, 0.6, 0.3)


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
    """Makes the strokes of about half of the pictures thicker or thinner by WEIGHT: blurs them and thresholds them at another
    level. A glyph that would vanish, close or fall apart changes less, or not at all."""
    chosen = np.flatnonzero(stream.chance(0.5))
    if not len(chosen):
        return x
    wider = to_device(stream.uniform(*WEIGHT)[chosen], torch.float32, x.device)[:, None, None, None]
    index, px = to_device(chosen, torch.long, x.device), x.shape[-1] / 224
    sigma = (wider.abs() / REACH).clamp_min(BLUR)
    edge, radius = 2.5 * sigma * px, math.ceil(2.5 * max(BLUR, max(map(abs, WEIGHT)) / REACH) * px)
    old = new = x[index]
    soft = gaussian_blur(old[:, 0], sigma[:, 0, 0, 0] * px, radius)[:, None]
    ink, parts = old.sum((1, 2, 3)), _parts(old)
    for fraction in sorted(TRIES):  # a larger change replaces a smaller one, if the glyph bears both
        level = torch.special.ndtr(wider * (-fraction / 2) / sigma)  # of the blurred edge at the new edge
        steep = torch.maximum(0.5 / torch.minimum(level, 1 - level), edge)  # maps bare ground to 0 and full ink to 1
        trial = ((soft - level) * steep + 0.5).clamp_(0, 1)
        bears = (_parts(trial) - parts).abs() <= LOST + LOST_SHARE * parts.abs()
        bears &= trial.sum((1, 2, 3)) >= THINNEST * ink
        new = torch.where(bears[:, None, None, None], trial, new)
    return x.index_copy(0, index, new)


def _parts(x: Tensor) -> Tensor:
    """(N, 1, H, W) → (N,): the number of strokes, connected by their sides, minus that of holes: pixels - pairs + fours."""
    ink = x > 0.5
    across, down = ink[..., 1:] & ink[..., :-1], ink[..., 1:, :] & ink[..., :-1, :]
    squares = across[..., 1:, :] & across[..., :-1, :]
    pixels, beside, above, fours = (part.sum((1, 2, 3)) for part in (ink, across, down, squares))
    return pixels - beside - above + fours
