# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a window's inputs, found before any stage runs.

Of the pages those that are demanded are looked at, all of them, and those that are to leave a tier,
before they do (room.py); a million others are not.

Compiled code answers with a code: which of COMPLAINTS, plus their number times the row; -1 where
all is well. The message names table, field and row, and what was found there.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import PAGE, Tier
from bodocache.plan.records import (
    ABOVE,
    BUCKETS,
    DEMAND,
    LINK,
    POLICY,
    REQUEST,
    TENANT,
    TIERS,
    Feature,
    Int,
    OpKind,
)

Records = NDArray[np.void]

COMPLAINTS = (
    "demands.page: row {row}: {page} is outside the table of {rows} pages",
    "demands.kind: row {row}: {kind} is not LOAD, WRITE, PREFETCH or PREWARM",
    "demands.request: row {row}: {request} is negative",
    "demands.deadline_s: row {row}: not a number",
    "demands.arrival_s: row {row}: {arrival_s} is not a finite number",
    "demands.under_way: row {row}: {under_way} is neither 0 nor 1",
    "demands.tenant: row {row}: {tenant} is unknown: there are {tenants} tenants",
    "demands.tenant: row {row}: {tenant} is of another domain than page {page}",
    "demands.page: row {row}: page {page} has 0 bytes (pages.nbytes)",
    "demands.page: row {row}: page {page} lies in tiers that are none (pages.tiers)",
    "demands.page: row {row}: page {page} is of a cluster outside the table (pages.cluster)",
    "demands.page: row {row}: page {page} lies on disk, in no frame from 0 to 2^62 (pages.frame)",
    "demands.page: row {row}: page {page} has a parent outside the table (pages.parent)",
    "demands.page: row {row}: page {page} has a heat that is no finite number (pages.heat)",
    "demands.page: row {row}: page {page} has a stamp_s that is no finite number (pages.stamp_s)",
    "demands.page: row {row}: page {page} has no finite recompute_s (pages.recompute_s)",
    "demands.page: row {row}: page {page} has a hint that is no number (pages.forecast, rank)",
    "policy.half_life_s: row {row}: {half_life_s}; expected a finite number > 0",
    "policy.chunk_nbytes: row {row}: {chunk_nbytes}; expected > 0",
    "policy.hole_nbytes: row {row}: {hole_nbytes}; expected >= 0",
    "policy.features_off: row {row}: {features_off} has bits that are no Feature",
    "policy.min_residence_s: row {row}: {min_residence_s}; expected >= 0",
    "policy.patience_s: row {row}: {patience_s}; expected >= 0",
    "policy.switch_s: row {row}: {switch_s}; expected >= 0",
    "policy.churn_share: row {row}: {churn_share}; expected 0 to 1, and churn_s > 0 ({churn_s})",
    "policy.capacity_pages: row {row}: {capacity_pages}; expected >= 0 of each tier",
    "policy.load_s_per_byte: row {row}: {load_s_per_byte}; expected >= 0 of each tier",
    "policy.load_latency_s: row {row}: {load_latency_s}; expected >= 0 of each tier",
    "policy.write_s_per_byte: row {row}: {write_s_per_byte}; expected >= 0 of each tier",
    "policy.credits_per_s: row {row}: {credits_per_s}; expected >= 0 of each bucket",
    "links.rate: row {row}: {rate}; expected a finite number > 0",
    "links.spread: row {row}: {spread}; expected a finite number >= 0",
    "links.drift: row {row}: {drift}; expected a finite number >= 0",
    "links.queued_nbytes: row {row}: {queued_nbytes}; expected >= 0",
    "links.node: row {row}: {node}; expected a node below 65536",
    "links.source: row {row}: {source} to {destination}: a tier is below {tiers}",
    "requests.first: row {row}: {first}, {count} demands: not all in the table, or not in order",
    "requests.request: row {row}: {request}: its demands are another's, or no loads",
    "requests.count: row {row}: its pages are not shallow to deep",
    "requests.page_tokens: row {row}: {page_tokens}; expected > 0",
    "requests.n_waiting: row {row}: {n_waiting}; expected a finite number >= 0",
    "requests.wait_s: row {row}: {wait_s}; expected a finite number >= 0",
    "requests.new_compute_s: row {row}: {new_compute_s}; expected a finite number >= 0",
    "requests.token_s: row {row}: {token_s}; expected a finite number >= 0",
    "requests.slope_s: row {row}: {slope_s}; expected a finite number >= 0",
    "pages.nbytes: row {row}: 0",
    "pages.tiers: row {row}: {tiers} has bits that are no tier",
    "pages.cluster: row {row}: {cluster} is outside the table of {rows} pages",
    "pages.frame: row {row}: {frame}; expected 0 to 2^62 of what lies on disk",
    "pages.parent: row {row}: {parent} is outside the table of {rows} pages",
    "pages.heat: row {row}: {heat} is not a finite number",
    "pages.stamp_s: row {row}: {stamp_s} is not a finite number",
    "pages.recompute_s: row {row}: {recompute_s} is not a finite number",
    "pages.forecast: row {row}: {forecast}, rank {rank}: not a number",
    "pages.tiers: row {row}: {tiers} lacks a tier that the queues know it in (evict.depart)",
)

