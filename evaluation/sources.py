"""Where scored pictures come from.

A source has `rows`, a dict for each picture (id, character, form, hand, split, preset, severity); `batches(batch_size, rank,
world)`, lists of positions in `rows` that cover each picture once; and `pictures(positions)` → (degraded, clean, guide or None),
each (N, 1, H, W) in [0, 1], strokes bright.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.degradation import Degradation, scored_preset
from datasets.pack import Pack
from datasets.pairs import EVALUATION_SEED, HandwritingSet, make_batch, sharded_batches
from datasets.rng import sample_keys
from evaluation.benchmark import Benchmark, spread
from restoration.exemplars import preset_of

SPLITS = ("seen_hands", "unseen_hands")


def describe(pack: Pack, id_: int, preset: str, severity: float) -> dict:
    """The row of one picture."""
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


class OnTheFlySource:
    """Held-out glyphs, degraded with a fixed seed at any image size.

    Args:
        chosen: positions in `data`.
        severity: of all pictures, in [0, 1]; None draws each from its preset.

    Attributes: `table`, the damage's settings.
    """

    def __init__(
        self, data: HandwritingSet, damage: Degradation, preset: str, seed: int, chosen: np.ndarray, severity: float | None = None
    ):
        self.data, self.seed, self.chosen = data, seed, chosen
        self.damage, self.table = partial(damage, severity=severity), damage.table
        ids = data.ids[chosen]
        keys = sample_keys(seed, 0, ids)
        severities = damage.severities(keys) if severity is None else np.full(len(ids), severity)
        names = [name or preset for name in damage.presets]  # those of a mixture
        presets = [names[position] for position in damage.drawn(keys)]
        self.rows = [describe(data.pack, *row) for row in zip(ids, presets, severities, strict=True)]

    def batches(self, batch_size: int, rank: int, world: int) -> list[np.ndarray]:
        return sharded_batches(len(self.rows), batch_size, rank, world)

    def pictures(self, positions: np.ndarray) -> tuple[Tensor, Tensor, Tensor | None]:
        sample = self.data.batch(self.chosen[positions])
        _, degraded, clean = make_batch(sample, self.damage, self.seed, 0)
        return degraded, clean, sample.get("guide")


def held_out(
    data: HandwritingSet, preset: str, limit: int, severity: float | None = None, seed: int = EVALUATION_SEED
) -> OnTheFlySource:
    """Glyphs of a set, `limit` of them spread over hands and characters (0: all), damaged by a preset, a YAML file or a mixture,
    or as a folder of scans is."""
    damage = Degradation(scored_preset(preset_of(preset)), data.img_size, data.device)
    return OnTheFlySource(data, damage, Path(preset).stem, seed, spread(data.pack, data.ids, limit), severity)


class BenchmarkSource:
    """The pictures of a benchmark at its own image size, and guides at the network's.

    Args:
        guides: the test set with guides, for a network that takes them; or None.
    """

    def __init__(self, benchmark: Benchmark, device: torch.device, guides: HandwritingSet | None = None):
        self.benchmark, self.device, self.guides = benchmark, device, guides
        self.rows = [describe(benchmark.pack, row["id"], row["preset"], row["severity"]) for row in benchmark.rows]

    def batches(self, batch_size: int, rank: int, world: int) -> list[np.ndarray]:
        return self.benchmark.batches(rank, world)  # its own batch size: with another a pixel may differ by one level

    def pictures(self, positions: np.ndarray) -> tuple[Tensor, Tensor, Tensor | None]:
        degraded, clean = (x.to(self.device) for x in self.benchmark.pictures(positions))
        if self.guides is None:
            return degraded, clean, None
        ids = [self.benchmark.rows[position]["id"] for position in positions]
        return degraded, clean, self.guides.batch(np.searchsorted(self.guides.ids, ids))["guide"]
