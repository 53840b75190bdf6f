# SPDX-License-Identifier: Apache-2.0
"""What credits and cuts cost and gain: time of the stages, a flood, and late loads, simulated.

* cost: one window of 10^4 demands, and 10^4 pages of loads, on one core.
* flood: a tenant that uses a fifth of a link, beside one that asks for three times the link; each
  page is due 50 ms after it was asked for, and then computed again. With and without credits.
* late: windows of random loads over a disk, a remote store and a link to the device whose true
  rates the planner does not know; a load is loaded whole, given up when due, loaded or dropped, or
  cut.
* joint: loads decided one by one against the best of all cuts of all loads together.
"""

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import _common
import numpy as np
from _late import PATHS, simulate_joint, simulate_loads
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan import charges, late
from bodocache.plan import credits as buckets
from bodocache.plan.asked import Answer, Asked, scratch_for
from bodocache.plan.loads import COPIES, DECISION, LOAD, Loads
from bodocache.plan.loads import scratch_for as loads_scratch_for
from bodocache.plan.records import DEMAND, IO, LINK, POLICY, TENANT

DEMANDS = 10_000
PAGE_NBYTES = 1 << 20
LINK_RATE = 1e9
WINDOW_S, DUE_S = 0.005, 0.05
WINDOWS = 4000
VICTIM_SHARE, FLOOD = 0.2, 3.0  # of the link's rate
LOAD_PAGES = 4  # what the victim asks for at once
RUNS = 51


def main() -> None:
    arguments = _common.parser(__doc__).parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    jit.warm()
    costs, floods, loads = cost_rows(), flood_rows(), simulate_loads()
    claims = [*cost_claims(costs), *flood_claims(floods), *late_claims(loads)]
    rows = [*costs, *floods, *loads, *simulate_joint()]
    _common.write(arguments.json, rows, claims, seed=0, demands=DEMANDS)


def cost_rows() -> list[dict[str, Any]]:
    """The stages' time, interleaved."""
    timed = _common.interleaved(
        {
            "16 tenants": grant_call(16, group=1, held=1.0),
            "1000 tenants": grant_call(1000, group=1, held=1.0),
            "16 tenants, pages shared by two": grant_call(16, group=2, held=1.0),
            "16 tenants, most wait": grant_call(16, group=1, held=0.05),
            "loads of 40 pages": decide_call(40),
            "loads of 400 pages": decide_call(400),
        },
        runs=RUNS,
    )
    return [
        {
            "what": "cost",
            "case": name,
            "pages": DEMANDS,
            "median_ms": round(one.median_s * 1e3, 4),
            "p99_ms": round(one.p99_s * 1e3, 4),
        }
        for name, one in timed.items()
    ]


def tenants_of(count: int, rate: float, cap_nbytes: int) -> NDArray[np.void]:
    """Equal tenants with full buckets, who lend half and borrow as much."""
    tenants = np.zeros(count, TENANT)
    tenants["rate"][:, ::2], tenants["cap"][:, ::2] = rate, cap_nbytes
    tenants["rate"][:, 1::2], tenants["cap"][:, 1::2] = 1e6 * IO, 1_000_000 * IO
    tenants["held"], tenants["lend"], tenants["borrow"] = tenants["cap"], 0.5, tenants["cap"]
    return tenants


