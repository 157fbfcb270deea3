import os
from argparse import Namespace

import numpy as np
import pytest
import torch

from models.depthwise import DepthwiseConv2d
from tools import benchmark, measure

TINY = ["--model", "cae_convnext_atto", "--side", "32", "--threads", "1", "--device", "cpu", "--runs", "1"]


@pytest.fixture
def run(tiny_pack, capsys):
    """Runs a command: (whether it reached its aims, the lines that it printed, the verdict)."""

    def run(*args: str) -> tuple[bool, list[str], str]:
        threads = torch.get_num_threads()
        reached = benchmark.main([*args, "--pack", str(tiny_pack)])
        assert torch.get_num_threads() == threads
        *lines, verdict = capsys.readouterr().out.splitlines()
        assert f"torch {torch.__version__}" in lines[0]
        return reached, lines, verdict

    return run


def row(lines: list[str], name: str) -> str:
    return next(line for line in lines if line.startswith(f"{name}  "))


def test_damage_prints_its_rows_and_ends_in_a_verdict(run):
    small = ["damage", "--side", "32", "--batch_size", "4", "--batches", "1", "--runs", "2"]
    reached, lines, verdict = run(*small, "--aim", "0")
    assert row(lines, "mixed") and row(lines, "classic, OpenCV")
    assert reached and verdict.startswith("ok: ") and "times the OpenCV pipeline" in verdict
    reached, _, verdict = run(*small, "--aim", "1e9")
    assert not reached and verdict.startswith("FAILED: MISSED ")


def test_train_sets_this_project_beside_the_baseline(run):
    aims = ["--aim", "1e9", "--aim_waiting", "1", "--aim_memory", "9", "--aim_processes", "0"]
    reached, lines, verdict = run("train", *TINY, "--batch_size", "4", "--threads", "2", "--processes", "2", *aims)
    for name in ("this project", "baseline", "2 processes"):
        assert "GB" in row(lines, name) and "%" in row(lines, name)
    assert not reached and verdict.startswith("FAILED: MISSED ") and verdict.count("MISSED") == 1
    assert verdict.count("(aim ") == 4 and "times the baseline's speed (aim ≥ 1e+09)" in verdict


def test_train_tells_the_cost_of_growing(run):
    small = ["--batch_size", "4", "--sides", "32", "64", "--sizes", "atto", "--aim_grow", "0"]
    reached, lines, verdict = run("train", "--grow", *TINY, *small)
    assert all(row(lines, name) for name in ("side 32", "side 64", "atto"))
    model = next(i for i, line in enumerate(lines) if line.startswith("model, not measured: "))
    assert [line.split()[0] for line in lines[model + 1 : model + 4]] == ["4", "8", "64"]
    assert reached and verdict.startswith("ok: side 64: ")


def test_a_training_that_fails_is_told(tmp_path):
    with pytest.raises(OSError, match="no handwriting set at"):
        benchmark.main(["train", *TINY, "--processes", "1", "--pack", str(tmp_path / "none.pack")])


def test_data_is_held_against_the_training_step(run):
    reached, lines, verdict = run("data", *TINY, "--batch_size", "4", "--aim", "0")
    assert all(row(lines, name) for name in ("glyphs", "glyphs and damage", "cae_convnext_atto"))
    assert not reached and "MISSED with their damage" in verdict


def test_infer_compares_speed_and_output(run):
    small = ["infer", *TINY, "--batch_size", "1", "4"]
    reached, lines, verdict = run(*small, "--aim", "0")
    assert all(row(lines, f"batches of {n}, {way}") for n in (1, 4) for way in ("this project", "baseline"))
    assert reached and verdict.count("times the baseline's speed (aim ≥ 0)") == 2 and "dB apart (aim ≥ 40)" in verdict
    reached, _, verdict = run(*small, "--aim", "1e9")
    assert not reached and verdict.count("MISSED") == 2


def test_the_classic_pipeline_damages():
    picture = np.zeros((64, 64), np.uint8)
    picture[20:44, 20:44] = 255
    rng = np.random.default_rng(0)
    for _ in range(8):
        damaged = benchmark.classic_opencv(picture.copy(), rng)
        assert damaged.shape == (64, 64) and damaged.dtype == np.uint8 and (damaged != picture).any()


def test_unknown_preset_is_told(tiny_pack):
    with pytest.raises(ValueError, match="no damage preset 'mixd'"):
        benchmark.main(["damage", "--pack", str(tiny_pack), "--preset", "mixd"])


def test_the_baseline_reads_the_glyphs_of_training(tiny_pack):
    glyphs = benchmark.HandwritingSet(benchmark.open_pack(tiny_pack), "train", side=64)
    damaged, clean = benchmark.OpenCVPictures(glyphs)[3]
    assert damaged.shape == clean.shape == (1, 64, 64) and not torch.equal(damaged, clean)
    assert ((clean > 0.5) == (glyphs.batch(np.array([3]))["clean"][0] > 0.5)).float().mean() > 0.95  # soft edges apart


def test_the_baseline_network_has_plain_convolutions():
    s = Namespace(model="cae_convnext_atto", side=64, in_chans=1, latent_dim=32, layer_scale=1.0)
    ours, plain = measure.models.from_settings(vars(s)), measure.build_plain(s)
    assert any(isinstance(module, DepthwiseConv2d) for module in ours.modules())
    assert not any(isinstance(module, DepthwiseConv2d) for module in plain.modules())
    plain.load_state_dict(ours.state_dict())
    x = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(plain(x), ours(x), rtol=1e-4, atol=1e-4)


def test_flops_grow_with_the_area():
    s = Namespace(model="cae_convnext_tiny", in_chans=1, latent_dim=768, layer_scale=1.0)
    small, large = (measure.forward_flops(benchmark.changed(s, side=side)) for side in (128, 256))
    assert 3.9 < large[0] / small[0] < 4.1
    # ConvNeXt-T has 28 M parameters and takes 4.5 G multiplications and additions at 224; here is one on each side of the latent
    assert 2 * 28e6 < small[1] < large[1] < 2.1 * 28e6
    assert 4 * 4.4e9 < large[0] / (256 / 224) ** 2 < 4 * 4.4e9 * 1.2


def vanish(turns: measure.Turns, s: Namespace) -> None:
    os._exit(1)


def test_a_process_that_vanishes_is_told():
    with (
        pytest.raises(OSError, match="ended early"),
        measure.Trainer(vanish, Namespace(device="cpu"), turns=1, batches=1, threads=1) as trainer,
    ):
        trainer.turn()


def test_restore_sets_the_exported_network_beside_torch(run):
    small = [
        "--model",
        "restorer_convnext_atto",
        "--side",
        "32",
        "--threads",
        "1",
        "--runs",
        "1",
        "--batch_size",
        "2",
        "--pictures",
        "4",
    ]
    aims = ["--aim_cold", "100", "--aim_cold_ratio", "9", "--aim", "1e9", "--aim_folder", "0"]
    reached, lines, verdict = run("restore", *small, *aims)
    for name in (
        "a picture, from the shell",
        "torch and timm, weights loaded",
        "eager fp32, batch 2",
        "exported, batch 2",
        "folder",
    ):
        assert row(lines, name)
    assert not reached and verdict.startswith("FAILED: ") and verdict.count("MISSED") == 1 and verdict.count("(aim ") == 5
