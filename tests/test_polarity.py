import numpy as np
import pytest
from PIL import Image

from tests.pictures import character
from tools import polarity


@pytest.mark.parametrize("shape", [(60, 60), (60, 120), (300, 1100)], ids=["one", "two side by side", "a page"])
def test_polarity_is_counted(tmp_path, capsys, shape):
    x = np.tile(character(60, 60), (shape[0] // 60, shape[1] // 60 + 1))[: shape[0], : shape[1]]
    for name, picture in (("bright", x), ("dark", 255 - x)):
        (tmp_path / name).mkdir()
        Image.fromarray(picture).save(tmp_path / name / "a.png")
    folders = [str(tmp_path / name) for name in ("bright", "dark")]
    assert polarity.main(["--bright", folders[0], "--dark", folders[1], "--crops", "7"]) == 0
    n = {60: 1, 120: 2, 1100: 7}[shape[1]]
    told = capsys.readouterr().out.splitlines()
    if n < 7:
        assert told == [f"{folder}: {name}, {n} / {n}; negatives {n} / {n}" for folder, name in zip(folders, ("bright", "dark"))]
    else:
        assert all(f"/ {n}; negatives" in line for line in told)
    assert polarity.main(["--bright", folders[1]]) == 0
    assert "bright, 0 / " in capsys.readouterr().out or n == 7
    (tmp_path / "empty").mkdir()
    assert polarity.main(["--dark", str(tmp_path / "empty")]) == 1
