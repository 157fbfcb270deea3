"""The recogniser: its training, accuracy and files."""

import os
import signal

import numpy as np
import pytest
import torch

import main_recogniser
from datasets.pack import open_pack
from datasets.split import group_of
from evaluate import HARDENED, RECOGNISER
from models.recogniser import MODELS, ResNet, build_recogniser, features_and_logits, load_recogniser, save_recogniser
from restoration import reading
from tests.test_checkpoint import same
from tests.test_resume import log, state
from tests.test_training import torchrun
from util import checkpoint

RUN = {"img_size": 32, "batch_size": 64, "epochs": 2, "device": "cpu", "threads": 1}  # of 4 updates


def flags(pack, folder, *options: str, **settings) -> list[str]:
    settings = {**RUN, "data": pack, "output_dir": folder, **settings}
    return ["--no-bf16", *(f"--{key}={value}" for key, value in settings.items()), *options]


def train(*arguments, **settings) -> int:
    return main_recogniser.main(flags(*arguments, **settings))


@pytest.fixture(scope="module")
def finished(tiny_pack, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("recogniser") / "run"
    assert train(tiny_pack, folder) == 0
    return folder


def patch_loss(monkeypatch, at: int, change) -> None:
    """Returns change(loss) at update `at`."""
    cross_entropy, calls = torch.nn.functional.cross_entropy, []

    def loss(*arguments, **options):
        calls.append(1)
        value = cross_entropy(*arguments, **options)
        return change(value) if len(calls) == at else value

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", loss)


def stop(loss: torch.Tensor) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGTERM)
    return loss


def test_training_gives_a_recogniser_that_knows_its_classes(tiny_pack, finished):
    rows = log(finished)
    assert [row["epoch"] for row in rows] == [1, 2]
    network, info = load_recogniser(finished / "recogniser.safetensors")
    pack = open_pack(tiny_pack)
    assert info["groups"] == np.unique(pack.group).tolist() and info["img_size"] == 32
    assert network(torch.rand(2, 1, 32, 32)).shape == (2, len(info["groups"]))
    assert rows[1]["val_n"] == info["withheld"]["n"] == sum(part["n"] for part in rows[1]["val_by_hand"].values())
    assert info["epoch"] == 2 and info["withheld"]["top5"] == pytest.approx(rows[1]["val_top5"], abs=1e-6)
    averaged = checkpoint.read(finished / "last.pth")["ema"]
    torch.testing.assert_close(network.state_dict(), averaged, atol=1e-3, rtol=1e-3)  # matrices are stored in float16


def test_the_hardened_recogniser_starts_from_trained_weights_and_learns_degraded_characters(tiny_pack, finished, tmp_path, capsys):
    trained = finished / "recogniser.safetensors"
    assert train(tiny_pack, tmp_path / "a", preset="classic", finetune=trained, epochs=1, lr=0) == 0
    network, info = load_recogniser(tmp_path / "a" / "recogniser.safetensors")
    torch.testing.assert_close(network.state_dict(), load_recogniser(trained)[0].state_dict(), atol=1e-3, rtol=1e-3)
    assert info["preset"] == "classic" and info["withheld_degraded"]["n"] == info["withheld"]["n"]
    assert train(tiny_pack, tmp_path / "b", epochs=1) == 0
    losses = [log(tmp_path / run)[0]["loss"] for run in "ab"]
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)
    save_recogniser(build_recogniser(3), {"groups": [1, 2, 3], "img_size": 32}, tmp_path / "other.safetensors")
    assert train(tiny_pack, tmp_path / "c", finetune=tmp_path / "other.safetensors") == 1
    assert "other.safetensors knows other characters" in capsys.readouterr().err


@pytest.mark.parametrize("at", [2, 4, 5])  # within an epoch, its last update, the first of the next epoch
def test_resume_reproduces_an_uninterrupted_run(tiny_pack, finished, tmp_path, monkeypatch, at):
    patch_loss(monkeypatch, at, stop)
    with pytest.raises(SystemExit, match=r"143"):
        train(tiny_pack, tmp_path)
    assert checkpoint.read(tmp_path / "last.pth")["global_step"] == at
    monkeypatch.undo()
    assert train(tiny_pack, tmp_path, resume="auto") == 0
    assert same(state(tmp_path), state(finished)) and log(tmp_path) == log(finished)
    recognisers = [(folder / "recogniser.safetensors").read_bytes() for folder in (tmp_path, finished)]
    assert recognisers[0] == recognisers[1]


def test_resume_after_a_signal_during_validation(tiny_pack, finished, tmp_path, monkeypatch):
    accuracy = main_recogniser.accuracy
    monkeypatch.setattr(main_recogniser, "accuracy", lambda *arguments: accuracy(*stop(arguments)))
    with pytest.raises(SystemExit, match=r"143"):
        train(tiny_pack, tmp_path)
    monkeypatch.undo()
    assert (checkpoint.read(tmp_path / "last.pth")["epoch"], checkpoint.read(tmp_path / "last.pth")["batch"]) == (0, 4)
    assert train(tiny_pack, tmp_path, resume="auto") == 0
    assert same(state(tmp_path), state(finished)) and log(tmp_path) == log(finished)


