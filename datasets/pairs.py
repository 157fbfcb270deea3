"""What a network is trained and scored on: clean handwriting from the pack or a folder, or a folder of ready pairs.

All three give the same samples: a dict with `id` (int64: what the damage is seeded with), `clean` (N, 1, side, side) float in
[0, 1], strokes bright, and, where there are any, `guide` and `degraded` like it. Batches are lists of positions, and the
functions that make these lists know the processes; so every data set is read in the same order however many there are.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from datasets.degradation import splitmix64, to_device
from datasets.pack import Pack
from datasets.split import check_no_leak, group_of, side_of
from util import images


def smooth(glyphs: Tensor, side: int) -> Tensor:
    """(N, 1, S, S) uint8 of 0 and 1 → (N, 1, side, side) float in [0, 1] with the soft edges of a scan."""
    x = glyphs.float()
    if side != glyphs.shape[-1]:
        return F.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=True).clamp_(0, 1)
    for axis in (2, 3):  # [1/4, 1/2, 1/4]; on a CPU a convolution of one channel takes 20 times as long
        sharp, rest = x, side - 1
        x = sharp / 2
        x.narrow(axis, 1, rest).add_(sharp.narrow(axis, 0, rest), alpha=0.25)
        x.narrow(axis, 0, rest).add_(sharp.narrow(axis, 1, rest), alpha=0.25)
    return x


class HandwritingSet:
    """Glyphs of a pack, kept as bits on the device.

    Args:
        pack: see `datasets.pack.open_pack`.
        split: "train", "val" or "test": the side of the characters; or "all".
        hands: "seen" (those of training), "unseen" (held out) or "all".
        side: of the pictures, in pixels.
        guide: also give the standard glyph of each form, zeros where the pack has none.

    Raises ValueError if nothing is left, or if a form stands on two sides of the split.
    """

    def __init__(
        self,
        pack: Pack,
        split: str,
        hands: str = "seen",
        side: int = 224,
        guide: bool = False,
        device: torch.device | str = "cpu",
    ):
        roles = {"seen": ("train",), "unseen": ("held_out",), "all": ("train", "held_out")}[hands]
        of_hand = np.array([hand.role in roles for hand in pack.hands])
        of_split = split_of_glyphs(pack) == split if split != "all" else np.full(len(pack), True)
        self.pack, self.side, self.device = pack, side, torch.device(device)
        self.ids = np.flatnonzero(of_hand[pack.hand] & of_split)
        if not len(self.ids):
            raise ValueError(f"the handwriting set has no glyphs of {hands} hands in the {split} split")
        self.bits = torch.from_numpy(pack.bits[self.ids]).to(self.device)
        self.guide_bits = None
        if guide:
            guides = np.flatnonzero(np.array([hand.role == "guide" for hand in pack.hands])[pack.hand])
            row_of_form = {form: row for row, form in enumerate(pack.form[guides].tolist(), start=1)}
            self.guide_row = np.array([row_of_form.get(form, 0) for form in pack.form[self.ids].tolist()])
            blank = np.zeros((1, pack.bits.shape[1]), np.uint8)
            self.guide_bits = torch.from_numpy(np.concatenate([blank, pack.bits[guides]])).to(self.device)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, positions: np.ndarray) -> dict:
        """The samples at these positions (N,), made at once on the device."""
        sample = {"id": self.ids[positions], "clean": self._draw(self.bits, positions)}
        if self.guide_bits is not None:
            sample["guide"] = self._draw(self.guide_bits, self.guide_row[positions])
        return sample

    def _draw(self, bits: Tensor, rows: np.ndarray) -> Tensor:
        packed = bits[to_device(rows, torch.int64, self.device)]
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=self.device)
        pixels = (packed[:, :, None] >> shifts) & 1
        return smooth(pixels.view(len(rows), 1, self.pack.side, self.pack.side), self.side)


def split_of_glyphs(pack: Pack) -> np.ndarray:
    """(n,) "train", "val" or "test" for each glyph of a pack; ValueError if a form stands on two sides."""
    groups = np.unique(pack.group)
    side = np.array([side_of(chr(group)) for group in groups])[np.searchsorted(groups, pack.group)]
    check_no_leak({name: map(chr, np.unique(pack.form[side == name])) for name in np.unique(side)})
    return side


class _Pictures(Dataset):
    """Pictures in files, read one by one: for a DataLoader."""

    def __init__(self, files: list[dict[str, Path]], side: int):
        self.files, self.side = files, side
        self.reading = torch.full((256,), -1).share_memory_()  # what each worker is at: its end tells nobody

    def __len__(self) -> int:
        return len(self.files)

    def hash(self) -> str:
        """Of the files' names in their order: equal names make equal batches."""
        names = [path.name for pair in self.files for path in pair.values()]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def __getitem__(self, position: int) -> dict:
        worker = get_worker_info()
        if worker:
            self.reading[worker.id] = position
        read = {key: images.read_grey(path) for key, path in self.files[position].items()}
        squares = {key: images.to_square(x, images.whole(*x.shape), self.side) for key, x in read.items()}
        if images.find_polarity(read["clean"]) == "dark":
            squares = {key: 1 - x for key, x in squares.items()}
        if worker:
            self.reading[worker.id] = -1
        return {"id": position, **{key: torch.from_numpy(x)[None] for key, x in squares.items()}}


