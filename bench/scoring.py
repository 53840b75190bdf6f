# SPDX-License-Identifier: Apache-2.0
"""Scoring pages and choosing the coldest 1 % on the host, beside its peers; on a GPU, a window.

On one core: the compiled loops, NumPy (its formula in float64, ``argpartition``) and the planner's
heaps, which keep order as pages change and so take only the pages that leave. With a CUDA device
also one window of it, on the host's clock: changed rows in, keys, choice, rows out; and scores with
the choice in a CUDA graph. That part has not run on a GPU yet; bench/kernels.py measures each
kernel there. Pages are prefixes of 32 with branches of 96: 128 levels.
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import _common
import numpy as np
import torch
from numpy.typing import NDArray

from bodocache import jit
from bodocache.kernels import cpu_scoring
from bodocache.kernels.coldest import coldest_pages
from bodocache.kernels.page_records import DevicePages, Formula
from bodocache.kernels.score import score_pages
from bodocache.kernels.subtree import num_rounds, refresh_keys
from bodocache.pages import PAGE, Tier
from bodocache.plan import evict, victims
from bodocache.plan.records import POLICY, TIERS

STEM, BRANCH = 32, 96  # pages of a shared prefix, and of what follows one
NOW_S = 4000.0
FORMULA = Formula(600.0, 1.0, (0.0, 1e-5, 1e-4, 1e-3), (0.0, 1e-10, 1e-9, 1e-8))
CLAIMED_PAGES = 1_000_000
DEVICE_CALLS = 20  # between two events, so that their cost is small


class Case(NamedTuple):
    """Pages in host memory: the planner's records, and the columns that scoring reads."""

    records: NDArray[np.void]
    pages: DevicePages
    count: int  # to choose


