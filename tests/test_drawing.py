"""Drawing with a network: guidance, hypotheses, and independence of the batch."""

from itertools import combinations

import numpy as np
import pytest
from scipy import ndimage

from restoration import drawing
from restoration.drawing import (
    Drawer,
    Drawing,
    finished,
    needs_restoring,
    noise_keys,
    order,
    sharpened,
    sigmoid,
    two_sizes,
    unsure,
    without_haze,
)
from util import squares

SIZE = 32


@pytest.fixture(autouse=True)
def trusting(monkeypatch):
    """Any guide has its full weight."""
    monkeypatch.setattr(drawing, "AGREEMENT", (-3, -2))


def network(x: np.ndarray) -> np.ndarray:
    """Logits from all four channels: the picture, more ink where the guide is, and the state the more the later it is."""
    picture, guide, state, t = x.transpose(1, 0, 2, 3)
    return 4 * picture - 2 + 3 * guide + 6 * t * state


def pictures(n: int = 3, guided: bool = True) -> np.ndarray:
    x = np.random.default_rng(0).random((n, 2, SIZE, SIZE), dtype=np.float32)
    x[:, 1] *= guided
    return x


def weight(first: drawing.First) -> np.ndarray:
    """(N, K, S, S): of each guide."""
    return first.trust[:, :, None, None] * first.further[:, None]


def draw(x: np.ndarray, **how) -> list[np.ndarray]:
    drawer = Drawer(network, 4, Drawing(**how))
    return drawer.draw(drawer.first(x))


def test_one_step_is_the_mean():
    x = Drawer(network, 4, Drawing()).first(pictures()).x  # guides in their places
    mean = sigmoid(network(np.concatenate([x, np.zeros_like(x)], axis=1)))
    np.testing.assert_allclose(np.concatenate(draw(pictures(), steps=1, guidance=1)), mean, atol=1e-6)


def test_more_steps_leave_less_grey():
    x = pictures(guided=False)
    grey = [((y := np.concatenate(draw(x, steps=steps))) > 0.1) & (y < 0.9) for steps in (1, 4, 16)]
    assert grey[0].mean() > 1.5 * grey[1].mean() > 1.5 * grey[2].mean()


def test_unsure_areas_are_sharpened():
    np.testing.assert_allclose(sharpened(np.float32([0, 0.2, 0.5, 0.8, 1])), [0, 1 / 9, 0.5, 8 / 9, 1], atol=1e-6)
    drawn, mask = np.full((64, 64), 0.8, np.float32), np.zeros((64, 64), np.float32)
    mask[:, 32:] = 1
    np.testing.assert_allclose(finished(drawn, mask, 0 * drawn)[:, ::40], [[0.8, 8 / 9]] * 64, atol=1e-6)


def test_haze_is_cleared_and_edges_are_spared():
    drawn = np.full((224, 224), 0.08, np.float32)
    drawn[100:110, 50:170] = 1  # a stroke
    drawn[30:40, 30:40] = 0.3  # doubt that is more than haze
    cleared, kept = without_haze(drawn), np.zeros(drawn.shape, bool)
    kept[98:112, 48:172] = kept[28:42, 28:42] = True  # and what is within two pixels of them
    np.testing.assert_array_equal(cleared, drawn * kept)


def test_a_picture_that_needs_no_restoring_is_kept():
    """One whose strokes the network would thin by two pixels, and the same with a loss, or on a ground with a tone."""
    clean = np.zeros((224, 224), np.float32)
    clean[60:90, 30:190] = clean[30:190, 100:130] = 1
    thinned = ndimage.grey_erosion(clean, (5, 5))
    pictures = np.stack([clean, clean, clean + 0.15 * (clean == 0)])
    pictures[1, 120:130, 110:120] = 0
    assert [needs_restoring(picture, thinned) for picture in pictures] == [False, True, True]
    drawer = Drawer(lambda x: np.stack([20 * thinned - 10] * len(x)), 4, Drawing())
    drawn = np.concatenate(drawer.draw(drawer.first(pictures[:, None])))
    np.testing.assert_array_equal(drawn[0], clean)
    np.testing.assert_allclose(drawn[1:], [thinned] * 2, atol=1e-3)


