# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 -- constexprs are UPPER_CASE
"""Score pages: log2 of each one's value density in a tier (DESIGN.md, "evict").

``log2(heat * saved_s) - log2(nbytes) + (stamp_s - now_s) / half_life_s``, as the planner's value.py
less ``now_s / half_life_s``: relative to now, so that float32 holds it. Times and differences are
float64, and a logarithm is exponent plus float32 logarithm of the mantissa; so a score is within
2^-20 + 2^-24 * |score| of the planner's (``lg2.approx`` errs by 2^-22 there, the rounding of the
mantissa by 1.5 * 2^-24, twice each).
"""

import struct
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from bodocache.errors import LayoutError
from bodocache.kernels import check
from bodocache.kernels.launch import Launch
from bodocache.kernels.page_records import (
    FLOOR,
    HEAT,
    HELD,
    LOADS,
    NBYTES,
    RATE,
    RECOMPUTE,
    RESIDENCE,
    SINCE,
    STAMP,
    STATE,
    TIERS,
    DevicePages,
    Formula,
    check_keys,
    compiled,
)
from bodocache.kernels.reference.score import score_pages as twin

SCORE_ROWS = 512  # a program: 4 pages a thread; small, because float64 pairs take registers

_OP = "score_pages"

_STAMP, _SINCE = tl.constexpr(STAMP), tl.constexpr(SINCE)
_HEAT, _RECOMPUTE, _NBYTES = tl.constexpr(HEAT), tl.constexpr(RECOMPUTE), tl.constexpr(NBYTES)
_STATE, _HELD, _TIERS = tl.constexpr(STATE), tl.constexpr(HELD), tl.constexpr(TIERS)
_RATE, _RESIDENCE, _FLOOR = tl.constexpr(RATE), tl.constexpr(RESIDENCE), tl.constexpr(FLOOR)
_LOADS = tl.constexpr(LOADS)


