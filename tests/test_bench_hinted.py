# SPDX-License-Identifier: Apache-2.0
"""bench/hinted.py says what it says it says, and docs/hints.md what its JSON says."""

import json
import random
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def hinted(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    import hinted

    return hinted


def requests_of(count, seed):
    """Conversations of some turns, each turn a page longer."""
    chance, chains, requests = random.Random(seed), [], []
    for number in range(count):
        if chains and chance.random() < 0.5:
            chain = chance.choice(chains)
        else:
            chains.append(chain := [])
        chain.append(number)
        requests.append([*chain])
    return requests


def auc(said, goes_on):
    yes = [chance for chance, it in zip(said, goes_on, strict=True) if it]
    no = [chance for chance, it in zip(said, goes_on, strict=True) if not it]
    return sum((a > b) + 0.5 * (a == b) for a in yes for b in no) / (len(yes) * len(no))


@pytest.mark.parametrize(("quality", "area"), [("right", 1.0), ("auc 0.9", 0.9), ("random", 0.5)])
def test_what_is_said_is_as_right_as_its_name(hinted, quality, area):
    requests = requests_of(1500, 1)
    goes_on = [chance == 1.0 for chance in hinted.chances(requests, "right")]
    last_uses = [any(pages[-1] in later for later in requests[i + 1 : i + 400])
                 for i, pages in enumerate(requests[:300])]  # fmt: skip
    assert sum(goes_on[:300]) >= sum(last_uses) > 0
    assert auc(hinted.chances(requests, quality), goes_on) == pytest.approx(area, abs=0.03)


def test_the_page_has_the_figures_of_the_json():
    document = json.loads((REPOSITORY / "bench" / "results" / "hinted.json").read_text())
    text = (REPOSITORY / "docs" / "hints.md").read_text()
    for row in document["rows"]:
        told = f"{row['hit_ratio']:.4f}, {row['second_half_hit_ratio']:.4f}"
        line = next(it for it in text.splitlines() if it.startswith(f"| {row['hints']} |"))
        assert told in line
    missed = [claim for claim in document["claims"] if not claim["met"]]
    for claim in missed:
        assert f"{claim['measured']:.2f}, short of {claim['target'].split()[-1]}" in text
    assert text.count("short of") == len(missed)
