# SPDX-License-Identifier: Apache-2.0
"""Pages whose bytes follow from a number, and memory to put them in: an oracle needs no memory."""

import hashlib
import mmap

import numpy as np
from numpy.typing import NDArray

from bodocache.digest import digest_rows, seeded
from bodocache.io.backend import TRANSFER
from bodocache.pages import KEY_NBYTES

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class NumberedPages:
    """Pages of ``page_nbytes`` bytes (a multiple of 16), by number."""

    def __init__(self, page_nbytes: int) -> None:
        self.page_nbytes = page_nbytes
        self._places = np.arange(page_nbytes // 8, dtype=np.uint64) * _MULTIPLIER

    def key(self, number: int) -> NDArray[np.uint8]:
        """The key of page ``number``: u8[32]."""
        name = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=KEY_NBYTES)
        return np.frombuffer(name.digest(), np.uint8)

    def payload(self, number: int) -> NDArray[np.uint8]:
        """The bytes of page ``number``: other ones at every place of every page."""
        seed = self.key(number)[:8].view(np.uint64)
        words: NDArray[np.uint64] = (self._places + seed) ^ (self._places >> np.uint64(29))
        return words.view(np.uint8)

    def buffers(self, slots: int) -> NDArray[np.uint8]:
        """Zeroed u8[slots, page_nbytes] that begins at a page of memory, as O_DIRECT wants."""
        memory = mmap.mmap(-1, max(1, slots * self.page_nbytes))
        return np.frombuffer(memory, np.uint8)[: slots * self.page_nbytes].reshape(
            slots, self.page_nbytes
        )

    def fill(self, buffers: NDArray[np.uint8], numbers: list[int]) -> None:
        """Put page ``numbers[i]`` into row i of ``buffers``."""
        for slot, number in enumerate(numbers):
            buffers[slot] = self.payload(number)

    def batch(self, numbers: list[int], frames: NDArray[np.int64]) -> NDArray[np.void]:
        """TRANSFER records of ``numbers`` as a chain; page i lies in slot i and ``frames[i]``."""
        batch = np.zeros(len(numbers), TRANSFER)
        for i, number in enumerate(numbers):
            batch["key"][i] = self.key(number)
            batch["digest"][i] = self.digest(number)
        batch["parent"][1:] = batch["key"][:-1]
        batch["depth"] = batch["slot"] = np.arange(len(numbers))
        batch["frame"] = frames
        batch["nbytes"] = self.page_nbytes
        batch["owner"] = 1 + np.array(numbers)
        return batch

    def digest(self, number: int) -> NDArray[np.uint64]:
        """The seeded digest of page ``number``: u64[2]."""
        raw = digest_rows(self.payload(number)[None], np.zeros(1, np.int64))
        bound: NDArray[np.uint64] = seeded(raw, self.key(number)[None])[0]
        return bound
