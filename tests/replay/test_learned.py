# SPDX-License-Identifier: Apache-2.0
import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache import jit
from bodocache.plan import hazards as counted
from bodocache.plan import reuse, unproven
from bodocache.plan.hazards import BINS
from bodocache.replay.policies import learned
from bodocache.replay.policy import Policy, Touches, simulate
from bodocache.replay.trace import build_trace
from bodocache.replay.workload import WorkloadConfig, generate

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

KINDS_A_LEVEL = reuse.WORTHLESS // reuse.LEVELS


def touches_of(parents, requests, timestamps_s, tenants=()):
    depths = [0] * len(parents)
    for row, parent in enumerate(parents):
        depths[row] = 0 if parent < 0 else depths[parent] + 1
    offsets = np.cumsum([0, *map(len, requests)])
    ids = np.array([page for request in requests for page in request], np.int64)
    columns = (np.array(column, np.int64) for column in (offsets, parents, depths))
    return Touches(ids, *columns, np.array(timestamps_s, np.float64), np.array(tenants, np.int64))


def chains_of(parents):
    chains = [[row] for row in range(len(parents))]
    for row, parent in enumerate(parents):
        if parent >= 0:
            chains[row] = [*chains[parent], row]
    return chains


@st.composite
def traces(draw):
    """Requests of some tenants over a random tree, some with hints: each a path down."""
    parents = [draw(st.integers(-1, row - 1)) for row in range(draw(st.integers(1, 14)))]
    chains = chains_of(parents)
    ends = draw(st.lists(st.integers(0, len(parents) - 1), min_size=1, max_size=30))
    gaps = draw(st.lists(st.sampled_from([0.0, 1.0, 60.0]), min_size=30, max_size=30))
    said = st.sampled_from([np.nan, 0.0, 0.5, 1.0])
    hints = draw(st.lists(said, min_size=len(ends), max_size=len(ends)))
    tenants = draw(st.lists(st.integers(0, 2), min_size=len(ends), max_size=len(ends)))
    requests = [chains[end] for end in ends]
    return touches_of(parents, requests, np.cumsum(gaps[: len(ends)]), tenants), np.array(hints)


def long_trace(seed):
    """Some ends are popular for a while; tenants 0 and 1 know them, 2 guesses, 3 streams."""
    rng = np.random.default_rng(seed)
    before = rng.integers(np.maximum(np.arange(300) - 6, -1), np.arange(300))
    parents = np.where(rng.random(300) < 0.8, before, -1).tolist()
    parents += [row - 1 if row % 4 else -1 for row in range(300, 780)]
    chains = chains_of(parents)
    centres = np.repeat(rng.integers(0, 300, 60), 10)
    ends = (centres + rng.geometric(0.2, len(centres))) % 300
    times, tenants = np.cumsum(rng.exponential(9.0, len(ends))), np.arange(len(ends)) % 3
    ends[::5], tenants[::5] = range(303, 780, 4), 3
    hints = np.where(tenants < 2, (ends - centres) % 300 < 4, rng.random(len(ends)))
    hints[rng.random(len(ends)) < 0.3] = np.nan
    return touches_of(parents, [chains[end] for end in ends], times, tenants), hints


def requests_of(touches):
    pairs = itertools.pairwise(touches.offsets)
    return [touches.ids[begin:end].tolist() for begin, end in pairs]


@functools.cache
def first_scores():
    return reuse.open_model().hazards.score.copy()


