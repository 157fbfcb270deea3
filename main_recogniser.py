"""Train a recogniser: handwriting of all characters, one class per character, to judge restored pictures or to read damaged ones.

    python main_recogniser.py --config configs/recogniser.yaml
    python main_recogniser.py --config configs/recogniser_hardened.yaml
    python main_recogniser.py --config configs/reader.yaml
    torchrun --nproc_per_node=2 main_recogniser.py --batch_size 64 --output_dir runs/recogniser

It learns from clean characters or, *hardened*, from characters degraded by --preset. One pair of character and hand in ten is
withheld from training, by a hash, for validation. The run folder is that of main_denoise_cae.py, with best.pth by top-1 accuracy on
clean characters; at the end it also gets recogniser.safetensors, the averaged weights of the last epoch, for `evaluate.py`.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from datasets import pairs
from datasets.degradation import Degradation, to_device
from datasets.pack import Pack, open_pack
from datasets.rng import sample_keys, splitmix64
from datasets.split import group_of
from engine import Batch, TrainState, fit, make_folder, make_state
from models.recogniser import MODELS, build_recogniser, load_recogniser, save_recogniser
from util import distributed, settings
from util.settings import number
from util.stop import StopSignal
from util.version import commit

# how one hand varies from one writing of a character to the next; no damage
VARIATION = {
    "geometry": {"p": 1.0, "rotate": 3.0, "scale": 0.12, "shift": 0.05, "warp": 5.0},
    "edges": {"p": 0.7, "blur": [0.6, 2.5], "offset": [-0.15, 0.15], "noise": [0.0, 0.2]},
    "tone": {"p": 0.3, "stroke": [0.7, 1.0], "ground": [0.0, 0.1], "gradient": 0.05},
    "blur": {"p": 0.3, "sigma": [0.5, 3.0]},
}
WITHHELD = 0.10


def is_withheld(group: int, hand: str) -> bool:
    """Whether this hand's glyphs of this character are withheld from training: decided by a hash of the two alone."""
    digest = hashlib.sha256(f"{chr(group)} {hand}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < WITHHELD * 2**64


def unknown_groups(pack: Pack, count: int) -> list[int]:
    """The code points of `count` groups outside GB 2312 level 1, the common characters, chosen by a hash of their names."""
    common = {bytes((high, low)).decode("gb2312", "ignore") for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF)}
    names = [chr(code) for code in np.unique(pack.group)]
    rare = [name for name in names if name not in {group_of(char) for char in common if char}]
    if count > len(rare):
        raise ValueError(f"--unknown {count}: the data hold {len(rare)} characters outside GB 2312 level 1")
    return sorted(map(ord, sorted(rare, key=lambda name: hashlib.sha256(f"{name} unknown".encode()).digest())[:count]))


class Task:
    """The glyphs of the hands ("all" or "seen"), but for unknown groups, their classes, and which are withheld."""

    def __init__(self, pack: Pack, img_size: int, device: torch.device, hands: str = "all", unknown: Iterable[int] = ()):
        self.data = pairs.HandwritingSet(pack, "all", hands, img_size, device=device)
        ids = self.data.ids
        self.groups = np.setdiff1d(pack.group[ids], np.array(list(unknown), pack.group.dtype))
        self.label = np.searchsorted(self.groups, pack.group[ids])  # without meaning for unknown groups
        known = np.isin(pack.group[ids], self.groups)
        self.hand = np.array([pack.hands[hand].name for hand in pack.hand[ids]])
        self.style = np.array([pack.hands[hand].style for hand in pack.hand[ids]])
        withheld = np.array([is_withheld(group, hand) for group, hand in zip(pack.group[ids].tolist(), self.hand, strict=True)])
        self.withheld, self.training = np.flatnonzero(known & withheld), np.flatnonzero(known & ~withheld)

    def labels(self, positions: np.ndarray) -> torch.Tensor:
        return to_device(self.label[positions], torch.int64, self.data.device)


@torch.inference_mode()
def accuracy(
    network: torch.nn.Module, task: Task, bf16: bool, stop: StopSignal | None = None, damage: Degradation | None = None
) -> dict:
    """Top-1 and top-5 accuracy on the withheld pairs: {"n", "top1", "top5"} of all, and the same in "by_style" and "by_hand".

    damage: of the pictures; None leaves them clean. Raises SystemExit on all processes at once if one received a signal.
    """
    network.eval()
    batches = pairs.sharded_batches(len(task.withheld), 256, distributed.rank(), distributed.world_size())
    higher = np.full(len(task.withheld), -1)  # number of classes with a higher logit than the right one
    for batch in (stop or StopSignal()).watch(batches):
        positions = task.withheld[batch]
        sample = task.data.batch(positions)
        x = damage(sample["clean"], sample_keys(pairs.EVALUATION_SEED, 0, sample["id"]))[0] if damage else sample["clean"]
        with torch.autocast(task.data.device.type, torch.bfloat16, enabled=bf16):
            logits = network(x).float()
        label = task.labels(positions)[:, None]
        higher[batch] = (logits > logits.gather(1, label)).sum(1).cpu().numpy()
    higher = np.max(distributed.gather(higher), axis=0)

    def scores(chosen: np.ndarray) -> dict:
        return {"n": len(chosen), "top1": float((chosen == 0).mean()), "top5": float((chosen < 5).mean())}

    parts = {name: values[task.withheld] for name, values in (("by_style", task.style), ("by_hand", task.hand))}
    by = {name: {key: scores(higher[values == key]) for key in np.unique(values).tolist()} for name, values in parts.items()}
    return {**scores(higher), **by}


