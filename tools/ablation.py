"""The ablation study: one thing is changed at a time, at a small fixed budget, each with several seeds.

    python tools/ablation.py run --output_dir runs/ablation --real_clean DIR [DIR …] --real_degraded DIR [DIR …]
    python tools/ablation.py write                       # docs/ablation/*.json → docs/ablation.md and docs/ablation.png

`run` trains and scores everything that has no result yet, so it can be stopped and started again; `--only guide` runs one factor.
Folders of real characters are optional: clean ones, which are degraded for scoring (of a picture twice as wide as high, the right
half), and degraded ones, named by their character, for the recogniser. `write` keeps the part of the document above its mark.
"""

import argparse
import json
import re
import subprocess
import sys
import textwrap
import timeit
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.degradation import Degradation, scored_preset
from datasets.pack import open_pack, write_pack
from datasets.pairs import EVALUATION_SEED
from datasets.rng import sample_keys
from evaluate import RECOGNISER
from evaluation.predictors import NetworkPredictor
from evaluation.real import GUIDED, score_real
from models.files import load_network, predict_fn
from models.recogniser import load_recogniser
from restoration.pipeline import PACK, ROOT, Restorer
from tools.results import markdown
from tools.speed import forward_flops, hardware
from util import images, metrics, squares
from util.files import replacing
from util.version import commit

RESULTS, DOCUMENT, PLOT = ROOT / "docs" / "ablation", ROOT / "docs" / "ablation.md", ROOT / "docs" / "ablation.png"
MARK = "<!-- below: written by tools/ablation.py write -->"
SCORED = ("mixed", "classic")  # presets
COST = ("M parameters", "GFLOP", "CPU, ms")  # columns
AUTOENCODER = {"model": "cae_convnext_atto", "layer_scale": 0.3, "lr": 3e-3}  # it does not learn at the restorer's learning rate
ONE_HAND = {"epochs": 8, "samples_per_epoch": 3200, "warmup_epochs": 1}  # fewer than 6,400 glyphs: more epochs, as many pictures


@dataclass(frozen=True)
class Variant:
    """A training: `settings` override configs/ablation.yaml; `hands` limits the number of training hands, 0 uses all."""

    factor: str
    value: str
    settings: dict = field(default_factory=dict)
    hands: int = 0
    guided: bool = False  # scored with the guide

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
    Variant("guide", "trained with it, scored without", {"in_chans": 4}),
    Variant("guide", "trained and scored with it", {"in_chans": 4}, guided=True),
]


def few_hands(pack_path: Path, hands: int, folder: Path) -> Path:
    """A pack with the first N training hands of different families, all held-out hands and the guide."""
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
            path, img_size=pack.img_size, hands=[pack.hands[number] for number in chosen], meta=pack.meta, bits=pack.bits[rows],
            hand=np.searchsorted(chosen, pack.hand[rows]).astype(np.uint8),
            **{name: getattr(pack, name)[rows] for name in ("character", "form", "group")},
        )  # fmt: skip
    return path


def launch(processes: int, script: str, *flags: object) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, script, *flags]
    subprocess.run([sys.executable, *map(str, command)], check=True, cwd=ROOT)


def train(variant: Variant, seed: int, args: argparse.Namespace) -> Path:
    """Trains the variant to its end, or resumes its training; returns the checkpoint."""
    trained = Variant(variant.factor, "trained", variant.settings) if variant.factor == "guide" else variant
    folder = args.output_dir / f"{trained.name}-{seed}"
    data = few_hands(args.data, variant.hands, args.output_dir) if variant.hands else args.data
    settings = {**variant.settings, "data": data, "seed": seed, "output_dir": folder, "resume": "auto"}
    flags = [word for key, value in settings.items() for word in (f"--{key}", value)]
    launch(args.processes, "main_denoise_cae.py", "--config", "configs/ablation.yaml", *flags)
    return folder / "last.pth"


