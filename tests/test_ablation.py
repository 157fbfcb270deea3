import json

import numpy as np
import pytest
import torch

import main_denoise_cae
from datasets.pack import open_pack
from models.files import from_settings
from tests.pictures import character
from tools import ablation
from util import images, settings


def test_every_variant_has_valid_settings():
    for variant in ablation.STUDY:
        flags = [word for key, value in variant.settings.items() for word in (f"--{key}", str(value))]
        s = settings.parse(main_denoise_cae.build_parser(), ["--config", str(ablation.ROOT / "configs/ablation.yaml"), *flags])
        with torch.device("meta"):  # builds in no time
            from_settings(vars(s))
    assert len({variant.name for variant in ablation.STUDY}) == len(ablation.STUDY)


def test_few_hands_are_of_different_families(tiny_pack, tmp_path):
    whole = open_pack(tiny_pack)
    few = open_pack(ablation.few_hands(tiny_pack, 1, tmp_path))
    roles = [hand.role for hand in few.hands]
    assert roles.count("train") == 1 < [hand.role for hand in whole.hands].count("train")
    assert {hand.name for hand in few.hands if hand.role != "train"} == {hand.name for hand in whole.hands if hand.role != "train"}
    name = next(hand.name for hand in few.hands if hand.role == "train")
    numbers = [[hand.name for hand in pack.hands].index(name) for pack in (few, whole)]
    for column in ("form", "character"):
        left, right = (getattr(pack, column)[pack.hand == number] for pack, number in zip((few, whole), numbers, strict=True))
        np.testing.assert_array_equal(left, right)


def test_clean_real_characters_are_degraded_and_scored(tmp_path):
    for number in range(3):
        picture = np.concatenate([character(40, 40), 255 - character(40, 40)], axis=1)
        images.write_png(tmp_path / "stele" / f"{number}.png", images.from_grey(picture / 255))

    class Unchanged(torch.nn.Module):
        img_size, in_chans = 32, 2

        def forward(self, x):
            assert x.shape[1:] == (2, 32, 32) and not x[:, 1].any()
            return torch.logit(x[:, :1], 1e-6)

    (scores,) = ablation.real_clean_scores(Unchanged(), [tmp_path / "stele"]).values()
    assert scores["n"] == 3 and 5 < scores["degraded"]["psnr"] < 40
    assert scores["restored"]["psnr"] == pytest.approx(scores["degraded"]["psnr"], abs=0.01)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Made-up results of the base and one more variant, two seeds each."""
    for name, place in (("RESULTS", "ablation"), ("DOCUMENT", "ablation.md"), ("PLOT", "ablation.png")):
        monkeypatch.setattr(ablation, name, tmp_path / place)
    ablation.RESULTS.mkdir()

    def part(gained: float) -> dict:
        return {
            "n": 10,
            "degraded": {"psnr": 10, "f1": 0.5, "top1": 0.2},
            "restored": {"psnr": 10 + gained, "f1": 0.6, "top1": 0.5},
        }

    for variant, gained in ((ablation.BASE, 3), (ablation.STUDY[-1], 5)):
        for seed in (0, 1):
            hands = {"seen_hands": part(gained + seed), "unseen_hands": part(gained - 1)}
            result = {"factor": variant.factor, "value": variant.value, "pictures": 100, "machine": "m", "commit": "c"}
            result |= {"parameters": 1e6, "gflops": 0.5, "ms": 2, "scores": dict.fromkeys(ablation.SCORED, hands), "real_clean": {}}
            slips = {"degraded": {"top5": 0.1}, "restored": {"top5": 0.2}, "restored_guided": {"top5": 0.4}}
            result |= {"guided": variant.guided, "real_degraded": {"slips": slips}}
            (ablation.RESULTS / f"{variant.name}-{seed}.json").write_text(json.dumps(result), encoding="utf-8")


def test_write_makes_the_document_from_results(results):
    ablation.DOCUMENT.write_text(f"# Five sentences\n\n{ablation.MARK}\nold\n", encoding="utf-8")
    assert ablation.main(["write"]) == 0
    text = ablation.DOCUMENT.read_text(encoding="utf-8")
    assert (
        text.startswith("# Five sentences\n")
        and "old" not in text
        and "2 seeds, each 100 pictures" in text
        and "mixed 10.00 dB" in text
    )
    row = next(line for line in text.splitlines() if line.startswith(f"| {ablation.STUDY[-1].value} |"))
    assert "| 4.75 [4.50, 5.00] |" in row and "| 4.00 [4.00, 4.00] |" in row and "| 30.0 [30.0, 30.0] |" in row
    assert row.endswith("| 40.0 [40.0, 40.0] |")  # with the guide
    assert ablation.PLOT.stat().st_size > 1000
    for path in ablation.RESULTS.iterdir():
        path.unlink()
    assert ablation.main(["write"]) == 1
