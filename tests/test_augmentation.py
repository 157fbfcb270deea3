import numpy as np
import pytest
import torch
from scipy.ndimage import label

from datasets.augmentation import WEIGHT, augment, change_stroke_width, shorten_runs
from datasets.degradation import Degradation
from datasets.pairs import make_batch
from datasets.rng import Stream, sample_keys
from tests.pictures import character
from util.binarise import otsu

KEYS = sample_keys(0, 0, np.arange(64))


def glyphs(img_size: int = 64) -> torch.Tensor:
    """(64, 1, img_size, img_size): copies of one cross."""
    return (torch.from_numpy(character(img_size, img_size)) / 255).expand(64, 1, img_size, img_size).clone()


def middle(x: torch.Tensor) -> torch.Tensor:
    """(N, 2): the centre of mass of the ink, in [0, 1]."""
    at = (torch.arange(x.shape[-1]) + 0.5) / x.shape[-1]
    ink = x.sum((1, 2, 3))
    return torch.stack([(x.sum(2)[:, 0] * at).sum(1) / ink, (x.sum(3)[:, 0] * at).sum(1) / ink], 1)


def test_share_is_the_fraction_of_augmented_pictures():
    clean = glyphs()
    assert augment(clean, KEYS, 0.0) is clean
    changed = (augment(clean, KEYS, 0.5) != clean).flatten(1).any(1)
    assert 20 <= changed.sum() <= 44
    assert (augment(clean, KEYS, 1.0) != clean).flatten(1).any(1).all()


def test_a_picture_does_not_depend_on_its_batch():
    clean = glyphs()
    whole = augment(clean, KEYS, 0.7)
    parts = torch.cat([augment(clean[i : i + 7], KEYS[i : i + 7], 0.7) for i in range(0, 64, 7)])
    torch.testing.assert_close(whole, parts, atol=1e-6, rtol=0)
    assert not torch.equal(whole, augment(clean, sample_keys(0, 1, np.arange(64)), 0.7))


def test_characters_move_and_their_strokes_change_width():
    clean = glyphs(128)
    changed = augment(clean, KEYS, 1.0)
    assert changed.min() >= 0 and changed.max() <= 1
    assert (middle(changed) - middle(clean)).std() > 0.02
    areas = otsu(changed).mean((1, 2, 3)) / otsu(clean).mean((1, 2, 3))
    assert areas.min() < 0.6 and areas.max() > 1.05 and 0.1 < areas.std() < 0.5


@pytest.mark.parametrize("img_size", [32, 64, 224])
def test_ground_stays_0_and_ink_stays_1(img_size):
    glyph = torch.zeros(64, 1, img_size, img_size)
    glyph[..., img_size // 4 : -img_size // 4] = 1  # one bar, wider than the blur at any size
    changed = augment(glyph, KEYS, 1.0)
    assert changed.amin((1, 2, 3)).max() < 1e-5 and changed.amax((1, 2, 3)).min() > 1 - 1e-5


def change_width(x: torch.Tensor) -> torch.Tensor:
    return change_stroke_width(x, Stream(KEYS, "width"))


def test_the_width_of_strokes_changes_by_weight():
    bar = torch.zeros(64, 1, 224, 224)
    bar[..., 102:122, :] = 1
    for glyph in (bar, bar.mT):
        change = change_width(glyph).sum((1, 2, 3)) / 224 - 20
        assert WEIGHT[0] - 0.1 <= change.min() < 0.8 * WEIGHT[0] and 0.8 * WEIGHT[1] < change.max() <= WEIGHT[1] + 0.1


def test_a_glyph_neither_vanishes_nor_closes_nor_falls_apart():
    thin, narrow = torch.zeros(64, 1, 224, 224), torch.ones(64, 1, 224, 224)
    for column in range(60, 160, 20):
        thin[..., 40:180, column : column + 3], narrow[..., 40:180, column : column + 3] = 1, 0
    assert count(thin > 0.5) == count(narrow < 0.5) == [5] * 64
    for glyph in (thin, narrow):
        changed = change_width(glyph)
        assert count(changed > 0.5 if glyph is thin else changed < 0.5) == [5] * 64
        assert (changed != glyph).any() and changed.sum((1, 2, 3)).min() > 0.4 * glyph[0].sum()


def count(x: torch.Tensor) -> list[int]:
    """(N, 1, H, W) bool → for each picture the number of parts connected by their sides."""
    return [label(part)[1] for part in x[:, 0].numpy()]


def test_runs_are_shortened_at_both_ends_but_keep_the_least():
    x = torch.zeros(2, 1, 1, 20)
    x[..., 2:12], x[..., 14:17], x[..., 19:] = 1, 1, 1  # ten, three, and one at the edge
    short = shorten_runs(x, torch.tensor([0.75, 4.0])[:, None, None, None], 4)
    assert short[0, 0, 0].tolist() == [0, 0, 0.25, *[1] * 8, 0.25, 0, 0, 1, 1, 1, 0, 0, 0.25]
    assert short[1, 0, 0].tolist() == [*[0] * 5, 1, 1, 1, 1, *[0] * 5, 1, 1, 1, 0, 0, 0]


def test_augmentation_does_not_synchronise_with_the_device():
    x = torch.empty(64, 1, 64, 64, device="meta")  # without values, so whatever waits for one fails
    assert augment(x, KEYS, 1.0).shape == x.shape


def test_make_batch_augments_before_the_damage_and_leaves_pairs_unchanged():
    sample = {"id": np.arange(64), "clean": glyphs()}
    damage = Degradation("mixed", 64)
    plain, same, augmented = (make_batch(sample, damage, 0, 0, augmented=share)[1] for share in (0.0, 0.0, 1.0))
    assert torch.equal(plain, same) and not torch.equal(plain, augmented)
    pairs = {**sample, "degraded": sample["clean"]}
    assert torch.equal(make_batch(pairs, damage, 0, 0, augmented=1.0)[1], sample["clean"])
