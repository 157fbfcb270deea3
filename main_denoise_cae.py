"""Train a network to restore degraded characters.

    torchrun --nproc_per_node=4 main_denoise_cae.py --config configs/cae_convnext_tiny.yaml
    python main_denoise_cae.py --config configs/demo.yaml --output_dir runs/mine

`python -m torch.distributed.launch` works like torchrun. The run folder gets config.yaml (settings, commit, versions, split),
log.jsonl (one line per epoch), last.pth, previous.pth, best.pth (by validation PSNR) and TensorBoard events. SIGTERM and Ctrl-C
save a checkpoint before the run ends; `--resume auto` continues at the next batch and gives the same result, bit for bit.
"""

import argparse
import copy
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

import models
from datasets import pairs
from datasets.degradation import Degradation, scored_preset
from datasets.pack import open_pack
from datasets.rng import sample_keys
from datasets.split import split_hash
from engine import LOSSES, Batch, TrainState, evaluate, fit, make_folder, make_state
from models.files import from_settings, init_from
from restoration.exemplars import preset_of
from util import distributed, settings
from util.settings import number
from util.stop import StopSignal


def build_parser() -> argparse.ArgumentParser:
    kind = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=kind, allow_abbrev=False)
    parser.add_argument("--config", help="YAML file of settings; flags override it")

    add = parser.add_argument_group("network").add_argument
    add("--model", default="cae_convnext_tiny", choices=models.NAMES, metavar="NAME", help=f"one of {', '.join(models.NAMES)}")
    add("--img_size", type=number(int, 32), default=224, help="picture size in pixels, a multiple of 32")
    add("--small_size", type=number(int, 0), default=0,
        help="every second batch has pictures of this size, so that the restorer also works on such; 0: none")  # fmt: skip
    add("--in_chans", type=int, default=1, choices=(1, 4), help="4 adds a guide, and state and time of the flow")
    add("--guide_drop", type=number(float, 0, 1), default=0.33, help="fraction of training pictures without their guide")
    add("--state_drop", type=number(float, 0, 1), default=0.1, help="fraction of training pictures without their state and time")
    add("--latent_dim", type=number(int, 1), default=768, help="size of the latent vector")
    add("--layer_scale", type=number(float, 0), default=1e-2, help="initial value of ConvNeXt's layer scale")
    add("--pretrained", action=argparse.BooleanOptionalAction, default=False,
        help="initialise the encoder with timm's ImageNet weights")  # fmt: skip
    add("--finetune", metavar="FILE",
        help="initialise with a trained network, of any img_size: a checkpoint or a .safetensors file")  # fmt: skip

    add = parser.add_argument_group("data").add_argument
    add("--data", nargs="+", default=["data/zi.pack"], metavar="PATH",
        help="packs, a folder <character>/*.png, or a folder of pairs degraded/ and clean/")  # fmt: skip
    add(
        "--preset",
        default="mixed",
        help="damage: a preset of configs/damage/, a YAML file, a mixture (mixed:.6,classic:.4), or a folder of scans",
    )
    add("--augment", type=number(float, 0, 1), default=0.0, help="fraction of training characters that are augmented")
    add("--brush", type=number(float, 0, 1), default=0.0,
        help="fraction of training characters drawn along their stroke medians, if a pack has them")  # fmt: skip
    add("--workers", type=number(int, 0, 256), default=4, help="reader processes for a folder; not used for a pack")
    add("--samples_per_epoch", type=number(int, 0), default=0, help="samples per epoch; 0 uses all")
    add("--val_samples", type=number(int, 0), default=2048, help="validation samples, spread over the validation set; 0 uses all")

    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=number(int, 1), default=200)
    add("--batch_size", type=number(int, 1), default=64, help="pictures per process")
    add("--accum_iter", type=number(int, 1), default=1, help="accumulate gradients over N batches")
    add("--loss", default="mse", choices=LOSSES)
    add("--lr", type=number(float, 0), default=4e-3, help="peak learning rate per 256 pictures")
    add("--min_lr", type=number(float, 0), default=1e-6, help="final learning rate, not scaled")
    add("--warmup_epochs", type=number(float, 0), default=5)
    add("--weight_decay", type=number(float, 0), default=0.05, help="not applied to norms, biases and layer scales")
    add("--clip_grad", type=number(float, 0), default=1.0, help="max gradient norm; 0 disables")
    add("--ema_decay", type=number(float, 0, 1), default=0.9998, help="decay of the averaged weights; warmed up from 0")
    add("--bf16", action=argparse.BooleanOptionalAction, help="autocast to bfloat16 (default: where it is fast)")
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile the network (default: on a GPU)")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0)

    settings.add_run_flags(parser, output_dir="runs/denoise_cae")
    return parser


