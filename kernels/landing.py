# SPDX-License-Identifier: Apache-2.0
"""Pages sent on to a CPU pool by the thread that read them: a C function, without Python's lock.

It scatters rows of a host buffer to pages of a pool and compares the digests of what was moved.
Only callers of the CPU path import this: it needs numba.
"""

from typing import Any

import numpy as np
import torch
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from bodocache import jit
from bodocache.errors import LayoutError
from bodocache.kernels import cpu
from bodocache.kernels.prepared import runs_on_cpu
from bodocache.layout import PagedMemory
from bodocache.pages import KEY_NBYTES

# What the function is given; addresses are of C-ordered arrays with one element per page.
_ARGUMENT = np.dtype(
    [
        ("bases", "<i8"),  # of Runs
        ("num_bases", "<i8"),
        ("numbers", "<i8"),
        ("pages", "<i8"),  # address of row 0
        ("row_stride", "<i8"),
        ("mode", "<i8"),
        ("num_rows", "<i8"),
        ("num_slots", "<i8"),
        ("rows", "<i8"),  # int64
        ("slots", "<i8"),  # int64
        ("keys", "<i8"),  # uint8[32]
        ("digests", "<i8"),  # uint64[2], seeded
        ("verified", "<i8"),  # bool, out
        ("landed_s", "<f8"),  # out: when the last call had ended, on the clock of time.monotonic
    ]
)
_KEY_WORDS = KEY_NBYTES // 8

_argument_at = jit.pointer_to(jit.record(_ARGUMENT))
_int64_at = jit.pointer_to(jit.i8)
_uint64_at = jit.pointer_to(jit.u8)
_bool_at = jit.pointer_to(jit.boolean)


class LandingPad:
    """Where pages land: rows of a host buffer, scattered to the slots of one CPU memory.

    It is checked once, so that a landing costs 5 us. Keeps both memories alive.
    """

    __slots__ = ("_kept", "_pattern")

    def __init__(self, memory: PagedMemory, pages: torch.Tensor) -> None:
        """LayoutError where ``pages`` (uint8[M, page_nbytes]) does not fit, or on a GPU."""
        runs = runs_on_cpu("landing", memory, pages)
        self._kept = (memory, pages, runs)
        self._pattern = np.zeros(1, _ARGUMENT)
        self._pattern["bases"] = runs.bases.ctypes.data
        self._pattern["num_bases"] = len(runs.bases)
        self._pattern["numbers"] = runs.numbers.ctypes.data
        self._pattern["pages"] = pages.data_ptr()
        self._pattern["row_stride"] = pages.stride(0)
        self._pattern["mode"] = cpu.scatter_mode(runs)
        self._pattern["num_rows"] = len(pages)
        self._pattern["num_slots"] = memory.num_pages

    def expect(
        self,
        rows: NDArray[np.int64],
        slots: NDArray[np.int64],
        keys: NDArray[np.uint8],
        digests: NDArray[np.uint64],
        verified: NDArray[np.bool_],
    ) -> "Landing":
        """A batch whose page i goes from row ``rows[i]`` to slot ``slots[i]``.

        ``verified[i]`` becomes whether its seeded digest is ``digests[i]`` under ``keys[i]``. The
        arrays are C-ordered.

        Raises:
            LayoutError: a row or slot is outside; nothing is checked again when pages land.
        """
        argument = self._pattern.copy()
        address = _address(argument, rows, slots, keys, digests, verified)
        if not address:
            raise LayoutError(
                f"landing: rows {rows.tolist()}, slots {slots.tolist()}: expected as many of each,"
                f" within {argument['num_rows'][0]} rows and {argument['num_slots'][0]} slots"
            )
        return Landing(argument, address, (self, rows, slots, keys, digests, verified))


class Landing:
    """A batch whose pages are sent on as they land; keeps alive what the C function works on.

    The function is told of indices into the batch. Threads call it at once for pages of their own.
    """

    __slots__ = ("_argument", "_kept", "argument", "function")

    def __init__(self, argument: NDArray[np.void], address: int, kept: object) -> None:
        """Made by :meth:`LandingPad.expect`."""
        self._kept = kept
        self._argument = argument
        self.argument = address
        self.function = _land.address

    @property
    def landed_s(self) -> float:
        """When the last page had landed; 0 if none has."""
        return float(self._argument["landed_s"][0])


@jit.compiled(
    *(jit.array(_ARGUMENT), jit.array("i8"), jit.array("i8")),
    *(jit.array("u1", 2), jit.array("u8", 2), jit.array("?")),
)
def _address(argument: Any, rows: Any, slots: Any, keys: Any, digests: Any, verified: Any) -> Any:
    """Fill in where the columns lie; return where ``argument`` does, or 0: they are no landing."""
    count, said = len(rows), argument[0]
    if not (count == len(slots) == len(keys) == len(digests) == len(verified)):
        return 0
    for i in range(count):
        if not (0 <= rows[i] < said.num_rows and 0 <= slots[i] < said.num_slots):
            return 0
    said.rows, said.slots = rows.ctypes.data, slots.ctypes.data
    said.keys, said.digests = keys.ctypes.data, digests.ctypes.data
    said.verified = verified.ctypes.data
    return np.int64(argument.ctypes.data)  # unsigned: with the 0 above it were a float


@jit.compiled(jit.i8, jit.array("i8"))
def _send(address: Any, positions: Any) -> None:
    argument, count = carray(_argument_at(address), 1)[0], len(positions)
    chosen = np.empty((2, count), np.int64)
    digests = np.zeros((count, 2), np.uint64)
    slots, rows = chosen[0], chosen[1]
    for k in range(count):
        page = positions[k]
        slots[k] = carray(_int64_at(argument.slots + 8 * page), 1)[0]
        rows[k] = carray(_int64_at(argument.rows + 8 * page), 1)[0]
    cpu._move(  # noqa: SLF001 -- the CPU path's loop, which launchers reach through cpu.move
        carray(_int64_at(argument.bases), argument.num_bases),
        carray(_int64_at(argument.numbers), 6),
        slots,
        rows,
        argument.pages,
        argument.row_stride,
        argument.mode,
        digests,
    )
    for k in range(count):
        page = positions[k]
        key = carray(_uint64_at(argument.keys + 8 * _KEY_WORDS * page), 2)
        wanted = carray(_uint64_at(argument.digests + 16 * page), 2)
        right = digests[k, 0] + key[0] == wanted[0] and digests[k, 1] + key[1] == wanted[1]
        carray(_bool_at(argument.verified + page), 1)[0] = right
    argument.landed_s = jit.now_s(np.empty(2, np.int64))


@jit.c_function(jit.i8, jit.i8, jit.i8)
def _land(address: Any, positions: Any, count: Any) -> None:
    _send(address, carray(_int64_at(positions), count))
