# SPDX-License-Identifier: Apache-2.0
"""Gather, scatter and copies within a device, beside a device-to-device copy of the same bytes."""

import contextlib
from dataclasses import dataclass

import torch
from _common import Timing
from _gpu_bench import (
    KIB,
    Bench,
    Case,
    claim_at_least,
    claim_at_most,
    correct,
    disjoint,
    matching,
    paged,
    rotated,
    worst,
)

from bodocache.kernels import (
    CopyPath,
    PageCopy,
    check,
    gather,
    gather_pages,
    gather_plain,
    scatter,
    scatter_pages,
    scatter_plain,
)
from bodocache.kernels.launch import empty_sums
from bodocache.kernels.reference.gather import gather_pages as gather_twin
from bodocache.kernels.reference.scatter import scatter_pages as scatter_twin
from bodocache.kernels.runs import runs_of
from bodocache.layout import LayoutKind, PagedMemory

SECTION, CHECKS = "within_device", "checks"
CHECKED_PAGES = 64
YARDSTICK = "copy"


@dataclass(slots=True)
class _Piece:
    """A pool of one piece size, the contiguous pages beside it, and what moves between them."""

    pool: torch.Tensor
    memory: PagedMemory
    rows_memory: PagedMemory
    pages: torch.Tensor
    rows: torch.Tensor
    sets: list[torch.Tensor]

    @classmethod
    def of(cls, bench: Bench, piece: int, pool: torch.Tensor, flat: torch.Tensor) -> "_Piece":
        """Both memories as pages of that size."""
        layers = bench.scale.layers
        memory = paged(LayoutKind.LAYER_FIRST, pool, layers, piece)
        pages = flat.view(-1, memory.page_nbytes)
        order = bench.order(memory.num_pages).to(bench.device)
        rows = torch.arange(len(pages), dtype=torch.int32, device=bench.device)
        rows_memory = paged(LayoutKind.PAGE, flat, layers, piece)
        return cls(pool, memory, rows_memory, pages, rows, disjoint(order, len(pages), 4))

    def gathers(self) -> dict[str, Case]:
        """Cases that write the contiguous pages; each call reads another set."""
        slots = rotated(self.sets)
        runs, digests = runs_of(self.memory), self._digests()
        fused = [gather.launch(runs, s, self.rows, self.pages, digests) for s in self.sets]
        plain = [gather.launch(runs, s, self.rows, self.pages, None) for s in self.sets]
        copies = {
            f"copy_pages {path}": PageCopy(self.memory, self.rows_memory, path=path)
            for path in (CopyPath.SM, CopyPath.BULK, CopyPath.TORCH)
        }
        calls = {
            "gather_pages": lambda i: gather_pages(
                self.memory, slots(i), out=self.pages, rows=self.rows
            ),
            "gather_plain": lambda i: gather_plain(
                self.memory, slots(i), out=self.pages, rows=self.rows
            ),
            "gather, fused": lambda i: rotated(fused)(i).run(),
            "gather, plain": lambda i: rotated(plain)(i).run(),
            **{
                name: (lambda i, copy=copy: copy.run(slots(i), self.rows))
                for name, copy in copies.items()
            },
        }
        expected = torch.empty_like(self.pages)
        gather_twin(self.memory, self.sets[0], self.rows, expected)
        return {name: Case(call, self.pages, expected) for name, call in calls.items()}

    def scatters(self) -> dict[str, Case]:
        """Cases that write the pool."""
        slots = rotated(self.sets)
        runs, digests = runs_of(self.memory), self._digests()
        fused = [scatter.launch(runs, s, self.rows, self.pages, digests) for s in self.sets]
        plain = [scatter.launch(runs, s, self.rows, self.pages, None) for s in self.sets]
        calls = {
            "scatter_pages": lambda i: scatter_pages(
                self.pages, self.memory, slots(i), rows=self.rows
            ),
            "scatter_plain": lambda i: scatter_plain(
                self.pages, self.memory, slots(i), rows=self.rows
            ),
            "scatter, fused": lambda i: rotated(fused)(i).run(),
            "scatter, plain": lambda i: rotated(plain)(i).run(),
        }
        expected = self.pool.clone()
        piece_nbytes = self.memory.page_nbytes // self.memory.bases.size
        beside = paged(LayoutKind.LAYER_FIRST, expected, self.memory.layers, piece_nbytes)
        scatter_twin(self.pages, beside, self.sets[0], self.rows)
        return {name: Case(call, self.pool, expected) for name, call in calls.items()}

    def why_digests_wrong(self) -> str | None:
        """Digests of one gather and one scatter against the twin's."""
        ours = gather_pages(self.memory, self.sets[0], out=self.pages, rows=self.rows).digests
        back = scatter_pages(self.pages, self.memory, self.sets[0], rows=self.rows)
        expected = torch.empty_like(self.pages)
        twin = gather_twin(self.memory, self.sets[0], self.rows, expected)
        if torch.equal(ours, twin) and torch.equal(back, twin):
            return None
        return (
            f"gather {int((ours != twin).sum())}, scatter {int((back != twin).sum())} wrong words"
        )

    def _digests(self) -> torch.Tensor:
        return empty_sums(len(self.pages), self.memory.page_nbytes, self.pages.device)


