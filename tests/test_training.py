"""Training: gradients on two processes, complete runs under both launchers, and the content of a run folder."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import main_denoise_cae
import models
from engine import LOSSES
from models.files import init_from, load_network, save_network, save_tensors
from restoration.pipeline import Restorer, load_restorer
from tests.pictures import glyph_like
from util import checkpoint, distributed

ROOT = Path(__file__).parent.parent
SMALL = {"model": "restorer_convnext_atto", "img_size": 64, "epochs": 2, "samples_per_epoch": 24, "val_samples": 5,
         "warmup_epochs": 1, "batch_size": 4, "layer_scale": 1.0, "bf16": False, "ema_decay": 0.9, "log_every": 1}  # fmt: skip
TRAINED = {"model": "restorer_convnext_atto", "img_size": 32, "in_chans": 1, "latent_dim": 32, "layer_scale": 1.0}
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

GRADIENTS = """
import sys, torch, torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
import models
from util import distributed
name, out = sys.argv[1:3]
distributed.start("cpu")
torch.manual_seed(0)
model = models.build(name, img_size=64, ls_init_value=1.0).double().train()
x, clean = torch.rand(2, 8, 1, 64, 64, dtype=torch.float64)
if distributed.world_size() > 1:
    model = DistributedDataParallel(model, gradient_as_bucket_view=True)
