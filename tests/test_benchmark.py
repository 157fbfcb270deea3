import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import degradation
from datasets.pack import open_pack
from datasets.split import group_of, split_of
from evaluation import benchmark
from evaluation.benchmark import Benchmark

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


def test_the_name_of_the_benchmark_is_frozen():
    frozen = Benchmark(open_pack(Path(__file__).parent.parent / "data" / "zi.pack"))
    assert frozen.name == "all-de662a868d" and frozen.names["mixed"] == "mixed-98e4b47eb6"


def test_file_names_are_unique_and_start_with_the_character(pack):
    files = [row["file"] for row in make(pack).rows]
    assert len(set(files)) == len(files) and all(file.endswith(".png") and split_of(group_of(file[0])) == "test" for file in files)
