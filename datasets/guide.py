"""Guides for training: what a person who knows the character can give, laid over the character's box.

A guide is the standard glyph, or the same character in another hand, sometimes itself lightly degraded; or there is none (zeros).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.degradation import Degradation, to_device
from datasets.rng import Stream, splitmix64

WORN, WEAR = 0.3, 0.25  # fraction of the specimens in another hand that are degraded, and their severity
# How far a guide's place is off, relative to its size: the standard deviation of each edge, and of some of them. As for boxes that
# are found in degraded made pictures, of whose edges 75 % are within 2 %; `restoration.guide` lays it more closely.
NEAR, FAR, FAR_SHARE = 0.02, 0.15, 0.25


def ink_box(x: Tensor) -> Tensor:
    """(N, 1, H, W) in [0, 1] → (N, 4): left, top, right and bottom of the ink in [0, 1]; the whole picture if it has none."""
    ink, (height, width) = x[:, 0] > 0.5, x.shape[2:]
    sides = [ink.any(axis).byte() for axis in (1, 2)]
    first, after = ([line.argmax(1) for line in sides], [line.shape[1] - line.flip(1).argmax(1) for line in sides])
    return torch.stack([*first, *after], 1) / x.new_tensor([width, height, width, height])


def fit(guide: Tensor, box: Tensor) -> Tensor:
    """Lays the ink of guides (N, 1, H, H) over boxes (N, 4), left, top, right and bottom in [0, 1], which may reach beyond."""
    (start, stop), (to_start, to_stop) = (edges.view(-1, 2, 2).unbind(1) for edges in (ink_box(guide), box))
    scale = (stop - start) / (to_stop - to_start).clamp_min(0.05)
    shift = start + stop - 1 - scale * (to_start + to_stop - 1)  # in [-1, 1], as affine_grid counts
    grid = F.affine_grid(torch.cat([torch.diag_embed(scale), shift[:, :, None]], 2), list(guide.shape), align_corners=False)
    return F.grid_sample(guide, grid, align_corners=False)


def make_guides(sample: dict, target: Tensor, keys: np.ndarray, damage: Degradation, drop: float) -> Tensor:
    """The guides for training targets (N, 1, H, H): a fraction `drop` zeros, half of the rest specimens, where there are any.

    sample: with "guide", the standard glyphs, and "specimen", the same character in another hand, zeros if there is none.
    """
    stream = Stream(keys, "guide")
    kept, other, worn = ~stream.chance(drop), stream.chance(0.5), stream.chance(WORN)
    error = np.where(stream.uniform(k=4) < FAR_SHARE, FAR, NEAR) * stream.normal(k=4)
    guide, specimen = sample["guide"], sample["specimen"]
    if len(rows := np.flatnonzero(kept & other & worn)):
        index = to_device(rows, torch.int64, guide.device)
        specimen = specimen.index_copy(0, index, damage(specimen[index], splitmix64(keys[rows]), WEAR)[0])
    has = specimen.flatten(1).any(1)[:, None, None, None]
    guide = torch.where(has & (to_device(other, torch.bool, guide.device)[:, None, None, None]), specimen, guide)
    box = ink_box(target)
    size = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    fitted = fit(guide, box + size * to_device(error, box.dtype, box.device))
    return fitted * to_device(kept, fitted.dtype, fitted.device)[:, None, None, None]
