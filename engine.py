"""What both trainings share: an epoch of training, validation of a restoring network, and `fit`, the run of epochs."""

import argparse
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from datasets import degradation
from models import norms
from models.files import PRIVATE
from util import distributed, metrics
from util.prefetch import prefetch
from util.run_folder import RunFolder
from util.schedule import learning_rate
from util.stop import StopSignal, exit_if_any

Batch = tuple[np.ndarray, Tensor, Tensor]  # sample ids (N,), x, target

NORM_BATCHES = 16  # by which the averaged network's norms are estimated before validation
CHECK_SECONDS = 5  # between two checks for signals; torchrun kills a process 30 s after SIGTERM


def charbonnier(restored: Tensor, clean: Tensor, eps: float = 1e-3) -> Tensor:
    """Smooth L1 (Charbonnier et al., ICIP 1994): mean of sqrt(d² + eps²)."""
    return ((restored - clean).square() + eps**2).sqrt().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of logits and clean, both (N, 1, H, W)
    "mse": lambda logits, clean: F.mse_loss(logits.sigmoid(), clean),
    "bce": F.binary_cross_entropy_with_logits,
    "l1": lambda logits, clean: F.l1_loss(logits.sigmoid(), clean),
    "charbonnier": lambda logits, clean: charbonnier(logits.sigmoid(), clean),
}


POSITION = ("epoch", "batch", "global_step", "sums", "best")


@dataclass
class TrainState:
    """Everything that changes during training. All random numbers come from (seed, epoch, sample id), so no generator is kept."""

    model: nn.Module  # not wrapped
    ema: ModelEmaV3
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # epochs completed, validation included
    batch: int = 0  # batches completed of the current epoch
    global_step: int = 0  # optimizer updates
    sums: list = field(default_factory=list)  # of the current epoch, for each process: [losses, gradient norms]
    best: dict = field(default_factory=dict)  # scores of the best epoch so far

    def local_sums(self) -> list[float]:
        """This process's sums, or the mean over all processes if their number has changed."""
        if len(self.sums) == distributed.world_size():
            return self.sums[distributed.rank()]
        return np.mean(self.sums, axis=0).tolist() if self.sums else [0.0, 0.0]

    def _parts(self) -> dict:
        return {"model": self.model, "ema": self.ema.module, "optimizer": self.optimizer}

    def state_dict(self) -> dict:
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            **{name: getattr(self, name) for name in POSITION},
        }

    def load_state_dict(self, state: dict) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        for name in POSITION:
            setattr(self, name, state.get(name, getattr(self, name)))


def make_state(model: nn.Module, s: argparse.Namespace, betas: tuple[float, float] = (0.9, 0.95)) -> TrainState:
    """The state of a new training of `model` by AdamW, with averaged weights."""
    optimizer = torch.optim.AdamW(param_groups_weight_decay(model, s.weight_decay), lr=s.lr, betas=betas, fused=True)
    return TrainState(model, ModelEmaV3(model, s.ema_decay, use_warmup=True), optimizer)


def peak_lr(s: argparse.Namespace) -> float:
    """The peak learning rate for the pictures of one update by all processes; --lr is that for 256."""
    return s.lr * s.batch_size * s.accum_iter * distributed.world_size() / 256


def make_folder(s: argparse.Namespace, data: dict, damage: dict) -> RunFolder:
    """The run folder of a training with the settings `s`.

    Its resume fingerprint is everything that changes what is computed: the settings, `data`, which identifies the data set, and
    `damage`, the table of a `Degradation`. Raises ValueError if the learning rate would rise instead of falling.
    """
    if s.min_lr > (peak := peak_lr(s)):
        raise ValueError(f"--min_lr {s.min_lr:g} is above the peak learning rate, {peak:.3g} (--lr is for 256 pictures)")
    settings = {key: value for key, value in vars(s).items() if key not in ("config", "local_rank")}
    recipe = {key: value for key, value in settings.items() if key not in PRIVATE | {"batch_size", "preset"}}
    batch = s.batch_size * distributed.world_size()
    table = {f"damage {name}": row for name, row in {"generator": degradation.VERSION, **damage}.items()}
    fingerprint = {**recipe, "batch_size × processes": batch, **table, "data set": data}
    return RunFolder(s.output_dir, settings, fingerprint, s.save_minutes)


