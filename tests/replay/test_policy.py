# SPDX-License-Identifier: Apache-2.0
import collections
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache import jit
from bodocache.pages import PAGE, Tier
from bodocache.plan import evict, victims
from bodocache.plan.records import POLICY, Feature
from bodocache.replay.policies import lhd, s3fifo, tinylfu
from bodocache.replay.policies.model import checked
from bodocache.replay.policy import CURVES, HALF_LIFE_S, Policy, Recompute, Touches, simulate
from bodocache.replay.trace import load_trace

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

CONVERSATION = Path(__file__).parents[3] / "shared" / "traces" / "conversation_trace.jsonl"


@st.composite
def traces(draw):
    """Requests over a random tree: each a path from a first page down."""
    parents = [draw(st.integers(-1, row - 1)) for row in range(draw(st.integers(1, 14)))]
    chains = [[row] for row in range(len(parents))]
    for row, parent in enumerate(parents):
        if parent >= 0:
            chains[row] = [*chains[parent], row]
    ends = draw(st.lists(st.integers(0, len(parents) - 1), min_size=1, max_size=30))
    gaps = draw(st.lists(st.sampled_from([0.0, 1.0, 60.0]), min_size=30, max_size=30))
    return touches_of(parents, [chains[end] for end in ends], np.cumsum(gaps[: len(ends)]))


def touches_of(parents, requests, timestamps_s):
    depths = [0] * len(parents)
    for row, parent in enumerate(parents):
        depths[row] = 0 if parent < 0 else depths[parent] + 1
    offsets = np.cumsum([0, *map(len, requests)])
    ids = np.array([page for request in requests for page in request], np.int64)
    columns = (np.array(column, np.int64) for column in (offsets, parents, depths))
    return Touches(ids, *columns, np.array(timestamps_s, np.float64))


def long_trace(seed):
    """Ghosts, counts and shares come into play: many requests, some ends popular for a while."""
    generator = np.random.default_rng(seed)
    before = generator.integers(np.maximum(np.arange(70) - 8, -1), np.arange(70))
    parents = np.where(generator.random(70) < 0.6, before, -1).tolist()
    chains = [[row] for row in range(len(parents))]
    for row, parent in enumerate(parents):
        if parent >= 0:
            chains[row] = [*chains[parent], row]
    centres = np.repeat(generator.integers(0, 70, 20), 20)
    ends = (centres + generator.geometric(0.15, len(centres))) % 70
    return touches_of(parents, [chains[end] for end in ends], np.arange(len(ends)))


def requests_of(touches):
    pairs = zip(touches.offsets[:-1], touches.offsets[1:], strict=True)
    return [touches.ids[begin:end].tolist() for begin, end in pairs]


class Plain:
    """The semantics as policies/model.py states them, on sets and lists, one page at a time."""

    def __init__(self, touches, capacity):
        self.touches, self.capacity = touches, capacity
        self.present, self.last, self.number = set(), {}, 0
        self.evicted = 0

    def hits(self):
        found = []
        for number, pages in enumerate(requests_of(self.touches)):
            self.number, self.own = number, set(pages)
            leading = 0
            while leading < len(pages) and pages[leading] in self.present:
                leading += 1
            found.append(leading)
            self.begin(pages)
            for page in pages[:leading]:
                self.hit(page)
            self.after_hits()
            for page in pages[leading:]:
                if not self.admits(page) or not self.make_room(page):
                    break
                self.present.add(page)
                self.insert(page)
            self.end([page for page in pages if page in self.present])
            self.seen = getattr(self, "seen", set()) | set(pages)
        return found

    def make_room(self, page):
        if len(self.present) < self.capacity:
            return True
        if not self.leaves():
            return False
        before = len(self.present)
        self.evict_for(page)
        assert len(self.present) == before - 1
        return True

    def leaves(self, among=None):
        parents = {self.touches.parents[page] for page in self.present}
        free = self.present - parents - self.own
        return free if among is None else free & set(among)

    def remove(self, page):
        assert page in self.leaves()
        self.present.remove(page)
        self.evicted += 1

    def first(self, pages, order):
        return min(pages, key=lambda page: (order[page], -self.touches.depths[page], page))

    def begin(self, pages): ...
    def hit(self, page): ...
    def after_hits(self): ...
    def admits(self, _):
        return True

    def insert(self, page): ...
    def end(self, pages): ...


