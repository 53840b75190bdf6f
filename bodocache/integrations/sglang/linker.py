# SPDX-License-Identifier: Apache-2.0
"""SGLang's external linker: pages between its device pool and our tiers, layer by layer.

The radix tree asks for what it has not on the device (``lookup``), gives slots for it (``load``),
starts a batch (``start_layer_wise_loading``: our commit) and computes while layers come. A page
that was offered and does not come aborts its request, so only what lies in host memory is offered,
and held until its load has begun; what lies on disk is read meanwhile, and offered once it is here.

One cache per rank, in-process, on a loop of its own.
"""

import itertools
import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.mem_cache.hicache_storage import PoolName, PoolTransfer
from sglang.srt.mem_cache.unified_cache.unified_cache_linker import UnifiedCacheLinker
from sglang.srt.runtime_context import get_model
from sglang.srt.utils import get_device_module

from bodocache.blocking import BlockingCache, BlockingLoad
from bodocache.cache import Cache
from bodocache.errors import BodoCacheError
from bodocache.hints.actions import Action, Prefetch, Retain, Span, Status
from bodocache.integrations.sglang.device_pages import (
    DevicePages,
    LinkerOptions,
    config_of,
    rank_name,
)
from bodocache.match import Match
from bodocache.pages import Tier
from bodocache.pools import BorrowedPool

_log = logging.getLogger(__name__)

_OFFLOADS_AT_ONCE = 4
_MOST_ANSWERS = 4096  # remembered, of requests that wait
_NOTHING = -1  # the index of a step that loads nothing


class Answer(NamedTuple):
    """What was offered of a request's pages, and until when that holds."""

    keys: tuple[str, ...]
    pages: int
    until_s: float


class Wanted(NamedTuple):
    """A load that waits for its batch."""

    keys: list[str]
    slots: NDArray[np.int64]


@dataclass(slots=True)
class Batch:
    """The loads of one step of the engine."""

    loads: list[BlockingLoad] = field(default_factory=list)
    is_whole: bool = True  # so far


class BodoCacheLinker(UnifiedCacheLinker):  # type: ignore[misc]  # sglang has no types
    """``--unified-cache-external-linker-backend dynamic``; see docs/sglang.md."""

    def __init__(
        self,
        server_args: object,  # noqa: ARG002 -- what it says is in ``params``, too
        params: Any,
        *,
        components: object,  # noqa: ARG002 -- SGLang itself leaves out those that we do not name
        extra_config: Mapping[str, Any] | None = None,
        forward_stream: Any = None,
    ) -> None:
        """As SGLang calls it.

        Raises:
            ConfigError: ``linker_extra_config`` has a fault; the message names the field.
            LayoutError: the model keeps state that this linker cannot restore.
        """
        self.forward_stream = forward_stream
        self._options = LinkerOptions.read(extra_config or {})
        self._device = device = DevicePages.of(params)
        self.pools = {PoolName.KV: device.pool}
        config = config_of(self._options, rank_name(params), device, get_model().model_path)
        pool = BorrowedPool(device.memory)
        self._cache = BlockingCache(lambda: Cache.open(config, pool, group=device.group))
        self._answers: dict[str, Answer] = {}
        self._queued: dict[str, Wanted] = {}
        self._offloads: deque[Future[bool]] = deque()
        self._loader = ThreadPoolExecutor(1, "bodocache-load")
        self._offloader = ThreadPoolExecutor(_OFFLOADS_AT_ONCE, "bodocache-offload")
        self.layer_done_counter = LayerCounter(device)

    def lookup(self, rid: str, transfers: list[PoolTransfer]) -> list[int]:
        """Every number of leading pages that a load can bring: checked, and held."""
        keys = tuple(_kv(transfers).keys)
        said = self._answers.get(rid)
        if said is None or said.keys != keys or time.monotonic() >= said.until_s:
            said = self._cache.run(lambda cache: self._look(cache, keys))
            if len(self._answers) >= _MOST_ANSWERS:
                self._answers.clear()
            self._answers[rid] = said
        return list(range(1, said.pages + 1))

    async def _look(self, cache: Cache, keys: tuple[str, ...]) -> Answer:
        """Decide what of a chain is worth a load; hold what is here, have the rest of it read."""
        options, page_tokens = self._options, self._device.memory.page_tokens
        match = await cache.match_engine_keys(_bytes(keys), tenant=options.tenant)
        here = int(np.argmax(np.append(match.tiers > Tier.HOST, True)))
        wanted = _worth_loading(match, (match.pages, here))
        here = min(here, wanted)
        actions: list[Action] = []
        if here:
            actions.append(
                Retain(Span(match, 0, here * page_tokens, options.tenant), options.hold_s)
            )
        if here < wanted:
            rest = Span(match, here * page_tokens, wanted * page_tokens, options.tenant)
            actions.append(Prefetch(rest, options.read_s))
        outcomes = await cache.hint(actions) if actions else ()
        held = 0
        if here and outcomes[0].status in (Status.ACCEPTED, Status.CLIPPED):
            held = outcomes[0].pages
        lasts_s = options.hold_s / 2 if held == wanted > 0 else options.retry_s
        return Answer(keys, held, time.monotonic() + lasts_s)

    def load(self, rid: str, transfers: list[PoolTransfer]) -> bool:
        """Queue a load into the slots that the tree has taken for it."""
        kv = _kv(transfers)
        if not kv.keys:
            return False
        if rid in self._queued:
            raise RuntimeError(f"a load of request {rid} is queued already")
        self._answers.pop(rid, None)
        self._queued[rid] = Wanted(list(kv.keys), self._device.slots(kv.device_indices))
        return True

    def cancel_queued_load(self, rid: str) -> bool:
        """Forget a load whose batch has not been started."""
        return self._queued.pop(rid, None) is not None

    def start_layer_wise_loading(self) -> int:
        """Commit every queued load; the index by which the forward waits for their layers."""
        if not self._queued:
            return _NOTHING
        wanted, self._queued = list(self._queued.values()), {}
        free = get_device_module().Event()  # whatever used the slots before comes before it
        free.record()
        return self.layer_done_counter.begin(self._loader.submit(self._begin, wanted, free))

    def _begin(self, wanted: Sequence[Wanted], free: Any) -> Batch:
        free.synchronize()
        batch = Batch()
        for keys, slots in wanted:
            try:
                match = self._cache.match_engine_keys(_bytes(keys), tenant=self._options.tenant)
                if match.pages < len(keys):
                    _log.error("of %d pages offered, %d are left", len(keys), match.pages)
                    batch.is_whole = False
                    continue
                layers = self._device.group.layers
                compute_s = [self._options.layer_compute_s] * layers
                load = self._cache.load(match, slots, compute_s=compute_s)
                batch.loads.append(load)
                load.commit(len(keys))
            except BodoCacheError:
                _log.exception("a load of %d pages could not begin", len(keys))
                batch.is_whole = False
        return batch

    def finish_layer_wise_loading(self, counter_index: int) -> bool:
        """Wait until nothing of the batch writes to the device; whether all of it came."""
        return self.layer_done_counter.finish(counter_index)

    def offload(self, transfers: list[PoolTransfer], session_id: str | None = None) -> bool:
        """Begin to store pages of the device."""
        kv = _kv(transfers)
        if not kv.keys:
            return False
        computed = self.record_offload_ready()
        self._offloads.append(self._offloader.submit(self._store, kv, computed, session_id))
        return True

    def _store(self, kv: PoolTransfer, computed: Iterable[Any], session_id: str | None) -> bool:
        try:
            for event in computed:
                event.synchronize()
            match = self._cache.match_engine_keys(
                _bytes(kv.keys), session=session_id, tenant=self._options.tenant
            )
            with self._cache.store(match, self._device.slots(kv.device_indices)) as store:
                return store.wait().refused == 0
        except BodoCacheError:
            _log.exception("%d pages were not stored", len(kv.keys))
            return False

    def num_completed_offloads(self) -> int:
        """How many of the oldest stores are over."""
        return sum(1 for _ in itertools.takewhile(Future.done, self._offloads))

    def pop_completed_offload(self) -> bool:
        """Whether the oldest store is there."""
        return self._offloads.popleft().result()

    def reset(self) -> None:
        """Forget what was asked for, once nothing is under way; what is stored stays."""
        self._queued.clear()
        self._answers.clear()
        self.layer_done_counter.reset()
        while self._offloads:
            self._offloads.popleft().result()

    def close(self) -> None:
        """Wait for what is under way, write to disk what was admitted, and let go of everything."""
        self.reset()
        self._loader.shutdown()
        self._offloader.shutdown()
        self._cache.close()


