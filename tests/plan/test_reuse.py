# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from bodocache.plan import reuse, unproven
from bodocache.plan.hazards import BINS, FIT_REQUESTS
from bodocache.plan.reuse import AS_USUAL, MEMORY, TENANTS, WORTHLESS, Asked

NOTHING = float("nan")


class Seen:
    """A model, and what it remembers of some pages."""

    def __init__(self, pages=6000):
        self.model, self.memories = reuse.open_model(), np.zeros(pages, MEMORY)

    def touch(self, rows, now_s=0.0, tenant=0, hint=NOTHING, before=-1, behind=0):
        column = np.array(rows, np.int64)
        column.flags.writeable = False
        reuse.observe(self.model, self.memories, column, now_s, Asked(before, behind, tenant, hint))
        return self.memories["kind"][rows].tolist()

    def level(self, tenant, hint):
        """The level that a request would get which says this."""
        return self.touch([5998, 5999], 1e6, tenant, hint)[0] // (WORTHLESS // reuse.LEVELS)


def test_the_last_page_of_a_request_has_a_class_of_its_own():
    kinds = Seen().touch(range(5))
    assert kinds[4] not in kinds[:4]
    assert len(set(kinds[:4])) == 1


def test_a_request_that_continues_another_is_told_from_one_that_branches_off():
    goes_on, branches = Seen(), Seen()
    for seen in (goes_on, branches):
        seen.touch([0, 1, 2, 3])
    assert goes_on.touch([0, 1, 2, 9, 10], 60.0) != branches.touch([0, 1, 8, 9, 10], 60.0)


@pytest.mark.parametrize(("few", "many"), [(2, 3), (4, 5), (16, 17)])
def test_requests_with_more_new_pages_are_of_another_class(few, many):
    kinds = [Seen().touch(range(pages))[0] for pages in (few, many)]
    assert kinds[0] != kinds[1]


def test_a_page_used_often_is_classed_by_its_mean_gap_alone():
    slow, fast = Seen(), Seen()
    for use in range(6):
        slow.touch([0, 1], 100.0 * use)
        fast.touch([0, 1], 5.0 * use)
    assert slow.touch([0, 1], 600.0)[0] == slow.touch([0, *range(10, 40)], 700.0)[0]
    assert slow.memories["kind"][0] != fast.memories["kind"][0]
    assert slow.memories["mean_gap"][0] == pytest.approx(np.log2(101), rel=1e-6)


def test_a_forgotten_page_is_new_again():
    seen, fresh = Seen(), Seen()
    seen.touch([0, 1, 2, 3])
    for row in range(4):
        reuse.forget(seen.model, seen.memories, row)
    assert seen.touch([0, 1, 2, 3], 50.0) == fresh.touch([0, 1, 2, 3])
    assert seen.model.hazards.reuses.sum() == 0


def test_a_page_behind_one_that_was_forgotten_is_new_too():
    seen = Seen()
    seen.touch([0, 1, 2])
    reuse.forget(seen.model, seen.memories, 0)
    seen.touch([0, 1, 2], 5.0)
    assert seen.memories["uses"][:3].tolist() == [1, 1, 1]


def test_every_touch_is_either_used_again_or_still_in_its_group():
    seen, rng = Seen(), np.random.default_rng(3)
    touched = 0
    for at in range(90):
        rows = range(int(rng.integers(1, 12)))
        seen.touch(rows, 2.0 * at)
        touched += len(rows)
    groups = seen.model.hazards.groups
    assert groups["pages"].min() >= 0
    assert groups["joined"].sum() == touched
    assert groups["pages"].sum() == (seen.memories["uses"] > 0).sum()


def converse(seen, tenant, said, went_on, at):
    """A request of three pages, and the one that continues it, if it was continued."""
    first = 4 * at
    seen.touch(range(first, first + 3), float(at), tenant, said)
    if went_on:
        seen.touch(range(first, first + 4), at + 0.5)


