"""Picture files of any kind and grey arrays (H, W), float32 in [0, 1]; their strokes, polarity and place in a square."""

from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from util.files import replacing

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's grey
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".jp2", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".pbm", ".pgm", ".ppm"))
BORDER = 0.05  # width of the border, of the shorter side
LEVELS = 256
THUMBNAIL = 64  # pixels of the longer edge, enough to see where strokes are and which is ground


# --- files --------------------------------------------------------------------------------------------------------------


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder and of its folders, known by their suffix, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def read(source: str | Path | BinaryIO) -> Image.Image:
    """Reads a picture file whole, turned as its EXIF orientation says.

    Errors: FileNotFoundError; ValueError for what is no picture, is cut short, or is so large that it may be a trap.
    """
    name = source if isinstance(source, str | Path) else "standard input"
    if source is name and not Path(source).is_file():
        raise FileNotFoundError(f"{name}: no such file" if not Path(source).exists() else f"{name}: not a file")
    try:
        with Image.open(source) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:  # Pillow itself only warns, up to twice as many
                raise Image.DecompressionBombError
            return ImageOps.exif_transpose(image)
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller first") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{name}: not a picture that Pillow can read") from None
    except PermissionError:
        raise
    except Exception as error:  # Pillow's decoders let every kind of error through on a broken file
        raise ValueError(f"{name}: broken picture ({str(error) or type(error).__name__})") from error


def read_grey(path: str | Path) -> np.ndarray:
    """`read` and `to_grey` in one; a ValueError of either names the file."""
    try:
        return to_grey(read(path))
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error


def write_png(path: str | Path, image: Image.Image) -> None:
    """Writes a PNG, with the resolution in `image.info`, whole or not at all; makes the folder. An existing file is replaced."""
    with replacing(path) as part:
        image.save(part, format="PNG", dpi=image.info.get("dpi"), compress_level=3)  # half of the default's time, 8 % larger


# --- tones --------------------------------------------------------------------------------------------------------------


def to_grey(image: Image.Image) -> np.ndarray:
    """A Pillow picture of any mode -> its luma (H, W), float32 in [0, 1]; see `to_channels`."""
    x = to_channels(image)
    return x if x.ndim == 2 else x @ LUMA


def to_channels(image: Image.Image) -> np.ndarray:
    """A Pillow picture of any mode -> (H, W), or in colour (H, W, 3), float32 in [0, 1].

    16 bits are scaled, not cut off. What is transparent gets the picture's own ground: the median of what is seen, or, where only
    one tone is seen (strokes drawn on nothing), white under dark strokes and black under bright ones.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _scale(np.asarray(image), image.mode)
    if not image.has_transparency_data:
        return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"), dtype=np.float32) / 255
    pixels = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    seen = colour[alpha[..., 0] > 0.5]
    tones = seen @ LUMA
    if tones.size == 0:
        ground = 1.0
    elif np.ptp(np.percentile(tones, (5, 95))) < 0.25:
        ground = 1.0 if tones.mean() < 0.5 else 0.0
    else:
        ground = np.median(seen, axis=0)
    return colour * alpha + np.float32(ground) * (1 - alpha)


def _scale(values: np.ndarray, mode: str) -> np.ndarray:
    """Levels of 16 bits by their full range, as floats in [0, 1] stay; anything wider by the range that it uses."""
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are no numbers")
    low, top = 0.0, 1.0 if mode == "F" else 65535.0
    if values.min() < low or values.max() > top:
        low, top = values.min(), values.max()
    return ((values - low) / max(top - low, 1e-12)).astype(np.float32)


def separate(channels: np.ndarray) -> np.ndarray:
    """The mix of the channels (H, W[, 3]) that tells strokes from ground best: (H, W), float32 in [0, 1].

    Tried are the luma, each channel, and the direction in which the colours spread most (their first principal component). The
    best has the largest share of its variance between the two sides of Otsu's threshold; the luma stays unless another is better
    by a twentieth, and what has less than half of its contrast is not looked at.
    """
    if channels.ndim == 2:
        return channels
    step = max(1, max(channels.shape) // 256)
    some = channels[::step, ::step].reshape(-1, 3)
    spread = np.linalg.eigh(np.cov(some.T) + 1e-9 * np.eye(3))[1][:, -1]
    spread = spread / np.abs(spread).sum() * (1 if spread @ LUMA > 0 else -1)
    mixes = [LUMA, *np.eye(3), spread]
    grey = [_shift(some @ mix, mix) for mix in mixes]
    enough = 0.5 * grey[0].std()
    merits = [(1 if i else 1.05) * _otsu(x)[1] if x.std() >= enough else -1 for i, x in enumerate(grey)]
    mix = mixes[int(np.argmax(merits))]
    return _shift(channels @ mix.astype(np.float32), mix)


def _shift(x: np.ndarray, mix: np.ndarray) -> np.ndarray:
    """Brings a mix of channels in [0, 1] into [0, 1] where some weights of it are negative."""
    return x - np.float32(mix[mix < 0].sum())


def from_grey(x: np.ndarray) -> Image.Image:
    """(H, W), or in colour (H, W, 3), in [0, 1] -> 8-bit picture."""
    return Image.fromarray((x.clip(0, 1) * 255).round().astype(np.uint8))


def stretch(x: np.ndarray) -> np.ndarray:
    """Contrast of (H, W) stretched so that the middle 99 % of the pixels fill [0, 1]; the rest is cut off.

    A picture with less contrast than 1/50 has nothing to stretch but its noise and comes back as it is.
    """
    low, high = np.percentile(x, (0.5, 99.5))
    if high - low < 0.02:
        return x
    return ((x - low) / (high - low)).clip(0, 1).astype(np.float32)


# --- strokes ------------------------------------------------------------------------------------------------------------


def _otsu(x: np.ndarray) -> tuple[float, float]:
    """(threshold, share of the variance that lies between the two sides of it) of pixels in [0, 1]; see `util.binarise`."""
    counts = np.bincount((x.ravel() * (LEVELS - 1)).round().astype(np.uint8), minlength=LEVELS)
    levels, n = np.arange(LEVELS), counts.sum()
    dark, dark_sum = counts.cumsum()[:-1], (counts * levels).cumsum()[:-1]
    total = float(counts @ levels)
    between = (dark_sum * float(n) - total * dark) ** 2 / np.maximum(dark * (n - dark), 1)
    variance = n * float(counts @ levels**2) - total**2
    if not variance:
        return (float(levels[counts > 0][0]) + 0.5) / (LEVELS - 1), 0.0
    best = int(between.argmax())
    return (best + 0.5) / (LEVELS - 1), float(between[best] / variance)


def strokes(x: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] -> where Otsu's threshold sees bright strokes, bool."""
    return x > _otsu(x)[0]