def test_two_processes_train_as_one(tiny_pack, finished, tmp_path):
    done = torchrun(2, "main_recogniser.py", *flags(tiny_pack, tmp_path, batch_size=32))
    assert done.returncode == 0, done.stderr
    for expected, row in zip(log(finished), log(tmp_path), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert (row["val_n"], row["lr"]) == (expected["val_n"], expected["lr"])
    weights, expected = (checkpoint.read(folder / "last.pth")["ema"] for folder in (tmp_path, finished))
    torch.testing.assert_close(weights, expected, atol=1e-3, rtol=1e-3)


def test_a_folder_that_holds_a_run_is_not_overwritten(tiny_pack, finished, capsys):
    before = {path: path.read_bytes() for path in finished.iterdir()}
    assert train(tiny_pack, finished) == 1
    assert "already holds a run: pass --resume auto, or choose another --output_dir" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_run_of_version_0_1_is_not_resumed(tiny_pack, tmp_path, capsys):
    """Its checkpoints have neither the settings nor the number of updates."""
    checkpoint.save({"model": {}, "ema": {}, "optimizer": {}, "epoch": 1}, tmp_path / "last.pth")
    assert train(tiny_pack, tmp_path, resume="auto") == 1
    assert "last.pth was written by another version; cannot resume" in capsys.readouterr().err


def test_a_non_finite_loss_ends_the_run_and_is_not_saved(tiny_pack, tmp_path, monkeypatch, capsys):
    patch_loss(monkeypatch, 3, lambda loss: loss * float("nan"))
    assert train(tiny_pack, tmp_path, save_minutes=0) == 1
    assert "error: not finite in update 3 of this epoch: process 0: the loss, on samples [" in capsys.readouterr().err
    content = checkpoint.read(tmp_path / "last.pth")
    assert content["global_step"] == 2 and all(w.isfinite().all() for w in content["model"].values())


def test_withheld_pairs_are_a_tenth_and_never_trained_on(tiny_pack):
    task = main_recogniser.Task(open_pack(tiny_pack), 32, torch.device("cpu"))
    withheld, training = (
        set(zip(task.label[part].tolist(), task.hand[part].tolist(), strict=True)) for part in (task.withheld, task.training)
    )
    assert not withheld & training
    assert len(task.withheld) + len(task.training) == len(task.data)
    decisions = [main_recogniser.is_withheld(code, "hand") for code in range(0x4E00, 0x4E00 + 5000)]
    assert np.mean(decisions) == pytest.approx(0.1, abs=0.015)


def test_accuracy_counts_the_top_1_and_top_5(tiny_pack):
    task = main_recogniser.Task(open_pack(tiny_pack), 32, torch.device("cpu"))
    label_of = dict(zip(task.data.ids.tolist(), task.label.tolist(), strict=True))
    batch = task.data.batch

    class Third(torch.nn.Module):  # the right class is always third
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
    scores = main_recogniser.accuracy(network, task, bf16=False)
    assert scores["top5"] == 1.0 and scores["n"] == len(task.withheld)
    assert scores["top1"] < 0.2


def test_a_saved_recogniser_computes_the_same(tmp_path):
    x = torch.rand(2, 1, 32, 32)
    for model in MODELS:
        network = build_recogniser(7, model, 32, layer_scale=1.0).eval()
        save_recogniser(network, {"model": model, "groups": list(range(7)), "img_size": 32}, tmp_path / "r.safetensors")
        loaded, _ = load_recogniser(tmp_path / "r.safetensors")
        torch.testing.assert_close(loaded(x), network(x), atol=0.02, rtol=0.02)  # matrices are stored in float16
        features, logits = features_and_logits(network, x)
        torch.testing.assert_close(logits, network(x))
        assert features.shape[0] == 2 and features.ndim == 2


def test_a_reader_learns_the_seen_hands_without_the_unknown_characters(tiny_pack, tmp_path):
    assert train(tiny_pack, tmp_path / "run", model="resnet", hands="seen", unknown=9, epochs=1) == 0
    network, info = load_recogniser(tmp_path / "run" / "recogniser.safetensors")
    pack = open_pack(tiny_pack)
    assert isinstance(network, ResNet) and len(info["unknown"]) == 9
    assert sorted([*info["groups"], *info["unknown"]]) == np.unique(pack.group).tolist()
    common = {group_of(char) for char in "一丁七万丈三上下不与丑专且世"}
    assert not common & set(map(chr, info["unknown"])) and "stranger" not in info["withheld"]["by_hand"]
    assert train(tiny_pack, tmp_path / "other", unknown=99) == 1


def test_the_bundled_reader_has_the_accuracy_of_its_card():
    network, info = load_recogniser(reading.WEIGHTS)
    pack = open_pack("data/zi.pack", "data/copyleft.pack")
    unknown = main_recogniser.unknown_groups(pack, 300)
    task = main_recogniser.Task(pack, info["img_size"], torch.device("cpu"), "seen", unknown)
    assert info["unknown"] == unknown and info["groups"] == task.groups.tolist() and len(task.withheld) == 10_009
    task.withheld = task.withheld[task.style[task.withheld] == "regular"][::8]
    assert main_recogniser.accuracy(network, task, bf16=False)["top1"] > 0.97


@pytest.mark.parametrize("file", [RECOGNISER, HARDENED])
def test_the_bundled_recognisers_have_the_accuracy_of_their_cards(file):
    network, info = load_recogniser(file)
    assert file.stat().st_size < 11e6
    task = main_recogniser.Task(open_pack("data/zi.pack", "data/copyleft.pack"), info["img_size"], torch.device("cpu"))
    assert task.groups.tolist() == info["groups"]
    task.withheld = task.withheld[task.style[task.withheld] == "regular"][::8]
    assert len(task.withheld) > 250 and main_recogniser.accuracy(network, task, bf16=True)["top1"] > 0.95


def test_a_file_without_a_recogniser_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_recogniser(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    with pytest.raises(ValueError, match=r"bad.safetensors is corrupt or not a safetensors file"):
        load_recogniser(tmp_path / "bad.safetensors")