def test_a_smaller_size_is_asked_where_the_network_is_unsure():
    x = np.zeros((3, 4, 96, 96), np.float32)
    x[:, 0, 10:30, 10:30] = 1
    x[1:, 0, 40:90, 40:90] = np.linspace(0.4, 0.6, 50)  # the first picture is sure everywhere
    given = []

    def small(inputs):
        given.append(inputs)
        return 9 * inputs[:, 0] - 2

    def sure(inputs):
        return 20 * inputs[:, 0] - 10

    logits = two_sizes(sure, lambda: (small, 48))(x)
    reduced = np.stack([[squares.resize(plane, 48, 48) for plane in one] for one in x[1:]])
    np.testing.assert_array_equal(np.concatenate(given), reduced)
    np.testing.assert_array_equal(logits[0], sure(x)[0])
    np.testing.assert_array_equal(logits[1:, :30], sure(x)[1:, :30])
    inside = np.s_[1:, 50:80, 50:80]
    np.testing.assert_allclose(logits[inside], (sure(x) + 9 * x[:, 0] - 2)[inside] / 2, atol=0.01)


def test_a_sure_network_does_not_load_the_smaller_one():
    two_sizes(lambda inputs: 20 * inputs[:, 0] - 10, lambda: pytest.fail("loaded"))(np.ones((2, 4, SIZE, SIZE), np.float32))


def test_what_is_certain_is_not_drawn():
    mean = np.zeros((150, 150), np.float32)
    mean[20:60, 20:60] = 1  # a certain stroke with a soft edge, and an area that could be anything
    mean[19], mean[60] = 0.5 * (mean[20] > 0), 0.5 * (mean[59] > 0)
    mean[90:130, 90:130] = 0.5
    share = unsure(mean)
    assert (share[:80] == 0).all() and (share[95:125, 95:125] == 1).all()
    assert ((share > 0) & (share < 1)).any() and share[80:].mean() < 0.35

    def guess(inputs: np.ndarray) -> np.ndarray:
        logits = np.where(mean > 0.9, 9, np.where(mean < 0.1, -9, 0)) + 9 * inputs[:, 2]  # as unsure of all as the noise is
        return logits.astype(np.float32)

    drawer = Drawer(guess, 4, Drawing(steps=4, hypotheses=2))
    first = drawer.first(np.zeros((1, 2, 150, 150), np.float32))
    [[_, drawn]], kept = drawer.draw(first), without_haze(sigmoid(first.logits[0]))
    assert np.abs(drawn - kept)[:80].max() < 1e-6 and np.abs(drawn - kept)[95:125, 95:125].mean() > 0.3


def test_a_picture_without_doubt_takes_no_further_pass():
    x, passes = pictures(2, guided=False), []
    x[0, 0], x[1, 0, 8:24, 8:24] = x[0, 0] > 0.5, 0.5  # the network is sure of black and white
    drawer = Drawer(lambda inputs: passes.append(len(inputs)) or 4 * network(inputs), 4, Drawing(steps=3, hypotheses=2))
    first = drawer.first(x)
    drawn = drawer.draw(first)
    assert passes == [2, 1, 1, 1, 1]  # the mean of both; two hypotheses of the other one, each in two further steps
    np.testing.assert_array_equal(drawn[0], np.stack([x[0, 0]] * 2))  # nothing to restore
    assert (drawn[1][0] != drawn[1][1]).any()


