import numpy as np
import pytest

from tests.pictures import glyph_like
from tools.realism import IMG_SIZE, NAMES, fit, main, real_statistics, separability, statistics
from util import images


def character() -> np.ndarray:
    """A bar of 200 × 40 pixels at level 1 on a ground of level 0."""
    x = np.zeros((IMG_SIZE, IMG_SIZE), np.float32)
    x[92:132, 12:212] = 1
    return x


def measured(x: np.ndarray) -> dict[str, float]:
    return dict(zip(NAMES, statistics(x), strict=True))


def test_specks_holes_and_ink_are_counted():
    x = character()
    for column in (30, 90, 150):
        x[20:23, column : column + 3] = 1
    x[40, 40] = 1  # one pixel is noise
    x[110:114, 100:105] = 0
    found = measured(x)
    assert (found["specks"], found["speck_area"], found["holes"]) == (3, 9, 1)
    assert found["ink"] == pytest.approx(100 * (200 * 40 - 20 + 27 + 1) / IMG_SIZE**2)
    assert measured(character())["specks"] == measured(character())["holes"] == 0


def test_levels_and_noise():
    x = 0.1 + 0.7 * character()
    found = measured(x)
    assert found["stroke_level"] == pytest.approx(0.8 * 255, abs=0.5) and found["ground_level"] == pytest.approx(25.5, abs=0.5)
    assert found["stroke_sd"] == pytest.approx(0, abs=1e-3) and found["ground_sd"] == pytest.approx(0, abs=1e-3)
    noisy = x + np.random.default_rng(0).normal(0, 0.02, x.shape).astype(np.float32)
    assert measured(noisy)["stroke_sd"] == pytest.approx(5.1, rel=0.1) and measured(noisy)["ground_sd"] == pytest.approx(
        5.1, rel=0.1
    )


def test_roughness_and_softness():
    straight, ragged = character(), character()
    ragged[90:92, 12:212:4] = ragged[90:92, 13:212:4] = 1  # teeth of 2 × 2 pixels
    assert measured(straight)["roughness"] == pytest.approx(1, abs=0.05)
    assert measured(ragged)["roughness"] == pytest.approx(1 + 50 * 4 / 480, abs=0.06)
    soft = character()
    soft[132:136, 12:212] = np.array([0.6, 0.55, 0.45, 0.4])[:, None]  # four of the pixels along one of the long sides
    assert measured(straight)["softness"] == 0
    assert measured(soft)["softness"] == pytest.approx(4 * 200 / 484, abs=0.05)


def test_a_picture_of_one_level_has_no_statistics():
    assert not statistics(np.full((IMG_SIZE, IMG_SIZE), 0.5, np.float32)).any()


def test_size_and_place_in_the_frame_have_no_effect():
    x = character()
    framed = np.zeros((400, 300), np.float32)
    framed[160:200, 60:260] = 1
    framed[5:9, 5:9] = 1  # a speck is not part of the character
    assert np.abs(fit(x) - fit(framed)).mean() < 0.01


def test_separability_is_low_for_equal_and_high_for_different_distributions():
    rng = np.random.default_rng(0)
    one, other = rng.gamma(2, 1, (100, 10)), rng.gamma(2, 1, (150, 10))
    assert abs(separability(one, other)[0] - 0.5) < 0.12
    auc, _, weights = separability(one, other + 3 * (np.arange(10) == 4))
    assert auc > 0.9 and weights.argmin() == 4
    with pytest.raises(ValueError, match="at least five"):
        separability(one[:3], other)


def test_polarity_has_no_effect_and_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no pictures"):
        real_statistics(tmp_path)
    picture = glyph_like(1)[0, 0].numpy()
    images.write_png(tmp_path / "bright.png", images.from_grey(picture))
    images.write_png(tmp_path / "dark.png", images.from_grey(1 - picture))
    bright, dark = real_statistics(tmp_path)
    assert np.allclose(bright, dark, atol=1.5)


def test_the_command_prints_all_statistics_and_the_auc(tiny_pack, tmp_path, capsys):
    for number, picture in enumerate(glyph_like(6)):
        images.write_png(tmp_path / f"{number}.png", images.from_grey(picture[0].numpy()))
    assert main([str(tmp_path), "--preset", "rubbing", "--data", str(tiny_pack), "--count", "6", "--hands", "brush"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES) and "AUC" in out.splitlines()[-1]
    assert main([str(tmp_path), "--data", str(tiny_pack), "--hands", "claw"]) == 1
    assert "no hand 'claw' in the pack" in capsys.readouterr().err
