# SPDX-License-Identifier: Apache-2.0
"""An engine's loads: the node brings pages into host slots, we copy them to the device and check.

On the loop. A node that is gone, or that stands still, makes misses: at once, or at the deadline; a
load that says when it is needed is cut as one in-process is, on what the engine sees of its links.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bodocache.match import Match
from bodocache.move.copying import Copying
from bodocache.move.decide import Decider
from bodocache.move.link import Link
from bodocache.move.live import Live
from bodocache.move.load import Load
from bodocache.move.residency import KeyArray, SlotArray
from bodocache.move.tasks import Nursery
from bodocache.move.terms import Terms
from bodocache.node import messages
from bodocache.node.attached import Attached
from bodocache.node.coming import Coming
from bodocache.node.device import Device, Targets
from bodocache.node.far import FarLink
from bodocache.node.said import said_to_json
from bodocache.pages import NOWHERE, Reason, Tier

if TYPE_CHECKING:
    import asyncio

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """What an engine loads: the leading pages of a match."""

    match: Match
    keys: KeyArray
    attached: Attached | None
    on_load: Callable[[Load], None]  # told of it before anything happens to it


class NodeLoader:
    """Begins loads and sees them through."""

    def __init__(
        self,
        device: Device,
        *,
        disk: FarLink,
        copying: Link,
        page_nbytes: int,
        page_tokens: int,
        nursery: Nursery,
        decider: Decider,
        now_s: Callable[[], float],
    ) -> None:
        self.failed_checks = 0
        self._device = device
        self._disk = disk
        self._copying = copying
        self._page_nbytes = page_nbytes
        self._page_tokens = page_tokens
        self._nursery = nursery
        self._decider = decider
        self._now_s = now_s
        self._numbers = count(1)
        self._coming: dict[int, Coming] = {}
        self._live = Live()

    @property
    def hits(self) -> dict[Tier, int]:
        """Pages that loads delivered, by the tier they came from."""
        return self._live.hits

    def begin(self, asked: Asked, slots: SlotArray | None, terms: Terms) -> Load:
        """Begin to bring what is ``asked`` for, on the engine's ``terms``."""
        keys, attached = asked.keys, asked.attached
        targets = self._device.begin_load(keys, slots, terms.tenant)
        load = Load(
            rows=targets.rows,
            slots=targets.slots,
            page_tokens=self._page_tokens,
            layers=self._device.layers,
            begun_s=self._now_s(),
            terms=terms,
            on_close=partial(self._close, targets),
        )
        asked.on_load(load)
        self._live.add(load)
        load.begin_part()  # what is awaited of the node
        coming = Coming(
            *(next(self._numbers), load, keys, targets, attached),
            page_nbytes=self._page_nbytes,
            now_s=self._now_s,
        )
        self._coming[coming.number] = coming
        load.on_settled(partial(self._settled, coming))
        load.on_released(partial(self._released, coming))
        load.arrive(np.flatnonzero(targets.there), Tier.DEVICE)
        without = np.flatnonzero(~targets.there & (targets.slots == NOWHERE))
        load.fail(without, np.full(len(without), Reason.NO_ROOM, np.uint8))
        try:
            self._await(coming, asked.match.tiers[: len(keys)])
            self._ask(coming, asked.match)
            self._decider.watch_deadline(load)
        except BaseException:
            load.close()
            raise
        return load

    def arrived(self, message: messages.Arrived) -> None:
        """Pages lie in host slots, or will not come."""
        coming = self._coming.get(message.load)
        if coming is None or coming.is_over:
            return
        message = coming.hear(message)
        if len(message.positions):
            self._copy(coming, message)
            self._decider.progress_of(coming.load)
        coming.end_if_over()

    def lose_all(self) -> None:
        """The node is gone, or has taken back what it leased: nothing more will come."""
        for coming in list(self._coming.values()):
            coming.lose_rest()

    async def idle(self, attached: Attached) -> None:
        """Wait until nothing copies from what ``attached`` maps."""
        for coming in list(self._coming.values()):
            if coming.attached is attached:
                await coming.load.released

    async def close(self) -> None:
        """Cancel every load under way and wait until its slots are free."""
        await self._live.close()
        self._decider.close()

    def _await(self, coming: Coming, tiers: NDArray[np.uint8]) -> None:
        """Decide what is wanted, before the first byte; and await it."""
        load, targets = coming.load, coming.targets
        wanted = np.flatnonzero(~targets.there & (targets.slots != NOWHERE))
        sources = np.where(tiers == Tier.DISK, Tier.DISK, Tier.HOST).astype(np.int64)
        if load.terms.may_be_cut:
            self._decider.before_first_byte(load, wanted, sources[wanted])
            wanted = wanted[load.is_wanted(wanted)]
        load.add_source(coming)
        coming.want(wanted)
        # Copies enter the queue by themselves, when the node has answered: before that only a cut
        # would ask for them.
        disk = (Tier.DISK, self._disk.of(load.terms.tenant))
        copied = ((Tier.HOST, self._copying),) if load.terms.may_be_cut else ()
        for tier, link in (disk, *copied):
            positions = wanted[sources[wanted] == tier]
            if len(positions):
                part = coming.await_from(tier, positions, link)
                if part is not None:
                    self._decider.watch(part)

    def _ask(self, coming: Coming, match: Match) -> None:
        """Ask the node for the pages that are wanted; it is told of those that are here, too."""
        load, now_s = coming.load, self._now_s()
        if coming.attached is None:
            coming.lose_rest()
            return
        first = int(np.argmin(np.append(coming.targets.there, False)))
        due_s = load.terms.due_s(now_s) - now_s
        deadline_s = self._decider.backend_deadline_s(load) - now_s
        fetch = messages.Fetch(
            *(coming.number, first, load.wanted, max(0.0, due_s), max(0.0, deadline_s)),
            *(said_to_json(match.said), match.reasons, coming.keys),
        )
        answer = coming.attached.channel.request(fetch)
        answer.add_done_callback(partial(self._answered, coming))
        coming.end_if_over()

    def _answered(self, coming: Coming, answer: "asyncio.Future[Any]") -> None:
        error = answer.exception()
        if error is None:
            self.arrived(answer.result())
        elif not coming.is_over:
            _log.warning("load: %s", error)
            coming.lose_rest()

    def _copy(self, coming: Coming, arrived: messages.Arrived) -> None:
        """Let pages that lie in host slots wait for their turn: they may have come afterwards."""
        assert coming.attached is not None, "nothing comes from nowhere"
        part = coming.to_copy(arrived, self._copying)
        work = Copying(
            part,
            copies=coming.attached.copies,
            lander=coming,
            nursery=self._nursery,
            now_s=self._now_s,
            on_progress=self._decider.progress,
        )
        if not coming.enter(part, work):
            return
        self._decider.watch(part)
        if coming.load.committed is not None and (arrived.tiers == Tier.HOST).all():
            work.hurry()  # it was committed before the node had answered
        if part.ticket is not None:
            part.link.queue.start(part.ticket)

    # Endings

    def _settled(self, coming: Coming) -> None:
        load = coming.load
        self._device.place(coming.targets, load.landed)
        if coming.attached is not None:
            settled = messages.Settled(
                *(coming.number, load.sources, load.reasons, load.was_cut or ""),
                *(load.waited_s(self._now_s()), load.terms.n_waiting),
            )
            coming.attached.channel.note(settled)

    def _released(self, coming: Coming) -> None:
        """Nothing reads the node's slots or writes to ours any more."""
        del self._coming[coming.number]
        self.failed_checks += len(coming.bad)
        self._device.end_load(coming.targets)
        if coming.attached is not None:
            bad = np.array(coming.bad, np.int64)
            coming.attached.channel.note(messages.EndFetch(coming.number, bad))

    def _close(self, targets: Targets, load: Load) -> None:
        self._live.remove(load)
        self._device.close_load(targets)
