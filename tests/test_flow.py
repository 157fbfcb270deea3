"""The flow: its noise, its times, and its sampler against one written plainly."""

import numpy as np
import pytest
from scipy.special import expit

from util import flow


def test_noise_is_normal_and_depends_on_the_key_alone():
    keys = np.array([5, 2**63 + 7, 12], np.uint64)
    noise = flow.noise(keys, 64)
    assert noise.shape == (3, 64, 64) and noise.dtype == np.float32
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert (flow.noise(keys[1:2], 64) == noise[1:2]).all() and not (noise[0] == noise[1]).any()


@pytest.mark.parametrize("img_size", [64, 128, 224])
def test_a_stroke_stands_out_as_much_at_every_size(img_size):
    t = np.linspace(0, 1, 9)
    here = flow.at_size(t, img_size)
    assert (here[0], here[-1]) == (0, 1) and (np.diff(here) > 0).all()
    # over a stroke, whose pixels grow with the size, noise of 1 - t is averaged and the signal t is not
    ratio, stated = (time[1:-1] / (1 - time[1:-1]) * size for time, size in ((here, img_size), (t, flow.REFERENCE)))
    np.testing.assert_allclose(ratio, stated)


def test_times():
    for start in (0, 0.9):
        t = flow.times(4, flow.REFERENCE, start)
        assert (t[0], t[-1]) == (0, 1) and t[1] > start and (np.diff(t, 2)[bool(start) :] > 0).all()


def plain(estimate, noise, t):
    """The sampler, one picture and step at a time, by velocities: x + (t' - t) v with v = (x̂ - x) / (1 - t)."""
    pictures = []
    for i, x in enumerate(noise.astype(np.float64)):
        for now, following in zip(t[:-1], t[1:]):
            guess = 2 * estimate(np.zeros_like(noise) if now == 0 else x[None].repeat(len(noise), 0), now)[i] - 1
            x = x + (following - now) * (guess - x) / (1 - now)
        pictures.append((x + 1) / 2)
    return np.stack(pictures)


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_the_sampler_is_the_plain_one(steps):
    rng = np.random.default_rng(0)
    prior = rng.random((3, 16, 16))

    def estimate(state, t):
        return expit(np.log(prior / (1 - prior)) + 2 * t * state / (1 - t) ** 2)

    noise = flow.noise(np.arange(3, dtype=np.uint64), 16)
    for t in (flow.times(steps, 16), flow.times(steps, 16, 0.9)):
        drawn = flow.draw(estimate, estimate(np.zeros_like(noise), 0.0), noise, t)
        np.testing.assert_allclose(drawn, plain(estimate, noise, t), atol=1e-4)
    if steps == 1:
        np.testing.assert_allclose(drawn, prior)


def test_drawings_have_the_shares_of_what_could_have_been():
    """Of a pixel that is ink with probability p, drawn by the exact estimate, about a fraction p of the drawings is ink."""
    p = 0.3

    def estimate(state, t):
        return expit(np.log(p / (1 - p)) + 2 * t * state / (1 - t) ** 2)  # exact for a pixel of black and white

    noise = flow.noise(np.arange(4, dtype=np.uint64), 64)
    drawn = flow.draw(estimate, np.full_like(noise, p), noise, flow.times(32, 64))
    assert ((drawn < 0.1) | (drawn > 0.9)).mean() > 0.9 and abs((drawn > 0.5).mean() - p) < 0.05
