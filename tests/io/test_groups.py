# SPDX-License-Identifier: Apache-2.0
"""Slabs of several page sizes in one directory, behind one queue."""

import asyncio
import errno
import os
import threading
from dataclasses import replace

import pytest

from bodocache.clock import RealClock
from bodocache.errors import BackendError, BackendLocked, ConfigError
from bodocache.io import manifest
from bodocache.io.backend import Status
from bodocache.io.groups import GroupFrames, open_groups
from bodocache.testing import NumberedPages

FULL = GroupFrames("full", 16384, b"f" * 32)
WINDOW = GroupFrames("window", 5008, b"w" * 32, share=0.5)
STATE = GroupFrames("state-0", 3 << 20, b"s" * 32, share=0.25)
CAPACITY = 24 << 20


@pytest.fixture
def shared(bench):
    return replace(bench.config, capacity_nbytes=CAPACITY)


def run(shared, groups, scenario):
    async def whole():
        opened = await open_groups(shared, groups, clock=RealClock())
        try:
            return await scenario(opened)
        finally:
            for backend in opened.values():
                await backend.close()

    return asyncio.run(whole())


async def put(backend, numbers):
    pages = NumberedPages(backend.page_nbytes)
    buffers = pages.buffers(len(numbers))
    pages.fill(buffers, numbers)
    batch = pages.batch(numbers, backend.reserve(len(numbers), after=-1))
    transfer = backend.put(batch, buffers, deadline_s=float("inf"))
    await transfer.drained()
    assert (transfer.statuses == Status.LANDED).all()
    return batch


async def is_there(backend, batch):
    pages = NumberedPages(backend.page_nbytes)
    transfer = backend.get(batch, pages.buffers(len(batch)), deadline_s=float("inf"))
    await transfer.drained()
    return bool((transfer.statuses == Status.LANDED).all())


def test_every_group_keeps_its_own_pages_and_finds_them_after_a_restart(shared):
    groups = [FULL, WINDOW, STATE]

    async def fill(opened):
        batches = await asyncio.gather(*(put(opened[g.name], [1, 2]) for g in groups))
        return dict(zip(opened, batches, strict=True))

    batches = run(shared, groups, fill)

    async def find(opened):
        return [await is_there(opened[name], batch) for name, batch in batches.items()]

    assert run(shared, groups, find) == [True] * 3


def test_the_capacity_bounds_all_groups_together_and_shares_count_frames(shared):
    async def scenario(opened):
        frames = {name: backend.usage.total_frames for name, backend in opened.items()}
        assert frames["window"] == frames["full"] // 2
        assert frames["state-0"] == frames["full"] // 4

    run(shared, [FULL, WINDOW, STATE], scenario)
    held = sum(path.stat().st_size for path in shared.directory.rglob("*/*.slab"))
    assert CAPACITY - (4 << 20) < held <= CAPACITY  # one frame of the largest may be left over


def test_the_groups_share_their_threads_and_the_last_to_close_ends_them(shared):
    async def scenario():
        before = threading.active_count()
        opened = await open_groups(shared, [FULL, WINDOW], clock=RealClock())
        assert threading.active_count() <= before + 2 * shared.queue_depth + 4
        await opened["full"].close()
        batch = await put(opened["window"], [1, 2])
        assert await is_there(opened["window"], batch)
        await opened["window"].close()
        await opened["window"].close()
        return before

    before = asyncio.run(scenario())
    assert threading.active_count() <= before


def test_a_write_of_one_group_waits_for_the_hold_of_another(shared):
    async def scenario(opened):
        with opened["full"].hold_writes():
            writing = asyncio.ensure_future(put(opened["window"], [1]))
            await asyncio.sleep(0.1)
            assert not writing.done()
        await writing

    run(shared, [FULL, WINDOW], scenario)


async def nothing(opened):
    pass


def names(shared):
    return sorted(path.name for path in shared.directory.iterdir())


def test_a_group_that_is_no_longer_named_is_removed(shared):
    run(shared, [FULL, WINDOW], nothing)
    (shared.directory / "mine").mkdir()
    run(shared, [FULL], nothing)
    assert names(shared) == ["full", "groups.slab", "mine"]