class Table:
    """plan/hazards.py in NumPy: groups are lists of the pages in them, scores one sum a start."""

    def __init__(self):
        self.prior, self.family = reuse._beliefs()
        self.edges = counted.bin_edges()
        self.reuses, self.at_risk = np.zeros((2, reuse.CLASSES, BINS))
        self.groups, self.swept, self.requests = [], [0] * BINS, 0
        self.score = first_scores()

    def advance(self, now_s):
        for at in range(BINS):
            while self.swept[at] < len(self.groups):
                group = self.groups[self.swept[at]]
                if now_s - group["stamp_s"] < self.edges[at]:
                    break
                self.at_risk[group["kind"], at] += len(group["pages"]) / np.sqrt(group["joined"])
                self.swept[at] += 1
        self.requests += 1
        if self.requests % counted.FIT_REQUESTS == 0:
            self.fit()

    def bin_of(self, age_s):
        return min(int(np.searchsorted(self.edges, age_s, side="right")) - 1, BINS - 1)

    def smooth(self, table):
        padded = np.pad(table, ((0, 0), (1, 1)))
        weight = np.pad(np.ones(BINS), 1)
        near = counted.NEIGHBOUR
        total = padded[:, 1:-1] + near * padded[:, :-2] + near * padded[:, 2:]
        return total / (weight[1:-1] + near * weight[:-2] + near * weight[2:])

    def fit(self):
        reuses, at_risk = self.smooth(self.reuses), self.smooth(self.at_risk)
        kin = np.zeros((2, self.family.max() + 1, BINS))
        np.add.at(kin[0], self.family, reuses)
        np.add.at(kin[1], self.family, at_risk)
        kin = kin[:, self.family]
        drawn = counted.PRIOR_WEIGHT
        family = (kin[0] + drawn * self.prior) / (kin[1] + drawn)
        drawn = counted.CLASS_WEIGHT
        hazard = np.minimum((reuses + drawn * family) / (at_risk + drawn), 0.98)
        self.score = np.stack([self.index(hazard, start) for start in range(BINS)], axis=1)
        self.reuses *= counted.DECAY
        self.at_risk *= counted.DECAY

    def index(self, hazard, start):
        unused, reused = np.ones(len(hazard)), np.zeros(len(hazard))
        seconds, best = np.zeros(len(hazard)), np.zeros(len(hazard))
        for at in range(start, BINS):
            here = unused * hazard[:, at]
            reused, unused = reused + here, unused - here
            seconds = seconds + (unused + 0.5 * here) * (self.edges[at + 1] - self.edges[at])
            best = np.maximum(best, reused / seconds)
        return best


