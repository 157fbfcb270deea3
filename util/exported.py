"""A network in an ONNX file, run by OpenVINO on the CPU: without torch it starts in a fraction of the time, and runs faster."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

# OpenVINO tells its maker's statistics of every import through this package, and does without where it is missing.
sys.modules.setdefault("openvino_telemetry", None)

VERSION = 1  # of what `models.export` writes; a cached file of another version is not used


def load(path: str | Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict]:
    """The network of a file that `models.export` wrote, and the settings in it.

    The network takes (N, in_chans, side, side) float32 in [0, 1], strokes bright, and gives the probability of ink (N, side,
    side). Its precision is bfloat16 where the processor has that, else float32. FileNotFoundError without the file, ValueError if
    it is broken or something else.
    """
    import openvino

    if not Path(path).is_file():
        raise FileNotFoundError(f"no network at {path}")
    try:
        core = openvino.Core()
        model = core.read_model(str(path))
        settings = json.loads(model.get_rt_info(["framework", "network"]).value)
        compiled = core.compile_model(model, "CPU")
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is broken or no network that export.py wrote: {str(error).strip().splitlines()[-1]}") from error

    def network(x: np.ndarray) -> np.ndarray:
        return np.tanh(compiled(x)[0][:, 0] / 2) / 2 + 0.5  # the sigmoid, which this way cannot overflow

    return network, settings


def cached(weights: str | Path) -> Path:
    """Where the exported network of a file of weights is kept: the name tells what is in the file, so it is never out of date."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "restorecae-zi" / f"{hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:32]}-{VERSION}.onnx"
