# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 -- constexprs are UPPER_CASE
"""Choose the pages that leave a tier first, by a radix select over their eviction keys.

The order is (key, deepest first, row) as in the planner: one 56-bit number a page, of the monotone
image of its key, then its depth from above. A pass counts one 8-bit digit of the numbers that share
the digits found so far, and the launch after it finds the next digit for itself: none waits for the
host. When all pages of a digit are wanted, the passes left do nothing. Two launches write the rows.
A parent's key is never less than its child's, and it is shallower: who takes the first of the order
orphans nobody.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from bodocache.errors import LayoutError
from bodocache.kernels import check
from bodocache.kernels.launch import Launch
from bodocache.kernels.page_records import DEPTH, DEPTH_BITS, DevicePages, check_keys, compiled
from bodocache.kernels.reference.coldest import coldest_pages as twin
from bodocache.kernels.score import sample

PASSES = (32 + DEPTH_BITS) // 8
COUNT_ROWS = 1024  # a turn of a program that counts digits; 2048 spill on sm_100
# Each program adds its 256 counts to the same addresses, so there are two a multiprocessor and no
# more.
COUNT_PROGRAMS = 264
# A program that writes rows adds up the counts of all before it, so few large ones; 4096 take 134
# registers on sm_80.
CHOOSE_ROWS = 2048

# A pass's row of the work space, int64: its bins, then where it starts from. 256 bins, because each
# program adds its own and reads the last pass's: 11-bit digits save two passes of seven but need
# eight times as many (which is faster was not measured).
_WORK = 512
_BINS = tl.constexpr(256)
_PREFIX, _LEVEL = tl.constexpr(256), tl.constexpr(257)  # the digits found, and how many
_WANTED, _SETTLED = tl.constexpr(258), tl.constexpr(259)  # of the pages that share them
_STRIDE = tl.constexpr(_WORK)
_DEPTH = tl.constexpr(DEPTH)
_PASSES, _DEPTH_BITS = tl.constexpr(PASSES), tl.constexpr(DEPTH_BITS)
_DEEPEST = tl.constexpr((1 << DEPTH_BITS) - 1)
_KEY_DIGITS = tl.constexpr(4)  # the first; they need no depths
_CHUNK = tl.constexpr(1024)  # of blocks' counts, read at a time

_OP = "coldest_pages"


class Coldest(NamedTuple):
    """The chosen pages. Evict deeper ones before shallower ones, or all at once."""

    rows: torch.Tensor  # int32[n], ascending; NOWHERE (-1) behind the last
    num_pages: torch.Tensor  # int32[1]: how many; less than wanted if all others must stay


@triton.jit  # type: ignore[untyped-decorator]
def places(
    keys_ptr: tl.tensor,
    words_ptr: tl.tensor,
    row: tl.tensor,
    num_pages: tl.tensor,
    level: tl.tensor,
) -> tl.tensor:
    """(56-bit places in the order of eviction, mask of the pages that may go).

    Depths are read only where the first ``level`` digits need them: places have zeros there, else.
    """
    mask = row < num_pages
    key = tl.load(keys_ptr + row, mask=mask, other=float("inf"))
    able = key < float("inf")
    bits = key.to(tl.int32, bitcast=True)
    flipped = bits ^ ((bits >> 31) | -0x80000000)  # so that unsigned order is that of floats
    num_depths = tl.where(level > _KEY_DIGITS, num_pages, 0)
    depth_ptr = words_ptr + num_pages.to(tl.int64) * _DEPTH
    depth = tl.load(depth_ptr + row, mask=able & (row < num_depths), other=_DEEPEST)
    image = flipped.to(tl.uint32, bitcast=True).to(tl.int64)
    return (image << _DEPTH_BITS) | (depth ^ _DEEPEST).to(tl.int64), able


@triton.jit  # type: ignore[untyped-decorator]
def start_of_pass(work_ptr: tl.tensor, index: tl.tensor, count: tl.tensor) -> tl.tensor:
    """(prefix, level, wanted, settled) at the start of pass ``index``, from the pass before it."""
    prefix, level = tl.full((), 0, tl.int64), tl.full((), 0, tl.int64)
    wanted, settled = count.to(tl.int64), tl.full((), 0, tl.int64)
    if index > 0:
        before_ptr = work_ptr + (index - 1) * _STRIDE
        bin_index = tl.arange(0, _BINS)
        bins = tl.load(before_ptr + bin_index)
        prefix, level = tl.load(before_ptr + _PREFIX), tl.load(before_ptr + _LEVEL)
        wanted, settled = tl.load(before_ptr + _WANTED), tl.load(before_ptr + _SETTLED)
        total = tl.sum(bins, 0)
        digit = tl.sum((tl.cumsum(bins, 0) < wanted).to(tl.int64), 0)
        left = wanted - tl.sum(tl.where(bin_index < digit, bins, 0), 0)
        inside = tl.sum(tl.where(bin_index == digit, bins, 0), 0)
        if settled == 0:
            if total <= wanted:  # only in the first pass: fewer pages can go than are wanted
                wanted, settled = total, settled + 1
            else:
                prefix, level, wanted = (prefix << 8) | digit, level + 1, left
                settled = (inside == left).to(tl.int64)
    return prefix, level, wanted, settled


@triton.jit(do_not_specialize=["num_pages", "count", "index"])  # type: ignore[untyped-decorator]
def count_digits_kernel(
    keys_ptr: tl.tensor,
    words_ptr: tl.tensor,
    work_ptr: tl.tensor,
    num_pages: tl.tensor,
    count: tl.tensor,
    index: tl.tensor,
    ROWS: tl.constexpr,
) -> None:
    """Pass ``index``: count the next digit of the pages that share the digits found so far."""
    prefix, level, wanted, settled = start_of_pass(work_ptr, index, count)
    here_ptr = work_ptr + index * _STRIDE
    if tl.program_id(0) == 0:
        tl.store(here_ptr + _PREFIX, prefix)
        tl.store(here_ptr + _LEVEL, level)
        tl.store(here_ptr + _WANTED, wanted)
        tl.store(here_ptr + _SETTLED, settled)
    if settled == 0:
        shift = ((index - (_PASSES - 1)) * -8).to(tl.int64)
        bins = tl.zeros((_BINS,), tl.int32)
        for item in tl.range(tl.program_id(0), tl.cdiv(num_pages, ROWS), tl.num_programs(0)):
            row = item * ROWS + tl.arange(0, ROWS).to(tl.int64)
            place, able = places(keys_ptr, words_ptr, row, num_pages, index + 1)
            shares = able & ((place >> shift) >> 8 == prefix)
            others = ROWS - tl.sum(shares.to(tl.int32), 0)
            if others < ROWS:  # after two passes, few blocks of rows have any
                digit = tl.where(shares, (place >> shift) & 0xFF, 0).to(tl.int32)
                # Triton 3.2 has no masks here: the others are counted as zeros.
                bins += tl.histogram(digit, _BINS)
                bins -= tl.where(tl.arange(0, _BINS) == 0, others, 0)
        bin_ptr = here_ptr + tl.arange(0, _BINS)
        tl.atomic_add(bin_ptr, bins.to(tl.int64), mask=bins > 0, sem="relaxed")


@triton.jit  # type: ignore[untyped-decorator]
def compare(place: tl.tensor, able: tl.tensor, prefix: tl.tensor, level: tl.tensor) -> tl.tensor:
    """(pages before the digits found, pages that share them) as int32 zeros and ones."""
    digits = place >> ((level - _PASSES) * -8)
    return (able & (digits < prefix)).to(tl.int32), (able & (digits == prefix)).to(tl.int32)


@triton.jit(do_not_specialize=["num_pages", "count"])  # type: ignore[untyped-decorator]
def count_chosen_kernel(
    keys_ptr: tl.tensor,
    words_ptr: tl.tensor,
    work_ptr: tl.tensor,
    blocks_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    num_pages: tl.tensor,
    count: tl.tensor,
    ROWS: tl.constexpr,
) -> None:
    """Count a block's pages before the digits found, and those that share them; clear its rows."""
    prefix, level, _, _ = start_of_pass(work_ptr, _PASSES, count)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place, able = places(keys_ptr, words_ptr, row, num_pages, level)
    before, sharing = compare(place, able, prefix, level)
    tl.store(blocks_ptr + 2 * tl.program_id(0), tl.sum(before, 0))
    tl.store(blocks_ptr + 2 * tl.program_id(0) + 1, tl.sum(sharing, 0))
    tl.store(rows_ptr + row, tl.full((ROWS,), -1, tl.int32), mask=row < count)


