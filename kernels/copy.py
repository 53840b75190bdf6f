# SPDX-License-Identifier: Apache-2.0
"""Copy pages between two pools: device and device, host and device, host and host.

Both hold the same rows (layers, K/V, tokens, heads), each in a layout of its own. Nothing is
written outside the named slots. Which path is taken when is ``select``'s business.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from bodocache.errors import LayoutError
from bodocache.kernels import check, host, move, overlap, select
from bodocache.kernels.check import INDICES, Indices
from bodocache.kernels.launch import (
    LATENT_GROUP,
    SAMPLE_GROUP,
    Launch,
    empty_sums,
    sample_operands,
    sample_pool,
)
from bodocache.kernels.overlap import Relation
from bodocache.kernels.reference.copy import copy_pages as twin
from bodocache.kernels.runs import Runs, pair_of
from bodocache.kernels.select import CopyPath, Direction
from bodocache.layout import LayoutKind, PagedMemory

if TYPE_CHECKING:
    from bodocache.kernels.bulk import BulkCopy
    from bodocache.kernels.copy_engine import EngineCopy

_OP = "copy_pages"


class PageCopy:
    """A copy between two pools, checked once: what is left for each call is its indices."""

    __slots__ = (
        "_blocks_allowed",
        "_bulk",
        "_engine",
        "_pair",
        "_path",
        "_relation",
        "_repeat",
        "_template",
        "_to_host",
        "blocks",
        "destination",
        "device",
        "source",
    )

    def __init__(
        self,
        source: PagedMemory,
        destination: PagedMemory,
        *,
        layers: range | None = None,
        heads: range | None = None,
        path: CopyPath | str | None = None,
        blocks: int | None = None,
    ) -> None:
        """See :func:`copy_pages`. Both memories are kept alive, and the tables that kernels read:
        who captures a copy in a CUDA graph keeps this object as long as the graph.
        """
        self.source = source.only(layers, heads)
        self.destination = destination.only(layers, heads)
        self._pair = pair_of(_OP, self.source, self.destination)
        self.device = _device_of(source, destination)
        overlap.refuse_shared(_OP, self._pair[1])
        self._relation = Relation.APART
        if source.device == destination.device:
            self._relation = overlap.relation(*self._pair)
        self._path = _path_named(path)
        self._bulk: BulkCopy | None = None  # prepared by the first copy that needs it, as is
        self._engine: EngineCopy | None = None
        self._template: Launch | None = None
        self._repeat: move.Repeat | None = None
        if blocks is not None and (type(blocks) is not int or blocks < 1):
            raise LayoutError(f"{_OP}: {blocks} blocks; expected a whole number, at least 1")
        crosses = source.device != destination.device
        self._blocks_allowed = blocks
        self._to_host = crosses and not check.on_gpu(destination.device)
        self.blocks = select.LINK_BLOCKS if blocks is None and crosses else blocks

    def run(
        self,
        source_slots: Indices,
        destination_slots: Indices,
        *,
        stream: "torch.cuda.Stream | None" = None,
    ) -> None:
        """Copy pages ``source_slots[i]`` to ``destination_slots[i]``; see :func:`copy_pages`."""
        if stream is None and self._relation is Relation.APART:
            plain = check.plain_lists(self.device, source_slots, destination_slots)
            path = self._path  # named, or to be chosen below
            if plain is not None and len(plain[0]):
                if path is CopyPath.BULK:
                    self._prepared_bulk().launch(*plain)
                    return
                if path is CopyPath.SM:
                    self._repeated(*plain).run(*plain)
                    return
        with on_stream(stream, self.device):
            slots = seen_by(stream, self.checked(source_slots, destination_slots))
            if not len(slots[0]):
                return
            if not check.on_gpu(self.device):
                self.copy_on_host(*slots)
                return
            path = self.path_for(slots[0])
            self.submit(path, *self.placed(path, *slots))

    @property
    def piece_nbytes(self) -> int:
        """Bytes that lie side by side on both sides."""
        return min(runs.run_nbytes for runs in self._pair)

    def most_runs(
        self, source_slots: torch.Tensor, destination_slots: torch.Tensor, *, enough: int
    ) -> int:
        """See :meth:`EngineCopy.most_runs`, for checked indices."""
        slots = self.placed(CopyPath.COPY_ENGINE, source_slots, destination_slots)
        return self._prepared_engine().most_runs(*slots, enough=enough)

    def path_for(self, slots: torch.Tensor) -> CopyPath:
        """The path that copies of as many pages, with indices where these are, take on a GPU."""
        return self._path or self._choose(slots)

    def placed(
        self, path: CopyPath, source_slots: torch.Tensor, destination_slots: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Checked indices where ``path`` wants them. A move between host and device waits."""
        if path is CopyPath.TORCH:
            return source_slots, destination_slots
        where = torch.device("cpu") if path is CopyPath.COPY_ENGINE else self.device
        return source_slots.to(where), destination_slots.to(where)

    def prepare(self, path: CopyPath, index_dtype: torch.dtype) -> None:
        """Do now what the first copy by ``path`` would wait for: tables, code, its loading."""
        if path is CopyPath.SM:
            index = torch.empty(1, dtype=index_dtype, device=self.device)
            move.warm(self.launch(index, index))
        elif path is CopyPath.BULK:
            self._prepared_bulk().warm()
        elif path is CopyPath.COPY_ENGINE:
            self._prepared_engine()

    def submit(
        self, path: CopyPath, source_slots: torch.Tensor, destination_slots: torch.Tensor
    ) -> None:
        """Copy by ``path`` on the current stream, for checked and placed indices (n >= 1).

        Prepared, no path but CopyPath.TORCH waits for anything, nor allocates.
        """
        if path is CopyPath.TORCH:
            if self._direction() is Direction.HOST_TO_DEVICE:
                # torch reads the host's memory now: what was submitted may still write there.
                torch.cuda.current_stream(self.device).synchronize()
            twin(self.source, self.destination, source_slots, destination_slots)
        elif path is CopyPath.SM:
            self._repeated(source_slots, destination_slots).run(source_slots, destination_slots)
        elif path is CopyPath.COPY_ENGINE:
            self._prepared_engine().launch(source_slots, destination_slots)
        else:
            self._prepared_bulk().launch(source_slots, destination_slots)

    def _prepared_engine(self) -> "EngineCopy":
        if self._engine is None:
            from bodocache.kernels import copy_engine

            self._engine = copy_engine.EngineCopy(self._pair, self.source, self.destination)
        return self._engine

    def _prepared_bulk(self) -> "BulkCopy":
        if self._bulk is None:
            from bodocache.kernels import bulk

            self._bulk = bulk.prepared(self.source, self.destination, blocks=self._blocks_allowed)
        return self._bulk

    def _repeated(self, *slots: torch.Tensor) -> move.Repeat:
        if self._repeat is None:
            self._repeat = move.Repeat(self.launch(*slots), self._grid())
        return self._repeat

    def _grid(self) -> move.Grid:
        return _grid(self.blocks, self._to_host)

    def launch(self, source_slots: torch.Tensor, destination_slots: torch.Tensor) -> Launch:
        """The launch of the SM kernel for checked indices on the device (n >= 1)."""
        slots = (source_slots, destination_slots)
        if self._template is None:
            self._template = launch_pair(self._pair, slots, self.blocks, to_host=self._to_host)
        return move.again(self._template, slots, self._grid())

    def checked(
        self, source_slots: Indices, destination_slots: Indices
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The indices of a call as tensors; LayoutError where they do not fit."""
        if self._relation is Relation.APART:
            plain = check.plain_lists(self.device, source_slots, destination_slots)
            if plain is not None:
                return plain
            if (plain := self._fit_on_host(source_slots, destination_slots)) is not None:
                return plain
        ours = check.index_tensor(_OP, "source_slots", source_slots)
        theirs = check.index_tensor(_OP, "destination_slots", destination_slots)
        if ours.dtype != theirs.dtype:
            raise LayoutError(
                f"{_OP}: source_slots is {ours.dtype}; destination_slots is {theirs.dtype}"
            )
        check.operands(
            *(_OP, "source_slots", ours.device),
            source_slots=(ours, INDICES),
            destination_slots=(theirs, INDICES),
        )
        if ours.device.type != "cpu" and ours.device != self.device:
            raise LayoutError(
                f"{_OP}: source_slots is on {ours.device}; expected the CPU or {self.device}"
            )
        check.in_range(_OP, "source_slots", ours, self.source.num_pages, "source")
        of = self.destination.num_pages
        check.distinct_in_range(_OP, "destination_slots", theirs, of, "destination")
        if self._relation is Relation.SAME:
            check.disjoint(_OP, source_slots=ours, destination_slots=theirs)
        elif self._relation is Relation.MIXED:
            overlap.check_pages(_OP, self._pair[0], ours, self._pair[1], theirs)
        return ours, theirs

    def _fit_on_host(
        self, ours: Indices, theirs: Indices
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Both lists where they lie on the CPU and compiled code finds no fault: 3 us, not 20."""
        lists = host.lists()
        if lists is None or not isinstance(ours, torch.Tensor):
            return None
        if not isinstance(theirs, torch.Tensor) or ours.dtype is not theirs.dtype:
            return None
        fit = lists.fit(ours, theirs, self.source.num_pages, self.destination.num_pages)
        return (ours, theirs) if fit else None

    def _choose(self, slots: torch.Tensor) -> CopyPath:
        return select.choose(
            self._direction(),
            piece_nbytes=self.piece_nbytes,
            nbytes=len(slots) * self.source.page_nbytes,
            indices_on_device=slots.device.type != "cpu",
            blocks=self._blocks_allowed,
            device=self.device,
        )

    def _direction(self) -> Direction:
        return select.direction_of(self.source.device, self.destination.device)

    def copy_on_host(self, source_slots: torch.Tensor, destination_slots: torch.Tensor) -> None:
        """Copy between two CPU pools, now, for checked indices."""
        if self._path not in (None, CopyPath.TORCH):
            raise LayoutError(
                f"{_OP}: path {self._path}: source and destination are on the CPU; it needs a GPU"
            )
        if self._path is None and (compiled := host.compiled()) is not None:
            compiled.copy(self._pair, source_slots, destination_slots)
        else:
            twin(self.source, self.destination, source_slots, destination_slots)


def copy_pages(  # noqa: PLR0913 -- an operand each
    source: PagedMemory,
    destination: PagedMemory,
    source_slots: Indices,
    destination_slots: Indices,
    *,
    layers: range | None = None,
    heads: range | None = None,
    path: CopyPath | str | None = None,
    blocks: int | None = None,
    stream: "torch.cuda.Stream | None" = None,
) -> None:
    """Copy pages ``source_slots[i]`` of ``source`` to pages ``destination_slots[i]``.

    Args:
        source: pool to read. With a GPU on the other side, host memory must be pinned.
        destination: pool to write, of pages with the same rows; layouts may differ. Another range
            of heads or layers on one side: ``memory.only(layers, heads)``.
        source_slots: int32 or int64 [n]; may repeat, may be empty.
        destination_slots: of the same dtype and place, distinct. No byte is both read and
            written: within one memory, none of ``source_slots``.
        layers: default all of both sides.
        heads: default all of both sides.
        path: how; default what ``select`` says is fastest of those proven on this GPU.
        blocks: programs of the SM and bulk kernels; default 4 and 2 between host and device, so
            that the engine keeps its multiprocessors, and as many as help within a device.
        stream: CUDA stream, on which both memories and slots on a device are ready; default the
            current one. But for CopyPath.TORCH the call returns before the copy has ended: keep
            both memories until the stream has passed it.

    Raises:
        LayoutError: shapes, dtypes, devices, alignments, indices or a path do not fit, or host
            memory is not pinned.
    """
    copy = PageCopy(source, destination, layers=layers, heads=heads, path=path, blocks=blocks)
    copy.run(source_slots, destination_slots, stream=stream)


def launch_pair(
    pair: tuple[Runs, Runs],
    slots: tuple[torch.Tensor, torch.Tensor],
    blocks: int | None,
    sums: torch.Tensor | None = None,
    parts: int = 1,
    *,
    to_host: bool = False,
) -> Launch:
    """The SM kernel's launch for indices on the device, with the sums of every part or without."""
    return move.launch(*pair, slots, sums, parts=parts, grid=_grid(blocks, to_host))


def _grid(blocks: int | None, to_host: bool) -> move.Grid:  # noqa: FBT001 -- which way
    return move.DEVICE_GRID if blocks is None else move.link_grid(blocks, to_host=to_host)


def _device_of(source: PagedMemory, destination: PagedMemory) -> torch.device:
    """Where the copy runs: the GPU of either side, or the CPU."""
    devices = [m.device for m in (source, destination) if check.on_gpu(m.device)]
    if len(set(devices)) > 1:
        raise LayoutError(
            f"{_OP}: source is on {source.device}, destination on {destination.device};"
            " expected one GPU, or a GPU and the host"
        )
    if not devices:
        return source.device
    for name, memory in (("source", source), ("destination", destination)):
        if not check.on_gpu(memory.device) and not check.is_pinned(memory):
            raise LayoutError(
                f"{_OP}: {name} is pageable host memory and the other side on {devices[0]};"
                " pin it (tensor.pin_memory(), or an OwnedPool where CUDA is)"
            )
    return devices[0]


def _path_named(path: CopyPath | str | None) -> CopyPath | None:
    try:
        return None if path is None else CopyPath(path)
    except ValueError:
        known = ", ".join(CopyPath)
        raise LayoutError(f"{_OP}: path is {path!r}; expected one of {known}") from None


def seen_by(
    stream: "torch.cuda.Stream | None", slots: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """``slots``, whose memory on a device is not reused before ``stream`` has passed this point."""
    for index in slots:
        if stream is not None and index.device.type != "cpu":
            index.record_stream(stream)
    return slots


def on_stream(
    stream: "torch.cuda.Stream | None", device: torch.device
) -> "contextlib.AbstractContextManager[object]":
    """Make ``stream`` the current one for all of a call: its memory is then that stream's."""
    if stream is None or not check.on_gpu(device):
        return contextlib.nullcontext()
    return torch.cuda.stream(stream)


def specialisations() -> Iterator[tuple[str, Launch]]:
    """Every launch that the kernel is compiled for, by name; ``aot`` compiles them all."""
    samples = list(sample_operands())
    for suffix, runs, indices, _, sums in samples:
        slots = (indices, indices)
        yield f"copy_{suffix}", launch_pair((runs, runs), slots, None)
        for to_host, way in ((False, "load"), (True, "store")):
            made = launch_pair((runs, runs), slots, select.LINK_BLOCKS, to_host=to_host)
            yield f"copy_{suffix}_{way}", made
        if len(runs.bases) > 1:
            yield f"copy_{suffix}_sums", launch_pair((runs, runs), slots, None, sums, parts=2)
    index = torch.zeros(1, dtype=torch.int64)
    for group, ours, theirs in _MIXED:
        pools = sample_pool(ours, group), sample_pool(theirs, group)
        name = f"copy_{group.name}_{ours}_to_{theirs}"
        yield f"{name}_link", launch_pair(pair_of(_OP, *pools), (index, index), select.LINK_BLOCKS)
        pair = pair_of(_OP, *pools, by_layer=True)
        operands = ((index, index), select.LINK_BLOCKS, empty_sums(2, 0, index.device))
        yield f"{name}_link_sums", launch_pair(pair, *operands, parts=2)


# Both ways between a host's whole pages and an engine's pools, and between engines.
_MIXED = (
    (SAMPLE_GROUP, LayoutKind.PAGE, LayoutKind.LAYER_FIRST),
    (SAMPLE_GROUP, LayoutKind.LAYER_FIRST, LayoutKind.PAGE),
    (SAMPLE_GROUP, LayoutKind.PAGE_HEAD, LayoutKind.LAYER_FIRST),
    (SAMPLE_GROUP, LayoutKind.PAGE_FIRST, LayoutKind.PAGE_HEAD),
    (LATENT_GROUP, LayoutKind.PAGE, LayoutKind.LAYER_FIRST),
    (LATENT_GROUP, LayoutKind.LAYER_FIRST, LayoutKind.PAGE),
)
