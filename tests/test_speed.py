import copy
import os

import numpy as np
import pytest
import torch

from datasets import pages
from datasets.pack import open_pack
from datasets.pairs import HandwritingSet
from models.convolutions import DepthwiseConv2d
from models.files import from_settings
from restoration.pipeline import Restorer
from tests.pictures import network
from tools import speed

TINY = ["--model", "cae_convnext_atto", "--img_size", "32", "--threads", "1", "--runs", "1"]


@pytest.fixture
def run(tiny_pack, capsys, monkeypatch):
    """Runs a command whose aims are all within reach but one: (exit status, the lines that it printed, the verdict)."""

    def run(*args: str, out_of_reach: str = "") -> tuple[int, list[str], str]:
        for name, (sign, _) in speed.AIMS.items():
            monkeypatch.setitem(speed.AIMS, name, (sign, 0 if (sign == "≥") != (name == out_of_reach) else 1e9))
        threads = torch.get_num_threads()
        status = speed.main([*args, "--data", str(tiny_pack)])
        assert torch.get_num_threads() == threads
        *lines, verdict = capsys.readouterr().out.splitlines()
        assert f"torch {torch.__version__}" in lines[0] and "commit " in lines[0]
        return status, lines, verdict

    return run


def row(lines: list[str], name: str) -> str:
    return next(line for line in lines if line.startswith(f"{name}  "))


def test_damage_prints_rows_and_a_verdict(run):
    small = ["damage", "--img_size", "32", "--batch_size", "4", "--pictures", "4", "--runs", "2"]
    status, lines, verdict = run(*small)
    assert "n 2" in row(lines, "generator") and row(lines, "classic operations in OpenCV")
    assert status == 0 and verdict.startswith("ok: generator, pictures/s ")
    status, _, verdict = run(*small, out_of_reach="generator, pictures/s")
    assert status == 1 and verdict.startswith("FAILED: MISSED ")


def test_train_compares_the_engine_with_a_plain_loop(run):
    small = ["--device", "cpu", "--batch_size", "4", "--pictures", "4", "--processes", "2"]
    status, lines, verdict = run("train", *TINY, *small, out_of_reach="engine's speed / plain loop's")
    for name in ("engine", "plain loop", "engine, 2 processes"):
        assert "GB" in row(lines, name) and "waiting " in row(lines, name) and "%" in row(lines, name)
    assert status == 1 and verdict.startswith("FAILED: ") and verdict.count("MISSED") == 1
    assert verdict.count("(aim ") == 5 and "MISSED engine's speed / plain loop's" in verdict


def test_a_failing_training_is_reported(tmp_path, capsys):
    small = ["--device", "cpu", "--processes", "1", "--data", str(tmp_path / "none.pack")]
    assert speed.main(["train", *TINY, *small]) == 1
    assert "no handwriting set at" in capsys.readouterr().err


def test_sizes_that_do_not_divide_are_reported(capsys):
    assert speed.main(["train", *TINY, "--batch_size", "3", "--pictures", "6", "--processes", "2"]) == 1
    assert "--batch_size a multiple of --processes" in capsys.readouterr().err


def test_infer_compares_speed_and_output(run):
    small = ["infer", *TINY, "--device", "cpu", "--batch_size", "1", "4", "--pictures", "4"]
    status, lines, verdict = run(*small)
    assert all(row(lines, f"{name}, batch {n}") for n in (1, 4) for name in ("bf16", "eager fp32"))
    assert status == 0 and "bf16 speed / eager fp32" in verdict and "PSNR between the outputs, dB" in verdict
    status, _, verdict = run(*small, out_of_reach="bf16 speed / eager fp32")
    assert status == 1 and verdict.count("MISSED") == 1


@pytest.mark.long
def test_restore_compares_the_exported_network_with_torch(run):
    small = ["--model", "restorer_convnext_atto", "--img_size", "32", "--threads", "1", "--runs", "1", "--batch_size", "2"]
    status, lines, verdict = run("restore", *small, "--pictures", "4", out_of_reach="exported speed / eager fp32")
    for name in ("from the shell", "torch and timm, weights loaded", "eager fp32, batch 2", "exported, batch 2", "folder"):
        assert row(lines, name)
    assert status == 1 and verdict.startswith("FAILED: ") and verdict.count("MISSED") == 1 and verdict.count("(aim ") == 5


