"""Scores of restored pictures: where the pictures come from, who restores them, and the table of all scores.

A *source* gives pictures in batches: `rows` (a dict for each picture: id, character, form, hand, split, preset, severity),
`batches(batch_size, rank, world)` (positions) and `pictures(positions)` → (damaged, clean, guide or None). A *restorer* is
called with (positions, damaged, guide) and gives the restored pictures, as large as the damaged ones.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from datasets.benchmark import Benchmark
from datasets.degradation import Degradation, sample_keys
from datasets.pack import Pack
from datasets.pairs import HandwritingSet, plain_batches
from engine import network_input
from util import distributed, images, metrics, strokes
from util.binarise import median, otsu, sauvola
from util.statistics import BINS, calibration_sums

METHODS = ("degraded", "restored", "otsu", "median_otsu", "sauvola", "clean")  # "degraded": the picture as it is, unchanged
LEGIBILITY = ("top1", "top5")  # the only scores of "clean", and there with a recogniser alone
SCORES = ("psnr", "ssim", "f1", "pseudo_f1", "drd", "chamfer", "broken", "invented", "psnr_damaged", "psnr_intact", "ssim_inverse")
HARM = "psnr_clean"  # of what becomes of the clean picture; not where the restored pictures are given
SPLITS = ("seen_hands", "unseen_hands")

Restorer = Callable[[np.ndarray, Tensor, Tensor | None], Tensor]


def describe(pack: Pack, id_: int, preset: str, severity: float) -> dict:
    """The row of a picture."""
    hand = pack.hands[pack.hand[id_]]
    return {
        "id": int(id_),
        "character": chr(pack.character[id_]),
        "form": chr(pack.form[id_]),
        "hand": hand.name,
        "split": SPLITS[hand.role == "held_out"],
        "preset": preset,
        "severity": round(float(severity), 4),
    }


class FreeSet:
    """Some test glyphs, damaged with a seed at the network's own side. `chosen`: positions of `data`."""

    def __init__(self, data: HandwritingSet, damage: Degradation, preset: str, seed: int, chosen: np.ndarray):
        self.data, self.damage, self.seed, self.chosen = data, damage, seed, chosen
        ids = data.ids[chosen]
        severities = damage.severities(sample_keys(seed, 0, ids))
        self.rows = [describe(data.pack, id_, preset, severity) for id_, severity in zip(ids, severities, strict=True)]

    def batches(self, batch_size: int, rank: int, world: int) -> list[np.ndarray]:
        return plain_batches(len(self.rows), batch_size, rank, world)

    def pictures(self, positions: np.ndarray) -> tuple[Tensor, Tensor, Tensor | None]:
        x, clean = network_input(self.data.batch(self.chosen[positions]), self.damage, self.seed, 0)
        return x[:, :1], clean, x[:, 1:] if x.shape[1] > 1 else None


class FrozenSet:
    """The pictures of a benchmark, at its own side; the guides at the network's.

    Args:
        guides: the test set with guides at the network's side, for a network that takes them; None without.
    """

    def __init__(self, benchmark: Benchmark, device: torch.device, guides: HandwritingSet | None = None):
        self.benchmark, self.device, self.guides = benchmark, device, guides
        self.rows = [describe(benchmark.pack, row["id"], row["preset"], row["severity"]) for row in benchmark.rows]

    def batches(self, batch_size: int, rank: int, world: int) -> list[np.ndarray]:
        return self.benchmark.batches(rank, world)  # its own batches, or a pixel could differ by a level

    def pictures(self, positions: np.ndarray) -> tuple[Tensor, Tensor, Tensor | None]:
        damaged, clean = (x.to(self.device) for x in self.benchmark.pictures(positions))
        if self.guides is None:
            return damaged, clean, None
        ids = [self.benchmark.rows[position]["id"] for position in positions]
        return damaged, clean, self.guides.batch(np.searchsorted(self.guides.ids, ids))["guide"]


