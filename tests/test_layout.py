"""Layouts of pages: columns and characters are found in reading order, and survive as files."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evaluation import pages
from evaluation.pages import match, score
from restoration import layout as layout_module
from restoration import layout_files
from restoration.layout import Character, Layout, find_layout, is_page
from tests.pictures import character

EDGE, ACROSS, DOWN = 40, 52, 44  # of a character's square, and the pitches, in pixels


def glyph(rng: np.random.Generator) -> np.ndarray:
    """(EDGE, EDGE): three horizontal and two vertical strokes at random places."""
    x = np.zeros((EDGE, EDGE), np.float32)
    for row in rng.choice(np.arange(3, EDGE - 5), 3, replace=False):
        x[row : row + 3, 3:-3] = 1
    for column in rng.choice(np.arange(3, EDGE - 5), 2, replace=False):
        x[3:-3, column : column + 3] = 1
    return x


def draw_page(columns: int = 9, rows: int = 11, absent: set = frozenset(), rules: bool = False, noise: float = 0.1, seed: int = 0):
    """(page (H, W) in [0, 1], [[(left, top), …] of each column, from the right])."""
    rng = np.random.default_rng(seed)
    page = np.zeros((30 + DOWN * rows + 20, 25 + ACROSS * columns + 25), np.float32)
    truth = []
    for column in range(columns):
        left = page.shape[1] - 25 - ACROSS * (column + 1) + (ACROSS - EDGE) // 2
        truth.append([])
        for row in range(rows):
            if (column, row) in absent:
                continue
            at = left + rng.integers(-1, 2), 30 + DOWN * row + rng.integers(-1, 2)
            part = page[at[1] : at[1] + EDGE, at[0] : at[0] + EDGE]
            np.maximum(part, glyph(rng), out=part)
            truth[-1].append(at)
    if rules:
        page[10:-5, 25 : page.shape[1] - 20 : ACROSS] = 1
        page[10:-5, 26 : page.shape[1] - 20 : ACROSS] = 1
    return (0.2 + 0.6 * page + noise * rng.standard_normal(page.shape)).clip(0, 1).astype(np.float32), truth


def overlap(one: Character, at: tuple[int, int], edge: int = EDGE) -> float:
    """Intersection over union with the truth."""
    sides = [max(0, min(a + one.edge, b + edge) - max(a, b)) for a, b in zip((one.left, one.top), at, strict=True)]
    return sides[0] * sides[1] / (one.edge**2 + edge**2 - sides[0] * sides[1])


def assert_found(layout: Layout, truth: list) -> None:
    assert [len(column) for column in layout.columns] == [len(column) for column in truth]
    for column, places in zip(layout.columns, truth, strict=True):
        for one, at in zip(column, places, strict=True):
            assert overlap(one, at) > 0.5, (one, at)


@pytest.mark.parametrize("rules", [False, True])
def test_characters_are_found_in_reading_order(rules):
    page, truth = draw_page(rules=rules)
    layout = find_layout(page)
    assert_found(layout, truth)
    assert layout.size == page.shape and layout.skew == pytest.approx(0, abs=0.11)


def test_columns_of_a_bent_page_are_followed():
    page, truth = draw_page(rows=15)
    height = page.shape[0]

    def shift(row: float) -> int:
        """Pixels to the right: a third of a character less in the middle of the page than at its ends."""
        return round(EDGE / 3 * (2 * row / height - 1) ** 2)

    bent = np.stack([np.roll(line, shift(row)) for row, line in enumerate(page)])
    layout = find_layout(bent)
    places = [[(left + shift(top + EDGE / 2), top) for left, top in column] for column in truth]
    assert_found(layout, places)
    pairs = [(one, at) for column, there in zip(layout.columns, places, strict=True) for one, at in zip(column, there, strict=True)]
    off = np.array([one.left + one.edge / 2 - at[0] - EDGE / 2 for one, at in pairs])
    assert np.abs(off - np.median(off)).mean() < 0.05 * EDGE


def test_rules_are_found_where_they_cross():
    ink = np.zeros((600, 500))
    ink[40:560:40], ink[41:560:40], ink[:, 50:460:50], ink[:, 51:460:50] = 1, 1, 1, 1
    inner = np.zeros(ink.shape, bool)
    inner[70:530, 80:420] = True
    assert layout_module._rules(ink, 15)[(ink > 0) & inner].all()
    strokes = np.zeros((600, 500))
    strokes[100:500:40, 100:120], strokes[100:120, 100:400:50] = 1, 1
    assert not layout_module._rules(strokes, 15).any()


def test_the_extent_leaves_out_stray_parts_unless_there_is_nothing_else():
    profile = np.zeros(60)
    profile[20:40], profile[55] = 1, 1
    assert layout_module._extent(profile) == (20, 40)
    profile = np.zeros(60)
    profile[3:60:8] = 1
    assert layout_module._extent(profile) == (3, 60)


def test_a_character_of_one_thin_stroke_is_no_blank_cell():
    page, truth = draw_page(columns=16, absent={(4, 5), (4, 7)})
    at = truth[4][4][0], 30 + DOWN * 5
    page[at[1] + EDGE // 2 : at[1] + EDGE // 2 + 2, at[0] : at[0] + EDGE] += 0.6
    truth[4].insert(5, at)
    assert_found(find_layout(page.clip(0, 1)), truth)


@pytest.mark.parametrize("row", [0, 10])
def test_a_stroke_at_an_end_of_a_column_where_others_end(row):
    page, truth = draw_page(columns=16, absent={(4, row)})
    left = truth[4][3][0]
    page[30 + DOWN * row + EDGE // 2 :, left : left + EDGE][:3] += 0.6
    truth[4].insert(row, (left, 30 + DOWN * row))
    assert_found(find_layout(page.clip(0, 1)), truth)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("margin", [0, 30])
def test_few_columns(columns, margin):
    page, truth = draw_page(columns=columns, noise=0.03)
    layout = find_layout(np.pad(page, ((0, 0), (margin, margin)), constant_values=0.2))
    assert_found(layout, [[(left + margin, top) for left, top in column] for column in truth])


def test_what_is_scattered_at_the_sides_of_few_columns_is_none():
    x, truth = draw_page(columns=4, absent={(column, row) for column in (0, 3) for row in range(11) if row not in (1, 6, 9)})
    assert_found(find_layout(x), truth[1:3])


def test_short_columns_late_columns_and_blank_cells():
    absent = {(2, row) for row in range(6, 11)} | {(4, 0), (4, 1), (6, 5)}
    page, truth = draw_page(absent=absent)
    assert_found(find_layout(page), truth)


def test_the_direction_and_the_number_of_columns():
    page, truth = draw_page()
    assert_found(find_layout(page, "ltr"), truth[::-1])
    assert_found(find_layout(page, columns=9), truth)
    lines = [[(top, left) for left, top in column] for column in truth[::-1]]
    assert_found(find_layout(page.T, "horizontal"), lines)
    with pytest.raises(ValueError, match="cannot be cut into 60 columns"):
        find_layout(page, columns=60)


@pytest.mark.parametrize("skew", [-2.0, 3.0])
def test_skew(skew):
    page, truth = draw_page(noise=0.02)
    skewed = np.asarray(Image.fromarray(page).rotate(-skew, Image.Resampling.BICUBIC, fillcolor=0.2))
    layout = find_layout(skewed)
    assert layout.skew == pytest.approx(skew, abs=0.3)
    turn, middle = np.deg2rad(skew), (np.array(page.shape[::-1]) - EDGE) / 2
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    assert_found(layout, [[tuple(turned @ (np.array(at) - middle) + middle) for at in column] for column in truth])


def test_a_large_page_is_found_at_a_smaller_scale():
    page, truth = draw_page()
    layout = find_layout(page.repeat(4, 0).repeat(4, 1))
    assert all(overlap(one._replace(left=one.left / 4, top=one.top / 4, edge=one.edge / 4), at) > 0.5
               for column, places in zip(layout.columns, truth, strict=True)
               for one, at in zip(column, places, strict=True))  # fmt: skip


def test_a_page_without_characters_has_no_columns():
    noise = np.random.default_rng(0).random((300, 400), dtype=np.float32)
    for page in (np.zeros((300, 400), np.float32), noise[:8, :8]):
        assert find_layout(page).columns == []


def test_what_is_plainly_a_page():
    assert is_page(draw_page(columns=12, rows=12)[0])
    assert not is_page(draw_page(columns=2, rows=12)[0])
    single = np.zeros((600, 600), np.float32)
    single[100:500, 100:500] = character(400, 400) / 255
    assert not is_page(single)


def test_scores():
    """Of four characters one is found too far away, and the columns are in the wrong order; one more is found that is none."""
    truth = Layout((200, 200), [[Character(100, 0, 40), Character(100, 50, 40)], [Character(20, 0, 40), Character(20, 50, 40)]])
    found = Layout(
        (200, 200),
        [[Character(20, 5, 40), Character(20, 80, 40)], [Character(95, 0, 44), Character(100, 50, 40)], [Character(0, 150, 40)]],
    )
    assert match(found, truth).tolist() == [2, 3, 0, -1]
    assert score(found, truth) == {"truth": 4, "found": 5, "right": 3, "pairs": 2, "ordered": 1}
    assert score(Layout((200, 200)), truth) == {"truth": 4, "found": 0, "right": 0, "pairs": 0, "ordered": 0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--columns", "5", "1"], "the fewest first, not 5 1"), (["--heads", "a"], "has no a"), (["--preset", "mixd"], "mixd")],
)
def test_pages_that_cannot_be_made_are_one_error(tiny_pack, capsys, flags, message):
    assert pages.main(["--data", str(tiny_pack), *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


# --- files --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def layout() -> Layout:
    readings = (("林", 0.2), ("森", 0.15))
    columns = [[Character(100, 10, 40, 0.9, "佛"), Character(101, 52, 42, 0.5, None, readings)], [Character(50, 9, 40, 1.0, "&")]]
    return Layout((120, 160), columns, "dark", 1.25, "rtl")


@pytest.mark.parametrize("suffix", ["json", "xml"])
def test_a_layout_survives_as_a_file(layout, tmp_path, suffix):
    path = tmp_path / f"page.{suffix}"
    path.write_bytes(
        layout_files.to_xml(layout, "page.jpg") if suffix == "xml" else json.dumps(layout_files.to_json(layout)).encode()
    )
    assert layout_files.read(path, layout.size) == layout


def test_boxes_that_are_not_squares_and_lines_without_glyphs_are_taken(tmp_path):
    path = tmp_path / "page.json"
    path.write_text(json.dumps({"columns": [{"characters": [{"box": [10, 20, 30, 50]}]}, {"characters": []}]}))
    assert layout_files.read(path, (99, 99)).columns == [[Character(0, 20, 50)]]


def test_only_text_without_a_probability_is_told(layout, tmp_path):
    """What another program recognised, or this one read, is no transcription."""
    told = layout_files.to_xml(layout, "page.jpg").decode()
    read = told.replace("<TextEquiv>", '<TextEquiv conf="0.3">')
    for content, char, readings in ((told, "佛", ()), (read, None, (("佛", 0.3),))):
        (tmp_path / "page.xml").write_text(content, encoding="utf-8")
        [[first, second], _] = layout_files.read(tmp_path / "page.xml", layout.size).columns
        assert (first.char, first.readings) == (char, readings) and second == layout.columns[0][1]


def test_page_xml_has_no_coordinates_outside_of_the_picture(layout, tmp_path):
    (tmp_path / "page.xml").write_bytes(layout_files.to_xml(replace(layout, columns=[[Character(-6, 90, 40)]]), "page.jpg"))
    assert (tmp_path / "page.xml").read_text().count('points="0,90 34,90 34,120 0,120"') == 4
    [[one]] = layout_files.read(tmp_path / "page.xml", layout.size).columns
    assert one.edge == 34 and overlap(one, (-6, 90)) > 0.6


def test_page_xml_of_another_picture_is_refused(layout, tmp_path):
    (tmp_path / "page.xml").write_bytes(layout_files.to_xml(layout, "page.jpg"))
    with pytest.raises(ValueError, match="it is of a picture of 160×120 pixels; pass that one: this has 320×240"):
        layout_files.read(tmp_path / "page.xml", (240, 320))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", "{}"), ("a.json", '{"columns": 3}'), ("a.json", "nonsense"), ("a.xml", "<PcGts/>"), ("a.xml", "<a"),
     ("a.json", '{"columns": [{"characters": [{"box": [1, 2]}]}]}'), ("a.xml", '<PcGts xmlns="p"><Page/></PcGts>'),
     ("a.json", '{"columns": [{"characters": [{"box": [1, 2, 9, 9], "char": "佛陀"}]}]}')],
)  # fmt: skip
def test_a_file_that_is_no_layout_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}: not a layout"):
        layout_files.read(tmp_path / name, (10, 10))


def test_a_transcription_names_the_characters(layout):
    named, notes = layout_files.named(layout, "□林\n\n一\n")
    assert [[one.char for one in column] for column in named.columns] == [[None, "林"], ["一"]] and not notes
    named, notes = layout_files.named(layout, "〔林/森〕林\n一")
    assert [[one.char for one in column] for column in named.columns] == [[None, "林"], ["一"]] and not notes
    named, notes = layout_files.named(layout, "林\n一")
    assert [[one.char for one in column] for column in named.columns] == [[None, None], ["一"]]
    assert notes == ["column 1: 2 characters found, 1 in the text; left untold"]
    with pytest.raises(ValueError, match="the text has 3 lines, but 2 columns were found: pass --columns 3"):
        layout_files.named(layout, "一\n二\n三")
