# SPDX-License-Identifier: Apache-2.0
"""The conversation trace as planning windows, for bench/planner.py: one window a time stamp (3 s).

Every request loads what it finds and then stores the rest. Pages lie in host memory for HOST_S
after a use and on a disk of DISK_PAGES; two links a node serve loads, in EDF order, and what a
window leaves on them is ahead of the next. Pages are 16 MiB (512 tokens of 32 KiB). Everything is
counted in simulated seconds: a request is done when its last op is, plus the recompute of what was
cut, deferred or missing. With a ``flood``, one tenant more asks for that many earlier prompts in
each window, and every tenant has credits for an eighth of the disk.
"""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache.pages import NOWHERE, PAGE, Tier
from bodocache.plan import evict, fanout, reuse, victims
from bodocache.plan.heat import NEVER_FADES_S
from bodocache.plan.records import (
    DEMAND,
    IO,
    LINK,
    POLICY,
    REQUEST,
    TENANT,
    Fate,
    Feature,
    OpKind,
)
from bodocache.plan.window import Inputs, Planner
from bodocache.replay.trace import Trace

PAGE_TOKENS, PAGE_NBYTES, CHUNK_NBYTES = 512, 16 << 20, 128 << 20
HOST_S, DISK_PAGES, DEADLINE_S = 60.0, 30_000, 0.5
HOST_RATE, DISK_RATE = 20e9, 2e9
TOKEN_S, SLOPE_S = 20e-6, 1e-9
TENANTS, FLOOD = 8, 1 << 40  # the number of the first request of a flood
Rows = NDArray[np.int64]


