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

from datasets.augmentation import augment
from datasets.degradation import Degradation, Stream, sample_keys
from util import distributed, metrics
from util.prefetch import prefetch
from util.schedule import learning_rate
from util.stop import StopSignal

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


PLACE = ("epoch", "batch", "step", "sums", "best")  # how far a training came


@dataclass
class TrainState:
    """All that changes while training. Nothing else is needed to go on: every random number comes from (seed, epoch, sample id)."""

    model: nn.Module  # bare, not wrapped
    ema: ModelEmaV3
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # epochs done, validation included
    batch: int = 0  # batches done of the epoch after them
    step: int = 0  # updates done
    sums: list = field(default_factory=list)  # of that epoch, for each process: [losses, gradient norms]
    best: dict = field(default_factory=dict)  # scores of the best epoch so far

    def own_sums(self) -> list[float]:
        """This process's part of the sums; the mean of all of them where there were more or fewer processes."""
        if len(self.sums) == distributed.world_size():
            return self.sums[distributed.rank()]
        return np.mean(self.sums, axis=0).tolist() if self.sums else [0.0, 0.0]

    def _parts(self) -> dict:
        return {"model": self.model, "ema": self.ema.module, "optimizer": self.optimizer}

    def state_dict(self) -> dict:
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            **{name: getattr(self, name) for name in PLACE},
        }

    def load_state_dict(self, state: dict) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        for name in PLACE:
            setattr(self, name, state.get(name, getattr(self, name)))


class NonFinite:
    """Notes on the device, without asking it, in which update a loss or gradient first was not finite.

    From then on `found` is 1, by which the fused optimizer leaves the weights as they are. The norm is that of the gradient
    summed over all processes, so all find it in the same update; whose loss it was, each process notes for itself.
    """

    def __init__(self, device: torch.device):
        self.found, self.update, self.own = torch.zeros(3, device=device)

    def see(self, losses: Tensor, norm: Tensor, update: int) -> None:
        first = (~norm.isfinite()) & (self.found == 0)
        self.update.add_(first * update)
        self.own.add_(first & ~losses.isfinite())
        self.found.add_(first)

    def check(self, ids: dict[int, list]) -> None:
        """Asks the device. `ids`: the samples of this process's latest updates. FloatingPointError, the same on every process."""
        if not self.found:
            return
        update = int(self.update)
        told = distributed.gather(ids.get(update) if self.own else None)
        whose = [f"process {rank}: the loss, on samples {ids}" for rank, ids in enumerate(told) if ids]
        raise FloatingPointError(f"not finite in update {update} of this epoch: {'; '.join(whose) or 'the gradient'}. It was not "
                                 "applied, nor saved; --resume auto goes on before it. A lower --lr may help")  # fmt: skip


def network_input(
    sample: dict, damage: Degradation, seed: int, epoch: int, guide_drop: float = 0.0, augmented: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(input (N, in_chans, H, W), clean target (N, 1, H, W)) of a batch: augmented and damaged now, unless it came damaged."""
    keys = sample_keys(seed, epoch, sample["id"])
    pair = "degraded" in sample
    x, target = (sample["degraded"], sample["clean"]) if pair else damage(augment(sample["clean"], keys, augmented), keys)
    if "guide" in sample:
        kept = damage.tensor(~Stream(keys, "guide").chance(guide_drop))[:, None, None, None]
        x = torch.cat([x, sample["guide"] * kept], dim=1)
    return x, target


def train_one_epoch(
    state: TrainState,
    model: nn.Module,
    batches: Iterable[dict],
    steps: int,
    damage: Degradation,
    s,
    stop: StopSignal,
    save: Callable,
) -> dict:
    """The epoch, from batch `state.batch` on to batch `steps`, a multiple of `s.accumulate`: so many batches make an update.

    `model` is `state.model`, wrapped for DDP or bare. Every `s.log_every` updates, on a CPU after each, all processes look up: a
    loss that is not finite ends the run, a signal ends it after `save(state, now=True)`; else `save(state, now=False)` saves when
    it is time. Returns means over the epoch: {"loss", "lr", "grad_norm"}.
    """
    model.train()
    device, rank, world, updates = damage.device, distributed.rank(), distributed.world_size(), steps // s.accumulate
    peak, warmup = s.lr * s.batch_size * s.accumulate * world / 256, round(s.warmup_epochs * updates)
    sums, losses, ids = torch.tensor(state.own_sums(), device=device), 0, {}
    watch = NonFinite(device)
    state.optimizer.found_inf = watch.found
    inputs = prefetch(
        (sample["id"], *network_input(sample, damage, s.seed, state.epoch, s.guide_drop, s.augment)) for sample in batches
    )
    bar = tqdm(inputs, f"epoch {state.epoch + 1}/{s.epochs}", steps, initial=state.batch, mininterval=2, unit="batch",
               disable=None if rank == 0 else True)  # fmt: skip
    for sample_ids, x, target in bar:
        state.batch += 1
        update, last = -(-state.batch // s.accumulate), state.batch % s.accumulate == 0  # of this epoch; the last batch of it
        ids.setdefault(update, []).extend(sample_ids.tolist())
        with nullcontext() if last or model is state.model else model.no_sync():
            with torch.autocast(device.type, torch.bfloat16, enabled=s.bf16):
                logits = model(x)
            loss = LOSSES[s.loss](logits.float(), target)
            (loss / s.accumulate).backward()
        losses += loss.detach()
        if not last:
            continue
        lr = learning_rate(state.step, s.epochs * updates, peak, warmup, s.min_lr)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), s.clip_grad or float("inf"))
        watch.see(losses, norm, update)
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step += 1
        state.ema.update(state.model, step=state.step)
        sums += torch.stack([losses, norm])
        losses = 0
        if state.step % s.log_every and update < updates and device.type != "cpu":
            continue
        watch.check(ids)
        ids.clear()
        told = distributed.gather((sums.tolist(), stop.number))
        state.sums, signals = [own for own, _ in told], [number for _, number in told]
        bar.set_postfix(loss=f"{loss.item():.4f}", lr=f"{lr:.2e}")
        save(state, now=any(signals))
        if any(signals):
            distributed.barrier()  # torchrun ends the others when the first is gone
            raise SystemExit(128 + max(signals))
    loss_sum, norm_sum = np.sum(state.sums, axis=0).tolist()
    lr = learning_rate(state.step - 1, s.epochs * updates, peak, warmup, s.min_lr)
    return {"loss": loss_sum / (steps * world), "lr": lr, "grad_norm": norm_sum / (updates * world)}


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[dict], damage: Degradation, n: int, bf16: bool = False, stop: StopSignal | None = None
) -> dict:
    """Mean scores of a network over the n samples that all processes' batches hold together; each counts once.

    Returns {"n", "damaged_psnr", "psnr", "ssim", "f1"} and, in "pictures", the first batch as (N, 3, H, W): damaged, restored,
    clean.
    """
    model.eval()
    sums, pictures = np.zeros(5), None
    for x, clean in prefetch(network_input(sample, damage, EVALUATION_SEED, 0) for sample in batches):
        if stop and stop.number:
            raise SystemExit(128 + stop.number)
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
