# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N802 -- the stand-in has the driver's names
"""Copies on a GPU's streams, with CUDA's calls recorded: what waits, on which stream, what lives.

The code is the real one. Kernels do not run; whatever would make the host wait is noted.
"""

import contextlib
import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bodocache import env
from bodocache.errors import BodoCacheError, LayoutError
from bodocache.kernels import (
    CopyPath,
    LayerwiseCopy,
    PageCopy,
    bulk,
    check,
    copy_and_sum_pages,
    copy_engine,
    copy_pages,
    lane,
    launch,
    move,
    nvrtc,
)
from bodocache.kernels.lane import CudaLane
from bodocache.kernels.launch import device_table
from bodocache.kernels.layerwise import LayerCopies
from bodocache.kernels.runs import runs_of
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory
from bodocache.move.stream import LayerStream

pytestmark = pytest.mark.skipif(env.triton_interpreted(), reason="recorded, not interpreted")

CPU = torch.device("cpu")
OK = SimpleNamespace(value=0)


class Stream:
    """A stream of the stand-in; work on it has ended when a test says so."""

    def __init__(self, handle, name):
        self.cuda_stream, self.name = handle, name

    def wait_stream(self, _):
        pass

    def wait_event(self, event):
        self.waits_for = event


class Event:
    def __init__(self, recorder):
        self._recorder = recorder

    def record(self, stream):
        self.stream = stream

    def query(self):
        self._recorder.queries += 1
        self._recorder.when_queried()
        return self.stream.name not in self._recorder.busy


class Recorder:
    """What cuda.bindings.driver offers here, and the log. There is no cuStreamDestroy."""

    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=SimpleNamespace(value=1))
    CUstreamWaitValue_flags = SimpleNamespace(CU_STREAM_WAIT_VALUE_GEQ=SimpleNamespace(value=0))
    CUstreamWriteValue_flags = SimpleNamespace(
        CU_STREAM_WRITE_VALUE_DEFAULT=SimpleNamespace(value=0)
    )

    def __init__(self):
        self.log, self.busy, self.created, self.queries = [], set(), 0, 0
        self.current = Stream(1, "default")
        self.warm, self.launched = set(), []
        self.has_context = False

    @contextlib.contextmanager
    def context(self, _device):
        """As in a thread of which torch knows nothing: the driver has a context only in here."""
        assert not self.has_context
        self.has_context = True
        yield
        self.has_context = False

    def when_queried(self):
        pass

    def cuStreamCreate(self, _):
        assert self.has_context
        self.created += 1
        return OK, 100 + self.created

    def cuMemHostGetDevicePointer(self, pointer, _):
        assert self.has_context
        return OK, pointer

    def cuStreamWaitValue32(self, _stream, _address, count, _flag):
        assert self.has_context
        self.log.append(f"hold {count}")
        return (OK,)

    def cuStreamWriteValue32(self, _stream, _address, count, _flag):
        assert self.has_context
        self.log.append(f"write {count}")
        return (OK,)

    @contextlib.contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def note(self, what):
        self.log.append(f"{what} on {self.current.name}")