class Ranked(Plain):
    remembers = False

    def __init__(self, touches, capacity):
        super().__init__(touches, capacity)
        self.cost_s = Recompute().seconds(touches.depths)
        self.rank, self.uses, self.floor = {}, {}, 0.0

    def evict_for(self, _):
        page = self.first(self.leaves(), self.rank)
        self.floor = self.rank[page]
        self.remove(page)

    def insert(self, page):
        if not self.remembers:
            self.uses[page] = 0

    def end(self, pages):
        for page in pages:
            self.uses[page] = self.uses.get(page, 0) + 1
            self.rank[page] = self.rank_of(page)


class Lru(Ranked):
    def rank_of(self, _):
        return self.number


class Fifo(Ranked):
    def rank_of(self, page):
        return self.number if self.uses[page] == 1 else self.rank[page]


class Lfu(Ranked):
    def rank_of(self, page):
        return self.uses[page], self.number


class Gdsf(Ranked):
    def rank_of(self, page):
        return self.floor + self.uses[page] * self.cost_s[page]

    def evict_for(self, page):
        before = self.floor
        super().evict_for(page)
        self.floor = max(self.floor, before)


class Perfect:
    remembers = True


class PerfectLfu(Perfect, Lfu): ...


class PerfectGdsf(Perfect, Gdsf): ...


class Lfuda(Gdsf):
    def __init__(self, touches, capacity):
        super().__init__(touches, capacity)
        self.cost_s[:] = 1.0


class PerfectLfuda(Perfect, Lfuda): ...


class SecondSight:
    seen = frozenset()

    def admits(self, page):
        return page in self.seen


class SecondSightLru(SecondSight, Lru): ...


class SecondSightGdsf(SecondSight, PerfectGdsf): ...


class Arc(Plain):
    def __init__(self, touches, capacity):
        super().__init__(touches, capacity)
        self.t1, self.t2, self.b1, self.b2, self.aim = [], [], [], [], 0.0

    def hit(self, page):
        (self.t1 if page in self.t1 else self.t2).remove(page)
        self.t2.append(page)
        self.last[page] = self.number

    def make_room(self, page):
        self.to = self.t1
        if self.capacity == 0 or (len(self.present) == self.capacity and not self.leaves()):
            return False
        full = len(self.present) == self.capacity
        if page in self.b1:
            self.aim = min(self.aim + max(1, len(self.b2) / len(self.b1)), self.capacity)
            self.b1.remove(page)
            self.to = self.t2
        elif page in self.b2:
            self.aim = max(self.aim - max(1, len(self.b1) / len(self.b2)), 0)
            self.b2.remove(page)
            self.to = self.t2
            if full:
                self.replace(was_in_b2=True)
            return True
        elif len(self.t1) + len(self.b1) == self.capacity:
            if len(self.t1) == self.capacity:
                page = self.first(self.leaves(self.t1), self.last)
                self.t1.remove(page)
                self.remove(page)
                return True
            self.b1.remove(self.first(self.b1, self.last))
        elif sum(map(len, (self.t1, self.t2, self.b1, self.b2))) == 2 * self.capacity:
            self.b2.remove(self.first(self.b2, self.last))
        if full:
            self.replace(was_in_b2=False)
        return True

    def replace(self, *, was_in_b2):
        size = len(self.t1)
        from_t1 = size >= 1 and (size > self.aim or (was_in_b2 and size == self.aim))
        choices = [(self.t1, self.b1), (self.t2, self.b2)]
        for pages, ghosts in choices if from_t1 else choices[::-1]:
            if self.leaves(pages):
                page = self.first(self.leaves(pages), self.last)
                pages.remove(page)
                ghosts.append(page)
                self.remove(page)
                return

    def insert(self, page):
        self.to.append(page)
        self.last[page] = self.number


