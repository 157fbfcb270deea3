"""Adapts the restorer to one stele, from a folder of scans of its characters, and says whether the result is better.

    python adapt.py path/to/scans --output stele.safetensors
    python restore.py damaged.jpg --checkpoint stele.safetensors

A fifth of the scans, chosen by a hash of their paths, is kept aside. From the others come the damage (see `datasets.exemplars`),
put on the handwriting sets' characters, and one more hand: the stele's own characters that are well preserved, named by their files
or read with a probability above .95 as they are. The bundled restorer is trained on both, with configs/adapt.yaml (half an hour on
2 cores).

Then both restorers are compared on the scans kept aside: where these are named, by how many both recognisers read among five; where
not, by the PSNR of validation characters with their damage. A stele that is like what training saw gains nothing, and may lose
(Castellanos et al., "Unsupervised neural domain adaptation for document image binarization", Pattern Recognition 119, 2021): then
no file is written.
"""

import argparse
import hashlib
import shutil
from pathlib import Path

import numpy as np
import torch

import main_denoise_cae
from datasets.pack import Hand, open_pack, write_pack
from datasets.pairs import HandwritingSet
from datasets.split import group_of
from evaluation.predictors import PipelinePredictor
from evaluation.real import groups_by_form, score_real
from evaluation.scoring import HARDENED, RECOGNISER
from evaluation.sources import held_out
from models.files import load_network, save_network
from models.recogniser import load_recogniser
from restoration.drawing import MEAN
from restoration.pipeline import COPYLEFT, PACK, ROOT, WEIGHTS, char_in, load_restorer
from restoration.reading import SURE, load_reader
from util import images, script
from util.metrics import psnr
from util.squares import resize

ASIDE, LEAST = 5, 20  # one scan in so many is kept aside; scans that are needed
OWN = 0.1  # share of the stele's own characters in the training set


def divide(files: list[Path], scans: Path, folder: Path) -> tuple[Path, Path]:
    """Copies the scans to train on, and the fifth kept aside, to two folders; returns these. Raises what `images.read` raises."""
    folders = folder / "train", folder / "aside"
    for part in folders:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    aside = set(
        sorted(files, key=lambda file: hashlib.sha256(str(file.relative_to(scans)).encode()).digest())[: len(files) // ASIDE]
    )
    for i, file in enumerate(files):
        images.read(file)
        shutil.copy(file, folders[file in aside] / f"{i:05}_{file.name}")
    return folders


def write_own_hand(folder: Path, target: Path) -> int:
    """Writes a pack of the well-preserved characters of a folder, often enough to be OWN of all; returns how many they are."""
    restorer, pack = load_restorer(), open_pack(PACK)
    reader = load_reader(restorer)
    files, chars, bits = images.pictures_in(folder), [], []
    for file, one in zip(files, restorer.means(files), strict=True):
        [readings] = reader.probabilities([one.prepared.x[0]])
        read = chr(reader.groups[readings.argmax()])
        char = char_in(file.stem)
        if readings.max() > SURE and (char is None or group_of(char) == group_of(read)):
            chars.append(char or read)
            bits.append(np.packbits(resize(one.mean, pack.img_size, pack.img_size) > 0.5))
    if chars:
        known = groups_by_form(pack)
        times = max(1, round(OWN * len(pack) / len(chars)))
        code = np.array([ord(char) for char in chars] * times, np.uint32)
        write_pack(
            target,
            img_size=pack.img_size,
            hands=[Hand("own", "the stele", "regular", "train", "its own characters", "as the scans")],
            character=code,
            form=code,
            group=np.array([known.get(char, ord(group_of(char))) for char in chars] * times, np.uint32),
            hand=np.zeros(len(code), np.uint8),
            bits=np.stack(bits * times),
            meta={},
        )
    return len(chars)


def compare(aside: Path, checkpoints: list[Path | None]) -> tuple[str, list[float]]:
    """(what is measured, its value for each restorer: more is better) on the scans kept aside."""
    pack, files = open_pack(PACK), images.pictures_in(aside)
    restorers = [load_restorer(path) for path in checkpoints]
    known = groups_by_form(pack)
    if all(char_in(file.stem) in known for file in files):
        judges = {"": load_recogniser(RECOGNISER), "_hardened": load_recogniser(HARDENED)}
        results = [score_real(restorer, aside, pack, judges)["restored"] for restorer in restorers]
        return f"read among five, mean of both recognisers, n = {len(files)}", [
            (result["top5"] + result["top5_hardened"]) / 2 for result in results
        ]
    source = held_out(HandwritingSet(pack, "val", "seen", restorers[0].img_size), str(aside), 96)
    pictures = [(source.pictures(part), part) for part in np.array_split(np.arange(len(source.rows)), 6)]
    values = []
    for restorer in restorers:
        predict = PipelinePredictor(restorer, drawing=MEAN)
        with torch.inference_mode():
            values.append(float(torch.cat([psnr(predict(part, x, None)[0], clean) for (x, clean, _), part in pictures]).mean()))
    return "PSNR in dB of validation characters with the damage of the scans kept aside, n = 96", values


def adapt(args: argparse.Namespace) -> None:
    """Trains, compares, and writes the adapted weights if they are better."""
    files = images.pictures_in(args.scans)
    if len(files) < LEAST:
        raise ValueError(f"{args.scans}: {len(files)} pictures; adapting needs at least {LEAST}")
    if args.output.suffix != ".safetensors":
        raise ValueError(f"{args.output}: weights are written as .safetensors; pass another --output")
    if args.output.exists() and not args.overwrite:
        raise ValueError(f"{args.output}: exists already; pass --overwrite or another --output")
    train, aside = divide(files, args.scans, args.output_dir / "scans")
    own = args.output_dir / "own.pack"
    found = write_own_hand(train, own)
    print(f"{len(files)} scans; {len(images.pictures_in(aside))} kept aside; {found} well preserved, as one more hand", flush=True)
    run = args.output_dir / "run"
    shutil.rmtree(run, ignore_errors=True)
    data = [str(PACK), str(COPYLEFT), *([str(own)] if found else [])]
    flags = ["--config", str(ROOT / "configs" / "adapt.yaml"), "--preset", f"{train}:.6,mixed:.4", "--finetune", str(WEIGHTS)]
    flags += ["--output_dir", str(run), "--data", *data]
    if status := main_denoise_cae.main(flags):
        raise ValueError(f"the training ended with status {status}")
    measure, (before, after) = compare(aside, [None, run / "best.pth"])
    print(f"{measure}: bundled {before:.4g}, adapted {after:.4g}")
    if after <= before:
        print("use the bundled weights: adapting gained nothing on the scans kept aside")
        return
    save_network(*load_network(run / "best.pth"), args.output)
    print(f"use the adapted weights: restore.py --checkpoint {args.output}")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("scans", type=Path, help="a folder of pictures of one character each, of one stele; named by the character where known")
    add("--output", type=Path, required=True, metavar="FILE", help="the adapted weights, .safetensors")
    add("--output_dir", type=Path, default=Path("runs/adapt"), help="what is made on the way (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an existing output")
    return script.run(adapt, parser.parse_args(argv))


if __name__ == "__main__":
    script.as_script(main)