def open_data(s: argparse.Namespace, device: torch.device) -> tuple:
    """Returns (training set, validation set, what identifies them in the resume fingerprint)."""
    root = Path(s.data[0])
    if not root.is_dir():
        pack = open_pack(*s.data)
        sets = [pairs.HandwritingSet(pack, split, "seen", s.img_size, s.in_chans == 4, device) for split in ("train", "val")]
        groups = map(chr, np.unique(pack.group))
        return *sets, {"checksum": pack.checksum, "split": split_hash(groups)}
    if len(s.data) > 1:
        raise ValueError(f"--data takes several packs, but one folder: {root}")
    sets = pairs.open_folder(root, ("train", "val"), s.img_size)
    return *sets, {"pictures": [len(data) for data in sets], "files": [data.digest for data in sets]}


def start_state(s: argparse.Namespace, device: torch.device, resumed: bool = False) -> TrainState:
    """The state of a new training. resumed: a checkpoint will be loaded, so --pretrained and --finetune load nothing."""
    if s.pretrained and s.finetune:
        raise ValueError("--pretrained and --finetune both set the initial weights: pass one of them")
    if s.small_size % 32 or (s.small_size and not s.model.startswith("restorer")):
        raise ValueError(f"--small_size must be a multiple of 32, and the network a restorer, not {s.small_size} and {s.model}")
    torch.manual_seed(s.seed)
    model = from_settings(vars(s), s.pretrained and not resumed)
    if s.finetune and not resumed:
        init_from(model, s.finetune)
    return make_state(model.to(device, memory_format=torch.channels_last), s)


def compile_or_warn(model: torch.nn.Module, s: argparse.Namespace, device: torch.device) -> None:
    """Compiles the network in place if that works on a copy; otherwise warns and leaves it eager."""
    x = torch.rand(s.batch_size, s.in_chans, s.img_size, s.img_size, device=device)
    try:
        trial = copy.deepcopy(model)
        trial.compile()
        with torch.autocast(device.type, torch.bfloat16, enabled=s.bf16):
            trial(x).float().mean().backward()
    except Exception as error:  # the errors of compilers have no common class
        print(f"warning: torch.compile failed, running eagerly: {str(error).splitlines()[0]}", file=sys.stderr)
    else:
        model.compile()


def train(s: argparse.Namespace, device: torch.device) -> None:
    rank, world = distributed.rank(), distributed.world_size()
    train_set, val_set, data = open_data(s, device)
    preset = preset_of(s.preset)
    damage, val_damage = Degradation(preset, s.img_size, device), Degradation(scored_preset(preset), s.img_size, device)
    n = min(s.samples_per_epoch or len(train_set), len(train_set))
    samples_per_update = s.batch_size * world * s.accum_iter
    updates = n // samples_per_update
    if not updates:
        raise ValueError(f"{n} samples do not fill one update of {samples_per_update}: lower --batch_size")
    batches_per_epoch = updates * s.accum_iter
    val_n = min(s.val_samples or len(val_set), len(val_set))
    val_positions = np.linspace(0, len(val_set) - 1, val_n).round().astype(np.int64)
    val_batches = [val_positions[b] for b in pairs.sharded_batches(val_n, s.batch_size, rank, world)]

    def inputs(epoch: int, first: int) -> Iterator[Batch]:
        batches = pairs.shuffled_batches(len(train_set), s.batch_size, s.seed, epoch, rank, world)[first:batches_per_epoch]
        samples = pairs.load(train_set, batches, device, s.workers, partial(sample_keys, s.seed, epoch))
        shares = s.guide_drop, s.augment, s.brush, s.in_chans, s.state_drop
        sizes = (None, s.small_size or None)  # of even and odd batches
        return (pairs.make_batch(one, damage, s.seed, epoch, *shares, sizes[n % 2]) for n, one in enumerate(samples, first))

    def loss_fn(logits: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        return LOSSES[s.loss](logits.float(), clean)

    def validate(network: torch.nn.Module, stop: StopSignal) -> tuple[dict, torch.Tensor | None]:
        samples = pairs.load(val_set, val_batches, device, s.workers)
        batches = (pairs.make_batch(sample, val_damage, pairs.EVALUATION_SEED, 0, in_chans=s.in_chans) for sample in samples)
        return evaluate(network, batches, val_n, s.bf16, stop)

    folder = make_folder(s, data, damage.table)
    with folder.open(partial(start_state, s, device), s.resume) as state, StopSignal(s.max_minutes) as stop:
        if s.compile or (s.compile is None and device.type == "cuda"):
            compile_or_warn(state.model, s, device)
        if rank == 0:
            parameters = sum(p.numel() for p in state.model.parameters()) / 1e6
            network = f"{s.model}, {parameters:.1f} M parameters, img_size {s.img_size}"
            print(f"{network}, on {world} × {device}; output in {s.output_dir}")
            total = f"{s.epochs * updates} updates of {samples_per_update}"
            print(f"{len(train_set)} training samples, {val_n} validation samples; {total}", flush=True)
        fit(state, inputs, loss_fn, batches_per_epoch, validate, "psnr", s, folder, stop)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    return distributed.run(train, settings.parse(build_parser(), argv))


if __name__ == "__main__":
    sys.exit(main())
