"""The ablation study: one thing is changed at a time, at a small fixed budget, each with several seeds.

    python tools/ablation.py run --seed 0 --real DIR [DIR …] --real_clean DIR [DIR …]     # seeds may run side by side
    python tools/ablation.py write                       # docs/ablation/*.json → docs/ablation.md and docs/ablation.png

`run` trains and scores everything that has no result yet, so it can be stopped and started again; `--only guide` runs one factor.
Folders of real characters are optional: see evaluate.py. `write` keeps the part of the document above its mark.
"""

import argparse
import json
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evaluation.real import GUIDED
from models.files import load_network
from restoration.pipeline import ROOT
from tools.results import NONE, markdown
from tools.speed import forward_flops, hardware
from util import script
from util.files import replacing, write_json
from util.version import commit

RESULTS, DOCUMENT, PLOT = ROOT / "docs" / "ablation", ROOT / "docs" / "ablation.md", ROOT / "docs" / "ablation.png"
MARK = "<!-- below: written by tools/ablation.py write -->"
SEVERITIES = {"mixed": 0.8, "classic": 0.5}  # of the presets scored
TOLD = "mixed, told"  # the character
TITLES = {"mixed": "not told", TOLD: "told"}
JUDGES = {"top-1": "top1", "top-1, hardened": "top1_hardened"}
SCORES = ("psnr", "f1", *JUDGES.values())
AUTOENCODER = {"model": "cae_convnext_atto", "in_chans": 1, "layer_scale": 0.3, "loss": "mse", "lr": 3e-3}  # as it is trained


@dataclass(frozen=True)
class Variant:
    """A training, whose `settings` override configs/ablation.yaml, and how it is scored: told the character, too; its mean."""

    factor: str
    value: str
    settings: dict = field(default_factory=dict)
    told: bool = True
    mean: bool = False

    @property
    def title(self) -> str:
        return f"{self.factor}: {self.value}"

    @property
    def name(self) -> str:
        return _file_name(self.title)

    @property
    def training(self) -> str:
        """The same for variants that differ in how they are scored."""
        return _file_name(" ".join(f"{key} {value}" for key, value in self.settings.items()) or "base")


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)


BASE = Variant("base", "the restorer's recipe")
STUDY = [  # in the order of the runs
    BASE,
    Variant("flow", "its mean, not drawn", mean=True),
    Variant("flow", "trained without, mean", {"state_drop": 1.0}, mean=True),
    Variant("guide", "trained without", {"guide_drop": 1.0}, told=False),
    Variant("damage", "`mixed` alone", {"preset": "mixed"}),
    Variant("characters", "none drawn along stroke medians", {"brush": 0.0}),
    Variant("network", "autoencoder", AUTOENCODER, told=False, mean=True),
    Variant("damage", "`classic` alone", {"preset": "classic"}),
    Variant("characters", "none augmented", {"augment": 0.0}),
]


def launch(file: str, *flags: object) -> None:
    subprocess.run([sys.executable, *map(str, [file, *flags])], check=True, cwd=ROOT)


def train(variant: Variant, args: argparse.Namespace) -> Path:
    """Trains the variant to its end, or resumes its training; returns the checkpoint."""
    folder = args.output_dir.resolve() / f"{variant.training}-{args.seed}"  # the training runs in ROOT
    settings = {**variant.settings, "seed": args.seed, "output_dir": folder, "resume": "auto"}
    flags = [word for key, value in settings.items() for word in (f"--{key}", value)]
    launch("main_denoise_cae.py", "--config", "configs/ablation.yaml", *flags)
    return folder / "last.pth"


def evaluate(variant: Variant, checkpoint: Path, *flags: object) -> Path:
    """Restores and scores as `restore.py` restores, or by the mean; returns the folder of the results."""
    out = checkpoint.parent / "scores"
    drawing = ("--steps", 1) if variant.mean else ()
    launch("evaluate.py", "--checkpoint", checkpoint, "--output_dir", out, *drawing, *flags)
    return out


