# SPDX-License-Identifier: Apache-2.0
"""One launch of a Triton kernel as a value: a launcher runs it, ``aot`` compiles it without a GPU.

So what is compiled and inspected ahead of time is what engines launch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bodocache.kernels import direct
from bodocache.kernels.check import INDEX_DTYPES, UNIT_NBYTES
from bodocache.kernels.runs import Runs, runs_of
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory

TILE_UNITS = 512  # 8 KiB a program: four 16-byte loads in flight per thread of 4 warps
# A tile a program: 2.85 TB/s where 1,024 programs that loop move 2.77 (H100, bench/gpu_tune.py).
# Over a link select.LINK_BLOCKS is the limit.
MAX_PROGRAMS = 1 << 20

WORD_NBYTES = 4

# Pages of the smallest kind that still has several layers, tokens and heads, for ``aot``.
SAMPLE_PAGE_TOKENS = 16
SAMPLE_GROUP = Group("attention", layers=2, heads=8, head_dim=128, itemsize=2)
LATENT_GROUP = Group("latent", layers=2, heads=1, head_dim=576, itemsize=2, kv=1)

# Integer code: contraction of floats is set only because Triton 3.9 warns where it is not.
OPTIONS: dict[str, int | bool] = {"num_warps": 4, "enable_fp_fusion": False}


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel, its grid, and its arguments by name."""

    kernel: Any  # a JITFunction; Triton has no type for it that its interpreter shares
    num_programs: int
    arguments: dict[str, torch.Tensor | int]
    constexprs: dict[str, int]
    num_warps: int = 4  # of 32 threads

    def options(self, warp_threads: int) -> dict[str, int | bool]:
        """What Triton compiles it with where a warp has ``warp_threads``: as many threads.

        With twice the threads, on AMD, each would have half the bytes of a tile: 8, not 16.
        """
        return {**OPTIONS, "num_warps": max(1, self.num_warps * 32 // warp_threads)}

    def run(self) -> None:
        """Launch on the current stream of the device that holds the first tensor."""
        loaded = self.loaded()
        if loaded is not None:
            loaded.launch(self.num_programs, self.values())
            return
        options = self.options(64 if torch.version.hip else 32)
        with torch.cuda.device_of(self.anchor):  # type: ignore[no-untyped-call]
            self.kernel[(self.num_programs,)](**self.arguments, **self.constexprs, **options)

    @property
    def anchor(self) -> torch.Tensor:
        """The first tensor among the arguments."""
        return next(a for a in self.arguments.values() if isinstance(a, torch.Tensor))

    def values(self) -> tuple[int, ...]:
        """The arguments as the driver takes them."""
        given = self.arguments.values()
        return tuple(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in given)

    def loaded(self) -> "Loaded | None":
        """The kernel's code for these arguments, compiled and loaded at the first call of its kind.

        None where Triton itself has to launch it: in its interpreter, on AMD.
        """
        anchor = self.anchor
        if anchor.device.type != "cuda" or torch.version.hip:
            return None
        kinds = (
            (a.dtype, a.data_ptr() % UNIT_NBYTES) if isinstance(a, torch.Tensor) else a >> 31
            for a in self.arguments.values()
        )
        key = (id(self.kernel), self.num_warps, anchor.device, *self.constexprs.values(), *kinds)
        if key not in _loaded:
            _loaded[key] = _load(self)
        return _loaded[key]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A kernel's code on a device, launched without Triton, which takes 20 us for that."""

    device: torch.device
    function: int  # a CUfunction
    num_threads: int
    shared_nbytes: int
    kept: object  # whose code it is

    def launch(self, num_programs: int, values: tuple[int, ...]) -> None:
        """Launch on torch's current stream; ``values`` of the kernel's parameters, in order.

        Raises:
            BackendError: the driver refused, or an earlier kernel failed.
        """
        shape = (num_programs, self.num_threads, self.shared_nbytes)
        direct.launch(self.device, self.function, shape, values)


_loaded: dict[tuple[object, ...], Loaded | None] = {}


def _load(launch: Launch) -> Loaded | None:
    """None where the kernel wants more of a launch than its written parameters."""
    kernel, device = launch.kernel, launch.anchor.device
    written = [p for p in kernel.params if not p.is_constexpr]
    # Numbers that Triton compiles for would need code of their own for each value.
    fixed = [p.do_not_specialize for p in written if type(launch.arguments[p.name]) is int]
    if [p.name for p in written] != list(launch.arguments) or not all(fixed):
        return None
    options = launch.options(warp_threads=32)
    with torch.cuda.device(device):
        code = kernel.warmup(**launch.arguments, **launch.constexprs, grid=(1,), **options)
        _ = code[1, 1, 1]  # loads it
    facts = code.metadata
    scratch = (getattr(facts, f"{kind}_scratch_size", 0) for kind in ("global", "profile"))
    if any(scratch) or facts.num_ctas != 1 or getattr(facts, "launch_cooperative_grid", False):
        return None
    return Loaded(device, int(code.function), 32 * facts.num_warps, int(facts.shared), code)


def programs(num_tiles: int) -> int:
    """How many programs share ``num_tiles`` tiles; each takes every so-many-th of them."""
    return min(num_tiles, MAX_PROGRAMS)


def tiles(nbytes: int) -> int:
    """Tiles of ``nbytes`` of one page."""
    return -(-nbytes // (TILE_UNITS * UNIT_NBYTES))


def device_table(runs: Runs, device: torch.device) -> torch.Tensor:
    """int64[4 + B] on ``device``: B, the page, token and head strides, then the bases; all / 16.

    In memory instead of in arguments, so that no value of theirs makes Triton compile once more.
    Made once, by a small copy that waits; it lives as long as ``runs``.
    """
    table = runs.tables.get(device)
    if table is None:
        table = runs.tables.setdefault(device, _table(runs, device))
    return table


def empty_sums(num_pages: int, page_nbytes: int, device: torch.device) -> torch.Tensor:
    """int64[num_pages, 2] digests to which kernels add raw sums: the page's words, so far."""
    return torch.full((num_pages, 2), page_nbytes // WORD_NBYTES, dtype=torch.int64, device=device)


def sample_operands() -> Iterator[tuple[str, Runs, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A name, runs, indices, a page and its sums: each shape of runs, both index types; latents."""
    shapes = [(kind, SAMPLE_GROUP, dtype) for kind in LayoutKind for dtype in INDEX_DTYPES]
    shapes.append((LayoutKind.LAYER_FIRST, LATENT_GROUP, torch.int64))
    for kind, group, dtype in shapes:
        runs = runs_of(sample_pool(kind, group))
        pages = torch.empty((1, runs.page_nbytes), dtype=torch.uint8)
        indices = torch.zeros(1, dtype=dtype)
        sums = empty_sums(1, runs.page_nbytes, pages.device)
        suffix = f"{kind}_{str(dtype).removeprefix('torch.')}"
        named = suffix if group is SAMPLE_GROUP else f"{group.name}_{suffix}"
        yield named, runs, indices, pages, sums


def sample_pool(kind: LayoutKind, group: Group) -> PagedMemory:
    """Two pages."""
    layout = Layout(kind, group, SAMPLE_PAGE_TOKENS, num_pages=2)
    return PagedMemory.of_layout(torch.empty(layout.pool_nbytes, dtype=torch.uint8), layout)


def _table(runs: Runs, device: torch.device) -> torch.Tensor:
    header = (len(runs.bases) * UNIT_NBYTES, runs.page_stride, runs.token_stride, runs.head_stride)
    nbytes = np.concatenate((np.array(header, np.int64), runs.bases))
    return torch.from_numpy(nbytes // UNIT_NBYTES).to(device)
