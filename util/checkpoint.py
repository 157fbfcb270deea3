"""Checkpoints: tensors and plain Python values in one file, which takes its place whole or not at all.

A file is a zip archive, whose parts carry checksums: they are verified after writing and before loading, since torch itself loads a
flipped bit silently.
"""

import os
import shutil
import zipfile
from pathlib import Path

import torch

from util.files import replacing

VERSION = 2  # 1 had neither the place within an epoch nor what a resumed run is held to
DOS_FOLDER = 0x10  # bit of a zip part's attributes


def save(content: dict, path: str | Path, keep_as: str | Path | None = None) -> None:
    """Writes beside the file's place, flushes, reads back, then renames: the earlier file stays until the new one is whole.

    A whole earlier file is kept under the name `keep_as`. OSError, which names the file, if that fails.
    """
    path = Path(path)
    try:
        with replacing(path) as part:
            with part.open("wb") as file:
                torch.save({"version": VERSION, **content}, file)
            if fault := _fault(part):
                raise OSError(f"what was written cannot be read back: {fault}")
            if keep_as and path.exists() and not _fault(path):
                link(path, keep_as)
    except Exception as error:
        hidden = isinstance(error, RuntimeError) and isinstance(error.__context__, OSError)  # by torch: why a write failed
        raise OSError(f"{path} could not be written: {_reason(error.__context__ if hidden else error)}") from error


def link(path: str | Path, name: str | Path) -> None:
    """Gives a file a second name, without a copy where the file system has hard links."""
    with replacing(name) as part:
        try:
            os.link(path, part)
        except OSError:
            shutil.copyfile(path, part)


def read(path: str | Path) -> dict:
    """What `save` wrote, on the CPU. Never runs code from the file.

    FileNotFoundError if there is none; ValueError if it is broken or no checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if fault := _fault(path):
        raise ValueError(f"{path} is broken or no checkpoint: {fault}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a foreign pickle may raise has no common class
        raise ValueError(f"{path} is broken or no checkpoint: {_reason(error)}") from error
    if not isinstance(content, dict) or content.get("version") not in range(1, VERSION + 1):
        raise ValueError(f"{path} is no checkpoint of this project")
    return content


def _fault(path: Path) -> str | None:
    """Why the file is broken, None where it is whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            if wrong := archive.testzip():
                return f"{wrong} does not match its checksum"
            # zipfile passes over the mark of a folder; torch then fills the tensor with what lies about in memory
            if any(part.external_attr & DOS_FOLDER for part in archive.infolist()):
                return "a part of it is marked as a folder"
    except Exception as error:  # what zipfile may raise over changed bytes has no common class
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
