"""The recogniser: classifies pictures by character, to measure whether restored pictures can be read."""

from pathlib import Path

import timm
import torch
from torch import nn

from models.depthwise import speed_up
from models.files import load_tensors, save_tensors


def build_recogniser(classes: int, layer_scale: float = 0.3) -> nn.Module:
    """ConvNeXt-Atto: (N, 1, S, S) float in [0, 1], strokes bright → logits (N, classes)."""
    network = timm.create_model("convnext_atto", in_chans=1, num_classes=classes, ls_init_value=layer_scale)
    speed_up(network)
    return network


def features_and_logits(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, d), which the last layer of the recogniser takes, and the logits (N, classes), of pictures (N, 1, S, S)."""
    features = network.forward_head(network.forward_features(x), pre_logits=True)
    return features, network.get_classifier()(features)


def save_recogniser(network: nn.Module, info: dict, path: str | Path) -> None:
    """Writes the weights and `info`: see `load_recogniser`."""
    save_tensors(network.state_dict(), "recogniser", info, path)


def load_recogniser(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict]:
    """Returns (network in eval mode, info) of `save_recogniser`.

    info: "groups", the code point of each class in order (a character's variants are one class: see `datasets.split`), and
    "img_size", S. Raises FileNotFoundError if there is no file, ValueError if it is corrupt or holds something else.
    """
    tensors, info = load_tensors(path, "recogniser")
    try:
        network = build_recogniser(len(info["groups"]))
        network.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold a recogniser of this project: {str(error).splitlines()[0]}") from error
    return network.to(device, memory_format=torch.channels_last).eval(), info
