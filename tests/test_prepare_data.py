import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare_data
from datasets.degradation import OPERATIONS, preset_names
from datasets.hands import big5_level1, gb2312_level1, owners
from datasets.pack import open_pack
from datasets.split import forms, group_of, side_of
from tests.test_hands import entry, manifest
from tests.tiny_fonts import BOX, strokes, write_font

ROOT = Path(__file__).resolve().parent.parent
CHARS = gb2312_level1()[:90]


def run(*args):
    """prepare_data.py with these arguments, in this process."""
    prepare_data.main([str(arg) for arg in args])


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    """Fonts of two training hands (one a web font), a stranger, a guide, a near copy, and a user's own."""
    folder = tmp_path_factory.mktemp("fonts")
    traditional = [form for char in CHARS for form in forms(char)]
    for part in range(3):
        write_font(folder / f"brush-{part}.woff2", {char: strokes(char, 1) for char in CHARS[part::3]})
    write_font(folder / "pen.ttf", {char: strokes(char, 2) for char in traditional} | {"座": BOX})
    write_font(folder / "stranger.ttf", {char: strokes(char, 3) for char in CHARS[:60]})
    write_font(folder / "kai.ttf", {char: strokes(char, 4) for char in [*traditional, "籲", "A"]})
    write_font(folder / "copy.ttf", {char: strokes(char, 1) for char in CHARS}, family="Brush Again")
    write_font(folder / "own.otf", {char: strokes(char, 5) for char in CHARS}, family="My Hand", licence="mine")
    write_font(folder / "latin.ttf", {char: strokes(char, 6) for char in "ABC"}, family="Latin Only")
    write_font(folder / "pen-bold.ttf", {char: strokes(char, 7) for char in CHARS})
    hands = [
        entry("brush", ["brush-*.woff2"]),
        entry("pen", ["pen.ttf"]),
        entry("stranger", ["stranger.ttf"], "held_out"),
    ]
    manifest(folder / "hands.yaml", [*hands, entry("kai", ["kai.ttf"], "guide")], ["*-bold.ttf"])
    return folder


@pytest.fixture(scope="module")
def built(fonts, tmp_path_factory):
    """(the path of the pack, what building it printed)."""
    out = tmp_path_factory.mktemp("built") / "tiny.pack"
    with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.redirect_stderr(io.StringIO()) as bar:
        run("build", "--fonts", fonts, "--out", out, "--manifest", fonts / "hands.yaml", "--jobs", 1)
    assert "100%" in bar.getvalue()
    return out, told.getvalue()


def test_build_keeps_what_is_a_hand_and_tells_of_the_rest(built):
    pack, told = open_pack(built[0]), built[1]
    assert [(hand.name, hand.role) for hand in pack.hands] == [
        ("brush", "train"),
        ("pen", "train"),
        ("stranger", "held_out"),
        ("kai", "guide"),
        ("My Hand", "train"),
    ]
    assert pack.hands[4].licence == "mine"
    assert "Brush Again is left out: a near copy of brush (median IoU 1.00)" in told
    assert "Latin Only is left out: it has none of the characters" in told
    assert "1 font files passed over" in told
    assert "left out: 1 empty box" in told and pack.meta["left_out"]["pen"] == {"empty box": 1}
    assert "4 families besides the guide" in told
    assert set(pack.meta["versions"]) == {"fonttools", "freetype", "opencc", "pillow"}
    assert set(pack.meta["fonts"]) == {hand.name for hand in pack.hands}


def test_each_glyph_is_labelled(built):
    pack = open_pack(built[0])
    for character, form, group in zip(pack.character, pack.form, pack.group, strict=True):
        assert chr(form) in forms(chr(character)) and chr(group) == group_of(chr(form)) == group_of(chr(character))
    guide = {chr(form) for form in pack.form[pack.hand == 3]}
    assert guide == {form for char in CHARS for form in forms(char)} | {"籲"}  # Big5's in the guide alone
    assert (pack.glyphs(range(len(pack))).flatten(1).float().mean(1) > 0.005).all()


