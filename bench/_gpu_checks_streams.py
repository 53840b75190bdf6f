# SPDX-License-Identifier: Apache-2.0
"""Checks of what runs beside an engine's stream, or in a CUDA graph: whole memories, as ever."""

from typing import NamedTuple

import torch
from _gpu_pools import Machine, Pool, Skipped, same

from bodocache.kernels import (
    CopyPath,
    LayerwiseCopy,
    PageCopy,
    gather_pages,
    gather_plain,
    scatter_pages,
)
from bodocache.kernels.reference import copy as copy_twin
from bodocache.kernels.reference import gather as gather_twin
from bodocache.layout import Group, LayoutKind


def check_layerwise_copies(machine: Machine, path: CopyPath) -> None:
    """Steps, a cut, a commit, an abort, and how far it runs ahead of an engine's stream."""
    if not machine.real:
        raise Skipped("streams are for a GPU; tests/kernels/test_layerwise.py has the logic")
    machine.need(path)
    group = machine.groups[0]
    ours, theirs = torch.arange(12), torch.arange(12).flip(0) + 3
    for ahead in (None, 1, 2):
        source = machine.pool(LayoutKind.PAGE, group, on_host=True)
        destination = machine.pool(LayoutKind.LAYER_FIRST, group)
        expected = destination.twin()
        copy_twin.copy_pages(source.pages, expected.pages, ours[:10], theirs[:10])
        placed = theirs[:10].to(machine.device)
        rows = torch.arange(10, device=machine.device)
        form = [gather_plain(expected.pages, placed, layers=range(i, i + 1)) for i in range(3)]
        found = [torch.empty_like(rows_of_layer) for rows_of_layer in form]
        engine = Engine(destination, placed, rows, found, torch.cuda.Stream(machine.device))
        for layer in range(group.layers):
            engine.compute(layer)
        copy = LayerwiseCopy(
            *(source.pages, destination.pages, ours, theirs),
            ahead=ahead,
            path=path,
            chunk_nbytes=2 * source.layout.page_nbytes,
        )
        copy.advance()
        copy.advance()
        machine.wait()  # all code is loaded and all memory there: see docs/kernels.md
        copy.commit(pages=10)
        for layer in range(group.layers):
            copy.wait_layer(layer, engine.stream)
            engine.compute(layer)
            copy.layer_done(layer, engine.stream)
        copy.drain()
        machine.wait()
        assert copy.whole == 10, f"{copy.whole} pages are whole; expected 10"
        same(destination.memory, expected.memory)
        for layer in range(group.layers):
            same(found[layer], form[layer])
    stop_early(machine, group, path)


class Engine(NamedTuple):
    """Reads each layer of some pages, on a stream of its own."""

    pool: Pool
    slots: torch.Tensor
    rows: torch.Tensor
    found: list[torch.Tensor]
    stream: torch.cuda.Stream

    def compute(self, layer: int) -> None:
        """Gather the layer: it allocates nothing."""
        part = {"layers": range(layer, layer + 1), "out": self.found[layer], "rows": self.rows}
        with torch.cuda.stream(self.stream):
            gather_plain(self.pool.pages, self.slots, **part)


def stop_early(machine: Machine, group: Group, path: CopyPath) -> None:
    """A cut between pages, and an engine that stops after the commit."""
    ours, theirs = torch.arange(12), torch.arange(12).flip(0) + 3
    source = machine.pool(LayoutKind.PAGE, group, on_host=True)
    destination = machine.pool(LayoutKind.LAYER_FIRST, group)
    expected = destination.twin()
    pair = (source.pages, destination.pages, ours, theirs)
    cut = LayerwiseCopy(*pair, path=path, chunk_nbytes=source.layout.page_nbytes)
    cut.advance()
    cut.cut()
    cut.drain()
    assert cut.whole == 1, f"{cut.whole} pages are whole; expected 1"
    copy_twin.copy_pages(source.pages, expected.pages, ours[:1], theirs[:1])
    same(destination.memory, expected.memory)
    stopped = LayerwiseCopy(*pair, path=path, ahead=1)
    stopped.commit()
    assert stopped.whole == 0, "it did not wait for the engine"
    stopped.abort()
    machine.wait()
    copy_twin.copy_pages(source.pages, expected.pages, ours, theirs)
    same(destination.memory, expected.memory)


def check_graph_capture(machine: Machine) -> None:
    """Calls within the device in a CUDA graph: replayed, they move what is there then."""
    if not machine.real:
        raise Skipped("CUDA graphs are for a GPU")
    group = machine.groups[0]
    source = machine.pool(LayoutKind.LAYER_FIRST, group)
    destination = machine.pool(LayoutKind.PAGE, group)
    other = machine.pool(LayoutKind.PAGE_HEAD, group)
    slots, rows = machine.slots(), torch.arange(9, device=machine.device)
    memory, out = machine.rows(9, source.layout.page_nbytes)
    copy = PageCopy(source.pages, destination.pages, path=CopyPath.SM)

    def work() -> torch.Tensor:
        copy.run(slots, slots)
        digests = gather_pages(source.pages, slots, out=out, rows=rows).digests
        scatter_pages(out, other.pages, slots, rows=rows)
        return digests

    work()  # compiled, and tables are there
    machine.wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        digests = work()
    source.memory.copy_(machine.bytes(source.memory.numel()))
    twins = [pool.twin() for pool in (destination, other)]
    expected = memory.clone()
    wanted = gather_twin.gather_pages(source.pages, slots, rows, expected[1:-1, 32:-32])
    for twin in twins:
        copy_twin.copy_pages(source.pages, twin.pages, slots, slots)
    graph.replay()
    machine.wait()
    for pool, twin in zip((destination, other), twins, strict=True):
        same(pool.memory, twin.memory)
    same(memory, expected)
    same(digests, wanted)
