"""The two loops: train for an epoch, and score the validation set."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from datasets.degradation import Degradation, Stream, sample_keys
from util import distributed, metrics
from util.schedule import learning_rate

EVALUATION_SEED = 20_000  # the damage of validation and scoring; no training uses it


def charbonnier(restored: Tensor, clean: Tensor, eps: float = 1e-3) -> Tensor:
    """A smooth L1 (Charbonnier et al., ICIP 1994): mean of sqrt(d² + eps²)."""
    return ((restored - clean).square() + eps**2).sqrt().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of logits and clean, both (N, 1, H, W)
    "mse": lambda logits, clean: F.mse_loss(logits.sigmoid(), clean),
    "bce": F.binary_cross_entropy_with_logits,
    "l1": lambda logits, clean: F.l1_loss(logits.sigmoid(), clean),
    "charbonnier": lambda logits, clean: charbonnier(logits.sigmoid(), clean),
}


@dataclass
class TrainState:
    """All that changes while training. Nothing else is needed to go on: every random number comes from (seed, epoch, sample id)."""

    model: nn.Module  # bare, not wrapped
    ema: ModelEmaV3
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # epochs done
    step: int = 0  # updates done
    best: dict = field(default_factory=dict)  # scores of the best epoch so far

    def state_dict(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
        }

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]


def network_input(sample: dict, damage: Degradation, seed: int, epoch: int, guide_drop: float = 0.0) -> tuple[Tensor, Tensor]:
    """(input (N, in_chans, H, W), clean target (N, 1, H, W)) of a batch: damaged now, unless it came damaged."""
    keys = sample_keys(seed, epoch, sample["id"])
    x, target = (sample["degraded"], sample["clean"]) if "degraded" in sample else damage(sample["clean"], keys)
    if "guide" in sample:
        kept = damage.tensor(~Stream(keys, "guide").chance(guide_drop))[:, None, None, None]
        x = torch.cat([x, sample["guide"] * kept], dim=1)
    return x, target


def train_one_epoch(state: TrainState, model: nn.Module, batches: Iterable[dict], steps: int, damage: Degradation, s) -> dict:
    """One pass over `steps` batches, a multiple of `s.accumulate`, of which each makes a part of an update.

    `model` is `state.model`, wrapped for DDP or bare. Returns means over the epoch: {"loss", "lr", "grad_norm"}.
    """
    model.train()
    device, world, updates = damage.device, distributed.world_size(), steps // s.accumulate
    peak = s.lr * s.batch_size * s.accumulate * world / 256
    loss_sum, norm_sum = torch.zeros(2, device=device)
    name = f"epoch {state.epoch + 1}/{s.epochs}"
    bar = tqdm(batches, name, steps, mininterval=2, unit="batch", disable=None if distributed.rank() == 0 else True)
    for i, sample in enumerate(bar, start=1):
        last = i % s.accumulate == 0  # of its update
        x, target = network_input(sample, damage, s.seed, state.epoch, s.guide_drop)
        with nullcontext() if last or model is state.model else model.no_sync():
            with torch.autocast(device.type, torch.bfloat16, enabled=s.bf16):
                logits = model(x)
            loss = LOSSES[s.loss](logits.float(), target)
            (loss / s.accumulate).backward()
        loss_sum += loss.detach()
        if not last:
            continue
        lr = learning_rate(state.step, s.epochs * updates, peak, round(s.warmup_epochs * updates), s.min_lr)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        norm_sum += nn.utils.clip_grad_norm_(state.model.parameters(), s.clip_grad or float("inf"))
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step += 1
        state.ema.update(state.model, step=state.step)
        if state.step % s.log_every == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", lr=f"{lr:.2e}")
    state.epoch += 1
    loss_mean = distributed.all_reduce_sum(loss_sum).item() / (steps * world)
    return {"loss": loss_mean, "lr": lr, "grad_norm": norm_sum.item() / updates}


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[dict], damage: Degradation, n: int, bf16: bool = False) -> dict:
    """Mean scores of a network over the n samples that all processes' batches hold together; each counts once.

    Returns {"n", "damaged_psnr", "psnr", "ssim", "f1"} and, in "pictures", the first batch as (N, 3, H, W): damaged, restored,
    clean.
    """
    model.eval()
    sums, pictures = np.zeros(5), None
    for sample in batches:
        x, clean = network_input(sample, damage, EVALUATION_SEED, 0)
        with torch.autocast(damage.device.type, torch.bfloat16, enabled=bf16):
            logits = model(x)
        restored = logits.float().sigmoid()
        scores = [
            metrics.psnr(x[:, :1], clean),
            *(score(restored, clean) for score in (metrics.psnr, metrics.ssim, metrics.ink_f1)),
        ]
        sums += [len(clean), *(score.double().sum().item() for score in scores)]
        if pictures is None:
            pictures = torch.cat([x[:, :1], restored, clean], dim=1)
    sums = np.sum(distributed.gather(sums), axis=0)
    if sums[0] != n:
        raise RuntimeError(f"{sums[0]:.0f} pictures were scored instead of {n}")
    return {
        "n": n,
        **dict(zip(("damaged_psnr", "psnr", "ssim", "f1"), (sums[1:] / n).tolist(), strict=True)),
        "pictures": pictures,
    }