def test_build_gives_the_same_bytes_again(built, fonts, tmp_path):
    prepare_data.build([fonts], tmp_path / "again.pack", fonts / "hands.yaml", jobs=2)
    assert (tmp_path / "again.pack").read_bytes() == built[0].read_bytes()


def test_build_refuses(built, fonts, tmp_path):
    before = built[0].read_bytes()
    with pytest.raises(FileExistsError, match=r"tiny\.pack exists already; name another, or give --overwrite"):
        run("build", "--fonts", fonts, "--out", built[0])
    assert built[0].read_bytes() == before
    write_font(tmp_path / "latin.ttf", {"A": strokes("A")})
    with pytest.raises(ValueError, match="has a Han character that is wanted"):
        prepare_data.build([tmp_path], tmp_path / "a.pack", fonts / "hands.yaml", jobs=1)
    assert not (tmp_path / "a.pack").exists()


def test_describe(built, capsys):
    run("describe", built[0])
    told = json.loads(capsys.readouterr().out)
    assert told["side"] == 224 and told["characters"] == 90 and told["held_out_hands"] == ["stranger"]
    assert told["hands"] == {"brush": 90, "pen": told["hands"]["pen"], "stranger": 60, "My Hand": 90}
    assert told["glyphs"] == sum(told["hands"].values()) and told["guides"] == {"kai": told["guide_glyphs"]}
    sides = [side_of(group_of(char)) for char in CHARS]
    assert told["split"] == {side: sides.count(side) for side in ("train", "val", "test")}
    assert told["checksum"] == open_pack(built[0]).checksum


