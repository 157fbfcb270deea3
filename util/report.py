"""The report of an evaluation: one HTML file with everything in it, drawn from what metrics.json holds."""

import base64
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from PIL import Image


@dataclass(frozen=True)
class Column:
    """A score in the tables. `better`: 1 where more is better, -1 where less is."""

    key: str
    short: str
    unit: str
    digits: int
    better: int
    meaning: str
    percent: bool = False

    def form(self, value: float) -> str:
        return f"{100 * value if self.percent else value:.{self.digits}f}"


COLUMNS = (
    Column("top1", "top-1", "%", 1, 1, "share of pictures that the recogniser reads rightly", True),
    Column("top5", "top-5", "%", 1, 1, "share of pictures whose character is among the recogniser's first five guesses", True),
    Column("psnr", "PSNR", "dB", 2, 1, "peak signal-to-noise ratio, data range 1, at most 60 dB a picture"),
    Column(
        "psnr_damaged",
        "on damage",
        "dB",
        2,
        1,
        "PSNR over the pixels where damaged and clean differ by more than half of the range",
    ),
    Column("psnr_intact", "on intact", "dB", 2, 1, "PSNR over all other pixels"),
    Column("psnr_clean", "of clean", "dB", 2, 1, "PSNR of what becomes of the clean picture: does restoring do harm?"),
    Column("ssim", "SSIM", "", 3, 1, "structural similarity, Gaussian window 11×11, strokes bright on dark"),
    Column("ssim_inverse", "SSIM inv.", "", 3, 1, "SSIM of the pictures turned to strokes dark on bright"),
    Column("f1", "ink F1", "%", 1, 1, "F-measure of the stroke pixels, each picture binarised by Otsu's threshold", True),
    Column(
        "pseudo_f1", "pseudo-F", "%", 1, 1, "the same weighted by the distance from the contour (Ntirogiannis et al., 2013)", True
    ),
    Column("drd", "DRD", "", 2, -1, "distance reciprocal distortion (Lu, Kot & Shi, 2004); 0 is perfect"),
    Column("chamfer", "chamfer", "px", 2, -1, "distance of the centre lines; the picture's diagonal where one of them is empty"),
    Column("broken", "broken", "", 2, -1, "stretches of clean centre line that have no ink within 3 px of 224"),
    Column("invented", "invented", "", 2, -1, "pieces of ink of at least 25 px that lie more than 3 px of 224 from any clean ink"),
)
COLUMN = {column.key: column for column in COLUMNS}
NAMES = {
    "unchanged": "damaged, unchanged",
    "degraded": "damaged, unchanged",
    "otsu": "Otsu",
    "median_otsu": "median + Otsu",
    "sauvola": "local (Sauvola)",
    "restored": "restored",
    "clean": "clean",
    "seen_hands": "seen hands",
    "unseen_hands": "unseen hands",
}
OURS = " class='ours'"
RED, GREY, INK = "#b3332a", "#8b8579", "#2a2622"