def character_folder(root: str | Path, split: str, side: int = 224) -> _Pictures:
    """Clean pictures as the classic set is laid out: root/<字>/*.png; damaged on the fly.

    Raises FileNotFoundError without any picture, ValueError listing every file that cannot be used.
    """
    files = sorted(path for path in Path(root).glob("*/*") if path.suffix.lower() in images.SUFFIXES)
    bad = [f"{path}: its folder is not named by one character" for path in files if len(path.parent.name) != 1]
    _refuse(root, files, bad + _unreadable(files))
    chosen = [{"clean": path} for path in files if side_of(group_of(path.parent.name)) == split]
    return _Pictures(_some(chosen, root, split), side)


def pair_folder(root: str | Path, split: str, side: int = 224) -> _Pictures:
    """Ready pairs: root/degraded and root/clean, or root/input and root/target, with the same names.

    A pair stands on the side of the character that its name begins with or, without one, of its name.
    Raises FileNotFoundError without any picture, ValueError listing every file that cannot be used.
    """
    root = Path(root)
    damaged, clean = ("degraded", "clean") if (root / "degraded").is_dir() else ("input", "target")
    found = [
        {path.stem: path for path in sorted((root / part).glob("*")) if path.suffix.lower() in images.SUFFIXES}
        for part in (damaged, clean)
    ]
    files = [path for side_files in found for path in side_files.values()]
    bad = [f"{found[0][stem]}: no such picture in {clean}/" for stem in sorted(found[0].keys() - found[1].keys())]
    bad += [f"{found[1][stem]}: no such picture in {damaged}/" for stem in sorted(found[1].keys() - found[0].keys())]
    _refuse(root, files, bad + _unreadable(files))
    chosen = [
        {"degraded": found[0][stem], "clean": found[1][stem]}
        for stem in sorted(found[0])
        if side_of(group_of(stem[0]) if ord(stem[0]) > 0x2E80 else stem) == split
    ]
    return _Pictures(_some(chosen, root, split), side)


def _unreadable(files: list[Path]) -> list[str]:
    def fault(path: Path) -> str | None:
        try:
            images.read_grey(path)
        except (OSError, ValueError) as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        return [told for told in pool.map(fault, files) if told]


def _refuse(root: str | Path, files: list[Path], bad: list[str]) -> None:
    if not files:
        raise FileNotFoundError(f"{root}: no pictures in <character>/*.png, degraded/ and clean/, or input/ and target/")
    if bad:
        raise ValueError(f"{root}: {len(bad)} files cannot be used:\n" + "\n".join(bad))


def _some(chosen: list, root: str | Path, split: str) -> list:
    if not chosen:
        raise ValueError(f"{root}: none of its characters is in the {split} split (85 % train, 5 % val, 10 % test); add characters")
    return chosen


# --- batches ----------------------------------------------------------------------------------------------------------


def shuffled_batches(n: int, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[np.ndarray]:
    """One epoch's positions for one process: every process takes its part of the same global order, and incomplete
    global batches are left out. ValueError if n is less than one global batch."""
    steps = n // (batch_size * world)
    if not steps:
        raise ValueError(f"{n} samples do not fill one batch of {batch_size} on {world} processes: lower --batch_size")
    seeds = splitmix64(np.arange(2, dtype=np.uint64) + np.uint64((seed << 20) + epoch))
    order = np.random.Generator(np.random.Philox(key=seeds)).permutation(n)
    return list(order[: steps * batch_size * world].reshape(steps, world, batch_size)[:, rank])


def plain_batches(n: int, batch_size: int, rank: int = 0, world: int = 1) -> list[np.ndarray]:
    """Every position once over all processes, without padding."""
    mine = np.arange(rank, n, world)
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]


def load(dataset, batches: list[np.ndarray], device: torch.device, workers: int = 0) -> Iterator[dict]:
    """The samples of each batch, on the device. Workers read folder data sets only; the pack needs none.

    They start here, in the caller's thread: a process that a thread of a pool has started ends as a failed one.
    """
    if isinstance(dataset, HandwritingSet):
        return map(dataset.batch, batches)
    loader = DataLoader(dataset, batch_sampler=[b.tolist() for b in batches], num_workers=workers, pin_memory=device.type == "cuda")
    return _read(iter(loader), dataset, device)


def _read(samples: Iterator[dict], dataset: _Pictures, device: torch.device) -> Iterator[dict]:
    try:
        for sample in samples:
            yield {key: value.numpy() if key == "id" else value.to(device, non_blocking=True) for key, value in sample.items()}
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a worker is gone
        names = ", ".join(str(dataset.files[position]["clean"]) for position in dataset.reading.tolist() if position >= 0)
        raise ValueError(f"while {names} was read: {str(error).splitlines()[-1]}") from error