part = slice(distributed.rank(), None, distributed.world_size())
F.mse_loss(model(x[part]).sigmoid(), clean[part]).backward()
model = getattr(model, "module", model)
buffers = {k: v for k, v in model.named_buffers()}
torch.save({**{k: p.grad for k, p in model.named_parameters()}, **buffers}, f"{out}.{distributed.rank()}")
distributed.stop()
"""


def torchrun(processes: int, *command: str, cwd=ROOT) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*launcher, *command],
        cwd=cwd,
        env={**ENV, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("name", ["cae_convnext_atto", "restorer_convnext_atto"])
def test_two_processes_give_the_gradients_of_one(tmp_path, name):
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    for processes in (1, 2):
        done = torchrun(processes, str(script), name, str(tmp_path / f"world{processes}"))
        assert done.returncode == 0, done.stderr
    one, first, second = (torch.load(tmp_path / file) for file in ("world1.0", "world2.0", "world2.1"))
    for key, expected in one.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], expected, rtol=1e-6, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


def flags(**settings) -> list[str]:
    settings = {**SMALL, **settings}
    return [
        part
        for key, value in settings.items()
        for part in ([f"--{key}", str(value)] if not isinstance(value, bool) else [f"--{key}" if value else f"--no-{key}"])
    ]


def test_content_of_the_run_folder(tiny_pack, tmp_path, capsys):
    assert main_denoise_cae.main(flags(data=tiny_pack, output_dir=tmp_path, device="cpu")) == 0
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["global_step"]) for row in rows] == [(1, 6), (2, 12)]
    assert all(0 < row["val_psnr"] < 60 and row["val_n"] == 5 for row in rows)
    text = (tmp_path / "config.yaml").read_text()
    assert yaml.safe_load(text)["img_size"] == 64
    assert all(word in text for word in ("commit", "torch", "split", "checksum"))
    assert list(tmp_path.glob("events.out.tfevents.*"))
    for name in ("last.pth", "best.pth"):
        model, settings = load_network(tmp_path / name)
        assert settings["model"] == SMALL["model"] and model(torch.rand(1, 1, 64, 64)).shape == (1, 1, 64, 64)


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "vendor", "fast"),
    [(True, True, "GenuineIntel", True), (False, True, "GenuineIntel", False), (False, True, "AuthenticAMD", True),
     (False, False, "AuthenticAMD", False)],
)  # fmt: skip
def test_processors_that_are_faster_in_bf16(monkeypatch, amx, avx512_bf16, vendor, fast):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(distributed, "processor", lambda: f"a name, {vendor}")
    assert distributed.has_bf16(torch.device("cpu")) == fast
    assert distributed.has_bf16(torch.device("cuda"))


@pytest.mark.parametrize("has", [True, False])
def test_bf16_is_the_default_where_the_processor_has_it(monkeypatch, has):
    monkeypatch.setattr(distributed, "has_bf16", lambda device: has)
    for passed, used in ((None, has), (True, True), (False, False)):
        s, seen = argparse.Namespace(device="cpu", local_rank=None, bf16=passed), []
        assert distributed.run(lambda s, device, seen=seen: seen.append(s.bf16), s) == 0
        assert seen == [used]


def test_accumulated_batches_are_one_update(tiny_pack, tmp_path):
    assert main_denoise_cae.main(flags(data=tiny_pack, output_dir=tmp_path, device="cpu", accum_iter=3)) == 0
    assert checkpoint.read(tmp_path / "last.pth")["global_step"] == 4


@pytest.mark.parametrize("launcher", ["torch.distributed.run", "torch.distributed.launch"])
def test_both_launchers(tiny_pack, tmp_path, launcher):
    command = [sys.executable, "-m", launcher, "--nproc_per_node=2", "--master_port=29577", "main_denoise_cae.py"]
    out = tmp_path / "run"
    done = subprocess.run([*command, *flags(data=tiny_pack, output_dir=out, device="cpu", in_chans=4)], cwd=ROOT, env=ENV,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "on 2 × cpu" in done.stdout
    assert len((out / "log.jsonl").read_text().splitlines()) == 2


def test_channels_that_the_trained_network_lacks_change_nothing_at_first(tmp_path):
    torch.manual_seed(0)
    size = {"img_size": 32, "latent_dim": 32, "ls_init_value": 1.0}
    trained, model = (models.build("restorer_convnext_atto", in_chans=chans, **size).eval() for chans in (1, 4))
    save_network(trained, TRAINED, tmp_path / "a.safetensors")
    assert init_from(model, tmp_path / "a.safetensors") == []
    x = torch.rand(2, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), trained(x[:, :1]), rtol=0.02, atol=0.02)  # stored in float16


def test_stages_that_the_trained_network_lacks_start_anew(tmp_path):
    size = {"img_size": 32, "latent_dim": 32}
    before, model = (models.build("restorer_convnext_atto", **size) for _ in range(2))
    tensors = {name: x for name, x in before.state_dict().items() if not name.startswith(("fine_encoder.", "stages.4."))}
    tensors["to_logits.weight"] = torch.zeros(1, 16, 3, 3)  # another shape
    save_tensors(tensors, "network", TRAINED, tmp_path / "a.safetensors")
    anew = init_from(model, tmp_path / "a.safetensors")
    assert {".".join(name.split(".")[:2]) for name in anew} == {"fine_encoder.0", "fine_encoder.1", "stages.4", "to_logits.weight"}
    for key, tensor in model.state_dict().items():
        if key not in anew:
            torch.testing.assert_close(tensor, before.state_dict()[key], rtol=1e-3, atol=1e-4)


def test_finetuning_starts_from_a_trained_network_of_another_img_size(tiny_pack, tmp_path, capsys):
    small, large = (
        {"data": tiny_pack, "output_dir": tmp_path / str(img_size), "device": "cpu", "img_size": img_size} for img_size in (32, 64)
    )
    assert main_denoise_cae.main(flags(**small, epochs=1)) == 0
    frozen = {"epochs": 1, "samples_per_epoch": 4, "lr": 1e-12, "min_lr": 0, "finetune": tmp_path / "32" / "last.pth"}
    assert main_denoise_cae.main(flags(**large, **frozen)) == 0
    before, after = (dict(load_network(tmp_path / size / "last.pth")[0].named_parameters()) for size in ("32", "64"))
    for key in before:  # the norms' statistics move
        expected = before[key].expand(-1, -1, 2, 2) if key == "unpool.weight" else before[key]
        torch.testing.assert_close(after[key], expected, msg=key)

    large["output_dir"] = tmp_path / "another"
    assert main_denoise_cae.main(flags(**large, **frozen) + ["--latent_dim", "48"]) == 1
    assert "last.pth: cannot initialise this network from restorer_convnext_atto, in_chans 1" in capsys.readouterr().err
    assert main_denoise_cae.main(flags(**large, **frozen, pretrained=True)) == 1
    assert "--pretrained and --finetune both set the initial weights" in capsys.readouterr().err


def test_without_a_compiler_a_run_warns_and_is_eager(tiny_pack, tmp_path, monkeypatch, capsys):
    def fail(model):
        raise RuntimeError("no compiler here\nand much more")

    monkeypatch.setattr(torch.nn.Module, "compile", fail)
    settings = {"data": tiny_pack, "output_dir": tmp_path, "device": "cpu", "compile": True, "epochs": 1, "samples_per_epoch": 4}
    assert main_denoise_cae.main(flags(**settings)) == 0
    assert "warning: torch.compile failed, running eagerly: no compiler here\n" in capsys.readouterr().err


def test_training_on_two_sizes(tiny_pack, tmp_path, capsys):
    """The restorer of a run with small pictures restores characters of few pixels in smaller squares."""
    both = {"small_size": 32, "img_size": 64, "model": "restorer_convnext_atto", "in_chans": 4}
    settings = {"data": tiny_pack, "output_dir": tmp_path, "device": "cpu", "epochs": 1, "samples_per_epoch": 8, **both}
    assert main_denoise_cae.main(flags(**settings)) == 0
    restorer = load_restorer(tmp_path / "last.pth", "torch", data=tiny_pack)
    assert [restorer.for_edge(edge).img_size for edge in (20, 32, 33)] == [32, 32, 64]
    assert restorer.for_edge(20) is restorer.for_edge(32)
    prepared = restorer.for_edge(20).prepare(Image.fromarray(np.eye(20, dtype=np.uint8) * 255))
    assert restorer.for_edge(20).restore([prepared])[0].square.shape == (32, 32)
    prepared, alone = restorer.prepare(prepared.shown), Restorer(restorer.predict, restorer.settings, tiny_pack)
    means = [one.restore([prepared])[0].mean for one in (restorer, alone)]
    assert not np.allclose(*means, atol=1e-4)  # the smaller size is asked
    assert main_denoise_cae.main(flags(**{**settings, "output_dir": tmp_path / "b", "small_size": 40})) == 1
    assert "--small_size must be a multiple of 32" in capsys.readouterr().err


def test_the_flags():
    """Scripts depend on these names."""
    parser = main_denoise_cae.build_parser()
    names = [action.dest for action in parser._actions if action.help != "==SUPPRESS==" and action.dest != "help"]
    assert names == [
        "config",
        *("model", "img_size", "small_size", "in_chans", "guide_drop", "state_drop", "latent_dim", "layer_scale"),
        *("pretrained", "finetune"),
        *("data", "preset", "augment", "brush", "workers", "samples_per_epoch", "val_samples"),
        *("epochs", "batch_size", "accum_iter", "loss", "lr", "min_lr", "warmup_epochs", "weight_decay", "clip_grad", "ema_decay"),
        *("bf16", "compile", "seed"),
        *("output_dir", "resume", "device", "threads", "log_every", "save_minutes", "max_minutes", "keep_every"),
    ]
    assert len(names) < 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere.pack"}, "no handwriting set at nowhere.pack"),
        ({"preset": "marble"}, "no damage preset 'marble'"),
        ({"batch_size": 4000}, "lower --batch_size"),
        ({"lr": 4e-3, "min_lr": 1e-3, "batch_size": 8}, "--min_lr 0.001 is above the peak learning rate, 0.000125"),
        ({"resume": "nowhere.pth"}, "no checkpoint at nowhere.pth"),
        ({"finetune": "nowhere.safetensors"}, "no weights at nowhere.safetensors"),
    ],
)
def test_an_invalid_setting_is_one_error_line(tiny_pack, tmp_path, capsys, change, message):
    assert main_denoise_cae.main(flags(**{"data": tiny_pack, "output_dir": tmp_path / "run", "device": "cpu", **change})) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path):
    for name, content in {"noise.pth": b"noise", "empty.pth": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_network(tmp_path / name)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_near_0_only_for_the_right_picture(loss):
    clean = (glyph_like(4) > 0.45).float()
    right, wrong = (LOSSES[loss](logits, clean) for logits in ((clean - 0.5) * 40, (0.5 - clean) * 40))
    assert right < 0.01 < wrong


@pytest.mark.parametrize(("pairs", "in_chans"), [(False, 1), (True, 4)])
def test_training_on_folders(tmp_path, pairs, in_chans):
    pictures = (glyph_like(60, img_size=32).numpy()[:, 0] * 255).astype("uint8")
    for i, picture in enumerate(pictures):
        char = chr(ord("一") + i)
        for place in (f"degraded/{char}.png", f"clean/{char}.png") if pairs else (f"{char}/1.png",):
            path = tmp_path / "data" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    settings = {"device": "cpu", "img_size": 32, "in_chans": in_chans, "workers": 1, "epochs": 1, "val_samples": 0}
    assert main_denoise_cae.main(flags(data=tmp_path / "data", output_dir=tmp_path / "run", **settings)) == 0
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text())["global_step"] == 6
