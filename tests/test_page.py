"""A page in, a page out: characters are cut out without their neighbours, restored and put back."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

import restore
import restore_page
from restoration import layout_files, page
from restoration.layout import Character, Layout
from restoration.page import find_page, is_blank
from restoration.pipeline import ROOT, Restored, Restorer
from tests.pictures import network
from tests.test_layout import draw_page
from util import images

SETTINGS = {"img_size": 64, "in_chans": 2}


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, list]:
    return draw_page(6, 7, noise=0.03)


@pytest.fixture
def files(drawn, tmp_path, monkeypatch):
    """A folder with a page of dark strokes; restore_page.py has a network that returns its input. Returns the page's path."""
    monkeypatch.setattr(restore_page, "load_restorer", lambda *_: Restorer(network(lambda x: x[:, 0]), SETTINGS, weights="abc"))
    Image.fromarray(((1 - drawn[0]) * 255).astype(np.uint8)).save(tmp_path / "page.png", dpi=(300, 300))
    return tmp_path / "page.png"


@pytest.fixture
def refused(capsys):
    def run(message: str, *arguments) -> None:
        assert restore_page.main([str(argument) for argument in arguments]) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ") and message in line, line

    return run


def test_a_page_is_restored_with_its_layout(files, drawn, capsys):
    assert restore_page.main([str(files), "--compare", "--xml", "--characters"]) == 0
    assert "dark strokes, 42 characters in 6 columns" in capsys.readouterr().err
    restored = Image.open(files.with_name("page_restored.png"))
    assert restored.size == drawn[0].shape[::-1] and restored.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert json.loads(restored.text["restoration"])["weights"] == "abc"
    strokes = drawn[0] > 0.5
    ink = 1 - np.asarray(restored) / 255
    assert ink[strokes].mean() > 0.8 and ink[~strokes].mean() < 0.1
    data = json.loads(files.with_name("page_layout.json").read_text())
    assert [len(column["characters"]) for column in data["columns"]] == [7] * 6 and data["polarity"] == "dark"
    assert layout_files.read(files.with_name("page.xml"), drawn[0].shape).columns[5][6].edge > 30
    assert Image.open(files.with_name("page_compare.png")).width == 2 * drawn[0].shape[1] + 16
    cut = sorted(path.name for path in files.with_name("page_characters").iterdir())
    assert len(cut) == 42 and (cut[0], cut[-1]) == ("001_001.png", "006_007.png")


def test_files_beside_are_named_as_the_page_is(files):
    for target, layout in (("other.png", "other_layout.json"), ("more_restored.png", "more_layout.json")):
        assert restore_page.main([str(files), str(files.with_name(target))]) == 0
        assert files.with_name(target).exists() and files.with_name(layout).exists()


def test_a_single_character_gets_a_note(files, capsys):
    """A page, whose cells are free of ink at their edges, has none."""
    assert restore_page.main([str(files)]) == 0
    assert "a single character is for restore.py" not in capsys.readouterr().err
    single = ROOT / "examples" / "占.png"
    assert restore_page.main([str(single), str(files.with_name("single.png"))]) == 0
    assert "a single character is for restore.py" in capsys.readouterr().err


def test_a_cell_that_turns_out_blank_is_left_out(files, monkeypatch, capsys):
    """The network finds a speck in the third character and is in doubt of the fourth."""
    seen = iter(range(42))

    def restore(x: np.ndarray) -> np.ndarray:
        y = 12 * x[:, 0] - 6
        for row, number in zip(y, seen):
            if number in (2, 3):
                row[:] = -9 if number == 2 else -2
                row[30:36, 30:36] = 5
        return y

    monkeypatch.setattr(restore_page, "load_restorer", lambda *_: Restorer(restore, SETTINGS))
    assert restore_page.main([str(files), "--characters"]) == 0
    err = capsys.readouterr().err
    assert "42 characters in 6 columns" in err and "taken for blank, as they hold specks at most: 1" in err
    layout = json.loads(files.with_name("page_layout.json").read_text())
    assert [len(column["characters"]) for column in layout["columns"]] == [6, 7, 7, 7, 7, 7]
    cut = sorted(path.name for path in files.with_name("page_characters").iterdir())
    assert len(cut) == 41 and cut[5:7] == ["001_006.png", "002_001.png"]


