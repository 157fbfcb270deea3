"""A network in an ONNX file, run by OpenVINO on the CPU: it starts in a fraction of the time that torch takes, and runs faster."""

import contextlib
import functools
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

# OpenVINO imports this package to send usage statistics, and works without it.
sys.modules.setdefault("openvino_telemetry", None)

VERSION = 2  # of what `models.files.export_onnx` writes; cached files of other versions are not used
KEPT = 8  # files of each kind in the cache, about 30 MB each; the least recently used ones are deleted
_MAKING = threading.Lock()  # without it two threads could make two cores, see `_core`


def load(path: str | Path, threads: int = 0, kind: str = "network") -> tuple[Callable[[np.ndarray], np.ndarray], dict]:
    """Loads an ONNX file of a "network" or a "recogniser". Returns (a function of arrays, what the file says of it).

    A network's function: (N, in_chans, H, W) float32, strokes bright → logits of ink (N, H, W); the file says the settings of its
    run. A recogniser's: (N, 1, S, S) → logits (N, classes); see `models.recogniser.load_recogniser`. In bfloat16 if the processor
    has it, else in float32. threads: of the CPU; 0 uses all cores. Raises FileNotFoundError if there is no file, ValueError if it
    is corrupt or something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no network at {path}")
    with _MAKING:
        core = _core()
    try:
        model = core.read_model(str(path))
        settings = json.loads(model.get_rt_info(["framework", kind]).value)
        compiled = core.compile_model(model, "CPU", _options(threads))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is corrupt or was not written by export.py: {str(error).strip().splitlines()[-1]}") from error

    def run(x: np.ndarray) -> np.ndarray:
        logits = compiled(x)[0]
        return (logits[:, 0] if kind == "network" else logits).copy()  # OpenVINO uses its buffer again

    return run, settings


@functools.cache
def _core():
    """OpenVINO's core, one for the life of the process.

    Each core's CPU plugin gives the thread that makes it a stack for signals and unmaps that stack when it is freed, also where
    another core has set its own since. After two cores came and went, the next signal crashed the process (SIGSEGV).
    """
    import openvino

    return openvino.Core()


def file_of(weights: Path, kind: str = "network", img_size: int | None = None) -> Path:
    """The cached ONNX file of weights; it is written on first use. Raises OSError if it cannot be.

    img_size: of the squares that a network takes, if not its own.
    """
    file = cached(weights, img_size)
    if not file.is_file():
        from models import files, recogniser

        if sys.stderr.isatty():
            print(f"exporting {weights.name} once, for a fast start", file=sys.stderr)
        network = kind == "network"
        model, info = files.load_network(weights) if network else recogniser.load_recogniser(weights)
        info |= {"img_size": img_size or info["img_size"]}
        try:
            (files if network else recogniser).export_onnx(model, info, file)
        except OSError as error:
            hint = "set XDG_CACHE_HOME to a writable folder, or pass runtime torch"
            raise OSError(f"{file.parent}: cannot cache the exported network ({error.strerror}); {hint}") from error
    mark_used(file)
    return file


def _options(threads: int) -> dict[str, str | int]:
    """OpenVINO's options, with a folder for what it compiles, which saves half of a start; without one if it cannot be written."""
    options = {"INFERENCE_NUM_THREADS": threads} if threads else {}
    folder = cache() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _keep_recent(folder, "*.blob")
    except OSError:
        return options
    return {**options, "CACHE_DIR": str(folder)} if os.access(folder, os.W_OK) else options


def cache() -> Path:
    """The folder of what is made once."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "restorecae-zi"


def _keep_recent(folder: Path, pattern: str) -> None:
    for old in sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        old.unlink()


def cached(weights: str | Path, img_size: int | None = None) -> Path:
    """Where the exported network of a weights file is cached. The name is a hash of its content, so it is never out of date."""
    return cache() / f"{digest(weights)}-{f'{img_size}-' if img_size else ''}{VERSION}.onnx"


def digest(weights: str | Path) -> str:
    """32 hexadecimal digits of the SHA-256 of a file's content."""
    return hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:32]


def mark_used(file: Path) -> None:
    """Marks a cached network as the most recently used one and deletes those beyond the KEPT most recent."""
    with contextlib.suppress(OSError):  # a cache that cannot be written to still serves
        os.utime(file)
        _keep_recent(file.parent, "*.onnx")
