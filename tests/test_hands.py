import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from datasets import hands
from tests.tiny_fonts import BOX, CROSSED, FILLED, NOTDEF, rectangle, strokes, write_collection, write_font

COMMON = "永春明心山水大小天地人文"


def manifest(path, entries=(), pass_over=(), **more):
    content = {"hands": list(entries), "pass_over": list(pass_over), **more}
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


def entry(name, files, role="train", package="tiny", family=None):
    info = {"name": name, "family": family or name, "style": "regular", "role": role, "licence": "OFL-1.1"}
    return {**info, "files": files, "package": package}


def draw(folder, wanted=None):
    """The one hand in a folder, drawn."""
    (hand,), _ = hands.find_hands([folder], manifest(folder / "hands.yaml"))
    with ThreadPoolExecutor(1) as pool:
        return hands.draw_hand(hand, wanted or hands.character_map(hand, map(chr, range(0x3400, 0xA000))), pool)


def pictures(drawn):
    return np.unpackbits(drawn.bits, axis=1).reshape(-1, hands.IMG_SIZE, hands.IMG_SIZE).astype(bool)


def test_character_lists_are_those_of_the_standards():
    gb, big5 = hands.gb2312_level1(), hands.big5_level1()
    assert (len(gb), gb[0], gb[-1], len(set(gb))) == (3755, "啊", "座", 3755)
    assert (len(big5), big5[0], big5[-1], len(set(big5))) == (5401, "一", "籲", 5401)


def test_every_form_has_its_character():
    owner = hands.owners(["国", "发", "后", "後"])
    assert {form for form, char in owner.items() if char == "国"} == {"国", "國"}
    assert {form for form, char in owner.items() if char == "发"} == {"发", "發", "発"}
    assert owner["後"] == "後"  # listed itself, so not a form of 后


def test_missing_glyphs_are_left_out_and_counted(tmp_path):
    glyphs = {char: strokes(char) for char in COMMON} | {
        "一": [rectangle(50, 350, 950, 430)],
        "口": [rectangle(150, 50, 850, 750), rectangle(210, 110, 790, 690, hole=True)],
    }
    glyphs |= {"丁": BOX, "七": CROSSED, "万": FILLED, "三": [], "上": NOTDEF, "下": strokes("x"), "不": strokes("x")}
    glyphs |= {"国": strokes("国"), "國": strokes("国")}
    write_font(tmp_path / "a.ttf", glyphs)
    drawn = draw(tmp_path)
    assert drawn.left_out == {
        "丁": "empty box",
        "七": "crossed box",
        "万": "filled box",
        "三": "blank",
        "上": ".notdef",
        "下": "one shape for many",
        "不": "one shape for many",
        "國": "same as another form",
    }
    assert set(drawn.forms) == set(COMMON) | set("一口国")  # the glyph of 口 is a box
    assert drawn.reasons()["one shape for many"] == 2


@pytest.mark.parametrize("kind", ["empty box", "crossed box", "filled box"])
@pytest.mark.parametrize("corners", [(20, 30, 50, 64), (40, 40, 150, 180), (9, 9, 214, 214)])
@pytest.mark.parametrize("thick", [2, 5])
def test_boxes_of_any_size_are_recognised(kind, corners, thick):
    image = Image.new("1", (hands.IMG_SIZE, hands.IMG_SIZE))
    writer = ImageDraw.Draw(image)
    writer.rectangle(corners, fill=int(kind == "filled box"), outline=1, width=thick)
    if kind == "crossed box":
        left, top, right, bottom = (at + sign * thick for at, sign in zip(corners, (1, 1, -1, -1), strict=True))
        writer.line((left, top, right, bottom), fill=1, width=thick)
        writer.line((left, bottom, right, top), fill=1, width=thick)
    assert hands.missing_glyph_shape(np.asarray(image)) == kind


def test_characters_like_boxes_are_kept(tmp_path):
    inside = {
        "日": [rectangle(150, 375, 850, 425)],
        "田": [rectangle(150, 375, 850, 425), rectangle(475, 50, 525, 750)],
    }
    inside |= {
        "曰": [rectangle(150, 375, 700, 425)],
        "目": [rectangle(150, 275, 850, 325), rectangle(150, 475, 850, 525)],
    }
    write_font(
        tmp_path / "a.ttf",
        {char: BOX + bars for char, bars in inside.items()} | {char: strokes(char) for char in COMMON},
    )
    drawn = draw(tmp_path)
    assert not drawn.left_out
    assert len(drawn.forms) == len(COMMON) + 4


