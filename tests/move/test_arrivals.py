# SPDX-License-Identifier: Apache-2.0
"""What has come of a load's pages, and why the rest did not."""

import numpy as np

from bodocache.move.arrivals import Arrivals
from bodocache.pages import Reason, Tier

LAYERS = 3


def arrivals(pages, whole=()):
    it = Arrivals(pages, LAYERS)
    it.come(np.array(whole, np.int64), Tier.DISK)
    return it


def test_only_pages_before_the_first_that_lacks_count():
    it = arrivals(5, whole=[0, 1, 3])
    assert [it.leading(end) for end in (0, 1, 2, 5)] == [0, 1, 2, 2]
    it.come(np.array([2]), Tier.HOST)
    assert it.leading(5) == 4
    assert it.hits(4)[Tier.DISK] == 3
    assert it.from_below(4).tolist() == [0, 1, 2, 3]


def test_a_page_is_there_with_its_last_layer():
    it = arrivals(2, whole=[0])
    it.come_by_layer(np.array([1]), LAYERS - 1)
    assert (it.leading(2), it.layers_whole(2), it.layers_given(2)) == (1, LAYERS - 1, LAYERS - 1)
    it.come(np.array([1]), Tier.HOST)
    assert (it.leading(2), it.layers_whole(2), it.layers_given(2)) == (2, LAYERS, LAYERS)


def test_layers_that_were_given_are_not_there_yet():
    it = arrivals(1)
    it.give(np.array([0]), 2)
    it.give(np.array([0]), 1)  # an older stream tells later
    assert (it.layers_given(1), it.layers_whole(1)) == (2, 0)


def test_each_page_that_did_not_come_has_its_reason():
    it = arrivals(6, whole=[0, 2])
    it.fail(np.array([1, 5]), np.array([Reason.CORRUPT, Reason.IO_ERROR], np.uint8))
    it.cut(4, Reason.CUT)  # what failed before keeps its reason
    it.cancel(4)
    assert it.settle(4) == 1
    assert [Reason(reason) for reason in it.reasons[1:]] == [
        Reason.CORRUPT,
        Reason.UNREACHABLE,
        Reason.CANCELLED,
        Reason.CUT,
        Reason.IO_ERROR,
    ]
    assert (it.possible(6), it.why_not(4, 1)) == (1, Reason.CORRUPT)


def test_why_a_commit_failed_is_the_reason_of_the_first_page_that_lacks():
    it = arrivals(3, whole=[0])
    it.cancel(3)
    assert it.why_not(3, it.settle(3)) is Reason.CANCELLED
