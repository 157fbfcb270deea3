"""A run that is stopped, killed or hurt: what it leaves behind, and that going on from there gives what never stopping gives.

Layer scale starts at 1 here, else the blocks would count for nothing and their loss would not be seen.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info

import engine
import main_denoise_cae
from datasets import pairs
from engine import NonFinite
from models.convnext_cae import LatentNorm
from tests.pictures import glyph_like
from tests.test_checkpoint import same
from tests.test_training import ENV, ROOT, SMALL, flags
from util import checkpoint

RUN = {**SMALL, "side": 32, "save_minutes": 10, "device": "cpu", "threads": 1, "resume": "auto"}  # 2 epochs of 6 updates
TIMES = ("seconds", "pictures_per_second")

# the training script, of which one process does something at one of its batches, once: HURT=what,process,batch,folder
HURT = """
import os, signal, sys
from pathlib import Path
import engine, main_denoise_cae
what, rank, at, folder = os.environ["HURT"].split(",")
mse, seen, here = engine.LOSSES["mse"], 0, os.environ.get("RANK", "0")
def hurt(logits, clean):
    global seen
    seen += 1
    loss, once = mse(logits, clean), Path(folder, "hurt")
    if seen == int(at) and here == rank and not once.exists():
        once.touch()
        if what == "nan":
            return loss * float("nan")
        os.kill(os.getppid() if what == "launcher" else os.getpid(), signal.SIGKILL if what == "SIGKILL" else signal.SIGTERM)
    return loss
engine.LOSSES["mse"] = hurt
try:
    sys.exit(main_denoise_cae.main())
except SystemExit as end:
    Path(folder, f"status{here}").write_text(str(end.code))
    raise
"""


def train(out: Path, **settings) -> int:
    return main_denoise_cae.main(flags(**{**RUN, "output_dir": out, **settings}))


def train_on_two(out: Path, data, hurt: str = "nothing,0,0", *options: str, **settings) -> subprocess.CompletedProcess:
    """Two processes of batches of 2, so that an update is that of one process with batches of 4."""
    out.mkdir(exist_ok=True)
    script = out.with_suffix(".py")
    script.write_text(HURT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *options]
    command = [*launcher, str(script), *flags(**{**RUN, "batch_size": 2, "output_dir": out, "data": data, **settings})]
    env = {**ENV, "PYTHONPATH": str(ROOT), "HURT": f"{hurt},{out}"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def state(folder: Path) -> dict:
    content = checkpoint.read(folder / "last.pth")
    return {key: content[key] for key in ("model", "ema", "optimizer", "epoch", "batch", "step", "sums", "best")}


def log(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def signalled(monkeypatch, at: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Sends this process a signal at batch `at`."""
    mse, seen = engine.LOSSES["mse"], []

    def loss(logits, clean):
        seen.append(1)
        if len(seen) == at:
            os.kill(os.getpid(), number)
        return mse(logits, clean)

    monkeypatch.setitem(engine.LOSSES, "mse", loss)


@pytest.fixture(autouse=True)
def as_in_a_process_of_its_own():
    """A DataLoader of another test may have left a handler that raises where a worker ends; a run reads in a thread, without it."""
    earlier = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, earlier)


@pytest.fixture(scope="module")
def undisturbed(tiny_pack, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert train(out, data=tiny_pack) == 0
    return out


@pytest.fixture(scope="module")
def undisturbed_on_two(tiny_pack, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = train_on_two(out, tiny_pack)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def folder_of_characters(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("characters")
    for i, picture in enumerate((glyph_like(40, side=32).numpy()[:, 0] * 255).astype("uint8")):
        path = root / chr(ord("一") + i) / "1.png"
        path.parent.mkdir()
        Image.fromarray(picture).save(path)
    return root


@pytest.mark.parametrize("at", [1, 4, 6, 7])  # the first batch of all, one within the epoch, its last, the first of the next epoch
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tiny_pack, undisturbed, tmp_path, monkeypatch, at):
    signalled(monkeypatch, at)
    with pytest.raises(SystemExit, match=r"143"):
        train(tmp_path, data=tiny_pack)
    assert checkpoint.read(tmp_path / "last.pth")["step"] == at
    monkeypatch.undo()
    assert train(tmp_path, data=tiny_pack) == 0
    assert same(state(tmp_path), state(undisturbed))
    assert log(tmp_path) == log(undisturbed)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_on_a_folder_goes_on_as_if_it_had_not_been(folder_of_characters, tmp_path, monkeypatch, workers):
    settings = {"data": folder_of_characters, "workers": workers, "val_samples": 0}
    assert train(tmp_path / "whole", **settings) == 0
    signalled(monkeypatch, 4)
    with pytest.raises(SystemExit, match=r"143"):
        train(tmp_path / "parts", **settings)
    monkeypatch.undo()
    assert train(tmp_path / "parts", **settings) == 0
    assert same(state(tmp_path / "parts"), state(tmp_path / "whole"))
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


def test_a_run_stopped_while_it_validates_goes_on_there(tiny_pack, undisturbed, tmp_path, monkeypatch):
    score = engine.metrics.ssim

    def signal_then_score(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return score(*arguments)

    monkeypatch.setattr(engine.metrics, "ssim", signal_then_score)
    with pytest.raises(SystemExit, match=r"143"):
        train(tmp_path, data=tiny_pack)
    content = checkpoint.read(tmp_path / "last.pth")
    assert (content["epoch"], content["batch"], content["step"]) == (0, 6, 6)
    monkeypatch.undo()
    assert train(tmp_path, data=tiny_pack) == 0
    assert same(state(tmp_path), state(undisturbed))
    assert log(tmp_path) == log(undisturbed)


def test_training_draws_nothing_from_a_generator(tiny_pack, tmp_path, monkeypatch):
    mse, seen = engine.LOSSES["mse"], []

    def loss(logits, clean):
        seen.append((torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()))
        return mse(logits, clean)

    monkeypatch.setitem(engine.LOSSES, "mse", loss)
    assert train(tmp_path, data=tiny_pack) == 0
    assert len(seen) == 12 and all(same(list(drawn), list(seen[0])) for drawn in seen)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, "143"), (signal.SIGINT, "130")])
