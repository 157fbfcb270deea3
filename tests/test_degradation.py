import io

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.degradation import (
    OPERATIONS,
    Degradation,
    _dilate,
    _one_stroke,
    gaussian_blur,
    jpeg_loss,
    load_preset,
    preset_names,
    scored_preset,
)
from datasets.rng import Stream, sample_keys, splitmix64
from tests.pictures import glyph_like

IMG_SIZE = 128
GEOMETRY = {"p": 1, "rotate": 3, "scale": 0.05, "shift": 0.05, "warp": 4}


@pytest.fixture(scope="module")
def clean():
    torch.manual_seed(0)
    strokes = torch.zeros(8, 1, IMG_SIZE, IMG_SIZE)
    strokes[:, :, 24:104, 56:72] = 1
    strokes[:, :, 56:68, 20:108] = 1
    strokes[:, :, 80:82, 20:108] = 1
    return strokes


def test_splitmix64_gives_the_published_numbers():
    state = (np.uint64(1234567) + np.arange(5, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(state).tolist() == expected


def test_draws_are_uniform_and_normal():
    stream = Stream(sample_keys(1, 2, np.arange(4000)), "test")
    u, z = stream.uniform(k=5), stream.normal(k=5)
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.002 and u.min() >= 0 and u.max() < 1
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02
    assert abs(np.corrcoef(u.T) - np.eye(5)).max() < 0.05


def test_draws_depend_on_seed_epoch_and_id_alone():
    ids = np.arange(100)
    keys = sample_keys(3, 1, ids)
    assert len({*keys, *sample_keys(4, 1, ids), *sample_keys(3, 2, ids), *sample_keys(1, 3, ids)}) == 400
    assert np.array_equal(Stream(keys, "a").uniform(k=3)[50:53], Stream(keys[50:53], "a").uniform(k=3))


@pytest.mark.parametrize("preset", preset_names())
def test_a_picture_does_not_depend_on_its_batch(clean, preset):
    keys = sample_keys(0, 0, np.arange(8))
    damage = Degradation(preset, IMG_SIZE)
    whole, target = damage(clean, keys)
    again, _ = damage(clean, keys)
    assert torch.equal(whole, again)
    for i in range(8):
        alone, alone_target = damage(clean[i : i + 1], keys[i : i + 1])
        assert (alone - whole[i : i + 1]).abs().max() <= 1 / 255
        assert (alone_target - target[i : i + 1]).abs().max() <= 1 / 255


@pytest.mark.parametrize("preset", preset_names())
def test_presets_damage_within_range_and_only_geometry_moves_the_target(clean, preset):
    damage = Degradation({**load_preset(preset), "clean": 0}, IMG_SIZE)
    for table in damage.presets.values():
        table.pop("geometry", None)
    keys = sample_keys(0, 0, np.arange(8))
    degraded, target = damage(clean, keys, severity=0.5)
    assert degraded.shape == clean.shape and degraded.min() >= 0 and degraded.max() <= 1
    assert torch.equal(target, clean)
    nearly_clean = np.array(list(damage.presets))[damage.drawn(keys)] == "nearly_clean"
    assert ((degraded - clean).abs().mean((1, 2, 3))[~nearly_clean] > 0.003).all()


def test_geometry_moves_target_and_picture_alike(clean):
    degraded, target = Degradation({"geometry": GEOMETRY}, IMG_SIZE)(clean, sample_keys(0, 0, np.arange(8)))
    assert torch.equal(degraded, target) and (target - clean).abs().mean() > 0.01


def test_clean_pictures_stay_unchanged(clean):
    degraded, target = Degradation({**load_preset("mixed"), "clean": 1.0}, IMG_SIZE)(clean, sample_keys(0, 0, np.arange(8)))
    assert torch.equal(degraded, clean) and torch.equal(target, clean)


@pytest.mark.parametrize("preset", ["mixed", "classic", "fused"])
def test_damage_grows_with_severity(clean, preset):
    keys = sample_keys(0, 0, np.arange(200))
    many = clean[:1].expand(200, -1, -1, -1)
    damage = Degradation(scored_preset(preset), IMG_SIZE)
    errors = []
    for severity in (0.0, 0.5, 1.0):
        degraded, target = damage(many, keys, severity)
        errors.append((degraded - target).square().mean().item())
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("name", [name for name, operation in OPERATIONS.items() if "file" not in operation.bounds])
def test_each_operation_alone_changes_the_picture(clean, name):
    tables = [load_preset(preset) for preset in preset_names()]
    row = next(table[name] for table in tables if name in table)
    degraded, target = Degradation({name: {**row, "p": 1.0}}, IMG_SIZE)(clean * 0.9, sample_keys(5, 0, np.arange(8)), severity=0.9)
    assert (degraded - clean * 0.9).abs().max() > 1e-3
    assert torch.isfinite(degraded).all()


def test_dark_operations_remove_ink_and_bright_ones_add_ink(clean):
    keys = sample_keys(1, 0, np.arange(8))
    for name, sign in {"missing": -1, "sheet_loss": -1, "fade": -1, "spalling": 1, "blot": 1, "specks": 1}.items():
        degraded, _ = Degradation({name: {**load_preset("mixed")[name], "p": 1.0}}, IMG_SIZE)(clean, keys, severity=0.9)
        assert ((degraded - clean) * sign >= -1e-6).all(), name


def test_veins_only_brighten_and_more_so_at_high_severity(clean):
    veins = Degradation({"veins": {**load_preset("album")["veins"], "p": 1.0}}, IMG_SIZE)
    keys = sample_keys(1, 0, np.arange(200))
    added = [veins(torch.zeros(200, 1, IMG_SIZE, IMG_SIZE), keys, severity)[0].mean().item() for severity in (0.0, 0.5, 1.0)]
    assert 0.002 < added[0] < added[1] < added[2] < 0.2
    assert (veins(clean, keys[:8], 1.0)[0] >= clean).all()


def test_a_mount_has_one_tone_and_leaves_what_it_frames(clean):
    keys, row = sample_keys(1, 0, np.arange(8)), {"p": 1.0, "width": [0.1, 0.2], "side": 1.0, "level": [0.3, 0.3], "line": 0.0}
    framed, target = Degradation({"mount": row}, IMG_SIZE)(clean, keys)
    inner = slice(IMG_SIZE // 5 + 1, -IMG_SIZE // 5 - 1)
    outer = torch.ones(IMG_SIZE, IMG_SIZE, dtype=bool)
    outer[(slice(IMG_SIZE // 10 - 1, 1 - IMG_SIZE // 10),) * 2] = False
    assert torch.equal(target, clean) and torch.equal(framed[:, 0, inner, inner], clean[:, 0, inner, inner])
    assert torch.allclose(framed[:, 0][:, outer], torch.tensor(0.3))
    none = Degradation({"mount": {**row, "side": 0.0, "line": 1.0}}, IMG_SIZE)(clean, keys)[0]
    assert torch.equal(none, clean)  # without a mount there is no line


def test_classic_changes_nothing_at_severity_0_and_every_operation_grows(clean):
    keys, many = sample_keys(0, 0, np.arange(100)), clean[:1].expand(100, -1, -1, -1)
    assert torch.equal(Degradation("classic", IMG_SIZE)(many, keys, 0.0)[0], many)
    for name, row in load_preset("classic").items():
        if name in OPERATIONS:
            damage = Degradation({name: {**row, "p": 1.0}}, IMG_SIZE)
            errors = [(damage(many, keys, s)[0] - many).abs().mean().item() for s in (0.1, 0.3, 0.5, 0.7, 1.0)]
            assert errors == sorted(errors) and errors[2] > 3 * errors[0] and errors[4] > 1.3 * errors[2], name


def test_fused_losses_are_large_one_sided_and_joined_to_the_strokes():
    from scipy import ndimage

    n, row = 200, load_preset("fused")["breakage"]
    many = two_strokes().expand(n, -1, -1, -1)
    for two, pieces in ((0.0, 1), (1.0, 2)):
        table = {"breakage": {**row, "p": 1.0, "two": two, "close": 0.0}}
        degraded, _ = Degradation(table, IMG_SIZE)(many, sample_keys(2, 0, np.arange(n)), severity=0.6)
        assert (degraded >= many).all()
        loss = ((degraded - many) > 0.5).numpy()[:, 0]
        assert 0.1 < np.median(loss.mean((1, 2))) < 0.4 and loss.mean((1, 2)).max() > 0.4
        grown = [ndimage.label((picture > 0.5).numpy())[0] for picture in degraded[:, 0]]
        # nearly all of the white is one or two areas, which hold the strokes too
        assert np.mean([np.sort(np.bincount(g[g > 0]))[-2:].sum() / (g > 0).sum() for g in grown]) > 0.97
        around = np.array(np.mgrid[:IMG_SIZE, :IMG_SIZE]) - (IMG_SIZE - 1) / 2
        away = [np.hypot(*(around * part).sum((1, 2)) / part.sum()) for part in loss]
        assert np.median(away) > (0.12 if pieces == 1 else 0.05) * IMG_SIZE  # their centre is at a side


def test_breakage_reaches_only_near_the_strokes_if_close(clean):
    row = {**load_preset("fused")["breakage"], "p": 1.0, "two": 0.0}
    keys, few = sample_keys(3, 0, np.arange(64)), two_strokes().expand(64, -1, -1, -1)
    near, far = (Degradation({"breakage": {**row, "close": close}}, IMG_SIZE)(few, keys, 0.9)[0] for close in (1.0, 0.0))
    assert (near <= far).all() and near.sum() - few.sum() < 0.6 * (far.sum() - few.sum())


@pytest.mark.parametrize("img_size", [32, 224])
def test_breakage_covers_a_part_of_a_single_flat_stroke(img_size):
    row = {"p": 1.0, "length": [10, 60], "two": 0.0, "cell": 1.0, "close": 0.0}
    stroke, keys = torch.zeros(32, 1, img_size, img_size), sample_keys(0, 0, np.arange(32))
    stroke[..., img_size // 2 + 1 : img_size // 2 + 3, img_size // 8 : -img_size // 8] = 1
    damages = [Degradation({"breakage": {**row, "cover": [cover, cover]}}, img_size) for cover in (0.3, 0.9)]
    some, most = ((damage(stroke, keys)[0] - stroke).mean() for damage in damages)
    assert 0.005 < some < 0.6 * most


def test_fused_keeps_the_weight_of_intact_strokes():
    assert load_preset("fused")["edges"]["moved"] == 0
    for p, weights in ((0.0, (0.98, 1.02)), (1.0, (0.5, 0.95))):
        table = {"edges": {"p": 1.0, "blur": [4, 4], "offset": [0.1, 0.1], "noise": [0, 0], "moved": p}}
        ink = Degradation(table, IMG_SIZE)(two_strokes(), sample_keys(0, 0, np.arange(1)), 0.5)[0].sum() / two_strokes().sum()
        assert weights[0] < ink < weights[1]


def test_edges_move_with_probability_1_by_default(clean):
    row, keys = {"p": 1.0, "blur": [1, 2], "offset": [-0.1, 0.1], "noise": [0, 0.2]}, sample_keys(0, 0, np.arange(8))
    default, always = (Degradation({"edges": edges}, IMG_SIZE)(clean, keys)[0] for edges in (row, {**row, "moved": 1.0}))
    assert torch.equal(default, always)


MIXTURE = "mixed:3,classic:.75,rubbing:1.25"


def test_each_picture_of_a_mixture_equals_that_of_its_preset(clean):
    keys = sample_keys(4, 0, np.arange(64))
    many, mixture = clean.repeat(8, 1, 1, 1), Degradation(MIXTURE, IMG_SIZE)
    degraded, target = mixture(many, keys)
    drawn, severities = mixture.drawn(keys), mixture.severities(keys)
    assert set(drawn) == {0, 1, 2}
    for position, name in enumerate(mixture.presets):
        damage, rows = Degradation(name, IMG_SIZE), drawn == position
        assert np.array_equal(damage.severities(keys)[rows], severities[rows])
        for ours, theirs in zip((degraded, target), damage(many, keys), strict=True):
            assert (ours[rows] - theirs[rows]).abs().max() <= 1 / 255


def test_a_mixture_has_the_shares_of_its_weights():
    mixture, n = Degradation(MIXTURE, 32), 20_000
    assert mixture.table["mixture"] == pytest.approx({"mixed": 0.6, "classic": 0.15, "rubbing": 0.25})
    shares = np.bincount(mixture.drawn(sample_keys(0, 3, np.arange(n)))) / n
    for share, weight in zip(shares, mixture.table["mixture"].values(), strict=True):
        assert abs(share - weight) < 4 * np.sqrt(weight * (1 - weight) / n)


def test_a_mixture_file_has_presets_of_its_own_and_shares_clean_and_severity(tmp_path, clean):
    (tmp_path / "noisy.yaml").write_text("noise: {p: 1, sd: [.1, .1]}")
    file = tmp_path / "many.yaml"
    file.write_text(
        f"clean: .5\nseverity: [50, 1]\nmixture: {{classic: 2, own: 1, {tmp_path}/noisy.yaml: 1}}\n"
        "own: {blur: {p: 1, sigma: [1, 2]}}"
    )
    table = load_preset(file)
    assert list(table["mixture"].values()) == [0.5, 0.25, 0.25] and table["own"]["blur"]["sigma"] == [1, 2]
    assert load_preset(table) == table
    keys, many = sample_keys(0, 0, np.arange(400)), clean[:1].expand(400, -1, -1, -1)
    mixture = Degradation(table, IMG_SIZE)
    unchanged = (mixture(many, keys)[0] == many).flatten(1).all(1).float().mean()
    assert 0.4 < unchanged < 0.6 and mixture.severities(keys).min() > 0.8
    assert (Degradation(scored_preset(file), IMG_SIZE)(many[:50], keys[:50])[0] != many[:50]).flatten(1).any(1).all()


def test_the_broad_mixture_holds_every_preset_and_hardly_damaged_pictures():
    table = load_preset("broad")
    assert table["mixture"].keys() == {*preset_names(), "nearly_clean"} - {"broad", "every", "severe"}
    assert sum(table["mixture"].values()) == pytest.approx(1) and table["mixture"]["classic"] == pytest.approx(1 / 7, abs=0.01)
    hardly = table["clean"] + (1 - table["clean"]) * table["mixture"]["nearly_clean"]
    assert hardly == pytest.approx(0.15, abs=0.01)


def two_strokes(img_size: int = IMG_SIZE) -> torch.Tensor:
    """A broad stroke above a narrow one."""
    x = torch.zeros(1, 1, img_size, img_size)
    x[:, :, 20:44, 20:108] = 1
    x[:, :, 80:90, 20:108] = 1
    return x


def test_a_dropped_stroke_is_one_connected_stroke_and_not_the_character():
    table = {"missing": {"p": 1.0, "cover": [0, 0], "length": [8, 8], "one_sided": 0, "strokes": 1.0}}

    def left(picture):
        degraded, _ = Degradation(table, IMG_SIZE)(picture.expand(20, -1, -1, -1), sample_keys(0, 0, np.arange(20)), severity=0.0)
        return (degraded > 0.4).float()

    both = two_strokes()
    upper, equal, joined = both.clone(), both.clone(), both.clone()
    upper[:, :, 80:90] = 0
    assert torch.equal(left(both), upper.expand(20, -1, -1, -1))  # the upper one has more than half of the ink
    joined[:, :, 20:90, 60:70] = 1
    assert torch.equal(left(joined), joined.expand(20, -1, -1, -1))
    equal[:, :, 90:104, 20:108] = 1
    halves = left(equal)[:, 0].view(20, 2, -1).sum(2) > 0
    assert (halves.sum(1) == 1).all() and halves.any(0).all()  # one of the two, at random


def test_a_winding_stroke_is_followed_to_its_end():
    x = torch.zeros(1, IMG_SIZE, IMG_SIZE)
    for number, row in enumerate(range(0, 96, 16)):  # a meander
        x[:, row : row + 4, :100] = 1
        left = 0 if number % 2 else 96
        x[:, row : row + 20, left : left + 4] = 1
    x[:, :, 104:] = 1  # and a block with more than half of the ink
    stroke = _one_stroke(x, torch.rand(1, IMG_SIZE, IMG_SIZE))
    assert torch.equal(x[:, :, :104], stroke[:, :, :104]) and stroke[:, :, 104:].sum() == 0


def test_fraction_of_clean_pictures_is_that_of_the_preset():
    n = 2000
    keys = sample_keys(9, 0, np.arange(n))
    x = torch.full((n, 1, 32, 32), 0.5)
    degraded, _ = Degradation({"clean": 0.07, "noise": {"p": 1.0, "sd": [0.1, 0.1]}}, 32)(x, keys)
    share = (degraded == x).all(3).all(2).float().mean().item()
    assert 0.05 < share < 0.09


def test_dilation_equals_max_pooling():
    x = torch.rand(2, 40, 40)
    for radius in range(1, 8):
        assert torch.equal(_dilate(x, radius), torch.nn.functional.max_pool2d(x[:, None], 2 * radius + 1, 1, radius)[:, 0])


def test_no_operation_synchronises_with_the_device():
    """Tensors on the "meta" device have no values, so whatever waits for a value of the device fails."""
    for preset in preset_names():
        table = load_preset(preset)
        if "mixture" not in table:
            table = {name: {**row, "p": 1.0} if isinstance(row, dict) else row for name, row in table.items()}
        degraded, target = Degradation({**table, "clean": 0.0}, 64, "meta")(
            torch.empty(4, 1, 64, 64, device="meta"), sample_keys(0, 0, np.arange(4))
        )
        assert degraded.shape == target.shape == (4, 1, 64, 64)


@pytest.mark.parametrize("quality", [35, 50, 75, 95])
def test_jpeg_loss_equals_that_of_pillow(quality):
    pictures = glyph_like(4)
    ours = jpeg_loss(pictures[:, 0], np.full(4, float(quality)))
    for picture, our in zip(pictures[:, 0], ours):
        file = io.BytesIO()
        Image.fromarray((picture.numpy() * 255).round().astype(np.uint8)).save(file, "JPEG", quality=quality)
        theirs = np.asarray(Image.open(file), dtype=np.float32) / 255
        # Pillow's cosine transform uses integers, so a coefficient half way between two steps may be rounded the other way
        assert np.abs(our.numpy() - theirs).mean() * 255 < 0.9
        if quality < 95:
            losses = [(x - picture.numpy()).ravel() for x in (our.numpy(), theirs)]
            assert np.corrcoef(losses)[0, 1] > 0.95


def test_gaussian_blur_equals_that_of_scipy():
    from scipy import ndimage

    x, sigma = torch.rand(3, 40, 40), np.array([0.6, 1.0, 2.0])
    ours = gaussian_blur(x, torch.tensor(sigma, dtype=torch.float32), 8)
    for picture, our, s in zip(x, ours, sigma):
        reference = ndimage.gaussian_filter(picture.numpy(), s, mode="nearest", radius=8)
        assert np.allclose(our, reference, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("rubing", "no damage preset 'rubing', nor such a YAML file, did you mean 'rubbing'"),
        ("mixed:.6,rubing:.4", "no damage preset 'rubing'.*did you mean 'rubbing'"),
        ("mixed:.6,rubbing", "'rubbing' is not NAME:WEIGHT"),
        ("mixed:.6,rubbing:much", "'rubbing:much' is not NAME:WEIGHT"),
        ("mixed:-1,rubbing:1", "mixture.mixed is -1.0, outside"),
        ("mixed:0", "all weights of the mixture are 0"),
        ("mixed:1,broad:1", "broad is a mixture itself"),
        ({"mixture": {}}, "mixture is a table of presets and their weights"),
        ({"mixture": {"mixed": 1}, "clen": 0.1}, "'clen' is not in the mixture, did you mean 'clean'"),
        ({"mixture": {"own": 1}, "own": {"blr": {}}}, "no operation 'blr', did you mean 'blur'"),
        ({"craks": {"p": 1}}, "no operation 'craks', did you mean 'cracks'"),
        ({"blur": {"p": 1, "sigmoid": [1, 2]}}, "blur has no 'sigmoid', did you mean 'sigma'"),
        ({"blur": {"p": 1.5, "sigma": [1, 2]}}, r"blur.p is 1.5, outside 0 … 1"),
        ({"blur": {"p": 1, "sigma": [2, 1]}}, r"a range is \[low, high\]"),
        ({"blur": {"p": 1, "sigma": 1.5}}, r"blur.sigma is 1.5, not two numbers"),
        ({"pits": {"p": 1, "count": [1, 9], "area": [2, 20]}}, r"pits.count is \[1, 9\], not one number"),
        ({"blur": {"p": 1}}, "blur lacks sigma"),
        ({"clean": 2}, "clean is 2, outside"),
        ({"jpeg": {"p": 1, "quality": [35, 95]}, "geometry": GEOMETRY}, "geometry moves the target as well"),
    ],
)
def test_the_error_of_a_bad_preset_names_the_operation_and_parameter(preset, message):
    with pytest.raises(ValueError, match=message):
        load_preset(preset)


def test_bad_pictures_are_refused(clean):
    with pytest.raises(ValueError, match=r"expected \(8, 1, 32, 32\)"):
        Degradation("mixed", 32)(clean, sample_keys(0, 0, np.arange(8)))
    with pytest.raises(ValueError, match="severity 1.5"):
        Degradation("mixed", IMG_SIZE)(clean, sample_keys(0, 0, np.arange(8)), severity=1.5)
    for img_size in (0, 100):
        with pytest.raises(ValueError, match=f"img_size {img_size} is not a multiple of 8"):
            Degradation("classic", img_size)


def test_a_preset_that_is_not_yaml_is_refused(tmp_path):
    (tmp_path / "bad.yaml").write_text("blur: {p: 1")
    with pytest.raises(ValueError, match=r"bad\.yaml is not valid YAML"):
        load_preset(tmp_path / "bad.yaml")
