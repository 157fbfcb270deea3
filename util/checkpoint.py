"""Checkpoints: tensors and plain Python values in one file, which takes its place whole or not at all."""

import pickle
from pathlib import Path

import torch

from util.files import replacing

VERSION = 1


def save(content: dict, path: str | Path) -> None:
    """Writes beside the file's place, flushes, then renames: the earlier file stays until the new one is whole."""
    with replacing(path) as file:
        torch.save({"version": VERSION, **content}, file)


def read(path: str | Path) -> dict:
    """What `save` wrote, on the CPU. Never runs code from the file.

    FileNotFoundError if there is none; ValueError if it is broken or no checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is broken or no checkpoint: {reason}") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(f"{path} is no checkpoint of this project")
    return content
