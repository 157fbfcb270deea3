"""The polarity and its certainty, and the box of the character."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evaluation import places
from restoration import place
from restoration.pipeline import Restorer
from tests.pictures import network, scene
from util import images, squares

SIZE = 64


def restorer_of(predict=lambda x: x[:, 0]) -> Restorer:
    return Restorer(network(predict), {"img_size": SIZE, "in_chans": 1})


@pytest.mark.parametrize("tone", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("bright", [True, False])
def test_letterboxed_pictures_are_restored_with_their_polarity_and_size(tone, bright):
    x = np.pad(scene() if bright else 1 - scene(), ((0, 0), (150, 150)), constant_values=tone)
    restorer = restorer_of()
    prepared = restorer.prepare(images.from_grey(x))
    assert prepared.polarity == ("bright" if bright else "dark") and prepared.certainty > 0.9
    assert prepared.box == squares.Box(0, 150, 160)
    (restored,) = restorer.restore([prepared])
    assert restored.picture().size == (460, 160)
    assert not restored.ink[:, :150].any() and not restored.ink[:, 310:].any()
    assert not restored.parts["removed"][:, :150].any()  # the margin is not ink that was lost
    assert restored.numbers()["polarity_certainty"] > 0.9


def test_a_transparent_surrounding_is_left_out():
    opaque = np.pad(np.full((160, 160), 255, np.uint8), ((0, 0), (100, 100)))
    x = images.from_grey(np.pad(1 - scene(), ((0, 0), (100, 100))))
    prepared = restorer_of().prepare(Image.merge("LA", [x, Image.fromarray(opaque)]))
    assert prepared.polarity == "dark" and prepared.bright.shape == (160, 360)


@pytest.mark.parametrize("bright", [True, False])
def test_rgba_margins_with_strokes_of_either_polarity_are_left_out(bright):
    x = images.from_grey(np.pad(scene() if bright else 1 - scene(), 70))
    opaque = Image.fromarray(np.pad(np.full((160, 160), 255, np.uint8), 70))
    prepared = restorer_of().prepare(Image.merge("RGBA", [x, x, x, opaque]))
    assert prepared.polarity == ("bright" if bright else "dark")
    assert prepared.bright.shape == (300, 300)


def test_the_certainty_is_one_if_the_polarity_is_passed_and_one_half_for_one_tone():
    restorer = restorer_of()
    assert restorer.prepare(images.from_grey(scene()), polarity="dark").certainty == 1
    assert restorer.prepare(Image.new("L", (30, 30), 90)).certainty == 0.5


def test_the_network_decides_in_doubt():
    """A network that finds bright strokes and nothing else."""
    x = np.zeros((64, 64), dtype=np.float32)
    x[:, :33] = 1
    calls = []

    def network(batch: np.ndarray) -> np.ndarray:
        calls.append(len(batch))
        known = batch[:, 0, :, :8].mean((1, 2), keepdims=True) > 0.5
        return np.where(known, 8 * batch[:, 0] - 4, -4)

    restorer = restorer_of(network)
    for picture, expected in ((x, "bright"), (1 - x, "dark")):
        prepared = restorer.prepare(images.from_grey(picture))
        assert prepared.certainty < 0.9 and prepared.other.polarity != prepared.polarity
        (restored,) = restorer.restore([prepared])
        assert restored.prepared.polarity == expected
    certain = restorer.prepare(images.from_grey(scene()))
    restorer.restore([certain, prepared, certain])
    assert calls == [2, 2, 4] and certain.other is None


@pytest.mark.parametrize(("certainty", "kept"), [(0.6, "dark"), (0.97, "bright")])
def test_more_edges_decide_unless_the_pixels_are_more_certain(certainty, kept):
    """A tenth more edges double the odds."""

    stripes = np.broadcast_to(np.arange(SIZE) % 4 < 2, (SIZE, SIZE))
    restorer = restorer_of(lambda x: stripes * np.where(x[:, 0, :1, :1] > 0.5, 0.88, 0.8))
    grey = restorer.prepare(Image.new("L", (64, 64), 90))
    dark = replace(grey, polarity="dark", certainty=1 - certainty, x=np.ones_like(grey.x), other=None)
    bright = replace(grey, polarity="bright", certainty=certainty, x=np.zeros_like(grey.x), other=dark)
    assert restorer.restore([bright])[0].prepared.polarity == kept


def cross(size: int, at: tuple[int, int], edge: int) -> np.ndarray:
    """(size, size): a bright cross in a square of that edge."""
    x, (top, left), width = np.zeros((size, size), dtype=np.float32), at, max(2, edge // 6)
    x[top : top + edge, left + (edge - width) // 2 :][:, :width] = 1
    x[top + (edge - width) // 2 :, left : left + edge][:width] = 1
    return x


@pytest.mark.parametrize(("at", "edge"), [((20, 140), 60), ((150, 10), 90), ((90, 90), 40), ((60, 170), 24)])
@pytest.mark.parametrize("specks", [0, 40])
def test_the_ink_is_found_off_centre_and_small(at, edge, specks):
    x = cross(240, at, edge)
    rows, columns = np.random.default_rng(0).integers(0, 239, (2, specks))
    for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x[rows + down, columns + across] = 1
    ink, share = place.find_ink(x)
    assert places.overlap(np.array(ink), np.array([*at, at[0] + edge, at[1] + edge])) > 0.7
    assert share == 1 or 0.1 < share < 1 and specks


def test_neighbours_and_frame_lines_are_left_out():
    x, box = cross(240, (70, 70), 100), np.array([70, 70, 170, 170])
    column = x.copy()
    column[:50], column[-50:] = x[120:170], x[70:120]  # halves of its neighbours
    framed = x.copy()
    framed[4:8, 4:236], framed[232:236, 4:236], framed[4:236, 4:8], framed[4:236, 232:236] = 1, 1, 1, 1
    for picture in (column, column.T, framed):
        assert places.overlap(np.array(place.find_ink(picture)[0]), box) > 0.8
    assert place.find_box(framed).edge == pytest.approx(100 / 0.8, abs=6)


def test_a_dot_apart_is_in_the_box():
    x = cross(240, (100, 80), 90)
    x[76:88, 118:130] = 1  # beyond a gap of a seventh of the character, with a twentieth of its ink
    for picture in (x, x[::-1], x.T):
        rows, columns = place.find_box(picture).part(240, 240)
        assert picture[rows, columns].sum() == x.sum()


def test_the_box_is_the_whole_picture_if_the_character_is_large():
    assert place.find_box(cross(240, (30, 50), 150)).edge == pytest.approx(150 / 0.8, abs=6)
    assert place.find_box(cross(240, (30, 50), 170)) == squares.whole(240, 240)


def test_uneven_light_does_not_matter():
    light = np.linspace(0, 0.6, 240, dtype=np.float32)[:, None]
    ink, _ = place.find_ink(0.3 * cross(240, (20, 140), 60) + light)
    assert places.overlap(np.array(ink), np.array([20, 140, 80, 200])) > 0.8


@pytest.mark.parametrize("bright", [True, False])
@pytest.mark.parametrize("falloff", [0.5, 0.7])
def test_uneven_light_is_evened_and_even_light_is_kept(bright, falloff):
    x = scene() if bright else 1 - scene()
    np.testing.assert_array_equal(place.even(x), x)
    paper = 1 - 0.8 * cross(160, (20, 20), 120)
    light = 1 - falloff * np.linspace(0, 1, 160, dtype=np.float32)[:, None]
    evened = place.even(paper * light)
    assert np.ptp(evened[paper == 1]) < 0.1 < np.ptp((paper * light)[paper == 1])
    assert squares.bright_probability(evened) < 0.1


INK, PAPER, BROWN = (0.1, 0.1, 0.11), (0.92, 0.89, 0.82), (0.68, 0.52, 0.36)


def in_colour(strokes: np.ndarray, ink: tuple, ground: tuple, seal: np.ndarray | None = None, opaque: bool = False) -> np.ndarray:
    """(H, W) → (H, W, 3): strokes on a ground, with noise and a red seal, translucent or opaque."""
    x = np.array(ground) + strokes[..., None] * (np.array(ink) - ground)
    if seal is not None:
        red = np.array((0.75, 0.16, 0.13)) if opaque else x * (0.9, 0.2, 0.18)
        x = np.where(seal[..., None] > 0, red, x)
    return (x + 0.02 * np.random.default_rng(0).standard_normal(x.shape)).clip(0, 1).astype(np.float32)


def stamp(top: int, left: int, edge: int = 60) -> np.ndarray:
    """(200, 200): a frame with lines in it."""
    x = np.zeros((200, 200))
    x[top : top + edge, left : left + edge] = 1
    x[top + 4 : top + edge - 4, left + 4 : left + edge - 4] = 0
    for line in range(edge // 4, edge, edge // 4):
        x[top + 8 : top + edge - 8, left + line : left + line + 5] = 1
    return x


@pytest.mark.parametrize(("ink", "ground"), [(INK, PAPER), (INK, BROWN), (PAPER, INK)])
@pytest.mark.parametrize(("seal", "opaque"), [(stamp(10, 130), True), (stamp(10, 130), False), (stamp(70, 60), False)])
def test_a_red_seal_beside_or_over_the_strokes_leaves_by_its_colour(ink, ground, seal, opaque):
    strokes = cross(200, (30, 30), 140)
    plain, sealed = (place.even(place.separate(in_colour(strokes, ink, ground, *there))) for there in ((), (seal, opaque)))
    bright = ink is PAPER
    assert squares.find_polarity(sealed) == squares.find_polarity(plain) == ("bright" if bright else "dark")
    masks = [squares.ink_mask(x if bright else 1 - x) for x in (plain, sealed)]
    assert (masks[0] & masks[1]).sum() > 0.97 * (masks[0] | masks[1]).sum()


@pytest.mark.parametrize(
    ("ink", "ground"),
    [
        ((0.78, 0.18, 0.12), PAPER),  # vermilion strokes
        (PAPER, (0.7, 0.15, 0.12)),  # a rubbing in vermilion
        ((0.35, 0.2, 0.1), (0.8, 0.65, 0.45)),  # sepia
        ((0.85, 0.65, 0.3), (0.08, 0.1, 0.3)),  # gold on navy
    ],
)
def test_other_colours_are_no_seal(ink, ground):
    strokes = cross(200, (30, 30), 140)
    x = in_colour(strokes, ink, ground)
    assert place._without_seal(x) is None
    grey = place.separate(x)
    mask = squares.ink_mask(grey if squares.find_polarity(grey) == "bright" else 1 - grey)
    assert (mask & (strokes > 0)).sum() > 0.97 * (mask | (strokes > 0)).sum()


def grid(size: int = 240) -> np.ndarray:
    """(size, size): three bright vertical and four horizontal strokes, as in 用."""
    x = np.zeros((size, size), dtype=np.float32)
    for column in (70, 115, 160):
        x[50:190, column : column + 12] = 1
    for row in (50, 95, 140, 180):
        x[row : row + 10, 70:172] = 1
    return x


def turn(x: np.ndarray, angle: float) -> np.ndarray:
    """Turned clockwise about the centre."""
    return np.asarray(Image.fromarray(x).rotate(-angle, Image.Resampling.BICUBIC)).clip(0, 1)


@pytest.mark.parametrize("angle", [-10, -6, 6, 10])
@pytest.mark.parametrize("bright", [True, False])
def test_a_rotation_is_found_and_undone(angle, bright):
    straight, turned = (y[20:220, 20:220] for y in (grid(), turn(grid(), angle)))
    x = (0.2 + 0.6 * turned + 0.03 * np.random.default_rng(0).standard_normal(turned.shape)).clip(0, 1).astype(np.float32)
    prepared = restorer_of().prepare(images.from_grey(x if bright else 1 - x))
    assert prepared.box.angle == pytest.approx(angle, abs=2)
    upright, as_it_is = (squares.to_square(y, squares.whole(200, 200), SIZE) for y in (straight, turned))
    assert np.abs(prepared.x[0] - upright).mean() < 0.08
    assert np.corrcoef(prepared.x[0].ravel(), upright.ravel())[0, 1] > 0.9 > np.corrcoef(as_it_is.ravel(), upright.ravel())[0, 1]
    (restored,) = restorer_of().restore([prepared])
    assert restored.ink.shape == (200, 200)
    assert np.abs(restored.ink - turned).mean() < 0.08
    assert restored.numbers()["rotation"] == prepared.box.angle and len(restored.numbers()["box"]) == 4


def test_upright_and_rising_strokes_are_not_turned():
    rows, columns = np.mgrid[:240, :240]
    risen = grid()[(rows + (columns - 120) * np.tan(np.deg2rad(5))).round().astype(int).clip(0, 239), columns]
    for x in (grid(), risen, scene(), np.zeros((30, 40), np.float32)):
        assert place.find_rotation(x) == 0


def test_a_small_turned_character_is_boxed_where_it_is():
    small = np.zeros((400, 500), dtype=np.float32)
    small[60:220, 280:440] = squares.resize(turn(grid(), 10), 160, 160)
    box = place.find_box(small, 10.0)
    assert box.angle == 10 and box.top + box.edge / 2 == pytest.approx(140, abs=8)
    assert box.left + box.edge / 2 == pytest.approx(360, abs=8) and box.edge == pytest.approx(93 / 0.8, abs=12)
    back = squares.from_square(squares.to_square(small, box, 224), box, *small.shape)
    assert np.abs(back - small).mean() < 0.01


@pytest.mark.parametrize("tone", [0.05, 0.3])
@pytest.mark.parametrize("bright", [True, False])
def test_a_sheet_on_a_table_is_restored_with_its_polarity(tone, bright):
    """Around the sheet is a table with a grain, or the lid of a scanner."""
    rng = np.random.default_rng(0)
    x = (tone + 0.01 * rng.standard_normal((260, 300))).clip(0, 1).astype(np.float32)
    x[50:210, 60:220] = scene() if bright else 1 - scene()
    prepared = restorer_of().prepare(images.from_grey(x))
    assert prepared.polarity == ("bright" if bright else "dark")
    assert prepared.bright.shape == (260, 300)


def test_made_pictures_are_deterministic_and_scored(tiny_pack, capsys):
    from datasets.pack import open_pack

    pack = open_pack(tiny_pack)
    made, again = (list(places.make(pack, "train", 16, seed=3)) for _ in range(2))
    for one, other in zip(made, again, strict=True):
        np.testing.assert_array_equal(one.x, other.x)
        assert one.bright == other.bright and (one.box >= 0).all() and (one.box[2:] <= one.x.shape).all()
    assert (places.fit(iter(made)) < 0).any()
    scores = places.measure(iter(made), restorer_of())
    assert scores["all"]["n"] == len(made) and set(scores) <= {"all", *places.LAYOUTS, *places.PRESETS}
    assert sum(scores[name]["n"] for name in places.LAYOUTS if name in scores) == len(made)