class Run:
    """One pass over the trace with some features off."""

    def __init__(
        self, trace: Trace, features_off: int, *, heat: bool = True, flood: int = 0
    ) -> None:
        self.trace, self.planner = trace, Planner()
        self.pages = np.zeros(trace.distinct, PAGE)
        self.pages["parent"], self.pages["depth"] = trace.parent, trace.depth
        self.pages["nbytes"], self.pages["cluster"] = PAGE_NBYTES, NOWHERE
        self.pages["frame"] = NOWHERE
        positions = trace.depth.astype(np.float64) * PAGE_TOKENS
        self.recompute_s = PAGE_TOKENS * (TOKEN_S + SLOPE_S * positions)
        self.pages["recompute_s"] = self.recompute_s
        self.queues, self.passing = evict.open_queues(trace.distinct), fanout.nobody()
        self.policy = policy_of(features_off, heat=heat)
        self.links, self.flood, self.chance = links_of(), flood, np.random.default_rng(0)
        self.tenants = tenants_of() if flood else np.zeros(0, TENANT)
        self.free = np.arange(DISK_PAGES)[::-1].tolist()
        self.host_until_s = np.zeros(trace.distinct)
        self.totals = dict.fromkeys(
            ("ops", "gbytes", "hits", "writes", "deferred", "cut", "late_s", "done_s"), 0.0
        )
        self.plan_s, self.windows = 0.0, 0
        self.ends_s = np.zeros(2)

    def run(self) -> dict[str, Any]:
        """Plan every window; what it came to."""
        stamps, firsts = np.unique(self.trace.timestamps_s, return_index=True)
        for now_s, first, end in zip(
            stamps, firsts, [*firsts[1:], self.trace.num_requests], strict=True
        ):
            self._window(float(now_s), range(first, end))
        rounded = {name: round(total, 2) for name, total in self.totals.items()}
        return {
            **rounded,
            "us_per_window": round(1e6 * self.plan_s / self.windows, 1),
        }

    def _window(self, now_s: float, requests: range) -> None:
        paths = [self._path(r) for r in requests]
        for rows in paths:
            asked = reuse.Asked(-1, 0, 0, np.nan)
            reuse.observe(self.queues.model, self.queues.memories, rows, now_s, asked)
            evict.touch(self.pages, self.queues, self.policy, rows, now_s)
            fanout.count(self.passing, self.policy, 1, now_s)
            fanout.follow(self.passing, self.pages, self.policy, rows, now_s)
        held = [self.pages["tiers"][rows] != 0 for rows in paths]
        found = [
            rows[: int(np.cumprod(some).sum())] for rows, some in zip(paths, held, strict=True)
        ]
        again = self._flood(requests[0]) if self.flood else []
        self._load(now_s, requests, paths, [*found, *again])
        self._store(now_s, requests, paths)
        self._expire(now_s)

    def _path(self, r: int) -> Rows:
        return self.trace.pages[self.trace.offsets[r] : self.trace.offsets[r + 1]].copy()

    def _flood(self, before: int) -> list[Rows]:
        """What is left of some earlier prompts."""
        paths = [self._path(r) for r in self.chance.integers(0, before + 1, self.flood)]
        held = [self.pages["tiers"][rows] != 0 for rows in paths]
        return [rows[: int(np.cumprod(some).sum())] for rows, some in zip(paths, held, strict=True)]

    def _demands(self, requests: range, runs: list[Rows], kind: OpKind, now_s: float) -> Any:
        """Those of the trace's requests, then the flood's, which are tenant 0's."""
        counts = [len(rows) for rows in runs]
        numbers = np.concatenate([requests, FLOOD + np.arange(len(runs) - len(requests))])
        made = np.zeros(sum(counts), DEMAND)
        made["page"] = np.concatenate(runs)
        made["request"] = np.repeat(numbers, counts)
        made["tenant"] = np.where(made["request"] < FLOOD, 1 + made["request"] % (TENANTS - 1), 0)
        made["kind"], made["arrival_s"] = kind, now_s
        made["deadline_s"] = now_s + DEADLINE_S if kind == OpKind.LOAD else np.inf
        return made

    def _plan(self, demands: Any, requests: Any, now_s: float, free: int) -> Any:
        inputs = Inputs(demands, self.pages, self.policy, self.tenants, self.links, requests)
        begin = time.perf_counter()
        made = self.planner.plan(inputs, self.queues, now_s=now_s, free_frames=free)
        self.plan_s += time.perf_counter() - begin
        self.windows += 1
        self.totals["ops"] += len(made.ops)
        self.totals["gbytes"] += float(made.ops["nbytes"].sum()) / 1e9
        self.totals["deferred"] += int((made.fates == Fate.DEFERRED).sum())
        self.totals["cut"] += int((made.fates == Fate.CUT).sum())
        return made

    def _load(self, now_s: float, requests: range, paths: list[Rows], found: list[Rows]) -> None:
        demands = self._demands(requests, found, OpKind.LOAD, now_s)
        left_s = np.maximum(0.0, self.ends_s - now_s)
        self.links["queued_nbytes"] = left_s * self.links["rate"]
        made = self._plan(demands, self._records(demands, found, paths), now_s, 0)
        ends_s = self._serve(made, demands, now_s)
        moved = made.fates == Fate.PLANNED
        at = np.cumsum([0, *map(len, found)])
        for k, rows in enumerate(found[: len(requests)]):
            mine = slice(at[k], at[k + 1])
            kept = int(np.cumprod(moved[mine]).sum())
            end_s = float(ends_s[mine][:kept].max(initial=now_s)) - now_s
            done_s = end_s + float(self.recompute_s[paths[k][kept:]].sum())
            self.totals["hits"] += kept
            self.totals["done_s"] += done_s
            self.totals["late_s"] += max(0.0, end_s - DEADLINE_S)
            self._to_host(rows[:kept], now_s)

    def _records(self, demands: Any, found: list[Rows], paths: list[Rows]) -> Any:
        """A REQUEST for each that found something."""
        made = np.zeros(len(found), REQUEST)
        made["count"] = [len(rows) for rows in found]
        made["first"] = np.cumsum(made["count"]) - made["count"]
        for request, rows, some in zip(made, paths, found, strict=False):
            request["new_compute_s"] = self.recompute_s[rows[len(some) :]].sum()
        made["token_s"], made["slope_s"], made["page_tokens"] = TOKEN_S, SLOPE_S, PAGE_TOKENS
        made["cut_at"] = -1
        made = made[made["count"] > 0]
        made["request"] = demands["request"][made["first"]]
        return made

    def _serve(self, made: Any, demands: Any, now_s: float) -> NDArray[np.float64]:
        """Run the ops on the links, one after the other; when each demand's page has landed."""
        ends_s = np.full(len(demands), now_s)
        free_s = np.maximum(self.ends_s, now_s)
        for op in made.ops:
            at_s = now_s
            if op["source"] == Tier.DISK:
                at_s = free_s[1] = free_s[1] + op["nbytes"] / DISK_RATE + 200e-6
            at_s = free_s[0] = max(free_s[0], at_s) + op["nbytes"] / HOST_RATE + 10e-6
            places = slice(made.answers[op["first"]], made.answers[op["first"] + op["count"]])
            ends_s[made.demands[places]] = at_s
        self.ends_s = free_s
        return ends_s

    def _to_host(self, rows: Rows, now_s: float) -> None:
        evict.arrive(self.pages, self.queues, self.policy, rows, int(Tier.HOST), now_s)
        self.host_until_s[rows] = now_s + HOST_S

    def _store(self, now_s: float, requests: range, paths: list[Rows]) -> None:
        for rows in paths:
            self._to_host(rows, now_s)
        demands = self._demands(requests, paths, OpKind.WRITE, now_s)
        made = self._plan(demands, np.zeros(0, REQUEST), now_s, len(self.free))
        rows = np.unique(made.rows)
        rows = rows[(self.pages["tiers"][rows] & Tier.DISK.bit) == 0]
        self._make_room(len(rows) - len(self.free), now_s)
        rows = rows[: len(self.free)]
        self.pages["frame"][rows] = [self.free.pop() for _ in rows]
        evict.arrive(self.pages, self.queues, self.policy, rows, int(Tier.DISK), now_s)
        self.totals["writes"] += len(made.rows)

    def _make_room(self, count: int, now_s: float) -> None:
        out = np.empty(max(0, count), np.int64)
        taken = victims.coldest(
            self.pages, self.queues, self.policy, int(Tier.DISK), len(out), now_s, out
        )
        self.free.extend(self.pages["frame"][out[:taken]].tolist())

    def _expire(self, now_s: float) -> None:
        """Host pages that nobody used lately go, children first."""
        there = (self.pages["tiers"] & Tier.HOST.bit) != 0
        rows = np.flatnonzero(there & (self.host_until_s <= now_s))[::-1].copy()
        evict.depart(self.pages, self.queues, self.policy, rows, int(Tier.HOST))


