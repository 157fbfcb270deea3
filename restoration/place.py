"""Where the character is in a picture, and which mix of the colour channels shows its strokes best."""

import numpy as np

from util.images import LUMA
from util.squares import THUMBNAIL, Box, ink_mask, otsu, scale_to, whole


def separate(channels: np.ndarray) -> np.ndarray:
    """The mix of the channels (H, W[, 3]) that separates strokes from ground best: (H, W), float32 in [0, 1].

    The candidates are the luma, each channel, and the first principal component of the colours. The best one has the largest
    fraction of its variance between the two classes of Otsu's threshold. The luma is kept unless another candidate is better by
    a twentieth; candidates with less than half of its contrast are skipped.
    """
    if channels.ndim == 2:
        return channels
    step = max(1, max(channels.shape) // 256)
    sample = channels[::step, ::step].reshape(-1, 3)
    component = np.linalg.eigh(np.cov(sample.T) + 1e-9 * np.eye(3))[1][:, -1]
    component = component / np.abs(component).sum() * (1 if component @ LUMA > 0 else -1)
    mixes = [LUMA, *np.eye(3), component]
    grey = [_shift(sample @ mix, mix) for mix in mixes]
    contrast = 0.5 * grey[0].std()
    merits = [(1 if i else 1.05) * otsu(x)[1] if x.std() >= contrast else -1 for i, x in enumerate(grey)]
    mix = mixes[int(np.argmax(merits))]
    return _shift(channels @ mix.astype(np.float32), mix)


def _shift(x: np.ndarray, mix: np.ndarray) -> np.ndarray:
    """Shifts a mix of channels into [0, 1]; weights may be negative, their absolute values sum to 1."""
    return x - np.float32(mix[mix < 0].sum())


def find_box(x: np.ndarray) -> Box:
    """The box of the character in (H, W), strokes bright: as in training, its longer side fills 6/7 of the square.

    Only rows and columns with at least a twentieth of the stroke pixels of the fullest one count, so specks do not matter. If the
    character fills 3/5 of the picture or more, the box is the whole picture, so that nothing is cut off.
    """
    small = scale_to(x, THUMBNAIL)
    ink = ink_mask(small)
    extents = []
    for axis in (1, 0):
        profile = ink.sum(axis)
        full = np.flatnonzero(profile >= max(profile.max() / 20, 1)) if ink.any() else np.array([0, len(profile) - 1])
        extents.append((full[0], full[-1] + 1))
    (top, bottom), (left, right) = extents
    if max(bottom - top, right - left) >= 3 / 5 * max(small.shape):
        return whole(*x.shape)
    scale = max(x.shape) / max(small.shape)
    edge = max(1, round(max(bottom - top, right - left) * scale * 7 / 6))
    return Box(round((top + bottom) / 2 * scale - edge / 2), round((left + right) / 2 * scale - edge / 2), edge)
