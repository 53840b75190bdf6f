# SPDX-License-Identifier: Apache-2.0
"""docs/simulate.md says what tardiness.json says."""

import json
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def doc(monkeypatch):
    """The script that writes the page."""
    monkeypatch.syspath_prepend(str(BENCH))
    import _tardiness_doc

    return _tardiness_doc


@pytest.fixture
def document():
    return json.loads((BENCH / "results" / "tardiness.json").read_text())


def test_the_page_has_the_figures_of_the_json(doc, document):
    text = doc.PAGE.read_text()
    begin, end = text.index(doc.BEGIN) + len(doc.BEGIN), text.index(doc.END)
    assert text[begin:end].strip() == doc.block(document)


def test_a_point_at_which_not_every_policy_ran_has_no_figures(doc, document):
    first, rows = document["rows"][0], document["rows"]
    lacking = [row for row in rows if row is not first]
    whole, short = (doc.block({"rows": these, "claims": []}) for these in (rows, lacking))
    assert short != whole
    assert "|  |" in short


def test_the_plot_names_every_policy(doc, document):
    text = doc.PLOT.read_text()
    assert all(f">{row['policy']}</text>" in text for row in document["rows"])
