import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import prepare_data
from datasets import degradation
from datasets.pack import open_pack
from datasets.split import group_of, split_of
from evaluation import benchmark
from evaluation.benchmark import Benchmark, clerical_benchmark
from tests.pictures import tiny_checkpoint

PRESETS = ("mixed", "classic")


@pytest.fixture(scope="module")
def pack(tiny_pack):
    return open_pack(tiny_pack)


def make(pack, presets=PRESETS, **more) -> Benchmark:
    return Benchmark(pack, presets, **{"per_cell": 5, "img_size": 64, **more})


def test_every_cell_has_the_same_number_of_pictures_of_test_characters(pack):
    frozen = make(pack)
    assert len(frozen) == 2 * 3 * 2 * 5
    cells = {}
    for row in frozen.rows:
        hand = pack.hands[pack.hand[row["id"]]]
        assert hand.role == ("held_out" if row["hands"] == "unseen" else "train")
        assert split_of(group_of(chr(pack.form[row["id"]]))) == "test"
        cells.setdefault((row["preset"], row["severity"], row["hands"]), []).append(row["id"])
    assert {len(ids) for ids in cells.values()} == {5} and len(cells) == 12
    for preset in PRESETS:
        for hands in benchmark.HANDS:
            assert len({tuple(cells[preset, severity, hands]) for severity in benchmark.SEVERITIES}) == 1
    assert cells["mixed", 0.2, "seen"] != cells["classic", 0.2, "seen"]


def test_pictures_are_8_bit_and_the_same_in_any_process(pack):
    frozen, again = make(pack), make(pack)
    whole = frozen.batches()
    assert sorted(np.concatenate(whole).tolist()) == list(range(len(frozen)))
    shared = [batch for rank in range(3) for batch in again.batches(rank, 3)]
    assert sorted(map(tuple, shared)) == sorted(map(tuple, whole))
    for batch in whole[::4]:
        one, two = frozen.pictures(batch), again.pictures(batch)
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a, b) and a.shape == (len(batch), 1, 64, 64)
            torch.testing.assert_close((a * 255).round(), a * 255, rtol=0, atol=1e-4)
        assert not torch.equal(*one)


def test_higher_severity_is_more_damage(pack):
    frozen = make(pack, ("mixed",))
    error = dict.fromkeys(benchmark.SEVERITIES, 0.0)
    for batch in frozen.batches():
        degraded, clean = frozen.pictures(batch)
        error[frozen.rows[batch[0]]["severity"]] += (degraded - clean).square().sum().item()
    assert error[0.2] < error[0.5] < error[0.8]


def test_the_name_changes_with_each_ingredient(pack, monkeypatch):
    first = make(pack, ("mixed",)).name
    assert first == make(pack, ("mixed",)).name and first.startswith("mixed-")
    names = [first, make(pack, ("classic",)).name, make(pack).name]
    names += [make(pack, ("mixed",), **{key: value}).name for key, value in (("per_cell", 4), ("img_size", 96), ("seed", 1))]
    other = copy.copy(pack)
    object.__setattr__(other, "checksum", "0" * 64)
    names.append(make(other, ("mixed",)).name)
    scored = benchmark.scored_preset

    def softer(preset):
        table = copy.deepcopy(scored(preset))
        table["noise"]["sd"][1] /= 2
        return table

    for target, key, value in (
        (degradation, "VERSION", degradation.VERSION + 1),
        (benchmark, "SEVERITIES", (0.2, 0.5)),
        (benchmark, "BATCH", 16),
        (benchmark, "scored_preset", softer),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, key, value)
            names.append(make(pack, ("mixed",)).name)
    assert len(set(names)) == len(names)
    assert make(pack, ("mixed",)).name == first


def test_the_part_of_a_preset_has_the_same_name_alone_and_together_with_others(pack):
    both = make(pack)
    assert both.names == {preset: make(pack, (preset,)).name for preset in PRESETS}
    assert make(pack, PRESETS[::-1]).name == both.name and both.name.startswith("all-")


def test_the_name_of_a_tiny_benchmark_is_frozen(pack, monkeypatch):
    # If this changes, every benchmark's name changes, which is right only if the pictures change as well.
    table = {"clean": 0.0, "severity": [1.2, 2.2], "noise": {"p": 1.0, "sd": [0.01, 0.05]}}
    monkeypatch.setattr(benchmark, "scored_preset", lambda preset: table)
    monkeypatch.setattr(degradation, "VERSION", 1)
    same = copy.copy(pack)
    object.__setattr__(same, "checksum", "tiny")
    assert make(same, ("noise",)).name == "noise-890af529fc"


def test_the_benchmark_of_the_bundled_pack_is_frozen():
    assert Benchmark(open_pack(benchmark.PACK)).verify(), "if this is intended, run `python -m evaluation.benchmark`"


def test_file_names_are_unique_and_start_with_the_character(pack):
    files = [row["file"] for row in make(pack).rows]
    assert len(set(files)) == len(files) and all(file.endswith(".png") and split_of(group_of(file[0])) == "test" for file in files)


# --- the check at opening -----------------------------------------------------------------------------------------------


@pytest.fixture
def frozen(pack, monkeypatch, tmp_path) -> Benchmark:
    """A small benchmark that is frozen."""
    monkeypatch.setattr(benchmark, "FROZEN", tmp_path / "benchmark.json")
    frozen = make(pack)
    frozen.freeze()
    return frozen


def brighter(monkeypatch, levels: float) -> None:
    """The generator draws degraded pictures that are so much brighter; half as bright first, so no pixel is clipped."""
    draw = Benchmark.pictures

    def pictures(self, batch):
        degraded, clean = draw(self, batch)
        return degraded / 2 + levels / 255, clean

    monkeypatch.setattr(Benchmark, "pictures", pictures)


