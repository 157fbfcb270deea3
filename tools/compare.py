"""The differences between two results on the same pictures, with their paired 95 % intervals.

    python tools/compare.py runs/old/benchmark runs/new/benchmark

Reads per_picture.csv of two output folders of evaluate.py and prints, for all pictures and by preset and severity, B - A of each
score of the restored pictures. An interval that does not contain 0 is a difference that the choice of characters does not explain.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evaluation.report import COLUMNS
from evaluation.tables import levels, mean_intervals
from util import script

METHOD = "restored_"  # prefix of the columns that are compared
PICTURE = ("id", "character", "form", "hand", "preset", "severity")  # what must be the same
TOLERANCE = 0.1  # dB between the PSNR of a degraded picture in the two results


def read(folder: Path) -> tuple[list[dict[str, str]], dict[str, np.ndarray]]:
    """The rows of per_picture.csv, and {score: (n,) of the restored pictures, NaN where a picture has none}."""
    with (folder / "per_picture.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    keys = [column.key for column in COLUMNS if rows and METHOD + column.key in rows[0]]
    scores = {key: np.array([float(row[METHOD + key] or "nan") for row in rows]) for key in keys}
    return rows, scores


def same_picture(a: dict[str, str], b: dict[str, str]) -> bool:
    distance = abs(float(a["degraded_psnr"]) - float(b["degraded_psnr"]))
    return all(a[key] == b[key] for key in PICTURE) and distance < TOLERANCE


def compare(a: Path, b: Path) -> dict[str, dict]:
    """{part: {"n", score: [mean, low, high] of B - A, …}} for all pictures, by preset and by severity.

    Raises ValueError if the two folders do not hold scores of the same pictures.
    """
    (rows, scores_a), (rows_b, scores_b) = read(a), read(b)
    if not rows or len(rows) != len(rows_b) or not all(map(same_picture, rows, rows_b)):
        raise ValueError(f"{a} and {b} are not results on the same pictures")
    names = [name for name in scores_a if name in scores_b]
    difference = np.stack([scores_b[name] - scores_a[name] for name in names], axis=1)[:, None]
    character, preset = (np.array([row[key] for row in rows]) for key in ("character", "preset"))
    severity = levels(np.array([float(row["severity"]) for row in rows]))
    parts = {"all": np.full(len(rows), True)}
    parts |= {name: preset == name for name in dict.fromkeys(preset.tolist())}
    parts |= {f"severity {value}": severity == value for value in np.unique(severity).tolist()}
    return {
        name: {"n": int(mask.sum()), **mean_intervals(difference[mask], names, character[mask])[0]} for name, mask in parts.items()
    }


def lines(result: dict[str, dict]) -> list[str]:
    """The text of `compare`'s result; shares are in points of percent."""
    text = []
    for name, part in result.items():
        text.append(f"{name}: {part['n']} pictures")
        for column in (column for column in COLUMNS if column.key in part):
            mean, low, high = (column.form(value, "+") for value in part[column.key])
            label = f"{column.name}, points" if column.unit == "%" else column.label
            text.append(f"  {label:26}{mean:>9}  [{low}, {high}]")
    return text


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("a", type=Path, help="output folder of evaluate.py")
    parser.add_argument("b", type=Path, help="another one, on the same pictures")
    args = parser.parse_args(argv)
    return script.run(lambda: print("\n".join(lines(compare(args.a, args.b)))))


if __name__ == "__main__":
    script.as_script(main)
