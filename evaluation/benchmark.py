"""The frozen benchmark: degraded pictures of unseen characters that are the same on every machine.

The pack, a preset's table and the constants below determine the pictures. The benchmark's name is a hash of all of these, so two
results with the same name were scored on the same pictures. The pictures are made on the CPU in float32, at one size, in batches of
one size, and rounded to 8 bits, like the files that `prepare_data.py pairs --benchmark` writes.
"""

import hashlib
import json
import re
from collections.abc import Sequence

import numpy as np
import torch

from datasets import degradation
from datasets.degradation import OPERATIONS, Degradation, scored_preset
from datasets.pack import Pack
from datasets.pairs import HandwritingSet, smooth
from datasets.rng import sample_keys

IMG_SIZE = 224
PRESETS = ("rubbing", "paper", "bamboo", "mixed")
SEVERITIES = (0.2, 0.5, 0.8)
HANDS = ("seen", "unseen")
PER_CELL = 128  # pictures for each preset, hands and severity: 768 per preset, 3,072 in total
SEED = 30_000  # of the damage; not used in training and validation
BATCH = 32  # pictures that are degraded together: with another batch size a pixel may differ by a level


def spread(pack: Pack, ids: np.ndarray, limit: int, salt: str = "") -> np.ndarray:
    """Positions (limit,) in `ids`, spread evenly over the hands; within a hand the order of the forms is that of a hash.

    The choice does not depend on the order of the pack, and the choice for a larger limit contains that for a smaller one. 0
    chooses all. Another salt gives another choice.
    """
    if not 0 < limit < len(ids):
        return np.arange(len(ids))
    names = [pack.hands[hand].name for hand in pack.hand[ids]]
    hashes = [hashlib.sha256(f"{salt}{name} {form}".encode()).digest() for name, form in zip(names, pack.form[ids], strict=True)]
    turn = np.empty(len(ids), dtype=int)  # of each glyph within its hand
    for name in set(names):
        glyphs = [i for i, other in enumerate(names) if other == name]
        turn[sorted(glyphs, key=hashes.__getitem__)] = np.arange(len(glyphs))
    return np.sort(sorted(range(len(ids)), key=lambda i: (turn[i], hashes[i]))[:limit])


class Benchmark:
    """The benchmark pictures of some presets.

    Args:
        pack: the handwriting set.
        presets: names in PRESETS, or others that `load_preset` takes.
        per_cell, img_size, seed: values other than the constants above give another benchmark, for tests.

    Attributes: `rows`, a dict for each picture with id (in the pack), preset, severity, hands ("seen" or "unseen") and file (its
    name as a picture file); `name`, of the benchmark; `names`, of each preset's part, the same alone and together with others.

    A cell has the same glyphs and random numbers at each severity, so the severities of one picture can be compared.
    """

    def __init__(
        self, pack: Pack, presets: Sequence[str] = PRESETS, per_cell: int = PER_CELL, img_size: int = IMG_SIZE, seed: int = SEED
    ):
        self.pack, self.img_size, self.seed = pack, img_size, seed
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
                        self.rows.append({"id": id_, "preset": preset, "severity": severity, "hands": hands, "file": file})
        names = sorted(self.names.values())
        self.name = names[0] if len(names) == 1 else f"all-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:10]}"
        if len({row["file"] for row in self.rows}) < len(self.rows):
            raise ValueError("two hands have names that make the same file name; rename one in the manifest and build again")

    def _hash(self, preset: str, table: dict, chosen: dict[str, np.ndarray]) -> str:
        # The order of a table is the order of its operations; 1 and 1.0 differ. Operations and "side" have their oldest names,
        # so that the hash stays the same.
        ingredients = {
            "pack": self.pack.checksum,
            "ids": {hands: ids.tolist() for hands, ids in chosen.items()},
            "seed": self.seed,
            "preset": preset,
            "table": {OPERATIONS[name].stream if name in OPERATIONS else name: row for name, row in table.items()},
            "severities": SEVERITIES,
            "side": self.img_size,
            "batch": BATCH,
            "generator": degradation.VERSION,
        }
        return f"{preset}-{hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:10]}"

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, rank: int = 0, world: int = 1) -> list[np.ndarray]:
        """Positions in batches of one preset and severity; each picture is in one batch of one process."""
        cells: dict[tuple, list[int]] = {}
        for position, row in enumerate(self.rows):
            cells.setdefault((row["preset"], row["severity"], row["hands"]), []).append(position)
        batches = [np.array(cell[i : i + BATCH]) for cell in cells.values() for i in range(0, len(cell), BATCH)]
        return batches[rank::world]

    def pictures(self, batch: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(degraded, clean) for one of `batches()`: (N, 1, img_size, img_size) float32 on the CPU, multiples of 1/255."""
        rows = [self.rows[position] for position in batch]
        ids = np.array([row["id"] for row in rows])
        damage = Degradation(self.tables[rows[0]["preset"]], self.img_size)
        pair = damage(smooth(self.pack.glyphs(ids), self.img_size), sample_keys(self.seed, 0, ids), rows[0]["severity"])
        return tuple((x.clamp(0, 1) * 255).round() / 255 for x in pair)
