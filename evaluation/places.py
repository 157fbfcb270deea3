"""Polarity, place and rotation on made pictures, where they are known.

Characters of all hands, degraded by a preset at a severity of .2 to .8, in both polarities and the LAYOUTS. `measure` prints how
often the polarity, the rotation and the place of test characters are right; `fit` prints the BRIGHT_WEIGHTS of util/squares.py,
from training characters:

    python -m evaluation.places measure --count 5000
    python -m evaluation.places measure --count 5000 --rotate 10
    python -m evaluation.places fit
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datasets.degradation import Degradation, load_preset
from datasets.pack import Pack, open_pack
from datasets.pairs import HandwritingSet
from datasets.rng import sample_keys
from restoration import margins, place
from restoration.pipeline import CERTAIN, PACK, Restorer, load_restorer
from util import images, script, squares

LAYOUTS = ("tight", "wide", "white", "black", "toned", "one_sided", "framed", "neighbours", "sheet", "slip")
PRESETS = ("mixed", "rubbing", "paper", "bamboo", "binary", "classic")
SIZE, BATCH = 224, 16


class Made(NamedTuple):
    """A made picture.

    x: (H, W) in [0, 1]. bright: whether its strokes are. box: (top, left, bottom, right) of the strokes. angle: their rotation,
    clockwise, in degrees.
    """

    x: np.ndarray
    bright: bool
    box: np.ndarray
    angle: float
    layout: str
    preset: str


def make(pack: Pack, split: str, count: int, seed: int, rotate: float = 0.0) -> Iterator[Made]:
    """Made pictures of the characters of a split, turned by `rotate` degrees one way or the other.

    Each batch of 16 has one preset and one severity.
    """
    data, rng = HandwritingSet(pack, split, "all", SIZE), np.random.default_rng(seed)
    damages = []
    for preset in PRESETS:  # neighbours and frames come from the layout
        table = {name: row for name, row in load_preset(preset).items() if name != "surroundings"}
        damages.append(Degradation({**table, "clean": 0.0}, SIZE))
    for start in range(0, count, BATCH):
        batch = start // BATCH % len(PRESETS)
        layouts = rng.choice(LAYOUTS, BATCH)
        alone, scene = _scene(data, layouts, rng)
        angles = np.where(np.arange(BATCH) % 2, rotate, -rotate)
        if rotate:
            alone, scene = (_move(x, np.ones(BATCH), *np.zeros((2, BATCH)), angles) for x in (alone, scene))
        keys, severity = sample_keys(seed, 0, np.arange(start, start + BATCH)), float(rng.uniform(0.2, 0.8))
        degraded, strokes = damages[batch](scene, keys, severity)[0], damages[batch](alone, keys, severity)[1]
        for x, ink, angle, layout in zip(degraded[:, 0].numpy(), strokes[:, 0].numpy() > 0.5, angles, layouts, strict=True):
            if ink.any():
                yield _finish(x, ink, float(angle), str(layout), PRESETS[batch], rng)


def _scene(data: HandwritingSet, layouts: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Clean characters at their places, alone, and with the neighbours and frames of their layouts."""
    roomy, beside = np.isin(layouts, ("wide", "framed")), layouts == "neighbours"
    scale = np.where(roomy, rng.uniform(0.35, 0.75, BATCH), np.where(beside, rng.uniform(0.5, 0.7, BATCH), 1.0))
    across, down = rng.uniform(-1, 1, (2, BATCH)) * (1 - scale) * roomy
    alone = _move(_glyphs(data, rng), scale, across, down)
    scene = alone.clone()
    in_column = rng.random(BATCH) < 0.7
    for side in (-2, 2):
        shift = side * scale * rng.uniform(0.86, 0.98, BATCH)
        other = _move(_glyphs(data, rng), scale, np.where(in_column, 0, shift), np.where(in_column, shift, 0))
        scene[beside] = torch.maximum(scene, other)[beside]
    for i in np.flatnonzero(layouts == "framed"):
        outer, width = rng.integers(0, 6), rng.integers(2, 7)
        frame = torch.zeros_like(scene[i, 0])
        frame[outer : SIZE - outer, outer : SIZE - outer] = 1
        frame[outer + width : SIZE - outer - width, outer + width : SIZE - outer - width] = 0
        scene[i, 0] = torch.maximum(scene[i, 0], frame)
    return alone, scene


