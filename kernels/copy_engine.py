# SPDX-License-Identifier: Apache-2.0
"""Page copies by the GPU's copy engines: merged into runs, handed to the driver in one call.

It takes no multiprocessor, and each run costs the engine about 1 us: for long runs.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bodocache.kernels import direct, gpu, host
from bodocache.kernels.runs import Runs
from bodocache.layout import REGISTER_CHUNK_NBYTES, PagedMemory

Addresses = NDArray[np.int64]

_MORE_PARTS = 64  # runs that bounds may cut once more before NumPy does it


class MergedRuns(NamedTuple):
    """Contiguous copies: ``nbytes[i]`` bytes from ``sources[i]`` to ``targets[i]``."""

    sources: Addresses
    targets: Addresses
    nbytes: Addresses


class EngineCopy:
    """Copies between one pair of memories, prepared: what is left for a call is its runs.

    On the host a call's runs take 2 us and 0.01 us each where numba is, 13 us in NumPy.
    """

    __slots__ = ("_bounds", "_compiled", "_device", "_flat", "_pieces", "_step", "_strides")

    def __init__(
        self, pair: tuple[Runs, Runs], source: PagedMemory, destination: PagedMemory
    ) -> None:
        """Loads the driver's bindings.

        Raises:
            BackendUnavailable: cuda-python is not installed.
        """
        gpu.bindings("driver")
        self._step, self._pieces = pieces_of(pair)
        self._strides = (pair[0].page_stride, pair[1].page_stride)
        self._bounds = []  # of either side: those within its pages
        for memory, runs in zip((source, destination), pair, strict=True):
            bounds = (
                _registrations(memory) if memory.device.type == "cpu" else np.empty(0, np.int64)
            )
            self._bounds.append(bounds[(runs.first < bounds) & (bounds < runs.end)])
        self._flat = tuple(piece[:, 0] for piece in self._pieces)
        self._compiled = host.lists()
        self._device = destination.device if source.device.type == "cpu" else source.device

    def launch(self, source_slots: torch.Tensor, destination_slots: torch.Tensor) -> None:
        """Copy pages on torch's current stream, which a CUDA graph must not be capturing.

        Args:
            source_slots: [n] on the host.
            destination_slots: likewise.

        Raises:
            BackendError: the driver refused.
        """
        runs = self.runs(source_slots, destination_slots)
        submit(runs, self._device, direct.current_stream(self._device))

    def runs(self, source_slots: torch.Tensor, destination_slots: torch.Tensor) -> MergedRuns:
        """What a copy hands to the driver: no run lies in two registrations."""
        slots = source_slots.numpy(), destination_slots.numpy()
        if self._compiled is not None:
            ours, theirs = (index.astype(np.int64, copy=False) for index in slots)
            out = np.empty((3, len(ours) * self._flat[0].size + _MORE_PARTS), np.int64)
            places = (self._step, *self._flat, *self._strides, ours, theirs, *self._bounds)
            count = self._compiled.merge(*places, out)
            if count >= 0:
                return MergedRuns(*out[:, :count])
        runs = merged(self._step, self._pieces, self._strides, slots)
        for by_source, bounds in zip((True, False), self._bounds, strict=True):
            if len(bounds):
                runs = cut(runs, by_source, bounds)
        return runs

    def most_runs(
        self, source_slots: torch.Tensor, destination_slots: torch.Tensor, *, enough: int
    ) -> int:
        """At most so many runs has a copy of any pages that follow each other in these lists.

        A part may have more runs than the whole, in which other pages close its gaps. So pages are
        merged here only with the next in the list, and bases not at all. Counts no further than to
        ``enough``.
        """
        found = 0
        for first, end in _stretches(source_slots.numpy(), destination_slots.numpy()):
            slots = source_slots[first:end], destination_slots[first:end]
            runs = self.runs(*slots)
            begins = self._pieces[0][:, 0, 0] + int(slots[0].min()) * self._strides[0]
            found += len(runs.nbytes) + int((~np.isin(begins, runs.sources)).sum())
            if found >= enough:
                break
        return found


def merge(pair: tuple[Runs, Runs], source_slots: Addresses, target_slots: Addresses) -> MergedRuns:
    """The fewest runs: pages by source slot, and pieces that are adjacent on both sides as one."""
    step, pieces = pieces_of(pair)
    strides = (pair[0].page_stride, pair[1].page_stride)
    return merged(step, pieces, strides, (source_slots, target_slots))


def pieces_of(pair: tuple[Runs, Runs]) -> tuple[int, tuple[Addresses, Addresses]]:
    """(bytes, addresses of page 0 on both sides) of what lies side by side on both: int64[B, 1, k],
    a base after the other.
    """
    source, target = pair
    step = int(np.gcd(source.run_nbytes, target.run_nbytes))
    offsets = np.arange(0, source.page_nbytes, step)
    return step, (_places(source, offsets), _places(target, offsets))


def merged(
    step: int,
    pieces: tuple[Addresses, Addresses],
    page_strides: tuple[int, int],
    slots: tuple[Addresses, Addresses],
) -> MergedRuns:
    """The runs of pages ``slots``: a piece of all pages, then the next piece, so that pages side by
    side in a layer are side by side here.
    """
    order = np.argsort(slots[0], kind="stable")
    sources, targets = (
        (places + (index[order].astype(np.int64) * stride)[None, :, None]).ravel()
        for places, stride, index in zip(pieces, page_strides, slots, strict=True)
    )
    is_first = np.ones(len(sources), np.bool_)
    # numpy.diff and numpy.append take three times as long for few runs.
    np.logical_or(
        sources[1:] - sources[:-1] != step, targets[1:] - targets[:-1] != step, out=is_first[1:]
    )
    firsts = np.flatnonzero(is_first)
    nbytes = np.empty(len(firsts), np.int64)
    if not len(firsts):  # no pages
        return MergedRuns(sources, targets, nbytes)
    nbytes[:-1], nbytes[-1] = firsts[1:], len(sources)
    nbytes -= firsts
    nbytes *= step
    return MergedRuns(sources[firsts], targets[firsts], nbytes)


def _stretches(sources: Addresses, targets: Addresses) -> Iterator[tuple[int, int]]:
    """(first, end) of lists in which both sides go up, or down, by one from page to page."""
    steps = np.diff(sources)
    ends = np.flatnonzero((np.abs(steps) != 1) | (np.diff(targets) != steps)) + 1
    edges = [0, *ends.tolist(), len(sources)]
    return itertools.pairwise(edges) if len(sources) else iter(())


def _places(runs: Runs, offsets: Addresses) -> Addresses:
    """Address of every offset (in the page form) of page 0."""
    run, within = offsets // runs.run_nbytes, offsets % runs.run_nbytes
    base, rest = run // (runs.tokens * runs.heads), run % (runs.tokens * runs.heads)
    token, head = rest // runs.heads, rest % runs.heads
    places = runs.bases[base] + token * runs.token_stride + head * runs.head_stride + within
    by_piece: Addresses = places.reshape(len(runs.bases), 1, -1)
    return by_piece


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


def submit(runs: MergedRuns, device: torch.device, stream: int) -> None:
    """Hand ``runs`` to the driver: in one batch where it takes batches, else one call a run.

    Raises:
        BackendError: the driver refused; the message names the call and the reason.
    """
    if not len(runs.nbytes):
        return
    if stream and direct.copy_batch(device, *runs, stream):  # the legacy stream takes no batch
        return
    driver = gpu.cuda_driver()
    with gpu.current_context(device):
        for source, target, nbytes in zip(*(column.tolist() for column in runs), strict=True):
            gpu.checked("cuMemcpyAsync", driver.cuMemcpyAsync(target, source, nbytes, stream))


def _registrations(memory: PagedMemory) -> Addresses:
    """Where one registration with CUDA may end: pools.py registers host memory in chunks, from
    the start of what was allocated, of which a tensor may be a part.
    """
    bounds: list[int] = []
    for tensor in memory.tensors():
        storage = tensor.untyped_storage()
        start, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        bounds += [*range(start, end, REGISTER_CHUNK_NBYTES), end]
    return np.unique(np.array(bounds, np.int64))