def held_out_scores(variant: Variant, checkpoint: Path, args: argparse.Namespace) -> dict:
    """{preset: {"seen_hands", "unseen_hands": {"n", "degraded", "restored": {score: mean}}}} of the bare network."""
    scores = {}
    for preset in SCORED:
        out = checkpoint.parent / f"eval_{preset}{'_guided' * variant.guided}"
        flags = ["--preset", preset, "--limit", args.limit, "--guide" if variant.guided else "--no-guide", "--network_only"]
        launch(args.processes, "evaluate.py", "--checkpoint", checkpoint, "--data", args.data, "--output_dir", out, *flags)
        result = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        keys = [key for key in ("top1", "psnr", "f1") if key in result["restored"]]
        scores[preset] = {
            split: {"n": part["n"], **{name: {key: part[name][key] for key in keys} for name in ("degraded", "restored")}}
            for split, part in result["by_split"].items()
        }
    return scores


@torch.inference_mode()
def real_clean_scores(model: torch.nn.Module, folders: list[Path]) -> dict:
    """{folder: {"n", "degraded", "restored": {"psnr", "f1"}}} on clean real characters, degraded by the preset "rubbing"."""
    scores, img_size = {}, model.img_size
    damage, restore = Degradation(scored_preset("rubbing"), img_size, torch.device("cpu")), NetworkPredictor(model)
    for folder in folders:
        clean = []
        for path in images.pictures_in(folder):
            x = images.read_grey(path)
            x = x[:, x.shape[0] :] if x.shape[1] == 2 * x.shape[0] else x
            x = 1 - x if squares.find_polarity(x) == "dark" else x
            clean.append(squares.to_square(x, squares.whole(*x.shape), img_size, contrast=True))
        y = torch.from_numpy(np.stack(clean))[:, None]
        degraded, y = damage(y, sample_keys(EVALUATION_SEED, 0, np.arange(len(y))))
        restored = torch.cat([restore(None, part, None)[0] for part in degraded.split(64)])
        scores[folder.name] = {"n": len(y)} | {
            name: {"psnr": metrics.psnr(x, y).mean().item(), "f1": metrics.ink_f1(x, y).mean().item()}
            for name, x in (("degraded", degraded), ("restored", restored))
        }
    return scores


def real_degraded_scores(model: torch.nn.Module, settings: dict, args: argparse.Namespace) -> dict:
    """{folder: the result of `evaluation.real.score_real`}."""
    if not args.real_degraded:
        return {}
    restorer, pack, recogniser = Restorer(predict_fn(model), settings, args.data), open_pack(args.data), load_recogniser(RECOGNISER)
    return {folder.name: score_real(restorer, folder, pack, {"": recogniser}) for folder in args.real_degraded}


def cost(model: torch.nn.Module, settings: dict) -> dict:
    """{"parameters", "gflops" per picture, "ms" per picture in batches of 16: median of 5 runs on this machine's CPU}."""
    flops, parameters = forward_flops(settings)
    x = np.zeros((16, model.in_chans, model.img_size, model.img_size), np.float32)
    seconds = timeit.repeat(lambda: predict_fn(model)(x), number=1, repeat=6)[1:]
    return {"parameters": parameters, "gflops": flops / 1e9, "ms": float(np.median(seconds)) / len(x) * 1e3}


def run(args: argparse.Namespace) -> None:
    for seed in range(args.seeds):
        for variant in STUDY:
            path = RESULTS / f"{variant.name}-{seed}.json"
            if path.is_file() or args.only not in (None, variant.factor):
                continue
            print(f"{variant.factor}: {variant.value}, seed {seed}", flush=True)
            checkpoint = train(variant, seed, args)
            model, settings = load_network(checkpoint)
            result = {
                "factor": variant.factor, "value": variant.value, "seed": seed,
                "settings": variant.settings, "guided": variant.guided,
                "pictures": settings["epochs"] * settings["samples_per_epoch"], "commit": commit(),
                "machine": hardware(torch.device("cpu")), **cost(model, settings),
                "scores": held_out_scores(variant, checkpoint, args), "real_clean": real_clean_scores(model, args.real_clean),
                "real_degraded": real_degraded_scores(model, settings, args),
            }  # fmt: skip
            with replacing(path) as part:
                part.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def mean_of(result: dict, preset: str, picture: str, key: str) -> float:
    """A score of the degraded or the restored pictures, over seen and unseen hands together."""
    parts = result["scores"][preset].values()
    return sum(part["n"] * part[picture][key] for part in parts) / sum(part["n"] for part in parts)


