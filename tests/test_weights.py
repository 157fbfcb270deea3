"""Published weight files: networks survive saving and loading, and the bundled files match their cards."""

from pathlib import Path

import pytest
import torch

from models.files import from_settings, load_network, save_network, save_tensors

ROOT = Path(__file__).resolve().parent.parent


def test_a_saved_network_computes_the_same(tmp_path):
    path, settings = tmp_path / "net.safetensors", {"model": "cae_convnext_atto", "img_size": 32, "in_chans": 1, "latent_dim": 32}
    model = from_settings({**settings, "layer_scale": 1.0}).eval()
    model.latent_norm.running_mean.fill_(1 / 3)  # not exact in float16
    save_network(model, {**settings, "layer_scale": 1.0, "epoch": 7}, path)
    loaded, info = load_network(path)
    assert info["epoch"] == 7 and not loaded.training
    assert torch.equal(loaded.latent_norm.running_mean, model.latent_norm.running_mean)
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(loaded(x), model(x), atol=0.01, rtol=0.01)  # matrices are stored in float16
    assert path.stat().st_size < 2.1 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["cae_convnext_atto", "restorer_convnext_atto"])
def test_bundled_networks_match_their_names_and_cards(name):
    model, settings = load_network(ROOT / "weights" / f"{name}.safetensors")
    card = (ROOT / "weights" / f"{name}.md").read_text(encoding="utf-8")
    parameters = sum(p.numel() for p in model.parameters())
    channels = f"{model.in_chans} channel{'s' * (model.in_chans > 1)}"
    assert settings["model"] == name
    assert f"img_size {model.img_size}, {channels}" in card and f"{parameters / 1e6:.1f} M parameters" in card


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"noise", "is corrupt or not a safetensors file"),
        ({"kind": "recogniser"}, "holds no network, but a recogniser"),
        ({"kind": "network"}, "does not hold a network of this project"),
    ],
)
def test_a_file_without_a_network_is_refused(tmp_path, content, message):
    path = tmp_path / "net.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_tensors({"w": torch.ones(2, 2)}, content["kind"], {"model": "cae_convnext_atto"}, path)
    with pytest.raises(ValueError, match=rf"net.safetensors {message}"):
        load_network(path)
