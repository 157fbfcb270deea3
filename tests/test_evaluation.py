"""Scoring on several processes: every picture once, and the averages of one process.

pytest starts this file under torchrun too: `torchrun --nproc_per_node=2 tests/test_evaluation.py PACK OUT.json`.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import models
from datasets import pairs
from datasets.degradation import Degradation
from datasets.pack import open_pack
from engine import evaluate
from tests.test_training import torchrun
from util import distributed

PICTURES = range(1, 8)  # with 1, one less and one more than 2 and 3 processes, and a prime that no batch divides
BATCH = 2


class Contrast(nn.Module):
    """Turns bright pixels white and dark ones black: each picture by itself, whatever else is in the batch."""

    def forward(self, x):
        return 20 * (x - 0.5)


def scores(pack: str) -> dict:
    """{network: [scores of that many pictures of the pack]}, by all processes together."""
    device = distributed.start("cpu")
    data = pairs.HandwritingSet(open_pack(pack), "train", side=32)
    damage = Degradation("mixed", 32, device)
    torch.manual_seed(0)
    network = models.build("restorer_convnext_atto", img_size=32, ls_init_value=1.0)
    found = {}
    for name, model in {"contrast": Contrast(), "network": network}.items():
        found[name] = []
        for n in PICTURES:
            batches = pairs.plain_batches(n, BATCH, distributed.rank(), distributed.world_size())
            row = evaluate(model, pairs.load(data, batches, device), damage, n)
            row.pop("pictures")
            found[name].append(row)
    distributed.stop()
    return found


@pytest.fixture(scope="module")
def on_one(tiny_pack):
    return scores(tiny_pack)


def test_one_process_averages_over_pictures_not_over_batches(on_one, tiny_pack):
    data = pairs.HandwritingSet(open_pack(tiny_pack), "train", side=32)
    damage = Degradation("mixed", 32, torch.device("cpu"))
    each = [evaluate(Contrast(), pairs.load(data, [[i]], torch.device("cpu")), damage, 1) for i in range(7)]
    for key in ("damaged_psnr", "psnr", "ssim", "f1"):
        values = [row[key] for row in each]
        assert max(values) - min(values) > 1e-3  # so that a picture left out or counted twice shows
        assert on_one["contrast"][6][key] == pytest.approx(sum(values) / 7, abs=1e-6)


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_give_the_averages_of_one(on_one, tiny_pack, tmp_path, processes):
    done = torchrun(processes, __file__, str(tiny_pack), str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    for name, within in {"contrast": 1e-9, "network": 1e-4}.items():
        assert [row["n"] for row in found[name]] == list(PICTURES)
        for row, expected in zip(found[name], on_one[name], strict=True):
            if name == "network":  # whose rounding, which depends on the batch, may turn a pixel from ink to ground
                assert row.pop("f1") == pytest.approx(expected["f1"], abs=1e-2)
            for key in row:
                assert row[key] == pytest.approx(expected[key], rel=0, abs=within), f"{key} of {name}, {row['n']} pictures"


@pytest.mark.parametrize("told", [4, 6])
def test_a_picture_too_few_or_too_many_is_an_error(tiny_pack, told):
    data = pairs.HandwritingSet(open_pack(tiny_pack), "train", side=32)
    device = torch.device("cpu")
    with pytest.raises(RuntimeError, match=rf"5 pictures were scored instead of {told}"):
        evaluate(Contrast(), pairs.load(data, pairs.plain_batches(5, BATCH), device), Degradation("mixed", 32, device), told)


if __name__ == "__main__":
    found_here = scores(sys.argv[1])
    if os.environ["RANK"] == "0":
        Path(sys.argv[2]).write_text(json.dumps(found_here))