@triton.jit(do_not_specialize=["num_pages", "count"])  # type: ignore[untyped-decorator]
def write_chosen_kernel(  # noqa: PLR0913, PLR0917 -- what one launch needs
    keys_ptr: tl.tensor,
    words_ptr: tl.tensor,
    work_ptr: tl.tensor,
    blocks_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    chosen_ptr: tl.tensor,
    num_pages: tl.tensor,
    count: tl.tensor,
    ROWS: tl.constexpr,
) -> None:
    """Write a block's chosen rows behind those of the blocks before; the last writes how many."""
    prefix, level, wanted, _ = start_of_pass(work_ptr, _PASSES, count)
    block = tl.program_id(0)
    before_sum, sharing_sum = tl.full((), 0, tl.int64), tl.full((), 0, tl.int64)
    for first in tl.range(0, block, _CHUNK):
        other = first + tl.arange(0, _CHUNK)
        mask = other < block
        before_sum += tl.sum(tl.load(blocks_ptr + 2 * other, mask=mask, other=0), 0)
        sharing_sum += tl.sum(tl.load(blocks_ptr + 2 * other + 1, mask=mask, other=0), 0)
    row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place, able = places(keys_ptr, words_ptr, row, num_pages, level)
    before, sharing = compare(place, able, prefix, level)
    rank = sharing_sum + tl.cumsum(sharing, 0)  # from 1; of equals, the first rows go
    chosen = before | (sharing & (rank <= wanted).to(tl.int32))
    start = before_sum + tl.minimum(sharing_sum, wanted)
    position = start + tl.cumsum(chosen, 0) - 1
    tl.store(rows_ptr + position, row.to(tl.int32), mask=(chosen != 0) & (position < count))
    if block == tl.num_programs(0) - 1:
        tl.store(chosen_ptr, (start + tl.sum(chosen, 0)).to(tl.int32))


