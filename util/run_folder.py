"""A run folder: config.yaml, log.jsonl, checkpoints, TensorBoard's events; written by the first process alone."""

import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from util import checkpoint, distributed
from util.files import owning, replacing
from util.version import commit


class RunFolder:
    """Where a run keeps what it is and how far it came.

    Args:
        path: of the folder, which is made.
        settings: all settings of the run, by name.
        held_to: what a run that goes on from its checkpoints must have in common with it, by name.
        save_minutes: between two checkpoints within an epoch.

    last.pth is the newest checkpoint, previous.pth the one before it, best.pth that of the best epoch.
    """

    def __init__(self, path: str | Path, settings: dict, held_to: dict, save_minutes: float = 10):
        self.path, self.settings, self.held_to, self.save_seconds = Path(path), settings, held_to, 60 * save_minutes
        self.first, self.saved = distributed.rank() == 0, time.monotonic()

    @contextmanager
    def open(self, state, resume: str | None) -> Iterator[None]:
        """Holds the folder as the only run and puts a checkpoint into the state: for "auto" the newest of the folder, if there is
        one; else that of the path `resume`.

        OSError if the folder cannot be written to or is in use; ValueError if it holds another run, or the checkpoint is of one.
        """
        if not self.first:
            distributed.barrier()
            self._resume(state, resume)
            yield
            return
        with owning(self.path):
            distributed.barrier()
            self._resume(state, resume)
            self._write_config()
            self._forget_after(state.epoch)
            with SummaryWriter(self.path, purge_step=state.epoch + 1) as self.board:
                yield

    def _resume(self, state, resume: str | None) -> None:
        if not resume:
            if any((self.path / name).exists() for name in ("last.pth", "previous.pth", "best.pth")):
                raise ValueError(f"{self.path} holds a run: go on with --resume auto, or choose another --output_dir")
            return
        found = self._newest() if resume == "auto" else (resume, checkpoint.read(resume))
        if not found:
            return
        path, content = found
        earlier = content.get("held_to") or {**self.held_to, **{k: v for k, v in content["settings"].items() if k in self.held_to}}
        there, now = ({**dict.fromkeys(earlier | self.held_to, "none"), **held} for held in (earlier, self.held_to))
        if lines := [f"  {key}: {there[key]} there, {now[key]} now" for key in now if there[key] != now[key]]:
            raise ValueError("\n".join([f"{path} is of another run and cannot be gone on from:", *lines]))
        state.load_state_dict(content)
        if self.first:
            if resume == "auto" and state.batch == 0 and state.best.get("epoch") == state.epoch:
                self.keep("best.pth")  # the end may have come before it was
            print(f"goes on from {path}, after update {state.step}")

    def _newest(self) -> tuple[Path, dict] | None:
        """The newest checkpoint that can be read; a broken one is told and passed over, and if all are, that is an error: a run
        never starts again from nothing because its checkpoints were lost."""
        last = self.path / "last.pth"
        names = [path for path in (last, last.with_name("previous.pth")) if path.exists()]
        for path in names:
            try:
                content = checkpoint.read(path)
            except ValueError as error:
                if self.first:
                    print(f"warning: {error}", file=sys.stderr)
                continue
            return path, content
        if names:
            raise ValueError(f"no checkpoint in {self.path} can be read: start afresh in another --output_dir")
        return None

    def save(self, state, now: bool = True) -> None:
        """Saves last.pth; unless `now`, only when it is time. OSError, which names the file, if that fails."""
        if not self.first or not (now or time.monotonic() - self.saved >= self.save_seconds):
            return
        last = self.path / "last.pth"
        content = {"settings": self.settings, "held_to": self.held_to, **state.state_dict()}
        checkpoint.save(content, last, keep_as=last.with_name("previous.pth"))
        self.saved = time.monotonic()

    def keep(self, name: str) -> None:
        """Keeps the newest checkpoint under another name too."""
        checkpoint.link(self.path / "last.pth", self.path / name)

    def log(self, row: dict, pictures: torch.Tensor) -> None:
        """A line of log.jsonl and TensorBoard's scalars, by row["epoch"]; pictures (N, C, H, W), channels side by side."""
        line = json.dumps({key: round(v, 6) if isinstance(v, float) else v for key, v in row.items()}) + "\n"
        try:
            with (self.path / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(line)
        except OSError as error:
            raise OSError(f"{self.path}: log.jsonl could not be written: {error.strerror}") from error
        for key, value in row.items():
            self.board.add_scalar(key, value, row["epoch"])
        grid = torch.cat([torch.cat(list(channels), dim=1) for channels in pictures], dim=0)
        self.board.add_image("damaged, restored, clean", grid[None], row["epoch"])

    def _write_config(self) -> None:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
        versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
        about = {"commit": commit(), "versions": versions, "device": device, "world_size": distributed.world_size(), **self.held_to}
        told = {key: value for key, value in about.items() if key not in self.settings}
        with replacing(self.path / "config.yaml") as path:
            text = yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True)
            path.write_text(
                text + "# " + "\n# ".join(yaml.safe_dump(told, allow_unicode=True).splitlines()) + "\n", encoding="utf-8"
            )

    def _forget_after(self, epoch: int) -> None:
        """Takes lines of later epochs, whose weights were lost, out of the log: they are written again."""
        path = self.path / "log.jsonl"
        if path.exists():
            lines = [line for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
            with replacing(path) as part:
                part.write_text("".join(line for line in lines if json.loads(line)["epoch"] <= epoch), encoding="utf-8")
