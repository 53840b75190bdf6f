# SPDX-License-Identifier: Apache-2.0
"""A simulated link: serves pieces of work one after the other, at the pace it has at that time.

Virtual time only. A piece that is being served is not taken back; one that waits may be.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from bodocache.testing.pace import Pace


@dataclass(slots=True, eq=False)
class Piece:
    """One piece of work, and who is told when it is over, and whether it failed."""

    nbytes: int
    on_end: Callable[[bool], None]
    urgent: bool = True  # before all that is not


class Channel:
    """One server of ``bytes_per_s``, first come first served, what is urgent first.

    ``latency_s`` goes by between the end of the service and the end of the piece, and holds up
    nobody: a queue is kept full.
    """

    def __init__(
        self,
        bytes_per_s: float,
        *,
        pace: Pace,
        latency_s: float = 0.0,
        per_piece_s: float = 0.0,
        write_bytes_per_s: float | None = None,
    ) -> None:
        """``write_bytes_per_s``: of pieces that are not urgent; default: the same."""
        self.bytes_per_s, self.latency_s, self.per_piece_s = bytes_per_s, latency_s, per_piece_s
        self.pace = pace
        self._write_bytes_per_s = write_bytes_per_s or bytes_per_s
        self.nbytes = 0  # served
        self.busy_s = 0.0
        self._waiting: tuple[deque[Piece], deque[Piece]] = (deque(), deque())
        self._serving: Piece | None = None
        self._holds = 0

    def submit(self, piece: Piece) -> None:
        """Serve ``piece`` in its turn."""
        self._waiting[not piece.urgent].append(piece)
        self._next()

    def withdraw(self, piece: Piece) -> bool:
        """Take back a piece that is not being served yet; whether that was so."""
        try:
            self._waiting[not piece.urgent].remove(piece)
        except ValueError:
            return False
        return True

    def hold(self, holds: int) -> None:
        """Begin (1) or end (-1) a time in which nothing begins that is not urgent."""
        self._holds += holds
        self._next()

    def queued_nbytes(self) -> int:
        """Bytes that wait or are being served."""
        waiting = sum(piece.nbytes for queue in self._waiting for piece in queue)
        return waiting + (self._serving.nbytes if self._serving else 0)

    def finish_s(self, now_s: float, nbytes: int) -> float:
        """When ``nbytes`` more would be over, by the pace's future: for an oracle."""
        work_s = (self.queued_nbytes() + nbytes) / self.bytes_per_s
        return self.pace.finish_s(now_s, work_s) + self.latency_s

    def _next(self) -> None:
        if self._serving is not None:
            return
        for queue in self._waiting[: 1 if self._holds else 2]:
            if queue:
                self._serve(queue.popleft())
                return

    def _serve(self, piece: Piece) -> None:
        loop = asyncio.get_running_loop()
        self._serving = piece
        now_s = loop.time()
        rate = self.bytes_per_s if piece.urgent else self._write_bytes_per_s
        work_s = piece.nbytes / rate + self.per_piece_s
        end_s = self.pace.finish_s(now_s, work_s)
        self.busy_s += end_s - now_s
        loop.call_at(end_s, self._end, piece, self.pace.fails(now_s, end_s))

    def _end(self, piece: Piece, has_failed: bool) -> None:  # noqa: FBT001 -- of call_at
        loop = asyncio.get_running_loop()
        self.nbytes += piece.nbytes
        self._serving = None
        if self.latency_s:
            loop.call_later(self.latency_s, piece.on_end, has_failed)
        else:
            piece.on_end(has_failed)
        self._next()