def test_the_classic_pipeline_changes_every_picture():
    picture = np.zeros((64, 64), np.uint8)
    picture[20:44, 20:44] = 255
    rng = np.random.default_rng(0)
    for _ in range(8):
        degraded = speed.classic_opencv(picture.copy(), rng)
        assert degraded.shape == (64, 64) and degraded.dtype == np.uint8 and (degraded != picture).any()


def test_an_unknown_preset_is_reported(tiny_pack, capsys):
    assert speed.main(["damage", "--data", str(tiny_pack), "--preset", "mixd"]) == 1
    assert "no damage preset 'mixd'" in capsys.readouterr().err


def test_the_plain_loop_reads_the_glyphs_of_training(tiny_pack):
    glyphs = HandwritingSet(open_pack(tiny_pack), "train", img_size=64)
    degraded, clean = speed.OpenCVPictures(glyphs)[3]
    assert degraded.shape == clean.shape == (1, 64, 64) and not torch.equal(degraded, clean)
    assert ((clean > 0.5) == (glyphs.batch(np.array([3]))["clean"][0] > 0.5)).float().mean() > 0.95  # except for soft edges


def test_the_plain_network_has_plain_convolutions():
    settings = {"model": "cae_convnext_atto", "img_size": 64, "in_chans": 1, "latent_dim": 32, "layer_scale": 1.0}
    network = from_settings(settings)
    plain = speed.make_plain(copy.deepcopy(network))
    assert any(isinstance(module, DepthwiseConv2d) for module in network.modules())
    assert not any(isinstance(module, DepthwiseConv2d) for module in plain.modules())
    x = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(plain(x), network(x), rtol=1e-4, atol=1e-4)


def test_flops_grow_with_the_area():
    settings = {"model": "cae_convnext_tiny", "in_chans": 1, "latent_dim": 768, "layer_scale": 1.0}
    small, large = (speed.forward_flops({**settings, "img_size": img_size}) for img_size in (128, 256))
    assert 3.9 < large[0] / small[0] < 4.1
    # ConvNeXt-T has 28 M parameters and takes 4.5 G multiplications and additions at 224; encoder and decoder have one each
    assert 2 * 28e6 < small[1] < large[1] < 2.1 * 28e6
    assert 4 * 4.4e9 < large[0] / (256 / 224) ** 2 < 4 * 4.4e9 * 1.2


def test_the_stopwatch_leaves_out_the_first_step(monkeypatch):
    now = iter([0, 10, 10, 50, 53, 53, 60, 62])  # start; data 10 s late; step done; data 3 s late, twice read; step done; 2 s late
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(now))
    watch = speed.Stopwatch()
    for _ in range(2):
        watch.data_ready()
        watch.step_done()
    watch.data_ready()
    assert watch.start == 50 and watch.waited == 3 + 2


def vanish(*_: object) -> None:
    os._exit(1)


def test_a_training_process_that_dies_is_reported():
    s = speed.main_denoise_cae.build_parser().parse_args(["--device", "cpu"])
    with pytest.raises(OSError, match="ended early"):
        speed.run_turn(vanish, s, 1, 2)


def test_a_page_is_timed_in_characters(run, monkeypatch):
    for name, value in {"COLUMNS": (4, 4), "ROWS": (8, 8), "EM": (48, 48)}.items():
        monkeypatch.setattr(pages, name, value)
    settings = {"img_size": 32, "in_chans": 4}
    monkeypatch.setattr(speed, "load_restorer", lambda *_, **__: Restorer(network(lambda x: x[:, 0]), settings))
    status, lines, verdict = run("page", "--threads", "1", "--runs", "1", out_of_reach="characters/s of a page")
    assert row(lines, "drawn") and row(lines, "mean")
    assert status == 1 and verdict.startswith("FAILED: MISSED characters/s of a page ")
