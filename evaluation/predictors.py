"""What is scored: a predictor restores degraded pictures; baselines are the methods that any network must beat.

A predictor is called with (positions in the source's rows, degraded, guide or None) and returns a `Prediction`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.filters import threshold_sauvola
from torch import Tensor, nn

from restoration.drawing import DEFAULT, Drawing
from restoration.guide import fit
from restoration.pipeline import Restorer
from restoration.reading import Reader
from util import images
from util.binarise import otsu


class Prediction(NamedTuple):
    """Restored pictures (N, 1, H, W) in [0, 1], strokes bright, as large as the degraded ones; the probability of ink, from which
    drawings differ; and {character: probability} of what each picture could be, where it was read."""

    restored: Tensor
    probability: Tensor
    readings: list[dict[str, float]] | None = None


Predictor = Callable[[np.ndarray, Tensor, Tensor | None], Prediction]


class PipelinePredictor:
    """What restore.py makes of each picture, saved as an 8-bit grey file: polarity and place found, network, and back.

    Args:
        forms: the character of each position, if the guide is given; None without guide.
        reader: whose readings are the guides instead.
        drawing: how to draw.
    """

    def __init__(
        self, restorer: Restorer, forms: list[str] | None = None, drawing: Drawing = DEFAULT, reader: Reader | None = None
    ):
        self.restorer, self.forms, self.drawing, self.reader = restorer, forms, drawing, reader

    def __call__(self, positions: np.ndarray, degraded: Tensor, guide: Tensor | None) -> Prediction:
        if self.forms:
            self.restorer.read_guides([self.forms[position] for position in positions])
        prepared = [
            self.restorer.prepare(images.from_grey(x), self.forms[position] if self.forms else None)
            for position, x in zip(positions, degraded[:, 0].cpu().numpy(), strict=True)
        ]
        restored, readings = self.restorer.restore(prepared, self.drawing), None
        if self.reader:
            readings = self.reader.read(restored)
            pairs = zip(restored, readings, strict=True)
            restored = self.restorer.restore([self.reader.guided(*pair) for pair in pairs], self.drawing)
        pictures = [np.asarray(one.picture(), dtype=np.float32) / 255 for one in restored]
        probability = [one.probability if one.prepared.polarity == "bright" else 1 - one.probability for one in restored]
        return Prediction(*(torch.from_numpy(np.stack(x))[:, None].to(degraded.device) for x in (pictures, probability)), readings)


class NetworkPredictor:
    """The bare network on squares whose strokes are bright. Other sizes than its own are resized to it and back."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, positions: np.ndarray | None, degraded: Tensor, guide: Tensor | None) -> Prediction:
        x = resize(degraded, self.model.img_size)
        x = F.pad(x, (0, 0, 0, 0, 0, self.model.in_chans - 1))  # no guide, and no state: the mean
        if guide is not None:
            if self.model.in_chans == 4:
                means = self.model(x).float().sigmoid()
                fitted = [fit(*pair)[0] for pair in zip(guide[:, 0].cpu().numpy(), means[:, 0].cpu().numpy(), strict=True)]
                guide = torch.from_numpy(np.stack(fitted))[:, None].to(x.device)
            x[:, 1:2] = guide
        restored = self.model(x).float().sigmoid()
        if not restored.isfinite().all():
            raise ValueError("the network's output is not finite: its training has diverged")
        restored = resize(restored, degraded.shape[-1])
        return Prediction(restored, restored)


def resize(x: Tensor, size: int) -> Tensor:
    """(N, 1, H, H) in [0, 1] → (N, 1, size, size) in [0, 1]; bicubic, with antialiasing."""
    if x.shape[-1] == size:
        return x
    return F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


class FolderPredictor:
    """Pictures of any method, strokes bright, under the names that `prepare_data.py pairs` gave the degraded ones.

    Raises FileNotFoundError without the folder; ValueError listing every file that is missing, unexpected, of another size or
    unreadable.
    """

    def __init__(self, folder: str | Path, files: list[str], size: int):
        self.folder, self.files = Path(folder), files
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of predictions")
        there = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        faults = [f"{name}: missing" for name in sorted(set(files) - there)]
        faults += [f"{name}: not expected" for name in sorted(there - set(files))]
        for name in sorted(there & set(files)):
            try:
                height, width = images.read_grey(self.folder / name).shape
                if (height, width) != (size, size):
                    faults.append(f"{name}: {width}×{height} pixels instead of {size}×{size}")
            except (OSError, ValueError) as error:
                faults.append(f"{name}: {str(error).removeprefix(f'{self.folder / name}: ')}")
        if faults:
            raise ValueError(f"{folder}: {len(faults)} predictions cannot be scored:\n" + "\n".join(faults))

    def __call__(self, positions: np.ndarray, degraded: Tensor, guide: Tensor | None) -> Prediction:
        pictures = [images.read_grey(self.folder / self.files[position]) for position in positions]
        restored = torch.from_numpy(np.stack(pictures))[:, None].to(degraded.device)
        return Prediction(restored, restored)


# --- baselines ----------------------------------------------------------------------------------------------------------


def median(x: Tensor) -> Tensor:
    """Median filter of 3×3 pixels, borders repeated: (N, 1, H, W) → the same."""
    return torch.from_numpy(ndimage.median_filter(x.cpu().numpy(), (1, 1, 3, 3), mode="nearest")).to(x.device)


def sauvola(x: Tensor) -> Tensor:
    """Strokes by a local threshold: (N, 1, H, W) in [0, 1], strokes bright → (N, 1, H, W) of 0 and 1.

    Sauvola & Pietikäinen, "Adaptive document image binarization", Pattern Recognition 33(2), 2000, with k = .2 in a window of a
    quarter of the shorter edge. It is made for dark text on bright paper, so it is applied to 1 - x.
    """
    window = 2 * max(1, min(x.shape[-2:]) // 8) + 1
    pages = 1 - x[:, 0].double().cpu().numpy()
    ink = np.stack([page < threshold_sauvola(page, window, k=0.2, r=0.5) for page in pages])
    return torch.from_numpy(ink)[:, None].to(x)


BASELINES = {"otsu": otsu, "median_otsu": lambda x: otsu(median(x)), "sauvola": sauvola}
