"""Draws docs/drawings.png: degraded characters, their means, restored, three hypotheses, drawn as their characters, and as written.

    python tools/drawings.py

Validation characters, not chosen: spread evenly over hands and characters. "restored" is what `restore.py` gives by default.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.pack import open_pack
from datasets.pairs import HandwritingSet
from evaluation.sources import OnTheFlySource, held_out
from restoration.drawing import MEAN, Drawing
from restoration.pipeline import PACK, Restorer, load_restorer
from util import images, script

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "drawings.png"
PRESET, SEVERITY, COUNT = "mixed", 0.8, 10  # damage, and the number of characters
TILE, STEP, MARGIN = 112, 116, 76  # pixels: a picture, and from one to the next; the margin has the names of the rows


def draw(restorer: Restorer, source: OnTheFlySource) -> dict[str, list[Image.Image]]:
    """{name of the row: pictures} of all pictures of the source."""
    pair = source.pictures(np.arange(len(source.rows)))[:2]
    degraded, clean = ([images.from_grey(x) for x in part[:, 0].numpy()] for part in pair)
    prepared = [restorer.prepare(picture) for picture in degraded]
    means = restorer.restore(prepared, MEAN)
    told = [restorer.told(mean.prepared, {row["form"]: 1}) for mean, row in zip(means, source.rows, strict=True)]
    hypotheses = [one.hypotheses for one in restorer.restore(prepared, Drawing(hypotheses=4))]
    restored, *drawn = zip(*hypotheses, strict=True)
    return {
        "degraded": degraded,
        "mean": [one.picture() for one in means],
        "restored": [one.picture() for one in restored],
        **{f"drawn, {i}": [one.picture() for one in some] for i, some in enumerate(drawn, 1)},
        "drawn, told": [one.picture() for one in restorer.restore(told)],
        "as written": clean,
    }


def sheet(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """The rows one below the other, named on their left."""
    columns, font = max(map(len, rows.values())), ImageFont.load_default(12)
    picture = Image.new("L", (MARGIN + columns * STEP, len(rows) * STEP), 255)
    pen = ImageDraw.Draw(picture)
    for line, (name, tiles) in enumerate(rows.items()):
        pen.text((4, line * STEP + TILE // 2), name, fill=0, font=font, anchor="lm")
        for column, tile in enumerate(tiles):
            picture.paste(tile.resize((TILE, TILE), Image.Resampling.BICUBIC), (MARGIN + column * STEP, line * STEP))
    return picture


def write() -> None:
    """Writes the picture, and prints its characters."""
    restorer, pack = load_restorer(), open_pack(PACK)
    source = held_out(HandwritingSet(pack, "val", "all", restorer.img_size), PRESET, COUNT, SEVERITY)
    images.write_png(OUTPUT, sheet(draw(restorer, source)))
    print(f"{OUTPUT}: {''.join(row['form'] for row in source.rows)}")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    return script.run(write)


if __name__ == "__main__":
    script.as_script(main)