def gain(result: dict, preset: str, key: str = "psnr") -> float:
    """Restored − degraded, over seen and unseen hands together."""
    return mean_of(result, preset, "restored", key) - mean_of(result, preset, "degraded", key)


def spread(values: list[float], form: str = "{:.2f}") -> str:
    """Mean [min, max] over the seeds."""
    return f"{form.format(mean(values))} [{form.format(min(values))}, {form.format(max(values))}]"


def columns(runs: list[dict]) -> dict[str, str]:
    """The cells of a variant's row, from the results of its seeds."""
    unseen = [result["scores"]["mixed"]["unseen_hands"] for result in runs]
    cells = {
        "M parameters": f"{runs[0]['parameters'] / 1e6:.1f}",
        "GFLOP": f"{runs[0]['gflops']:.2f}",
        "CPU, ms": f"{min(result['ms'] for result in runs):.1f}",  # the least: other work on the machine only adds to it
        "mixed, dB gained": spread([gain(result, "mixed") for result in runs]),
        "unseen hands, dB gained": spread([part["restored"]["psnr"] - part["degraded"]["psnr"] for part in unseen]),
        "ink F1 gained": spread([gain(result, "mixed", "f1") for result in runs], "{:.3f}"),
        "classic, dB gained": spread([gain(result, "classic") for result in runs]),
    }
    if all("top1" in part["restored"] for part in unseen):
        cells["top-1, points gained"] = spread([100 * gain(result, "mixed", "top1") for result in runs], "{:.1f}")
    for folder in runs[0]["real_clean"]:
        parts = [result["real_clean"][folder] for result in runs]
        cells[f"{folder}, dB gained"] = spread([part["restored"]["psnr"] - part["degraded"]["psnr"] for part in parts])
    for folder in runs[0]["real_degraded"]:
        method = GUIDED if runs[0]["guided"] else "restored"
        top5 = [100 * result["real_degraded"][folder][method]["top5"] for result in runs]
        cells[f"{folder}, top-5, %"] = spread(top5, "{:.1f}")
    return cells


def table(rows: dict[str, dict[str, str]]) -> list[str]:
    heads = list(next(iter(rows.values())))
    if len({row["GFLOP"] for row in rows.values()}) == 1:  # all cost the same
        heads = [head for head in heads if head not in COST]
    return markdown(heads, {name: [row.get(head, "") for head in heads] for name, row in rows.items()})


