"""evaluate.py: which pictures are scored, by which pipeline, and what the files say."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import evaluate
import prepare_data
import restore
from datasets.degradation import Degradation, load_preset
from datasets.pack import open_pack
from datasets.pairs import HandwritingSet, sharded_batches
from datasets.rng import sample_keys
from evaluation import benchmark, tables
from evaluation.measures import drd, grey
from evaluation.predictors import BASELINES, PipelinePredictor, median, sauvola
from evaluation.scoring import CLEAN_INPUT_PSNR, METHODS, SCORES, score_all
from evaluation.statistics import frechet_distance
from evaluation.strokes import SCORES as SCORES_OF_STROKES
from evaluation.strokes import stroke_scores
from models.files import load_network
from models.recogniser import build_recogniser, features_and_logits
from restoration.drawing import Drawing
from restoration.pipeline import WEIGHTS, Restorer, load_restorer
from restoration.reading import Reader
from tests.pictures import HANDS, glyph_like, tiny_checkpoint, tiny_pack
from util import distributed, images, metrics
from util.binarise import otsu


@pytest.fixture(scope="module", autouse=True)
def without_bundled_files():
    """The recognisers know none of a tiny pack's characters, and scoring the clerical hand takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "RECOGNISER", Path("none"))
        patch.setattr(evaluate, "HARDENED", Path("none"))
        patch.setattr(evaluate, "COPYLEFT", Path("none"))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict:
    """A tiny pack and checkpoint, and the scores of the bare network on all test pictures."""
    folder = tmp_path_factory.mktemp("evaluate")
    made = {"data": tiny_pack(folder / "zi.pack"), "checkpoint": tiny_checkpoint(folder / "best.pth"), "folder": folder}
    made["result"] = run(made, folder / "all", "--network_only")
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


