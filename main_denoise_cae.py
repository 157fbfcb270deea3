"""Trains a network to restore damaged characters.

    torchrun --nproc_per_node=4 main_denoise_cae.py --config configs/cae_convnext_tiny.yaml
    python main_denoise_cae.py --config configs/demo.yaml --output_dir runs/mine

`python -m torch.distributed.launch` works as torchrun does. A run folder gets config.yaml (the settings, the commit, the versions,
the split), log.jsonl (a line an epoch), last.pth and best.pth (by validation PSNR), and TensorBoard's events.
"""

import argparse
import json
import os
import platform
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import yaml
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

import models
from datasets import pairs
from datasets.degradation import Degradation, scored_preset
from datasets.pack import open_pack
from datasets.split import split_hash
from engine import LOSSES, TrainState, evaluate, train_one_epoch
from util import checkpoint, distributed, settings
from util.files import replacing
from util.version import commit


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--config", help="YAML file of settings; the command line goes before it")

    add = parser.add_argument_group("network").add_argument
    add(
        "--model",
        default="cae_convnext_tiny",
        choices=models.NAMES,
        metavar="NAME",
        help=f"one of {', '.join(models.NAMES)}",
    )
    add("--side", type=int, default=224, help="of the square picture, in pixels: a multiple of 32")
    add("--in_chans", type=int, default=1, choices=(1, 2), help="2: the standard glyph is given as a guide")
    add("--guide_drop", type=float, default=0.5, help="share of training pictures whose guide is left out")
    add("--latent_dim", type=int, default=768, help="numbers in the bottleneck")
    add("--layer_scale", type=float, default=1e-2, help="start of ConvNeXt's layer scale")
    add(
        "--pretrained",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="start the encoder from timm's ImageNet weights",
    )

    add = parser.add_argument_group("data").add_argument
    add(
        "--data",
        default="data/zi.pack",
        help="a pack, a folder <character>/*.png, or a folder of pairs degraded/ and clean/",
    )
    add("--preset", default="mixed", help="damage: a name of configs/damage/ or a YAML file")
    add("--workers", type=int, default=4, help="processes that read a folder; a pack needs none")
    add("--samples_per_epoch", type=int, default=0, help="end each epoch after so many samples; 0: all of them")
    add(
        "--val_samples",
        type=int,
        default=2048,
        help="validate on so many samples, spread over the validation set; 0: all of them",
    )

    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=int, default=200)
    add("--batch_size", type=int, default=64, help="pictures per process")
    add("--accumulate", type=int, default=1, help="batches per update")
    add("--loss", default="mse", choices=LOSSES)
    add("--lr", type=float, default=4e-3, help="peak learning rate per 256 pictures")
    add("--min_lr", type=float, default=1e-6, help="learning rate at the end")
    add("--warmup_epochs", type=float, default=5)
    add("--weight_decay", type=float, default=0.05, help="of matrices; norms, biases and layer scales have none")
    add("--clip_grad", type=float, default=1.0, help="largest norm of the gradient; 0: any")
    add("--ema_decay", type=float, default=0.9998, help="of the moving average of the weights; warmed up from 0")
    add("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast to bfloat16")
    add("--seed", type=int, default=0)

    add = parser.add_argument_group("run").add_argument
    add("--output_dir", default="runs/denoise_cae", help="the run folder")
    add("--resume", help="'auto': go on from output_dir/last.pth where there is one; or a checkpoint's path")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--threads", type=int, default=0, help="CPU threads per process; 0: the cores shared out evenly")
    add("--log_every", type=int, default=20, help="updates between two looks at the loss")
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # from torch.distributed.launch
    return parser


def open_data(s: argparse.Namespace, device: torch.device) -> tuple:
    """(training set, validation set, what they are: written into the run folder)."""
    root = Path(s.data)
    if not root.is_dir():
        pack = open_pack(root)
        sets = [pairs.HandwritingSet(pack, split, "seen", s.side, s.in_chans == 2, device) for split in ("train", "val")]
        groups = map(chr, np.unique(pack.group))
        return *sets, {"checksum": pack.checksum, "split": split_hash(groups)}
    if s.in_chans == 2:
        raise ValueError(f"{root}: a folder has no guide glyphs: train with --in_chans 1")
    ready = any((root / name).is_dir() for name in ("degraded", "input"))
    read = pairs.pair_folder if ready else pairs.character_folder
    sets = [read(root, split, s.side) for split in ("train", "val")]
    return *sets, {"pictures": [len(data) for data in sets]}


