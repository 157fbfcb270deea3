"""Drawing: from the network's mean, grey where strokes are lost, to characters as they could have been written.

The network is a function of arrays, in any runtime; see `util.flow` for the sampler.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from restoration.confidence import areas
from restoration.guide import fit
from util import flow

SURE = 0.45  # a probability of ink farther than this from one half is sure
PASSES, GUIDANCE = 4, 1.0  # of the network for a picture; weight of the guide: more overrules what is seen
Predict = Callable[[np.ndarray], np.ndarray]  # (N, in_chans, S, S) → logits (N, S, S)


@dataclass(frozen=True)
class Drawing:
    """How to draw.

    steps: passes of the network for a drawing; 1 gives the mean; None as many as PASSES allows. guidance: weight of the guide; 1 is
    as the network learnt, more follows the guide further, at two passes a step. hypotheses: drawings of each picture. seed: of
    their noise.
    """

    steps: int | None = None
    guidance: float = GUIDANCE
    hypotheses: int = 1
    seed: int = 0

    def steps_for(self, guided: bool) -> int:
        """The steps for a picture with or without a guide, which costs a pass at the first step, and at all if it has a weight."""
        return self.steps or (PASSES if not guided else PASSES - 1 if self.guidance == 1 else PASSES // 2)


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

    def estimate(self, x: np.ndarray, state: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
        """(N, C, S, S) picture and guide, (N, S, S), time → logits (N, S, S) twice: with the guide, and following it further."""
        channels = [x, state[:, None], np.full_like(state[:, None], t)][: 1 + 2 * (self.in_chans == 4)]
        inputs = np.concatenate(channels, axis=1)
        guided = np.flatnonzero(x[:, 1:].any((1, 2, 3)) & (self.drawing.guidance != 1))
        without = inputs[guided]
        without[:, 1:2] = 0
        outputs = self.predict(np.concatenate([inputs, without]))
        logits, unguided = np.split(outputs, [len(x)])
        followed = logits.copy()
        followed[guided] = unguided + self.drawing.guidance * (logits[guided] - unguided)
        return logits, followed

    def first(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Free of the state: (x with its guides laid over the characters, `estimate`: the logits of the mean, with the guide and
        following it further)."""
        state, guided = np.zeros_like(x[:, 0]), np.flatnonzero(x[:, 1:].any((1, 2, 3)))
        if self.in_chans < 4 or not len(guided):
            return x, *self.estimate(x, state, 0.0)
        without, x = x * np.array([1, 0], np.float32)[:, None, None], x.copy()
        logits = self.estimate(without, state, 0.0)[0]
        x[guided, 1] = [fit(guide, sigmoid(mean)) for guide, mean in zip(x[guided, 1], logits[guided], strict=True)]
        unguided, followed = logits[guided], logits.copy()
        logits[guided] = self.predict(np.concatenate([x[guided], np.zeros_like(x[guided])], axis=1))
        followed[guided] = unguided + self.drawing.guidance * (logits[guided] - unguided)
        return x, logits, followed

    def draw(self, x: np.ndarray, mean: np.ndarray, first: np.ndarray) -> list[np.ndarray]:
        """The hypotheses (n, S, S) in [0, 1] of each picture, best first.

        x, first: the first and the last that `first` returns; mean: (N, S, S) in [0, 1].
        """
        drawn: list[np.ndarray] = [np.empty(0)] * len(x)
        guided, n, size = x[:, 1:].any((1, 2, 3)), self.drawing.hypotheses, x.shape[-1]
        for with_guide in (False, True):
            rows = np.flatnonzero(guided == with_guide)
            steps = self.drawing.steps_for(with_guide)
            if not len(rows):
                continue
            each = rows.repeat(n if steps > 1 else 1)
            noise = np.concatenate([flow.noise(noise_keys(x[row, 0], self.drawing.seed, n), size) for row in rows])
            estimate = lambda state, t, each=each: sigmoid(self.estimate(x[each], state, t)[1])  # noqa: E731
            pictures = flow.draw(estimate, sigmoid(first[each]), noise[: len(each)], steps)
            for row, hypotheses in zip(rows, np.split(pictures, len(rows)), strict=True):
                kept = sigmoid(first[row])
                hypotheses = kept + unsure(mean[row]) * (hypotheses - kept)
                drawn[row] = hypotheses[order(hypotheses, mean[row])]
        return drawn