@triton.jit  # type: ignore[untyped-decorator]
def log2_f64(value: tl.tensor) -> tl.tensor:
    """log2 of positive normal float64 values: the exponent is exact, the rest is a float32."""
    bits = value.to(tl.int64, bitcast=True)
    mantissa = (bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000
    fraction = tl.log2(mantissa.to(tl.float64, bitcast=True).to(tl.float32))
    return ((bits >> 52) - 1023).to(tl.float64) + fraction.to(tl.float64)


@triton.jit  # type: ignore[untyped-decorator]
def load_seconds(terms_ptr: tl.tensor, tier: tl.tensor, nbytes: tl.tensor) -> tl.tensor:
    """Seconds one op takes to bring float64 ``nbytes`` from ``tier`` to the device."""
    loads_ptr = terms_ptr + _LOADS + tier
    return tl.load(loads_ptr) + nbytes * tl.load(loads_ptr + _TIERS)


@triton.jit(do_not_specialize=["now_bits", "tier", "capacity"])  # type: ignore[untyped-decorator]
def score_kernel(
    times_ptr: tl.tensor,
    words_ptr: tl.tensor,
    terms_ptr: tl.tensor,
    scores_ptr: tl.tensor,
    now_bits: tl.tensor,
    tier: tl.tensor,
    capacity: tl.tensor,
    ROWS: tl.constexpr,
) -> None:
    """Scores of ROWS pages."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = row < capacity
    stride = capacity.to(tl.int64)  # of planes
    now_s = now_bits.to(tl.int64).to(tl.float64, bitcast=True)
    state = tl.load(words_ptr + stride * _STATE + row, mask=mask, other=0)
    heat = tl.load(words_ptr + stride * _HEAT + row, mask=mask, other=0)
    recompute = tl.load(words_ptr + stride * _RECOMPUTE + row, mask=mask, other=0)
    size = tl.load(words_ptr + stride * _NBYTES + row, mask=mask, other=1)
    nbytes = tl.maximum(size.to(tl.uint32, bitcast=True), 1).to(tl.float64)
    otherwise_s = recompute.to(tl.float32, bitcast=True).to(tl.float64)
    slower_tiers = state & -(2 << tier)
    for slower in tl.static_range(1, _TIERS):
        load_s = load_seconds(terms_ptr, slower, nbytes)
        better = (((slower_tiers >> slower) & 1) != 0) & (load_s < otherwise_s)
        otherwise_s = tl.where(better, load_s, otherwise_s)
    saved_s = otherwise_s - load_seconds(terms_ptr, tier, nbytes)
    floor_s = tl.load(terms_ptr + _FLOOR)
    saved_s = tl.where(saved_s > floor_s, saved_s, floor_s)
    warmth = heat.to(tl.float32, bitcast=True)
    used = warmth > 0.0
    worth = tl.where(used, warmth, 1.0).to(tl.float64) * saved_s
    age_s = tl.load(times_ptr + stride * _STAMP + row, mask=mask, other=0.0) - now_s
    half_lives = age_s * tl.load(terms_ptr + _RATE)
    score = (log2_f64(worth) - log2_f64(nbytes) + half_lives).to(tl.float32)
    since_s = tl.load(times_ptr + (tier + _SINCE) * stride + row, mask=mask, other=0.0)
    young = since_s + tl.load(terms_ptr + _RESIDENCE) > now_s
    held = young | ((state & _HELD) != 0) | (((state >> tier) & 1) == 0)
    score = tl.where(held, float("inf"), tl.where(used, score, float("-inf")))
    tl.store(scores_ptr + row, score, mask=mask)


def score_pages(
    pages: DevicePages,
    tier: int,
    now_s: float,
    formula: Formula,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log2 of every page's value density in ``tier`` at ``now_s``, in seconds saved per byte.

    Args:
        pages: all pages; on a GPU nothing waits for it.
        tier: whose copies to weigh.
        now_s: on the clock of the records; not before their last use.
        formula: the policy's constants.
        out: float32[capacity]; default: new.

    Returns:
        float32[capacity]. Infinite: pinned, under age, or not in ``tier``. Minus infinite: never
        used.

    Raises:
        LayoutError: ``tier`` or ``out`` does not fit.
    """
    if not 0 <= tier < TIERS:
        raise LayoutError(f"{_OP}: tier is {tier}; pages have {TIERS} tiers")
    if out is None:
        out = torch.empty(pages.capacity, dtype=torch.float32, device=pages.device)
    check_keys(_OP, "out", pages, out)
    if not pages.capacity:
        return out
    if check.on_gpu(pages.device):
        launch(pages, tier, now_s, formula, out).run()
    elif (cpu := compiled()) is not None:
        cpu.score(pages, tier, now_s, formula, out)
    else:
        out.copy_(twin(pages, tier, now_s, formula))
    return out


def launch(
    pages: DevicePages, tier: int, now_s: float, formula: Formula, out: torch.Tensor
) -> Launch:
    """The launch that scores ``pages`` (one or more) into checked ``out``."""
    # Triton takes numbers as float32: the bits of a float64 instead.
    (now_bits,) = struct.unpack("<q", struct.pack("<d", now_s))
    return Launch(
        score_kernel,
        triton.cdiv(pages.capacity, SCORE_ROWS),
        {
            "times_ptr": pages.times,
            "words_ptr": pages.words,
            "terms_ptr": formula.terms(pages.device),
            "scores_ptr": out,
            "now_bits": now_bits,
            "tier": tier,
            "capacity": pages.capacity,
        },
        {"ROWS": SCORE_ROWS},
    )


def specialisations() -> Iterator[tuple[str, Launch]]:
    """Every launch that the kernel is compiled for, by name; ``aot`` compiles them all."""
    pages, formula = sample()
    yield "score", launch(pages, 1, 1.0, formula, torch.empty(pages.capacity))


def sample() -> tuple[DevicePages, Formula]:
    """Pages and a formula to make launches of, for ``aot``."""
    return DevicePages(4, "cpu"), Formula(60.0, 1.0, (0.0,) * TIERS, (0.0,) * TIERS)
