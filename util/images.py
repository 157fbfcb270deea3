"""Picture files of any format, and their pixels as float32 arrays in [0, 1]: grey (H, W) or RGB (H, W, 3)."""

import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from util.files import replacing

Image.MAX_IMAGE_PIXELS = 128_000_000  # Pillow's limit against decompression bombs is too low for scans of whole rubbings
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as in Pillow
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".jp2", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".pbm", ".pgm", ".ppm"))


# --- files --------------------------------------------------------------------------------------------------------------


def pictures_in(folder: Path) -> list[Path]:
    """The picture files in a folder and its subfolders, by suffix, sorted by path."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def read(source: str | Path | BinaryIO) -> Image.Image:
    """Decodes a picture file, the first page of one that has several, and applies its EXIF orientation.

    Raises FileNotFoundError, and ValueError if the file is not a picture, is corrupt, or has more than 128 million pixels.
    """
    name = source if isinstance(source, str | Path) else "standard input"
    if source is name and not Path(source).is_file():
        raise FileNotFoundError(f"{name}: no such file" if not Path(source).exists() else f"{name}: not a file")
    try:
        with Image.open(source) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:  # up to twice as many, Pillow only warns
                raise Image.DecompressionBombError
            picture = ImageOps.exif_transpose(image)
            picture.filename = str(name)  # a copy has none
            picture.info["pages"] = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: previews
            return picture
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller first") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{name}: not a picture that Pillow can read") from None
    except PermissionError:
        raise
    except Exception as error:  # on a corrupt file, Pillow's decoders raise errors of any type
        raise ValueError(f"{name}: corrupt picture ({str(error) or type(error).__name__})") from error


def first_of_several(picture: Image.Image) -> str | None:
    """A note on a picture of `read` whose file has more pages."""
    pages = picture.info["pages"]
    return f"the file has {pages} pages, of which the first is restored; save the others as files" if pages > 1 else None


def read_grey(path: str | Path) -> np.ndarray:
    """`read` followed by `to_grey`; a ValueError of either names the file."""
    try:
        return to_grey(read(path))
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error


def write_png(path: str | Path, image: Image.Image) -> None:
    """Writes a PNG atomically, see `save_png`. Creates the folder; replaces an existing file."""
    with replacing(path) as part:
        save_png(image, part)


def save_png(image: Image.Image, file: str | Path | BinaryIO) -> None:
    """Saves a PNG with the resolution in `image.info`, and the texts in its "about", a dict, as metadata."""
    texts = PngInfo()
    for name, text in image.info.get("about", {}).items():
        texts.add_itxt(name, text)
    # this level takes half of the default's time and makes the file 8 % larger
    image.save(file, format="PNG", dpi=image.info.get("dpi"), pnginfo=texts, compress_level=3)


def resolution(picture: Image.Image) -> tuple[float, float] | None:
    """Pixels per inch, across and down, if plausible: TIFF files without a resolution say 1."""
    dpi = tuple(float(value) for value in picture.info.get("dpi", ()))
    return dpi if len(dpi) == 2 and all(math.isfinite(value) and 5 <= value <= 50_000 for value in dpi) else None


# --- tones --------------------------------------------------------------------------------------------------------------


def to_grey(image: Image.Image) -> np.ndarray:
    """A Pillow image of any mode → its luma (H, W), float32 in [0, 1]; see `to_channels`."""
    x = to_channels(image)
    return x if x.ndim == 2 else x @ LUMA


def to_channels(image: Image.Image, whole: Image.Image | None = None) -> np.ndarray:
    """A Pillow image of any mode → (H, W), or (H, W, 3) if in colour, float32 in [0, 1].

    16 bits are scaled, not clipped. Transparent pixels get the picture's ground: the median of the opaque pixels, or, if these
    have one tone only (strokes on a transparent ground), white under dark strokes and black under bright ones. whole: the picture
    of which `image` is a part, in any size, which decides both; by default `image` itself.
    """
    whole = whole or image
    if image.mode.startswith("I") or image.mode == "F":
        return _scale(np.asarray(image), np.asarray(whole), image.mode)
    if not image.has_transparency_data:
        return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"), dtype=np.float32) / 255
    pixels = _rgba(image)
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    return colour * alpha + np.float32(_ground(pixels if whole is image else _rgba(whole))) * (1 - alpha)


def _rgba(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGBA"), dtype=np.float32) / 255


def _ground(pixels: np.ndarray) -> float | np.ndarray:
    """The ground of a picture (H, W, 4) with transparent pixels."""
    opaque = pixels[pixels[..., 3] > 0.5][:, :3]
    tones = opaque @ LUMA
    if tones.size == 0:
        return 1.0
    if np.ptp(np.percentile(tones, (5, 95))) < 0.25:
        return 1.0 if tones.mean() < 0.5 else 0.0
    return np.median(opaque, axis=0)


def _scale(values: np.ndarray, whole: np.ndarray, mode: str) -> np.ndarray:
    """Scales 16-bit levels by their full range and keeps floats in [0, 1]; wider values are scaled by the range of `whole`."""
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the picture has values that are not finite")
    low, top = 0.0, 1.0 if mode == "F" else 65535.0
    if whole.min() < low or whole.max() > top:
        low, top = float(whole.min()), float(whole.max())
    return ((values - low) / max(top - low, 1e-12)).clip(0, 1).astype(np.float32)


def small_copy(image: Image.Image, width: int, height: int) -> Image.Image:
    """A copy of any mode's picture to look at: 8 bits, grey or in colour, at most so wide and high. See `to_channels`."""
    if image.mode in ("1", "P", "PA"):  # Pillow resizes these without averaging
        image = image.convert("L" if image.mode == "1" else "RGBA")
    scale = min(1, width / image.width, height / image.height)
    size = [max(1, round(scale * edge)) for edge in image.size]
    return from_grey(to_channels(image.resize(size, Image.Resampling.LANCZOS)))


def from_grey(x: np.ndarray) -> Image.Image:
    """(H, W), or (H, W, 3) in colour, in [0, 1] → 8-bit picture."""
    return Image.fromarray((x.clip(0, 1) * 255).round().astype(np.uint8))