def _border(x: np.ndarray) -> np.ndarray:
    """The pixels within 5 % of the edge (at least one pixel), as (n,)."""
    width = max(1, round(BORDER * min(x.shape)))
    inside = np.zeros(x.shape, dtype=bool)
    inside[width:-width, width:-width] = True
    return x[~inside]


def find_polarity(x: np.ndarray) -> str:
    """Whether the strokes of (H, W) are "bright" or "dark".

    Strokes are the smaller part of a character, and its border is mostly ground: the mean of the bright share of the
    whole and of the border, above Otsu's threshold, is below one half where the strokes are bright. Either alone fails
    on a character that has fused with lost stone, or that is cut at its edge. A picture of one tone counts as dark on
    bright.
    """
    ink = strokes(scale_to(x, THUMBNAIL))
    if not ink.any():
        return "dark"
    share = (ink.mean() + _border(ink).mean()) / 2
    return "bright" if share < 0.5 else "dark"


# --- place --------------------------------------------------------------------------------------------------------------


class Box(NamedTuple):
    """A square of a picture, in its pixels; it may reach beyond the picture."""

    top: int
    left: int
    edge: int

    def part(self, height: int, width: int) -> tuple[slice, slice]:
        """The part of it that lies in a picture of that size."""
        rows = slice(max(self.top, 0), min(self.top + self.edge, height))
        return rows, slice(max(self.left, 0), min(self.left + self.edge, width))


def whole(height: int, width: int) -> Box:
    """The smallest square around a picture of that size, in its middle."""
    edge = max(height, width)
    return Box((height - edge) // 2, (width - edge) // 2, edge)


def find_box(x: np.ndarray) -> Box:
    """Where the character of (H, W), strokes bright, stands: as in training, where its longer extent fills 6/7 of the square.

    The extent is that of the rows and columns with at least a twentieth as many stroke pixels as the fullest one, so that specks
    around do not count. A character that fills 3/5 of its picture or more is taken with the whole of it: nothing is cut off then.
    """
    small = scale_to(x, THUMBNAIL)
    ink = strokes(small)
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


def to_square(x: np.ndarray, box: Box, side: int, contrast: bool = False) -> np.ndarray:
    """What stands in a box of (H, W), scaled to (side, side); beyond the picture is its ground, the median of the border.

    `contrast`: `stretch` what stands there.
    """
    window = _window(box, x.shape, side)
    small = resize(x[box.part(*x.shape)], *(edge.stop - edge.start for edge in window))
    small = stretch(small) if contrast else small
    square = np.full((side, side), np.median(_border(small)), dtype=np.float32)
    square[window] = small
    return square


def from_square(square: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
    """The way back of `to_square`: (side, side) -> (height, width), 0 outside the box."""
    part = box.part(height, width)
    x = np.zeros((height, width), dtype=np.float32)
    x[part] = resize(square[_window(box, (height, width), len(square))], *(edge.stop - edge.start for edge in part))
    return x


def _window(box: Box, shape: tuple[int, ...], side: int) -> tuple[slice, slice]:
    """Where in the square of `side` the part of the box that lies in the picture stands; at least one pixel."""

    def along(part: slice, start: int) -> slice:
        first, last = ((edge - start) * side / box.edge for edge in (part.start, part.stop))
        at = min(round(first), side - 1)
        return slice(at, max(round(last), at + 1))

    rows, columns = box.part(*shape)
    return along(rows, box.top), along(columns, box.left)


def resize(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) in [0, 1] -> (height, width) in [0, 1]: bicubic, smoothed before it shrinks."""
    if x.shape == (height, width):
        return x
    image = Image.fromarray(np.ascontiguousarray(x, dtype=np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)


def scale_to(x: np.ndarray, side: int) -> np.ndarray:
    """Scales (H, W) to a longer edge of `side`, the aspect ratio kept; the shorter edge has at least one pixel."""
    scale = side / max(x.shape)
    return resize(x, *(max(1, round(edge * scale)) for edge in x.shape))
