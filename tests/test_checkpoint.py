import os
import pickle

import pytest
import torch

from util import checkpoint


def test_what_is_saved_is_read(tmp_path):
    checkpoint.save({"epoch": 3, "ema": {"w": torch.arange(4.0)}, "settings": {"side": 64}}, tmp_path / "a.pth")
    content = checkpoint.read(tmp_path / "a.pth")
    assert content["epoch"] == 3 and content["settings"] == {"side": 64}
    assert torch.equal(content["ema"]["w"], torch.arange(4.0))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_a_save_that_fails_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save({"epoch": 1}, path)
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"a.pth could not be written"):
        checkpoint.save({"epoch": 2, "bad": lambda: None}, path)
    assert path.read_bytes() == before
    assert [other.name for other in tmp_path.iterdir()] == ["a.pth"]


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


def test_a_foreign_file_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=r"foreign.pth is no checkpoint of this project"):
        checkpoint.read(tmp_path / "foreign.pth")
