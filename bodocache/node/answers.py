# SPDX-License-Identifier: Apache-2.0
"""What each request of an engine does to the host: one method a message."""

import json
import math
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import WireError
from bodocache.hints.actions import Operation, Outcome
from bodocache.hints.reuse import checked_tenant
from bodocache.move.ticket import PATIENCE_S, Priority
from bodocache.node import messages
from bodocache.node.clearing import forget_all
from bodocache.node.far import told_of
from bodocache.node.host import Host
from bodocache.node.said import actions_from_json, outcome_to_json, said_from_json
from bodocache.node.session import Session
from bodocache.node.stages import Ticket
from bodocache.pages import Tier

Note = Callable[[Any], None]


class Answers:
    """Carries out requests."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._weights: list[bytes] = []  # roots, by version
        self._numbers = 0

    def version_of(self, weights: bytes) -> int:
        """The version of a root; one that is new makes pages of all others go first."""
        if weights not in self._weights:
            self._weights.append(weights)
            if len(self._weights) > 1:
                self.host.residency.retire_older_than(len(self._weights) - 1)
        return self._weights.index(weights)

    def answer(self, session: Session, message: Any, note: Note) -> Any:
        """The answer to ``message``, a coroutine that gives it, or None where it needs none."""
        answer = _ANSWERS.get(type(message))
        if answer is None:
            raise WireError(f"{type(message).__name__} is no request")
        return answer(self, session, message, note)

    def host_figures(self) -> dict[str, object]:
        """How full the tiers are and what the links moved."""
        host, residency = self.host, self.host.residency
        stats = residency.stats()
        return {
            "tiers": {it.name.lower(): asdict(stats[it]) for it in stats if it is not Tier.DEVICE},
            "free_slots": residency.host.free,
            "leased_slots": residency.host.leased,
            "links": {
                name: {"ops": it.ops, "pages": it.pages, "nbytes": it.nbytes, "busy_s": it.busy_s}
                for name, it in ((name, link.stats()) for name, link in host.links.items())
            },
            "credit_waits": host.credit_waits,
            "gain": asdict(host.worth.gain),
            "evicted": {it.name.lower(): count for it, count in residency.evicted.items()},
            "task_failures": host.nursery.failures,
        }

    def _find(self, session: Session, message: messages.Find, _: Note) -> messages.Found:
        host, residency, tenant = self.host, self.host.residency, checked_tenant(message.tenant)
        session.matched(message.request, message.keys)
        rows = residency.leading(message.keys)
        tiers = residency.fastest(rows).astype(np.uint8)
        reasons = residency.why_missing(message.keys, len(rows))
        expected = host.announcements.expected(message.keys[len(rows) :])
        due_s = expected.due_s - host.now_s() if expected.pages else 0.0
        if not 0 <= message.spent_s < math.inf:
            raise WireError(f"find: {message.spent_s} s were spent")
        host.worth.spent(message.spent_s)
        return messages.Found(
            *(tiers, reasons, expected.pages, due_s, self._disk_for(session)),
            *(int(host.worth.judge(message.keys)), host.credits_of(tenant)),
        )

    def _disk_for(self, session: Session) -> NDArray[np.float64]:
        """The disk, as a load that comes now would find it; the engine counts its own."""
        disk, due_s = self.host.links["disk->host"], self.host.now_s() + PATIENCE_S[Priority.LOAD]
        return told_of(disk, disk.queue.ahead_of(due_s, without=session.tickets))

    def _announce(self, session: Session, message: messages.Announce, _: Note) -> None:
        if message.announcement in session.announcements:
            raise WireError(f"announcement {message.announcement} is there already")
        if not (0 <= message.ready_s < math.inf and 0 <= message.limit_s < math.inf):
            raise WireError(f"announcement {message.announcement}: seconds that cannot be")
        session.announcements[message.announcement] = self.host.announcements.add(
            message.keys, message.ready_s, message.limit_s
        )

    def _withdraw(self, session: Session, message: messages.Withdraw, _: Note) -> None:
        it = session.announcements.pop(message.announcement, None)
        if it is not None:
            it.close()

    async def _await(self, _: Session, message: messages.Await, __: Note) -> messages.Awaited:
        until_s = self.host.now_s() + message.within_s
        return messages.Awaited(int(await self.host.announcements.awaited(message.keys, until_s)))

    def _holds(self, _: Session, message: messages.Holds, __: Note) -> messages.Held:
        return messages.Held(self.host.residency.holds(message.keys).astype(np.uint8))

    def _settled(self, session: Session, message: messages.Settled, _: Note) -> None:
        fetch = session.fetches.get(message.load)
        if fetch is not None:
            self.host.ledger.settled(fetch.entry, message)

    def _end_fetch(self, session: Session, message: messages.EndFetch, _: Note) -> None:
        session.end_fetch(message.load, message.bad)

    def _cancel(self, session: Session, message: messages.Cancel, _: Note) -> None:
        operation = session.operations.get(message.operation)
        if operation is not None:
            operation.cancel()

    def _fetch(
        self, session: Session, message: messages.Fetch, note: Note
    ) -> messages.Arrived | None:
        said = said_from_json(message.said, session.epoch)
        if message.load in session.fetches:
            raise WireError(f"load {message.load} is under way already")
        is_in_time = message.due_s >= 0 and message.deadline_s >= 0
        if not (message.first >= 0 and message.end >= 0 and is_in_time):
            raise WireError(
                f"load {message.load}: {message.first} to {message.end}, due in {message.due_s} s,"
                f" at the latest in {message.deadline_s} s"
            )
        told: list[messages.Arrived] = []
        begun = [False]

        def tell(arrived: messages.Arrived) -> None:
            if begun[0]:
                note(arrived)
            else:
                told.append(arrived)

        prompt = session.prompt_of(said.request, message.keys)
        entry = self.host.ledger.loading(message, said, prompt)
        fetch = self.host.fetcher.begin(message, entry, tell)
        begun[0] = True
        session.fetches[message.load] = fetch
        self.host.hints.loaded(message.keys, fetch.rows, said)
        return _joined(told)

    def _reserve(self, session: Session, message: messages.Reserve, _: Note) -> messages.Reserved:
        if message.store in session.stages:
            raise WireError(f"store {message.store} is under way already")
        said = said_from_json(message.said, session.epoch)
        stage = self.host.stager.reserve(message, said, session.version)
        session.stages[message.store] = stage
        return messages.Reserved(stage.positions, stage.slots, stage.known)

    def _publish(
        self, session: Session, message: messages.Publish, note: Note
    ) -> messages.Published | Coroutine[Any, Any, messages.Published]:
        stage = session.stages.get(message.store)
        if stage is None or stage.is_published:
            raise WireError(f"store {message.store} was not begun, or is published already")
        if not len(message.digests):
            self.host.stager.drop(session.stages.pop(message.store))
            self.host.announcements.decided(stage.keys[stage.supplied :])
            note(messages.Written(message.store, 0))
            return messages.Published(np.empty(0, np.int64), np.empty(0, np.int64))
        return self._show(session, message, note)

    async def _show(
        self, session: Session, message: messages.Publish, note: Note
    ) -> messages.Published:
        number, stage = message.store, session.stages[message.store]

        def written(pages: int) -> None:
            self.host.requests.written(stage.request, pages)
            note(messages.Written(number, pages))

        ticket = Ticket(written)
        stage.is_published = True
        try:
            shown, known = await self.host.stager.publish(stage, message.digests, ticket)
        finally:
            session.stages.pop(number, None)
            ticket.close()
            self.host.announcements.decided(stage.keys[stage.supplied :])
        return messages.Published(shown, known)

    def _rotate(self, session: Session, message: messages.Rotate, _: Note) -> messages.Done:
        is_new = message.weights.tobytes() not in self._weights
        session.version = self.version_of(message.weights.tobytes())
        if is_new:
            self.host.hints.forget_all()
        return messages.Done()

    def _clear(self, _: Session, __: messages.Clear, ___: Note) -> messages.Done:
        forget_all(self.host.residency)
        return messages.Done()

    # Hints

    def _act(self, session: Session, message: messages.Act, note: Note) -> messages.Told:
        actions = actions_from_json(message.actions)
        if len(actions) != len(message.counts) or message.counts.sum() != len(message.keys):
            raise WireError("actions: their keys are not as many as they say")
        chains = np.split(message.keys, np.cumsum(message.counts)[:-1])
        answers = []
        for action, keys in zip(actions, chains, strict=True):
            outcome = self.host.hints.execute(action, keys if len(keys) else None)
            answers.append(outcome_to_json(outcome, self._follow(session, outcome, note)))
        return messages.Told(json.dumps(answers))

    def _follow(self, session: Session, outcome: Outcome, note: Note) -> int:
        """The number of the outcome's operation, of whose end the engine is told; 0: none."""
        operation = outcome.operation
        if operation is None:
            return 0
        self._numbers += 1
        number = self._numbers
        session.operations[number] = operation
        self.host.nursery.spawn(self._watch(session, number, operation, note))
        return number

    async def _watch(self, session: Session, number: int, operation: Operation, note: Note) -> None:
        pages = await operation
        session.operations.pop(number, None)
        note(messages.Over(number, pages))


