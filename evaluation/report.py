"""The report of an evaluation: one self-contained HTML file drawn from the contents of metrics.json."""

import base64
import io
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class Column(NamedTuple):
    """A score in the tables. `better`: 1 if higher is better, -1 if lower is; `short`: at most 9 characters, for the terminal."""

    key: str
    name: str
    short: str
    unit: str
    digits: int
    better: int
    meaning: str

    @property
    def scale(self) -> int:
        """Scores in percent are stored as fractions."""
        return 100 if self.unit == "%" else 1

    @property
    def label(self) -> str:
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def form(self, value: float, sign: str = "") -> str:
        """The value in the column's unit. `sign`: "+" to show that of a positive value too."""
        return f"{self.scale * value:{sign}.{self.digits}f}"


COLUMNS = (
    Column("top1", "top-1", "top-1", "%", 1, 1, "share of pictures whose character is the recogniser's first guess"),
    Column("top5", "top-5", "top-5", "%", 1, 1, "share of pictures whose character is among the recogniser's first five guesses"),
    Column("top1_hardened", "top-1, hardened", "top-1 hd", "%", 1, 1,
           "top-1 of the hardened recogniser, which was trained on degraded glyphs too"),
    Column("top5_hardened", "top-5, hardened", "top-5 hd", "%", 1, 1, "top-5 of the hardened recogniser"),
    Column("psnr", "PSNR", "PSNR", "dB", 2, 1, "peak signal-to-noise ratio for a data range of 1, at most 60 dB per picture"),
    Column("psnr_degraded_area", "PSNR, degraded area", "PSNR deg.", "dB", 2, 1,
           "PSNR over the pixels where degraded and clean picture differ by more than half of the range"),
    Column("psnr_intact_area", "PSNR, intact area", "PSNR int.", "dB", 2, 1, "PSNR over all other pixels"),
    Column("psnr_clean", "PSNR, clean input", "PSNR cln.", "dB", 2, 1,
           "PSNR of the method's result on the clean picture: how much it changes what needs no restoration"),
    Column("ssim", "SSIM", "SSIM", "", 3, 1, "structural similarity, Gaussian window of 11×11, strokes bright on dark ground"),
    Column("ssim_inverse", "SSIM, inverted", "SSIM inv.", "", 3, 1, "SSIM of the inverted pictures, strokes dark on bright ground"),
    Column("f1", "ink F1", "ink F1", "%", 1, 1, "F-measure of the stroke pixels, each picture binarised by Otsu's threshold"),
    Column("pseudo_f1", "pseudo F1", "pseudo F1", "%", 1, 1,
           "F-measure weighted by the distance from the contour (Ntirogiannis et al., 2013)"),
    Column("drd", "DRD", "DRD", "", 2, -1, "distance reciprocal distortion (Lu, Kot & Shi, 2004); 0 is perfect"),
    Column("chamfer", "chamfer", "chamfer", "px", 2, -1,
           "distance between the centre lines; the picture's diagonal if one of them is empty"),
    Column("broken", "broken", "broken", "", 2, -1, "stretches of clean centre line without ink within 3 px at image size 224"),
    Column("invented", "invented", "invented", "", 2, -1,
           "pieces of ink of at least 25 px, more than 3 px away from any clean ink, at image size 224"),
    Column("grey", "grey", "grey", "%", 1, -1, "share of the pixels between 0.15 and 0.85, which are neither ground nor ink"),
    Column("frechet", "Fréchet distance", "Fréchet", "", 2, -1,
           "squared Fréchet distance to the clean pictures in the features of the recogniser of clean glyphs (the formula of FID;"
           " Heusel et al., 2017)"),
)  # fmt: skip
COLUMN = {column.key: column for column in COLUMNS}
METHODS = {"clean": "clean", "degraded": "degraded", "otsu": "Otsu", "median_otsu": "median + Otsu", "sauvola": "Sauvola",
           "restored": "restored"}  # fmt: skip