def test_guidance():
    """One is the network with its guide, at one pass a step; more goes on from the network without it, where that is unsure."""
    x, sizes = pictures(), []
    x[:, 0, :, :16] = 1  # certain strokes
    drawer = Drawer(lambda inputs: sizes.append(len(inputs)) or 9 * network(inputs), 4, Drawing(guidance=1))
    first = drawer.first(x)
    np.testing.assert_allclose(first.logits, first.followed, atol=1e-5)
    assert sizes == [3, 3]
    x[1, 1], x[:, 0, :, 16:] = 0, 0.5  # one not guided; what could be anything
    drawer = Drawer(drawer.predict, 4, Drawing(guidance=3))
    first = drawer.first(x)
    assert sizes[2:] == [3, 2] and not first.x[1, 1].any() and x[0, 1].any() and not first.trust[1].any()
    for i in (0, 2):
        assert first.trust[i] == 1 and (first.further[i, :, :12] == 1).all() and (first.further[i, :, 20:] == 3).all()
        np.testing.assert_allclose(first.followed[i] - first.logits[i], 27 * (first.further[i] - 1) * first.x[i, 1], atol=1e-4)
    assert first.logits[1].tolist() == drawer.predict(np.concatenate([x, 0 * x], axis=1))[1].tolist()
    state = np.ones_like(x[:, 0])
    later = drawer.estimate(first.x, state, 0.5, weight(first))
    np.testing.assert_allclose(
        later - drawer.estimate(first.x, state, 0.5, (weight(first) > 0).astype(np.float32)),
        first.followed - first.logits,
        atol=1e-4,
    )


def test_a_drawing_starts_from_its_guide_where_the_mean_is_unsure(monkeypatch):
    """A network that repeats its state draws the guide's strokes in a loss, those of the most trusted one, as far as it is;
    none over what is certain. One step is the mean without them."""
    monkeypatch.setattr(drawing, "fit", lambda guide, mean: (guide, 1.0))
    x = np.zeros((1, 3, 150, 150), np.float32)
    x[0, 0, :, 75:] = 0.5  # the right half is lost
    x[0, 1, 30:60, 20:130] = x[0, 2, 90:120, 20:130] = 1  # two guides, one bar each

    def repeat(inputs: np.ndarray) -> np.ndarray:
        picture, _, state, t = inputs.transpose(1, 0, 2, 3)
        return np.where(picture == 0.5, 60 * t * ndimage.uniform_filter(state, (0, 9, 9)), -9).astype(np.float32)

    def bars(*shares: float, **how) -> tuple[float, float, float]:
        """The mean ink in the lost half of each bar; the most ink in the other half of the picture."""
        drawer = Drawer(repeat, 4, Drawing(**how))
        [[drawn]] = drawer.draw(drawer.first(x, np.float32([shares])))
        return drawn[35:55, 85:120].mean(), drawn[95:115, 85:120].mean(), drawn[:, :65].max()

    first, second, certain = bars(1, 0)
    assert first > 0.95 and second < 0.05 and certain < 0.01
    assert bars(0.1, 0.9)[0] < 0.05 and bars(0.1, 0.9)[1] > 0.9
    assert first > bars(0.6, 0)[0] > bars(0, 0)[0] + 0.1
    assert bars(1, 0, steps=1) == pytest.approx((0.5, 0.5, 0), abs=0.01)


def test_several_guides_have_their_shares():
    """The change of each guide, times its share; one share of 1 and another of 0 is the first guide alone."""
    x, drawer = pictures(2), Drawer(network, 4, Drawing(guidance=1))
    both = np.concatenate([x, pictures(2)[:, 1:, ::-1]], axis=1)
    alone, first = drawer.first(x), drawer.first(both, np.float32([[1, 0], [0.25, 0.5]]))
    np.testing.assert_allclose(first.logits[0], alone.logits[0], atol=1e-5)
    changes = 3 * (0.25 * first.x[1, 1] + 0.5 * first.x[1, 2])
    np.testing.assert_allclose(
        first.logits[1], network(np.concatenate([x[1:, :1], np.zeros((1, 3, SIZE, SIZE))], 1))[0] + changes, atol=1e-4
    )
    np.testing.assert_allclose(drawer.estimate(first.x, 0 * x[:, 0], 0, weight(first)), first.logits, atol=1e-4)
    assert first.agreement.shape == (2, 2) and (drawer.draw(first)[0] == drawer.draw(alone)[0]).mean() > 0.99


