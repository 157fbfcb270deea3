"""Checkpoints: whole or not at all, whatever ends the saving, and never read as something else."""

import errno
import os
import pickle
import random
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import models
from util import checkpoint

ROOT = Path(__file__).parent.parent
SMALL = {"step": 7, "settings": {"side": 32}, "model": {"w": torch.arange(12.0).view(3, 4), "b": torch.tensor([1, 2])}, "lr": 0.1}


def same(a, b) -> bool:
    """Whether two contents are the same to the last bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@contextmanager
def files_of_at_most(size: int):
    """Within it, writing past so many bytes fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_read(tmp_path):
    checkpoint.save(SMALL, tmp_path / "a.pth")
    assert same(checkpoint.read(tmp_path / "a.pth"), {"version": checkpoint.VERSION, **SMALL})
    assert names(tmp_path) == ["a.pth"]


def test_the_earlier_file_is_kept_under_another_name_if_it_is_whole(tmp_path):
    last, previous = tmp_path / "last.pth", tmp_path / "previous.pth"
    for step in (1, 2, 3):
        checkpoint.save({"step": step}, last, keep_as=previous)
    assert [checkpoint.read(path)["step"] for path in (last, previous)] == [3, 2]
    last.write_bytes(last.read_bytes()[:-1])
    checkpoint.save({"step": 4}, last, keep_as=previous)
    assert [checkpoint.read(path)["step"] for path in (last, previous)] == [4, 2]


# --- a save that fails ------------------------------------------------------------------------------------------------


def cannot_be_pickled(monkeypatch):
    return {"bad": lambda: None}


def too_large(monkeypatch):
    return {"w": torch.zeros(1_000_000)}


def full_disk(monkeypatch):
    def fsync(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    return {}


def disk_that_lies(monkeypatch):
    def save(content, file):
        whole(content, file)
        file.seek(-200, os.SEEK_CUR)
        file.write(bytes(100))

    whole = torch.save
    monkeypatch.setattr(torch, "save", save)
    return {}


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        (cannot_be_pickled, "pickle"),
        (too_large, "File too large"),
        (full_disk, "No space left"),
        (disk_that_lies, "cannot be read back"),
    ],
)
def test_a_save_that_fails_leaves_the_earlier_files(tmp_path, monkeypatch, way, reason):
    last, previous = tmp_path / "last.pth", tmp_path / "previous.pth"
    for step in (1, 2):
        checkpoint.save({"step": step}, last, keep_as=previous)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    content = {"step": 3, **way(monkeypatch)}
    with files_of_at_most(100_000), pytest.raises(OSError, match=rf"{last} could not be written: .*{reason}"):
        checkpoint.save(content, last, keep_as=previous)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_killed_process_with_this_id_left_is_not_written_through(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save({"step": 1}, path)
    before = path.read_bytes()
    os.link(path, tmp_path / f".a.pth.{os.getpid()}.part")
    with pytest.raises(OSError):
        checkpoint.save({"bad": lambda: None}, path)
    assert path.read_bytes() == before


# Saves one step after the other into one run folder, in a process that is killed again and again; each next one goes on from
# what was left. A fork, since torch takes seconds to import.
KILLED = """
import itertools, os, random, signal, sys, time
from pathlib import Path
import torch
from util import checkpoint
from util.files import owning
from util.run_folder import RunFolder

class State:
    def __init__(self, step):
        self.step = step

    def state_dict(self):
        return {"step": self.step, "model": {name: torch.full((250_000,), float(self.step)) for name in "abc"}}

def step_of(path):
    content = checkpoint.read(path)
    assert all((w == content["step"]).all() and len(w) == 250_000 for w in content["model"].values()), path
    return content["step"]

torch.set_num_threads(1)  # no thread but this one comes along with a fork
chance = random.Random(0)
path = Path(sys.argv[1])
folder = RunFolder(path, {}, {})
last, previous = path / "last.pth", path / "previous.pth"
path.mkdir()
folder.save(State(1))
began = time.monotonic()
folder.save(State(2))
took = time.monotonic() - began  # by which the kills are spread over the saving, however fast the disk is
newest, left = 2, 0
for _ in range(50):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            with owning(path):
                for step in itertools.count(newest + 1):
                    folder.save(State(step))
                    os.write(writing, b"%d " % step)
        finally:
            os._exit(1)
    time.sleep(chance.uniform(0, 3 * took))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "the saving failed before the kill"
    os.close(writing)
    told = os.read(reading, 1 << 16).split()
    os.close(reading)
    done = int(told[-1]) if told else newest
    newest = step_of(last)
    assert newest in (done, done + 1), (newest, done)
    assert step_of(previous) in (newest - 1, newest), (step_of(previous), newest)
    left += bool(list(path.glob(".*.part")))
    with owning(path):
        assert not list(path.glob(".*.part"))
assert left and newest > 2, "no kill came while it was saving"
print(newest, left)
"""


def test_fifty_kills_while_saving_leave_the_newest_checkpoint_whole(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


# --- a file that is not what was saved --------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0, 1e-3, 0.3, 0.7, 0.99, 1])
def test_a_truncated_file_is_refused(tmp_path, part):
    path = tmp_path / "a.pth"
    checkpoint.save(SMALL, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: min(int(part * len(whole)), len(whole) - 1)])
    with pytest.raises(ValueError, match=r"a.pth is broken"):
        checkpoint.read(path)


def test_a_flipped_bit_never_gives_other_numbers(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save(SMALL, path)
    whole, expected = path.read_bytes(), checkpoint.read(path)
    directory = 8 * whole.index(b"PK\1\2")  # every bit of the zip's directory, which no checksum covers, and some before it
    bits = [*random.Random(0).sample(range(directory), 500), *range(directory, 8 * len(whole))]
    refused = 0
    for bit in bits:
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        try:
            content = checkpoint.read(path)
        except ValueError:
            refused += 1
        else:
            assert same(content, expected), f"bit {bit}"
    assert refused > len(bits) / 4  # the others are padding, dates and the like


class Payload:
    def __reduce__(self):
        return os.mkdir, ("payload-ran",)


@pytest.mark.parametrize("write", [lambda path: torch.save({"version": 1, "x": Payload()}, path),
                                   lambda path: path.write_bytes(pickle.dumps(Payload()))])  # fmt: skip
def test_a_hostile_file_is_refused_and_does_not_run(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad.pth is broken or no checkpoint"):
        checkpoint.read(tmp_path / "bad.pth")
    assert not (tmp_path / "payload-ran").exists()


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"version": checkpoint.VERSION + 1}, [1]])
def test_a_foreign_file_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=r"foreign.pth is no checkpoint of this project"):
        checkpoint.read(tmp_path / "foreign.pth")


def test_a_checkpoint_of_version_1_still_loads():
    path = ROOT / "tests/data/checkpoint_v1.pth"
    assert checkpoint.read(path)["version"] == 1
    model, settings = models.load(path)
    assert (settings["model"], settings["side"]) == ("restorer_convnext_atto", 32)
    assert all((w == torch.tensor(0.01)).all() for w in model.parameters())
    logits = model(torch.rand(2, 1, 32, 32))
    assert logits.shape == (2, 1, 32, 32) and logits.isfinite().all()