def held_out_scores(variant: Variant, checkpoint: Path, limit: int) -> dict:
    """{preset: {"seen_hands", "unseen_hands": {"n", "degraded", "restored": {score: mean}}}} of validation characters."""
    scores = {}
    for name in (*SEVERITIES, TOLD)[: 2 + variant.told]:
        preset = "mixed" if name == TOLD else name
        damage = ("--preset", preset, "--severity", SEVERITIES[preset], "--limit", limit)
        out = evaluate(variant, checkpoint, "--split", "val", *damage, "--guide" if name == TOLD else "--no-guide")
        result = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        scores[name] = {
            split: {"n": part["n"], **{which: {key: part[which][key] for key in SCORES} for which in ("degraded", "restored")}}
            for split, part in result["by_split"].items()
        }
    return scores


def real_scores(variant: Variant, checkpoint: Path, args: argparse.Namespace) -> dict:
    """{"folders", "clean_folders": {name of the folder: its scores}}, see evaluate.py."""
    folders = {flag: paths for flag in ("real", "real_clean") if (paths := getattr(args, flag))}
    if not folders:
        return {}
    flags = [word for flag, paths in folders.items() for word in (f"--{flag}", *(path.resolve() for path in paths))]
    result = json.loads((evaluate(variant, checkpoint, *flags) / "real.json").read_text(encoding="utf-8"))
    parts = ("folders", "clean_folders")
    return {part: {Path(folder).name: scores for folder, scores in result.get(part, {}).items()} for part in parts}


def run(args: argparse.Namespace) -> None:
    for variant in STUDY:
        path = RESULTS / f"{variant.name}-{args.seed}.json"
        if path.is_file() or args.only not in (None, variant.factor):
            continue
        print(f"{variant.title}, seed {args.seed}", flush=True)
        checkpoint = train(variant, args)
        _, settings = load_network(checkpoint)
        flops, parameters = forward_flops(settings)
        write_json(path, {
            "variant": variant.title, "seed": args.seed, "parameters": parameters, "gflops": flops / 1e9,
            "pictures": settings["epochs"] * settings["samples_per_epoch"], "img_size": settings["img_size"],
            "commit": commit(), "machine": hardware(torch.device("cpu")),
            "scores": held_out_scores(variant, checkpoint, args.limit), "real": real_scores(variant, checkpoint, args),
        })  # fmt: skip


def numbers(result: dict) -> dict[str, float]:
    """{column: number} of one training; those told the character only where it was scored so."""

    def score(name: str, key: str, picture: str = "restored") -> float:
        parts = result["scores"][name].values()
        return sum(part["n"] * part[picture][key] for part in parts) / sum(part["n"] for part in parts)

    unseen = result["scores"]["mixed"]["unseen_hands"]
    row = {
        "mixed, dB gained": score("mixed", "psnr") - score("mixed", "psnr", "degraded"),
        "unseen hands, dB gained": unseen["restored"]["psnr"] - unseen["degraded"]["psnr"],
        "classic, dB gained": score("classic", "psnr") - score("classic", "psnr", "degraded"),
        "ink F1, %": 100 * score("mixed", "f1"),
    }
    for name, title in TITLES.items():
        if name in result["scores"]:
            row |= {f"{judge}, {title}, %": 100 * score(name, key) for judge, key in JUDGES.items()}
    for folder, scores in result["real"].get("clean_folders", {}).items():
        row[f"{folder}, dB"] = scores["restored"]["psnr"]
    for folder, scores in result["real"].get("folders", {}).items():
        row[f"{folder}, top-5, not told, %"] = 100 * scores["restored"]["top5"]
        if TOLD in result["scores"]:
            row[f"{folder}, top-5, told, %"] = 100 * scores[GUIDED]["top5"]
    return row


def cell(column: str, seeds: list[dict[str, float]]) -> str:
    """A cell of the table, from the `numbers` of a variant's seeds: mean [min, max]."""
    values, digits = [row[column] for row in seeds if column in row], 2 if "gained" in column else 1
    return f"{mean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]" if values else NONE


