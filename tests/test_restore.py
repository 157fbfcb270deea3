import io
import json
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import restore
from restoring import WEIGHTS, Restorer
from tests.pictures import character, tiny_checkpoint

SIDE = 64


@pytest.fixture
def stubbed(monkeypatch):
    """A network with a guide that restores what it is given."""
    monkeypatch.setattr(restore, "load_restorer", lambda *_: Restorer(lambda x: x[:, 0], SIDE, in_chans=2))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three good pictures, a broken one, and a note."""
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(character(50, 50)).save(folder / "一.png")
    Image.fromarray(255 - character(40, 60)).save(folder / "b.jpg", quality=95)
    Image.fromarray(character(70, 30)).convert("RGB").save(folder / "c.webp", lossless=True)
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "note.txt").write_text("no picture either")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_a_picture(stubbed, tmp_path):
    Image.fromarray(character(50, 50)).save(tmp_path / "a.png")
    assert restore.main([str(tmp_path / "a.png"), str(tmp_path / "new" / "b.png"), "--compare"]) == 0
    assert Image.open(tmp_path / "new" / "b.png").size == (50, 50)
    assert contents(tmp_path / "new").keys() == {"b.png", "b_compare.png"}
    width, height = Image.open(tmp_path / "new" / "b_compare.png").size
    assert width >= 150 and height == 50
    assert restore.main([str(tmp_path / "a.png"), str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "a.png").is_file()


def test_outputs_lie_beside_the_input_and_keep_its_tree(stubbed, folder, tmp_path, refused):
    (folder / "broken.png").unlink()
    (folder / "deep" / "er").mkdir(parents=True)
    Image.fromarray(character(50, 50)).save(folder / "deep" / "er" / "d.png")
    assert restore.main([str(folder)]) == 0
    made = {str(path.relative_to(tmp_path)) for path in (tmp_path / "in_restored").rglob("*.png")}
    assert made == {"in_restored/一.png", "in_restored/b.png", "in_restored/c.png", "in_restored/deep/er/d.png"}
    assert restore.main([str(folder / "b.jpg")]) == 0
    assert Image.open(folder / "b_restored.png").size == (60, 40)
    refused("lies within the input folder", folder, folder / "out")


def test_what_a_picture_can_be_made_into(stubbed, tmp_path, capsys):
    Image.fromarray(character(50, 50)).save(tmp_path / "a.png")
    asked = ["--style", "ink", "--threshold", "--sureness", "--json"]
    assert restore.main([str(tmp_path / "a.png"), str(tmp_path / "new" / "b.png"), *asked]) == 0
    assert contents(tmp_path / "new").keys() == {"b.png", "b_sureness.png"}
    restored = np.asarray(Image.open(tmp_path / "new" / "b.png"))
    assert set(np.unique(restored)) == {0, 255} and restored[0, 0] == 255
    told = json.loads(capsys.readouterr().out)
    assert told["input"].endswith("a.png") and told["polarity"] == "bright" and told["kept"] > 0.5


def test_a_folder_with_a_broken_picture(stubbed, folder, tmp_path, capsys):
    before = contents(folder)
    assert restore.main([str(folder), str(tmp_path / "out")]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "broken.png" in errors[0]
    assert contents(tmp_path / "out").keys() == {"一.png", "b.png", "c.png"}
    assert Image.open(tmp_path / "out" / "b.png").size == (60, 40)
    assert contents(folder) == before


@pytest.fixture
def refused(capsys):
    """Runs restore.py on arguments that must end with status 1 and one line, which is matched."""

    def run(message: str, *arguments: str | Path) -> None:
        assert restore.main([str(argument) for argument in arguments]) == 1
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1 and re.search(message, line), line

    return run


def test_existing_outputs_are_refused_before_anything_is_done(refused, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(restore, "load_restorer", lambda *_: pytest.fail("loaded before the outputs were checked"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "c_compare.png").write_bytes(b"old")
    refused(r"c_compare\.png: exists already; give --overwrite", folder, out, "--compare")
    (out / "b.png").write_bytes(b"old")
    refused(r"b\.png: exists already, and 1 more; give --overwrite", folder, out, "--compare")
    assert contents(out) == {"b.png": b"old", "c_compare.png": b"old"}


def test_existing_outputs_are_replaced_on_demand(stubbed, folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "c.png").write_bytes(b"old")
    (folder / "broken.png").unlink()
    assert restore.main([str(folder), str(out), "--overwrite"]) == 0
    assert Image.open(out / "c.png").size == (30, 70)


def test_an_input_is_never_written_to(stubbed, refused, folder, tmp_path):
    before = contents(folder)
    (tmp_path / "link.png").symlink_to(folder / "一.png")
    for target in (folder / "一.png", folder, tmp_path / "link.png"):
        refused("is an input", folder / "一.png", target, "--overwrite")
    refused("is an input", folder, folder, "--overwrite")
    assert contents(folder) == before


def test_shared_outputs_are_refused(stubbed, refused, folder, tmp_path):
    Image.fromarray(character(50, 50)).save(folder / "b.png")
    refused(r"b\.jpg and .*b\.png would both", folder, tmp_path / "out")
    (folder / "b.png").rename(folder / "c_compare.png")
    (folder / "broken.png").unlink()
    assert restore.main([str(folder), str(tmp_path / "out")]) == 0
    refused(r"c\.webp.* would both", folder, tmp_path / "other", "--compare")
    assert not (tmp_path / "other").exists()


def test_a_failed_write_leaves_nothing(stubbed, tmp_path, monkeypatch, capsys):
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
        (["a.png", "out.jpg"], r"out\.jpg: pictures are written as PNG"),
        (["empty", "out"], r"empty: no pictures in it"),
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


def test_the_character_guides(monkeypatch, folder, tmp_path, capsys, refused):
    seen = []

    def network(x: np.ndarray) -> np.ndarray:
        seen.extend(x[:, 1].any((1, 2)).tolist())
        return x[:, 0]

    restorer = Restorer(network, SIDE, in_chans=2)
    monkeypatch.setattr(restore, "load_restorer", lambda *_: restorer)
    (folder / "broken.png").unlink()
    assert restore.main([str(folder), str(tmp_path / "1"), "--char_from_name", "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["guide"] for line in told] == [None, None, "一"] and seen == [False, False, True]
    assert restore.main([str(folder / "b.jpg"), str(tmp_path / "2.png"), "--char", "龘"]) == 0
    assert "the guide has no 龘: done without" in capsys.readouterr().err and not seen[-1]
    monkeypatch.setattr(restorer, "in_chans", 1)
    refused("trained without a guide", folder / "b.jpg", tmp_path / "3.png", "--char", "一")
    with pytest.raises(SystemExit):
        restore.main([str(folder), "--char", "一二"])
    assert "one character, not '一二'" in capsys.readouterr().err


def test_clean_output(stubbed, tmp_path):
    x = np.zeros((200, 300), np.uint8)
    x[60:110, 200:250] = character(50, 50)
    Image.fromarray(255 - x).save(tmp_path / "a.png", dpi=(300, 300))
    assert restore.main([str(tmp_path / "a.png"), str(tmp_path / "b.png")]) == 0
    inplace = Image.open(tmp_path / "b.png")
    assert inplace.size == (300, 200) and inplace.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert np.abs(np.asarray(inplace).astype(int) - (255 - x)).mean() < 2
    arguments = ["--size", "96", "--transparent", "--style", "rubbing", "--overwrite"]
    assert restore.main([str(tmp_path / "a.png"), str(tmp_path / "b.png"), *arguments]) == 0
    alone = Image.open(tmp_path / "b.png")
    assert alone.mode == "LA" and alone.size == (96, 96)
    tone, opaque = (np.asarray(band) for band in alone.split())
    assert (tone == 255).all() and opaque[48, 48] > 240 and opaque[0, 0] < 20 and 0.1 < (opaque > 128).mean() < 0.5


def test_standard_input_and_output(tmp_path):
    """The script itself: what it prints is the picture and nothing else."""
    weights = tiny_checkpoint(tmp_path / "best.pth")
    Image.fromarray(character(40, 60)).save(tmp_path / "a.png")
    command = [sys.executable, restore.__file__, "-", "--checkpoint", weights, "--runtime", "torch", "--json", "--verbose"]
    done = subprocess.run(command, input=(tmp_path / "a.png").read_bytes(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert Image.open(io.BytesIO(done.stdout)).size == (60, 40)
    assert done.stdout.endswith(b"IEND\xaeB`\x82")
    line, said = done.stderr.decode().splitlines()
    assert json.loads(line)["polarity"] == "bright" and said.startswith("-: bright strokes, character within 60")
    broken = subprocess.run(command, input=b"no picture", capture_output=True)
    assert broken.returncode == 1 and broken.stdout == b"" and b"standard input: not a picture" in broken.stderr


def test_what_does_not_go_with_standard_output(stubbed, refused, folder):
    refused("standard output carries one picture", folder / "b.jpg", "-", "--compare")
    refused("standard output carries one picture", "-", "--sureness")
    refused("a folder cannot go to standard output", folder, "-")
    refused("give a name in .png", "-", folder)


def test_large_pictures_make_small_batches(monkeypatch, folder):
    jobs = [restore.Job(folder / name, folder) for name in ("一.png", "b.jpg", "c.webp", "broken.png")]
    assert [len(group) for group in restore.batches(jobs)] == [4]
    monkeypatch.setattr(restore, "PIXELS", 5000)  # they have 2500, 2400, 2100 and none that could be read
    assert [len(group) for group in restore.batches(jobs)] == [2, 2]
    monkeypatch.setattr(restore, "BATCH", 1)
    assert [len(group) for group in restore.batches(jobs)] == [1] * 4


def test_thousands_of_pictures_are_not_held(monkeypatch, tmp_path):
    """Of what was read, no more than three batches are alive at any time."""
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

    monkeypatch.setattr(restore, "load_restorer", lambda *_: Counting(lambda x: x[:, 0], SIDE))
    assert restore.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert len(contents(tmp_path / "out")) == 60 and most <= 3 * 4


def test_the_script_with_a_real_checkpoint(folder, tmp_path):
    """The command of the README; the broken picture is named and makes the status 1, the others are restored."""
    weights = tiny_checkpoint(tmp_path / "best.pth")
    command = [sys.executable, restore.__file__, folder, tmp_path / "out", "--checkpoint", weights, "--runtime", "torch"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(r"^error: .*broken\.png: not a picture", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr and "3 of 4 pictures restored" in done.stdout
    assert Image.open(tmp_path / "out" / "c.png").size == (30, 70)


def test_it_works_at_once_and_without_torch(folder, tmp_path):
    """With the weights that come with the project; a second start needs no torch any more."""
    assert WEIGHTS.is_file()
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    script = (
        "import sys, restore; status = restore.main(sys.argv[1:]); print('torch' in sys.modules, file=sys.stderr); sys.exit(status)"
    )
    for number, torch_is_needed in ((1, "True"), (2, "False")):
        command = [sys.executable, "-c", script, str(folder / "一.png"), str(tmp_path / f"{number}.png"), "--char_from_name"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(restore.__file__).parent)
        assert done.returncode == 0 and done.stderr.splitlines()[-1] == torch_is_needed, done.stderr
    assert contents(tmp_path)["1.png"] == contents(tmp_path)["2.png"]