_LOAD, _WRITE = int(OpKind.LOAD), int(OpKind.WRITE)
_PREFETCH, _PREWARM = int(OpKind.PREFETCH), int(OpKind.PREWARM)
_FEATURES = sum(Feature)
_DISK, _FRAMES = int(Tier.DISK), 1 << 62
_WITH = len(COMPLAINTS)
_DEMANDED, _POLICY, _LINK, _REQUEST, _LEAVING = 8, 17, 30, 36, 45  # the first complaint of each
_HINT, _NOT_THERE = 8, 9  # of those about a page

DEMANDS, PAGES, POLICIES = jit.readonly(DEMAND), jit.array(PAGE), jit.array(POLICY)
TENANTS, LINKS, REQUESTS = jit.array(TENANT), jit.readonly(LINK), jit.readonly(REQUEST)


_DTYPES = {
    "demands": DEMAND,
    "pages": PAGE,
    "policy": POLICY,
    "tenants": TENANT,
    "links": LINK,
    "requests": REQUEST,
}
_ONLY_READ = ("demands", "links")


def arrays(tables: Mapping[str, Records], queued_rows: int) -> None:
    """Raise ValueError where a table is not what compiled code takes, or the queues are smaller."""
    for name, dtype in _DTYPES.items():
        table = tables[name]
        is_masked = isinstance(table, np.ma.MaskedArray)  # nobody looks at the mask
        found = "a masked array" if is_masked else getattr(table, "dtype", type(table).__name__)
        if found is not dtype and found != dtype:
            raise ValueError(f"{name}: expected the dtype of records.py, got {found}")
        flags = table.flags
        if table.ndim != 1 or not (flags.c_contiguous and flags.aligned):
            raise ValueError(f"{name}: expected one contiguous dimension, got {table.shape}")
        if not flags.writeable and name not in _ONLY_READ:
            raise ValueError(f"{name}: expected an array that may be written to, this is read-only")
    if len(tables["policy"]) != 1:
        raise ValueError(f"policy: expected 1 record, got {len(tables['policy'])}")
    if queued_rows < len(tables["pages"]):
        raise ValueError(
            f"queues: {queued_rows} rows for {len(tables['pages'])} pages (evict.grown)"
        )


def complaint(code: int, tables: Mapping[str, Records]) -> ValueError:
    """The error that ``code`` stands for."""
    row, which = divmod(code, _WITH)
    text = COMPLAINTS[which]
    table = tables[text.partition(":")[0].partition(".")[0]]
    found = {name: table[name][row] for name in table.dtype.names or ()} if len(table) else {}
    sizes = {"rows": len(tables["pages"]), "tenants": len(tables["tenants"]), "tiers": TIERS}
    return ValueError(text.format(row=row, **{**sizes, **found}))


@jit.kernel(jit.i8, jit.record(DEMAND), PAGES, TENANTS)
def in_demand(row: Int, demand: Any, pages: Records, tenants: Records) -> Int:
    """What is wrong with one demand, or the page it wants."""
    which: Int = -1
    kind = np.int64(demand["kind"])
    if not 0 <= demand["page"] < len(pages):
        which = 0
    elif kind not in (_LOAD, _WRITE, _PREFETCH, _PREWARM):
        which = 1
    elif demand["request"] < 0:
        which = 2
    elif np.isnan(demand["deadline_s"]):
        which = 3
    elif not np.isfinite(demand["arrival_s"]):
        which = 4
    elif demand["under_way"] > 1:
        which = 5
    elif len(tenants) > 0 and demand["tenant"] >= len(tenants):
        which = 6
    elif len(tenants) > 0 and (
        tenants[demand["tenant"]]["domain"] != pages[demand["page"]]["domain"]
    ):
        which = 7
    else:
        which = _in_page(pages[demand["page"]], len(pages))
        if which < 0 and kind == _WRITE and _is_hint_bad(pages[demand["page"]]):
            which = _HINT
        which += _DEMANDED if which >= 0 else 0
    return -1 if which < 0 else which + _WITH * row


@jit.kernel(jit.i8, PAGES, jit.i8)
def in_victim(row: Int, pages: Records, tier: Int) -> Int:
    """What is wrong with a page that is to leave ``tier``."""
    which: Int = _in_page(pages[row], len(pages))
    if which < 0 and _is_hint_bad(pages[row]):
        which = _HINT
    if which < 0 and not (np.int64(pages[row]["tiers"]) >> tier) & 1:
        which = _NOT_THERE
    return -1 if which < 0 else _LEAVING + which + _WITH * row