def build_parser() -> argparse.ArgumentParser:
    kind = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=kind, allow_abbrev=False)
    add = parser.add_argument
    add("--config", help="YAML file of settings; flags override it")
    add("--data", nargs="+", default=["data/zi.pack"], metavar="PACK", help="handwriting sets")
    add("--finetune", metavar="FILE", help="initialise with a trained recogniser of the same characters")
    add("--preset", help="also degrade the characters by a preset, a YAML file, or a mixture (default: clean)")
    add("--hands", choices=("all", "seen"), default="all", help="seen: without the hands that are held out from training restorers")
    add(
        "--unknown",
        type=number(int, 0),
        default=0,
        metavar="N",
        help="leave out N rare characters, to test how unknown ones are told",
    )
    add("--model", choices=MODELS, default=MODELS[0], help="kind of network")
    add("--img_size", type=number(int, 32), default=64, help="picture size in pixels")
    add("--epochs", type=number(int, 1), default=15)
    add("--batch_size", type=number(int, 1), default=128, help="pictures per process")
    add("--accum_iter", type=number(int, 1), default=1, help="accumulate gradients over N batches")
    add("--lr", type=number(float, 0), default=2e-3, help="peak learning rate per 256 pictures")
    add("--min_lr", type=number(float, 0), default=0.0, help="final learning rate, not scaled")
    add("--warmup_epochs", type=number(float, 0), default=0.5)
    add("--weight_decay", type=number(float, 0), default=0.05)
    add("--clip_grad", type=number(float, 0), default=0.0, help="max gradient norm; 0 disables")
    add("--smoothing", type=number(float, 0, 1), default=0.1, help="label smoothing")
    add("--ema_decay", type=number(float, 0, 1), default=0.999, help="decay of the averaged weights; warmed up from 0")
    add("--bf16", action=argparse.BooleanOptionalAction, help="autocast to bfloat16 (default: where it is fast)")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0)
    settings.add_run_flags(parser, output_dir="runs/recogniser")
    return parser


def train(s: argparse.Namespace, device: torch.device) -> None:
    rank, world = distributed.rank(), distributed.world_size()
    pack = open_pack(*s.data)
    unknown = unknown_groups(pack, s.unknown) if s.unknown else []
    task, vary = Task(pack, s.img_size, device, s.hands, unknown), Degradation(VARIATION, s.img_size, device)
    damage = Degradation(s.preset, s.img_size, device) if s.preset else None
    samples_per_update = s.batch_size * world * s.accum_iter
    updates = len(task.training) // samples_per_update
    if not updates:
        raise ValueError(f"{len(task.training)} glyphs do not fill one update of {samples_per_update}: lower --batch_size")
    batches_per_epoch = updates * s.accum_iter

    def start_state(resumed: bool) -> TrainState:
        torch.manual_seed(s.seed)
        network = build_recogniser(len(task.groups), s.model, s.img_size)
        if s.finetune and not resumed:
            trained, info = load_recogniser(s.finetune)
            if info["groups"] != task.groups.tolist():
                raise ValueError(f"--finetune {s.finetune} knows other characters than {', '.join(s.data)}")
            network.load_state_dict(trained.state_dict())
        return make_state(network.to(device, memory_format=torch.channels_last), s, betas=(0.9, 0.999))

    def inputs(epoch: int, first: int) -> Iterator[Batch]:
        batches = pairs.shuffled_batches(len(task.training), s.batch_size, s.seed, epoch, rank, world)[first:batches_per_epoch]
        for positions in (task.training[batch] for batch in batches):
            sample = task.data.batch(positions)
            keys = sample_keys(s.seed, epoch, sample["id"])
            x = vary(sample["clean"], keys)[0]
            yield sample["id"], damage(x, splitmix64(keys))[0] if damage else x, task.labels(positions)

    def loss_fn(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float(), label, label_smoothing=s.smoothing)

    def validate(network: torch.nn.Module, stop: StopSignal) -> tuple[dict, None]:
        return accuracy(network, task, s.bf16, stop), None

    folder = make_folder(s, {"checksum": pack.checksum}, {**vary.table, "preset": damage.table if damage else None})
    with folder.open(start_state, s.resume) as state, StopSignal(s.max_minutes) as stop:
        if rank == 0:
            counts = f"{len(task.training)} training glyphs of {len(task.groups)} characters, {len(task.withheld)} withheld"
            print(f"{counts}; {updates} updates per epoch", flush=True)
        fit(state, inputs, loss_fn, batches_per_epoch, validate, "top1", s, folder, stop)
        scores = accuracy(state.ema.module, task, s.bf16, stop)
        degraded = accuracy(state.ema.module, task, s.bf16, stop, damage) if damage else None
        if rank == 0:
            info = {"model": s.model, "groups": task.groups.tolist(), "unknown": unknown, "img_size": s.img_size,
                    "epoch": state.epoch, "commit": commit(), "data": pack.checksum, "preset": s.preset,
                    "withheld": scores}  # fmt: skip
            if damage:
                info["withheld_degraded"] = degraded
            save_recogniser(state.ema.module, info, Path(s.output_dir) / "recogniser.safetensors")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    return distributed.run(train, settings.parse(build_parser(), argv))


if __name__ == "__main__":
    sys.exit(main())