class LayerCounter:
    """What SGLang's forward waits by: layer ``i`` of the batch that it consumes."""

    def __init__(self, device: DevicePages) -> None:
        self.consumer_index = _NOTHING
        self._device = device
        self._produced = itertools.count()
        self._batches: dict[int, Future[Batch]] = {}

    def begin(self, batch: "Future[Batch]") -> int:
        """Count a batch that begins; its index."""
        index = next(self._produced)
        self._batches[index] = batch
        return index

    def set_consumer(self, index: int) -> None:
        """Which batch the next forward waits for; -1: none."""
        self.consumer_index = index

    def wait_until(self, threshold: int) -> None:
        """Wait for a layer, by SGLang's number; where it fails, :meth:`finish` says so.

        On a GPU the current stream waits, and the caller only until the copies were submitted.
        """
        batch, layer = self._batches.get(self.consumer_index), self._device.layer_of(threshold)
        if batch is None or layer is None:
            return
        is_gpu = self._device.memory.device.type == "cuda"
        stream = torch.cuda.current_stream() if is_gpu else None
        for load in batch.result().loads:
            try:
                load.wait_layer(layer, stream)
            except BodoCacheError as error:
                _log.debug("layer %d does not come: %s", layer, error)

    def finish(self, index: int) -> bool:
        """Wait until nothing of a batch writes any more; whether all of it came."""
        if (batch := self._batches.pop(index, None)) is None:
            return True
        begun = batch.result()
        whole = begun.is_whole
        for load in begun.loads:
            whole &= _finished(load)
        return whole

    def reset(self) -> None:
        """Finish every batch."""
        for index in list(self._batches):
            self.finish(index)
        self.consumer_index = _NOTHING


def _finished(load: BlockingLoad) -> bool:
    """Whether a committed load is whole; nothing writes to its slots then."""
    with load:
        try:
            load.wait()
        except BodoCacheError:
            _log.exception("a load failed; SGLang aborts its request")
            return False
        finally:
            load.wait_released()
    return True


def _worth_loading(match: Match, ends: Iterable[int]) -> int:
    """The first of ``ends`` whose pages come sooner than they are computed; else 0."""
    for pages in ends:
        forecast = match.predict(match.tiers[:pages]) if pages else None
        if pages and (forecast is None or forecast.finish_s <= forecast.recompute_s):
            return pages
    return 0


def _kv(transfers: Sequence[PoolTransfer]) -> PoolTransfer:
    return next(it for it in transfers if it.name == PoolName.KV)


def _bytes(keys: Iterable[str]) -> list[bytes]:
    return [bytes.fromhex(key) for key in keys]
