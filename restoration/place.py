"""Where the character is, how it is turned, and which mix of colours, evenly lit, shows its strokes best."""

import math

import numpy as np
from PIL import Image

from util.images import LUMA
from util.squares import THUMBNAIL, Box, ink_mask, otsu, scale_to, to_square, whole

SEAL_CHROMA, SEAL_SHARE = 0.2, (0.002, 0.25)  # red above green and blue, at least; share of the picture
EVENED = 0.05  # evening must raise the share of the variance between strokes and ground by so much

TURNS = np.arange(-13, 14)  # degrees clockwise
SLOPE = 6  # degrees by which horizontal strokes rise to the right in upright handwriting, at most
TURN_EVIDENCE = 0.55  # logarithm of how much sharper the strokes' profiles must be when turned back
FILL, LARGE, CLEAR = 4 / 5, 2 / 3, 4 / 5  # see `find_box`
CORE_DENSITY = 0.12  # ink per pixel: less than in most characters, more than of specks


def separate(channels: np.ndarray) -> np.ndarray:
    """The mix of the channels (H, W[, 3]) that separates strokes from ground best: (H, W), float32 in [0, 1].

    The candidates are the luma, each channel, and the first principal component of the colours. The best one has the largest
    fraction of its variance between the two classes of Otsu's threshold. The luma is kept unless another candidate is better by
    a twentieth; candidates with less than half of its contrast are skipped. If there is a red seal, the mix is the one that gives
    it the tone of what is around it; see `_without_seal`.
    """
    return mixed(channels, find_mix(channels))


def find_mix(channels: np.ndarray) -> np.ndarray | None:
    """The weights of the mix of (H, W, 3) that `separate` takes; None for (H, W)."""
    if channels.ndim == 2:
        return None
    step = math.ceil(max(channels.shape) / 256)
    sample = channels[::step, ::step]
    mix = _without_seal(sample)
    return _separating(sample.reshape(-1, 3)) if mix is None else mix


def mixed(channels: np.ndarray, mix: np.ndarray | None) -> np.ndarray:
    """(H, W[, 3]) → (H, W) by the weights of `find_mix`."""
    return channels if mix is None else _shift(channels @ mix.astype(np.float32), mix)


def _separating(sample: np.ndarray) -> np.ndarray:
    """The weights of the mix that separates strokes from ground best in pixels (n, 3)."""
    component = np.linalg.eigh(np.cov(sample.T) + 1e-9 * np.eye(3))[1][:, -1]
    component = component / np.abs(component).sum() * (1 if component @ LUMA > 0 else -1)
    mixes = [LUMA, *np.eye(3), component]
    grey = [_shift(sample @ mix, mix) for mix in mixes]
    contrast = 0.5 * grey[0].std()
    merits = [(1 if i else 1.05) * otsu(x)[1] if x.std() >= contrast else -1 for i, x in enumerate(grey)]
    return mixes[int(np.argmax(merits))]


def _without_seal(x: np.ndarray) -> np.ndarray | None:
    """The weights of the mix that hides a red seal in (H, W, 3), or None if there is none.

    Pixels of a seal are few, redder than most, and their contrast to the ground is less than that of the strokes; otherwise the
    red pixels are the strokes. A seal on light paper, or over light strokes, gets the tone of the light parts, by the red channel
    and some of its excess over green and blue; a seal on dark ground gets that of the dark ones, by green and blue.
    """
    luma, others = x @ LUMA, x[..., 1:].mean(axis=2)
    excess, (low, high) = x[..., 0] - others, (x[..., 1:].min(axis=2), x[..., 1:].max(axis=2))
    chroma = x[..., 0] - high
    seal = (high - low < 0.4 * (x[..., 0] - low)) & (chroma > SEAL_CHROMA) & (chroma > np.median(chroma) + 0.75 * SEAL_CHROMA)
    near = _dilate(seal, 1)
    if not SEAL_SHARE[0] < seal.mean() < SEAL_SHARE[1] or near.mean() > 0.5:
        return None
    rest = luma[~near]
    threshold = otsu(rest)[0]
    light = luma > threshold
    share, contrast = light[~near].mean(), rest[rest > threshold].mean() - rest[rest <= threshold].mean()
    if not 0.02 < share < 0.98 or contrast < max(0.2, abs(np.median(luma[seal]) - np.median(rest))):
        return None
    around = _dilate(near, 2) & ~near
    on_light = (light & around).sum() > 0.3 * around.sum()
    ground = around & (light if on_light else ~light)
    channel = x[..., 0] if on_light else -others
    gain = (np.median(channel[ground]) - np.median(channel[seal])) / (np.median(excess[seal]) - np.median(excess[ground]))
    gain = float(np.clip(gain, 0, 1))
    mix = np.array([1 + gain, -gain / 2, -gain / 2] if on_light else [-gain, (1 + gain) / 2, (1 + gain) / 2])
    return mix / np.abs(mix).sum()


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    for _ in range(radius):
        padded = np.pad(mask, 1)
        rows = padded[:-2] | padded[1:-1] | padded[2:]
        mask = rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
    return mask


