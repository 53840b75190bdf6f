# SPDX-License-Identifier: Apache-2.0
"""What is predicted of the loads under way, as plan/late.py decides them: records in, choices out.

A page that is read from disk goes on to the device from the thread that reads it: it crosses the
first link, and on the second it counts one byte, so that what it waits for is not forgotten. A load
without pages from the host has a second link of its own, which takes no time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bodocache.move.choice import Choice
from bodocache.move.effort import Effort
from bodocache.move.link import Link
from bodocache.move.listing import DISK, MAX_BOUNDARIES, list_load
from bodocache.move.load import Load
from bodocache.move.part import Part
from bodocache.move.terms import Terms
from bodocache.pages import NOWHERE, Tier
from bodocache.plan import late, loads
from bodocache.plan.records import LINK

_WHOLE = int(loads.Verdict.WHOLE)
_AT_ONCE = np.zeros((), LINK)  # a link that takes no time, or that none of the loads needs
_AT_ONCE["rate"] = 1e15


@dataclass(slots=True, eq=False)
class Watched:
    """A load that may be cut, and what was seen of it."""

    load: Load
    sources: NDArray[np.int64]  # of each page: the Tier it comes from, or NOWHERE
    template: NDArray[np.void]  # LOAD[1]
    parts: list[Part] = field(default_factory=list)
    leaders: list[Part] = field(default_factory=list)  # of other loads, that it joined
    has_joined: bool = False  # them: it waits for what they bring
    cut_at: int = -1  # tokens at which it was last to be cut; -1: nowhere

    @property
    def is_begun(self) -> bool:
        """Whether it waits or moves already."""
        return self.has_joined or bool(self.parts)


class Outlook:
    """Predicts loads on the links as they are measured; keeps its memory from look to look."""

    def __init__(
        self,
        links: dict[Tier, Link],
        *,
        page_nbytes: int,
        page_tokens: int,
        effort: Effort,
        layers: int,
        switch_s: float,
    ) -> None:
        self._links = (links[Tier.DISK], links[Tier.HOST])
        self.page_nbytes = page_nbytes
        self.page_tokens = page_tokens
        self.effort = effort
        self._layers = layers
        self._switch_s = switch_s
        self._is_known = np.zeros(len(self._links), np.bool_)
        self._sizes = np.array([page_nbytes, page_tokens, layers])
        self._records = np.full(len(self._links) + 1, _AT_ONCE)
        self._shared: list[NDArray[np.int64]] = []  # rows that an earlier load has read, if any
        self.page_s = 0.0  # that a page takes on the slower link, when last looked at
        self._room = 0
        self._grow(4)

    def look(self, watched: Sequence[Watched], now_s: float) -> list[Choice | None]:
        """The best for each of ``watched``; None where too little is known, or it is committed.

        They are served in the order of their deadlines.
        """
        if len(watched) > self._room:
            self._grow(2 * len(watched))
        choices: list[Choice | None] = [None] * len(watched)
        dues_s = [one.load.terms.due_s(now_s) for one in watched]
        order = sorted(range(len(watched)), key=dues_s.__getitem__)
        self._measure(watched, min(dues_s, default=np.inf))
        self._shared = [np.empty(0, np.int64)] if any(one.leaders for one in watched) else []
        listed: list[tuple[int, int]] = []
        end = 0
        for i in order:
            count = self._list(watched[i], dues_s[i], now_s, len(listed), end)
            if count:
                listed.append((i, end))
                end += count
        if not listed:
            return choices
        window = loads.Loads(
            self._loads[: len(listed)], self._bounds[:end], self._first[:end], self._second[:end]
        )
        late.decide(window, self._records, self._switch_s, now_s, self._scratch, self._decisions)
        for k, (i, first) in enumerate(listed):
            choices[i] = self._choice(k, first)
        return choices

    def recompute_s(self, pages: int) -> float:
        """Seconds to compute the first ``pages`` of a prompt again."""
        return self.effort.recompute_s(pages * self.page_tokens)

    def _measure(self, watched: Sequence[Watched], first_due_s: float) -> None:
        """The links as they are believed now, and what others have queued ahead of the loads."""
        tickets = {part.ticket for one in watched for part in (*one.parts, *one.leaders)}
        self.page_s = 0.0
        for k, link in enumerate(self._links):
            record = link.record(link.queue.ahead_of(first_due_s, without=tickets))
            self._is_known[k] = record is not None
            self._records[k] = _AT_ONCE if record is None else record[0]
            if (known := link.estimate()) is not None:
                self.page_s = max(self.page_s, self.page_nbytes / known.rate)

    def _list(self, one: Watched, due_s: float, now_s: float, k: int, end: int) -> int:
        """Write load k, and its boundaries from ``end`` on; return how many.

        None where nothing of it is to come, or a link that it needs was never measured.
        """
        load = one.load
        if load.done or load.committed is not None:
            return 0
        count = int(
            list_load(
                *(self._loads, k, one.template, due_s, now_s, one.is_begun, one.cut_at),
                load.arrivals.whole_layers,
                one.sources,
                load.wanted,
                self._sizes,
                self._is_known,
                self._bounds,
                self._first,
                self._second,
                end,
            )
        )
        if count and self._shared:
            self._count_once(one, end, count)
        return count

    def _count_once(self, one: Watched, end: int, count: int) -> None:
        """Count one byte for pages that are read for a load before, not all of them again."""
        bounds = self._bounds[end : end + count] // self.page_tokens
        rows = one.load.rows[: one.load.wanted]
        missing = one.load.arrivals.missing(len(rows))
        from_disk = missing & (one.sources[: len(rows)] == Tier.DISK)
        from_disk[: bounds[0]] = False
        is_again = from_disk & np.isin(rows, np.concatenate(self._shared))
        again = np.append(0, np.cumsum(is_again))[bounds] * (self.page_nbytes - 1)
        self._first[end : end + count] -= again[:, None]
        self._shared.append(rows[from_disk])

    def template(self, terms: Terms) -> NDArray[np.void]:
        """LOAD[1] with what stays the same from look to look; ``wait_s`` is when it starts."""
        record = np.zeros(1, loads.LOAD)
        record["wait_s"] = -np.inf if terms.start_s is None else terms.start_s
        record["new_compute_s"] = terms.compute_s.sum() if terms.is_layered else 0.0
        record["token_s"], record["slope_s"] = self.effort.token_s, self.effort.slope_s
        record["n_waiting"] = terms.n_waiting
        record["layers"] = self._layers if terms.is_layered else 0
        record["links"], record["copies"] = DISK, 1
        return record

    def _choice(self, k: int, first: int) -> Choice:
        verdict, _, cut, cut_at, finish_s, late_s, step_s, demoted, head, ahead = self._decisions[
            k
        ].item()
        return Choice(
            pages=int(self._bounds[first + cut]) // self.page_tokens,
            is_whole=verdict == _WHOLE,
            is_demoted=bool(demoted),
            cut_at=cut_at,
            finish_s=finish_s,
            late_s=late_s,
            step_s=step_s,
            head_layers=head,
            layers_ahead=ahead,
        )

    def _grow(self, room: int) -> None:
        most = room * (MAX_BOUNDARIES + 2)
        self._room = room
        self._loads = np.zeros(room, loads.LOAD)
        self._decisions = np.zeros(room, loads.DECISION)
        self._bounds = np.empty(most, np.int64)
        self._first = np.empty((most, loads.COPIES), np.int64)
        self._second = np.empty(most, np.int64)
        self._scratch = loads.scratch_for(room, len(self._records))


def nowhere(pages: int) -> NDArray[np.int64]:
    """Sources of a load of which nothing is known yet."""
    return np.full(pages, NOWHERE)
