"""Exemplars of a user's own scans, as damage for `--preset`; see `datasets.exemplars`."""

import hashlib
from pathlib import Path

import numpy as np

from datasets.degradation import mixture_of
from datasets.exemplars import SIZE, cut, write
from restoration import exported
from restoration.pipeline import WEIGHTS, load_restorer
from util import images
from util.files import replacing
from util.squares import resize

MOST = 400  # exemplars of a folder


def preset_of(preset: str) -> str | dict:
    """The preset itself; if it is, or if a mixture has, a folder of scans of one character each, a table with their damage.

    The exemplars are cut once, with the bundled restorer, and cached. Raises ValueError for a folder without any.
    """
    if not Path(preset).is_dir():
        weights = mixture_of(preset) if ":" in preset else {}
        folders = {name: preset_of(name) for name in weights if Path(name).is_dir()}
        return {"mixture": weights, **folders} if folders else preset
    file = str(_cut(Path(preset)))
    return {"clean": 0.05, "exemplar_shape": {"p": 1.0, "file": file}, "exemplar_ground": {"p": 1.0, "file": file}}


def _cut(folder: Path) -> Path:
    files = images.pictures_in(folder)
    contents = hashlib.sha256(exported.digest(WEIGHTS).encode())
    for file in files:
        contents.update(file.read_bytes())
    target = exported.cache() / "exemplars" / f"{contents.hexdigest()[:32]}.npz"
    if target.is_file():
        return target
    restorer, rng, found = load_restorer(), np.random.default_rng(0), []
    chosen = [files[i] for i in rng.permutation(len(files))[:MOST]]
    for one in restorer.means(chosen):
        squares = (resize(x, SIZE, SIZE) for x in (one.prepared.x[0], one.mean))
        found.append(cut(*squares, rng))
    found = [one for one in found if one is not None]
    if not found:
        raise ValueError(f"{folder}: no picture of a character with contrast, of {len(files)}")
    with replacing(target) as part, open(part, "wb") as stream:
        write(stream, found)
    return target
