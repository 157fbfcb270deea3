import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import pairs
from datasets.pack import open_pack
from datasets.split import group_of, side_of
from util.prefetch import prefetch

CHARS = [chr(ord("一") + i) for i in range(60)]


def write_picture(path, dark_on_light=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.zeros((40, 40), np.uint8)
    picture[10:30, 18:24] = 255
    Image.fromarray(255 - picture if dark_on_light else picture).save(path)


def test_handwriting_set_gives_the_glyphs_of_its_split_and_hands(tiny_pack):
    pack = open_pack(tiny_pack)
    for split in ("train", "val", "test"):
        for hands, names in {
            "seen": {"brush", "pen"},
            "unseen": {"stranger"},
            "all": {"brush", "pen", "stranger"},
        }.items():
            data = pairs.HandwritingSet(pack, split, hands, side=64)
            expected = [
                i for i in range(len(pack)) if pack.hands[pack.hand[i]].name in names and side_of(chr(pack.group[i])) == split
            ]
            assert data.ids.tolist() == expected
    sample = data.batch(np.array([3, 0]))
    assert sample["id"].tolist() == data.ids[[3, 0]].tolist()
    assert sample["clean"].shape == (2, 1, 64, 64)
    assert torch.equal(
        (sample["clean"] > 0.5).to(torch.uint8), pairs.smooth(pack.glyphs(data.ids[[3, 0]]), 64).gt(0.5).to(torch.uint8)
    )


def test_the_guide_is_the_standard_glyph_of_the_form(tiny_pack):
    pack = open_pack(tiny_pack)
    data = pairs.HandwritingSet(pack, "test", "seen", side=64, guide=True)
    guide_id = next(
        i for i in range(len(pack)) if pack.hands[pack.hand[i]].role == "guide" and pack.form[i] == pack.form[data.ids[5]]
    )
    assert torch.equal(data.batch(np.array([5]))["guide"], pairs.smooth(pack.glyphs([guide_id]), 64))


@pytest.mark.parametrize("side", [32, 64, 96])
def test_smooth_keeps_the_ink(side):
    glyph = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    glyph[:, :, 20:44, 10:50] = 1
    soft = pairs.smooth(glyph, side)
    assert soft.shape == (1, 1, side, side) and soft.min() >= 0 and soft.max() <= 1
    assert soft.mean().item() == pytest.approx(glyph.float().mean().item(), rel=0.02)


def test_shuffled_batches_are_the_same_global_order_on_any_number_of_processes():
    one = pairs.shuffled_batches(100, 24, seed=3, epoch=2)
    four = [pairs.shuffled_batches(100, 6, 3, 2, rank, 4) for rank in range(4)]
    assert len(one) == 4
    for step, batch in enumerate(one):
        assert np.array_equal(batch, np.concatenate([four[rank][step] for rank in range(4)]))
    assert len(set(np.concatenate(one).tolist())) == 96
    assert not np.array_equal(one[0], pairs.shuffled_batches(100, 24, 3, 3)[0])
    assert not np.array_equal(one[0], pairs.shuffled_batches(100, 24, 4, 2)[0])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_plain_batches_hold_every_position_once(n, world):
    positions = [p for rank in range(world) for batch in pairs.plain_batches(n, 2, rank, world) for p in batch.tolist()]
    assert sorted(positions) == list(range(n))


@pytest.mark.parametrize("workers", [0, 2])
def test_character_folder(tmp_path, workers):
    for i, char in enumerate(CHARS):
        write_picture(tmp_path / char / "a.png", dark_on_light=i % 2 == 0)
    sets = {split: pairs.character_folder(tmp_path, split, 64) for split in ("train", "val", "test")}
    assert sum(map(len, sets.values())) == len(CHARS)
    assert all(side_of(group_of(file["clean"].parent.name)) == "test" for file in sets["test"].files)
    batches = pairs.plain_batches(len(sets["train"]), 16)
    samples = list(pairs.load(sets["train"], batches, torch.device("cpu"), workers))
    assert np.concatenate([sample["id"] for sample in samples]).tolist() == list(range(len(sets["train"])))
    clean = torch.cat([sample["clean"] for sample in samples])
    assert clean.shape[1:] == (1, 64, 64) and (clean[:, 0, 0, 0] < 0.05).all() and (clean[:, 0, 32, 33] > 0.95).all()


def test_workers_that_a_thread_reads_from_end_well(tmp_path):
    for char in CHARS:
        write_picture(tmp_path / char / "a.png")
    data = pairs.character_folder(tmp_path, "train", 32)
    samples = prefetch(pairs.load(data, pairs.plain_batches(len(data), 16), torch.device("cpu"), workers=2))
    next(samples)
    workers = multiprocessing.active_children()
    assert sum(len(sample["id"]) for sample in samples) == len(data) - 16
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.parametrize("names", [("degraded", "clean"), ("input", "target")])
def test_pair_folder(tmp_path, names):
    for char in CHARS:
        write_picture(tmp_path / names[0] / f"{char}.png", dark_on_light=True)
        write_picture(tmp_path / names[1] / f"{char}.png", dark_on_light=True)
    data = pairs.pair_folder(tmp_path, "train", 64)
    sample = data[0]
    assert 0 < len(data) < len(CHARS)
    assert torch.equal(sample["degraded"], sample["clean"]) and sample["clean"][0, 0, 0] < 0.05


def test_what_cannot_be_used_is_listed_in_one_error(tmp_path):
    for name in ("a", "b", "c"):
        write_picture(tmp_path / "degraded" / f"{name}.png")
        write_picture(tmp_path / "clean" / f"{name}.png")
    (tmp_path / "degraded" / "b.png").write_bytes(b"")
    (tmp_path / "clean" / "c.png").write_bytes((tmp_path / "clean" / "a.png").read_bytes()[:60])
    write_picture(tmp_path / "degraded" / "extra.png")
    write_picture(tmp_path / "clean" / "more.png")
    with pytest.raises(ValueError) as error:
        pairs.pair_folder(tmp_path, "train")
    told = str(error.value).splitlines()
    assert "4 files cannot be used" in told[0]
    for name in ("degraded/b.png", "clean/c.png", "degraded/extra.png", "clean/more.png"):
        assert sum(name in line for line in told[1:]) == 1


def test_folders_that_hold_nothing_of_use(tmp_path):
    with pytest.raises(FileNotFoundError, match="no pictures"):
        pairs.character_folder(tmp_path, "train")
    write_picture(tmp_path / "ab" / "1.png")
    with pytest.raises(ValueError, match="not named by one character"):
        pairs.character_folder(tmp_path, "train")
