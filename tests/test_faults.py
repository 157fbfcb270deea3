"""Faults around a run: each is reported at once, in one line, and no saved checkpoint is lost."""

import json
import os
import shutil
import time
from types import SimpleNamespace

import pytest
import torch

import main_denoise_cae
from tests.test_checkpoint import files_of_at_most, same
from tests.test_training import flags, torchrun
from util import checkpoint
from util.files import owning
from util.run_folder import RunFolder

TINY = {"device": "cpu", "img_size": 32, "latent_dim": 32, "samples_per_epoch": 8}


def run(capsys, folder, data, **settings) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a run in this process."""
    status = main_denoise_cae.main(flags(**{"output_dir": folder, "data": data, **TINY, **settings}))
    return status, *capsys.readouterr()


def refused(capsys, folder, data, **settings) -> str:
    """The only error line of a run that fails at once."""
    began = time.monotonic()
    status, _, err = run(capsys, folder, data, **settings)
    assert status == 1 and time.monotonic() - began < 30
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def finished(tiny_pack, tmp_path_factory):
    """The folder of a finished run of two epochs."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main_denoise_cae.main(flags(output_dir=folder, data=tiny_pack, **TINY)) == 0
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it, without hard links."""
    copied = ("last.pth", "previous.pth", "log.jsonl")
    (tmp_path / "run").mkdir()
    for name in copied:
        shutil.copyfile(finished / name, tmp_path / "run" / name)
    return tmp_path / "run"


def truncate(path):
    os.truncate(path, path.stat().st_size * 2 // 3)


def flip_a_bit(path):
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 8]))


def empty(path):
    os.truncate(path, 0)


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [truncate, flip_a_bit])
def test_a_corrupt_checkpoint_is_reported_and_the_previous_one_is_used(capsys, finished, folder, tiny_pack, damage):
    damage(folder / "last.pth")
    status, out, err = run(capsys, folder, tiny_pack, resume="auto")
    assert status == 0
    assert f"warning: {folder / 'last.pth'} is corrupt" in err
    assert f"resuming from {folder / 'previous.pth'} after update 2" in out
    resumed, once = (checkpoint.read(path / "last.pth") for path in (folder, finished))
    assert resumed["global_step"] == 4 and same(resumed["model"], once["model"])


def test_best_is_kept_from_the_checkpoint_that_is_resumed(folder):
    content = checkpoint.read(folder / "previous.pth")
    flip_a_bit(folder / "last.pth")
    state = SimpleNamespace(epoch=1, batch=0, global_step=2, best={"epoch": 1}, load_state_dict=lambda content: None)
    with RunFolder(folder, content["settings"], content["resume_fingerprint"]).open(lambda resumed: state, "auto"):
        assert checkpoint.read(folder / "best.pth")["epoch"] == 1


def test_a_run_without_a_readable_checkpoint_does_not_restart(capsys, folder, tiny_pack):
    flip_a_bit(folder / "last.pth")
    empty(folder / "previous.pth")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert "start again in another --output_dir" in refused(capsys, folder, tiny_pack, resume="auto")
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_failed_save_ends_the_run_and_resume_works_after_it(capsys, finished, folder, tiny_pack):
    (folder / "previous.pth").replace(folder / "last.pth")
    before = (folder / "last.pth").read_bytes()
    with files_of_at_most(1_000_000):
        line = refused(capsys, folder, tiny_pack, resume="auto")
    assert f"{folder / 'last.pth'} could not be written: [Errno 27] File too large" in line
    assert (folder / "last.pth").read_bytes() == before
    assert not list(folder.glob(".*.part"))
    assert run(capsys, folder, tiny_pack, resume="auto")[0] == 0
    resumed, once = (checkpoint.read(path / "last.pth") for path in (folder, finished))
    assert same(resumed["model"], once["model"])
    assert [json.loads(line)["epoch"] for line in (folder / "log.jsonl").read_text().splitlines()] == [1, 2]


def test_a_file_that_cannot_be_written_is_named(capsys, tmp_path, tiny_pack):
    with files_of_at_most(100):
        assert f"File too large: '{tmp_path / 'config.yaml'}'" in refused(capsys, tmp_path, tiny_pack)


# --- refused runs -----------------------------------------------------------------------------------------------------


def test_a_second_run_in_a_folder_is_refused(capsys, tmp_path, tiny_pack):
    with owning(tmp_path):
        assert f"another run is writing into {tmp_path}: choose another --output_dir" in refused(capsys, tmp_path, tiny_pack)
    with owning(tmp_path):
        pass  # both have released it


def test_a_new_run_in_the_folder_of_another_is_refused(capsys, folder, tiny_pack):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert "already holds a run: pass --resume auto, or choose another --output_dir" in refused(capsys, folder, tiny_pack)
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("place", ["file/run", "/proc/run"])
def test_an_unwritable_folder_is_refused(capsys, tmp_path, tiny_pack, place):
    (tmp_path / "file").touch()
    assert "choose another --output_dir" in refused(capsys, tmp_path / place, tiny_pack)


def test_a_folder_without_pictures_is_refused(capsys, tmp_path):
    (tmp_path / "data").mkdir()
    assert "no pictures in <character>/*.png" in refused(capsys, tmp_path / "run", tmp_path / "data")


def test_more_processes_than_gpus_are_refused(capsys, monkeypatch, tmp_path, tiny_pack):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    line = refused(capsys, tmp_path, tiny_pack, device="cuda")
    assert "process 2 of this machine has no GPU (2 found)" in line and "pass --device cpu" in line


def test_a_mistyped_setting_is_refused_by_name(capsys, tmp_path):
    (tmp_path / "recipe.yaml").write_text("epocs: 3")
    messages = {"--epocs=3": "unrecognized arguments: --epocs=3", f"--config={tmp_path / 'recipe.yaml'}": "did you mean 'epochs'?"}
    for flag, message in messages.items():
        with pytest.raises(SystemExit) as end:
            main_denoise_cae.main([flag, "--data=nowhere.pack", f"--output_dir={tmp_path}"])  # no training if the flag is accepted
        assert end.value.code == 2 and message in capsys.readouterr().err


# Prints how long the run took, without the imports.
TIMED = """
import sys, time
import main_denoise_cae
began = time.monotonic()
status = main_denoise_cae.main()
print(f"took {time.monotonic() - began:.1f} s", flush=True)  # torchrun may end this process next
sys.exit(status)
"""


def test_an_error_of_the_first_process_ends_the_others(tmp_path, tiny_pack):
    script = tmp_path / "timed.py"
    script.write_text(TIMED)
    with owning(tmp_path / "run"):
        done = torchrun(2, str(script), *flags(output_dir=tmp_path / "run", data=tiny_pack, **TINY))
    assert done.returncode == 1
    assert done.stderr.count("error: another run is writing into") == 1
    assert float(done.stdout.split("took ")[1].split()[0]) < 30