def _joined(told: list[messages.Arrived]) -> messages.Arrived:
    """Several messages of one load as one."""
    columns = ("positions", "slots", "tiers", "digests", "lost", "reasons")
    joined = (np.concatenate([getattr(it, name) for it in told]) for name in columns)
    return messages.Arrived(told[0].load, *joined)


_ANSWERS: dict[type[Any], Callable[[Answers, Session, Any, Note], Any]] = {
    messages.Find: Answers._find,  # noqa: SLF001 -- a table of its own methods
    messages.Holds: Answers._holds,  # noqa: SLF001
    messages.Fetch: Answers._fetch,  # noqa: SLF001
    messages.Settled: Answers._settled,  # noqa: SLF001
    messages.EndFetch: Answers._end_fetch,  # noqa: SLF001
    messages.Reserve: Answers._reserve,  # noqa: SLF001
    messages.Publish: Answers._publish,  # noqa: SLF001
    messages.Rotate: Answers._rotate,  # noqa: SLF001
    messages.Act: Answers._act,  # noqa: SLF001
    messages.Cancel: Answers._cancel,  # noqa: SLF001
    messages.Announce: Answers._announce,  # noqa: SLF001
    messages.Withdraw: Answers._withdraw,  # noqa: SLF001
    messages.Await: Answers._await,  # noqa: SLF001
    messages.Clear: Answers._clear,  # noqa: SLF001
}
