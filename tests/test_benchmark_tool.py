import numpy as np
import pytest

from tools import benchmark


def test_damage_prints_its_rows_and_ends_in_a_verdict(tiny_pack, capsys):
    small = ["damage", "--pack", str(tiny_pack), "--side", "32", "--batch_size", "4", "--batches", "1", "--runs", "2"]
    assert benchmark.main([*small, "--aim", "0.001"])
    out = capsys.readouterr().out.splitlines()
    assert "torch" in out[0] and any(line.startswith("mixed ") for line in out) and any("classic, OpenCV" in line for line in out)
    assert out[-1].startswith("ok: ") and "times the OpenCV pipeline" in out[-1]
    assert not benchmark.main([*small, "--aim", "1e9"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAILED: ")


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
