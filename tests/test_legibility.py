import numpy as np

from datasets.pack import read_guide
from restoring import PACK, Restorer
from tools.legibility import legibility, main
from util import images


def test_what_is_read_is_counted_before_and_after(tmp_path):
    """A network that gives its guide back, or blank paper without one, on pictures that show the character or nothing."""
    for number, (char, glyph) in enumerate(read_guide(PACK, "永明書院").items()):
        shown = glyph if number < 3 else np.zeros_like(glyph)
        images.write_png(tmp_path / f"{number}_{char}.png", images.from_grey(1 - shown.astype(np.float32)))
    images.write_png(tmp_path / "no character.png", images.from_grey(np.ones((32, 32), np.float32)))
    told = legibility(Restorer(lambda x: x[:, 1], 64, in_chans=2), tmp_path)
    assert told["n"] == 4 and told["left_out"] == 1
    assert told["damaged"] == [0.75, 0.75] and told["told"] == [1, 1] and told["restored"][0] == 0
    assert told["median_otsu"] == told["damaged"]  # a median filter takes nothing from clean strokes
    assert "told" not in legibility(Restorer(lambda x: x[:, 0], 64), tmp_path)


def test_a_folder_without_named_characters_is_told(tmp_path, capsys):
    images.write_png(tmp_path / "1.png", images.from_grey(np.ones((32, 32), np.float32)))
    assert main([str(tmp_path)]) == 1
    assert "none of its 1 pictures" in capsys.readouterr().err
