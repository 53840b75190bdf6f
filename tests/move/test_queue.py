# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is on a link, on a clock of the test's."""

import asyncio

import pytest

from bodocache.clock import VirtualClock
from bodocache.move import queue
from bodocache.move.queue import ALL, LinkQueue
from bodocache.move.ticket import Priority

RATE = 1e9
CHUNK = int(RATE * queue.CHUNK_S)


class Pages:
    """Work of some chunks; notes in ``log`` what it was asked for, and ends when told."""

    def __init__(self, log, name, nbytes):
        self.log, self.name, self.waits = log, name, nbytes
        self.in_flight = []
        self.left_nbytes = nbytes

    def begin(self, nbytes):
        begun = min(nbytes, self.waits)
        if begun:
            self.waits -= begun
            self.in_flight.append(begun)
            self.log.append((self.name, "all" if nbytes == ALL else begun))
        return begun

    def withdraw(self):
        self.log.append((self.name, "withdrawn"))

    def end(self, links, ticket, moved=None):
        """The oldest chunk has ended; of it, ``moved`` bytes have moved, the rest waits again."""
        nbytes = self.in_flight.pop(0)
        moved = nbytes if moved is None else moved
        self.waits += nbytes - moved
        self.left_nbytes -= moved
        links.start(ticket)
        links.done(ticket, nbytes)
        if not self.left_nbytes:
            links.leave(ticket)


class Bench:
    def __init__(self, **options):
        self.clock, self.log = VirtualClock(), []
        self.links = LinkQueue(now_s=self.clock.now_s, rate=lambda: RATE, **options)

    def enter(self, name, chunks, priority=Priority.LOAD, due_s=float("inf")):
        work = Pages(self.log, name, int(chunks * CHUNK))
        ticket = self.links.enter(work, priority, deadline_s=due_s)
        self.links.start(ticket)
        return work, ticket

    def end_one(self, works):
        """End a chunk of the first that has one under way; whether there was one."""
        busy = [pair for pair in works if pair[0].in_flight]
        if busy:
            busy[0][0].end(self.links, busy[0][1])
        return bool(busy)

    def drain(self, *works):
        """End chunks until none is under way."""
        while self.end_one(works):
            pass

    @property
    def order(self):
        return [name for name, what in self.log if what != "withdrawn"]


def run(scenario):
    async def within():
        await scenario()

    asyncio.run(within())


def test_one_alone_is_asked_for_all_it_has():
    async def scenario():
        it = Bench()
        it.enter("a", 100)
        assert it.log == [("a", "all")]

    run(scenario)


def test_beside_others_loads_go_in_chunks_by_their_deadlines():
    async def scenario():
        it = Bench()
        first = it.enter("first", 1)
        late = it.enter("late", 2, due_s=9.0)
        soon = it.enter("soon", 2, due_s=5.0)
        never = it.enter("never", 1)  # as if due in a second
        it.drain(first, late, soon, never)
        assert it.order == ["first", "late", "never", "soon", "soon", "late"]
        assert {what for _, what in it.log[1:]} == {CHUNK}

    run(scenario)


def test_a_chunk_that_takes_long_to_begin_is_followed_by_a_turn_of_the_loop():
    async def scenario():
        it = Bench()
        begin = Pages.begin

        def slowly(work, nbytes):
            it.clock.advance(queue.LONG_BEGIN_S)
            return begin(work, nbytes)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Pages, "begin", slowly)
            it.enter("first", 0.5)
            it.enter("second", 0.5)
            assert it.order == ["first"]
            await asyncio.sleep(0)
            assert it.order == ["first", "second"]

    run(scenario)


def test_what_began_alone_gives_way_to_what_is_more_urgent():
    async def scenario():
        it = Bench()
        bulk = it.enter("bulk", 100)
        it.enter("later", 1, due_s=50.0)
        assert it.log == [("bulk", "all")]
        urgent = it.enter("urgent", 1, due_s=0.1)
        assert it.log[1:] == [("bulk", "withdrawn")]
        bulk[0].end(it.links, bulk[1], moved=2 * CHUNK)
        assert it.log[2:] == [("urgent", CHUNK), ("bulk", CHUNK)]
        urgent[0].end(it.links, urgent[1])
        assert it.log[4:] == [("bulk", CHUNK)]

    run(scenario)


def test_no_more_than_two_chunks_are_in_flight_beside_others():
    async def scenario():
        it = Bench()
        works = [it.enter("first", 1)] + [it.enter(str(k), 3) for k in range(3)]
        for _ in range(8):
            assert sum(len(work.in_flight) for work, _ in works) == 2
            it.end_one(works)
        it.drain(*works)
        assert it.links.is_idle

    run(scenario)


