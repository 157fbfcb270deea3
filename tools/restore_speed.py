"""How fast pictures are restored: `tools/benchmark.py restore`."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

import engine
import models
import restore as script
from datasets.degradation import Degradation
from datasets.pack import open_pack
from datasets.pairs import HandwritingSet
from restoring import WEIGHTS, Restorer
from tools.measure import (
    Row,
    at_least,
    at_most,
    build_plain,
    forward_flops,
    in_turns,
    print_header,
    print_table,
    timed,
    trained_or_fresh,
    verdict,
)
from util import exported, images, metrics

CPU = torch.device("cpu")
LOADING = "import sys, torch, timm, models; models.load(sys.argv[1])"


def restore(args: Namespace) -> bool:
    """A picture from the shell; the exported network against eager fp32; a folder against the bare network."""
    import openvino  # after util.exported

    torch.set_num_threads(args.threads)
    print_header(CPU, openvino)
    with tempfile.TemporaryDirectory() as folder:
        return verdict(*cold(args, Path(folder)), *warm(args, Path(folder)))


def cold(args: Namespace, folder: Path) -> list[tuple[str, bool]]:
    """From the shell to the written picture, beside a script that imports torch and timm and loads the same weights."""
    root = Path(script.__file__).parent
    images.write_png(folder / "damaged.png", images.from_grey(np.random.default_rng(0).random((args.side, args.side))))
    ours = [root / "restore.py", folder / "damaged.png", folder / "restored.png", "--overwrite"]
    ways = {"a picture, from the shell": ours, "torch and timm, weights loaded": ["-c", LOADING, WEIGHTS]}
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(args.threads)}
    run = functools.partial(subprocess.run, check=True, env=environment)
    tasks = {name: timed(functools.partial(run, [sys.executable, *way]), CPU) for name, way in ways.items()}
    rows = {name: Row(seconds, 1) for name, seconds in in_turns(tasks, args.runs).items()}
    print_table(rows)
    ours, loading = (1 / row.speed for row in rows.values())
    return [
        at_most("from the shell {:.2f} s", ours, args.aim_cold),
        at_most("{:.2f} of loading with torch and timm", ours / loading, args.aim_cold_ratio),
    ]


def warm(args: Namespace, folder: Path) -> list[tuple[str, bool]]:
    """Pictures per second of the exported network, bare and with files around it, and of torch."""
    s, model = trained_or_fresh(args, in_chans=2)
    plain = build_plain(s).eval()
    plain.load_state_dict(model.state_dict())
    models.export(model, vars(s), folder / "network.onnx")
    ours, _ = exported.load(folder / "network.onnx")
    glyphs = HandwritingSet(open_pack(args.pack), "test", side=s.side, guide=s.in_chans == 2)
    sample = glyphs.batch(np.arange(args.pictures) % len(glyphs))
    damaged, clean = engine.network_input(sample, Degradation(args.preset, s.side, CPU), engine.EVALUATION_SEED, 0)
    x, outputs = damaged.numpy(), {}

    def run(name: str, run_batch, batch_size: int) -> None:
        parts = (x[i : i + batch_size] for i in range(0, len(x), batch_size))
        outputs[name] = torch.from_numpy(np.concatenate([run_batch(np.ascontiguousarray(part)) for part in parts]))[:, None]

    @torch.inference_mode()
    def bfloat16(x: np.ndarray) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return model(torch.from_numpy(x)).float().sigmoid()[:, 0].numpy()

    source, restorer = folder / "damaged", Restorer(ours, s.side, s.in_chans)
    for number, picture in enumerate(x[:, 0]):
        images.write_png(source / f"{number}.png", images.from_grey(picture))
    told = script.parse_arguments([str(source), str(folder / "restored"), "--overwrite"])
    jobs = script.plan(told.input, told.output)

    ways = {"eager fp32": models.runner(plain), "torch, bf16": bfloat16, "exported": ours}
    tasks = {f"{name}, batch {n}": functools.partial(run, name, way, n) for n in args.batch_size for name, way in ways.items()}
    tasks |= {
        "folder": lambda: list(script.restore_jobs(jobs, restorer, told)),
        f"exported, batch {script.BATCH}": functools.partial(run, "exported", ours, script.BATCH),
    }
    taken = in_turns({name: timed(task, CPU) for name, task in tasks.items()}, args.runs)
    rows = {name: Row(seconds, args.pictures, forward_flops(s)[0]) for name, seconds in taken.items()}
    print(f"{args.checkpoint or args.model}, side {s.side}, {args.pictures} pictures")
    print_table(rows)

    apart = {name: metrics.psnr(outputs[name], outputs["eager fp32"]).min().item() for name in ways if name != "eager fp32"}
    print("least alike to eager fp32: " + ", ".join(f"{name} {psnr:.1f} dB" for name, psnr in apart.items()))
    if args.checkpoint:
        scores = {name: metrics.psnr(outputs[name], clean).mean().item() for name in ways}
        print("restored: " + ", ".join(f"{name} {psnr:.3f} dB" for name, psnr in scores.items()))
    gains = {n: rows[f"exported, batch {n}"].speed / rows[f"eager fp32, batch {n}"].speed for n in args.batch_size}
    share = rows["folder"].speed / rows[f"exported, batch {script.BATCH}"].speed
    return [
        *(at_least(f"batch {n}: {{:.2f}} times eager fp32", gain, args.aim) for n, gain in gains.items()),
        at_least("{:.1f} dB apart", apart["exported"], args.aim_psnr),
        at_least("a folder {:.2f} of the bare rate", share, args.aim_folder),
    ]