@jit.kernel(jit.record(PAGE), jit.i8)
def _in_page(page: Any, rows: Int) -> Int:
    """Complaint about a page's record but its hint, from 0 on, or -1.

    All is asked at once first: a window asks it 10^4 times, of memory that is far away.
    """
    on_disk = (np.int64(page["tiers"]) >> _DISK) & 1 != 0
    good = (page["nbytes"] > 0) & (page["tiers"] < 1 << TIERS)
    good &= (page["cluster"] >= ABOVE) & (page["cluster"] < rows)
    good &= (not on_disk) | ((page["frame"] >= 0) & (page["frame"] < _FRAMES))
    good &= (page["parent"] >= -1) & (page["parent"] < rows)
    good &= np.isfinite(page["heat"]) & np.isfinite(page["stamp_s"])
    good &= np.isfinite(page["recompute_s"])
    if good:
        return -1
    complaints = (
        page["nbytes"] == 0,
        page["tiers"] >= 1 << TIERS,
        not ABOVE <= page["cluster"] < rows,
        on_disk and not 0 <= page["frame"] < _FRAMES,
        not -1 <= page["parent"] < rows,
        not np.isfinite(page["heat"]),
        not np.isfinite(page["stamp_s"]),
        not np.isfinite(page["recompute_s"]),
    )
    for which in range(len(complaints)):
        if complaints[which]:
            return which
    return -1


@jit.kernel(jit.record(PAGE))
def _is_hint_bad(page: Any) -> bool:
    """Asked where a page is weighed only: 10^4 demands are 0.2 ms slower if their rank is read.

    A large array begins 16 bytes into a cache line, and so the rank is on a record's third.
    """
    return bool(np.isnan(page["forecast"]) or np.isnan(page["rank"]))


@jit.kernel(POLICIES)
def in_policy(policy: Records) -> int:
    """What is wrong first with the policy."""
    said = policy[0]
    share, churn_s = said["churn_share"], said["churn_s"]
    sizes = loads = latencies = writes = rates = True
    for tier in range(TIERS):
        sizes &= said["capacity_pages"][tier] >= 0
        loads &= 0.0 <= said["load_s_per_byte"][tier] < np.inf
        latencies &= 0.0 <= said["load_latency_s"][tier] < np.inf
        writes &= 0.0 <= said["write_s_per_byte"][tier] < np.inf
    for bucket in range(BUCKETS):
        rates &= said["credits_per_s"][bucket] >= 0.0
    complaints = (
        not 0.0 < said["half_life_s"] < np.inf,
        said["chunk_nbytes"] <= 0,
        said["hole_nbytes"] < 0,
        np.int64(said["features_off"]) & ~_FEATURES != 0,
        not said["min_residence_s"] >= 0.0,
        not said["patience_s"] >= 0.0,
        not said["switch_s"] >= 0.0,
        not (0.0 <= share <= 1.0 and churn_s >= 0.0 and (share == 0.0 or churn_s > 0.0)),
        not sizes,
        not loads,
        not latencies,
        not writes,
        not rates,
    )
    for which in range(len(complaints)):
        if complaints[which]:
            return _POLICY + which
    return -1


@jit.kernel(LINKS)
def in_links(links: Records) -> int:
    """What is wrong first with a link."""
    for row in range(len(links)):
        link, which = links[row], -1
        if not 0.0 < link["rate"] < np.inf:
            which = 0
        elif not 0.0 <= link["spread"] < np.inf:
            which = 1
        elif not 0.0 <= link["drift"] < np.inf:
            which = 2
        elif link["queued_nbytes"] < 0:
            which = 3
        elif link["node"] > 0xFFFF:
            which = 4
        elif link["source"] >= TIERS or link["destination"] >= TIERS:
            which = 5
        if which >= 0:
            return _LINK + which + _WITH * row
    return -1


@jit.kernel(REQUESTS, DEMANDS, PAGES)
def in_requests(requests: Records, demands: Records, pages: Records) -> int:
    """What is wrong first with a request; its demands themselves are good."""
    end: Int = 0
    for row in range(len(requests)):
        request, which = requests[row], -1
        first, count = request["first"], request["count"]
        if first < end or count < 1 or count > len(demands) - first:
            which = 0
        else:
            end = first + count
            which = _in_run(request, demands[first:end], pages)
        if which >= 0:
            return _REQUEST + which + _WITH * row
    return -1


@jit.kernel(jit.record(REQUEST), DEMANDS, PAGES)
def _in_run(request: Any, demands: Records, pages: Records) -> int:
    """Complaint of a request about its own demands, from 1 on, or -1."""
    for i in range(len(demands)):
        if demands[i]["request"] != request["request"] or demands[i]["kind"] != _LOAD:
            return 1
        if i > 0:
            depth = np.int64(pages[demands[i]["page"]]["depth"])
            if depth <= np.int64(pages[demands[i - 1]["page"]]["depth"]):
                return 2
    complaints = (
        request["page_tokens"] == 0,
        not 0.0 <= request["n_waiting"] < np.inf,
        not 0.0 <= request["wait_s"] < np.inf,
        not 0.0 <= request["new_compute_s"] < np.inf,
        not 0.0 <= request["token_s"] < np.inf,
        not 0.0 <= request["slope_s"] < np.inf,
    )
    for which in range(len(complaints)):
        if complaints[which]:
            return which + 3
    return -1
