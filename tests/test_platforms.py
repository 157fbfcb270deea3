"""What Windows and macOS lack: fcntl, a UTF-8 default encoding, CPU affinity. Simulated, so that they are tested everywhere."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.pictures import character, tiny_checkpoint
from util import files
from util.distributed import cpu_count

ROOT = Path(__file__).parent.parent
# subprocess checks for Windows by importing msvcrt, so it is imported first.
WITHOUT_FCNTL = """
import subprocess, sys, types
sys.modules["fcntl"] = None
sys.modules["msvcrt"] = types.ModuleType("msvcrt")
import restore
sys.exit(restore.main(sys.argv[1:]))
"""


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    """Arguments of restore.py for a picture and an untrained network."""
    Image.fromarray(character(40, 60)).save(tmp_path / "一.png")
    checkpoint = tiny_checkpoint(tmp_path / "best.pth", in_chans=2)
    return [str(tmp_path / "一.png"), str(tmp_path / "out.png"), "--checkpoint", str(checkpoint), "--runtime", "torch"]


def test_restore_works_without_fcntl(arguments, tmp_path):
    done = subprocess.run([sys.executable, "-c", WITHOUT_FCNTL, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out.png").size == (60, 40)


def test_restore_prints_utf8_to_pipes_of_another_encoding(arguments):
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "restore.py", *arguments, "--char_from_name", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("utf-8"))["guide"] == "一"


def test_owning_locks_through_msvcrt_without_fcntl(tmp_path, monkeypatch):
    locked = []

    def locking(descriptor: int, mode: int, size: int) -> None:
        if locked:
            raise PermissionError(13, "Permission denied")
        locked.append((os.fstat(descriptor).st_ino, mode, size))

    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(files, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking), raising=False)
    with files.owning(tmp_path):
        assert locked == [((tmp_path / ".lock").stat().st_ino, 2, 1)]
        with pytest.raises(OSError, match="another run is writing into"), files.owning(tmp_path):
            pass


def test_cpu_count_works_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert cpu_count() == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)  # unknown
    assert cpu_count() == 1


def test_affinity_is_read_in_one_place_only():
    scripts = [file for file in (*ROOT.glob("*.py"), *ROOT.glob("*/*.py")) if file.parent.name != "tests"]
    users = [file.name for file in scripts if "sched_getaffinity" in file.read_text(encoding="utf-8")]
    assert users == ["distributed.py"]
