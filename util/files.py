"""Files that are there whole or not at all, and folders that one process at a time writes to."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A place beside `path` to write to; what was written there becomes `path` at the end.

    The new file is on the disk before it takes the name, so a crash leaves the old file or the new one; on an error
    the old one stays, and an OSError names it. Makes the folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)  # a killed process with this id may have left it as a second name of a file that is kept
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.errno and error.filename is None:  # of a write, which does not know the file's name
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def owning(folder: str | Path) -> Iterator[None]:
    """Makes the folder and holds it as the only process; what a killed one left half written is removed.

    The lock ends with the process, however that ends. OSError if the folder cannot be written to or another process holds it.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise OSError(f"cannot write into {folder}: {error.strerror}; choose another --output_dir") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OSError(f"another run is writing into {folder}: choose another --output_dir") from error
        for part in folder.glob(".*.part"):
            part.unlink()
        yield
