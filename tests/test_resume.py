"""Runs that are stopped, killed or fail: what they save, and that resuming reproduces an uninterrupted run.

The layer scale is 1, because the blocks would have no effect with a small one, and a lost update of them would not be noticed.
"""

import json
import os
import platform
import random
import shutil
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
from models import convnext_cae
from tests.pictures import glyph_like, tiny_checkpoint
from tests.test_checkpoint import same
from tests.test_training import ENV, ROOT, SMALL, flags, torchrun
from util import checkpoint
from util.stop import TIME_IS_UP, exit_if_any

RUN = {
    **SMALL,
    "img_size": 32,
    "in_chans": 4,
    "save_minutes": 10,
    "device": "cpu",
    "threads": 1,
    "resume": "auto",
}  # 2 epochs of 6 updates
TIMES = ("seconds", "pictures_per_second")

# The training script, in which one process receives a signal or computes a NaN at the n-th call of the loss ("training") or of the
# SSIM ("validation"), once: FAULT=what,where,process,n,folder. Each process writes its exit status into the folder.
FAULT = """
import os, signal, sys
from pathlib import Path
import engine, main_denoise_cae
what, where, process, n, folder = os.environ["FAULT"].split(",")
functions, name = (engine.LOSSES, "mse") if where == "training" else (vars(engine.metrics), "ssim")
function, calls, rank = functions[name], 0, os.environ.get("RANK", "0")
def faulty(*arguments):
    global calls
    calls += 1
    result, done = function(*arguments), Path(folder, "fault")
    if calls == int(n) and rank == process and not done.exists():
        done.touch()
        if what == "nan":
            return result * float("nan")
        os.kill(os.getppid() if what == "launcher" else os.getpid(), signal.SIGKILL if what == "SIGKILL" else signal.SIGTERM)
    return result
functions[name] = faulty
try:
    sys.exit(main_denoise_cae.main())
except SystemExit as end:
    Path(folder, f"status{rank}").write_text(str(end.code))
    raise
"""


def train(out: Path, **settings) -> int:
    return main_denoise_cae.main(flags(**{**RUN, "output_dir": out, **settings}))


def train_on_two(out: Path, data, fault: str = "nothing,training,0,0", *options: str, **settings) -> subprocess.CompletedProcess:
    """Two processes with batches of 2, which make the same updates as one process with batches of 4."""
    out.mkdir(exist_ok=True)
    script = out.with_suffix(".py")
    script.write_text(FAULT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *options]
    command = [*launcher, str(script), *flags(**{**RUN, "batch_size": 2, "output_dir": out, "data": data, **settings})]
    env = {**ENV, "PYTHONPATH": str(ROOT), "FAULT": f"{fault},{out}"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def state(folder: Path) -> dict:
    content = checkpoint.read(folder / "last.pth")
    return {key: content[key] for key in ("model", "ema", "optimizer", "epoch", "batch", "global_step", "sums", "best")}


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
def default_sigchld_handler():
    """A DataLoader in another test's main thread may have left a handler that raises when a worker ends; a run has none."""
    earlier = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, earlier)


