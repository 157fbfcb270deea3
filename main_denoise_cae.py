"""Trains a network to restore damaged characters.

    torchrun --nproc_per_node=4 main_denoise_cae.py --config configs/cae_convnext_tiny.yaml
    python main_denoise_cae.py --config configs/demo.yaml --output_dir runs/mine

`python -m torch.distributed.launch` works as torchrun does. A run folder gets config.yaml (the settings, the commit, the versions,
the split), log.jsonl (a line an epoch), last.pth, previous.pth and best.pth (by validation PSNR), and TensorBoard's events.
SIGTERM and Ctrl-C save before they end the run; `--resume auto` goes on at the next batch, as if the run had not been stopped.
"""

import argparse
import copy
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch.nn.parallel import DistributedDataParallel

import models
from datasets import degradation, pairs
from datasets.degradation import Degradation, scored_preset
from datasets.pack import open_pack
from datasets.split import split_hash
from engine import LOSSES, TrainState, evaluate, train_one_epoch
from util import distributed, settings
from util.run_folder import RunFolder
from util.stop import StopSignal


def build_parser() -> argparse.ArgumentParser:
    kind = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=kind, allow_abbrev=False)
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
    add("--finetune", metavar="FILE", help="start from this trained network, of any side: a checkpoint or a .safetensors file")

    add = parser.add_argument_group("data").add_argument
    add(
        "--data",
        default="data/zi.pack",
        help="a pack, a folder <character>/*.png, or a folder of pairs degraded/ and clean/",
    )
    add("--preset", default="mixed", help="damage: a name of configs/damage/ or a YAML file")
    add("--augment", type=float, default=0.0, help="share of training characters that are moved and made bolder or finer")
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
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile the network (default: on a GPU)")
    add("--seed", type=int, default=0)

    add = parser.add_argument_group("run").add_argument
    add("--output_dir", default="runs/denoise_cae", help="the run folder")
    add("--resume", help="'auto': go on from output_dir/last.pth where there is one; or a checkpoint's path")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--threads", type=int, default=0, help="CPU threads per process; 0: the cores shared out evenly")
    add("--log_every", type=int, default=20, help="updates between two looks at the loss, at signals and at the clock; on a CPU 1")
    add("--save_minutes", type=float, default=10, help="between two checkpoints within an epoch; 0: at each look")
    add("--keep_every", type=int, default=0, help="also keep the checkpoint of every so many epochs; 0: none")
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
    return *sets, {"pictures": [len(data) for data in sets], "files": sets[0].hash()}


def start_state(s: argparse.Namespace, device: torch.device) -> TrainState:
    """The network, fresh or from `--finetune`, its average and its optimizer."""
    if s.pretrained and s.finetune:
        raise ValueError("--pretrained and --finetune both say where to start from: give one")
    torch.manual_seed(s.seed)
    model = models.from_settings(vars(s), s.pretrained)
    if s.finetune:
        models.start_from(model, s.finetune)
    model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(param_groups_weight_decay(model, s.weight_decay), lr=s.lr, betas=(0.9, 0.95), fused=True)
    return TrainState(model, ModelEmaV3(model, s.ema_decay, use_warmup=True), optimizer)


def held_to(settings: dict, data: dict, damage: dict) -> dict:
    """What a run must have in common with one that it goes on from: all that changes what is computed."""
    own = {key: value for key, value in settings.items() if key not in models.PRIVATE | {"batch_size", "preset"}}
    batch = settings["batch_size"] * distributed.world_size()
    table = {f"damage {name}": row for name, row in {"generator": degradation.VERSION, **damage}.items()}
    return {**own, "batch_size × processes": batch, **table, "data set": data}