@pytest.fixture
def gpu(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr("bodocache.kernels.gpu.bindings", lambda _: recorder)
    monkeypatch.setattr("bodocache.kernels.gpu.current_context", recorder.context)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(lane, "_pool", lane._Pool())
    monkeypatch.setattr(move, "_warm", set())
    monkeypatch.setattr(bulk, "_warm", set())
    monkeypatch.setattr(check, "on_gpu", lambda _: True)
    monkeypatch.setattr(check, "is_pinned", lambda _: True)
    for name, stand_in in {
        "is_current_stream_capturing": lambda: False,
        "current_stream": lambda _=None: recorder.current,
        "ExternalStream": lambda handle, _: Stream(handle, f"lane {handle}"),
        "device": lambda _: contextlib.nullcontext(),
        "stream": recorder.on,
        "Event": lambda: Event(recorder),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    for name in ("to", "cpu", "contiguous"):
        monkeypatch.setattr(torch.Tensor, name, noted(recorder, name, getattr(torch.Tensor, name)))
    for name in ("zeros", "empty", "full"):
        monkeypatch.setattr(torch, name, allocating(recorder, name, getattr(torch, name)))
    monkeypatch.setattr(launch.Launch, "run", lambda self: launched(recorder, self))
    monkeypatch.setattr("bodocache.kernels.gpu.max_shared_nbytes", lambda _: 227 << 10)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(nvrtc, "function", lambda *_, **__: nvrtc.Function("bulk", 1, CPU))
    monkeypatch.setattr(nvrtc.Function, "launch", lambda *_, **__: recorder.note("bulk kernel"))
    monkeypatch.setattr(copy_engine, "submit", lambda *_: engine(recorder))
    return recorder


def engine(recorder):
    recorder.note("engine")


def noted(recorder, name, real):
    def call(self, *rest, **options):
        if name != "contiguous" or not self.is_contiguous():
            recorder.note(f"{name} {list(self.shape)}")
        return real(self, *rest, **options)

    return call


def allocating(recorder, name, real):
    def call(*rest, **options):
        recorder.note(name)
        return real(*rest, **options)

    return call


def launched(recorder, kernel):
    """A specialisation is loaded by its first launch, which may wait for the whole device."""
    specialised = (
        kernel.num_warps,
        *kernel.constexprs.items(),
        *(a.dtype for a in kernel.arguments.values() if isinstance(a, torch.Tensor)),
        *(
            kernel.arguments[p.name].data_ptr() % 16
            for p in kernel.kernel.params
            if isinstance(kernel.arguments.get(p.name), torch.Tensor) and not p.do_not_specialize
        ),
    )
    if specialised not in recorder.warm:
        recorder.warm.add(specialised)
        recorder.note("load")
    recorder.note("kernel" if kernel.arguments["num_rows"] else "empty kernel")


def pool(kind, pages=8, **shape):
    group = Group("g", **{"layers": 3, "heads": 2, "head_dim": 16, "itemsize": 2, **shape})
    layout = Layout(kind, group, 2, pages)
    memory = torch.randint(0, 256, (layout.pool_nbytes,), dtype=torch.uint8)
    return PagedMemory.of_layout(memory, layout)


def load(slots=6, **options):
    slots = torch.arange(slots)
    pools = pool(LayoutKind.PAGE), pool(LayoutKind.LAYER_FIRST)
    return LayerwiseCopy(*pools, slots, slots + 1, lane=CudaLane(CPU), **options)


# -- what waits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CopyPath.SM, CopyPath.BULK, CopyPath.COPY_ENGINE])
@pytest.mark.parametrize("steps", [0, 1])
def test_a_commit_waits_for_nothing_and_allocates_nothing(gpu, path, steps):
    copy = load(ahead=1, path=path, chunk_nbytes=1 << 10)
    for _ in range(steps):
        copy.advance()
    gpu.log.clear()
    copy.commit()
    work = {CopyPath.SM: "kernel", CopyPath.BULK: "bulk kernel", CopyPath.COPY_ENGINE: "engine"}
    one = f"{work[path]} on lane 101"
    moves = [line for line in gpu.log if not line.startswith(("cpu", "to"))]
    assert moves == [one, "hold 1", one, "hold 2", one]
    if path is not CopyPath.COPY_ENGINE:  # whose indices are on the host, where these are none
        assert gpu.log == moves


@pytest.mark.parametrize("path", [CopyPath.SM, CopyPath.BULK, CopyPath.COPY_ENGINE])
def test_indices_are_where_the_path_wants_them_before_the_commit(gpu, path):
    load(slots=7, path=path)
    assert gpu.log.count("to [7] on default") == 2


def test_other_work_of_a_lane_and_what_it_waits_for_are_on_its_stream(gpu):
    made, event = CudaLane(CPU), object()
    made.run(lambda: gpu.note("work"))
    assert gpu.log[-1] == "work on lane 101"
    made.follow(event)
    assert made._track.stream.waits_for is event
    assert gpu.current.name == "default"


def test_a_cache_submits_layers_and_digests_on_one_stream_and_waits_for_nothing(gpu):
    copies = LayerCopies(pool(LayoutKind.PAGE), pool(LayoutKind.LAYER_FIRST), path=CopyPath.SM)
    slots = np.arange(6)

    def begin():
        return LayerStream(copies, slots, slots + 1, to_host=False, make_lane=lambda: CudaLane(CPU))

    begin().submit(3)  # tables and code are there
    stream = begin()
    gpu.busy.add(lane_name := f"lane {100 + gpu.created}")
    gpu.log.clear()
    stream.submit(1)
    assert gpu.log == [f"kernel on {lane_name}"]
    stream.submit(3)
    assert [line for line in gpu.log if "kernel" in line] == [f"kernel on {lane_name}"] * 4
    assert all(line.endswith(lane_name) for line in gpu.log)
    assert not [line for line in gpu.log if line.startswith(("to ", "load"))]  # cpu: of checks here
    assert (stream.given, stream.whole, stream.is_over) == (3, 0, False)
    gpu.busy.clear()
    assert (stream.whole, stream.is_over) == (3, True)


def test_what_waits_for_its_own_stream_cannot_be_held(gpu):
    with pytest.raises(LayoutError, match=r"ahead=1 by path torch.*calibrate.*or name another"):
        load(ahead=1)
    load()


def test_more_runs_than_a_stream_takes_are_not_held(gpu, monkeypatch):
    monkeypatch.setattr("bodocache.kernels.layerwise.MAX_HELD_RUNS", 11)
    with pytest.raises(LayoutError, match="24 runs or more may wait for the engine; at most 11"):
        load(ahead=1, path=CopyPath.COPY_ENGINE)
    load(ahead=3, path=CopyPath.COPY_ENGINE)


def test_pages_whose_gaps_others_fill_count_as_runs_of_their_own(gpu, monkeypatch):
    """Of the last pages alone: what a commit brings when the others went before it."""
    monkeypatch.setattr("bodocache.kernels.layerwise.MAX_HELD_RUNS", 27)
    pools = pool(LayoutKind.LAYER_FIRST), pool(LayoutKind.LAYER_FIRST)
    slots = torch.tensor([0, 2, 4, 6, 1, 3, 5])
    options = {"ahead": 1, "path": CopyPath.COPY_ENGINE}
    with pytest.raises(LayoutError, match="28 runs or more may wait"):
        LayerwiseCopy(*pools, slots, slots + 1, lane=CudaLane(CPU), **options)
    for order in (torch.arange(7), torch.arange(7).flip(0)):
        LayerwiseCopy(*pools, order, order + 1, lane=CudaLane(CPU), **options)


@pytest.mark.parametrize("path", [CopyPath.SM, CopyPath.BULK, CopyPath.COPY_ENGINE])
def test_no_pages_at_all_are_fine(gpu, path):
    copy = load(slots=0, ahead=1, path=path)
    copy.commit()
    copy.wait_layer(2)
    assert copy.whole == 0


def test_nothing_is_captured_before_it_says_that_it_cannot_be(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    pools, slots = (pool(LayoutKind.PAGE), pool(LayoutKind.LAYER_FIRST)), torch.arange(12)[::2]
    gpu.log.clear()
    with pytest.raises(BodoCacheError, match="a CUDA graph cannot capture it"):
        LayerwiseCopy(*pools, slots // 2, slots // 2, path="sm")
    assert not gpu.log


def test_where_streams_share_one_queue_none_is_held(gpu, monkeypatch):
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    with pytest.raises(BodoCacheError, match="CUDA_DEVICE_MAX_CONNECTIONS=1"):
        load(ahead=1, path=CopyPath.SM)
    load(path=CopyPath.SM)


# -- what lives -----------------------------------------------------------------------------------


def test_a_stream_and_its_counter_outlive_the_load_and_serve_the_next_one(gpu):
    copy = load(ahead=1, path=CopyPath.SM)
    copy.commit()
    copy.layer_done(0)
    memory = weakref.ref(copy._lane._track._memory)
    del copy
    gc.collect()
    assert memory() is not None
    others = []
    for busy in ("lane 101", "default"):  # either may still read or write the counter
        gpu.busy = {busy}
        others.append(load(ahead=1, path=CopyPath.SM))
    assert gpu.created == 3
    gpu.busy = set()
    third = load(ahead=1, path=CopyPath.SM)
    assert gpu.created == 3
    gpu.log.clear()
    third.commit()
    third.layer_done(0)
    third.layer_done(1)
    third.layer_done(2)  # nothing waits for it
    assert [line for line in gpu.log if "kernel" not in line] == [
        *("hold 3", "hold 4", "write 3", "write 4")
    ]
    assert int(third._lane._track.counter[0]) == 2  # where the first load's count ended
    assert third._lane._track.stream.name == "lane 101"


def test_a_counter_goes_round(gpu):
    copy = load(ahead=1, path=CopyPath.SM)
    copy._lane._track.base = 2**32 - 1
    gpu.log.clear()
    copy.commit()
    assert [line for line in gpu.log if "hold" in line] == ["hold 0", "hold 1"]


def test_an_abort_writes_the_counter_until_what_was_held_has_ended(gpu):
    copy = load(ahead=1, path=CopyPath.SM)
    copy.commit()
    counter = copy._lane._track.counter
    gpu.busy, gpu.queries = {"lane 101"}, 0

    def later():
        assert gpu.queries == 1 or int(counter[0]) == 2
        counter[0] = 1  # what the engine's stream was told before comes after the abort's write
        if gpu.queries == 4:
            gpu.busy = set()

    gpu.when_queried = later
    copy.abort()
    assert gpu.queries == 4


# -- on which stream ------------------------------------------------------------------------------


def test_all_of_a_copy_with_sums_is_on_its_stream(gpu):
    pools = pool(LayoutKind.PAGE), pool(LayoutKind.LAYER_FIRST)
    slots = torch.arange(6).view(3, 2)
    gpu.log.clear()
    copy_and_sum_pages(*pools, slots[:, 0], slots[:, 1], stream=Stream(9, "S"))
    assert {"zeros on S", "contiguous [3] on S", "kernel on S"} <= set(gpu.log)
    assert not [line for line in gpu.log if "default" in line]


def test_strided_indices_are_read_on_the_copys_stream(gpu):
    pools = pool(LayoutKind.PAGE), pool(LayoutKind.LAYER_FIRST)
    slots = torch.arange(6).view(3, 2)
    gpu.log.clear()
    copy_pages(*pools, slots[:, 0], slots[:, 1], stream=Stream(9, "S"), path=CopyPath.SM)
    assert {"contiguous [3] on S", "kernel on S"} <= set(gpu.log)
    assert not [line for line in gpu.log if "default" in line]


def test_torch_reads_the_hosts_memory_when_earlier_work_has_ended(gpu, monkeypatch):
    source, destination = pool(LayoutKind.PAGE), pool(LayoutKind.LAYER_FIRST)
    copy = PageCopy(source, destination, path=CopyPath.TORCH)
    waited = []
    gpu.current.synchronize = lambda: waited.append(1)
    copy.run(torch.tensor([0]), torch.tensor([1]))
    assert not waited  # within a device it waits for nothing
    object.__setattr__(destination, "device", torch.device("cuda:0"))
    monkeypatch.setattr(check, "on_gpu", lambda device: device.type == "cuda")
    copy = PageCopy(source, destination, path=CopyPath.TORCH)
    monkeypatch.setattr("bodocache.kernels.copy.twin", lambda *_: waited.append("read"))
    copy.run(torch.tensor([0]), torch.tensor([1]))
    assert waited == [1, "read"]


# -- tables ---------------------------------------------------------------------------------------


def test_a_table_lives_as_long_as_its_memory_however_many_there_are():
    memory = pool(LayoutKind.LAYER_FIRST, layers=30)
    table = weakref.ref(device_table(runs_of(memory), CPU))
    others = [pool(LayoutKind.LAYER_FIRST, layers=30) for _ in range(20)]
    kept = [
        device_table(runs_of(m.only(layers=range(i, i + 1))), CPU)
        for m in others
        for i in range(30)
    ]
    gc.collect()
    assert device_table(runs_of(memory), CPU) is table()
    del memory, others, kept
    gc.collect()
    assert table() is None


def test_a_prepared_copy_keeps_its_tables(gpu):
    source, destination = pool(LayoutKind.PAGE), pool(LayoutKind.LAYER_FIRST)
    copy = PageCopy(source, destination, path=CopyPath.SM)
    copy.prepare(CopyPath.SM, torch.int64)
    tables = [weakref.ref(table) for runs in copy._pair for table in runs.tables.values()]
    assert len(tables) == 2
    del source, destination
    gc.collect()
    assert all(table() is not None for table in tables)


# -- names of paths -------------------------------------------------------------------------------


def test_a_path_may_be_named_by_a_word(gpu):
    pools = pool(LayoutKind.PAGE), pool(LayoutKind.LAYER_FIRST)
    copy_pages(*pools, torch.tensor([0]), torch.tensor([1]), path="sm")
    assert gpu.log[-1] == "kernel on default"


def test_a_path_that_is_none_is_refused():
    pools = pool(LayoutKind.PAGE), pool(LayoutKind.LAYER_FIRST)
    with pytest.raises(LayoutError, match="path is 'zzz'; expected one of torch, copy_engine"):
        PageCopy(*pools, path="zzz")