def measure(bench: Bench) -> None:
    """Rows of every piece size, then the claims."""
    pool = bench.random(bench.scale.device_pool)
    flat = bench.random(bench.scale.device_call)
    for piece in bench.scale.device_pieces:
        with bench.reporting(SECTION, "all", piece_nbytes=piece):
            _measure_piece(bench, piece, pool, flat)
    _claim(bench)


def measure_checks(bench: Bench) -> None:
    """Microseconds of the host for a gather of few pages, with indices on the device checked or
    not: the price of the debug mode, which waits for the stream.
    """
    pool, flat = bench.random(bench.scale.link_pool), bench.random(bench.scale.device_call)
    memory = paged(LayoutKind.LAYER_FIRST, pool, bench.scale.layers, bench.scale.link_pieces[0])
    count = min(CHECKED_PAGES, memory.num_pages, flat.numel() // memory.page_nbytes)
    out = flat[: count * memory.page_nbytes].view(count, -1)
    slots, rows = (torch.arange(count, device=bench.device) for _ in range(2))
    modes = {"unchecked": contextlib.nullcontext, "checked": check.checked_indices}
    for mode, within in modes.items():
        with bench.reporting(CHECKS, "gather_pages", mode=mode), within():
            seconds = bench.timer.submission_s(
                lambda: gather_pages(memory, slots, out=out, rows=rows)
            )
            row = {"section": CHECKS, "what": "gather_pages", "mode": mode, "pages": count}
            bench.report.rows.append({**row, "microseconds": seconds * 1e6})


def _measure_piece(bench: Bench, piece: int, pool: torch.Tensor, flat: torch.Tensor) -> None:
    case = _Piece.of(bench, piece, pool, flat)
    fields = {"piece_nbytes": piece}
    cases = case.gathers()
    for path, why in bench.barred.items():
        if cases.pop(f"copy_pages {path}", None):
            bench.report.failed(SECTION, f"copy_pages {path}", why, **fields)
    good = correct(bench, SECTION, cases, torch.zeros_like(case.pages), **fields)
    flat.copy_(bench.random(flat.numel()))  # the pages just gathered would change nothing
    pool_before = pool.clone()
    good |= correct(bench, SECTION, case.scatters(), pool_before, **fields)
    if (why := case.why_digests_wrong()) is not None:
        bench.report.failed(SECTION, "digests", why, **fields)
    nbytes = flat.numel()
    parts = rotated(list(pool[: len(case.sets) * nbytes].split(nbytes)))
    good[YARDSTICK] = lambda i: flat.copy_(parts(i))
    timed = bench.timer.interleaved(good, hidden=True)
    for name, why in timed.failures.items():
        bench.report.failed(SECTION, name, why, **fields)
    base_s = timed.timings[YARDSTICK].median_s
    for name, timing in timed.timings.items():
        said = {"share_of_copy": base_s / timing.median_s, "tb_per_s": _rate(nbytes, timing)}
        plain = timed.timings.get(name.replace("fused", "plain"))
        if name.endswith("fused") and plain:
            said["over_plain"] = timing.median_s / plain.median_s
        bench.report.timed(SECTION, name, timing, **fields, **said)


def _rate(nbytes: int, timing: Timing) -> float:
    """TB/s, bytes read and written."""
    return 2 * nbytes / timing.median_s / 1e12


def _claim(bench: Bench) -> None:
    rows = matching(bench.report.rows, section=SECTION)
    large = [row for row in rows if row.get("piece_nbytes", 0) >= 4 * KIB]
    small = [row for row in rows if row.get("piece_nbytes") == KIB]
    for name in ("gather_pages", "gather, plain", "scatter_pages", "scatter, plain"):
        title = f"{name}, share of a device copy, pieces"
        for found, sizes, bound in ((large, ">= 4 KiB", 0.9), (small, "of 1 KiB", 0.75)):
            share = worst(found, "share_of_copy", what=name)
            claim_at_least(bench.report, f"{title} {sizes}", share, bound)
    for op in ("gather", "scatter"):
        slower = worst(rows, "over_plain", max, what=f"{op}, fused")
        claim_at_most(bench.report, f"{op} with digest over without", slower, 1.05, "x")
