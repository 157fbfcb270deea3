"""The restorer as other programs use it, the two runtimes, and the cache of exported networks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.pack import open_pack, read_guide
from datasets.pairs import smooth
from models.files import export_onnx, load_network, predict_fn, save_network
from restoration import exported
from restoration.drawing import sigmoid
from restoration.guide import soften
from restoration.pipeline import Restorer, load_restorer
from tests.pictures import character, network, tiny_checkpoint
from util import squares

SIZE = 64


def identity(x: np.ndarray) -> np.ndarray:
    """A network that returns its input."""
    return x[:, 0]


def restorer_of(predict=identity, in_chans: int = 1, **others) -> Restorer:
    return Restorer(network(predict), {"img_size": SIZE, "in_chans": in_chans}, **others)


@pytest.mark.parametrize("shape", [(64, 64), (200, 200), (45, 51), (40, 130), (150, 60)])
@pytest.mark.parametrize("invert", [False, True])
def test_the_output_has_the_size_and_polarity_of_the_input(shape, invert):
    x = 255 - character(*shape) if invert else character(*shape)
    restored = restorer_of()(x)
    assert restored.mode == "L" and restored.size == shape[::-1]
    difference = np.abs(np.asarray(restored).astype(float) - x)
    assert difference.mean() < 4


def test_the_network_gets_bright_strokes_with_full_contrast():
    seen = []

    def predict(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return identity(x)

    pale = (character(90, 60) * 0.2 + 90).astype(np.uint8)
    bright = restorer_of(predict)(pale)
    dark = restorer_of(predict)(255 - pale)
    for x in seen:
        assert x.shape == (1, 1, SIZE, SIZE)
        assert x.min() == 0 and x.max() == 1 and x.mean() < 0.4
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-5)
    np.testing.assert_allclose(np.asarray(bright), 255 - np.asarray(dark), atol=1)


def test_the_polarity_argument_overrides_detection():
    x = character(64, 64)
    restorer = restorer_of(lambda x: np.ones_like(x[:, 0]))
    right, wrong = (np.asarray(restorer(x, polarity=polarity)) for polarity in ("bright", "dark"))
    assert right.min() > 250 and wrong.max() < 5
    with pytest.raises(ValueError, match="polarity"):
        restorer(x, polarity="white")


def test_the_box_and_rotation_arguments_override_detection():
    x = np.zeros((200, 300), np.uint8)
    x[20:120, 30:130] = character(100, 100)
    x[120:190, 200:270] = character(70, 70)
    restorer = restorer_of()
    box = squares.Box(115, 195, 80)
    prepared = restorer.prepare(Image.fromarray(x), box=box, rotation=0)
    assert prepared.box == box and not prepared.bright[:110].any()
    (restored,) = restorer.restore([prepared])
    np.testing.assert_allclose(restored.ink[115:195, 195:275], x[115:195, 195:275] / 255, atol=0.3)
    assert not restored.ink[:, :190].any() and restored.picture().size == (300, 200)
    turned = restorer.prepare(Image.fromarray(x), box=box, rotation=7.5)
    assert turned.box == box._replace(angle=7.5) and np.abs(turned.x - prepared.x).mean() > 0.01
    with pytest.raises(ValueError, match="the box is outside the picture"):
        restorer.prepare(Image.fromarray(x), box=squares.Box(300, 0, 50))


def test_the_guide_is_used_if_there_is_one(tiny_pack):
    seen = []
    restorer = restorer_of(lambda x: seen.append(x) or x[:, 0], in_chans=2, pack=tiny_pack)
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
    with pytest.raises(ValueError, match="takes no guide"):
        restorer_of()(x, char="一")
    with pytest.raises(ValueError, match="one character, not '一丁'"):
        restorer(x, char="一丁")


@pytest.mark.parametrize("img_size", [32, 64, 96])
def test_the_guide_is_as_soft_as_in_training(tiny_pack, img_size):
    glyph = open_pack(tiny_pack).glyphs([0])
    np.testing.assert_allclose(soften(glyph[0, 0].numpy(), img_size), smooth(glyph, img_size)[0, 0].numpy(), atol=1e-5)


def test_pictures_of_any_mode_type_and_size_are_accepted():
    restorer = restorer_of()
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


def test_numbers_comparison_and_confidence_of_a_restored_picture():
    restorer = restorer_of()
    colour = Image.merge("RGB", [Image.fromarray(255 - character(80, 80))] * 3)
    (restored,) = restorer.restore([restorer.prepare(colour)])
    numbers = restored.numbers()
    assert numbers["polarity"] == "dark" and numbers["box"] == [0, 0, 80, 80] and numbers["guide"] is None and numbers["kept"] > 0.9
    assert restored.compare().size == (3 * 80 + 4, 80) and restored.confidence().height > 80


def test_a_plausible_resolution_is_kept():
    restorer = restorer_of()
    for dpi, kept in (((300, 299.5), (300, 299.5)), ((1, 1), None), ((float("nan"), 1), None), (None, None)):
        picture = Image.fromarray(character(50, 50))
        picture.info |= {"dpi": dpi} if dpi else {}
        assert restorer(picture).info.get("dpi") == kept


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(checkpoint, exported file) of an untrained network with a layer scale at which its blocks matter."""
    folder = tmp_path_factory.mktemp("trained")
    checkpoint = tiny_checkpoint(folder / "best.pth", in_chans=2)
    export_onnx(*load_network(checkpoint), folder / "network.onnx")
    return checkpoint, folder / "network.onnx"


