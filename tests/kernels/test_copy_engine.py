# SPDX-License-Identifier: Apache-2.0
"""Runs of page copies, and how the driver is asked: against memory and a strict stand-in."""

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.errors import BackendError
from bodocache.kernels import copy_engine, direct, gpu
from bodocache.kernels.reference import copy as twin
from bodocache.kernels.runs import pair_of
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory
from bodocache.testing.fake_driver import ByAddress, Result


def pool(kind, num_pages, **shape):
    layout = Layout(kind, Group("g", **shape), 2, num_pages)
    memory = torch.randint(0, 256, (layout.pool_nbytes,), dtype=torch.uint8)
    return PagedMemory.of_layout(memory, layout), memory


def perform(runs):
    for source, target, nbytes in zip(*(column.tolist() for column in runs), strict=True):
        ctypes.memmove(target, source, nbytes)


@settings(max_examples=80, deadline=None)
@given(
    *(st.sampled_from(LayoutKind), st.sampled_from(LayoutKind), st.integers(1, 3)),
    *(st.integers(1, 3), st.sampled_from([1, 2]), st.data()),
)
def test_the_runs_are_the_copy(ours, theirs, layers, heads, kv, data):
    shape = {"layers": layers, "heads": heads, "head_dim": 16, "itemsize": 2, "kv": kv}
    source, _ = pool(ours, 5, **shape)
    destination, found = pool(theirs, 5, **shape)
    expected = found.clone()
    other = PagedMemory.of_layout(expected, Layout(theirs, Group("g", **shape), 2, 5))
    targets = data.draw(st.permutations(range(5)))[: data.draw(st.integers(1, 5))]
    chosen = data.draw(st.lists(st.integers(0, 4), min_size=len(targets), max_size=len(targets)))
    slots = np.array(chosen), np.array(targets)
    runs = copy_engine.merge(pair_of("op", source, destination), *slots)
    bounds = np.array(sorted(data.draw(st.sets(st.integers(0, found.numel())))), np.int64)
    perform(copy_engine.cut(runs, False, found.data_ptr() + bounds))
    twin.copy_pages(source, other, *(torch.from_numpy(s) for s in slots))
    assert torch.equal(found, expected)


@settings(max_examples=80, deadline=None)
@given(
    *(st.sampled_from(LayoutKind), st.sampled_from(LayoutKind), st.integers(1, 2)),
    *(st.permutations(range(6)), st.permutations(range(6)), st.booleans(), st.data()),
)
def test_no_pages_in_a_row_have_more_runs_than_said(ours, theirs, layers, here, there, alike, data):
    shape = {"layers": layers, "heads": 1, "head_dim": 16, "itemsize": 2}
    source, destination = pool(ours, 6, **shape)[0], pool(theirs, 6, **shape)[0]
    copy = copy_engine.EngineCopy(pair_of("op", source, destination), source, destination)
    slots = torch.tensor(here), torch.tensor(here if alike else there)
    first, end = sorted(data.draw(st.tuples(st.integers(0, 6), st.integers(0, 6))))
    some = copy.runs(slots[0][first:end], slots[1][first:end])
    assert len(some.nbytes) <= copy.most_runs(*slots, enough=1000)


def test_pages_in_order_count_as_few_runs_up_or_down(monkeypatch):
    monkeypatch.setattr(gpu, "bindings", lambda _: None)
    source, _ = pool(LayoutKind.LAYER_FIRST, 8, layers=1, heads=2, head_dim=16, itemsize=2)
    copy = copy_engine.EngineCopy(pair_of("op", source, source), source, source)
    up = torch.arange(8)
    assert copy.most_runs(up, up, enough=99) == 2  # K and V, though they lie side by side
    assert len(copy.runs(up, up).nbytes) == 1
    assert copy.most_runs(up.flip(0), up.flip(0), enough=99) == 2
    assert copy.most_runs(up.flip(0), up, enough=99) == 16
    assert copy.most_runs(up.flip(0), up, enough=3) == 4


