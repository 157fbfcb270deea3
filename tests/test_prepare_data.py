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
from datasets.split import forms, group_of, split_of
from tests.test_hands import entry, manifest
from tests.tiny_fonts import BOX, strokes, write_font

ROOT = Path(__file__).resolve().parent.parent
CHARS = gb2312_level1()[:90]


def run(*args) -> int:
    """prepare_data.py with these arguments, in this process; the exit status."""
    return prepare_data.main([str(arg) for arg in args])


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    """Fonts: two training hands (one a web font), a held-out hand, a guide, a near copy, and one that is not in the manifest."""
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
    """(path of the pack, printed report)."""
    out = tmp_path_factory.mktemp("built") / "tiny.pack"
    with contextlib.redirect_stdout(io.StringIO()) as report, contextlib.redirect_stderr(io.StringIO()) as bar:
        assert run("build", "--fonts", fonts, "--output", out, "--manifest", fonts / "hands.yaml", "--jobs", 1) == 0
    assert "100%" in bar.getvalue()
    return out, report.getvalue()


def test_build_keeps_the_hands_and_reports_what_it_leaves_out(built):
    pack, report = open_pack(built[0]), built[1]
    assert [(hand.name, hand.role) for hand in pack.hands] == [
        ("brush", "train"),
        ("pen", "train"),
        ("stranger", "held_out"),
        ("kai", "guide"),
        ("My Hand", "train"),
    ]
    assert pack.hands[4].licence == "mine"
    assert "Brush Again is left out: a near copy of brush (median IoU 1.00)" in report
    assert "Latin Only is left out: it has none of the characters" in report
    assert "1 font files excluded" in report
    assert "left out: 1 empty box" in report and pack.meta["left_out"]["pen"] == {"empty box": 1}
    assert "4 families besides the guide" in report
    assert set(pack.meta["versions"]) == {"fonttools", "freetype", "opencc", "pillow"}
    assert set(pack.meta["fonts"]) == {hand.name for hand in pack.hands}


def test_glyphs_have_their_labels(built):
    pack = open_pack(built[0])
    for character, form, group in zip(pack.character, pack.form, pack.group, strict=True):
        assert chr(form) in forms(chr(character)) and chr(group) == group_of(chr(form)) == group_of(chr(character))
    guide = {chr(form) for form in pack.form[pack.hand == 3]}
    assert guide == {form for char in CHARS for form in forms(char)} | {"籲"}  # Big5 in the guide only
    assert (pack.glyphs(range(len(pack))).flatten(1).float().mean(1) > 0.005).all()


def test_build_gives_the_same_bytes_again(built, fonts, tmp_path):
    prepare_data.build([fonts], tmp_path / "again.pack", fonts / "hands.yaml", jobs=2)
    assert (tmp_path / "again.pack").read_bytes() == built[0].read_bytes()


def test_build_refuses_existing_output_and_fonts_without_han_characters(built, fonts, tmp_path, capsys):
    before = built[0].read_bytes()
    assert run("build", "--fonts", fonts, "--output", built[0]) == 1
    assert "tiny.pack already exists; choose another, or pass --overwrite" in capsys.readouterr().err
    assert built[0].read_bytes() == before
    write_font(tmp_path / "latin.ttf", {"A": strokes("A")})
    with pytest.raises(ValueError, match="has a wanted Han character"):
        prepare_data.build([tmp_path], tmp_path / "a.pack", fonts / "hands.yaml", jobs=1)
    assert not (tmp_path / "a.pack").exists()


