# SPDX-License-Identifier: Apache-2.0
"""The day's bytes of writing: never exceeded in any 24 hours, restarts and kills included."""

import math
import os
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.errors import ConfigError
from bodocache.io import budget
from bodocache.io.backend import Status
from bodocache.io.budget import BURST_SHARE, DAY_S, WriteBudget, boot_id
from bodocache.io.config import OpenMode
from bodocache.io.header import checksums
from bodocache.io.posix import DataFile
from bodocache.pages import Reason

PER_DAY = 24_000


class Folder:
    """A budget's file, opened again and again on a machine whose clock the test turns."""

    def __init__(self, path):
        self.path, self.real_s, self.booted_s, self.boot = path, 1e6, 0.0, b"1" * 16
        self.opened = None

    def reboot(self):
        self.booted_s, self.boot = self.real_s, os.urandom(16)

    def file(self):
        """Open it; whoever had it is killed."""
        if self.opened is not None:
            self.opened.close()
        fd = os.open(self.path, os.O_RDONLY)
        self.opened = DataFile(str(self.path / "budget.slab"), fd, os.O_RDWR | os.O_CREAT)
        os.close(fd)
        return self.opened

    def open(self, per_day=PER_DAY):
        def now_s():
            return self.real_s - self.booted_s

        return WriteBudget(per_day, self.file(), now_s=now_s, boot=self.boot)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_the_bucket_holds_an_hour_and_refills_over_the_day(folder):
    budget = folder.open()
    assert budget.left_nbytes() == PER_DAY * BURST_SHARE
    budget.spend(1000)
    assert budget.left_nbytes() == 0
    budget.settle(1000)
    folder.real_s += 3600
    assert 950 <= budget.left_nbytes() < 1000


def worst_day(granted):
    """The most bytes of ``granted``, (time, bytes), in any 24 hours."""
    times, nbytes = np.array(granted).T
    total = np.concatenate([[0], np.cumsum(nbytes)])
    return max(total[np.searchsorted(times, times + DAY_S)] - total[:-1])


def live(folder, steps):
    """Do ``steps``: (seconds, bytes asked for, what then); return what was granted when."""
    budget, granted, unsettled = folder.open(), [(0.0, 0)], []
    for wait_s, wanted, then in steps:
        folder.real_s += wait_s
        nbytes = min(wanted, budget.left_nbytes())
        budget.spend(nbytes)
        granted.append((folder.real_s, nbytes))
        unsettled.append(len(granted) - 1)
        if then in ("settled", "refunded", "closed"):
            for i in unsettled:
                at_s, spent = granted[i]
                getattr(budget, "refund" if then == "refunded" else "settle")(spent)
                granted[i] = at_s, 0 if then == "refunded" else spent
            unsettled = []
        if then == "closed":
            budget.close()
        if then == "rebooted":
            folder.reboot()
        if then in ("closed", "killed", "rebooted"):
            budget, unsettled = folder.open(), []
    return granted


THENS = ["on", "on", "settled", "settled", "refunded", "closed", "killed", "killed", "rebooted"]
STEP = st.tuples(
    st.one_of(st.floats(0, 120), st.floats(0, 30_000)),
    st.sampled_from([0, 1, 50, 62, 63, 100, 900, 1000]),
    st.sampled_from(THENS),
)


@settings(max_examples=300, deadline=None)
@given(
    # A pattern that comes again for more than a day: what it gains once it gains every time.
    pattern=st.lists(STEP, min_size=1, max_size=8),
    times=st.integers(1, 60),
)
def test_no_24_hours_see_more_than_the_budget(tmp_path_factory, pattern, times):
    folder = Folder(tmp_path_factory.mktemp("budget"))
    assert worst_day(live(folder, pattern * times)) <= PER_DAY


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kill_share", [0.02, 0.5])
def test_a_greedy_writer_that_is_killed_at_any_moment_stays_within_the_budget(
    folder, seed, kill_share
):
    chance = random.Random(seed)
    steps = [
        (
            chance.uniform(0, 120),
            chance.randrange(PER_DAY) if chance.random() < 0.5 else PER_DAY,
            "killed" if chance.random() < kill_share else chance.choice(THENS[:4]),
        )
        for _ in range(3000)
    ]
    assert worst_day(live(folder, steps)) <= PER_DAY


