import math

import numpy as np
import pytest
from scipy import ndimage

from evaluation import strokes
from evaluation.strokes import CleanStrokes, centre_line, pseudo_weights, stroke_scores
from tests.pictures import glyph_like


def bar(img_size: int = 224, rows: tuple[int, int] = (100, 111), columns: tuple[int, int] = (20, 200)) -> np.ndarray:
    ink = np.zeros((img_size, img_size), dtype=bool)
    ink[slice(*rows), slice(*columns)] = True
    return ink


def scores(result: np.ndarray, clean: np.ndarray) -> dict:
    return dict(zip(strokes.SCORES, stroke_scores([result], clean)[0], strict=True))


@pytest.mark.parametrize("width", [1, 2, 3, 6, 7, 10, 11])
def test_pseudo_recall_weighs_a_cross_section_of_any_width_as_one(width):
    ink = bar(rows=(100, 100 + width))
    recall, _ = pseudo_weights(ink)
    np.testing.assert_allclose(recall[:, 60:160].sum(0), 1)
    assert (recall[~ink] == 0).all()
    if width > 2:
        assert (recall[100, 30:190] == 0).all() and (recall[99 + width, 30:190] == 0).all()  # the contour may be lost


def test_pseudo_precision_weights_grow_up_to_the_stroke_width():
    _, precision = pseudo_weights(bar(rows=(100, 111)))
    column = precision[:, 100]
    growing = 1 + np.arange(1, 9) / 8  # twice the mean radius of the centre line, rounded down: 5, but less at the ends
    np.testing.assert_allclose(column[111:119], growing)
    np.testing.assert_allclose(column[92:100][::-1], growing)
    assert (column[100:111] == 1).all() and (column[119:] == 1).all() and (column[:92] == 1).all()


def test_pseudo_precision_weighs_ink_between_near_strokes_more():
    _, alone = pseudo_weights(bar())
    both = bar() | bar(rows=(117, 128))  # a gap of six pixels
    _, precision = pseudo_weights(both)
    np.testing.assert_allclose(precision[111:117, 100], 1 + np.array([1, 2, 3, 3, 2, 1]) / 3)  # up to the middle of the gap
    np.testing.assert_allclose(precision[92:97, 100], alone[92:97, 100])  # the far side is unchanged


# Pseudo-F, pseudo-precision and pseudo-recall in percent of three results against the cross below, with the contests' own weights,
# by version 0.9.9 of the doxapy package, which agrees with their tool to the bit.
REFERENCE = {"hole": (97.3458, 100.0, 94.8288), "shift": (85.27, 77.605, 94.615), "blob": (90.1255, 82.0258, 100.0)}


def cross() -> np.ndarray:
    return bar(rows=(100, 112)) | bar(rows=(30, 190), columns=(100, 110)) | bar(rows=(150, 157), columns=(130, 200))


def changed(kind: str) -> np.ndarray:
    ink = cross()
    if kind == "hole":
        ink[100:112, 40:60] = False
    elif kind == "shift":
        ink = np.roll(ink, 2, axis=(0, 1))
    else:
        ink[40:60, 20:45] = True
        ink[112:118, 130:180] = True
    return ink


def test_pseudo_f_is_close_to_the_contests_tool():
    for kind, (f1, precision, recall) in REFERENCE.items():
        ink, clean = changed(kind), CleanStrokes(cross())
        ours = clean.precision[ink & clean.ink].sum() / clean.precision[ink].sum(), clean.recall[ink].sum() / clean.recall.sum()
        assert 100 * clean.pseudo_f1(ink) == pytest.approx(f1, abs=0.5), kind
        assert 100 * ours[0] == pytest.approx(precision, abs=0.5) and 100 * ours[1] == pytest.approx(recall, abs=0.5), kind


def test_pseudo_f_of_pictures_without_ink():
    blank = np.zeros((64, 64), dtype=bool)
    ink = bar(64, (20, 30), (10, 50))
    assert CleanStrokes(ink).pseudo_f1(ink) == pytest.approx(1) and CleanStrokes(blank).pseudo_f1(blank) == 1
    assert CleanStrokes(ink).pseudo_f1(blank) == CleanStrokes(blank).pseudo_f1(ink) == 0


def test_chamfer_matches_naive_loops():
    pictures = glyph_like(4, seed=3).numpy()[:, 0] > 0.4
    for ink, clean in zip(pictures, pictures[::-1], strict=True):
        lines = [np.argwhere(centre_line(x)).tolist() for x in (ink, clean)]
        means = [sum(min(math.dist(p, q) for q in b) for p in a) / len(a) for a, b in (lines, lines[::-1])]
        assert scores(ink, clean)["chamfer"] == pytest.approx(sum(means) / 2)


def test_chamfer_of_empty_lines():
    blank, ink = np.zeros((30, 40), dtype=bool), np.zeros((30, 40), dtype=bool)
    ink[10:14, 5:30] = True
    assert scores(blank, blank)["chamfer"] == scores(ink, ink)["chamfer"] == 0
    assert scores(blank, ink)["chamfer"] == scores(ink, blank)["chamfer"] == 50


def test_every_component_has_a_centre_line():
    ink = np.zeros((40, 40), dtype=bool)
    ink[3, 3] = ink[10:12, 10:12] = ink[20:30, 5:35] = True
    labels, n = ndimage.label(ink, np.ones((3, 3)))
    assert n == 3 and set(np.unique(labels[centre_line(ink)])) == {1, 2, 3}
    assert not (centre_line(ink) & ~ink).any()


def test_broken_strokes_are_counted():
    clean = bar()
    assert scores(clean, clean)["broken"] == 0
    narrow, wide, two, lost = (clean.copy() for _ in range(4))
    narrow[:, 100:106] = False  # within the tolerance of both ends
    wide[:, 100:120] = False
    two[:, 60:80] = two[:, 140:170] = False
    lost[:] = False
    assert [scores(x, clean)["broken"] for x in (narrow, wide, two, lost)] == [0, 1, 2, 1]
    assert scores(np.roll(clean, 2, 0), clean)["broken"] == 0


def test_invented_strokes_are_counted():
    clean = bar()
    isolated, attached, specks, thick = (clean.copy() for _ in range(4))
    isolated[30:40, 30:90] = True
    attached[111:150, 100:110] = True
    specks[10:14, 10:14] = specks[200:204, 60:64] = True
    thick[98:113] |= clean[105]
    results = (clean, isolated, attached, isolated | attached, specks, thick)
    assert [scores(x, clean)["invented"] for x in results] == [0, 1, 1, 2, 0, 0]


def test_scores_do_not_depend_on_the_other_methods():
    clean, first, second = glyph_like(3, seed=4).numpy()[:, 0] > 0.4
    both = stroke_scores([first, second], clean)
    np.testing.assert_array_equal(both, np.concatenate([stroke_scores([x], clean) for x in (first, second)]))
    assert both.shape == (2, len(strokes.SCORES))
