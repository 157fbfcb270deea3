import pytest

from util.schedule import learning_rate


def test_linear_warmup_then_half_cosine():
    rates = [learning_rate(step, total=100, peak=1.0, warmup=10, final=0.1) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:]))
