"""Drawing: from the network's mean, grey where strokes are lost, to characters as they could have been written.

The network is a function of arrays, in any runtime; see `util.flow` for the sampler.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from restoration.confidence import areas, opening
from restoration.guide import fit
from util import flow, squares

SURE = 0.45  # a probability of ink farther than this from one half is sure
SHARP = 1.5  # what the odds of ink are raised to in a drawing's unsure areas, so that they are hardly greyer than clean pictures
HAZE = 0.1  # a drawing's ground is blank where nothing near has a higher probability of ink; tones closer than this are the same
# passes of the network at its own size for a picture, at most; weight of the guide where the network is unsure without it
PASSES, GUIDANCE = 4, 1.0
AGREEMENT = 0.42, 0.46  # of guide and picture: up to the first the guide is ignored, from the second on it has its full weight
# times from which a drawing goes on after its first step: without noise it decides what that left in doubt; with a guide, from
# which it starts, it fits that to the hand and to what survives
DECIDING, GUIDED = 0.5, 0.3
Predict = Callable[[np.ndarray], np.ndarray]  # (N, in_chans, S, S) → logits (N, S, S)


@dataclass(frozen=True)
class Drawing:
    """How to draw.

    steps: of a drawing, 1 gives the mean; None: see `steps_for`. guidance: weight of a guide that agrees with the picture,
    where the network is unsure without it; 1 is as it learnt. hypotheses: drawings of each picture; the first has no noise, which
    would leave specks where it is unsure. seed: of the noise of the others.
    """

    steps: int | None = None
    guidance: float = GUIDANCE
    hypotheses: int = 1
    seed: int = 0

    def steps_for(self, guided: bool, noisy: bool = False) -> int:
        """The steps of a drawing with or without a guide, with which the first takes two passes. From noise alone it needs more."""
        return self.steps or (PASSES if noisy and not guided else PASSES // 2)


DEFAULT, MEAN = Drawing(), Drawing(steps=1, guidance=1)


def noise_keys(x: np.ndarray, seed: int, hypotheses: int) -> np.ndarray:
    """(hypotheses,) uint64: the keys of the noise of one picture (S, S) in [0, 1], from its levels in 8 bits and the seed alone."""
    levels = (x * 255).round().astype(np.uint8).tobytes()
    digests = (hashlib.blake2b(levels, digest_size=8, salt=f"{seed} {i}".encode()[:16]) for i in range(hypotheses))
    return np.array([int.from_bytes(digest.digest(), "little") for digest in digests], np.uint64)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.tanh(logits / 2) / 2 + 0.5  # cannot overflow


def order(hypotheses: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The positions of hypotheses (n, S, S), the likelier ones first: those that differ least from the mean, which is certain where
    strokes survive, and from each other."""
    apart = np.square(hypotheses - mean).mean((1, 2)) + np.square(hypotheses - hypotheses.mean(0)).mean((1, 2))
    return apart.argsort(kind="stable")


def unsure(mean: np.ndarray) -> np.ndarray:
    """Where a drawing replaces the mean (S, S): 1 in areas that are neither surely ink nor surely ground, 0 elsewhere, soft edges.

    The network's drawing also changes a little what is certain; there the mean is better.
    """
    mask = Image.fromarray(np.uint8(255) * areas(np.abs(mean - 0.5) < SURE))
    return np.asarray(mask.filter(ImageFilter.BoxBlur(len(mean) / 75)), np.float32) / 255


def sharpened(x: np.ndarray) -> np.ndarray:
    """Probabilities of ink, nearer to 0 and 1; those of one half stay. See SHARP."""
    x = x.clip(0, 1)  # rounding may leave it outside
    ink, ground = x**SHARP, (1 - x) ** SHARP
    return ink / (ink + ground)


def without_haze(drawn: np.ndarray) -> np.ndarray:
    """A drawing (S, S) without what the network leaves of its doubt on the ground, soft edges of strokes spared; see HAZE."""
    reach = _reach(drawn)
    near = Image.fromarray(drawn > HAZE).convert("L").filter(ImageFilter.MaxFilter(2 * reach + 1))
    return drawn * (np.asarray(near) > 0)


