"""The ablation study: one thing changed at a time, at a small fixed budget, each with several seeds.

    python tools/ablation.py run --output_dir runs/ablation --real DIR [DIR …] --damaged DIR [DIR …]
    python tools/ablation.py write                       # docs/ablation/*.json → docs/ablation.md and docs/ablation.png

`run` trains and scores what has no result yet, so it can be stopped and started again; `--only guide` runs the rows of one
factor. Folders of real characters are optional: clean ones (`--real`; a picture twice as wide as high: its right half), which are
damaged for scoring, and damaged ones named by their character (`--damaged`), which the recogniser reads. `write` keeps what stands
in the document above its mark.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import models
from datasets.degradation import Degradation, sample_keys, scored_preset
from datasets.pack import open_pack, write_pack
from engine import EVALUATION_SEED
from restoring import PACK, Restorer
from scoring import NetworkRestorer
from tools.legibility import legibility
from tools.measure import forward_flops, hardware
from tools.results import markdown
from util import images, metrics
from util.files import replacing
from util.version import commit

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DOCUMENT, PLOT = ROOT / "docs" / "ablation", ROOT / "docs" / "ablation.md", ROOT / "docs" / "ablation.png"
MARK = "<!-- below: written by tools/ablation.py write -->"
SCORED = ("mixed", "classic")  # presets
COST = ("M parameters", "GFLOP", "CPU, ms")  # columns
NAMES = {"damaged": "degraded", "restored": "restored"}  # here and in evaluate.py's results
AUTOENCODER = {"model": "cae_convnext_atto", "layer_scale": 0.3, "lr": 3e-3}  # at the restorer's rate it does not learn
ONE_HAND = {"epochs": 8, "samples_per_epoch": 3200, "warmup_epochs": 1}  # it has not 6,400 glyphs: more epochs, as many pictures


@dataclass(frozen=True)
class Variant:
    """What is trained: the base (configs/ablation.yaml) but for these settings; `hands`: how many hands it sees, 0: all."""

    factor: str
    value: str
    settings: dict = field(default_factory=dict)
    hands: int = 0
    guided: bool = False  # scored with its guide

    @property
    def name(self) -> str:
        return re.sub(r"[^\w-]+", "_", f"{self.factor}-{self.value}")


BASE = Variant("base", "restorer atto, 768, mixed, all hands, BCE")
STUDY = [
    BASE,
    *(Variant("bottleneck", f"restorer {n}", {"latent_dim": n}) for n in (48, 192)),
    *(Variant("bottleneck", f"autoencoder {n}", {**AUTOENCODER, "latent_dim": n}) for n in (48, 192, 768)),
    *(Variant("size", f"restorer {size}", {"model": f"restorer_convnext_{size}"}) for size in ("femto", "pico")),
    Variant("damage", "classic", {"preset": "classic"}),
    Variant("hands", "one hand", ONE_HAND, hands=1),
    Variant("hands", "four hands", hands=4),
    Variant("augmentation", "half of the characters", {"augment": 0.5}),
    Variant("augmentation", "every character", {"augment": 1.0}),
    Variant("loss", "MSE", {"loss": "mse"}),
    Variant("guide", "trained with it, scored without", {"in_chans": 2}),
    Variant("guide", "trained and scored with it", {"in_chans": 2}, guided=True),
]


# --- run ----------------------------------------------------------------------------------------------------------------


def few_hands(pack_path: Path, hands: int, folder: Path) -> Path:
    """A pack with the first so many training hands of different families; what is held out and the guide stay."""
    path = folder / f"{hands}_hands.pack"
    if not path.is_file():
        pack = open_pack(pack_path)
        first = {}
        for number, hand in enumerate(pack.hands):
            if hand.role == "train" and hand.family not in first and len(first) < hands:
                first[hand.family] = number
        chosen = [number for number, hand in enumerate(pack.hands) if hand.role != "train" or number in first.values()]
        rows = np.isin(pack.hand, chosen)
        write_pack(
            path, side=pack.side, hands=[pack.hands[number] for number in chosen], meta=pack.meta, bits=pack.bits[rows],
            hand=np.searchsorted(chosen, pack.hand[rows]).astype(np.uint8),
            **{name: getattr(pack, name)[rows] for name in ("character", "form", "group")},
        )  # fmt: skip
    return path


def launch(processes: int, script: str, *flags: object) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, script, *flags]
    subprocess.run([sys.executable, *map(str, command)], check=True, cwd=ROOT)


def train(variant: Variant, seed: int, args: argparse.Namespace) -> Path:
    """The checkpoint of the variant, after training it to its end where that was not done."""
    own = Variant(variant.factor, "trained", variant.settings).name if variant.factor == "guide" else variant.name
    folder = args.output_dir / f"{own}-{seed}"
    data = few_hands(args.data, variant.hands, args.output_dir) if variant.hands else args.data
    named = {**variant.settings, "data": data, "seed": seed, "output_dir": folder, "resume": "auto"}
    flags = [word for key, value in named.items() for word in (f"--{key}", value)]
    launch(args.processes, "main_denoise_cae.py", "--config", "configs/ablation.yaml", *flags)
    return folder / "last.pth"


def scores(variant: Variant, checkpoint: Path, args: argparse.Namespace) -> dict:
    """{preset: {"seen_hands", "unseen_hands": {"damaged", "restored": {score: mean}}}} on characters held out."""
    found = {}
    for preset in SCORED:
        out = checkpoint.parent / f"eval_{preset}{'_guided' * variant.guided}"
        flags = ["--preset", preset, "--limit", args.limit, "--guide" if variant.guided else "--no-guide"]
        launch(args.processes, "evaluate.py", "--checkpoint", checkpoint, "--data", args.data, "--output_dir", out, *flags)
        told = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        keys = [key for key in ("top1", "psnr", "f1") if key in told["restored"]]
        found[preset] = {
            hands: {"n": part["n"]} | {new: {key: part[old][key] for key in keys} for new, old in NAMES.items()}
            for hands, part in told["by_split"].items()
        }
    return found


@torch.inference_mode()
def real_scores(model: torch.nn.Module, folders: list[Path]) -> dict:
    """{folder: {"n", "damaged", "restored": {"psnr", "f1"}}} on clean real characters, damaged by the preset "rubbing"."""
    found, side = {}, model.img_size
    for folder in folders:
        clean = []
        for path in images.pictures_in(folder):
            x = images.read_grey(path)
            x = x[:, x.shape[0] :] if x.shape[1] == 2 * x.shape[0] else x
            x = 1 - x if images.find_polarity(x) == "dark" else x
            clean.append(images.to_square(x, images.whole(*x.shape), side, contrast=True))
        y = torch.from_numpy(np.stack(clean))[:, None]
        damage, restorer = Degradation(scored_preset("rubbing"), side, torch.device("cpu")), NetworkRestorer(model)
        damaged, y = damage(y, sample_keys(EVALUATION_SEED, 0, np.arange(len(y))))
        restored = torch.cat([restorer(None, part, None) for part in damaged.split(64)])
        of = {"damaged": damaged, "restored": restored}
        measures = {"psnr": metrics.psnr, "f1": metrics.ink_f1}
        found[folder.name] = {"n": len(y)} | {
            name: {key: measure(picture, y).mean().item() for key, measure in measures.items()} for name, picture in of.items()
        }
    return found


def cost(model: torch.nn.Module, settings: dict) -> dict:
    """{"parameters", "gflops" of a picture, "ms" of a picture in batches of 16, the median of 5 on this machine's CPU}."""
    flops, parameters = forward_flops(argparse.Namespace(**settings))
    x, times = np.zeros((16, model.in_chans, model.img_size, model.img_size), np.float32), []
    for _ in range(6):
        began = time.perf_counter()
        models.runner(model)(x)
        times.append((time.perf_counter() - began) / len(x) * 1e3)
    return {"parameters": parameters, "gflops": flops / 1e9, "ms": float(np.median(times[1:]))}


def run(args: argparse.Namespace) -> None:
    for seed in range(args.seeds):
        for variant in STUDY:
            result = RESULTS / f"{variant.name}-{seed}.json"
            if result.is_file() or args.only not in (None, variant.factor):
                continue
            print(f"{variant.factor}: {variant.value}, seed {seed}", flush=True)
            checkpoint = train(variant, seed, args)
            model, own = models.load(checkpoint)
            restorer = Restorer(models.runner(model), model.img_size, model.in_chans, args.data)
            told = {
                "factor": variant.factor, "value": variant.value, "seed": seed,
                "settings": variant.settings, "guided": variant.guided,
                "pictures": own["epochs"] * own["samples_per_epoch"], "commit": commit(), "machine": hardware(torch.device("cpu")),
                **cost(model, own), "scores": scores(variant, checkpoint, args), "real": real_scores(model, args.real),
                "read": {folder.name: legibility(restorer, folder, args.data) for folder in args.damaged},
            }  # fmt: skip
            with replacing(result) as part:
                part.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# --- write --------------------------------------------------------------------------------------------------------------


def mean_of(told: dict, preset: str, picture: str, key: str) -> float:
    """A score of the damaged or the restored pictures, over seen and unseen hands together."""
    parts = told["scores"][preset].values()
    return sum(part["n"] * part[picture][key] for part in parts) / sum(part["n"] for part in parts)


def gain(told: dict, preset: str, key: str = "psnr") -> float:
    """Restored − damaged, over seen and unseen hands together."""
    return mean_of(told, preset, "restored", key) - mean_of(told, preset, "damaged", key)


def spread(values: list[float], form: str = "{:.2f}") -> str:
    """Mean, and least – most of the seeds."""
    return f"{form.format(mean(values))} [{form.format(min(values))}, {form.format(max(values))}]"


def columns(runs: list[dict]) -> dict[str, str]:
    """The cells of a row: what one variant's seeds reached."""
    unseen = [told["scores"]["mixed"]["unseen_hands"] for told in runs]
    cells = {
        "M parameters": f"{runs[0]['parameters'] / 1e6:.1f}",
        "GFLOP": f"{runs[0]['gflops']:.2f}",
        "CPU, ms": f"{min(told['ms'] for told in runs):.1f}",  # more than that is other work beside it
        "mixed, dB gained": spread([gain(told, "mixed") for told in runs]),
        "unseen hands": spread([part["restored"]["psnr"] - part["damaged"]["psnr"] for part in unseen]),
        "ink F1 gained": spread([gain(told, "mixed", "f1") for told in runs], "{:.3f}"),
        "classic, dB gained": spread([gain(told, "classic") for told in runs]),
    }
    if all("top1" in part["restored"] for part in unseen):
        cells["read, points gained"] = spread([100 * gain(told, "mixed", "top1") for told in runs], "{:.1f}")
    for folder in runs[0]["real"]:
        values = [told["real"][folder]["restored"]["psnr"] - told["real"][folder]["damaged"]["psnr"] for told in runs]
        cells[f"{folder}, dB gained"] = spread(values)
    for folder in runs[0]["read"]:
        five = [100 * told["read"][folder]["told" if told["guided"] else "restored"][1] for told in runs]
        cells[f"{folder}, read among five, %"] = spread(five, "{:.1f}")
    return cells


def table(rows: dict[str, dict[str, str]]) -> list[str]:
    heads = list(next(iter(rows.values())))
    if len({row["GFLOP"] for row in rows.values()}) == 1:  # what they cost tells nothing
        heads = [head for head in heads if head not in COST]
    return markdown(heads, {name: [row.get(head, "") for head in heads] for name, row in rows.items()})


def write(args: argparse.Namespace) -> None:
    found: dict[str, list[dict]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(told["value"], []).append(told)
    if BASE.value not in found:
        raise FileNotFoundError(f"{RESULTS}: no result of the base; `run` makes them")
    one = found[BASE.value][0]
    commits = sorted({told["commit"] for runs in found.values() for told in runs})
    before = [f"{preset} {mean_of(one, preset, 'damaged', 'psnr'):.2f} dB" for preset in SCORED]
    before += [f"{folder} {told['damaged']['psnr']:.2f} dB" for folder, told in one["real"].items()]
    before += [f"{folder} {100 * told['damaged'][1]:.1f} % read among five" for folder, told in one["read"].items()]
    n = {hands: part["n"] for hands, part in one["scores"]["mixed"].items()}
    told = (
        f"{len(found[BASE.value])} seeds, each {one['pictures']:,} pictures at side 64; cells: mean [least, most] of the seeds, "
        f"of milliseconds the least. Scored on characters held out, {n['seen_hands']} in seen and {n['unseen_hands']} in unseen "
        f"hands; before restoring: {', '.join(before)}. Machine: {one['machine']}; commits {', '.join(commits)}."
    )
    lines = [MARK, "", *textwrap.wrap(told, 140)]
    for factor in dict.fromkeys(variant.factor for variant in STUDY if variant is not BASE):
        values = [variant.value for variant in STUDY if variant.factor == factor and variant.value in found]
        if values:
            rows = {value: columns(found[value]) for value in (BASE.value, *values)}
            lines += ["", f"## {factor.capitalize()}", "", *table(rows)]
    lines += ["", "![complexity and performance](ablation.png)", ""]
    above = DOCUMENT.read_text(encoding="utf-8").split(MARK)[0] if DOCUMENT.is_file() else "# What helps: an ablation study\n\n"
    with replacing(DOCUMENT) as part:
        part.write_text(above + "\n".join(lines), encoding="utf-8")
    plot(found)


def plot(found: dict[str, list[dict]]) -> None:
    """The complexity–performance curve, and what the bottleneck's size does to both networks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (by_cost, by_latent) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")

    def line(axes: pyplot.Axes, points: list[tuple[float, list[dict]]], **style: str) -> None:
        points = sorted(points, key=lambda point: point[0])
        gains = [[gain(told, "mixed") for told in runs] for _, runs in points]
        middle = np.array([mean(values) for values in gains])
        ends = np.array([(min(values), max(values)) for values in gains]).T
        axes.errorbar([at for at, _ in points], middle, abs(ends - middle), capsize=3, **style)

    base = found[BASE.value]
    sizes = {"atto": base} | {value.split()[1]: runs for value, runs in found.items() if runs[0]["factor"] == "size"}
    line(by_cost, [(runs[0]["gflops"], runs) for runs in sizes.values()], marker="o")
    for size, runs in sizes.items():
        at = (runs[0]["gflops"], mean(gain(told, "mixed") for told in runs))
        by_cost.annotate(f"{size}, {runs[0]['parameters'] / 1e6:.0f} M", at, xytext=(6, -12), textcoords="offset points")
    for network, mark in (("restorer", "o"), ("autoencoder", "s")):
        rows = [runs for value, runs in found.items() if runs[0]["factor"] == "bottleneck" and value.startswith(network)]
        points = [(runs[0]["settings"]["latent_dim"], runs) for runs in rows] + [(768, base)] * (network == "restorer")
        line(by_latent, points, marker=mark, label=network)
    by_cost.set(xlabel="GFLOP a picture", ylabel="PSNR gained on mixed, dB", title="Size of the restorer")
    by_cost.margins(0.3)
    by_latent.set(xlabel="numbers in the bottleneck", xscale="log", title="Bottleneck, size atto")
    by_latent.set_xticks((48, 192, 768), ("48", "192", "768"))
    by_latent.minorticks_off()
    by_latent.legend()
    with replacing(PLOT) as part:
        figure.savefig(part, format="png", dpi=110)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="train and score what has no result yet")
    one.set_defaults(work=run)
    one.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "ablation")
    one.add_argument("--data", type=Path, default=PACK)
    one.add_argument("--real", type=Path, nargs="*", default=[], metavar="DIR", help="folders of clean real characters")
    one.add_argument("--damaged", type=Path, nargs="*", default=[], metavar="DIR", help="folders of damaged real characters")
    one.add_argument("--only", choices=sorted({variant.factor for variant in STUDY}), help="this factor alone")
    one.add_argument("--seeds", type=int, default=2)
    one.add_argument("--limit", type=int, default=512, help="pictures scored, of each preset")
    one.add_argument("--processes", type=int, default=2)
    commands.add_parser("write", help="make the document out of the results").set_defaults(work=write)
    args = parser.parse_args(arguments)
    try:
        args.work(args)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
