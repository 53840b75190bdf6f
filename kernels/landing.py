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
from bodocache.kernels.runs import Runs, runs_of
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
        ("order", "<i8"),  # int64, from positions to elements of what follows
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


class Landing:
    """A batch whose pages are sent on as they land; keeps alive what the C function works on.

    Page i of the arrays goes from row ``rows[i]`` of ``pages`` to slot ``slots[i]`` of ``memory``,
    and ``verified[i]`` becomes whether its seeded digest is ``digests[i]``. ``order`` maps the
    positions that :attr:`function` is told of to i. Threads call it at once for pages of their own.
    """

    __slots__ = ("_argument", "_kept", "argument", "function")

    def __init__(
        self,
        memory: PagedMemory,
        pages: torch.Tensor,
        *,
        order: NDArray[np.int64],
        rows: NDArray[np.int64],
        slots: NDArray[np.int64],
        keys: NDArray[np.uint8],
        digests: NDArray[np.uint64],
        verified: NDArray[np.bool_],
    ) -> None:
        """Operands are as ``scatter_pages`` wants them, on the CPU; arrays must be C-ordered.

        Raises:
            LayoutError: they do not fit; nothing is checked again when pages land.
        """
        runs = runs_of(memory)
        _check_operands(memory, pages, runs, rows, slots)
        arrays: dict[str, NDArray[Any]] = {
            "bases": runs.bases,
            "numbers": runs.numbers,
            "order": order,
            "rows": rows,
            "slots": slots,
            "keys": keys,
            "digests": digests,
            "verified": verified,
        }
        assert all(array.flags.c_contiguous for array in arrays.values())
        self._kept = (memory, pages, arrays)
        self._argument = np.zeros(1, _ARGUMENT)
        for name, array in arrays.items():
            self._argument[name] = array.ctypes.data
        self._argument["num_bases"] = len(runs.bases)
        self._argument["pages"] = pages.data_ptr()
        self._argument["row_stride"] = pages.stride(0)
        self._argument["mode"] = cpu.scatter_mode(runs)
        self.argument = self._argument.ctypes.data
        self.function = _land.address

    @property
    def landed_s(self) -> float:
        """When the last page had landed; 0 if none has."""
        return float(self._argument["landed_s"][0])


def _check_operands(
    memory: PagedMemory,
    pages: torch.Tensor,
    runs: Runs,
    rows: NDArray[np.int64],
    slots: NDArray[np.int64],
) -> None:
    if memory.device.type != "cpu" or pages.device.type != "cpu":
        raise LayoutError(f"landing: pages on {pages.device} to {memory.device}; only on the CPU")
    if pages.ndim != 2 or pages.shape[1] != runs.page_nbytes or pages.stride(1) != 1:
        raise LayoutError(f"landing: {list(pages.shape)}; rows of {runs.page_nbytes} bytes needed")
    for name, chosen, count in (("rows", rows, len(pages)), ("slots", slots, memory.num_pages)):
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < count:
            raise LayoutError(f"landing: {name} {chosen.min()}..{chosen.max()} of {count}")


@jit.compiled(jit.i8, jit.array("i8"))
def _send(address: Any, positions: Any) -> None:
    argument, count = carray(_argument_at(address), 1)[0], len(positions)
    chosen = np.empty((3, count), np.int64)
    digests = np.zeros((count, 2), np.uint64)
    pages, slots, rows = chosen[0], chosen[1], chosen[2]
    for k in range(count):
        page = carray(_int64_at(argument.order + 8 * positions[k]), 1)[0]
        pages[k] = page
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
        page = pages[k]
        key = carray(_uint64_at(argument.keys + 8 * _KEY_WORDS * page), 2)
        wanted = carray(_uint64_at(argument.digests + 16 * page), 2)
        right = digests[k, 0] + key[0] == wanted[0] and digests[k, 1] + key[1] == wanted[1]
        carray(_bool_at(argument.verified + page), 1)[0] = right
    argument.landed_s = jit.now_s(np.empty(2, np.int64))


@jit.c_function(jit.i8, jit.i8, jit.i8)
def _land(address: Any, positions: Any, count: Any) -> None:
    _send(address, carray(_int64_at(positions), count))