class S3Fifo(Plain):
    """Queues are lists, the oldest first; a request's own pages enter them at its end."""

    def __init__(self, touches, capacity):
        super().__init__(touches, capacity)
        self.small, self.main, self.ghosts, self.uses = [], [], [], {}
        self.small_pages = max(1, int(s3fifo.SMALL_SHARE * capacity))

    def begin(self, _):
        self.new = []

    def hit(self, page):
        self.uses[page] = min(3, self.uses[page] + 1)

    def evict_for(self, _):
        while True:
            entering = sum(where is self.small for _, where in self.new)
            small, main = (
                [p for p in queue if p in self.leaves()] for queue in (self.small, self.main)
            )
            if (len(self.small) + entering >= self.small_pages and small) or not main:
                page = small[0]
                self.small.remove(page)
                if self.uses[page] < 2:
                    self.remove(page)
                    self.ghosts = [*self.ghosts, page][-(self.capacity - self.small_pages) :]
                    if self.capacity == self.small_pages:
                        self.ghosts = []
                    return
                self.uses[page] = 0
            else:
                page = main[0]
                self.main.remove(page)
                if self.uses[page] == 0:
                    self.remove(page)
                    return
                self.uses[page] -= 1
            self.main.append(page)

    def insert(self, page):
        is_ghost = page in self.ghosts
        if is_ghost:
            self.ghosts.remove(page)
        self.new.append((page, self.main if is_ghost else self.small))
        self.uses[page] = 0

    def end(self, _):
        for page, queue in reversed(self.new):
            queue.append(page)


class Sieve(Plain):
    """One list, the oldest first, with a hand that points between two pages."""

    def __init__(self, touches, capacity):
        super().__init__(touches, capacity)
        self.queue, self.hand, self.marked = [], 0, set()

    def begin(self, _):
        self.new = []

    def hit(self, page):
        self.marked.add(page)

    def evict_for(self, _):
        while True:
            if self.hand == len(self.queue):
                self.hand = 0
            page = self.queue[self.hand]
            if page not in self.leaves():
                self.hand += 1
            elif page in self.marked:
                self.marked.remove(page)
                self.hand += 1
            else:
                self.queue.remove(page)
                self.remove(page)
                return

    def insert(self, page):
        self.new.append(page)
        self.marked.discard(page)

    def end(self, _):
        self.queue += reversed(self.new)


