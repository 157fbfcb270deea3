import zipfile

import numpy as np
import pytest
import torch

from datasets.pack import Hand, open_pack, write_pack

HANDS = [
    Hand("brush", "brush", "regular", "train", "made up 1", "none"),
    Hand("kai", "kai", "regular", "guide", "made up 2", "none"),
]


def contents(n=50, side=32, seed=0):
    rng = np.random.default_rng(seed)
    code = np.arange(0x4E00, 0x4E00 + n, dtype=np.uint32)
    return {
        "side": side,
        "hands": HANDS,
        "character": code,
        "form": code + 1,
        "group": code - 1,
        "hand": (np.arange(n) % 2).astype(np.uint8),
        "bits": rng.integers(0, 256, (n, side * side // 8), dtype=np.uint8),
        "meta": {"versions": {"pillow": "1"}},
    }


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "a.pack"
    return path, write_pack(path, **contents())


def test_what_was_written_is_read(written):
    path, checksum = written
    pack, expected = open_pack(path), contents()
    assert len(pack) == 50 and pack.side == 32 and pack.checksum == checksum and len(checksum) == 64
    assert pack.hands == HANDS and pack.meta == expected["meta"]
    for name in ("character", "form", "group", "hand", "bits"):
        column = getattr(pack, name)
        assert np.array_equal(column, expected[name]) and column.dtype == expected[name].dtype, name


def test_many_chunks_keep_their_order(tmp_path):
    expected = contents(n=5000, side=16)
    write_pack(tmp_path / "a.pack", **expected)
    with zipfile.ZipFile(tmp_path / "a.pack") as archive:
        assert sum(name.startswith("glyphs/") for name in archive.namelist()) == 3
    assert np.array_equal(open_pack(tmp_path / "a.pack").bits, expected["bits"])


@pytest.mark.parametrize("ids", [[3, 0, 3], np.array([3, 0, 3], np.uint16), torch.tensor([3, 0, 3])])
def test_glyphs_are_unpacked_in_the_order_asked_for(written, ids):
    glyphs = open_pack(written[0]).glyphs(ids)
    assert glyphs.shape == (3, 1, 32, 32) and glyphs.dtype == torch.uint8
    expected = np.unpackbits(contents()["bits"][[3, 0, 3]], axis=1).reshape(3, 1, 32, 32)
    assert np.array_equal(glyphs.numpy(), expected)


def test_no_ids_and_wrong_ids(written):
    pack = open_pack(written[0])
    assert pack.glyphs([]).shape == (0, 1, 32, 32)
    with pytest.raises(IndexError):
        pack.glyphs([50])


def test_the_same_input_gives_the_same_bytes(written, tmp_path):
    path, checksum = written
    assert write_pack(tmp_path / "b.pack", **contents()) == checksum
    assert (tmp_path / "b.pack").read_bytes() == path.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pack", "b.pack"]  # nothing is left beside them


@pytest.mark.parametrize("what", ["bits", "form", "character", "group", "hand", "hands"])
def test_the_checksum_covers_everything(written, tmp_path, what):
    changed = contents()
    if what == "hands":
        changed["hands"] = [HANDS[0], Hand("kai", "kai", "regular", "train", "made up 2", "none")]
    else:
        changed[what] = changed[what].copy()
        changed[what][7] ^= 1
    assert write_pack(tmp_path / "b.pack", **changed) != written[1]


def test_an_existing_pack_survives_a_failed_write(written, monkeypatch):
    path, checksum = written
    monkeypatch.setattr(zipfile.ZipFile, "writestr", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_pack(path, **contents(seed=1))
    assert open_pack(path).checksum == checksum
    assert [file.name for file in path.parent.iterdir()] == ["a.pack"]


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99, -1])
def test_a_truncated_pack_is_refused(written, keep):
    path, _ = written
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else keep])
    with pytest.raises(ValueError, match=r"a\.pack is damaged, truncated or no handwriting set .*make data"):
        open_pack(path)


def test_a_flipped_byte_is_refused_or_changes_nothing(written):
    path, checksum = written
    data, expected = path.read_bytes(), contents()
    refused = 0
    places = range(3, len(data), 37)
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :])
        try:
            pack = open_pack(path)
        except ValueError as error:
            refused += "a.pack is damaged" in str(error)
        else:  # a byte of the archive that carries nothing, such as a date
            assert np.array_equal(pack.bits, expected["bits"]) and pack.checksum == checksum and pack.hands == HANDS
    assert refused > 0.9 * len(places)


def test_swapped_glyphs_are_refused(written, tmp_path):
    """Every part is sound by itself, but they do not belong together."""
    other = tmp_path / "b.pack"
    write_pack(other, **contents(seed=1))
    mixed = tmp_path / "c.pack"
    with zipfile.ZipFile(written[0]) as one, zipfile.ZipFile(other) as two, zipfile.ZipFile(mixed, "w") as out:
        for name in one.namelist():
            out.writestr(name, (two if name.startswith("glyphs/") else one).read(name))
    with pytest.raises(ValueError, match="the checksum does not match"):
        open_pack(mixed)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no handwriting set at .*none.pack; `make data` builds one"):
        open_pack(tmp_path / "none.pack")
    with zipfile.ZipFile(tmp_path / "zip.pack", "w") as archive:
        archive.writestr("meta.json", '{"format": "other 9"}')
    with pytest.raises(ValueError, match="format 'other 9', where this version reads"):
        open_pack(tmp_path / "zip.pack")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"side": 30}, "bits must be uint8"),
        ({"bits": np.zeros((50, 128), bool)}, "bits must be uint8"),
        ({"form": np.zeros(49, np.uint32)}, "differ in length"),
        ({"hands": HANDS[:1]}, "by hand 1, but there are 1 hands"),
        ({"hands": [HANDS[0], Hand("x", "x", "regular", "tutor", "", "")]}, "the role of x"),
    ],
)
def test_what_does_not_fit_together_is_not_written(tmp_path, change, told):
    with pytest.raises(ValueError, match=told):
        write_pack(tmp_path / "a.pack", **contents() | change)
    assert not list(tmp_path.iterdir())
