# SPDX-License-Identifier: Apache-2.0
"""One put from its first extent to its acknowledgement. All of it on the loop."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.io.backend import Status
from bodocache.io.budget import WriteBudget
from bodocache.io.commit import GroupCommit
from bodocache.io.transfer import BatchTransfer, Outcome, Request, Written
from bodocache.pages import Reason


class FrameBudget(NamedTuple):
    """How many frames may be written today; without ``budget`` any number."""

    budget: WriteBudget | None
    nbytes_per_frame: int

    @property
    def left(self) -> int | None:
        """Frames that may be written now; None for no limit."""
        return None if self.budget is None else self.budget.left_nbytes() // self.nbytes_per_frame

    def admit(self, batch: NDArray[np.void], transfer: BatchTransfer) -> NDArray[np.void]:
        """The first pages of ``batch``, as many as may be written; the others have failed."""
        if self.budget is None:
            return batch
        allowed = self.left
        batch, refused = batch[:allowed], np.arange(len(batch))[allowed:]
        transfer.finish(refused, Outcome.all(len(refused), Status.FAILED, Reason.OVER_BUDGET))
        self.budget.spend(len(batch) * self.nbytes_per_frame)
        return batch

    def settle(self, extent: Written) -> None:
        """``extent``, of pages that were admitted, has ended."""
        if self.budget is not None:
            end = self.budget.settle if extent.was_begun else self.budget.refund
            end(len(extent.positions) * self.nbytes_per_frame)


class PutBatch:
    """Acknowledges each extent as it is written, or all of them after one sync."""

    __slots__ = (
        *("_budget", "_commit", "_on_written", "_remaining", "_ticket", "_transfer", "_written"),
    )

    def __init__(
        self,
        transfer: BatchTransfer,
        on_written: Callable[[NDArray[np.int64]], None],
        commit: GroupCommit | None,
        budget: FrameBudget,
    ) -> None:
        """``on_written`` is told of frames that the put does not use any more.

        Its pages were admitted by ``budget``, which gets back what is not written.
        With ``commit`` a page is acknowledged when it survives a power cut.
        """
        self._transfer = transfer
        self._on_written = on_written
        self._commit = commit
        self._budget = budget
        self._ticket = commit.ticket() if commit is not None else None
        self._remaining = 0  # pages
        self._written: list[Written] = []

    def begin(self, extents: Sequence[Request]) -> None:
        """Queue all extents of the put."""
        self._remaining = sum([len(extent.positions) for extent in extents])
        self._transfer.submit(extents)

    def settle(self, extent: Written, outcome: Outcome) -> None:
        """Take note of one extent's outcome; it is LANDED whole or not at all.

        Its frames are in use until its pages can be found, or never will be: one that is released
        meanwhile must not hold them afterwards.
        """
        self._remaining -= len(extent.positions)
        self._budget.settle(extent)
        if self._commit is not None and (outcome.statuses == Status.LANDED).all():
            self._written.append(extent)
        else:
            self._acknowledge(extent, outcome)
        if not self._remaining and self._written:
            self._sync()

    def _sync(self) -> None:
        if self._transfer.is_final:  # late or abandoned
            for extent in self._written:
                self._on_written(extent.frames)
            return
        assert self._commit is not None
        assert self._ticket is not None
        self._transfer.hold()
        self._commit.join(self._ticket, self._synced)

    def _synced(self, status: Status, reason: Reason) -> None:
        for extent in self._written:
            self._acknowledge(extent, Outcome.all(len(extent.positions), status, reason))
        self._transfer.let_go()

    def _acknowledge(self, extent: Written, outcome: Outcome) -> None:
        """Make the pages final, and findable where they landed."""
        fresh = self._transfer.finish(extent.positions, outcome)
        extent.publish(fresh & (outcome.statuses == Status.LANDED))
        self._on_written(extent.frames)
