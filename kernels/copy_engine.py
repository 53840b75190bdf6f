# SPDX-License-Identifier: Apache-2.0
"""Page copies by the GPU's copy engines: merged into runs, handed to the driver in one call.

It takes no multiprocessor, and each run costs the engine about 1 us: for long runs. Unproven on a
GPU.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bodocache.kernels import nvrtc
from bodocache.kernels.runs import Runs
from bodocache.layout import REGISTER_CHUNK_NBYTES, PagedMemory

Addresses = NDArray[np.int64]


class MergedRuns(NamedTuple):
    """Contiguous copies: ``nbytes[i]`` bytes from ``sources[i]`` to ``targets[i]``."""

    sources: Addresses
    targets: Addresses
    nbytes: Addresses


def copy_runs(
    pair: tuple[Runs, Runs],
    source: PagedMemory,
    destination: PagedMemory,
    source_slots: torch.Tensor,
    destination_slots: torch.Tensor,
) -> None:
    """Copy pages on torch's current stream, which a CUDA graph must not be capturing.

    Raises:
        BackendError: the driver refused.
    """
    slots = source_slots.cpu().numpy(), destination_slots.cpu().numpy()
    runs = merge(pair, *slots)
    for memory, ends in ((source, runs.sources), (destination, runs.targets)):
        if memory.device.type == "cpu":
            runs = cut(runs, ends is runs.sources, _registrations(memory))
    device = destination.device if source.device.type == "cpu" else source.device
    submit(runs, torch.cuda.current_stream(device).cuda_stream)


def merge(pair: tuple[Runs, Runs], source_slots: Addresses, target_slots: Addresses) -> MergedRuns:
    """The fewest runs: pages by source slot, and pieces that are adjacent on both sides as one."""
    source, target = pair
    step = int(np.gcd(source.run_nbytes, target.run_nbytes))
    order = np.argsort(source_slots, kind="stable")
    offsets = np.arange(0, source.page_nbytes, step)
    sources = _addresses(source, source_slots[order].astype(np.int64), offsets)
    targets = _addresses(target, target_slots[order].astype(np.int64), offsets)
    is_first = np.ones(len(sources), np.bool_)
    is_first[1:] = (np.diff(sources) != step) | (np.diff(targets) != step)
    firsts = np.flatnonzero(is_first)
    nbytes = np.diff(np.append(firsts, len(sources))) * step
    return MergedRuns(sources[firsts], targets[firsts], nbytes)


def _addresses(runs: Runs, slots: Addresses, offsets: Addresses) -> Addresses:
    """Address of every offset (in the page form) of every page: a piece of all pages, then the next
    piece, so that pages side by side in a layer are side by side here.
    """
    run, within = offsets // runs.run_nbytes, offsets % runs.run_nbytes
    base, rest = run // (runs.tokens * runs.heads), run % (runs.tokens * runs.heads)
    token, head = rest // runs.heads, rest % runs.heads
    places = runs.bases[base] + token * runs.token_stride + head * runs.head_stride + within
    by_piece = places.reshape(len(runs.bases), 1, -1)
    pages = (slots * runs.page_stride)[None, :, None]
    addresses: Addresses = (by_piece + pages).ravel()
    return addresses


def cut(runs: MergedRuns, by_source: bool, bounds: Addresses) -> MergedRuns:  # noqa: FBT001 -- which side
    """Cut ``runs`` where one side crosses one of ``bounds``: no copy lies in two registrations."""
    starts = runs.sources if by_source else runs.targets
    first = np.searchsorted(bounds, starts, side="right")
    last = np.searchsorted(bounds, starts + runs.nbytes - 1, side="right")
    if (first == last).all():
        return runs
    pieces = [[], [], []]  # type: list[list[int]]
    for i in range(len(starts)):
        edges = [int(starts[i]), *bounds[first[i] : last[i]].tolist()]
        ends = [*edges[1:], int(starts[i] + runs.nbytes[i])]
        for edge, end in zip(edges, ends, strict=True):
            done = edge - int(starts[i])
            pieces[0].append(int(runs.sources[i]) + done)
            pieces[1].append(int(runs.targets[i]) + done)
            pieces[2].append(end - edge)
    return MergedRuns(*(np.array(column, np.int64) for column in pieces))


def submit(runs: MergedRuns, stream: int) -> None:
    """Hand ``runs`` to the driver: in one batch where it takes batches, else one call a run.

    Raises:
        BackendError: the driver refused; the message names the call and the reason.
    """
    driver = nvrtc.bindings("driver")
    if stream and _submit_batch(driver, runs, stream):  # the legacy stream takes no batch
        return
    for source, target, nbytes in zip(*(column.tolist() for column in runs), strict=True):
        nvrtc.checked("cuMemcpyAsync", driver.cuMemcpyAsync(target, source, nbytes, stream))


def _submit_batch(driver: Any, runs: MergedRuns, stream: int) -> bool:
    """False where the driver takes no batches, or none in the form that its bindings ask for."""
    attributes = driver.CUmemcpyAttributes()
    attributes.srcAccessOrder = driver.CUmemcpySrcAccessOrder.CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
    attributes.flags = driver.CUmemcpyFlags.CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE.value
    sources = [driver.CUdeviceptr(address) for address in runs.sources.tolist()]
    targets = [driver.CUdeviceptr(address) for address in runs.targets.tolist()]
    sizes = runs.nbytes.tolist()
    try:
        returned = driver.cuMemcpyBatchAsync(
            *(targets, sources, sizes, len(sizes), [attributes], [0], 1, stream)
        )
    except RuntimeError:  # raised where the driver has no such function: before CUDA 12.8, or 13
        return False
    nvrtc.checked("cuMemcpyBatchAsync", returned)  # 12.8's returns which copy failed, too
    return True


def _registrations(memory: PagedMemory) -> Addresses:
    """Where one registration with CUDA may end: pools.py registers host memory in chunks."""
    bounds: list[int] = []
    for tensor in memory.tensors():
        start = tensor.data_ptr()
        end = start + tensor.numel() * tensor.element_size()
        bounds += [*range(start, end, REGISTER_CHUNK_NBYTES), end]
    return np.unique(np.array(bounds, np.int64))
