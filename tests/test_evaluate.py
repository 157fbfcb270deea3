import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from datasets.degradation import Degradation, load_preset, sample_keys
from datasets.pack import open_pack
from datasets.pairs import HandwritingSet
from tests.pictures import HANDS, tiny_checkpoint, tiny_pack
from util import metrics
from util.binarise import median, otsu


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict:
    """A tiny pack and checkpoint, and what scoring all of it gave."""
    folder = tmp_path_factory.mktemp("evaluate")
    made = {"data": tiny_pack(folder / "zi.pack"), "checkpoint": tiny_checkpoint(folder / "best.pth"), "folder": folder}
    made["report"] = run(made, folder / "all")
    made["rows"] = read_csv(folder / "all")
    return made


def arguments(made: dict, out: Path, *more: str) -> list[str]:
    named = ["--checkpoint", made["checkpoint"], "--data", made["data"], "--output_dir", out, "--device", "cpu"]
    return [str(word) for word in (*named, *more)]


def run(made: dict, out: Path, *more: str) -> dict:
    assert evaluate.main(arguments(made, out, *more)) == 0
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def read_csv(out: Path) -> list[dict]:
    with (out / "per_picture.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_test_character_of_every_hand_is_scored_once(made):
    pack = open_pack(made["data"])
    expected = set(HandwritingSet(pack, "test", "all", 32).ids.tolist())
    assert {int(row["id"]) for row in made["rows"]} == expected and len(made["rows"]) == len(expected)
    for row in made["rows"]:
        id_ = int(row["id"])
        assert row["character"] == row["form"] == chr(pack.character[id_])
        assert row["hand"] == pack.hands[pack.hand[id_]].name
        assert row["split"] == ("unseen_hands" if row["hand"] == "stranger" else "seen_hands")


def test_scores_are_those_of_the_damage_that_the_seed_gives(made):
    pack = open_pack(made["data"])
    data = HandwritingSet(pack, "test", "all", 32)
    keys = sample_keys(evaluate.EVALUATION_SEED, 0, data.ids)
    damaged, clean = Degradation({**load_preset("mixed"), "clean": 0.0}, 32)(data.batch(np.arange(len(data)))["clean"], keys)
    results = {"degraded": damaged, "otsu": otsu(damaged), "median_otsu": otsu(median(damaged))}
    for name, x in results.items():
        for score, function in (("psnr", metrics.psnr), ("ssim", metrics.ssim), ("f1", metrics.ink_f1)):
            written = [float(row[f"{name}_{score}"]) for row in made["rows"]]
            np.testing.assert_allclose(written, function(x, clean), rtol=2e-3, atol=2e-3)


def test_means_agree_with_the_rows(made):
    report, rows = made["report"], made["rows"]

    def check(part: dict, some: list[dict]) -> None:
        assert part["n"] == len(some) > 0
        methods = {"degraded": part["degraded"], "restored": part["restored"], **part["baselines"]}
        assert methods.keys() == {"degraded", "restored", "unchanged", "otsu", "median_otsu"}
        for name, scores in methods.items():
            assert scores.keys() == {"psnr", "ssim", "f1"}
            for score, value in scores.items():
                column = "degraded" if name == "unchanged" else name
                assert value == pytest.approx(np.mean([float(row[f"{column}_{score}"]) for row in some]), abs=2e-5)

    check(report, rows)
    assert report["by_split"].keys() == {"seen_hands", "unseen_hands"}
    assert report["by_hand"].keys() == {name for name, role in HANDS.items() if role != "guide"}
    for key, column in (("by_split", "split"), ("by_hand", "hand")):
        for name, part in report[key].items():
            check(part, [row for row in rows if row[column] == name])
    assert report["restored"] != report["degraded"]


def test_the_report_says_what_was_scored(made):
    report = made["report"]
    assert report["damage"]["table"]["clean"] == 0 and load_preset("mixed")["clean"] > 0
    assert report["checkpoint"]["epoch"] == 3 and report["side"] == 32
    assert report["data"]["checksum"] == open_pack(made["data"]).checksum
    assert report["damage"]["preset"] == "mixed" and report["damage"]["seed"] == evaluate.EVALUATION_SEED
    sheet = Image.open(made["folder"] / "all" / "sheet.png")
    assert min(sheet.size) > 300


def test_again_gives_the_same_and_another_seed_does_not(made, tmp_path):
    out = tmp_path / "out"
    assert run(made, out) == made["report"]
    other = run(made, out, "--seed", "5")
    assert abs(other["degraded"]["psnr"] - made["report"]["degraded"]["psnr"]) > 1e-3
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "per_picture.csv", "sheet.png"]


def test_neither_batches_nor_processes_change_the_scores(made, tmp_path):
    run(made, tmp_path / "small", "--batch_size", "5")
    script = Path(evaluate.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(
        [*command, *arguments(made, tmp_path / "two", "--batch_size", "7")],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for out in ("small", "two"):
        rows = read_csv(tmp_path / out)
        assert [row["id"] for row in rows] == [row["id"] for row in made["rows"]]
        for name in (key for key in rows[0] if "_" in key and key.split("_")[-1] in evaluate.SCORES):
            ours, theirs = ([float(row[name]) for row in some] for some in (rows, made["rows"]))
            np.testing.assert_allclose(ours, theirs, rtol=0.01, atol=0.01)


def test_limit_is_spread_over_hands_and_characters(made, tmp_path):
    report = run(made, tmp_path / "nine", "--limit", "9")
    assert report["n"] == 9 and {part["n"] for part in report["by_hand"].values()} == {3}
    rows = read_csv(tmp_path / "nine")
    assert len({row["character"] for row in rows}) >= 4
    fewer = run(made, tmp_path / "six", "--limit", "6")
    assert fewer["n"] == 6
    assert {row["id"] for row in read_csv(tmp_path / "six")} < {row["id"] for row in rows}
    assert run(made, tmp_path / "many", "--limit", "100000")["n"] == made["report"]["n"]


def test_a_guided_checkpoint_is_given_the_guide(made, tmp_path):
    two = tiny_checkpoint(tmp_path / "guided.pth", in_chans=2)
    assert run({**made, "checkpoint": two}, tmp_path / "out")["n"] == made["report"]["n"]


def test_a_network_that_has_diverged_is_named(made, tmp_path, capsys):
    content = torch.load(made["checkpoint"], weights_only=True)
    for value in content["ema"].values():
        if value.is_floating_point():
            value.fill_(float("nan"))
    torch.save(content, tmp_path / "bad.pth")
    assert evaluate.main(arguments({**made, "checkpoint": tmp_path / "bad.pth"}, tmp_path / "out")) == 1
    assert "diverged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["checkpoint", "data"])
def test_missing_and_broken_files_are_one_line(made, tmp_path, capsys, broken):
    for path in (tmp_path / "missing", tmp_path / "broken"):
        (tmp_path / "broken").write_bytes(b"nothing of the kind")
        assert evaluate.main(arguments({**made, broken: path}, tmp_path / "out")) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and str(path) in error and "\n" not in error
    assert not (tmp_path / "out").exists()
