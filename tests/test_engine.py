"""The engine: validation on several processes gives the scores of one, and signals are checked in time.

pytest also starts this file under torchrun: `torchrun --nproc_per_node=2 tests/test_engine.py PACK OUT.json`.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import models
from datasets import pairs
from datasets.degradation import Degradation
from datasets.pack import open_pack
from engine import CHECK_SECONDS, Batch, check_interval, evaluate
from tests.test_training import torchrun
from util import distributed
from util.stop import StopSignal

PICTURES = range(1, 8)  # 1, one fewer and one more than 2 and 3 processes, and numbers that are no multiple of the batch size
BATCH = 2
CPU = torch.device("cpu")


class Contrast(nn.Module):
    """Turns bright pixels white and dark ones black; the result does not depend on the other pictures of the batch."""

    def forward(self, x):
        return 20 * (x - 0.5)


def inputs(pack: str, batches: list[np.ndarray]) -> Iterator[Batch]:
    data, damage = pairs.HandwritingSet(open_pack(pack), "train", img_size=32), Degradation("mixed", 32, CPU)
    return (pairs.make_batch(sample, damage, pairs.EVALUATION_SEED, 0) for sample in pairs.load(data, batches, CPU))


def scores(pack: str) -> dict:
    """{network: [scores of the first n pictures for n in PICTURES]}, by all processes together."""
    distributed.start("cpu")
    torch.manual_seed(0)
    networks = {"contrast": Contrast(), "network": models.build("restorer_convnext_atto", img_size=32, ls_init_value=1.0)}
    rows = {name: [] for name in networks}
    for name, network in networks.items():
        for n in PICTURES:
            batches = pairs.sharded_batches(n, BATCH, distributed.rank(), distributed.world_size())
            rows[name].append(evaluate(network, inputs(pack, batches), n)[0])
    distributed.stop()
    return rows


@pytest.fixture(scope="module")
def on_one(tiny_pack):
    return scores(tiny_pack)


def test_scores_are_means_over_pictures_not_over_batches(on_one, tiny_pack):
    each = [evaluate(Contrast(), inputs(tiny_pack, [np.array([i])]), 1)[0] for i in range(7)]
    for key in ("degraded_psnr", "psnr", "ssim", "f1"):
        values = [row[key] for row in each]
        assert max(values) - min(values) > 1e-3  # so that a picture missing or counted twice changes the mean
        assert on_one["contrast"][6][key] == pytest.approx(sum(values) / 7, abs=1e-6)


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_give_the_scores_of_one(on_one, tiny_pack, tmp_path, processes):
    done = torchrun(processes, __file__, str(tiny_pack), str(tmp_path / "scores.json"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "scores.json").read_text())
    for name, tolerance in {"contrast": 1e-9, "network": 1e-4}.items():
        assert [row["n"] for row in rows[name]] == list(PICTURES)
        for row, expected in zip(rows[name], on_one[name], strict=True):
            if name == "network":  # its rounding depends on the batch and may change a pixel from ink to ground
                assert row.pop("f1") == pytest.approx(expected["f1"], abs=1e-2)
            for key in row:
                assert row[key] == pytest.approx(expected[key], rel=0, abs=tolerance), f"{key} of {name}, {row['n']} pictures"


@pytest.mark.parametrize("n", [4, 6])
def test_a_wrong_number_of_pictures_is_an_error(tiny_pack, n):
    with pytest.raises(RuntimeError, match=rf"5 pictures were scored instead of {n}"):
        evaluate(Contrast(), inputs(tiny_pack, pairs.sharded_batches(5, BATCH)), n)


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0, 1e-4, 0.1, 0.26, 1.0, 4.9, 5.1, 600.0])  # the last: an update that compiles
@pytest.mark.parametrize("log_every", [1, 20, 1000])
def test_checks_are_at_most_log_every_updates_and_check_seconds_apart(log_every, seconds):
    interval = check_interval(log_every, seconds)
    assert 1 <= interval <= log_every
    assert interval == 1 or interval * seconds <= CHECK_SECONDS
    assert interval == log_every or (interval + 1) * seconds > CHECK_SECONDS


def test_a_signal_ends_validation_at_the_next_batch(tiny_pack):
    started = []

    class Network(Contrast):
        def forward(self, x):
            started.append(len(x))
            os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(x)

    with StopSignal() as stop, pytest.raises(SystemExit, match="143"):
        evaluate(Network(), inputs(tiny_pack, pairs.sharded_batches(7, BATCH)), 7, stop=stop)
    assert started == [BATCH]


def test_a_signal_at_the_last_batch_ends_validation_too(tiny_pack):
    class Network(Contrast):
        def forward(self, x):
            os.kill(os.getpid(), signal.SIGINT)
            return super().forward(x)

    with StopSignal() as stop, pytest.raises(SystemExit, match="130"):
        evaluate(Network(), inputs(tiny_pack, [np.arange(2)]), 2, stop=stop)


if __name__ == "__main__":
    results = scores(sys.argv[1])
    if os.environ["RANK"] == "0":
        Path(sys.argv[2]).write_text(json.dumps(results))
