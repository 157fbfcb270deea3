"""Weights for others: what is written is read, as the network that it was."""

from pathlib import Path

import pytest
import torch

import models
from util import weights

ROOT = Path(__file__).resolve().parent.parent


def test_a_network_written_for_others_works_as_before(tmp_path):
    path, settings = tmp_path / "net.safetensors", {"model": "cae_convnext_atto", "side": 32, "in_chans": 1, "latent_dim": 32}
    model = models.from_settings({**settings, "layer_scale": 1.0}).eval()
    model.latent_norm.running_mean.fill_(1 / 3)  # has no exact half
    models.save_weights(model, {**settings, "layer_scale": 1.0, "epoch": 7}, path)
    again, told = models.load(path)
    assert told["epoch"] == 7 and not again.training
    assert torch.equal(again.latent_norm.running_mean, model.latent_norm.running_mean)
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(again(x), model(x), atol=0.01, rtol=0.01)  # the matrices are stored in 16 bits
    assert path.stat().st_size < 2.1 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["cae_convnext_atto", "restorer_convnext_atto"])
def test_shipped_networks_are_what_their_names_and_cards_say(name):
    model, settings = models.load(ROOT / "weights" / f"{name}.safetensors")
    card = (ROOT / "weights" / f"{name}.md").read_text(encoding="utf-8")
    parameters = sum(p.numel() for p in model.parameters())
    channels = f"{model.in_chans} channel{'s' * (model.in_chans > 1)}"
    assert settings["model"] == name
    assert f"side {model.img_size}, {channels}" in card and f"{parameters / 1e6:.1f} M parameters" in card


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"noise", "is broken or no safetensors file"),
        ({"kind": "recogniser"}, "holds no weights of a network, but of a recogniser"),
        ({"kind": "network"}, "does not hold a network of this project"),
    ],
)
def test_what_holds_no_network_is_refused(tmp_path, content, told):
    path = tmp_path / "net.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        weights.save({"w": torch.ones(2, 2)}, content["kind"], {"model": "cae_convnext_atto"}, path)
    with pytest.raises(ValueError, match=rf"net.safetensors {told}"):
        models.load(path)
