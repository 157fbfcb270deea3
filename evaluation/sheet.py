"""The sheet of an evaluation: best, median and worst pictures by gain in PSNR."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.scoring import METHODS, Scorer
from util.images import from_grey

COLUMNS, TILE, CAPTION = 8, 112, 28  # pictures in a row; pixels

Blocks = dict[str, list[tuple[str, list[Image.Image]]]]  # block: [(caption of two lines, [degraded, restored, clean]), …]


def pick_tiles(scorer: Scorer, scores: np.ndarray) -> Blocks:
    """Best, median and worst pictures by gain in PSNR, each character once in a block."""
    degraded, restored = (scores[:, METHODS.index(name), scorer.scores.index("psnr")] for name in ("degraded", "restored"))
    rows = scorer.source.rows
    order = np.argsort(degraded - restored, kind="stable")
    inwards = np.argsort(np.abs(np.arange(len(order)) - len(order) // 2), kind="stable")
    blocks = {}
    for name, ranked in {"best": order, "median": order[inwards], "worst": order[::-1]}.items():
        first = {rows[at]["character"]: at for at in ranked[::-1]}
        chosen = [at for at in ranked if first[rows[at]["character"]] == at][:COLUMNS]
        blocks[name] = []
        for at in chosen:
            triple = [from_grey(x[0, 0].cpu().numpy()) for x in scorer.pictures(np.array([at]))]
            small = [x.resize((TILE, TILE), Image.Resampling.BICUBIC) for x in triple]
            blocks[name].append((f"{rows[at]['hand'][:20]}\n{degraded[at]:.1f} > {restored[at]:.1f} dB", small))
    return blocks


def draw_sheet(blocks: Blocks) -> Image.Image:
    """The blocks of `pick_tiles`, one below the other."""
    font, step = ImageFont.load_default(11), TILE + 4
    sheet = Image.new("L", (len(blocks["best"]) * step, len(blocks) * (3 * step + 2 * CAPTION)), 255)
    pen = ImageDraw.Draw(sheet)
    for block, (name, tiles) in enumerate(blocks.items()):
        top = block * (3 * step + 2 * CAPTION)
        pen.text((2, top + 6), f"{name} gain in PSNR (rows: degraded, restored, clean)", fill=0, font=font)
        for column, (caption, triple) in enumerate(tiles):
            for line, tile in enumerate(triple):
                sheet.paste(tile, (column * step, top + CAPTION + line * step))
            pen.text((column * step, top + CAPTION + 3 * step), caption, fill=0, font=font, spacing=0)
    return sheet
