"""Samples for training and scoring: clean handwriting from a pack or a folder, or pairs from a folder.

All three give the same samples: a dict with `id` (N,) int64, which seeds the damage, `clean` (N, 1, img_size, img_size) float in
[0, 1], strokes bright, and, if there are any, `guide` and `degraded` like it. Batches are lists of positions. The functions that
make these lists know the processes, so a data set is read in the same order with any number of processes.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from datasets import brush
from datasets.augmentation import augment
from datasets.degradation import Degradation, to_device
from datasets.guide import make_guides
from datasets.pack import Pack
from datasets.rng import Stream, sample_keys, splitmix64
from datasets.split import check_no_leak, group_of, split_of
from util import distributed, flow, images
from util.squares import find_polarity, to_square, whole

EVALUATION_SEED = 20_000  # of the damage in validation and scoring; not used in training
DENSITY, LATEST = 3.0, 0.98  # times of training states: LATEST · u ** DENSITY of uniform u
PAIR_FOLDERS = (("degraded", "clean"), ("input", "target"))


# --- the pack -----------------------------------------------------------------------------------------------------------


def smooth(glyphs: Tensor, img_size: int) -> Tensor:
    """(N, 1, S, S) uint8 of 0 and 1 → (N, 1, img_size, img_size) float in [0, 1] with the soft edges of a scan."""
    x = glyphs.float()
    if img_size != glyphs.shape[-1]:
        return F.interpolate(x, (img_size, img_size), mode="bilinear", align_corners=False, antialias=True).clamp_(0, 1)
    for axis in (2, 3):  # [1/4, 1/2, 1/4]; on a CPU a convolution of one channel takes 20 times as long
        sharp, rest = x, img_size - 1
        x = sharp / 2
        x.narrow(axis, 1, rest).add_(sharp.narrow(axis, 0, rest), alpha=0.25)
        x.narrow(axis, 0, rest).add_(sharp.narrow(axis, 1, rest), alpha=0.25)
    return x


class HandwritingSet:
    """Glyphs of a pack, kept as bits on the device.

    Args:
        pack: see `datasets.pack.open_pack`.
        split: "train", "val" or "test", the split of the characters; or "all".
        hands: "seen" (in training), "unseen" (held out) or "all".
        img_size: height and width of the pictures in pixels.
        guide: also return the standard glyph of each form; zeros if the pack has none.
        device: where the glyphs are kept and the pictures are made.

    Attributes: `ids`, the positions of the glyphs in the pack.

    Raises ValueError if there are no such glyphs, or if a form is in several splits.
    """

    def __init__(
        self,
        pack: Pack,
        split: str,
        hands: str = "seen",
        img_size: int = 224,
        guide: bool = False,
        device: torch.device | str = "cpu",
    ):
        roles = {"seen": ("train",), "unseen": ("held_out",), "all": ("train", "held_out")}[hands]
        of_hand = np.array([hand.role in roles for hand in pack.hands])
        of_split = split_of_glyphs(pack) == split if split != "all" else np.full(len(pack), True)
        self.pack, self.img_size, self.device = pack, img_size, torch.device(device)
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
            # positions in order of their form; of each position: its place in this order, the first of its form, and their number
            self._by_form = np.argsort(pack.form[self.ids], kind="stable")
            self._place = np.argsort(self._by_form)
            _, first, which, count = np.unique(
                pack.form[self.ids[self._by_form]], return_index=True, return_inverse=True, return_counts=True
            )
            self._first, self._count = first[which][self._place], count[which][self._place]

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, positions: np.ndarray, keys: Callable[[np.ndarray], np.ndarray] | None = None) -> dict:
        """The samples at positions (N,), on the device.

        keys: ids (N,) → the samples' random keys. With them a set with guides also returns for each a `specimen`, the same form in
        another hand of this set, zeros if there is none.
        """
        sample = {"id": self.ids[positions], "clean": self._draw(self.bits, positions)}
        if self.pack.medians:
            sample["strokes"] = [self.pack.medians.get(form) for form in self.pack.form[self.ids[positions]].tolist()]
        if self.guide_bits is not None:
            sample["guide"] = self._draw(self.guide_bits, self.guide_row[positions])
            if keys is not None:
                sample["specimen"] = self._specimens(positions, keys(self.ids[positions]))
        return sample

    def _specimens(self, positions: np.ndarray, keys: np.ndarray) -> Tensor:
        first, count = self._first[positions], self._count[positions]
        ahead = 1 + (Stream(keys, "specimen").uniform() * (count - 1)).astype(int)
        others = self._by_form[first + (self._place[positions] - first + ahead) % count]
        return self._draw(self.bits, others) * to_device(count > 1, torch.float32, self.device)[:, None, None, None]

    def _draw(self, bits: Tensor, rows: np.ndarray) -> Tensor:
        packed = bits[to_device(rows, torch.int64, self.device)]
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=self.device)
        pixels = (packed[:, :, None] >> shifts) & 1
        return smooth(pixels.view(len(rows), 1, self.pack.img_size, self.pack.img_size), self.img_size)


def split_of_glyphs(pack: Pack) -> np.ndarray:
    """(n,) "train", "val" or "test" for each glyph, by the group that the pack stores with it.

    Raises ValueError if a code point, as form or as character, is in several splits.
    """
    groups = np.unique(pack.group)
    check_no_leak(map(chr, np.concatenate([pack.form, pack.character])), map(chr, np.tile(pack.group, 2)))
    return np.array([split_of(chr(group)) for group in groups])[np.searchsorted(groups, pack.group)]


# --- folders ------------------------------------------------------------------------------------------------------------


class PictureFolder(Dataset):
    """Picture files, read one sample at a time; for a DataLoader. See `open_folder`.

    Args:
        files: of each sample, by "clean" and, for pairs, "degraded".
        digest: identifies the samples: SHA-256 over the names within the folder and the contents of the files, in their order.
        img_size: height and width of the pictures in pixels.
    """

    def __init__(self, files: list[dict[str, Path]], digest: str, img_size: int):
        self.files, self.digest, self.img_size = files, digest, img_size
        # the position that each worker is reading, to name the file if the worker is killed
        self.reading = torch.full((256,), -1).share_memory_()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> dict:
        worker = get_worker_info()
        if worker:
            self.reading[worker.id] = position
        pictures = {key: images.read_grey(path) for key, path in self.files[position].items()}
        sample = {key: to_square(x, whole(*x.shape), self.img_size) for key, x in pictures.items()}
        if find_polarity(pictures["clean"]) == "dark":
            sample = {key: 1 - x for key, x in sample.items()}
        if worker:
            self.reading[worker.id] = -1
        return {"id": position, **{key: torch.from_numpy(x)[None] for key, x in sample.items()}}


def open_folder(root: str | Path, splits: Iterable[str] = ("train", "val"), img_size: int = 224) -> list[PictureFolder]:
    """Opens a folder of pictures; returns the samples of each of the splits.

    The folder holds either clean pictures, `root/<character>/*.png`, or pairs of pictures with the same name in `root/degraded` and
    `root/clean` (or `root/input` and `root/target`). A pair is in the split of the character that its name begins with or, if that
    is not a Han character, of its name. Every file is decoded once; the processes of a group share the work, so all must call this.

    Raises FileNotFoundError if there are no pictures, and ValueError if a split is empty or if files cannot be used, listing them.
    """
    root = Path(root)
    names = next((names for names in PAIR_FOLDERS if (root / names[0]).is_dir()), None)
    samples, faults = _find_pairs(root, *names) if names else _find_characters(root)
    if not samples and not faults:
        raise FileNotFoundError(f"{root}: no pictures in <character>/*.png, degraded/ and clean/, or input/ and target/")
    digests, unreadable = _check(root, [path for _, files in samples for path in files.values()])
    if faults := faults + unreadable:
        raise ValueError(f"{root}: {len(faults)} files cannot be used:\n" + "\n".join(faults))
    sets = []
    for split in splits:
        chosen = [files for group, files in samples if split_of(group) == split]
        if not chosen:
            share = "85 % train, 5 % val, 10 % test"
            raise ValueError(f"{root}: none of its characters is in the {split} split ({share}); add characters")
        lines = [f"{path.relative_to(root).as_posix()} {digests[path]}\n" for files in chosen for path in files.values()]
        sets.append(PictureFolder(chosen, hashlib.sha256("".join(lines).encode()).hexdigest(), img_size))
    return sets


def _pictures(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in images.SUFFIXES)


def _find_characters(root: Path) -> tuple[list[tuple[str, dict[str, Path]]], list[str]]:
    """(group, files) of each sample in root/<character>/, and a message for each file that cannot be used."""
    samples, faults = [], []
    for path in _pictures(root.glob("*/*")):
        if len(path.parent.name) == 1:
            samples.append((group_of(path.parent.name), {"clean": path}))
        else:
            faults.append(f"{path}: its folder is not named by one character")
    return samples, faults


def _find_pairs(root: Path, degraded: str, clean: str) -> tuple[list[tuple[str, dict[str, Path]]], list[str]]:
    """Like `_find_characters`, for pairs."""
    first, second = ({path.stem: path for path in _pictures((root / part).glob("*"))} for part in (degraded, clean))
    faults = [f"{first[stem]}: no such picture in {clean}/" for stem in sorted(first.keys() - second.keys())]
    faults += [f"{second[stem]}: no such picture in {degraded}/" for stem in sorted(second.keys() - first.keys())]
    samples = [
        (group_of(stem[0]) if ord(stem[0]) > 0x2E80 else stem, {"degraded": first[stem], "clean": second[stem]})
        for stem in sorted(first.keys() & second.keys())
    ]
    return samples, faults


def _check(root: Path, paths: list[Path]) -> tuple[dict[Path, str], list[str]]:
    """Decodes each file in one of the processes; returns the SHA-256 of each, and a message for each that cannot be read."""

    def check(path: Path) -> tuple[Path, str, str | None]:
        try:
            images.read_grey(path)
            return path, hashlib.sha256(path.read_bytes()).hexdigest(), None
        except (OSError, ValueError) as error:
            return path, "", str(error)

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(check, paths[distributed.rank() :: distributed.world_size()]))
    results = sorted(result for part in distributed.gather(results) for result in part)
    if [path for path, _, _ in results] != sorted(paths):
        raise ValueError(f"{root}: the processes see different files; put the folder on a disk that all machines share")
    return {path: digest for path, digest, _ in results}, [message for _, _, message in results if message]


# --- batches ----------------------------------------------------------------------------------------------------------


def shuffled_batches(n: int, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[np.ndarray]:
    """One epoch's batches of positions for one process: its part of the same global order; an incomplete global batch is dropped.

    Raises ValueError if n is less than one global batch.
    """
    steps = n // (batch_size * world)
    if not steps:
        raise ValueError(f"{n} samples do not fill one batch of {batch_size} on {world} processes: lower --batch_size")
    seeds = splitmix64(np.arange(2, dtype=np.uint64) + np.uint64((seed << 20) + epoch))
    order = np.random.Generator(np.random.Philox(key=seeds)).permutation(n)
    return list(order[: steps * batch_size * world].reshape(steps, world, batch_size)[:, rank])


def sharded_batches(n: int, batch_size: int, rank: int = 0, world: int = 1) -> list[np.ndarray]:
    """Batches of this process's positions in order; over all processes every position once, without padding."""
    mine = np.arange(rank, n, world)
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]


