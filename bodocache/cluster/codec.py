# SPDX-License-Identifier: Apache-2.0
"""The planner's records to and from the bytes of planner.proto (docs/wire.md).

``now_s`` is the clock of whoever encodes or decodes: what is a point in time here travels as
seconds from now. So a deadline moves later by the message's time in flight; a sender that knows
that time takes it off. A message that is malformed anywhere is a WireError that names table,
column and row, and gives nothing. ``ready_s`` of a demand that is not DEFERRED comes back as 0.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.cluster import messages, schema
from bodocache.cluster.columns import Arrays, Column, Sizes, joined, pack, split, unpack
from bodocache.errors import WireError
from bodocache.pages import KEY_NBYTES, NOWHERE, PAGE
from bodocache.plan.loads import DECISION
from bodocache.plan.records import DEMAND, LINK, OP, REQUEST, TENANT, Fate, OpKind, Plan

Records = NDArray[np.void]
Keys = NDArray[np.uint8]
_Tables = tuple[tuple[str, Arrays, tuple[Column, ...]], ...]


class Window(NamedTuple):
    """What a planner is told. Demands name pages, requests their demands, by rows of these."""

    demands: Records  # DEMAND
    requests: Records  # REQUEST
    pages: Records  # PAGE
    keys: Keys  # u1[pages, 32]
    tenants: Records  # TENANT
    links: Records  # LINK


class Answer(NamedTuple):
    """What it answers. ``ops["cluster"]`` is NOWHERE: look up the ids, which are pages' keys."""

    plan: Plan
    prefix_cluster_ids: Keys  # u1[ops, 32], all zero for ops of no cluster


def encode_window(window: Window, *, now_s: float) -> bytes:
    """The bytes of a Window; times in it are on the clock that says ``now_s``."""
    tables: _Tables = (
        ("demands", split(window.demands), schema.DEMANDS),
        ("requests", split(window.requests), schema.REQUESTS),
        ("pages", {"key": window.keys, **split(window.pages)}, schema.PAGES),
        ("tenants", split(window.tenants), schema.TENANTS),
        ("links", split(window.links), schema.LINKS),
    )
    parts = (pack(messages.Window, *table, now_s) for table in tables)
    return b"".join(chain.from_iterable(parts))


def decode_window(data: bytes, *, now_s: float) -> Window:
    """The records of a Window, with times on the clock that says ``now_s``.

    Raises:
        WireError: the message is malformed.
    """
    message = messages.parsed(messages.Window(), data)
    sizes = Sizes(message.demands.rows, message.pages.rows, message.tenants.rows)
    pages, found = _records("pages", message.pages, PAGE, schema.PAGES, sizes, now_s)
    window = Window(
        _records("demands", message.demands, DEMAND, schema.DEMANDS, sizes, now_s)[0],
        _records("requests", message.requests, REQUEST, schema.REQUESTS, sizes, now_s)[0],
        pages,
        found.get("key", np.empty((0, KEY_NBYTES), np.uint8)),
        _records("tenants", message.tenants, TENANT, schema.TENANTS, sizes, now_s)[0],
        _records("links", message.links, LINK, schema.LINKS, sizes, now_s)[0],
    )
    _check_window(window)
    return window


def encode_plan(plan: Plan, keys: Keys, *, now_s: float) -> bytes:
    """The bytes of a Plan; ``keys`` (u1[pages, 32]) are those of the window's pages."""
    ids = np.zeros((len(plan.ops), KEY_NBYTES), np.uint8)
    named = plan.ops["cluster"] != NOWHERE
    ids[named] = keys[plan.ops["cluster"][named]]
    ready_s = np.where(plan.fates == Fate.DEFERRED, plan.ready_s, now_s)
    tables: _Tables = (
        ("ops", {**split(plan.ops), "prefix_cluster_id": ids}, schema.OPS),
        ("rows", {"page": plan.rows, "answers": np.diff(plan.answers)}, schema.ROWS),
        ("answers", {"demand": plan.demands}, schema.ANSWERS),
        ("fates", {"fate": plan.fates, "ready_s": ready_s}, schema.FATES),
        ("decisions", split(plan.decisions), schema.DECISIONS),
    )
    parts = (pack(messages.Plan, *table, now_s) for table in tables)
    return b"".join(chain.from_iterable(parts))