def test_a_signal_saves_and_says_which_it_was(tiny_pack, tmp_path, monkeypatch, number, status):
    signalled(monkeypatch, 2, number)
    with pytest.raises(SystemExit, match=status):
        train(tmp_path, data=tiny_pack)
    assert checkpoint.read(tmp_path / "last.pth")["step"] == 2


def test_a_node_taken_away(tiny_pack, undisturbed_on_two, tmp_path):
    out, began = tmp_path / "run", time.monotonic()
    done = train_on_two(out, tiny_pack, "launcher,0,4")
    assert done.returncode != 0 and time.monotonic() - began < 60
    assert [(out / f"status{rank}").read_text() for rank in (0, 1)] == ["143", "143"]
    assert time.time() - (out / "hurt").stat().st_mtime < 25
    assert 4 <= checkpoint.read(out / "last.pth")["step"] < 12
    done = train_on_two(out, tiny_pack)
    assert done.returncode == 0, done.stderr
    assert same(state(out), state(undisturbed_on_two)) and log(out) == log(undisturbed_on_two)


@pytest.mark.long
@pytest.mark.parametrize("at", [1, 6, 7])
def test_two_stopped_processes_go_on_as_if_they_had_not_been(tiny_pack, undisturbed_on_two, tmp_path, at):
    out = tmp_path / "run"
    assert train_on_two(out, tiny_pack, f"SIGTERM,0,{at}").returncode != 0
    assert checkpoint.read(out / "last.pth")["step"] == at
    done = train_on_two(out, tiny_pack)
    assert done.returncode == 0, done.stderr
    assert same(state(out), state(undisturbed_on_two)) and log(out) == log(undisturbed_on_two)


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_two_stopped_processes_on_a_folder_go_on_as_if_they_had_not_been(folder_of_characters, tmp_path, workers):
    settings = {"workers": workers, "val_samples": 0}
    assert train_on_two(tmp_path / "whole", folder_of_characters, **settings).returncode == 0
    assert train_on_two(tmp_path / "parts", folder_of_characters, "SIGTERM,1,4", **settings).returncode != 0
    assert train_on_two(tmp_path / "parts", folder_of_characters, **settings).returncode == 0
    assert same(state(tmp_path / "parts"), state(tmp_path / "whole"))
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


def test_a_process_that_dies_is_started_again(tiny_pack, undisturbed_on_two, tmp_path):
    out = tmp_path / "run"
    done = train_on_two(out, tiny_pack, "SIGKILL,1,8", "--max-restarts=2", save_minutes=0)
    assert done.returncode == 0, done.stderr
    assert (out / "hurt").exists() and "goes on from" in done.stdout
    assert same(state(out), state(undisturbed_on_two)) and log(out) == log(undisturbed_on_two)


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(tiny_pack, tmp_path):
    out = tmp_path / "run"
    done = train_on_two(out, tiny_pack, "nan,1,4", save_minutes=0)
    assert done.returncode != 0
    batch = pairs.shuffled_batches(172, 2, 0, 0, rank=1, world=2)[3]
    told = [line for line in done.stderr.splitlines() if line.startswith("error: not finite in update 4 of this epoch")]
    assert told and "process 1: the loss, on samples [" in told[0] and "process 0" not in told[0]  # torchrun may end the second
    ids = json.loads("[" + told[0].split("[")[1].split("]")[0] + "]")
    assert len(ids) == len(batch)
    content = checkpoint.read(out / "last.pth")
    assert content["step"] == 3
    assert all(tensor.isfinite().all() for part in ("model", "ema") for tensor in content[part].values())


