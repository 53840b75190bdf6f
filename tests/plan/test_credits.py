# SPDX-License-Identifier: Apache-2.0
"""Buckets and what they pay for, against plain twins and over long runs of windows."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache import jit
from bodocache.plan import charges
from bodocache.plan import credits as buckets
from bodocache.plan.asked import Answer, Asked, purpose, scratch_for
from bodocache.plan.records import BUCKETS, DEMAND, IO, POLICY, TENANT, OpKind, Purpose
from bodocache.plan.tardiness import CUT, best_cut

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

PAGE = 100

PURPOSE = {
    OpKind.LOAD: Purpose.READ,
    OpKind.WRITE: Purpose.WRITE,
    OpKind.PREFETCH: Purpose.PREFETCH,
    OpKind.PREWARM: Purpose.PREFETCH,
}


def tenants(count, nbytes_rate=100, cap=1000, lend=0.0, borrow=0, held=0):
    """Equal tenants whose I/Os are plenty."""
    made = np.zeros(count, TENANT)
    made["rate"][:, ::2], made["cap"][:, ::2], made["held"][:, ::2] = nbytes_rate, cap, held
    made["rate"][:, 1::2], made["cap"][:, 1::2] = 1000.0 * IO, 1000 * IO
    made["held"][:, 1::2] = 1000 * IO
    made["lend"], made["borrow"][:, ::2], made["share"] = lend, borrow, 1 / count
    return made


def policy(credits_per_s=0.0, patience_s=0.0):
    made = np.zeros(1, POLICY)
    made["credits_per_s"], made["patience_s"] = credits_per_s, patience_s
    return made


def ask(rows, nbytes=100, order=None, leaders=None, arrivals=None, kind=OpKind.LOAD):
    """One demand of ``nbytes`` for each of ``rows`` (of tenants)."""
    n = len(rows)
    demands = np.zeros(n, DEMAND)
    demands["tenant"], demands["kind"], demands["request"] = rows, kind, np.arange(n)
    demands["arrival_s"] = 0.0 if arrivals is None else arrivals
    demands.flags.writeable = False
    own = np.arange(n)
    return Asked(
        demands,
        np.full(n, nbytes, np.int64) if np.isscalar(nbytes) else np.array(nbytes, np.int64),
        own if order is None else np.array(order, np.int64),
        own.copy() if leaders is None else np.array(leaders, np.int64),
        np.ones(n, np.bool_),
    )


def memory(asked, state):
    n = len(asked.demands)
    return scratch_for(n, len(state)), Answer(np.empty(n, np.bool_), np.empty(n))


def part(whole, parts, place):
    return whole // parts + (place < whole % parts)


def share_out(amount, weights):
    """In proportion, rounded up, in turn; what is left must fit the rest."""
    parts, left = [], sum(weights)
    for weight in weights:
        left -= weight
        fair = math.ceil(amount * weight / (left + weight)) if weight else 0
        parts.append(max(min(fair, weight, amount), amount - left))
        amount -= parts[-1]
    return parts


def plain_refill(state, rules, now_s):
    for b in range(BUCKETS):
        total, link = sum(t["rate"][b] for t in state), rules["credits_per_s"][0][b]
        scale = link / total if 0 < link < total else 1.0
        for t in state:
            exact = t["rate"][b] * scale * (now_s - t["refilled_s"]) + t["fraction"][b]
            whole = int(exact)
            t["fraction"][b], t["earned"][b] = exact - whole, t["earned"][b] + whole
            t["held"][b] += whole
        lapsed = 0
        for t in state:
            if t["owed"][b] == 0:
                cap_it(t, b)
                lapse = max(0, t["lent"][b] - (t["cap"][b] - t["held"][b]))
                t["lent"][b] -= lapse
                lapsed += lapse
        forgiven = share_out(lapsed, [t["owed"][b] for t in state])
        repaid = 0
        for t, less in zip(state, forgiven, strict=True):
            t["owed"][b] -= less
            paid = min(t["owed"][b], t["held"][b])
            t["owed"][b], t["held"][b] = t["owed"][b] - paid, t["held"][b] - paid
            repaid += paid
            cap_it(t, b)
        for t, back in zip(state, share_out(repaid, [t["lent"][b] for t in state]), strict=True):
            t["lent"][b], t["held"][b] = t["lent"][b] - back, t["held"][b] + back
    state["refilled_s"] = now_s


def cap_it(t, b):
    over = max(0, t["held"][b] - t["cap"][b])
    t["held"][b], t["wasted"][b] = t["held"][b] - over, t["wasted"][b] + over


class Plain:
    """Which demands are granted: served holds the leaders of their groups."""

    def __init__(self, state, asked):
        self.state, self.asked = state, asked
        self.lanes = [(int(d["tenant"]), int(PURPOSE[d["kind"]])) for d in asked.demands]
        self.order = [i for i in asked.order if asked.wanted[i]]
        self.served, self.blocked = set(), set()
        self.pool, self.drawn = [0] * BUCKETS, [0] * BUCKETS

    def serve(self, i):
        leader = self.asked.leaders[i]
        if leader in self.served or self.lanes[i] in self.blocked:
            return
        payers = [k for k in self.order if self.asked.leaders[k] == leader]
        payers = [k for k in payers if self.lanes[k] not in self.blocked]
        turn = 0
        while payers:
            bills = [self.bill(k, leader, len(payers), place) for place, k in enumerate(payers)]
            paid = [self.pay(*bill) for bill in bills]
            if all(paid):
                self.served.add(leader)
                return
            for bill, was_paid in zip(bills, paid, strict=True):
                self.refund(*bill[:2], was_paid)
            short = {bill[0] for bill, was_paid in zip(bills, paid, strict=True) if not was_paid}
            payers = [k for k in payers if self.lanes[k] not in short]
            turn += 1
            if turn == charges.TURNS:
                payers = [k for k in payers if self.lanes[k] == self.lanes[i]]
        self.blocked.add(self.lanes[i])

    def bill(self, i, leader, parts, place):
        """A lane, and what it is to pay of a group."""
        whole = self.asked.nbytes[leader]
        return self.lanes[i], [part(whole, parts, place), part(IO, parts, place)]

    def pay(self, lane, amounts):
        """What was paid and borrowed in either unit, or None where it could not pay."""
        tenant, loans = self.state[lane[0]], []
        for b, amount in enumerate(amounts, 2 * lane[1]):
            loans.append(max(0, amount - tenant["held"][b]))
            if loans[-1] > min(tenant["borrow"][b] - tenant["owed"][b], self.pool[b]):
                return None
        paid = list(zip(amounts, loans, strict=True))
        self.book(lane, paid, 1)
        return paid

    def refund(self, lane, _, paid):
        if paid:
            self.book(lane, paid, -1)

    def book(self, lane, paid, sign):
        tenant = self.state[lane[0]]
        for b, (amount, loan) in enumerate(paid, 2 * lane[1]):
            tenant["spent"][b] += sign * amount
            tenant["held"][b] -= sign * (amount - loan)
            tenant["owed"][b] += sign * loan
            self.pool[b] -= sign * loan
            self.drawn[b] += sign * loan

    def serve_all(self, patience_s, now_s):
        arrivals_s = self.asked.demands["arrival_s"]
        for lane in sorted(set(self.lanes)):
            own = [i for i in self.order if self.lanes[i] == lane]
            oldest = min(own, key=lambda i: arrivals_s[i], default=None)
            if own and now_s - arrivals_s[oldest] > patience_s:
                self.serve(oldest)
        for i in self.order:
            self.serve(i)

    def offers(self, b):
        """What each tenant lends of one bucket."""
        offered = []
        for row, tenant in enumerate(self.state):
            reserve = math.ceil((1.0 - float(tenant["lend"])) * tenant["cap"][b])
            busy = (row, b // 2) in self.blocked or tenant["owed"][b] > 0
            offered.append(0 if busy else max(0, tenant["held"][b] - reserve))
        return offered

    def lend(self, b, offers):
        for tenant, taken in zip(self.state, share_out(self.drawn[b], offers), strict=True):
            tenant["held"][b] -= taken
            net = min(tenant["lent"][b] + taken, tenant["owed"][b]) if self.drawn[b] else 0
            tenant["lent"][b] += taken - net
            tenant["owed"][b] -= net


def plain_grant(state, rules, asked, now_s):
    plain = Plain(state, asked)
    plain.serve_all(rules["patience_s"][0] or math.inf, now_s)
    offers = [plain.offers(b) for b in range(BUCKETS)]
    plain.pool = [sum(offered) for offered in offers]
    plain.blocked.clear()
    plain.serve_all(rules["patience_s"][0] or math.inf, now_s)
    for b in range(BUCKETS):
        plain.lend(b, offers[b])
    return [bool(w) and i in plain.served for w, i in zip(asked.wanted, asked.leaders, strict=True)]


@st.composite
def worlds(draw):
    """Tenants, a policy, and some windows: (seconds since the last, what is asked)."""
    count = draw(st.integers(1, 4))
    state = tenants(count)
    small = st.integers(0, 400)
    for t in state:
        t["lend"] = draw(st.sampled_from([0.0, 0.5, 1.0]))
        for b in range(BUCKETS):
            unit = IO // 100 if b % 2 else 1
            t["rate"][b] = draw(st.floats(0, 300)) * unit
            t["cap"][b] = (draw(small) + 200) * unit
            t["held"][b] = draw(st.integers(0, int(t["cap"][b])))
            t["borrow"][b] = draw(small) * unit
    rules = policy(patience_s=draw(st.sampled_from([0.5, 0.0])))
    rules["credits_per_s"][0][::2] = draw(st.sampled_from([0.0, 200.0]))
    windows = [draw(_windows(count)) for _ in range(draw(st.integers(1, 4)))]
    return state, rules, windows


@st.composite
def _windows(draw, count):
    n = draw(st.integers(0, 10))
    rows = [draw(st.integers(0, count - 1)) for _ in range(n)]
    leaders = list(range(n))
    for i in range(1, n):
        if draw(st.booleans()):
            leaders[i] = leaders[draw(st.integers(0, i - 1))]
    nbytes = [draw(st.integers(1, 200)) for _ in range(n)]
    asked = ask(
        rows,
        nbytes=[nbytes[leader] for leader in leaders],
        order=draw(st.permutations(range(n))),
        leaders=leaders,
        arrivals=[draw(st.floats(-1, 0)) for _ in range(n)],
        kind=[draw(st.sampled_from(sorted(PURPOSE))) for _ in range(n)],
    )
    asked.wanted[:] = [draw(st.integers(0, 4)) > 0 for _ in range(n)]
    return draw(st.floats(0, 2)), asked


def window(state, rules, asked, now_s):
    """One window of the compiled code; its scratch and answer."""
    scratch, answer = memory(asked, state)
    buckets.check(state, rules, now_s)
    charges.check(state, asked)
    buckets.refill(state, rules, now_s)
    charges.grant(state, rules, asked, now_s, scratch, answer)
    return scratch, answer


def in_and_out(state):
    """Of every bucket, over all tenants: what came in, less what became of it."""
    return (state["earned"] - state["spent"] - state["held"] - state["wasted"]).sum(axis=0)


@given(worlds())
@settings(max_examples=100, deadline=None)
def test_a_window_does_to_the_buckets_what_a_plain_program_does(world):
    state, rules, windows = world
    plain, now_s = state.copy(), 0.0
    for passed_s, asked in windows:
        now_s += passed_s
        answer = window(state, rules, asked, now_s)[1]
        plain_refill(plain, rules, now_s)
        assert answer.granted.tolist() == plain_grant(plain, rules, asked, now_s)
        for name in ("held", "owed", "lent", "earned", "spent", "wasted"):
            assert state[name].tolist() == plain[name].tolist()


@given(worlds())
@settings(max_examples=100, deadline=None)
def test_no_credit_is_made_or_lost_and_no_tenant_falls_below_its_bound(world):
    state, rules, windows = world
    begun, now_s = in_and_out(state), 0.0
    for passed_s, asked in windows:
        now_s += passed_s
        window(state, rules, asked, now_s)
        assert (in_and_out(state) == begun).all()
        assert (state["lent"].sum(axis=0) == state["owed"].sum(axis=0)).all()
        assert (state["held"] >= 0).all()
        assert (state["held"] <= state["cap"]).all()
        assert (state["held"] - state["owed"] >= -state["borrow"]).all()


@given(worlds())
@settings(max_examples=100, deadline=None)
def test_what_is_charged_for_a_group_is_its_page_and_one_io_whoever_pays(world):
    state, rules, [(passed_s, asked), *_] = world
    scratch, answer = window(state, rules, asked, passed_s)
    for leader in set(asked.leaders[asked.wanted].tolist()):
        group = (asked.leaders == leader) & asked.wanted
        assert answer.granted[group].all() or not answer.granted[group].any()
        expected = [asked.nbytes[leader], IO] if answer.granted[group].all() else [0, 0]
        assert scratch.paid[group].sum(axis=0).tolist() == expected
    assert not answer.granted[~asked.wanted].any()


def test_a_shared_page_is_charged_in_proportion_to_its_askers():
    state = tenants(2, held=1000)
    scratch, _ = window(state, policy(), ask([0, 1, 0], leaders=[0, 0, 0]), 0.0)
    assert scratch.paid[:, 0].tolist() == [34, 33, 33]
    assert state["spent"][:, 0].tolist() == [67, 33]


def test_who_cannot_pay_rides_along_at_no_more_than_the_page_costs_the_other_alone():
    state = tenants(2, held=1000)
    state["held"][1, 0] = 0
    _, answer = window(state, policy(), ask([1, 0], leaders=[0, 0]), 0.0)
    assert answer.granted.all()
    assert state["spent"][:, 0].tolist() == [PAGE, 0]


@pytest.mark.parametrize(("count", "payers"), [(charges.TURNS - 1, 2), (charges.TURNS + 1, 1)])
def test_after_some_turns_of_finding_who_pays_the_first_who_asks_pays_alone(count, payers):
    state = tenants(count + 2, nbytes_rate=0, cap=10**9)
    nbytes = 10**6
    for turn in range(count):  # short of the part of those still left in that turn, by one
        state["held"][2 + turn, 0] = nbytes // (count + 2 - turn) - 1
    state["held"][:2, 0] = 10**9
    asked = ask(range(count + 2), nbytes=nbytes, leaders=[0] * (count + 2))
    scratch, answer = window(state, policy(), asked, 0.0)
    assert answer.granted.all()
    assert (scratch.paid[:, 0] > 0).tolist() == [place < payers for place in range(count + 2)]


def test_no_demand_overtakes_an_earlier_one_of_its_tenant():
    state = tenants(1, held=150)
    asked = ask([0, 0, 0], nbytes=[200, 50, 50], order=[2, 0, 1])
    assert window(state, policy(), asked, 0.0)[1].granted.tolist() == [False, False, True]


@pytest.mark.parametrize(("waited_s", "granted"), [(4.0, [False, True]), (6.0, [True, False])])
def test_a_demand_that_waited_too_long_goes_before_more_urgent_ones(waited_s, granted):
    state = tenants(1, nbytes_rate=0, held=PAGE)
    asked = ask([0, 0], order=[1, 0], arrivals=[-waited_s, 0.0])
    answer = window(state, policy(patience_s=5.0), asked, 0.0)[1]
    assert answer.granted.tolist() == granted


def test_what_is_saved_for_an_old_demand_is_not_spent_though_others_could_borrow():
    state = tenants(2, nbytes_rate=0, cap=1000, lend=1.0, borrow=50, held=50)
    asked = ask([0, 0], nbytes=[200, 60], order=[1, 0], arrivals=[-9.0, 0.0])
    assert not window(state, policy(patience_s=5.0), asked, 0.0)[1].granted.any()
    assert window(state, policy(), asked, 0.0)[1].granted.tolist() == [False, True]


def test_an_oldest_demand_waits_at_most_for_patience_and_its_price_however_urgent_the_others():
    state, rules, tick_s = tenants(2, nbytes_rate=200), policy(patience_s=3.0), 0.25
    waits = []
    for at in range(200):  # one page without hurry, 20 urgent ones, a flood beside them
        now_s = at * tick_s
        asked = ask(
            [0] * 21 + [1] * 21,
            order=np.roll(np.arange(42), -1),
            arrivals=[0.0] + [now_s] * 41,
        )
        waits.append(window(state, rules, asked, now_s)[1].granted[0])
    assert waits.index(True) * tick_s <= 3.0 + PAGE / 200 + 2 * tick_s
    assert not waits[0]


def endless(state, rules, rows, windows=400, tick_s=0.013):
    """Bytes spent by each tenant up to each window, all asking without end."""
    spent, pages = [], 20
    for at in range(windows):
        asked = ask(np.repeat(rows, pages))
        window(state, rules, asked, at * tick_s)
        spent.append(state["spent"][:, 0].copy())
    return np.array(spent)


@pytest.mark.parametrize("link", [0.0, 3000.0])
def test_two_equal_tenants_that_ask_without_end_get_the_same_within_a_page_in_any_window(link):
    state = tenants(2, nbytes_rate=4000.0)
    state["held"][:, 0] = [30, 99]
    spent = endless(state, policy(credits_per_s=[link, 0] * 3), [0, 1])
    ahead = spent[:, 0] - spent[:, 1]
    assert ahead.max() - ahead.min() <= PAGE
    assert spent[-1].min() > 10 * PAGE


@given(st.integers(1, 5), st.lists(st.floats(0, 0.1), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_all_together_never_spend_more_than_the_link_gives_and_they_held(count, ticks):
    state = tenants(count, nbytes_rate=9000.0, cap=500, lend=1.0, borrow=500, held=500)
    rules, now_s = policy(credits_per_s=[10_000.0, 0] * 3), 0.0
    for tick_s in ticks:
        now_s += tick_s
        window(state, rules, ask(np.repeat(range(count), 8)), now_s)
        assert state["spent"][:, 0].sum() <= 10_000 * now_s + 500 * count + count


def arrivals_within(rate, burst, seed, windows, tick_s):
    """Pages of a tenant that keeps to its rate, with bursts, per window."""
    rng, tokens, pages = np.random.default_rng(seed), float(burst), []
    for _ in range(windows):
        tokens = min(burst, tokens + rate * tick_s)
        pages.append(int(rng.integers(0, int(tokens // PAGE) + 1)) if rng.random() < 0.2 else 0)
        tokens -= pages[-1] * PAGE
    return pages


@pytest.mark.parametrize("seed", range(20))
def test_a_flood_changes_nothing_for_a_tenant_that_keeps_to_its_rate(seed):
    state = tenants(2, nbytes_rate=1000.0, cap=1000, lend=0.4, borrow=900, held=600)
    pages, lent = arrivals_within(999.0, 600, seed, 100, 0.05), 0
    for at, count in enumerate(pages):
        asked = ask([1] * 40 + [0] * count)
        _, answer = window(state, policy(), asked, at * 0.05)
        assert answer.granted[40:].all()
        lent += state["lent"][0, 0]
    assert lent > 0  # and it has lent all the while


def test_unused_credits_are_lent_up_to_a_share_and_the_loan_is_bounded():
    state = tenants(2, nbytes_rate=0, cap=1000, lend=0.3, borrow=250, held=1000)
    state["held"][1, 0] = 0
    window(state, policy(), ask([1] * 9), 0.0)
    assert state["owed"][:, 0].tolist() == [0, 200]  # two pages; a third would be more than 250
    assert state["held"][:, 0].tolist() == [800, 0]
    window(state, policy(), ask([1] * 9, nbytes=10), 0.0)
    assert state["owed"][1, 0] == 250


def test_a_loan_is_paid_back_before_the_borrower_holds_anything():
    state = tenants(2, nbytes_rate=[[0], [100]], cap=1000, lend=1.0, borrow=500, held=500)
    state["held"][1, 0] = 0
    window(state, policy(), ask([1, 1]), 0.0)
    buckets.refill(state, policy(), 1.5)
    assert (state["owed"][1, 0], state["held"][:, 0].tolist()) == (50, [450, 0])
    buckets.refill(state, policy(), 2.5)
    assert (state["owed"][1, 0], state["held"][:, 0].tolist()) == (0, [500, 50])


def test_a_debt_lapses_as_far_as_the_lender_has_become_full_without_it():
    state = tenants(2, nbytes_rate=[[100], [0]], cap=300, lend=1.0, borrow=300, held=300)
    state["held"][1, 0] = 0
    window(state, policy(), ask([1, 1]), 0.0)
    assert state["owed"][1, 0] == 200
    buckets.refill(state, policy(), 1.5)
    assert (state["owed"][1, 0], state["lent"][0, 0], state["held"][0, 0]) == (50, 50, 250)


def test_deferred_demands_go_when_they_were_told_and_not_a_moment_before():
    asked = ask([0] * 3)
    state = tenants(1, nbytes_rate=100.0, held=50)
    told_s = window(state, policy(), asked, 0.0)[1].ready_s
    assert told_s == pytest.approx([0.51, 1.51, 2.51])
    for pages, at_s in enumerate(told_s):
        early, late = state.copy(), state.copy()
        assert window(early, policy(), asked, at_s - 0.02)[1].granted.sum() == pages
        assert window(late, policy(), asked, at_s)[1].granted.sum() == pages + 1


@pytest.mark.parametrize(("rate", "boundary"), [(50.0, 0), (200.0, 1)])
def test_a_tenant_without_credits_recomputes_where_that_is_sooner_than_waiting(rate, boundary):
    state = tenants(1, nbytes_rate=rate)
    ready_s = window(state, policy(), ask([0]), 0.0)[1].ready_s[0]
    load = np.zeros(1, CUT)
    load["tokens"], load["bytes_per_token"], load["rate"] = 1, PAGE, 1e6
    load["token_s"], load["queue_s"] = 1.0, ready_s
    assert best_cut(load, np.array([0, 1]), np.zeros(2, np.int64)).boundary == boundary


def test_a_tenant_that_earns_nothing_is_told_never():
    state = tenants(1, nbytes_rate=0)
    answer = window(state, policy(), ask([0]), 0.0)[1]
    assert (answer.granted[0], answer.ready_s[0]) == (False, np.inf)


def test_reads_prefetches_and_writes_draw_on_credits_of_their_own():
    state = tenants(1, held=PAGE)
    asked = ask([0] * 4, kind=[OpKind.LOAD, OpKind.WRITE, OpKind.PREFETCH, OpKind.PREWARM])
    assert window(state, policy(), asked, 0.0)[1].granted.tolist() == [True] * 3 + [False]
    assert state["held"][0, ::2].tolist() == [0, 0, 0]


def test_ios_run_out_as_bytes_do_and_what_merging_saves_comes_back():
    state, asked = tenants(2, held=1000), ask([0, 1, 0, 0], leaders=[0, 0, 2, 3])
    state["rate"][:, 1], state["held"][:, 1] = 0, 2 * IO
    scratch, answer = window(state, policy(), asked, 0.0)
    assert answer.granted.tolist() == [True, True, True, False]
    assert state["held"][:, 1].tolist() == [IO // 2, 3 * IO // 2]
    for place, leader in enumerate([0, 2]):  # both pages were moved by one op
        kept = charges.part(IO, 2, place)
        charges.give_back(state, asked, leader, 1, IO - kept, scratch)
    assert state["spent"][:, 1].tolist() == [3 * IO // 4, IO // 4]
    assert in_and_out(state)[1] == -4 * IO


def test_what_comes_back_to_a_full_bucket_is_wasted():
    state, asked = tenants(1, held=1000), ask([0])
    scratch, _ = window(state, policy(), asked, 0.0)
    state["held"][0, 0] = 1000 - PAGE // 4  # most of it was earned again meanwhile
    charges.give_back(state, asked, 0, 0, PAGE, scratch)
    assert (state["held"][0, 0], state["wasted"][0, 0]) == (1000, PAGE - PAGE // 4)


def test_a_page_that_was_not_moved_after_all_costs_nothing():
    state, asked = tenants(2, held=1000), ask([0, 1, 1], leaders=[0, 0, 0])
    before = state.copy()
    scratch, _ = window(state, policy(), asked, 0.0)
    for unit, whole in enumerate([PAGE, IO]):
        charges.give_back(state, asked, 0, unit, whole, scratch)
    assert (state == before).all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("refilled_s", 2.0, r"tenants.refilled_s: row 1: 2.0: time ran backwards.* <= 1.0"),
        ("refilled_s", -np.inf, r"tenants.refilled_s: row 1: -inf"),
        ("refilled_s", np.nan, r"tenants.refilled_s: row 1: nan"),
        ("rate", np.nan, r"tenants.rate: row 1"),
        ("rate", -1.0, r"tenants.rate: row 1"),
        ("cap", -1, r"tenants.cap: row 1"),
        ("borrow", -1, r"tenants.borrow: row 1"),
        ("held", -1, r"tenants.held: row 1"),
        ("owed", 1, r"tenants.owed: row 1"),
        ("fraction", np.nan, r"tenants.fraction: row 1"),
        ("lent", 1, r"tenants.lent: row 1: \[1 1 1 1 1 1\]: up to this row"),
        ("lent", -1, r"tenants.lent: row 1: .*: must be >= 0"),
        ("share", 0.6, r"tenants.share: row 1: 0.6: must be >= 0, and all shares together <= 1"),
        ("share", np.nan, r"tenants.share: row 1"),
        ("lend", np.nan, r"tenants.lend: row 1: nan: must be from 0 to 1"),
    ],
)
def test_a_tenant_that_cannot_be_is_an_error_that_names_field_and_row(field, value, message):
    state = tenants(2)
    state[field][1] = value
    with pytest.raises(ValueError, match=message):
        buckets.check(state, policy(), 1.0)


def test_errors_of_the_policy_and_of_the_demands_name_field_and_row():
    state = tenants(2)
    with pytest.raises(ValueError, match=r"policy.credits_per_s: bucket 3"):
        buckets.check(state, policy(credits_per_s=[0, 0, 0, np.nan, 0, 0]), 1.0)
    with pytest.raises(ValueError, match="now_s: nan"):
        buckets.check(state, policy(), np.nan)
    with pytest.raises(ValueError, match=r"demands.tenant: row 1: 2: expected one of 2"):
        charges.check(state, ask([0, 2]))
    with pytest.raises(ValueError, match=r"tenants.cap: row 1: 1001 bytes of demand 1 exceed it"):
        charges.check(state, ask([0, 1], nbytes=[9, 1001]))


def test_every_bucket_belongs_to_one_purpose_and_unit():
    assert sorted(2 * purpose(kind) + unit for kind in (0, 1, 2) for unit in (0, 1)) == [
        *range(BUCKETS)
    ]
