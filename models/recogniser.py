"""The recogniser: classifies pictures by character, to measure whether restored pictures can be read."""

import json
from itertools import pairwise
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn

from models.convolutions import speed_up
from models.files import load_tensors, save_tensors, write_onnx

MODELS = ("convnext_atto", "resnet")  # the first judges, the second reads: two kinds, so that they share no mistakes


class Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut, at half the size: (N, inputs, H, W) → (N, outputs, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.convolutions(x) + self.shortcut(x))


class ResNet(nn.Module):
    """A small residual network (He et al., 2015) that keeps places: its last maps, 1/16 of the size, are flattened, not averaged.

    (N, 1, S, S) float in [0, 1], strokes bright → logits (N, classes). It learns characters from a fraction of the glyphs that
    networks with averaged maps need.
    """

    def __init__(self, classes: int, img_size: int, widths: tuple[int, ...] = (32, 64, 128, 256)):
        super().__init__()
        stem = nn.Conv2d(1, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        blocks = (Residual(*pair) for pair in pairwise(widths))
        flat = widths[-1] * (img_size // 16) ** 2
        self.body = nn.Sequential(*stem, *blocks, nn.Flatten(), nn.Linear(flat, 256), nn.BatchNorm1d(256))
        self.head = nn.Linear(256, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def build_recogniser(classes: int, model: str = MODELS[0], img_size: int = 64, layer_scale: float = 0.3) -> nn.Module:
    """One of MODELS: (N, 1, S, S) float in [0, 1], strokes bright → logits (N, classes)."""
    if model == "resnet":
        return ResNet(classes, img_size)
    network = timm.create_model(model, in_chans=1, num_classes=classes, ls_init_value=layer_scale)
    speed_up(network)
    return network


def features_and_logits(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, d), which the last layer of the recogniser takes, and the logits (N, classes), of pictures (N, 1, S, S)."""
    if isinstance(network, ResNet):
        features = network.body(x)
        return features, network.head(features)
    features = network.forward_head(network.forward_features(x), pre_logits=True)
    return features, network.get_classifier()(features)


def save_recogniser(network: nn.Module, info: dict, path: str | Path) -> None:
    """Writes the weights and `info`: see `load_recogniser`."""
    save_tensors(network.state_dict(), "recogniser", info, path)


def load_recogniser(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict]:
    """Returns (network in eval mode, info) of `save_recogniser`.

    info: "groups", the code point of each class in order (a character's variants are one class: see `datasets.split`), and
    "img_size", S; "model" is the first of MODELS by default. Raises FileNotFoundError if there is no file, ValueError if it is
    corrupt or holds something else.
    """
    tensors, info = load_tensors(path, "recogniser")
    try:
        network = build_recogniser(len(info["groups"]), info.get("model", MODELS[0]), info["img_size"])
        network.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold a recogniser of this project: {str(error).splitlines()[0]}") from error
    return network.to(device, memory_format=torch.channels_last).eval(), info


def export_onnx(network: nn.Module, info: dict, path: str | Path) -> None:
    """Writes a recogniser as ONNX: "picture" (N, 1, S, S) in [0, 1], strokes bright → "logits" (N, classes)."""
    write_onnx(network, (1, info["img_size"], info["img_size"]), path, recogniser=json.dumps(info, ensure_ascii=False))
