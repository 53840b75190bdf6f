# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 -- constexprs are UPPER_CASE
"""Bring eviction keys up to date: each page's greatest score among its subtree in a tier.

By pointer jumping: in round j every page raises the key of its 2^j-th ancestor, so rounds double
what a key covers. Level by level needs pages sorted by depth and a launch per level: 65,536 for a
prefix of a million tokens, against 16 rounds. A round moves about 20 bytes a page, in two random
reads and at most one atomic each; raising is an atomic maximum of exact values, which has one
result in any order. A round reads keys that others raise meanwhile: what it reads was there before
the round or is of the same subtree, so both serve.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from bodocache.kernels import check
from bodocache.kernels.launch import Launch
from bodocache.kernels.page_records import (
    PARENT,
    STATE,
    TIERS,
    DevicePages,
    Formula,
    compiled,
)
from bodocache.kernels.reference.subtree import refresh_keys as twin
from bodocache.kernels.score import sample, score_pages

ROUND_ROWS = 1024  # a program: eight pages a thread hide the latency of random reads

_PARENT, _STATE = tl.constexpr(PARENT), tl.constexpr(STATE)
_TIER_BITS = tl.constexpr((1 << TIERS) - 1)


@triton.jit(do_not_specialize=["tier", "capacity"])  # type: ignore[untyped-decorator]
def link_kernel(
    words_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    links_ptr: tl.tensor,
    tier: tl.tensor,
    capacity: tl.tensor,
    ROWS: tl.constexpr,
) -> None:
    """Links of ROWS pages: the parent if both lie in the tier, else -1.

    A page whose last copy lies here is held while a page right after it lies in another tier.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = row < capacity
    states_ptr = words_ptr + capacity.to(tl.int64) * _STATE
    parent = tl.load(words_ptr + capacity.to(tl.int64) * _PARENT + row, mask=mask, other=-1)
    tiers = tl.load(states_ptr + row, mask=mask, other=0) & _TIER_BITS
    child = mask & (parent >= 0) & (tiers != 0)
    above = tl.load(states_ptr + parent, mask=child, other=0) & _TIER_BITS
    here = 1 << tier
    linked = child & ((tiers & here) != 0) & ((above & here) != 0)
    tl.store(links_ptr + row, tl.where(linked, parent, -1), mask=mask)
    holds = child & (above == here) & ((tiers & ~here) != 0)
    infinite = tl.full((ROWS,), float("inf"), tl.float32)  # every writer writes the same
    tl.store(keys_ptr + parent, infinite, mask=holds)


@triton.jit(do_not_specialize=["capacity"])  # type: ignore[untyped-decorator]
def raise_kernel(
    keys_ptr: tl.tensor,
    links_ptr: tl.tensor,
    jumps_ptr: tl.tensor,
    capacity: tl.tensor,
    ROWS: tl.constexpr,
) -> None:
    """One round for ROWS pages: raise the keys of links, and write the links' links to jumps."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = row < capacity
    link = tl.load(links_ptr + row, mask=mask, other=-1)
    linked = mask & (link >= 0)
    key = tl.load(keys_ptr + row, mask=linked, other=0.0)
    above = tl.load(keys_ptr + link, mask=linked, other=0.0)
    # Most keys are raised already: without this test, siblings queue for one address.
    tl.atomic_max(keys_ptr + link, key, mask=linked & (key > above), sem="relaxed")
    tl.store(jumps_ptr + row, tl.load(links_ptr + link, mask=linked, other=-1), mask=mask)


def refresh_keys(
    pages: DevicePages,
    tier: int,
    now_s: float,
    formula: Formula,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Eviction keys of ``tier`` at ``now_s``: the greatest score among each page's subtree there.

    A key stays current until pages change, come of age, or move; aging changes no order.

    Args:
        pages: all pages; on a GPU nothing waits for it.
        tier: whose copies to weigh.
        now_s: on the clock of the records; not before their last use.
        formula: the policy's constants.
        out: float32[capacity]; default: new.

    Returns:
        float32[capacity]. Infinite: it must stay, because it or a page after it is pinned or under
        age, or it is a last copy and a page right after it lies in another tier, or it is not here.

    Raises:
        LayoutError: ``tier`` or ``out`` does not fit.
    """
    keys = score_pages(pages, tier, now_s, formula, out=out)
    if not pages.capacity:
        return keys
    if check.on_gpu(pages.device):
        links = torch.empty_like(pages.words[PARENT])
        jumps = torch.empty_like(links)  # not in place: a link read after its own jump is too long
        launch_link(pages, tier, keys, links).run()
        for _ in range(num_rounds(pages.levels)):
            launch_round(keys, links, jumps).run()
            links, jumps = jumps, links
    elif (cpu := compiled()) is not None:
        cpu.refresh(pages, tier, keys)
    else:
        twin(pages, tier, keys)
    return keys


def num_rounds(levels: int) -> int:
    """Rounds for prefixes of up to ``levels`` pages."""
    return (levels - 1).bit_length()


def launch_link(pages: DevicePages, tier: int, keys: torch.Tensor, links: torch.Tensor) -> Launch:
    """The launch that writes ``links`` (int32[capacity], one or more) and holds last copies."""
    return Launch(
        link_kernel,
        triton.cdiv(pages.capacity, ROUND_ROWS),
        {
            "words_ptr": pages.words,
            "keys_ptr": keys,
            "links_ptr": links,
            "tier": tier,
            "capacity": pages.capacity,
        },
        {"ROWS": ROUND_ROWS},
    )


def launch_round(keys: torch.Tensor, links: torch.Tensor, jumps: torch.Tensor) -> Launch:
    """The launch of one round over ``links``; the next goes over ``jumps``."""
    return Launch(
        raise_kernel,
        triton.cdiv(len(keys), ROUND_ROWS),
        {
            "keys_ptr": keys,
            "links_ptr": links,
            "jumps_ptr": jumps,
            "capacity": len(keys),
        },
        {"ROWS": ROUND_ROWS},
    )


def specialisations() -> Iterator[tuple[str, Launch]]:
    """Every launch that the kernels are compiled for, by name; ``aot`` compiles them all."""
    pages, _ = sample()
    keys = torch.zeros(pages.capacity)
    links = torch.zeros_like(pages.words[PARENT])
    yield "subtree_link", launch_link(pages, 1, keys, links)
    yield "subtree_raise", launch_round(keys, links, torch.zeros_like(links))
