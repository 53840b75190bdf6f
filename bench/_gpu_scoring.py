# SPDX-License-Identifier: Apache-2.0
"""Scoring all pages and taking the coldest, beside the same scores and ``torch.topk``.

Pages form a forest of as many levels as the scale says; four copies of the records rotate (32 MB
read of each by the scores). The host's row counts the copy of its choice to the device.
"""

import numpy as np
import torch
from _gpu_bench import Bench, Case, claim_at_least, claim_at_most, correct, matching, rotated
from _gpu_timing import explain

from bodocache.pages import PAGE, Tier

SECTION = "scoring"
COPIES = 4
NOW_S, TIER = 4000.0, int(Tier.HOST)


def measure(bench: Bench) -> None:
    """Rows, then the claims; one row where the kernels are not there."""
    try:
        from bodocache.kernels.page_records import Formula
    except ImportError as error:
        bench.report.failed(SECTION, "score_pages", explain(error))
        return
    formula = Formula(600.0, 1.0, (0.0, 2e-5, 1e-4, 1e-2), (0.0, 2e-11, 2e-10, 1e-9))
    for num_pages in bench.scale.num_pages:
        with bench.reporting(SECTION, "all", pages=num_pages):
            _measure(bench, formula, num_pages)
    _claim(bench)


def _measure(bench: Bench, formula: "Formula", num_pages: int) -> None:  # noqa: F821 -- imported where it is there
    from bodocache.kernels.coldest import coldest_pages
    from bodocache.kernels.page_records import DEPTH
    from bodocache.kernels.reference.coldest import coldest_pages as coldest_twin
    from bodocache.kernels.reference.score import score_pages as score_twin
    from bodocache.kernels.reference.subtree import refresh_keys as refresh_twin
    from bodocache.kernels.score import score_pages
    from bodocache.kernels.subtree import refresh_keys

    levels, num_coldest = bench.scale.levels, num_pages // 100
    on_host = _pages(num_pages, levels)
    pages = on_host.on(bench.device)
    copies = [pages, *(pages.grown(pages.capacity) for _ in range(COPIES - 1))]
    at = rotated(copies)
    keys = [refresh_keys(each, TIER, NOW_S, formula) for each in copies]
    keys_at = rotated(keys)
    scores, fresh = (torch.empty(pages.capacity, device=bench.device) for _ in range(2))
    chosen = torch.zeros(num_coldest, dtype=torch.int32, device=bench.device)

    def score(index: int) -> torch.Tensor:
        return score_pages(at(index), TIER, NOW_S, formula, out=scores)

    def coldest(index: int) -> torch.Tensor:
        return coldest_pages(at(index), keys_at(index), num_coldest).rows

    def topk(index: int) -> object:
        return torch.topk(keys_at(index), num_coldest, largest=False, sorted=False)

    fields = {"pages": num_pages, "coldest": num_coldest, "levels": levels}
    exact = score_twin(pages, TIER, NOW_S, formula)
    refreshed = exact.clone()
    refresh_twin(pages, TIER, refreshed)
    _compare(bench, "score_pages", score(0), exact, fields)
    _compare(bench, "refresh_keys", keys[0], refreshed, fields)
    rows = coldest_twin(keys[0], pages.words[DEPTH], num_coldest).to(chosen.device)
    cases = {"coldest_pages": Case(lambda i: chosen.copy_(coldest(i)), chosen, rows)}
    correct(bench, SECTION, cases, torch.zeros_like(chosen), **fields)
    calls = {
        "score_pages": score,
        "coldest_pages": coldest,
        "score + coldest": lambda i: (score(i), coldest(i)),
        "topk": topk,
        "score + topk": lambda i: (score(i), topk(i)),
        "refresh_keys": lambda i: refresh_keys(at(i), TIER, NOW_S, formula, out=fresh),
    }
    failed = matching(bench.report.rows, section=SECTION, pages=num_pages)
    for name in {row["what"] for row in failed}:
        calls = {what: call for what, call in calls.items() if name.split("_")[0] not in what}
    _time(bench, calls, fields, hidden=True)
    host_keys = refresh_keys(on_host, TIER, NOW_S, formula)

    def host(_: int) -> torch.Tensor:
        score_pages(on_host, TIER, NOW_S, formula)
        return coldest_pages(on_host, host_keys, num_coldest).rows.to(bench.device)

    calls |= {
        "score + coldest, on the host": host,
        "refresh_keys, on the host": lambda _: refresh_keys(on_host, TIER, NOW_S, formula),
    }
    _time(bench, calls, fields, hidden=False)


def _time(bench: Bench, calls: dict, fields: dict, *, hidden: bool) -> None:
    begins = "behind earlier work" if hidden else "on an idle device"
    timed = bench.timer.interleaved(calls, hidden=hidden)
    for name, why in timed.failures.items():
        bench.report.failed(SECTION, name, why, **fields)
    for name, timing in timed.timings.items():
        bench.report.timed(SECTION, name, timing, **fields, begins=begins)


def _compare(
    bench: Bench, name: str, found: torch.Tensor, exact: torch.Tensor, fields: dict
) -> None:
    """A row where scores differ by more than the kernel's bound, and the twin's rounding."""
    finite = exact.isfinite() & found.isfinite()
    differing = found[~finite] != exact[~finite]
    bound = 2.0**-20 + 2.0**-23 * exact.abs()
    beyond = ((found - exact).abs() > bound)[finite]
    if wrong := int(beyond.sum()) + int(differing.sum()):
        bench.report.failed(SECTION, name, f"{wrong} scores beyond the bound", **fields)


def _pages(count: int, levels: int) -> "DevicePages":  # noqa: F821 -- as above
    """A forest on the host: each page's parent is a random page of the level above."""
    from bodocache.kernels.page_records import TIERS, DevicePages

    random = np.random.default_rng(7)
    records = np.zeros(count, PAGE)
    width = count // levels
    depth = np.minimum(np.arange(count) // width, levels - 1)
    parent = (depth - 1) * width + random.integers(0, width, count)
    records["depth"], records["parent"] = depth, np.where(depth > 0, parent, -1)
    records["stamp_s"] = random.uniform(0, NOW_S, count)
    records["heat"] = random.exponential(2.0, count) + 0.01
    records["recompute_s"] = random.uniform(1e-4, 1e-2, count)
    records["nbytes"] = 2 << 20
    records["tiers"] = Tier.HOST.bit | (random.random(count) < 0.5) * Tier.DISK.bit
    records["pins"] = random.random(count) < 0.001
    pages = DevicePages(count, "cpu")
    pages.update(np.arange(count), records, np.zeros((count, TIERS)))
    return pages


def _claim(bench: Bench) -> None:
    seconds = {
        row["what"]: row["median_s"]
        for row in matching(
            bench.report.rows,
            section=SECTION,
            pages=bench.scale.num_pages[0],
            begins="behind earlier work",
        )
        if "median_s" in row
    }
    if "score + coldest" in seconds:
        ours_s = seconds["score + coldest"]
        title = f"scoring {bench.scale.num_pages[0]} pages, taking the coldest"
        claim_at_most(bench.report, title, ours_s * 1e6, 100, "us")
        if "score + topk" in seconds:
            claim_at_least(
                bench.report,
                f"{title}: scores and topk over it",
                seconds["score + topk"] / ours_s,
                2,
            )
    if "refresh_keys" in seconds:
        claim_at_most(
            bench.report,
            f"refreshing the subtree maxima of {bench.scale.levels} levels",
            seconds["refresh_keys"] * 1e6,
            100 + 3 * bench.scale.levels,
            "us",
        )
