import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import export
import hubconf
import models
from models.files import load_network, save_network
from restoration.pipeline import Restorer, load_restorer
from tests.pictures import character, network, tiny_checkpoint

ROOT = Path(export.__file__).parent


def test_exported_files_restore_pictures(tmp_path, capsys):
    checkpoint = tiny_checkpoint(tmp_path / "best.pth")
    assert export.main(["--checkpoint", str(checkpoint)]) == 0
    assert re.match(rf"{tmp_path}/best\.onnx, \d+\.\d MB\n", capsys.readouterr().out)
    assert load_restorer(tmp_path / "best.onnx")(Image.fromarray(character(40, 50))).size == (50, 40)
    assert export.main(["--checkpoint", str(checkpoint), "--format", "safetensors"]) == 0
    assert load_restorer(tmp_path / "best.safetensors", "torch")(Image.fromarray(character(40, 50))).size == (50, 40)
    assert export.main(["--checkpoint", str(checkpoint), "--output", str(tmp_path / "named.safetensors")]) == 0
    assert (tmp_path / "named.safetensors").read_bytes() == (tmp_path / "best.safetensors").read_bytes()
    content = (tmp_path / "best.onnx").read_bytes()
    assert export.main(["--checkpoint", str(checkpoint)]) == 1
    assert "exists already; pass --overwrite" in capsys.readouterr().err
    assert export.main(["--checkpoint", str(tmp_path / "none.pth"), "--output", str(tmp_path / "2.onnx")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert export.main(["--checkpoint", str(checkpoint), "--output", str(tmp_path / "2.pt")]) == 1
    assert "2.pt: the suffix is none of onnx, safetensors" in capsys.readouterr().err and not (tmp_path / "2.pt").exists()
    assert (tmp_path / "best.onnx").read_bytes() == content and not (tmp_path / "2.onnx").exists()


def test_the_mean_of_several_checkpoints(tmp_path, capsys):
    networks = [models.build("restorer_convnext_atto", img_size=32, latent_dim=32) for _ in range(2)]
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    settings = {"model": "restorer_convnext_atto", "img_size": 32, "in_chans": 1, "latent_dim": 32, "layer_scale": 1.0}
    for network_, file in zip(networks, files, strict=True):
        save_network(network_, settings, file)
    mean = tmp_path / "mean.safetensors"
    assert export.main(["--checkpoint", *map(str, files), "--output", str(mean)]) == 0
    for key, tensor in load_network(mean)[0].state_dict().items():
        a, b = (one.state_dict()[key] for one in networks)
        torch.testing.assert_close(tensor, ((a + b) / 2).to(tensor.dtype), rtol=0, atol=2e-3)  # stored in float16
    save_network(models.build("restorer_convnext_atto", img_size=32, latent_dim=16), {**settings, "latent_dim": 16}, files[0])
    capsys.readouterr()
    assert export.main(["--checkpoint", *map(str, files), "--output", str(tmp_path / "c.onnx")]) == 1
    assert "networks of different shapes have no mean" in capsys.readouterr().err


def test_a_bias_is_added_to_the_logits(tmp_path):
    checkpoint, files = tiny_checkpoint(tmp_path / "best.pth"), [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for source, file in ((checkpoint, files[0]), (files[0], files[1])):
        assert export.main(["--checkpoint", str(source), "--output", str(file), "--bias", "0.25"]) == 0
    (before, _), (after, settings) = load_network(checkpoint), load_network(files[1])
    x = torch.rand(2, before.in_chans, before.img_size, before.img_size)
    with torch.inference_mode():
        torch.testing.assert_close(after(x), before(x) + 0.5, rtol=0, atol=0.02)  # stored in float16
    assert settings["bias"] == 0.5


def test_torch_hub_loads_both_entry_points(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "best.pth")
    restorer = torch.hub.load(str(ROOT), "restorer", source="local", checkpoint=checkpoint, runtime="torch")
    assert isinstance(restorer, Restorer)
    network = torch.hub.load(str(ROOT), "network", "restorer_convnext_atto", source="local", img_size=32).eval()
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 1, 32, 32)


HUB = """
import builtins, os, sys

OWN = {"hubconf", "models", "datasets", "restoration", "util"}
imported, original = set(), builtins.__import__

def recording_import(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and globals and globals.get("__name__", "").partition(".")[0] in OWN:
        imported.add(name.partition(".")[0])
    return original(name, globals, locals, fromlist, level)

builtins.__import__ = recording_import
import hubconf
import numpy as np

hubconf.network("restorer_convnext_atto", img_size=32)
for runtime in ("torch", "onnx"):
    hubconf.restorer(sys.argv[1], runtime)(np.zeros((32, 32), np.uint8), char="一")
imported |= {"onnx", "onnxscript"} & sys.modules.keys()  # torch.onnx.export imports them
print(*imported - OWN - sys.stdlib_module_names)
"""


def test_torch_hub_dependencies_are_what_the_entry_points_import(tmp_path):
    command = [sys.executable, "-c", HUB, tiny_checkpoint(tmp_path / "best.pth", in_chans=2)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(hubconf.dependencies)


def test_the_example_script_restores_all_examples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    restorer = Restorer(network(lambda x: x[:, 0]), {"img_size": 64, "in_chans": 2})
    monkeypatch.setattr("restoration.pipeline.load_restorer", lambda: restorer)
    script = ROOT / "examples" / "from_python.py"
    exec(compile(script.read_text(encoding="utf-8"), script, "exec"), {"__file__": str(script)})
    names = {path.stem for path in script.parent.glob("*.png")}
    written = {path.stem for path in (tmp_path / "examples_restored").iterdir()}
    assert written == names | {f"{name}_confidence" for name in names} and len(names) == 8
    assert len(capsys.readouterr().out.splitlines()) == 8
    assert np.asarray(Image.open(tmp_path / "examples_restored" / "占.png")).mean() > 127  # dark strokes on light
