"""Picture files of any kind and grey arrays (H, W), float32 in [0, 1]; their polarity; the network's square."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from util.binarise import otsu_threshold
from util.files import replacing

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's grey
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".jp2", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".pbm", ".pgm", ".ppm"))
BORDER = 0.05  # width of the border, of the shorter side


def read_grey(path: str | Path) -> np.ndarray:
    """Reads a picture file as grey: (H, W), float32 in [0, 1], turned as its EXIF orientation says.

    Errors: FileNotFoundError; ValueError for what is no picture, is cut short, or is so large that it may be a trap.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return to_grey(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(f"{path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller first") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path}: not a picture that Pillow can read") from None
    except PermissionError:
        raise
    except Exception as error:  # Pillow's decoders let every kind of error through on a broken file
        raise ValueError(f"{path}: broken picture ({str(error) or type(error).__name__})") from error


def to_grey(image: Image.Image) -> np.ndarray:
    """A Pillow picture of any mode -> (H, W), float32 in [0, 1].

    Colour becomes its luma. 16 bits are scaled, not cut off. What is transparent gets the picture's own ground: the
    median of what is seen, or, where only one tone is seen (strokes drawn on nothing), white under dark strokes and
    black under bright ones.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _scale(np.asarray(image), image.mode)
    if not image.has_transparency_data:
        if image.mode in ("1", "L"):
            return np.asarray(image.convert("L"), dtype=np.float32) / 255
        return np.asarray(image.convert("RGB"), dtype=np.float32) @ LUMA / 255
    pixels = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
    grey, alpha = pixels[..., :3] @ LUMA, pixels[..., 3]
    seen = grey[alpha > 0.5]
    if seen.size == 0:
        ground = 1.0
    elif np.ptp(np.percentile(seen, (5, 95))) < 0.25:
        ground = 1.0 if seen.mean() < 0.5 else 0.0
    else:
        ground = float(np.median(seen))
    return grey * alpha + np.float32(ground) * (1 - alpha)


def _scale(values: np.ndarray, mode: str) -> np.ndarray:
    """Levels of 16 bits by their full range, as floats in [0, 1] stay; anything wider by the range that it uses."""
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are no numbers")
    low, top = 0.0, 1.0 if mode == "F" else 65535.0
    if values.min() < low or values.max() > top:
        low, top = values.min(), values.max()
    return ((values - low) / max(top - low, 1e-12)).astype(np.float32)


def write_png(path: str | Path, image: Image.Image) -> None:
    """Writes a PNG whole or not at all; makes the folder. An existing file is replaced."""
    with replacing(path) as part:
        image.save(part, format="PNG")


def from_grey(x: np.ndarray) -> Image.Image:
    """(H, W) in [0, 1] -> 8-bit grey picture."""
    return Image.fromarray((x.clip(0, 1) * 255).round().astype(np.uint8))


def _border(x: np.ndarray) -> np.ndarray:
    """The pixels within 5 % of the edge (at least one pixel), as (n,)."""
    width = max(1, round(BORDER * min(x.shape)))
    inside = np.zeros(x.shape, dtype=bool)
    inside[width:-width, width:-width] = True
    return x[~inside]


def strokes(x: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] -> where Otsu's threshold sees bright strokes, bool."""
    return x > otsu_threshold(torch.from_numpy(np.ascontiguousarray(x))[None, None]).item()


def find_polarity(x: np.ndarray) -> str:
    """Whether the strokes of (H, W) are "bright" or "dark".

    Strokes are the smaller part of a character, and its border is mostly ground: the mean of the bright share of the
    whole and of the border, above Otsu's threshold, is below one half where the strokes are bright. Either alone fails
    on a character that has fused with lost stone, or that is cut at its edge. A picture of one tone counts as dark on
    bright.
    """
    ink = strokes(x)
    if not ink.any():
        return "dark"
    share = (ink.mean() + _border(ink).mean()) / 2
    return "bright" if share < 0.5 else "dark"


def stretch(x: np.ndarray) -> np.ndarray:
    """Contrast of (H, W) stretched so that the middle 99 % of the pixels fill [0, 1]; the rest is cut off.

    A picture with less contrast than 1/50 has nothing to stretch but its noise and comes back as it is.
    """
    low, high = np.percentile(x, (0.5, 99.5))
    if high - low < 0.02:
        return x
    return ((x - low) / (high - low)).clip(0, 1).astype(np.float32)


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


def pad_to_square(x: np.ndarray, side: int) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Puts (H, W), no edge longer than `side`, in the middle of a square of its ground, the median of its border.

    Returns: the square (side, side), and the window of it that holds the picture: `square[window]` is `x`.
    """
    height, width = x.shape
    top, left = (side - height) // 2, (side - width) // 2
    window = slice(top, top + height), slice(left, left + width)
    square = np.full((side, side), np.median(_border(x)), dtype=np.float32)
    square[window] = x
    return square, window
