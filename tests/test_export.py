import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import export
from restoring import Restorer, load_restorer
from tests.pictures import character, tiny_checkpoint

ROOT = Path(export.__file__).parent


def test_a_checkpoint_becomes_a_file_that_restores(tmp_path, capsys):
    checkpoint = tiny_checkpoint(tmp_path / "best.pth")
    assert export.main(["--checkpoint", str(checkpoint)]) == 0
    assert re.match(rf"{tmp_path}/best\.onnx, \d+\.\d MB\n", capsys.readouterr().out)
    assert load_restorer(tmp_path / "best.onnx")(Image.fromarray(character(40, 50))).size == (50, 40)
    assert export.main(["--checkpoint", str(checkpoint), "--format", "safetensors"]) == 0
    assert load_restorer(tmp_path / "best.safetensors", "torch")(Image.fromarray(character(40, 50))).size == (50, 40)
    content = (tmp_path / "best.onnx").read_bytes()
    assert export.main(["--checkpoint", str(checkpoint)]) == 1
    assert "exists already; give --overwrite" in capsys.readouterr().err
    assert export.main(["--checkpoint", str(tmp_path / "none.pth"), "--out", str(tmp_path / "2.onnx")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "best.onnx").read_bytes() == content and not (tmp_path / "2.onnx").exists()


def test_torch_hub(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "best.pth")
    restorer = torch.hub.load(str(ROOT), "restorer", source="local", checkpoint=checkpoint, runtime="torch")
    assert isinstance(restorer, Restorer)
    network = torch.hub.load(str(ROOT), "network", "restorer_convnext_atto", source="local", img_size=32).eval()
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 1, 32, 32)


def test_the_example_script(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    restorer = Restorer(lambda x: x[:, 0], 64, in_chans=2)
    monkeypatch.setattr("restore.load_restorer", lambda: restorer)
    script = ROOT / "examples" / "from_python.py"
    exec(compile(script.read_text(), script, "exec"), {"__file__": str(script)})
    names = {path.stem for path in script.parent.glob("*.png")}
    made = {path.stem for path in (tmp_path / "examples_restored").iterdir()}
    assert made == names | {f"{name}_sureness" for name in names} and len(names) == 8
    assert len(capsys.readouterr().out.splitlines()) == 8
    assert np.asarray(Image.open(tmp_path / "examples_restored" / "占.png")).mean() > 127  # dark on light
