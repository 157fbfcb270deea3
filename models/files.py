"""Trained networks in files: run checkpoints, safetensors and ONNX; and a network as a function of arrays.

Safetensors files hold matrices in float16, everything else in float32, and their settings as JSON in the metadata.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import models
from util import checkpoint
from util.files import replacing

# Settings of a run that concern its machine or its folders; they are not published with the weights.
PRIVATE = {"data", "finetune", "output_dir", "resume", "device", "threads", "workers", "compile", "log_every", "save_minutes",
           "max_minutes", "keep_every"}  # fmt: skip


def from_settings(settings: dict, pretrained: bool = False) -> nn.Module:
    """Builds the network that the settings of a run describe."""
    return models.build(
        settings["model"],
        img_size=settings["img_size"],
        in_chans=settings["in_chans"],
        latent_dim=settings["latent_dim"],
        ls_init_value=settings["layer_scale"],
        pretrained=pretrained,
    )


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """(the tensors of a network, settings of its run and its "epoch") of a run's checkpoint or a safetensors file."""
    if Path(path).suffix == ".safetensors":
        return load_tensors(path, "network")
    content = checkpoint.read(path)
    if not content.get("ema"):
        raise ValueError(f"{path} does not hold a network of this project")
    return content["ema"], {**content.get("settings", {}), "epoch": content.get("epoch")}


def load_network(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict]:
    """Loads a trained network from a run's checkpoint or a safetensors file.

    Returns (network in eval mode with the averaged weights, settings of its run and its "epoch").
    Raises FileNotFoundError if there is no file, ValueError if it is corrupt or holds something else.
    """
    tensors, settings = _read(path)
    try:
        model = from_settings(settings)
        model.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold a network of this project: {str(error).splitlines()[0]}") from error
    return model.to(device, memory_format=torch.channels_last).eval(), settings


def load_mean(paths: Sequence[str | Path]) -> tuple[nn.Module, dict]:
    """The mean of networks finetuned from the same one (Wortsman et al., "Model soups", 2022), and the settings of the last.

    Raises what `load_network` raises, and ValueError if they differ in more than their weights.
    """
    networks = [load_network(path) for path in paths]
    model, settings = networks[-1]
    tensors = [network.state_dict() for network, _ in networks]
    shapes = [{key: tensor.shape for key, tensor in part.items()} for part in tensors]
    if any(one != shapes[-1] for one in shapes):
        raise ValueError(f"{', '.join(map(str, paths))}: networks of different shapes have no mean")
    model.load_state_dict({key: torch.stack([part[key] for part in tensors]).float().mean(0) for key in tensors[-1]})
    return model, settings


def init_from(model: nn.Module, path: str | Path) -> list[str]:
    """Copies the weights of a trained network of the same backbone into `model`, all that have the same name and shape in both.

    The step from the latent to the coarsest map, whose shape depends on `img_size`, is resized bilinearly; input channels that the
    trained network lacks have no effect at first. Returns the names of the weights that stay as they were initialised.
    Raises what `load_network` raises, and ValueError if encoder or latent differ.
    """
    (tensors, settings), own = _read(path), model.state_dict()
    if "unpool.weight" in tensors and tensors["unpool.weight"].shape[2:] != model.unpool.kernel_size:
        tensors["unpool.weight"] = F.interpolate(tensors["unpool.weight"], model.unpool.kernel_size, mode="bilinear")
    lacking = model.in_chans - settings.get("in_chans", model.in_chans)
    for name in ("encoder.stem.0.weight", "fine_encoder.0.0.weight"):
        if lacking > 0 and name in tensors and tensors[name].shape[1] == settings["in_chans"]:
            tensors[name] = F.pad(tensors[name], (0, 0, 0, 0, 0, lacking))
    same = {name for name, tensor in own.items() if name in tensors and tensors[name].shape == tensor.shape}
    others = [name for name in own if name not in same]
    if lacking < 0 or any(name.startswith(("encoder.stages.", "to_latent.", "from_latent.", "stages.0.")) for name in others):
        network = f"{settings.get('model')}, in_chans {settings.get('in_chans')}, latent_dim {settings.get('latent_dim')}"
        raise ValueError(f"--finetune {path}: cannot initialise this network from {network}")
    model.load_state_dict({name: tensors[name] for name in same}, strict=False)
    return others


def public_settings(settings: dict) -> dict:
    """The settings that are stored with published weights: the network and its recipe."""
    return {key: value for key, value in settings.items() if key not in PRIVATE}


def save_network(model: nn.Module, settings: dict, path: str | Path) -> None:
    """Writes a network as safetensors, for `load_network`."""
    save_tensors(model.state_dict(), "network", public_settings(settings), path)


def export_onnx(model: nn.Module, settings: dict, path: str | Path) -> None:
    """Writes a network as ONNX with a dynamic batch size, for `restoration.exported.load` and other programs.

    Input "picture" (N, in_chans, img_size, img_size) in [0, 1], strokes bright; output "logits" (N, 1, img_size, img_size),
    whose sigmoid is the probability of ink. The metadata describe both and hold the settings as JSON ("network"), among them the
    img_size, which may be another one than the network's own.
    """
    write_onnx(
        model,
        (model.in_chans, settings["img_size"], settings["img_size"]),
        path,
        network=json.dumps(public_settings(settings), ensure_ascii=False),
        input="(N, in_chans, H, W) float32 in [0, 1], strokes bright on dark; channel 2: the standard glyph, or zeros",
        output="logits (N, 1, H, W); their sigmoid is the probability of ink",
    )


def write_onnx(model: nn.Module, shape: tuple[int, int, int], path: str | Path, **metadata: str) -> None:
    """Writes a module as ONNX: "picture" (N, *shape) float32 → "logits", with metadata."""
    x = torch.zeros(2, *shape, device=next(model.parameters()).device)
    shapes = ({0: torch.export.Dim("N")},)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(model, (x,), dynamic_shapes=shapes, input_names=["picture"], output_names=["logits"])
    program.model.metadata_props.update(metadata)
    with replacing(path) as part:
        program.save(part, external_data=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's progress messages and version warnings."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def predict_fn(model: nn.Module, device: torch.device | str = "cpu") -> Callable[[np.ndarray], np.ndarray]:
    """Returns f: (N, in_chans, H, W) float32 → logits of ink (N, H, W) float32. On a GPU it runs in bfloat16."""
    device = torch.device(device)

    @torch.inference_mode()
    def predict(x: np.ndarray) -> np.ndarray:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return model(torch.from_numpy(x).to(device)).float()[:, 0].cpu().numpy()

    return predict


def save_tensors(tensors: dict[str, Tensor], kind: str, info: dict, path: str | Path) -> None:
    """Writes a safetensors file atomically. `kind`: "network" or "recogniser"; `info`: anything that JSON can hold."""
    stored = {key: (value.half() if value.ndim > 1 else value.float()).contiguous() for key, value in tensors.items()}
    with replacing(path) as part:
        save_file(stored, part, metadata={kind: json.dumps(info, ensure_ascii=False)})
        part.chmod(0o644)


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """Reads (float32 tensors, info) of `save_tensors`.

    Raises FileNotFoundError if there is no file, ValueError if it is corrupt or of another kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = {key: value.float() for key, value in load_file(path).items()}
    except Exception as error:  # safetensors' own errors derive from Exception only
        raise ValueError(f"{path} is corrupt or not a safetensors file: {str(error).splitlines()[0]}") from error
    if kind not in metadata:
        raise ValueError(f"{path} holds no {kind}" + (f", but a {', '.join(metadata)}" if metadata else ""))
    return tensors, json.loads(metadata[kind])
