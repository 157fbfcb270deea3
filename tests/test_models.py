import pytest
import timm
import torch
import torch.nn.functional as F

import models
from models.convnext_cae import SIZES
from models.norms import BatchNorm2d, estimate

SMALL = {"img_size": 64, "ls_init_value": 1.0}  # with a layer scale near 0 the blocks would have no effect


@pytest.mark.parametrize("name", models.NAMES)
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    model = models.build(name, **SMALL, in_chans=2).train()
    torch.nn.init.normal_(model.from_latent.weight, std=0.02)  # a new restorer has zeros here
    logits = model(torch.rand(2, 2, 64, 64))
    assert logits.shape == (2, 1, 64, 64)
    logits.square().sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # standardising cancels any shift of the latent
    assert not [key for key in without if key != "to_latent.bias"]


@pytest.mark.parametrize("name", models.NAMES)
def test_black_ground_does_not_blow_up_the_gradient(name):
    torch.manual_seed(0)
    model = models.build(name, img_size=64)
    x = torch.zeros(2, 1, 64, 64)
    x[:, :, 20:44, 30:34] = 1
    F.binary_cross_entropy_with_logits(model(x), x).backward()
    assert torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]) < 5


@pytest.mark.parametrize("img_size", range(64, 257, 32))
@pytest.mark.parametrize("family", ["cae", "restorer"])
def test_every_img_size(family, img_size):
    model = models.build(f"{family}_convnext_atto", img_size=img_size).eval()
    with torch.inference_mode():
        x = torch.rand(1, 1, img_size, img_size)
        assert model(x).shape == x.shape
        assert model.encode(x).shape == (1, 768)


def test_another_size_is_a_network_of_that_size_with_resized_weights():
    model = models.build("restorer_convnext_atto", **SMALL).eval()
    torch.nn.init.normal_(model.to_modulation.weight, std=0.1)
    other = models.build("restorer_convnext_atto", **{**SMALL, "img_size": 96}).eval()
    tensors = model.state_dict()
    tensors["unpool.weight"] = torch.nn.functional.interpolate(tensors["unpool.weight"], 3, mode="bilinear")
    other.load_state_dict(tensors)
    x = torch.rand(2, 1, 96, 96)
    torch.testing.assert_close(model(x), other(x))


@pytest.mark.parametrize("family", ["cae", "restorer"])
def test_encode_then_decode_is_forward(family):
    model = models.build(f"{family}_convnext_atto", **SMALL).eval()
    x = torch.rand(2, 1, 64, 64)
    skips = model.features(x) if family == "restorer" else None
    torch.testing.assert_close(model.decode(model.encode(x), skips), model(x))


def test_the_autoencoder_depends_on_the_latent_only():
    cae, restorer = (models.build(f"{family}_convnext_atto", **SMALL).eval() for family in ("cae", "restorer"))
    for model in (cae, restorer):
        model.latent_norm.running_var.fill_(1e30)  # every latent becomes 0
    a, b = torch.rand(2, 1, 1, 64, 64)
    assert torch.equal(cae(a), cae(b))
    assert not torch.equal(restorer(a), restorer(b))


def test_the_latent_has_an_effect():
    for family in ("cae", "restorer"):
        model = models.build(f"{family}_convnext_atto", **SMALL)
        torch.nn.init.normal_(model.from_latent.weight, std=0.02)  # a new restorer has zeros here
        estimate(model, torch.rand(1, 4, 1, 64, 64))
        model.eval()
        skips = model.features(torch.rand(1, 1, 64, 64)) if family == "restorer" else None
        a, b = torch.randn(2, 1, 768)
        assert (model.decode(a, skips) - model.decode(b, skips)).abs().max() > 1e-3


def test_decoder_mirrors_the_encoder():
    for size in SIZES:
        model = models.build(f"cae_convnext_{size}", img_size=64)
        encoder = [(len(stage.blocks), stage.blocks[0].norm.weight.shape[0]) for stage in model.encoder.stages]
        decoder = [(len(stage), stage[0].norm.weight.shape[0]) for stage in model.stages[:4]]
        assert decoder == encoder[::-1]


@pytest.mark.parametrize(
    ("name", "millions"), [("cae_convnext_tiny", 56.9), ("restorer_convnext_tiny", 61.2), ("cae_convnext_atto", 7.3)]
)
def test_number_of_parameters(name, millions):
    assert sum(p.numel() for p in models.build(name).parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_latent_is_standardised_over_the_batch():
    torch.manual_seed(0)
    model = models.build("cae_convnext_atto", img_size=32, latent_dim=16, ls_init_value=1.0).train()
    reference = torch.nn.BatchNorm1d(16, affine=False)
    for _ in range(3):
        x = torch.rand(8, 1, 32, 32)
        z = model.to_latent(model.encoder.head(model.features(x)[0]))
        torch.testing.assert_close(model.encode(x), reference(z), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.latent_norm.running_var, reference.running_var)
    torch.testing.assert_close(model.eval().encode(x), reference.eval()(z), atol=1e-5, rtol=1e-5)


def test_estimated_norms_are_the_mean_over_batches():
    norm = BatchNorm2d(3).eval()
    x = torch.randn(5, 4, 3, 8, 8) * 2 + 1
    norm.running_mean.fill_(9)
    estimate(norm, x)
    torch.testing.assert_close(norm.running_mean, x.mean((0, 1, 3, 4)))
    torch.testing.assert_close(norm.running_var, x.transpose(1, 2).flatten(2).var(2).mean(0))
    assert norm.momentum == 0.1


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="did you mean 'cae_convnext_tiny'"):
        models.build("cae_convnext_tinny")
    with pytest.raises(ValueError, match="multiple of 32"):
        models.build("cae_convnext_atto", img_size=100)
    with pytest.raises(ValueError, match=r"expected pictures \(N, 1, 64, 64\)"):
        models.build("cae_convnext_atto", img_size=64)(torch.rand(1, 1, 96, 96))
    with pytest.raises(ValueError, match="batch of 1"):
        models.build("cae_convnext_atto", img_size=64).train()(torch.rand(1, 1, 64, 64))


def test_registered_with_timm():
    assert set(models.NAMES) <= set(timm.list_models())
    assert timm.create_model("restorer_convnext_femto", img_size=64, pretrained=False).skips


def test_pretrained_weights_are_requested_from_timm_for_the_encoder(monkeypatch):
    from models import convnext_cae

    requested, create = [], timm.create_model

    def record(name, pretrained=False, **settings):
        requested.append((name, pretrained, settings["in_chans"]))
        return create(name, **settings)  # without a download

    monkeypatch.setattr(convnext_cae.timm, "create_model", record)
    convnext_cae.ConvNeXtCAE("convnext_atto", img_size=64, in_chans=2, pretrained=True)
    assert requested == [("convnext_atto", True, 2)]
