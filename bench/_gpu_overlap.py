# SPDX-License-Identifier: Apache-2.0
"""A load beside compute: when both have ended, and how much slower the compute is.

A model of 32 layers, pieces of 32 KiB (16 tokens of 8 heads of 128, 16 bits). Prefill-like compute:
the four bf16 matrix products of a layer of Llama-3.1-8B, for so many tokens that they take as long
as the load of a layer; beside a copy, for 2,048. Decode-like: sums over more memory than any cache
holds.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import _gpu_peers
import torch
from _gpu_bench import Bench, claim_at_most, matching, worst

from bodocache.kernels import CopyPath, LayerwiseCopy, PageCopy
from bodocache.kernels.reference.copy import copy_pages as twin
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory

LOAD, BESIDE = "layerwise", "beside"
PATHS = (CopyPath.SM, CopyPath.BULK, CopyPath.COPY_ENGINE)
BESIDE_PEER = "uva_8byte"
AHEAD_NAME = "layerwise, ahead"
AHEAD = (None, 4)
PROOFS = 40  # loads in a row, on streams that serve again
HEADS, HEAD_DIM, ITEMSIZE, TOKENS = 8, 128, 2, 16

Compute = Callable[[int], object]  # with how much of it


@dataclass(slots=True)
class _Model:
    """A host pool of whole pages, an engine's pool by layer, and work for its multiprocessors."""

    host: PagedMemory
    engine: PagedMemory
    slots: tuple[torch.Tensor, torch.Tensor]
    weights: list[torch.Tensor]
    activations: list[torch.Tensor]  # of the most tokens, for each of the weights
    results: list[torch.Tensor]
    tokens: int
    read: torch.Tensor

    @classmethod
    def of(cls, bench: Bench) -> "_Model":
        """Random bytes and numbers."""
        scale = bench.scale
        group = Group("bench", scale.overlap_layers, HEADS, HEAD_DIM, ITEMSIZE)
        count = scale.overlap_pages
        sides = []
        for kind, make in (
            (LayoutKind.PAGE, bench.pinned),
            (LayoutKind.LAYER_FIRST, bench.random),
        ):
            layout = Layout(kind, group, TOKENS, count)
            sides.append(PagedMemory.of_layout(make(layout.pool_nbytes), layout))
        hidden = scale.matrix
        most = hidden // 2
        # Queries, keys and values; the output; gate and up; down.
        shapes = (
            *((hidden, hidden * 3 // 2), (hidden, hidden)),
            *((hidden, hidden * 7), (hidden * 7 // 2, hidden)),
        )
        like = {"dtype": torch.bfloat16, "device": bench.device}
        weights = [torch.randn(shape, **like) for shape in shapes]
        activations = [torch.randn((most, shape[0]), **like) for shape in shapes]
        results = [torch.empty((most, shape[1]), **like) for shape in shapes]
        read = torch.randn(scale.reduction // 4, dtype=torch.float32, device=bench.device)
        slots = bench.order(count), bench.order(count)
        return cls(*sides, slots, weights, activations, results, most, read)

    def of_tokens(self, tokens: float) -> "_Model":
        """The same with products for so many tokens, in steps of a tile of them."""
        most = len(self.results[0])
        step = min(64, most)
        return replace(self, tokens=max(step, min(most, round(tokens / step) * step)))

    def products(self, count: int) -> None:
        """Prefill-like: those of so many layers."""
        for _ in range(count):
            for left, right, out in zip(self.activations, self.weights, self.results, strict=True):
                torch.mm(left[: self.tokens], right, out=out[: self.tokens])

    def reads(self, count: int) -> None:
        """Decode-like."""
        for _ in range(count):
            self.read.sum()

    def in_order(self) -> "_Model":
        """The same memories, the host's by layer as well, and all pages side by side."""
        group = Group("bench", self.engine.layers, HEADS, HEAD_DIM, ITEMSIZE)
        layout = Layout(LayoutKind.LAYER_FIRST, group, TOKENS, self.engine.num_pages)
        (memory,) = self.host.tensors()
        slots = torch.arange(self.engine.num_pages, dtype=torch.int32)
        return replace(self, host=PagedMemory.of_layout(memory, layout), slots=(slots, slots))

    def that_fits(self, path: str, ahead: int | None) -> "_Model":
        """In order where the path holds no more than a few runs: scattered pages are many."""
        return self.in_order() if path == CopyPath.COPY_ENGINE and ahead is not None else self

    def slots_for(self, path: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the path wants them."""
        if path == CopyPath.COPY_ENGINE:
            return self.slots
        return self.slots[0].to(device), self.slots[1].to(device)


def measure(bench: Bench) -> None:
    """Both, path by path."""
    model = _Model.of(bench)
    parts = [(BESIDE, path, _measure_beside) for path in (*map(str, PATHS), BESIDE_PEER)]
    # Last what waits for memory on the device: a wait that does not end would end the run.
    for ahead in AHEAD:
        part = functools.partial(_measure_load, ahead=ahead)
        parts += [(LOAD, str(path), part) for path in PATHS]
    for section, path, part in parts:
        if path in bench.barred:
            bench.report.failed(section, path, bench.barred[path])
            continue
        with bench.reporting(section, path):
            part(bench, model, path)
    _claim(bench)


def prove_ahead(bench: Bench) -> None:
    """Many loads that wait for the engine, two at a time; it hangs where a wait never ends."""
    bench.scale = replace(bench.scale, overlap_pages=2, reduction=4 << 10)
    model = _Model.of(bench)
    load = _Load(model, CopyPath.SM, model.slots_for(CopyPath.SM, bench.device))
    model.products(1)  # what the first one sets up waits for the device: not behind a hold
    before = load.run(1, AHEAD[-1])
    for _ in range(1 if bench.is_stand_in else PROOFS):
        after = load.run(1, AHEAD[-1])
        before.drain()
        before = after
    if not load.is_right(bench, AHEAD[-1]):
        raise RuntimeError("wrong bytes")


def _measure_load(bench: Bench, given: _Model, path: str, *, ahead: int | None) -> None:
    """Load and compute alone, then layer by layer, under each other."""
    if ahead is not None and AHEAD_NAME in bench.barred:
        bench.report.failed(LOAD, path, bench.barred[AHEAD_NAME], ahead=ahead)
        return
    model = given.that_fits(path, ahead)
    slots = model.slots_for(path, bench.device)
    layers = model.engine.layers
    load = _Load(model, CopyPath(path), slots)
    if not load.is_right(bench, ahead):
        bench.report.failed(LOAD, path, "wrong bytes")
        return
    alone_s = _alone(bench, lambda: load.run(0, ahead))
    for _ in range(2):  # the second time from near by: products of few tokens are no faster
        one_s = _alone(bench, lambda: load.model.products(1))
        load.model = model.of_tokens(load.model.tokens * alone_s / layers / one_s)
    calls = {
        "load": lambda _: load.run(0, ahead),
        "compute": lambda _: load.model.products(layers),
        "both": lambda _: load.run(1, ahead),
    }
    for hidden in (True, False):
        timed = bench.timer.interleaved(calls, hidden=hidden)
        for name, why in timed.failures.items():
            bench.report.failed(LOAD, path, f"{name}: {why}", ahead=ahead)
        if timed.failures:
            continue
        seconds = {name: timing.median_s for name, timing in timed.timings.items()}
        longer_s = max(seconds["load"], seconds["compute"])
        fields = {
            "ahead": ahead,
            "pages": "in order" if model is not given else "scattered",
            "layers": layers,
            "tokens": load.model.tokens,
            "begins": "behind earlier work" if hidden else "on an idle device",
            "load_s": seconds["load"],
            "compute_s": seconds["compute"],
            "over_longer": seconds["both"] / longer_s,
        }
        bench.report.timed(LOAD, path, timed.timings["both"], **fields)


@dataclass(slots=True)
class _Load:
    """A layer-wise load with compute between its layers."""

    model: _Model
    path: CopyPath
    slots: tuple[torch.Tensor, torch.Tensor]

    def run(self, products: int, ahead: int | None) -> LayerwiseCopy:
        """Every layer of the load, ``products`` behind each; in the stream, nothing waited for."""
        copy = LayerwiseCopy(
            self.model.host, self.model.engine, *self.slots, ahead=ahead, path=self.path
        )
        copy.commit()
        for layer in range(copy.layers):
            copy.wait_layer(layer)
            self.model.products(products)
            copy.layer_done(layer)
        return copy

    def is_right(self, bench: Bench, ahead: int | None) -> bool:
        """Whether every page is where it should be."""
        (engine,) = self.model.engine.tensors()
        twin(self.model.host, self.model.engine, *self.model.slots)  # every page, so all of it
        expected = engine.clone()
        engine.zero_()
        self.run(0, ahead)
        bench.timer.finish()
        return torch.equal(engine, expected)


def _measure_beside(bench: Bench, model: _Model, path: str) -> None:
    """Compute alone and beside copies that last longer."""
    for direction in ("host_to_device", "device_to_host"):
        source, destination = model.host, model.engine
        ours, theirs = model.slots_for(path, bench.device)
        if direction == "device_to_host":
            source, destination, ours, theirs = destination, source, theirs, ours
        if path == BESIDE_PEER:
            sets = [(model.slots[0], model.slots[1])]
            peer = _gpu_peers.uva(source, destination, sets)
            copy = lambda stream, peer=peer: on_stream(stream, lambda: peer(0))  # noqa: E731
        else:
            prepared = PageCopy(source, destination, path=CopyPath(path))
            slots = (ours, theirs)
            copy = lambda stream, p=prepared, s=slots: p.run(*s, stream=stream)  # noqa: E731
        note_slowdown(bench, model, copy, what=path, direction=direction)


def note_slowdown(
    bench: Bench,
    model: _Model,
    copy: Callable[[torch.cuda.Stream | None], object],
    *,
    what: str,
    direction: str,
) -> None:
    """A row each for prefill-like and decode-like compute alone and beside a longer ``copy``."""
    load_s = _alone(bench, lambda: copy(None))
    for kind, compute in (("prefill", model.products), ("decode", model.reads)):
        count = max(1, int(0.6 * load_s / _alone(bench, lambda c=compute: c(1))))
        work = lambda c=compute, n=count: c(n)  # noqa: E731
        alone_s, _ = bench.timer.beside(None, work)
        beside_s, lasted = bench.timer.beside(copy, work)
        fields = {"direction": direction, "compute": kind, "copy_lasted": lasted}
        row = {"section": BESIDE, "what": what, **fields, "slowdown": beside_s / alone_s}
        bench.report.rows.append(
            {**row, "alone_s": alone_s, "beside_s": beside_s, "load_s": load_s}
        )


def on_stream(stream: torch.cuda.Stream | None, call: Callable[[], object]) -> None:
    """Call it with ``stream`` as the current one; None: as it is."""
    if stream is None:
        call()
        return
    with torch.cuda.stream(stream):
        call()


def _alone(bench: Bench, call: Callable[[], object]) -> float:
    timed = bench.timer.interleaved({"alone": lambda _: call()}, hidden=True)
    if timed.failures:
        raise RuntimeError(timed.failures["alone"])
    return timed.timings["alone"].median_s


def _claim(bench: Bench) -> None:
    rows = bench.report.rows
    for path in map(str, PATHS):
        over = worst(
            rows, "over_longer", max, section=LOAD, what=path, begins="behind earlier work"
        )
        title = f"load under compute of equal length, over the longer, {path}"
        claim_at_most(bench.report, title, over, 1.05, "x")
        for kind, bound in (("prefill", 1.05), ("decode", 1.1)):
            found = matching(rows, section=BESIDE, what=path, compute=kind, copy_lasted=True)
            title = f"{kind}-like compute beside a copy, over alone, {path}"
            claim_at_most(bench.report, title, worst(found, "slowdown", max), bound, "x")
