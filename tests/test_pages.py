import json

import numpy as np
import pytest
import torch
from PIL import Image

import prepare_data
from datasets import pages
from datasets.degradation import OPERATIONS, Degradation, preset_names
from datasets.pack import open_pack
from datasets.pairs import HandwritingSet, smooth
from datasets.rng import sample_keys
from datasets.split import group_of, split_of

KEYS = sample_keys(0, 0, np.arange(100))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Pages of few and small characters, which take a fraction of a second."""
    monkeypatch.setattr(pages, "COLUMNS", (3, 4))
    monkeypatch.setattr(pages, "ROWS", (8, 9))
    monkeypatch.setattr(pages, "EM", (40, 48))


@pytest.fixture
def plain(monkeypatch):
    """Pages without lines and a scanner's margin."""
    monkeypatch.setattr(pages, "KINDS", ("plain",))
    monkeypatch.setattr(pages, "SCANNED", 0.0)


@pytest.fixture(scope="module")
def glyphs(tiny_pack):
    return HandwritingSet(open_pack(tiny_pack), "test", "all")


def same(a: pages.Page, b: pages.Page) -> bool:
    return np.array_equal(a.degraded, b.degraded) and np.array_equal(a.clean, b.clean) and a[2:] == b[2:]


def characters(page: pages.Page) -> list[dict]:
    return [character for column in page.layout["columns"] for character in column["characters"]]


def crop(x: np.ndarray, box: list[int]) -> np.ndarray:
    left, top, width, height = box
    return x[top : top + height, left : left + width]


def test_a_page_depends_on_its_key_alone(glyphs):
    first, second = (pages.draw_page(glyphs, key) for key in KEYS[:2])
    again = [pages.draw_page(glyphs, key) for key in KEYS[1::-1]]
    assert same(first, again[1]) and same(second, again[0]) and not same(first, second)


def test_columns_and_their_heads_can_be_given(glyphs):
    heads = {chr(form) for form in glyphs.pack.form[:2]}
    page = pages.draw_page(glyphs, KEYS[0], "classic", 0.0, columns=(2, 2), heads="".join(heads))
    columns = [column["characters"] for column in page.layout["columns"]]
    assert len(columns) == 2 and {column[0]["char"] for column in columns} <= heads
    with pytest.raises(ValueError, match="has no 〇"):
        pages.draw_page(glyphs, KEYS[0], heads="〇")


def test_the_layout_is_json_in_reading_order(glyphs):
    kinds = set()
    for key in KEYS[:12]:
        page = pages.draw_page(glyphs, key, "classic", 0.3)
        assert json.loads(json.dumps([page.layout, page.about])) == [page.layout, page.about]
        assert list(page.layout) == ["polarity", "skew", "direction", "columns"]
        assert page.layout["polarity"] == "bright" and page.layout["direction"] == "rtl" and abs(page.layout["skew"]) <= 3
        assert set(page.about) == {"hand", "kind", "em", "preset", "severity"}
        assert page.about["hand"] in {"brush", "pen", "stranger"} and page.about["severity"] == 0.3
        kinds.add(page.about["kind"])
        height, width = page.clean.shape
        middles = []
        for column in page.layout["columns"]:
            boxes = np.array([character["box"] for character in column["characters"]])
            assert (boxes[:, :2] >= 0).all() and (boxes[:, 0] + boxes[:, 2] <= width).all()
            assert (boxes[:, 1] + boxes[:, 3] <= height).all() and (boxes[:, 2] == boxes[:, 3]).all()
            assert (np.diff(boxes[:, 1]) > 0).all()
            middles.append((boxes[:, 0] + boxes[:, 2] / 2).mean())
        assert (np.diff(middles) < 0).all() and 1 < len(middles) <= 4
        assert {split_of(group_of(character["char"])) for character in characters(page)} == {"test"}
    assert kinds == set(pages.KINDS)


