# SPDX-License-Identifier: Apache-2.0
"""Windows of random loads, decided by late.py with what may be cut where, then simulated.

An 8 B model's pages (131,072 bytes and 50 us of compute a token) on a disk of 5 GB/s, and either
through the host (a part of each lies there already, some lie on a remote store of 2 GB/s too) and
at 50 GB/s to the device, or straight to the device, layer by layer. What the links really give
differs by 10 % (one sigma) from what is planned with. "timeout" is what engines do: a load is begun
whole and given up when it is due; whole pages that lie in the host by then are kept.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache.plan import late
from bodocache.plan.loads import COPIES, DECISION, LOAD, Loads, scratch_for
from bodocache.plan.records import LINK

STRATEGIES = ("whole", "timeout", "whole or dropped", "cut without demotion", "cut")
PATHS = ("through the host", "straight")
LEVELS = (2, 8, 32)  # loads in a window
WINDOWS = 300
JOINT_LOADS, JOINT_WINDOWS = 3, 100  # 5^3 cuts a window
PAGE_TOKENS, TOKEN_NBYTES, LAYERS = 256, 131_072, 32
TOKEN_S = 5e-5
SLOPE_S = TOKEN_S / 30_500  # attention costs as much as the rest at 30,500 tokens
RATES = (50e9, 5e9, 2e9)  # host -> device, disk -> host, remote -> host
DRIFT = 0.1


def simulate_loads() -> list[dict[str, Any]]:
    """One row per path, level of load and strategy."""
    return [
        _row(path, level, strategy) for path in PATHS for level in LEVELS for strategy in STRATEGIES
    ]


def simulate_joint() -> list[dict[str, Any]]:
    """What deciding loads one by one, in EDF order, costs above the best of all cuts together."""
    return [_joint_row(path) for path in PATHS]


def _joint_row(path: str) -> dict[str, Any]:
    rng, ratios = np.random.default_rng(0), []
    for _ in range(JOINT_WINDOWS):
        records, pages, on_host = _requests(rng, JOINT_LOADS)
        if path == "straight":
            records["links"], records["second"], records["copies"] = -1, 1, 1
        records["deadline_s"], records["copies"] = np.inf, 1
        loads = _loads(records, pages, on_host, "quarters")
        decisions = _decide(loads)
        own = _cost(loads, decisions["cut"].tolist())
        best = min(_cost(loads, cuts) for cuts in product(range(5), repeat=JOINT_LOADS))
        ratios.append(own / best)
    return {
        "what": "joint",
        "path": path,
        "loads": JOINT_LOADS,
        "cost_over_best_mean": round(float(np.mean(ratios)), 4),
        "cost_over_best_p99": round(float(np.quantile(ratios, 0.99)), 4),
        "as_good_as_best": round(float(np.mean(np.array(ratios) <= 1 + 1e-9)), 4),
    }


def _cost(loads: Loads, cuts: Sequence[int]) -> float:
    """Sum over the loads of T + n_waiting * R, at the planned rates."""
    free_s, total = np.zeros(len(RATES)), 0.0
    for i, cut in enumerate(cuts):
        step_s, again_s = _run(loads, 0, cut, i, np.array(RATES), free_s)
        total += step_s + loads.records[i]["n_waiting"] * again_s
    return total


def _row(path: str, level: int, strategy: str) -> dict[str, Any]:
    rng = np.random.default_rng(level)  # the same windows for every strategy
    outcomes = np.concatenate([_window(rng, path, level, strategy) for _ in range(WINDOWS)])
    late_s, step_s, again_s = outcomes.T
    return {
        "what": "late",
        "path": path,
        "loads": level,
        "strategy": strategy,
        "late": round(float((late_s > 0).mean()), 4),
        "late_s_per_load": round(float(late_s.mean()), 4),
        "step_s_per_load": round(float(step_s.mean()), 4),
        "step_p99_s": round(float(np.quantile(step_s, 0.99)), 4),
        "recompute_s_per_load": round(float(again_s.mean()), 4),
    }


def _window(rng: np.random.Generator, path: str, level: int, strategy: str) -> NDArray[np.float64]:
    """Late, step and recompute seconds of each load."""
    records, tokens, on_host = _requests(rng, level)
    if path == "straight":
        records["links"], records["second"], records["copies"] = -1, 1, 1
    truth = np.array(RATES) * np.exp(DRIFT * rng.standard_normal(len(RATES)))
    due_s = records["deadline_s"] + records["new_compute_s"]
    if strategy == "cut without demotion":
        records["deadline_s"] = np.inf  # nothing is late; the order stays
    loads = _loads(records, tokens, on_host, strategy)
    decisions = _decide(loads)
    free_s, outcomes = np.zeros(len(RATES)), np.zeros((level, 3))
    for i in np.argsort(decisions["demoted"], kind="stable"):
        if strategy == "timeout":
            step_s, again_s = _time_out(records[i], tokens[i], on_host[i], truth, free_s)
        else:
            copy, cut = decisions[i]["copy"], decisions[i]["cut"]
            step_s, again_s = _run(loads, copy, cut, i, truth, free_s)
        outcomes[i] = max(0.0, step_s - due_s[i]), step_s, again_s
    return outcomes


def _decide(loads: Loads) -> NDArray[np.void]:
    links = np.zeros(len(RATES), LINK)
    links["rate"], links["drift"] = RATES, DRIFT
    decisions = np.zeros(len(loads.records), DECISION)
    late.decide(loads, links, 0.0, 0.0, scratch_for(len(decisions), len(links)), decisions)
    return decisions


def _requests(
    rng: np.random.Generator, level: int
) -> tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.int64]]:
    """Loads in EDF order, their pages, and how many of them lie in host memory."""
    pages = np.clip(rng.lognormal(3.4, 0.8, level).astype(np.int64), 2, 400)  # median 7,700 tokens
    records = np.zeros(level, LOAD)
    records["deadline_s"] = np.sort(rng.uniform(0.1, 1.5, level))
    records["wait_s"], records["n_waiting"] = rng.uniform(0, 0.2, level), rng.poisson(0.5, level)
    records["new_compute_s"] = rng.uniform(0.005, 0.05, level)
    records["token_s"], records["slope_s"], records["layers"] = TOKEN_S, SLOPE_S, LAYERS
    records["links"], records["copy"], records["cut_at"] = (1, 2), -1, -1
    records["copies"] = 1 + (rng.random(level) < 0.3)
    return records, pages, (pages * rng.uniform(0, 0.5, level)).astype(np.int64)


def _loads(
    records: NDArray[np.void],
    pages: NDArray[np.int64],
    on_host: NDArray[np.int64],
    strategy: str,
) -> Loads:
    """What may be cut where: nowhere, before the first page, or at any page."""
    steps = {
        "whole": [1.0],
        "timeout": [1.0],
        "whole or dropped": [0.0, 1.0],
        "quarters": [0.0, 0.25, 0.5, 0.75, 1.0],
    }
    cuts = [
        (np.array(steps[strategy]) * n).astype(np.int64) if strategy in steps else np.arange(n + 1)
        for n in pages
    ]
    records["count"] = [len(cut) for cut in cuts]
    records["first"] = np.cumsum(records["count"]) - records["count"]
    page_nbytes = PAGE_TOKENS * TOKEN_NBYTES
    above = [np.maximum(0, cut - host) for cut, host in zip(cuts, on_host, strict=True)]
    first = np.repeat((np.concatenate(above) * page_nbytes)[:, None], COPIES, axis=1)
    bounds = np.concatenate(cuts)
    return Loads(records, bounds * PAGE_TOKENS, first, bounds * page_nbytes)


def _run(
    loads: Loads,
    copy: int,
    cut_index: int,
    i: int,
    rates: NDArray[np.float64],
    free_s: NDArray[np.float64],
) -> tuple[float, float]:
    """Serve one load on links that serve one after the other: when its step has computed."""
    one, at = loads.records[i], loads.records[i]["first"] + cut_index
    whole, cut = loads.boundaries[one["first"] + one["count"] - 1], loads.boundaries[at]
    again_s = float(one["token_s"] * (whole - cut) + one["slope_s"] * (whole**2 - cut**2) / 2)
    first = one["links"][copy]
    landed_s, first_nbytes = 0.0, loads.first_nbytes[at, copy]
    if first >= 0 and first_nbytes > 0:
        free_s[first] += first_nbytes / rates[first]
        landed_s = free_s[first]
    return _stream(one, loads.second_nbytes[at], again_s, landed_s, rates, free_s), again_s


def _time_out(
    one: np.void,
    pages: int,
    on_host: int,
    rates: NDArray[np.float64],
    free_s: NDArray[np.float64],
) -> tuple[float, float]:
    """Begin the whole load, from its first copy; keep what is of use when it is due."""
    first, due_s, page_nbytes = one["links"][0], one["deadline_s"], PAGE_TOKENS * TOKEN_NBYTES
    link = first if first >= 0 else one["second"]
    begin_s, left = free_s[link], pages - on_host if first >= 0 else pages
    end_s = begin_s + left * page_nbytes / rates[link]
    if first < 0:  # layer by layer: before the last layer's end no page is whole
        kept, landed_s = (pages, begin_s) if end_s <= due_s else (0, due_s)
    else:
        moved = int(max(0.0, due_s - begin_s) * rates[link] / page_nbytes)
        kept, landed_s = on_host + min(left, moved), min(end_s, due_s)
    if first >= 0 or kept == 0:
        free_s[link] = min(end_s, max(begin_s, due_s))
    whole, cut = pages * PAGE_TOKENS, kept * PAGE_TOKENS
    again_s = float(one["token_s"] * (whole - cut) + one["slope_s"] * (whole**2 - cut**2) / 2)
    return _stream(one, kept * page_nbytes, again_s, landed_s, rates, free_s), again_s


def _stream(
    one: np.void,
    nbytes: int,
    again_s: float,
    landed_s: float,
    rates: NDArray[np.float64],
    free_s: NDArray[np.float64],
) -> float:
    """Bring ``nbytes`` to the device, layer by layer, and compute: when the step has."""
    second = one["second"]
    engine_s, layer_s = one["wait_s"], nbytes / rates[second] / LAYERS
    landed_s = max(landed_s, free_s[second]) if layer_s > 0 else landed_s
    for _ in range(LAYERS):
        landed_s += layer_s
        engine_s = max(engine_s, landed_s) + (again_s + one["new_compute_s"]) / LAYERS
    free_s[second] = landed_s if layer_s > 0 else free_s[second]
    return float(engine_s)
