# SPDX-License-Identifier: Apache-2.0
"""The constants of the page kernels on a GPU: each choice beside the others, in one run.

What ``kernels/move.py`` and ``kernels/bulk.py`` hold was chosen by these tables. Device time alone
(submission is hidden); every variant's bytes over the link are checked once. Under 2 minutes.
Without a GPU: exit code 2.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import _common
import _gpu_bench
import _gpu_link
import _gpu_overlap
import _gpu_peers
import torch
from _gpu_bench import KIB, MIB, Bench, Case
from _gpu_timing import Call, EventTimer

import kernels as suite
from bodocache.kernels import bulk, move
from bodocache.kernels.launch import empty_sums
from bodocache.kernels.move import Grid
from bodocache.kernels.runs import pair_of, runs_of
from bodocache.kernels.select import Direction
from bodocache.layout import LayoutKind, PagedMemory

LINK_PIECES = (512, KIB, 4 * KIB, 256 * KIB)
WITHIN_PIECE = 4 * KIB
# Programs, 16-byte units of a tile, warps.
LINK_GRIDS = (
    *(Grid(4, 2048, 16), Grid(4, 4096, 16), Grid(4, 4096, 32), Grid(2, 4096, 32)),
    *(Grid(4, 8192, 32), Grid(8, 1024, 8), Grid(4, 1024, 8), Grid(2, 2048, 16)),
)
DEVICE_GRIDS = (
    *(Grid(1024, 512, 4), Grid(528, 512, 4), Grid(2112, 512, 4), Grid(1 << 20, 512, 4)),
    *(Grid(1 << 20, 1024, 4), Grid(1056, 1024, 8), Grid(1 << 20, 1024, 8), Grid(1 << 20, 256, 2)),
)


@dataclass(frozen=True)
class RingOf:
    """A bulk copy's blocks and ring."""

    blocks: int
    stages: int
    stage_nbytes: int

    def __str__(self) -> str:
        return f"bulk {self.blocks} x {self.stages} x {self.stage_nbytes // KIB} KiB"


RINGS = (
    *(RingOf(4, 6, 32 * KIB), RingOf(4, 8, 16 * KIB), RingOf(4, 8, 8 * KIB)),
    *(RingOf(4, 4, 16 * KIB), RingOf(2, 6, 32 * KIB), RingOf(2, 8, 16 * KIB)),
    *(RingOf(1, 6, 32 * KIB), RingOf(1, 8, 16 * KIB), RingOf(8, 8, 8 * KIB)),
)


def main() -> int:
    """Measure and print."""
    arguments = _common.parser(__doc__).parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to choose here", file=sys.stderr)
        return 2
    torch.manual_seed(7)
    device = torch.device("cuda", 0)
    scale = replace(_gpu_bench.FULL, link_call=64 * MIB, budget_s=0.03, runs=(3, 12))
    timer = EventTimer(device, torch.cuda.Stream(device), scale.budget_s, scale.runs)
    bench = Bench(device, timer, scale, _gpu_bench.Report(), {})
    with suite._stream(bench):  # noqa: SLF001 -- the same script folder
        for section in (link, beside, within):
            with bench.reporting(section.__name__, "all"):
                section(bench)
    rows = bench.report.rows
    for spec in (
        ("link", "gb_per_s", "piece_nbytes", ("direction", "what")),
        ("beside", "slowdown", "compute", ("direction", "what")),
        ("within", "tb_per_s", "piece_nbytes", ("op", "what")),
    ):
        print(suite._table(rows, *spec), "\n", flush=True)  # noqa: SLF001 -- likewise
    for row in rows:
        if "failed" in row:
            print(row)
    _common.write(arguments.json, rows, [], **suite._gpu(device))  # noqa: SLF001 -- likewise
    return 0


