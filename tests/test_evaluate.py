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
import models
import prepare_data
from datasets import benchmark
from datasets.degradation import Degradation, load_preset, sample_keys
from datasets.pack import open_pack
from datasets.pairs import HandwritingSet
from models import recogniser
from scoring import HARM, METHODS, SCORES
from tests.pictures import HANDS, tiny_checkpoint, tiny_pack
from util import images, metrics
from util.binarise import median, otsu, sauvola
from util.strokes import SCORES as SCORES_OF_STROKES
from util.strokes import stroke_scores


@pytest.fixture(scope="module", autouse=True)
def without_the_shipped_recogniser():
    """It knows nothing of a tiny pack's characters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "RECOGNISER", Path("none"))
        yield


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


def damaged_and_clean(made: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """All test pictures as they are scored."""
    data = HandwritingSet(open_pack(made["data"]), "test", "all", 32)
    keys = sample_keys(evaluate.EVALUATION_SEED, 0, data.ids)
    return Degradation({**load_preset("mixed"), "clean": 0.0}, 32)(data.batch(np.arange(len(data)))["clean"], keys)


def test_scores_are_those_of_the_damage_that_the_seed_gives(made):
    damaged, clean = damaged_and_clean(made)
    results = {"degraded": damaged, "otsu": otsu(damaged), "median_otsu": otsu(median(damaged)), "sauvola": sauvola(damaged)}
    functions = {"psnr": metrics.psnr, "ssim": metrics.ssim, "f1": metrics.ink_f1, "drd": metrics.drd}
    for name, x in results.items():
        for score, function in functions.items():
            written = [float(row[f"{name}_{score}"]) for row in made["rows"]]
            np.testing.assert_allclose(written, function(x, clean), rtol=2e-3, atol=2e-3)
        drawn = [stroke_scores([ink], true)[0] for ink, true in zip(otsu(x)[:, 0].numpy() > 0, otsu(clean)[:, 0].numpy() > 0)]
        written = [[float(row[f"{name}_{score}"]) for score in SCORES_OF_STROKES] for row in made["rows"]]
        np.testing.assert_allclose(written, drawn, rtol=0.01, atol=0.01)


def test_what_becomes_of_clean_pictures_is_scored(made):
    clean = damaged_and_clean(made)[1]
    with torch.inference_mode():
        restored = models.load(made["checkpoint"])[0](clean).sigmoid()
    for name, x in {"degraded": clean, "restored": restored, "otsu": otsu(clean)}.items():
        np.testing.assert_allclose([float(row[f"{name}_{HARM}"]) for row in made["rows"]], metrics.psnr(x, clean), atol=1e-3)


def test_means_agree_with_the_rows(made):
    report, rows = made["report"], made["rows"]

    def check(part: dict, some: list[dict]) -> None:
        assert part["n"] == len(some) > 0
        methods = {"degraded": part["degraded"], "restored": part["restored"], **part["baselines"]}
        assert methods.keys() == {"degraded", "restored", "unchanged", "otsu", "median_otsu", "sauvola"}
        for name, scores in methods.items():
            interval = scores["ci95"]
            assert interval.keys() == scores.keys() - {"ci95"}
            assert interval.keys() | {"psnr_damaged"} == {*SCORES, HARM}
            for score, (low, high) in interval.items():
                column = "degraded" if name == "unchanged" else name
                known = [float(row[f"{column}_{score}"]) for row in some if row[f"{column}_{score}"]]
                assert scores[score] == pytest.approx(np.mean(known), abs=2e-5) and low - 1e-5 <= high
        assert part["restored"]["ci95"]["psnr"][0] < part["restored"]["psnr"] < part["restored"]["ci95"]["psnr"][1]

    check(report, rows)
    assert report["by_split"].keys() == {"seen_hands", "unseen_hands"}
    assert report["by_hand"].keys() == {name for name, role in HANDS.items() if role != "guide"}
    assert sum(part["n"] for part in report["by_severity"].values()) == sum(cell["n"] for cell in report["cells"]) == report["n"]
    for key, column in (("by_split", "split"), ("by_hand", "hand"), ("by_preset", "preset")):
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
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "per_picture.csv", "report.html", "sheet.png"]


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
        told = json.loads((tmp_path / out / "metrics.json").read_text())["calibration"]
        assert told["ece"] == pytest.approx(made["report"]["calibration"]["ece"], abs=1e-4)
        assert sum(row["pixels"] for row in told["bins"]) == made["report"]["n"] * 32 * 32
        for name in (key for key in rows[0] if key.endswith(("_psnr", "_ssim", "_f1", "_drd"))):
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
    two = {**made, "checkpoint": tiny_checkpoint(tmp_path / "guided.pth", in_chans=2)}
    guided, alone = run(two, tmp_path / "out"), run(two, tmp_path / "alone", "--no-guide")
    assert guided["n"] == alone["n"] == made["report"]["n"]
    assert (guided["guide"], alone["guide"], made["report"]["guide"]) == (True, False, False)
    told = ["character told" in (tmp_path / name / "report.html").read_text(encoding="utf-8") for name in ("out", "alone")]
    assert told == [True, False]
    assert guided["restored"]["psnr"] != alone["restored"]["psnr"]
    assert guided["baselines"] == alone["baselines"]


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


# --- legibility -------------------------------------------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """Knows the clean pictures by heart and guesses the nearest one's character."""

    def __init__(self, pack, side: int):
        super().__init__()
        data = HandwritingSet(pack, "test", "all", side)
        self.known = data.batch(np.arange(len(data)))["clean"].flatten(1)
        self.groups = sorted(set(pack.group[data.ids].tolist()))
        self.label = torch.tensor([self.groups.index(group) for group in pack.group[data.ids].tolist()])

    def forward(self, x):
        distance = torch.cdist(x.flatten(1), self.known)
        return torch.stack([-distance[:, self.label == i].amin(1) for i in range(len(self.groups))], dim=1)