STYLE = f"""
:root {{ color-scheme: light; --ink: {INK}; --soft: #6d675d; --line: #e2dcd0; --paper: #faf7f1; --red: {RED}; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "Noto Sans", sans-serif; }}
main {{ max-width: 1360px; margin: 0 auto; padding: 40px 28px 64px; }}
h1 {{ font-size: 27px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }}
h2 {{ font-size: 18px; margin: 44px 0 4px; }}
h3 {{ font-size: 14px; margin: 18px 0 6px; }}
p {{ margin: 4px 0 12px; max-width: 92ch; }}
.soft, figcaption {{ color: var(--soft); font-size: 13px; }}
code {{ font: 13px ui-monospace, "DejaVu Sans Mono", monospace; background: #f0ebe1; padding: 1px 5px; border-radius: 4px; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 22px 0 8px; }}
.card {{ background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }}
.card b {{ display: block; font-size: 25px; line-height: 1.25; font-weight: 650; color: var(--red);
  font-variant-numeric: tabular-nums; }}
.card b small {{ font-size: 14px; font-weight: 500; margin-left: 3px; }}
.card span {{ display: block; font-size: 13px; color: var(--soft); }}
.wide {{ overflow-x: auto; background: #fff; border: 1px solid var(--line); border-radius: 10px; margin: 10px 0; }}
table {{ border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 6px 8px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); vertical-align: top; }}
thead th {{ border-top: 0; font-size: 13px; font-weight: 600; vertical-align: bottom; }}
thead small, td small {{ display: block; color: var(--soft); font-weight: 400; font-size: 10.5px; }}
th:first-child {{ text-align: left; font-weight: 500; }}
tr.ours {{ background: #fbeeea; }}
tr.ours th:first-child {{ font-weight: 650; color: var(--red); }}
tr.group th {{ font-size: 12px; color: var(--soft); background: #f6f2ea; padding: 4px 8px; }}
td.best {{ font-weight: 700; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(255px, 1fr)); gap: 12px; margin: 10px 0; }}
figure {{ margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 10px 12px 8px; }}
figure svg {{ display: block; width: 100%; height: auto; }}
figure > b {{ font-size: 13px; }}
svg text {{ font: 11px system-ui, "Segoe UI", "Noto Sans", sans-serif; fill: var(--soft); }}
.keys {{ display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13px; color: var(--soft); margin: 8px 0; }}
.keys svg {{ width: 30px; height: 10px; margin-right: 6px; vertical-align: middle; }}
.two {{ display: grid; grid-template-columns: minmax(300px, 420px) 1fr; gap: 24px; align-items: start; }}
.tiles {{ display: grid; grid-template-columns: repeat(8, 1fr); gap: 8px; margin: 8px 0 4px; }}
.tile img {{ display: block; width: 100%; margin-bottom: 3px; border-radius: 3px; }}
.tile span {{ display: block; font-size: 11px; line-height: 1.35; color: var(--soft); overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; font-size: 13px; margin: 8px 0; }}
dt {{ font-weight: 600; }} dd {{ margin: 0; color: var(--soft); overflow-wrap: anywhere; }}
@media (max-width: 760px) {{ .two {{ grid-template-columns: 1fr; }} .tiles {{ grid-template-columns: repeat(4, 1fr); }} }}
"""


def html(result: dict, tiles: dict[str, list[tuple[str, list[Image.Image]]]], held_out: Iterable[str] = ()) -> str:
    """The report.

    Args:
        result: what metrics.json holds. tiles: for each block (best, median, worst) some pictures: (caption of two lines,
            [damaged, restored, clean]). held_out: names of the hands that training never saw.
    """
    columns = [column for column in COLUMNS if column.key in result["restored"]]
    parts = [_head(result), _cards(result), _whole(result, columns), _groups(result, columns), _by_severity(result)]
    parts += [_by_hand(result, set(held_out)), _calibration(result["calibration"]), _tiles(tiles), _about(result, columns)]
    title = f"Restored characters: {_method(result)}"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )


def _method(result: dict) -> str:
    if "checkpoint" not in result:
        return f"pictures of {result['predictions']}"
    return result["checkpoint"]["model"] + ", character told" * result["guide"]


def _head(result: dict) -> str:
    if "benchmark" in result:
        pictures = f"frozen benchmark <code>{result['benchmark']['name']}</code>"
    else:
        pictures = f"damage <code>{escape(result['damage']['preset'])}</code>, seed {result['damage']['seed']}"
    return (
        f"<h1>{escape(_method(result))}</h1><p class='soft'>{result['n']:,} damaged pictures of {result['characters']:,} characters"
        f" that training never saw · {pictures} · side {result['side']}</p>"
    )


def _cards(result: dict) -> str:
    """The first figures: of the restored pictures, and of the damaged ones below."""
    chosen = [COLUMN[key] for key in ("top1", "psnr", "ssim", "f1", "drd", "broken") if key in result["restored"]]
    cards = "".join(
        f"<div class='card'><span>{column.short}</span><b>{column.form(result['restored'][column.key])}"
        f"<small>{column.unit}</small></b><span>damaged {column.form(result['degraded'][column.key])}</span></div>"
        for column in chosen
    )
    return f"<div class='cards'>{cards}</div>"


def _cell(row: dict, column: Column, best: bool = False, interval: bool = True) -> str:
    if column.key not in row:
        return "<td>–</td>"
    low, high = row["ci95"][column.key]
    small = f"<small>{column.form(low)} – {column.form(high)}</small>" if interval else ""
    kind = " class='best'" if best else ""
    return f"<td{kind}>{column.form(row[column.key])}{small}</td>"


def _table(first: str, columns: list[Column], body: str) -> str:
    heads = "".join(
        f"<th title='{escape(c.meaning)}'>{c.short}<small>{c.unit} {'↑' if c.better > 0 else '↓'}</small></th>" for c in columns
    )
    return f"<div class='wide'><table><thead><tr><th>{first}</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