def _shift(x: np.ndarray, mix: np.ndarray) -> np.ndarray:
    """Shifts a mix of channels into [0, 1]; weights may be negative, their absolute values sum to 1."""
    return x - np.float32(mix[mix < 0].sum())


def even(x: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] as if lit evenly: divided by its light, if that separates strokes from ground clearly better."""
    light = find_light(x)
    return x if light is None else evened(x, light)


def find_light(x: np.ndarray) -> np.ndarray | None:
    """The light on (H, W), small and relative to its median, or None if the picture is not to be evened."""
    small = scale_to(x, THUMBNAIL)
    light = _light(small, two_sided=True)
    if light.min() < 0.05 or otsu((small * (np.median(light) / light)).clip(0, 1))[1] < otsu(small)[1] + EVENED:
        return None
    return light.clip(0, 1) / np.median(light)


def evened(x: np.ndarray, light: np.ndarray, part: tuple[float, float] = (0, 1)) -> np.ndarray:
    """(H, W) divided by the light of `find_light`. part: where the rows of x begin and end in what the light is on, in [0, 1]."""
    image = Image.fromarray(np.ascontiguousarray(light, dtype=np.float32))
    box = (0, part[0] * image.height, image.width, part[1] * image.height)
    return (x / np.asarray(image.resize(x.shape[::-1], Image.Resampling.BICUBIC, box))).clip(0, 1).astype(np.float32)


# --- the character ------------------------------------------------------------------------------------------------------


def find_rotation(x: np.ndarray) -> float:
    """By how many degrees the character in (H, W), strokes bright, is turned clockwise: -12 to 12, 0 unless that is evident.

    Upright, vertical strokes make the profile across the columns sharp, and horizontal ones, which may rise by SLOPE, that across
    the rows. An angle is believed if it makes them sharper than any angle near 0 does, by TURN_EVIDENCE.
    """
    ink = ink_mask(_even(scale_to(x, 2 * THUMBNAIL)))
    if not 0 < ink.mean() <= 0.5:
        return 0.0
    rows, columns = (at - at.mean() for at in np.nonzero(ink))
    angles = np.arange(TURNS[0] - SLOPE, TURNS[-1] + 1)
    turn = np.deg2rad(angles)[:, None]
    across = _sharpness(rows * np.cos(turn) - columns * np.sin(turn))
    upright = _sharpness(rows * np.sin(turn[SLOPE:]) + columns * np.cos(turn[SLOPE:]))
    risen = np.lib.stride_tricks.sliding_window_view(across, SLOPE + 1).mean(axis=1)
    evidence = np.log(upright) + 0.75 * np.log(risen)
    best = int(evidence.argmax())
    evident = 0 < best < len(TURNS) - 1 and evidence[best] > evidence[np.abs(TURNS) <= 2].max() + TURN_EVIDENCE
    return float(TURNS[best]) if evident else 0.0


def _sharpness(at: np.ndarray) -> np.ndarray:
    """How steep the profile of points (n_angles, n) is, for each angle: its squared differences, relative to its squares."""
    at = np.rint(at).astype(int)
    at -= at.min() - 1
    size = at.max() + 2
    counts = np.bincount((at + size * np.arange(len(at))[:, None]).ravel(), minlength=len(at) * size).reshape(len(at), size)
    return (np.diff(counts, axis=1) ** 2).sum(axis=1) / (counts.astype(float) ** 2).sum(axis=1)


def find_box(x: np.ndarray, angle: float = 0.0, large: float = LARGE) -> Box:
    """The box of the character in (H, W), strokes bright: as in training, its longer side fills four fifths of the square.

    `angle`: of the character, degrees clockwise. If the character fills `large` of the picture or more, or has less than CLEAR of
    the ink, the box is the whole picture, so that nothing is cut off, also no place where strokes are lost.
    """
    everything = whole(*x.shape)._replace(angle=angle)
    if angle:
        reach = round(everything.edge * 0.1)  # of the corners beyond the upright square
        outer = Box(everything.top - reach, everything.left - reach, everything.edge + 2 * reach, angle)
        ends, share = find_ink(to_square(x, outer, THUMBNAIL))
        top, left, bottom, right = (end * outer.edge / THUMBNAIL for end in ends)
    else:
        (top, left, bottom, right), share = find_ink(x)
    longer = max(bottom - top, right - left)
    if longer >= large * max(x.shape) or share < CLEAR:
        return everything
    edge, row, column = max(1, round(longer / FILL)), (top + bottom) / 2, (left + right) / 2
    if angle:  # the centre, turned about that of the picture
        turn, down, across = np.deg2rad(angle), row - outer.edge / 2, column - outer.edge / 2
        row = x.shape[0] / 2 + across * np.sin(turn) + down * np.cos(turn)
        column = x.shape[1] / 2 + across * np.cos(turn) - down * np.sin(turn)
    return Box(round(row - edge / 2), round(column - edge / 2), edge, angle)


def find_ink(x: np.ndarray) -> tuple[tuple[int, int, int, int], float]:
    """(top, left, bottom, right) of the character in (H, W), strokes bright, and its share of the ink without a frame.

    On a thumbnail with evened light, lines of a frame are left out, and neighbours: components beyond a gap that reach the edge.
    The core of the character is the rectangle with the largest sum of ink minus CORE_DENSITY per pixel. The character is the
    components that are in the core to two fifths, and those within a fifth of their size that have a thirtieth of their ink.
    A picture without ink is returned whole.
    """
    small = scale_to(x, THUMBNAIL)
    ink = ink_mask(_even(small))
    if ink.mean() > 0.5:
        ink = ink_mask(small)
    if not ink.any() or min(ink.shape) < 4:
        return (0, 0, *x.shape), 1.0
    ink = _without_frame(ink)
    labels = _components(ink)
    n = labels.max() + 1
    area = np.bincount(labels[ink], minlength=n)
    first, last = np.full((2, n), THUMBNAIL), np.zeros((2, n), dtype=int)  # rows and columns of the components; last: exclusive
    for axis, at in enumerate(np.nonzero(ink)):
        np.minimum.at(first[axis], labels[ink], at)
        np.maximum.at(last[axis], labels[ink], at + 1)
    kept = area >= max(0.01 * area.sum(), min(2, area.max()))
    for axis, size in enumerate(ink.shape):
        kept = kept & ~_neighbours(first[axis], last[axis], kept, size)
    weight = (ink & kept[labels]).astype(np.float64)
    core = _densest(weight - max(CORE_DENSITY, weight.mean() / 2))
    character = kept & (np.bincount(labels[core][ink[core]], minlength=n) >= 0.4 * area)
    if not character.any():
        return (0, 0, *x.shape), 1.0
    start, stop = first[:, character].min(1), last[:, character].max(1)
    reach = (stop - start).max() / 5
    close = ((stop + reach > first.T) & (start - reach < last.T)).all(1)
    character |= kept & close & (area >= area[character].sum() / 30)
    scale = np.array(x.shape) / small.shape
    ends = np.append(first[:, character].min(1) * scale, last[:, character].max(1) * scale)
    return tuple(int(end) for end in ends.round()), float(area[character].sum() / area.sum())


def _even(x: np.ndarray) -> np.ndarray:
    """Subtracts the light of (H, W), strokes bright, and fills [0, 1]."""
    rest = x - _light(x)
    return (rest - rest.min()) / max(np.ptp(rest), 1e-6)


def _light(x: np.ndarray, two_sided: bool = False) -> np.ndarray:
    """The light on (H, W), strokes bright or `two_sided` of either polarity: a polynomial of degree 2 fitted to the ground."""
    rows, columns = (np.linspace(-1, 1, size) for size in x.shape)
    r, c = (axis.ravel() for axis in np.meshgrid(rows, columns, indexing="ij"))
    terms, values = np.stack([np.ones_like(r), r, c, r * r, r * c, c * c], axis=1), x.ravel()
    ground = np.full(x.size, True)
    for _ in range(4):  # leaves out what the last fit shows to be no ground
        chosen = terms[ground]  # the normal equations: much faster than the matrix itself
        light = terms @ np.linalg.lstsq(chosen.T @ chosen, chosen.T @ values[ground], rcond=None)[0]
        rest = values - light
        rest = rest - np.median(rest)
        ground = (np.abs(rest) if two_sided else rest) <= 1.5 * np.median(np.abs(rest))
    return light.reshape(x.shape).astype(np.float32)


def _without_frame(ink: np.ndarray) -> np.ndarray:
    """Removes rows and columns near the edge that are mostly ink, and all outside of them, unless little remains."""
    clean = ink.copy()
    for lines in (clean, clean[::-1], clean.T, clean.T[::-1]):
        full = np.flatnonzero(lines[: round(0.15 * len(lines))].mean(axis=1) >= 0.6)
        if 0 < len(full) <= 0.08 * len(lines) + 1:
            lines[: full[-1] + 2] = False
    return clean if clean.sum() >= ink.sum() / 4 else ink


def _neighbours(first: np.ndarray, last: np.ndarray, kept: np.ndarray, size: int) -> np.ndarray:
    """Which components, from `first` to `last` on an axis of that size, are beyond a gap, on the side of the edge.

    Stretches without a gap that touch an end of the axis are neighbours of one of a third or more that touches none.
    """
    covered = np.zeros(size + 2, dtype=bool)
    for start, stop in zip(first[kept], last[kept], strict=True):
        covered[start + 1 : stop + 1] = True
    starts, stops = np.flatnonzero(covered[1:] & ~covered[:-1]), np.flatnonzero(~covered[1:] & covered[:-1])
    free = (starts > 1) & (stops < size - 1)
    if not free.any() or stops[free].max() - starts[free].min() < size / 3:
        return np.zeros(len(first), dtype=bool)
    return (last <= starts[free].min()) | (first >= stops[free].max())


def _components(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool → labels of its components, of pixels joined by edge or corner: 1 and up, 0 outside."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        rows = np.maximum.reduce([padded[:-2], padded[1:-1], padded[2:]])
        largest = np.append(0, np.where(mask, np.maximum.reduce([rows[:, :-2], rows[:, 1:-1], rows[:, 2:]]), 0))
        following = largest[largest][1:].reshape(mask.shape)  # the label of the pixel that the label names
        if (following == labels).all():
            return np.unique(np.append(0, labels), return_inverse=True)[1][1:].reshape(mask.shape)
        labels = following


def _densest(weight: np.ndarray) -> tuple[slice, slice]:
    """The rectangle with the largest sum of weights (H, W)."""
    height, width = weight.shape
    sums = np.pad(weight.cumsum(axis=0), ((1, 0), (0, 0)))
    top, bottom = np.triu_indices(height + 1, 1)
    sums = np.pad((sums[bottom] - sums[top]).cumsum(axis=1), ((0, 0), (1, 0)))
    pair, right = divmod(int((sums - np.minimum.accumulate(sums, axis=1)).argmax()), width + 1)
    return slice(top[pair], bottom[pair]), slice(int(sums[pair, : right + 1].argmin()), right)
