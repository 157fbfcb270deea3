import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from util import report

VOID = {"meta", "img", "br", "line", "circle", "rect", "polyline", "polygon"}


class Balance(HTMLParser):
    """Fails where tags do not close in the order in which they opened."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text, self.sources = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def row(value: float, keys: list[str]) -> dict:
    return {**dict.fromkeys(keys, value), "ci95": {key: [value * 0.9, value * 1.1] for key in keys}}


def made(read: bool = True, frozen: bool = True) -> dict:
    keys = [column.key for column in report.COLUMNS if read or column.key not in ("top1", "top5")]
    part = {"n": 12, "characters": 3, "degraded": row(0.5, keys), "restored": row(0.8, keys)}
    part["baselines"] = {name: row(0.6, keys) for name in ("unchanged", "otsu", "median_otsu", "sauvola")}
    if read:
        part["clean"] = row(0.98, ["top1", "top5"])
    about = {"name": "rubbing-1", "names": {"rubbing": "rubbing-1"}, "per_cell": 2, "severities": [0.2], "generator": 1}
    told = {
        **part,
        "by_split": {"seen_hands": part, "unseen_hands": part},
        "by_hand": {"brush & <pen>": part, "stranger": part},
        "by_preset": {"rubbing": part},
        "cells": [{"preset": "rubbing", "severity": s, "split": "seen_hands", **part} for s in (0.2, 0.5, 0.8)],
        "calibration": {"ece": 0.0123, "bins": [{"pixels": 5 * (i != 3), "restored": i / 15, "clean": i / 15} for i in range(15)]},
        "damage": {"preset": "rubbing", "table": {}, "seed": 1},
        "data": {"checksum": "abc"},
        "side": 64,
        "commit": "unknown",
        "versions": {"torch": "2"},
        "guide": False,
        "checkpoint": {"path": "a<b.pth", "model": "restorer_convnext_atto", "epoch": 3, "side": 64},
    }
    if frozen:
        told["benchmark"] = about
    return told


def tiles() -> dict:
    picture = Image.new("L", (8, 8), 90)
    return {name: [("hand\n11.0 > 12.0 dB", [picture] * 3)] * 2 for name in ("best", "median", "worst")}


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_report_is_one_sound_file(read, frozen):
    told = report.html(made(read, frozen), tiles(), {"stranger"})
    parser = Balance()
    parser.feed(told)
    parser.close()
    assert not parser.open and {"table", "svg", "img", "style"} <= set(parser.seen)
    assert not {"script", "link", "iframe"} & set(parser.seen)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", told)
    assert len(parser.sources) == 3 * 2 * 3 and all(source.startswith("data:image/png;base64,") for source in parser.sources)
    text = " ".join(parser.text)
    assert "brush & <pen>" in text and "0.0123" in text and "a<b.pth" in text
    assert ("rubbing-1" in text) == frozen and ("top-1" in text) == read


def test_legibility_stands_first():
    told = report.html(made(), tiles())
    heads = re.findall(r"<th title='[^']*'>([^<]*)", told)
    assert heads[:3] == ["top-1", "top-5", "PSNR"] and heads[len(report.COLUMNS)] == "top-1"
    assert re.search(r"<div class='card'><span>([^<]*)", told).group(1) == "top-1"


def test_the_best_method_is_bold():
    result = made(read=False)
    result["baselines"]["otsu"]["psnr"] = 0.99
    table = report.html(result, tiles()).split("<h2>")[1]
    lines = dict(re.findall(r"<tr[^>]*><th>([^<]+)</th>(.*?)</tr>", table))
    less_is_better = sum(column.better < 0 for column in report.COLUMNS)
    assert lines["Otsu"].count("class='best'") == 1 + less_is_better and "class='best'>0.99" in lines["Otsu"]
    assert lines["median + Otsu"].count("class='best'") == less_is_better  # it ties with the others
    assert lines["restored"].count("class='best'") == len(report.COLUMNS) - 2 - less_is_better - 1


@pytest.mark.parametrize("low, high", [(0, 1), (9.7, 16.8), (63, 91.2), (0.0003, 0.0011), (-3, 250)])
def test_ticks_are_round_and_inside(low, high):
    ticks = report._ticks(low, high)
    assert 2 <= len(ticks) <= 7 and all(low <= tick <= high for tick in ticks)
    steps = {round((b - a) / (high - low), 4) for a, b in zip(ticks, ticks[1:], strict=False)}
    assert len(steps) == 1
