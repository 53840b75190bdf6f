# SPDX-License-Identifier: Apache-2.0
"""Work in a link's queue that its tenants cannot pay for yet: set aside until they have earned it.

What a tenant asks for after that waits behind it, and nobody else does.
"""

import asyncio
import math
from collections.abc import Callable, Sequence

from bodocache.move.credits import Credits  # noqa: TC001 -- as the others
from bodocache.move.ticket import PURPOSE, Priority, Ticket


class Unpaid:
    """Of one queue. The loop's."""

    __slots__ = ("_aside", "_ask_again", "_blocked", "_loop", "_now_s", "_payday", "credits")

    def __init__(
        self, now_s: Callable[[], float], ask_again: Callable[[Sequence[Ticket]], None]
    ) -> None:
        """``ask_again`` is handed what may be paid for by now, in the order it was set aside."""
        self.credits: Credits | None = None
        self._now_s = now_s
        self._ask_again = ask_again
        self._loop = asyncio.get_running_loop()
        self._aside: dict[Ticket, None] = {}  # in order
        self._blocked: set[tuple[Priority, tuple[int, ...]]] = set()  # whose turn none is
        self._payday: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """Whether anything does."""
        return bool(self._aside)

    def has_paid(self, ticket: Ticket, nbytes: int) -> bool:
        """Whether ``nbytes`` of ``ticket`` are paid for; if not, it was set aside."""
        purse = self.credits
        assert purse is not None, "nobody pays"
        who, ready_s = (ticket.priority, tuple(ticket.payers)), math.inf
        if who not in self._blocked:
            paid, purpose = ticket.paid_nbytes, PURPOSE[ticket.priority]
            ticket.paid_nbytes, due_s = purse.save_up(ticket.payers, purpose, nbytes, paid)
            if due_s is None:
                return True
            ready_s = due_s
        self._set_aside(ticket, ready_s)
        return False

    def payable_nbytes(self, ticket: Ticket) -> int:
        """What of ``ticket`` can move now, as far as its tenants' credits go."""
        left, purse = ticket.work.left_nbytes, self.credits
        if purse is None or not purse.is_limited(ticket.payers):
            return left
        purpose, now_s = PURPOSE[ticket.priority], self._now_s()
        return min(
            left, ticket.in_flight + purse.held_nbytes(ticket.payers, purpose, until_s=now_s)
        )

    def end_wait(self) -> None:
        """Somebody has earned something: all ask again."""
        aside = [*self._aside]
        self.clear()
        self._ask_again(aside)

    def clear(self) -> None:
        """Nothing waits any more."""
        self._aside.clear()
        self._blocked.clear()
        if self._payday is not None:
            self._payday.cancel()
            self._payday = None

    def _set_aside(self, ticket: Ticket, until_s: float) -> None:
        """It waits for credits, and what its tenants ask for after it."""
        ticket.is_queued, ticket.was_overtaken = False, True
        self._aside[ticket] = None
        self._blocked.add((ticket.priority, tuple(ticket.payers)))
        if math.isfinite(until_s):
            at_s = self._loop.time() + max(0.0, until_s - self._now_s())
            if self._payday is not None:
                if self._payday.when() <= at_s:
                    return
                self._payday.cancel()
            self._payday = self._loop.call_at(at_s, self.end_wait)
