# SPDX-License-Identifier: Apache-2.0
"""Model of ``csrc/bulk_copy.cu``: its schedule on CPU memory, bulk copies ending in any order.

It takes the launch's own arguments and reads and writes the addresses they name. It asserts that no
stage is overwritten before it was drained, none drained before it was filled, and none waits for
ever. Names are the source's.
"""

import ctypes
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bodocache.kernels.bulk import PENDING_STORES
from bodocache.kernels.check import UNIT_NBYTES

Ready = Callable[[], bool]
Choose = Callable[[int], int]  # one of so many, as random.Random(..).randrange


class Chunk(NamedTuple):
    """``num_units`` of the stream, from ``first_unit`` of its page ``page`` on."""

    page: int
    first_unit: int
    num_units: int


class Piece(NamedTuple):
    """Contiguous units of one side: where they are, and where in the stage."""

    address: int
    first_unit: int
    num_units: int


def chunk_at(arguments: Any, index: int) -> Chunk:
    """Chunk ``index`` of the stream."""
    first = index * int(arguments["chunk_units"])
    left = int(arguments["total_units"]) - first
    page, unit = divmod(first, int(arguments["page_units"]))
    return Chunk(page, unit, min(left, int(arguments["chunk_units"])))


def pieces_of(side: Any, chunk: Chunk) -> Iterator[Piece]:
    """The pieces of a chunk, each within one run of ``side``."""
    run, inside = divmod(chunk.first_unit, int(side["run_units"]))
    begin = 0
    while begin < chunk.num_units:
        units = min(int(side["run_units"]) - inside, chunk.num_units - begin)
        page, page_run = divmod(run, int(side["page_runs"]))
        base, row = divmod(page_run, int(side["base_runs"]))
        token, head = divmod(row, int(side["heads"]))
        unit = _word(side["bases"], base, 8) + inside
        unit += _slot(side, chunk.page + page) * int(side["page_stride"])
        unit += token * int(side["token_stride"]) + head * int(side["head_stride"])
        yield Piece(unit * UNIT_NBYTES, begin, units)
        run, inside, begin = run + 1, 0, begin + units


class Barrier:
    """An mbarrier for one arrival a phase."""

    def __init__(self) -> None:
        self._phases_over = 0
        self._arrivals = 1
        self._nbytes = 0  # still to come in this phase

    def arrive(self, expecting: int = 0) -> None:
        """Arrive; the phase also waits for so many bytes."""
        self._arrivals -= 1
        assert self._arrivals == 0, "two arrivals in one phase"
        self.complete(-expecting)

    def complete(self, nbytes: int) -> None:
        """So many bytes have come."""
        self._nbytes -= nbytes
        if not self._arrivals and not self._nbytes:
            self._phases_over, self._arrivals = self._phases_over + 1, 1

    def is_over(self, parity: int) -> bool:
        """Whether the phase of that parity is over: the current one has the other parity."""
        return self._phases_over % 2 != parity


@dataclass(eq=False, slots=True)
class Transfer:
    """A bulk copy on its way between a piece's address and a stage."""

    stage: int
    piece: Piece
    stores: bool
    bytes_read: bytes | None = None


class Block:
    """One block: its shared memory, its two warps, and the bulk copies in flight."""

    def __init__(
        self, arguments: Any, index: int, num_blocks: int, pending_stores: int = PENDING_STORES
    ) -> None:
        """Block ``index`` of a launch; another ``pending_stores`` than the source's is a fault."""
        self._arguments = arguments
        self._chunks = range(index, int(arguments["num_chunks"]), num_blocks)
        self._pending_stores = pending_stores
        self._stages = int(arguments["num_stages"])
        self._ring = np.zeros((self._stages, int(arguments["chunk_units"]), UNIT_NBYTES), np.uint8)
        self._filled = [Barrier() for _ in range(self._stages)]
        self._drained = [Barrier() for _ in range(self._stages)]
        self._in_flight: list[Transfer] = []
        self._undrained: set[int] = set()  # stages that hold bytes not yet read

    def run(self, choose: Choose) -> None:
        """Run to the end; ``choose`` picks what happens next among all that can."""
        warps = [(warp, next(warp, None)) for warp in (self._load(), self._store())]
        while True:
            able = [i for i, (_, ready) in enumerate(warps) if ready is not None and ready()]
            count = len(able) + len(self._in_flight)
            if count == 0:
                break
            chosen = choose(count)
            if chosen < len(able):
                warp, _ = warps[able[chosen]]
                warps[able[chosen]] = warp, next(warp, None)
            else:
                self._advance(self._in_flight[chosen - len(able)])
        assert all(ready is None for _, ready in warps), "a warp waits for ever"

    def _load(self) -> Generator[Ready, None, None]:
        for i, index in enumerate(self._chunks):
            stage, parity = i % self._stages, i // self._stages % 2
            yield partial(self._drained[stage].is_over, parity ^ 1)
            assert stage not in self._undrained, "a stage is overwritten before it was drained"
            self._undrained.add(stage)
            chunk = chunk_at(self._arguments, index)
            self._filled[stage].arrive(chunk.num_units * UNIT_NBYTES)
            for piece in pieces_of(self._arguments["source"], chunk):
                self._in_flight.append(Transfer(stage, piece, stores=False))

    def _store(self) -> Generator[Ready, None, None]:
        groups: list[list[Transfer]] = []
        for i, index in enumerate(self._chunks):
            stage, parity = i % self._stages, i // self._stages % 2
            yield partial(self._filled[stage].is_over, parity)
            assert not any(t.stage == stage for t in self._in_flight if not t.stores), (
                "a stage is drained before it was filled"
            )
            chunk = chunk_at(self._arguments, index)
            pieces = pieces_of(self._arguments["destination"], chunk)
            groups.append([Transfer(stage, piece, stores=True) for piece in pieces])
            self._in_flight += groups[-1]
            yield partial(_are_read, groups[: len(groups) - self._pending_stores])
            if i > 0:
                self._drained[(i - 1) % self._stages].arrive()
        yield lambda: not self._in_flight

    def _advance(self, transfer: Transfer) -> None:
        """A load ends; a store reads its stage first, and ends another time."""
        begin, units = transfer.piece.first_unit, transfer.piece.num_units
        place = self._ring[transfer.stage, begin : begin + units]
        if not transfer.stores:
            place[:] = _read(transfer.piece).reshape(place.shape)
            self._filled[transfer.stage].complete(place.nbytes)
        elif transfer.bytes_read is None:
            transfer.bytes_read = place.tobytes()
            if all(t.bytes_read for t in self._in_flight if t.stage == transfer.stage):
                self._undrained.discard(transfer.stage)
            return
        else:
            ctypes.memmove(transfer.piece.address, transfer.bytes_read, place.nbytes)
        self._in_flight.remove(transfer)


def _are_read(groups: list[list[Transfer]]) -> bool:
    return all(transfer.bytes_read is not None for group in groups for transfer in group)


def _read(piece: Piece) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    raw = ctypes.string_at(piece.address, piece.num_units * UNIT_NBYTES)
    return np.frombuffer(raw, np.uint8)


def _slot(side: Any, page: int) -> int:
    return _word(side["slots"], page, int(side["slot_nbytes"]))


def _word(address: Any, index: int, nbytes: int) -> int:
    raw = ctypes.string_at(int(address) + index * nbytes, nbytes)
    return int.from_bytes(raw, "little", signed=True)