def test_nothing_is_cut_off(tmp_path):
    out = {
        "鬱": [rectangle(-700, 100, 300, 200)],
        "龍": [rectangle(400, -900, 500, 700)],
        "鳥": [rectangle(-900, -900, 2100, -800)],
    }
    out["鳥"] += [rectangle(2000, -900, 2100, 1900)]
    write_font(tmp_path / "a.ttf", {char: strokes(char) for char in map(chr, range(0x4E00, 0x4E80))} | out)
    drawn = draw(tmp_path)
    assert set(out) <= set(drawn.forms)
    edge = hands.MARGIN - 2
    for char, picture in zip(drawn.forms, pictures(drawn), strict=True):
        assert picture.any(), char
        inner = picture[edge:-edge, edge:-edge]
        assert inner.sum() == picture.sum(), f"{char} crosses the margin"
    # the first is shifted, not shrunk: it has its natural size; the last is too large and is shrunk to fit
    tall = pictures(drawn)[drawn.forms.index("龍")].any(1).sum()
    scale = drawn.frame.size / 1000
    assert tall == pytest.approx(min(1600 * scale, hands.IMG_SIZE - 2 * hands.MARGIN), abs=2)
    assert pictures(drawn)[drawn.forms.index("鳥")].any(0).sum() == pytest.approx(hands.IMG_SIZE - 2 * hands.MARGIN, abs=2)


def test_glyphs_keep_their_natural_size_and_place(tmp_path):
    small = {"一": [rectangle(400, 350, 600, 380)]}
    write_font(tmp_path / "a.ttf", {char: strokes(char) for char in map(chr, range(0x4E10, 0x4E80))} | small)
    drawn = draw(tmp_path)
    picture = pictures(drawn)[drawn.forms.index("一")]
    scale = drawn.frame.size / 1000
    rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
    assert len(columns) == pytest.approx(200 * scale, abs=2)
    assert columns.mean() == pytest.approx(hands.IMG_SIZE / 2 + (500 - 1000 * drawn.frame.middle[0]) * scale, abs=2)
    assert rows.mean() == pytest.approx(hands.IMG_SIZE / 2 - (365 + 1000 * drawn.frame.middle[1]) * scale, abs=2)
    reach = [max(112 - min(np.argwhere(p).min(0)), np.argwhere(p).max() - 112) for p in pictures(drawn)]
    assert np.mean(np.array(reach) <= 112 - hands.MARGIN + 1) == 1


def test_a_web_font_in_many_files_is_one_hand(tmp_path):
    chars = [chr(code) for code in range(0x4E00, 0x4E28)]
    for part in range(4):
        glyphs = {char: strokes(char) for char in chars[part * 10 : part * 10 + 10]}
        write_font(tmp_path / f"tiny-{part}-400-normal.woff2", glyphs, family="Web Hand")
        write_font(tmp_path / f"tiny-{part}-400-normal.woff", {char: strokes("wrong") for char in glyphs}, family="Web Hand")
    whole = tmp_path / "whole"
    whole.mkdir()
    write_font(whole / "whole.ttf", {char: strokes(char) for char in chars})
    parts = tmp_path / "parts"
    parts.mkdir()
    for file in tmp_path.glob("tiny-*"):
        file.rename(parts / file.name)
    web, one = draw(parts), draw(whole)
    assert web.forms == one.forms == chars  # the .woff next to each .woff2 was not read
    assert np.array_equal(web.bits, one.bits)


@pytest.mark.parametrize("suffix", [".ttf", ".woff", ".woff2", ".TTF"])
def test_formats_give_the_same_glyphs(tmp_path, suffix):
    glyphs = {char: strokes(char) for char in COMMON}
    write_font(tmp_path / f"a{suffix}", glyphs)
    plain = tmp_path / "plain"
    plain.mkdir()
    write_font(plain / "a.ttf", glyphs)
    (hand,), _ = hands.find_hands([tmp_path / f"a{suffix}"], manifest(tmp_path / "hands.yaml"))
    with ThreadPoolExecutor(1) as pool:
        drawn = hands.draw_hand(hand, list(COMMON), pool)
    assert np.array_equal(drawn.bits, draw(plain, list(COMMON)).bits)


def test_each_font_of_a_collection_is_a_hand(tmp_path):
    fonts = [write_font(tmp_path / f"{n}.ttf", {c: strokes(c, n) for c in COMMON}, family=f"Hand {n}") for n in range(2)]
    path = write_collection(tmp_path / "both.ttc", fonts)
    both, _ = hands.find_hands([path], manifest(tmp_path / "hands.yaml"))
    assert [hand.hand.name for hand in both] == ["Hand 0", "Hand 1"]
    with ThreadPoolExecutor(1) as pool:
        first, second = (hands.draw_hand(hand, list(COMMON), pool) for hand in both)
    assert len(first.forms) == len(second.forms) == len(COMMON)
    assert not np.array_equal(first.bits, second.bits)