def test_what_was_no_group_of_this_directory_stays(shared, bench):
    bench.config = replace(bench.config, directory=shared.directory / "another")
    batch = bench.stored([1, 2])
    for name in ("thesis", "UPPER x"):
        (shared.directory / name).mkdir()
        (shared.directory / name / "headers.slab").write_bytes(b"my data")
    run(shared, [FULL, WINDOW], nothing)
    run(shared, [FULL], nothing)
    assert names(shared) == ["UPPER x", "another", "full", "groups.slab", "thesis"]
    assert (shared.directory / "thesis" / "headers.slab").read_bytes() == b"my data"
    assert bench.reasons(batch) == [0, 0]


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, None])
def test_without_a_sound_list_of_groups_nothing_is_removed(shared, damage):
    run(shared, [FULL, WINDOW], nothing)
    listed = shared.directory / "groups.slab"
    text = listed.read_bytes()
    listed.write_bytes(text.replace(b"full", b"else") if damage is None else damage)
    run(shared, [FULL], nothing)
    assert names(shared) == ["full", "groups.slab", "window"]


def test_a_folder_of_a_group_that_holds_no_slab_any_more_stays(shared):
    run(shared, [FULL, WINDOW], nothing)
    headers = shared.directory / "window" / "headers.slab"
    headers.write_bytes(b"my data")
    run(shared, [FULL], nothing)
    assert headers.read_bytes() == b"my data"


def test_a_folder_that_is_a_link_by_now_stays(shared, tmp_path):
    run(shared, [FULL, WINDOW], nothing)
    (shared.directory / "window").rename(tmp_path / "moved")
    (shared.directory / "window").symlink_to(tmp_path / "moved")
    run(shared, [FULL], nothing)
    assert (tmp_path / "moved" / "headers.slab").exists()


def test_none_is_removed_while_somebody_writes_to_one(shared):
    async def scenario(opened):
        await opened["full"].close()
        with pytest.raises(BackendLocked):
            await open_groups(shared, [STATE], clock=RealClock())
        assert {"full", "window"} <= set(names(shared))

    run(shared, [FULL, WINDOW], scenario)
    run(shared, [STATE], nothing)  # both are known still
    assert names(shared) == ["groups.slab", "state-0"]


def test_a_removal_that_was_killed_is_ended_by_the_next(shared, monkeypatch):
    run(shared, [FULL, WINDOW], nothing)
    real = os.unlink

    def stop(name, **options):
        if name == "headers.slab":
            raise OSError(errno.EIO, "killed")
        real(name, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", stop)
        with pytest.raises(BackendError, match="killed"):
            run(shared, [FULL], nothing)
    assert "window" in names(shared)
    run(shared, [FULL], nothing)
    assert names(shared) == ["full", "groups.slab"]


def test_two_do_not_open_groups_of_one_directory_at_once(shared):
    with manifest.opened(shared.directory), pytest.raises(BackendLocked, match="groups"):
        run(shared, [FULL], nothing)


@pytest.mark.parametrize("groups", [[FULL, WINDOW], [WINDOW, FULL]])
def test_when_shares_change_the_files_never_exceed_the_capacity(shared, groups, monkeypatch):
    run(shared, [replace(group, share=1 + 20 * (group is FULL)) for group in groups], nothing)
    real, held = os.posix_fallocate, []

    def watch(*arguments):
        real(*arguments)
        held.append(sum(path.stat().st_size for path in shared.directory.rglob("*/*.slab")))

    monkeypatch.setattr(os, "posix_fallocate", watch)

    async def in_order(opened):
        assert list(opened) == [group.name for group in groups]

    run(shared, [replace(group, share=1 + 20 * (group is WINDOW)) for group in groups], in_order)
    assert held
    assert max(held) <= CAPACITY


def test_a_group_that_somebody_writes_to_locks_the_opening_and_nothing_stays_open(shared):
    async def scenario(opened):
        with pytest.raises(BackendLocked):
            await open_groups(shared, [STATE, FULL], clock=RealClock())

    before = threading.active_count()
    run(shared, [FULL], scenario)
    run(shared, [STATE, FULL], nothing)
    assert threading.active_count() <= before


@pytest.mark.parametrize("groups", [[], [FULL, FULL], [replace(STATE, page_nbytes=1 << 30)]])
def test_groups_that_do_not_fit_are_refused_before_anything_is_made(shared, groups):
    with pytest.raises(ConfigError):
        run(shared, groups, None)
    assert not shared.directory.exists()


@pytest.mark.parametrize("change", [{"name": "../x"}, {"name": ""}, {"share": 0.0}])
def test_a_bad_group_is_refused(change):
    with pytest.raises(ConfigError):
        replace(FULL, **change)
