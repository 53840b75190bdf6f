# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 -- constexprs are UPPER_CASE
"""Where the heads of a pool's pages and of quantised pages lie, on the device, and their digests.

A unit is 16 codes: 16 bytes of a quantised page, 32 of the pool. An item is one head of one page,
layer, K or V: what shares a scale.
"""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def locate_head(
    table_ptr: tl.tensor,
    item: tl.tensor,
    KV: tl.constexpr,
    HEADS: tl.constexpr,
    UNITS: tl.constexpr,
) -> tl.tensor:
    """Item ``item`` of a call: (index of the page, base, head, word of its scale, unit of codes).

    Word and unit (int64) count from the start of the quantised page.
    """
    scale_units: tl.constexpr = (KV * HEADS + 3) // 4
    layer_units: tl.constexpr = scale_units + KV * HEADS * UNITS
    num_bases = tl.load(table_ptr)
    head, rest = item % HEADS, item // HEADS
    base = rest % num_bases
    layer_unit = base // KV * layer_units
    of_layer = base % KV * HEADS + head
    code_unit = layer_unit + scale_units + of_layer * UNITS
    return rest // num_bases, base, head, layer_unit * 4 + of_layer, code_unit


@triton.jit  # type: ignore[untyped-decorator]
def scale_lanes(
    base: tl.tensor, head: tl.tensor, KV: tl.constexpr, HEADS: tl.constexpr
) -> tl.tensor:
    """(lanes [4], mask): its scale's word and, of the last head, the padding behind it."""
    lane = tl.arange(0, 4)
    padding: tl.constexpr = (4 - KV * HEADS % 4) % 4
    last = base % KV * HEADS + head == KV * HEADS - 1
    return lane, lane < tl.where(last, 1 + padding, 1)


@triton.jit  # type: ignore[untyped-decorator]
def paged_head(
    table_ptr: tl.tensor, slot: tl.tensor, base: tl.tensor, head: tl.tensor
) -> tl.tensor:
    """Address / 16 (int64) of token 0 of a head of page ``slot``."""
    address = tl.load(table_ptr + 4 + base) + slot * tl.load(table_ptr + 1)
    return address + head * tl.load(table_ptr + 3)


@triton.jit  # type: ignore[untyped-decorator]
def value_pointers(
    table_ptr: tl.tensor, address: tl.tensor, unit: tl.tensor, ROW_UNITS: tl.constexpr
) -> tl.tensor:
    """Pointers int32[TILE_UNITS, 8] to the values of units ``unit`` of the head at ``address``."""
    address += (unit // ROW_UNITS) * tl.load(table_ptr + 2) + unit % ROW_UNITS * 2
    pointer = (address * 16).to(tl.pointer_type(tl.int32))
    # The alignment is lost in the cast; without it, every access is 4 bytes wide.
    return tl.multiple_of(pointer, 16)[:, None] + tl.arange(0, 8)[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def code_pointers(pages_ptr: tl.tensor, unit: tl.tensor) -> tl.tensor:
    """Pointers int32[TILE_UNITS, 4] to the ``unit``-th (int64) units of a page matrix."""
    return pages_ptr + (unit * 4)[:, None] + tl.arange(0, 4)[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def unit_sums(words: tl.tensor, unit: tl.tensor) -> tl.tensor:
    """The raw sums (s1, s2) of ``words`` [TILE_UNITS, 4], units ``unit`` (int64) of the page."""
    value = words.to(tl.uint32, bitcast=True).to(tl.int64)
    position = (unit * 4 + 1)[:, None] + tl.arange(0, 4)[None, :]
    return tl.sum(tl.sum(value, 1), 0), tl.sum(tl.sum(value * position, 1), 0)


@triton.jit  # type: ignore[untyped-decorator]
def word_sums(words: tl.tensor, word: tl.tensor) -> tl.tensor:
    """The raw sums (s1, s2) of ``words`` [4], words ``word`` (int64) of the page."""
    value = words.to(tl.uint32, bitcast=True).to(tl.int64)
    return tl.sum(value, 0), tl.sum(value * (word + 1), 0)


@triton.jit  # type: ignore[untyped-decorator]
def add_sums(digests_ptr: tl.tensor, index: tl.tensor, s1: tl.tensor, s2: tl.tensor) -> None:
    """Add raw sums to ``digests[index]``: one pair of atomics per head."""
    # Integer sums have no order: atomics give the same bits every time.
    tl.atomic_add(digests_ptr + 2 * index, s1, sem="relaxed")
    tl.atomic_add(digests_ptr + 2 * index + 1, s2, sem="relaxed")