def test_weights_stay_as_they_are_from_a_loss_that_is_not_finite_on():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, watch = torch.optim.AdamW([weight], lr=0.1, fused=True), NonFinite(torch.device("cpu"))
    optimizer.found_inf = watch.found
    for update, gradient in enumerate([1.0, float("nan"), 1.0], start=1):
        before, weight.grad = weight.detach().clone(), torch.full((3,), gradient)
        watch.see(torch.tensor(gradient), weight.grad.norm(), update)
        optimizer.step()
        assert torch.equal(weight, before) == (update > 1)
    assert optimizer.state[weight]["step"] == 1
    with pytest.raises(FloatingPointError, match=r"update 2 .* process 0: the loss, on samples \[5, 7\]"):
        watch.check({1: [3], 2: [5, 7], 3: [8]})


def test_a_batch_that_is_not_finite_leaves_the_statistics_of_the_latent():
    norm = LatentNorm(4).train()
    norm(torch.randn(8, 4))
    before = [buffer.clone() for buffer in norm.buffers()]
    norm(torch.full((8, 4), float("inf")))
    assert all(map(torch.equal, norm.buffers(), before))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "cae_convnext_atto"}, "model: restorer_convnext_atto there, cae_convnext_atto now"),
        ({"epochs": 3}, "epochs: 2 there, 3 now"),
        ({"lr": 0.1}, "lr: 0.004 there, 0.1 now"),
        ({"preset": "classic"}, "damage rectangles: "),
        ({"batch_size": 2}, "batch_size × processes: 4 there, 2 now"),
    ],
)
def test_another_run_is_not_gone_on_from(tiny_pack, undisturbed, capsys, change, told):
    before = (undisturbed / "last.pth").read_bytes()
    assert train(undisturbed, data=tiny_pack, **change) == 1
    error = capsys.readouterr().err
    assert "error: " in error and told in error
    assert (undisturbed / "last.pth").read_bytes() == before


def test_another_number_of_processes_goes_on_with_the_same_samples(tiny_pack, undisturbed, tmp_path):
    """Two processes of batches of 2 stop; one of batches of 4 goes on: the same but for the order of sums."""
    out = tmp_path / "run"
    assert train_on_two(out, tiny_pack, "SIGTERM,0,4").returncode != 0
    assert train(out, data=tiny_pack) == 0
    expected, got = log(undisturbed), log(out)
    for there, here in zip(expected, got, strict=True):
        assert here == pytest.approx(there, rel=1e-3)


@pytest.mark.parametrize("fault", ["raises", "is killed"])
def test_a_reader_that_fails_ends_the_run_with_the_sample_named(folder_of_characters, tmp_path, monkeypatch, capsys, fault):
    read, began = pairs.images.read_grey, time.monotonic()
    train_set = pairs.character_folder(folder_of_characters, "train", 32)
    position = pairs.shuffled_batches(len(train_set), 4, 0, 1)[5][-1]  # in the last batch of the second epoch
    bad = train_set.files[position]["clean"]

    def read_or_fail(path):
        if path == bad and get_worker_info() and (tmp_path / "log.jsonl").exists():
            if fault == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(f"{path}: cannot be read")
        return read(path)

    monkeypatch.setattr(pairs.images, "read_grey", read_or_fail)
    assert train(tmp_path, data=folder_of_characters, workers=2, val_samples=0) == 1
    assert str(bad) in capsys.readouterr().err and time.monotonic() - began < 60
    assert checkpoint.read(tmp_path / "last.pth")["step"] >= 6


def test_what_a_run_keeps(tiny_pack, tmp_path):
    assert train(tmp_path, data=tiny_pack, epochs=4, keep_every=2, samples_per_epoch=8) == 0
    epochs = {path.name: checkpoint.read(path)["epoch"] for path in tmp_path.glob("*.pth")}
    best = checkpoint.read(tmp_path / "last.pth")["best"]["epoch"]
    assert epochs == {"last.pth": 4, "previous.pth": 3, "best.pth": best, "epoch_0002.pth": 2, "epoch_0004.pth": 4}


def test_best_is_the_averaged_weights_and_never_a_score_that_is_no_number(tiny_pack, tmp_path, monkeypatch):
    evaluate, psnr, scored = main_denoise_cae.evaluate, iter([float("nan"), 5.0, float("nan"), 4.0]), []

    def stub(model, *arguments):
        scored.append({key: value.clone() for key, value in model.state_dict().items()})
        return {**evaluate(model, *arguments), "psnr": next(psnr)}

    monkeypatch.setattr(main_denoise_cae, "evaluate", stub)
    assert train(tmp_path, data=tiny_pack, epochs=4, samples_per_epoch=8) == 0
    best = checkpoint.read(tmp_path / "best.pth")
    assert best["epoch"] == best["best"]["epoch"] == 2 and best["best"]["psnr"] == 5.0
    assert same(best["ema"], scored[1]) and not same(best["ema"], best["model"])
