"""Checkpoints: saved atomically whatever interrupts it, and never loaded with other content."""

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

from models.files import load_network
from util import checkpoint

ROOT = Path(__file__).parent.parent
SMALL = {
    "global_step": 7,
    "settings": {"img_size": 32},
    "model": {"w": torch.arange(12.0).view(3, 4), "b": torch.tensor([1, 2])},
    "lr": 0.1,
}


def same(a, b) -> bool:
    """Whether two contents are equal bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@contextmanager
def files_of_at_most(size: int):
    """Writing more than `size` bytes to a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_save_then_read(tmp_path):
    checkpoint.save(SMALL, tmp_path / "a.pth")
    assert same(checkpoint.read(tmp_path / "a.pth"), {"version": checkpoint.VERSION, **SMALL})
    assert names(tmp_path) == ["a.pth"]


def test_the_earlier_file_is_kept_unless_it_is_corrupt(tmp_path):
    last, previous = tmp_path / "last.pth", tmp_path / "previous.pth"
    for step in (1, 2, 3):
        checkpoint.save({"global_step": step}, last, keep_as=previous)
    assert [checkpoint.read(path)["global_step"] for path in (last, previous)] == [3, 2]
    last.write_bytes(last.read_bytes()[:-1])
    checkpoint.save({"global_step": 4}, last, keep_as=previous)
    assert [checkpoint.read(path)["global_step"] for path in (last, previous)] == [4, 2]


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


def disk_with_errors(monkeypatch):
    def save(content, file):
        original(content, file)
        file.seek(-200, os.SEEK_CUR)
        file.write(bytes(100))

    original = torch.save
    monkeypatch.setattr(torch, "save", save)
    return {}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (cannot_be_pickled, "pickle"),
        (too_large, "File too large"),
        (full_disk, "No space left"),
        (disk_with_errors, "verification failed"),
    ],
)
def test_a_failed_save_leaves_the_earlier_files(tmp_path, monkeypatch, fault, reason):
    last, previous = tmp_path / "last.pth", tmp_path / "previous.pth"
    for step in (1, 2):
        checkpoint.save({"global_step": step}, last, keep_as=previous)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    content = {"global_step": 3, **fault(monkeypatch)}
    with files_of_at_most(100_000), pytest.raises(OSError, match=rf"{last} could not be written: .*{reason}"):
        checkpoint.save(content, last, keep_as=previous)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_temporary_file_of_a_killed_process_with_the_same_id_is_not_written_to(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save({"global_step": 1}, path)
    before = path.read_bytes()
    os.link(path, tmp_path / f".a.pth.{os.getpid()}.part")
    with pytest.raises(OSError):
        checkpoint.save({"bad": lambda: None}, path)
    assert path.read_bytes() == before


# Saves step after step into one run folder, in a process that is killed repeatedly; the next process continues with the files that
# are left. It forks, because importing torch takes seconds.
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
        return {"global_step": self.step, "model": {name: torch.full((250_000,), float(self.step)) for name in "abc"}}

def step_of(path):
    content = checkpoint.read(path)
    assert all((w == content["global_step"]).all() and len(w) == 250_000 for w in content["model"].values()), path
    return content["global_step"]

torch.set_num_threads(1)  # a fork copies only this thread
chance = random.Random(0)
path = Path(sys.argv[1])
folder = RunFolder(path, {}, {})
last, previous = path / "last.pth", path / "previous.pth"
path.mkdir()
folder.save(State(1))
began = time.monotonic()
folder.save(State(2))
took = time.monotonic() - began  # spreads the kills over the time of a save, however fast the disk is
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
    saved = os.read(reading, 1 << 16).split()
    os.close(reading)
    done = int(saved[-1]) if saved else newest
    newest = step_of(last)
    assert newest in (done, done + 1), (newest, done)
    assert step_of(previous) in (newest - 1, newest), (step_of(previous), newest)
    left += bool(list(path.glob(".*.part")))
    with owning(path):
        assert not list(path.glob(".*.part"))
assert left and newest > 2, "no kill came while it was saving"
print(newest, left)
"""


def test_after_fifty_kills_while_saving_the_newest_checkpoint_is_intact(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


# --- corrupt and foreign files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0, 1e-3, 0.3, 0.7, 0.99, 1])
def test_a_truncated_file_is_refused(tmp_path, part):
    path = tmp_path / "a.pth"
    checkpoint.save(SMALL, path)
    original = path.read_bytes()
    path.write_bytes(original[: min(int(part * len(original)), len(original) - 1)])
    with pytest.raises(ValueError, match=r"a.pth is corrupt"):
        checkpoint.read(path)


def test_a_flipped_bit_never_changes_the_content(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save(SMALL, path)
    original, expected = path.read_bytes(), checkpoint.read(path)
    directory = 8 * original.index(b"PK\1\2")  # every bit of the zip's directory, which has no checksum, and some before it
    bits = [*random.Random(0).sample(range(directory), 500), *range(directory, 8 * len(original))]
    refused = 0
    for bit in bits:
        changed = bytearray(original)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
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
    with pytest.raises(ValueError, match=r"bad.pth is corrupt or not a checkpoint"):
        checkpoint.read(tmp_path / "bad.pth")
    assert not (tmp_path / "payload-ran").exists()


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"version": checkpoint.VERSION + 1}, [1]])
def test_a_foreign_file_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=r"foreign.pth is not a checkpoint of this project"):
        checkpoint.read(tmp_path / "foreign.pth")


@pytest.mark.parametrize("name", ["cae_convnext_atto", "restorer_convnext_atto"])
def test_settings_of_bundled_weights_have_the_current_names(name):
    _, settings = load_network(ROOT / "weights" / f"{name}.safetensors")
    assert {"img_size", "accum_iter"} <= settings.keys() and not {"side", "accumulate"} & settings.keys()
