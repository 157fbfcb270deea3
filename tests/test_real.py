"""evaluation/real.py: scores of real characters without ground truth."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import evaluate
from datasets.pack import Pack, open_pack
from evaluation import real
from evaluation.predictors import BASELINES
from evaluation.real import score_clean, score_real, show_clean, show_real
from restoration import pipeline
from restoration.drawing import DEFAULT, MEAN, Drawing
from restoration.pipeline import Restorer
from tests.pictures import character, network, tiny_checkpoint
from util import images, metrics, squares

SIZE = 32
OTHERS = [1, 2, 3, 4, 5]  # classes that are no character


@pytest.fixture(scope="module")
def pack(tiny_pack) -> Pack:
    return open_pack(tiny_pack)


@pytest.fixture
def dark(tmp_path) -> Path:
    """A folder with three pictures of 一, dark strokes on a light ground, and one without a character in its name."""
    for name in ("1_一.png", "2_一.png", "3_一.png", "nameless.png"):
        images.write_png(tmp_path / "dark" / name, images.from_grey(1 - character(90, 80) / np.float32(255)))
    return tmp_path / "dark"


class DarkGround(nn.Module):
    """A recogniser of class 0, in pictures with a dark ground; in others, class 0 is the last guess."""

    def forward_features(self, x):
        return x

    def forward_head(self, x, pre_logits):
        return x.flatten(1).mean(1, keepdim=True)

    def get_classifier(self):
        return lambda mean: torch.where(torch.arange(6) == 0, 0.5, mean - 0.001 * torch.arange(6))


def judges(pack: Pack) -> dict:
    """One that knows 一 on a dark ground, and a hardened one that never guesses it there."""
    group = int(pack.group[pack.form == ord("一")][0])
    return {
        "": (DarkGround(), {"groups": [group, *OTHERS], "img_size": SIZE}),
        "_hardened": (DarkGround(), {"groups": [*OTHERS, group], "img_size": SIZE}),
    }


def darkened(x: np.ndarray) -> np.ndarray:
    """Restores as a trained network does: strokes bright. It leaves a picture with a dark ground as it is."""
    wrong = x[:, 0].mean((1, 2), keepdims=True) > 0.5
    return np.where(wrong, 1 - x[:, 0], x[:, 0])


def test_both_judges_read_every_method(dark, pack, capsys):
    result = score_real(Restorer(network(darkened), {"img_size": SIZE, "in_chans": 1}), dark, pack, judges(pack))
    assert (result["n"], result["left_out"], result["polarity"]) == (3, 1, {"bright": 0, "dark": 3})
    for method in ("degraded", "restored", *BASELINES):
        assert result[method] == {"top1": 1, "top5": 1, "top1_hardened": 0, "top5_hardened": 0}
    show_real({"dark": result})
    assert "top-1 hardened   0.0%" in capsys.readouterr().out


def test_the_judges_read_the_character_where_clean_glyphs_are(pack, tmp_path):
    x = np.zeros((128, 128), np.float32)
    x[8:98, 30:120] = character(135, 135)[22:112, 22:112] / 255  # too large to be cut out of the picture
    images.write_png(tmp_path / "scans" / "一.png", images.from_grey(x))
    seen = []

    class Seeing(DarkGround):
        def forward_features(self, x):
            seen.append(x[0, 0].numpy())
            return x

    (_, about), _ = judges(pack).values()
    score_real(Restorer(network(darkened), {"img_size": 64, "in_chans": 1}), tmp_path / "scans", pack, {"": (Seeing(), about)})
    assert len(seen) == 2 + len(BASELINES)
    for square in seen:
        ends = [np.flatnonzero((square > 0.5).any(axis))[[0, -1]] for axis in (0, 1)]
        np.testing.assert_allclose(np.divide(ends, SIZE - 1), [[0.1, 0.9]] * 2, atol=0.07)


@pytest.mark.parametrize("probability", [0.4, 0.6])
def test_the_network_decides_the_polarity_that_is_in_doubt(dark, pack, monkeypatch, probability):
    monkeypatch.setattr(pipeline.squares, "bright_probability", lambda grey: probability)

    def strokes(x):  # finds none where most is bright
        return darkened(x) * (x[:, 0].mean((1, 2)) < 0.5)[:, None, None]

    result = score_real(Restorer(network(strokes), {"img_size": SIZE, "in_chans": 1}), dark, pack, judges(pack))
    assert result["polarity"] == {"bright": 0, "dark": 3} and result["negatives_agree"] == 1
    assert result["degraded"]["top1"] == result["otsu"]["top1"] == 1


def test_a_picture_and_its_negative_are_prepared_once_each_with_and_without_guide(dark, pack, tiny_pack, monkeypatch):
    seen, prepare = [], Restorer.prepare
    monkeypatch.setattr(Restorer, "prepare", lambda self, *args: seen.append(args) or prepare(self, *args))

    def predict(x):  # the guide spoils the result
        return np.where(x[:, 1].any((1, 2))[:, None, None], np.float32(0.9), darkened(x))

    result = score_real(Restorer(network(predict), {"img_size": SIZE, "in_chans": 2}, tiny_pack), dark, pack, judges(pack))
    assert len(seen) == 2 * 3
    assert result["restored"]["top1"] == 1 and result["restored_guided"]["top1"] == 0


# --- clean characters ---------------------------------------------------------------------------------------------------


def test_a_network_that_keeps_the_picture_scores_the_maximum(dark, capsys):
    result = score_clean(Restorer(network(darkened), {"img_size": SIZE, "in_chans": 1}), dark)
    assert result["n"] == 4 and result.keys() == {"n", "restored", *BASELINES}
    assert result["restored"] == {"psnr": 60, "psnr_se": 0, "ink": 1, "ink_se": 0}
    assert 10 < result["otsu"]["psnr"] < 60 and 0.9 < result["otsu"]["ink"] < 1.1
    show_clean({"dark": result})
    assert "restored         PSNR 60.00 ± 0.00 dB   ink 100.0% ± 0.0%" in capsys.readouterr().out


@pytest.mark.parametrize("in_chans", [1, 2])
def test_input_and_reference_are_the_square_of_the_picture_with_raised_contrast(tmp_path, monkeypatch, in_chans):
    monkeypatch.setattr(real, "BATCH", 2)
    given = []

    def halve(x):  # leaves no ink
        given.extend(x)
        return x[:, 0] / 2

    restorer = Restorer(network(halve), {"img_size": SIZE, "in_chans": in_chans})
    pictures = [images.from_grey(character(60 + 20 * i, 70) / np.float32(255)) for i in range(3)]
    for number, picture in enumerate(pictures):
        images.write_png(tmp_path / f"{number}.png", picture)
    result = score_clean(restorer, tmp_path)
    expected = np.zeros((3, in_chans, SIZE, SIZE), np.float32)
    for square, picture in zip(expected, pictures, strict=True):
        prepared = restorer.prepare(picture)
        spread = ((squares.stretch(prepared.bright) - 0.5) * 3 + 0.5).clip(0, 1)
        square[0] = squares.to_square(spread, prepared.box, SIZE)
    np.testing.assert_allclose(np.stack(given), expected, atol=1e-6)
    clean = torch.from_numpy(expected[:, :1])
    psnr = metrics.psnr(clean / 2, clean).numpy()
    assert result["restored"]["psnr"] == pytest.approx(psnr.mean(), abs=1e-3)
    assert result["restored"]["psnr_se"] == pytest.approx(psnr.std(ddof=1) / 3**0.5, abs=1e-3)
    assert result["restored"]["ink"] == 0


def test_the_right_half_of_a_pair_is_scored(tmp_path):
    right = character(64, 64) / np.float32(255)
    left = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    images.write_png(tmp_path / "pairs" / "1.png", images.from_grey(np.concatenate([left, right], axis=1)))
    images.write_png(tmp_path / "single" / "1.png", images.from_grey(right))
    restorer = Restorer(network(lambda x: x[:, 0] * 0.8), {"img_size": SIZE, "in_chans": 1})
    assert score_clean(restorer, tmp_path / "pairs") == score_clean(restorer, tmp_path / "single")


def test_a_folder_without_pictures_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no pictures"):
        score_clean(Restorer(network(darkened), {"img_size": SIZE, "in_chans": 1}), tmp_path)


def test_evaluate_scores_folders_of_clean_characters(dark, tmp_path, capsys):
    checkpoint = str(tiny_checkpoint(tmp_path / "best.pth"))
    words = ["--real_clean", str(dark), str(dark.parent), "--checkpoint", checkpoint, "--runtime", "torch", "--device", "cpu"]
    assert evaluate.main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "real.json").read_text(encoding="utf-8"))
    assert list(result["clean_folders"]) == [str(dark), str(dark.parent)] and "folders" not in result
    assert result["clean_folders"][str(dark)]["n"] == 4 and result["img_size"] == SIZE
    assert "4 clean pictures" in capsys.readouterr().out


def test_real_characters_are_restored_with_the_steps_asked_for(dark, pack, tmp_path, monkeypatch):
    def predict(x):  # unsure, and with a state sure of ink
        return np.where(x[:, 2].any((1, 2))[:, None, None], np.float32(0.99), np.float32(0.4) + np.zeros_like(x[:, 0]))

    restorer = Restorer(network(predict), {"img_size": SIZE, "in_chans": 4})
    mean, drawn = (score_clean(restorer, dark, drawing)["restored"]["ink"] for drawing in (MEAN, DEFAULT))
    assert mean == 0 < drawn
    given = []
    monkeypatch.setattr(evaluate, "score_real", lambda *args: given.append(args[-1]) or {"n": 1})
    monkeypatch.setattr(evaluate, "show_real", lambda results: None)
    checkpoint = str(tiny_checkpoint(tmp_path / "best.pth"))
    words = ["--real", str(dark), "--checkpoint", checkpoint, "--runtime", "torch", "--device", "cpu"]
    assert evaluate.main([*words, "--steps", "1", "--output_dir", str(tmp_path / "out")]) == 0
    assert given == [Drawing(1)] and json.loads((tmp_path / "out" / "real.json").read_text())["steps"] == 1


def test_clean_folders_do_not_go_with_a_benchmark(tmp_path):
    with pytest.raises(SystemExit):
        evaluate.main(["--real_clean", "a", "--benchmark", "--output_dir", str(tmp_path)])
