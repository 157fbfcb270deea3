import io
import json
import os
import re
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import restore
from restoration import pipeline
from restoration.pipeline import WEIGHTS, Restorer
from tests.pictures import character, network, tiny_checkpoint

SETTINGS = {"img_size": 64, "in_chans": 2}


@pytest.fixture
def stub(monkeypatch):
    """restore.py with a network that returns its input."""
    monkeypatch.setattr(restore, "load_restorer", lambda *_: Restorer(network(lambda x: x[:, 0]), SETTINGS))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three good pictures, a corrupt one, and a text file."""
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(character(50, 50)).save(folder / "一.png")
    Image.fromarray(255 - character(40, 60)).save(folder / "b.jpg", quality=95)
    Image.fromarray(character(70, 30)).convert("RGB").save(folder / "c.webp", lossless=True)
    (folder / "corrupt.png").write_bytes(b"no picture")
    (folder / "note.txt").write_text("no picture either")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_a_picture_is_restored_to_a_file_or_into_a_folder(stub, tmp_path):
    Image.fromarray(character(50, 50)).save(tmp_path / "a.png")
    assert restore.main([str(tmp_path / "a.png"), str(tmp_path / "new" / "b.png"), "--compare"]) == 0
    assert Image.open(tmp_path / "new" / "b.png").size == (50, 50)
    assert contents(tmp_path / "new").keys() == {"b.png", "b_compare.png"}
    width, height = Image.open(tmp_path / "new" / "b_compare.png").size
    assert width >= 150 and height == 50
    assert restore.main([str(tmp_path / "a.png"), str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "a.png").is_file()


def test_default_outputs_are_next_to_the_input_and_keep_its_tree(stub, folder, tmp_path, refused, monkeypatch):
    (folder / "corrupt.png").unlink()
    (folder / "deep" / "er").mkdir(parents=True)
    Image.fromarray(character(50, 50)).save(folder / "deep" / "er" / "d.png")
    assert restore.main([str(folder)]) == 0
    made = {str(path.relative_to(tmp_path)) for path in (tmp_path / "in_restored").rglob("*.png")}
    assert made == {"in_restored/一.png", "in_restored/b.png", "in_restored/c.png", "in_restored/deep/er/d.png"}
    shutil.rmtree(tmp_path / "in_restored")
    monkeypatch.chdir(folder)
    assert (
        restore.main(["."]) == 0 and {str(path.relative_to(tmp_path)) for path in (tmp_path / "in_restored").rglob("*.png")} == made
    )
    assert restore.main([str(folder / "b.jpg")]) == 0
    assert Image.open(folder / "b_restored.png").size == (60, 40)
    refused("is inside the input folder", folder, folder / "out")


def test_style_threshold_confidence_and_json(stub, tmp_path, capsys):
    Image.fromarray(character(50, 50)).save(tmp_path / "a.png")
    flags = ["--style", "ink", "--threshold", "--confidence", "--json"]
    assert restore.main([str(tmp_path / "a.png"), str(tmp_path / "new" / "b.png"), *flags]) == 0
    assert contents(tmp_path / "new").keys() == {"b.png", "b_confidence.png"}
    restored = np.asarray(Image.open(tmp_path / "new" / "b.png"))
    assert set(np.unique(restored)) == {0, 255} and restored[0, 0] == 255
    info = json.loads(capsys.readouterr().out)
    assert info["input"].endswith("a.png") and info["polarity"] == "bright" and info["kept"] > 0.5


def test_a_picture_without_strokes_keeps_its_tone_and_gets_a_note(stub, tmp_path, capsys):
    for name, tone, polarity in (("black", 0, "bright"), ("white", 255, "dark")):
        Image.new("L", (60, 60), tone).save(tmp_path / f"{name}.png")
        assert restore.main([str(tmp_path / f"{name}.png"), "--json"]) == 0
        printed = capsys.readouterr()
        assert f"{name}.png: has no strokes, it is of one tone" in printed.err and json.loads(printed.out)["polarity"] == polarity


def test_a_doubtful_polarity_gets_a_note(monkeypatch, tmp_path, capsys):
    """The network finds strokes only where the pixels speak against."""
    Image.fromarray(character(50, 50)).save(tmp_path / "a.png")
    monkeypatch.setattr(pipeline, "CERTAIN", 1.0)
    finds = network(lambda x: np.where(x[:, 0].mean((1, 2), keepdims=True) > 0.5, x[:, 0], 0))
    monkeypatch.setattr(restore, "load_restorer", lambda *_: Restorer(finds, SETTINGS))
    assert restore.main([str(tmp_path / "a.png")]) == 0
    assert "a.png: the polarity is in doubt; --polarity bright if this is wrong" in capsys.readouterr().err


def test_box_polarity_and_rotation_are_corrected_by_hand(stub, refused, folder, tmp_path, capsys):
    Image.fromarray(character(90, 120)).save(tmp_path / "a.png")
    command = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--json", "--verbose", "--overwrite"]
    assert restore.main([*command, "--box", "10,20,50,40", "--polarity", "dark", "--rotate", "-4"]) == 0
    printed = capsys.readouterr()
    info = json.loads(printed.out)
    assert (info["box"], info["rotation"], info["polarity"], info["polarity_certainty"]) == ([10, 15, 50, 50], -4, "dark", 1)
    assert "dark strokes, character in 50×50 pixels at (10, 15), turned by -4°" in printed.err
    assert restore.main([*command, "--rotate", "auto"]) == 0
    assert json.loads(capsys.readouterr().out)["rotation"] == 0
    for arguments in (["--box", "1,2,3"], ["--box", "0,0,0,9"], ["--box", "a,b,c,d"], ["--rotate", "left"], ["--rotate", "nan"]):
        with pytest.raises(SystemExit):
            restore.main([*command, *arguments])
    capsys.readouterr()
    refused("the box is outside the picture", *command, "--box", "500,0,9,9")
    refused("--box is for one picture", folder, tmp_path / "out", "--box", "0,0,9,9")


def test_a_corrupt_picture_in_a_folder_is_reported_and_skipped(stub, folder, tmp_path, capsys):
    before = contents(folder)
    assert restore.main([str(folder), str(tmp_path / "out")]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "corrupt.png" in errors[0]
    assert contents(tmp_path / "out").keys() == {"一.png", "b.png", "c.png"}
    assert Image.open(tmp_path / "out" / "b.png").size == (60, 40)
    assert contents(folder) == before


@pytest.fixture
def refused(capsys):
    """Runs restore.py with arguments that must fail with status 1 and one line that matches `message`."""

    def run(message: str, *arguments: str | Path) -> None:
        assert restore.main([str(argument) for argument in arguments]) == 1
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1 and re.search(message, line), line

    return run


def test_existing_outputs_are_refused_before_the_network_is_loaded(refused, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(restore, "load_restorer", lambda *_: pytest.fail("network loaded before the outputs were checked"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "c_compare.png").write_bytes(b"old")
    refused(r"c_compare\.png: exists already; pass --overwrite", folder, out, "--compare")
    (out / "b.png").write_bytes(b"old")
    refused(r"b\.png: exists already, and 1 more; pass --overwrite", folder, out, "--compare")
    assert contents(out) == {"b.png": b"old", "c_compare.png": b"old"}


def test_overwrite_replaces_existing_outputs(stub, folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "c.png").write_bytes(b"old")
    (folder / "corrupt.png").unlink()
    assert restore.main([str(folder), str(out), "--overwrite"]) == 0
    assert Image.open(out / "c.png").size == (30, 70)


def test_an_input_is_never_overwritten(stub, refused, folder, tmp_path):
    before = contents(folder)
    (tmp_path / "link.png").symlink_to(folder / "一.png")
    for target in (folder / "一.png", folder, tmp_path / "link.png"):
        refused("is an input", folder / "一.png", target, "--overwrite")
    refused("is an input", folder, folder, "--overwrite")
    assert contents(folder) == before


def test_outputs_shared_by_two_inputs_are_refused(stub, refused, folder, tmp_path):
    Image.fromarray(character(50, 50)).save(folder / "b.png")
    refused(r"output of both .*b\.jpg and .*b\.png", folder, tmp_path / "out")
    (folder / "b.png").rename(folder / "c_compare.png")
    (folder / "corrupt.png").unlink()
    assert restore.main([str(folder), str(tmp_path / "out")]) == 0
    refused(r"output of both .*c\.webp and ", folder, tmp_path / "other", "--compare")
    assert not (tmp_path / "other").exists()


def test_a_failed_write_leaves_no_file(stub, tmp_path, monkeypatch, capsys):
    Image.fromarray(character(50, 50)).save(tmp_path / "a.png")

    def save_half(self, file, format, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", save_half)
    assert restore.main([str(tmp_path / "a.png"), str(tmp_path / "out" / "a.png")]) == 1
    assert "disk full" in capsys.readouterr().err
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png", "out.png"], r"missing\.png: no such file or folder"),
        (["a.png", "out.jpg"], r"out\.jpg: the output format is PNG"),
        (["empty", "out"], r"empty: contains no pictures"),
        (["in", "a.png"], r"a\.png: a file"),
        (["a.png", "out.png", "--checkpoint", "none.pth"], r"none\.pth: no such file"),
        (["a.png", "out.png", "--checkpoint", "a.png"], r"a\.png"),
    ],
)
def test_errors_are_one_line(refused, folder, tmp_path, monkeypatch, arguments, message):
    Image.fromarray(character(20, 20)).save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    refused(message, *arguments)
    assert not (tmp_path / "out.png").exists()


def test_the_characters_standard_glyph_is_the_guide(monkeypatch, folder, tmp_path, capsys, refused):
    seen = []

    def predict(x: np.ndarray) -> np.ndarray:
        seen.extend(x[:, 1].any((1, 2)).tolist())
        return x[:, 0]

    restorer = Restorer(network(predict), SETTINGS)
    monkeypatch.setattr(restore, "load_restorer", lambda *_: restorer)
    (folder / "corrupt.png").unlink()
    assert restore.main([str(folder), str(tmp_path / "1"), "--char_from_name", "--json"]) == 0
    infos = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [info["guide"] for info in infos] == [None, None, "一"] and seen == [False, False, True]
    assert restore.main([str(folder / "b.jpg"), str(tmp_path / "2.png"), "--char", "龘"]) == 0
    assert "no standard glyph for 龘: restored without a guide" in capsys.readouterr().err and not seen[-1]
    monkeypatch.setattr(restorer, "takes_guide", False)
    refused("takes no guide", folder / "b.jpg", tmp_path / "3.png", "--char", "一")
    with pytest.raises(SystemExit):
        restore.main([str(folder), "--char", "一二"])
    assert "must be one character, not '一二'" in capsys.readouterr().err


@pytest.fixture
def drawing(monkeypatch) -> list[int]:
    """restore.py with a network that draws: between picture and state. Returns a list of the pictures in each of its passes."""
    passes = []

    def predict(x: np.ndarray) -> np.ndarray:
        passes.append(len(x))
        picture, guide, state, t = x.transpose(1, 0, 2, 3)
        return 2 * picture - 1 + guide + 6 * t * state

    restorer = Restorer(predict, {"img_size": 64, "in_chans": 4}, weights="abc")
    monkeypatch.setattr(restore, "load_restorer", lambda *_: restorer)
    return passes


def test_steps_hypotheses_and_seed(drawing, tmp_path):
    Image.fromarray(character(64, 64) // 2 + 60).save(tmp_path / "a.png")

    def run(name: str, *flags: str) -> dict[str, bytes]:
        drawing.clear()
        assert restore.main([str(tmp_path / "a.png"), str(tmp_path / name / "a.png"), "--polarity", "bright", *flags]) == 0
        return contents(tmp_path / name)

    single = run("default")
    assert single.keys() == {"a.png"} and sum(drawing) == 2 and single == run("default again")
    mean = run("mean", "--steps", "1")["a.png"]
    assert sum(drawing) == 1 and mean != single["a.png"]
    three, again = (run(name, "--hypotheses", "3") for name in ("three", "again"))
    assert three.keys() == {"a.png", "a_1.png", "a_2.png", "a_3.png"} and three == again
    assert three["a.png"] == three["a_1.png"] == single["a.png"] and len({mean, *three.values()}) == 4
    others = run("other_seed", "--hypotheses", "3", "--seed", "1")
    assert [others[name] == three[name] for name in sorted(three)] == [True, True, False, False]


def test_a_picture_says_what_it_is(drawing, tmp_path):
    Image.fromarray(character(64, 64)).save(tmp_path / "a.png")
    flags = ["--char", "一", "--confidence", "--compare", "--hypotheses", "2", "--guidance", "3", "--seed", "5"]
    assert restore.main([str(tmp_path / "a.png"), str(tmp_path / "out" / "a.png"), *flags]) == 0
    assert sum(drawing) == 6  # a pass with and one without the guide, then as many for each hypothesis
    for path in (tmp_path / "out").iterdir():
        text = Image.open(path).text
        assert text["Description"].startswith("A reconstruction")
        seed = 5 if path.name == "a_2.png" else None
        made = {"weights": "abc", "steps": 2, "seed": seed, "guidance": 3, "guide": "一"}
        assert json.loads(text["restoration"]) == made, path.name


def test_a_network_that_does_not_draw_has_no_hypotheses(stub, refused, folder, tmp_path):
    refused("this network gives its mean only; drop --hypotheses", folder, tmp_path / "out", "--hypotheses", "2")
    refused("--steps 1 gives the mean", folder, tmp_path / "out", "--hypotheses", "2", "--steps", "1")
    refused("--seed draws other hypotheses; pass --hypotheses", folder, tmp_path / "out", "--seed", "1")


def test_a_specimen_in_any_hand_is_the_guide(drawing, refused, tmp_path):
    for name, x in (("a", character(64, 64) // 2), ("specimen", 255 - character(90, 120))):
        Image.fromarray(x).save(tmp_path / f"{name}.png")
    command = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--overwrite", "--guide", str(tmp_path / "specimen.png")]
    assert restore.main(command) == 0
    made = json.loads(Image.open(tmp_path / "b.png").text["restoration"])
    assert made["guide"].endswith("specimen.png") and sum(drawing) == 3
    refused("none.png: no such file", *command[:-1], tmp_path / "none.png")


def test_place_resolution_size_and_transparency_of_the_output(stub, tmp_path):
    x = np.zeros((200, 300), np.uint8)
    x[60:110, 200:250] = character(50, 50)
    Image.fromarray(255 - x).save(tmp_path / "a.png", dpi=(300, 300))
    assert restore.main([str(tmp_path / "a.png"), str(tmp_path / "b.png")]) == 0
    in_place = Image.open(tmp_path / "b.png")
    assert in_place.size == (300, 200) and in_place.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert np.abs(np.asarray(in_place).astype(int) - (255 - x)).mean() < 2
    arguments = ["--size", "96", "--transparent", "--style", "rubbing", "--overwrite"]
    assert restore.main([str(tmp_path / "a.png"), str(tmp_path / "b.png"), *arguments]) == 0
    alone = Image.open(tmp_path / "b.png")
    assert alone.mode == "LA" and alone.size == (96, 96)
    tone, opaque = (np.asarray(band) for band in alone.split())
    assert (tone == 255).all() and opaque[48, 48] > 240 and opaque[0, 0] < 20 and 0.1 < (opaque > 128).mean() < 0.5


def test_standard_input_and_output(tmp_path):
    """The script itself: standard output holds the picture and nothing else."""
    weights = tiny_checkpoint(tmp_path / "best.pth")
    Image.fromarray(character(40, 60)).save(tmp_path / "a.png")
    command = [sys.executable, restore.__file__, "-", "--checkpoint", weights, "--runtime", "torch", "--json", "--verbose"]
    done = subprocess.run(command, input=(tmp_path / "a.png").read_bytes(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert Image.open(io.BytesIO(done.stdout)).size == (60, 40)
    assert done.stdout.endswith(b"IEND\xaeB`\x82")
    line, verbose = done.stderr.decode().splitlines()
    assert json.loads(line)["polarity"] == "bright" and verbose.startswith("-: bright strokes, character in 60")
    failed = subprocess.run(command, input=b"no picture", capture_output=True)
    assert failed.returncode == 1 and failed.stdout == b"" and b"standard input: not a picture" in failed.stderr


def test_standard_output_refuses_folders_and_extra_outputs(stub, refused, folder):
    refused("standard output takes one picture", folder / "b.jpg", "-", "--compare")
    refused("standard output takes one picture", "-", "--confidence")
    refused("a folder cannot be written to standard output", folder, "-")
    refused("pass a .png file", "-", folder)


def test_batches_are_limited_in_pictures_and_pixels(monkeypatch, folder):
    jobs = [restore.Job(folder / name, folder) for name in ("一.png", "b.jpg", "c.webp", "corrupt.png")]
    assert [len(group) for group in restore.batches(jobs)] == [4]
    monkeypatch.setattr(restore, "PIXELS", 5000)  # of 2500, 2400 and 2100; the corrupt one counts as 0
    assert [len(group) for group in restore.batches(jobs)] == [2, 2]
    monkeypatch.setattr(restore, "BATCH", 1)
    assert [len(group) for group in restore.batches(jobs)] == [1] * 4


def test_at_most_three_batches_are_in_memory(monkeypatch, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(60):
        Image.fromarray(character(20, 20)).save(tmp_path / "in" / f"{number}.png")
    monkeypatch.setattr(restore, "BATCH", 4)
    alive, most = weakref.WeakSet(), 0

    class Counting(Restorer):
        def prepare(self, *arguments):
            nonlocal most
            prepared = super().prepare(*arguments)
            alive.add(Alive(prepared))
            most = max(most, len(alive))
            return prepared

    class Alive:
        def __init__(self, prepared):
            weakref.finalize(prepared.x, alive.discard, self)

        __hash__ = object.__hash__

    monkeypatch.setattr(restore, "load_restorer", lambda *_: Counting(lambda x: x[:, 0], SETTINGS))
    assert restore.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert len(contents(tmp_path / "out")) == 60 and most <= 3 * 4


def test_the_script_with_a_checkpoint(folder, tmp_path):
    """The corrupt picture is reported and makes the status 1; the others are restored."""
    weights = tiny_checkpoint(tmp_path / "best.pth")
    command = [sys.executable, restore.__file__, folder, tmp_path / "out", "--checkpoint", weights, "--runtime", "torch"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(r"^error: .*corrupt\.png: not a picture", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr and "3 of 4 pictures restored" in done.stdout
    assert Image.open(tmp_path / "out" / "c.png").size == (30, 70)


def test_the_second_start_imports_no_torch_scipy_or_skimage(folder, tmp_path):
    """The bundled weights are exported on first use; from then on, the start is fast."""
    assert WEIGHTS.is_file()
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    script = (
        "import sys, restore; status = restore.main(sys.argv[1:]); "
        "print('loaded', *{'torch', 'scipy', 'skimage'} & sys.modules.keys(), file=sys.stderr); sys.exit(status)"
    )
    for number in (1, 2):
        flags = ["--char_from_name", "--confidence", "--compare", "--json"]
        command = [sys.executable, "-c", script, str(folder / "一.png"), str(tmp_path / f"{number}.png"), *flags]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(restore.__file__).parent)
        assert done.returncode == 0, done.stderr
        loaded = done.stderr.splitlines()[-1].split()[1:]
        assert "torch" in loaded if number == 1 else not loaded
    assert contents(tmp_path)["1.png"] == contents(tmp_path)["2.png"]
