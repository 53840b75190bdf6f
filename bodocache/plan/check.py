# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a window's inputs, found before any stage runs.

Compiled code answers with a code: which of COMPLAINTS, plus their number times the row; -1 where
all is well. The message names table, field and row, and what was found there.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import PAGE
from bodocache.plan.records import (
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
    "policy.half_life_s: row {row}: {half_life_s}; expected a finite number > 0",
    "policy.chunk_nbytes: row {row}: {chunk_nbytes}; expected > 0",
    "policy.hole_nbytes: row {row}: {hole_nbytes}; expected >= 0",
    "policy: row {row}: a rate, latency, residence or time is negative or not a number",
    "policy.features_off: row {row}: {features_off} has bits that are no Feature",
    "links.rate: row {row}: {rate}; expected a finite number > 0",
    "links.spread: row {row}: {spread}; expected a finite number >= 0",
    "links.drift: row {row}: {drift}; expected a finite number >= 0",
    "links.queued_nbytes: row {row}: {queued_nbytes}; expected >= 0",
    "links.node: row {row}: {node}; expected a node below 65536",
    "links.source: row {row}: {source} to {destination}: a tier is below {tiers}",
    "requests.first: row {row}: {first}, {count} demands: not all in the table, or not in order",
    "requests.request: row {row}: {request}: its demands are another's, or no loads",
    "requests.count: row {row}: its pages are not shallow to deep",
    "requests: row {row}: a time, page_tokens or n_waiting is out of range or not a number",
)

_LOAD, _WRITE = int(OpKind.LOAD), int(OpKind.WRITE)
_PREFETCH, _PREWARM = int(OpKind.PREFETCH), int(OpKind.PREWARM)
_FEATURES = sum(Feature)
_WITH = len(COMPLAINTS)
_POLICY, _LINK, _REQUEST = 9, 14, 20  # the first complaint about each

DEMANDS, PAGES, POLICIES = jit.readonly(DEMAND), jit.array(PAGE), jit.array(POLICY)
TENANTS, LINKS, REQUESTS = jit.array(TENANT), jit.readonly(LINK), jit.readonly(REQUEST)


def complaint(code: int, tables: Mapping[str, Records]) -> ValueError:
    """The error that ``code`` stands for."""
    row, which = divmod(code, _WITH)
    text = COMPLAINTS[which]
    table = tables[text.partition(":")[0].partition(".")[0]]
    found = {name: table[name][row] for name in table.dtype.names or ()} if len(table) else {}
    sizes = {"rows": len(tables["pages"]), "tenants": len(tables["tenants"]), "tiers": TIERS}
    return ValueError(text.format(row=row, **sizes, **found))


@jit.kernel(jit.i8, jit.record(DEMAND), PAGES, TENANTS)
def in_demand(row: Int, demand: Any, pages: Records, tenants: Records) -> Int:
    """What is wrong with one demand, or the page it wants."""
    which = -1
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
    elif pages[demand["page"]]["nbytes"] == 0:
        which = 8
    return -1 if which < 0 else which + _WITH * row


@jit.kernel(POLICIES)
def in_policy(policy: Records) -> int:
    """What is wrong with the policy."""
    said = policy[0]
    if not 0.0 < said["half_life_s"] < np.inf:
        return _POLICY
    if said["chunk_nbytes"] <= 0:
        return _POLICY + 1
    if said["hole_nbytes"] < 0:
        return _POLICY + 2
    good = said["min_residence_s"] >= 0.0 and said["patience_s"] >= 0.0 and said["switch_s"] >= 0.0
    churns = said["churn_share"]
    good &= churns == 0.0 or (0.0 < churns <= 1.0 and said["churn_s"] > 0.0)
    for tier in range(TIERS):
        good &= said["capacity_pages"][tier] >= 0
        good &= said["load_s_per_byte"][tier] >= 0.0
        good &= said["load_latency_s"][tier] >= 0.0
        good &= said["write_s_per_byte"][tier] >= 0.0
    for bucket in range(BUCKETS):
        good &= said["credits_per_s"][bucket] >= 0.0
    if not good:
        return _POLICY + 3
    return _POLICY + 4 if np.int64(said["features_off"]) & ~_FEATURES else -1


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
    good = request["page_tokens"] > 0 and 0.0 <= request["n_waiting"] < np.inf
    good &= 0.0 <= request["wait_s"] < np.inf and 0.0 <= request["new_compute_s"] < np.inf
    good &= 0.0 <= request["token_s"] < np.inf and 0.0 <= request["slope_s"] < np.inf
    return -1 if good else 3