@pytest.fixture(scope="module")
def uninterrupted(tiny_pack, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train(out, data=tiny_pack) == 0
    return out


@pytest.fixture(scope="module")
def uninterrupted_on_two(tiny_pack, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    done = train_on_two(out, tiny_pack)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def folder_of_characters(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("characters")
    for i, picture in enumerate((glyph_like(40, img_size=32).numpy()[:, 0] * 255).astype("uint8")):
        path = root / chr(ord("一") + i) / "1.png"
        path.parent.mkdir()
        Image.fromarray(picture).save(path)
    return root


@pytest.mark.parametrize("at", [1, 4, 6, 7])  # the first batch, one within the epoch, its last, the first of the next epoch
def test_resume_reproduces_an_uninterrupted_run(tiny_pack, uninterrupted, tmp_path, monkeypatch, at):
    signalled(monkeypatch, at)
    with pytest.raises(SystemExit, match=r"143"):
        train(tmp_path, data=tiny_pack)
    assert checkpoint.read(tmp_path / "last.pth")["global_step"] == at
    monkeypatch.undo()
    assert train(tmp_path, data=tiny_pack) == 0
    assert same(state(tmp_path), state(uninterrupted))
    assert log(tmp_path) == log(uninterrupted)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_reproduces_an_uninterrupted_run_on_a_folder(folder_of_characters, tmp_path, monkeypatch, workers):
    settings = {"data": folder_of_characters, "workers": workers, "val_samples": 0}
    assert train(tmp_path / "uninterrupted", **settings) == 0
    signalled(monkeypatch, 4)
    with pytest.raises(SystemExit, match=r"143"):
        train(tmp_path / "resumed", **settings)
    monkeypatch.undo()
    assert train(tmp_path / "resumed", **settings) == 0
    assert same(state(tmp_path / "resumed"), state(tmp_path / "uninterrupted"))
    assert log(tmp_path / "resumed") == log(tmp_path / "uninterrupted")


def test_resume_after_a_signal_during_validation(tiny_pack, uninterrupted, tmp_path, monkeypatch):
    score = engine.metrics.ssim

    def signal_then_score(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return score(*arguments)

    monkeypatch.setattr(engine.metrics, "ssim", signal_then_score)
    with pytest.raises(SystemExit, match=r"143"):
        train(tmp_path, data=tiny_pack)
    content = checkpoint.read(tmp_path / "last.pth")
    assert (content["epoch"], content["batch"], content["global_step"]) == (0, 6, 6)
    monkeypatch.undo()
    assert train(tmp_path, data=tiny_pack) == 0
    assert same(state(tmp_path), state(uninterrupted))
    assert log(tmp_path) == log(uninterrupted)


def test_resume_does_not_need_the_file_of_finetune(tiny_pack, tmp_path, monkeypatch):
    trained = tiny_checkpoint(tmp_path / "trained.pth", in_chans=4)
    settings = {"data": tiny_pack, "latent_dim": 32, "finetune": trained}
    assert train(tmp_path / "uninterrupted", **settings) == 0
    signalled(monkeypatch, 4)
    with pytest.raises(SystemExit, match=r"143"):
        train(tmp_path / "resumed", **settings)
    monkeypatch.undo()
    trained.unlink()
    assert train(tmp_path / "resumed", **settings) == 0
    assert same(state(tmp_path / "resumed"), state(tmp_path / "uninterrupted"))


def test_resume_does_not_download_pretrained_weights_again(tiny_pack, tmp_path, monkeypatch):
    requested, create = [], convnext_cae.timm.create_model

    def create_without_download(name, pretrained=False, **settings):
        requested.append(pretrained)
        return create(name, **settings)

    settings = {"data": tiny_pack, "epochs": 1, "samples_per_epoch": 8, "pretrained": True}
    monkeypatch.setattr(convnext_cae.timm, "create_model", create_without_download)
    for _ in range(2):
        assert train(tmp_path, **settings) == 0
    assert requested.count(True) == 1 and not requested[-1]


def test_training_uses_no_global_random_generator(tiny_pack, tmp_path, monkeypatch):
    mse, seen = engine.LOSSES["mse"], []

    def loss(logits, clean):
        seen.append((torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()))
        return mse(logits, clean)

    monkeypatch.setitem(engine.LOSSES, "mse", loss)
    assert train(tmp_path, data=tiny_pack) == 0
    assert len(seen) == 12 and all(same(list(drawn), list(seen[0])) for drawn in seen)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, "143"), (signal.SIGINT, "130")])
def test_a_signal_saves_and_sets_the_exit_status(tiny_pack, tmp_path, monkeypatch, number, status):
    signalled(monkeypatch, 2, number)
    with pytest.raises(SystemExit, match=status):
        train(tmp_path, data=tiny_pack)
    assert checkpoint.read(tmp_path / "last.pth")["global_step"] == 2


def test_max_minutes_ends_the_run_with_status_0_and_it_can_be_resumed(tiny_pack, uninterrupted, tmp_path, capsys):
    for updates in (1, 2):  # the time is up before the first update of each of these runs ends
        with pytest.raises(SystemExit) as end:
            train(tmp_path, data=tiny_pack, max_minutes=1e-6)
        assert end.value.code == 0 and "--resume auto continues" in capsys.readouterr().out
        assert checkpoint.read(tmp_path / "last.pth")["global_step"] == updates
    assert train(tmp_path, data=tiny_pack, max_minutes=60) == 0
    assert same(state(tmp_path), state(uninterrupted)) and log(tmp_path) == log(uninterrupted)


def test_max_minutes_ends_two_processes_together(tiny_pack, tmp_path):
    out = tmp_path / "run"
    done = train_on_two(out, tiny_pack, max_minutes=1e-6)
    assert done.returncode == 0, done.stderr
    assert [(out / f"status{rank}").read_text() for rank in (0, 1)] == ["0", "0"]
    assert state(out)["global_step"] == 1


def test_a_signal_goes_before_the_time():
    with pytest.raises(SystemExit) as end:
        exit_if_any([TIME_IS_UP, signal.SIGTERM, 0])
    assert end.value.code == 143
    exit_if_any([0, 0])


def test_sigterm_to_the_launcher_saves_and_ends_all_processes(tiny_pack, uninterrupted_on_two, tmp_path):
    out, began = tmp_path / "run", time.monotonic()
    done = train_on_two(out, tiny_pack, "launcher,training,0,4")
    assert done.returncode != 0 and time.monotonic() - began < 60
    assert [(out / f"status{rank}").read_text() for rank in (0, 1)] == ["143", "143"]
    assert time.time() - (out / "fault").stat().st_mtime < 25
    assert 4 <= checkpoint.read(out / "last.pth")["global_step"] < 12
    done = train_on_two(out, tiny_pack)
    assert done.returncode == 0, done.stderr
    assert same(state(out), state(uninterrupted_on_two)) and log(out) == log(uninterrupted_on_two)


# with batches after and before the signal on the other process
@pytest.mark.parametrize(("process", "at"), [(1, 1), pytest.param(0, 2, marks=pytest.mark.long)])
def test_sigterm_to_one_process_during_validation_saves_and_ends_both(tiny_pack, uninterrupted_on_two, tmp_path, process, at):
    out = tmp_path / "run"
    assert train_on_two(out, tiny_pack, f"SIGTERM,validation,{process},{at}").returncode != 0
    assert [(out / f"status{rank}").read_text() for rank in (0, 1)] == ["143", "143"]
    assert time.time() - (out / "fault").stat().st_mtime < 25
    content = checkpoint.read(out / "last.pth")
    assert (content["epoch"], content["batch"], content["global_step"]) == (0, 6, 6)
    done = train_on_two(out, tiny_pack)
    assert done.returncode == 0, done.stderr
    assert same(state(out), state(uninterrupted_on_two)) and log(out) == log(uninterrupted_on_two)


@pytest.mark.long
@pytest.mark.parametrize("at", [1, 6, 7])
def test_resume_of_two_processes_reproduces_an_uninterrupted_run(tiny_pack, uninterrupted_on_two, tmp_path, at):
    out = tmp_path / "run"
    assert train_on_two(out, tiny_pack, f"SIGTERM,training,0,{at}").returncode != 0
    assert checkpoint.read(out / "last.pth")["global_step"] == at
    done = train_on_two(out, tiny_pack)
    assert done.returncode == 0, done.stderr
    assert same(state(out), state(uninterrupted_on_two)) and log(out) == log(uninterrupted_on_two)


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_of_two_processes_reproduces_an_uninterrupted_run_on_a_folder(folder_of_characters, tmp_path, workers):
    settings = {"workers": workers, "val_samples": 0}
    assert train_on_two(tmp_path / "uninterrupted", folder_of_characters, **settings).returncode == 0
    assert train_on_two(tmp_path / "resumed", folder_of_characters, "SIGTERM,training,1,4", **settings).returncode != 0
    assert train_on_two(tmp_path / "resumed", folder_of_characters, **settings).returncode == 0
    assert same(state(tmp_path / "resumed"), state(tmp_path / "uninterrupted"))
    assert log(tmp_path / "resumed") == log(tmp_path / "uninterrupted")


# Each process has an output folder of its own, as on machines without a shared disk.
NOT_SHARED = """
import os, sys
from pathlib import Path
import main_denoise_cae
folder, rank = Path(sys.argv[1]), os.environ["RANK"]
status = main_denoise_cae.main([*sys.argv[2:], f"--output_dir={folder / rank}"])
(folder / f"status{rank}").write_text(str(status))
sys.exit(status)
"""


@pytest.mark.parametrize(("copied", "message"), [
    ({}, "process 0 on HOST: epoch 2, batch 0; process 1 on HOST: no checkpoint); put --output_dir on a disk that they share"),
    ({"last.pth": "previous.pth"}, "process 0 on HOST: epoch 2, batch 0; process 1 on HOST: epoch 1, batch 0)"),
    ({"last.pth": "log.jsonl"}, "process 1 on HOST: no checkpoint in "),
])  # fmt: skip
def test_processes_without_a_shared_disk_do_not_resume(tiny_pack, uninterrupted_on_two, tmp_path, copied, message):
    """`copied`: the files of the second process and where they are copied from."""
    for process, names in (("0", {"last.pth": "last.pth"}), ("1", copied)):
        (tmp_path / process).mkdir()
        for name, source in names.items():
            shutil.copyfile(uninterrupted_on_two / source, tmp_path / process / name)
    before = (tmp_path / "0" / "last.pth").read_bytes()
    script, began = tmp_path / "not_shared.py", time.monotonic()
    script.write_text(NOT_SHARED)
    settings = {key: value for key, value in RUN.items() if key != "output_dir"}
    done = torchrun(2, str(script), str(tmp_path), *flags(**{**settings, "batch_size": 2, "data": tiny_pack}))
    assert done.returncode != 0 and time.monotonic() - began < 60
    assert [(tmp_path / f"status{process}").read_text() for process in (0, 1)] == ["1", "1"]
    assert message.replace("HOST", platform.node()) in done.stderr
    assert (tmp_path / "0" / "last.pth").read_bytes() == before


def test_a_killed_process_is_restarted(tiny_pack, uninterrupted_on_two, tmp_path):
    out = tmp_path / "run"
    done = train_on_two(out, tiny_pack, "SIGKILL,training,1,8", "--max-restarts=2", save_minutes=0)
    assert done.returncode == 0, done.stderr
    assert (out / "fault").exists() and "resuming from" in done.stdout
    assert same(state(out), state(uninterrupted_on_two)) and log(out) == log(uninterrupted_on_two)


def test_a_non_finite_loss_ends_the_run_and_is_not_saved(tiny_pack, tmp_path):
    out = tmp_path / "run"
    done = train_on_two(out, tiny_pack, "nan,training,1,4", save_minutes=0)
    assert done.returncode != 0
    batch = pairs.shuffled_batches(172, 2, 0, 0, rank=1, world=2)[3]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: not finite in update 4 of this epoch")]
    # torchrun may end one process before it reports
    assert errors and "process 1: the loss, on samples [" in errors[0] and "process 0" not in errors[0]
    ids = json.loads("[" + errors[0].split("[")[1].split("]")[0] + "]")
    assert len(ids) == len(batch)
    content = checkpoint.read(out / "last.pth")
    assert content["global_step"] == 3
    assert all(tensor.isfinite().all() for part in ("model", "ema") for tensor in content[part].values())


def test_no_update_is_applied_after_a_non_finite_loss():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, non_finite = torch.optim.AdamW([weight], lr=0.1, fused=True), NonFinite(torch.device("cpu"))
    optimizer.found_inf = non_finite.found_inf
    for update, gradient in enumerate([1.0, float("nan"), 1.0], start=1):
        before, weight.grad = weight.detach().clone(), torch.full((3,), gradient)
        non_finite.record(torch.tensor(gradient), weight.grad.norm(), update)
        optimizer.step()
        assert torch.equal(weight, before) == (update > 1)
    assert optimizer.state[weight]["step"] == 1
    with pytest.raises(FloatingPointError, match=r"update 2 .* process 0: the loss, on samples \[5, 7\]"):
        non_finite.check({1: [3], 2: [5, 7], 3: [8]})


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"model": "cae_convnext_atto"}, "model: restorer_convnext_atto there, cae_convnext_atto here"),
        ({"epochs": 3}, "epochs: 2 there, 3 here"),
        ({"lr": 0.1}, "lr: 0.004 there, 0.1 here"),
        ({"preset": "classic"}, "damage rectangles: "),
        ({"batch_size": 2}, "batch_size × processes: 4 there, 2 here"),
    ],
)
def test_a_different_run_is_not_resumed(tiny_pack, uninterrupted, capsys, change, difference):
    before = (uninterrupted / "last.pth").read_bytes()
    assert train(uninterrupted, data=tiny_pack, **change) == 1
    error = capsys.readouterr().err
    assert "error: " in error and "belongs to a different run; cannot resume" in error and difference in error
    assert (uninterrupted / "last.pth").read_bytes() == before


