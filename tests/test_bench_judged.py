# SPDX-License-Identifier: Apache-2.0
"""docs/policies.md says what hints.json, unseen.json, scans.json and writes.json say."""

import json
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
NAMES = (
    *("hints", "hints of tenants", "unseen traces", "unseen clocks", "unseen scans"),
    "scans of seeds",
    "unseen newcomers",
    *("writes", "writes elsewhere"),
)


@pytest.fixture
def doc(monkeypatch):
    """The script that writes the page."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(BENCH))
    import _judged_doc

    return _judged_doc


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_the_figures_of_the_json(doc, name):
    text = doc.PAGE.read_text()
    begin, end = doc.markers(name)
    assert text[text.index(begin) + len(begin) : text.index(end)].strip() == doc.block(name)


def test_every_section_is_compared(doc):
    assert set(doc.BLOCKS) == set(NAMES)


def test_the_plot_has_every_rule_of_the_json(doc, tmp_path):
    document = json.loads((BENCH / "results" / "writes.json").read_text())
    doc.plot(document, tmp_path / "plot.svg")
    drawn, committed = (path.read_text() for path in (tmp_path / "plot.svg", doc.PLOT))
    for row in (row for row in document["rows"] if "rule" in row):
        assert f">{row['rule']}, {row['when']}</text>" in drawn
        assert f">{row['rule']}, {row['when']}</text>" in committed


@pytest.mark.parametrize("name", ["hints", "unseen", "scans", "writes"])
def test_a_claim_is_met_where_the_figures_say_so(name):
    document = json.loads((BENCH / "results" / f"{name}.json").read_text())
    assert document["claims"]
    for claim in document["claims"]:
        sign, bound, *_ = claim["target"].split()
        bound = float(bound)
        measured = claim["measured"]
        within = measured >= bound - 1e-3 if sign == ">=" else measured <= bound + 1e-3
        assert within or not claim["met"]
