"""Margins: upright ones, and the table around a sheet or beside a slip that lies askew."""

import io

import numpy as np
import pytest
from PIL import Image

from restoration.margins import BLOCK, find_content, find_sheet
from restoration.pipeline import Restorer
from tests.pictures import character, network, scene
from util import images
from util.squares import find_polarity


@pytest.mark.parametrize("tone", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("margins", [((0, 0), (60, 60)), ((40, 0), (0, 0)), ((30, 50), (20, 70)), ((0, 0), (0, 25))])
@pytest.mark.parametrize("bright", [True, False])
def test_flat_margins_are_left_out(tone, margins, bright):
    x = scene() if bright else 1 - scene()
    rows, columns = find_content(np.pad(x, margins, constant_values=tone))
    (top, _), (left, _) = margins
    assert (rows, columns) == (slice(top, top + 160), slice(left, left + 160))


def test_margins_one_inside_another_in_colour_and_with_jpeg_artefacts():
    x = np.pad(np.pad(scene(), 24, constant_values=1.0), 32, constant_values=0.4)
    assert find_content(x) == (slice(56, 216), slice(56, 216))
    colour = np.stack([x, x, np.pad(scene(), 56, constant_values=0.9)], axis=2)
    assert find_content(colour) == (slice(56, 216), slice(56, 216))
    file = io.BytesIO()
    images.from_grey(x).save(file, "JPEG", quality=60)
    for found in find_content(images.to_grey(Image.open(file))):
        assert (found.start, found.stop) == (pytest.approx(56, abs=BLOCK), pytest.approx(216, abs=BLOCK))


def test_ground_of_one_tone_is_no_margin():
    for shape in ((64, 64), (40, 130), (300, 200)):
        x = character(*shape) / np.float32(255)
        for picture in (x, 1 - x, np.where(x > 0.5, 1, 0).astype(np.float32)):
            assert find_content(picture) == (slice(0, shape[0]), slice(0, shape[1]))
    ink = np.pad(1 - character(100, 100) / np.float32(255), 50, constant_values=1.0)  # ink on white, in a black margin
    assert find_content(np.pad(ink, ((0, 0), (80, 80)))) == (slice(0, 200), slice(80, 280))


def test_a_stroke_that_ends_in_a_thin_tip_is_not_cut_off():
    x = np.ones((300, 300), dtype=np.float32)
    x[120:200, 140:160], x[150:170, 110:190] = 0, 0
    x[90:120, 148:152] = 0  # the tip, whose lines are flat, but not without what is beside the cross
    for picture in (x, x.T, x[::-1], x.T[:, ::-1], 1 - x):
        assert find_content(picture) == (slice(0, 300), slice(0, 300))


def test_blank_pictures_and_small_contents_are_returned_whole():
    for x in (np.zeros((40, 30)), np.pad(np.ones((9, 9)), 20), np.ones((1, 1)), np.ones((3, 700))):
        assert find_content(x.astype(np.float32)) == (slice(0, x.shape[0]), slice(0, x.shape[1]))


def askew(x: np.ndarray, angle: float, table: float, long: bool = False) -> np.ndarray:
    """A sheet (H, W) turned clockwise by `angle` on a table; `long`: a slip that is longer than the picture."""
    picture = Image.new("F", (x.shape[1] + 90, x.shape[0] + 90), table)
    x = np.pad(x, ((45, 45), (0, 0)), constant_values=np.median(x)) if long else x
    cover = Image.fromarray(np.ones_like(x)).rotate(-angle, expand=True)
    sheet = Image.fromarray(x).rotate(-angle, Image.Resampling.BILINEAR, expand=True)
    at = tuple((outer - inner) // 2 for outer, inner in zip(picture.size, sheet.size, strict=True))
    picture.paste(sheet, at, cover.point(lambda value: value * 255).convert("L"))
    picture = np.asarray(picture)[45:-45] if long else np.asarray(picture)
    return (picture + 0.01 * np.random.default_rng(0).standard_normal(picture.shape)).clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("angle", [-9.0, -3.0, 2.0, 6.5])
@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("bright", [True, False])
def test_the_table_around_a_sheet_gets_the_tone_of_its_ground(angle, long, bright):
    ground = 0.15 if bright else 0.85
    x = askew(scene() if bright else 1 - scene(), angle, 1 - ground, long)
    sheet = find_sheet(x)
    covered = sheet.cover(x)
    inner = covered[find_content(covered)]
    assert find_polarity(inner) == ("bright" if bright else "dark") and find_polarity(x) != find_polarity(inner)
    assert sheet.angle == pytest.approx(angle, abs=1.5)
    rim = np.concatenate([inner[:, :4].ravel(), inner[:, -4:].ravel()])
    assert (np.abs(rim - ground) < 0.1).mean() > 0.97


@pytest.mark.parametrize("bright", [True, False])
def test_a_character_on_a_sheet_is_restored_as_the_sheet_lies(bright):
    x = askew(scene() if bright else 1 - scene(), 6.5, 0.9 if bright else 0.1)
    restorer = Restorer(network(lambda x: x[:, 0]), {"img_size": 64, "in_chans": 1})
    prepared = restorer.prepare(images.from_grey(x))
    assert prepared.polarity == ("bright" if bright else "dark") and prepared.box.angle == pytest.approx(6.5, abs=1.5)
    (restored,) = restorer.restore([prepared])
    strokes = askew(character(160, 160) / np.float32(255), 6.5, 0.0) > 0.5
    assert restored.ink[strokes].mean() > 0.8 and restored.ink[~strokes].mean() < 0.1
    assert not restored.parts["removed"][:20].any()  # the table is not ink that was lost
    assert restorer.prepare(images.from_grey(x), rotation=0.0).box.angle == 0


def test_a_table_of_the_sheets_luma_in_another_colour():
    x = askew(np.full((160, 160), 0.5, np.float32) + scene() / 4, 5.0, 0.0)
    table = x < 0.3
    colour = np.stack([np.where(table, 0.9, x), np.where(table, 0.45, x), np.where(table, 0.3, x)], axis=2).astype(np.float32)
    covered = find_sheet(colour).cover(colour)
    assert (np.ptp(covered, axis=2) < 0.1).mean() > 0.99 > 0.9 > (np.ptp(colour, axis=2) < 0.1).mean()


def test_characters_without_a_table_are_left_as_they_are():
    for shape in ((160, 160), (64, 200)):
        for x in (scene(*shape), 1 - scene(*shape), np.pad(character(*shape) / np.float32(255), 50)):
            turned = np.asarray(Image.fromarray(x).rotate(7, fillcolor=float(np.median(x))))
            for picture in (x, turned):
                assert find_sheet(picture).cover(picture) is picture
    heavy = np.pad(np.ones((60, 60), np.float32), 40)  # as large as a sheet, but it has no corners
    heavy[50:90, 50:70] = heavy[85:, :70] = heavy[:55, 80:] = 0
    assert find_sheet(heavy).cover(heavy) is heavy


def test_rows_of_a_picture_are_covered_as_in_the_whole():
    x = askew(1 - scene(), 4.0, 0.1)
    sheet = find_sheet(x)
    parts = [sheet.cover(x[start : start + 70], x.shape, start) for start in range(0, len(x), 70)]
    np.testing.assert_array_equal(np.concatenate(parts), sheet.cover(x))
