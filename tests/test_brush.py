"""Characters drawn along their stroke medians: every brush is different, and every character stays legible."""

import numpy as np
import pytest
import torch

from datasets import brush
from datasets.degradation import Degradation
from datasets.pack import open_pack, write_pack
from datasets.pairs import HandwritingSet, make_batch, redraw
from datasets.rng import sample_keys
from tests.pictures import tiny_pack

CROSS = [np.array([[100, 500], [500, 520], [900, 500]]), np.array([[500, 850], [510, 400], [480, 50]])]  # 十
MANY = [np.array([[100, y], [900, y]]) for y in range(50, 900, 100)] + [np.array([[x, 40], [x, 880]]) for x in (120, 500, 880)]


def drawn(strokes, n: int = 40, size: int = 96) -> np.ndarray:
    return np.stack([brush.draw(strokes, np.random.default_rng(seed), size) for seed in range(n)])


@pytest.mark.parametrize("size", [64, 112, 224])
def test_a_drawing_has_the_size_range_and_place_of_a_glyph(size):
    x = drawn(CROSS, 8, size)
    assert x.shape == (8, size, size) and x.dtype == np.float32
    assert x.min() == 0 and x.max() == 1
    edges = np.concatenate([x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1]], axis=1)
    assert edges.max() == 0  # nothing is cut off


def test_the_same_generator_gives_the_same_drawing_and_others_do_not():
    assert np.array_equal(drawn(CROSS, 3), drawn(CROSS, 3))
    assert len({x.tobytes() for x in drawn(CROSS)}) == 40


def test_brushes_reach_from_hairlines_to_heavy_strokes():
    ink = drawn(CROSS, 200).mean((1, 2))
    assert ink.min() < 0.015 and ink.max() > 0.08


def test_gaps_between_many_strokes_stay_open():
    x = drawn(MANY, 100)
    rows, columns = np.nonzero(x.max(0) > 0.5)
    inside = x[:, rows.min() : rows.max(), columns.min() : columns.max()]
    assert (inside.mean((1, 2)) < 0.8).all() and ((inside < 0.5).mean((1, 2)) > 0.2).all()


def pack_with_medians(path):
    plain = open_pack(tiny_pack(path.with_name("plain.pack")))
    medians = {int(form): CROSS for form in np.unique(plain.form)[::2]}
    columns = {name: getattr(plain, name) for name in ("character", "form", "group", "hand", "bits", "img_size", "hands", "meta")}
    write_pack(path, medians=medians, **columns)
    return plain, open_pack(path)


def test_a_pack_keeps_its_medians_and_its_checksum_knows_them(tmp_path):
    plain, pack = pack_with_medians(tmp_path / "medians.pack")
    pack_with_medians(tmp_path / "again.pack")
    assert (tmp_path / "medians.pack").read_bytes() == (tmp_path / "again.pack").read_bytes()
    assert pack.checksum != plain.checksum and not plain.medians
    assert sorted(pack.medians) == np.unique(plain.form)[::2].tolist()
    assert all(np.array_equal(*pair) for strokes in pack.medians.values() for pair in zip(strokes, CROSS, strict=True))


def test_a_share_of_the_characters_with_medians_is_drawn_anew(tmp_path):
    _, pack = pack_with_medians(tmp_path / "medians.pack")
    data = HandwritingSet(pack, "train", img_size=64)
    sample = data.batch(np.arange(len(data)))
    keys = sample_keys(0, 0, sample["id"])
    has = np.array([strokes is not None for strokes in sample["strokes"]])
    changed = (redraw(sample["clean"], sample["strokes"], keys, 1.0) != sample["clean"]).flatten(1).any(1).numpy()
    assert np.array_equal(changed, has) and 0 < has.sum() < len(has)
    quarter = redraw(sample["clean"], sample["strokes"], keys, 0.25)
    share = (quarter != sample["clean"]).flatten(1).any(1).numpy().sum() / has.sum()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / has.sum()) ** 0.5
    alone = redraw(sample["clean"][5:6], sample["strokes"][5:6], keys[5:6], 0.25)
    assert torch.equal(alone[0], quarter[5])  # independent of the batch
    assert redraw(sample["clean"], sample["strokes"], keys, 0.0) is sample["clean"]


def test_the_target_is_what_the_brush_drew(tmp_path):
    _, pack = pack_with_medians(tmp_path / "medians.pack")
    data = HandwritingSet(pack, "train", img_size=64)
    sample = data.batch(np.arange(16))
    nothing = Degradation({"clean": 1.0}, 64)
    _, x, target = make_batch(sample, nothing, 0, 0, brushed=1.0)
    expected = redraw(sample["clean"], sample["strokes"], sample_keys(0, 0, sample["id"]), 1.0)
    assert torch.equal(x, target) and torch.equal(target, expected) and not torch.equal(target, sample["clean"])


def test_joined_packs_have_the_glyphs_hands_and_medians_of_all(tmp_path):
    plain = tiny_pack(tmp_path / "plain.pack")
    _, other = pack_with_medians(tmp_path / "medians.pack")
    with pytest.raises(ValueError, match="hands of the same name"):
        open_pack(plain, tmp_path / "medians.pack")
    renamed = [type(hand)(**{**vars(hand), "name": f"other {hand.name}", "family": f"other {hand.family}"}) for hand in other.hands]
    columns = {name: getattr(other, name) for name in ("character", "form", "group", "hand", "bits", "img_size", "meta", "medians")}
    write_pack(tmp_path / "other.pack", hands=renamed, **columns)
    first, joined = open_pack(plain), open_pack(plain, tmp_path / "other.pack")
    assert (
        len(joined) == 2 * len(first) and joined.hands == [*first.hands, *renamed] and joined.medians.keys() == other.medians.keys()
    )
    assert np.array_equal(joined.hand, np.concatenate([first.hand, first.hand + len(first.hands)]))
    assert joined.checksum not in (first.checksum, other.checksum)
    assert len(HandwritingSet(joined, "train", img_size=32)) == 2 * len(HandwritingSet(first, "train", img_size=32))