SPLITS = {"seen_hands": "seen hands", "unseen_hands": "unseen hands"}
PIPELINES = {"network only": "bare network", "onnx": "restore.py's pipeline, ONNX", "torch": "restore.py's pipeline, PyTorch"}

STYLE = Path(__file__).with_name("report.css")
RED, GREY, INK, SOFT, LINE = "#b3332a", "#8b8579", "#2a2622", "#6d675d", "#e2dcd0"
COLOURS = {"degraded": GREY, "restored": RED}
DRAWING = {  # matplotlib's settings: text stays text, a `$` in a name does not start a formula
    "svg.fonttype": "none", "text.parse_math": False, "font.family": "DejaVu Sans", "font.size": 9, "axes.titleweight": "bold",
    "axes.titlesize": 10, "axes.titlelocation": "left", "text.color": INK, "axes.labelcolor": SOFT, "xtick.color": SOFT,
    "ytick.color": SOFT, "axes.edgecolor": LINE, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#ece6da", "axes.axisbelow": True, "xtick.major.size": 0, "ytick.major.size": 0, "legend.frameon": False,
    "lines.markersize": 4, "figure.constrained_layout.use": True, "figure.constrained_layout.wspace": 0.05,
}  # fmt: skip


def html(result: dict, tiles: dict[str, list[tuple[str, list[Image.Image]]]], held_out: Iterable[str] = ()) -> str:
    """The report.

    Args:
        result: the contents of metrics.json.
        tiles: what `evaluation.sheet.pick_tiles` returns: {block: [(caption of two lines, [degraded, restored, clean]), …]}.
        held_out: names of the hands that training never saw.
    """
    import matplotlib

    columns = _present(overall(result), *COLUMN)
    with matplotlib.rc_context(DRAWING):
        figures = [_by_severity(result), _by_hand(result, set(held_out)), _calibration(result["calibration"])]
    if "readings" in result:
        figures.append(_readings(result["readings"]))
    parts = [_head(result), _cards(result), _whole(result, columns), _groups(result), *figures, _tiles(tiles)]
    body = "\n".join([*parts, _about(result, columns)])
    colours = f":root {{ --red: {RED}; --ink: {INK}; --soft: {SOFT}; --line: {LINE}; }}"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Restored characters: {escape(_method(result))}</title>
