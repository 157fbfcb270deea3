"""Scores of single pictures → means with intervals, by split, hand, preset and severity; as dicts, CSV and a printed table."""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.pack import Pack
from evaluation import benchmark, report
from evaluation.predictors import BASELINES
from evaluation.scoring import METHODS, RESTORED
from evaluation.sources import SPLITS
from evaluation.statistics import bootstrap_interval, frechet_distance
from util.files import replacing

FRECHET_PICTURES = 2048  # with fewer pictures the Fréchet distance depends on their number


def mean_intervals(scores: np.ndarray, names: Sequence[str], characters: np.ndarray) -> list[dict[str, list[float]]]:
    """One {score: [mean, low, high]} per row of (n, rows, scores), of the scores that the row has; 95 % intervals over characters.

    A mean is over the pictures that have the score.
    """
    known = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, scores, 0).sum(0) / known.sum(0)
    values = np.stack([mean, *bootstrap_interval(scores, characters)], axis=-1).round(5)  # (rows, scores, 3)
    return [{name: value.tolist() for name, value in zip(names, row, strict=True) if not np.isnan(value[0])} for row in values]


def means(scores: np.ndarray, names: tuple[str, ...], characters: np.ndarray) -> dict:
    """{"n", "characters", method: {score: mean, …, "ci95": {score: [low, high]}}, …} of (n, methods, scores)."""
    result: dict = {"n": len(scores), "characters": len(np.unique(characters))}
    for method, row in zip(METHODS, mean_intervals(scores, names, characters), strict=True):
        if row:
            result[method] = {name: mean for name, (mean, *_) in row.items()}
            result[method]["ci95"] = {name: interval for name, (_, *interval) in row.items()}
    return result


def differences(scores: np.ndarray, names: tuple[str, ...], characters: np.ndarray, methods: Sequence[str]) -> dict:
    """{"restored - METHOD": {score: [mean, low, high]}} for each of the methods, with paired intervals."""
    minus = [METHODS.index(method) for method in methods]
    rows = mean_intervals(scores[:, [RESTORED]] - scores[:, minus], names, characters)
    return {f"restored - {method}": row for method, row in zip(methods, rows, strict=True)}


def frechet(features: np.ndarray) -> dict:
    """{"frechet": {method: distance to "clean"}} of features (n, methods, d); empty for fewer than 2,048 pictures or d = 0."""
    if len(features) < FRECHET_PICTURES or not features.shape[2]:
        return {}
    *others, clean = features.swapaxes(0, 1)
    return {"frechet": {method: round(frechet_distance(x, clean), 5) for method, x in zip(METHODS, others, strict=False)}}


def levels(severities: np.ndarray) -> np.ndarray:
    """The benchmark's severities as they are; drawn ones: the middle of the fifth of the range that each one lies in."""
    if len(np.unique(severities)) <= len(benchmark.SEVERITIES):
        return severities
    return ((np.minimum(severities, 0.999) * 5).astype(int) * 2 + 1) / 10


def tabulate(pack: Pack, rows: list[dict], scores: np.ndarray, names: tuple[str, ...]) -> dict:
    """The means of all pictures, and by split, hand, preset and severity, and ("cells") by preset, severity and split together.

    With the differences of all pictures from each other method, and by preset and severity from the degraded pictures.
    """
    column = {key: np.array([row[key] for row in rows]) for key in ("character", "split", "hand", "preset", "severity")}
    level = levels(column["severity"])

    def of(mask: np.ndarray, *compared: str) -> dict:
        some = scores[mask], names, column["character"][mask]
        return {**means(*some), **({"differences": differences(*some, compared)} if compared else {})}

    def by(values: np.ndarray, known: list, *compared: str) -> dict:
        return {str(value): of(values == value, *compared) for value in known if (values == value).any()}

    severities, presets = np.unique(level).tolist(), list(dict.fromkeys(column["preset"].tolist()))
    cells = []
    for preset, severity, split in itertools.product(presets, severities, SPLITS):
        mask = (column["preset"] == preset) & (level == severity) & (column["split"] == split)
        if mask.any():
            cells.append({"preset": preset, "severity": severity, "split": split, **of(mask)})
    return {
        **of(np.full(len(rows), True), "degraded", *BASELINES),
        "by_split": by(column["split"], SPLITS),
        "by_hand": by(column["hand"], [hand.name for hand in pack.hands]),
        "by_preset": by(column["preset"], presets, "degraded"),
        "by_severity": by(level, severities, "degraded"),
        "cells": cells,
    }


def write_csv(path: Path, rows: list[dict], scores: np.ndarray, names: tuple[str, ...]) -> None:
    """One line per picture; a score that a picture does not have stays empty."""
    present = [(m, s) for m in range(len(METHODS)) for s in range(len(names)) if not np.isnan(scores[:, m, s]).all()]
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*rows[0], *(f"{METHODS[m]}_{names[s]}" for m, s in present)])
        for row, values in zip(rows, scores, strict=True):
            writer.writerow([*row.values(), *("" if np.isnan(values[m, s]) else f"{values[m, s]:.5f}" for m, s in present)])


def show(result: dict) -> None:
    """Prints the table of all methods, and degraded and restored by split and preset, and of the clerical hand."""
    whole = report.overall(result)
    lines = [(f"{name}, all", result["n"], whole[name]) for name in METHODS[::-1] if name in whole]
    parts = [item for group in ("by_split", "by_preset") if len(result[group]) > 1 for item in result[group].items()]
    if "clerical" in result:
        parts.append(("clerical", result["clerical"]))
    for part_name, part in parts:
        lines += [(f"{name}, {part_name}", part["n"], part[name]) for name in ("degraded", "restored")]
    columns = [column for column in report.COLUMNS if column.key in whole["restored"]]
    print(f"{'':26}{'n':>7}" + "".join(f"{column.short:>10}" for column in columns))
    for name, n, row in lines:
        cells = [column.form(row[column.key]) if column.key in row else "" for column in columns]
        print(f"{name.replace('_', ' '):26}{n:7}" + "".join(f"{cell:>10}" for cell in cells))
    print(f"expected calibration error {result['calibration']['ece']:.4f}")
    if "readings" in result:
        print("first readings: " + ", ".join(f"{name} {value}" for name, value in result["readings"].items()))