def test_adjacent_pages_of_a_layer_are_one_run():
    source, _ = pool(LayoutKind.LAYER_FIRST, 8, layers=3, heads=2, head_dim=16, itemsize=2)
    destination, _ = pool(LayoutKind.LAYER_FIRST, 8, layers=3, heads=2, head_dim=16, itemsize=2)
    pair = pair_of("op", source, destination)
    runs = copy_engine.merge(pair, np.array([4, 2, 3]), np.array([7, 5, 6]))
    assert len(runs.nbytes) == 3 * 2  # one a layer, K and V, whatever the order of the pages
    assert runs.nbytes.tolist() == [3 * pair[0].piece_nbytes] * 6


def test_no_copy_lies_in_two_registrations(monkeypatch):
    monkeypatch.setattr(copy_engine, "REGISTER_CHUNK_NBYTES", 4096)
    memory, owner = pool(LayoutKind.PAGE, 8, layers=1, heads=1, head_dim=384, itemsize=2)
    runs = copy_engine.merge(pair_of("op", memory, memory), np.arange(4), np.arange(4, 8))
    bounds = copy_engine._registrations(memory)
    pieces = copy_engine.cut(runs, True, bounds)
    assert len(runs.nbytes) == 1
    assert pieces.nbytes.sum() == runs.nbytes.sum()
    starts = pieces.sources - owner.data_ptr()
    assert (starts // 4096 == (starts + pieces.nbytes - 1) // 4096).all()


def test_registrations_count_from_the_start_of_what_was_allocated(monkeypatch):
    monkeypatch.setattr(copy_engine, "REGISTER_CHUNK_NBYTES", 4096)
    layout = Layout(LayoutKind.PAGE, Group("g", 1, 1, 384, 2), 2, 8)
    whole = torch.zeros(1 << 16, dtype=torch.uint8)
    memory = PagedMemory.of_layout(whole[1024 : 1024 + layout.pool_nbytes], layout)
    runs = copy_engine.merge(pair_of("op", memory, memory), np.arange(4), np.arange(4, 8))
    pieces = copy_engine.cut(runs, True, copy_engine._registrations(memory))
    starts = pieces.sources - whole.data_ptr()
    assert len(starts) > 1
    assert (starts // 4096 == (starts + pieces.nbytes - 1) // 4096).all()


@pytest.mark.parametrize(("chunk", "cuts"), [(4096, True), (1 << 20, False)])
def test_a_prepared_copy_cuts_where_a_registration_ends_among_its_pages(monkeypatch, chunk, cuts):
    monkeypatch.setattr(copy_engine, "REGISTER_CHUNK_NBYTES", chunk)
    monkeypatch.setattr(gpu, "bindings", lambda _: None)
    layout = Layout(LayoutKind.PAGE, Group("g", 1, 1, 384, 2), 2, 8)
    source, destination = (torch.randint(0, 256, (1 << 16,), dtype=torch.uint8) for _ in range(2))
    ours, theirs = (
        PagedMemory.of_layout(m[start : start + layout.pool_nbytes], layout)
        for m, start in ((source, 1024), (destination, 2048))
    )
    copy = copy_engine.EngineCopy(pair_of("op", ours, theirs), ours, theirs)
    slots = torch.tensor([2, 1, 3]), torch.tensor([5, 4, 6])
    runs = copy.runs(*slots)
    assert (len(runs.nbytes) > 1) is cuts
    for starts, memory in ((runs.sources, source), (runs.targets, destination)):
        at = starts - memory.data_ptr()
        assert (at // chunk == (at + runs.nbytes - 1) // chunk).all()
    expected = destination.clone()
    twin.copy_pages(
        ours, PagedMemory.of_layout(expected[2048 : 2048 + layout.pool_nbytes], layout), *slots
    )
    perform(runs)
    assert torch.equal(destination, expected)


class Driver(ByAddress):
    """The two ways to copy."""

    def __init__(self, result=0, *, batches=True):
        super().__init__()
        self.result, self.calls, self.contexts = result, [], [self.PRIMARY]
        if not batches:
            self.at_cuMemcpyBatchAsync = None

    def at_cuMemcpyBatchAsync(  # noqa: N802, PLR0917 -- the driver's
        self, targets, sources, sizes, count, attributes, firsts, kinds, failed, stream
    ):
        assert kinds == 1
        assert failed
        assert stream != 0, "the legacy stream takes no batch"
        order, *hints, flags = ctypes.cast(attributes, ctypes.POINTER(ctypes.c_int * 6)).contents
        assert (order, hints, flags) == (1, [0] * 4, 1)  # in the stream's order, beside compute
        assert ctypes.cast(firsts, ctypes.POINTER(ctypes.c_size_t))[0] == 0
        columns = (
            ctypes.cast(column, ctypes.POINTER(ctypes.c_int64 * count)).contents
            for column in (sources, targets, sizes)
        )
        self.calls.append(("batch", *map(list, columns)))
        return self.result

    def CUresult(self, code):  # noqa: N802 -- the driver's name
        return CUresult("CUDA_ERROR_INVALID_VALUE", code)

    def cuGetErrorString(self, _):  # noqa: N802 -- the driver's name
        return Result(), b"what it says"

    def cuMemcpyAsync(self, _target, _source, nbytes, _stream):  # noqa: N802 -- the driver's name
        self.calls.append(("one", nbytes))
        return (Result(),)


class CUresult(Result):
    """What the driver has texts for."""


@pytest.fixture
def driver_of(monkeypatch):
    caches = (direct._calls, direct._primary, gpu.primary_context)
    for cache in caches:
        cache.cache_clear()

    def use(driver):
        monkeypatch.setattr(gpu, "cuda_driver", lambda: driver)
        monkeypatch.setattr(gpu, "bindings", lambda _: driver)
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        return driver

    yield use
    for cache in caches:
        cache.cache_clear()


DEVICE = torch.device("cuda", 0)


@pytest.fixture
def runs():
    return copy_engine.MergedRuns(np.array([16, 64]), np.array([256, 512]), np.array([32, 16]))


@pytest.mark.parametrize(
    ("stream", "batches", "calls"),
    [
        (7, True, [("batch", [16, 64], [256, 512], [32, 16])]),
        (7, False, [("one", 32), ("one", 16)]),
        (0, True, [("one", 32), ("one", 16)]),
    ],
)
def test_one_batch_where_the_driver_takes_it(driver_of, runs, stream, batches, calls):
    driver = driver_of(Driver(batches=batches))
    copy_engine.submit(runs, DEVICE, stream)
    assert driver.calls == calls


def test_a_batch_is_handed_over_in_torchs_context(driver_of, runs):
    driver = driver_of(Driver())
    driver.contexts = [0]
    copy_engine.submit(runs, DEVICE, 7)
    assert [call[0] for call in driver.calls] == ["batch"]
    assert driver.contexts == [0]


def test_nothing_to_copy_asks_nobody(driver_of):
    driver = driver_of(Driver())
    copy_engine.submit(copy_engine.MergedRuns(*np.empty((3, 0), np.int64)), DEVICE, 7)
    assert not driver.calls


def test_a_refusal_names_the_call(driver_of, runs):
    driver_of(Driver(result=1))
    with pytest.raises(BackendError, match=r"cuMemcpyBatchAsync.*INVALID_VALUE.*what it says"):
        copy_engine.submit(runs, DEVICE, 7)


@pytest.mark.parametrize("chunk", [1024, 1 << 20])
def test_compiled_runs_are_numpys(monkeypatch, chunk):
    monkeypatch.setattr(copy_engine, "REGISTER_CHUNK_NBYTES", chunk)
    rng = np.random.default_rng(7)
    for ours in LayoutKind:
        source, _ = pool(ours, 9, layers=2, heads=2, head_dim=16, itemsize=2)
        destination, _ = pool(LayoutKind.PAGE, 9, layers=2, heads=2, head_dim=16, itemsize=2)
        copy = copy_engine.EngineCopy(pair_of("op", source, destination), source, destination)
        slots = [torch.from_numpy(rng.permutation(9)[:5].astype(kind)) for kind in ("i4", "i4")]
        compiled, copy._compiled = copy.runs(*slots), None
        for ours_, theirs in zip(compiled, copy.runs(*slots), strict=True):
            assert ours_.tolist() == theirs.tolist()
