"""Damage from a user's own scans, and the restorer that is adapted to them."""

import numpy as np
import pytest
import torch
from scipy import ndimage

import adapt
from datasets import exemplars
from datasets.degradation import Degradation, load_preset
from datasets.pack import open_pack
from datasets.rng import sample_keys
from restoration import exemplars as scans
from tests.pictures import character
from util import images

SIZE = exemplars.SIZE
RNG = np.random.default_rng(0)


def scan(level: float = 0.8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A cross with soft edges on noisy ground with specks, and what a restorer makes of it."""
    rng, strokes = np.random.default_rng(seed), character(SIZE, SIZE) / np.float32(255)
    ground = 0.1 + 0.02 * rng.standard_normal((SIZE, SIZE))
    ground[rng.integers(0, SIZE, 60), rng.integers(0, SIZE, 60)] = 0.5
    mean = ndimage.gaussian_filter((strokes > 0.5).astype(np.float32), 1)
    return (ground + (level - ground) * ndimage.gaussian_filter((strokes > 0.5).astype(np.float32), 1)).clip(0, 1).astype(
        np.float32
    ), mean


@pytest.fixture
def bank(tmp_path) -> str:
    path = tmp_path / "bank.npz"
    exemplars.write(path, [exemplars.cut(*scan(level, i), RNG) for i, level in enumerate((0.6, 0.9))])
    return str(path)


def test_an_exemplar_holds_the_tones_and_textures_of_its_scan(bank):
    found = exemplars.load(bank, SIZE)
    np.testing.assert_allclose(found.levels, [[0.1, 0.6], [0.1, 0.9]], atol=0.03)
    assert found.box[0] == pytest.approx([0.1, 0.9, 0.1, 0.9], abs=0.03) and 0.1 < found.share[0] < 0.5
    assert (np.diff(found.profile) >= 0).all() and found.profile[0, 0] < 0.05 and found.profile[0, -1] > 0.9
    assert found.ground[0].std() == pytest.approx(0.025, abs=0.01)  # of the noise and the specks
    assert exemplars.cut(np.full((SIZE, SIZE), 0.5, np.float32), scan()[1], RNG) is None
    assert exemplars.load(bank, 64).ground.shape == (2, 64, 64)


def test_where_strokes_hid_the_ground_it_is_filled_with_itself(bank):
    ground, hidden = exemplars.load(bank, SIZE).ground[0], scan()[1] > 0.9
    assert ground[hidden].std() == pytest.approx(ground[~hidden].std(), rel=0.5)


def test_a_character_takes_place_and_weight_and_keeps_its_shape(bank):
    found, glyph = exemplars.load(bank, SIZE), np.zeros((SIZE, SIZE), np.float32)
    glyph[40:60, 30:90], glyph[40:120, 50:60] = 1, 1  # a T
    shaped = exemplars.shaped(glyph, found, 0) > 0.5
    rows, columns = np.flatnonzero(shaped.any(1)), np.flatnonzero(shaped.any(0))
    assert np.divide([rows[0], rows[-1], columns[0], columns[-1]], SIZE) == pytest.approx([0.1, 0.9, 0.1, 0.9], abs=0.06)
    assert shaped[30:190, 30:190].mean() == pytest.approx(found.share[0], abs=0.1)
    assert ndimage.label(shaped)[1] == 1 and not shaped[150:, :60].any()
    assert not exemplars.shaped(np.zeros_like(glyph), found, 0).any()


def test_damage_of_a_file_of_exemplars(bank):
    preset = {"exemplar_shape": {"p": 1.0, "file": bank}, "exemplar_ground": {"p": 1.0, "file": bank}}
    clean = torch.zeros(4, 1, 64, 64)
    clean[:, :, 10:54, 26:38] = 1
    keys = sample_keys(0, 0, np.arange(4))
    degraded, target = Degradation(preset, 64)(clean, keys)
    inside, outside = (
        torch.stack([x[mask].quantile(q) for x, mask in zip(degraded, masks, strict=True)])
        for masks, q in ((target > 0.9, 0.9), (target < 0.01, 0.5))
    )
    assert ((inside - 0.6).abs().minimum((inside - 0.9).abs()) < 0.12).all() and ((outside - 0.1).abs() < 0.05).all()
    again = Degradation(preset, 64)(clean[2:], keys[2:])[0]
    torch.testing.assert_close(again, degraded[2:])
    with pytest.raises(ValueError, match=r"exemplar_shape\.file is missing\.npz, not a file"):
        load_preset({"exemplar_shape": {"p": 1.0, "file": "missing.npz"}})
    with pytest.raises(ValueError, match="exemplar_shape moves the target as well"):
        load_preset(dict(reversed(preset.items())))


def test_a_file_that_holds_no_exemplars_is_refused(tmp_path):
    np.savez(tmp_path / "whole.npz", box=np.zeros((9, 4)))
    whole = (tmp_path / "whole.npz").read_bytes()
    for name, content in (("noise", b"noise"), ("empty", b""), ("cut", whole[:200]), ("other", whole)):
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.npz holds no exemplars"):
            exemplars.load(str(tmp_path / f"{name}.npz"), 64)


def test_a_folder_of_scans_is_a_preset(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "scans"
    for i in range(3):
        images.write_png(folder / f"{i}.png", images.from_grey(scan(0.7, i)[0]))
    table = load_preset(scans.preset_of(str(folder)))
    found = exemplars.load(table["exemplar_ground"]["file"], SIZE)
    assert len(found.share) == 3 and found.levels[:, 1].mean() > 0.3
    monkeypatch.setattr(scans, "load_restorer", lambda: pytest.fail("cut again"))
    mixed = load_preset(scans.preset_of(f"{folder}:.6,mixed:.4"))
    assert mixed[str(folder)]["exemplar_shape"]["file"] == table["exemplar_shape"]["file"] and "spalling" in mixed["mixed"]
    assert scans.preset_of("mixed") == "mixed" and scans.preset_of("mixed:.5,paper:.5") == "mixed:.5,paper:.5"
    monkeypatch.undo()
    images.write_png(tmp_path / "flat" / "a.png", images.from_grey(np.full((99, 99), 0.5)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="no picture of a character with contrast"):
        scans.preset_of(str(tmp_path / "flat"))


def test_adapting_needs_scans_and_does_not_replace_a_file(tmp_path, capsys):
    images.write_png(tmp_path / "scans" / "a.png", images.from_grey(scan()[0]))
    flags = [str(tmp_path / "scans"), "--output", str(tmp_path / "a.safetensors")]
    assert adapt.main(flags) == 1 and "1 pictures; adapting needs at least 20" in capsys.readouterr().err
    for i in range(20):
        images.write_png(tmp_path / "scans" / f"{i}.png", images.from_grey(np.full((9, 9), i / 20)))
    (tmp_path / "a.safetensors").write_bytes(b"kept")
    assert adapt.main(flags) == 1 and "a.safetensors: exists already" in capsys.readouterr().err
    flags[2] = str(tmp_path / "a.pth")
    assert adapt.main(flags) == 1 and "a.pth: weights are written as .safetensors" in capsys.readouterr().err


def test_a_fifth_of_the_scans_is_kept_aside_whatever_their_names(tmp_path):
    files = [tmp_path / "scans" / f"{i}" / "scan.png" for i in range(25)]
    for i, file in enumerate(files):
        images.write_png(file, images.from_grey(np.full((9, 9), i / 25)))
    train, aside = (images.pictures_in(part) for part in adapt.divide(files, tmp_path / "scans", tmp_path / "run"))
    assert len(aside) == 5 and len(train) == 20 and len({path.read_bytes() for path in (*train, *aside)}) == 25
    files[3].write_bytes(files[3].read_bytes()[:50])
    with pytest.raises(ValueError, match="scan.png: corrupt picture"):
        adapt.divide(files, tmp_path / "scans", tmp_path / "run")


def test_well_preserved_characters_become_a_hand(tmp_path, monkeypatch):
    for i in range(6):
        images.write_png(tmp_path / "scans" / f"{i}.png", images.from_grey(scan(0.7, i)[0]))
    monkeypatch.setattr(adapt, "SURE", 0.0)  # all are read for certain
    monkeypatch.setattr(adapt, "OWN", 0.01)  # of all characters are the stele's own
    pack = open_pack(adapt.PACK)
    monkeypatch.setattr(adapt, "open_pack", lambda path: pack)  # it takes seconds
    assert adapt.write_own_hand(tmp_path / "scans", tmp_path / "own.pack") == 6
    own = open_pack(tmp_path / "own.pack")
    assert own.hands[0].role == "train" and len(set(own.character.tolist())) >= 1
    assert len(own) == 6 * round(0.01 * len(pack) / 6)
    monkeypatch.setattr(adapt, "SURE", 1.0)
    assert adapt.write_own_hand(tmp_path / "scans", tmp_path / "none.pack") == 0 and not (tmp_path / "none.pack").exists()


@pytest.mark.parametrize(("better", "found"), [(True, 3), (False, 0)])
def test_adapted_weights_are_written_if_they_are_better(better, found, tmp_path, monkeypatch, capsys):
    """All but the training and the stele's own hand: the scans are divided, and both restorers are compared."""
    for i in range(24):
        images.write_png(tmp_path / "scans" / f"{i}.png", images.from_grey(np.full((9, 9), i / 24)))
    calls = []
    monkeypatch.setattr(adapt, "write_own_hand", lambda folder, target: found)
    monkeypatch.setattr(adapt.main_denoise_cae, "main", lambda flags: calls.append(flags) or 0)
    monkeypatch.setattr(adapt, "compare", lambda aside, checkpoints: ("PSNR", [1.0, 2.0 if better else 0.5]))
    monkeypatch.setattr(adapt, "load_network", lambda path: (path, {}))
    monkeypatch.setattr(adapt, "save_network", lambda network, settings, path: path.write_bytes(b"weights"))
    output = tmp_path / "a.safetensors"
    assert adapt.main([str(tmp_path / "scans"), "--output", str(output), "--output_dir", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert output.exists() == better and ("use the adapted weights" if better else "use the bundled weights") in printed
    train, aside = (set(images.pictures_in(tmp_path / "run" / "scans" / name)) for name in ("train", "aside"))
    assert len(aside) == 4 and len(train) == 20
    assert f"{len(aside)} kept aside; {found} well preserved" in printed
    (flags,) = calls
    assert (str(tmp_path / "run" / "own.pack") in flags[flags.index("--data") :]) == (found > 0)
    assert flags[flags.index("--preset") + 1] == f"{tmp_path / 'run' / 'scans' / 'train'}:.6,mixed:.4"