def test_a_hint_counts_for_as_much_as_it_was_worth_to_its_tenant():
    seen, rng = Seen(), np.random.default_rng(4)
    for at in range(1400):
        went_on = bool(rng.random() < 0.5)
        said = [float(went_on), 1.0 - went_on, float(rng.random() < 0.5)][at % 3]
        converse(seen, at % 3, said, went_on, at)
    right, inverse, useless = ((seen.level(who, 0.0), seen.level(who, 1.0)) for who in range(3))
    assert right == (0, reuse.LEVELS - 1)
    assert inverse == (reuse.LEVELS - 1, 0)
    assert useless == (AS_USUAL, AS_USUAL)


def test_what_a_tenant_says_first_is_not_believed_yet():
    seen = Seen()
    assert seen.level(5, 1.0) == seen.level(5, 0.0) == seen.level(5, NOTHING) == AS_USUAL


def test_a_model_is_of_fixed_size_and_has_a_belief_about_every_class():
    model = reuse.open_model()
    assert reuse.CLASSES <= 256
    assert model.hazards.prior.shape == (reuse.CLASSES, BINS)
    assert (model.hazards.score[:WORTHLESS] > 0).all()
    assert model.hints.shape[1] == TENANTS
    parts = [*model.hazards, model.hints, model.reused]
    assert sum(part.nbytes for part in parts) < 3.2e6


def test_pages_a_tenant_used_again_are_counted_and_fade():
    seen = Seen()
    for request in range(FIT_REQUESTS - 1):
        seen.touch(range(3), float(request), tenant=TENANTS + 2)
    assert seen.model.reused[2] == seen.model.reused.sum() == 3 * (FIT_REQUESTS - 2)
    seen.touch([7, 8], 500.0)
    assert seen.model.reused[2] == pytest.approx(unproven.FADE * 3 * (FIT_REQUESTS - 2))
    assert seen.memories["tenant"][:3].tolist() == [2, 2, 2]


def test_a_request_in_two_calls_is_learned_as_in_one():
    whole, parts = Seen(), Seen()
    for seen in (whole, parts):
        seen.touch(range(5))
    whole.touch([*range(4), 10, 11, 12], 60.0)
    parts.touch(range(4), 60.0, behind=3)
    parts.touch([10, 11, 12], 60.0, before=3)
    fields = ["stamp_s", "mean_gap", "kind", "uses", "from_end", "continues"]
    assert (whole.memories[fields] == parts.memories[fields]).all()


def test_what_was_written_off_is_worth_nothing_until_it_is_used_again():
    seen = Seen()
    seen.touch(range(3))
    reuse.write_off(seen.model, seen.memories, _rows(0, 1, 2))
    kinds = seen.memories["kind"][:3].tolist()
    assert kinds == [WORTHLESS] * 3
    assert not seen.model.hazards.score[WORTHLESS].any()
    assert WORTHLESS not in seen.touch(range(3), 5.0)


def test_pages_of_an_earlier_process_count_as_used_once():
    seen = Seen()
    reuse.adopt(seen.model, seen.memories, _rows(0, 1), 3.0)
    assert seen.memories["uses"][:2].tolist() == [1, 1]
    assert seen.memories["stamp_s"][:2].tolist() == [3.0, 3.0]
    assert (seen.model.hazards.score[seen.memories["kind"][:2], 0] > 0).all()


def test_a_clock_that_runs_backwards_counts_as_one_that_stands_still():
    back, still = Seen(), Seen()
    for at_s in (100.0, 50.0, 20.0):
        back.touch(range(3), at_s)
        still.touch(range(3), 100.0)
    assert back.memories["mean_gap"].tolist() == still.memories["mean_gap"].tolist()
    assert back.memories["kind"].tolist() == still.memories["kind"].tolist()


def _rows(*rows):
    column = np.array(rows, np.int64)
    column.flags.writeable = False
    return column
