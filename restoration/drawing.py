"""Drawing: from the network's mean, grey where strokes are lost, to characters as they could have been written.

The network is a function of arrays, in any runtime; see `util.flow` for the sampler.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from restoration.confidence import areas
from restoration.guide import fit
from util import flow

SURE = 0.45  # a probability of ink farther than this from one half is sure
PASSES, GUIDANCE = 4, 3.0  # of the network for a picture at most; weight of the guide where the network is unsure without it
AGREEMENT = 0.36, 0.46  # of guide and picture: up to the first the guide is ignored, from the second on it has its full weight
LATE = 0.9  # time from which a single drawing goes on after its first step: it makes sharp what that has decided
Predict = Callable[[np.ndarray], np.ndarray]  # (N, in_chans, S, S) → logits (N, S, S)


@dataclass(frozen=True)
class Drawing:
    """How to draw.

    steps: of a drawing, 1 gives the mean; None: see `steps_for`. guidance: weight of a guide that agrees with the picture,
    where the network is unsure without it; 1 is as it learnt. hypotheses: drawings of each picture. seed: of their noise.
    """

    steps: int | None = None
    guidance: float = GUIDANCE
    hypotheses: int = 1
    seed: int = 0

    def steps_for(self, guided: bool) -> int:
        """The steps for a picture with or without a guide, with which a step takes two passes. Hypotheses need more to differ."""
        return self.steps or (PASSES if self.hypotheses > 1 and not guided else PASSES // 2)


DEFAULT, MEAN = Drawing(), Drawing(steps=1, guidance=1)


def noise_keys(x: np.ndarray, seed: int, hypotheses: int) -> np.ndarray:
    """(hypotheses,) uint64: the keys of the noise of one picture (S, S) in [0, 1], from its levels in 8 bits and the seed alone."""
    levels = (x * 255).round().astype(np.uint8).tobytes()
    digests = (hashlib.blake2b(levels, digest_size=8, salt=f"{seed} {i}".encode()[:16]) for i in range(hypotheses))
    return np.array([int.from_bytes(digest.digest(), "little") for digest in digests], np.uint64)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.tanh(logits / 2) / 2 + 0.5  # cannot overflow


def order(hypotheses: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The positions of hypotheses (n, S, S), best first: those that differ least from the mean, which is certain where strokes
    survive, and from each other."""
    apart = np.square(hypotheses - mean).mean((1, 2)) + np.square(hypotheses - hypotheses.mean(0)).mean((1, 2))
    return apart.argsort(kind="stable")


def unsure(mean: np.ndarray) -> np.ndarray:
    """Where a drawing replaces the mean (S, S): 1 in areas that are neither surely ink nor surely ground, 0 elsewhere, soft edges.

    The network's drawing also changes a little what is certain; there the mean is better.
    """
    mask = Image.fromarray(np.uint8(255) * areas(np.abs(mean - 0.5) < SURE))
    return np.asarray(mask.filter(ImageFilter.BoxBlur(len(mean) / 75)), np.float32) / 255


class First(NamedTuple):
    """The first step of N pictures.

    x: (N, 1 or 2, S, S) in [0, 1], the guides laid over the characters. logits: (N, S, S), of the mean. followed: likewise, of what
    follows the guide further. weight: (N, S, S), of the guide in it: where the network is sure without the guide 1, as it learnt;
    less for a guide that agrees badly with what survives, as it may be of another character. agreement: (N,) in [-1, 1], see
    `restoration.guide.fit`; 1 without a guide.
    """

    x: np.ndarray
    logits: np.ndarray
    followed: np.ndarray
    weight: np.ndarray
    agreement: np.ndarray


class Drawer:
    """Draws prepared pictures with a network.

    Args:
        predict: the network.
        in_chans: its channels: 1 picture, 2 and guide, 4 and state and time; without the last two it gives its mean in one pass.
        drawing: how to draw.
    """

    def __init__(self, predict: Predict, in_chans: int, drawing: Drawing):
        self.predict, self.in_chans = predict, in_chans
        self.drawing = drawing if in_chans == 4 else MEAN

    def estimate(self, x: np.ndarray, state: np.ndarray, t: float, weight: np.ndarray) -> np.ndarray:
        """(N, 2, S, S) pictures and guides, (N, S, S), time, weights of the guides (N, S, S) → logits (N, S, S)."""
        inputs = np.concatenate([x, state[:, None], np.full_like(state[:, None], t)], axis=1)
        further = np.flatnonzero((weight != 1).any((1, 2)))
        without = inputs[further]
        without[:, 1] = 0
        logits, unguided = np.split(self.predict(np.concatenate([inputs, without])), [len(x)])
        logits[further] = unguided + weight[further] * (logits[further] - unguided)
        return logits

    def first(self, x: np.ndarray) -> First:
        """The first step, which is free of the state, of pictures with their guides, if any: (N, 1 or 2, S, S) in [0, 1]."""
        guided = np.flatnonzero(x[:, 1:].any((1, 2, 3)))
        weight, agreement = np.ones_like(x[:, 0]), np.ones(len(x), np.float32)
        if self.in_chans < 4:
            logits = self.predict(x)
            return First(x, logits, logits, weight, agreement)
        state, x = np.zeros_like(x), x.copy()
        without = x * np.array([1, 0], np.float32)[:, None, None]
        logits = self.predict(np.concatenate([without, state], axis=1))
        followed = logits
        if len(guided):
            unguided, followed = logits[guided], logits.copy()
            means = sigmoid(unguided)
            for row, mean in zip(guided, means, strict=True):
                x[row, 1], agreement[row] = fit(x[row, 1], mean)
            trust = np.interp(agreement[guided], AGREEMENT, (0, 1)).astype(np.float32)[:, None, None]
            weight[guided] = trust * (1 + (self.drawing.guidance - 1) * np.stack([unsure(mean) for mean in means]))
            change = self.predict(np.concatenate([x[guided], state[guided]], axis=1)) - unguided
            logits[guided] = unguided + trust * change
            followed[guided] = unguided + weight[guided] * change
        return First(x, logits, followed, weight, agreement)

    def draw(self, first: First) -> list[np.ndarray]:
        """The hypotheses (n, S, S) in [0, 1] of each picture, best first."""
        x, n = first.x, self.drawing.hypotheses
        mean, start = sigmoid(first.logits), sigmoid(first.followed)
        drawn: list[np.ndarray] = [np.empty(0)] * len(x)
        guided = x[:, 1:].any((1, 2, 3))
        for with_guide in (False, True):
            rows = np.flatnonzero(guided == with_guide)
            steps = self.drawing.steps_for(with_guide)
            if not len(rows):
                continue
            each = rows.repeat(n if steps > 1 else 1)
            noise = np.concatenate([flow.noise(noise_keys(x[row, 0], self.drawing.seed, n), x.shape[-1]) for row in rows])
            estimate = lambda state, t, each=each: sigmoid(self.estimate(x[each], state, t, first.weight[each]))  # noqa: E731
            t = flow.times(steps, x.shape[-1], LATE if with_guide or n == 1 else 0)
            pictures = flow.draw(estimate, start[each], noise[: len(each)], t)
            for row, hypotheses in zip(rows, np.split(pictures, len(rows)), strict=True):
                hypotheses = start[row] + unsure(mean[row]) * (hypotheses - start[row])
                drawn[row] = hypotheses[order(hypotheses, mean[row])]
        return drawn
