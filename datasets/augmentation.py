"""More hands than there are: characters moved, stretched, slanted, and written with a heavier or lighter brush.

Training alone sees them, so that a network takes a character's place and the weight of its strokes from the picture and not from
the hands it knows. The guide stays as it is.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.degradation import Stream, gaussian_blur, to_device

# Of the glyph as it is, which takes .8 of its square; ± of the logarithm of width over height; ± of the height. The 280 characters
# of a clerical stele, measured, take .59 to .84 of their picture's width and .33 to .83 of its height (5 % to 95 %).
SIZE, ASPECT, SLANT = (0.55, 1.05), 0.5, 0.15
BLUR, LEVEL = 2.3, (0.15, 0.65)  # px of 224; where the softened stroke ends: below a half it grows, by up to BLUR px a side


def augment(clean: Tensor, keys: np.ndarray, share: float) -> Tensor:
    """(N, 1, H, H) in [0, 1], strokes bright → the same shape; about a `share` of the pictures, drawn by `sample_keys`, changed.

    A picture comes out the same in every batch.
    """
    stream = Stream(keys, "augment")
    chosen = np.flatnonzero(stream.chance(share))
    if not len(chosen):
        return clean
    stream, index = stream.rows(chosen), to_device(chosen, torch.long, clean.device)
    return clean.index_copy(0, index, _weigh(_move(clean[index], stream), stream))


def _move(x: Tensor, stream: Stream) -> Tensor:
    """Scaled, stretched and slanted, then put anywhere that, but for the slant, leaves it within the square."""
    size, aspect = stream.uniform(*SIZE), np.exp(stream.uniform(-ASPECT, ASPECT) / 2)
    width, height, slant = np.minimum(size * aspect, 1.05), np.minimum(size / aspect, 1.05), stream.uniform(-SLANT, SLANT)
    room = np.maximum(1 - np.stack([width, height], 1), 0)
    across, down = (stream.uniform(-1, 1, 2) * room).T
    # where each pixel comes from: the inverse of (u, v) → (width · u + slant · v + across, height · v + down)
    back = np.zeros((len(x), 2, 3))
    back[:, 0, 0], back[:, 1, 1], back[:, 0, 1] = 1 / width, 1 / height, -slant / (width * height)
    back[:, 0, 2], back[:, 1, 2] = slant * down / (width * height) - across / width, -down / height
    fine = [len(x), 1, 2 * x.shape[2], 2 * x.shape[3]]  # four samples a pixel: what gets smaller would have jagged edges
    grid = F.affine_grid(to_device(back, torch.float32, x.device), fine, align_corners=False)
    return F.avg_pool2d(F.grid_sample(x, grid, align_corners=False), 2)


def _weigh(x: Tensor, stream: Stream) -> Tensor:
    """About half of the pictures with bolder or finer strokes: blurred, and cut anew at another level."""
    chosen = np.flatnonzero(stream.chance(0.5))
    if not len(chosen):
        return x
    level = to_device(stream.uniform(*LEVEL)[chosen], torch.float32, x.device)[:, None, None, None]
    index, px = to_device(chosen, torch.long, x.device), x.shape[-1] / 224
    sigma = torch.full((len(chosen),), BLUR * px, device=x.device)
    soft = gaussian_blur(x[index, 0], sigma, math.ceil(2.5 * BLUR * px))[:, None]
    steep = (0.5 / torch.minimum(level, 1 - level)).clamp_min(2.5 * BLUR * px)  # so that bare ground becomes 0 and full ink 1
    return x.index_copy(0, index, ((soft - level) * steep + 0.5).clamp(0, 1))
