# SPDX-License-Identifier: Apache-2.0
import asyncio
import time

import pytest

from bodocache.clock import VirtualClock
from bodocache.errors import Deadlock
from bodocache.testing import VirtualLoop, run_virtual


async def _two_sleepers(order):
    async def late(name, seconds):
        await asyncio.sleep(seconds)
        order.append((name, asyncio.get_running_loop().time()))

    async with asyncio.TaskGroup() as group:
        group.create_task(late("second", 7200.0))
        group.create_task(late("first", 3600.0))


def test_hours_pass_in_no_time_and_in_order():
    order, begun_s = [], time.monotonic()
    run_virtual(_two_sleepers(order))
    assert order == [("first", 3600.0), ("second", 7200.0)]
    assert time.monotonic() - begun_s < 60.0  # not two hours


def test_the_clock_is_the_loops():
    clock = VirtualClock(5.0)

    async def scenario():
        await asyncio.sleep(1.5)
        return clock.now_s()

    assert run_virtual(scenario(), clock) == 6.5


def test_a_wait_that_nothing_ends_is_a_deadlock():
    async def scenario():
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match="every task waits"):
        run_virtual(scenario())


def test_a_timeout_ends_such_a_wait():
    async def scenario():
        async with asyncio.timeout(9.0):
            await asyncio.Event().wait()

    clock = VirtualClock()
    with pytest.raises(TimeoutError):
        run_virtual(scenario(), clock)
    assert clock.now_s() == pytest.approx(9.0)


def test_what_is_meant_for_a_thread_runs_at_once_and_takes_no_time():
    async def scenario():
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        done = loop.run_in_executor(None, divmod, 7, 3)
        assert done.done()
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, divmod, 7, 0)
        return await done, await asyncio.to_thread(divmod, 9, 4), loop.time()

    assert run_virtual(scenario()) == ((2, 1), (2, 1), 0.0)


def test_callbacks_of_one_moment_run_in_one_order_every_time():
    async def scenario():
        order, loop = [], asyncio.get_running_loop()
        for i in range(100):
            loop.call_at(1.0, order.append, i)
        await asyncio.sleep(2.0)
        return order

    once = run_virtual(scenario())
    assert sorted(once) == list(range(100))
    assert run_virtual(scenario()) == once
