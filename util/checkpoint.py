"""Checkpoints: tensors and plain Python values in one file, written atomically.

A file is a zip archive with a checksum of each part. The checksums are verified after writing and before loading, because
torch.load does not notice a flipped bit.
"""

import os
import shutil
import zipfile
from pathlib import Path

import torch

from util.files import replacing

VERSION = 2  # of a checkpoint's content
DOS_FOLDER = 0x10  # bit of a zip part's attributes


def save(content: dict, path: str | Path, keep_as: str | Path | None = None) -> None:
    """Writes a temporary file, flushes it to the disk, verifies it, and renames it to `path`.

    An earlier file at `path` is kept as `keep_as`, unless it is corrupt. Raises OSError, with the file named, if anything fails;
    the earlier files then stay as they are.
    """
    path = Path(path)
    try:
        with replacing(path) as part:
            with part.open("wb") as file:
                torch.save({"version": VERSION, **content}, file)
            if fault := _fault(part):
                raise OSError(f"verification failed: {fault}")
            if keep_as and path.exists() and not _fault(path):
                link(path, keep_as)
    except Exception as error:
        hidden = isinstance(error, RuntimeError) and isinstance(error.__context__, OSError)  # torch hides why a write failed
        raise OSError(f"{path} could not be written: {_reason(error.__context__ if hidden else error)}") from error


def link(path: str | Path, name: str | Path) -> None:
    """Gives a file a second name: a hard link, or a copy if the file system has no hard links."""
    with replacing(name) as part:
        try:
            os.link(path, part)
        except OSError:
            shutil.copyfile(path, part)


def read(path: str | Path) -> dict:
    """Loads what `save` wrote, on the CPU. Never runs code from the file.

    Raises FileNotFoundError if there is no file, ValueError if it is corrupt or not a checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if fault := _fault(path):
        raise ValueError(f"{path} is corrupt or not a checkpoint: {fault}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the errors of a foreign pickle have no common class
        raise ValueError(f"{path} is corrupt or not a checkpoint: {_reason(error)}") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(f"{path} is not a checkpoint of this project, or of another version")
    return content


def _fault(path: Path) -> str | None:
    """Why the file is corrupt, None if it is not."""
    try:
        with zipfile.ZipFile(path) as archive:
            if wrong := archive.testzip():
                return f"{wrong} does not match its checksum"
            # zipfile ignores the folder attribute; torch would return uninitialised memory for such a part
            if any(part.external_attr & DOS_FOLDER for part in archive.infolist()):
                return "a part is marked as a folder"
    except Exception as error:  # the errors of zipfile over changed bytes have no common class
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
