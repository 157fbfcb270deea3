import io

import numpy as np
import pytest
from PIL import Image

from restoration import place
from tests.pictures import glyph_like
from util import images, squares
from util.binarise import otsu

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.fixture
def stored(tmp_path):
    def store(image: Image.Image, name: str = "picture.png", **options) -> np.ndarray:
        image.save(tmp_path / name, **options)
        return images.read_grey(tmp_path / name)

    return store


def test_8_bit_grey_is_exact(stored):
    x = stored(Image.fromarray(RAMP))
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, RAMP / 255, atol=1e-7)


@pytest.mark.parametrize("name", ["picture.png", "picture.tif", "picture.pgm"])
def test_16_bits_are_scaled_and_not_clipped(stored, name):
    levels = np.linspace(100, 40000, 256).reshape(16, 16).astype(np.uint16)
    np.testing.assert_allclose(stored(Image.fromarray(levels), name), levels / 65535, atol=1e-4)


def test_colour_cmyk_palette_and_bilevel_become_luma(stored):
    colour = Image.merge("RGB", [Image.fromarray(c) for c in (RAMP, RAMP.T, RAMP[::-1])])
    luma = (0.299 * RAMP + 0.587 * RAMP.T + 0.114 * RAMP[::-1]) / 255
    np.testing.assert_allclose(stored(colour), luma, atol=1e-6)
    np.testing.assert_allclose(stored(colour.convert("CMYK"), "picture.tif"), luma, atol=0.01)
    palette = colour.quantize(16)
    np.testing.assert_allclose(stored(palette), images.to_grey(palette.convert("RGB")), atol=1e-6)
    bilevel = np.asarray(Image.fromarray(RAMP).convert("1"))
    np.testing.assert_array_equal(stored(Image.fromarray(bilevel)), bilevel)


def test_floats_in_the_unit_range_are_kept_and_others_scaled():
    x = np.linspace(0.2, 0.6, 64, dtype=np.float32).reshape(8, 8)
    np.testing.assert_array_equal(images.to_grey(Image.fromarray(x)), x)
    wide = images.to_grey(Image.fromarray(x * 1000))
    assert (wide.min(), wide.max()) == (0, 1)
    with pytest.raises(ValueError, match="not finite"):
        images.to_grey(Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)))


@pytest.mark.parametrize(("stroke", "ground"), [(0, 1), (255, 0)])
def test_strokes_on_a_transparent_ground_get_the_opposite_ground(stored, stroke, ground):
    alpha = np.zeros((16, 16), dtype=np.uint8)
    alpha[4:6] = 255
    image = Image.merge("LA", [Image.new("L", (16, 16), stroke), Image.fromarray(alpha)])
    for mode in ("LA", "RGBA"):
        x = stored(image.convert(mode))
        assert (x[4:6] == stroke / 255).all() and (x[8:] == ground).all()


def test_transparent_pixels_get_the_ground_of_the_opaque_ones(stored):
    level = np.full((16, 16), 200, dtype=np.uint8)
    level[6:9] = 20
    level[:4] = 0
    alpha = np.full((16, 16), 255, dtype=np.uint8)
    alpha[:4] = 0
    x = stored(Image.merge("LA", [Image.fromarray(level), Image.fromarray(alpha)]))
    np.testing.assert_allclose(x[:4], 200 / 255, atol=1e-6)
    np.testing.assert_allclose(x[6:9], 20 / 255, atol=1e-6)


def test_a_transparent_palette_colour_and_a_fully_transparent_picture(stored):
    image = Image.fromarray(np.where(RAMP < 30, 0, 1).astype(np.uint8)).convert("P")
    image.putpalette([10, 10, 10, 255, 0, 0])
    x = stored(image, transparency=1)
    assert (x[2:] == 1).all() and (x[0] < 0.1).all()
    assert (stored(Image.new("RGBA", (5, 4))) == np.ones((4, 5))).all()


def test_exif_orientation_is_applied(stored):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    image = Image.fromarray(np.repeat(np.repeat(RAMP[:8], 8, 0), 8, 1))
    x = stored(image, "picture.jpg", exif=exif, quality=95)
    assert x.shape == (128, 64)
    np.testing.assert_allclose(x, np.rot90(np.asarray(image), -1) / 255, atol=0.15)


def test_corrupt_files_are_reported_in_one_line(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(whole, "PNG")
    corrupt = {
        "cut.png": whole.getvalue()[:1000],
        "text.png": b"not a picture",
        "empty.jpg": b"",
        "flipped.png": whole.getvalue()[:500] + b"\x00" * 200 + whole.getvalue()[700:],
    }
    for name, content in corrupt.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name) as caught:
            images.read_grey(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="nothing.png: no such file"):
        images.read_grey(tmp_path / "nothing.png")
    with pytest.raises(FileNotFoundError, match="not a file"):
        images.read_grey(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("1", (200, 200)).save(tmp_path / "large.png")
    for most in (30_000, 10_000):  # above its limit Pillow warns, above twice the limit it refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(ValueError, match="large.png: more than"):
            images.read_grey(tmp_path / "large.png")


def test_png_is_written_atomically(tmp_path, monkeypatch):
    path = tmp_path / "new" / "picture.png"
    images.write_png(path, images.from_grey(RAMP / 255))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), RAMP)

    def save_half(self, file, format, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", save_half)
    with pytest.raises(OSError, match="disk full"):
        images.write_png(path, Image.new("L", (3, 3)))
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(path)), RAMP)


