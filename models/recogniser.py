"""The recogniser: which character is this? It judges whether a restored picture can be read."""

import json
from pathlib import Path

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.depthwise import speed_up
from util.files import replacing

BACKBONE = "convnext_atto"


def build_recogniser(classes: int, layer_scale: float = 0.3) -> nn.Module:
    """ConvNeXt-Atto: (N, 1, side, side) float in [0, 1], strokes bright → logits (N, classes)."""
    network = timm.create_model(BACKBONE, in_chans=1, num_classes=classes, ls_init_value=layer_scale)
    speed_up(network)
    return network


def save_recogniser(network: nn.Module, info: dict, path: str | Path) -> None:
    """Writes safetensors: matrices in float16, the rest in float32, `info` as JSON in the file's metadata."""

    def stored(tensor: Tensor) -> Tensor:
        return tensor.half().contiguous() if tensor.ndim > 1 else tensor.float().contiguous()

    with replacing(path) as part:
        tensors = {key: stored(value) for key, value in network.state_dict().items()}
        save_file(tensors, part, metadata={"recogniser": json.dumps(info, ensure_ascii=False)})


def load_recogniser(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict]:
    """(network in eval mode, info) of `save_recogniser`.

    info: "groups", the code point of each class in order (a character's variants are one class: see `datasets.split`);
    "side" of the pictures that it wants. FileNotFoundError without the file, ValueError if it is something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no recogniser at {path}")
    try:
        with safe_open(path, "pt") as file:
            info = json.loads((file.metadata() or {})["recogniser"])
        network = build_recogniser(len(info["groups"]))
        network.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    except Exception as error:  # safetensors raises errors of its own, which derive from Exception alone
        raise ValueError(f"{path} is broken or no recogniser: {str(error).splitlines()[0]}") from error
    return network.to(device, memory_format=torch.channels_last).eval(), info