<style>{colours}
{STYLE.read_text(encoding="utf-8")}</style></head><body><main>
{body}
</main></body></html>
"""


def overall(result: dict) -> dict[str, dict]:
    """{method: its scores over all pictures}, the Fréchet distance among them where there is one."""
    rows = {method: dict(result[method]) for method in METHODS if method in result}
    for method, distance in result.get("frechet", {}).items():
        rows[method]["frechet"] = distance
    return rows


def _method(result: dict) -> str:
    if "checkpoint" not in result:
        return f"pictures of {result['predictions']}"
    return result["checkpoint"]["model"] + guided_by(result)


def guided_by(result: dict) -> str:
    """What guides the method, as an addition to its name."""
    return ", guided by readings" if result.get("read") else ", with guide" * result["guide"]


def _head(result: dict) -> str:
    if "benchmark" in result:
        source = f"frozen benchmark <code>{result['benchmark']['name']}</code>"
    else:
        source = f"damage <code>{escape(result['damage']['preset'])}</code>, seed {result['damage']['seed']}"
    pictures = f"{result['n']:,} degraded pictures of {result['characters']:,} characters that training never saw"
    facts = [pictures, source, f"image size {result['img_size']}"]
    if "pipeline" in result:
        facts.append(PIPELINES[result["pipeline"]])
    return f"<h1>{escape(_method(result))}</h1><p class='soft'>{' · '.join(facts)}</p>"


def _present(result: dict, *keys: str) -> list[Column]:
    return [COLUMN[key] for key in keys if key in result["restored"]]


def _cards(result: dict) -> str:
    """The main scores of the restored pictures, and below them those of the degraded pictures."""
    cards = "".join(
        f"<div class='card'><span>{column.name}</span><b>{column.form(result['restored'][column.key])}"
        f"<small>{column.unit}</small></b><span>degraded {column.form(result['degraded'][column.key])}</span></div>"
        for column in _present(result, "top1", "psnr", "ssim", "f1", "drd", "broken")
    )
    return f"<div class='cards'>{cards}</div>"


# --- tables -------------------------------------------------------------------------------------------------------------


def _cell(row: dict, column: Column, best: bool = False) -> str:
    if column.key not in row:
        return "<td>–</td>"
    interval = " – ".join(map(column.form, row["ci95"].get(column.key, ())))
    kind = " class='best'" if best else ""
    return f"<td{kind}>{column.form(row[column.key])}<small>{interval}</small></td>"


def _difference_cell(row: dict[str, list[float]], column: Column) -> str:
    if column.key not in row:
        return "<td>–</td>"
    mean, low, high = (column.form(value, "+").replace("-", "−") for value in row[column.key])
    return f"<td>{mean}<small>{low} to {high}</small></td>"


def _row(method: str, cells: Iterable[str]) -> str:
    return f"<tr class='{method}'><th>{METHODS[method]}</th>{''.join(cells)}</tr>"


def _table(columns: list[Column], body: str) -> str:
    heads = "".join(
        f"<th title='{escape(c.meaning)}'>{c.name}<small>{c.unit} {'↑' if c.better > 0 else '↓'}</small></th>" for c in columns
    )
    return f"<div class='wide'><table><thead><tr><th></th>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


def _whole(result: dict, columns: list[Column]) -> str:
    rows = overall(result)
    best = {c.key: c.form(c.better * max(c.better * row[c.key] for name, row in rows.items() if name != "clean")) for c in columns}
    body = "".join(
        _row(name, (_cell(row, c, name != "clean" and c.form(row[c.key]) == best[c.key]) for c in columns))
        for name, row in rows.items()
    )
    difference = result["differences"]["restored - degraded"]
    cells = "".join(_difference_cell(difference, column) for column in columns)
    body += f"<tr class='difference'><th>restored − degraded</th>{cells}</tr>"
    return (
        "<h2>All pictures</h2><p class='soft'>Means, and below them the 95 % bootstrap interval over characters; in the last row"
        " the mean difference between restored and degraded picture, with its paired interval. An arrow shows which direction is"
        " better; the best method is bold.</p>" + _table(columns, body)
    )


def _groups(result: dict) -> str:
    columns = _present(result, *COLUMN)
    groups = (("hands", "by_split"), ("preset", "by_preset"))
    parts = [(title, *part) for title, key in groups if len(result[key]) > 1 for part in result[key].items()]
    if "clerical" in result:
        parts.append(("beside the benchmark", "clerical hand", result["clerical"]))
    body = ""
    for title, name, part in parts:
        text = escape(f"{title}: {SPLITS.get(name, name)}, {part['n']:,} pictures")
        body += f"<tr class='group'><th colspan='{len(columns) + 1}'>{text}</th></tr>"
        body += "".join(_row(method, (_cell(part[method], column) for column in columns)) for method in COLOURS)
    return f"<h2>By hands and by preset of damage</h2>{_table(columns, body)}" if body else ""


# --- figures ------------------------------------------------------------------------------------------------------------


def _subplots(width: float, height: float, rows: int, columns: int, **settings):
    """A figure, in inches, and its (rows, columns) array of axes."""
    from matplotlib.figure import Figure  # here, so that evaluate.py --help does not wait for it

    figure = Figure((width, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **settings)


def _svg(figure, label: str) -> str:
    """An inline SVG element: without the XML header and namespaces; ids differ between figures and stay the same over calls."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = re.sub(r' (?:xmlns(?::\w+)?="[^"]*"|id="[\w.]+_\d+")', "", svg[svg.index("<svg") :])
    return svg.replace("<svg", f"<svg role='img' aria-label='{label}'", 1)


