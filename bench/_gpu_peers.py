# SPDX-License-Identifier: Apache-2.0
"""The published shapes of page copies between host and device, to be measured beside ours.

Written from descriptions of what the established engines do, not from their code. Each is given its
best case: index lists and copy descriptors are prepared before the clock starts, and a contiguous
piece of a page counts as one item however many tokens it has, up to ``ITEM_NBYTES``.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from _gpu_timing import Call

from bodocache.kernels import copy_engine, gpu, nvrtc
from bodocache.kernels.reference.views import page_views
from bodocache.kernels.runs import pair_of
from bodocache.layout import PagedMemory

Slots = tuple[torch.Tensor, torch.Tensor]  # of the source and of the destination, on the host
Prepare = Callable[[PagedMemory, PagedMemory, Sequence[Slots]], Call]

ITEM_NBYTES = 2048  # what a warp copies: one token's K or V of 8 heads of 128 in 16 bits
BLOCKS, THREADS = 2, 1024

# Two established kernels: 8-byte loads through the read-only path and stores that stay in L2; and
# 16-byte accesses that stay out of L1. Both keep up to four loads of a thread in flight here, which
# the first is not known to do.
UVA_ACCESSES = {
    8: rb"""
struct Word { unsigned long long x; };
__device__ void load(Word& word, unsigned long long from) {
    asm volatile("ld.global.nc.b64 %0, [%1];" : "=l"(word.x) : "l"(from));
}
__device__ void store(unsigned long long to, const Word& word) {
    asm volatile("st.global.cg.b64 [%0], %1;" ::"l"(to), "l"(word.x) : "memory");
}
""",
    16: rb"""
struct Word { unsigned long long x, y; };
__device__ void load(Word& word, unsigned long long from) {
    asm volatile("ld.global.L1::no_allocate.v2.b64 {%0, %1}, [%2];"
                 : "=l"(word.x), "=l"(word.y) : "l"(from));
}
__device__ void store(unsigned long long to, const Word& word) {
    asm volatile("st.global.L1::no_allocate.v2.b64 [%0], {%1, %2};"
                 ::"l"(to), "l"(word.x), "l"(word.y) : "memory");
}
""",
}
# A warp copies an item of every layer's K and V, and then the item so many warps further on.
UVA_SOURCE = rb"""
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct Arguments {
    const u64* from_bases;
    const u64* to_bases;
    const i64* from_slots;
    const i64* to_slots;
    i64 from_stride;
    i64 to_stride;
    u32 num_pages;
    u32 num_bases;
    u32 page_items;  // of one base
    u32 item_nbytes;
};

constexpr u32 DEPTH = 4;