@pytest.mark.parametrize("title", [0.0, 1.0])
def test_boxes_are_those_of_the_glyphs(glyphs, plain, title, monkeypatch):
    monkeypatch.setattr(pages, "TITLE", title)
    monkeypatch.setattr(pages, "ACROSS", (1.25, 1.3))  # far enough apart for no character to be in its neighbour's box
    monkeypatch.setattr(pages, "DOWN", (1.25, 1.3))
    names = [hand.name for hand in glyphs.pack.hands]
    row_of = {key: row for row, key in enumerate(zip(glyphs.pack.hand.tolist(), map(chr, glyphs.pack.form.tolist())))}
    skews = set()
    for key in KEYS[5:9]:
        page = pages.draw_page(glyphs, key, "classic", 0.0)
        skews.add(page.layout["skew"])
        inked = page.clean.copy()
        for character in characters(page):
            box = character["box"]
            glyph = smooth(glyphs.pack.glyphs([row_of[names.index(page.about["hand"]), character["char"]]]), box[2])[0, 0].numpy()
            if page.layout["skew"] == 0:
                assert np.allclose(crop(page.clean, box), glyph, atol=1e-6)
            moves = [(0, 0), (2, 0), (-2, 0), (0, 2), (0, -2)]
            found = [crop(page.clean, [box[0] + x, box[1] + y, *box[2:]]) for x, y in moves]
            likeness = [np.corrcoef(each.ravel(), glyph.ravel())[0, 1] for each in found]
            assert max(likeness) == likeness[0] > 0.5
            reach = round(0.03 * box[2]) + 1  # of the corners of a turned square
            crop(inked, [box[0] - reach, box[1] - reach, box[2] + 2 * reach, box[3] + 2 * reach])[:] = 0
        assert inked.max() == 0
        sizes = {character["box"][2] // (1.5 * page.about["em"]) for character in page.layout["columns"][0]["characters"]}
        assert sizes == {title}
    assert 0 in skews and min(skews) < 0 < max(skews)


def test_points_turn_with_the_page():
    page = torch.zeros(90, 160)
    page[20:23, 120:123] = 1
    for degrees in (-3.0, 2.0, 30.0):
        turned, centre = pages._turn(page, np.array([[121.5, 21.5]]), degrees)
        y, x = np.indices(turned.shape) + 0.5
        ink = turned.numpy() / turned.numpy().sum()
        assert np.allclose([(x * ink).sum(), (y * ink).sum()], centre[0], atol=0.1)
        assert (centre[0, 1] - turned.shape[0] / 2 > 21.5 - 45) == (degrees > 0)  # right of the middle: clockwise is downwards


def test_without_damage_a_page_is_the_clean_one(glyphs, plain):
    page = pages.draw_page(glyphs, KEYS[0], "classic", 0.0)  # at 0, "classic" changes nothing
    assert page.degraded.dtype == page.clean.dtype == np.float32
    assert np.allclose(page.degraded, page.clean, atol=1e-5) and page.clean.max() == 1


def test_tiles_fit_together():
    x = torch.rand(130, 201)
    assert torch.allclose(pages._in_tiles(x, Degradation({}, 64), 1, 0.5), x, atol=1e-5)


def test_every_operation_has_its_place():
    placed = [*pages.LOSSES, *pages.SURFACE, "binarise", "geometry", "cut", "surroundings", "mount", "resolution"]
    placed += ["exemplar_shape", "exemplar_ground"]  # of single characters
    assert sorted(placed) == sorted(OPERATIONS)


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_leaves_the_strokes_in_place(glyphs, plain, preset):
    page = pages.draw_page(glyphs, KEYS[3], preset, 0.1)
    assert page.degraded.shape == page.clean.shape and page.degraded.min() >= 0 and page.degraded.max() <= 1
    assert np.corrcoef(page.degraded.ravel(), page.clean.ravel())[0, 1] > 0.4
    assert not np.allclose(page.degraded, page.clean, atol=0.01)


def test_a_mixture_gives_a_page_one_preset_and_the_severity_is_drawn(glyphs):
    drawn = [pages.draw_page(glyphs, key, "classic:.5,binary:.5").about for key in KEYS[:6]]
    assert {about["preset"] for about in drawn} == {"classic", "binary"}
    assert len({about["severity"] for about in drawn}) == 6


def test_the_scanners_margin_is_flat_and_moves_the_boxes(glyphs, monkeypatch):
    monkeypatch.setattr(pages, "SCANNED", 1.0)
    margins = pages.draw_page(glyphs, KEYS[0], "mixed", 0.3)
    monkeypatch.setattr(pages, "SCANNED", 0.0)
    page = pages.draw_page(glyphs, KEYS[0], "mixed", 0.3)
    left, top = np.subtract(characters(margins)[0]["box"], characters(page)[0]["box"])[:2]
    inner = (slice(top, top + page.clean.shape[0]), slice(left, left + page.clean.shape[1]))
    assert np.array_equal(margins.clean[inner], page.clean) and np.array_equal(margins.degraded[inner], page.degraded)
    outer = np.full(margins.clean.shape, True)
    outer[inner] = False
    assert outer.any() and len(np.unique(margins.degraded[outer])) == 1 and not margins.clean[outer].any()


def run(*args) -> int:
    """`prepare_data.py pages` with these arguments, in this process; the exit status."""
    return prepare_data.main(["pages", *map(str, args)])


def test_the_command_writes_pages(tiny_pack, glyphs, tmp_path, capsys):
    flags = ["--data", tiny_pack, "--output_dir", tmp_path / "pages", "--preset", "classic"]
    assert run(*flags, "--count", 3, "--severity", 0.4) == 0
    files = {file.name: file.read_bytes() for file in (tmp_path / "pages").iterdir()}
    assert sorted(files) == [f"000{n}.{kind}" for n in range(3) for kind in ("json", "png")]
    page, picture = pages.draw_page(glyphs, KEYS[2], "classic", 0.4), Image.open(tmp_path / "pages" / "0002.png")
    assert picture.mode == "L" and np.array_equal(np.asarray(picture), (page.degraded * 255).round().astype(np.uint8))
    assert json.loads(files["0002.json"]) == {**page.layout, "about": page.about}

    (tmp_path / "pages" / "note.txt").write_text("mine")
    assert run(*flags) == 1 and "--overwrite" in capsys.readouterr().err
    assert run(*flags, "--count", 1, "--severity", 0.4, "--overwrite") == 0
    assert sorted(file.name for file in (tmp_path / "pages").iterdir()) == ["0000.json", "0000.png", "note.txt"]
    assert (tmp_path / "pages" / "0000.png").read_bytes() == files["0000.png"]


def test_the_command_keeps_old_pages_after_an_error(tiny_pack, tmp_path, monkeypatch):
    flags = ["--data", tiny_pack, "--output_dir", tmp_path, "--preset", "classic", "--count", 2, "--overwrite"]
    assert run(*flags) == 0
    old = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_data, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(*flags, "--seed", 1)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == old


def test_the_command_refuses_bad_input(tiny_pack, tmp_path, capsys):
    out = tmp_path / "pages"
    for words in (["--preset", "mixd"], ["--data", tmp_path / "no.pack"]):
        assert run("--data", tiny_pack, "--output_dir", out, *words) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and len(error.splitlines()) == 1 and not out.exists()
    for words in (["--count", 0], ["--severity", 1.5], ["--split", "all"]):
        with pytest.raises(SystemExit):
            run("--data", tiny_pack, "--output_dir", out, *words)
        assert f"argument {words[0]}" in capsys.readouterr().err