@pytest.mark.parametrize("at", [pytest.param(4, marks=pytest.mark.long), 6])
def test_resume_with_another_number_of_processes_uses_the_same_samples(tiny_pack, uninterrupted, tmp_path, at):
    """Two processes with batches of 2 are stopped; one with batches of 4 resumes: the same result up to the order of sums."""
    out = tmp_path / "run"
    assert train_on_two(out, tiny_pack, f"SIGTERM,training,0,{at}").returncode != 0
    assert train(out, data=tiny_pack) == 0
    for expected, row in zip(log(uninterrupted), log(out), strict=True):
        f1 = row.pop("val_f1")  # counts pixels above a threshold, so it is not continuous in the sums
        assert f1 == pytest.approx(expected.pop("val_f1"), abs=1e-3)
        assert row == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("fault", ["raises", "is killed"])
def test_a_failing_reader_ends_the_run_and_names_the_file(folder_of_characters, tmp_path, monkeypatch, capsys, fault):
    read, began = pairs.images.read_grey, time.monotonic()
    (train_set,) = pairs.open_folder(folder_of_characters, ["train"], 32)
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
    assert checkpoint.read(tmp_path / "last.pth")["global_step"] >= 6


def test_kept_checkpoints(tiny_pack, tmp_path):
    assert train(tmp_path, data=tiny_pack, epochs=4, keep_every=2, samples_per_epoch=8) == 0
    epochs = {path.name: checkpoint.read(path)["epoch"] for path in tmp_path.glob("*.pth")}
    best = checkpoint.read(tmp_path / "last.pth")["best"]["epoch"]
    assert epochs == {"last.pth": 4, "previous.pth": 3, "best.pth": best, "epoch_0002.pth": 2, "epoch_0004.pth": 4}


def test_best_has_the_averaged_weights_and_never_a_nan_score(tiny_pack, tmp_path, monkeypatch):
    evaluate, psnr, scored = main_denoise_cae.evaluate, iter([float("nan"), 5.0, float("nan"), 4.0]), []

    def stub(model, *arguments):
        scored.append({key: value.clone() for key, value in model.state_dict().items()})
        scores, pictures = evaluate(model, *arguments)
        return {**scores, "psnr": next(psnr)}, pictures

    monkeypatch.setattr(main_denoise_cae, "evaluate", stub)
    assert train(tmp_path, data=tiny_pack, epochs=4, samples_per_epoch=8) == 0
    best = checkpoint.read(tmp_path / "best.pth")
    assert best["epoch"] == best["best"]["epoch"] == 2 and best["best"]["psnr"] == 5.0
    assert same(best["ema"], scored[1]) and not same(best["ema"], best["model"])