def _glyphs(data: HandwritingSet, rng: np.random.Generator) -> Tensor:
    return data.batch(rng.integers(0, len(data), BATCH))["clean"]


def _move(x: Tensor, scale: np.ndarray, across: np.ndarray, down: np.ndarray, angle: np.ndarray | float = 0.0) -> Tensor:
    """Scales and turns pictures about their centres and moves these to (across, down), from -1 to 1."""
    cos, sin = np.cos(np.deg2rad(angle)) / scale, np.sin(np.deg2rad(angle)) / scale
    rows = np.array([[cos, sin, -across * cos - down * sin], [-sin, cos, across * sin - down * cos]])
    grid = F.affine_grid(torch.tensor(rows.transpose(2, 0, 1), dtype=x.dtype), [len(x), 1, 2 * SIZE, 2 * SIZE], align_corners=False)
    return F.avg_pool2d(F.grid_sample(x, grid, align_corners=False), 2)


def _finish(x: np.ndarray, ink: np.ndarray, angle: float, layout: str, preset: str, rng: np.random.Generator) -> Made:
    """Crops the picture or adds margins, and draws its polarity."""
    box = _bounds(ink)
    bright = bool(rng.random() < 0.5)
    x = x if bright else 1 - x
    if layout == "tight":
        pad = int(rng.integers(0, 8))
        top, left = np.maximum(box[:2] - pad, 0)
        x, box = x[top : box[2] + pad, left : box[3] + pad], box - [top, left, top, left]
    elif layout in ("white", "black", "toned", "one_sided"):
        tone = {"white": 1.0, "black": 0.0, "toned": rng.uniform()}.get(layout, rng.choice([0.0, 1.0, rng.uniform()]))
        shown = np.full((2, 2), True)  # margins at (top, bottom), (left, right)
        if layout == "one_sided":
            shown = np.arange(4).reshape(2, 2) == rng.integers(4)
        elif rng.random() < 0.6:
            shown[rng.integers(2)] = False
        widths = rng.integers(8, 110, (2, 2)) * shown
        x, box = np.pad(x, widths, constant_values=tone), box + np.tile(widths[:, 0], 2)
    elif layout in ("sheet", "slip"):
        x, ink, angle = _laid(x, ink, angle, layout, rng)
        box = _bounds(ink)
    file = io.BytesIO()
    images.from_grey(x).save(file, "JPEG" if rng.random() < 0.3 else "PNG", quality=int(rng.integers(40, 95)))
    return Made(images.to_grey(Image.open(file)), bright, box, angle, layout, preset)


def _bounds(ink: np.ndarray) -> np.ndarray:
    """(top, left, bottom, right) of the strokes (H, W)."""
    (top, bottom), (left, right) = (np.flatnonzero(ink.any(axis))[[0, -1]] for axis in (1, 0))
    return np.array([top, left, bottom + 1, right + 1])


