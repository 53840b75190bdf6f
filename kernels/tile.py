# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 -- constexprs are UPPER_CASE
"""What the page kernels share on the device: where the units of a page lie, and their sums.

A tile is [ROWS, UNITS, 4] int32 words: a thread moves 16-byte units, whatever the page's shape.
"""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def paged_pointers(
    table_ptr: tl.tensor,
    slot: tl.tensor,
    base: tl.tensor,
    unit: tl.tensor,
    mask: tl.tensor,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    RUN_UNITS: tl.constexpr,
) -> tl.tensor:
    """Pointers int32[ROWS, UNITS, 4] to units ``unit`` of the piece at ``base`` of page ``slot``.

    ``slot`` is [ROWS, 1], ``unit`` [1, UNITS], ``base`` and ``mask`` [ROWS, UNITS]; the table is
    ``launch.device_table``'s.
    """
    run = unit // RUN_UNITS
    address = tl.load(table_ptr + 4 + base, mask=mask, other=0)
    address += slot * tl.load(table_ptr + 1) + unit % RUN_UNITS
    if TOKENS > 1:
        address += (run // HEADS) * tl.load(table_ptr + 2)
    if HEADS > 1:
        address += (run % HEADS) * tl.load(table_ptr + 3)
    pointer = (address * 16).to(tl.pointer_type(tl.int32))
    # The alignment is lost in the cast; without it, every access is 4 bytes wide.
    return tl.multiple_of(pointer, (16, 16))[:, :, None] + tl.arange(0, 4)[None, None, :]


@triton.jit  # type: ignore[untyped-decorator]
def row_pointers(pages_ptr: tl.tensor, unit: tl.tensor) -> tl.tensor:
    """Pointers int32[ROWS, UNITS, 4] to the ``unit``-th (int64) units of a page matrix."""
    return pages_ptr + (unit * 4)[:, :, None] + tl.arange(0, 4)[None, None, :]


@triton.jit  # type: ignore[untyped-decorator]
def add_sums(
    sums_ptr: tl.tensor, row: tl.tensor, live: tl.tensor, words: tl.tensor, unit: tl.tensor
) -> None:
    """Add to ``sums[row]`` the raw sums of a tile's rows; ``unit`` [1, UNITS] counts from the row's
    first. Rows that are not ``live`` have none.
    """
    value = words.to(tl.uint32, bitcast=True).to(tl.int64)
    position = (unit.to(tl.int64) * 4 + 1)[:, :, None] + tl.arange(0, 4)[None, None, :]
    s1 = tl.sum(tl.sum(value, 2), 1)
    s2 = tl.sum(tl.sum(value * position, 2), 1)
    # Integer sums have no order: atomics give the same bits every time.
    tl.atomic_add(sums_ptr + 2 * row, s1, mask=live, sem="relaxed")
    tl.atomic_add(sums_ptr + 2 * row + 1, s2, mask=live, sem="relaxed")