@pytest.fixture
def reader(made, monkeypatch):
    oracle = Oracle(open_pack(made["data"]), 32)
    info = {"groups": oracle.groups, "side": 32}
    monkeypatch.setattr(recogniser, "load_recogniser", lambda path, device: (oracle, info))
    return info


def test_legibility_comes_first_and_tells_clean_from_damaged(made, reader, tmp_path, capsys):
    report = run(made, tmp_path / "out", "--recogniser", "any.safetensors")
    assert list(report["restored"])[:2] == ["top1", "top5"] and set(report["clean"]) == {"top1", "top5", "ci95"}
    assert report["clean"]["top1"] > 0.9 > report["restored"]["top1"] and report["clean"]["top1"] > report["degraded"]["top1"]
    assert all(part["top1"] <= part["top5"] <= 1 for part in (report["clean"], report["restored"], *report["baselines"].values()))
    assert report["restored"]["psnr"] == made["report"]["restored"]["psnr"] and "clean" not in made["report"]
    rows = read_csv(tmp_path / "out")
    assert report["degraded"]["top1"] == pytest.approx(np.mean([float(row["degraded_top1"]) for row in rows]), abs=1e-5)
    assert "clean_psnr" not in rows[0]
    assert capsys.readouterr().out.splitlines()[0].split()[1:3] == ["top-1", "top-5"]


def test_a_character_that_is_no_class_is_left_out(made, reader, tmp_path):
    all_of_them = list(reader["groups"])
    reader["groups"] = [0, *all_of_them[1:]]
    report = run(made, tmp_path / "out", "--recogniser", "any.safetensors")
    rows = read_csv(tmp_path / "out")
    assert {row["character"] for row in rows if not row["clean_top1"]} == {chr(all_of_them[0])}
    assert report["clean"]["top1"] > 0.9


# --- the frozen benchmark ---------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """A benchmark of two presets, two pictures a cell, at side 64."""
    monkeypatch.setattr(benchmark, "PRESETS", ("mixed", "classic"))
    monkeypatch.setattr(benchmark.Benchmark.__init__, "__defaults__", (("mixed", "classic"), 2, 64, 5))


def written_pairs(made, out: Path, which: str) -> list[str]:
    prepare_data.main(["pairs", str(made["data"]), "--benchmark", which, "--out", str(out)])
    return sorted(path.name for path in (out / "degraded").iterdir())


def predictions(made, out: Path, folder: Path, which: str = "all") -> int:
    words = ["--predictions", folder, "--benchmark", which, "--data", made["data"], "--output_dir", out, "--device", "cpu"]
    return evaluate.main([str(word) for word in words])


