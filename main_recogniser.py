"""Trains the recogniser, which judges legibility: clean handwriting of all characters in all hands, one class a character.

    python main_recogniser.py --output_dir runs/recogniser

Every tenth pair of character and hand is withheld, by a hash, and read at the end of each epoch. The run folder gets log.jsonl,
last.pth (go on with --resume) and recogniser.safetensors, which evaluate.py --recogniser takes.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor
from tqdm import tqdm

from datasets import pairs
from datasets.degradation import Degradation, sample_keys, to_device
from datasets.pack import Pack, open_pack
from models.recogniser import build_recogniser, save_recogniser
from util import checkpoint, settings
from util.schedule import learning_rate
from util.version import commit

# what one hand does differently from one time to the next: nothing that would have to be restored
VARIATION = {
    "geometry": {"p": 1.0, "rotate": 3.0, "scale": 0.12, "shift": 0.05, "warp": 5.0},
    "edges": {"p": 0.7, "blur": [0.6, 2.5], "offset": [-0.15, 0.15], "noise": [0.0, 0.2]},
    "tone": {"p": 0.3, "stroke": [0.7, 1.0], "ground": [0.0, 0.1], "gradient": 0.05},
    "blur": {"p": 0.3, "sigma": [0.5, 3.0]},
}
WITHHELD = 0.10


def is_withheld(group: int, hand: str) -> bool:
    """Whether this hand's glyphs of this character are kept from training: by a hash, so that it depends on nothing else."""
    digest = hashlib.sha256(f"{chr(group)} {hand}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < WITHHELD * 2**64


class Task:
    """The glyphs of all hands, which class each is, and which are withheld."""

    def __init__(self, pack: Pack, side: int, device: torch.device):
        self.data = pairs.HandwritingSet(pack, "all", "all", side, device=device)
        ids = self.data.ids
        self.groups = np.unique(pack.group[ids])
        self.label = np.searchsorted(self.groups, pack.group[ids])
        self.hand = np.array([pack.hands[hand].name for hand in pack.hand[ids]])
        self.style = np.array([pack.hands[hand].style for hand in pack.hand[ids]])
        withheld = [is_withheld(group, hand) for group, hand in zip(pack.group[ids].tolist(), self.hand, strict=True)]
        self.withheld = np.flatnonzero(withheld)
        self.training = np.flatnonzero(~np.array(withheld))

    def batches(self, positions: list[np.ndarray]) -> Iterator[tuple[dict, Tensor]]:
        for some in positions:
            yield self.data.batch(some), to_device(self.label[some], torch.int64, self.data.device)


@torch.inference_mode()
def read(network: torch.nn.Module, task: Task, bf16: bool) -> dict:
    """Share of the withheld pairs read right, first guess and among five: all, by style and by hand, with n."""
    network.eval()
    ranks = []
    chosen = [task.withheld[b] for b in pairs.plain_batches(len(task.withheld), 256)]
    for sample, label in task.batches(chosen):
        with torch.autocast(task.data.device.type, torch.bfloat16, enabled=bf16):
            logits = network(sample["clean"]).float()
        ranks.append((logits > logits.gather(1, label[:, None])).sum(1))
    rank = torch.cat(ranks).cpu().numpy()

    def shares(some: np.ndarray) -> dict:
        return {"n": len(some), "top1": float((some == 0).mean()), "top5": float((some < 5).mean())}

    parts = {name: values[task.withheld] for name, values in (("by_style", task.style), ("by_hand", task.hand))}
    by = {name: {key: shares(rank[values == key]) for key in np.unique(values).tolist()} for name, values in parts.items()}
    return {**shares(rank), **by}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--config", help="YAML file of settings; the command line goes before it")
    add("--data", default="data/zi.pack", help="the handwriting set")
    add("--output_dir", default="runs/recogniser", help="the run folder")
    add("--resume", action=argparse.BooleanOptionalAction, default=False, help="go on from output_dir/last.pth where there is one")
    add("--side", type=int, default=64, help="of the square picture, in pixels")
    add("--epochs", type=int, default=15)
    add("--batch_size", type=int, default=128)
    add("--lr", type=float, default=2e-3, help="peak learning rate per 256 pictures")
    add("--weight_decay", type=float, default=0.05)
    add("--smoothing", type=float, default=0.1, help="of the labels")
    add("--ema_decay", type=float, default=0.999, help="of the moving average of the weights; warmed up from 0")
    add("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast to bfloat16")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    add("--seed", type=int, default=0)
    return parser


def train(s: argparse.Namespace) -> None:
    out, device = Path(s.output_dir), torch.device(s.device)
    pack = open_pack(s.data)
    task = Task(pack, s.side, device)
    vary = Degradation(VARIATION, s.side, device)
    torch.manual_seed(s.seed)
    network = build_recogniser(len(task.groups)).to(device, memory_format=torch.channels_last)
    ema = ModelEmaV3(network, s.ema_decay, use_warmup=True)
    optimizer = torch.optim.AdamW(param_groups_weight_decay(network, s.weight_decay), fused=True)
    steps, first = len(task.training) // s.batch_size, 0
    if s.resume and (out / "last.pth").exists():
        state = checkpoint.read(out / "last.pth")
        network.load_state_dict(state["model"])
        ema.module.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"]
    print(f"{len(task.training)} glyphs of {len(task.groups)} characters, {len(task.withheld)} withheld; {steps} updates an epoch")
    for epoch in range(first, s.epochs):
        began, losses = time.perf_counter(), torch.zeros((), device=device)
        network.train()
        chosen = [task.training[b] for b in pairs.shuffled_batches(len(task.training), s.batch_size, s.seed, epoch)]
        bar = tqdm(task.batches(chosen), f"epoch {epoch + 1}/{s.epochs}", steps, mininterval=2, disable=None)
        for step, (sample, label) in enumerate(bar, start=epoch * steps):
            x, _ = vary(sample["clean"], sample_keys(s.seed, epoch, sample["id"]))
            with torch.autocast(device.type, torch.bfloat16, enabled=s.bf16):
                logits = network(x)
            loss = F.cross_entropy(logits.float(), label, label_smoothing=s.smoothing)
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, s.epochs * steps, s.lr * s.batch_size / 256, steps // 2)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(network, step=step)
            losses += loss.detach()
        found = read(ema.module, task, s.bf16)
        row = {"epoch": epoch + 1, "loss": losses.item() / steps, "seconds": time.perf_counter() - began, **found}
        state = {"model": network.state_dict(), "ema": ema.module.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoint.save({**state, "epoch": epoch + 1}, out / "last.pth")
        info = {"groups": task.groups.tolist(), "side": s.side, "epoch": epoch + 1, "of_epochs": s.epochs, "commit": commit(),
                "data": pack.checksum, "withheld": found}  # fmt: skip
        save_recogniser(ema.module, info, out / "recogniser.safetensors")
        with (out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row, ensure_ascii=False) + "\n")
        styles = ", ".join(f"{style} {part['top1']:.1%}" for style, part in found["by_style"].items())
        print(
            f"epoch {epoch + 1}: loss {row['loss']:.3f}, withheld {found['top1']:.1%} ({styles}), {row['seconds']:.0f} s",
            flush=True,
        )


def main(argv: list[str] | None = None) -> int:
    try:
        train(settings.parse(build_parser(), argv))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
