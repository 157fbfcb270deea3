"""The recogniser: which character is this? It judges whether a restored picture can be read."""

from pathlib import Path

import timm
import torch
from torch import nn

from models.depthwise import speed_up
from util import weights

BACKBONE = "convnext_atto"


def build_recogniser(classes: int, layer_scale: float = 0.3) -> nn.Module:
    """ConvNeXt-Atto: (N, 1, side, side) float in [0, 1], strokes bright → logits (N, classes)."""
    network = timm.create_model(BACKBONE, in_chans=1, num_classes=classes, ls_init_value=layer_scale)
    speed_up(network)
    return network


def save_recogniser(network: nn.Module, info: dict, path: str | Path) -> None:
    """Writes the weights and `info`: see `load_recogniser`."""
    weights.save(network.state_dict(), "recogniser", info, path)


def load_recogniser(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict]:
    """(network in eval mode, info) of `save_recogniser`.

    info: "groups", the code point of each class in order (a character's variants are one class: see `datasets.split`);
    "side" of the pictures that it wants. FileNotFoundError without the file, ValueError if it is something else.
    """
    tensors, info = weights.load(path, "recogniser")
    try:
        network = build_recogniser(len(info["groups"]))
        network.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold a recogniser of this project: {str(error).splitlines()[0]}") from error
    return network.to(device, memory_format=torch.channels_last).eval(), info
