"""tools/compare.py: paired differences of two results, from made-up files."""

import csv

import numpy as np
import pytest

from tools import compare

CHARACTERS = 40


def write(folder, top1, psnr, **changed) -> None:
    """per_picture.csv of each character in two presets; the scores of the restored pictures are (2 * CHARACTERS,)."""
    folder.mkdir()
    with (folder / "per_picture.csv").open("w", newline="", encoding="utf-8") as file:
        writer = None
        for i, scores in enumerate(zip(top1, psnr, strict=True)):
            character = chr(0x4E00 + i // 2)
            row = {"id": i, "character": character, "form": character, "hand": "brush", "split": "seen_hands"}
            row |= {"preset": ("paper", "rubbing")[i % 2], "severity": (0.2, 0.8)[i % 2], "degraded_psnr": 10}
            row |= dict(zip(("restored_top1", "restored_psnr"), scores, strict=True)) | (changed if i == 5 else {})
            writer = writer or csv.DictWriter(file, row)
            if i == 0:
                writer.writeheader()
            writer.writerow(row)


@pytest.fixture
def folders(tmp_path):
    """B is 2 dB better on every picture; it recognises half of the rubbings, where A recognises none."""
    psnr, rubbing = np.random.default_rng(0).normal(15, 3, 2 * CHARACTERS).round(5), np.arange(2 * CHARACTERS) % 2
    write(tmp_path / "a", [""] + [0.0] * (2 * CHARACTERS - 1), psnr)
    write(tmp_path / "b", rubbing * (np.arange(2 * CHARACTERS) < CHARACTERS), psnr + 2)
    return tmp_path / "a", tmp_path / "b"


def test_differences_of_all_pictures_by_preset_and_by_severity(folders):
    result = compare.compare(*folders)
    assert {name: part["n"] for name, part in result.items()} == {
        "all": 80, "paper": 40, "rubbing": 40, "severity 0.2": 40, "severity 0.8": 40}  # fmt: skip
    assert all(part["psnr"] == pytest.approx([2, 2, 2]) for part in result.values())
    mean, low, high = result["rubbing"]["top1"]
    assert mean == 0.5 and high - low == pytest.approx(2 * 1.96 * 0.5 / CHARACTERS**0.5, rel=0.1)
    assert result["paper"]["top1"] == [0, 0, 0] and result["all"]["top1"][0] == pytest.approx(20 / 79, abs=1e-5)  # one is absent


def test_the_same_result_has_no_differences(folders):
    assert all(value == [0, 0, 0] for part in compare.compare(folders[0], folders[0]).values() for value in list(part.values())[1:])


def test_shares_are_printed_in_points(folders, capsys):
    assert compare.main([str(folder) for folder in folders]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "all: 80 pictures" and lines.index("rubbing: 40 pictures") == 6
    assert lines[7].split()[:3] == ["top-1,", "points", "+50.0"]
    assert lines[8].split() == ["PSNR,", "dB", "+2.00", "[+2.00,", "+2.00]"]


def test_scores_that_only_one_result_has_are_left_out(folders):
    text = (folders[1] / "per_picture.csv").read_text(encoding="utf-8")
    (folders[1] / "per_picture.csv").write_text(text.replace("restored_top1", "restored_drd"), encoding="utf-8")
    assert list(compare.compare(*folders)["all"]) == ["n", "psnr"]


@pytest.mark.parametrize("changed", [{"id": 99}, {"hand": "pen"}, {"severity": 0.5}, {"degraded_psnr": 11}])
def test_results_on_different_pictures_are_refused(folders, tmp_path, changed, capsys):
    write(tmp_path / "c", np.zeros(2 * CHARACTERS), np.zeros(2 * CHARACTERS), **changed)
    assert compare.main([str(folders[0]), str(tmp_path / "c")]) == 1
    assert "are not results on the same pictures" in capsys.readouterr().err


def test_results_of_another_number_of_pictures_and_missing_files_are_refused(folders, tmp_path, capsys):
    write(tmp_path / "c", np.zeros(10), np.zeros(10))
    with pytest.raises(ValueError, match="not results on the same pictures"):
        compare.compare(folders[0], tmp_path / "c")
    assert compare.main([str(folders[0]), str(tmp_path / "nowhere")]) == 1
    assert "per_picture.csv" in capsys.readouterr().err
