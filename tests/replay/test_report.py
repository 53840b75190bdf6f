# SPDX-License-Identifier: Apache-2.0
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.errors import BackendUnavailable
from bodocache.replay.report import HitRatioSeries, LinkBar, ReportData, write_report

NOTHING = HitRatioSeries([], [], [])
EMPTY = ReportData("empty", [], NOTHING, [], {}, {})
FULL = ReportData(
    title="replay <of> $a$ & $b$",
    summary=[("requests", "600"), ("wrong <bytes>", "0")],
    hit_ratio=HitRatioSeries([0.0, 1.0, 2.0], [0.0, 0.3, 0.441], [0.0, 0.4, 0.479]),
    links=[LinkBar("disk -> host", 12.3, 4.51), LinkBar("host -> disk", 7.7, None)],
    latencies_ms={"load": np.array([1.0, 2.0, 30.0]), "$t$ore": [0.5, np.nan, np.inf, 0.0]},
    misses={"late": 1, "never stored": 9},
)


@pytest.fixture
def page(tmp_path):
    return lambda data: text_of(tmp_path / "report.html", data)


def text_of(path, data):
    write_report(path, data)
    return path.read_text(encoding="utf-8")


def test_page_has_every_figure_in_words(page):
    text = page(FULL)
    assert "44.1% of page touches hit; the exact optimum for this capacity is 47.9%" in text
    assert "disk -&gt; host: 12.3 GB at 4.51 GB/s; host -&gt; disk: 7.7 GB." in text
    assert "load: 3 operations, median 2 ms, p99 29.4 ms; $t$ore: 2 operations" in text
    assert "never stored: 9 (90%); late: 1 (10%)." in text
    assert text.count("<figure>") == text.count("<figcaption>") == text.count("<svg") == 4


def test_page_needs_nothing_from_outside(page):
    text = page(FULL)
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) == namespaces
    assert all(target.startswith("#") for target in re.findall(r'(?:href|src)="([^"]*)"', text))
    assert "<script" not in text
    assert "default-src 'none'" in text


def test_names_are_escaped(page):
    text = page(FULL)
    assert "<h1>replay &lt;of&gt; $a$ &amp; $b$</h1>" in text
    assert ">$t$ore</text>" in text
    assert '<th scope="row">wrong &lt;bytes&gt;</th><td>0</td>' in text


def test_plots_take_the_colour_of_the_page(page):
    for svg in re.findall(r"<svg.*?</svg>", page(FULL), re.DOTALL):
        labels = re.findall(r"<text style=\"([^\"]*)\"", svg)
        assert labels
        assert all("fill: currentColor" in style for style in labels)
        assert "#000000" not in svg


def test_plots_share_no_id(page):
    svgs = re.findall(r"<svg.*?</svg>", page(FULL), re.DOTALL)
    ids = [name for svg in svgs for name in set(re.findall(r'\bid="([^"]*)"', svg))]
    assert len(set(ids)) == len(ids)


def test_plots_are_well_formed(page):
    svgs = re.findall(r"<svg.*?</svg>", page(FULL), re.DOTALL)
    for svg in svgs:
        assert ET.fromstring(svg).get("aria-hidden") == "true"


def test_a_bound_is_called_one(page):
    text = page(replace(FULL, optimum_name="upper bound"))
    assert "the upper bound for this capacity is 47.9%" in text
    assert ">upper bound</text>" in text
    assert "optimum" not in text


def test_empty_parts_are_left_out(page):
    assert "<figure>" not in page(EMPTY)
    assert page(replace(EMPTY, misses={"late": 0})).count("<figure>") == 1


def test_equal_data_give_equal_pages(page):
    assert page(FULL) == page(FULL)


def test_long_series_stays_small(page):
    time_s = np.arange(200_000.0)
    ratio = np.random.default_rng(1).random(200_000)
    assert len(page(replace(EMPTY, hit_ratio=HitRatioSeries(time_s, ratio, ratio)))) < 200_000


@settings(max_examples=8, deadline=None)
@given(values=st.lists(st.floats(0, 1e9), min_size=1), amount=st.floats(0, 1e6))
def test_any_latencies_and_amounts_can_be_drawn(tmp_path_factory, values, amount):
    data = replace(EMPTY, latencies_ms={"load": values}, links=[LinkBar("disk", amount, amount)])
    text = text_of(tmp_path_factory.mktemp("report") / "report.html", data)
    HTMLParser().feed(text)
    assert text.count("<svg") == 2


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"columns of \[2, 1, 1\] values"):
        replace(EMPTY, hit_ratio=HitRatioSeries([1, 2], [0.1], [0.2]))


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailable, match=r"pip install bodocache\[report\]"):
        write_report(tmp_path / "report.html", FULL)
    assert not (tmp_path / "report.html").exists()