def _whole(result: dict, columns: list[Column]) -> str:
    rows = {**result["baselines"], "restored": result["restored"]}
    best = {c.key: c.form(c.better * max(c.better * row[c.key] for row in rows.values())) for c in columns}
    body = ""
    for name, row in (({"clean": result["clean"]} if "clean" in result else {}) | rows).items():
        cells = "".join(_cell(row, c, name != "clean" and c.form(row[c.key]) == best[c.key]) for c in columns)
        body += f"<tr{OURS if name == 'restored' else ''}><th>{NAMES[name]}</th>{cells}</tr>"
    return (
        "<h2>All pictures</h2><p class='soft'>Means, and below them the 95 % bootstrap interval over characters. Arrows tell"
        " which way is better, bold which method is best.</p>" + _table("", columns, body)
    )


def _groups(result: dict, columns: list[Column]) -> str:
    body = ""
    for title, key in (("hands", "by_split"), ("preset", "by_preset")):
        groups = result[key] if len(result[key]) > 1 else {}
        for name, part in groups.items():
            text = f"{NAMES.get(name, name)}, {part['n']:,} pictures"
            body += f"<tr class='group'><th colspan='{len(columns) + 1}'>{title}: {escape(text)}</th></tr>"
            for method in ("degraded", "restored"):
                cells = "".join(_cell(part[method], column) for column in columns)
                body += f"<tr{OURS if method == 'restored' else ''}><th>{NAMES[method]}</th>{cells}</tr>"
    return f"<h2>By hands and by damage</h2>{_table('', columns, body)}" if body else ""


# --- drawings -----------------------------------------------------------------------------------------------------------


def _ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between low and high, about so many."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _number(value: float) -> str:
    return f"{value:g}"


def _curves(column: Column, cells: list[dict]) -> str:
    """One chart of a score over the severity: damaged and restored, seen and unseen hands, bands for the intervals."""
    width, height, left, right, top, bottom = 280, 190, 34, 8, 8, 26
    lines = []
    for method in ("degraded", "restored"):
        for split in dict.fromkeys(cell["split"] for cell in cells):
            points = [
                (cell["severity"], cell[method][column.key], *cell[method]["ci95"][column.key])
                for cell in cells
                if cell["split"] == split and column.key in cell[method]
            ]
            lines.append((method, split, [(x, *(100 * v if column.percent else v for v in values)) for x, *values in points]))
    values = [value for *_, points in lines for point in points for value in point[1:]]
    if not values:
        return ""
    margin = (max(values) - min(values)) * 0.06 or 1
    low, high = min(values) - margin, max(values) + margin
    if min(values) >= 0:
        low = max(low, 0)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x * (width - left - right), top + (high - y) / (high - low) * (height - top - bottom)

    drawn = []
    for tick in _ticks(low, high):
        y = place(0, tick)[1]
        drawn.append(f"<line x1='{left}' x2='{width - right}' y1='{y:.1f}' y2='{y:.1f}' stroke='#ece6da'/>")
        drawn.append(f"<text x='{left - 5}' y='{y + 4:.1f}' text-anchor='end'>{_number(tick)}</text>")
    for x in sorted({cell["severity"] for cell in cells}):
        drawn.append(f"<text x='{place(x, 0)[0]:.1f}' y='{height - 9}' text-anchor='middle'>{_number(x)}</text>")
    for method, split, points in lines:
        colour = RED if method == "restored" else GREY
        dash = " stroke-dasharray='4 3'" if split == "unseen_hands" else ""
        upper = [place(x, h) for x, _, _, h in points]
        under = [place(x, lo) for x, _, lo, _ in points]
        band = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*upper, *under[::-1]])
        drawn.append(f"<polygon points='{band}' fill='{colour}' opacity='.12'/>")
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(x, y) for x, y, _, _ in points))
        drawn.append(f"<polyline points='{way}' fill='none' stroke='{colour}' stroke-width='2'{dash}/>")
        drawn += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='2.6' fill='{colour}'/>" for x, y in (place(*p[:2]) for p in points)]
    return f"<svg viewBox='0 0 {width} {height}' role='img'>{''.join(drawn)}</svg>"


def _key(colour: str, text: str, dashed: bool = False) -> str:
    dash = " stroke-dasharray='4 3'" if dashed else ""
    line = f"<svg viewBox='0 0 30 10'><line x1='0' x2='30' y1='5' y2='5' stroke='{colour}' stroke-width='2.5'{dash}/></svg>"
    return f"<span>{line}{text}</span>"


