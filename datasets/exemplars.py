"""Damage from exemplars: what real scans have beside their characters, put on clean ones. No training is needed.

An exemplar is a scan of one damaged character whose strokes were found (by a restorer). Cut out of it are the tones from ground to
the middle of a stroke, and what departs from them: on the ground specks, losses, rules, neighbours, on the strokes their texture.
Where strokes hide the ground, and ground the strokes, both are filled with other parts of themselves. A clean character takes the
exemplar's place, proportions and stroke weight, then its tones and textures. All pictures have strokes bright on dark.
"""

import functools
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

SIZE = 224  # pixels of exemplars
DEPTHS = np.arange(-8, 9)  # of a profile: pixels outside of a stroke; eighths of the way to its middle inside
GROUND, INNER = -3, 5  # depths from which on ground and strokes have a texture that is not of the edge
TRIES = 40  # parts of itself that fill a texture
EXTREMES = 0.02, 0.98  # quantiles of a stroke's texture: what is beyond is no texture
KEYS = ("box", "share", "levels", "profile", "ground", "strokes")


class Exemplars(NamedTuple):
    """n exemplars.

    box: (n, 4) top, bottom, left and right of the strokes, relative to the square. share: (n,) of ink in it. levels: (n, 2) of
    ground and strokes. profile: (n, 17) from 0 to 1, of DEPTHS. ground, strokes: (n, S, S) what departs from the tones.
    """

    box: np.ndarray
    share: np.ndarray
    levels: np.ndarray
    profile: np.ndarray
    ground: np.ndarray
    strokes: np.ndarray


def cut(degraded: np.ndarray, mean: np.ndarray, rng: np.random.Generator) -> tuple | None:
    """An exemplar, in the order of KEYS, of a scan (SIZE, SIZE) and its probability of strokes; None if it shows no contrast."""
    ink = mean > 0.5
    depth = _depth(ink)
    inside, outside = degraded[depth > 6], degraded[depth < -6]
    if not inside.size or not outside.size or np.median(inside) - np.median(outside) < 0.1:
        return None
    low, high = np.median(outside), np.median(inside)
    tones = (degraded - low) / (high - low)
    near = [tones[np.abs(depth - at) <= 0.5] for at in DEPTHS]
    known = np.array([values.size > 0 for values in near])
    profile = np.interp(DEPTHS, DEPTHS[known], [np.median(values) for values in near if values.size])
    profile = np.maximum.accumulate(profile)
    rest = degraded - (low + (high - low) * np.interp(depth, DEPTHS, profile))
    texture = rest.clip(*np.quantile(rest[depth >= INNER], EXTREMES))
    top, bottom, left, right = box = _box(ink)
    ground, strokes = _filled(rest, depth < GROUND, rng), _filled(texture, depth >= INNER, rng)
    return np.divide(box, len(ink)), ink[top:bottom, left:right].mean(), (low, high), profile, ground, strokes


def write(path: Path, exemplars: list[tuple]) -> None:
    """Writes what `cut` returned, textures in 8 bits."""
    columns = dict(zip(KEYS, map(np.stack, zip(*exemplars, strict=True)), strict=True))
    for name in ("ground", "strokes"):
        columns[name] = (columns[name].clip(-1, 1) * 127).round().astype(np.int8)
    np.savez_compressed(path, **columns)


@functools.cache
def load(path: str, img_size: int) -> Exemplars:
    """The exemplars of a file, for pictures of img_size. Raises ValueError if it is none."""
    try:
        with np.load(path) as file:
            columns = [file[name] for name in KEYS]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} holds no exemplars") from error
    textures = [np.stack([_resized(one / np.float32(127), img_size, img_size) for one in column]) for column in columns[4:]]
    return Exemplars(*columns[:4], *textures)


def shaped(clean: np.ndarray, exemplars: Exemplars, which: int) -> np.ndarray:
    """A clean character (S, S) in the place, the proportions and the stroke weight of an exemplar's."""
    box = _box(clean > 0.5)
    if box is None:
        return clean
    size = len(clean)
    top, bottom, left, right = (exemplars.box[which] * size).round().astype(int)
    placed = np.zeros_like(clean)
    placed[top:bottom, left:right] = _resized(clean[box[0] : box[1], box[2] : box[3]], bottom - top, right - left)
    depth = _depth(placed > 0.5)
    thickness = np.where(depth > 0, depth, depth * SIZE / size)  # strokes of all widths get thinner by the same share
    least = np.quantile(ndimage.gaussian_filter(thickness, 0.7)[top:bottom, left:right], 1 - exemplars.share[which])
    ink = thickness > least.clip(-4, 6)
    return ndimage.gaussian_filter(ink.astype(np.float32), 2.5 * size / SIZE)


def painted(clean: np.ndarray, exemplars: Exemplars, which: int, flip: int) -> np.ndarray:
    """A clean character (S, S) with the tones and textures of an exemplar, these mirrored in one of four ways."""
    depth = _depth(clean > 0.5)
    ground, strokes = (_mirrored(texture[which], flip) for texture in (exemplars.ground, exemplars.strokes))
    low, high = exemplars.levels[which]
    share = (depth / 2 + 0.5).clip(0, 1)
    texture = (ground * (1 - share) + strokes * share) * (1 - np.exp(-((depth / GROUND) ** 2)))  # neither was cut at an edge
    x = low + (high - low) * np.interp(depth, DEPTHS, exemplars.profile[which]) + texture
    return x.clip(0, 1).astype(np.float32)


def _depth(ink: np.ndarray) -> np.ndarray:
    """How deep in a stroke a pixel is: outside the distance, negative, in pixels at SIZE; inside 8 in the middle of a stroke."""
    if not ink.any():
        return np.full(ink.shape, float(DEPTHS[0]))
    inside, outside = (ndimage.distance_transform_edt(mask) - 0.5 for mask in (ink, ~ink))
    reach = 2 * int(np.ceil(np.quantile(inside[ink], 0.98))) + 1
    middle = ndimage.maximum_filter(np.where(ink, inside, 0), size=reach).clip(1)
    return np.where(ink, DEPTHS[-1] * inside / middle, -outside * SIZE / len(ink))


def _box(ink: np.ndarray) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right) of a mask, or None if it is empty."""
    if not ink.any():
        return None
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def _filled(values: np.ndarray, known: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values (S, S) where known; elsewhere what mirrored and shifted copies have there, and 0 if none has."""
    filled, done = np.where(known, values, 0), known.copy()
    for _ in range(TRIES):
        flip, shift = rng.integers(4), tuple(rng.integers(0, len(values), 2))
        copy, has = (np.roll(_mirrored(x, flip), shift, (0, 1)) for x in (values, known))
        filled, done = np.where(~done & has, copy, filled), done | has
    return filled


def _mirrored(x: np.ndarray, flip: int) -> np.ndarray:
    return x[:: -1 if flip & 1 else 1, :: -1 if flip & 2 else 1]


def _resized(x: np.ndarray, height: int, width: int) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(x, np.float32))
    return np.asarray(image.resize((max(1, width), max(1, height)), Image.Resampling.BICUBIC))