def test_the_frozen_pictures_are_spread_over_presets_severities_and_hands(pack, frozen):
    parts = json.loads(benchmark.FROZEN.read_text(encoding="utf-8"))
    assert {preset: part["name"] for preset, part in parts.items()} == frozen.names
    rows = {row["file"]: row for row in frozen.rows}
    drawn = [rows[file] for part in parts.values() for file in part["pictures"]]
    assert len(drawn) == benchmark.CHECKED
    assert len({(row["preset"], row["severity"], row["hands"]) for row in drawn}) == 2 * 3 * 2
    assert all(len(bytes.fromhex(means)) == 64 for part in parts.values() for means in part["pictures"].values())


def test_block_means_are_those_of_the_degraded_picture(pack):
    frozen = make(pack, ("classic",))
    degraded, _ = frozen.pictures(np.array([3]))
    blocks = degraded[0, 0].numpy().reshape(8, 8, 8, 8).mean((1, 3)) * 255
    assert np.abs(frozen.block_means(3).reshape(8, 8) - blocks).max() <= 0.51


def test_the_frozen_benchmark_and_each_of_its_presets_are_verified(pack, frozen):
    assert frozen.verify()
    assert all(make(pack, (preset,)).verify() for preset in PRESETS)


def test_another_benchmark_is_not_frozen_and_opens(pack, frozen, monkeypatch):
    assert not make(pack, seed=1).verify()
    assert not make(pack, (*PRESETS, "paper")).verify()
    monkeypatch.setattr(benchmark, "FROZEN", Path(benchmark.__file__).with_name("benchmark.json"))
    assert not frozen.verify()


def test_a_machine_that_draws_other_pictures_is_refused(pack, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "FROZEN", tmp_path / "benchmark.json")
    frozen = make(pack)
    with monkeypatch.context() as patch:
        brighter(patch, 10)
        frozen.freeze()
    for levels, refused in ((8.5, False), (11.5, False), (6.4, True), (13.6, True)):
        with monkeypatch.context() as patch:
            brighter(patch, levels)
            if not refused:
                assert frozen.verify()
                continue
            with pytest.raises(ValueError, match=r"benchmark mixed-\w+: .+_mixed_0.2.png differs .* by [34]/255 .*torch") as error:
                frozen.verify()
            assert "--predictions" in str(error.value)
    with pytest.raises(ValueError, match="differs"):
        frozen.verify()


def test_writing_and_scoring_pictures_verify_them(tiny_pack, pack, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "PRESETS", PRESETS)
    monkeypatch.setattr(Benchmark.__init__, "__defaults__", (PRESETS, 1, 64, 5))
    monkeypatch.setattr(benchmark, "FROZEN", tmp_path / "benchmark.json")
    monkeypatch.setattr(evaluate, "COPYLEFT", Path("none"))
    with monkeypatch.context() as patch:
        brighter(patch, 10)
        Benchmark(pack).freeze()
    common = ["--benchmark", "all", "--data", str(tiny_pack), "--output_dir", str(tmp_path / "out")]
    checkpoint = ["--checkpoint", str(tiny_checkpoint(tmp_path / "best.pth")), "--device", "cpu"]
    for run in (lambda: prepare_data.main(["pairs", *common]), lambda: evaluate.main([*common, *checkpoint])):
        assert run() == 1 and "draws other pictures" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


# --- the clerical hand --------------------------------------------------------------------------------------------------


@pytest.fixture
def clerical(pack) -> Benchmark:
    """A benchmark of a pack in which "pen" is a clerical hand."""
    hands = [replace(hand, style="clerical") if hand.name == "pen" else hand for hand in pack.hands]
    return clerical_benchmark(replace(pack, hands=hands), PRESETS)


def test_the_clerical_benchmark_has_test_characters_of_clerical_hands(pack, clerical):
    assert {pack.hands[pack.hand[row["id"]]].name for row in clerical.rows} == {"pen"}
    assert {row["hands"] for row in clerical.rows} == {"clerical"}
    assert all(split_of(group_of(chr(pack.form[row["id"]]))) == "test" for row in clerical.rows)
    cells = {(row["preset"], row["severity"]) for row in clerical.rows}
    assert len(cells) == 2 * 3 and len(clerical) <= 6 * benchmark.CLERICAL_PER_CELL
    assert clerical.img_size == benchmark.IMG_SIZE and clerical.seed == benchmark.SEED
    assert not clerical.names.keys() - set(PRESETS) and not set(clerical.names.values()) & set(make(pack).names.values())


def test_evaluate_scores_the_clerical_hand_beside_the_benchmark(tiny_pack, clerical, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(Benchmark.__init__, "__defaults__", (PRESETS, 1, 64, 5))
    monkeypatch.setattr(evaluate, "RECOGNISER", Path("none"))
    monkeypatch.setattr(evaluate, "COPYLEFT", tiny_pack)
    monkeypatch.setattr(evaluate, "clerical_benchmark", lambda pack, presets: make(clerical.pack, presets, per_cell=2))
    checkpoint = str(tiny_checkpoint(tmp_path / "best.pth"))
    words = ["--benchmark", "classic", "--checkpoint", checkpoint, "--data", str(tiny_pack), "--device", "cpu", "--network_only"]
    assert evaluate.main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert result["n"] == 6 and result["clerical"]["n"] == 12
    assert result["clerical"]["name"].startswith("classic-") and result["clerical"]["name"] != result["benchmark"]["name"]
    assert result["clerical"]["restored"]["ci95"].keys() == result["restored"]["ci95"].keys()
    printed = capsys.readouterr().out
    assert "restored, clerical" in printed and "not the frozen benchmark" in printed
