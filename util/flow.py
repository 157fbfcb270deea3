"""The flow from noise to a character: its states and times, and the sampler.

A state is x_t = t (2x - 1) + (1 - t) ε of a clean picture x in [0, 1] and normal noise ε, one number per pixel. The network sees it
beside the degraded picture and estimates x: at t = 0 the mean of all that could have been; the closer t is to 1, the more certain.
(Lipman et al., "Flow Matching for Generative Modeling", 2023, with the network's estimate of x in place of the velocity.)
"""

from collections.abc import Callable

import numpy as np

REFERENCE = 128  # picture size in pixels at which times are stated
POWER = 1.5  # of the spacing of a drawing's times: the earlier ones are closer


def noise(keys: np.ndarray, img_size: int) -> np.ndarray:
    """Normal noise (N, img_size, img_size) float32; that of a picture depends on its key alone. keys: (N,) uint64."""
    pixels = np.empty((len(keys), img_size, img_size), np.float32)
    for key, picture in zip(keys, pixels, strict=True):
        np.random.Generator(np.random.Philox(key=key)).standard_normal(dtype=np.float32, out=picture)
    return pixels


def at_size(t: np.ndarray, img_size: int) -> np.ndarray:
    """Times in [0, 1] stated at REFERENCE → those at which a stroke of a picture of `img_size` stands out as much from the noise.

    Noise hides less of a stroke that has more pixels: its ratio to the signal over a stroke falls with the size.
    """
    signal = np.asarray(t) * (REFERENCE / img_size)
    return signal / (signal + 1 - t)


def times(steps: int, img_size: int, start: float = 0.0) -> np.ndarray:
    """(steps + 1,) times from 0 to 1 of a drawing, all but the first from `start` on; the earlier ones are closer."""
    t = start + (1 - start) * np.linspace(0, 1, steps + 1) ** POWER
    return at_size(np.append(0, t[1:]), img_size)


def draw(estimate: Callable[[np.ndarray, float], np.ndarray], first: np.ndarray, noise: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Draws characters in deterministic steps (as DDIM: Song et al., 2021).

    Args:
        estimate: (state (N, H, W), time) → probability of ink (N, H, W) in [0, 1].
        first: (N, H, W) in [0, 1], the estimate free of the state, which is the first step.
        noise: (N, H, W) normal numbers.
        t: (steps + 1,) from `times`.

    Returns the last estimate, (N, H, W) in [0, 1].
    """
    state, drawing = noise, first
    for now, following in zip(t[:-2], t[1:-1]):
        rest = (state - now * (2 * drawing - 1)) / (1 - now)  # the noise, as this estimate would have it
        state = (following * (2 * drawing - 1) + (1 - following) * rest).astype(np.float32)
        drawing = estimate(state, float(following))
    return drawing