def write(args: argparse.Namespace) -> None:
    results: dict[str, list[dict]] = {}
    factors = list(dict.fromkeys(variant.factor for variant in STUDY))
    for variant in sorted(STUDY, key=lambda one: factors.index(one.factor)):
        if paths := sorted(RESULTS.glob(f"{variant.name}-[0-9]*.json")):
            results[variant.title] = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if BASE.title not in results:
        raise FileNotFoundError(f"{RESULTS}: no result of the base; `run` writes it")
    base, rows = results[BASE.title][0], {title: [numbers(result) for result in runs] for title, runs in results.items()}
    every = [result for runs in results.values() for result in runs]
    commits, machines = (", ".join(sorted({result[key] for result in every})) for key in ("commit", "machine"))
    n = {split: part["n"] for split, part in base["scores"]["mixed"].items()}
    real = [f"{folder} {scores['n']}" for part in base["real"].values() for folder, scores in part.items()]
    about = (
        f"{len(results[BASE.title])} seeds, each {base['pictures']:,} pictures at {base['img_size']} pixels. "
        "Cells: mean [min, max]. "
        f"Scored on validation characters, {n['seen_hands']} in seen and {n['unseen_hands']} in unseen hands, "
        f"preset mixed at severity {SEVERITIES['mixed']}, classic at {SEVERITIES['classic']}; "
        f"real pictures: {', '.join(real) or 'none'}. Machine: {machines}; commits {commits}."
    )
    columns = list(rows[BASE.title][0])
    table = {
        title: [
            f"{runs[0]['parameters'] / 1e6:.1f}",
            f"{runs[0]['gflops']:.2f}",
            *(cell(column, rows[title]) for column in columns),
        ]
        for title, runs in results.items()
    }
    lines = [MARK, "", *textwrap.wrap(about, 140), "", *markdown(["M parameters", "GFLOP", *columns], table)]
    lines += ["", "![PSNR and recognition of each variant](ablation.png)", ""]
    above = DOCUMENT.read_text(encoding="utf-8").split(MARK)[0] if DOCUMENT.is_file() else "# What helps: an ablation study\n\n"
    with replacing(DOCUMENT) as part:
        part.write_text(above + "\n".join(lines), encoding="utf-8")
    plot(rows)


def plot(rows: dict[str, list[dict[str, float]]]) -> None:
    """A point for each training, the base's mean as a line. rows: {title: the `numbers` of each seed}."""
    panels = ("mixed, dB gained", "top-1, not told, %", "top-1, told, %")
    figure = Figure((9, 0.8 + 0.26 * len(rows)), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        for place, seeds in enumerate(rows.values()):
            there = [row[panel] for row in seeds if panel in row]
            axes.plot(there, [place] * len(there), "o", color="tab:blue")
        axes.axvline(mean(row[panel] for row in rows[BASE.title]), color="tab:grey", linewidth=1)
        axes.set_title(panel)
    axes.set_yticks(range(len(rows)), [title.replace("`", "") for title in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    with replacing(PLOT) as part:
        figure.savefig(part, format="png", dpi=110)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="train and score everything that has no result yet")
    command.set_defaults(work=run)
    add = command.add_argument
    add("--output_dir", type=Path, default=ROOT / "runs" / "ablation")
    add("--seed", type=int, required=True)
    add("--real", type=Path, nargs="*", default=[], metavar="DIR", help="folders of degraded real characters")
    add("--real_clean", type=Path, nargs="*", default=[], metavar="DIR", help="folders of clean real characters")
    add("--only", choices=sorted({variant.factor for variant in STUDY}), help="run one factor")
    add("--limit", type=int, default=384, help="pictures scored per preset")
    commands.add_parser("write", help="write the document from the results").set_defaults(work=write)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    args = build_parser().parse_args(argv)
    return script.run(args.work, args)


if __name__ == "__main__":
    script.as_script(main)
