# SPDX-License-Identifier: Apache-2.0
"""The engine's side of a node: its device tier, its loads and stores, and the attachment they use.

It stands where an orchestrator stands in an in-process cache. When the node is lost, what is under
way becomes misses and refusals, and it looks for the node again every RETRY_S.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache.clock import Clock
from bodocache.config import CacheConfig
from bodocache.errors import NodeError, NodeFenced, NodeLost
from bodocache.hints.reuse import Said
from bodocache.layout import Layout
from bodocache.match import Forecast, Match
from bodocache.move.choice import Why
from bodocache.move.decide import Decider
from bodocache.move.link import Link
from bodocache.move.load import Load
from bodocache.move.operation import Operation
from bodocache.move.orchestrator import Traffic
from bodocache.move.requests import Requests
from bodocache.move.residency import KeyArray, Residency, SlotArray
from bodocache.move.store import Store
from bodocache.move.storer import Origin
from bodocache.move.tasks import Nursery
from bodocache.move.terms import Terms
from bodocache.move.worth import Worth
from bodocache.node import messages
from bodocache.node.attached import Attached
from bodocache.node.device import Device
from bodocache.node.elsewhere import Elsewhere, Uncounted
from bodocache.node.far import FarLink
from bodocache.node.loads import Asked, NodeLoader
from bodocache.node.stores import NodeStorer
from bodocache.pages import Tier
from bodocache.pools import BorrowedPool, OwnedPool
from bodocache.wiring import policy_of, recompute_of

_log = logging.getLogger(__name__)

RETRY_S = 0.5  # between two looks for a node that was lost
BYE_S = 5.0  # longer than a read that the node has begun for us

Reach = Callable[[], Awaitable[Attached]]


class Engine(Uncounted):
    """Moves the pages of one engine."""

    def __init__(
        self, config: CacheConfig, device: BorrowedPool, layout: Layout, clock: Clock
    ) -> None:
        recompute, now_s = recompute_of(config, layout), clock.now_s
        self.trouble: NodeError | None = None  # the last one
        self.hints = Elsewhere()
        self._attached: Attached | None = None
        self._reach: Reach
        self._lost = asyncio.Event()
        self._closing = asyncio.Event()
        self._operations: dict[int, Operation] = {}
        self._nursery = Nursery()
        self._now_s = now_s
        self._is_cpu = is_cpu = device.memory.device.type == "cpu"
        down, up = Link("host->device", now_s=now_s, runs_here=is_cpu), "device->host"
        self.disk = FarLink("disk->host", now_s=now_s)
        links = (down, self.disk, self.disk.rationed, Link(up, now_s=now_s))
        self.links = {it.name: it for it in links}
        self.requests = Requests(now_s, [*self.links], config.metrics.tenant_classes)
        for number, link in enumerate(links):
            link.number, link.observer = number, partial(self.requests.moved, number)
        # Host memory is the node's: one page stands for it.
        host = OwnedPool(replace(layout, num_pages=1), name="host")
        policy = policy_of(config)
        self.residency = Residency(
            device=device,
            host=host,
            backend=None,
            policy=policy,
            recompute=recompute,
            now_s=now_s,
            parts=config.tenants.by_number(),
        )
        sources: dict[Tier, Link] = {Tier.HOST: down, Tier.DISK: self.disk}
        self.worth = Worth.of(  # counted here; the node says whether to step aside
            policy, recompute.seconds, layout.page_nbytes, is_on=False, now_s=now_s
        )
        self._told_s = self._copied_s = 0.0  # of what was spent, and of the copies of stores
        self.decider = Decider.of(
            sources,
            policy,
            recompute,
            page_nbytes=layout.page_nbytes,
            layers=self.num_layers,
            lies_in=lambda rows, _: np.zeros(len(rows), np.bool_),  # the node chooses the source
            now_s=now_s,
        )
        self._recompute_s = self.decider.recompute_s
        sides = Device(self.residency)
        self._loader = NodeLoader(
            sides,
            disk=self.disk,
            copying=down,
            page_nbytes=layout.page_nbytes,
            page_tokens=recompute.page_tokens,
            nursery=self._nursery,
            decider=self.decider,
            now_s=now_s,
        )
        self._storer = NodeStorer(
            self.residency,
            sides,
            link=self.links["device->host"],
            beside=down.queue,
            nursery=self._nursery,
            now_s=now_s,
        )

    async def open(self, reach: Reach) -> None:
        """Attach by ``reach``, and again whenever the node was lost.

        Raises:
            NodeLost: there is no node, or it does not answer.
            NodeRefused: it does not serve such pages.
        """
        self._reach = reach
        await self._nursery.open()
        try:
            await self._attach()
        except BaseException:
            await self._nursery.close()
            raise
        self._nursery.spawn(self._stay_attached())

    async def request(self, message: Any, *, within_s: float) -> Any:
        """The node's answer to ``message``.

        Raises:
            NodeLost: there is no node, or it does not answer in time.
            NodeFenced: this engine was silent for too long; it is attached again when this is seen.
        """
        attached = self._attached
        if attached is None:
            raise NodeLost(str(self.trouble or "the node is gone"))
        try:
            async with asyncio.timeout(within_s):
                return await attached.channel.request(message)
        except TimeoutError:
            raise NodeLost(f"the node did not answer within {within_s:g} s") from None

    def note(self, message: Any) -> "asyncio.Future[Any] | None":
        """Send ``message`` if there is a node; its answer."""
        return None if self._attached is None else self._attached.channel.request(message)

    def tell(self, message: Any) -> None:
        """Send a note if there is a node."""
        if self._attached is not None:
            self._attached.channel.note(message)

    def operation(self, number: int) -> Operation:
        """The handle of an operation of the node's."""
        operation = Operation()
        self._operations[number] = operation
        operation.on_cancel(lambda: self._cancel(number))
        return operation

    # What a cache asks of an orchestrator

    @property
    def num_layers(self) -> int:
        """Layers of a page."""
        return self.residency.device.memory.layers

    def now_s(self) -> float:
        """The cache's clock."""
        return self._now_s()

    def load(self, match: Match, keys: KeyArray, slots: SlotArray | None, terms: Terms) -> Load:
        """See :meth:`bodocache.cache.Cache.load`."""
        request = self.requests.loading(match, terms.deadline_s)
        self.decider.hear(match, len(keys), terms)
        asked = Asked(match, keys, self._attached, partial(self.requests.follow_load, request))
        load = self._loader.begin(asked, slots, terms)
        load.on_settled(lambda: self._weigh(load))
        return load

    def _weigh(self, load: Load) -> None:
        self.worth.loaded(load.from_below, load.waited_s(self.now_s()), load.terms.n_waiting)

    def forecast(self, tiers: NDArray[np.uint8]) -> Forecast | None:
        """When a load would be there; what comes from disk crosses to the device, too."""
        last = np.where(tiers == Tier.DISK, Tier.HOST, tiers).astype(np.uint8)
        one, two = self.decider.forecast(tiers), self.decider.forecast(last)
        if one is None or two is None:
            return None
        mean_s, finish_s = max(one.mean_s, two.mean_s), max(one.finish_s, two.finish_s)
        return Forecast(mean_s, finish_s, one.recompute_s)

    def stands_aside(self, keys: KeyArray) -> bool:
        """As the node said of these keys just now: it weighs what all its engines gain."""
        del keys
        return self.worth.is_aside

    def spent(self, seconds: float) -> None:
        """A request was looked up for so long."""
        self.worth.spent(seconds)
        self._told_s += seconds

    def take_spent_s(self) -> float:
        """What was spent since the last call on looking up and on copies of stores."""
        if self._is_cpu:  # a GPU computes meanwhile
            copied_s = self.links["device->host"].counted()[3]
            self.spent(copied_s - self._copied_s)
            self._copied_s = copied_s
        seconds, self._told_s = self._told_s, 0.0
        return seconds

    def saved_by_waiting_s(self, pages: int, behind: int) -> float:
        """Seconds to compute the ``behind`` pages after the first ``pages``, less to load them."""
        load = self.forecast(np.full(behind, Tier.HOST, np.uint8))
        compute_s = self._recompute_s(pages + behind) - self._recompute_s(pages)
        return compute_s - (load.mean_s if load is not None else 0.0)

    def store(
        self,
        keys: KeyArray,
        slots: SlotArray,
        origin: Origin,
        said: Said,
        *,
        by_layer: bool = False,
    ) -> Store:
        """See :meth:`bodocache.cache.Cache.store`."""
        del origin  # the node knows our weights, and the tenant is said
        if self.worth.is_aside and not isinstance(self.residency.device, OwnedPool):
            return self._storer.refuse(slots)
        request = self.requests.storing(said, keys, len(slots))
        store = self._storer.begin(keys, slots, said, self._attached, by_layer=by_layer)
        self.requests.follow_store(request, store)
        return store

    def refuse(self, slots: SlotArray, *, by_layer: bool = False) -> Store:
        """A store of nothing, for pages that could not be reached."""
        return self._storer.refuse(slots, by_layer=by_layer)

    def hold_writes(self) -> AbstractContextManager[None]:
        """The disk is the node's: nothing is held."""
        return nullcontext()

    def traffic(self) -> Traffic:
        """What this engine moved; host and disk are the node's."""
        tiers = self.residency.stats()
        return Traffic(
            links={name: link.stats() for name, link in self.links.items()},
            tiers={Tier.DEVICE: tiers[Tier.DEVICE]},
            hits=self._loader.hits,
            evicted={Tier.DEVICE: self.residency.evicted[Tier.DEVICE]},
            failed_checks=self._loader.failed_checks,
            cuts=dict(self.decider.cuts),
            unplanned=self.unplanned,
            gain=self.worth.gain,
            credit_waits=self.credit_waits,
            joined=self.joined,
            not_admitted=self.not_admitted,
            task_failures=self.task_failures,
        )

    # What is watched of it (move/watchable.py); what is the node's is counted there

    @property
    def hits(self) -> dict[Tier, int]:
        """Pages delivered by loads, by the tier they came from."""
        return self._loader.hits

    @property
    def decided_cuts(self) -> dict[Why, int]:
        """Loads that were cut."""
        return self.decider.cuts

    @property
    def failed_checks(self) -> int:
        """Pages whose bytes failed their digest."""
        return self._loader.failed_checks

    @property
    def task_failures(self) -> int:
        """Background tasks that raised."""
        return self._nursery.failures

    async def close(self) -> None:
        """Cancel loads, finish stores, leave the node; its pages stay there."""
        self._closing.set()
        self._lost.set()
        await self._loader.close()
        await self._storer.idle()
        attached = self._attached
        if attached is not None:
            await attached.idle()
            with suppress(NodeError):
                await self.request(messages.Bye(), within_s=BYE_S)
            attached.close()
            await attached.channel.closed()
        await self._nursery.close()
        if isinstance(self.residency.device, OwnedPool):
            self.residency.empty_device()

    # The attachment

    async def _attach(self) -> None:
        attached = await self._reach()
        attached.channel.on_lost = lambda: self._lose(attached)
        attached.channel.on_fenced = lambda: self._fenced(attached)
        self._attached = attached
        self._lost.clear()
        if not attached.channel.is_open:  # it went while we looked
            self._lose(attached)

    def _lose(self, attached: Attached) -> None:
        if self._attached is not attached:
            return
        self._attached = None
        if not self._closing.is_set():
            self.trouble = NodeLost("the node is gone; loads are misses until it is back")
            _log.error("%s", self.trouble)
        self._let_go()
        attached.channel.close()
        self._nursery.spawn(self._discard(attached))
        self._lost.set()

    async def _discard(self, attached: Attached) -> None:
        """Loads that have their pages in its memory go on; then it is let go."""
        await self._loader.idle(attached)
        await attached.idle()
        attached.close()

    def _let_go(self) -> None:
        self._loader.lose_all()
        self._storer.lose_all()
        while self._operations:
            self._operations.popitem()[1].end(0)

    async def _stay_attached(self) -> None:
        """Sleeps while there is a node; looks for it every RETRY_S while there is none."""
        while True:
            await self._lost.wait()
            if self._closing.is_set():
                return
            try:
                await self._attach()
                _log.warning("the node is back")
            except NodeError as error:
                self.trouble = error
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S):
                        await self._closing.wait()

    def _fenced(self, attached: Attached) -> None:
        """We were silent for too long: what we held at the node is others'."""
        if self._attached is not attached or self._closing.is_set():
            return
        self._attached = None
        attached.is_fenced = True  # until the node knows that we write no more
        self.trouble = NodeFenced("this engine was silent for too long; what it held is lost")
        _log.error("%s", self.trouble)
        self._let_go()
        self._nursery.spawn(self._resume(attached))

    async def _resume(self, attached: Attached) -> None:
        await attached.idle()
        try:
            attached.channel.welcome = await attached.channel.request(messages.Resume())
        except NodeError as error:
            self.trouble = error
            attached.channel.close()
            self._lost.set()
            return
        self._attached, attached.is_fenced = attached, False

    # Notes of the node

    def heard(self, message: Any) -> None:
        """What the node says without being asked."""
        match message:
            case messages.Arrived():
                self._loader.arrived(message)
            case messages.Written():
                self._storer.written(message)
            case messages.Over():
                operation = self._operations.pop(message.operation, None)
                if operation is not None:
                    operation.end(message.pages)

    def _cancel(self, number: int) -> None:
        self.tell(messages.Cancel(number))
