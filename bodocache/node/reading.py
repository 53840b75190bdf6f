# SPDX-License-Identifier: Apache-2.0
"""What one fetch reads from disk, chunk by chunk, in the disk's queue."""

from typing import TYPE_CHECKING

from bodocache.move.residency import RowArray

if TYPE_CHECKING:
    from bodocache.io.backend import Transfer
    from bodocache.move.queue import Ticket
    from bodocache.node.fetches import Fetch, Fetcher


class Reading:
    """What a fetch reads, chunk by chunk. Implements :class:`bodocache.move.queue.Work`."""

    def __init__(self, fetcher: "Fetcher", fetch: "Fetch", positions: RowArray) -> None:
        self.fetch = fetch
        self.begun_s = fetcher.now_s()
        self.left = positions  # not begun
        self.transfers: list[Transfer] = []
        self.under_way = self.landed = 0  # pages
        self.ticket: Ticket | None = None
        self._fetcher = fetcher

    @property
    def left_nbytes(self) -> int:
        """What has not arrived."""
        return (len(self.left) + self.under_way) * self._fetcher.page_nbytes

    def begin(self, nbytes: int) -> int:
        """Begin to read a chunk: no more than one, so that something more urgent never waits."""
        nbytes = min(nbytes, self._fetcher.chunk_nbytes)
        pages = max(1, nbytes // self._fetcher.page_nbytes)
        while len(self.left):
            chunk, self.left = self.left[:pages], self.left[pages:]
            if self._fetcher.read_chunk(self, chunk):
                return len(chunk) * self._fetcher.page_nbytes
        self._fetcher.end_if_over(self)
        return 0

    def withdraw(self) -> None:
        """What has begun is one chunk: it goes on."""

    def stop(self) -> None:
        """Begin nothing more."""
        dropped, self.left = self.left, self.left[:0]
        self._fetcher.hand_over(self, dropped)
        for transfer in self.transfers:
            transfer.abandon()
        self._fetcher.end_if_over(self)