def test_hands_are_named_by_the_manifest_or_by_their_name_table(tmp_path):
    fonts = tmp_path / "fonts"
    fonts.mkdir()
    for name, family in {"known-1.ttf": "A", "known-2.ttf": "B", "own.ttf": "My Writing", "bold.ttf": "C"}.items():
        write_font(fonts / name, {"永": strokes(name)}, family=family, licence="free\nfor all")
    (fonts / "versions.txt").write_text("@tiny/known 1.2\n")
    listed = manifest(tmp_path / "m.yaml", [entry("known", ["known-*.ttf"], "held_out", "@tiny/known@1.2")], ["bold.ttf"])
    (known, unknown), excluded = hands.find_hands([fonts], listed)
    assert known.hand == hands.Hand("known", "known", "regular", "held_out", "@tiny/known 1.2", "OFL-1.1")
    assert [face.path.name for face in known.faces] == ["known-1.ttf", "known-2.ttf"]
    assert unknown.hand == hands.Hand("My Writing", "My Writing", "unknown", "train", "Version 1.0", "free for all")
    assert [path.name for path in excluded] == ["bold.ttf"]


def test_errors_name_the_file_and_the_remedy(tmp_path):
    listed = manifest(tmp_path / "m.yaml")
    with pytest.raises(FileNotFoundError, match="nowhere; tools/fetch_fonts.sh"):
        hands.find_hands([tmp_path / "nowhere"], listed)
    with pytest.raises(FileNotFoundError, match="no font"):
        hands.find_hands([tmp_path], listed)
    (tmp_path / "corrupt.ttf").write_bytes(b"no font at all")
    with pytest.raises(ValueError, match=r"corrupt.ttf cannot be read as a font .*; remove it"):
        hands.find_hands([tmp_path], listed)


def test_iou_separates_a_copy_from_another_hand():
    chars = [chr(0x4E00 + number) for number in range(30)]
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (30, hands.IMG_SIZE**2 // 8), dtype=np.uint8)
    one = hands.Drawn(chars, bits, {}, None)
    copy = hands.Drawn(chars[::-1], bits[::-1], {}, None)
    other = hands.Drawn(chars, np.roll(bits, 1, axis=0), {}, None)
    few = hands.Drawn(chars[:10], bits[:10], {}, None)
    assert hands.median_iou(one, copy) == 1
    assert hands.median_iou(one, other) == pytest.approx(1 / 3, abs=0.02)
    assert np.isnan(hands.median_iou(one, few))
    matrix = hands.iou_matrix([one, copy, other])
    assert np.array_equal(matrix, matrix.T) and matrix[1, 0] == 1


# --- lists of characters and medians ------------------------------------------------------------------------------------


def test_a_manifest_names_its_lists_of_characters(tmp_path):
    plain = hands.wanted_forms(manifest(tmp_path / "a.yaml"))
    both = hands.wanted_forms(manifest(tmp_path / "b.yaml", characters=["gb2312", "big5"]))
    assert plain == hands.owners(hands.gb2312_level1()) and plain.items() <= both.items()
    added = set(hands.big5_level1()) - plain.keys()
    assert added and all(both[char] == char for char in added)
    with pytest.raises(ValueError, match="no list of characters 'gb2321', did you mean 'gb2312'"):
        hands.wanted_forms(manifest(tmp_path / "c.yaml", characters=["gb2321"]))


def test_medians_are_read_for_the_wanted_forms_only(tmp_path):
    folder = tmp_path / "node_modules" / "strokes"
    folder.mkdir(parents=True)
    for char in "永春":
        content = {"strokes": ["M 0 0 Z"], "medians": [[[0, 0], [10, 20], [30, -5]], [[7, 7]]]}
        (folder / f"{char}.json").write_text(json.dumps(content), encoding="utf-8")
    named = manifest(tmp_path / "a.yaml", medians={"package": "strokes@1.0.0", "licence": "free"})
    medians = hands.read_medians([tmp_path], named, "永山")
    assert list(medians) == [ord("永")] and len(medians[ord("永")]) == 1  # a stroke of one point is no stroke
    assert medians[ord("永")][0].tolist() == [[0, 0], [10, 20], [30, -5]]
    assert hands.read_medians([tmp_path], manifest(tmp_path / "b.yaml"), "永") == {}
    with pytest.raises(FileNotFoundError, match="no package strokes in"):
        hands.read_medians([tmp_path / "elsewhere"], named, "永")
