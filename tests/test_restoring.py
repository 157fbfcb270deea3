"""The restorer as other programs use it, and the two ways to run a network."""

import numpy as np
import pytest
import torch
from PIL import Image

import models
from datasets.pack import open_pack, read_guide
from datasets.pairs import smooth
from restoring import Restorer, load_restorer, soften
from tests.pictures import character, tiny_checkpoint
from util import exported

SIDE = 64


def unchanged(x: np.ndarray) -> np.ndarray:
    """A network that restores what it is given."""
    return x[:, 0]


@pytest.mark.parametrize("shape", [(64, 64), (200, 200), (45, 51), (40, 130), (150, 60)])
@pytest.mark.parametrize("invert", [False, True])
def test_size_and_polarity_come_back(shape, invert):
    x = 255 - character(*shape) if invert else character(*shape)
    restored = Restorer(unchanged, SIDE)(x)
    assert restored.mode == "L" and restored.size == shape[::-1]
    difference = np.abs(np.asarray(restored).astype(float) - x)
    assert difference.mean() < 4


def test_the_network_sees_bright_strokes_of_full_contrast():
    seen = []

    def network(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return unchanged(x)

    pale = (character(90, 60) * 0.2 + 90).astype(np.uint8)
    bright = Restorer(network, SIDE)(pale)
    dark = Restorer(network, SIDE)(255 - pale)
    for x in seen:
        assert x.shape == (1, 1, SIDE, SIDE)
        assert x.min() == 0 and x.max() == 1 and x.mean() < 0.4
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-5)
    np.testing.assert_allclose(np.asarray(bright), 255 - np.asarray(dark), atol=1)


def test_polarity_can_be_forced():
    x = character(64, 64)
    right, wrong = (np.asarray(Restorer(lambda x: x[:, 0] * 0 + 1, SIDE)(x, polarity=polarity)) for polarity in ("bright", "dark"))
    assert right.min() > 250 and wrong.max() < 5
    with pytest.raises(ValueError, match="polarity"):
        Restorer(unchanged, SIDE)(x, polarity="white")


def test_the_guide_is_given_where_there_is_one(tiny_pack):
    seen = []
    restorer = Restorer(lambda x: seen.append(x) or x[:, 0], SIDE, in_chans=2, pack=tiny_pack)
    x = Image.fromarray(character(64, 64))
    pack = open_pack(tiny_pack)
    (guide,) = read_guide(tiny_pack, "一").values()
    for char in (None, "一", "龘"):
        restorer(x, char=char)
        assert restorer.prepare(x, char).guide == (char if char == "一" else None)
    assert [bool(x[0, 1].any()) for x in seen] == [False, True, False]
    row = next(i for i in range(len(pack)) if pack.hands[pack.hand[i]].role == "guide" and pack.form[i] == ord("一"))
    assert (guide == pack.glyphs([row])[0, 0].numpy()).all()
    assert restorer.read_guides("一龘丁") == {"龘"}
    with pytest.raises(ValueError, match="without a guide"):
        Restorer(unchanged, SIDE)(x, char="一")
    with pytest.raises(ValueError, match="one character, not of '一丁'"):
        restorer(x, char="一丁")


@pytest.mark.parametrize("side", [32, 64, 96])
def test_the_guide_is_as_soft_as_in_training(tiny_pack, side):
    glyph = open_pack(tiny_pack).glyphs([0])
    np.testing.assert_allclose(soften(glyph[0, 0].numpy(), side), smooth(glyph, side)[0, 0].numpy(), atol=1e-5)


def test_any_picture_goes_in():
    restorer = Restorer(unchanged, SIDE)
    grey = character(64, 64)
    expected = np.asarray(restorer(grey)).astype(int)
    image = Image.fromarray(grey)
    for picture in (
        image,
        image.convert("RGB"),
        image.convert("P"),
        np.stack([grey] * 3, axis=2),
        grey.astype(np.uint16) * 257,
        (grey / 255).astype(np.float32),
    ):
        np.testing.assert_allclose(np.asarray(restorer(picture)), expected, atol=1)
    assert restorer(Image.new("L", (1, 1))).size == (1, 1)
    assert restorer(Image.new("L", (3, 700))).size == (3, 700)


def test_what_else_a_restored_picture_tells():
    restorer = Restorer(unchanged, SIDE)
    colour = Image.merge("RGB", [Image.fromarray(255 - character(80, 80))] * 3)
    (restored,) = restorer.restore([restorer.prepare(colour)])
    told = restored.numbers()
    assert told["polarity"] == "dark" and told["box"] == [0, 0, 80] and told["guide"] is None and told["kept"] > 0.9
    assert restored.compare().size == (3 * 80 + 4, 80) and restored.sureness().height > 80


