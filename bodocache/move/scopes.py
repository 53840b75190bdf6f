# SPDX-License-Identifier: Apache-2.0
"""What an action is about: the rows of a session or of a span of a prompt."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bodocache.hints.actions import Session, Span
from bodocache.move import rows as bookkeeping
from bodocache.move.holds import Owner
from bodocache.move.residency import Residency, RowArray
from bodocache.move.sessions import Name, Sessions, leading


@dataclass(frozen=True, slots=True)
class Scope:
    """The pages of a target. ``rows`` go from the chain's beginning to the target's end."""

    owner: Owner
    rows: RowArray  # of pages that lie in some tier
    first: int  # of them, where the target begins
    asked_pages: int
    is_coming: bool  # pages behind ``rows`` are on their way to their first tier
    session: Name | None

    @property
    def pages(self) -> int:
        """Pages of the target that lie in some tier."""
        return max(0, len(self.rows) - self.first)


def of_session(target: Session, sessions: Sessions, residency: Residency) -> Scope | None:
    """The pages of a session; None: it is not known."""
    name = (target.tenant, target.name)
    chain = sessions.find(name)
    if chain is None:
        return None
    return _scope(Owner(*name), chain, 0, len(chain), name, residency)


def of_span(
    target: Span, keys: NDArray[np.uint8], page_tokens: int, residency: Residency
) -> Scope | None:
    """The whole pages in a span of the prompt with ``keys``; None: there is none.

    A page that is only partly in the span counts as in it.
    """
    first = target.start // page_tokens
    stop = len(keys) if target.stop is None else min(len(keys), -(-target.stop // page_tokens))
    if first >= stop:
        return None
    chain = leading(residency.index.find(keys[:stop]))
    name = int(keys[stop - 1 : stop].view("<u8")[0, 0])
    return _scope(Owner(target.tenant, name), chain, first, stop - first, None, residency)


def _scope(
    owner: Owner,
    chain: RowArray,
    first: int,
    asked_pages: int,
    session: Name | None,
    residency: Residency,
) -> Scope:
    records = residency.table.records
    present = bookkeeping.count_present(records, chain)
    is_coming = bool((records["pins"][chain[present : present + 1]] > 0).any())
    return Scope(owner, chain[:present], first, asked_pages, is_coming, session)