def _interval(row: dict, column: Column) -> list[float]:
    """[mean, low, high] in the column's unit; NaN without this score."""
    if column.key not in row:
        return [np.nan] * 3
    return [column.scale * value for value in (row[column.key], *row["ci95"][column.key])]


def _by_severity(result: dict) -> str:
    columns, presets = _present(result, "top1", "psnr", "pseudo_f1", "broken"), list(result["by_preset"])
    figure, grid = _subplots(13.4, 0.7 + 1.9 * len(presets), len(presets), len(columns), sharex=True, sharey="col")
    legend = {}
    for panels, preset in zip(grid, presets, strict=True):
        panels[0].set_ylabel(preset, color=INK, weight="bold")
        for axes, column in zip(panels, columns, strict=True):
            for split, line in (("seen_hands", "-"), ("unseen_hands", "--")):
                cells = [cell for cell in result["cells"] if (cell["preset"], cell["split"]) == (preset, split)]
                for method, colour in COLOURS.items() if cells else ():
                    mean, low, high = np.transpose([_interval(cell[method], column) for cell in cells])
                    severity = [cell["severity"] for cell in cells]
                    axes.fill_between(severity, low, high, color=colour, alpha=0.12, linewidth=0)
                    (curve,) = axes.plot(severity, mean, line, color=colour, marker="o")
                    legend.setdefault(f"{method}, {SPLITS[split]}", curve)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(column.label)
        axes.set_xticks(sorted({cell["severity"] for cell in result["cells"]}))
    for axes in grid[-1]:
        axes.set_xlabel("severity")
    figure.legend(legend.values(), legend.keys(), loc="outside upper left", ncols=4)
    return (
        "<h2>By severity</h2><p class='soft'>Severity runs from 0, hardly any damage, to 1. Bands are 95 % intervals.</p>"
        f"<figure class='wide broad'>{_svg(figure, 'scores by severity')}</figure>"
    )


def _by_hand(result: dict, held_out: set[str]) -> str:
    """One line per hand, from the degraded to the restored pictures."""
    columns, parts = _present(result, "top1", "psnr", "pseudo_f1"), result["by_hand"]
    hands = sorted(parts, key=lambda name: (name in held_out, -parts[name]["restored"]["psnr"]))
    rows = range(len(hands))
    figure, (panels,) = _subplots(13.4, 0.6 + 0.24 * len(hands), 1, len(columns), sharey=True)
    for axes, column in zip(panels, columns, strict=True):
        before, after = (np.transpose([_interval(parts[hand][method], column) for hand in hands]) for method in COLOURS)
        axes.hlines(rows, before[0], after[0], color="#d9cfc0", linewidth=1.5)
        axes.hlines(rows, after[1], after[2], color=RED, linewidth=4.5, alpha=0.25)
        axes.plot(before[0], rows, "o", color=GREY, markersize=5)
        axes.plot(after[0], rows, "o", color=RED, markersize=6)
        axes.set_title(column.label)
    panels[0].set_yticks(rows, hands)
    panels[0].set_ylim(len(hands) - 0.4, -0.6)
    for label, hand in zip(panels[0].get_yticklabels(), hands, strict=True):
        label.set_color(RED if hand in held_out else INK)
    return (
        "<h2>By hand</h2><p class='soft'>From the degraded (grey) to the restored pictures (red, with their 95 % interval)."
        " Names in red: hands that training never saw.</p>"
        f"<figure class='wide broad'>{_svg(figure, 'scores by hand')}</figure>"
    )