def coldest_pages(
    pages: DevicePages, keys: torch.Tensor, count: int, *, cap: int | None = None
) -> Coldest:
    """Choose the ``count`` pages of least key, deepest first, then the first row, on ties.

    Nothing is evicted, and nothing waits for a GPU. The caller updates the chosen rows of ``pages``
    and refreshes the keys before it chooses again.

    Args:
        pages: whose pages to choose.
        keys: float32[capacity] of :func:`refresh_keys`; infinite ones are never chosen.
        count: how many are wanted.
        cap: the churn guard: no more than this in a call, whatever is wanted.

    Raises:
        LayoutError: ``keys``, ``count`` or ``cap`` does not fit.
    """
    check_keys(_OP, "keys", pages, keys)
    if not all(isinstance(n, int) and n >= 0 for n in (count, cap or 0)):
        raise LayoutError(f"{_OP}: count is {count} and cap {cap}; expected 0 or more of both")
    num_rows = min(count, pages.capacity, count if cap is None else cap)
    rows = torch.empty(num_rows, dtype=torch.int32, device=pages.device)
    if not num_rows:
        return Coldest(rows, torch.zeros(1, dtype=torch.int32, device=pages.device))
    chosen = torch.empty(1, dtype=torch.int32, device=pages.device)
    if check.on_gpu(pages.device):
        for step in launches(pages, keys, Coldest(rows, chosen)):
            step.run()
    elif (cpu := compiled()) is not None:
        chosen[0] = cpu.coldest(pages, keys, rows)
    else:
        found = twin(keys, pages.words[DEPTH], num_rows)
        rows[: len(found)], rows[len(found) :], chosen[0] = found, -1, len(found)
    return Coldest(rows, chosen)


def launches(pages: DevicePages, keys: torch.Tensor, out: Coldest) -> list[Launch]:
    """The launches that choose ``len(out.rows)`` (one or more) pages by checked ``keys``."""
    num_blocks = triton.cdiv(pages.capacity, CHOOSE_ROWS)
    common: dict[str, torch.Tensor | int] = {
        "keys_ptr": keys,
        "words_ptr": pages.words,
        "work_ptr": torch.zeros((PASSES, _WORK), dtype=torch.int64, device=keys.device),
        "num_pages": pages.capacity,
        "count": len(out.rows),
    }
    num_programs = min(triton.cdiv(pages.capacity, COUNT_ROWS), COUNT_PROGRAMS)
    passes = [
        Launch(count_digits_kernel, num_programs, {**common, "index": i}, {"ROWS": COUNT_ROWS})
        for i in range(PASSES)
    ]
    counts = torch.empty((num_blocks, 2), dtype=torch.int32, device=keys.device)
    common |= {"blocks_ptr": counts, "rows_ptr": out.rows}
    rows = {"ROWS": CHOOSE_ROWS}
    return [
        *passes,
        Launch(count_chosen_kernel, num_blocks, common, rows),
        Launch(write_chosen_kernel, num_blocks, {**common, "chosen_ptr": out.num_pages}, rows),
    ]


def specialisations() -> Iterator[tuple[str, Launch]]:
    """Every launch that the kernels are compiled for, by name; ``aot`` compiles them all."""
    pages, _ = sample()
    indices = torch.zeros(8, dtype=torch.int32)
    steps = launches(pages, torch.zeros(pages.capacity), Coldest(indices[:2], indices[4:5]))
    yield "coldest_digits", steps[0]
    yield "coldest_count", steps[-2]
    yield "coldest_write", steps[-1]
