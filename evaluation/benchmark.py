"""The frozen benchmark: degraded pictures of unseen characters that are the same on every machine.

The pack, a preset's table and the constants below determine the pictures. The benchmark's name is a hash of all of these, so two
results with the same name were scored on the same pictures. The pictures are made on the CPU in float32, at one size, in batches of
one size, and rounded to 8 bits, like the files that `prepare_data.py pairs --benchmark` writes.

Another version of torch or another CPU may still draw other pictures, so `Benchmark.verify` draws some of them again and compares
them with benchmark.json. `python -m evaluation.benchmark` writes that file from data/zi.pack; do it only to freeze a new benchmark.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from datasets import degradation
from datasets.degradation import OPERATIONS, Degradation, scored_preset
from datasets.pack import Pack, open_pack
from datasets.pairs import HandwritingSet, smooth
from datasets.rng import sample_keys
from restoration.pipeline import PACK
from util.files import write_json

FROZEN = Path(__file__).with_name("benchmark.json")  # {preset: {"name", "torch": version, "pictures": {file: block means}}}
CHECKED = 32  # pictures in it
TOLERANCE = 2  # 8-bit levels by which a block mean may differ
IMG_SIZE = 224
PRESETS = ("rubbing", "paper", "bamboo", "mixed", "classic")
SEVERITIES = (0.2, 0.5, 0.8)
HANDS = ("seen", "unseen")
PER_CELL = 128  # pictures for each preset, hands and severity: 768 per preset, 3,840 in total
CLERICAL_PER_CELL = 32  # pictures for each preset and severity
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
        hands: {name: ids in the pack to choose from}; by default the test characters of the "seen" and of the "unseen" hands.

    Attributes: `rows`, a dict for each picture with id (in the pack), preset, severity, hands (a name) and file (its name as a
    picture file); `name`, of the benchmark; `names`, of each preset's part, the same alone and together with others.

    A cell has the same glyphs and random numbers at each severity, so the severities of one picture can be compared.
    """

    def __init__(
        self,
        pack: Pack,
        presets: Sequence[str] = PRESETS,
        per_cell: int = PER_CELL,
        img_size: int = IMG_SIZE,
        seed: int = SEED,
        *,
        hands: dict[str, np.ndarray] | None = None,
    ):
        self.pack, self.img_size, self.seed = pack, img_size, seed
        self.tables = {preset: scored_preset(preset) for preset in presets}
        self.rows: list[dict] = []
        self.names: dict[str, str] = {}
        ids_of = hands or {name: HandwritingSet(pack, "test", name).ids for name in HANDS}
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

    def block_means(self, position: int) -> np.ndarray:
        """(64,) uint8: the means of the 8×8 blocks of a degraded picture that is drawn alone."""
        degraded = self.pictures(np.array([position]))[0]
        return (F.avg_pool2d(degraded, self.img_size // 8) * 255).round().to(torch.uint8).numpy().ravel()

    def verify(self) -> bool:
        """Whether this is the frozen benchmark, or presets of it: FROZEN has their names.

        Raises ValueError if it is, but pictures drawn here differ from the frozen ones.
        """
        frozen = json.loads(FROZEN.read_text(encoding="utf-8"))
        parts = [frozen[preset] for preset, name in self.names.items() if frozen.get(preset, {}).get("name") == name]
        positions = {row["file"]: position for position, row in enumerate(self.rows)}
        for part in parts:
            for file, means in part["pictures"].items():
                difference = self.block_means(positions[file]).astype(int) - list(bytes.fromhex(means))
                if (worst := abs(difference).max()) > TOLERANCE:
                    raise ValueError(
                        f"benchmark {part['name']}: {file} differs from the frozen picture by {worst}/255 in the mean of a block. "
                        f"torch {torch.__version__} on this CPU draws other pictures than torch {part['torch']}, which froze the "
                        "benchmark, so scores would not be comparable: install that version, or score on a machine that draws the "
                        "same pictures (`prepare_data.py pairs --benchmark` writes them, evaluate.py --predictions scores results)"
                    )
        return len(parts) == len(self.names)

    def freeze(self) -> None:
        """Writes FROZEN, with pictures spread evenly over the rows."""
        parts = {preset: {"name": name, "torch": torch.__version__, "pictures": {}} for preset, name in self.names.items()}
        for position in np.linspace(0, len(self) - 1, CHECKED).round().astype(int).tolist():
            row = self.rows[position]
            parts[row["preset"]]["pictures"][row["file"]] = self.block_means(position).tobytes().hex()
        write_json(FROZEN, parts)


def clerical_benchmark(pack: Pack, presets: Sequence[str]) -> Benchmark:
    """Test characters of the pack's clerical hands, to report beside the frozen benchmark, whose hands are not clerical."""
    ids = HandwritingSet(pack, "test", "all").ids
    is_clerical = np.array([hand.style == "clerical" for hand in pack.hands])
    return Benchmark(pack, presets, CLERICAL_PER_CELL, hands={"clerical": ids[is_clerical[pack.hand[ids]]]})


if __name__ == "__main__":
    Benchmark(open_pack(PACK)).freeze()
