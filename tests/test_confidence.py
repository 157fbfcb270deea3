"""The parts of a restored picture: strokes kept, added, removed and doubtful."""

import numpy as np
import pytest
from PIL import Image

from restoration import confidence


@pytest.fixture
def example() -> tuple[np.ndarray, np.ndarray]:
    """(degraded, restored): columns of ground, kept, added, removed and doubtful ink, each four pixels wide."""
    degraded = np.repeat([[0.0, 1.0, 0.0, 1.0, 0.0]], 4, axis=1).repeat(8, axis=0)
    restored = np.repeat([[0.1, 0.9, 0.9, 0.1, 0.6]], 4, axis=1).repeat(8, axis=0)
    return degraded.astype(np.float32), restored.astype(np.float32)


def numbers(degraded: np.ndarray, restored: np.ndarray) -> dict[str, float]:
    return confidence.numbers(confidence.parts(degraded, restored, restored), restored, restored)


def colours(degraded: np.ndarray, restored: np.ndarray) -> Image.Image:
    return confidence.colours(confidence.parts(degraded, restored, restored), restored)


def test_numbers_are_the_mean_confidence_and_the_share_of_each_part(example):
    shares = numbers(*example)
    assert shares.pop("confidence") == pytest.approx((3 * 0.9 + 0.6) / 4)
    assert shares == dict.fromkeys(confidence.COLOURS, 0.25)
    blank = np.zeros((8, 8), np.float32)
    assert numbers(blank, blank) == {"confidence": 1.0, **dict.fromkeys(confidence.COLOURS, 0.0)}


def test_a_drawing_is_as_doubtful_as_its_probability(example):
    """A stroke that is drawn where the probability is .4 is doubtful, however sure the drawing looks; one that is not drawn too."""
    degraded, probability = example[0], np.where(example[1] == np.float32(0.6), np.float32(0.4), example[1])
    for drawn in (np.round(example[1]), np.round(probability)):
        parts = confidence.parts(degraded, drawn, probability)
        assert parts["doubtful"][:, 16:].all() and not parts["added"][:, 16:].any()
        shares = confidence.numbers(parts, drawn, probability)
        assert shares["confidence"] == pytest.approx((3 * 0.9 + (0.4 if drawn[0, 16] else 0.6)) / 4)


def test_each_part_has_a_colour_that_fades_with_doubt(example):
    picture = np.asarray(colours(*example)).astype(int)
    columns = picture[0, 2::4]
    assert (columns[0] == 255).all() and len({tuple(column) for column in columns}) == 5
    surer = np.asarray(colours(example[0], np.where(example[1] == 0.9, 1, example[1]).astype(np.float32))).astype(int)
    assert (surer[0, 6] < picture[0, 6]).all()


def test_the_soft_edge_of_a_stroke_is_not_doubtful():
    restored = np.zeros((100, 100), np.float32)
    restored[20:80, 40:60] = 1
    degraded = restored.copy()
    restored[20:80, [39, 60]] = 0.6
    shares = numbers(degraded, restored)
    assert shares["kept"] == 1 and shares["doubtful"] == 0
    restored[40:60, 40:60] = 0.6
    assert numbers(degraded, restored)["doubtful"] == pytest.approx(400 / 1320, abs=0.04)


def test_the_legend_is_below_the_picture(example):
    sheet = confidence.with_legend(colours(*example))
    assert sheet.width >= 20 and sheet.height > 8 + 20
    assert {tuple(colour) for colour in np.asarray(sheet).reshape(-1, 3)} >= set(confidence.COLOURS.values())