@pytest.mark.parametrize("priority", [Priority.PREFETCH, Priority.PREWARM, Priority.WRITE])
def test_what_is_no_load_waits_for_loads_but_not_for_ever(priority):
    async def scenario():
        it = Bench()
        load = it.enter("load", 100)
        behind = it.enter("behind", 2, priority, due_s=0.0)
        assert it.order == ["load"]
        it.clock.advance(queue.PATIENCE_S[priority])
        it.links._out_of_patience()
        assert it.order == ["load", "behind"]  # one chunk, and it waits again
        behind[0].end(it.links, behind[1])
        assert it.order == ["load", "behind"]
        load[0].end(it.links, load[1])
        assert it.order == ["load", "behind", "behind"]

    run(scenario)


def test_a_write_that_does_not_end_is_in_no_loads_way():
    """Storage may hold writes until a load has ended."""

    async def scenario():
        it = Bench()
        it.enter("write", 5, Priority.WRITE)
        it.enter("load", 100)
        assert it.log == [("write", "all"), ("load", "all")]

    run(scenario)


def test_patience_ends_by_itself(monkeypatch):
    monkeypatch.setattr(queue, "PATIENCE_S", (1.0, 0.0, 0.0, 0.0))

    async def scenario():
        it = Bench()
        it.links._in_flight = CHUNK  # something that does not end
        it.enter("write", 1, Priority.WRITE)
        await asyncio.sleep(0.001)
        assert it.order == ["write"]

    run(scenario)


def test_priorities_come_before_deadlines():
    async def scenario():
        it = Bench()
        works = [
            it.enter("first", 1),
            it.enter("write", 1, Priority.WRITE, due_s=0.0),
            it.enter("prewarm", 1, Priority.PREWARM, due_s=0.0),
            it.enter("prefetch", 1, Priority.PREFETCH, due_s=0.0),
            it.enter("load", 1, due_s=100.0),
        ]
        it.drain(*works)
        assert it.order == ["first", "load", "prefetch", "prewarm", "write"]

    run(scenario)


def test_a_load_without_a_deadline_is_not_starved_by_those_that_have_one():
    async def scenario():
        it = Bench()
        works = [it.enter("first", 1), it.enter("none", 3)]
        for k in range(1000):
            works.append(it.enter(f"soon {k}", 1, due_s=it.clock.now_s() + 0.2))
            it.clock.advance(queue.CHUNK_S)
            it.end_one(works)
        assert it.order.count("none") == 3

    run(scenario)


def test_a_chunk_that_was_given_up_is_in_nobodys_way():
    async def scenario():
        it = Bench()
        hung = it.enter("hung", 100)
        it.enter("next", 1)
        assert it.order == ["hung"]
        it.links.done(hung[1], 100 * CHUNK)
        assert it.order == ["hung", "next"]

    run(scenario)


def test_a_full_queue_refuses_and_turns_wait_for_room():
    async def scenario():
        it = Bench(max_open=1)
        work, ticket = it.enter("only", 1)
        assert not it.links.has_room()
        assert it.links.enter(work, Priority.LOAD, deadline_s=0.0) is None

        async def write():
            async with it.links.turn(Priority.WRITE, 1):
                it.log.append(("write", 1))

        waiting = asyncio.create_task(write())
        await asyncio.sleep(0)
        assert it.order == ["only"]
        work.end(it.links, ticket)
        await waiting
        assert it.order == ["only", "write"]
        assert it.links.is_idle

    run(scenario)


def test_a_turn_that_is_cancelled_leaves():
    async def scenario():
        it = Bench()
        work, ticket = it.enter("load", 9)

        async def write():
            async with it.links.turn(Priority.WRITE, 1):
                pytest.fail("not its turn")

        waiting = asyncio.create_task(write())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        work.end(it.links, ticket)
        assert it.links.is_idle

    run(scenario)


def test_chunks_that_move_on_the_loop_leave_it_a_turn_between_two():
    async def scenario():
        it = Bench(runs_here=True)
        work = Pages(it.log, "a", 3 * CHUNK)
        ticket = it.links.enter(work, Priority.LOAD, deadline_s=1.0)
        begin = work.begin
        work.begin = lambda _: begin(CHUNK)
        it.links.start(ticket)
        assert len(it.log) == 1
        await asyncio.sleep(0)
        assert len(it.log) == 2
        await asyncio.sleep(0)
        assert len(it.log) == 3

    run(scenario)


def test_bytes_ahead_are_those_that_move_first():
    async def scenario():
        it = Bench()
        it.enter("first", 1)
        it.enter("soon", 4, due_s=1.0)
        late = it.enter("late", 2, due_s=9.0)
        it.enter("write", 5, Priority.WRITE)
        assert it.links.ahead_nbytes(late[1]) == (1 + 4 + 2) * CHUNK
        assert it.links.ahead_of(0.5) == 2 * CHUNK  # in flight
        assert it.links.ahead_of(5.0) == 5 * CHUNK
        assert it.links.ahead_of(99.0, without={late[1]}) == 5 * CHUNK

    run(scenario)