def test_the_exported_network_computes_the_same(trained):
    """As torch in float32, with ONNX Runtime as a reference and with OpenVINO, which uses bfloat16 if the processor has it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model, settings = load_network(trained[0])
    reference = onnxruntime.InferenceSession(trained[1], providers=["CPUExecutionProvider"])
    predict, exported_settings = exported.load(trained[1])
    assert exported_settings == settings
    for n in (1, 3):
        x = torch.rand(n, 2, 32, 32, generator=torch.manual_seed(n))
        with torch.inference_mode():
            logits = model(x)
        assert logits.std() > 0.01
        np.testing.assert_allclose(reference.run(None, {"picture": x.numpy()})[0], logits.numpy(), atol=1e-4)
        by_torch = predict_fn(model)(x.numpy())
        assert by_torch.shape == (n, 32, 32)
        np.testing.assert_allclose(by_torch, logits[:, 0].numpy(), atol=1e-5)
        np.testing.assert_allclose(sigmoid(predict(x.numpy())), sigmoid(by_torch), atol=0.01)


def test_a_signal_after_networks_came_and_went_finds_its_stack(trained):
    script = """
import signal, sys
from restoration import exported
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
first, second = exported.load(sys.argv[1]), exported.load(sys.argv[1])
del first
del second
signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", script, trained[1]], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_threads_that_load_networks_share_a_core(trained):
    script = """
import sys, threading, time, types
made = []
class Core:
    def __init__(self):
        made.append(self)
        time.sleep(0.2)
    def read_model(self, path):
        raise RuntimeError("only counted")
sys.modules["openvino"] = types.SimpleNamespace(Core=Core)
from restoration import exported
def load():
    try:
        exported.load(sys.argv[1])
    except ValueError:
        pass
threads = [threading.Thread(target=load) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(made))
"""
    done = subprocess.run([sys.executable, "-c", script, trained[1]], capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


def test_the_metadata_of_an_exported_file_describe_its_use(trained):
    metadata = {entry.key: entry.value for entry in pytest.importorskip("onnx").load(trained[1]).metadata_props}
    assert "strokes bright" in metadata["input"] and "sigmoid" in metadata["output"] and '"img_size": 32' in metadata["network"]


def test_a_cache_that_cannot_be_created_is_reported(trained, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"restorecae-zi: cannot cache .*set XDG_CACHE_HOME .* or pass runtime torch"):
        load_restorer(trained[0])


@pytest.fixture
def cache(trained, tmp_path, monkeypatch) -> list[Path]:
    """The exported network, least recently used, and as many newer files as the cache keeps."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = [exported.cached(trained[0]), *(tmp_path / "restorecae-zi" / f"{number}.onnx" for number in range(exported.KEPT))]
    files[0].parent.mkdir()
    for seconds, file in enumerate(files):
        shutil.copy(trained[1], file)
        os.utime(file, (seconds, seconds))
    return files


def test_the_cache_keeps_the_most_recently_used_networks(trained, cache):
    load_restorer(trained[0])
    assert sorted(cache[0].parent.glob("*.onnx")) == sorted([cache[0], *cache[2:]])
    load_restorer(trained[0])
    assert len(list(cache[0].parent.glob("*.onnx"))) == exported.KEPT


@pytest.mark.parametrize("denied", ["os.utime", "pathlib.Path.unlink"])
def test_a_read_only_cache_works(trained, cache, monkeypatch, denied):
    def deny(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(denied, deny)
    load_restorer(trained[0])
    assert sorted(cache[0].parent.glob("*.onnx")) == sorted(cache)


def test_what_was_compiled_is_kept_for_the_next_start(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    x = np.random.default_rng(0).random((1, 2, 32, 32), dtype=np.float32)
    first = exported.load(trained[1])[0](x)
    (compiled,) = (tmp_path / "restorecae-zi" / "compiled").iterdir()
    written = compiled.stat().st_mtime_ns
    assert exported.load(trained[1])[0](x).tolist() == first.tolist() and compiled.stat().st_mtime_ns == written
    compiled.chmod(0o644)
    compiled.write_bytes(compiled.read_bytes()[:1000])  # as after a full disk: compiled again
    assert exported.load(trained[1])[0](x).tolist() == first.tolist() and compiled.stat().st_size > 1000


def test_published_settings_hold_no_paths(tmp_path):
    model, settings = load_network(tiny_checkpoint(tmp_path / "best.pth"))
    save_network(model, {**settings, "output_dir": "/home/me", "lr": 0.1}, tmp_path / "a.safetensors")
    assert load_network(tmp_path / "a.safetensors")[1] == {**settings, "lr": 0.1}


def test_every_file_format_gives_the_same_picture(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkpoint, onnx = trained
    weights = tmp_path / "weights.safetensors"
    save_network(*load_network(checkpoint), weights)
    picture = Image.fromarray(character(50, 40))
    pictures = [
        np.asarray(load_restorer(file, runtime)(picture, char="一")).astype(int)
        for file, runtime in ((checkpoint, "torch"), (weights, "torch"), (weights, "onnx"), (onnx, "auto"))
    ]
    assert pictures[0].shape == (50, 40)
    for other in pictures[1:]:
        np.testing.assert_allclose(other, pictures[0], atol=3)
    (cached,) = (tmp_path / "cache" / "restorecae-zi").glob("*.onnx")
    assert cached == exported.cached(weights)
    monkeypatch.setattr("models.files.export_onnx", lambda *_: pytest.fail("exported again"))
    load_restorer(weights)


def test_files_that_cannot_be_loaded_are_reported_in_one_line(trained, tmp_path):
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(trained[1].read_bytes()[:5000])
    (tmp_path / "text.safetensors").write_text("no weights")
    for file, runtime, device, message in (
        (tmp_path / "none.pth", "auto", "auto", r"none\.pth: no such file"),
        (corrupt, "auto", "auto", r"corrupt\.onnx is corrupt or was not written by export\.py"),
        (tmp_path / "text.safetensors", "onnx", "auto", r"text\.safetensors"),
        (trained[1], "torch", "auto", "torch does not run ONNX"),
        (trained[0], "onnx", "cuda", "a GPU needs runtime torch"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            load_restorer(file, runtime, device)
        assert "\n" not in str(caught.value)
