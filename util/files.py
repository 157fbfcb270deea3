"""Files that are replaced atomically, and folders that one process at a time may write to."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a path in the same folder to write to, and renames it to `path` at the end. Creates the folder.

    The new file is flushed to the disk first, so a crash leaves the old file or the new one. On an error the old file stays;
    an OSError names it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)  # a killed process with this id may have left it, as a hard link to a file in use
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.errno and error.filename is None:  # errors of `write` carry no file name
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def owning(folder: str | Path) -> Iterator[None]:
    """Creates the folder and locks it for this process; removes partial files that a killed process left there.

    The lock ends with the process. Raises OSError if the folder cannot be written to or another process holds the lock.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("wb")
    except OSError as error:
        raise OSError(f"cannot write into {folder}: {error.strerror}; choose another --output_dir") from error
    with lock:
        try:
            _lock(lock)
        except OSError as error:
            raise OSError(f"another run is writing into {folder}: choose another --output_dir") from error
        for part in folder.glob(".*.part"):
            part.unlink()
        yield


def _lock(file: IO) -> None:
    """Locks an open file until it is closed or the process ends. Raises OSError if another process holds the lock."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


def write_json(path: str | Path, content: dict) -> None:
    """Writes JSON atomically, with one line for each entry of the two outer levels."""

    def lines(value: object, depth: int) -> str:
        if depth and isinstance(value, dict | list) and value:
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            name = (lambda key: f"{json.dumps(key, ensure_ascii=False)}: ") if isinstance(value, dict) else (lambda _: "")
            start, end = "{}" if isinstance(value, dict) else "[]"
            return start + "\n" + ",\n".join(name(key) + lines(inner, depth - 1) for key, inner in entries) + "\n" + end
        return json.dumps(value, ensure_ascii=False)

    with replacing(path) as part:
        part.write_text(lines(content, 2) + "\n", encoding="utf-8", newline="\n")
