"""The frozen benchmark: damaged pictures of unseen characters that are the same for everybody.

Every picture follows from the pack, a preset's table and a few numbers below; its name is a hash of them all, so that two
results with one name were scored on the same pictures. The pictures are made on the CPU in float32, at one side, in batches
of one size, and rounded to 8 bits, as the files that `prepare_data.py pairs --benchmark` writes.
"""

import hashlib
import json
import re
from collections.abc import Sequence

import numpy as np
import torch

from datasets import degradation
from datasets.degradation import Degradation, sample_keys, scored_preset
from datasets.pack import Pack
from datasets.pairs import HandwritingSet, smooth

SIDE = 224
PRESETS = ("rubbing", "paper", "bamboo", "mixed")
SEVERITIES = (0.2, 0.5, 0.8)
HANDS = ("seen", "unseen")
PER_CELL = 128  # pictures for each preset, hands and severity: 768 a preset, 3,072 in all
SEED = 30_000  # of the damage; neither training nor validation uses it
BATCH = 32  # pictures that are damaged together: across batch sizes a pixel may differ by a level


def spread(pack: Pack, ids: np.ndarray, limit: int, salt: str = "") -> np.ndarray:
    """Positions (limit,) of `ids` that take as many from each hand as there are, each hand's forms in the order of a hash.

    Neither depends on the order of the pack, and a larger limit contains a smaller one. 0: all positions. Another salt gives
    another choice.
    """
    if not 0 < limit < len(ids):
        return np.arange(len(ids))
    names = [pack.hands[hand].name for hand in pack.hand[ids]]
    hashes = [hashlib.sha256(f"{salt}{name} {form}".encode()).digest() for name, form in zip(names, pack.form[ids], strict=True)]
    turn = np.empty(len(ids), dtype=int)  # of each glyph within its hand
    for name in set(names):
        own = [i for i, other in enumerate(names) if other == name]
        turn[sorted(own, key=hashes.__getitem__)] = np.arange(len(own))
    return np.sort(sorted(range(len(ids)), key=lambda i: (turn[i], hashes[i]))[:limit])


class Benchmark:
    """The pictures of some presets.

    Args:
        pack: the handwriting set. presets: names among PRESETS, or any that `load_preset` takes.
        per_cell, side, seed: others than the constants above make another benchmark, for tests.

    Attributes: `rows`, a dict for each picture: id (of the pack), preset, severity, hands ("seen", "unseen"), file (its name
    as a picture file). `name`: of the whole. `names`: of each preset's part, which is the same alone and among others.

    The glyphs of a cell are the same at each severity, and so are the draws: the severities of one picture compare.
    """

    def __init__(self, pack: Pack, presets: Sequence[str] = PRESETS, per_cell: int = PER_CELL, side: int = SIDE, seed: int = SEED):
        self.pack, self.side, self.seed = pack, side, seed
        self.tables = {preset: scored_preset(preset) for preset in presets}
        self.rows: list[dict] = []
        self.names: dict[str, str] = {}
        ids_of = {hands: HandwritingSet(pack, "test", hands).ids for hands in HANDS}
        safe = [re.sub(r"[^\w.-]+", "-", hand.name) for hand in pack.hands]
        for preset, table in self.tables.items():
            chosen = {hands: ids[spread(pack, ids, per_cell, f"{preset} ")] for hands, ids in ids_of.items()}
            self.names[preset] = self._hash(preset, table, chosen)
            for severity in SEVERITIES:
                for hands, ids in chosen.items():
                    for id_ in ids.tolist():
                        file = f"{chr(pack.form[id_])}_{safe[pack.hand[id_]]}_{preset}_{severity}.png"
                        row = {"id": id_, "preset": preset, "severity": severity, "hands": hands, "file": file}
                        self.rows.append(row)
        self.name = self._joined()
        if len({row["file"] for row in self.rows}) < len(self.rows):
            raise ValueError("two hands have names that make the same file name; rename one in the manifest and build again")

    def _hash(self, preset: str, table: dict, chosen: dict[str, np.ndarray]) -> str:
        # The order of a table is the order of its operations; numbers are written as Python does, 1 and 1.0 apart.
        ingredients = {
            "pack": self.pack.checksum,
            "ids": {hands: ids.tolist() for hands, ids in chosen.items()},
            "seed": self.seed,
            "preset": preset,
            "table": table,
            "severities": SEVERITIES,
            "side": self.side,
            "batch": BATCH,
            "generator": degradation.VERSION,
        }
        return f"{preset}-{hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:10]}"

    def _joined(self) -> str:
        if len(self.names) == 1:
            return next(iter(self.names.values()))
        return f"all-{hashlib.sha256(' '.join(sorted(self.names.values())).encode()).hexdigest()[:10]}"

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, rank: int = 0, world: int = 1) -> list[np.ndarray]:
        """Positions, in batches of a preset and severity: every picture in one batch of one process."""
        cells: dict[tuple, list[int]] = {}
        for position, row in enumerate(self.rows):
            cells.setdefault((row["preset"], row["severity"], row["hands"]), []).append(position)
        made = [np.array(cell[i : i + BATCH]) for cell in cells.values() for i in range(0, len(cell), BATCH)]
        return made[rank::world]

    def pictures(self, batch: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(damaged, clean) of one of `batches()`: (N, 1, side, side) float32 on the CPU, multiples of 1/255."""
        rows = [self.rows[position] for position in batch]
        preset, severity = rows[0]["preset"], rows[0]["severity"]
        ids = np.array([row["id"] for row in rows])
        keys = sample_keys(self.seed, 0, ids)
        damage = Degradation(self.tables[preset], self.side)
        pair = damage(smooth(self.pack.glyphs(ids), self.side), keys, severity)
        return tuple((x.clamp(0, 1) * 255).round() / 255 for x in pair)
