"""The tables of results and the training curves, from result files.

    torchrun --nproc_per_node=2 evaluate.py --checkpoint weights/NAME.safetensors --benchmark all --no-guide \\
        --output_dir docs/benchmark/NAME
    python tools/results.py

Reads docs/benchmark/*/metrics.json and docs/training/*.jsonl, the log.jsonl of run folders; writes docs/training.png, and the parts
of README.md (the bundled networks) and docs/leaderboard.md (and others, named by their folders) between two marks.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evaluation.report import COLUMN, guided_by, overall
from util import script
from util.files import replacing

ROOT = Path(__file__).resolve().parent.parent
MARKS = ("<!-- results: written by tools/results.py -->", "<!-- end of results -->")
SHORT = ("top1", "top1_hardened", "psnr", "ssim", "f1", "grey", "psnr_clean", "frechet")  # columns in README
SPREAD = ("top1", "top1_hardened", "psnr")  # columns with an interval
OPTIONAL = {"top1_hardened", "frechet", "psnr_clean"}  # that a result may lack
NONE = "–"  # in place of a score that a method does not have
BASELINES = {"degraded": "degraded", "median_otsu": "median filter, Otsu's threshold"}


def is_bundled(result: dict) -> bool:
    """Whether a result is that of a network in weights/."""
    return Path(result.get("checkpoint", {}).get("path", "")).parent.name == "weights"


def read(folder: Path) -> dict[str, dict]:
    """{method: metrics} of one benchmark, by PSNR.

    Raises FileNotFoundError without results, ValueError for several benchmarks or results without a score of the tables.
    """
    results = {}
    for path in sorted(folder.glob("*/metrics.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if missing := {*SHORT} - OPTIONAL - result["restored"].keys():
            raise ValueError(f"{path}: no {', '.join(sorted(missing))}; score again with evaluate.py")
        if is_bundled(result):
            network = result["checkpoint"]["model"].partition("_")[0].replace("cae", "autoencoder")
            results[network + guided_by(result)] = result
        else:
            results[path.parent.name] = result
    if not results:
        raise FileNotFoundError(f"{folder}: no results; evaluate.py writes them")
    if len(names := {result["benchmark"]["name"] for result in results.values()}) > 1:
        raise ValueError(f"{folder}: results of different benchmarks are not comparable: {', '.join(sorted(names))}")
    return dict(sorted(results.items(), key=lambda item: item[1]["restored"]["psnr"]))


def markdown(heads: list[str], rows: dict[str, list[str]]) -> list[str]:
    lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    return lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]


def table(results: dict[str, dict], keys: tuple[str, ...]) -> list[str]:
    """Those of these scores that a method has, over all pictures, with a line about the pictures."""
    first = next(iter(results.values()))
    methods = {name: overall(first)[key] for key, name in BASELINES.items()}
    methods |= {name: overall(result)["restored"] for name, result in results.items()}
    keys = [key for key in keys if any(key in overall(result)["restored"] for result in results.values())]

    def cell(row: dict, key: str) -> str:
        if key not in row:
            return NONE
        if key not in SPREAD:
            return COLUMN[key].form(row[key])
        low, high = row["ci95"][key]
        return f"{COLUMN[key].form(row[key])} ± {COLUMN[key].form((high - low) / 2)}"

    about = f"{first['n']:,} pictures of {first['characters']} held-out characters, benchmark `{first['benchmark']['name']}`"
    clean = "; ".join(f"{COLUMN[key].name} {COLUMN[key].form(first['clean'][key])} %" for key in keys if key in first["clean"])
    rows = {name: [cell(row, key) for key in keys] for name, row in methods.items()}
    return [f"{about}; ±: half of the 95 % interval over characters. Clean pictures: {clean}.", "",
            *markdown([COLUMN[key].label for key in keys], rows)]  # fmt: skip


def document(results: dict[str, dict]) -> list[str]:
    """The leaderboard: all scores; accuracy and PSNR by preset and hands; what the scores mean."""
    every = [overall(result)["restored"] for result in results.values()]
    keys = tuple(key for key in COLUMN if any(key in row for row in every))
    shown = [key for key in ("top1", "top1_hardened", "psnr") if all(key in row for row in every)]

    def parts(result: dict) -> dict[str, dict]:
        splits = {name.replace("_", " "): part for name, part in result["by_split"].items()}
        return {**result["by_preset"], **splits, **({"clerical hand": result["clerical"]} if "clerical" in result else {})}

    heads = list(dict.fromkeys(head for result in results.values() for head in parts(result)))

    def cells(result: dict, method: str) -> list[str]:
        rows = parts(result)
        return [" / ".join(COLUMN[key].form(rows[head][method][key]) for key in shown) if head in rows else NONE for head in heads]

    longest = max(results.values(), key=lambda result: len(parts(result)))
    rows = {name: cells(longest, key) for key, name in BASELINES.items()}
    rows |= {name: cells(result, "restored") for name, result in results.items()}
    return [*table(results, keys), "", "## By damage and by hand", "",
            " / ".join(COLUMN[key].label for key in shown) + ". The clerical hand is not part of the benchmark.", "",
            *markdown(heads, rows), "", "## The scores", "",
            *(f"- **{COLUMN[key].label}**: {COLUMN[key].meaning}" for key in keys)]  # fmt: skip


def write_between(path: Path, lines: list[str]) -> None:
    """Replaces the lines between the MARKS of a document. ValueError if a mark is missing or repeated."""
    text = path.read_text(encoding="utf-8")
    if any(text.count(mark) != 1 for mark in MARKS):
        raise ValueError(f"{path}: must contain the lines {' and '.join(MARKS)} once each")
    before, rest = text.split(MARKS[0])
    with replacing(path) as part:
        part.write_text(before + "\n".join([MARKS[0], *lines, MARKS[1]]) + rest.split(MARKS[1])[1], encoding="utf-8")


def plot(logs: dict[str, list[dict]], path: Path) -> None:
    """Training loss and validation PSNR over the updates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, rows in logs.items():
        updates = [row["global_step"] for row in rows]
        axes[0].plot(updates, [row["loss"] for row in rows], label=name)
        axes[1].plot(updates, [row["val_psnr"] for row in rows], label=name)
    axes[0].set(xlabel="updates", ylabel="training loss (BCE or MSE, by recipe)")
    axes[1].set(xlabel="updates", ylabel="validation PSNR, dB")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110)
    pyplot.close(figure)


def write() -> None:
    """Writes the tables into README.md and docs/leaderboard.md, and draws docs/training.png."""
    results = read(ROOT / "docs" / "benchmark")
    write_between(ROOT / "README.md", table({name: r for name, r in results.items() if is_bundled(r)}, SHORT))
    write_between(ROOT / "docs" / "leaderboard.md", document(results))
    logs = sorted((ROOT / "docs" / "training").glob("*.jsonl"))
    rows = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in logs}
    plot(rows, ROOT / "docs" / "training.png")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    return script.run(write)


if __name__ == "__main__":
    script.as_script(main)