@pytest.mark.parametrize(("tone", "blank"), [(0.2, True), (0.8, False)])
def test_a_cell_of_lost_stone_is_not_blank(tone, blank):
    picture = Image.new("L", (64, 64), round(255 * tone))
    prepared = Restorer(network(lambda x: x[:, 0]), SETTINGS).prepare(picture, polarity="bright")
    nothing = np.zeros((64, 64), np.float32)
    assert is_blank(Restored(prepared, nothing, nothing)) == blank


def test_a_transcription_and_a_corrected_layout(files, capsys):
    text = files.with_name("page.txt")
    text.write_text("\n".join(["一二三四五六七"] * 5 + ["一二三□五六"]), encoding="utf-8")
    assert restore_page.main([str(files), "--text", str(text)]) == 0
    err = capsys.readouterr().err
    assert "column 6: 7 characters found, 6 in the text; left untold" in err and "35 told" in err
    layout = files.with_name("page_layout.json")
    data = json.loads(layout.read_text())
    assert data["columns"][0]["characters"][1]["char"] == "二" and "char" not in data["columns"][5]["characters"][0]
    data["columns"] = data["columns"][:2]
    layout.write_text(json.dumps(data))
    assert restore_page.main([str(files), str(files.with_name("out.png")), "--layout", str(layout), "--overwrite"]) == 0
    assert "14 characters in 2 columns, skew" in capsys.readouterr().err


def test_what_the_transcription_does_not_fit_is_named(files, monkeypatch, capsys):
    """The network finds a diagonal stroke, which no guide resembles."""
    stroke = np.abs(np.subtract.outer(np.arange(64), np.arange(64))) < 3

    def diagonal(x: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.where(stroke, 9.0, -9.0), x[:, 0].shape)

    monkeypatch.setattr(restore_page, "load_restorer", lambda *_: Restorer(network(diagonal), {**SETTINGS, "in_chans": 4}))
    text = files.with_name("page.txt")
    text.write_text("\n".join(["□一國□□□□"] + ["□" * 7] * 5), encoding="utf-8")
    assert restore_page.main([str(files), "--text", str(text), "--steps", "1"]) == 0
    assert "as the transcription does not fit what survives: 一 (column 1, 2), 國 (column 1, 3)\n" in capsys.readouterr().err


def test_a_character_is_cut_out_without_its_neighbours():
    bright = np.full((60, 40), 50, np.uint8)
    bright[5:25, 10:30] = 200
    bright[29:50, 10:30] = 250
    characters = [Character(4, 0, 32), Character(4, 24, 32)]
    own = page._territories(characters)
    assert own.tolist() == [[0, 4, 28, 36], [28, 4, 56, 36]]
    first, second = (page.cut(bright, page.inside(one, bright.shape), place) for one, place in zip(characters, own, strict=True))
    assert set(np.unique(first)) == {50, 200} and set(np.unique(second)) == {50, 250}


def test_what_is_put_back_has_soft_borders(drawn):
    shown = page.Page(np.zeros((100, 100), np.uint8), Layout((100, 100)))
    canvas = page.Canvas(shown)
    part = (slice(20, 70), slice(10, 60))
    restored = Restorer(network(lambda x: np.ones_like(x[:, 0])), SETTINGS).restore(
        [Restorer(None, SETTINGS).prepare(Image.new("L", (50, 50), 99), polarity="bright")]
    )[0]
    canvas.put(part, restored)
    ink = np.asarray(canvas.picture())
    assert ink[45, 35] == 255 and 0 < ink[20, 35] < 255 and not ink[19].any() and not ink[:, 60].any()


def test_columns_that_hold_nothing_are_named(files, capsys, monkeypatch):
    assert restore_page.main([str(files), "--columns", "6"]) == 0
    assert "of --columns" not in capsys.readouterr().err
    monkeypatch.setattr(restore_page, "find_page", lambda *given: find_page(*given[:3], 6, None))
    assert restore_page.main([str(files), "--columns", "7", "--overwrite"]) == 0
    assert "of the 7 columns of --columns, 6 hold characters" in capsys.readouterr().err