def needs_restoring(picture: np.ndarray, drawn: np.ndarray) -> bool:
    """Whether a picture (S, S) differs from its drawing (S, S) in more than the edges of strokes.

    If not, the picture is better: the network gives strokes the weight that is usual in the hands it learnt from.
    """
    return bool(opening(np.abs(drawn - picture) > HAZE, _reach(drawn)).any())


def finished(drawn: np.ndarray, mask: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """A drawing (S, S) of a picture (S, S), sharp where it is unsure by the mask (S, S) in [0, 1], without haze; or the picture."""
    drawn = drawn + mask * (sharpened(drawn) - drawn)
    return without_haze(drawn if needs_restoring(picture, drawn) else picture)


def _reach(drawn: np.ndarray) -> int:
    """Pixels of a soft edge."""
    return max(1, round(len(drawn) / 112))


def two_sizes(predict: Predict, small: Callable[[], tuple[Predict, int]]) -> Predict:
    """A network that asks itself at a smaller size, too, where it is unsure, and averages the logits there.

    At the smaller size it sees more of the character at once, and errs elsewhere. small: gives that network and its size; called
    when it is needed.
    """

    def both(x: np.ndarray) -> np.ndarray:
        logits = predict(x)
        masks = np.stack([unsure(mean) for mean in sigmoid(logits)])
        rows = np.flatnonzero(masks.any((1, 2)))
        if len(rows):
            predict_small, size = small()
            again = predict_small(np.stack([[squares.resize(plane, size, size) for plane in one] for one in x[rows]]))
            again = np.stack([Image.fromarray(one).resize(logits.shape[:0:-1], Image.Resampling.BICUBIC) for one in again])
            logits[rows] += masks[rows] * (again - logits[rows]) / 2
        return logits

    return both


class First(NamedTuple):
    """The first step of N pictures with up to K guides each.

    x: (N, 1 + K, S, S) in [0, 1], the guides fitted to the characters, zeros for none. logits: (N, S, S), of the mean. followed:
    likewise, of what follows the guides further. trust: (N, K) in [0, 1], the share of each guide, 0 for none; less for a guide
    that agrees badly with what survives, as it may be of another character. further: (N, S, S), what the shares are multiplied by:
    1 where the network is sure without a guide. agreement: (N, K) in [-1, 1], see `restoration.guide.lay`; 1 without a guide.
    """

    x: np.ndarray
    logits: np.ndarray
    followed: np.ndarray
    trust: np.ndarray
    further: np.ndarray
    agreement: np.ndarray


def _channels(picture: np.ndarray, guide: np.ndarray, state: np.ndarray, t: float) -> np.ndarray:
    """(N, S, S) each, and a time → the network's input (N, 4, S, S)."""
    return np.stack([picture, guide, state, np.full_like(state, t)], axis=1)


class Drawer:
    """Draws prepared pictures with a network.

    Args:
        predict: the network.
        in_chans: its channels: 1 picture, 2 and guide, 4 and state and time; without the last two it gives its mean in one pass.
        drawing: how to draw.
        mean: what gives the first step, which is free of the state, if not `predict`.
    """

    def __init__(self, predict: Predict, in_chans: int, drawing: Drawing, mean: Predict | None = None):
        self.predict, self.mean, self.in_chans = predict, mean or predict, in_chans
        self.drawing = drawing if in_chans == 4 else MEAN

    def estimate(self, x: np.ndarray, state: np.ndarray, t: float, weight: np.ndarray) -> np.ndarray:
        """Logits without a guide and, by its weight, what each guide changes: l + Σ weight (l of the guide - l), (N, S, S).

        x: (N, 1 + K, S, S) pictures and guides. state: (N, S, S). t: time. weight: (N, K, S, S). A guide without weight, and the
        picture without a guide where the weights leave nothing of it, take no pass.
        """
        rest = 1 - weight.sum(1)
        without, (told, guides) = np.flatnonzero(rest.any((1, 2))), np.nonzero(weight.any((2, 3)))
        rows, guide = np.concatenate([without, told]), np.concatenate([np.zeros_like(x[without, 0]), x[told, 1 + guides]])
        logits = self.predict(_channels(x[rows, 0], guide, state[rows], t))
        total = np.zeros_like(state)
        np.add.at(total, rows, np.concatenate([rest[without], weight[told, guides]]) * logits)
        return total

    def first(self, x: np.ndarray, shares: np.ndarray | None = None) -> First:
        """The first step, which is free of the state, of pictures with their guides, if any: (N, 1 + K, S, S) in [0, 1].

        shares: (N, K) of the guides, as many as one picture may be of; 1 by default.
        """
        x, present = x.copy(), x[:, 1:].any((2, 3))
        agreement, further = np.ones(present.shape, np.float32), np.ones_like(x[:, 0])
        if self.in_chans < 4:
            logits = self.mean(x)
            return First(x, logits, logits, np.zeros_like(agreement), further, agreement)
        nothing = np.zeros_like(x[:, 0])
        unguided = self.mean(_channels(x[:, 0], nothing, nothing, 0))
        means = sigmoid(unguided)
        for row, guide in np.argwhere(present):
            x[row, 1 + guide], agreement[row, guide] = fit(x[row, 1 + guide], means[row])
        trust = (np.interp(agreement, AGREEMENT, (0, 1)) * present * (1 if shares is None else shares)).astype(np.float32)
        told, guides = np.nonzero(trust)
        logits, followed = unguided.copy(), unguided.copy()
        if len(told):
            change = self.mean(_channels(x[told, 0], x[told, 1 + guides], nothing[told], 0)) - unguided[told]
            change *= trust[told, guides][:, None, None]
            for row in np.unique(told):
                further[row] += (self.drawing.guidance - 1) * unsure(means[row])
            np.add.at(logits, told, change)
            np.add.at(followed, told, further[told] * change)
        return First(x, logits, followed, trust, further, agreement)

    def draw(self, first: First) -> np.ndarray:
        """The hypotheses (N, n, S, S) in [0, 1] of each picture: the one without noise, then the others, the likelier ones first;
        all the same, without a pass, where the mean is sure, and the picture itself where it needs no restoring.

        Where it is not, a drawing with a guide starts from that: the network sees its strokes in the state, and fits them to the
        hand and to what survives (Meng et al., "SDEdit", 2022). Of several guides it is the one that is trusted most.
        """
        x, mean, start = first.x, sigmoid(first.logits), sigmoid(first.followed)
        masks, guided = np.stack([unsure(one) for one in mean]), first.trust.any(1)
        in_doubt = masks.any((1, 2))
        n, img_size = 1 if self.drawing.steps == 1 else self.drawing.hypotheses, x.shape[-1]
        drawn = start[:, None].repeat(n, axis=1)
        for with_guide, noisy in product((False, True), (False, True)):
            rows, places = np.flatnonzero(in_doubt & (guided == with_guide)), slice(1, n) if noisy else slice(1)
            each = rows.repeat(n - 1 if noisy else 1)
            if not len(each):
                continue
            steps, begin, trust = self.drawing.steps_for(with_guide, noisy), start[each], first.trust[each]
            if with_guide and steps > 1:
                begin += trust.max(1)[:, None, None] * masks[each] * (x[each, 1 + trust.argmax(1)] - begin)
            noise = np.zeros_like(begin)
            if noisy:
                noise = np.concatenate([flow.noise(noise_keys(x[row, 0], self.drawing.seed, n - 1), img_size) for row in rows])
            weight = trust[:, :, None, None] * first.further[each][:, None]
            estimate = lambda state, t, each=each, weight=weight: sigmoid(self.estimate(x[each], state, t, weight))  # noqa: E731
            t = flow.times(steps, img_size, GUIDED if with_guide else 0 if noisy else DECIDING)
            pictures = start[each] + masks[each] * (flow.draw(estimate, begin, noise, t) - start[each])
            for row, some in zip(rows, np.split(pictures, len(rows)), strict=True):
                drawn[row, places] = some[order(some, mean[row])]
        if self.drawing.steps == 1:
            return drawn
        return np.stack([[finished(one, *row) for one in some] for some, *row in zip(drawn, masks, x[:, 0], strict=True)])