def test_describe(built, capsys):
    assert run("describe", "--data", built[0]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["img_size"] == 224 and content["characters"] == 90 and content["held_out_hands"] == ["stranger"]
    assert content["hands"] == {"brush": 90, "pen": content["hands"]["pen"], "stranger": 60, "My Hand": 90}
    assert content["glyphs"] == sum(content["hands"].values()) and content["guides"] == {"kai": content["guide_glyphs"]}
    splits = [split_of(group_of(char)) for char in CHARS]
    assert content["split"] == {name: splits.count(name) for name in ("train", "val", "test")}
    assert content["checksum"] == open_pack(built[0]).checksum
    assert run("describe", "--data", built[0], "--show", "hands") == 0
    assert capsys.readouterr().out.count("| held out |") == 1
    assert run("describe", "--data", built[0], "--show", "test") == 0
    held_out = capsys.readouterr().out.strip()
    assert {char for char in CHARS if split_of(group_of(char)) == "test"} <= set(held_out)
    assert all(split_of(group_of(char)) == "test" for char in held_out) and len(set(held_out)) == len(held_out)


def test_an_error_is_one_line_and_status_1(tmp_path):
    (tmp_path / "bad.pack").write_bytes(b"no pack")
    command = [sys.executable, "prepare_data.py", "describe", "--data", str(tmp_path / "bad.pack")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("error: ") and "bad.pack is corrupt" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pairs", "--output_dir", "out", "--split", "everything"], "invalid choice: 'everything'"),
        (["pairs", "--output_dir", "out", "--count", "0"], "argument --count: must be"),
        (["pairs", "--output_dir", "out", "--img_size", "7"], "argument --img_size: must be"),
        (["pairs", "--output_dir", "out", "--seed", "-1"], "argument --seed: must be"),
        (
            ["pairs", "--output_dir", "out", "--benchmark", "all", "--count", "9", "--split", "val"],
            "--split, --count do not go with",
        ),
        (["preview", "--output", "out.png", "--img_size", "0"], "argument --img_size: must be"),
        (["build", "--fonts", "fonts", "--output", "a.pack", "--jobs", "0"], "argument --jobs: must be"),
    ],
)
def test_wrong_flags_are_refused_with_status_2(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        prepare_data.parse_args(words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_preview_draws_clean_above_degraded(built, tmp_path):
    pack = open_pack(built[0])
    picture = np.asarray(prepare_data.sheet(pack, CHARS[0] + CHARS[70] + "A", 32, "mixed", seed=0))
    assert picture.shape == (2 * 32 * 5, 128 + 3 * 32)
    cell = {
        (row, column): picture[row * 32 : row * 32 + 32, 128 + column * 32 :][:, :32] for row in range(10) for column in range(3)
    }
    assert all(cell[row, 0].max() > 100 for row in range(10))
    assert all(np.abs(cell[row, 0].astype(int) - cell[row + 1, 0]).mean() > 1 for row in range(0, 10, 2))
    assert cell[4, 1].max() == 0 < cell[6, 1].max()  # "stranger" lacks the second character
    assert all(cell[row, 2].max() == 0 for row in range(10))  # all lack the third
    assert prepare_data.sheet(pack, "啊", 32, None, seed=0).size == (128 + 32, 32 * 5)


def test_preview_as_a_command(built, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert run("preview", "--data", built[0], "--output", out, "--characters", CHARS[0], "--img_size", 32) == 0
    assert Image.open(out).mode == "L"
    assert run("preview", "--data", built[0], "--output", out) == 1 and "--overwrite" in capsys.readouterr().err
    assert run("preview", "--data", built[0], "--output", out, "--img_size", 32, "--overwrite") == 0
    assert Image.open(out).width > 300


@pytest.mark.parametrize(("show", "rows"), [("operations", len(OPERATIONS) - 2), ("presets", 3 * len(preset_names()))])
def test_preview_of_the_damage(built, tmp_path, show, rows):
    out = tmp_path / "sheet.png"
    words = ["--characters", "".join(CHARS[:2]), "--img_size", 32, "--show", show]
    assert run("preview", "--data", built[0], "--output", out, *words) == 0
    picture = np.asarray(Image.open(out))
    assert picture.shape == (32 * (1 + rows), 128 + 2 * 32)
    cells = picture[:, 128:].reshape(1 + rows, 32, 64)
    if show == "operations":
        assert sum((cell != cells[0]).any() for cell in cells[1:]) > rows - 5  # some change little at this size


def test_pairs(built, tmp_path):
    out = tmp_path / "pairs"
    words = ["--split", "train", "--count", 20, "--seed", 3, "--img_size", 64]
    assert run("pairs", "--data", built[0], "--output_dir", out, *words) == 0
    names = sorted(file.name for file in (out / "clean").iterdir())
    assert len(names) == 20 and names == sorted(file.name for file in (out / "degraded").iterdir())
    hands = {"brush", "pen", "stranger", "My-Hand"}
    for name in names:
        char, hand = name.removesuffix(".png").split("_")
        assert split_of(group_of(char)) == "train" and hand in hands
        clean, degraded = (Image.open(out / part / name) for part in ("clean", "degraded"))
        assert clean.mode == degraded.mode == "L" and clean.size == degraded.size == (64, 64)
        assert np.asarray(clean).mean() < 128 < np.asarray(clean).max()  # strokes bright


def test_pairs_depend_on_the_seed_alone(built, tmp_path):
    pack = open_pack(built[0])

    def made(name, seed, count=6):
        prepare_data.pairs(pack, tmp_path / name, "train", count, seed, "seen", "mixed", 32, overwrite=False)
        return pictures(tmp_path / name)

    first = made("a", 1)
    assert first == made("b", 1)
    assert first.keys() != made("c", 2).keys()
    assert first.items() <= made("d", 1, count=9).items()


def test_pairs_refuse_a_folder_in_use_and_a_wrong_count(built, tmp_path):
    pack = open_pack(built[0])
    keep = tmp_path / "note.txt"
    keep.write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        prepare_data.pairs(pack, tmp_path, "train", 2, 0, "all", "mixed", 32, overwrite=False)
    prepare_data.pairs(pack, tmp_path, "train", 4, 0, "all", "mixed", 32, overwrite=True)
    prepare_data.pairs(pack, tmp_path, "train", 2, 1, "all", "mixed", 32, overwrite=True)
    assert len(list((tmp_path / "clean").iterdir())) == 2 and keep.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "degraded", "note.txt"]
    for count in (0, 100_000):
        with pytest.raises(ValueError, match=r"--count .* has 1 to \d+ pairs"):
            prepare_data.pairs(pack, tmp_path / "x", "test", count, 0, "unseen", "mixed", 32, overwrite=False)
    assert not (tmp_path / "x").exists()


def test_pairs_that_fail_or_are_interrupted_keep_the_old_ones(built, tmp_path, monkeypatch, capsys):
    flags = ["pairs", "--data", built[0], "--output_dir", tmp_path, "--split", "train", "--overwrite"]
    assert run(*flags, "--count", 3, "--img_size", 32) == 0
    (tmp_path / "benchmark.txt").write_text("some-name")
    (tmp_path / "clean" / "note.txt").write_text("mine")
    old, files = pictures(tmp_path), sorted(tmp_path.rglob("*"))
    for words in (["--img_size", 100], ["--preset", "mixd"], ["--count", 100_000], ["--data", tmp_path / "no.pack"]):
        assert run(*flags, *words) == 1 and "error: " in capsys.readouterr().err
        assert pictures(tmp_path) == old and sorted(tmp_path.rglob("*")) == files

    write_png, written = prepare_data.images.write_png, []

    def write_some(path, image):
        written.append(path)
        if len(written) > 3:
            raise KeyboardInterrupt
        write_png(path, image)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare_data.images, "write_png", write_some)
        run(*flags, "--count", 4, "--img_size", 32)
    assert len(written) == 4 and pictures(tmp_path) == old and sorted(tmp_path.rglob("*")) == files

    assert run(*flags, "--count", 4, "--img_size", 32) == 0
    assert len(pictures(tmp_path)) == 8 and not (tmp_path / "benchmark.txt").exists()
    assert (tmp_path / "clean" / "note.txt").read_text() == "mine"


# --- the pack of the repository -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled():
    return open_pack(ROOT / "data" / "zi.pack")


def test_the_bundled_pack_is_as_its_readme_says(bundled):
    assert prepare_data.table(bundled) in (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert bundled.checksum in (ROOT / "data" / "README.md").read_text(encoding="utf-8")


def test_the_bundled_pack_has_enough_characters_and_hands(bundled):
    content = prepare_data.describe(bundled)
    assert content["characters"] == 5440 and content["glyphs"] > 12 * 5440 and content["families"] >= 12
    assert content["split"] == {"train": 4621, "val": 269, "test": 550}
    families = {role: {hand.family for hand in bundled.hands if hand.role == role} for role in ("train", "held_out", "guide")}
    assert len(families["held_out"]) == 3
    assert not families["train"] & families["held_out"] and not families["guide"] & (families["train"] | families["held_out"])
    assert all(hand.licence and any(digit.isdigit() for digit in hand.source) for hand in bundled.hands)


def test_the_bundled_guide_has_every_form(bundled):
    guide = np.array([hand.role == "guide" for hand in bundled.hands])[bundled.hand]
    wanted = owners(gb2312_level1()).keys() | owners(big5_level1()).keys()
    lacking = wanted - set(map(chr, bundled.form[guide]))
    assert len(lacking) < 20 and not lacking & owners(gb2312_level1()).keys(), lacking


def test_the_bundled_groups_agree_with_opencc(bundled):
    pairs = set(zip(bundled.form.tolist(), bundled.group.tolist(), strict=True))
    assert [chr(form) for form, group in pairs if group_of(chr(form)) != chr(group)] == []


def test_the_bundled_glyphs_keep_their_margin(bundled):
    glyphs = bundled.glyphs(range(0, len(bundled), 97))[:, 0]
    assert glyphs.flatten(1).any(1).all()
    edge = [glyphs[:, :6].any(), glyphs[:, -6:].any(), glyphs[:, :, :6].any(), glyphs[:, :, -6:].any()]
    assert not any(edge)
