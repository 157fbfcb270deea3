"""README.md's table of results and the curves of training, made out of result files.

    torchrun --nproc_per_node=2 evaluate.py --checkpoint weights/NAME.safetensors --benchmark all --output_dir docs/benchmark/NAME
    python tools/results.py

Reads docs/benchmark/*/metrics.json and docs/training/*.jsonl, which are the log.jsonl of run folders; writes what stands between
README.md's two marks, and docs/training.png.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.files import replacing
from util.report import COLUMN

ROOT = Path(__file__).resolve().parent.parent
MARKS = ("<!-- results: written by tools/results.py -->", "<!-- end of results -->")
KEYS = ("top1", "psnr", "ssim", "ssim_inverse", "f1", "drd", "broken", "invented", "psnr_clean")
TRIVIAL = {"unchanged": "damaged", "median_otsu": "median filter, Otsu's threshold"}


def read(folder: Path) -> dict[str, dict]:
    """{method: metrics} of one benchmark, the weaker networks first. FileNotFoundError for none, ValueError for two benchmarks."""
    found = {}
    for path in sorted(folder.glob("*/metrics.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        network = told["checkpoint"]["model"].partition("_")[0].replace("cae", "autoencoder")
        found[network + ", character told" * told["guide"]] = told
    if not found:
        raise FileNotFoundError(f"{folder}: no results; evaluate.py writes them")
    if len(names := {told["benchmark"]["name"] for told in found.values()}) > 1:
        raise ValueError(f"{folder}: results of several benchmarks do not compare: {', '.join(sorted(names))}")
    return dict(sorted(found.items(), key=lambda item: item[1]["restored"]["psnr"]))


def markdown(heads: list[str], rows: dict[str, list[str]]) -> list[str]:
    lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    return lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]


def tables(found: dict[str, dict]) -> list[str]:
    """All pictures with all scores; then what is read and the PSNR, by preset and hands."""
    one = next(iter(found.values()))
    methods = {name: one["baselines"][key] for key, name in TRIVIAL.items()} | {
        name: told["restored"] for name, told in found.items()
    }
    columns = [COLUMN[key] for key in KEYS]

    def cell(row: dict, column) -> str:
        low, high = row["ci95"][column.key]
        spread = f" ± {column.form((high - low) / 2)}" if column.key in ("top1", "psnr") else ""
        return column.form(row[column.key]) + spread

    heads = [column.short + f", {column.unit}" * bool(column.unit) for column in columns]
    lines = markdown(heads, {name: [cell(row, column) for column in columns] for name, row in methods.items()})

    parts = {key: ("by_preset", key) for key in one["by_preset"]}
    parts |= {"seen hands": ("by_split", "seen_hands"), "unseen hands": ("by_split", "unseen_hands")}

    def two(row: dict) -> str:
        return f"{COLUMN['top1'].form(row['top1'])}, {COLUMN['psnr'].form(row['psnr'])}"

    rows = {"damaged": [two(one[group][key]["degraded"]) for group, key in parts.values()]}
    rows |= {name: [two(told[group][key]["restored"]) for group, key in parts.values()] for name, told in found.items()}
    about = f"{one['n']:,} pictures of {one['characters']} held-out characters, benchmark `{one['benchmark']['name']}`"
    clean = COLUMN["top1"].form(one["clean"]["top1"])
    lines = [f"{about}; ±: half of the 95 % interval over characters. Of the clean pictures {clean} % are read.", "", *lines]
    return [*lines, "", "Read, %, and PSNR, dB, by damage and by hand:", "", *markdown(list(parts), rows)]


def write_between(path: Path, lines: list[str]) -> None:
    """Puts the lines between the MARKS of a document. ValueError where they are missing."""
    text = path.read_text(encoding="utf-8")
    if any(text.count(mark) != 1 for mark in MARKS):
        raise ValueError(f"{path}: has to hold the lines {' and '.join(MARKS)} once each")
    before, rest = text.split(MARKS[0])
    with replacing(path) as part:
        part.write_text(before + "\n".join([MARKS[0], *lines, MARKS[1]]) + rest.split(MARKS[1])[1], encoding="utf-8")


def plot(logs: dict[str, list[dict]], path: Path) -> None:
    """Training loss and validation PSNR over the updates done."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, rows in logs.items():
        done = [row["step"] for row in rows]
        axes[0].plot(done, [row["loss"] for row in rows], label=name)
        axes[1].plot(done, [row["val_psnr"] for row in rows], label=name)
    axes[0].set(xlabel="updates", ylabel="training loss, each its own")
    axes[1].set(xlabel="updates", ylabel="validation PSNR, dB")
    axes[1].legend(loc="lower right")
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110)
    pyplot.close(figure)


def main() -> int:
    """Returns the exit status."""
    try:
        write_between(ROOT / "README.md", tables(read(ROOT / "docs" / "benchmark")))
        logs = sorted((ROOT / "docs" / "training").glob("*.jsonl"))
        plot(
            {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in logs},
            ROOT / "docs" / "training.png",
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