def policy_of(features_off: int, *, heat: bool) -> Any:
    policy = np.zeros(1, POLICY)
    policy["half_life_s"] = 600.0 if heat else NEVER_FADES_S
    policy["load_s_per_byte"] = [[0.0, 1 / HOST_RATE, 1 / DISK_RATE, 0.0]]
    policy["load_latency_s"] = [[0.0, 10e-6, 200e-6, 0.0]]
    policy["chunk_nbytes"], policy["hole_nbytes"] = CHUNK_NBYTES, PAGE_NBYTES
    policy["patience_s"], policy["features_off"] = 3.0, features_off
    return policy


def links_of() -> Any:
    links = np.zeros(2, LINK)
    links["rate"], links["drift"] = [HOST_RATE, DISK_RATE], 0.05
    links["source"], links["destination"] = [Tier.HOST, Tier.DISK], [Tier.DEVICE, Tier.HOST]
    return links


def tenants_of() -> Any:
    """Each may read an eighth of what the disk gives, and lend half of it; writes are free."""
    tenants = np.zeros(TENANTS, TENANT)
    rate = np.array([DISK_RATE, 1e5 * IO, DISK_RATE, 1e5 * IO, 1e12, 1e5 * IO])
    tenants["rate"] = rate / TENANTS
    tenants["cap"], tenants["lend"], tenants["share"] = 3 * rate / TENANTS, 0.5, 1 / TENANTS
    tenants["held"], tenants["borrow"] = tenants["cap"], tenants["cap"] // 2
    return tenants


STAGES = {
    "reuse": int(Feature.REUSE),
    "fanout": int(Feature.FANOUT),
    "admit": int(Feature.ADMIT),
    "tardiness": int(Feature.TARDINESS),
    "coalesce": int(Feature.COALESCE),
}
