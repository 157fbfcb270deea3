import pytest

import prepare_data
from evaluation import pages, places, readings
from tools import realism, speed
from util import script

TAKE_A_PACK = {
    "prepare_data": (prepare_data.main, ["describe"]),
    "pages": (pages.main, []),
    "places": (places.main, ["measure"]),
    "readings": (readings.main, []),
    "realism": (realism.main, ["."]),
    "speed": (speed.main, ["damage"]),
}


@pytest.mark.parametrize("name", TAKE_A_PACK)
def test_a_missing_handwriting_set_is_one_error(tmp_path, capsys, name):
    main, words = TAKE_A_PACK[name]
    assert main([*words, "--data", str(tmp_path / "none.pack")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "none.pack" in error and error.count("\n") == 1


def test_errors_that_are_counted_fail():
    assert [script.run(lambda n: n, n) for n in (None, 0, 3)] == [0, 0, 1]


def test_a_fault_in_the_code_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        script.run(lambda: 1 / 0)
