"""The networks, by name: `build("cae_convnext_tiny", img_size=224, …)`."""

import contextlib
import difflib
import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn

from models.convnext_cae import SIZES, ConvNeXtCAE, upsample
from util import checkpoint, weights
from util.files import replacing

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
        if "ups.4.0.weight" in tensors:  # of the time when a norm stood before the last step, too
            model.ups[4] = upsample(model.ups[4].in_channels, model.ups[4].out_channels)
        model.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold a network of this project: {str(error).splitlines()[0]}") from error
    return model.to(device, memory_format=torch.channels_last).eval(), settings


def start_from(model: nn.Module, path: str | Path) -> None:
    """Gives `model` the weights of a trained network that differs from it in nothing but its side.

    The step from the latent to the coarsest map, the one weight whose size follows the side, is scaled bilinearly. Errors: those of
    `load`; ValueError if the networks differ in more.
    """
    trained, settings = load(path)
    if (side := model.unpool.kernel_size) != trained.unpool.kernel_size:
        trained.unpool.weight = nn.Parameter(F.interpolate(trained.unpool.weight, side, mode="bilinear"))
    try:
        model.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        own = f"{settings['model']}, in_chans {settings['in_chans']}, latent_dim {settings['latent_dim']}"
        raise ValueError(f"{path} holds another network to start from: {own}") from error


# Of a run's settings, those of its place and its machine, which are nobody else's business.
PRIVATE = {"data", "finetune", "output_dir", "resume", "device", "threads", "workers", "compile", "log_every", "save_minutes",
           "keep_every"}  # fmt: skip


def for_others(settings: dict) -> dict:
    """What weights tell of themselves: the network's settings and its recipe."""
    return {key: value for key, value in settings.items() if key not in PRIVATE}


def save_weights(model: nn.Module, settings: dict, path: str | Path) -> None:
    """Writes a network for others to use: `load` reads it."""
    weights.save(model.state_dict(), "network", for_others(settings), path)


def export(model: nn.Module, settings: dict, path: str | Path) -> None:
    """Writes a network as ONNX, for any number of pictures: whoever has the file alone can use it, `util.exported.load` does.

    Input "picture", (N, in_chans, side, side) in [0, 1], strokes bright; output "logits" (N, 1, side, side), whose sigmoid is the
    probability of ink. The metadata say so, and hold the settings as JSON ("network").
    """
    told = {
        "network": json.dumps(for_others(settings), ensure_ascii=False),
        "input": "(N, in_chans, side, side) float32 in [0, 1], strokes bright on dark; channel 2: the standard glyph, or zeros",
        "output": "logits (N, 1, side, side); their sigmoid is the probability of ink",
    }
    example = torch.zeros(2, model.in_chans, model.img_size, model.img_size, device=next(model.parameters()).device)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("N")},),
            input_names=["picture"],
            output_names=["logits"],
            verbose=False,
        )
    program.model.metadata_props.update(told)
    with replacing(path) as part:
        program.save(part, external_data=False)


@contextlib.contextmanager
def _quiet():
    """The exporter reports its steps and other packages' versions, which tell users nothing."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def runner(model: nn.Module, device: torch.device | str = "cpu") -> Callable[[np.ndarray], np.ndarray]:
    """The network for arrays: (N, in_chans, side, side) float32 → probability of ink (N, side, side). On a GPU in bfloat16."""
    device = torch.device(device)

    @torch.inference_mode()
    def network(x: np.ndarray) -> np.ndarray:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return model(torch.from_numpy(x).to(device)).float().sigmoid()[:, 0].cpu().numpy()

    return network


__all__ = ["NAMES", "ConvNeXtCAE", "build", "export", "from_settings", "load", "runner", "save_weights", "start_from"]
