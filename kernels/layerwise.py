# SPDX-License-Identifier: Apache-2.0
"""A load layer by layer, on a stream of its own, beside the engine's compute.

Until the commit it goes page by page, in steps, and can be cut between two steps. The commit fixes
how many pages there will be; what is left of them then goes layer by layer, all submitted at once,
and the engine's stream waits for each layer on the device (lane.py). No Python runs between layers,
and nothing that the commit calls waits (but CopyPath.TORCH): whatever does is done when the load is
made.
"""

import torch

from bodocache import env
from bodocache.errors import BodoCacheError, LayoutError
from bodocache.kernels import check, select
from bodocache.kernels.copy import PageCopy
from bodocache.kernels.lane import Lane, Mark, Stream, lane_for, refuse_capture
from bodocache.kernels.select import CopyPath
from bodocache.layout import PagedMemory

STEP_S = 2e-3  # of the link: how long a cut waits at most
# Copies by the copy engine that may stand behind a hold. A stream takes about a thousand commands;
# one more, and the host waits for the engine, which waits for the host.
MAX_HELD_RUNS = 256


class LayerCopies:
    """The copies between one pair of pools, of whole pages and of each layer: checked once.

    For who makes many layer-wise copies between the same two pools, all in one thread.
    """

    __slots__ = ("_prepared", "layers", "whole")

    def __init__(
        self,
        source: PagedMemory,
        destination: PagedMemory,
        *,
        path: CopyPath | str | None = None,
        blocks: int | None = None,
    ) -> None:
        """See ``copy_pages``. Both memories are kept alive."""
        self.whole = PageCopy(source, destination, path=path, blocks=blocks)
        self.layers = [
            PageCopy(source, destination, layers=range(l, l + 1), path=path, blocks=blocks)
            for l in range(source.layers)
        ]
        self._prepared: set[tuple[CopyPath, torch.dtype]] = set()

    def prepare(self, path: CopyPath, index_dtype: torch.dtype) -> None:
        """Do now what the first copies by ``path`` would wait for."""
        if (path, index_dtype) not in self._prepared:
            for copy in (self.whole, *self.layers):
                copy.prepare(path, index_dtype)
            self._prepared.add((path, index_dtype))


