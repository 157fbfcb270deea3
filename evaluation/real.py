"""Real characters, without ground truth: degraded ones, named by their files, and clean ones, which a network should keep."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from datasets.pack import Pack
from evaluation.predictors import BASELINES
from evaluation.scoring import Recognition
from restoration.drawing import DEFAULT, Drawing
from restoration.pipeline import BATCH, Prepared, Restorer, char_in
from restoration.place import find_box
from util import images
from util.metrics import psnr
from util.squares import stretch, to_square

GUIDED = "restored_guided"
CONTRAST = 3  # by which the tones of clean characters are spread from one half: scans become nearly binary, as glyphs are


def groups_by_form(pack: Pack) -> dict[str, int]:
    """{character or form: its group} of a pack. A character that is also a form of another one keeps its own group."""
    groups = {}
    for codes in (pack.form, pack.character):
        groups |= {chr(code): group for code, group in zip(codes.tolist(), pack.group.tolist(), strict=True)}
    return groups


def _without_guide(prepared: Prepared) -> Prepared:
    """The prepared picture without guide, in both polarities if in doubt."""
    x = np.zeros_like(prepared.x)
    x[0] = prepared.x[0]
    return replace(prepared, x=x, guide=None, other=prepared.other and _without_guide(prepared.other))


def _baselines(x: np.ndarray) -> dict[str, np.ndarray]:
    """The result of each baseline for pictures (N, H, W)."""
    return {name: method(torch.from_numpy(x)[:, None])[:, 0].numpy() for name, method in BASELINES.items()}


# --- degraded characters ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def score_real(
    restorer: Restorer, folder: Path, pack: Pack, judges: dict[str, tuple[nn.Module, dict]], drawing: Drawing = DEFAULT
) -> dict:
    """Scores a folder of pictures whose names hold the character.

    The recognisers, which know glyphs that fill four fifths of their square, read all methods' squares cut to the box of the
    character in the degraded one.

    judges: {suffix of the names of its scores: (network, info) of a recogniser}, the first one with the suffix "". drawing: how to
    draw.

    Returns {"n": pictures scored, "left_out": pictures without a known character in their name, "polarity": {"bright", "dark"},
    "negatives_agree": fraction of pictures whose negative is given the opposite polarity, "box": median edge of the box found,
    relative to the picture's longer edge, method: {"top1", "top5", …}, …} for the methods degraded, BASELINES, restored and, with a
    network that takes a guide, restored_guided. Raises ValueError if no picture can be scored.
    """
    files, known, classes = images.pictures_in(folder), groups_by_form(pack), set(judges[""][1]["groups"])
    groups = {path: known.get(char_in(path.stem)) for path in files}
    groups = {path: group for path, group in groups.items() if group in classes}
    if not groups:
        raise ValueError(f"{folder}: none of its {len(files)} pictures is named by a character that the recogniser knows")
    squares: dict[str, list[np.ndarray]] = {}
    polarities, opposite, boxes = [], [], []
    for path in groups:
        picture = images.read(path)
        prepared = [restorer.prepare(picture, char_in(path.stem) if restorer.takes_guide else None)]
        prepared.append(restorer.prepare(images.from_grey(1 - images.to_channels(picture))))
        if restorer.takes_guide:
            prepared.insert(0, _without_guide(prepared[0]))
        restored, *guided, negative = restorer.restore(prepared, drawing)
        x = restored.prepared.x[0]
        made = {"degraded": x} | {name: square[0] for name, square in _baselines(x[None]).items()}
        made |= zip(("restored", GUIDED), (result.square for result in (restored, *guided)), strict=False)
        box = find_box(x, large=1)
        for name, square in made.items():
            squares.setdefault(name, []).append(to_square(square, box, len(x)))
        polarities.append(restored.prepared.polarity)
        opposite.append(negative.prepared.polarity != restored.prepared.polarity)
        boxes.append(restored.prepared.box.edge / max(restored.prepared.bright.shape))
    scores: dict[str, dict[str, float]] = {name: {} for name in squares}
    for suffix, (network, info) in judges.items():
        recognise = Recognition(network, info, np.array(list(groups.values())))
        for name, x in squares.items():
            hits = recognise(np.arange(len(x)), torch.from_numpy(np.stack(x))[:, None]).nanmean(0).tolist()
            scores[name] |= {f"{score}{suffix}": round(hit, 4) for score, hit in zip(("top1", "top5"), hits, strict=True)}
    return {
        "n": len(groups),
        "left_out": len(files) - len(groups),
        "polarity": {name: polarities.count(name) for name in ("bright", "dark")},
        "negatives_agree": round(float(np.mean(opposite)), 4),
        "box": round(float(np.median(boxes)), 3),
        **scores,
    }


def show_real(results: dict[str, dict]) -> None:
    """Prints what `score_real` returned for each folder."""
    for folder, result in results.items():
        print(f"{folder}: {result['n']} pictures, {result['left_out']} left out; strokes bright in {result['polarity']['bright']}, "
              f"dark in {result['polarity']['dark']}, opposite in {result['negatives_agree']:.1%} of the negatives; "
              f"median box {result['box']:.2f} of the longer edge")  # fmt: skip
        for name, scores in result.items():
            if isinstance(scores, dict) and "top1" in scores:
                named = {score.replace("top", "top-").replace("_", " "): value for score, value in scores.items()}
                print(f"  {name:16}" + "".join(f"   {score} {value:6.1%}" for score, value in named.items()))


# --- clean characters ---------------------------------------------------------------------------------------------------


def score_clean(restorer: Restorer, folder: Path, drawing: Drawing = DEFAULT) -> dict:
    """Scores what is left of clean characters: each square is the input and the reference.

    It is made as ground truth is, nearly binary at the picture's own resolution and then averaged, so that edges are as soft. Of
    a picture exactly twice as wide as high, a pair, the right half is taken. drawing: how to draw.

    Returns {"n", method: {"psnr", "psnr_se", "ink", "ink_se"}, …} for restored and BASELINES: means and standard errors of the PSNR
    in dB and of the ink, the number of pixels above one half relative to the reference's. Raises ValueError if there is no picture.
    """
    files = images.pictures_in(folder)
    if not files:
        raise ValueError(f"{folder}: no pictures")
    scores: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(files), BATCH):
        pictures = [_right_half(images.read(path)) for path in files[start : start + BATCH]]
        restored = restorer.restore([_as_ground_truth(restorer.prepare(picture)) for picture in pictures], drawing)
        clean = np.stack([result.prepared.x[0] for result in restored])
        for name, x in {"restored": np.stack([result.square for result in restored]), **_baselines(clean)}.items():
            similarity = psnr(*(torch.from_numpy(y)[:, None] for y in (x, clean))).numpy()
            ink, reference = ((y > 0.5).sum((1, 2)) for y in (x, clean))
            scores.setdefault(name, []).append(np.stack([similarity, ink / np.maximum(reference, 1)]))
    result: dict = {"n": len(files)}
    for name, parts in scores.items():
        result[name] = {}
        for score, values in zip(("psnr", "ink"), np.concatenate(parts, axis=1), strict=True):
            error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
            result[name] |= {score: round(float(values.mean()), 4), f"{score}_se": round(float(error), 4)}
    return result


def _as_ground_truth(prepared: Prepared) -> Prepared:
    """The prepared picture with the square of its tones spread from one half, in both polarities if in doubt."""
    spread = ((stretch(prepared.bright) - 0.5) * CONTRAST + 0.5).clip(0, 1)
    x = np.zeros_like(prepared.x)
    x[0] = to_square(spread, prepared.box, x.shape[-1])
    return replace(prepared, x=x, other=prepared.other and _as_ground_truth(prepared.other))


def _right_half(picture: Image.Image) -> Image.Image:
    """The right half of a pair; other pictures as they are."""
    width, height = picture.size
    return picture.crop((height, 0, width, height)) if width == 2 * height else picture


def show_clean(results: dict[str, dict]) -> None:
    """Prints what `score_clean` returned for each folder."""
    for folder, result in results.items():
        print(f"{folder}: {result['n']} clean pictures")
        for name, scores in result.items():
            if name != "n":
                print(f"  {name:16} PSNR {scores['psnr']:5.2f} ± {scores['psnr_se']:.2f} dB   "
                      f"ink {scores['ink']:6.1%} ± {scores['ink_se']:.1%}")  # fmt: skip
