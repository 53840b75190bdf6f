# SPDX-License-Identifier: Apache-2.0
"""A node for engines that have host memory of their own and no event loop: what any thread may do.

A *line* is one attachment. The node brings pages into its slots, and the calling thread copies from
there; or it leases slots, and the calling thread fills them. Nothing is copied by anybody else, so
when a call has returned nothing touches the engine's memory.

One thread keeps the line: it pings, says when this engine was fenced and writes no more, and looks
for a node that was lost.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bodocache.errors import NodeError, NodeFenced, NodeLost
from bodocache.layout import Layout
from bodocache.node import memory, messages
from bodocache.node.channel import PINGS
from bodocache.node.dialog import Dialog
from bodocache.node.messages import Digests
from bodocache.node.presence import Presence
from bodocache.pages import NOWHERE, Reason

_log = logging.getLogger(__name__)

RETRY_S = 0.5  # between two looks for a node that was lost
NO_MATCH = 0  # the number of a question that no load follows
BYE_S = 5.0  # longer than a read that the node has begun for us

KeyArray = NDArray[np.uint8]  # [n, 32]
SlotArray = NDArray[np.int64]
Fill = Callable[[SlotArray, SlotArray], Digests]  # positions, host slots: what was put there


@dataclass(slots=True, eq=False)
class Incoming:
    """Pages of a chain that the node brings to host slots, where they are leased until the end."""

    number: int
    keys: KeyArray
    slots: SlotArray  # NOWHERE where a page has not come
    digests: Digests  # seeded
    tiers: NDArray[np.uint8]  # where those that have come were
    reasons: NDArray[np.uint8]  # why those that have not will not
    is_final: NDArray[np.bool_]  # it has come, or will not

    @classmethod
    def of(cls, number: int, keys: KeyArray) -> "Incoming":
        """Nothing has come yet."""
        pages = len(keys)
        slots, digests = np.full(pages, NOWHERE), np.zeros((pages, 2), np.uint64)
        tiers, reasons = np.zeros(pages, np.uint8), np.full(pages, int(Reason.LATE), np.uint8)
        return cls(number, keys, slots, digests, tiers, reasons, np.zeros(pages, np.bool_))

    def settled(self, bad: SlotArray) -> messages.Settled:
        """What became of it, where those at ``bad`` had other bytes than were stored."""
        reasons, there = self.reasons.copy(), self.slots != NOWHERE
        reasons[bad], there[bad] = int(Reason.CORRUPT), False
        pages = int(np.argmin(np.append(there, False)))
        reasons[there] = int(Reason.UNREACHABLE)  # behind one that has not come
        return messages.Settled(self.number, self.tiers[:pages], reasons[pages:], "", 0.0, 0.0)


@dataclass(slots=True, eq=False)
class Line:
    """One attachment to the node, until it is lost."""

    dialog: Dialog
    pages: torch.Tensor  # uint8[num_pages, page_nbytes]: the node's host pool
    presence: Presence
    incoming: dict[int, Incoming] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    writers: int = 0  # stores that may write to leased slots
    idle: threading.Condition = field(default_factory=threading.Condition)

    @property
    def is_usable(self) -> bool:
        """Whether the node listens, and has not fenced this engine."""
        return self.dialog.is_open and not self.dialog.is_fenced

    def holds(self, keys: KeyArray, *, within_s: float) -> NDArray[np.bool_]:
        """Whether each page lies in some tier.

        Raises:
            NodeError: the node is gone, silent, or has fenced this engine; so for all methods.
        """
        held: messages.Held = self.dialog.ask(messages.Holds(keys), within_s)
        return held.present.astype(np.bool_)

    def leading(self, keys: KeyArray, *, tenant: int, within_s: float) -> int:
        """How many leading pages of a chain lie in some tier; as a rule the node is not asked."""
        pages = self.presence.leading(keys)
        if pages is not None:
            return pages
        found: messages.Found = self.dialog.ask(
            messages.Find(NO_MATCH, tenant, 0.0, keys), within_s
        )
        return len(found.tiers)

    def fetch(self, keys: KeyArray, said: str, *, due_s: float, deadline_s: float) -> Incoming:
        """Have the pages of a chain brought to host slots; at once, however many there are.

        ``due_s``: from now, when they are needed; ``deadline_s``: when they are worth nothing.
        """
        incoming = Incoming.of(next(self.numbers), keys)
        with self.dialog.locked():
            self.incoming[incoming.number] = incoming
        nothing = np.empty(0, np.uint8)
        asked = messages.Fetch(
            *(incoming.number, 0, len(keys), due_s, deadline_s, said, nothing, keys)
        )
        try:
            self.dialog.tell(asked)
        except NodeLost:
            self._forget(incoming)
            raise
        return incoming

    def wait(self, incoming: Incoming, pages: slice, until_s: float) -> None:
        """Wait until it is final what becomes of ``pages``, or until the time is up."""
        self.dialog.listen(lambda: bool(incoming.is_final[pages].all()), until_s)

    def end(self, incoming: Incoming, bad: SlotArray) -> None:
        """The pages are needed no more; those at ``bad`` had other bytes than were stored."""
        self._forget(incoming)
        with suppress(NodeLost):
            self.dialog.tell(incoming.settled(bad))
            self.dialog.tell(messages.EndFetch(incoming.number, bad))

    def store(
        self, keys: KeyArray, supplied: int, said: str, fill: Fill, *, within_s: float
    ) -> messages.Published:
        """Store the pages of a chain from ``supplied`` on, which ``fill`` brings to host slots.

        Returns when they can be found. Pages without room, and pages whose prefix is not there, are
        in neither list of the answer.
        """
        until_s = time.monotonic() + within_s
        number, nothing = next(self.numbers), np.empty((0, 2), np.uint64)
        with self._writing():
            digests = nothing
            try:
                asked = messages.Reserve(number, supplied, said, keys)
                reserved: messages.Reserved = self.dialog.ask(asked, within_s)
                digests = fill(reserved.positions, reserved.slots)
            finally:
                if not len(digests):  # the slots go back, however late they are given
                    with suppress(NodeLost):
                        self.dialog.tell(messages.Publish(number, nothing))
            if not len(digests):
                return messages.Published(np.empty(0, np.int64), reserved.known)
            publish = messages.Publish(number, digests)
            left_s = max(0.0, until_s - time.monotonic())
            published: messages.Published = self.dialog.ask(publish, left_s)
        return messages.Published(published.shown, np.union1d(reserved.known, published.known))

    def clear(self, *, within_s: float) -> None:
        """Have the node forget every page that nobody holds."""
        self.dialog.ask(messages.Clear(), within_s)

    def figures(self, *, within_s: float) -> dict[str, Any]:
        """The node's tiers, links and engines (docs/node.md)."""
        told: messages.Told = self.dialog.ask(messages.Ask(), within_s)
        figures: dict[str, Any] = json.loads(told.text)
        return figures

    def resume(self, *, within_s: float) -> None:
        """After a fence: what was held is others' now, and nothing writes to it; go on."""
        with self.idle:
            if not self.idle.wait_for(lambda: not self.writers, within_s):
                raise NodeLost("a store goes on in an epoch that is over")
            self.dialog.welcome = self.dialog.ask(messages.Resume(), within_s)
            self.dialog.is_fenced = False
        self.lose()

    def arrived(self, message: messages.Arrived) -> None:
        """What the node says of pages on their way; under the dialog's lock."""
        incoming = self.incoming.get(message.load)
        if incoming is not None:
            incoming.slots[message.positions] = message.slots
            incoming.digests[message.positions] = message.digests
            incoming.tiers[message.positions] = message.tiers
            incoming.reasons[message.lost] = message.reasons
            incoming.is_final[message.positions] = True
            incoming.is_final[message.lost] = True

    def lose(self) -> None:
        """Nothing that is on its way comes any more."""
        with self.dialog.locked():
            while self.incoming:
                self.incoming.popitem()[1].is_final[:] = True

    def _forget(self, incoming: Incoming) -> None:
        with self.dialog.locked():
            self.incoming.pop(incoming.number, None)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """``with``: leased slots are written to, so that this engine does not resume."""
        with self.idle:
            self.writers += 1
        try:
            yield
        finally:
            with self.idle:
                self.writers -= 1
                self.idle.notify_all()


