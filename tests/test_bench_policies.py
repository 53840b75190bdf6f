# SPDX-License-Identifier: Apache-2.0
"""docs/policies.md says what bench/results/policies.json says."""

import json
from pathlib import Path

import pytest

from bodocache.replay.policy import Policy

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def document():
    return json.loads((BENCH / "results" / "policies.json").read_text())


@pytest.fixture
def doc(monkeypatch):
    """The script that writes the page."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(BENCH))
    import _policies_doc

    return _policies_doc


def test_the_page_has_the_figures_of_the_json(doc, document):
    text = doc.PAGE.read_text()
    written = text[text.index(doc.BEGIN) + len(doc.BEGIN) : text.index(doc.END)]
    assert written.strip() == doc.block(document)


def test_the_page_explains_every_policy(doc):
    before, _, _ = doc.PAGE.read_text().partition(doc.BEGIN)
    assert [policy for policy in Policy if f"\n| `{policy}` | " not in before] == []


def test_the_plot_has_every_policy_of_the_json(doc, document, tmp_path):
    doc.plot(document, tmp_path / "plot.svg")
    drawn, committed = (path.read_text() for path in (tmp_path / "plot.svg", doc.PLOT))
    for policy in Policy:
        name = "min (optimum)" if policy is Policy.MIN else policy.value
        assert f">{name}</text>" in drawn
        assert f">{name}</text>" in committed


def test_curves_and_single_capacities_agree(document):
    curves = {row["curve"]: row for row in document["rows"] if "one_pass" in row}
    rows = [row for row in document["rows"] if "hit_ratio" in row]
    assert len(curves) == len(Policy)
    assert len(rows) == 5 * len(Policy)
    for row in rows:
        curve = curves[row["policy"]]
        assert curve["hits"][curve["capacity_pages"].index(row["capacity_pages"])] == row["hits"]


def test_what_the_bench_reproduces_it_does(document):
    """What the default policy was asked for may be missed; then the page says so."""
    missed = [claim["name"] for claim in document["claims"] if not claim["met"]]
    assert [name for name in missed if not name.startswith("learned, ")] == []