def test_an_error_is_one_line_and_status_1(tmp_path):
    (tmp_path / "bad.pack").write_bytes(b"no pack")
    command = [sys.executable, "prepare_data.py", "describe", str(tmp_path / "bad.pack")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("error: ") and "bad.pack is damaged" in done.stderr and len(done.stderr.splitlines()) == 1
    with pytest.raises(SystemExit) as stopped:
        run("pairs", "a.pack", "--split", "everything", "--out", tmp_path)
    assert stopped.value.code == 2


def test_preview_draws_clean_above_damaged(built, tmp_path):
    pack = open_pack(built[0])
    picture = np.asarray(prepare_data.sheet(pack, CHARS[0] + CHARS[70] + "A", 32, "mixed", seed=0))
    assert picture.shape == (2 * 32 * 5, 128 + 3 * 32)
    cell = {
        (row, column): picture[row * 32 : row * 32 + 32, 128 + column * 32 :][:, :32] for row in range(10) for column in range(3)
    }
    assert all(cell[row, 0].max() > 100 for row in range(10))
    assert all(np.abs(cell[row, 0].astype(int) - cell[row + 1, 0]).mean() > 1 for row in range(0, 10, 2))
    assert cell[4, 1].max() == 0 < cell[6, 1].max()  # the stranger lacks the second character
    assert all(cell[row, 2].max() == 0 for row in range(10))  # and all lack the third
    assert prepare_data.sheet(pack, "啊", 32, None, seed=0).size == (128 + 32, 32 * 5)


def test_preview_as_a_command(built, tmp_path):
    out = tmp_path / "sheet.png"
    run("preview", built[0], "--out", out, "--characters", CHARS[0], "--side", 32)
    assert Image.open(out).mode == "L"
    with pytest.raises(FileExistsError, match="--overwrite"):
        run("preview", built[0], "--out", out)
    run("preview", built[0], "--out", out, "--side", 32, "--overwrite")
    assert Image.open(out).width > 300


@pytest.mark.parametrize(("show", "rows"), [("operations", len(OPERATIONS)), ("presets", 3 * len(preset_names()))])
def test_preview_of_the_damage(built, tmp_path, show, rows):
    out = tmp_path / "sheet.png"
    run("preview", built[0], "--out", out, "--characters", "".join(CHARS[:2]), "--side", 32, "--show", show)
    picture = np.asarray(Image.open(out))
    assert picture.shape == (32 * (1 + rows), 128 + 2 * 32)
    cells = picture[:, 128:].reshape(1 + rows, 32, 64)
    if show == "operations":
        assert sum((cell != cells[0]).any() for cell in cells[1:]) > rows - 5  # some change little at this side


def test_pairs(built, tmp_path):
    out = tmp_path / "pairs"
    run("pairs", built[0], "--split", "train", "--count", 20, "--seed", 3, "--out", out, "--side", 64)
    names = sorted(file.name for file in (out / "clean").iterdir())
    assert len(names) == 20 and names == sorted(file.name for file in (out / "degraded").iterdir())
    hands = {"brush", "pen", "stranger", "My-Hand"}
    for name in names:
        char, hand = name.removesuffix(".png").split("_")
        assert side_of(group_of(char)) == "train" and hand in hands
        clean, damaged = (Image.open(out / part / name) for part in ("clean", "degraded"))
        assert clean.mode == damaged.mode == "L" and clean.size == damaged.size == (64, 64)
        assert np.asarray(clean).mean() < 128 < np.asarray(clean).max()  # strokes bright


def test_pairs_depend_on_the_seed_alone(built, tmp_path):
    pack = open_pack(built[0])

    def made(name, seed, count=6):
        prepare_data.pairs(pack, tmp_path / name, "train", count, seed, "seen", "mixed", 32, overwrite=False)
        return {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in (tmp_path / name).rglob("*.png")}

    first = made("a", 1)
    assert first == made("b", 1)
    assert first.keys() != made("c", 2).keys()
    assert first.items() <= made("d", 1, count=9).items()


def test_pairs_refuse(built, tmp_path):
    pack = open_pack(built[0])
    keep = tmp_path / "note.txt"
    keep.write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        prepare_data.pairs(pack, tmp_path, "train", 2, 0, "all", "mixed", 32, overwrite=False)
    prepare_data.pairs(pack, tmp_path, "train", 4, 0, "all", "mixed", 32, overwrite=True)
    prepare_data.pairs(pack, tmp_path, "train", 2, 1, "all", "mixed", 32, overwrite=True)
    assert len(list((tmp_path / "clean").iterdir())) == 2 and keep.read_text() == "mine"
    for count in (0, 100_000):
        with pytest.raises(ValueError, match=r"--count .* has 1 to \d+ pairs"):
            prepare_data.pairs(pack, tmp_path / "x", "test", count, 0, "unseen", "mixed", 32, overwrite=False)
    assert not (tmp_path / "x").exists()


# --- the set that the repository carries ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def carried():
    return open_pack(ROOT / "data" / "zi.pack")


def test_the_carried_set_is_what_its_readme_says(carried):
    assert prepare_data.table(carried) in (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert carried.checksum in (ROOT / "data" / "README.md").read_text(encoding="utf-8")


def test_the_carried_set_is_large_enough(carried):
    told = prepare_data.describe(carried)
    assert told["characters"] == 3755 and told["glyphs"] > 12 * 3751 and told["families"] >= 12
    assert told["split"] == {"train": 3196, "val": 187, "test": 372}
    families = {role: {hand.family for hand in carried.hands if hand.role == role} for role in ("train", "held_out", "guide")}
    assert len(families["held_out"]) == 2
    assert not families["train"] & families["held_out"] and not families["guide"] & (families["train"] | families["held_out"])
    assert all(hand.licence and any(digit.isdigit() for digit in hand.source) for hand in carried.hands)


def test_the_carried_guide_has_every_form(carried):
    guide = np.array([hand.role == "guide" for hand in carried.hands])[carried.hand]
    wanted = owners(gb2312_level1()).keys() | owners(big5_level1()).keys()
    lacking = wanted - set(map(chr, carried.form[guide]))
    assert len(lacking) < 20 and not lacking & owners(gb2312_level1()).keys(), lacking


def test_the_carried_labels_agree_with_the_split(carried):
    pairs = set(zip(carried.form.tolist(), carried.group.tolist(), strict=True))
    assert [chr(form) for form, group in pairs if group_of(chr(form)) != chr(group)] == []


def test_the_carried_glyphs_keep_their_margin(carried):
    glyphs = carried.glyphs(range(0, len(carried), 97))[:, 0]
    assert glyphs.flatten(1).any(1).all()
    edge = [glyphs[:, :6].any(), glyphs[:, -6:].any(), glyphs[:, :, :6].any(), glyphs[:, :, -6:].any()]
    assert not any(edge)