def test_find_polarity():
    x = np.zeros((60, 50), dtype=np.float32)
    x[20:26, 8:42], x[10:52, 22:28] = 0.8, 0.8
    noisy = (x + 0.1 + 0.05 * np.random.default_rng(0).standard_normal(x.shape)).clip(0, 1).astype(np.float32)
    assert squares.find_polarity(noisy) == "bright"
    assert squares.find_polarity(1 - noisy) == "dark"
    x[4:-4, 4:-4] = 0.8  # fused with lost stone, more than half is bright: the border decides
    assert (x > 0.5).mean() > 0.6 and squares.find_polarity(x) == "bright"
    cut = np.zeros((40, 40), dtype=np.float32)
    cut[:2], cut[:, :2], cut[-2:, :] = 1, 1, 1  # a bright frame: the fraction of ink decides
    cut[12:16, 8:30] = 1
    assert squares.find_polarity(cut) == "bright"
    assert squares.find_polarity(np.full((9, 9), 0.3, dtype=np.float32)) == "dark"


def test_stretch_fills_the_range_and_skips_blank_pictures():
    x = glyph_like(1)[0, 0].numpy() * 0.3 + 0.2
    y = squares.stretch(x)
    assert (y.min(), y.max()) == (0, 1)
    assert np.corrcoef(x.ravel(), y.ravel())[0, 1] > 0.99
    blank = np.float32(0.5) + 0.001 * np.random.default_rng(0).standard_normal((20, 20)).astype(np.float32)
    assert squares.stretch(blank) is blank


@pytest.mark.parametrize("shape", [(40, 100), (100, 40), (64, 64), (7, 7), (1, 500), (1, 1), (301, 299)])
def test_from_square_inverts_to_square(shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    x = (0.5 + 0.4 * np.sin(3 * rows / max(shape)) * np.cos(4 * columns / max(shape))).astype(np.float32)
    box = squares.whole(*shape)
    square = squares.to_square(x, box, 64)
    assert square.shape == (64, 64)
    back = squares.from_square(square, box, *shape)
    assert back.shape == shape
    assert np.abs(back - x).max() < 0.05


def test_the_square_is_padded_with_ground():
    x = np.full((20, 64), 0.25, dtype=np.float32)
    x[2:18, 4:60] = 0.9
    square = squares.to_square(x, squares.whole(*x.shape), 64)
    np.testing.assert_array_equal(square[22:42], x)
    assert (square[:22] == 0.25).all() and (square[42:] == 0.25).all()
    stretched = squares.to_square(x, squares.whole(*x.shape), 64, contrast=True)
    assert (stretched.min(), stretched.max()) == (0, 1) and (stretched[:22] == 0).all()


def test_a_box_may_reach_beyond_the_picture():
    x = np.random.default_rng(0).random((30, 40), dtype=np.float32)
    box = squares.Box(-10, 25, 32)
    square = squares.to_square(x, box, 32)
    np.testing.assert_array_equal(square[10:, :15], x[:22, 25:])
    assert len(np.unique(square[:10])) == 1 and len(np.unique(square[:, 15:])) == 1
    back = squares.from_square(square, box, 30, 40)
    np.testing.assert_array_equal(back[:22, 25:], x[:22, 25:])
    assert not back[22:].any() and not back[:, :25].any()


def test_find_box_ignores_specks():
    rng = np.random.default_rng(0)
    x = np.zeros((300, 400), dtype=np.float32)
    x[100:160, 120:128], x[126:134, 90:150] = 1, 1
    for y in (x, np.where(rng.random(x.shape) < 0.01, 1, x).astype(np.float32)):  # alone, and with specks
        box = place.find_box(y)
        assert box.edge == pytest.approx(70, abs=8)
        assert (box.top + box.edge / 2, box.left + box.edge / 2) == pytest.approx((130, 120), abs=5)
    assert place.find_box(x[88:172, 78:162]) == squares.whole(84, 84) == squares.Box(0, 0, 84)  # fills the picture
    assert place.find_box(np.full((30, 50), 0.5, dtype=np.float32)) == squares.whole(30, 50)


@pytest.mark.parametrize(
    ("stroke", "ground"),
    [
        ((200, 170, 80), (20, 30, 90)),
        ((245, 235, 210), (10, 10, 10)),
        ((60, 40, 20), (150, 110, 60)),
        ((170, 40, 40), (40, 106, 40)),
    ],
    ids=["gold on navy", "cream on black", "ink on bamboo", "red on green of the same luma"],
)
def test_separate_tells_strokes_from_ground_in_colour(stroke, ground):
    ink = glyph_like(1, 64)[0, 0].numpy() > 0.5
    noise = np.random.default_rng(0).normal(0, 12, (*ink.shape, 3))
    picture = np.where(ink[..., None], stroke, ground) + noise
    x = place.separate(images.to_channels(Image.fromarray(picture.clip(0, 255).astype(np.uint8))))
    assert x.dtype == np.float32 and x.min() >= 0 and x.max() <= 1
    mask = squares.ink_mask(x)
    assert max((mask == ink).mean(), (mask != ink).mean()) > 0.99


def test_separate_keeps_grey_levels():
    grey = np.random.default_rng(0).integers(0, 255, (20, 20), dtype=np.uint8)
    np.testing.assert_allclose(place.separate(images.to_channels(Image.fromarray(grey).convert("RGB"))), grey / 255, atol=1e-6)


def test_ink_mask_equals_the_batched_threshold():
    x = glyph_like(3).clamp(0, 1)
    for picture, mask in zip(x, otsu(x), strict=True):
        np.testing.assert_array_equal(squares.ink_mask(picture[0].numpy()), mask[0].numpy() > 0)


def test_the_resolution_is_written(tmp_path):
    image = images.from_grey(RAMP / 255)
    image.info["dpi"] = (300.0, 300.0)
    images.write_png(tmp_path / "a.png", image)
    assert Image.open(tmp_path / "a.png").info["dpi"] == pytest.approx((300, 300), abs=0.01)
