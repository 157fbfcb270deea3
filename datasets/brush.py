"""Hands without end: characters drawn along the medians of their strokes, each with a brush of its own.

A brush is drawn at random: width from hairline to as heavy as the character bears, contrast of horizontal and vertical strokes,
pressure along a stroke, round or square ends, dry or wet ink, proportions, slant, linked strokes.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

STEPS = 6  # points on each segment of a median
FINEST, HEAVIEST = 0.008, 0.1  # half of the stroke's width, relative to the character's longer edge
COVER = 0.5  # ink relative to the character's square, at most: a heavier brush would close the gaps between strokes


def draw(strokes: list[np.ndarray], rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws a character with a random brush.

    Args:
        strokes: the median of each stroke in order, (n, 2): x to the right, y up, in any unit.
        size: height and width of the picture in pixels.

    Returns (size, size) float32 in [0, 1], strokes bright.
    """
    uniform = rng.uniform
    extent = uniform(0.6, 0.88)  # of the character, relative to the picture
    paths = _arrange(strokes, rng)
    points = np.concatenate(paths)
    low, high = points.min(0), points.max(0)
    edge = max((high - low).max(), 1e-6)
    length = sum(np.hypot(*np.diff(path, axis=0).T).sum() for path in paths) / edge
    contrast, nib = uniform(0, 0.75), uniform(-0.7, 0.5)  # how much thinner strokes along the nib are; 0 is horizontal
    press = np.array([uniform(-0.5, 0.7), uniform(-0.9, 0.9), uniform(-0.35, 0.3)])  # at the start, at the end, in the middle
    heaviest = min(HEAVIEST, COVER / (2 * length)) / max(1, 1 + press @ (0.25, 0.3, 0.6))
    radius = extent * math.exp(uniform(math.log(FINEST), math.log(heaviest)))
    middle = 0.5 + uniform(-1, 1, 2) * (1 - extent) / 3
    paths = [(path - (low + high) / 2) * (extent - 2 * radius) / edge + middle for path in paths]

    square, dry, link = uniform() < 0.35, uniform(-0.7, 0.7), uniform(0.1, 0.4) * (uniform() < 0.3)
    side = size * (4 if size <= 96 else 2)  # drawn larger, for soft edges
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    for path in paths:
        t = np.linspace(0, 1, len(path))
        pressure = 1 + press @ np.stack([np.exp(-((t / 0.15) ** 2)), np.exp(-(((1 - t) / 0.18) ** 2)), np.sin(np.pi * t)])
        width = np.maximum(radius * pressure * (1 - contrast * np.cos(_heading(path) - nib) ** 2), 0.15 * radius)
        _ribbon(pen, path * side, width * side, square)
    for before, after in zip(paths, paths[1:]) if link else ():
        start, end = before[-1], after[0]
        if np.hypot(*(end - start)) < 0.4:
            path = _spline(np.stack([start, (start + end) / 2 + (end - start)[::-1] * (0.1, -0.1), end]))
            _ribbon(pen, path * side, np.full(len(path), max(radius * link, 0.003) * side), False)
    for path in paths if dry > 0 and radius > 0.015 else ():  # hairs without ink leave bare streaks on the later part of a stroke
        for _ in range(int(9 * dry * uniform())):
            first = uniform(0.25, 0.9)
            part = slice(int(first * len(path)), int(min(1, first + uniform(0.1, 0.6)) * len(path)))
            streak = (path + _normals(path) * uniform(-0.8, 0.8) * radius)[part] * side
            if len(streak) > 1:
                pen.line([*map(tuple, streak)], fill=0, width=max(1, round(uniform(0.05, 0.25) * radius * side)))
    return np.asarray(image.reduce(side // size), dtype=np.float32) / 255


def _arrange(strokes: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Gives the medians the proportions, slant and irregularity of a hand: paths with y downwards, about 1 in size."""
    uniform = rng.uniform
    aspect, slant, lift, bow = math.exp(uniform(-0.25, 0.25)), uniform(-0.16, 0.16), uniform(-0.02, 0.14), uniform(-0.25, 0.25)
    wobble = uniform(0, 0.018)
    points = np.concatenate(strokes)
    low, high = points.min(0), points.max(0)
    paths = []
    for stroke in strokes:
        x, y = ((stroke - (low + high) / 2) / max((high - low).max(), 1) * (aspect, -1 / aspect)).T
        xy = np.stack([x - slant * y, y - lift * x + bow * (x * x - 0.08)], 1)
        turn, middle = 3 * wobble * uniform(-1, 1), xy.mean(0)
        rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        paths.append(_spline((xy - middle) @ rotation + middle + wobble * uniform(-1, 1, 2)))
    return paths


def _spline(xy: np.ndarray) -> np.ndarray:
    """Points on the Catmull-Rom spline through (n, 2), n ≥ 2."""
    p = np.concatenate([2 * xy[:1] - xy[1:2], xy, 2 * xy[-1:] - xy[-2:-1]])
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    t = np.arange(STEPS)[:, None, None] / STEPS
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.concatenate([curve.transpose(1, 0, 2).reshape(-1, 2), xy[-1:]])


def _heading(path: np.ndarray) -> np.ndarray:
    dx, dy = np.gradient(path, axis=0).T
    return np.arctan2(dy, dx)


def _normals(path: np.ndarray) -> np.ndarray:
    angle = _heading(path)
    return np.stack([-np.sin(angle), np.cos(angle)], 1)


def _ribbon(pen: ImageDraw.ImageDraw, path: np.ndarray, radius: np.ndarray, square: bool) -> None:
    """Fills a stroke of varying radius along a path, in pixels, with square or round ends."""
    offset = _normals(path) * radius[:, None]
    left, right = path + offset, path - offset
    for quad in np.stack([left[:-1], left[1:], right[1:], right[:-1]], 1):
        pen.polygon([*map(tuple, quad)], fill=255)
    joints = slice(1, -1, 2) if square else slice(None, None, 2)
    ends = [] if square else [(path[-1], radius[-1])]
    for (x, y), r in [*zip(path[joints], radius[joints]), *ends]:
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