def test_the_resolution_is_kept_if_it_can_be_believed():
    restorer = Restorer(unchanged, SIDE)
    for given, kept in (((300, 299.5), (300, 299.5)), ((1, 1), None), ((float("nan"), 1), None), (None, None)):
        picture = Image.fromarray(character(50, 50))
        picture.info |= {"dpi": given} if given else {}
        assert restorer(picture).info.get("dpi") == kept


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(checkpoint, exported file) of an untrained network with a layer scale at which its blocks count."""
    folder = tmp_path_factory.mktemp("trained")
    checkpoint = tiny_checkpoint(folder / "best.pth", in_chans=2)
    models.export(*models.load(checkpoint), folder / "network.onnx")
    return checkpoint, folder / "network.onnx"


def test_the_exported_network_is_the_same(trained):
    """Against torch in float32: by ONNX Runtime, a reference, and by OpenVINO, which takes bfloat16 where the processor has it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model, settings = models.load(trained[0])
    reference = onnxruntime.InferenceSession(trained[1], providers=["CPUExecutionProvider"])
    network, own = exported.load(trained[1])
    assert own == settings
    for n in (1, 3):
        x = torch.rand(n, 2, 32, 32, generator=torch.manual_seed(n))
        with torch.inference_mode():
            logits = model(x)
        assert logits.std() > 0.01
        np.testing.assert_allclose(reference.run(None, {"picture": x.numpy()})[0], logits.numpy(), atol=1e-4)
        by_torch = models.runner(model)(x.numpy())
        assert by_torch.shape == (n, 32, 32)
        np.testing.assert_allclose(by_torch, logits.sigmoid()[:, 0].numpy(), atol=1e-6)
        np.testing.assert_allclose(network(x.numpy()), by_torch, atol=0.01)


def test_an_exported_file_says_how_to_use_it(trained):
    metadata = {entry.key: entry.value for entry in pytest.importorskip("onnx").load(trained[1]).metadata_props}
    assert "strokes bright" in metadata["input"] and "sigmoid" in metadata["output"] and '"side": 32' in metadata["network"]


def test_a_cache_that_cannot_be_written_is_named(trained, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"restorecae-zi: cannot keep .*set XDG_CACHE_HOME .* or choose the runtime torch"):
        load_restorer(trained[0])


def test_what_is_given_away_tells_no_places(tmp_path):
    model, settings = models.load(tiny_checkpoint(tmp_path / "best.pth"))
    models.save_weights(model, {**settings, "output_dir": "/home/me", "lr": 0.1}, tmp_path / "a.safetensors")
    _, told = models.load(tmp_path / "a.safetensors")
    assert told == {**settings, "lr": 0.1}


def test_every_kind_of_file_is_loaded(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkpoint, onnx = trained
    weights = tmp_path / "weights.safetensors"
    models.save_weights(*models.load(checkpoint), weights)
    picture = Image.fromarray(character(50, 40))
    pictures = [
        np.asarray(load_restorer(file, runtime)(picture, char="一")).astype(int)
        for file, runtime in ((checkpoint, "torch"), (weights, "torch"), (weights, "onnx"), (onnx, "auto"))
    ]
    assert pictures[0].shape == (50, 40)
    for other in pictures[1:]:
        np.testing.assert_allclose(other, pictures[0], atol=3)
    (kept,) = (tmp_path / "cache" / "restorecae-zi").iterdir()
    assert kept == exported.cached(weights)
    monkeypatch.setattr(models, "export", lambda *_: pytest.fail("exported again"))
    load_restorer(weights)


def test_what_cannot_be_loaded_is_named(trained, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(trained[1].read_bytes()[:5000])
    (tmp_path / "text.safetensors").write_text("no weights")
    for file, runtime, device, message in (
        (tmp_path / "none.pth", "auto", "auto", r"none\.pth: no such file"),
        (broken, "auto", "auto", r"broken\.onnx is broken or no network"),
        (tmp_path / "text.safetensors", "onnx", "auto", r"text\.safetensors"),
        (trained[1], "torch", "auto", "torch does not run ONNX"),
        (trained[0], "onnx", "cuda", "a GPU needs the runtime torch"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            load_restorer(file, runtime, device)
        assert "\n" not in str(caught.value)