extern "C" __global__ void __launch_bounds__(1024) uva_copy(const Arguments a) {
    const u32 lane = threadIdx.x % 32;
    const u32 num_warps = gridDim.x * blockDim.x / 32;
    const u32 words = a.item_nbytes / u32(sizeof(Word));
    u32 item = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    for (; item < a.num_pages * a.page_items; item += num_warps) {
        const u32 page = item / a.page_items;
        const i64 offset = i64(item % a.page_items) * a.item_nbytes;
        const i64 from_page = a.from_slots[page] * a.from_stride + offset;
        const i64 to_page = a.to_slots[page] * a.to_stride + offset;
        for (u32 base = 0; base < a.num_bases; base++) {
            const u64 from = a.from_bases[base] + from_page;
            const u64 to = a.to_bases[base] + to_page;
            for (u32 first = lane; first < words; first += 32 * DEPTH) {
                Word held[DEPTH];
#pragma unroll
                for (u32 d = 0; d < DEPTH; d++) {
                    const u32 word = first + 32 * d;
                    if (word < words) load(held[d], from + word * u32(sizeof(Word)));
                }
#pragma unroll
                for (u32 d = 0; d < DEPTH; d++) {
                    const u32 word = first + 32 * d;
                    if (word < words) store(to + word * u32(sizeof(Word)), held[d]);
                }
            }
        }
    }
}
"""
UVA_ARGUMENTS = np.dtype(
    [
        *((name, np.uint64) for name in ("from_bases", "to_bases", "from_slots", "to_slots")),
        *((name, np.int64) for name in ("from_stride", "to_stride")),
        *((name, np.uint32) for name in ("num_pages", "num_bases", "page_items", "item_nbytes")),
    ]
)


def staged(source: PagedMemory, destination: PagedMemory, sets: Sequence[Slots]) -> Call:
    """``index_select`` into a pinned staging buffer, one copy, ``index_copy_`` on the other side.

    The host's memory has whole pages in one piece, as an engine's host pool made for this has.
    """
    host_is_source = source.device.type == "cpu" and _whole(source)
    host, device = (source, destination) if host_is_source else (destination, source)
    rows = _words(_page_rows(host))
    pieces = [_words(view.view(len(view), -1)) for view in page_views(device)]
    count = len(sets[0][0])
    staging = torch.empty_like(rows[:count])
    if torch.cuda.is_available():
        staging = staging.pin_memory()
    landing = staging.to(device.device)
    columns = landing.chunk(len(pieces), dim=1)
    pairs = [(s.long(), d.long()) for s, d in sets]
    ours = [(s if host_is_source else d) for s, d in pairs]
    theirs = [(d if host_is_source else s).to(device.device) for s, d in pairs]

    def load(index: int) -> None:
        torch.index_select(rows, 0, ours[index % len(sets)], out=staging)
        landing.copy_(staging, non_blocking=True)
        for piece, column in zip(pieces, columns, strict=True):
            piece.index_copy_(0, theirs[index % len(sets)], column)

    def store(index: int) -> None:
        for piece, column in zip(pieces, columns, strict=True):
            column.copy_(torch.index_select(piece, 0, theirs[index % len(sets)]))
        staging.copy_(landing, non_blocking=True)
        if staging.is_pinned():
            torch.cuda.current_stream().synchronize()
        rows.index_copy_(0, ours[index % len(sets)], staging)

    return load if host_is_source else store


def memcpy_per_run(source: PagedMemory, destination: PagedMemory, sets: Sequence[Slots]) -> Call:
    """One asynchronous copy for every run that is contiguous on both sides."""
    driver = gpu.bindings("driver")
    lists = [
        list(zip(*(column.tolist() for column in runs), strict=True))
        for runs in _runs(source, destination, sets)
    ]

    def call(index: int) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        for begin, target, nbytes in lists[index % len(lists)]:
            gpu.checked("cuMemcpyAsync", driver.cuMemcpyAsync(target, begin, nbytes, stream))

    return call


def memcpy_batch(source: PagedMemory, destination: PagedMemory, sets: Sequence[Slots]) -> Call:
    """The same runs in one call of the driver."""
    driver = gpu.bindings("driver")
    order = driver.CUmemcpySrcAccessOrder.CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
    attributes = driver.CUmemcpyAttributes()
    attributes.srcAccessOrder = order
    prepared = [
        (
            [driver.CUdeviceptr(address) for address in runs.targets.tolist()],
            [driver.CUdeviceptr(address) for address in runs.sources.tolist()],
            runs.nbytes.tolist(),
        )
        for runs in _runs(source, destination, sets)
    ]

    def call(index: int) -> None:
        targets, begins, sizes = prepared[index % len(prepared)]
        stream = torch.cuda.current_stream().cuda_stream
        returned = driver.cuMemcpyBatchAsync(
            *(targets, begins, sizes, len(sizes), [attributes], [0], 1, stream)
        )
        gpu.checked("cuMemcpyBatchAsync", returned)

    return call


def uva(
    source: PagedMemory,
    destination: PagedMemory,
    sets: Sequence[Slots],
    *,
    word_nbytes: int = 8,
) -> Call:
    """The few-block kernel that reaches host memory by its own addresses."""
    device = destination.device if source.device.type == "cpu" else source.device
    function = _uva_function(device, word_nbytes)
    on_device = [(s.long().to(device), d.long().to(device)) for s, d in sets]
    tables = [torch.from_numpy(m.bases.ravel().copy()).to(device) for m in (source, destination)]
    packed = [uva_arguments(source, destination, slots, tables) for slots in on_device]
    kept = (tables, on_device)  # what the arguments point to

    def call(index: int) -> None:
        assert kept
        function.launch(
            packed[index % len(packed)], num_blocks=BLOCKS, num_threads=THREADS, shared_nbytes=0
        )

    return call


def uva_arguments(
    source: PagedMemory,
    destination: PagedMemory,
    slots: Slots,
    tables: Sequence[torch.Tensor],
) -> bytes:
    """The struct of one launch: int64 ``slots`` and ``tables`` of bases where the kernel runs."""
    piece_nbytes = min(runs.piece_nbytes for runs in pair_of("uva", source, destination))
    item_nbytes = min(piece_nbytes, ITEM_NBYTES)
    arguments = np.zeros(1, UVA_ARGUMENTS)
    arguments[0] = (
        *(operand.data_ptr() for operand in (*tables, *slots)),
        *(source.page_stride, destination.page_stride),
        *(len(slots[0]), source.bases.size, piece_nbytes // item_nbytes, item_nbytes),
    )
    return arguments.tobytes()


PEERS: Mapping[str, Prepare] = {
    "index_select": staged,
    "memcpy_per_run": memcpy_per_run,
    "memcpy_batch": memcpy_batch,
    "uva_8byte": uva,
    "uva_16byte": functools.partial(uva, word_nbytes=16),
}


def uva_cubin(arch: str, word_nbytes: int) -> bytes:
    """The kernel's machine code."""
    return nvrtc.compile_code(UVA_ACCESSES[word_nbytes] + UVA_SOURCE, arch, "uva_copy.cu")


@functools.cache
def _uva_function(device: torch.device, word_nbytes: int) -> nvrtc.Function:
    capability = torch.cuda.get_device_capability(device)
    cubin = uva_cubin(nvrtc.arch_of(capability), word_nbytes)
    driver = gpu.bindings("driver")
    torch.cuda.current_stream(device).synchronize()  # torch's context is this thread's from here
    module = gpu.checked("cuModuleLoadData", driver.cuModuleLoadData(cubin))
    handle = driver.cuModuleGetFunction(module, b"uva_copy")
    return nvrtc.Function("uva_copy", int(gpu.checked("cuModuleGetFunction", handle)), device)


def _runs(source: PagedMemory, destination: PagedMemory, sets: Sequence[Slots]) -> list[Any]:
    pair = pair_of("peer", source, destination)
    return [copy_engine.merge(pair, s.numpy(), d.numpy()) for s, d in sets]


def _whole(memory: PagedMemory) -> bool:
    """Whether a page lies in one piece."""
    return memory.page_stride == memory.page_nbytes


def _page_rows(memory: PagedMemory) -> torch.Tensor:
    """uint8[num_pages, page_nbytes] of a memory whose pages are whole."""
    assert _whole(memory), "the host's pages lie in one piece each"
    (owner,) = memory.tensors()
    nbytes = memory.num_pages * memory.page_nbytes
    return owner[:nbytes].view(memory.num_pages, memory.page_nbytes)


def _words(rows: torch.Tensor) -> torch.Tensor:
    """The same rows in 8-byte words: torch indexes those faster than bytes."""
    return rows.view(torch.int64)