def test_bad_input_is_one_error_and_writes_nothing(files, refused, tmp_path, monkeypatch):
    Image.new("L", (300, 300), 40).save(tmp_path / "blank.png")
    refused("blank.png: no columns of characters were found", tmp_path / "blank.png")
    (tmp_path / "page.pdf").write_bytes(b"%PDF-1.4")
    refused("page.pdf: not a picture", tmp_path / "page.pdf", tmp_path / "out.png")
    (tmp_path / "other.txt").write_text("一\n二", encoding="utf-8")
    refused("the text has 2 lines, but 6 columns were found: pass --columns 2", files, "--text", tmp_path / "other.txt")
    outside = {"columns": [{"characters": [{"box": [900, 10, 40, 40]}]}]}
    (tmp_path / "outside.json").write_text(json.dumps(outside))
    refused("character 1 of column 1 is at [900, 10, 40, 40]", files, "--layout", tmp_path / "outside.json")
    refused("no such file", files, "--text", tmp_path / "none.txt")
    (tmp_path / "page_text.txt").write_text("一\n二", encoding="gb18030")
    refused("page_text.txt: not UTF-8", files, "--text", tmp_path / "page_text.txt")
    monkeypatch.setattr(restore_page, "load_reader", lambda _: None)
    refused("page_text.txt: this output is an input", files, "--text", tmp_path / "page_text.txt", "--read", "--overwrite")
    refused("other.txt is a file and no folder", files, tmp_path / "other.txt" / "out.png")
    refused("not read from standard input", "-")
    refused("--specimens guide what is told, and no character is: pass --text", files, "--specimens")
    monkeypatch.setattr(restore_page, "is_blank", lambda _: True)
    refused("all cells are blank, or hold specks at most", files, "--xml", "--compare")
    refused("--layout is for one page", tmp_path, "--layout", tmp_path / "outside.json")
    assert not [path for path in tmp_path.iterdir() if "restored" in path.name or "layout" in path.name]
    files.with_name("page_layout.json").write_text("old")
    refused("page_layout.json: exists already", files)


def test_restore_names_this_tool_and_does_as_asked(files, monkeypatch, capsys):
    monkeypatch.setattr(restore, "load_restorer", restore_page.load_restorer)
    large = Image.fromarray((255 * draw_page(12, 14)[0]).astype(np.uint8))
    large.save(files)
    assert restore.main([str(files), str(files.with_name("out.png"))]) == 0
    assert "page.png: looks like a page; restore_page.py restores its characters" in capsys.readouterr().err
    assert Image.open(files.with_name("out.png")).size == large.size


def test_a_16_bit_page_is_shown_as_it_is(files, drawn):
    x = 1 - drawn[0]
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[282] = tags[283] = TiffImagePlugin.IFDRational(0, 0)  # the resolution
    Image.fromarray((x * 65535).astype(np.uint16)).save(files.with_suffix(".tif"), tiffinfo=tags)
    assert restore_page.main([str(files.with_suffix(".tif")), "--compare"]) == 0
    with Image.open(files.with_name("page_compare.png")) as sheet:
        assert np.abs(np.asarray(sheet)[:, : x.shape[1], 0] / 255 - x).max() < 0.01
    assert "dpi" not in Image.open(files.with_name("page_restored.png")).info


def test_of_a_file_of_several_pages_the_first_is_restored(files, capsys):
    page = Image.open(files)
    page.save(files.with_suffix(".tif"), save_all=True, append_images=[page, page])
    assert restore_page.main([str(files.with_suffix(".tif"))]) == 0
    assert "the file has 3 pages, of which the first is restored" in capsys.readouterr().err


def test_a_page_names_the_guides_of_its_characters(drawn):
    shown = page.Page(np.zeros((100, 100), np.uint8), Layout((100, 100)))
    canvas, restorer = page.Canvas(shown), Restorer(network(lambda x: x[:, 0]), SETTINGS, weights="abc")
    [one] = restorer.restore([restorer.prepare(Image.new("L", (50, 50), 99), polarity="bright")])
    for guide, guides in ((None, None), ("佛", [None, "佛"]), (None, [None, "佛", None])):
        canvas.put((slice(20, 70), slice(10, 60)), replace(one, origin={**one.origin, "guide": guide}))
        about = json.loads(canvas.picture().info["about"]["restoration"])
        assert about["guide"] == guides and about["weights"] == "abc"


