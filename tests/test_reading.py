"""Readings: what a damaged character could be, and its restorations under each reading."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import restore
import restore_page
from datasets.pack import guide_forms, read_guide
from models.recogniser import build_recogniser, load_recogniser, save_recogniser
from restoration import layout_files, reading
from restoration.layout import Character, Layout
from restoration.page import Page
from restoration.page import restore_page as restore_characters
from restoration.pipeline import Restorer
from restoration.reading import MOST, Reader, load_reader, sheet
from tests.pictures import network
from util import images
from util.squares import resize

SIZE, COUNT = 64, 40


def run(glyphs: np.ndarray):
    """A recogniser that compares pictures with glyphs (classes, S, S)."""

    def normed(x: np.ndarray) -> np.ndarray:
        x = x.reshape(len(x), -1) - x.mean((-1, -2)).reshape(len(x), 1)
        return x / np.sqrt(np.square(x).sum(1, keepdims=True)).clip(1e-6)

    return lambda x: (20 * normed(x) @ normed(glyphs).T).astype(np.float32)


@pytest.fixture
def restorer(tiny_pack):
    """Strokes as they are, and where the picture is grey, the guide."""
    return Restorer(
        network(lambda x: np.where(np.abs(x[:, 0] - 0.5) < 0.2, x[:, 1], x[:, 0])), {"img_size": SIZE, "in_chans": 4}, tiny_pack
    )


@pytest.fixture
def reader(restorer, tiny_pack):
    """Knows the first COUNT characters of the pack by their standard glyphs."""
    forms = dict(sorted(guide_forms(tiny_pack).items())[:COUNT])
    glyphs = read_guide(tiny_pack, [form[0] for form in forms.values()])
    compare = run(np.stack([glyphs[form[0]] for form in forms.values()]).astype(np.float32))
    return Reader(restorer, compare, {"groups": list(forms), "img_size": SIZE})


def known(reader: Reader, count: int) -> list[str]:
    """Some characters that the reader knows."""
    return [reader.forms[group][0] for group in reader.groups[:count]]


def picture(reader: Reader, char: str, lost: float = 0.0) -> Image.Image:
    """A character with a part of it lost: grey."""
    glyph = reader.restorer.guide(char).copy()
    glyph[24:40, 24 : 24 + round(lost * SIZE)] = 0.5
    return images.from_grey(glyph)


def prepared(reader: Reader, *pictures: Image.Image) -> list:
    return [reader.restorer.prepare(one, polarity="bright") for one in pictures]


def test_readings_are_the_likeliest_characters_with_probabilities(reader):
    chars = known(reader, 4)
    restored = reader.restorer.restore(prepared(reader, *(picture(reader, char) for char in chars)))
    for char, found in zip(chars, reader.read(restored), strict=True):
        assert next(iter(found)) == char and len(found) == MOST
        values = list(found.values())
        assert values == sorted(values, reverse=True) and 0.2 < sum(values) <= 1.001


def test_a_variant_is_named_whose_standard_glyph_agrees_best(reader):
    """Two characters made one group: the one in the picture is named."""
    first, second = known(reader, 2)
    reader.forms[reader.groups[0]] = first + second
    reader.groups = reader.groups[:1]
    reader.run = lambda x: np.zeros((len(x), 1), np.float32)
    for char in (first, second):
        assert list(reader.read(reader.restorer.restore(prepared(reader, picture(reader, char))))[0]) == [char]


def test_a_picture_is_restored_under_each_reading_and_guided_by_all(reader):
    char = known(reader, 4)[3]
    [restored] = reader.restorer.restore(prepared(reader, picture(reader, char, 0.4)))
    [found] = reader.read([restored])
    [[best, *others]] = reader.under_each([restored], [found])
    assert best.char == char and len(others) == MOST - 1 and best.numbers()["agreement"] > 0.5
    assert best.restored.prepared.guide == char and best.probability == found[char]
    assert np.abs(best.restored.mean - restored.mean).max() > 0.3
    row = sheet(reader.restorer, restored, [best, *others])
    assert row.width == (MOST + 1) * (SIZE + 8) - 8 and row.height == SIZE + SIZE // 4
    guided = reader.guided(restored, {char: 0.7, others[0].char: 0.2, others[1].char: 0.001})
    assert guided.guide == char + others[0].char and guided.shares == (0.7, 0.2) and guided.x.shape == (3, SIZE, SIZE)
    [auto], [told] = (reader.restorer.restore([one]) for one in (guided, reader.guided(restored, {char: 1.0})))
    assert auto.agreement == told.agreement == best.restored.agreement
    np.testing.assert_array_equal(told.square, best.restored.square)
    assert np.abs(auto.mean - told.mean).max() > 0.01


def test_readings_of_a_folder(reader, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(restore, "load_restorer", lambda *_: reader.restorer)
    monkeypatch.setattr(restore, "load_reader", lambda restorer: reader)
    chars = known(reader, 3)
    for i, char in enumerate(chars):
        images.write_png(tmp_path / "in" / f"{i}.png", picture(reader, char, 0.2))
    flags = ["--polarity", "bright", "--json", "--verbose"]
    assert restore.main([str(tmp_path / "in"), str(tmp_path / "out"), "--read", "--char", "auto", *flags]) == 0
    output = capsys.readouterr()
    rows = [json.loads(line) for line in output.out.splitlines() if line.startswith("{")]
    assert [row["readings"][0]["char"] for row in rows] == chars and "read as " + chars[0] in output.err
    assert all(row["guide"][0] == char and row["readings"][0].keys() == {"char", "probability", "agreement"}
               for row, char in zip(rows, chars, strict=True))  # fmt: skip
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{i}{name}.png" for i in range(3) for name in ("", "_readings")
    }
    assert json.loads(Image.open(tmp_path / "out" / "0.png").text["restoration"])["guide"][0] == chars[0]
    assert restore.main([str(tmp_path / "in"), str(tmp_path / "plain"), "--char", "auto", *flags]) == 0
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {"0.png", "1.png", "2.png"}
    assert restore.main([str(tmp_path / "in"), str(tmp_path / "told"), "--read", "--char", chars[0]]) == 1
    assert "--read asks what the character is" in capsys.readouterr().err


def test_a_network_that_takes_one_guide_at_most_does_not_read(reader):
    with pytest.raises(ValueError, match="readings need a network that draws"):
        Reader(
            Restorer(network(lambda x: x[:, 0]), {"img_size": SIZE, "in_chans": 2}), reader.run, {"groups": [], "img_size": SIZE}
        )


def test_a_page_is_read_and_guided_by_its_readings(reader):
    chars = known(reader, 4)
    bright = np.zeros((4 * 80, 80), np.uint8)
    for row, char in enumerate(chars):
        bright[80 * row + 8 :][:SIZE, 8:72] = np.asarray(picture(reader, char, 0.2 * (row == 3)))
    column = [Character(4, 80 * row + 4, 72, 1.0, chars[0] if row == 0 else None) for row in range(4)]
    page = Page(bright, Layout(bright.shape, [column]))
    plain = list(restore_characters(page, reader.restorer, reader=reader))
    found = [character for character, *_ in plain]
    assert not found[0].readings and [one.readings[0][0] for one in found[1:]] == chars[1:]
    guided = list(restore_characters(page, reader.restorer, reader=reader, guided=True))
    assert [one.prepared.guide for *_, one in plain] == [chars[0], None, None, None]
    assert [one.prepared.guide[0] for *_, one in guided] == chars
    assert [character for character, *_ in guided] == found


def test_transcriptions_say_what_is_certain():
    sure, split, lost = (("林", 0.97), ("森", 0.02)), (("林", 0.6), ("森", 0.3), ("木", 0.05)), (("林", 0.1),)
    column = [Character(0, 20 * i, 20, readings=readings) for i, readings in enumerate((sure, split, lost))]
    layout = Layout((99, 99), [column, [Character(30, 0, 20, char="佛")]])
    assert layout_files.to_text(layout) == "林〔林/森〕□\n佛\n"
    data = layout_files.to_json(layout)["columns"]
    assert (
        data[0]["characters"][1]["readings"][1] == {"char": "森", "probability": 0.3} and "readings" not in data[1]["characters"][0]
    )
    xml = layout_files.to_xml(layout, "page.png").decode()
    assert '<TextEquiv index="1" conf="0.3">' in xml and "林〔林/森〕□" in xml


def test_a_page_script_writes_the_text(reader, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(restore_page, "load_restorer", lambda *_: reader.restorer)
    monkeypatch.setattr(restore_page, "load_reader", lambda restorer: reader)
    chars = known(reader, 4)
    bright = np.zeros((4 * 80, 80), np.uint8)
    for row, char in enumerate(chars):
        bright[80 * row + 8 :][:SIZE, 8:72] = np.asarray(picture(reader, char))
    images.write_png(tmp_path / "page.png", Image.fromarray(bright))
    column = [{"characters": [{"box": [4, 80 * row + 4, 72, 72]} for row in range(4)]}]
    (tmp_path / "layout.json").write_text(json.dumps({"columns": column}))
    flags = [str(tmp_path / "page.png"), "--layout", str(tmp_path / "layout.json"), "--read", "--text", "auto", "--xml"]
    assert restore_page.main(flags) == 0
    text = (tmp_path / "page_text.txt").read_text(encoding="utf-8")
    assert text.count("\n") == 1 and all(char in text for char in chars)
    written = json.loads((tmp_path / "page_layout.json").read_text(encoding="utf-8"))["columns"][0]["characters"]
    assert [one["readings"][0]["char"] for one in written] == chars
    assert chars[2] in (tmp_path / "page.xml").read_text(encoding="utf-8")
    assert "told" not in capsys.readouterr().err


def test_the_reader_of_a_file(restorer, tmp_path, monkeypatch):
    """The exported reader gives the probabilities of the network it was exported from."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, groups = tmp_path / "reader.safetensors", [ord("一") + i for i in range(7)]
    save_recogniser(build_recogniser(7, "resnet", 32).eval(), {"model": "resnet", "groups": groups, "img_size": 32}, path)
    squares = np.random.default_rng(0).random((3, SIZE, SIZE), dtype=np.float32)
    network_, info = load_recogniser(path)
    odds = load_reader(restorer, path).probabilities(squares)
    small = torch.from_numpy(np.stack([resize(square, 32, 32) for square in squares])[:, None])
    with torch.inference_mode():
        expected = (network_(small) / reading.TEMPERATURE).softmax(1).numpy()
    assert info["model"] == "resnet"
    np.testing.assert_allclose(odds, expected, atol=0.02)