def _by_severity(result: dict) -> str:
    chosen = [COLUMN[key] for key in ("top1", "psnr", "pseudo_f1", "broken") if key in result["restored"]]
    charts = ""
    for preset in result["by_preset"]:
        cells = [cell for cell in result["cells"] if cell["preset"] == preset]
        figures = "".join(
            f"<figure><b>{column.short}{f', {column.unit}' if column.unit else ''}</b>{_curves(column, cells)}</figure>"
            for column in chosen
        )
        charts += f"<h3>{escape(preset)}</h3><div class='charts'>{figures}</div>"
    keys = _key(RED, "restored, seen hands") + _key(RED, "restored, unseen hands", True)
    keys += _key(GREY, "damaged, seen hands") + _key(GREY, "damaged, unseen hands", True)
    return (
        "<h2>By severity</h2><p class='soft'>From 0, hardly any damage, to 1. The shade is the 95 % interval.</p>"
        f"<div class='keys'>{keys}</div>{charts}"
    )


def _by_hand(result: dict, held_out: set[str]) -> str:
    """For each hand a line from the damaged to the restored pictures."""
    chosen = [COLUMN[key] for key in ("top1", "psnr", "pseudo_f1") if key in result["restored"]]
    hands = sorted(result["by_hand"], key=lambda name: (name in held_out, -result["by_hand"][name]["restored"]["psnr"]))
    step, label, panel, gap = 21, 150, 310, 36
    width, height = label + len(chosen) * (panel + gap), 30 + step * len(hands) + 22
    drawn = []
    for row, name in enumerate(hands):
        y = 30 + step * (row + 0.5)
        weight = f" style='fill:{RED};font-weight:600'" if name in held_out else f" style='fill:{INK}'"
        drawn.append(f"<text x='{label - 14}' y='{y + 4:.1f}' text-anchor='end'{weight}>{escape(name)}</text>")
    for position, column in enumerate(chosen):
        start = label + position * (panel + gap)
        factor = 100 if column.percent else 1
        rows = [result["by_hand"][name] for name in hands]
        values = [factor * v for r in rows for m in ("degraded", "restored") for v in r[m].get("ci95", {}).get(column.key, ())]
        if not values:
            continue
        low, high = min(values), max(values)
        low, high = low - (high - low) * 0.04 - 1e-6, high + (high - low) * 0.04 + 1e-6

        def at(value: float, start: float = start, low: float = low, high: float = high) -> float:
            return start + (value - low) / (high - low) * panel

        drawn.append(f"<text x='{start}' y='16' style='fill:{INK};font-weight:600'>{column.short}, {column.unit}</text>")
        for tick in _ticks(low, high):
            drawn.append(f"<line x1='{at(tick):.1f}' x2='{at(tick):.1f}' y1='26' y2='{height - 20}' stroke='#ece6da'/>")
            drawn.append(f"<text x='{at(tick):.1f}' y='{height - 6}' text-anchor='middle'>{_number(tick)}</text>")
        for row, part in enumerate(rows):
            if column.key not in part["restored"]:
                continue
            y = 30 + step * (row + 0.5)
            before, after = (at(factor * part[m][column.key]) for m in ("degraded", "restored"))
            ends = [at(factor * v) for v in part["restored"]["ci95"][column.key]]
            drawn.append(f"<line x1='{before:.1f}' x2='{after:.1f}' y1='{y}' y2='{y}' stroke='#d9cfc0' stroke-width='2'/>")
            drawn.append(
                f"<line x1='{ends[0]:.1f}' x2='{ends[1]:.1f}' y1='{y}' y2='{y}' stroke='{RED}' stroke-width='5' opacity='.25'/>"
            )
            drawn.append(
                f"<circle cx='{before:.1f}' cy='{y}' r='4' fill='{GREY}'/><circle cx='{after:.1f}' cy='{y}' r='4.5' fill='{RED}'/>"
            )
    return (
        "<h2>By hand</h2><p class='soft'>From the damaged (grey) to the restored pictures (red, with their 95 % interval)."
        " Names in red: hands that training never saw.</p>"
        f"<figure><svg viewBox='0 0 {width} {height}' style='max-width:{width}px' role='img'>{''.join(drawn)}</svg></figure>"
    )