def about(data: dict) -> dict:
    """What the settings do not say of a run: code, versions, machine, data."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    return {
        "commit": commit(),
        "versions": versions,
        "device": device,
        "world_size": distributed.world_size(),
        "data": data,
    }


def write_config(s: argparse.Namespace, data: dict) -> None:
    own = {key: value for key, value in vars(s).items() if key not in ("config", "local_rank")}
    text = yaml.safe_dump(own, sort_keys=False) + "# " + "\n# ".join(yaml.safe_dump(about(data)).splitlines()) + "\n"
    with replacing(Path(s.output_dir) / "config.yaml") as path:
        path.write_text(text, encoding="utf-8")


def start_state(s: argparse.Namespace, device: torch.device) -> TrainState:
    """The network, its average and its optimizer, fresh or resumed."""
    torch.manual_seed(s.seed)
    model = models.from_settings(vars(s), s.pretrained).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(param_groups_weight_decay(model, s.weight_decay), lr=s.lr, betas=(0.9, 0.95), fused=True)
    state = TrainState(model, ModelEmaV3(model, s.ema_decay, use_warmup=True), optimizer)
    path = Path(s.output_dir, "last.pth") if s.resume == "auto" else s.resume and Path(s.resume)
    if path and (s.resume != "auto" or path.exists()):
        state.load_state_dict(checkpoint.read(path))
    return state


def train(s: argparse.Namespace, device: torch.device) -> None:
    rank, world = distributed.rank(), distributed.world_size()
    first = rank == 0
    train_set, val_set, data = open_data(s, device)
    damage, val_damage = Degradation(s.preset, s.side, device), Degradation(scored_preset(s.preset), s.side, device)
    state = start_state(s, device)
    model = DistributedDataParallel(state.model, gradient_as_bucket_view=True) if world > 1 else state.model

    n = min(s.samples_per_epoch or len(train_set), len(train_set))
    n_update = s.batch_size * world * s.accumulate  # samples
    updates = n // n_update
    if not updates:
        raise ValueError(f"{n} samples do not fill one update of {n_update}: lower --batch_size")
    steps = updates * s.accumulate
    val_n = min(s.val_samples or len(val_set), len(val_set))
    val_positions = np.linspace(0, len(val_set) - 1, val_n).round().astype(np.int64)
    if first:
        write_config(s, data)
        parameters = sum(p.numel() for p in state.model.parameters()) / 1e6
        print(f"{s.model}, {parameters:.1f} M parameters, side {s.side}, on {device} × {world}; output in {s.output_dir}")
        print(f"{len(train_set)} training samples, {val_n} for validation; {s.epochs * updates} updates of {n_update}")

    with SummaryWriter(s.output_dir) if first else nullcontext() as board:
        while state.epoch < s.epochs:
            began = time.perf_counter()
            batches = pairs.shuffled_batches(len(train_set), s.batch_size, s.seed, state.epoch, rank, world)[:steps]
            samples = pairs.load(train_set, batches, device, s.workers)
            scores = train_one_epoch(state, model, samples, steps, damage, s)
            seconds = time.perf_counter() - began
            mine = [val_positions[b] for b in pairs.plain_batches(val_n, s.batch_size, rank, world)]
            found = evaluate(state.ema.module, pairs.load(val_set, mine, device, s.workers), val_damage, val_n, s.bf16)
            pictures = found.pop("pictures")
            row = {"epoch": state.epoch, "step": state.step, **scores, **{f"val_{k}": v for k, v in found.items()},
                   "seconds": seconds, "pictures_per_second": steps * s.batch_size * world / seconds}  # fmt: skip
            if better := found["psnr"] > state.best.get("psnr", -np.inf):
                state.best = {"epoch": state.epoch, **found}
            if first:
                save(state, s, better)
                report(row, pictures, board, s)
            distributed.barrier()
    if first:
        print(f"best: epoch {state.best['epoch']}, {state.best['psnr']:.2f} dB (damaged {state.best['damaged_psnr']:.2f} dB)")


def save(state: TrainState, s: argparse.Namespace, better: bool) -> None:
    content = {"settings": vars(s), **state.state_dict()}
    checkpoint.save(content, Path(s.output_dir, "last.pth"))
    if better:
        checkpoint.save(content, Path(s.output_dir, "best.pth"))


def report(row: dict, pictures: torch.Tensor, board: SummaryWriter, s: argparse.Namespace) -> None:
    with open(Path(s.output_dir, "log.jsonl"), "a", encoding="utf-8") as log:
        log.write(json.dumps({key: round(v, 6) if isinstance(v, float) else v for key, v in row.items()}) + "\n")
    for key, value in row.items():
        board.add_scalar(key, value, row["epoch"])
    grid = torch.cat([torch.cat(list(triple), dim=1) for triple in pictures[:8]], dim=0)  # damaged | restored | clean
    board.add_image("damaged, restored, clean", grid[None], row["epoch"])
    gain = "validation {val_damaged_psnr:.2f} → {val_psnr:.2f} dB, SSIM {val_ssim:.3f}, ink F1 {val_f1:.3f}"
    told = "epoch {epoch}: loss {loss:.4f}, " + gain + ", {pictures_per_second:.0f} pictures/s"
    print(told.format(**row), flush=True)


def main(argv: list[str] | None = None) -> int:
    s = settings.parse(build_parser(), argv)
    try:
        device = distributed.start(s.device, s.local_rank)
        if device.type == "cpu":
            torch.set_num_threads(s.threads or max(1, len(os.sched_getaffinity(0)) // distributed.local_world_size()))
        train(s, device)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
