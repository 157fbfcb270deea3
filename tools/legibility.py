"""How many real damaged characters the recogniser reads, before and after they are restored.

    python tools/legibility.py path/to/characters --checkpoint weights/restorer_convnext_atto.safetensors

The folder holds pictures of one character each, of any size, colour and polarity, with the character in the file's name. No clean
pictures are needed. Names that hold no character, and characters that the recogniser does not know, are left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.pack import open_pack
from evaluate import RECOGNISER
from models import recogniser
from restore import char_in
from restoring import PACK, Restorer, load_restorer
from scoring import Reader
from util import images
from util.binarise import median, otsu


@torch.inference_mode()
def legibility(restorer: Restorer, folder: Path, pack: Path = PACK, weights: Path = RECOGNISER) -> dict:
    """{"n", "left_out": pictures; and [share read, share among the first five] for each way to see them}.

    "damaged"; "median_otsu": median filter and Otsu's threshold, which any network must beat; "restored"; and, with a guide,
    "told": restored with the character told, which is how people work, and no blind test. ValueError where nothing can be read.
    """
    network, info = recogniser.load_recogniser(weights)
    glyphs = open_pack(pack)
    group_of = {}
    for codes in (glyphs.form, glyphs.character):  # 書 is a form of 书; what is both a form of another and itself is itself
        group_of |= {chr(code): group for code, group in zip(codes.tolist(), glyphs.group.tolist(), strict=True)}
    files = images.pictures_in(folder)
    groups = {path: group_of.get(char_in(path.stem)) for path in files}
    known = {path: group for path, group in groups.items() if group in info["groups"]}
    if not known:
        raise ValueError(f"{folder}: none of its {len(files)} pictures is named by a character that the recogniser knows")
    rows = []
    for path in known:
        picture = images.read(path)
        given = [restorer.prepare(picture)]
        if restorer.in_chans == 2:
            given.append(restorer.prepare(picture, char_in(path.stem)))
        x = given[0].x[0]
        binary = otsu(median(torch.from_numpy(x)[None, None]))[0, 0].numpy()
        rows.append([x, binary, *(restored.square for restored in restorer.restore(given))])
    read = Reader(network, info, np.array(list(known.values())))

    def share(pictures: tuple[np.ndarray, ...]) -> list[float]:
        return read(np.arange(len(pictures)), torch.from_numpy(np.stack(pictures))[:, None]).mean(0).tolist()

    names = ("damaged", "median_otsu", "restored", "told")[: len(rows[0])]
    columns = zip(*rows, strict=True)
    return {"n": len(known), "left_out": len(files) - len(known)} | dict(zip(names, map(share, columns), strict=True))


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="default: the weights that come along")
    args = parser.parse_args(arguments)
    try:
        told = legibility(load_restorer(args.checkpoint, runtime="torch", device="cpu"), args.folder)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{told.pop('n')} pictures; {told.pop('left_out')} left out, whose character the recogniser does not know")
    for name, (first, five) in told.items():
        print(f"{name:11} read {100 * first:5.1f} %, among the first five {100 * five:5.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