def _calibration(calibration: dict) -> str:
    """The reliability diagram, and below it the number of pixels in each bin."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    bins = calibration["bins"]
    pixels = [row["pixels"] for row in bins]
    figure, ((curve,), (bars,)) = _subplots(4.3, 5.2, 2, 1, sharex=True, height_ratios=(4, 1))
    curve.plot([0, 1], [0, 1], "--", color=GREY)
    curve.plot(*zip(*((row["restored"], row["clean"]) for row in bins if row["pixels"]), strict=True), "o-", color=RED)
    curve.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title="share of ink in the clean picture")
    bars.bar((np.arange(len(bins)) + 0.5) / len(bins), pixels, 0.76 / len(bins), color="#cfc6b6", log=True)
    bars.yaxis.set(major_locator=LogLocator(numticks=4), minor_locator=NullLocator(), major_formatter=EngFormatter(sep=""))
    bars.set(xlabel="value of the restored pixel", ylabel="pixels")
    ends = (pixels[0] + pixels[-1]) / sum(pixels)
    return (
        f"<h2>Calibration</h2><div class='two'><figure class='wide'>{_svg(figure, 'calibration')}</figure><div>"
        f"<p>Expected calibration error: <b>{calibration['ece']:.4f}</b></p>"
        "<p class='soft'>The value of a restored pixel is the network's confidence that the pixel is ink. The curve shows the"
        " share of ink that the clean pictures have at that confidence, in 15 bins of equal width. On the dashed line, confidence"
        " and share agree; below it, the network is overconfident that there is ink; above it, underconfident. The error is the"
        " mean distance between the two over all pixels.</p>"
        f"<p class='soft'>Bars: pixels in each bin, on a logarithmic scale. The first and the last bin hold {100 * ends:.0f} % of"
        f" {sum(pixels):,} pixels.</p></div></div>"
    )


def _readings(trust: dict) -> str:
    text = "<h2>Readings</h2><p>"
    if trust["n"]:
        text += (
            f"The first reading is right in <b>{100 * trust['top1']:.1f} %</b> of {trust['n']:,} pictures; its mean probability is"
            f" {100 * trust['probability']:.1f} %, its expected calibration error <b>{trust['ece']:.4f}</b>. "
        )
    if trust["auroc"]:
        text += (
            f"In {trust['unknown']:,} pictures of characters that the reader never learnt the first reading is less probable in"
            f" {100 * trust['auroc']:.1f} % of all pairs of one of these and one of those (AUROC)."
        )
    return text + "</p>"


# --- pictures and facts -------------------------------------------------------------------------------------------------


def _data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _tiles(blocks: dict[str, list[tuple[str, list[Image.Image]]]]) -> str:
    body = "<h2>Pictures</h2><p class='soft'>Best, median and worst by gain in PSNR. Top to bottom: degraded, restored, clean.</p>"
    for name, tiles in blocks.items():
        body += f"<h3>{name}</h3><div class='tiles'>"
        for caption, pictures in tiles:
            images = "".join(
                f"<img src='{_data_uri(picture)}' alt='{kind}' title='{kind}'>"
                for kind, picture in zip(("degraded", "restored", "clean"), pictures, strict=True)
            )
            text = "".join(f"<span>{escape(line.replace('>', '→'))}</span>" for line in caption.splitlines())
            body += f"<div>{images}{text}</div>"
        body += "</div>"
    return body


def _list(facts: dict[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{escape(text)}</dd>' for name, text in facts.items())}</dl>"


def _about(result: dict, columns: list[Column]) -> str:
    facts = {}
    if "checkpoint" in result:
        info = result["checkpoint"]
        facts["checkpoint"] = f"{info['path']}, epoch {info['epoch']}, image size {info['img_size']}"
        facts["restored by"] = PIPELINES[result["pipeline"]] + guided_by(result)
    if "benchmark" in result:
        info = result["benchmark"]
        facts["benchmark"] = ", ".join(info["names"].values())
        facts["its pictures"] = (
            f"{info['per_cell']} for each preset, split of hands (seen, unseen) and severity"
            f" ({', '.join(map(str, info['severities']))}); generator version {info['generator']}"
        )
    for key, name in (("recogniser", "recogniser"), ("hardened", "hardened recogniser")):
        if key in result:
            facts[name] = result[key]["path"]
    facts |= {"handwriting set": result["data"]["checksum"], "commit": result["commit"]}
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    meanings = {column.name: column.meaning for column in columns}
    return f"<h2>Scores</h2>{_list(meanings)}<h2>What was scored</h2>{_list(facts)}"