def case(num_pages: int) -> Case:
    """Stems first, then branches, each after some page of a stem; all in host memory."""
    random = np.random.default_rng(0)
    records = np.zeros(num_pages, PAGE)
    stems = num_pages // 8 // STEM * STEM
    row = np.arange(num_pages)
    records["parent"][:stems] = np.where(row[:stems] % STEM, row[:stems] - 1, -1)
    records["depth"][:stems] = row[:stems] % STEM
    place = (row[stems:] - stems) % BRANCH
    root = np.repeat(random.integers(0, stems, len(place) // BRANCH + 1), BRANCH)[: len(place)]
    records["parent"][stems:] = np.where(place, row[stems:] - 1, root)
    records["depth"][stems:] = records["depth"][root] + 1 + place
    records["nbytes"], records["recompute_s"] = 65536, 0.002 + 1e-5 * records["depth"]
    records["heat"] = random.exponential(1.0, num_pages)
    records["stamp_s"] = random.uniform(0, NOW_S, num_pages)
    records["pins"] = random.random(num_pages) < 0.001
    host = random.random(num_pages) < 0.5  # the others' bytes are in the host tier alone
    records["tiers"] = np.where(host, Tier.HOST.bit, Tier.HOST.bit | Tier.DISK.bit)
    records["children"][:, Tier.HOST] = children_of(records, records["parent"] >= 0)
    records["children"][:, Tier.DISK] = children_of(records, (records["parent"] >= 0) & ~host)
    records["descended"] = records["children"][:, Tier.HOST]
    pages = DevicePages(num_pages, "cpu")
    pages.update(row, records, np.zeros((num_pages, TIERS)))
    return Case(records, pages, num_pages // 100)


def children_of(records: NDArray[np.void], counted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many of the ``counted`` rows come right after each."""
    return np.bincount(records["parent"][counted], minlength=len(records))


def numpy_scores(records: NDArray[np.void]) -> NDArray[np.float64]:
    """The formula in NumPy, over the table's records."""
    nbytes = records["nbytes"].astype(np.float64)
    loads = [
        latency_s + nbytes * s_per_byte
        for latency_s, s_per_byte in zip(
            FORMULA.load_latency_s, FORMULA.load_s_per_byte, strict=True
        )
    ]
    otherwise_s = records["recompute_s"].astype(np.float64)
    for slower in (Tier.DISK, Tier.REMOTE):
        there = records["tiers"] >> slower & 1 == 1
        otherwise_s = np.where(there, np.minimum(otherwise_s, loads[slower]), otherwise_s)
    saved_s = np.maximum(otherwise_s - loads[Tier.HOST], FORMULA.saved_floor_s)
    age = (records["stamp_s"] - NOW_S) / FORMULA.half_life_s
    return np.log2(records["heat"] * saved_s / nbytes) + age


def host_calls(c: Case) -> dict[str, Callable[[], object]]:
    """What one core does, in turns; keys are current where they are only read."""
    keys = refresh_keys(c.pages, Tier.HOST, NOW_S, FORMULA)
    array, out = keys.numpy(), torch.empty_like(keys)
    changed, since_s = changed_rows(c), np.zeros((c.count, TIERS))
    return {
        "score": lambda: score_pages(c.pages, Tier.HOST, NOW_S, FORMULA, out=out),
        "score_numpy": lambda: numpy_scores(c.records),
        "keys": lambda: refresh_keys(c.pages, Tier.HOST, NOW_S, FORMULA, out=out),
        "coldest": lambda: coldest_pages(c.pages, keys, c.count),
        "coldest_numpy": lambda: np.argpartition(array, c.count)[: c.count],
        "update": lambda: c.pages.update(changed, c.records[changed], since_s),
    }


def heap_timing(c: Case, runs: int) -> _common.Timing:
    """The planner's heaps giving up as many pages, from the same state every time."""
    policy = np.zeros(1, POLICY)
    for name in ("half_life_s", "min_residence_s", "load_latency_s", "load_s_per_byte"):
        policy[name] = getattr(FORMULA, name)
    records, queues = c.records.copy(), evict.open_queues(len(c.records))
    evict.requeue(records, queues, policy, np.arange(len(records)))
    full, out = evict.grown(queues, len(records)), np.empty(c.count, np.int64)
    seconds = []
    for _ in range(runs):
        records[:] = c.records
        for array, before in zip(queues, full, strict=True):
            array[:] = before
        begin = time.perf_counter()
        victims.coldest(records, queues, policy, int(Tier.HOST), c.count, NOW_S, out)
        seconds.append(time.perf_counter() - begin)
    return _common.timing(seconds)


def host_rows(c: Case, runs: int) -> Iterator[dict[str, Any]]:
    """One row per call on one core."""
    timed = _common.interleaved(host_calls(c), runs=runs)
    timed["coldest_heaps"] = heap_timing(c, runs)
    for name, timing in timed.items():
        yield row_of(c, "cpu", name, timing)


def row_of(c: Case, device: str, call: str, timing: _common.Timing) -> dict[str, Any]:
    """A row of the document."""
    return {
        "device": device,
        "pages": len(c.records),
        "chosen": c.count,
        "levels": c.pages.levels,
        "rounds": num_rounds(c.pages.levels),
        "call": call,
        "median_s": timing.median_s,
        "p99_s": timing.p99_s,
    }


def device_rows(c: Case, runs: int) -> Iterator[dict[str, Any]]:
    """What only a device has: a graph's time there, and a window's on the host's clock."""
    pages = DevicePages(len(c.records), "cuda")
    pages.update(np.arange(len(c.records)), c.records, np.zeros((len(c.records), TIERS)))
    keys = refresh_keys(pages, Tier.HOST, NOW_S, FORMULA)
    out = torch.empty_like(keys)
    changed, since_s = changed_rows(c), np.zeros((c.count, TIERS))

    def choose() -> object:
        score_pages(pages, Tier.HOST, NOW_S, FORMULA, out=out)
        return coldest_pages(pages, keys, c.count)

    def window() -> object:
        pages.update(changed, c.records[changed], since_s)
        fresh = refresh_keys(pages, Tier.HOST, NOW_S, FORMULA, out=out)
        return coldest_pages(pages, fresh, c.count).rows.cpu()

    yield row_of(c, "cuda", "score_coldest_graph", device_timing(captured(choose), runs))
    yield row_of(c, "cuda", "window", _common.interleaved({"": window}, runs=runs)[""])


def changed_rows(c: Case) -> NDArray[np.int64]:
    """As many rows as are chosen, at random."""
    return np.sort(np.random.default_rng(1).choice(len(c.records), c.count, replace=False))


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """``call`` as one CUDA graph: no Python between its kernels."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def device_timing(call: Callable[[], object], runs: int) -> _common.Timing:
    """Time between two events around many calls, divided by them."""
    seconds = []
    for _ in range(runs + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(DEVICE_CALLS):
            call()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3 / DEVICE_CALLS)
    return _common.timing(seconds[2:])


def claims(rows: list[dict[str, Any]]) -> list[_common.Claim]:
    """What was measured here: the device's claims only where there is a device."""
    us = {
        (row["device"], row["call"]): 1e6 * row["median_s"]
        for row in rows
        if row["pages"] == CLAIMED_PAGES
    }
    if not us:
        return []
    at_least, at_most = _common.Claim.at_least, _common.Claim.at_most
    on_cpu = [
        at_least("score 10^6 on one core, over NumPy", cpu_ratio(us, "score"), 2, "x"),
        at_least("coldest 1 % on one core, over argpartition", cpu_ratio(us, "coldest"), 1, "x"),
    ]
    if ("cuda", "window") not in us:
        return on_cpu
    graph, window = us["cuda", "score_coldest_graph"], us["cuda", "window"]
    return [
        *on_cpu,
        at_most("score 10^6 and take the coldest 1 %, in a graph", graph, 100, "us"),
        at_least("the heaps over a window on it", us["cpu", "coldest_heaps"] / window, 1, "x"),
    ]


def cpu_ratio(us: dict[tuple[str, str], float], call: str) -> float:
    """NumPy's time over ours."""
    return us["cpu", f"{call}_numpy"] / us["cpu", call]


def main() -> None:
    """Measure all cases on one core, and on the GPU if there is one, and write them."""
    parser = _common.parser(__doc__)
    parser.add_argument("--pages", type=int, nargs="+", default=[10_000, 100_000, CLAIMED_PAGES])
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    assert cpu_scoring  # imported, so that it is compiled here
    jit.warm()
    rows: list[dict[str, Any]] = []
    for num_pages in arguments.pages:
        c = case(num_pages)
        rows += host_rows(c, arguments.runs)
        if torch.cuda.is_available():
            rows += device_rows(c, arguments.runs)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: not measured"
    _common.write(arguments.json, rows, claims(rows), seed=0, cuda_device=device)


if __name__ == "__main__":
    main()