def decode_plan(data: bytes, *, now_s: float, window: Window) -> Answer:
    """The answer to ``window``.

    Raises:
        WireError: the message is malformed, or answers another window.
    """
    message = messages.parsed(messages.Plan(), data)
    sizes = Sizes(demands=len(window.demands), pages=len(window.pages))
    ops, found = _records("ops", message.ops, OP, schema.OPS, sizes, now_s)
    ops["cluster"] = NOWHERE
    ids = found.get("prefix_cluster_id", np.zeros((len(ops), KEY_NBYTES), np.uint8))
    _, rows = unpack("rows", message.rows, schema.ROWS, sizes, now_s)
    _, answers = unpack("answers", message.answers, schema.ANSWERS, sizes, now_s)
    _, fates = unpack("fates", message.fates, schema.FATES, sizes, now_s)
    _check_rows("fates", message.fates, len(window.demands))
    _check_rows("decisions", message.decisions, len(window.requests))
    decided = (DECISION, schema.DECISIONS, sizes, now_s)
    plan = Plan(
        ops=ops,
        rows=_column(rows, "page", np.int64),
        demands=_column(answers, "demand", np.int64),
        answers=np.concatenate(([0], np.cumsum(_column(rows, "answers", np.int64)))),
        fates=_column(fates, "fate", np.uint8),
        ready_s=fates.get("ready_s", np.zeros(len(window.demands))),
        decisions=_records("decisions", message.decisions, *decided)[0],
    )
    _check_plan(plan)
    plan.ready_s[plan.fates != Fate.DEFERRED] = 0
    return Answer(plan, ids)


def _records(
    name: str,
    table: messages.Table,
    dtype: np.dtype[Any],
    columns: tuple[Column, ...],
    sizes: Sizes,
    now_s: float,
) -> tuple[Records, Mapping[str, NDArray[Any]]]:
    rows, found = unpack(name, table, columns, sizes, now_s)
    of_record = [column for column in columns if column.name in (dtype.names or ())]
    return joined(np.zeros(rows, dtype), found, of_record, now_s), found


def _column(found: Mapping[str, NDArray[Any]], name: str, dtype: type) -> NDArray[Any]:
    return found[name].copy() if name in found else np.empty(0, dtype)


def _check_rows(name: str, table: messages.Table, expected: int) -> None:
    if table.rows != expected:
        raise WireError(f"{name}: {table.rows} rows; expected {expected}, as the window has")


def _check_window(window: Window) -> None:
    demands, requests, pages = window.demands, window.requests, window.pages
    if len(window.tenants):
        _refuse(
            "demands.tenant",
            demands["tenant"],
            demands["tenant"] >= len(window.tenants),
            f"a row of tenants, {len(window.tenants)} of them",
        )
    evicts = demands["kind"] == OpKind.EVICT
    _refuse("demands.kind", demands["kind"], evicts, "LOAD, WRITE, PREFETCH or PREWARM")
    beyond = requests["first"] > len(demands) - requests["count"]
    _refuse("requests.count", requests["count"], beyond, f"a run of {len(demands)} demands")
    behind = np.flatnonzero(pages["parent"] != NOWHERE)
    loops = np.zeros(len(pages), np.bool_)
    loops[behind] = pages["depth"][pages["parent"][behind]] >= pages["depth"][behind]
    _refuse("pages.depth", pages["depth"], loops, "more than that of the parent")


def _check_plan(plan: Plan) -> None:
    ops, answered = plan.ops, int(plan.answers[-1])
    beyond = ops["first"] > len(plan.rows) - ops["count"].astype(np.int64)
    _refuse("ops.count", ops["count"], beyond, f"a run of {len(plan.rows)} rows")
    if answered != len(plan.demands):
        raise WireError(
            f"rows.answers: {answered} in all; expected the rows of answers, {len(plan.demands)}"
        )


def _refuse(where: str, values: NDArray[Any], wrong: NDArray[np.bool_], expected: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise WireError(f"{where}[{row}] = {values[row]}: expected {expected}")
