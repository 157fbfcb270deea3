import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from evaluation import report

VOID = {"meta", "img"}


class Balance(HTMLParser):
    """Fails if tags are not closed in the reverse order of opening."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text, self.sources, self.links, self.ids = [], [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]
        self.links += [value for key, value in attrs if key == "xlink:href"]
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def row(value: float, keys: list[str]) -> dict:
    return {**dict.fromkeys(keys, value), "ci95": {key: [value * 0.9, value * 1.1] for key in keys}}


RECOGNITION = ("top1", "top5", "top1_hardened", "top5_hardened")


def made(recognised: bool = True, frozen: bool = True) -> dict:
    keys = [column.key for column in report.COLUMNS if column.key not in ("frechet", *RECOGNITION * (not recognised))]
    part = {"n": 12, "characters": 3, "degraded": row(0.5, keys), "restored": row(0.8, keys)}
    part |= {name: row(0.6, keys) for name in ("otsu", "median_otsu", "sauvola")}
    part["clean"] = row(0.98, ["grey", *RECOGNITION * recognised])
    benchmark = {"name": "rubbing-1", "names": {"rubbing": "rubbing-1"}, "per_cell": 2, "severities": [0.2], "generator": 1}
    result = {
        **part,
        "differences": {"restored - degraded": {key: [-0.3, -0.4, 0.2] for key in keys}},
        "by_split": {"seen_hands": part, "unseen_hands": part},
        "by_hand": {"brush & <pen>": part, "$tranger$": part},
        "by_preset": {"rubbing": part},
        "cells": [{"preset": "rubbing", "severity": s, "split": "seen_hands", **part} for s in (0.2, 0.5, 0.8)],
        "calibration": {"ece": 0.0123, "bins": [{"pixels": 5 * (i != 3), "restored": i / 15, "clean": i / 15} for i in range(15)]},
        "damage": {"preset": "rubbing", "table": {}, "seed": 1},
        "data": {"checksum": "abc"},
        "img_size": 64,
        "commit": "unknown",
        "versions": {"torch": "2"},
        "guide": False,
        "pipeline": "onnx",
        "checkpoint": {"path": "a<b.pth", "model": "restorer_convnext_atto", "epoch": 3, "img_size": 64},
    }
    if frozen:
        result["benchmark"] = benchmark
    return result


def tiles() -> dict:
    picture = Image.new("L", (8, 8), 90)
    return {name: [("hand\n11.0 > 12.0 dB", [picture] * 3)] * 2 for name in ("best", "median", "worst")}


def parsed(text: str) -> Balance:
    parser = Balance()
    parser.feed(text)
    parser.close()
    assert not parser.open
    return parser


@pytest.mark.parametrize("recognised", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_report_is_one_valid_self_contained_file(recognised, frozen):
    html = report.html(made(recognised, frozen), tiles(), {"$tranger$"})
    parser = parsed(html)
    assert {"table", "svg", "img", "style"} <= set(parser.seen) and parser.seen.count("svg") == 3
    assert not {"script", "link", "iframe"} & set(parser.seen)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)", html)
    assert len(parser.sources) == 3 * 2 * 3 and all(source.startswith("data:image/png;base64,") for source in parser.sources)
    text = " ".join(parser.text)
    assert "brush & <pen>" in text and "$tranger$" in text and "0.0123" in text and "a<b.pth" in text
    assert ("rubbing-1" in text) == frozen and ("top-1" in text) == recognised


def test_figures_refer_to_their_own_elements_only():
    html = report.html(made(), tiles())
    everything = parsed(html)
    assert len(set(everything.ids)) == len(everything.ids) > 0
    for svg in re.findall(r"<svg.*?</svg>", html, re.S):
        figure = parsed(svg)
        assert {*figure.links, *re.findall(r"url\((#\w+)\)", svg)} <= {f"#{name}" for name in figure.ids}


def test_the_report_is_reproducible():
    assert report.html(made(), tiles()) == report.html(made(), tiles())


def test_curves_are_labelled_by_method_and_split():
    result = made()
    text = parsed(report.html(result, tiles())).text
    assert "restored, seen hands" in text and "degraded, seen hands" in text and "restored, unseen hands" not in text
    result["cells"] += [cell | {"split": "unseen_hands"} for cell in result["cells"]]
    assert "restored, unseen hands" in parsed(report.html(result, tiles())).text


@pytest.mark.filterwarnings("error")
def test_groups_without_a_recognised_character_are_drawn():
    result = made()
    without = made(recognised=False)
    for part in (result["by_hand"]["$tranger$"], result["cells"][1]):
        part["degraded"], part["restored"] = without["degraded"], without["restored"]
    assert "$tranger$" in parsed(report.html(result, tiles())).text


@pytest.mark.parametrize("guide", [True, False])
@pytest.mark.parametrize("pipeline", ["network only", "onnx", "torch"])
def test_the_title_and_the_pipeline_are_shown(guide, pipeline):
    html = report.html(made() | {"guide": guide, "pipeline": pipeline}, tiles())
    assert re.search(r"<h1>(.*?)</h1>", html)[1] == "restorer_convnext_atto" + ", with guide" * guide
    assert ("with guide" in html) == guide
    name = {"network only": "bare network", "onnx": "restore.py's pipeline, ONNX", "torch": "restore.py's pipeline, PyTorch"}[
        pipeline
    ]
    assert "".join(parsed(html).text).count(name) == 2


def test_predictions_have_no_checkpoint_and_no_pipeline():
    result = made() | {"predictions": "other/<restored>"}
    del result["checkpoint"], result["pipeline"], result["guide"]
    html = report.html(result, tiles())
    assert "pictures of other/<restored>" in parsed(html).text and "pipeline" not in html


def test_recognition_accuracy_comes_first():
    html = report.html(made(), tiles())
    heads = re.findall(r"<th title='[^']*'>([^<]*)", html)
    assert heads[:5] == ["top-1", "top-5", "top-1, hardened", "top-5, hardened", "PSNR"]
    assert heads[len(report.COLUMNS) - 1] == "top-1"  # of the second table
    assert re.search(r"<div class='card'><span>([^<]*)", html).group(1) == "top-1"


def test_the_best_method_is_bold():
    result = made(recognised=False)
    result["degraded"], result["otsu"] = result["otsu"], result["otsu"] | {"psnr": 0.99}
    table = report.html(result, tiles()).split("<h2>")[1]
    lines = dict(re.findall(r"<tr[^>]*><th>([^<]+)</th>(.*?)</tr>", table))
    columns = [column for column in report.COLUMNS if column.key in result["restored"]]
    less_is_better = sum(column.better < 0 for column in columns)
    assert lines["Otsu"].count("class='best'") == 1 + less_is_better and "class='best'>0.99" in lines["Otsu"]
    assert lines["median + Otsu"].count("class='best'") == less_is_better  # it ties with the others
    assert lines["restored"].count("class='best'") == len(columns) - less_is_better - 1


def test_short_names_fit_the_printed_table():
    assert all(0 < len(column.short) <= 9 for column in report.COLUMNS)


def all_pictures(result: dict) -> tuple[list[str], dict[str, list[str]]]:
    """The columns of the table of all pictures, and {method: its cells}."""
    table = report.html(result, tiles()).split("<h2>")[1]
    lines = re.findall(r"<tr[^>]*><th>([^<]+)</th>(.*?)</tr>", table)
    cells = {name: re.findall(r"<td[^>]*>(.*?)</td>", line) for name, line in lines}
    return re.findall(r"<th title='[^']*'>([^<]*)", table), cells


def test_the_last_row_shows_differences_with_their_interval():
    heads, cells = all_pictures(made())
    assert list(cells)[-2:] == ["restored", "restored − degraded"]
    shown = dict(zip(heads, cells["restored − degraded"], strict=True))
    assert shown["PSNR"] == "−0.30<small>−0.40 to +0.20</small>" and shown["top-1"] == "−30.0<small>−40.0 to +20.0</small>"


def test_the_frechet_distance_is_shown_of_all_pictures_only():
    distances = {"degraded": 60, "otsu": 40, "median_otsu": 30, "sauvola": 20, "restored": 1.25}
    heads, cells = all_pictures(made() | {"frechet": distances})
    shown = {name: row[heads.index("Fréchet distance")] for name, row in cells.items()}
    assert shown["restored"] == "1.25<small></small>" and shown["Otsu"] == "40.00<small></small>"
    assert shown["clean"] == shown["restored − degraded"] == "–"
    assert report.html(made() | {"frechet": distances}, tiles()).count("<th title='squared") == 1
    assert "Fréchet" not in report.html(made(), tiles())
