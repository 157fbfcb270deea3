"""Made pictures, handwriting sets and checkpoints for the tests: small, and always the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from datasets.pack import Hand, write_pack
from datasets.split import group_of
from models.files import from_settings
from models.norms import estimate
from util import checkpoint

HANDS = {"brush": "train", "pen": "train", "stranger": "held_out", "standard": "guide"}


def glyph_like(n: int, seed: int = 0, img_size: int = 48) -> torch.Tensor:
    """(n, 1, img_size, img_size): soft bright blots on a darker ground with noise, rounded to 8-bit levels."""
    rng = np.random.default_rng(seed)
    blots = ndimage.gaussian_filter(rng.standard_normal((n, img_size, img_size)), (0, 3, 3))
    soft = 1 / (1 + np.exp(-60 * (blots - 0.05)))
    level = 0.1 + rng.uniform(0.3, 0.8, (n, 1, 1)) * soft + 0.04 * rng.standard_normal((n, img_size, img_size))
    return torch.from_numpy((level.clip(0, 1) * 255).round() / 255).float()[:, None]


def character(height: int, width: int) -> np.ndarray:
    """(height, width) uint8: soft bright strokes on black, over the full range of tones."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    cross = np.minimum(np.abs(rows - rows.mean()), np.abs(columns - columns.mean()))
    inside = (np.abs(rows - rows.mean()) < 0.4 * rows.max()) & (np.abs(columns - columns.mean()) < 0.4 * columns.max())
    return (255 / (1 + np.exp((cross - 0.06) * 80)) * inside).round().astype(np.uint8)


def scene(height: int = 160, width: int = 160, noise: float = 0.03) -> np.ndarray:
    """(height, width): a bright cross on a noisy ground that fills the picture."""
    x = 0.15 + 0.7 * character(height, width) / 255
    return (x + noise * np.random.default_rng(0).standard_normal(x.shape)).clip(0, 1).astype(np.float32)


def tiny_pack(path: Path, characters: int = 100, img_size: int = 64) -> Path:
    """Writes a pack of blots in the hands of HANDS, for so many characters from 一 on; "stranger" lacks the last 7."""
    chars = [chr(ord("一") + i) for i in range(characters)]
    rows = [(hand, char) for hand in range(len(HANDS)) for char in chars[: characters - 7 * (hand == 2)]]
    strokes = glyph_like(len(rows), seed=5, img_size=img_size).numpy()[:, 0] > 0.45
    code = np.array([ord(char) for _, char in rows], dtype=np.uint32)
    write_pack(
        path,
        img_size=img_size,
        hands=[Hand(name, name, "regular", role, "made up", "none") for name, role in HANDS.items()],
        character=code,
        form=code,
        group=np.array([ord(group_of(char)) for _, char in rows], dtype=np.uint32),
        hand=np.array([hand for hand, _ in rows], dtype=np.uint8),
        bits=np.packbits(strokes.reshape(len(rows), -1), axis=1),
        meta={},
    )
    return path


def tiny_checkpoint(path: Path, img_size: int = 32, in_chans: int = 1) -> Path:
    """Writes a checkpoint of a restorer of which only the norms have seen pictures."""
    torch.manual_seed(0)
    settings = {
        "model": "restorer_convnext_atto",
        "img_size": img_size,
        "in_chans": in_chans,
        "latent_dim": 32,
        "layer_scale": 1.0,
    }
    network = from_settings(settings)
    estimate(network, torch.rand(2, 4, in_chans, img_size, img_size))
    checkpoint.save({"settings": settings, "ema": network.state_dict(), "epoch": 3}, path)
    return path


def network(probability: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A network that gives the logits of a function's probability of ink: (N, C, S, S) → (N, S, S)."""

    def predict(x: np.ndarray) -> np.ndarray:
        p = probability(x).astype(np.float64).clip(1e-9, 1 - 1e-9)
        return np.log(p / (1 - p)).astype(np.float32)

    return predict
