# SPDX-License-Identifier: Apache-2.0
"""Decides loads: whether and from where, how much of each, and when it has taken too long.

Only loads whose engines said when they need them. All are looked at together, whenever something of
one has arrived, at most every millisecond; and when nothing arrives that should have. Two looks
must agree on a cut. A rank that follows another decides nothing by its own clock: its engine calls
``load.cut`` and ``load.commit`` with what the other has decided.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bodocache.match import Forecast, Match
from bodocache.move.choice import Choice, Proposal, Why
from bodocache.move.effort import Effort
from bodocache.move.link import Link
from bodocache.move.load import Load
from bodocache.move.outlook import Outlook, Watched, nowhere
from bodocache.move.part import Part
from bodocache.move.queue import CHUNK_S
from bodocache.move.residency import RecomputeModel
from bodocache.move.terms import Terms
from bodocache.move.ticket import PATIENCE_S, Priority
from bodocache.pages import Tier
from bodocache.plan.records import Feature

RowArray = NDArray[np.int64]

GAP_S = 1e-3  # between two looks, at least
LOOKING_SHARE = 0.05  # of the loop's time: where many loads make a look long, there are fewer
LINGER_S = 0.25  # for what storage has begun; longer than a read that is not stuck


Decide = Callable[[Load, Proposal], int | None]
"""Told of every proposal; how many pages to keep, or None: not decided here. For the rank that
decides it returns ``proposal.pages`` and tells the others; for one that follows, None."""


def decide_alone(_: Load, proposal: Proposal) -> int | None:
    """What is proposed is done."""
    return proposal.pages


class Decider:
    """Looks at loads whose engines said when they need them."""

    def __init__(
        self,
        outlook: Outlook,
        links: dict[Tier, Link],
        *,
        lies_in: Callable[[RowArray, Tier], NDArray[np.bool_]],
        is_on: bool,
        now_s: Callable[[], float],
    ) -> None:
        """``is_on``: off, nothing is cut before its deadline (features.tardiness). ``lies_in``:
        whether each row of the page table has a copy in a tier.
        """
        self.cuts = dict.fromkeys(Why, 0)
        self.reroute: Callable[[Part, Tier], None] = lambda _part, _tier: None
        self.leaders: Callable[[RowArray], list[Part]] = lambda _rows: []
        self._outlook = outlook
        self._links = links
        self._lies_in = lies_in
        self._decide: Decide = decide_alone
        self._is_alone = True
        self._is_on = is_on
        self._now_s = now_s
        self._loop = asyncio.get_running_loop()
        self._watched: dict[Load, Watched] = {}
        self._looked_s = -np.inf
        self._timer: asyncio.TimerHandle | None = None
        self._gap_s = GAP_S

    @classmethod
    def of(
        cls,
        links: dict[Tier, Link],
        policy: NDArray[np.void],
        recompute: RecomputeModel,
        *,
        page_nbytes: int,
        layers: int,
        lies_in: Callable[[RowArray, Tier], NDArray[np.bool_]],
        now_s: Callable[[], float],
    ) -> "Decider":
        """For pages of ``page_nbytes`` in ``layers``; what computing takes is learned then."""
        outlook = Outlook(
            links,
            page_nbytes=page_nbytes,
            page_tokens=recompute.page_tokens,
            effort=Effort(recompute.base_s, recompute.slope_s),
            layers=layers,
            switch_s=max(float(policy["switch_s"][0]), CHUNK_S),
        )
        is_on = not int(policy["features_off"][0]) & Feature.TARDINESS
        return cls(outlook, links, lies_in=lies_in, is_on=is_on, now_s=now_s)

    @property
    def effort(self) -> Effort:
        """What engines take to compute, as it is learned."""
        return self._outlook.effort

    def recompute_s(self, pages: int) -> float:
        """Seconds to compute the first ``pages`` of a prompt again."""
        return self._outlook.recompute_s(pages)

    def hear(self, match: Match, pages: int, terms: Terms) -> None:
        """A step computes what of ``match`` is behind its first ``pages``, as ``terms`` say."""
        self.effort.hear(terms, pages, len(match.keys), self._outlook.page_tokens)

    def consult(self, decide: Decide) -> None:
        """Ask ``decide`` from now on: other ranks must do as this one, or this one as they."""
        self._decide, self._is_alone = decide, False

    def before_first_byte(
        self, load: Load, wanted: NDArray[np.int64], sources: NDArray[np.int64]
    ) -> None:
        """Cut what would come later than the engine computes it. Nothing has begun yet."""
        if not self._is_on or not len(wanted):
            return
        self._cut_unpaid(load, wanted[sources == Tier.DISK])
        self._choose_sources(load, wanted, sources)
        template = self._outlook.template(load.terms)
        one = Watched(load, nowhere(len(load.rows)), template)
        one.sources[wanted] = sources
        one.leaders = self.leaders(load.rows[wanted[sources == Tier.DISK]])
        self._watched[load] = one
        load.before_commit = self._before_commit
        load.on_expected = self._expect
        self._apply_first(one)
        one.has_joined = bool(one.leaders)
        load.on_settled(lambda: self._forget(load))

    def too_late_beside(self, part: Part, pages: int) -> None:
        """A window found that its engine computes ``part`` sooner from its page ``pages`` on.

        Nothing of it has begun.
        """
        load, position = part.load, int(part.positions[pages])
        if load in self._watched and load.committed is None and position < load.wanted:
            kept = self._decide(load, Proposal(position, Why.BEFORE))
            if kept is not None and kept < load.wanted:
                self._count(load, Why.BEFORE)
                load.cut(kept)

    def watch(self, part: Part) -> None:
        """``part`` is about to wait for its turn."""
        one = self._watched.get(part.load)
        if one is not None:
            one.parts.append(part)
            one.sources[part.positions] = part.source
            self._look_again(self._patience_s)

    def progress(self, part: Part) -> None:
        """Something of ``part`` has arrived, or failed."""
        self.progress_of(part.load)

    def progress_of(self, load: Load) -> None:
        """Something of ``load`` has arrived, or failed."""
        if load in self._watched:
            left_s = self._looked_s + self._gap_s - self._now_s()
            if left_s <= 0:
                self._look()
            else:
                self._look_again(left_s)

    def watch_deadline(self, load: Load) -> None:
        """End ``load`` at its deadline, if it has one."""
        if math.isfinite(load.deadline_s) and not load.done:
            delay_s = max(0.0, load.deadline_s - self._now_s())
            timer = self._loop.call_later(delay_s, self.too_late, load)
            load.on_settled(timer.cancel)

    def too_late(self, load: Load) -> None:
        """The deadline has passed: what has landed is the result."""
        if load.done:
            return
        if self._decide(load, Proposal(load.landed, Why.DEADLINE)) is not None:
            self._count(load, Why.DEADLINE)
            load.settle()
            load.abandon()

    def forecast(self, tiers: NDArray[np.uint8]) -> Forecast | None:
        """When a load that comes now would be there; None where a link was never measured."""
        mean_s = finish_s = 0.0
        due_s = self._now_s() + PATIENCE_S[Priority.LOAD]
        for tier, link in self._links.items():
            nbytes = int(np.count_nonzero(tiers == tier)) * self._outlook.page_nbytes
            if nbytes:
                one = link.predict(nbytes, link.queue.ahead_of(due_s))
                if one is None:
                    return None
                mean_s = max(mean_s, one.mean_s - one.made_s)
                finish_s = max(finish_s, one.finish_s - one.made_s)
        return Forecast(mean_s, finish_s, self._outlook.recompute_s(len(tiers)))

    def backend_deadline_s(self, load: Load) -> float:
        """When storage gives up by itself: where others decide, it does not.

        A little after the load does: what is in flight then is not lost to those that joined.
        """
        return load.deadline_s + LINGER_S if self._is_alone else np.inf

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _count(self, load: Load, why: Why) -> None:
        self.cuts[why] += 1
        load.was_cut = why

    def _forget(self, load: Load) -> None:
        del self._watched[load]
        if not self._watched:
            self.close()

    def _cut_unpaid(self, load: Load, from_disk: RowArray) -> None:
        """Let the engine compute what its tenant's credits will not have paid for in time."""
        due_s = load.terms.due_s(load.begun_s)
        payable_nbytes = self._links[Tier.DISK].payable_nbytes(load.terms.tenant, due_s)
        paid = payable_nbytes / self._outlook.page_nbytes
        if not len(from_disk) or paid >= len(from_disk):
            return
        keep = int(from_disk[max(0, int(paid))])
        pages = self._decide(load, Proposal(keep, Why.UNPAID))
        if pages is not None and pages < load.wanted:
            self._count(load, Why.UNPAID)
            load.cut(pages)

    def _expect(self, load: Load, start_s: float, n_waiting: float) -> None:
        """The engine is free at another time than it said."""
        one, now_s = self._watched.get(load), self._now_s()
        if one is None:
            return
        load.terms = replace(load.terms, start_s=now_s + start_s, n_waiting=n_waiting)
        one.template = self._outlook.template(load.terms)
        self._look_again(max(0.0, self._looked_s + self._gap_s - now_s))

    def _before_commit(self, load: Load) -> None:
        if load in self._watched:
            self._look()

    def _look_again(self, delay_s: float) -> None:
        """Look in ``delay_s``, or before."""
        at_s = self._loop.time() + delay_s
        if self._timer is not None:
            if self._timer.when() <= at_s:
                return
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, self._look_by_timer)

    def _look_by_timer(self) -> None:
        self._timer = None
        if self._watched:
            self._look()

    def _apply_first(self, one: Watched) -> None:
        """Decide a load before its first byte, behind and beside all others."""
        now_s, watched = self._now_s(), list(self._watched.values())
        choice = self._outlook.look(watched, now_s)[-1]
        if choice is not None:
            self._apply(one, choice, now_s)

    def _choose_sources(self, load: Load, wanted: RowArray, sources: NDArray[np.int64]) -> None:
        """Read from disk what lies on the host too, where that is predicted to be sooner."""
        on_host = np.flatnonzero(sources == Tier.HOST)
        if not len(on_host):
            return
        on_both = on_host[self._lies_in(load.rows[wanted[on_host]], Tier.DISK)]
        if len(on_both) and self._is_sooner(load, len(on_both), Tier.DISK, Tier.HOST):
            sources[on_both] = Tier.DISK

    def _is_sooner(self, load: Load, pages: int, tier: Tier, than: Tier) -> bool:
        """Whether ``pages`` are predicted to come sooner, by more than a chunk, from ``tier``."""
        due_s = load.terms.due_s(self._now_s())
        there, here = (
            self._links[one].predict(
                pages * self._outlook.page_nbytes, self._links[one].queue.ahead_of(due_s)
            )
            for one in (tier, than)
        )
        return bool(there and here and there.finish_s + CHUNK_S < here.finish_s)

    @property
    def _patience_s(self) -> float:
        """Until the next look: with the one that has to agree, a chunk, of a page at least."""
        return max(self._gap_s, max(CHUNK_S, self._outlook.page_s) - GAP_S)

    def _look(self) -> None:
        begun_s = self._now_s()
        self._look_at_all()
        self._gap_s = max(GAP_S, (self._now_s() - begun_s) / LOOKING_SHARE)

    def _look_at_all(self) -> None:
        self._looked_s = now_s = self._now_s()
        watched = list(self._watched.values())
        choices = self._outlook.look(watched, now_s)
        for one, choice in zip(watched, choices, strict=True):
            if choice is not None and not one.load.done:
                one.cut_at = choice.cut_at
                self._apply(one, choice, now_s)
        if any(one.cut_at >= 0 for one in self._watched.values()):
            self._look_again(self._gap_s)  # once more, and it is cut
        elif any(one.is_begun for one in self._watched.values()):
            self._look_again(self._patience_s)

    def _apply(self, one: Watched, choice: Choice, now_s: float) -> None:
        load = one.load
        load.outlook = choice
        if choice.is_whole:
            self._order(one, choice, now_s)
            return
        if one.is_begun and self._nearly_over(one):
            return
        why = Why.TARDY if one.is_begun else Why.BEFORE
        pages = self._decide(load, Proposal(choice.pages, why))
        if pages is not None and pages < load.wanted:
            self._count(load, why)
            one.cut_at = -1
            load.cut(pages)

    def _order(self, one: Watched, choice: Choice, now_s: float) -> None:
        """Let a load that its link cannot serve in time go after those that it can."""
        due_s, last_s = one.load.terms.due_s(one.load.begun_s), now_s + PATIENCE_S[Priority.LOAD]
        for part in list(one.parts):
            if part.is_over or part.ticket is None:
                continue
            first_s, late_s = (min(one_s, part.joined_due_s) for one_s in (due_s, last_s))
            if not choice.is_demoted and np.isfinite(due_s) and part.ticket.due_s != first_s:
                part.link.queue.start(part.ticket, first_s)
            elif choice.is_demoted and part.ticket.due_s < late_s - GAP_S:
                part.link.queue.start(part.ticket, min(max(due_s, last_s), part.joined_due_s))
            if choice.late_s > 0 and len(part.left):
                self._ask_another(part)

    def _ask_another(self, part: Part) -> None:
        """What turned late and has not begun may come sooner from another tier that holds it."""
        other = Tier.HOST if part.source is Tier.DISK else Tier.DISK
        pages = np.count_nonzero(self._lies_in(part.rows[part.left], other))
        if pages and self._is_sooner(part.load, int(pages), other, part.source):
            self.reroute(part, other)

    def _nearly_over(self, one: Watched) -> bool:
        """Whether no more is left than two chunks, of a page each at least: a cut is no sooner."""
        for part in (*one.parts, *one.leaders):
            known = part.link.estimate()
            if known is None:
                return False
            if part.left_nbytes > 2 * max(part.page_nbytes, CHUNK_S * known.rate):
                return False
        return True
