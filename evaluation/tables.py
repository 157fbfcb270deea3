"""Scores of single pictures → means with intervals, by split, hand, preset and severity; as dicts, CSV and a printed table."""

import csv
import itertools
from pathlib import Path

import numpy as np

from datasets.pack import Pack
from evaluation import benchmark, report
from evaluation.scoring import METHODS
from evaluation.sources import SPLITS
from evaluation.statistics import bootstrap_interval
from util.files import replacing


def means(scores: np.ndarray, names: tuple[str, ...], characters: np.ndarray) -> dict:
    """{"n", "characters", method: {score: mean, …, "ci95": {score: [low, high]}}, …} of (n, methods, scores).

    A mean is over the pictures that have the score, an interval over characters.
    """
    known = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, scores, 0).sum(0) / known.sum(0)
    low, high = bootstrap_interval(scores, characters)
    result: dict = {"n": len(scores), "characters": len(np.unique(characters))}
    for row, method in enumerate(METHODS):
        columns = [column for column in range(len(names)) if known[:, row, column].any()]
        if columns:
            interval = {names[c]: [round(float(low[row, c]), 5), round(float(high[row, c]), 5)] for c in columns}
            result[method] = {**{names[c]: round(float(mean[row, c]), 5) for c in columns}, "ci95": interval}
    return result


def tabulate(pack: Pack, rows: list[dict], scores: np.ndarray, names: tuple[str, ...]) -> dict:
    """The means of all pictures, and by split, hand, preset and severity, and ("cells") by preset, severity and split together.

    A severity is the benchmark's; if it was drawn, the middle of the fifth of its range that it lies in.
    """
    column = {key: np.array([row[key] for row in rows]) for key in ("character", "split", "hand", "preset", "severity")}
    level = column["severity"]
    if len(np.unique(level)) > len(benchmark.SEVERITIES):
        level = ((np.minimum(level, 0.999) * 5).astype(int) * 2 + 1) / 10

    def of(mask: np.ndarray) -> dict:
        return means(scores[mask], names, column["character"][mask])

    def by(values: np.ndarray, known: list) -> dict:
        return {str(value): of(values == value) for value in known if (values == value).any()}

    levels, presets = np.unique(level).tolist(), list(dict.fromkeys(column["preset"].tolist()))
    cells = []
    for preset, severity, split in itertools.product(presets, levels, SPLITS):
        mask = (column["preset"] == preset) & (level == severity) & (column["split"] == split)
        if mask.any():
            cells.append({"preset": preset, "severity": severity, "split": split, **of(mask)})
    return {
        **of(np.full(len(rows), True)),
        "by_split": by(column["split"], SPLITS),
        "by_hand": by(column["hand"], [hand.name for hand in pack.hands]),
        "by_preset": by(column["preset"], presets),
        "by_severity": by(level, levels),
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
    """Prints the table of all methods, and degraded and restored by split and preset."""
    lines = [(f"{name}, all", result["n"], result[name]) for name in METHODS[::-1] if name in result]
    for group in ("by_split", "by_preset"):
        for part_name, part in result[group].items() if len(result[group]) > 1 else ():
            lines += [(f"{name}, {part_name}", part["n"], part[name]) for name in ("degraded", "restored")]
    columns = [column for column in report.COLUMNS if column.key in result["restored"]]
    print(f"{'':26}{'n':>7}" + "".join(f"{column.short:>10}" for column in columns))
    for name, n, row in lines:
        cells = [column.form(row[column.key]) if column.key in row else "" for column in columns]
        print(f"{name.replace('_', ' '):26}{n:7}" + "".join(f"{cell:>10}" for cell in cells))
    print(f"expected calibration error {result['calibration']['ece']:.4f}")