class NonFinite:
    """Records on the device, without synchronising, the first update whose loss or gradient is not finite.

    From that update on `found_inf` is 1, and the fused optimizer skips its steps. The gradient norm is that of the gradient reduced
    over all processes, so all of them find the same update; each records for itself whether its own loss was the cause.
    """

    def __init__(self, device: torch.device):
        self.found_inf, self.update, self.loss_is_cause = torch.zeros(3, device=device)

    def record(self, losses: Tensor, norm: Tensor, update: int) -> None:
        first = (~norm.isfinite()) & (self.found_inf == 0)
        self.update.add_(first * update)
        self.loss_is_cause.add_(first & ~losses.isfinite())
        self.found_inf.add_(first)

    def check(self, ids: dict[int, list]) -> None:
        """Synchronises. `ids`: samples of this process's latest updates. Raises FloatingPointError on every process at once."""
        if not self.found_inf:
            return
        update = int(self.update)
        causes = distributed.gather(ids.get(update) if self.loss_is_cause else None)
        where = [f"process {rank}: the loss, on samples {ids}" for rank, ids in enumerate(causes) if ids]
        raise FloatingPointError(
            f"not finite in update {update} of this epoch: {'; '.join(where) or 'the gradient'}. "
            "The update was neither applied nor saved. A lower --lr may help"
        )


def check_interval(log_every: int, seconds: float) -> int:
    """Updates until the next check for signals: `log_every`, or fewer if updates of `seconds` each then exceed CHECK_SECONDS."""
    return log_every if log_every * seconds <= CHECK_SECONDS else max(1, int(CHECK_SECONDS / seconds))


def train_one_epoch(
    state: TrainState,
    model: nn.Module,
    inputs: Iterable[Batch],
    loss_fn: Callable,
    batches_per_epoch: int,
    s: argparse.Namespace,
    stop: StopSignal,
    save: Callable[[TrainState], None],
) -> dict:
    """Trains from batch `state.batch` to `batches_per_epoch`, a multiple of `s.accum_iter`.

    Signals and non-finite losses are checked after the first and the last update; between them after each update on a CPU, on a
    GPU as `check_interval` says.

    Args:
        model: `state.model`, wrapped for DDP or not.
        inputs: the remaining batches.
        loss_fn: (output, target) → scalar; with bf16 the output may be in bfloat16.
        s: settings: accum_iter, batch_size, bf16, clip_grad, epochs, log_every, lr, min_lr, warmup_epochs.
        save: called after each check.

    Returns means over the epoch: {"loss", "lr", "grad_norm"}. Raises on all processes at once: FloatingPointError for a loss or
    gradient that is not finite, SystemExit after a signal or when the time is up, with `state` ready to be saved.
    """
    model.train()
    device, rank, world = next(state.model.parameters()).device, distributed.rank(), distributed.world_size()
    updates = batches_per_epoch // s.accum_iter
    peak, warmup = peak_lr(s), round(s.warmup_epochs * updates)
    sums, losses, ids = torch.tensor(state.local_sums(), device=device), 0, {}
    non_finite = NonFinite(device)
    state.optimizer.found_inf = non_finite.found_inf
    checked, check_at = time.monotonic(), state.global_step + 1
    bar = tqdm(prefetch(inputs), f"epoch {state.epoch + 1}/{s.epochs}", batches_per_epoch, initial=state.batch, mininterval=2,
               unit="batch", disable=None if rank == 0 else True)  # fmt: skip
    for sample_ids, x, target in bar:
        state.batch += 1
        update, last = -(-state.batch // s.accum_iter), state.batch % s.accum_iter == 0  # within this epoch; last batch of it
        ids.setdefault(update, []).extend(sample_ids.tolist())
        with nullcontext() if last or model is state.model else model.no_sync():
            with torch.autocast(device.type, torch.bfloat16, enabled=s.bf16):
                output = model(x)
            loss = loss_fn(output, target)
            (loss / s.accum_iter).backward()
        losses += loss.detach()
        if not last:
            continue
        lr = learning_rate(state.global_step, s.epochs * updates, peak, warmup, s.min_lr)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), s.clip_grad or float("inf"))
        non_finite.record(losses, norm, update)
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.global_step += 1
        state.ema.update(state.model, step=state.global_step)
        sums += torch.stack([losses, norm])
        losses = 0
        if state.global_step < check_at and update < updates:
            continue
        non_finite.check(ids)
        reports = distributed.gather((sums.tolist(), stop.number, (time.monotonic() - checked) / len(ids)))
        state.sums, signals, seconds = map(list, zip(*reports))
        ids.clear()
        checked = time.monotonic()
        # the slowest process decides, so that all check after the same updates
        check_at = state.global_step + (1 if device.type == "cpu" else check_interval(s.log_every, max(seconds)))
        bar.set_postfix(loss=f"{loss.item():.4f}", lr=f"{lr:.2e}")
        exit_if_any(signals)
        save(state)
    loss_sum, norm_sum = np.sum(distributed.gather(sums.tolist()), axis=0).tolist()
    lr = learning_rate(state.global_step - 1, s.epochs * updates, peak, warmup, s.min_lr)
    return {"loss": loss_sum / (batches_per_epoch * world), "lr": lr, "grad_norm": norm_sum / (updates * world)}


