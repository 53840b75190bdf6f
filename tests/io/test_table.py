# SPDX-License-Identifier: Apache-2.0
"""When the loop is woken, and in which order what waits comes in. One thread plays all of them."""

import select

import numpy as np
import pytest

from bodocache.io import table
from bodocache.io.backlog import Backlog
from bodocache.io.table import PYTHON, WAKE_AT, Table


def rows(batch, ids, deadline_s=np.inf):
    made = np.zeros(len(ids), table.ENTRY)
    made["state"], made["lane"], made["batch"] = table.WAITING, PYTHON, batch
    made["id"], made["deadline_s"] = ids, deadline_s
    return made


class Threads:
    """Takes and finishes entries, in turn."""

    def __init__(self, *batches):
        self.table = Table(max_writing=2)
        for made in batches:
            self.table.push(made)

    def take(self):
        return table.take(self.table, PYTHON)[0]

    def finish(self, slot):
        """Whether the loop is awake then."""
        table.finish(self.table, slot)
        return bool(select.select([self.table.event_fd], [], [], 0)[0])


@pytest.fixture(autouse=True)
def _warm():
    from bodocache import jit

    jit.warm()  # compiled between two ends, the second would be late enough to wake the loop


def test_one_of_many_that_ends_leaves_the_loop_alone():
    threads = Threads(rows(7, [0, 1, 2]))
    first, second = threads.take(), threads.take()
    assert not threads.finish(first)  # one runs and one waits: there will be more to tell
    assert threads.finish(second)  # nothing runs
    assert threads.table.collect() == [0, 1]


def test_a_batch_that_ends_wakes_the_loop_whatever_hangs_beside_it():
    threads = Threads(rows(7, [0]), rows(8, [1, 2, 3]))
    ending, hanging = threads.take(), threads.take()
    assert hanging >= 0
    assert threads.finish(ending)


def test_the_loop_is_woken_where_nothing_waits():
    threads = Threads(rows(7, [0, 1]))
    first, _ = threads.take(), threads.take()
    assert threads.finish(first)


def test_the_loop_is_woken_for_a_bundle():
    threads = Threads(rows(7, list(range(3 * WAKE_AT))))
    threads.take()  # hangs
    ended = 0
    while not threads.finish(threads.take()):
        ended += 1
        assert ended < WAKE_AT
    assert len(threads.table.collect()) == ended + 1


def test_a_backlog_gives_by_deadline_and_then_by_arrival():
    backlog = Backlog()
    backlog.push(rows(1, [0, 1, 2], deadline_s=9.0))
    backlog.push(rows(2, [3, 4], deadline_s=5.0))
    backlog.push(rows(3, [5], deadline_s=9.0))
    taken = [backlog.pop(count) for count in (1, 3, 9)]
    assert [np.concatenate(part)["id"].tolist() for part in taken] == [[3], [4, 0, 1], [2, 5]]
    assert backlog.pop(1) == []


def test_a_batch_that_is_withdrawn_leaves_the_others_in_order():
    backlog = Backlog()
    for batch, ids in ((1, [0, 1]), (2, [2]), (1, [3]), (3, [4])):
        backlog.push(rows(batch, ids))
    backlog.pop(1)
    assert sorted(backlog.withdraw(1)) == [1, 3]
    assert backlog.withdraw(1) == []
    assert sorted(backlog.withdraw(-1)) == [2, 4]
