"""Draws docs/drawings.png: degraded characters, their means, three hypotheses, each drawn as its character, and as written.

    python tools/drawings.py

Validation characters, not chosen: spread evenly over hands and characters. They are restored as `restore.py` does by default.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.degradation import Degradation, scored_preset
from datasets.pack import open_pack
from datasets.pairs import EVALUATION_SEED, HandwritingSet
from evaluation.benchmark import spread
from evaluation.sources import OnTheFlySource
from restoration.drawing import MEAN, Drawing
from restoration.pipeline import PACK, Restorer, load_restorer
from util import images
from util.settings import number

TILE, STEP, MARGIN = 112, 116, 76  # pixels: a picture, and from one to the next; the margin has the names of the rows


def draw(restorer: Restorer, source: OnTheFlySource) -> dict[str, list[Image.Image]]:
    """{name of the row: pictures} of all pictures of the source."""
    pair = source.pictures(np.arange(len(source.rows)))[:2]
    degraded, clean = ([images.from_grey(x) for x in part[:, 0].numpy()] for part in pair)
    prepared = [restorer.prepare(picture) for picture in degraded]
    told = [restorer.prepare(picture, row["form"]) for picture, row in zip(degraded, source.rows, strict=True)]
    drawn = [one.hypotheses for one in restorer.restore(prepared, Drawing(hypotheses=3))]
    return {
        "degraded": degraded,
        "mean": [one.picture() for one in restorer.restore(prepared, MEAN)],
        **{f"drawn, {i}": [one.picture() for one in hypotheses] for i, hypotheses in enumerate(zip(*drawn, strict=True), 1)},
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


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", help="another network that draws than the bundled one")
    add("--preset", default="mixed", help="damage: a preset of configs/damage/")
    add("--severity", type=number(float, 0, 1), default=0.8, help="of the damage")
    add("--count", type=number(int, 1, 64), default=10, help="characters")
    add("--output", type=Path, default=Path("docs/drawings.png"), help="a PNG file; an existing one is replaced")
    args = parser.parse_args(argv)
    restorer, pack = load_restorer(args.checkpoint), open_pack(PACK)
    data, damage = HandwritingSet(pack, "val", "all", restorer.img_size), Degradation(scored_preset(args.preset), restorer.img_size)
    chosen = spread(pack, data.ids, args.count)
    source = OnTheFlySource(data, damage, args.preset, EVALUATION_SEED, chosen, args.severity)
    images.write_png(args.output, sheet(draw(restorer, source)))
    print(f"{args.output}: {''.join(row['form'] for row in source.rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