@torch.inference_mode()
def evaluate(
    model: nn.Module, inputs: Iterable[Batch], n: int, bf16: bool = False, stop: StopSignal | None = None
) -> tuple[dict, Tensor | None]:
    """Mean scores of a restoring network over n pictures.

    Args:
        inputs: this process's batches, x (N, C, H, W) and clean (N, 1, H, W); all processes' together hold n pictures.

    Returns ({"n", "degraded_psnr", "psnr", "ssim", "f1"}, the first batch as (N, 3, H, W): degraded, restored, clean).
    Raises RuntimeError unless exactly n pictures were scored; SystemExit on all processes at once if one received a signal.
    """
    model.eval()
    sums, pictures = np.zeros(5), None
    for _, x, clean in (stop or StopSignal()).watch(prefetch(inputs)):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            logits = model(x)
        degraded, restored = x[:, :1], logits.float().sigmoid()
        scores = [
            metrics.psnr(degraded, clean),
            *(score(restored, clean) for score in (metrics.psnr, metrics.ssim, metrics.ink_f1)),
        ]
        sums += [len(clean), *(score.double().sum().item() for score in scores)]
        if pictures is None:
            pictures = torch.cat([degraded, restored, clean], dim=1)
    sums = np.sum(distributed.gather(sums), axis=0)
    if sums[0] != n:
        raise RuntimeError(f"{sums[0]:.0f} pictures were scored instead of {n}")
    return {"n": n, **dict(zip(("degraded_psnr", "psnr", "ssim", "f1"), (sums[1:] / n).tolist(), strict=True))}, pictures


def fit(
    state: TrainState,
    inputs: Callable[[int, int], Iterable[Batch]],
    loss_fn: Callable,
    batches_per_epoch: int,
    validate: Callable[[nn.Module, StopSignal], tuple[dict, Tensor | None]],
    best_by: str,
    s: argparse.Namespace,
    folder: RunFolder,
    stop: StopSignal,
) -> None:
    """Trains from `state` to `s.epochs` epochs; after each estimates the averaged network's norms, validates, logs and saves.

    A signal, or the end of the time, saves and raises SystemExit.

    Args:
        inputs: (epoch, first batch) → this process's remaining batches of the epoch.
        loss_fn, batches_per_epoch: see `train_one_epoch`.
        validate: (averaged network, stop) → (scores, pictures for TensorBoard (N, C, H, W) or None).
        best_by: the score that decides which checkpoint is best.pth; higher is better.
        s: settings: those of `train_one_epoch`, and keep_every.
    """
    world, first = distributed.world_size(), distributed.rank() == 0
    model = DistributedDataParallel(state.model, gradient_as_bucket_view=True) if world > 1 else state.model
    while state.epoch < s.epochs:
        start, first_batch = time.perf_counter(), state.batch
        batches = inputs(state.epoch, first_batch)
        try:
            scores = train_one_epoch(state, model, batches, loss_fn, batches_per_epoch, s, stop, folder.save_if_due)
            seconds = time.perf_counter() - start
            first_batches = islice(inputs(state.epoch, 0), NORM_BATCHES)
            with torch.autocast(next(state.model.parameters()).device.type, torch.bfloat16, enabled=s.bf16):
                norms.estimate(state.ema.module, (x for _, x, _ in stop.watch(prefetch(first_batches))))
            val_scores, pictures = validate(state.ema.module, stop)
        except SystemExit as end:
            folder.save(state)
            if first and not end.code:
                print("the time is up: saved, --resume auto continues", flush=True)
            distributed.barrier()  # torchrun ends the other processes as soon as one is gone
            raise
        state.epoch, state.batch, state.sums = state.epoch + 1, 0, []
        speed = (batches_per_epoch - first_batch) * s.batch_size * world / seconds
        row = {"epoch": state.epoch, "global_step": state.global_step, **scores, **{f"val_{k}": v for k, v in val_scores.items()},
               "seconds": seconds, "pictures_per_second": speed}  # fmt: skip
        better = val_scores[best_by] > state.best.get(best_by, -np.inf)  # False for NaN
        if better:
            state.best = {"epoch": state.epoch, **val_scores}
        if first:
            summary = ", ".join(f"{key} {value:.4g}" for key, value in val_scores.items() if isinstance(value, float))
            print(f"epoch {state.epoch}: loss {scores['loss']:.4f}; validation {summary}; {speed:.0f} pictures/s", flush=True)
            folder.log(row, pictures)
            folder.save(state)
            if better:
                folder.keep("best.pth")
            if s.keep_every and state.epoch % s.keep_every == 0:
                folder.keep(f"epoch_{state.epoch:04d}.pth")
        distributed.barrier()
    if first and state.best:
        print(f"best: epoch {state.best['epoch']}, {best_by} {state.best[best_by]:.4g}")