def degraded_and_clean(made: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """All test pictures as they are scored."""
    data = HandwritingSet(open_pack(made["data"]), "test", "all", 32)
    keys = sample_keys(evaluate.EVALUATION_SEED, 0, data.ids)
    return Degradation({**load_preset("mixed"), "clean": 0.0}, 32)(data.batch(np.arange(len(data)))["clean"], keys)


def test_scores_are_those_of_the_pictures_that_the_seed_gives(made):
    degraded, clean = degraded_and_clean(made)
    results = {"degraded": degraded, "otsu": otsu(degraded), "median_otsu": otsu(median(degraded)), "sauvola": sauvola(degraded)}
    functions = {"psnr": metrics.psnr, "ssim": metrics.ssim, "f1": metrics.ink_f1, "drd": drd, "grey": lambda x, clean: grey(x)}
    for name, x in results.items():
        for score, function in functions.items():
            written = [float(row[f"{name}_{score}"]) for row in made["rows"]]
            np.testing.assert_allclose(written, function(x, clean), rtol=2e-3, atol=2e-3)
        drawn = [stroke_scores([ink], true)[0] for ink, true in zip(otsu(x)[:, 0].numpy() > 0, otsu(clean)[:, 0].numpy() > 0)]
        written = [[float(row[f"{name}_{score}"]) for score in SCORES_OF_STROKES] for row in made["rows"]]
        np.testing.assert_allclose(written, drawn, rtol=0.01, atol=0.01)


def test_clean_input_is_scored(made):
    clean = degraded_and_clean(made)[1]
    with torch.inference_mode():
        restored = load_network(made["checkpoint"])[0](clean).sigmoid()
    for name, x in {"degraded": clean, "restored": restored, "otsu": otsu(clean)}.items():
        written = [float(row[f"{name}_{CLEAN_INPUT_PSNR}"]) for row in made["rows"]]
        np.testing.assert_allclose(written, metrics.psnr(x, clean), atol=1e-3)


def test_means_agree_with_the_rows(made):
    result, rows = made["result"], made["rows"]

    def check(part: dict, some: list[dict]) -> None:
        assert part["n"] == len(some) > 0
        assert {name for name in METHODS if name in part} == {*METHODS} and part["clean"].keys() == {"grey", "ci95"}
        for name in ("degraded", "restored", *BASELINES):
            scores, interval = part[name], part[name]["ci95"]
            assert interval.keys() == scores.keys() - {"ci95"}
            assert interval.keys() | {"psnr_degraded_area"} == {*SCORES, CLEAN_INPUT_PSNR}
            for score, (low, high) in interval.items():
                known = [float(row[f"{name}_{score}"]) for row in some if row[f"{name}_{score}"]]
                assert scores[score] == pytest.approx(np.mean(known), abs=2e-5) and low - 1e-5 <= high
        assert part["restored"]["ci95"]["psnr"][0] < part["restored"]["psnr"] < part["restored"]["ci95"]["psnr"][1]

    def check_differences(part: dict, others: tuple[str, ...]) -> None:
        assert part["differences"].keys() == {f"restored - {name}" for name in others}
        for name in others:
            for score, (mean, low, high) in part["differences"][f"restored - {name}"].items():
                if score != "psnr_degraded_area":  # not of every picture
                    assert mean == pytest.approx(part["restored"][score] - part[name][score], abs=3e-5)
                assert low - 1e-5 <= mean <= high + 1e-5

    check(result, rows)
    check_differences(result, ("degraded", *BASELINES))
    for part in (*result["by_preset"].values(), *result["by_severity"].values()):
        check_differences(part, ("degraded",))
    assert result["by_split"].keys() == {"seen_hands", "unseen_hands"}
    assert result["by_hand"].keys() == {name for name, role in HANDS.items() if role != "guide"}
    assert sum(part["n"] for part in result["by_severity"].values()) == sum(cell["n"] for cell in result["cells"]) == result["n"]
    for key, column in (("by_split", "split"), ("by_hand", "hand"), ("by_preset", "preset")):
        for name, part in result[key].items():
            check(part, [row for row in rows if row[column] == name])
    assert result["restored"] != result["degraded"]


def test_the_result_describes_what_was_scored(made):
    result = made["result"]
    assert result["damage"]["table"]["clean"] == 0 and load_preset("mixed")["clean"] > 0
    assert result["checkpoint"]["epoch"] == 3 and result["img_size"] == 32 and result["pipeline"] == "network only"
    assert result["data"]["checksum"] == open_pack(made["data"]).checksum
    assert result["damage"]["preset"] == "mixed" and result["damage"]["seed"] == evaluate.EVALUATION_SEED
    sheet = Image.open(made["folder"] / "all" / "sheet.png")
    assert min(sheet.size) > 300


def test_the_same_seed_gives_the_same_result_and_another_does_not(made, tmp_path):
    out = tmp_path / "out"
    assert run(made, out, "--network_only") == made["result"]
    other = run(made, out, "--network_only", "--seed", "5")
    assert abs(other["degraded"]["psnr"] - made["result"]["degraded"]["psnr"]) > 1e-3
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "per_picture.csv", "report.html", "sheet.png"]


