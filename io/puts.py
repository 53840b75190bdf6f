# SPDX-License-Identifier: Apache-2.0
"""One put from its first extent to its acknowledgement. All of it on the loop."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bodocache.io.backend import Durability, Status
from bodocache.io.medium import Medium
from bodocache.io.transfer import BatchTransfer, Outcome, WriteRequest
from bodocache.io.write import Sync


class PutBatch:
    """Acknowledges each extent as it is written, or all of them after one sync."""

    __slots__ = (
        *("_durability", "_failures_before", "_medium", "_on_written", "_remaining", "_transfer"),
        "_written",
    )

    def __init__(
        self,
        medium: Medium,
        transfer: BatchTransfer,
        durability: Durability,
        on_written: Callable[[NDArray[np.int64]], None],
    ) -> None:
        """``on_written`` is told of frames that nothing writes to any more."""
        self._medium = medium
        self._transfer = transfer
        self._durability = durability
        self._failures_before = medium.syncs.failures
        self._on_written = on_written
        self._remaining = 0
        self._written: list[WriteRequest] = []

    def begin(self, extents: Sequence[WriteRequest]) -> None:
        """Queue all extents of the put."""
        self._remaining = len(extents)
        self._transfer.submit(extents)

    def settle(self, extent: WriteRequest, outcome: Outcome) -> None:
        """Take note of one extent's outcome; it is LANDED whole or not at all."""
        self._remaining -= 1
        self._on_written(extent.frames)
        if self._durability is Durability.SYNC and (outcome.statuses == Status.LANDED).all():
            self._written.append(extent)
        else:
            fresh = self._transfer.finish(extent.positions, outcome)
            extent.publish(fresh & (outcome.statuses == Status.LANDED))
        if not self._remaining and self._written and not self._transfer.is_final:
            self._transfer.submit(
                [Sync(self._medium, self._transfer, self._written, self._failures_before)]
            )
