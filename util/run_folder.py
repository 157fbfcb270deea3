"""A run folder: config.yaml, log.jsonl, checkpoints and TensorBoard events, written by the first process."""

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from util import checkpoint, distributed
from util.files import owning, replacing
from util.version import commit


class RunFolder:
    """The settings, log and checkpoints of a run.

    last.pth is the newest checkpoint, previous.pth the one before it, best.pth that of the best epoch.

    Args:
        path: the folder; it is created.
        settings: all settings of the run, by name.
        resume_fingerprint: everything that a run resuming from these checkpoints must have in common with it, by name.
        save_minutes: minutes between two checkpoints within an epoch.
    """

    def __init__(self, path: str | Path, settings: dict, resume_fingerprint: dict, save_minutes: float = 10):
        self.path, self.settings, self.resume_fingerprint = Path(path), settings, resume_fingerprint
        self.save_seconds, self.first, self.saved = 60 * save_minutes, distributed.rank() == 0, time.monotonic()

    @contextmanager
    def open(self, make_state: Callable[[bool], Any], resume: str | None = None) -> Iterator[Any]:
        """Locks the folder for this run and yields the state of its training, with the checkpoint to resume from loaded.

        Args:
            make_state: whether the run resumes → the state, with `epoch`, `state_dict` and `load_state_dict`.
            resume: "auto": the newest checkpoint in the folder, if there is one; or the path of a checkpoint.

        Raises OSError if the folder cannot be written or is in use. Raises on all processes at once: ValueError if the folder holds
        a run and `resume` is None, if the checkpoint belongs to a different run, or if the processes find different checkpoints;
        FileNotFoundError if there is no checkpoint at a path.
        """
        with owning(self.path) if self.first else nullcontext():
            distributed.barrier()  # until the first process owns the folder
            state = self._start(make_state, resume)
            if not self.first:
                yield state
                return
            self._write_config()
            self._truncate_log(state.epoch)
            with SummaryWriter(self.path, purge_step=state.epoch + 1) as self.board:
                yield state

    def _start(self, make_state: Callable[[bool], Any], resume: str | None) -> Any:
        path, content = self._find_on_all(resume)
        state = make_state(content is not None)
        if content is not None:
            state.load_state_dict(content)
            if self.first:
                if resume == "auto" and state.batch == 0 and state.best.get("epoch") == state.epoch:
                    checkpoint.link(path, self.path / "best.pth")  # the run may have ended before it was kept
                print(f"resuming from {path} after update {state.global_step}")
        return state

    def _find_on_all(self, resume: str | None) -> tuple[str | Path | None, dict | None]:
        """What `_find` returns. ValueError on all processes if it raises on one of them, or if they find different checkpoints."""
        path, content, error = None, None, None
        try:
            path, content = self._find(resume)
        except (OSError, ValueError) as caught:
            error = caught
        position = f"epoch {content.get('epoch')}, batch {content.get('batch', 0)}" if content else "no checkpoint"
        reports = distributed.gather((platform.node(), position, error and str(error)))
        if error:
            raise error
        for rank, (host, _, message) in enumerate(reports):
            if message:
                raise ValueError(f"process {rank} on {host}: {message}")
        if len({position for _, position, _ in reports}) > 1:
            places = "; ".join(f"process {rank} on {host}: {position}" for rank, (host, position, _) in enumerate(reports))
            raise ValueError(f"{self.path}: not the same on all machines ({places}); put --output_dir on a disk that they share")
        return path, content

    def _find(self, resume: str | None) -> tuple[str | Path | None, dict | None]:
        """The checkpoint to resume from, (None, None) for a new run."""
        if not resume:
            if any((self.path / name).exists() for name in ("last.pth", "previous.pth", "best.pth")):
                raise ValueError(f"{self.path} already holds a run: pass --resume auto, or choose another --output_dir")
            return None, None
        path, content = self._newest() if resume == "auto" else (resume, checkpoint.read(resume))
        if content is not None:
            self._compare(path, content)
        return path, content

    def _compare(self, path: str | Path, content: dict) -> None:
        """Raises ValueError if the checkpoint belongs to a different run."""
        here = self.resume_fingerprint
        there = content.get("resume_fingerprint")
        if there is None:
            raise ValueError(f"{path} was written by another version; cannot resume")
        names = dict.fromkeys(here | there)
        if different := [key for key in names if here.get(key, "none") != there.get(key, "none")]:
            lines = [f"  {key}: {there.get(key, 'none')} there, {here.get(key, 'none')} here" for key in different]
            raise ValueError("\n".join([f"{path} belongs to a different run; cannot resume:", *lines]))

    def _newest(self) -> tuple[Path | None, dict | None]:
        """The newest readable checkpoint in the folder, (None, None) if it has none.

        A corrupt checkpoint is reported and the previous one is used. ValueError if all are corrupt: a run never restarts from
        scratch because its checkpoints were lost.
        """
        last = self.path / "last.pth"
        paths = [path for path in (last, last.with_name("previous.pth")) if path.exists()]
        for path in paths:
            try:
                return path, checkpoint.read(path)
            except ValueError as error:
                if self.first:
                    print(f"warning: {error}", file=sys.stderr)
        if paths:
            raise ValueError(f"no checkpoint in {self.path} can be read: start again in another --output_dir")
        return None, None

    def save(self, state) -> None:
        """Saves last.pth, on the first process. OSError, with the file named, if that fails."""
        if not self.first:
            return
        last = self.path / "last.pth"
        content = {"settings": self.settings, "resume_fingerprint": self.resume_fingerprint, **state.state_dict()}
        checkpoint.save(content, last, keep_as=last.with_name("previous.pth"))
        self.saved = time.monotonic()

    def save_if_due(self, state) -> None:
        """Saves if `save_minutes` have passed since the last save."""
        if time.monotonic() - self.saved >= self.save_seconds:
            self.save(state)

    def keep(self, name: str) -> None:
        """Keeps the newest checkpoint under another name as well."""
        checkpoint.link(self.path / "last.pth", self.path / name)

    def log(self, row: dict, pictures: torch.Tensor | None = None) -> None:
        """Appends a line to log.jsonl and writes TensorBoard scalars at row["epoch"], and pictures (N, C, H, W), channels side by
        side: degraded, restored, clean."""
        try:
            with (self.path / "log.jsonl").open("a", encoding="utf-8") as log:
                rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}
                log.write(json.dumps(rounded, ensure_ascii=False) + "\n")
        except OSError as error:
            raise OSError(f"{self.path}: log.jsonl could not be written: {error.strerror}") from error
        for key, value in row.items():
            if isinstance(value, int | float):
                self.board.add_scalar(key, value, row["epoch"])
        if pictures is not None:
            grid = torch.cat([torch.cat(list(channels), dim=1) for channels in pictures[:8]], dim=0)
            self.board.add_image("degraded, restored, clean", grid[None], row["epoch"])

    def _write_config(self) -> None:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else distributed.processor()
        versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
        about = {"commit": commit(), "versions": versions, "device": device, "world_size": distributed.world_size()}
        comments = {key: value for key, value in {**about, **self.resume_fingerprint}.items() if key not in self.settings}
        text = yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True)
        text += "".join(f"# {line}\n" for line in yaml.safe_dump(comments, allow_unicode=True).splitlines())
        with replacing(self.path / "config.yaml") as path:
            path.write_text(text, encoding="utf-8")

    def _truncate_log(self, epoch: int) -> None:
        """Removes lines of later epochs, whose weights were lost, from the log; they will be written again."""
        path = self.path / "log.jsonl"
        if path.exists():
            lines = [line for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
            with replacing(path) as part:
                part.write_text("".join(line for line in lines if json.loads(line)["epoch"] <= epoch), encoding="utf-8")