class LayerwiseCopy:
    """Pages on their way from ``source`` to ``destination``, layer by layer from the commit on.

    Keep it alive until :meth:`drain` or until the engine has waited for the last layer. After a
    commit with ``ahead`` an engine that will not say :meth:`layer_done` of every layer calls
    :meth:`abort`: until then the stream waits, and so does whatever waits for the whole device.
    """

    def __init__(  # noqa: PLR0913 -- an operand each
        self,
        source: PagedMemory,
        destination: PagedMemory,
        source_slots: torch.Tensor,
        destination_slots: torch.Tensor,
        *,
        ahead: int | None = None,
        chunk_nbytes: int | None = None,
        path: CopyPath | str | None = None,
        blocks: int | None = None,
        lane: Lane | None = None,
        copies: LayerCopies | None = None,
    ) -> None:
        """Nothing is copied yet. Arguments are as for ``copy_pages``, but for what is said here.

        Args:
            source: as there.
            destination: slots the engine's earlier work used are free when that has
                ended on the current stream.
            source_slots: on the CPU or the copying device, in the order of the prompt.
            destination_slots: likewise.
            ahead: layers that may be copied before the engine has said :meth:`layer_done` of the
                one so many before; None: as many as there are. What it leaves of the link serves
                others.
            chunk_nbytes: of a step before the commit: whole pages, or layers of one page where
                that has more. Default: what the link brings in 2 ms, as it was calibrated, or at
                10 GB/s.
            path: how; default: what ``select`` says. With ``ahead``, not CopyPath.TORCH, which
                waits for the stream; nor the copy engine where more than MAX_HELD_RUNS runs may
                be left at the commit.
            blocks: of the SM and bulk kernels.
            lane: where copies run; default: a stream of the GPU, or this thread for two CPU pools.
            copies: between these very memories, made before; ``path`` and ``blocks`` are theirs.

        Raises:
            LayoutError: as ``copy_pages``, or ``ahead`` or ``chunk_nbytes`` is less than one, or
                the path cannot be held.
            BodoCacheError: all streams share one hardware queue (CUDA_DEVICE_MAX_CONNECTIONS=1),
                where a stream that waits would keep the engine's from running; or a CUDA graph
                is being captured.
        """
        if min(x for x in (ahead, chunk_nbytes, 1) if x is not None) < 1:
            raise LayoutError(
                f"layerwise copy: ahead={ahead}, chunk_nbytes={chunk_nbytes}; expected at least 1"
            )
        if copies is None:
            copies = LayerCopies(source, destination, path=path, blocks=blocks)
        self._copies, self._whole, self._layers = copies, copies.whole, copies.layers
        if check.on_gpu(self._whole.device):
            refuse_capture()
        self._slots = self._whole.checked(source_slots, destination_slots)
        self._ahead = ahead
        self._path = self._prepared_path()
        nbytes = _step_nbytes(self._whole) if chunk_nbytes is None else chunk_nbytes
        self._chunk_pages = max(1, nbytes // self._whole.source.page_nbytes)
        self._chunk_layers = max(1, nbytes // self._layers[0].source.page_nbytes)
        self._lane = lane or lane_for(self._whole.device)
        self._part = 0  # layers submitted of the first page that is not submitted as a whole
        self._told = 0  # layers of which the engine is done
        self._chunks: list[tuple[int, Mark]] = []  # pages until there, and when they are whole
        self._marks: list[Mark] = []  # of each layer submitted since the commit
        self._passed = 0  # of these
        self._is_committed = False
        self._pages = len(self._slots[0])  # that will come
        self._is_cut = False

    @property
    def layers(self) -> int:
        """Layers of each page."""
        return len(self._layers)

    @property
    def submitted(self) -> int:
        """Whole pages submitted before the commit: no cut takes them back."""
        return self._chunks[-1][0] if self._chunks else 0

    @property
    def whole(self) -> int:
        """Leading pages of which every layer lies in its slot now."""
        if self._is_committed and self.whole_layers == self.layers:
            return self._pages
        passed = [pages for pages, mark in self._chunks if mark.passed]
        return passed[-1] if passed else 0

    @property
    def whole_layers(self) -> int:
        """Leading layers, of those submitted since the commit, that lie in all slots now."""
        while self._passed < len(self._marks) and self._marks[self._passed].passed:
            self._passed += 1
        return self._passed

    def advance(self) -> bool:
        """Submit the next whole pages, or layers of the next one; False when none was left.

        Raises:
            BodoCacheError: the copy was committed or cut.
        """
        self._check_open("advance")
        first = self.submitted
        if first == self._pages:
            return False
        if self._chunk_layers < self.layers:
            self._submit_part(first)
            return True
        end = min(first + self._chunk_pages, self._pages)
        self._submit(self._whole, first, end)
        self._chunks.append((end, self._lane.mark()))
        return True

    def cut(self) -> None:
        """Submit nothing more: what has been :attr:`submitted` will be whole, nothing else. The
        next slot may hold some layers of its page.

        Raises:
            BodoCacheError: it was committed: the engine counts on every page.
        """
        self._check_open("cut")
        self._is_cut = True
        self._pages = self.submitted

    def commit(self, pages: int | None = None, *, layers: int | None = None) -> None:
        """Bring the first ``pages`` (default: all), what is left of them layer by layer.

        All layers are submitted now, or the first ``layers`` and the rest by :meth:`go_on`.

        Raises:
            BodoCacheError: the copy was committed or cut, or ``pages`` is not between
                :attr:`submitted` and all of them.
            BackendError: the driver refused a layer: :meth:`abort`, the rest does not come.
        """
        self._check_open("commit")
        pages = self._pages if pages is None else pages
        if not self.submitted <= pages <= self._pages:
            raise BodoCacheError(
                f"layerwise copy: commit of {pages} pages; expected {self.submitted} to"
                f" {self._pages}: those submitted are on their way"
            )
        self._pages, self._is_committed = pages, True
        self.go_on(self.layers if layers is None else layers)

    def go_on(self, layers: int) -> None:
        """Submit what is missing of the first ``layers`` layers of the committed pages.

        Raises:
            BodoCacheError: nothing was committed, or there are not as many layers.
            BackendError: as :meth:`commit`.
        """
        if not self._is_committed or not 0 <= layers <= self.layers:
            raise BodoCacheError(
                f"layerwise copy: {layers} layers of {self.layers}; commit first, then 0 to"
                f" {self.layers}"
            )
        first = self.submitted
        for layer in range(len(self._marks), layers):
            if self._ahead is not None and layer >= self._ahead:
                self._lane.hold_until(layer - self._ahead + 1)
            if first < self._pages:
                self._submit(self._layers[layer], first, self._pages)
            self._marks.append(self._lane.mark())

    def wait_layer(self, layer: int, stream: Stream | None = None) -> None:
        """Let ``stream`` (default: the current one) wait until ``layer`` of every page is there.

        Raises:
            BodoCacheError: nothing was committed, or there is no such layer.
        """
        self._lane.make_wait(stream, self._mark_of(layer))

    def layer_done(self, layer: int, stream: Stream | None = None) -> None:
        """The engine needs ``layer``, and those before it, no more once what ``stream`` has been
        given has ended. All calls name one stream, or streams that wait for each other.

        Raises:
            BodoCacheError: nothing was committed, or there is no such layer.
        """
        self._mark_of(layer)
        if self._ahead is None:
            return
        done = min(layer + 1, self.layers - self._ahead)  # nothing waits for more
        if done > self._told:
            self._told = done
            self._lane.tell(done, stream)

    def abort(self) -> None:
        """The engine will compute no further: wait here until nothing can write any more.

        Before the commit that is a cut. After it all layers come, without waiting for the engine's
        :meth:`layer_done`; any thread may call this.
        """
        if self._is_committed:
            self._lane.release()
            return
        if not self._is_cut:
            self.cut()
        self._lane.drain()

    def drain(self) -> None:
        """Wait here until nothing can write to the destination any more.

        After a commit with ``ahead`` the engine must have said :meth:`layer_done` of the layers
        that the last ones wait for.
        """
        self._lane.drain()

    def _prepared_path(self) -> CopyPath | None:
        """The path, with all that a copy by it waits for done; None between CPU pools."""
        if not check.on_gpu(self._whole.device):
            return None
        path = self._whole.path_for(self._slots[0])
        if self._ahead is not None:
            self._check_holdable(path)
        self._slots = self._whole.placed(path, *self._slots)
        self._copies.prepare(path, self._slots[0].dtype)
        return path

    def _check_holdable(self, path: CopyPath) -> None:
        if path is CopyPath.TORCH:
            raise LayoutError(
                f"layerwise copy: ahead={self._ahead} by path torch, which waits for the stream and"
                " so for itself; calibrate (`bodocache calibrate`), or name another path"
            )
        if path is CopyPath.COPY_ENGINE:
            held = sum(
                copy.most_runs(*self._slots, enough=MAX_HELD_RUNS + 1)
                for copy in self._layers[self._ahead :]
            )
            if held > MAX_HELD_RUNS:
                raise LayoutError(
                    f"layerwise copy: ahead={self._ahead} by path copy_engine: {held} runs or more"
                    f" may wait for the engine; at most {MAX_HELD_RUNS}: name path sm or bulk, or"
                    " no ahead"
                )
        if env.cuda_shares_one_queue():
            raise BodoCacheError(
                "layerwise copy: ahead with CUDA_DEVICE_MAX_CONNECTIONS=1: a stream that waits"
                " would keep the engine's from running; set it to 2 or more, or give no ahead"
            )

    def _submit(self, copy: PageCopy, first: int, end: int) -> None:
        ours, theirs = (slots[first:end] for slots in self._slots)
        self._lane.submit(copy, self._path, ours, theirs)

    def _submit_part(self, page: int) -> None:
        """The next layers of a page that is longer than a step."""
        end = min(self._part + self._chunk_layers, self.layers)
        for copy in self._layers[self._part : end]:
            self._submit(copy, page, page + 1)
        self._part = end % self.layers
        if not self._part:
            self._chunks.append((page + 1, self._lane.mark()))
        else:
            self._lane.mark()

    def _mark_of(self, layer: int) -> Mark:
        if not self._is_committed or not 0 <= layer < self.layers:
            raise BodoCacheError(
                f"layerwise copy: layer {layer} of {self.layers}; commit first, then 0 to"
                f" {self.layers - 1}"
            )
        if layer >= len(self._marks):
            raise BodoCacheError(
                f"layerwise copy: layer {layer} of {self.layers} does not come: the commit failed"
                f" at layer {len(self._marks)}, or went no further: abort, or go on"
            )
        return self._marks[layer]

    def _check_open(self, what: str) -> None:
        if self._is_committed or self._is_cut:
            done = "cut" if self._is_cut else "committed"
            raise BodoCacheError(f"layerwise copy: {what} after it was {done}")


def _step_nbytes(copy: PageCopy) -> int:
    """What the link, or the device, brings in STEP_S."""
    if not check.on_gpu(copy.device):
        return int(select.UNCALIBRATED_BYTES_PER_S * STEP_S)
    direction = select.direction_of(copy.source.device, copy.destination.device)
    rate = select.bytes_per_s(direction, piece_nbytes=copy.piece_nbytes, device=copy.device)
    return max(1, int(rate * STEP_S))