def grant_call(tenants: int, group: int, held: float) -> Callable[[], object]:
    """One window: every bucket refilled, every demand answered; the buckets as at first."""
    rng = np.random.default_rng(0)
    fresh = tenants_of(tenants, LINK_RATE, 2 * DEMANDS * PAGE_NBYTES // tenants)
    fresh["held"] = fresh["cap"] * held
    state, policy = fresh.copy(), np.zeros(1, POLICY)
    policy["patience_s"] = 1.0
    demands = np.zeros(DEMANDS, DEMAND)
    demands["tenant"] = rng.integers(0, tenants, DEMANDS)
    demands.flags.writeable = False
    leaders = np.arange(DEMANDS) // group * group
    sizes, wanted = np.full(DEMANDS, PAGE_NBYTES), np.ones(DEMANDS, np.bool_)
    asked = Asked(demands, sizes, rng.permutation(DEMANDS), leaders, wanted)
    scratch, answer = memory(asked, tenants)

    def call() -> None:
        state[:] = fresh
        buckets.refill(state, policy, 1e-4)
        charges.grant(state, policy, asked, 1e-4, scratch, answer)

    return call


def memory(asked: Asked, tenants: int) -> tuple[charges.Scratch, Answer]:
    n = len(asked.demands)
    return scratch_for(n, tenants), Answer(np.empty(n, np.bool_), np.empty(n))


def decide_call(pages: int) -> Callable[[], object]:
    """One window of loads of ``pages`` boundaries each, from two copies, some of them late."""
    rng = np.random.default_rng(0)
    n = DEMANDS // pages
    records = np.zeros(n, LOAD)
    records["first"], records["count"] = np.arange(n) * pages, pages
    records["links"], records["copies"], records["copy"], records["layers"] = (1, 2), COPIES, -1, 32
    records["token_s"], records["cut_at"] = 5e-5, -1
    records["deadline_s"] = np.sort(rng.uniform(0.1, 2.0, n))
    tokens = np.tile(np.arange(pages) * 512, n)
    nbytes = tokens * 131_072
    loads = Loads(records, tokens, np.repeat(nbytes[:, None], COPIES, axis=1), nbytes)
    links = np.zeros(3, LINK)
    links["rate"], links["drift"] = (50e9, 5e9, 2e9), 0.1
    scratch, decisions = loads_scratch_for(n, len(links)), np.zeros(n, DECISION)
    return lambda: late.decide(loads, links, 0.01, 0.0, scratch, decisions)


@dataclass
class Flood:
    """One run on a simulated link: pages wait for credits, then in EDF order for the link."""

    credits: bool
    lend: float
    flooded: bool
    waits_s: list[float] = field(default_factory=list)
    asked: int = 0
    moved: list[int] = field(default_factory=lambda: [0, 0])  # pages of the victim, of the flooder

    def row(self) -> dict[str, Any]:
        """Run all windows; how the victim fared, and what the flooder got."""
        rng = np.random.default_rng(0)
        tenants = tenants_of(2, LINK_RATE / 2, int(LINK_RATE / 2 * 0.02))
        tenants["lend"] = self.lend
        policy = np.zeros(1, POLICY)
        policy["credits_per_s"][0][0] = LINK_RATE
        waiting, queue, free_s = np.zeros(0, DEMAND), np.zeros(0, DEMAND), 0.0
        for at in range(WINDOWS):
            now_s = at * WINDOW_S
            waiting = in_time(np.concatenate([waiting, self._arrivals(rng, now_s)]), now_s)
            goes = self._grant(tenants, policy, waiting, now_s)
            queue = in_time(np.concatenate([queue, waiting[goes]]), now_s)
            waiting = waiting[~goes]
            queue, free_s = self._serve(queue, max(free_s, now_s), now_s + WINDOW_S)
        return self._outcome()

    def _arrivals(self, rng: np.random.Generator, now_s: float) -> NDArray[np.void]:
        per_window = LINK_RATE * WINDOW_S / PAGE_NBYTES
        loads = rng.poisson(VICTIM_SHARE * per_window / LOAD_PAGES)
        flood = rng.poisson(FLOOD * per_window) if self.flooded else 0
        made = np.zeros(loads * LOAD_PAGES + flood, DEMAND)
        made["tenant"][loads * LOAD_PAGES :] = 1
        made["arrival_s"], made["deadline_s"] = now_s, now_s + DUE_S
        self.asked += loads * LOAD_PAGES
        return rng.permutation(made)

    def _grant(
        self,
        tenants: NDArray[np.void],
        policy: NDArray[np.void],
        waiting: NDArray[np.void],
        now_s: float,
    ) -> NDArray[np.bool_]:
        if not self.credits:
            return np.ones(len(waiting), np.bool_)
        n = len(waiting)
        waiting.flags.writeable = False
        order = np.argsort(waiting["deadline_s"], kind="stable")
        sizes, own = np.full(n, PAGE_NBYTES), np.arange(n)
        asked = Asked(waiting, sizes, order, own, np.ones(n, np.bool_))
        scratch, answer = memory(asked, len(tenants))
        buckets.refill(tenants, policy, now_s)
        charges.grant(tenants, policy, asked, now_s, scratch, answer)
        return answer.granted

    def _serve(
        self, queue: NDArray[np.void], free_s: float, end_s: float
    ) -> tuple[NDArray[np.void], float]:
        """Move what the link can begin before ``end_s``, earliest deadline first."""
        queue = queue[np.argsort(queue["deadline_s"], kind="stable")]
        done = 0
        while done < len(queue) and free_s < end_s:
            free_s += PAGE_NBYTES / LINK_RATE
            page = queue[done]
            self.moved[page["tenant"]] += 1
            if page["tenant"] == 0 and free_s <= page["deadline_s"]:
                self.waits_s.append(free_s - page["arrival_s"])
            done += 1
        return queue[done:], free_s

    def _outcome(self) -> dict[str, Any]:
        seconds = WINDOWS * WINDOW_S
        return {
            "what": "flood",
            "credits": self.credits,
            "lend": self.lend,
            "flooded": self.flooded,
            "victim_in_time": round(len(self.waits_s) / self.asked, 4),
            "victim_wait_median_ms": round(float(np.median(self.waits_s)) * 1e3, 2),
            "victim_wait_p99_ms": round(float(np.quantile(self.waits_s, 0.99)) * 1e3, 2),
            "flooder_of_link": round(self.moved[1] * PAGE_NBYTES / LINK_RATE / seconds, 4),
            "link_used": round(sum(self.moved) * PAGE_NBYTES / LINK_RATE / seconds, 4),
        }


def in_time(pages: NDArray[np.void], now_s: float) -> NDArray[np.void]:
    """Pages that are due later; the others are computed again."""
    return pages[pages["deadline_s"] > now_s]


def flood_rows() -> list[dict[str, Any]]:
    cases = ((False, 0.0), (True, 0.0), (True, 0.5))
    return [Flood(on, lend, flooded).row() for on, lend in cases for flooded in (False, True)]


def cost_claims(rows: list[dict[str, Any]]) -> list[_common.Claim]:
    median = {row["case"]: row["median_ms"] for row in rows}
    return [
        _common.Claim.at_most("credits of 10^4 demands", median["16 tenants"], 0.5, "ms"),
        _common.Claim.at_most("cuts of 10^4 pages", median["loads of 40 pages"], 0.5, "ms"),
    ]


def flood_claims(rows: list[dict[str, Any]]) -> list[_common.Claim]:
    served = {(row["credits"], row["lend"], row["flooded"]): row["victim_in_time"] for row in rows}
    kept = served[True, 0.5, True] / served[True, 0.5, False]
    lost = served[False, 0.0, True] / served[False, 0.0, False]
    return [
        _common.Claim.at_least("of a tenant within its rate, kept in a flood", kept, 0.99, ""),
        _common.Claim.at_least("the same against no credits", kept / lost, 1.5, "x"),
    ]


def late_claims(rows: list[dict[str, Any]]) -> list[_common.Claim]:
    """Of all levels of load together: seconds by which steps are late, and how many are."""
    total: dict[tuple[str, str, str], float] = defaultdict(float)
    for row in rows:
        for what in ("late_s_per_load", "late"):
            total[row["path"], row["strategy"], what] += row[what]
    against = {
        "whole": ("late seconds", "late_s_per_load"),
        "timeout": ("late seconds", "late_s_per_load"),
        "whole or dropped": ("late seconds", "late_s_per_load"),
        "cut without demotion": ("late loads", "late"),
    }
    return [
        _common.Claim.at_most(
            f"{words} {path}, cut against {name}",
            total[path, "cut", what] / total[path, name, what],
            1.0,
            "x",
        )
        for path in PATHS
        for name, (words, what) in against.items()
    ]


if __name__ == "__main__":
    main()
