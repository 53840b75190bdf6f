# SPDX-License-Identifier: Apache-2.0
"""A plan made of what came over the wire is the plan made at home."""

import numpy as np
import pytest

pytest.importorskip("google.protobuf")

from bodocache import jit
from bodocache.cluster.codec import Window, decode_plan, decode_window, encode_plan, encode_window
from bodocache.pages import KEY_NBYTES, NOWHERE, PAGE, Tier
from bodocache.plan import evict
from bodocache.plan.records import BUCKETS, DEMAND, LINK, POLICY, REQUEST, TENANT, OpKind, Plan
from bodocache.plan.window import plan_window

jit.warm()

NOW_S = 128.0
PAGES_A_REQUEST = 8


def some_window(seed, requests=6):
    """Requests for chains of pages on disk and in host memory, some with deadlines, two tenants."""
    generator, count = np.random.default_rng(seed), requests * PAGES_A_REQUEST
    pages, demands = np.zeros(count, PAGE), np.zeros(count, DEMAND)
    pages["depth"] = np.arange(count) % PAGES_A_REQUEST
    pages["parent"] = np.where(pages["depth"] > 0, np.arange(count) - 1, NOWHERE)
    pages["tiers"] = generator.choice([Tier.HOST.bit, Tier.DISK.bit], count)
    pages["nbytes"], pages["cluster"], pages["heat"] = 1 << 20, NOWHERE, 1
    pages["frame"] = pages["host_slot"] = np.arange(count)
    pages["recompute_s"] = 0.01
    demands["page"] = np.arange(count)
    demands["request"] = np.arange(count) // PAGES_A_REQUEST
    demands["deadline_s"] = NOW_S + np.repeat(generator.integers(1, 9, requests) / 64, 8)
    demands["kind"], demands["arrival_s"] = OpKind.LOAD, NOW_S
    demands["tenant"] = demands["request"] % 2
    known = np.zeros(requests, REQUEST)
    known["request"] = np.arange(requests)
    known["first"], known["count"] = known["request"] * PAGES_A_REQUEST, PAGES_A_REQUEST
    known["page_tokens"], known["token_s"], known["cut_at"] = 512, 1e-5, -1
    keys = generator.integers(1, 256, (count, KEY_NBYTES), np.uint8)
    return Window(demands, known, pages, keys, some_tenants(), some_links())


def some_tenants():
    tenants = np.zeros(2, TENANT)
    tenants["share"], tenants["refilled_s"] = 0.5, NOW_S
    tenants["rate"], tenants["cap"] = 1e9, 1 << 34
    tenants["held"] = np.array([[1 << 34], [12 << 20]]) * np.ones(BUCKETS, np.int64)
    tenants["earned"] = tenants["held"]
    return tenants


def some_links():
    links = np.zeros(3, LINK)
    links["source"] = [Tier.HOST, Tier.DISK, Tier.DISK]
    links["destination"] = [Tier.DEVICE, Tier.HOST, Tier.DEVICE]
    links["rate"] = [4e9, 1e9, 1e9]
    return links


def planned(window, now_s):
    policy = np.zeros(1, POLICY)
    policy["half_life_s"], policy["chunk_nbytes"] = 600, 4 << 20
    policy["load_s_per_byte"][0, 1:] = 1e-9
    tables = {"tenants": window.tenants, "links": window.links, "requests": window.requests}
    queues = evict.open_queues(len(window.pages))
    return plan_window(window.demands, window.pages, queues, policy, **tables, now_s=now_s)


@pytest.mark.parametrize("seed", range(4))
def test_a_plan_of_records_from_the_wire_is_the_plan_of_the_records(seed):
    window = some_window(seed)
    sent = encode_window(window, now_s=NOW_S)
    there = decode_window(sent, now_s=NOW_S + 1024)  # another clock
    answer = encode_plan(planned(there, NOW_S + 1024), there.keys, now_s=NOW_S + 1024)
    found, ids = decode_plan(answer, now_s=NOW_S, window=window)
    expected = planned(window, NOW_S)
    assert len(expected.ops) > 1
    named = expected.ops["cluster"] >= 0
    assert (ids[named] == window.keys[expected.ops["cluster"][named]]).all()
    expected.ops["cluster"] = NOWHERE
    for name, here, received in zip(Plan._fields, expected, found, strict=True):
        assert_alike(name, here, received)


def assert_alike(name, here, received):
    """Equal, but for times, which a clock far away rounds."""
    if name == "ready_s":
        return  # of demands that are not deferred it says nothing
    if name == "decisions":  # nor a decision of requests that have nothing to load
        here, received = here[here["finish_s"] > 0], received[here["finish_s"] > 0]
    for field in here.dtype.names or (None,):
        one, other = (table if field is None else table[field] for table in (here, received))
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-9, err_msg=f"{name}.{field}")
