import dataclasses
import multiprocessing
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import pairs
from datasets.pack import open_pack
from datasets.split import group_of, split_of
from util import distributed
from util.prefetch import prefetch

CHARS = [chr(ord("一") + i) for i in range(60)]


def write_picture(path, dark_on_light=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.zeros((40, 40), np.uint8)
    picture[10:30, 18:24] = 255
    Image.fromarray(255 - picture if dark_on_light else picture).save(path)


def test_handwriting_set_has_the_glyphs_of_its_split_and_hands(tiny_pack):
    pack = open_pack(tiny_pack)
    for split in ("train", "val", "test"):
        for hands, names in {
            "seen": {"brush", "pen"},
            "unseen": {"stranger"},
            "all": {"brush", "pen", "stranger"},
        }.items():
            data = pairs.HandwritingSet(pack, split, hands, img_size=64)
            expected = [
                i for i in range(len(pack)) if pack.hands[pack.hand[i]].name in names and split_of(chr(pack.group[i])) == split
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
    data = pairs.HandwritingSet(pack, "test", "seen", img_size=64, guide=True)
    guide_id = next(
        i for i in range(len(pack)) if pack.hands[pack.hand[i]].role == "guide" and pack.form[i] == pack.form[data.ids[5]]
    )
    assert torch.equal(data.batch(np.array([5]))["guide"], pairs.smooth(pack.glyphs([guide_id]), 64))


def test_the_stored_groups_decide_the_split(tiny_pack):
    """A newer OpenCC may group characters differently."""
    pack = open_pack(tiny_pack)
    char = next(char for char in CHARS if split_of(group_of(char)) == "train")
    test_group = next(group for group in CHARS if split_of(group) == "test")
    other = np.where(pack.form == ord(char), ord(test_group), pack.group)
    data = pairs.HandwritingSet(dataclasses.replace(pack, group=other), "test", img_size=64)
    assert ord(char) in pack.form[data.ids]


@pytest.mark.parametrize("column", ["form", "character"])
def test_a_code_point_in_two_splits_is_refused(tiny_pack, column):
    pack = open_pack(tiny_pack)
    train, test = (np.flatnonzero(pairs.split_of_glyphs(pack) == name) for name in ("train", "test"))
    leaked = pack.form.copy()
    leaked[train[0]] = pack.form[test[0]]
    with pytest.raises(ValueError, match=f"1 forms are in several splits: {chr(pack.form[test[0]])} in test and train"):
        pairs.HandwritingSet(dataclasses.replace(pack, **{column: leaked}), "test", img_size=64)


@pytest.mark.parametrize("img_size", [32, 64, 96])
def test_smooth_keeps_the_ink(img_size):
    glyph = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    glyph[:, :, 20:44, 10:50] = 1
    soft = pairs.smooth(glyph, img_size)
    assert soft.shape == (1, 1, img_size, img_size) and soft.min() >= 0 and soft.max() <= 1
    assert soft.mean().item() == pytest.approx(glyph.float().mean().item(), rel=0.02)


def test_shuffled_batches_have_the_same_global_order_on_any_number_of_processes():
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
def test_sharded_batches_have_every_position_once(n, world):
    positions = [p for rank in range(world) for batch in pairs.sharded_batches(n, 2, rank, world) for p in batch.tolist()]
    assert sorted(positions) == list(range(n))


def open_folder(root, split="train", img_size=32):
    (data,) = pairs.open_folder(root, (split,), img_size)
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_character_folder(tmp_path, workers):
    for i, char in enumerate(CHARS):
        write_picture(tmp_path / char / "a.png", dark_on_light=i % 2 == 0)
    train, val, test = pairs.open_folder(tmp_path, ("train", "val", "test"), 64)
    assert len(train) + len(val) + len(test) == len(CHARS)
    assert all(split_of(group_of(file["clean"].parent.name)) == "test" for file in test.files)
    batches = pairs.sharded_batches(len(train), 16)
    samples = list(pairs.load(train, batches, torch.device("cpu"), workers))
    assert np.concatenate([sample["id"] for sample in samples]).tolist() == list(range(len(train)))
    clean = torch.cat([sample["clean"] for sample in samples])
    assert clean.shape[1:] == (1, 64, 64) and (clean[:, 0, 0, 0] < 0.05).all() and (clean[:, 0, 32, 33] > 0.95).all()


def test_workers_end_without_an_error_when_read_from_a_thread(tmp_path):
    for char in CHARS:
        write_picture(tmp_path / char / "a.png")
    data = open_folder(tmp_path)
    samples = prefetch(pairs.load(data, pairs.sharded_batches(len(data), 16), torch.device("cpu"), workers=2))
    next(samples)
    workers = multiprocessing.active_children()
    assert sum(len(sample["id"]) for sample in samples) == len(data) - 16
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.parametrize("names", [("degraded", "clean"), ("input", "target")])
def test_pair_folder(tmp_path, names):
    for char in CHARS:
        write_picture(tmp_path / names[0] / f"{char}.png", dark_on_light=True)
        write_picture(tmp_path / names[1] / f"{char}.png", dark_on_light=True)
    data = open_folder(tmp_path, img_size=64)
    sample = data[0]
    assert 0 < len(data) < len(CHARS)
    assert torch.equal(sample["degraded"], sample["clean"]) and sample["clean"][0, 0, 0] < 0.05


def test_files_that_cannot_be_used_are_listed_in_one_error(tmp_path):
    for name in ("a", "b", "c"):
        write_picture(tmp_path / "degraded" / f"{name}.png")
        write_picture(tmp_path / "clean" / f"{name}.png")
    (tmp_path / "degraded" / "b.png").write_bytes(b"")
    (tmp_path / "clean" / "c.png").write_bytes((tmp_path / "clean" / "a.png").read_bytes()[:60])
    write_picture(tmp_path / "degraded" / "extra.png")
    write_picture(tmp_path / "clean" / "more.png")
    with pytest.raises(ValueError) as error:
        open_folder(tmp_path)
    lines = str(error.value).splitlines()
    assert "4 files cannot be used" in lines[0] and len(lines) == 5
    for name in ("degraded/b.png", "clean/c.png", "degraded/extra.png", "clean/more.png"):
        assert sum(name in line for line in lines[1:]) == 1


def test_a_corrupt_file_of_any_split_is_reported(tmp_path):
    for char in CHARS:
        write_picture(tmp_path / char / "a.png")
    bad = next(char for char in CHARS if split_of(group_of(char)) == "test")
    (tmp_path / bad / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=f"1 files cannot be used:\n.*{bad}"):
        open_folder(tmp_path, "train")


def test_folders_without_usable_pictures(tmp_path):
    with pytest.raises(FileNotFoundError, match="no pictures"):
        open_folder(tmp_path)
    write_picture(tmp_path / "ab" / "1.png")
    with pytest.raises(ValueError, match="not named by one character"):
        open_folder(tmp_path)


def test_an_empty_split_is_refused(tmp_path):
    char = next(char for char in CHARS if split_of(group_of(char)) == "train")
    write_picture(tmp_path / char / "1.png")
    with pytest.raises(ValueError, match="none of its characters is in the val split"):
        pairs.open_folder(tmp_path)


def count_decoded(monkeypatch) -> list:
    """The paths that are decoded from now on."""
    decoded, read_grey = [], pairs.images.read_grey
    monkeypatch.setattr(pairs.images, "read_grey", lambda path: (decoded.append(path), read_grey(path))[1])
    return decoded


def test_opening_decodes_each_file_once(tmp_path, monkeypatch):
    for char in CHARS:
        write_picture(tmp_path / char / "a.png")
    decoded = count_decoded(monkeypatch)
    pairs.open_folder(tmp_path, ("train", "val", "test"))
    assert sorted(decoded) == sorted(tmp_path.glob("*/*"))


def test_processes_share_the_decoding(tmp_path, monkeypatch):
    for char in CHARS:
        write_picture(tmp_path / char / "a.png")
    expected = open_folder(tmp_path).digest
    decoded, parts = count_decoded(monkeypatch), []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "gather", lambda value: [*parts, value])
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    with pytest.raises(ValueError, match="the processes see different files"):  # the second process sees none
        open_folder(tmp_path)
    assert len(decoded) == len(CHARS) // 2
    monkeypatch.setattr(distributed, "gather", lambda value: parts.append(value) or parts)
    with pytest.raises(ValueError, match="the processes see different files"):
        open_folder(tmp_path)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert open_folder(tmp_path).digest == expected and len(decoded) == 3 * len(CHARS) // 2


def test_digest_depends_on_names_and_contents_and_not_on_place_or_time(tmp_path):
    root = tmp_path / "a"
    for char in CHARS:
        write_picture(root / char / "a.png")
    digest = open_folder(root).digest
    copied = tmp_path / "elsewhere" / "b"
    shutil.copytree(root, copied)
    first, second = open_folder(copied).files[0]["clean"], open_folder(copied).files[1]["clean"]
    os.utime(first, (0, 0))
    assert open_folder(copied).digest == digest
    write_picture(first, dark_on_light=True)
    changed = open_folder(copied).digest
    write_picture(first)
    assert open_folder(copied).digest == digest
    other = next(char for char in map(chr, range(0x5000, 0x5100)) if split_of(group_of(char)) == "train")
    second.parent.rename(copied / other)  # the same names of files, in another folder
    assert len({digest, changed, open_folder(copied).digest}) == 3