def test_specimens_guide_in_place_of_the_standard_glyph(reader, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(restore, "load_restorer", lambda *_: reader.restorer)
    monkeypatch.setattr(restore, "load_reader", lambda restorer: reader)
    monkeypatch.setattr(reading, "SURE", 0.6)
    char, other = known(reader, 2)
    glyph = reader.restorer.guide(char).copy()
    glyph[4:9, 4:60] = 1  # as this hand writes it
    images.write_png(tmp_path / "in" / f"a{char}.png", images.from_grey(glyph))
    glyph[4:9, 20:50] = glyph[30:40, 10:50] = 0.5
    images.write_png(tmp_path / "in" / f"b{char}.png", images.from_grey(glyph))
    restored = reader.restorer.restore(prepared(reader, *map(images.read, sorted((tmp_path / "in").iterdir()))))
    found = reader.specimens([*restored, *reader.restorer.restore(prepared(reader, picture(reader, other, 0.9)))])
    assert char in found and found[char][4:9, 4:60].mean() > 0.7
    flags = ["--polarity", "bright", "--steps", "1"]
    for name, more in (("glyph", []), ("specimen", ["--specimens"])):
        assert restore.main([str(tmp_path / "in"), str(tmp_path / name), "--char_from_name", *flags, *more]) == 0
    assert "specimens of " in capsys.readouterr().err
    lost = {name: np.asarray(Image.open(tmp_path / name / f"b{char}.png"))[4:9, 20:50].mean() for name in ("glyph", "specimen")}
    assert lost["specimen"] > lost["glyph"] + 50
    assert restore.main([str(tmp_path / "in"), str(tmp_path / "x"), "--specimens"]) == 1
    assert "--specimens is for a folder with" in capsys.readouterr().err
