# SPDX-License-Identifier: Apache-2.0
"""The columns of every table on the wire, as docs/wire.md lists them.

A column that is added gets a default and version 1. One whose meaning changes gets a new version;
a writer may send both. None is ever renamed or taken out.
"""

import math
from typing import Any

import numpy as np

from bodocache.cluster.columns import FINITE, MOST_ROWS, Column
from bodocache.pages import KEY_NBYTES, NOWHERE, PAGE, Reason
from bodocache.plan.loads import COPIES, DECISION, Verdict
from bodocache.plan.records import ABOVE, DEMAND, LINK, OP, REQUEST, TENANT, TIERS, Fate, OpKind

_NEVER = math.inf
_COUNT = {"default": 0, "least": 0}  # a number that is 0 where nobody sent it
_AMOUNT = {"default": 0, "least": 0, "most": FINITE}
_NUMBER = {"least": 0, "most": FINITE}
_LOGARITHM = {"default": 0, "least": -FINITE, "most": FINITE}
_FORECAST = {"default": 0, "least": -math.inf, "most": FINITE}  # -inf: no use is expected
_TIER = {"least": 0, "most": TIERS - 1}
_SLOT = {"default": NOWHERE, "least": NOWHERE}
_PAST = {"default": 0, "least": -FINITE, "most": FINITE, "moment": True}
_UNTIL = {"default": _NEVER, "least": -FINITE, "moment": True}


def _columns(dtype: np.dtype[Any], **rules: dict[str, Any]) -> tuple[Column, ...]:
    """One column a field that has a rule, in the order of the fields."""
    assert dtype.fields is not None
    found = []
    for name in dtype.names or ():
        if name in rules:
            base, shape = dtype.fields[name][0].base, dtype.fields[name][0].shape
            text = base.str if base.itemsize > 1 else f"{base.kind}1"
            found.append(Column(name, text, shape[0] if shape else 1, **rules[name]))
    return tuple(found)


DEMANDS = _columns(
    DEMAND,
    page={"least": 0, "of": "pages"},
    request={"least": 0},
    deadline_s=_UNTIL,
    arrival_s=_PAST,
    tenant=_COUNT,
    node=_COUNT,
    kind={"least": 0, "most": OpKind.PREWARM},
    under_way={"default": 0, "least": 0, "most": 1},
)
REQUESTS = _columns(
    REQUEST,
    request={"least": 0},
    first={"least": 0},
    count={"least": 1},
    wait_s=_AMOUNT,
    new_compute_s=_AMOUNT,
    token_s=_NUMBER,
    slope_s=_AMOUNT,
    n_waiting=_AMOUNT,
    page_tokens={"least": 1},
    layers=_COUNT,
    cut_at=_SLOT,
)
PAGES = (
    Column("key", "u1", KEY_NBYTES),
    *_columns(
        PAGE,
        stamp_s=_PAST,
        arrived_s=_PAST,
        frame=_SLOT,
        device_slot=_SLOT,
        host_slot=_SLOT,
        parent={"least": NOWHERE, "of": "pages"},
        depth={"least": 0},
        children=_COUNT,
        descended=_COUNT,
        nbytes={"least": 0},
        heat=_AMOUNT,
        hits=_COUNT,
        recompute_s=_AMOUNT,
        eviction_key={"default": 0},
        pins=_COUNT,
        cluster={"default": NOWHERE, "least": ABOVE, "of": "pages"},
        domain=_COUNT,
        tenant=_COUNT,
        version=_COUNT,
        group=_COUNT,
        reuse_class=_COUNT,
        tiers={"least": 0, "most": (1 << TIERS) - 1},
        reason={"default": 0, "least": 0, "most": max(Reason)},
        forecast=_FORECAST,
        rank=_LOGARITHM,
        holds=_COUNT,
    ),
)
TENANTS = _columns(
    TENANT,
    domain={"least": 0},
    lend={"default": 0, "least": 0, "most": 1},
    share={"default": 0, "least": 0, "most": 1},
    refilled_s=_PAST,
    rate=_NUMBER,
    cap={"least": 0},
    borrow=_COUNT,
    held=_COUNT,
    fraction={"default": 0, "least": 0, "most": 1},
    owed=_COUNT,
    lent=_COUNT,
    earned=_COUNT,
    spent=_COUNT,
    wasted=_COUNT,
)
LINKS = _columns(
    LINK,
    rate={"least": np.finfo(np.float64).tiny, "most": FINITE},
    spread=_AMOUNT,
    drift=_AMOUNT,
    queued_nbytes=_COUNT,
    node=_COUNT,
    source=_TIER,
    destination=_TIER,
)
OPS = (
    *_columns(
        OP,
        kind={"least": 0, "most": max(OpKind)},
        node=_COUNT,
        source=_TIER,
        destination=_TIER,
        stream=_COUNT,
        order=_COUNT,
        count={"least": 1},
        first={"least": 0},
        request={"default": NOWHERE},
        nbytes={"least": 0},
        deadline_s=_UNTIL,
        predicted_finish_s=_UNTIL,
        keep_until_s=_UNTIL,
        first_layer=_COUNT,
        num_layers=_COUNT,
        head_layers=_COUNT,
        layers_ahead=_COUNT,
    ),
    Column("prefix_cluster_id", "u1", KEY_NBYTES, default=0),  # all zero: of none
)
ROWS = (
    Column("page", "<i8", least=0, of="pages"),
    Column("answers", "<i8", least=0, most=MOST_ROWS),  # demands that moving it answers
)
ANSWERS = (Column("demand", "<i8", least=0, of="demands"),)
FATES = (
    Column("fate", "u1", least=0, most=max(Fate)),
    # When one that is DEFERRED will have its credits.
    Column("ready_s", "<f8", default=0, least=-FINITE, moment=True),
)
DECISIONS = _columns(
    DECISION,
    verdict={"least": 0, "most": max(Verdict)},
    copy={"default": 0, "least": 0, "most": COPIES - 1},
    cut=_COUNT,
    cut_at=_SLOT,
    finish_s=_UNTIL,
    late_s=_COUNT,
    step_s=_COUNT,
    demoted={"default": 0, "least": 0, "most": 1},
    head_layers=_COUNT,
    layers_ahead=_COUNT,
)
