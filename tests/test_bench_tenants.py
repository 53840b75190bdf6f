# SPDX-License-Identifier: Apache-2.0
"""A flood by one tenant costs another little where it has a rate, and much where it has none."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def tenants(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    import tenants

    return tenants


@pytest.mark.timeout(300)
@pytest.mark.parametrize("where", ["in_process", "on_a_node"])
def test_credits_bound_what_a_flood_costs_another_tenant(tenants, where):
    through = getattr(tenants, where)
    alone, flooded, limited = (
        tenants.simulate(*case, through=through, loads=12) for case in tenants.CASES.values()
    )
    assert alone.hit_ratio == 1.0
    assert limited.hit_ratio > 0.95 * alone.hit_ratio
    assert limited.p99_s < 1.1 * alone.p99_s
    assert flooded.hit_ratio < 0.95 * alone.hit_ratio
    assert flooded.p99_s > 1.1 * alone.p99_s
    assert limited.flood_pages > 0  # it is served what it may have
    assert alone.wrong == flooded.wrong == limited.wrong == 0
    again = tenants.simulate(True, True, through=through, loads=12)
    assert tenants.figures(again) == tenants.figures(limited)