def test_characters_of_an_earlier_layout_do_not_stay(files):
    assert restore_page.main([str(files), "--characters"]) == 0
    kept = files.with_name("page_characters") / "notes.png"
    kept.write_bytes(b"")
    layout = files.with_name("page_layout.json")
    layout.write_text(json.dumps({"columns": json.loads(layout.read_text())["columns"][:1], "polarity": "dark"}))
    moved = layout.rename(files.with_name("mine.json"))
    assert restore_page.main([str(files), "--characters", "--overwrite", "--layout", str(moved)]) == 0
    assert sorted(path.name for path in kept.parent.iterdir()) == [*(f"001_{row:03}.png" for row in range(1, 8)), "notes.png"]


def test_characters_of_before_stay_when_the_disk_is_full(files, monkeypatch, capsys):
    assert restore_page.main([str(files), "--characters"]) == 0
    names = sorted(path.name for path in files.with_name("page_characters").iterdir())

    def full(path, picture):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(images, "write_png", full)
    assert restore_page.main([str(files), "--characters", "--overwrite"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in files.with_name("page_characters").iterdir()) == names


def test_a_text_of_windows_and_one_of_this_tool_are_taken(files, capsys):
    text = files.with_name("page.txt")
    text.write_text("\n".join(["〔一/二〕□三四五六七"] * 6), encoding="utf-8-sig")
    assert restore_page.main([str(files), "--text", str(text)]) == 0
    err = capsys.readouterr().err
    assert "30 told" in err and "left untold" not in err


def test_the_polarity_is_that_of_most_cells(drawn, tmp_path):
    for invert in (False, True):
        picture = images.from_grey(1 - drawn[0] if invert else drawn[0])
        assert page.find_page(picture).layout.polarity == ("dark" if invert else "bright")


@pytest.mark.parametrize("kind", ["transparent", "32 bits"])
def test_strips_of_a_large_page_share_one_scale_and_ground(drawn, monkeypatch, kind):
    """The lower half has other tones than the upper one, so that a strip alone would be taken for something else."""
    x = drawn[0].copy()
    x[len(x) // 2 :] *= 0.4
    if kind == "transparent":
        alpha = np.where(np.arange(len(x)) % 7 == 0, 0, 255)[:, None].repeat(x.shape[1], 1)
        picture = Image.fromarray(np.stack([255 * (1 - x), alpha], 2).astype(np.uint8), "LA")
    else:
        picture = Image.fromarray((400_000 * (1 - x)).astype(np.int32))
    whole, _ = page._prepare(picture)
    monkeypatch.setattr(page, "LARGE", max(x.shape) - 1)
    monkeypatch.setattr(page, "STRIP", 8)
    strips, _ = page._prepare(picture)
    assert np.abs(strips.astype(int) - whole).mean() < 6


def test_a_large_page_is_prepared_in_strips(drawn, monkeypatch):
    height, width = drawn[0].shape
    light = np.linspace(1, 0.5, height)[:, None]
    colours = np.stack([(1 - drawn[0]) * light * tone for tone in (0.9, 0.8, 0.6)], axis=2)
    picture = Image.fromarray((colours * 255).astype(np.uint8)).resize((3 * width, 3 * height))
    picture = ImageOps.expand(picture, 60, (255, 255, 255))
    whole = page.find_page(picture)
    monkeypatch.setattr(page, "LARGE", max(width, height) + 40)
    monkeypatch.setattr(page, "STRIP", 100)
    strips = page.find_page(picture)
    assert strips.bright.shape == whole.bright.shape == picture.size[::-1]
    assert np.abs(strips.bright.astype(int) - whole.bright).mean() < 6
    assert [len(column) for column in strips.layout.columns] == [len(column) for column in whole.layout.columns] == [7] * 6
    places = [np.array([one[:3] for one in found.layout.characters]) for found in (strips, whole)]
    assert np.abs(places[0] - places[1]).max() < 0.15 * places[1][:, 2].min()