class NetworkRestorer:
    """A network of this project; pictures of another side than its own are scaled down to it and the result back up.

    One that takes a guide is given zeros where there is none."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, positions: np.ndarray, damaged: Tensor, guide: Tensor | None) -> Tensor:
        x = rescale(damaged, self.model.img_size)
        if self.model.in_chans == 2:
            x = torch.cat([x, torch.zeros_like(x) if guide is None else guide], dim=1)
        restored = self.model(x).float().sigmoid()
        if not restored.isfinite().all():
            raise ValueError("the network gives values that are no numbers: its training has diverged")
        return rescale(restored, damaged.shape[-1])


def rescale(x: Tensor, side: int) -> Tensor:
    """(N, 1, H, H) in [0, 1] → (N, 1, side, side) in [0, 1]: bicubic, smoothed before it shrinks."""
    if x.shape[-1] == side:
        return x
    return F.interpolate(x, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


class FolderRestorer:
    """Pictures that any method has written, strokes bright, under the names that `prepare_data.py pairs` gave the damaged ones.

    ValueError that lists, all at once, what is missing, not expected, of another size, or no readable picture.
    """

    def __init__(self, folder: str | Path, files: list[str], side: int):
        self.folder, self.files = Path(folder), files
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of predictions")
        there = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        faults = [f"{name}: missing" for name in sorted(set(files) - there)]
        faults += [f"{name}: not expected" for name in sorted(there - set(files))]
        for name in sorted(there & set(files)):
            try:
                height, width = images.read_grey(self.folder / name).shape
                if (height, width) != (side, side):
                    faults.append(f"{name}: {width}×{height} pixels instead of {side}×{side}")
            except (OSError, ValueError) as error:
                faults.append(f"{name}: {str(error).removeprefix(f'{self.folder / name}: ')}")
        if faults:
            raise ValueError(f"{folder}: {len(faults)} predictions cannot be scored:\n" + "\n".join(faults))

    def __call__(self, positions: np.ndarray, damaged: Tensor, guide: Tensor | None) -> Tensor:
        read = [images.read_grey(self.folder / self.files[position]) for position in positions]
        return torch.from_numpy(np.stack(read))[:, None].to(damaged.device)


class Reader:
    """Reads characters.

    Args:
        network: (N, 1, S, S) float in [0, 1], strokes bright → logits (N, classes). info: "groups", the code point of each
            class in order, and "side", S. groups: the code point of each picture's group.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], info: dict, groups: np.ndarray):
        self.network, self.side = network, info["side"]
        place = {group: i for i, group in enumerate(info["groups"])}
        self.label = np.array([place.get(int(group), -1) for group in groups])

    def __call__(self, positions: np.ndarray, x: Tensor) -> Tensor:
        """(N, 2) float: whether the character is the first guess, and among the first five. NaN for one that is no class."""
        label = torch.from_numpy(self.label[positions]).to(x.device)[:, None]
        guesses = self.network(rescale(x, self.side)).topk(5).indices
        hit = torch.cat([guesses[:, :1] == label, (guesses == label).any(1, keepdim=True)], dim=1).float()
        return torch.where(label < 0, torch.nan, hit)


def with_baselines(x: Tensor, restored: Tensor) -> list[Tensor]:
    """What the first five of METHODS make of x, (N, 1, H, W)."""
    return [x, restored, otsu(x), otsu(median(x)), sauvola(x)]


class Scorer:
    """Scores pictures of a source, always in the same way. `scores`: names of the columns, legibility first with a reader."""

    def __init__(self, source: FreeSet | FrozenSet, restore: Restorer, read: Reader | None = None):
        self.source, self.restore, self.read = source, restore, read
        harm = () if isinstance(restore, FolderRestorer) else (HARM,)
        self.scores = (*(LEGIBILITY if read else ()), *SCORES, *harm)

    @torch.inference_mode()
    def pictures(self, positions: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """(damaged, restored, clean) of N positions, each (N, 1, side, side) in [0, 1]."""
        damaged, clean, guide = self.source.pictures(positions)
        return damaged, self.restore(positions, damaged, guide), clean

    @torch.inference_mode()
    def table(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, methods, scores) float64 in the order of METHODS and `scores`, and the `calibration_sums` (N, 3, bins)."""
        damaged, clean, guide = self.source.pictures(positions)
        restored = self.restore(positions, damaged, guide)
        results = with_baselines(damaged, restored)
        columns = {name: torch.full((len(positions), len(METHODS)), torch.nan, dtype=torch.float64) for name in self.scores}
        for row, x in enumerate(results):
            columns["psnr"][:, row] = metrics.psnr(x, clean)
            columns["f1"][:, row] = metrics.ink_f1(x, clean)
            columns["drd"][:, row] = metrics.drd(x, clean)
            columns["ssim"][:, row], columns["ssim_inverse"][:, row] = metrics.ssim_both(x, clean)
            columns["psnr_damaged"][:, row], columns["psnr_intact"][:, row] = metrics.area_psnr(x, damaged, clean)
        if HARM in columns:
            for row, x in enumerate(with_baselines(clean, self.restore(positions, clean, guide))):
                columns[HARM][:, row] = metrics.psnr(x, clean)
        inks = [(otsu(x)[:, 0] > 0).cpu().numpy() for x in (*results, clean)]
        drawn = np.stack([strokes.stroke_scores(list(some[:-1]), some[-1]) for some in zip(*inks, strict=True)])
        for column, name in enumerate(strokes.SCORES):
            columns[name][:, : len(results)] = torch.from_numpy(drawn[:, :, column])
        if self.read:
            for row, x in enumerate((*results, clean)):
                columns["top1"][:, row], columns["top5"][:, row] = self.read(positions, x).T
        return torch.stack(list(columns.values()), dim=2).numpy(), calibration_sums(restored, clean)


def score_all(scorer: Scorer, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """What `Scorer.table` gives for all n pictures, each scored by one process, on every process."""
    rank, world, n = distributed.rank(), distributed.world_size(), len(scorer.source.rows)
    bar = tqdm(scorer.source.batches(batch_size, rank, world), desc="scoring", unit="batch", disable=True if rank else None)
    parts = [(batch, *scorer.table(batch)) for batch in bar]

    scores, sums = np.empty((n, len(METHODS), len(scorer.scores))), np.empty((n, 3, BINS), dtype=np.int64)
    times = np.zeros(n, dtype=int)
    for batch, table, counts in (part for parts in distributed.gather(parts) for part in parts):
        scores[batch], sums[batch] = table, counts
        times[batch] += 1
    if not (times == 1).all():
        raise RuntimeError(f"{(times != 1).sum()} of {n} pictures were not scored exactly once")
    return scores, sums