def test_a_guide_that_does_not_fit_is_not_followed(monkeypatch):
    monkeypatch.setattr(drawing, "AGREEMENT", (0.36, 0.46))
    square = np.zeros((2, 2, SIZE, SIZE), np.float32)
    square[:, 0, 4:28, 6:10] = square[:, 0, 4:8, 6:28] = 0.6  # a faint corner; its guides: the same, and stripes
    square[0, 1], square[1, 1, :, ::4] = square[0, 0] > 0, 1
    drawer = Drawer(lambda inputs: 4 * network(inputs), 4, Drawing())
    first, unguided = drawer.first(square), drawer.first(square * np.float32([1, 0])[:, None, None])
    assert first.agreement[0] > 0.9 and first.trust[0] == 1 and (first.logits[0] != unguided.logits[0]).any()
    assert first.agreement[1] < 0.36 and first.trust[1] == 0 and (unguided.agreement == 1).all()
    drawn, without = drawer.draw(first), drawer.draw(unguided)
    assert (first.logits[1] == unguided.logits[1]).all() and (first.followed[1] == unguided.logits[1]).all()
    assert (drawn[0] != without[0]).any()


@pytest.mark.parametrize(("guided", "hypotheses", "expected"), [(True, 1, 3), (False, 1, 2), (True, 2, 4), (False, 2, 5)])
def test_passes_by_default(guided, hypotheses, expected):
    passes = []
    drawer = Drawer(lambda inputs: passes.append(len(inputs)) or network(inputs), 4, Drawing(hypotheses=hypotheses))
    drawer.draw(drawer.first(pictures(1, guided)))
    assert sum(passes) == expected


def test_the_first_drawing_decides_what_is_in_doubt_and_hypotheses_differ():
    x = pictures(1, guided=False)
    (mean,), ([drawn],), (hypotheses,) = draw(x, steps=1), draw(x), draw(x, hypotheses=3)
    assert ((drawn > 0.5) == (mean[0] > 0.5)).mean() > 0.95 and (drawn == hypotheses[0]).all()
    assert all(((one > 0.5) == (other > 0.5)).mean() < 0.9 for one, other in combinations(hypotheses, 2))
    x[:] = 0.5  # all is lost, and nothing tells one pixel from another
    assert [np.ptp(one) > 0 for one in draw(x, hypotheses=2)[0]] == [False, True]


@pytest.mark.parametrize("steps", [2, 4])
def test_a_drawing_depends_on_the_picture_and_the_seed_alone(steps):
    x = pictures(4)
    x[2, 1] = 0
    together, reverse = draw(x, steps=steps, hypotheses=2), draw(x[::-1].copy(), steps=steps, hypotheses=2)
    for i in range(4):
        np.testing.assert_allclose(draw(x[i : i + 1], steps=steps, hypotheses=2)[0], together[i], atol=1e-6)
        np.testing.assert_allclose(reverse[3 - i], together[i], atol=1e-6)
    assert np.abs(draw(x, steps=steps, hypotheses=2, seed=1)[2] - together[2]).max() > 0.1  # not guided
    assert set(noise_keys(x[0, 0], 0, 3)) >= set(noise_keys(x[0, 0], 0, 2)) and len(set(noise_keys(x[0, 0], 0, 3))) == 3
    assert not set(noise_keys(x[0, 0], 0, 3)) & {*noise_keys(x[0, 0], 1, 3), *noise_keys(x[1, 0], 0, 3)}


def test_hypotheses_that_agree_come_first():
    mean = np.full((SIZE, SIZE), 0.5)
    mean[:, :16] = 1  # a stroke that survives
    good, outlier, wrong = (np.zeros((SIZE, SIZE)) for _ in range(3))
    good[:, :16], outlier[:, :16], outlier[:8, 24:], wrong[:, 8:16] = 1, 1, 1, 1
    assert order(np.stack([wrong, outlier, good, good]), mean).tolist() == [2, 3, 1, 0]


@pytest.mark.parametrize("in_chans", [1, 2])
def test_a_network_without_state_gives_its_mean_in_one_pass(in_chans):
    x, seen = pictures()[:, :in_chans], []
    drawer = Drawer(lambda inputs: seen.append(inputs) or 4 * inputs[:, 0] - 2, in_chans, Drawing(hypotheses=5))
    drawn = drawer.draw(drawer.first(x))
    assert [y.shape for y in drawn] == [(1, SIZE, SIZE)] * 3 and len(seen) == 1 and (seen[0] == x).all()
    np.testing.assert_allclose(np.concatenate(drawn), sigmoid(4 * x[:, 0] - 2))
