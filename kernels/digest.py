# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 -- constexprs are UPPER_CASE
"""Digest contiguous pages where they lie, without copying them (DESIGN.md, "Digest")."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from bodocache.kernels import check, host
from bodocache.kernels.check import UNIT_NBYTES, pages_spec
from bodocache.kernels.launch import TILE_UNITS as TILE
from bodocache.kernels.launch import Launch, empty_sums, programs, sample_operands, tiles
from bodocache.kernels.reference.digest import digest_pages as twin
from bodocache.kernels.tile import add_sums, row_pointers

_OP = "digest_pages"


@triton.jit(do_not_specialize=["num_pages", "row_units", "page_units"])  # type: ignore[untyped-decorator]
def digest_kernel(
    pages_ptr: tl.tensor,
    digests_ptr: tl.tensor,
    num_pages: tl.tensor,
    row_units: tl.tensor,
    page_units: tl.tensor,
    TILE_UNITS: tl.constexpr,
) -> None:
    """Tile by tile: row i of pages -> its sums in digests[i]."""
    page_tiles = tl.cdiv(page_units, TILE_UNITS)
    for item in tl.range(tl.program_id(0), num_pages * page_tiles, tl.num_programs(0)):
        page = (item // page_tiles).to(tl.int64) + tl.arange(0, 1)
        unit = ((item % page_tiles) * TILE_UNITS + tl.arange(0, TILE_UNITS))[None, :]
        pages = row_pointers(pages_ptr, page[:, None] * row_units + unit)
        mask = (unit < page_units)[:, :, None]
        words = tl.load(pages, mask=mask, other=0, cache_modifier=".cg")  # read once: not in L1
        add_sums(digests_ptr, page, page < num_pages, words, unit)


def digest_pages(pages: torch.Tensor) -> torch.Tensor:
    """Digest ``pages`` (uint8[N, nbytes], rows may be strided), before the key's seed.

    Returns:
        int64[N, 2]: the bits of the u64 words s1 and s2.

    Raises:
        LayoutError: dtype, stride or alignment do not fit, or nbytes is no multiple of 16.
    """
    check.operands(_OP, "pages", pages.device, pages=(pages, pages_spec("N", "nbytes")))
    if check.on_gpu(pages.device):
        digests = empty_sums(len(pages), pages.shape[1], pages.device)
        if pages.numel():
            launch(pages, digests).run()
        return digests
    if (cpu := host.compiled()) is not None:
        return cpu.digest(pages)
    return twin(pages)


def launch(pages: torch.Tensor, digests: torch.Tensor) -> Launch:
    """The launch that digests checked ``pages`` (N >= 1); ``digests`` holds each page's words."""
    return Launch(
        digest_kernel,
        programs(len(pages) * tiles(pages.shape[1])),
        {
            "pages_ptr": pages.view(torch.int32),
            "digests_ptr": digests,
            "num_pages": len(pages),
            "row_units": pages.stride(0) // UNIT_NBYTES,
            "page_units": pages.shape[1] // UNIT_NBYTES,
        },
        {"TILE_UNITS": TILE},
    )


def specialisations() -> Iterator[tuple[str, Launch]]:
    """Every launch that the kernel is compiled for, by name; ``aot`` compiles them all."""
    _, _, _, pages, sums = next(sample_operands())
    yield "digest", launch(pages, sums)