class DirectNode:
    """A node, as an engine's threads use it."""

    def __init__(
        self,
        path: Path,
        hello: messages.Hello,
        layout: Layout,
        *,
        patience_s: float,
        ensure: Callable[[], None] = lambda: None,
        tidy: Callable[[], None] = lambda: None,
    ) -> None:
        """Attach to the node at ``path``, whose pages are those of ``layout``.

        ``ensure`` is called before: it starts a node where none is. ``tidy`` is called now and
        then. ``patience_s``: how long to wait for an answer that has no deadline of its own.

        Raises:
            NodeError: there is no node, or it serves other pages.
        """
        self.trouble: NodeError | None = None  # the last one
        self.patience_s = patience_s
        self._logged = ""
        self._path, self._hello, self._layout = path, hello, layout
        self._ensure, self._tidy = ensure, tidy
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._line: Line | None = self._attached()
        self._keeper = threading.Thread(target=self._keep, name="bodocache-keeper", daemon=True)
        self._keeper.start()

    @property
    def line(self) -> Line | None:
        """The attachment, where there is a node that this engine may use."""
        line = self._line
        if line is not None and line.is_usable:
            return line
        self._wake.set()
        return None

    def close(self) -> None:
        """Leave the node; its pages stay there. Calls under way fail."""
        self._closing.set()
        self._wake.set()
        self._keeper.join(BYE_S)  # it may be starting a node: then it leaves that when it is there
        line, self._line = self._line, None
        if line is not None:
            with suppress(NodeError):
                line.dialog.ask(messages.Bye(), BYE_S)
            line.dialog.close()
            line.lose()

    def _attached(self) -> Line:
        self._ensure()
        lines: list[Line] = []

        def arrived(message: messages.Arrived) -> None:
            lines[0].arrived(message)

        dialog, descriptor = Dialog.connect(
            self._path, self._hello, arrived, patience_s=self.patience_s
        )
        try:
            shared = replace(self._layout, num_pages=dialog.welcome.num_pages)
            pool = memory.attach(descriptor, shared, pinned=False)
            table = memory.table(descriptor, shared, dialog.welcome.table_words)
        except BaseException:
            dialog.close()
            raise
        finally:
            os.close(descriptor)
        lines.append(Line(dialog, pool.pages, Presence(table)))
        return lines[0]

    def soon(self) -> None:
        """Have ``tidy`` called at once, by the thread that keeps the line."""
        self._wake.set()

    def _keep(self) -> None:
        line = self._line
        assert line is not None, "it was attached before this thread began"
        every_s = line.dialog.welcome.silence_s / PINGS
        due_s = 0.0
        while not self._closing.is_set():
            self._wake.wait(max(0.0, due_s - time.monotonic()))
            self._wake.clear()
            if self._closing.is_set():
                return
            self._tidy()
            line = self._line
            if time.monotonic() >= due_s or (line is not None and not line.is_usable):
                self._look_after()
                due_s = time.monotonic() + (RETRY_S if self._line is None else every_s)

    def _look_after(self) -> None:
        """Ping, resume or attach again, whatever is due."""
        line = self._line
        try:
            if line is None:
                self._line = self._attached()
                _log.warning("the node is back")
                if self._closing.is_set():
                    self._line.dialog.close()
            elif not line.dialog.is_open:
                self._line = None
                line.dialog.close()
                line.lose()
                raise NodeLost("the node is gone; pages are misses until it is back")
            elif line.dialog.is_fenced:
                line.resume(within_s=self.patience_s)
            else:
                line.dialog.ask(messages.Ping(), self.patience_s)
            self._logged = ""
        except NodeFenced as error:
            self.trouble = error  # resumed when this is looked after again
            self._wake.set()
        except NodeError as error:
            if str(error) != self._logged:  # once, however long it lasts
                _log.warning("%s", error)
            self.trouble, self._logged = error, str(error)