def load(
    dataset: HandwritingSet | PictureFolder,
    batches: list[np.ndarray],
    device: torch.device,
    workers: int = 0,
    keys: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Iterator[dict]:
    """The samples of each batch, on the device. workers: processes that read a folder; a pack needs none, and takes `keys`.

    They start here, in the caller's thread, because a process started in a thread of a pool ends with a failure. An unreadable file
    or a killed worker raises ValueError, with the file named.
    """
    if isinstance(dataset, HandwritingSet):
        return (dataset.batch(positions, keys) for positions in batches)
    loader = DataLoader(dataset, batch_sampler=[b.tolist() for b in batches], num_workers=workers, pin_memory=device.type == "cuda")
    return _read(iter(loader), dataset, device)


def _read(samples: Iterator[dict], dataset: PictureFolder, device: torch.device) -> Iterator[dict]:
    try:
        for sample in samples:
            yield {key: value.numpy() if key == "id" else value.to(device, non_blocking=True) for key, value in sample.items()}
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a worker was killed
        names = ", ".join(str(dataset.files[position]["clean"]) for position in dataset.reading.tolist() if position >= 0)
        raise ValueError(f"while reading {names}: {str(error).splitlines()[-1]}") from error


def redraw(clean: Tensor, strokes: list | None, keys: np.ndarray, share: float) -> Tensor:
    """Draws a fraction `share` of the pictures (N, 1, H, H) anew with `datasets.brush`, those that have stroke medians."""
    if not strokes or not share:
        return clean
    chosen = [row for row in np.flatnonzero(Stream(keys, "brush").chance(share)) if strokes[row] is not None]
    if not chosen:
        return clean
    drawn = [brush.draw(strokes[row], np.random.Generator(np.random.Philox(key=keys[row])), clean.shape[-1]) for row in chosen]
    index = to_device(np.array(chosen), torch.int64, clean.device)
    return clean.index_copy(0, index, to_device(np.stack(drawn), clean.dtype, clean.device)[:, None])


def make_batch(
    sample: dict,
    damage: Degradation,
    seed: int,
    epoch: int,
    guide_drop: float = 0.0,
    augmented: float = 0.0,
    brushed: float = 0.0,
    in_chans: int = 1,
    state_drop: float = 1.0,
    img_size: int | None = None,
) -> tuple[np.ndarray, Tensor, Tensor]:
    """A batch for training or scoring: (ids (N,), input (N, in_chans, H, W), clean target (N, 1, H, W)).

    A fraction `brushed` of the characters with stroke medians is drawn anew with a random brush, and a fraction `augmented` of the
    clean pictures is augmented; then all are degraded. Pairs stay unchanged. The input is the degraded picture or, with four
    channels, also the guide, zeros in a fraction `guide_drop` and where there are no specimens, and state and time of the flow,
    zeros in a fraction `state_drop`. img_size: to which the pictures are resized; None keeps theirs.
    """
    keys = sample_keys(seed, epoch, sample["id"])
    if "degraded" in sample:
        x, target = sample["degraded"], sample["clean"]
    else:
        clean = redraw(sample["clean"], sample.get("strokes"), keys, brushed)
        x, target = damage(augment(clean, keys, augmented), keys)
    guide = torch.zeros_like(target)
    if in_chans == 4 and "specimen" in sample:
        guide = make_guides(sample, target, keys, damage, guide_drop)
    if img_size:
        x, target, guide = (F.interpolate(one, (img_size, img_size), mode="bilinear", antialias=True) for one in (x, target, guide))
    if in_chans == 4:
        x = torch.cat([x, guide, *make_states(target, keys, state_drop)], dim=1)
    return sample["id"], x, target


def make_states(clean: Tensor, keys: np.ndarray, drop: float) -> tuple[Tensor, Tensor]:
    """The state of each clean picture (N, 1, H, W) at a random time, and the time as a constant map, both (N, 1, H, W).

    Times are dense near 0; a fraction `drop` has neither state nor time (zeros).
    """
    if drop == 1:
        return torch.zeros_like(clean), torch.zeros_like(clean)
    stream, img_size = Stream(keys, "state"), clean.shape[-1]
    kept, t = ~stream.chance(drop), flow.at_size(LATEST * stream.uniform() ** DENSITY, img_size)
    t, kept = (to_device(values, torch.float32, clean.device)[:, None, None, None] for values in (t * kept, kept))
    noise = to_device(flow.noise(keys, img_size), torch.float32, clean.device)[:, None]
    return kept * (t * (2 * clean - 1) + (1 - t) * noise), t.expand_as(clean)
