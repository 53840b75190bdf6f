# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 -- constexprs are UPPER_CASE
"""What the page kernels share on the device: where a tile of a page lies, and its digest.

A tile is [TILE_UNITS, 4] int32 words: a thread moves 16-byte units, whatever the page's shape.
"""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def locate(
    table_ptr: tl.tensor,
    item: tl.tensor,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    RUN_UNITS: tl.constexpr,
    TILE_UNITS: tl.constexpr,
) -> tl.tensor:
    """Tile ``item`` of a call: (index of the page, base, units [TILE_UNITS] of the piece, mask)."""
    piece_units: tl.constexpr = TOKENS * HEADS * RUN_UNITS
    piece_tiles: tl.constexpr = (piece_units + TILE_UNITS - 1) // TILE_UNITS
    num_bases = tl.load(table_ptr)
    piece = item // piece_tiles
    unit = (item % piece_tiles) * TILE_UNITS + tl.arange(0, TILE_UNITS)
    return piece // num_bases, piece % num_bases, unit, (unit < piece_units)[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def paged_pointers(
    table_ptr: tl.tensor,
    slot: tl.tensor,
    base: tl.tensor,
    unit: tl.tensor,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    RUN_UNITS: tl.constexpr,
) -> tl.tensor:
    """Pointers int32[TILE_UNITS, 4] to units ``unit`` of the piece at ``base`` of page ``slot``."""
    run = unit // RUN_UNITS
    address = tl.load(table_ptr + 4 + base) + slot * tl.load(table_ptr + 1) + unit % RUN_UNITS
    if TOKENS > 1:
        address += (run // HEADS) * tl.load(table_ptr + 2)
    if HEADS > 1:
        address += (run % HEADS) * tl.load(table_ptr + 3)
    pointer = (address * 16).to(tl.pointer_type(tl.int32))
    # The alignment is lost in the cast; without it, every access is 4 bytes wide.
    return tl.multiple_of(pointer, 16)[:, None] + tl.arange(0, 4)[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def row_pointers(pages_ptr: tl.tensor, unit: tl.tensor) -> tl.tensor:
    """Pointers int32[TILE_UNITS, 4] to the ``unit``-th (int64) units of a page matrix."""
    return pages_ptr + (unit * 4)[:, None] + tl.arange(0, 4)[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def add_digest(digests_ptr: tl.tensor, index: tl.tensor, words: tl.tensor, unit: tl.tensor) -> None:
    """Add to ``digests[index]`` the raw sums of a tile: units ``unit`` (int64) of the page."""
    value = words.to(tl.uint32, bitcast=True).to(tl.int64)
    position = (unit * 4 + 1)[:, None] + tl.arange(0, 4)[None, :]
    s1 = tl.sum(tl.sum(value, 1), 0)
    s2 = tl.sum(tl.sum(value * position, 1), 0)
    # Integer sums have no order: atomics give the same bits every time.
    tl.atomic_add(digests_ptr + 2 * index, s1, sem="relaxed")
    tl.atomic_add(digests_ptr + 2 * index + 1, s2, sem="relaxed")