def write(args: argparse.Namespace) -> None:
    results: dict[str, list[dict]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        results.setdefault(result["value"], []).append(result)
    if BASE.value not in results:
        raise FileNotFoundError(f"{RESULTS}: no result of the base; `run` writes it")
    base = results[BASE.value][0]
    commits = sorted({result["commit"] for runs in results.values() for result in runs})
    before = [f"{preset} {mean_of(base, preset, 'degraded', 'psnr'):.2f} dB" for preset in SCORED]
    before += [f"{folder} {part['degraded']['psnr']:.2f} dB" for folder, part in base["real_clean"].items()]
    before += [f"{folder} top-5 {100 * part['degraded']['top5']:.1f} %" for folder, part in base["real_degraded"].items()]
    n = {split: part["n"] for split, part in base["scores"]["mixed"].items()}
    about = (
        f"{len(results[BASE.value])} seeds, each {base['pictures']:,} pictures at 64 pixels. Cells: mean [min, max] of the seeds; "
        f"CPU: least time per picture. Scored on held-out characters, {n['seen_hands']} in seen and {n['unseen_hands']} in unseen "
        f"hands. Degraded pictures: {', '.join(before)}. Machine: {base['machine']}; commits {', '.join(commits)}."
    )
    lines = [MARK, "", *textwrap.wrap(about, 140)]
    for factor in dict.fromkeys(variant.factor for variant in STUDY if variant is not BASE):
        values = [variant.value for variant in STUDY if variant.factor == factor and variant.value in results]
        if values:
            rows = {value: columns(results[value]) for value in (BASE.value, *values)}
            lines += ["", f"## {factor.capitalize()}", "", *table(rows)]
    lines += ["", "![PSNR gain against network size and bottleneck](ablation.png)", ""]
    above = DOCUMENT.read_text(encoding="utf-8").split(MARK)[0] if DOCUMENT.is_file() else "# What helps: an ablation study\n\n"
    with replacing(DOCUMENT) as part:
        part.write_text(above + "\n".join(lines), encoding="utf-8")
    plot(results)


def plot(results: dict[str, list[dict]]) -> None:
    """PSNR gain against the cost of the restorer, and against the bottleneck of both networks."""
    figure = Figure((9, 3.6), layout="constrained")
    by_cost, by_latent = figure.subplots(1, 2)

    def line(axes, points: list[tuple[float, list[dict]]], **style: str) -> None:
        points = sorted(points, key=lambda point: point[0])
        gains = [[gain(result, "mixed") for result in runs] for _, runs in points]
        middle = np.array([mean(values) for values in gains])
        ends = np.array([(min(values), max(values)) for values in gains]).T
        axes.errorbar([at for at, _ in points], middle, abs(ends - middle), capsize=3, **style)

    base = results[BASE.value]
    sizes = {"atto": base} | {value.split()[1]: runs for value, runs in results.items() if runs[0]["factor"] == "size"}
    line(by_cost, [(runs[0]["gflops"], runs) for runs in sizes.values()], marker="o")
    for size, runs in sizes.items():
        at = (runs[0]["gflops"], mean(gain(result, "mixed") for result in runs))
        by_cost.annotate(f"{size}, {runs[0]['parameters'] / 1e6:.0f} M", at, xytext=(6, -12), textcoords="offset points")
    for network, mark in (("restorer", "o"), ("autoencoder", "s")):
        rows = [runs for value, runs in results.items() if runs[0]["factor"] == "bottleneck" and value.startswith(network)]
        points = [(runs[0]["settings"]["latent_dim"], runs) for runs in rows] + [(768, base)] * (network == "restorer")
        line(by_latent, points, marker=mark, label=network)
    by_cost.set(xlabel="GFLOP per picture", ylabel="PSNR gain on mixed, dB", title="Size of the restorer")
    by_cost.margins(0.4, 0.3)
    by_latent.set(xlabel="size of the latent vector", xscale="log", title="Bottleneck, size atto")
    by_latent.set_xticks((48, 192, 768), ("48", "192", "768"))
    by_latent.minorticks_off()
    by_latent.legend()
    with replacing(PLOT) as part:
        figure.savefig(part, format="png", dpi=110)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="train and score everything that has no result yet")
    command.set_defaults(work=run)
    add = command.add_argument
    add("--output_dir", type=Path, default=ROOT / "runs" / "ablation")
    add("--data", type=Path, default=PACK, help="the handwriting set")
    add("--real_clean", type=Path, nargs="*", default=[], metavar="DIR", help="folders of clean real characters")
    add("--real_degraded", type=Path, nargs="*", default=[], metavar="DIR", help="folders of degraded real characters")
    add("--only", choices=sorted({variant.factor for variant in STUDY}), help="run one factor")
    add("--seeds", type=int, default=2)
    add("--limit", type=int, default=512, help="pictures scored per preset")
    add("--processes", type=int, default=2)
    commands.add_parser("write", help="write the document from the results").set_defaults(work=write)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        args.work(args)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