def test_benchmark_of_a_network_of_another_side(made, small, tmp_path):
    report = run(made, tmp_path / "all", "--benchmark")
    assert report["n"] == 24 and report["side"] == 64 and report["checkpoint"]["side"] == 32
    assert report["by_preset"].keys() == {"mixed", "classic"} and report["by_severity"].keys() == {"0.2", "0.5", "0.8"}
    assert len(report["cells"]) == 12 and {cell["n"] for cell in report["cells"]} == {2}
    assert report["benchmark"]["name"].startswith("all-")
    guided = tiny_checkpoint(tmp_path / "guided.pth", in_chans=2)
    alone = run({**made, "checkpoint": guided}, tmp_path / "one", "--benchmark", "classic")
    assert alone["benchmark"]["name"] == report["benchmark"]["names"]["classic"]
    for score, value in report["by_preset"]["classic"]["degraded"].items():
        assert value == alone["degraded"][score]


def test_predictions_are_scored_as_the_pictures_themselves(made, small, tmp_path):
    names = written_pairs(made, tmp_path / "pairs", "all")
    assert len(names) == 24 and names == sorted(path.name for path in (tmp_path / "pairs" / "clean").iterdir())
    network = run(made, tmp_path / "network", "--benchmark")
    assert (tmp_path / "pairs" / "benchmark.txt").read_text().strip() == network["benchmark"]["name"]
    assert predictions(made, tmp_path / "unchanged", tmp_path / "pairs" / "degraded") == 0
    report = json.loads((tmp_path / "unchanged" / "metrics.json").read_text())
    for method in (network["degraded"], *network["baselines"].values()):  # pictures that are given say nothing of others
        assert method.pop(HARM) and method["ci95"].pop(HARM)
    assert report["restored"] == report["degraded"] == network["degraded"] and report["baselines"] == network["baselines"]
    assert report["benchmark"] == network["benchmark"] and "checkpoint" not in report
    assert predictions(made, tmp_path / "clean", tmp_path / "pairs" / "clean") == 0
    perfect = json.loads((tmp_path / "clean" / "metrics.json").read_text())
    wanted = {"psnr": 60, "ssim": 1, "f1": 1, "pseudo_f1": 1, "drd": 0, "chamfer": 0, "broken": 0, "invented": 0}
    assert {key: perfect["restored"][key] for key in wanted} == pytest.approx(wanted)
    assert perfect["calibration"]["ece"] == 0 and METHODS[1] == "restored"


def test_bad_predictions_are_listed_all_at_once(made, small, tmp_path, capsys):
    names = written_pairs(made, tmp_path / "pairs", "mixed")
    folder = tmp_path / "pairs" / "degraded"
    missing, small_one, broken, cut, *_ = names
    (folder / missing).rename(folder / "other.png")
    images.write_png(folder / small_one, Image.new("L", (30, 64)))
    (folder / broken).write_bytes(b"no picture")
    (folder / cut).write_bytes((folder / cut).read_bytes()[:200])
    (folder / ".DS_Store").write_bytes(b"")
    capsys.readouterr()
    assert predictions(made, tmp_path / "out", folder, "mixed") == 1
    told = capsys.readouterr().err
    lines = told.strip().splitlines()
    assert lines[0].startswith("error: ") and "5 predictions cannot be scored" in lines[0] and len(lines) == 6
    for name, why in ((missing, "missing"), ("other.png", "not expected"), (small_one, "30×64 pixels instead of 64×64")):
        assert f"{name}: {why}" in lines
    assert any(line.startswith(f"{broken}: not a picture") for line in lines)
    assert any(line.startswith(f"{cut}: broken picture") for line in lines)
    assert not (tmp_path / "out").exists()
    assert predictions(made, tmp_path / "out", tmp_path / "nowhere") == 1
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--checkpoint", "a", "--predictions", "b", "--benchmark"],
        ["--predictions", "b"],
        ["--checkpoint", "a", "--benchmark", "all", "--limit", "5"],
        ["--checkpoint", "a", "--benchmark", "stone"],
    ],
)
def test_what_does_not_go_together_is_refused(words, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([*words, "--output_dir", str(tmp_path)])
    assert stopped.value.code == 2
