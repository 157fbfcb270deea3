"""Weights for others: a safetensors file, matrices in float16, the rest in float32, and what they are as JSON in its metadata."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from util.files import replacing


def save(tensors: dict[str, Tensor], kind: str, info: dict, path: str | Path) -> None:
    """Writes weights of this kind ("network", "recogniser") whole or not at all; `info` is anything that JSON can hold."""
    stored = {key: (value.half() if value.ndim > 1 else value.float()).contiguous() for key, value in tensors.items()}
    with replacing(path) as part:
        save_file(stored, part, metadata={kind: json.dumps(info, ensure_ascii=False)})
        part.chmod(0o644)


def load(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """(tensors in float32, info) of `save`. FileNotFoundError without the file, ValueError if it is broken or of another kind."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = {key: value.float() for key, value in load_file(path).items()}
    except Exception as error:  # safetensors raises errors of its own, which derive from Exception alone
        raise ValueError(f"{path} is broken or no safetensors file: {str(error).splitlines()[0]}") from error
    if kind not in metadata:
        raise ValueError(f"{path} holds no weights of a {kind}" + (f", but of a {', '.join(metadata)}" if metadata else ""))
    return tensors, json.loads(metadata[kind])
