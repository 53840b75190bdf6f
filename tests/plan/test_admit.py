# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.pages import PAGE, Tier
from bodocache.plan import evict
from bodocache.plan.admit import WEIGHED, admit
from bodocache.plan.records import DEMAND, POLICY, Feature, OpKind
from bodocache.plan.window import plan_window

NBYTES = 4096
RECOMPUTE_S = 0.01


def state(parents, heats, residents=(), write_s_per_byte=0.0):
    """Host pages, and pages of heat 1 that fill the disk."""
    pages = np.zeros(len(parents) + len(residents), PAGE)
    pages["parent"] = [*parents, *[-1] * len(residents)]
    pages["heat"], pages["nbytes"], pages["recompute_s"] = 1.0, NBYTES, RECOMPUTE_S
    pages["heat"][: len(heats)] = heats
    policy, queues = np.zeros(1, POLICY), evict.open_queues(len(pages))
    policy["half_life_s"], policy["write_s_per_byte"] = 60.0, write_s_per_byte
    policy["chunk_nbytes"] = 1 << 30
    policy["features_off"] = Feature.REUSE  # by heat
    on_disk = np.arange(len(parents), len(pages))
    evict.arrive(pages, queues, policy, on_disk, Tier.DISK, 0.0)
    for row in range(len(parents)):  # one by one: arriving, a child warms its parent
        pages["tiers"][row] = Tier.HOST.bit
    return pages, queues, policy


def admitted(pages, queues, policy, rows, free_pages):
    mask, weighed = np.empty(len(rows), np.bool_), np.empty(len(rows), WEIGHED)
    rows = np.array(rows, np.int64)
    count = admit(pages, queues, policy, rows, Tier.DISK, free_pages, weighed, mask)
    assert count == mask.sum()
    return rows[mask].tolist()


def twin(pages, policy, rows, free, price):
    """A chain's rows weigh as the densest from there on; a gap ends the chain."""
    write = policy["write_s_per_byte"][0, Tier.DISK]
    chosen = []
    for i, row in enumerate(rows):
        chain = [row]
        for later in rows[i + 1 :]:
            if pages["parent"][later] != chain[-1]:
                break
            chain.append(later)
        worth = max(pages["heat"][chain].astype(float)) * RECOMPUTE_S / NBYTES
        parent = pages["parent"][row]
        reachable = parent < 0 or parent in chosen or pages["tiers"][parent] >> Tier.DISK & 1
        cost = write + (0.0 if len(chosen) < free else price)
        if worth > cost and reachable and not pages["tiers"][row] >> Tier.DISK & 1:
            chosen.append(row)
    return chosen


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([0.2, 0.9, 1.1, 3.0])), max_size=10),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.5, 1.5]),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_what_is_admitted_is_what_a_plain_program_admits(case, free_pages, write, full):
    parents = [row - 1 if follows else -1 for row, (follows, _) in enumerate(case)]
    heats = [heat for _, heat in case]
    unit = RECOMPUTE_S / NBYTES
    residents = [1.0] if full else []
    pages, queues, policy = state(parents, heats, residents, write * unit)
    price = unit if full else np.inf
    rows = list(range(len(case)))
    expected = twin(pages, policy, rows, free_pages, price)
    assert admitted(pages, queues, policy, rows, free_pages) == expected


def test_a_first_use_is_enough_while_there_is_room():
    assert admitted(*state([-1], [1.0]), [0], free_pages=1) == [0]


def test_a_full_tier_takes_only_what_is_worth_more_than_its_coldest():
    assert admitted(*state([-1, -1], [0.5, 2.0], [1.0]), [0, 1], free_pages=0) == [1]


def test_a_write_that_costs_more_than_it_saves_is_not_made():
    costly = RECOMPUTE_S / NBYTES * 1.01
    assert admitted(*state([-1], [1.0], write_s_per_byte=costly), [0], free_pages=1) == []


def test_a_page_is_admitted_for_the_sake_of_those_after_it():
    assert admitted(*state([-1, 0], [0.5, 2.0], [1.0]), [0, 1], free_pages=0) == [0, 1]


def test_a_page_whose_parent_is_not_admitted_is_not_either():
    pages, queues, policy = state([-1, 0], [0.5, 2.0], [1.0])
    assert admitted(pages, queues, policy, [1], free_pages=0) == []


def test_a_window_writes_what_is_admitted():
    pages, queues, policy = state([-1, -1], [0.5, 2.0], [1.0])
    demands = np.zeros(2, DEMAND)
    demands["page"], demands["kind"] = [0, 1], OpKind.WRITE
    assert plan_window(demands, pages, queues, policy, free_frames=0).rows.tolist() == [1]
    assert plan_window(demands, pages, queues, policy).rows.tolist() == [0, 1]