class WTinyLfu(Plain):
    def __init__(self, touches, capacity):
        super().__init__(touches, capacity)
        self.window, self.probation, self.protected = set(), set(), set()
        self.count, self.touch = collections.Counter(), 0
        self.most_window = max(1, int(tinylfu.WINDOW_SHARE * capacity))
        main = max(0, capacity - self.most_window)
        self.most_protected = int(tinylfu.PROTECTED_SHARE * main)

    def begin(self, pages):
        for page in pages:
            if self.touch and self.capacity and self.touch % (10 * self.capacity) == 0:
                self.count = collections.Counter({p: n // 2 for p, n in self.count.items()})
            self.count[page] = min(15, self.count[page] + 1)
            self.touch += 1

    def hit(self, page):
        if page in self.probation:
            self.probation.remove(page)
            self.protected.add(page)
        self.last[page] = self.number

    def after_hits(self):
        while len(self.protected) > self.most_protected:
            page = self.first(self.protected, self.last)
            self.protected.remove(page)
            self.probation.add(page)
            self.last[page] = self.number

    def evict_for(self, _):
        main = self.leaves(self.probation) or self.leaves(self.protected)
        window = self.leaves(self.window)
        if not main or (
            window
            and len(self.window) >= self.most_window
            and self.count[self.first(window, self.last)] <= self.count[self.first(main, self.last)]
        ):
            self.leave(self.first(window, self.last))
            return
        if window and len(self.window) >= self.most_window:
            self.promote(self.first(window, self.last))
        self.leave(self.first(main, self.last))

    def promote(self, page):
        self.window.remove(page)
        self.probation.add(page)

    def leave(self, page):
        for segment in (self.window, self.probation, self.protected):
            segment.discard(page)
        self.remove(page)

    def insert(self, page):
        self.window.add(page)
        self.last[page] = self.number

    def end(self, _):
        while not self.evicted and len(self.window) > self.most_window:
            self.promote(self.first(self.window, self.last))


class Lhd(Plain):
    def __init__(self, touches, capacity):
        super().__init__(touches, capacity)
        self.edges = lhd.bin_edges()
        self.counted = {kind: np.zeros((8, lhd.BINS)) for kind in ("hit", "gone")}
        self.density = np.array([(c + 1) / (self.edges[:-1] + 1) for c in range(8)])
        self.uses, self.queue, self.state = {}, [], 88172645463325252
        self.begun = self.revised = 0

    def state_of(self, page, now):
        return self.uses[page], int(np.searchsorted(self.edges, now - self.last[page], "right")) - 1

    def begin(self, pages):
        self.now, self.ended = self.begun, self.begun + len(pages)
        kept = [page for page in pages if page in self.present]
        if kept:
            self.unqueue(kept[-1])

    def unqueue(self, page):
        if page in self.queue:
            self.queue[self.queue.index(page)] = self.queue[-1]
            self.queue.pop()

    def hit(self, page):
        self.counted["hit"][self.state_of(page, self.now)] += 1
        self.uses[page] = min(7, self.uses[page] + 1)
        self.last[page] = self.now
        self.now += 1

    def random(self, below):
        for shift in (13, -7, 17):
            moved = self.state << shift if shift > 0 else self.state >> -shift
            self.state = (self.state ^ moved) % 2**64
        return (self.state >> 32) * below >> 32

    def evict_for(self, _):
        count = len(self.queue)
        drawn = self.queue
        if count > lhd.DRAWN:
            drawn = [self.queue[self.random(count)] for _ in range(lhd.DRAWN)]
        page = min(drawn, key=lambda page: self.density[self.state_of(page, self.begun)])
        self.counted["gone"][self.state_of(page, self.begun)] += 1
        self.unqueue(page)
        self.remove(page)
        parent = self.touches.parents[page]
        if parent in self.leaves():
            self.queue.append(parent)

    def insert(self, page):
        self.uses[page], self.last[page] = 0, self.now
        self.now += 1

    def end(self, pages):
        self.own = set()
        if pages and pages[-1] in self.leaves():
            self.queue.append(pages[-1])
        assert set(self.queue) == self.leaves()
        self.begun = self.ended
        if self.ended - self.revised >= max(self.capacity, lhd.LEAST_TOUCHES):
            self.revised = self.ended
            self.revise()

    def revise(self):
        for used in range(8):
            hit, gone = self.counted["hit"][used], self.counted["gone"][used]
            for b in range(lhd.BINS):
                later = np.cumsum((hit + gone)[::-1])[::-1][b:]
                lasting = np.cumsum((later * np.diff(self.edges)[b:])[::-1])[-1]
                hits = np.cumsum(hit[b:][::-1])[-1]
                self.density[used, b] = hits / lasting if lasting > 0 else 0.0
            hit *= 0.9
            gone *= 0.9


PLAIN = {
    Policy.LRU: Lru,
    Policy.FIFO: Fifo,
    Policy.LFU: Lfu,
    Policy.PERFECT_LFU: PerfectLfu,
    Policy.LFUDA: Lfuda,
    Policy.PERFECT_LFUDA: PerfectLfuda,
    Policy.GDSF: Gdsf,
    Policy.PERFECT_GDSF: PerfectGdsf,
    Policy.ARC: Arc,
    Policy.S3_FIFO: S3Fifo,
    Policy.SIEVE: Sieve,
    Policy.W_TINYLFU: WTinyLfu,
    Policy.LHD: Lhd,
    Policy.SECOND_SIGHT_LRU: SecondSightLru,
    Policy.SECOND_SIGHT_GDSF: SecondSightGdsf,
}


def test_every_policy_has_a_plain_program_to_be_compared_with():
    # heat below, learned in test_learned.py, MIN in tests/plan
    assert set(Policy) - set(PLAIN) == {Policy.HEAT, Policy.LEARNED, Policy.MIN}


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("policy", PLAIN)
@given(touches=traces(), capacity=st.integers(0, 10))
@settings(max_examples=100, deadline=None)
def test_policies_do_what_a_plain_program_does(policy, small, touches, capacity):
    with pytest.MonkeyPatch.context() as patch:
        if small:  # what needs large tiers and long traces elsewhere
            patch.setattr(s3fifo, "SMALL_SHARE", 0.4)
            patch.setattr(tinylfu, "WINDOW_SHARE", 0.4)
            patch.setattr(tinylfu, "PROTECTED_SHARE", 0.3)
            patch.setattr(lhd, "DRAWN", 2)
            patch.setattr(lhd, "LEAST_TOUCHES", 5)
        done = simulate(policy, touches, capacity)
        plain = PLAIN[policy](touches, capacity)
        assert done.hits.tolist() == plain.hits()
        assert done.evicted == plain.evicted
        assert done.inserted - done.evicted == len(plain.present)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("policy", PLAIN)
def test_policies_do_what_a_plain_program_does_for_long(policy, seed, monkeypatch):
    monkeypatch.setattr(tinylfu, "PROTECTED_SHARE", 0.3)
    monkeypatch.setattr(lhd, "LEAST_TOUCHES", 40)
    monkeypatch.setattr(lhd, "DRAWN", 4)
    touches, capacity = long_trace(seed), 6 + 5 * seed
    done = simulate(policy, touches, capacity)
    plain = PLAIN[policy](touches, capacity)
    assert done.hits.tolist() == plain.hits()
    assert (done.evicted, done.inserted - done.evicted) == (plain.evicted, len(plain.present))


@pytest.mark.parametrize("policy", CURVES)
@given(touches=traces())
@settings(max_examples=100, deadline=None)
def test_a_curve_in_one_pass_is_what_each_capacity_gives(policy, touches):
    pages = len(touches.parents)
    each = [simulate(policy, touches, capacity).hits.sum() for capacity in range(pages + 1)]
    assert CURVES[policy](checked(touches)).tolist() == each


def heat_hits(touches, capacity, half_life_s):
    """Value density over subtrees, the victims of a request chosen together."""
    cost_s, depths = Recompute().seconds(touches.depths).astype(np.float32), touches.depths
    present, heat, stamp, found = set(), {}, {}, []
    for now_s, pages in zip(touches.timestamps_s, requests_of(touches), strict=True):
        leading = sum(page in present for page in pages)  # present pages lead
        found.append(leading)
        for page in pages[:leading]:
            old = np.float64(heat[page]) * np.exp2(-(now_s - stamp[page]) / half_life_s)
            heat[page], stamp[page] = np.float32(old + 1.0), now_s
        keys = {
            page: np.log2(np.float64(heat[page])) + stamp[page] / half_life_s
            + np.log2(np.float64(cost_s[page]))
            for page in present
        }  # fmt: skip
        keys.update(dict.fromkeys(pages[:leading], np.inf))
        for page in sorted(present, key=lambda page: -depths[page]):
            if touches.parents[page] in keys:
                parent = touches.parents[page]
                keys[parent] = max(keys[parent], keys[page])
        free = [page for page in present if keys[page] < np.inf]
        free.sort(key=lambda page: (keys[page], -depths[page], page))
        needed = max(0, len(present) + len(pages) - leading - capacity)
        present -= set(free[:needed])
        new = pages[leading:][: max(0, capacity - len(present))]
        present |= set(new)
        heat.update(dict.fromkeys(new, np.float32(1.0)))
        stamp.update(dict.fromkeys(new, now_s))
    return found, len(present)


@given(touches=traces(), capacity=st.integers(0, 10))
@settings(max_examples=150, deadline=None)
def test_heat_evicts_by_value_density_over_subtrees(touches, capacity):
    done = simulate(Policy.HEAT, touches, capacity, half_life_s=30.0)
    hits, pages = heat_hits(touches, capacity, 30.0)
    assert done.hits.tolist() == hits
    assert done.inserted - done.evicted == pages


def planner_heat(touches, capacity, half_life_s):
    """The planner's own eviction, one tier: hits per request, pages inserted and evicted."""
    pages = np.zeros(len(touches.parents), PAGE)
    pages["parent"], pages["depth"], pages["nbytes"] = touches.parents, touches.depths, 1
    pages["recompute_s"] = Recompute().seconds(touches.depths)
    queues, weights = evict.open_queues(len(pages)), np.zeros(1, POLICY)
    weights["half_life_s"], weights["features_off"] = half_life_s, Feature.REUSE
    tier = pages, queues, weights
    out, host = np.empty(len(pages), np.int64), int(Tier.HOST)
    hits, used, inserted, evicted = [], 0, 0, 0
    bounds = zip(touches.offsets[:-1], touches.offsets[1:], strict=True)
    for now_s, (begin, end) in zip(touches.timestamps_s.tolist(), bounds, strict=True):
        rows = touches.ids[begin:end].copy()
        leading = int((pages["tiers"][rows] != 0).sum())
        hits.append(leading)
        evict.touch(*tier, rows[:leading], now_s)
        evict.pin(*tier, rows[max(leading - 1, 0) : leading])
        gone = victims.coldest(
            *tier, host, max(used + len(rows) - leading - capacity, 0), now_s, out
        )
        new = rows[leading : leading + capacity - used + gone]
        pages["heat"][new] = 0.0  # its record was freed when it was evicted
        evict.touch(*tier, new, now_s)
        evict.arrive(*tier, new[::-1].copy(), host, now_s)
        evict.unpin(*tier, rows[max(leading - 1, 0) : leading])
        used, inserted, evicted = used + len(new) - gone, inserted + len(new), evicted + gone
    return np.array(hits), inserted, evicted


@given(touches=traces(), capacity=st.integers(0, 10), half_life_s=st.sampled_from([0.3, 30.0]))
@settings(max_examples=150, deadline=None)
def test_heat_is_the_planners_own_eviction(touches, capacity, half_life_s):
    done = simulate(Policy.HEAT, touches, capacity, half_life_s=half_life_s)
    hits, inserted, evicted = planner_heat(touches, capacity, half_life_s)
    assert (done.hits.tolist(), done.inserted, done.evicted) == (hits.tolist(), inserted, evicted)


@pytest.mark.parametrize("capacity", [1_000, 10_000])
def test_heat_is_the_planners_own_eviction_on_a_long_trace(conversation, capacity):
    done = simulate(Policy.HEAT, conversation, capacity)
    hits, inserted, evicted = planner_heat(conversation, capacity, HALF_LIFE_S)
    assert (done.hits == hits).all()
    assert (done.inserted, done.evicted) == (inserted, evicted)


@given(touches=traces(), capacity=st.integers(0, 10))
@settings(max_examples=100, deadline=None)
def test_no_policy_beats_the_optimum(touches, capacity):
    most = simulate(Policy.MIN, touches, capacity).hits.sum()
    assert all(simulate(policy, touches, capacity).hits.sum() <= most for policy in Policy)


@pytest.fixture(scope="session")
def conversation():
    if not CONVERSATION.exists():
        pytest.skip(f"{CONVERSATION.name} is not beside the checkout (bodocache trace fetch)")
    trace = load_trace(CONVERSATION)
    return Touches(trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s)


@pytest.mark.parametrize(
    ("policy", "capacity", "hits"),
    [
        (Policy.LRU, 3_000, 18_850),
        (Policy.LRU, 10_000, 61_046),
        (Policy.MIN, 3_000, 84_953),
        (Policy.MIN, 10_000, 105_710),
        (Policy.LRU, 288_500, 105_710),
    ],
)
def test_the_conversation_trace_gives_the_figures_others_found(
    conversation, policy, capacity, hits
):
    assert len(conversation.ids) == 288_500
    assert simulate(policy, conversation, capacity).hits.sum() == hits


def test_a_trace_without_pages_is_served():
    touches = touches_of([-1], [[], []], [0.0, 1.0])
    for policy in Policy:
        assert simulate(policy, touches, 5).hits.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ids": np.array([0, 9])}, "ids"),
        ({"ids": np.array([1, 0])}, "request 0"),
        ({"offsets": np.array([0, 1])}, "offsets"),
        ({"depths": np.array([0, 7])}, "request 0"),
        ({"timestamps_s": np.zeros(2)}, "timestamps_s"),
        ({"timestamps_s": np.array([np.nan])}, "timestamps_s"),
    ],
)
def test_columns_that_do_not_fit_together_are_refused(change, says):
    touches = touches_of([-1, 0], [[0, 1]], [0.0])._replace(**change)
    with pytest.raises(ValueError, match=says):
        simulate(Policy.LRU, touches, 5)


def test_a_negative_capacity_is_refused():
    with pytest.raises(ValueError, match="capacity_pages"):
        simulate(Policy.LRU, touches_of([-1], [[0]], [0.0]), -1)
