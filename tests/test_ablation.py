import json
from pathlib import Path

import pytest
import torch

import main_denoise_cae
from models.files import from_settings
from tools import ablation
from util import settings

UNTOLD = next(variant for variant in ablation.STUDY if not variant.told)


def test_every_variant_has_valid_settings():
    for variant in ablation.STUDY:
        flags = [word for key, value in variant.settings.items() for word in (f"--{key}", str(value))]
        s = settings.parse(main_denoise_cae.build_parser(), ["--config", str(ablation.ROOT / "configs/ablation.yaml"), *flags])
        with torch.device("meta"):  # builds in no time
            from_settings(vars(s))
    assert len({variant.name for variant in ablation.STUDY}) == len(ablation.STUDY)


def test_variants_that_are_scored_otherwise_share_a_training():
    trainings = {}
    for variant in ablation.STUDY:
        trainings.setdefault(variant.training, []).append(variant)
    assert [len(variants) for variants in trainings.values()].count(2) == 1
    (shared,) = (variants for variants in trainings.values() if len(variants) > 1)
    assert shared[0] is ablation.BASE and shared[1].mean and not shared[1].settings


def test_run_trains_and_scores_what_has_no_result(tmp_path, monkeypatch):
    """Each variant is trained once, scored by its flags, and its result written last."""
    launched = []

    def launch(script, *flags):
        launched.append((script, *map(str, flags)))
        flags = launched[-1]
        if script == "main_denoise_cae.py":
            return
        out = Path(flags[flags.index("--output_dir") + 1])
        out.mkdir(parents=True, exist_ok=True)
        means = {name: dict.fromkeys(ablation.SCORES, len(launched)) for name in ("degraded", "restored")}
        (out / "metrics.json").write_text(json.dumps({"by_split": {"seen_hands": {"n": 3, **means, "baseline": {}}}}))
        (out / "real.json").write_text(json.dumps({"folders": {"some/slips": {"restored": {"top5": 0.5}}}}))

    settings = {
        "model": "restorer_convnext_atto",
        "img_size": 64,
        "in_chans": 4,
        "latent_dim": 8,
        "layer_scale": 0.1,
        "epochs": 2,
        "samples_per_epoch": 50,
    }
    monkeypatch.setattr(ablation, "load_network", lambda path: (None, settings))
    monkeypatch.setattr(ablation, "launch", launch)
    monkeypatch.setattr(ablation, "RESULTS", tmp_path / "results")
    mean = ablation.Variant("flow", "mean", mean=True)
    monkeypatch.setattr(
        ablation, "STUDY", [ablation.BASE, mean, ablation.Variant("guide", "none", {"guide_drop": 1.0}, told=False)]
    )
    words = ["run", "--seed", "7", "--output_dir", str(tmp_path / "runs"), "--real", str(tmp_path / "slips")]
    assert ablation.main(words) == 0
    trained = [flags for script, *flags in launched if script == "main_denoise_cae.py"]
    assert ["--guide_drop" in flags for flags in trained] == [False, False, True]
    assert all(flags[flags.index("--seed") + 1] == "7" for flags in trained)
    scored = [flags for script, *flags in launched if script == "evaluate.py"]
    assert len(scored) == 4 + 4 + 3 and ["--guide" in flags for flags in scored[:4]].count(True) == 1
    assert not any("--guide" in flags for flags in scored[8:])
    assert ["--steps" in flags for flags in scored] == [False] * 4 + [True] * 4 + [False] * 3
    result = json.loads((tmp_path / "results" / f"{mean.name}-7.json").read_text(encoding="utf-8"))
    assert result["scores"].keys() == {"mixed", "classic", ablation.TOLD}
    assert result["real"]["folders"] == {"slips": {"restored": {"top5": 0.5}}}
    assert result["pictures"] == 100 and result["gflops"] > 0.1
    assert result["scores"]["mixed"]["seen_hands"].keys() == {"n", "degraded", "restored"}
    del launched[:]
    assert ablation.main(words) == 0 and not launched


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Made-up results of the base and one more variant, two seeds each."""
    for name, place in (("RESULTS", "ablation"), ("DOCUMENT", "ablation.md"), ("PLOT", "ablation.png")):
        monkeypatch.setattr(ablation, name, tmp_path / place)
    ablation.RESULTS.mkdir()

    def part(gained: float) -> dict:
        scores = {"psnr": 10, "f1": 0.5, "top1": 0.2, "top1_hardened": 0.3}
        return {"n": 10, "degraded": scores, "restored": {"psnr": 10 + gained, "f1": 0.6, "top1": 0.5, "top1_hardened": 0.7}}

    for variant, gained in ((ablation.BASE, 3), (UNTOLD, 5)):
        for seed in (0, 1):
            hands = {"seen_hands": part(gained + seed), "unseen_hands": part(gained - 1)}
            names = ("mixed", "classic", ablation.TOLD)[: 2 + variant.told]
            slips = {"restored": {"top5": 0.2}, "restored_guided": {"top5": 0.4}, "n": 4}
            result = {"pictures": 100, "img_size": 64, "machine": "m", "commit": "c", "parameters": 1e6, "gflops": 0.5}
            result |= {"scores": dict.fromkeys(names, hands), "real": {"folders": {"slips": slips}}}
            result["real"]["clean_folders"] = {"steles": {"n": 5, "restored": {"psnr": 30 + seed}}}
            (ablation.RESULTS / f"{variant.name}-{seed}.json").write_text(json.dumps(result), encoding="utf-8")


def test_write_makes_the_document_from_results(results):
    ablation.DOCUMENT.write_text(f"# Five sentences\n\n{ablation.MARK}\noutdated\n", encoding="utf-8")
    assert ablation.main(["write"]) == 0
    text = ablation.DOCUMENT.read_text(encoding="utf-8")
    assert text.startswith("# Five sentences\n") and "outdated" not in text
    about = " ".join(text.partition(ablation.MARK)[2].partition("|")[0].split())
    assert (
        "2 seeds, each 100 pictures at 64 pixels" in about
        and "10 in seen and 10 in unseen hands" in about
        and "slips 4, steles 5" in about
    )
    base, untold = (
        next(line for line in text.splitlines() if line.startswith(f"| {variant.title} |")) for variant in (ablation.BASE, UNTOLD)
    )
    assert "| 1.0 | 0.50 | 2.75 [2.50, 3.00] | 2.00 [2.00, 2.00] | 2.75 [2.50, 3.00] | 60.0 [60.0, 60.0] |" in base
    assert base.endswith("| 30.5 [30.0, 31.0] | 20.0 [20.0, 20.0] | 40.0 [40.0, 40.0] |")
    assert "| 4.75 [4.50, 5.00] |" in untold and untold.endswith("| 20.0 [20.0, 20.0] | – |")
    assert ablation.PLOT.stat().st_size > 1000
    for path in ablation.RESULTS.iterdir():
        path.unlink()
    assert ablation.main(["write"]) == 1