def _calibration(calibration: dict) -> str:
    """The reliability curve, and below it how many pixels stand behind each of its points."""
    size, left, top, bars = 300, 40, 8, 54
    bins = calibration["bins"]
    pixels = sum(row["pixels"] for row in bins)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x * size, top + (1 - y) * size

    drawn = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = place(tick, tick)
        drawn.append(f"<line x1='{left}' x2='{left + size}' y1='{y:.1f}' y2='{y:.1f}' stroke='#ece6da'/>")
        drawn.append(f"<text x='{left - 6}' y='{y + 4:.1f}' text-anchor='end'>{_number(tick)}</text>")
        drawn.append(f"<text x='{x:.1f}' y='{top + size + bars + 22}' text-anchor='middle'>{_number(tick)}</text>")
    (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
    drawn.append(f"<line x1='{x0}' y1='{y0}' x2='{x1}' y2='{y1}' stroke='{GREY}' stroke-dasharray='4 3'/>")
    points = [place(row["restored"], row["clean"]) for row in bins if row["pixels"]]
    way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    drawn.append(f"<polyline points='{way}' fill='none' stroke='{RED}' stroke-width='2'/>")
    drawn += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.2' fill='{RED}'/>" for x, y in points]
    floor = top + size + 6 + bars
    for i, row in enumerate(bins):
        tall = bars * (row["pixels"] / pixels) ** 0.25  # the two ends hold nearly all pixels
        x = left + (i + 0.12) / len(bins) * size
        drawn.append(
            f"<rect x='{x:.1f}' y='{floor - tall:.1f}' width='{0.76 * size / len(bins):.1f}' height='{tall:.1f}' fill='#cfc6b6'/>"
        )
    height = floor + 32
    drawn.append(f"<text x='{left + size / 2}' y='{height - 2}' text-anchor='middle'>value of the restored pixel</text>")
    ends = sum(bins[i]["pixels"] for i in (0, -1)) / pixels
    return (
        "<h2>How far its sureness can be believed</h2><div class='two'>"
        f"<figure><b>share of ink in the clean picture</b><svg viewBox='0 0 {left + size + 12} {height}' role='img'>"
        f"{''.join(drawn)}</svg></figure><div>"
        f"<p>Expected calibration error: <b>{calibration['ece']:.4f}</b></p>"
        "<p class='soft'>A restored pixel of value 0.8 claims ink with a sureness of 80 %. The curve tells how much ink the clean"
        " pictures have where that is claimed, in 15 equally wide bins of the restored value: on the dashed line the network is"
        " as sure as it may be, below it too sure of ink, above it not sure enough. The error is the mean distance between the"
        " two over all pixels.</p>"
        f"<p class='soft'>Bars: pixels of each bin (fourth root; {100 * ends:.0f} % of {pixels:,} lie in the first and the last)."
        "</p>"
        "</div></div>"
    )


def _data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _tiles(blocks: dict[str, list[tuple[str, list[Image.Image]]]]) -> str:
    drawn = "<h2>Pictures</h2><p class='soft'>Best, median and worst by gain in PSNR. Downwards: damaged, restored, clean.</p>"
    for name, tiles in blocks.items():
        drawn += f"<h3>{name}</h3><div class='tiles'>"
        for caption, pictures in tiles:
            images = "".join(
                f"<img src='{_data_uri(picture)}' alt='{kind}' title='{kind}'>"
                for kind, picture in zip(("damaged", "restored", "clean"), pictures, strict=True)
            )
            text = "".join(f"<span>{escape(line).replace('&gt;', '→')}</span>" for line in caption.splitlines())
            drawn += f"<div class='tile'>{images}{text}</div>"
        drawn += "</div>"
    return drawn


def _about(result: dict, columns: list[Column]) -> str:
    scores = "".join(f"<dt>{c.short}</dt><dd>{escape(c.meaning)}</dd>" for c in columns)
    facts = {"commit": result["commit"], "handwriting set": result["data"]["checksum"]}
    if "checkpoint" in result:
        about = result["checkpoint"]
        facts["checkpoint"] = f"{about['path']}, epoch {about['epoch']}, side {about['side']}"
    if "benchmark" in result:
        about = result["benchmark"]
        facts["benchmark"] = ", ".join(about["names"].values())
        facts["its pictures"] = (
            f"{about['per_cell']} for each preset, hands (seen, unseen) and severity"
            f" ({', '.join(map(str, about['severities']))}), generator {about['generator']}"
        )
    if "recogniser" in result:
        facts["recogniser"] = result["recogniser"]["path"]
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    return f"<h2>The scores</h2><dl>{scores}</dl><h2>What was scored</h2><dl>{lines}</dl>"
