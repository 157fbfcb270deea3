import json

import numpy as np
import pytest
import torch

import main_recogniser
from datasets.pack import open_pack
from evaluate import RECOGNISER
from models.recogniser import build_recogniser, load_recogniser, save_recogniser


def test_training_gives_a_recogniser_that_knows_its_classes(tiny_pack, tmp_path):
    flags = ["--data", str(tiny_pack), "--output_dir", str(tmp_path), "--side", "32", "--batch_size", "64", "--device", "cpu"]
    assert main_recogniser.main([*flags, "--epochs", "1"]) == 0
    assert main_recogniser.main([*flags, "--epochs", "2", "--resume"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    network, info = load_recogniser(tmp_path / "recogniser.safetensors")
    pack = open_pack(tiny_pack)
    assert info["groups"] == np.unique(pack.group).tolist() and info["side"] == 32
    assert network(torch.rand(2, 1, 32, 32)).shape == (2, len(info["groups"]))
    assert rows[1]["n"] == info["withheld"]["n"] == sum(part["n"] for part in rows[1]["by_hand"].values())


def test_withheld_pairs_are_a_tenth_and_never_trained_on(tiny_pack):
    task = main_recogniser.Task(open_pack(tiny_pack), 32, torch.device("cpu"))
    pairs = [set(zip(task.label[some].tolist(), task.hand[some].tolist(), strict=True)) for some in (task.withheld, task.training)]
    assert not pairs[0] & pairs[1]
    assert len(task.withheld) + len(task.training) == len(task.data)
    drawn = [main_recogniser.is_withheld(code, "hand") for code in range(0x4E00, 0x4E00 + 5000)]
    assert np.mean(drawn) == pytest.approx(0.1, abs=0.015)


def test_reading_counts_first_guesses_and_the_first_five(tiny_pack):
    task = main_recogniser.Task(open_pack(tiny_pack), 32, torch.device("cpu"))
    label_of = dict(zip(task.data.ids.tolist(), task.label.tolist(), strict=True))
    batch = task.data.batch

    class Third(torch.nn.Module):  # always puts the right class third
        def forward(self, x):
            label = torch.tensor([label_of[i] for i in self.ids])
            logits = torch.zeros(len(x), len(task.groups))
            logits[:, :2] = 2
            return logits.scatter_(1, label[:, None], 1) if (label > 1).all() else logits.scatter_(1, label[:, None], 2)

    network = Third()

    def remember(positions):
        sample = batch(positions)
        network.ids = sample["id"].tolist()
        return sample

    task.data.batch = remember
    found = main_recogniser.read(network, task, bf16=False)
    assert found["top5"] == 1.0 and found["n"] == len(task.withheld)
    assert found["top1"] < 0.2


def test_a_saved_recogniser_reads_as_before(tmp_path):
    network = build_recogniser(7, layer_scale=1.0).eval()
    save_recogniser(network, {"groups": list(range(7)), "side": 32}, tmp_path / "r.safetensors")
    again, _ = load_recogniser(tmp_path / "r.safetensors")
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(again(x), network(x), atol=0.02, rtol=0.02)  # the matrices are stored in 16 bits


def test_the_shipped_recogniser_reads_what_its_card_says():
    network, info = load_recogniser(RECOGNISER)
    task = main_recogniser.Task(open_pack("data/zi.pack"), info["side"], torch.device("cpu"))
    assert task.groups.tolist() == info["groups"]
    task.withheld = task.withheld[task.style[task.withheld] == "regular"][::4]
    assert len(task.withheld) > 250 and main_recogniser.read(network, task, bf16=True)["top1"] > 0.95


def test_what_is_no_recogniser_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_recogniser(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    with pytest.raises(ValueError, match=r"bad.safetensors is broken or no safetensors file"):
        load_recogniser(tmp_path / "bad.safetensors")