def test_a_kill_every_half_hour_gains_nothing(folder):
    """What was refilled and spent since the last record is not refilled again at the restart."""
    life = [(0, 1000, "settled"), *[(60, 40, "settled")] * 30, (0, 0, "killed")]
    assert worst_day(live(folder, life * 48)) <= PER_DAY


def test_a_kill_loses_a_step_at_most(folder):
    folder.open().spend(100)
    assert 1000 - 100 - 63 <= folder.open().left_nbytes() <= 1000 - 100


def test_setting_the_wall_clock_gives_nothing(folder, monkeypatch):
    def granted():
        budget = WriteBudget(PER_DAY, folder.file())
        nbytes = budget.left_nbytes()
        budget.spend(nbytes)
        budget.settle(nbytes)
        budget.close()
        return nbytes

    assert granted() == 1000
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: 4e9)
        assert granted() <= 1
    assert granted() <= 1


def test_another_boot_or_an_unknown_one_refills_nothing_while_nobody_ran(folder):
    budget = folder.open()
    budget.spend(1000)
    budget.close()
    folder.real_s += DAY_S
    for boot in (b"2" * 16, bytes(16)):
        folder.boot = boot
        assert folder.open().left_nbytes() == 0


def test_what_may_be_refunded_is_not_refilled_too(folder):
    budget = folder.open()
    budget.spend(1000)
    folder.real_s += 7200
    assert budget.left_nbytes() == 0
    budget.refund(1000)
    assert budget.left_nbytes() == 1000


def test_the_boot_has_an_id():
    assert any(boot_id())
    assert boot_id() == boot_id()


def test_a_damaged_file_begins_empty_and_an_old_one_keeps_its_share(folder):
    budget = folder.open()
    budget.spend(500)
    budget.settle(500)
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


@pytest.mark.parametrize("how", ["abandoned", "late", "keyed"])
def test_pages_that_are_never_written_spend_nothing(bench, how):
    async def scenario(backend):
        left = backend.usage.budget_frames
        buffers = bench.pages.buffers(3)
        bench.pages.fill(buffers, [1, 2, 3])
        batch = bench.pages.batch([1, 2, 3], backend.reserve(3, after=-1))
        deadline_s = time.monotonic() + 0.01 if how == "late" else math.inf
        with backend.hold_writes():
            transfer = backend.put(batch, buffers, deadline_s=deadline_s)
            assert backend.usage.budget_frames == left - 3
            if how != "late":
                transfer.abandon()
            await transfer.drained()
        assert transfer.statuses.tolist() == [Status.LATE] * 3
        assert backend.usage.budget_frames == left
        backend.release(batch["frame"])
        await bench.put(backend, [1, 2])
        assert backend.usage.budget_frames == left - 2

    per_day = int(5.5 * bench.config.written_nbytes / BURST_SHARE)
    key = b"k" * 32 if how == "keyed" else b""
    bench.run(scenario, write_nbytes_per_day=per_day, mac_key=key)


def test_by_gds_pages_that_are_never_written_spend_nothing_either(rig_of):
    rig = rig_of(write_nbytes_per_day=int(5.5 * 8704 / BURST_SHARE))

    async def scenario(backend):
        buffers = rig.pages.buffers(3)
        rig.pages.fill(buffers, [1, 2, 3])
        batch = rig.pages.batch([1, 2, 3], backend.reserve(3, after=-1))
        with backend.hold_writes():
            transfer = backend.put(batch, buffers, deadline_s=math.inf)
            transfer.abandon()
            await transfer.drained()
        assert backend.usage.budget_frames == 5
        backend.release(batch["frame"])
        await rig.put(backend, [1, 2])
        assert backend.usage.budget_frames == 3

    rig.run(scenario)


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


@pytest.mark.parametrize(
    ("field", "value"),
    [("bytes_per_day", 0), ("level_nbytes", np.nan), ("ahead_nbytes", -1.0), ("stamp_s", np.inf)],
)
def test_a_record_of_a_right_checksum_that_says_nonsense_begins_empty(bench, field, value):
    async def nothing(backend):
        pass

    bench.run(nothing, write_nbytes_per_day=10**9)
    path = bench.config.directory / "budget.slab"
    row = np.frombuffer(path.read_bytes(), budget._RECORD).copy()
    row[field] = value
    row["checksum"] = checksums(row)
    path.write_bytes(row.tobytes())

    async def scenario(backend):
        assert backend.usage.budget_frames == 0

    bench.run(scenario, write_nbytes_per_day=10**9)
