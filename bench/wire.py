# SPDX-License-Identifier: Apache-2.0
"""Rows of the planner's wire form a second of one core, each way.

Records come from a seed; every table is encoded and decoded whole, with every check. A row of a
window is a demand or a page (128 bytes and its key); of a plan an op, a moved page, or a fate.
Claims are of processor seconds, which others on the machine change little; wall time is beside it.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from _common import Claim, interleaved, parser, write

from bodocache.cluster.codec import (
    Window,
    decode_plan,
    decode_window,
    encode_plan,
    encode_window,
)
from bodocache.pages import KEY_NBYTES, NOWHERE, PAGE
from bodocache.plan.loads import DECISION
from bodocache.plan.records import DEMAND, LINK, OP, REQUEST, TENANT, Plan

NOW_S = 1_000.0
ROWS_PER_S = 2e6
SIZES = {"window of 10^4 demands": (10_000, 10_000), "window of 10^6 pages": (10_000, 1_000_000)}


def main() -> None:
    chosen = parser(__doc__).parse_args()
    rows, claims = [], []
    for name, (demands, pages) in SIZES.items():
        window = random_window(demands, pages)
        plan = random_plan(demands, pages)
        sent = encode_window(window, now_s=NOW_S), encode_plan(plan, window.keys, now_s=NOW_S)
        window_rows, plan_rows = demands + pages, len(plan.ops) + 2 * demands + len(plan.decisions)
        cases = {
            "encode window": (window_rows, partial(encode_window, window, now_s=NOW_S)),
            "decode window": (window_rows, partial(decode_window, sent[0], now_s=NOW_S)),
            "encode plan": (plan_rows, partial(encode_plan, plan, window.keys, now_s=NOW_S)),
            "decode plan": (
                plan_rows,
                partial(decode_plan, sent[1], now_s=NOW_S, window=window),
            ),
        }
        timings = interleaved({case: call for case, (_, call) in cases.items()}, runs=15)
        for case, (count, call) in cases.items():
            row = row_of(name, case, count, sent, timings[case].median_s)
            row["rows_per_cpu_s"] = round(count / cpu_s(call))
            rows.append(row)
            claim = f"{name}: {case}", row["rows_per_cpu_s"], ROWS_PER_S, "rows/s of one core"
            claims.append(Claim.at_least(*claim))
    write(chosen.json, rows, claims)


def cpu_s(call: Callable[[], object]) -> float:
    """Processor seconds of one call, the least of five: others on the machine count less."""
    found = []
    for _ in range(5):
        begin = time.process_time()
        call()
        found.append(time.process_time() - begin)
    return min(found)


def row_of(
    name: str, case: str, count: int, sent: tuple[bytes, bytes], median_s: float
) -> dict[str, Any]:
    nbytes = len(sent[0] if case.endswith("window") else sent[1])
    return {
        "size": name,
        "case": case,
        "rows": count,
        "nbytes": nbytes,
        "rows_per_s": round(count / median_s),
    }


def random_window(demands: int, pages: int) -> Window:
    """Pages in chains of 64, demanded anywhere."""
    generator = np.random.default_rng(12)
    table, wanted = np.zeros(pages, PAGE), np.zeros(demands, DEMAND)
    table["depth"] = np.arange(pages) % 64
    table["parent"] = np.where(table["depth"] > 0, np.arange(pages) - 1, NOWHERE)
    table["nbytes"], table["tiers"], table["cluster"] = 2 << 20, 4, NOWHERE
    table["stamp_s"] = generator.uniform(0, NOW_S, pages)
    table["heat"] = generator.uniform(0, 9, pages)
    wanted["page"] = generator.integers(0, pages, demands)
    wanted["deadline_s"] = NOW_S + generator.uniform(0, 1, demands)
    keys = generator.integers(0, 256, (pages, KEY_NBYTES), np.uint8)
    links, requests = np.zeros(2, LINK), np.zeros(demands // 100, REQUEST)
    links["rate"] = 1e9
    requests["first"], requests["count"] = np.arange(len(requests)) * 100, 100
    requests["page_tokens"] = 512
    tenants = np.zeros(8, TENANT)
    return Window(wanted, requests, table, keys, tenants, links)


def random_plan(demands: int, pages: int) -> Plan:
    """Ops of four pages, one demand a page."""
    generator = np.random.default_rng(13)
    ops = np.zeros(demands // 4, OP)
    ops["first"], ops["count"] = np.arange(len(ops)) * 4, 4
    ops["cluster"] = generator.integers(0, pages, len(ops))
    ops["deadline_s"] = NOW_S + generator.uniform(0, 1, len(ops))
    return Plan(
        ops,
        generator.integers(0, pages, demands),
        generator.permutation(demands),
        np.arange(demands + 1),
        np.zeros(demands, np.uint8),
        np.zeros(demands),
        np.zeros(demands // 100, DECISION),
    )


if __name__ == "__main__":
    main()
