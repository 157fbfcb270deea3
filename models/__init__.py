"""The networks, by name: `build("cae_convnext_tiny", img_size=224, …)`."""

import difflib
from pathlib import Path

import timm
import torch
from torch import nn

from models.convnext_cae import SIZES, ConvNeXtCAE
from util import checkpoint, weights

NAMES = [f"{family}_convnext_{size}" for family in ("cae", "restorer") for size in SIZES]


def build(name: str, **settings) -> nn.Module:
    """The network of that name; `settings` are those of `ConvNeXtCAE`. ValueError for a name that is not one of `NAMES`."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        raise ValueError(f"no model '{name}'" + (f", did you mean '{near[0]}'?" if near else f": one of {', '.join(NAMES)}"))
    return timm.create_model(name, **settings)


def from_settings(settings: dict, pretrained: bool = False) -> nn.Module:
    """The network that the settings of a run describe."""
    return build(
        settings["model"],
        img_size=settings["side"],
        in_chans=settings["in_chans"],
        latent_dim=settings["latent_dim"],
        ls_init_value=settings["layer_scale"],
        pretrained=pretrained,
    )


def load(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict]:
    """The trained network of a run's checkpoint or a safetensors file, ready to use, and the settings of its run with its "epoch".

    Its weights are the moving average. FileNotFoundError without the file, ValueError if it is broken or something else.
    """
    if Path(path).suffix == ".safetensors":
        tensors, settings = weights.load(path, "network")
    else:
        content = checkpoint.read(path)
        tensors, settings = content.get("ema"), {**content.get("settings", {}), "epoch": content.get("epoch")}
    try:
        model = from_settings(settings)
        model.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold a network of this project: {str(error).splitlines()[0]}") from error
    return model.to(device, memory_format=torch.channels_last).eval(), settings


def save_weights(model: nn.Module, settings: dict, path: str | Path) -> None:
    """Writes a network for others to use: `load` reads it."""
    weights.save(model.state_dict(), "network", settings, path)


__all__ = ["NAMES", "ConvNeXtCAE", "build", "from_settings", "load", "save_weights"]
