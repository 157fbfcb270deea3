"""Guides: laid over the character's box, alike in training and in use; drawn for training from the samples' keys."""

import numpy as np
import pytest
import torch

from datasets import guide as training
from datasets.degradation import Degradation
from datasets.pack import open_pack
from datasets.pairs import HandwritingSet
from datasets.rng import sample_keys
from restoration.guide import bend, fit, lay
from tests.pictures import character

SIZE = 64


def ink(top: int, left: int, height: int, width: int) -> np.ndarray:
    x = np.zeros((SIZE, SIZE), np.float32)
    rows, columns = slice(top, top + height), slice(left, left + width)
    x[rows, columns] = character(3 * height // 2, 3 * width // 2)[height // 4 :][:height, width // 4 :][:, :width] / 255
    return x


def box(x: np.ndarray) -> list[int]:
    rows, columns = (np.flatnonzero((x > 0.5).any(axis)) for axis in (1, 0))
    return [int(end) for end in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


@pytest.mark.parametrize("place", [(10, 20, 40, 24), (4, 4, 56, 56), (30, 2, 24, 50)])
def test_a_guide_is_laid_over_the_character(place):
    """The same in use, where the box is found in the picture, as in training, where it is known."""
    guide, square = ink(12, 16, 36, 32), ink(*place)
    (in_use, agreement), (bent, _) = lay(guide, square), fit(guide, square)
    assert agreement > 0.85
    known = training.ink_box(torch.from_numpy(square)[None, None])
    assert (known * SIZE).tolist() == [box(square)]
    in_training = training.fit(torch.from_numpy(guide)[None, None], known)[0, 0].numpy()
    for fitted in (in_use, bent, in_training):
        assert np.abs(np.array(box(fitted)) - box(square)).max() <= 2
        assert ((fitted > 0.5) == (square > 0.5)).mean() > 0.9
    assert np.abs(in_use - in_training).mean() < 0.03


def test_a_guide_finds_its_character_though_a_loss_widens_the_box():
    guide, square = ink(12, 16, 36, 32), ink(10, 20, 40, 24)
    mean = square.copy()
    mean[58:62, 30:36] = 1  # a loss below it that the network takes for a stroke
    assert np.abs(np.array(box(fit(guide, mean)[0])) - box(square)).max() <= 3


def test_a_guide_is_as_large_as_the_character_though_most_of_it_is_lost():
    guide, square = ink(12, 16, 36, 32), ink(8, 10, 48, 44)
    mean = square.copy()
    mean[26:, :] = 0
    mean[26:58, 8:56] = 0.3  # it could be anywhere here
    assert np.abs(np.array(box(fit(guide, mean)[0])) - box(square)).max() <= 6


def test_strokes_are_bent_onto_those_that_survive_and_take_lost_ones_with_them():
    place = np.indices((SIZE, SIZE))
    straight, bent = (np.zeros((SIZE, SIZE), np.float32) for _ in range(2))
    for x, wave in ((straight, 0), (bent, 2.5)):
        for row in (16, 28, 40, 52):
            x[np.abs(place[0] - row - wave * np.sin(place[1] / 10)) < 2] = 1
    mean = bent.copy()
    mean[24:32, 16:48] = 0.3  # a part of the second stroke is lost
    result = bend(straight, mean)
    error = lambda x, where: np.abs(x - bent)[where].mean()  # noqa: E731
    survives, lost = mean != 0.3, mean == 0.3
    assert error(result, survives) < error(straight, survives) / 2 and error(result, lost) < 0.75 * error(straight, lost)
    assert result.dtype == np.float32 and result.min() >= 0 and result.max() <= 1
    assert np.allclose(bend(bent, bent), bent, atol=1e-6)  # nothing to do


def test_nothing_is_laid_over_a_picture_without_ink_or_from_a_blank_guide():
    blank, cross = np.zeros((SIZE, SIZE), np.float32), ink(12, 16, 36, 32)
    assert not fit(blank, cross)[0].any()
    assert (fit(cross, blank)[0] == cross).all() and fit(cross, blank)[1] == 1
    assert fit(cross, blank + 1)[1] == 0  # one tone agrees with nothing
    assert not training.fit(torch.zeros(1, 1, SIZE, SIZE), torch.tensor([[0.1, 0.1, 0.5, 0.5]])).any()


@pytest.fixture(scope="module")
def data(tiny_pack) -> HandwritingSet:
    return HandwritingSet(open_pack(tiny_pack), "train", "all", SIZE, guide=True)


def test_a_specimen_is_the_same_form_in_another_hand(data):
    positions = np.arange(len(data))
    forms, hands = data.pack.form[data.ids], data.pack.hand[data.ids]
    specimens = [data.batch(positions, lambda ids, epoch=epoch: sample_keys(0, epoch, ids))["specimen"] for epoch in range(6)]
    clean, drawn = data.batch(positions)["clean"], set()
    for specimen in specimens:
        for i in positions:
            same = [j for j in positions if forms[j] == forms[i] and hands[j] != hands[i] and torch.equal(clean[j], specimen[i])]
            assert same or not ((forms == forms[i]) & (hands != hands[i])).any()
            drawn |= {(i, j) for j in same}
    assert len(drawn) > 1.5 * len(positions)  # not always the same one


def test_guides_for_training(data):
    positions = np.arange(len(data)).repeat(8)
    keys = sample_keys(0, 0, np.arange(len(positions)))
    sample, damage = data.batch(positions, lambda ids: keys), Degradation("mixed", SIZE)
    target = sample["clean"]
    guides = training.make_guides(sample, target, keys, damage, 1 / 3)
    given = guides.flatten(1).any(1)
    assert abs(given.float().mean() - 2 / 3) < 0.1 and guides.min() >= 0 and guides.max() <= 1 + 1e-6
    off = ((training.ink_box(guides) - training.ink_box(target))[given]).abs()
    assert off.median() < 0.04 and off.max() > 0.05  # most boxes are near, some are far off
    half = slice(0, len(keys), 2)
    part = {key: value[half] for key, value in sample.items() if key != "strokes"}
    assert torch.allclose(training.make_guides(part, target[half], keys[half], damage, 1 / 3), guides[half], atol=1e-6)
    assert not training.make_guides(sample, target, keys, damage, 1.0).any()