def compile_or_tell(model: torch.nn.Module, s: argparse.Namespace, device: torch.device) -> None:
    """Compiles the network in place after a trial on a copy; where that fails, says so and leaves it to run eagerly."""
    x = torch.rand(s.batch_size, s.in_chans, s.side, s.side, device=device)
    try:
        trial = copy.deepcopy(model)
        trial.compile()
        with torch.autocast(device.type, torch.bfloat16, enabled=s.bf16):
            trial(x).float().mean().backward()
    except Exception as error:  # what a compiler on some machine may raise has no common class
        print(f"not compiled, runs eagerly: {str(error).splitlines()[0]}", file=sys.stderr)
    else:
        model.compile()


def train(s: argparse.Namespace, device: torch.device) -> None:
    rank, world = distributed.rank(), distributed.world_size()
    first = rank == 0
    train_set, val_set, data = open_data(s, device)
    damage, val_damage = Degradation(s.preset, s.side, device), Degradation(scored_preset(s.preset), s.side, device)
    n = min(s.samples_per_epoch or len(train_set), len(train_set))
    n_update = s.batch_size * world * s.accumulate  # samples
    updates = n // n_update
    if not updates:
        raise ValueError(f"{n} samples do not fill one update of {n_update}: lower --batch_size")
    steps = updates * s.accumulate
    val_n = min(s.val_samples or len(val_set), len(val_set))
    val_positions = np.linspace(0, len(val_set) - 1, val_n).round().astype(np.int64)
    val_batches = [val_positions[b] for b in pairs.plain_batches(val_n, s.batch_size, rank, world)]

    state = start_state(s, device)
    own = {key: value for key, value in vars(s).items() if key not in ("config", "local_rank")}
    folder = RunFolder(s.output_dir, own, held_to(own, data, damage.table), s.save_minutes)
    with folder.open(state, s.resume), StopSignal() as stop:
        if s.compile or (s.compile is None and device.type == "cuda"):
            compile_or_tell(state.model, s, device)
        model = DistributedDataParallel(state.model, gradient_as_bucket_view=True) if world > 1 else state.model
        if first:
            parameters = sum(p.numel() for p in state.model.parameters()) / 1e6
            print(f"{s.model}, {parameters:.1f} M parameters, side {s.side}, on {device} × {world}; output in {s.output_dir}")
            counts = f"{len(train_set)} training samples, {val_n} for validation; {s.epochs * updates} updates of {n_update}"
            print(counts, flush=True)
        while state.epoch < s.epochs:
            began, begun = time.perf_counter(), state.batch
            batches = pairs.shuffled_batches(len(train_set), s.batch_size, s.seed, state.epoch, rank, world)[begun:steps]
            samples = pairs.load(train_set, batches, device, s.workers)
            scores = train_one_epoch(state, model, samples, steps, damage, s, stop, folder.save)
            seconds = time.perf_counter() - began
            samples = pairs.load(val_set, val_batches, device, s.workers)
            try:
                found = evaluate(state.ema.module, samples, val_damage, val_n, s.bf16, stop)
            except SystemExit:
                folder.save(state)
                raise
            pictures = found.pop("pictures")
            state.epoch, state.batch, state.sums = state.epoch + 1, 0, []
            row = {"epoch": state.epoch, "step": state.step, **scores, **{f"val_{k}": v for k, v in found.items()},
                   "seconds": seconds, "pictures_per_second": (steps - begun) * s.batch_size * world / seconds}  # fmt: skip
            better = found["psnr"] > state.best.get("psnr", -np.inf)  # never where it is not a number
            if better:
                state.best = {"epoch": state.epoch, **found}
            if first:
                report(row)
                folder.log(row, pictures[:8])
                folder.save(state)
                if better:
                    folder.keep("best.pth")
                if s.keep_every and state.epoch % s.keep_every == 0:
                    folder.keep(f"epoch_{state.epoch:04d}.pth")
            distributed.barrier()
    if first and state.best:
        print(f"best: epoch {state.best['epoch']}, {state.best['psnr']:.2f} dB (damaged {state.best['damaged_psnr']:.2f} dB)")


def report(row: dict) -> None:
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
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
