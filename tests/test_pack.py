import zipfile

import numpy as np
import pytest
import torch

from datasets import pack
from datasets.pack import Hand, open_pack, read_guide, write_pack

HANDS = [
    Hand("brush", "brush", "regular", "train", "made up 1", "none"),
    Hand("kai", "kai", "regular", "guide", "made up 2", "none"),
]


def contents(n=50, img_size=32, seed=0):
    rng = np.random.default_rng(seed)
    code = np.arange(0x4E00, 0x4E00 + n, dtype=np.uint32)
    return {
        "img_size": img_size,
        "hands": HANDS,
        "character": code,
        "form": code + 1,
        "group": code - 1,
        "hand": (np.arange(n) % 2).astype(np.uint8),
        "bits": rng.integers(0, 256, (n, img_size * img_size // 8), dtype=np.uint8),
        "meta": {"versions": {"pillow": "1"}},
    }


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "a.pack"
    return path, write_pack(path, **contents())


def test_reading_returns_what_was_written(written):
    path, checksum = written
    opened, expected = open_pack(path), contents()
    assert len(opened) == 50 and opened.img_size == 32 and opened.checksum == checksum and len(checksum) == 64
    assert opened.hands == HANDS and opened.meta == expected["meta"]
    for name in ("character", "form", "group", "hand", "bits"):
        column = getattr(opened, name)
        assert np.array_equal(column, expected[name]) and column.dtype == expected[name].dtype, name


def test_many_chunks_keep_their_order(tmp_path):
    expected = contents(n=5000, img_size=16)
    write_pack(tmp_path / "a.pack", **expected)
    with zipfile.ZipFile(tmp_path / "a.pack") as archive:
        assert sum(name.startswith("glyphs/") for name in archive.namelist()) == 3
    assert np.array_equal(open_pack(tmp_path / "a.pack").bits, expected["bits"])


@pytest.mark.parametrize("ids", [[3, 0, 3], np.array([3, 0, 3], np.uint16), torch.tensor([3, 0, 3])])
def test_glyphs_are_unpacked_in_the_order_of_the_ids(written, ids):
    glyphs = open_pack(written[0]).glyphs(ids)
    assert glyphs.shape == (3, 1, 32, 32) and glyphs.dtype == torch.uint8
    expected = np.unpackbits(contents()["bits"][[3, 0, 3]], axis=1).reshape(3, 1, 32, 32)
    assert np.array_equal(glyphs.numpy(), expected)


def test_no_ids_and_wrong_ids(written):
    opened = open_pack(written[0])
    assert opened.glyphs([]).shape == (0, 1, 32, 32)
    with pytest.raises(IndexError):
        opened.glyphs([50])


def test_read_guide_returns_the_guide_of_the_forms_it_has(written):
    expected = contents()
    forms = [chr(code) for code in expected["form"][:4]]
    glyphs = read_guide(written[0], [*forms, "A"])
    assert glyphs.keys() == {forms[1], forms[3]}
    assert np.array_equal(glyphs[forms[3]], np.unpackbits(expected["bits"][3]).reshape(32, 32))


def test_the_same_input_gives_the_same_bytes(written, tmp_path):
    path, checksum = written
    assert write_pack(tmp_path / "b.pack", **contents()) == checksum
    assert (tmp_path / "b.pack").read_bytes() == path.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pack", "b.pack"]  # and no other files


@pytest.mark.parametrize("name", ["bits", "form", "character", "group", "hand", "hands"])
def test_the_checksum_covers_everything(written, tmp_path, name):
    changed = contents()
    if name == "hands":
        changed["hands"] = [HANDS[0], Hand("kai", "kai", "regular", "train", "made up 2", "none")]
    else:
        changed[name] = changed[name].copy()
        changed[name][7] ^= 1
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
    with pytest.raises(ValueError, match=r"a\.pack is corrupt, truncated or not a handwriting set .*make data"):
        open_pack(path)


def test_a_flipped_byte_is_refused_or_changes_nothing(written):
    path, checksum = written
    data, expected = path.read_bytes(), contents()
    refused = 0
    places = range(3, len(data), 37)
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :])
        try:
            opened = open_pack(path)
        except ValueError as error:
            refused += "a.pack is corrupt" in str(error)
        else:  # a byte of the archive without meaning, such as a date
            assert np.array_equal(opened.bits, expected["bits"]) and opened.checksum == checksum and opened.hands == HANDS
    assert refused > 0.9 * len(places)


def test_a_flipped_byte_of_the_directory_is_refused_or_changes_nothing(written):
    """The end of the file: names, offsets, flags and methods of the members."""
    path, checksum = written
    data = path.read_bytes()
    for place in range(len(data) - 220, len(data)):
        for flip in (0x01, 0x08, 0x41, 0x80, 0xFF):
            path.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
            for read in (open_pack, lambda path: read_guide(path, "三")):
                try:
                    read(path)
                except ValueError as error:
                    assert "a.pack is corrupt" in str(error)


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, IndexError, ValueError, RuntimeError, ZeroDivisionError])
def test_a_bug_is_not_reported_as_a_corrupt_file(written, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error("a bug")

    for name in ("_checksum", "Pack", "_File.read", "_File.chunk"):
        with monkeypatch.context() as patch:
            patch.setattr(f"datasets.pack.{name}", fail)
            with pytest.raises(error, match="^'?a bug'?$"):
                open_pack(written[0])
    monkeypatch.setattr(pack.np, "unpackbits", fail)
    with pytest.raises(error, match="^'?a bug'?$"):
        read_guide(written[0], "三丁丂七")


def test_glyphs_of_another_pack_are_refused(written, tmp_path):
    """Each member is intact, but they do not belong together."""
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
    with pytest.raises(ValueError, match="its format is 'other 9'; this version reads"):
        open_pack(tmp_path / "zip.pack")
    with zipfile.ZipFile(tmp_path / "zip.pack", "w") as archive:
        archive.writestr("meta.json", f'{{"format": "{pack.FORMAT}", "side": 32}}')
    with pytest.raises(ValueError, match="is corrupt"):
        open_pack(tmp_path / "zip.pack")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_size": 30}, "bits must be uint8"),
        ({"bits": np.zeros((50, 128), bool)}, "bits must be uint8"),
        ({"form": np.zeros(49, np.uint32)}, "differ in length"),
        ({"hands": HANDS[:1]}, "by hand 1, but there are 1 hands"),
        ({"hands": [HANDS[0], Hand("x", "x", "regular", "tutor", "", "")]}, "the role of x"),
    ],
)
def test_inconsistent_arrays_are_not_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_pack(tmp_path / "a.pack", **contents() | change)
    assert not list(tmp_path.iterdir())