def link(bench: Bench) -> None:
    """Both directions, every piece size."""
    host, device = bench.pinned(bench.scale.link_pool), bench.random(bench.scale.link_pool)
    for direction in _gpu_link.DIRECTIONS:
        for piece in LINK_PIECES:
            point = _gpu_link._Point.of(bench, direction, piece, (host, device))  # noqa: SLF001
            calls = dict(_link_calls(bench, point))
            before, expected = point.memory.clone(), point.expected()
            cases = {name: Case(call, point.memory, expected) for name, call in calls.items()}
            good = _gpu_bench.correct(bench, "link", cases, before, **point.fields)
            large = min(bench.scale.link_call, point.memory.numel() // 2)
            (ours,), (theirs,) = point.source.tensors(), point.destination.tensors()
            good["one large copy"] = lambda _, o=ours, t=theirs, n=large: t[:n].copy_(
                o[:n], non_blocking=True
            )
            timed = bench.timer.interleaved(good, hidden=True)
            for name, timing in timed.timings.items():
                nbytes = large if name == "one large copy" else point.nbytes
                rate = nbytes / timing.median_s / 1e9
                bench.report.timed("link", name, timing, **point.fields, gb_per_s=rate)


def _link_calls(bench: Bench, point: "_gpu_link._Point") -> Iterator[tuple[str, Call]]:
    on_device = [(s.to(bench.device), d.to(bench.device)) for s, d in point.sets]
    for grid in LINK_GRIDS:
        yield _name(grid), _sm(point.source, point.destination, on_device, grid)
    for ring in RINGS:
        yield str(ring), _bulk(bench, point.source, point.destination, on_device, ring)
    for name in ("uva_8byte", "uva_16byte", "memcpy_batch"):
        yield name, _gpu_peers.PEERS[name](point.source, point.destination, point.sets)


def _sm(
    source: PagedMemory, destination: PagedMemory, sets: list[_gpu_peers.Slots], grid: Grid
) -> Call:
    pair = pair_of("tune", source, destination)
    launches = [move.launch(*pair, slots, None, grid=grid) for slots in sets]
    return lambda i: launches[i % len(launches)].run()


def _bulk(
    bench: Bench,
    source: PagedMemory,
    destination: PagedMemory,
    sets: list[_gpu_peers.Slots],
    ring: RingOf,
) -> Call:
    made = bulk.Ring(ring.stages, ring.stage_nbytes)
    function = bulk.nvrtc.function(
        bulk.SOURCE, bulk.KERNEL, bench.device, shared_nbytes=made.shared_nbytes(made.stage_nbytes)
    )
    copy = bulk.plan(
        source, destination, bench.device, blocks=ring.blocks, ring=made, function=function
    )
    return lambda i: copy.launch(*sets[i % len(sets)])


def beside(bench: Bench) -> None:
    """How much slower compute is beside each."""
    model = _gpu_overlap._Model.of(bench)  # noqa: SLF001 -- the same script folder
    sets = [model.slots_for("sm", bench.device)]
    chosen: list[Grid | RingOf | str] = [
        *(LINK_GRIDS[0], LINK_GRIDS[3], Grid(1, 4096, 32), Grid(2, 2048, 16), LINK_GRIDS[5]),
        *(RINGS[0], RINGS[6], RINGS[7], RINGS[5], RingOf(4, 4, 4 * KIB), RingOf(2, 4, 8 * KIB)),
        *("uva_16byte", "memcpy_batch"),
    ]
    for direction in (Direction.HOST_TO_DEVICE, Direction.DEVICE_TO_HOST):
        ends = (model.host, model.engine)
        source, target = ends if direction is Direction.HOST_TO_DEVICE else ends[::-1]
        for variant in chosen:
            if isinstance(variant, Grid):
                call = _sm(source, target, sets, variant)
            elif isinstance(variant, RingOf):
                call = _bulk(bench, source, target, sets, variant)
            else:
                call = _gpu_peers.PEERS[variant](source, target, [model.slots])
            name = _name(variant) if isinstance(variant, Grid) else str(variant)
            _gpu_overlap.note_slowdown(
                bench,
                model,
                lambda stream, call=call: _gpu_overlap.on_stream(stream, lambda: call(0)),
                what=name,
                direction=str(direction),
            )


def within(bench: Bench) -> None:
    """Gather and scatter, with digests."""
    pool, flat = bench.random(bench.scale.device_pool), bench.random(bench.scale.device_call)
    memory = _gpu_bench.paged(LayoutKind.LAYER_FIRST, pool, bench.scale.layers, WITHIN_PIECE)
    pages = flat.view(-1, memory.page_nbytes)
    order = bench.order(memory.num_pages).to(bench.device)
    rows = torch.arange(len(pages), dtype=torch.int32, device=bench.device)
    sets = _gpu_bench.disjoint(order, len(pages), 4)
    sums = empty_sums(len(pages), memory.page_nbytes, bench.device)
    runs = runs_of(memory)
    calls: dict[str, Call] = {}
    for grid in DEVICE_GRIDS:
        out = [move.launch(runs, pages, (s, rows), sums, grid=grid) for s in sets]
        back = [move.launch(pages, runs, (rows, s), sums, grid=grid) for s in sets]
        calls[f"gather fused|{_name(grid)}"] = lambda i, o=out: o[i % len(o)].run()
        calls[f"scatter fused|{_name(grid)}"] = lambda i, b=back: b[i % len(b)].run()
    parts = list(pool[: len(sets) * flat.numel()].split(flat.numel()))
    calls["copy|torch"] = lambda i, p=parts: flat.copy_(p[i % len(p)])
    timed = bench.timer.interleaved(calls, hidden=True)
    for name, timing in timed.timings.items():
        op, _, what = name.partition("|")
        rate = 2 * flat.numel() / timing.median_s / 1e12
        said = {"op": op, "piece_nbytes": WITHIN_PIECE, "tb_per_s": rate}
        bench.report.timed("within", what, timing, **said)


def _name(grid: Grid) -> str:
    return f"sm {grid.programs} x {grid.tile_units} units, {grid.num_warps} warps"


if __name__ == "__main__":
    sys.exit(main())