def _laid(
    x: np.ndarray, ink: np.ndarray, angle: float, layout: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """A photograph of a sheet, or of a part of a slip, on a table, askew by 1.5 to 10 degrees: picture, strokes, their rotation.

    The table's tone is mostly the other one than that of the ground.
    """
    askew, ground = rng.uniform(1.5, 10) * rng.choice((-1, 1)), np.median(x)
    tone = abs((ground < 0.5) - rng.uniform(0, 0.35)) if rng.random() < 0.8 else rng.uniform()
    along = len(x) // 4 * (layout == "slip")
    x, ink = (np.pad(part, ((along, along), (0, 0)), constant_values=fill) for part, fill in ((x, ground), (ink, False)))
    parts = [Image.fromarray(part.astype(np.float32)) for part in (x, ink, np.ones(x.shape))]
    turned = [np.asarray(part.rotate(-askew, Image.Resampling.BILINEAR, expand=True)) for part in parts]
    margin = (0 if along else rng.integers(2, 30), rng.integers(2, 30))
    x, ink, cover = (np.pad(part[along : len(part) - along], [(edge, edge) for edge in margin]) for part in turned)
    table = tone + rng.normal(0, 0.02, x.shape)
    return (x + (1 - cover) * table).clip(0, 1).astype(np.float32), ink > 0.5, angle + askew


def fit(made: Iterator[Made]) -> np.ndarray:
    """The weights of `squares.bright_probability`: logistic regression without intercept, by Newton's method.

    The ridge penalty of 1/1000 per picture keeps them moderate: the made pictures can nearly be told apart without an error.
    """
    signed = np.array([(1 if one.bright else -1) * squares.phase_features(_content(one.x)[0]) for one in made])
    weights, ridge = np.zeros(signed.shape[1]), len(signed) / 1000
    for _ in range(30):
        wrong = 1 / (1 + np.exp(signed @ weights))
        curvature = (signed.T * (wrong * (1 - wrong))) @ signed + ridge * np.eye(len(weights))
        weights += np.linalg.solve(curvature, signed.T @ wrong - ridge * weights)
    return weights


def _content(x: np.ndarray) -> tuple[np.ndarray, tuple[slice, slice], float]:
    """What is inside the margins of a picture (H, W), evenly lit; its rows and columns; and the angle of its sheet."""
    sheet = margins.find_sheet(x)
    covered = sheet.cover(x)
    content = margins.find_content(covered)
    return place.even(covered[content]), content, sheet.angle


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (top, left, bottom, right)."""
    inner = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return float(inner / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inner))


def measure(made: Iterator[Made], restorer: Restorer) -> dict[str, dict[str, float]]:
    """Scores in all, by layout and by preset.

    The rotation and the IoU of the upright rectangle found are those with the right polarity. "turned": the fraction of pictures
    in which a rotation is found; "rotation": that in which what is found is right within 3 degrees.
    """
    names, rows = [], []
    for one in made:
        grey, content, askew = _content(one.x)
        probability = squares.bright_probability(grey)
        decided, right = max(probability, 1 - probability) >= CERTAIN, (probability > 0.5) == one.bright
        asked = right
        if not decided:
            (restored,) = restorer.restore([restorer.prepare(images.from_grey(one.x))])
            asked = (restored.prepared.polarity == "bright") == one.bright
        inner = grey if one.bright else 1 - grey
        ink, angle = place.find_ink(inner)[0], askew or place.find_rotation(inner)
        names.append(("all", one.layout, one.preset))
        iou = overlap(np.array(ink) + np.tile([edge.start for edge in content], 2), one.box)
        rows.append((decided, right, asked, angle != 0, abs(angle - one.angle) <= 3, iou))
    columns, scores = np.array(rows, dtype=float), {}
    for name in (name for name in ("all", *LAYOUTS, *PRESETS) if any(name in row for row in names)):
        decided, right, asked, turned, upright, iou = columns[[name in row for row in names]].T
        sure = decided == 1
        scores[name] = {"n": len(iou), "decided": sure.mean(), "right": right[sure].mean() if sure.any() else np.nan}
        scores[name] |= {"doubtful": sum(~sure), "right by pixels": right[~sure].sum(), "by network": asked[~sure].sum()}
        scores[name] |= {"turned": turned.mean(), "rotation": upright.mean(), "box IoU": np.median(iou)}
    return scores


def report(args: argparse.Namespace) -> None:
    """Prints the weights that fit, or the scores."""
    pack = open_pack(args.data)
    if args.task == "fit":
        print(", ".join(f"{weight:.2f}" for weight in fit(make(pack, "train", args.count, args.seed, args.rotate))))
        return
    for name, scores in measure(make(pack, "test", args.count, args.seed, args.rotate), load_restorer(args.checkpoint)).items():
        print(f"{name:12}" + "".join(f"   {key} {value:.4g}" for key, value in scores.items()))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Fits or measures how polarity and place are found, on made pictures.")
    parser.add_argument("task", choices=("fit", "measure"), help="fit on training characters, or measure on test characters")
    parser.add_argument("--data", type=Path, default=PACK, help="the handwriting set (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="of the network that is asked in doubt (default: the bundled weights)")
    parser.add_argument("--count", type=int, default=5008, help="pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures (default: %(default)s)")
    parser.add_argument(
        "--rotate", type=float, default=0.0, help="of all characters, in degrees, half of them each way (default: 0)"
    )
    return script.run(report, parser.parse_args(argv))


if __name__ == "__main__":
    script.as_script(main)
