import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import restore
from restore import Restorer, load_restorer
from tests.pictures import tiny_checkpoint

SIDE = 64


def unchanged(x: torch.Tensor) -> torch.Tensor:
    """A network that restores what it is given."""
    return torch.logit(x[:, :1], 1e-4)


def character(height: int, width: int) -> np.ndarray:
    """(height, width) uint8: soft bright strokes on black, from edge to edge of the tones."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    cross = np.minimum(np.abs(rows - rows.mean()), np.abs(columns - columns.mean()))
    inside = (np.abs(rows - rows.mean()) < 0.4 * rows.max()) & (np.abs(columns - columns.mean()) < 0.4 * columns.max())
    return (255 / (1 + np.exp((cross - 0.06) * 80)) * inside).round().astype(np.uint8)


@pytest.fixture
def stubbed(monkeypatch):
    monkeypatch.setattr(restore, "load_restorer", lambda checkpoint, device: Restorer(unchanged, SIDE))


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
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("shape", [(64, 64), (200, 200), (45, 51), (40, 130), (150, 60)])
@pytest.mark.parametrize("invert", [False, True])
def test_size_and_polarity_come_back(shape, invert):
    x = 255 - character(*shape) if invert else character(*shape)
    restored = Restorer(unchanged, SIDE)(x)
    assert restored.mode == "L" and restored.size == shape[::-1]
    difference = np.abs(np.asarray(restored).astype(float) - x)
    assert difference.mean() < 4


def test_the_network_sees_bright_strokes_of_full_contrast():
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return unchanged(x)

    pale = (character(90, 60) * 0.2 + 90).astype(np.uint8)
    bright = Restorer(network, SIDE)(pale)
    dark = Restorer(network, SIDE)(255 - pale)
    for x in seen:
        assert x.shape == (1, 1, SIDE, SIDE)
        assert x.min() == 0 and x.max() == 1 and x.mean() < 0.4
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.asarray(bright), 255 - np.asarray(dark), atol=1)


def test_polarity_can_be_forced():
    x = character(64, 64)
    right, wrong = (np.asarray(Restorer(lambda x: x * 0 + 9, SIDE)(x, polarity)) for polarity in ("bright", "dark"))
    assert right.min() > 250 and wrong.max() < 5
    with pytest.raises(ValueError, match="polarity"):
        Restorer(unchanged, SIDE)(x, "white")


def test_a_guided_network_gets_an_empty_guide():
    def network(x: torch.Tensor) -> torch.Tensor:
        assert x.shape == (1, 2, SIDE, SIDE) and not x[:, 1].any()
        return unchanged(x)

    assert Restorer(network, SIDE, in_chans=2)(character(64, 64)).size == (64, 64)


def test_any_picture_goes_in():
    restorer = Restorer(unchanged, SIDE)
    grey = character(64, 64)
    expected = np.asarray(restorer(grey)).astype(int)
    image = Image.fromarray(grey)
    for picture in (
        image,
        image.convert("RGB"),
        image.convert("P"),
        np.stack([grey] * 3, axis=2),
        grey.astype(np.uint16) * 257,
        (grey / 255).astype(np.float32),
    ):
        np.testing.assert_allclose(np.asarray(restorer(picture)), expected, atol=1)
    assert restorer(Image.new("L", (1, 1))).size == (1, 1)
    assert restorer(Image.new("L", (3, 700))).size == (3, 700)


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

    def save_half(self, file, format):
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
        (["a.png", "out.png", "--checkpoint", "none.pth"], r"none\.pth: no checkpoint"),
        (["a.png", "out.png", "--checkpoint", "a.png"], r"a\.png"),
    ],
)
def test_errors_are_one_line(refused, folder, tmp_path, monkeypatch, arguments, message):
    Image.fromarray(character(20, 20)).save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    refused(message, *arguments)
    assert not (tmp_path / "out.png").exists()


def test_the_script_with_a_real_checkpoint(folder, tmp_path):
    """The command of the README; the broken picture is named and makes the status 1, the others are restored."""
    weights = tiny_checkpoint(tmp_path / "best.pth")
    command = [sys.executable, restore.__file__, folder, tmp_path / "out", "--checkpoint", weights, "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(r"^error: .*broken\.png: not a picture", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr and "3 of 4 pictures restored" in done.stdout
    assert Image.open(tmp_path / "out" / "c.png").size == (30, 70)


def test_from_python(tmp_path):
    restorer = load_restorer(tiny_checkpoint(tmp_path / "best.pth", in_chans=2), device="cpu")
    restored = restorer(Image.fromarray(character(50, 40)))
    assert restored.size == (40, 50) and restored.mode == "L"


def test_default_checkpoint_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(restore, "DEFAULT_CHECKPOINT", tmp_path / "runs" / "demo" / "best.pth")
    with pytest.raises(FileNotFoundError, match=r"best\.pth: no checkpoint; .*make demo.*--checkpoint"):
        load_restorer()