@pytest.mark.parametrize("pipeline", [pytest.param(["--network_only"], marks=pytest.mark.long), ["--runtime", "onnx"]])
def test_neither_batch_size_nor_processes_change_the_scores(made, tmp_path, pipeline):
    result = run(made, tmp_path / "one", *pipeline, "--batch_size", "5")
    script = Path(evaluate.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(
        [*command, *arguments(made, tmp_path / "two", *pipeline, "--batch_size", "7")],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours, theirs = read_csv(tmp_path / "one"), read_csv(tmp_path / "two")
    assert [row["id"] for row in ours] == [row["id"] for row in theirs] == [row["id"] for row in made["rows"]]
    calibration = json.loads((tmp_path / "two" / "metrics.json").read_text())["calibration"]
    assert calibration["ece"] == pytest.approx(result["calibration"]["ece"], abs=1e-4)
    assert sum(row["pixels"] for row in calibration["bins"]) == result["n"] * 32 * 32
    for name in (key for key in ours[0] if key.endswith(("_psnr", "_ssim", "_f1", "_drd"))):
        np.testing.assert_allclose(*([float(row[name]) for row in rows] for rows in (ours, theirs)), rtol=0.01, atol=0.01)


def test_limit_is_spread_over_hands_and_characters(made, tmp_path):
    result = run(made, tmp_path / "nine", "--network_only", "--limit", "9")
    assert result["n"] == 9 and {part["n"] for part in result["by_hand"].values()} == {3}
    rows = read_csv(tmp_path / "nine")
    assert len({row["character"] for row in rows}) >= 4
    fewer = run(made, tmp_path / "six", "--network_only", "--limit", "6")
    assert fewer["n"] == 6
    assert {row["id"] for row in read_csv(tmp_path / "six")} < {row["id"] for row in rows}
    assert run(made, tmp_path / "many", "--network_only", "--limit", "100000")["n"] == made["result"]["n"]


@pytest.mark.parametrize("pipeline", [["--network_only"], ["--runtime", "torch"]])
def test_a_network_that_takes_a_guide_is_given_it(made, tmp_path, pipeline):
    two = {**made, "checkpoint": tiny_checkpoint(tmp_path / "guided.pth", in_chans=2)}
    guided, alone = run(two, tmp_path / "out", *pipeline), run(two, tmp_path / "alone", *pipeline, "--no-guide")
    assert guided["n"] == alone["n"] == made["result"]["n"]
    assert (guided["guide"], alone["guide"], made["result"]["guide"]) == (True, False, False)
    titles = ["with guide" in (tmp_path / name / "report.html").read_text(encoding="utf-8") for name in ("out", "alone")]
    assert titles == [True, False]
    assert guided["restored"]["psnr"] != alone["restored"]["psnr"]
    assert [guided[name] for name in BASELINES] == [alone[name] for name in BASELINES]


def test_readings_are_scored_and_guide(made, tmp_path, monkeypatch):
    four = {**made, "checkpoint": tiny_checkpoint(tmp_path / "drawing.pth", in_chans=4)}
    groups = sorted({ord(row["character"]) for row in made["rows"]})

    def reader(restorer: Restorer) -> Reader:
        """Sure of one character, and unaware of another."""
        sure = np.eye(len(groups) - 1, dtype=np.float32)[0]
        return Reader(restorer, lambda x: np.tile(5 * sure, (len(x), 1)), {"groups": groups[:-1], "img_size": 32})

    monkeypatch.setattr(evaluate, "load_reader", reader)
    result = run(four, tmp_path / "read", "--read")
    rows = read_csv(tmp_path / "read")
    first, unknown = (sum(ord(row["character"]) == groups[at] for row in rows) for at in (0, -1))
    trust = result["readings"]
    assert (trust["n"], trust["unknown"]) == (len(rows) - unknown, unknown) and trust["top1"] == pytest.approx(
        first / trust["n"], abs=1e-5
    )
    assert [row["restored_read_top1"] for row in rows] == [
        {groups[0]: "1.00000", groups[-1]: ""}.get(ord(row["character"]), "0.00000") for row in rows
    ]
    assert result["restored"]["psnr"] != run(four, tmp_path / "alone", "--no-guide")["restored"]["psnr"]
    assert f"<b>{100 * trust['top1']:.1f} %</b>" in (tmp_path / "read" / "report.html").read_text(encoding="utf-8")


def test_a_wrong_guide_is_that_of_another_character(made, tmp_path):
    forms = ["一", "丁", "七", "一", "万", "丈"]
    others = evaluate.wrong(forms)
    assert all(a != b for a, b in zip(forms, others, strict=True)) and set(others) == set(forms) and others[0] == others[3]
    two = {**made, "checkpoint": tiny_checkpoint(tmp_path / "guided.pth", in_chans=2)}
    right, misled = (run(two, tmp_path / name, *words) for name, words in (("right", []), ("wrong", ["--wrong_guide"])))
    assert (right["wrong_guide"], misled["wrong_guide"]) == (False, True)
    assert right["restored"]["psnr"] != misled["restored"]["psnr"] and right["degraded"] == misled["degraded"]


def test_severity_and_split_of_what_is_scored(made, tmp_path):
    result = run(made, tmp_path, "--network_only", "--split", "val", "--severity", "0.8", "--preset", "classic")
    rows = read_csv(tmp_path)
    assert {float(row["severity"]) for row in rows} == {0.8} and result["data"]["split"] == "val"
    assert not {row["id"] for row in rows} & {row["id"] for row in made["rows"]}
    data = HandwritingSet(open_pack(made["data"]), "val", "all", 32)
    damage, ids = Degradation(load_preset("classic"), 32), data.ids[:4]
    degraded, clean = damage(data.batch(np.arange(4))["clean"], sample_keys(evaluate.EVALUATION_SEED, 0, ids), 0.8)
    expected = metrics.psnr(degraded, clean).tolist()
    assert [float(row["degraded_psnr"]) for row in rows[:4]] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("pipeline", [["--network_only"], ["--runtime", "torch"]])
def test_a_network_that_has_diverged_is_one_error(made, tmp_path, capsys, pipeline):
    content = torch.load(made["checkpoint"], weights_only=True)
    for value in content["ema"].values():
        if value.is_floating_point():
            value.fill_(float("nan"))
    torch.save(content, tmp_path / "bad.pth")
    assert evaluate.main(arguments({**made, "checkpoint": tmp_path / "bad.pth"}, tmp_path / "out", *pipeline)) == 1
    assert "not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("corrupt", ["checkpoint", "data"])
def test_missing_and_corrupt_files_are_one_line(made, tmp_path, capsys, corrupt):
    for path in (tmp_path / "missing", tmp_path / "corrupt"):
        (tmp_path / "corrupt").write_bytes(b"nothing of the kind")
        assert evaluate.main(arguments({**made, corrupt: path}, tmp_path / "out", "--network_only")) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and str(path) in error and "\n" not in error
    assert not (tmp_path / "out").exists()


# --- recognition --------------------------------------------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """Knows the clean pictures by heart and guesses the nearest one's character. The features are the pixels at half the size."""

    def __init__(self, pack, img_size: int):
        super().__init__()
        data = HandwritingSet(pack, "test", "all", img_size)
        self.known = self.forward_head(data.batch(np.arange(len(data)))["clean"], pre_logits=True)
        self.groups = sorted(set(pack.group[data.ids].tolist()))
        self.label = torch.tensor([self.groups.index(group) for group in pack.group[data.ids].tolist()])

    def forward_features(self, x):
        return x

    def forward_head(self, x, pre_logits):
        return F.avg_pool2d(x, 2).flatten(1)

    def get_classifier(self):
        return self.logits

    def logits(self, features):
        distance = torch.cdist(features, self.known)
        return torch.stack([-distance[:, self.label == i].amin(1) for i in range(len(self.groups))], dim=1)


class Inverted(Oracle):
    """Guesses what the oracle believes in least."""

    def logits(self, features):
        return -super().logits(features)


@pytest.fixture
def recogniser(made, monkeypatch):
    """The oracle instead of any recogniser, and its opposite instead of "inverted.safetensors"."""
    judges = {kind: kind(open_pack(made["data"]), 32) for kind in (Oracle, Inverted)}
    info = {"groups": judges[Oracle].groups, "img_size": 32}

    def load(path: Path, device: str = "cpu") -> tuple[Oracle, dict]:
        return judges[Inverted if path.name == "inverted.safetensors" else Oracle], info

    monkeypatch.setattr(evaluate, "load_recogniser", load)
    return info


def test_recognition_is_the_first_score(made, recogniser, tmp_path, capsys):
    result = run(made, tmp_path / "out", "--network_only", "--recogniser", "any.safetensors")
    assert list(result["restored"])[:2] == ["top1", "top5"] and set(result["clean"]) == {"top1", "top5", "grey", "ci95"}
    assert result["clean"]["top1"] > 0.9 > result["restored"]["top1"] and result["clean"]["top1"] > result["degraded"]["top1"]
    assert all(result[name]["top1"] <= result[name]["top5"] <= 1 for name in METHODS)
    assert result["restored"]["psnr"] == made["result"]["restored"]["psnr"] and "top1" not in made["result"]["clean"]
    rows = read_csv(tmp_path / "out")
    assert result["degraded"]["top1"] == pytest.approx(np.mean([float(row["degraded_top1"]) for row in rows]), abs=1e-5)
    assert "clean_psnr" not in rows[0]
    assert capsys.readouterr().out.splitlines()[0].split()[1:3] == ["top-1", "top-5"]


def test_features_and_logits_are_those_of_the_recogniser():
    network, x = build_recogniser(7, layer_scale=1.0).eval(), torch.rand(3, 1, 64, 64)
    taken = []
    network.get_classifier().register_forward_pre_hook(lambda layer, inputs: taken.append(inputs[0]))
    features, logits = features_and_logits(network, x)
    assert logits.shape == (3, 7) and torch.equal(logits, network(x)) and torch.equal(features, taken[1])


@pytest.mark.parametrize("alone", [False, True])
def test_the_hardened_recogniser_has_its_own_columns(made, recogniser, tmp_path, alone):
    words = ["--network_only", "--hardened", "inverted.safetensors", *([] if alone else ["--recogniser", "any.safetensors"])]
    result = run(made, tmp_path / "out", *words)
    assert [key for key in result["restored"] if key.startswith("top")] == ["top1", "top5"][: 2 * (not alone)] + [
        "top1_hardened", "top5_hardened"]  # fmt: skip
    assert all(result[name]["top1_hardened"] <= result[name]["top5_hardened"] < 0.1 for name in ("clean", "otsu"))
    assert result["hardened"] == {"path": "inverted.safetensors", "img_size": 32} and ("recogniser" in result) != alone
    assert "top1_hardened" in result["differences"]["restored - degraded"]
    if not alone:
        assert result["clean"]["top1"] > 0.9


def test_the_frechet_distance_needs_enough_pictures_and_the_recogniser(made, recogniser, tmp_path, monkeypatch, capsys):
    assert "frechet" not in run(made, tmp_path / "few", "--network_only", "--recogniser", "any.safetensors")
    assert "Fréchet" not in capsys.readouterr().out
    monkeypatch.setattr(tables, "FRECHET_PICTURES", 20)
    assert "frechet" not in run(made, tmp_path / "none", "--network_only", "--hardened", "any.safetensors")
    capsys.readouterr()
    distances = run(made, tmp_path / "out", "--network_only", "--recogniser", "any.safetensors")["frechet"]
    degraded, clean = (F.avg_pool2d(x, 2).flatten(1).numpy() for x in degraded_and_clean(made))
    assert list(distances) == ["degraded", "restored", *BASELINES]
    assert distances["degraded"] == pytest.approx(frechet_distance(degraded, clean), rel=1e-4)
    assert "Fréchet" in capsys.readouterr().out.splitlines()[0]
    assert "Fréchet" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def scored_by(processes: int, monkeypatch) -> tuple[np.ndarray, ...]:
    """What `score_all` returns in the last of so many processes, for a scorer that returns the positions of its pictures."""

    class Positions:
        rows = range(23)

        def batches(self, batch_size: int, rank: int, world: int) -> list[np.ndarray]:
            return sharded_batches(len(self.rows), batch_size, rank, world)[::-1]

        def table(self, positions: np.ndarray) -> tuple[np.ndarray, ...]:
            return positions[:, None] * np.ones(3), positions, positions.astype(np.float32)

    scorer, gathered = Positions(), []
    scorer.source = scorer
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    monkeypatch.setattr(distributed, "gather", lambda parts: [*gathered, parts])
    for rank in range(processes - 1):
        gathered.append([(batch, *scorer.table(batch)) for batch in scorer.batches(4, rank, processes)])
    monkeypatch.setattr(distributed, "rank", lambda: processes - 1)
    return score_all(scorer, 4)


def test_results_are_in_the_order_of_the_pictures_however_many_processes_there_are(monkeypatch):
    for processes in (1, 2, 3):
        scores, sums, features = scored_by(processes, monkeypatch)
        assert (scores == np.arange(23)[:, None]).all() and sums.tolist() == features.tolist() == list(range(23))
        assert features.dtype == np.float32


def test_a_character_without_a_class_is_left_out(made, recogniser, tmp_path):
    groups = list(recogniser["groups"])
    recogniser["groups"] = [0, *groups[1:]]
    result = run(made, tmp_path / "out", "--network_only", "--recogniser", "any.safetensors")
    rows = read_csv(tmp_path / "out")
    assert {row["character"] for row in rows if not row["clean_top1"]} == {chr(groups[0])}
    assert result["clean"]["top1"] > 0.9


# --- the frozen benchmark -----------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """A benchmark of two presets, two pictures a cell, at size 64."""
    monkeypatch.setattr(benchmark, "PRESETS", ("mixed", "classic"))
    monkeypatch.setattr(benchmark.Benchmark.__init__, "__defaults__", (("mixed", "classic"), 2, 64, 5))


def write_pairs(made, out: Path, which: str) -> list[str]:
    words = ["pairs", "--data", str(made["data"]), "--benchmark", which, "--output_dir", str(out)]
    assert prepare_data.main(words) == 0
    return sorted(path.name for path in (out / "degraded").iterdir())


def predictions(made, out: Path, folder: Path, which: str = "all") -> int:
    words = ["--predictions", folder, "--benchmark", which, "--data", made["data"], "--output_dir", out, "--device", "cpu"]
    return evaluate.main([str(word) for word in words])


def test_benchmark_of_a_network_of_another_size(made, small, tmp_path):
    result = run(made, tmp_path / "all", "--network_only", "--benchmark")
    assert result["n"] == 24 and result["img_size"] == 64 and result["checkpoint"]["img_size"] == 32
    assert result["by_preset"].keys() == {"mixed", "classic"} and result["by_severity"].keys() == {"0.2", "0.5", "0.8"}
    assert len(result["cells"]) == 12 and {cell["n"] for cell in result["cells"]} == {2}
    assert result["benchmark"]["name"].startswith("all-")
    guided = tiny_checkpoint(tmp_path / "guided.pth", in_chans=2)
    alone = run({**made, "checkpoint": guided}, tmp_path / "one", "--network_only", "--benchmark", "classic")
    assert alone["benchmark"]["name"] == result["benchmark"]["names"]["classic"]
    for score, value in result["by_preset"]["classic"]["degraded"].items():
        assert value == alone["degraded"][score]


def test_evaluate_scores_the_pictures_that_restore_writes(made, small, tmp_path):
    names = write_pairs(made, tmp_path / "pairs", "mixed")
    bundled, psnr = {**made, "checkpoint": WEIGHTS}, {}
    for runtime in ("torch", "onnx"):
        folder = tmp_path / runtime
        assert restore.main([str(tmp_path / "pairs" / "degraded"), str(folder), "--runtime", runtime, "--device", "cpu"]) == 0
        predict = PipelinePredictor(load_restorer(runtime=runtime, device="cpu"))
        degraded = torch.from_numpy(np.stack([images.read_grey(tmp_path / "pairs" / "degraded" / name) for name in names]))[:, None]
        written = np.stack([images.read_grey(folder / name) for name in names])
        restored, probability = (x[:, 0].numpy() for x in predict(np.arange(len(names)), degraded, None)[:2])
        assert np.abs(restored - written).max() < 1.01 / 255 and np.abs(probability - written).mean() < 0.05  # the mean of drawings
        assert predictions(made, tmp_path / f"{runtime}_files", folder, "mixed") == 0
        files = json.loads((tmp_path / f"{runtime}_files" / "metrics.json").read_text())
        result = run(bundled, tmp_path / f"{runtime}_scores", "--benchmark", "mixed", "--runtime", runtime, "--no-guide")
        assert result["pipeline"] == runtime
        psnr |= {runtime: result["restored"]["psnr"], f"{runtime} files": files["restored"]["psnr"]}
    assert max(psnr.values()) - min(psnr.values()) < 0.05, psnr
    run(bundled, tmp_path / "bare", "--benchmark", "mixed", "--network_only", "--no-guide")
    bare, pipeline = (np.array([float(row["restored_psnr"]) for row in read_csv(tmp_path / n)]) for n in ("bare", "torch_scores"))
    assert np.abs(bare - pipeline).max() > 0.1  # the pipeline stretches the contrast, which the bare network does not see


def test_predictions_are_scored_as_the_pictures_themselves(made, small, tmp_path):
    names = write_pairs(made, tmp_path / "pairs", "all")
    assert len(names) == 24 and names == sorted(path.name for path in (tmp_path / "pairs" / "clean").iterdir())
    network = run(made, tmp_path / "network", "--network_only", "--benchmark")
    assert (tmp_path / "pairs" / "benchmark.txt").read_text().strip() == network["benchmark"]["name"]
    assert predictions(made, tmp_path / "degraded", tmp_path / "pairs" / "degraded") == 0
    result = json.loads((tmp_path / "degraded" / "metrics.json").read_text())
    for name in ("degraded", *BASELINES):  # given pictures have no clean input to restore
        assert network[name].pop(CLEAN_INPUT_PSNR) and network[name]["ci95"].pop(CLEAN_INPUT_PSNR)
        assert result[name] == network[name]
    assert result["restored"] == result["degraded"]
    assert result["benchmark"] == network["benchmark"] and "checkpoint" not in result
    assert predictions(made, tmp_path / "clean", tmp_path / "pairs" / "clean") == 0
    perfect = json.loads((tmp_path / "clean" / "metrics.json").read_text())
    wanted = {"psnr": 60, "ssim": 1, "f1": 1, "pseudo_f1": 1, "drd": 0, "chamfer": 0, "broken": 0, "invented": 0}
    assert {key: perfect["restored"][key] for key in wanted} == pytest.approx(wanted)
    assert perfect["calibration"]["ece"] == 0


def test_bad_predictions_are_listed_all_at_once(made, small, tmp_path, capsys):
    names = write_pairs(made, tmp_path / "pairs", "mixed")
    folder = tmp_path / "pairs" / "degraded"
    missing, small_one, corrupt, cut, *_ = names
    (folder / missing).rename(folder / "other.png")
    images.write_png(folder / small_one, Image.new("L", (30, 64)))
    (folder / corrupt).write_bytes(b"no picture")
    (folder / cut).write_bytes((folder / cut).read_bytes()[:200])
    (folder / ".DS_Store").write_bytes(b"")
    capsys.readouterr()
    assert predictions(made, tmp_path / "out", folder, "mixed") == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[0].startswith("error: ") and "5 predictions cannot be scored" in lines[0] and len(lines) == 6
    for name, why in ((missing, "missing"), ("other.png", "not expected"), (small_one, "30×64 pixels instead of 64×64")):
        assert f"{name}: {why}" in lines
    assert any(line.startswith(f"{corrupt}: not a picture") for line in lines)
    assert any(line.startswith(f"{cut}: corrupt picture") for line in lines)
    assert not (tmp_path / "out").exists()
    assert predictions(made, tmp_path / "out", tmp_path / "nowhere") == 1
    assert "no such folder" in capsys.readouterr().err


# --- real characters ----------------------------------------------------------------------------------------------------


def real_folder(made, folder: Path) -> list[str]:
    """Clean test characters as dark-on-light pictures named by their character; one name holds none, one an unknown one."""
    pack = open_pack(made["data"])
    data = HandwritingSet(pack, "test", "seen", 32)
    names = []
    for position, id_ in enumerate(data.ids.tolist()):
        name = f"{position:03d}_{chr(pack.character[id_])}.png"
        clean = data.batch(np.array([position]))["clean"][0, 0].numpy()
        images.write_png(folder / name, images.from_grey(1 - clean))
        names.append(name)
    images.write_png(folder / "nameless.png", images.from_grey(clean))
    images.write_png(folder / "龍.png", images.from_grey(clean))
    return names


def test_real_characters_are_recognised_before_and_after(made, recogniser, tmp_path, capsys):
    names = real_folder(made, tmp_path / "real")
    guided = tiny_checkpoint(tmp_path / "guided.pth", in_chans=2)
    words = ["--real", tmp_path / "real", "--checkpoint", guided, "--data", made["data"], "--runtime", "torch"]
    words += ["--device", "cpu", "--hardened", "any.safetensors", "--output_dir", tmp_path / "out"]
    assert evaluate.main([str(word) for word in words]) == 0
    result = json.loads((tmp_path / "out" / "real.json").read_text(encoding="utf-8"))["folders"][str(tmp_path / "real")]
    assert (result["n"], result["left_out"]) == (len(names), 2)
    assert sum(result["polarity"].values()) == result["n"] and 0 <= result["negatives_agree"] <= 1
    methods = {"degraded", "restored", "restored_guided", *BASELINES}
    assert methods <= result.keys() and all(result[name]["top1"] <= result[name]["top5"] <= 1 for name in methods)
    assert all(result[name]["top1"] == result[name]["top1_hardened"] for name in methods)  # both are the oracle
    assert result["degraded"]["top5"] > result["restored"]["top1"]  # an untrained network destroys what it is given
    assert "top-1" in capsys.readouterr().out


def test_a_real_folder_without_known_characters_is_one_error(made, recogniser, tmp_path, capsys):
    images.write_png(tmp_path / "real" / "nameless.png", Image.new("L", (32, 32)))
    words = ["--real", tmp_path / "real", "--checkpoint", made["checkpoint"], "--data", made["data"], "--runtime", "torch"]
    assert evaluate.main([str(word) for word in (*words, "--output_dir", tmp_path / "out")]) == 1
    assert "none of its 1 pictures is named by a character" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--checkpoint", "a", "--predictions", "b", "--benchmark"],
        ["--predictions", "b"],
        ["--predictions", "b", "--benchmark", "--network_only"],
        ["--checkpoint", "a", "--benchmark", "all", "--limit", "5"],
        ["--checkpoint", "a", "--benchmark", "stone"],
        ["--checkpoint", "a", "--batch_size", "0"],
        ["--checkpoint", "a", "--seed", "-1"],
        ["--real", "a", "--benchmark"],
        ["--real_clean", "a", "--no-guide"],
        ["--real", "a", "--severity", ".5"],
        ["--checkpoint", "a", "--benchmark", "all", "--split", "val"],
        ["--checkpoint", "a", "--benchmark", "all", "--severity", "0.8"],
        ["--checkpoint", "a", "--severity", "1.1"],
        ["--checkpoint", "a", "--wrong_guide", "--no-guide"],
    ],
)
def test_flags_that_make_no_sense_are_refused(words, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([*words, "--output_dir", str(tmp_path)])
    assert stopped.value.code == 2


def test_the_probability_of_a_drawing_is_the_mean():
    def predict(x: np.ndarray) -> np.ndarray:
        picture, _, state, t = x.transpose(1, 0, 2, 3)
        return 2 * picture - 1 + 6 * t * state

    restorer, degraded = Restorer(predict, {"img_size": 64, "in_chans": 4}), glyph_like(3, img_size=64)
    drawn, probability = PipelinePredictor(restorer)(np.arange(3), degraded, None)[:2]
    mean, same = PipelinePredictor(restorer, drawing=Drawing(steps=1))(np.arange(3), degraded, None)[:2]
    assert torch.equal(probability, same) and (mean - same).abs().max() < 1 / 255
    assert (drawn - mean).abs().mean() > 0.02
