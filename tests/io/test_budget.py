# SPDX-License-Identifier: Apache-2.0
"""The day's bytes of writing: never exceeded in any 24 hours, restarts and kills included."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.errors import ConfigError
from bodocache.io.backend import Status
from bodocache.io.budget import BURST_SHARE, DAY_S, WriteBudget
from bodocache.io.config import OpenMode
from bodocache.io.posix import DataFile
from bodocache.pages import Reason

PER_DAY = 24_000


class Folder:
    """A budget's file, opened again and again by a wall clock that the test turns."""

    def __init__(self, path):
        self.path, self.now_s = path, 1e9

    def open(self, per_day=PER_DAY):
        fd = os.open(self.path, os.O_RDONLY)
        file = DataFile(str(self.path / "budget.slab"), fd, os.O_RDWR | os.O_CREAT)
        os.close(fd)
        return WriteBudget(per_day, file, wall_s=lambda: self.now_s)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_the_bucket_holds_an_hour_and_refills_over_the_day(folder):
    budget = folder.open()
    assert budget.left_nbytes() == PER_DAY * BURST_SHARE
    budget.spend(1000)
    assert budget.left_nbytes() == 0
    folder.now_s += 3600
    assert 950 <= budget.left_nbytes() < 1000


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.floats(0, 30_000),  # seconds until then
            st.integers(0, 2_000),  # bytes asked for
            st.sampled_from(["on", "on", "on", "closed", "killed"]),
        ),
        max_size=60,
    )
)
def test_no_24_hours_see_more_than_the_budget(tmp_path_factory, steps):
    folder = Folder(tmp_path_factory.mktemp("budget"))
    budget, spent = folder.open(), []
    for wait_s, wanted, then in steps:
        folder.now_s += wait_s
        nbytes = min(wanted, budget.left_nbytes())
        budget.spend(nbytes)
        spent.append((folder.now_s, nbytes))
        if then == "closed":
            budget.close()
        if then != "on":
            budget = folder.open()
    for begin_s, _ in spent:
        inside = sum(n for at_s, n in spent if begin_s <= at_s < begin_s + DAY_S)
        assert inside <= PER_DAY


def test_a_clock_set_back_gives_nothing(folder):
    budget = folder.open()
    budget.spend(budget.left_nbytes())
    folder.now_s -= 1e6
    assert budget.left_nbytes() == 0


def test_a_damaged_file_begins_empty_and_an_old_one_keeps_its_share(folder):
    budget = folder.open()
    budget.spend(500)
    budget.close()
    assert folder.open(2 * PER_DAY).left_nbytes() == 1000  # half of twice as much
    (folder.path / "budget.slab").write_bytes(b"\xff" * 64)
    assert folder.open().left_nbytes() == 0


def test_pages_beyond_the_budget_fail_and_the_first_ones_are_written(bench):
    per_page = bench.config.written_nbytes

    async def scenario(backend):
        assert backend.usage.budget_frames == 3
        batch, transfer = await bench.put(backend, [1, 2, 3, 4, 5])
        assert transfer.statuses.tolist() == [Status.LANDED] * 3 + [Status.FAILED] * 2
        assert transfer.reasons.tolist() == [0, 0, 0, Reason.OVER_BUDGET, Reason.OVER_BUDGET]
        assert backend.usage.budget_frames == 0
        backend.release(batch["frame"][3:])  # nobody writes to them
        assert (await bench.get(backend, batch[:3]))[0] == [Status.LANDED] * 3
        return batch

    per_day = int(3.5 * per_page / BURST_SHARE)
    bench.run(scenario, write_nbytes_per_day=per_day)

    async def again(backend):
        assert backend.usage.budget_frames == 0

    bench.run(again, write_nbytes_per_day=per_day)


def test_without_a_budget_nothing_is_limited(bench):
    async def scenario(backend):
        assert backend.usage.budget_frames is None

    bench.run(scenario)
    assert not (bench.config.directory / "budget.slab").exists()


def test_a_negative_budget_is_refused(bench):
    with pytest.raises(ConfigError, match="write_nbytes_per_day"):
        bench.run(None, write_nbytes_per_day=-1)


def test_a_reader_spends_nothing(bench):
    bench.stored([1])

    async def scenario(backend):
        assert backend.usage.budget_frames is None

    bench.run(scenario, mode=OpenMode.READER, write_nbytes_per_day=10**6)