class Plain:
    """policies/learned.py on sets and dictionaries: every leaf of every class is looked at."""

    def __init__(self, touches, hints, capacity, ghosts):
        self.touches, self.hints, self.capacity = touches, hints, capacity
        self.most_ghosts, self.table = ghosts + capacity, Table()
        self.present, self.ghosts, self.memory = set(), [], {}
        self.said, self.went_on = np.zeros((2, reuse.TENANTS, 10))
        self.reused = np.zeros(reuse.TENANTS)
        self.inserted = self.evicted = 0

    def hits(self):
        tenants = self.touches.tenants
        if not len(tenants):
            tenants = np.zeros(len(self.hints), np.int64)
        self.now_s, found = 0.0, []
        for number, rows in enumerate(requests_of(self.touches)):
            self.now_s = self.touches.timestamps_s[number]
            leading = sum(row in self.present for row in rows)
            found.append(leading)
            self.ghosts = [None if ghost in rows else ghost for ghost in self.ghosts]
            self.observe(rows, tenants[number], self.hints[number])
            self.insert(rows, leading, tenants[number])
        return found

    def observe(self, rows, tenant, hint):
        self.table.advance(self.now_s)
        known = next((at for at, row in enumerate(rows) if row not in self.memory), len(rows))
        continues = known > 0 and self.memory[rows[known - 1]]["from_end"] <= 1
        if self.table.requests % counted.FIT_REQUESTS == 0:
            self.reused *= unproven.FADE
        self.reused[tenant] += known
        for row in rows[:known]:
            self.use(row)
        for row in rows[known:]:
            self.forget(row)
        shape = int(np.searchsorted(reuse.NEW_PAGES, len(rows) - known)) + 4 * continues
        level = self.level(tenant, hint)
        groups = {}
        for at, row in enumerate(rows):
            memory = self.memory.setdefault(row, {"uses": 0, "gap": np.float32(0), "of": tenant})
            memory |= {"uses": memory["uses"] + 1, "from_end": len(rows) - 1 - at, "said": None}
            kind = level * KINDS_A_LEVEL + self.base(memory, shape)
            if kind not in groups:
                groups[kind] = {"kind": kind, "stamp_s": self.now_s, "pages": set(), "joined": 0}
                groups[kind]["number"] = len(self.table.groups)
                self.table.groups.append(groups[kind])
            groups[kind]["pages"].add(row)
            groups[kind]["joined"] += 1
            memory["group"] = groups[kind]
        if not np.isnan(hint) and len(rows) > 1:
            self.said[tenant, min(int(10 * hint), 9)] += 1
            self.memory[rows[-2]]["said"] = tenant, min(int(10 * hint), 9)

    def use(self, row):
        memory = self.memory[row]
        group = memory["group"]
        group["pages"].remove(row)
        age_s = self.now_s - group["stamp_s"]
        weight = 1 / np.sqrt(group["joined"])
        self.table.reuses[group["kind"], self.table.bin_of(age_s)] += weight
        if memory["said"]:
            self.went_on[memory["said"]] += 1
        weight = 1.0 if memory["uses"] == 1 else reuse.GAP_WEIGHT
        gap = np.log2(1 + age_s)
        memory["gap"] = np.float32(memory["gap"] + weight * (gap - memory["gap"]))

    def forget(self, row):
        memory = self.memory.pop(row, None)
        if memory:
            memory["group"]["pages"].remove(row)

    def base(self, memory, shape):
        if memory["from_end"] == 0:
            return 0
        if memory["uses"] > reuse.POPULAR_USES:
            return 1 + min(int(memory["gap"]), reuse.OCTAVES - 1)
        used = 0 if memory["uses"] == 1 else 1 + min(int(memory["gap"]) // 3, 3)
        return 1 + reuse.OCTAVES + 5 * shape + used

    def level(self, tenant, hint):
        if np.isnan(hint):
            return reuse.AS_USUAL
        tenth = min(int(10 * hint), 9)
        mean = (self.went_on[tenant].sum() + 1) / (self.said[tenant].sum() + 2)
        went_on = self.went_on[tenant, tenth] + reuse.HINT_PAGES * mean
        ratio = went_on / (self.said[tenant, tenth] + reuse.HINT_PAGES) / mean
        return int(np.searchsorted(reuse.LEVEL_RATIOS, ratio))

    def score(self, row):
        group = self.memory[row]["group"]
        return self.table.score[group["kind"], self.table.bin_of(self.now_s - group["stamp_s"])]

    def victim(self, rows):
        parents = {self.touches.parents[page] for page in self.present}
        leaves, first = self.present - parents - set(rows), {}
        for page in sorted(leaves, key=self.order, reverse=True):
            first[self.memory[page]["group"]["kind"]] = page
        return min(first.items(), key=lambda item: (self.score(item[1]), item[0]))[1]

    def order(self, page):
        return self.memory[page]["group"]["number"], -self.touches.depths[page], page

    def may_add(self, row, tenant):
        """Whether the tenant's pages that were used once are few, or this one was used before."""
        share = (self.reused[tenant] + 1) / (self.reused.sum() + 1)
        most = self.capacity * max(unproven.LEAST_SHARE, unproven.FAVOUR * share)
        held = [self.memory[page] for page in self.present]
        mine = sum(memory["uses"] == 1 and memory["of"] == tenant for memory in held)
        return self.memory[row]["uses"] > 1 or mine < most

    def insert(self, rows, at, tenant):
        while at < len(rows):
            if len(self.present) == self.capacity:
                if self.present <= set(rows):
                    break
                page, wanted = self.victim(rows), max(map(self.score, rows[at:]))
                if wanted < self.score(page) or not self.may_add(rows[at], tenant):
                    break
                self.present.remove(page)
                self.evicted += 1
                self.haunt(page)
            self.present.add(rows[at])
            self.inserted += 1
            at += 1
        for row in reversed(rows[at:]):
            self.haunt(row)

    def haunt(self, page):
        self.ghosts.append(page)
        if len(self.ghosts) > self.most_ghosts:
            oldest = self.ghosts.pop(0)
            if oldest is not None:
                self.forget(oldest)


def compare(touches, hints, capacity, ghosts):
    done = simulate(Policy.LEARNED, touches, capacity, hints=hints)
    plain = Plain(touches, hints, capacity, ghosts)
    assert done.hits.tolist() == plain.hits()
    assert (done.inserted, done.evicted) == (plain.inserted, plain.evicted)
    assert len(plain.memory) <= ghosts + 2 * capacity
    return done


@given(drawn=traces(), capacity=st.integers(0, 10), ghosts=st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_it_does_what_a_plain_program_does(drawn, capacity, ghosts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "GHOSTS", ghosts)
        compare(*drawn, min(capacity, len(drawn[0].parents)), ghosts)


@pytest.mark.parametrize("seed", range(4))
def test_it_does_what_a_plain_program_does_for_long(seed, monkeypatch):
    monkeypatch.setattr(learned, "GHOSTS", 60)
    done = compare(*long_trace(seed), 15 + 15 * seed, 60)
    assert done.evicted > 100


def test_a_model_opens_with_the_scores_of_its_beliefs():
    table = Table()
    table.fit()
    assert (table.score == first_scores()).all()


@pytest.fixture(scope="module")
def chats():
    """Chats of several tenants, as the generator makes them."""
    trace = build_trace("chats", generate(WorkloadConfig(seed=23, requests=4000)))
    columns = (trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s)
    return Touches(*columns, trace.tenants)


def continued(touches):
    """1.0 for a request whose last-but-one page is touched again."""
    found, later = [], set()
    for rows in reversed(requests_of(touches)):
        found.append(float(len(rows) > 1 and rows[-2] in later))
        later.update(rows)
    return np.array(found[::-1])


def hits(touches, capacity, hints=None):
    return simulate(Policy.LEARNED, touches, capacity, hints=hints).hits


def test_equal_traces_give_equal_hits_and_silence_is_no_hint(chats):
    once = hits(chats, 700)
    assert (once == hits(chats, 700)).all()
    assert (once == hits(chats, 700, np.full(len(once), np.nan))).all()


def test_what_comes_later_changes_nothing_before(chats):
    half = len(chats.timestamps_s) // 2
    offsets = chats.offsets[: half + 1]
    first = chats._replace(
        ids=chats.ids[: offsets[-1]],
        offsets=offsets,
        timestamps_s=chats.timestamps_s[:half],
        tenants=chats.tenants[:half],
    )
    assert (hits(first, 700) == hits(chats, 700)[:half]).all()


@pytest.mark.parametrize("capacity", [300, 1000, 3000])
def test_it_hits_more_than_lru_and_gdsf_on_chats(chats, capacity):
    others = [simulate(policy, chats, capacity).hits.sum() for policy in (Policy.LRU, Policy.GDSF)]
    assert hits(chats, capacity).sum() > 1.02 * max(others)


def test_a_true_hint_is_worth_much_and_a_random_one_costs_little(chats):
    plain, truth = hits(chats, 700).sum(), continued(chats)
    random = np.random.default_rng(5).random(len(truth))
    assert hits(chats, 700, truth).sum() > 1.15 * plain
    assert hits(chats, 700, 1 - truth).sum() > 1.15 * plain  # it learns what is meant
    assert hits(chats, 700, random).sum() > 0.98 * plain


@pytest.mark.parametrize("capacity", [700, 2800])
def test_a_scan_costs_the_others_little(chats, capacity):
    """From half-time on a tenant streams 40 pages a request that are never used again."""
    half, scanner = len(chats.timestamps_s) // 2, 9
    requests, parents = [], chats.parents.tolist()
    chosen = np.arange(len(chats.timestamps_s))
    scans = chosen[half : half + 2 * 10 * capacity // 40 : 2]  # 10 times the capacity in all
    at = np.sort(np.concatenate((chosen, scans)), kind="stable")
    is_scan = np.concatenate(([False], np.diff(at) == 0))
    pages = requests_of(chats)
    for request, scanning in zip(at, is_scan, strict=True):
        if scanning:
            first = len(parents)
            parents += [-1, *range(first, first + 39)]
            requests.append(list(range(first, first + 40)))
        else:
            requests.append(pages[request])
    tenants = np.where(is_scan, scanner, chats.tenants[at])
    mixed = touches_of(parents, requests, chats.timestamps_s[at], tenants)
    kept = hits(mixed, capacity)[~is_scan].sum()
    assert kept > 0.97 * hits(chats, capacity).sum()


@pytest.mark.parametrize("hints", [[0.5], [0.5, 1.1], [-0.1, np.nan]])
def test_hints_that_are_no_chances_are_refused(hints):
    touches = touches_of([-1, 0], [[0], [0, 1]], [0.0, 1.0])
    with pytest.raises(ValueError, match="hints"):
        simulate(Policy.LEARNED, touches, 5, hints=np.array(hints))


@pytest.mark.parametrize("tenants", [[0], [0, -1]])
def test_tenants_that_do_not_fit_are_refused(tenants):
    touches = touches_of([-1, 0], [[0], [0, 1]], [0.0, 1.0], tenants)
    with pytest.raises(ValueError, match="tenants"):
        simulate(Policy.LEARNED, touches, 5)
