"""What is said of a restored picture: each kind of change is told from the others."""

import numpy as np
import pytest

from util import sureness


@pytest.fixture
def example() -> tuple[np.ndarray, np.ndarray]:
    """(damaged, restored): columns of ground, kept, added, removed and doubtful ink, each four pixels wide."""
    damaged = np.repeat([[0.0, 1.0, 0.0, 1.0, 0.0]], 4, axis=1).repeat(8, axis=0)
    restored = np.repeat([[0.1, 0.9, 0.9, 0.1, 0.6]], 4, axis=1).repeat(8, axis=0)
    return damaged.astype(np.float32), restored.astype(np.float32)


def test_numbers(example):
    told = sureness.numbers(*example)
    assert {name: told[name] for name in sureness.COLOURS} == dict.fromkeys(sureness.COLOURS, 0.25)
    assert told["sureness"] == pytest.approx((3 * 0.9 + 0.6) / 4)
    blank = np.zeros((8, 8), np.float32)
    assert sureness.numbers(blank, blank) == {"sureness": 1.0, **dict.fromkeys(sureness.COLOURS, 0.0)}


def test_colours_tell_the_parts_and_fade_with_doubt(example):
    picture = np.asarray(sureness.colours(*example)).astype(int)
    columns = picture[0, 2::4]
    assert (columns[0] == 255).all() and len({tuple(column) for column in columns}) == 5
    surer = np.asarray(sureness.colours(example[0], np.where(example[1] == 0.9, 1, example[1]).astype(np.float32))).astype(int)
    assert (surer[0, 6] < picture[0, 6]).all()


def test_the_soft_rim_of_a_stroke_is_no_doubt():
    restored = np.zeros((100, 100), np.float32)
    restored[20:80, 40:60] = 1
    damaged = restored.copy()
    restored[20:80, [39, 60]] = 0.6
    told = sureness.numbers(damaged, restored)
    assert told["kept"] == 1 and told["doubtful"] == 0
    restored[40:60, 40:60] = 0.6
    assert sureness.numbers(damaged, restored)["doubtful"] == pytest.approx(400 / 1320, abs=0.04)


def test_the_picture_has_a_legend_below(example):
    sheet = sureness.picture(*example)
    assert sheet.width >= 20 and sheet.height > 8 + 20
    assert {tuple(colour) for colour in np.asarray(sheet).reshape(-1, 3)} >= set(sureness.COLOURS.values())
