"""Which pictures to restore, and which files to write for each: nothing is overwritten by mistake."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from util import images

STANDARD = Path("-")  # standard input or output


class Job(NamedTuple):
    """A picture to restore, the file to write, and the character in the picture, if known."""

    source: Path
    target: Path
    char: str | None = None


def plan(source: Path, target: Path | None) -> list[Job]:
    """One job for a picture; for a folder, one job for each picture in it and its subfolders.

    A folder's pictures are recognised by their suffix; its tree and names are kept. Without a target, the output is written next
    to the input, with `_restored` added to the name. Raises FileNotFoundError and ValueError.
    """
    if source != STANDARD and not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if target == STANDARD and source.is_dir():
        raise ValueError(f"{source}: a folder cannot be written to standard output; pass an output folder")
    if target == STANDARD or (source, target) == (STANDARD, None):
        return [Job(source, STANDARD)]
    if target is None:
        of = source.resolve() if source.is_dir() else source  # "." has no name
        target = of.with_name(f"{of.name}_restored" if source.is_dir() else f"{of.stem}_restored.png")
    if source.is_dir():
        if target.is_file():
            raise ValueError(f"{target}: a file, but the input is a folder; pass an output folder")
        if source.resolve() in target.resolve().parents:
            raise ValueError(f"{target}: is inside the input folder; pass another output folder")
        pictures = images.pictures_in(source)
        if not pictures:
            raise ValueError(f"{source}: contains no pictures ({' '.join(sorted(images.SUFFIXES))})")
        return [Job(picture, (target / picture.relative_to(source)).with_suffix(".png")) for picture in pictures]
    if target.is_dir() and source != STANDARD:
        return [Job(source, target / f"{source.stem}.png")]
    if target.suffix.lower() != ".png":
        raise ValueError(f"{target}: the output format is PNG; pass a .png file or an existing folder")
    return [Job(source, target)]


def check_outputs(jobs: list[Job], outputs: Callable[[Job], Iterable[Path]], overwrite: bool, further: Iterable[Path] = ()) -> None:
    """Raises ValueError if an output is an input, belongs to two inputs, lies in what is no folder, or exists and may not be
    overwritten. further: inputs beside the pictures."""
    inputs = {path.resolve() for path in (*(job.source for job in jobs), *further)}
    owner: dict[Path, Path] = {}
    existing = []
    for job in jobs:
        for output in outputs(job):
            path = output.resolve()
            if path in inputs:
                raise ValueError(f"{output}: this output is an input; inputs are never overwritten, pass another output")
            if path in owner:
                raise ValueError(f"{output}: output of both {owner[path]} and {job.source}; rename one of them")
            owner[path] = job.source
            there = next(folder for folder in path.parents if folder.exists())
            if not there.is_dir():
                raise ValueError(f"{output}: {there} is a file and no folder; pass another output")
            if output.exists():
                existing.append(output)
    if existing and not overwrite:
        others = f", and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise ValueError(f"{existing[0]}: exists already{others}; pass --overwrite or another output")
