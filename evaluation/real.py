"""Real degraded characters, named by their files, without clean pictures: recognition before and after, polarity and box found."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from datasets.pack import Pack
from evaluation.predictors import BASELINES
from evaluation.scoring import Recognition
from restoration.pipeline import Restorer, char_in
from util import images

GUIDED = "restored_guided"


def groups_by_form(pack: Pack) -> dict[str, int]:
    """{character or form: its group} of a pack. A character that is also a form of another one keeps its own group."""
    groups = {}
    for codes in (pack.form, pack.character):
        groups |= {chr(code): group for code, group in zip(codes.tolist(), pack.group.tolist(), strict=True)}
    return groups


@torch.inference_mode()
def score_real(restorer: Restorer, folder: Path, pack: Pack, network: nn.Module, info: dict) -> dict:
    """Scores a folder of pictures whose names hold the character.

    Returns {"n": pictures scored, "left_out": pictures without a known character in their name, "polarity": {"bright", "dark"},
    "negatives_agree": fraction of pictures whose negative is given the opposite polarity, "box": median edge of the box found,
    relative to the picture's longer edge, method: {"top1", "top5"}, …} for the methods degraded, BASELINES, restored and, with a
    network that takes a guide, restored_guided. Raises ValueError if no picture can be scored.
    """
    files, known = images.pictures_in(folder), groups_by_form(pack)
    groups = {path: known.get(char_in(path.stem)) for path in files}
    groups = {path: group for path, group in groups.items() if group in info["groups"]}
    if not groups:
        raise ValueError(f"{folder}: none of its {len(files)} pictures is named by a character that the recogniser knows")
    squares: dict[str, list[np.ndarray]] = {}
    polarities, opposite, boxes = [], [], []
    for path in groups:
        picture = images.read(path)
        prepared = [restorer.prepare(picture)]
        if restorer.in_chans == 2:
            prepared.append(restorer.prepare(picture, char_in(path.stem)))
        x = prepared[0].x[0]
        restored = [result.square for result in restorer.restore(prepared)]
        made = {"degraded": x}
        made |= {name: method(torch.from_numpy(x)[None, None])[0, 0].numpy() for name, method in BASELINES.items()}
        made |= zip(("restored", GUIDED), restored, strict=False)
        for name, square in made.items():
            squares.setdefault(name, []).append(square)
        polarities.append(prepared[0].polarity)
        opposite.append(restorer.prepare(images.from_grey(1 - images.to_channels(picture))).polarity != prepared[0].polarity)
        boxes.append(prepared[0].box.edge / max(prepared[0].bright.shape))
    recognise = Recognition(network, info, np.array(list(groups.values())))
    hits = {name: recognise(np.arange(len(groups)), torch.from_numpy(np.stack(x))[:, None]).mean(0) for name, x in squares.items()}
    return {
        "n": len(groups),
        "left_out": len(files) - len(groups),
        "polarity": {name: polarities.count(name) for name in ("bright", "dark")},
        "negatives_agree": round(float(np.mean(opposite)), 4),
        "box": round(float(np.median(boxes)), 3),
        **{name: {"top1": round(hit[0].item(), 4), "top5": round(hit[1].item(), 4)} for name, hit in hits.items()},
    }


def show_real(results: dict[str, dict]) -> None:
    """Prints what `score_real` returned for each folder."""
    for folder, result in results.items():
        print(f"{folder}: {result['n']} pictures, {result['left_out']} left out; strokes bright in {result['polarity']['bright']}, "
              f"dark in {result['polarity']['dark']}, opposite in {result['negatives_agree']:.1%} of the negatives; "
              f"median box {result['box']:.2f} of the longer edge")  # fmt: skip
        for name, scores in result.items():
            if isinstance(scores, dict) and "top1" in scores:
                print(f"  {name:16} top-1 {scores['top1']:6.1%}   top-5 {scores['top5']:6.1%}")
