"""The README's tables, from made-up results, and its picture of drawings."""

import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tools import drawings, results

HARDENED = ("top1_hardened", "top5_hardened")
SCORES = {key: 0.5 for key in results.COLUMN if key != "frechet"}


def row(**scores) -> dict:
    scores = {**SCORES, **scores}
    return {**scores, "ci95": {key: [value - 0.02, value + 0.04] for key, value in scores.items()}}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A project with results of an autoencoder and a restorer, which is better."""
    monkeypatch.setattr(results, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    for document in ("README.md", "docs/leaderboard.md"):
        (tmp_path / document).write_text("before\n{}\nstale\n{}\nafter\n".format(*results.MARKS), encoding="utf-8")
    for model, guide, psnr in (
        ("restorer_convnext_atto", True, 18),
        ("restorer_convnext_atto", False, 17),
        ("cae_convnext_atto", False, 13),
    ):
        part = {"degraded": row(psnr=11), "restored": row(psnr=psnr), "median_otsu": row(psnr=12)}
        result = {
            **part,
            "otsu": row(),
            "clean": row(top1=0.99),
            "frechet": dict.fromkeys(("degraded", "median_otsu", "restored"), 7),
        }
        result |= {"n": 3072, "characters": 344, "guide": guide, "benchmark": {"name": "all-1"}}
        result["checkpoint"] = {"path": f"weights/{model}.safetensors", "model": model}
        result |= {"by_preset": {"paper": part}, "by_split": {"seen_hands": part, "unseen_hands": part}, "clerical": part}
        folder = tmp_path / "docs" / "benchmark" / f"{model}{guide}"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(result), encoding="utf-8")
    log = [{"global_step": step, "loss": 1 / step, "val_psnr": 10 + step} for step in (1, 2)]
    (tmp_path / "docs" / "training").mkdir()
    (tmp_path / "docs" / "training" / "run.jsonl").write_text("\n".join(map(json.dumps, log)), encoding="utf-8")
    return tmp_path


def test_the_tables_are_written_between_the_marks(place):
    assert results.main([]) == 0
    text = (place / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"before\n{results.MARKS[0]}\n3,072 pictures of 344 held-out characters, benchmark `all-1`")
    assert text.endswith(f"{results.MARKS[1]}\nafter\n") and "stale" not in text and "top-1 99.0 %; top-1, hardened 50.0 %" in text
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    networks = ["autoencoder", "restorer", "restorer, with guide"]
    assert names == ["", "---", "degraded", "median filter, Otsu's threshold", *networks]
    assert "| restorer | 50.0 ± 3.0 | 50.0 ± 3.0 | 17.00 ± 0.03 | 0.500 | 50.0 | 50.0 | 0.50 | 7.00 |" in text
    document = (place / "docs" / "leaderboard.md").read_text(encoding="utf-8")
    assert "| | paper | seen hands | unseen hands | clerical hand |" in document
    assert "| restorer |" + " 50.0 / 50.0 / 17.00 |" * 4 in document
    assert all(f"- **{column.label}**: {column.meaning}" in document for column in results.COLUMN.values())
    assert (place / "docs" / "training.png").stat().st_size > 1000


def change(place, model: str, edit) -> None:
    """Calls `edit` with the content of a metrics.json and writes it again."""
    path = place / "docs" / "benchmark" / model / "metrics.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    edit(result)
    path.write_text(json.dumps(result), encoding="utf-8")


def without_optional(result: dict) -> None:
    for key in HARDENED:
        del result["restored"][key]
    del result["frechet"]


def test_scores_that_no_result_has_are_left_out(place):
    for folder in (place / "docs" / "benchmark").iterdir():
        change(place, folder.name, without_optional)
    assert results.main([]) == 0
    text = (place / "README.md").read_text(encoding="utf-8") + (place / "docs" / "leaderboard.md").read_text(encoding="utf-8")
    assert "| | top-1, % | PSNR, dB |" in text and "| | top-1, % | top-5, % | PSNR, dB |" in text and "| Fréchet" not in text


def test_a_score_that_one_result_lacks_is_a_dash(place):
    change(place, "cae_convnext_attoFalse", without_optional)
    assert results.main([]) == 0
    text = (place / "README.md").read_text(encoding="utf-8")
    assert "| autoencoder | 50.0 ± 3.0 | – | 13.00 ± 0.03 | 0.500 | 50.0 | 50.0 | 0.50 | – |" in text
    assert "| restorer | 50.0 ± 3.0 | 50.0 ± 3.0 | 17.00 ± 0.03 | 0.500 | 50.0 | 50.0 | 0.50 | 7.00 |" in text


def test_another_method_enters_the_leaderboard_under_its_folders_name(place):
    def pictures_of_a_folder(result: dict) -> None:
        del result["checkpoint"], result["clerical"], result["restored"]["psnr_clean"]
        result |= {"predictions": "restored", "guide": False}

    change(place, "cae_convnext_attoFalse", pictures_of_a_folder)
    (place / "docs" / "benchmark" / "cae_convnext_attoFalse").rename(place / "docs" / "benchmark" / "DocDiff")
    assert results.main([]) == 0
    document = (place / "docs" / "leaderboard.md").read_text(encoding="utf-8")
    assert "| | paper | seen hands | unseen hands | clerical hand |" in document
    assert "| DocDiff |" + " 50.0 / 50.0 / 13.00 |" * 3 + " – |" in document
    assert "| degraded |" + " 50.0 / 50.0 / 11.00 |" * 4 in document
    assert "DocDiff" not in (place / "README.md").read_text(encoding="utf-8")


def test_a_network_that_is_not_bundled_enters_under_its_folders_name(place):
    own = place / "docs" / "benchmark" / "my_restorer"
    shutil.copytree(own.with_name("restorer_convnext_attoFalse"), own)
    change(place, own.name, lambda result: result["checkpoint"].update(path="runs/demo/best.pth"))
    assert results.main([]) == 0
    document = (place / "docs" / "leaderboard.md").read_text(encoding="utf-8")
    assert "| restorer |" in document and "| my_restorer |" in document
    assert "my_restorer" not in (place / "README.md").read_text(encoding="utf-8")


def test_results_without_a_score_are_one_error(place, capsys):
    change(place, "cae_convnext_attoFalse", lambda result: result["restored"].pop("grey"))
    assert results.main([]) == 1
    error = capsys.readouterr().err
    assert "cae_convnext_attoFalse" in error and "no grey; score again with evaluate.py" in error


def test_results_of_different_benchmarks_are_refused(place, capsys):
    change(place, "cae_convnext_attoFalse", lambda result: result.update(benchmark={"name": "mixed-2"}))
    assert results.main([]) == 1 and "results of different benchmarks are not comparable: all-1, mixed-2" in capsys.readouterr().err


def test_a_document_without_marks_is_kept(place, capsys):
    (place / "README.md").write_text("no marks\n", encoding="utf-8")
    assert results.main([]) == 1 and "must contain the lines" in capsys.readouterr().err
    assert (place / "README.md").read_text(encoding="utf-8") == "no marks\n"


def test_drawings_have_a_column_for_each_character(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drawings, "OUTPUT", tmp_path / "drawings.png")
    monkeypatch.setattr(drawings, "COUNT", 2)
    assert drawings.main([]) == 0
    characters = capsys.readouterr().out.strip().rpartition(" ")[2]
    with Image.open(tmp_path / "drawings.png") as picture:
        pixels = np.asarray(picture)
    assert len(characters) == 2 and pixels.shape == (8 * drawings.STEP, drawings.MARGIN + 2 * drawings.STEP)
    rows = [pixels[i * drawings.STEP :][: drawings.TILE, drawings.MARGIN :][:, : drawings.TILE] for i in range(8)]
    assert all((one != other).any() for one, other in itertools.pairwise(rows))
