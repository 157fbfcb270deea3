"""A network in an ONNX file, run by OpenVINO on the CPU: it starts in a fraction of the time that torch takes, and runs faster."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from util import legacy

# OpenVINO imports this package to send usage statistics, and works without it.
sys.modules.setdefault("openvino_telemetry", None)

VERSION = 2  # of what `models.files.export_onnx` writes; cached files of other versions are not used
KEPT = 8  # cached networks, about 30 MB each; the least recently used ones are deleted


def load(path: str | Path, threads: int = 0) -> tuple[Callable[[np.ndarray], np.ndarray], dict]:
    """Loads a network that `models.files.export_onnx` wrote. Returns (predict_fn, settings of its run).

    predict_fn: (N, in_chans, H, W) float32, strokes bright → logits of ink (N, H, W), in bfloat16 if the processor has it, else in
    float32. `threads`: CPU threads; 0 uses all cores. Raises FileNotFoundError if there is no file, ValueError if it is corrupt or
    something else.
    """
    import openvino

    if not Path(path).is_file():
        raise FileNotFoundError(f"no network at {path}")
    try:
        core = openvino.Core()
        model = core.read_model(str(path))
        settings = json.loads(model.get_rt_info(["framework", "network"]).value)
        compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads} if threads else {})
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is corrupt or was not written by export.py: {str(error).strip().splitlines()[-1]}") from error

    def predict(x: np.ndarray) -> np.ndarray:
        return compiled(x)[0][:, 0].copy()  # OpenVINO uses its buffer again

    return predict, legacy.settings(settings)


def cached(weights: str | Path) -> Path:
    """Where the exported network of a weights file is cached. The name is a hash of its content, so it is never out of date."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "restorecae-zi" / f"{digest(weights)}-{VERSION}.onnx"


def digest(weights: str | Path) -> str:
    """32 hexadecimal digits of the SHA-256 of a file's content."""
    return hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:32]


def mark_used(file: Path) -> None:
    """Marks a cached network as the most recently used one and deletes those beyond the KEPT most recent."""
    with contextlib.suppress(OSError):  # a cache that cannot be written to still serves
        os.utime(file)
        for old in sorted(file.parent.glob("*.onnx"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            old.unlink()
