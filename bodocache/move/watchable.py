# SPDX-License-Identifier: Apache-2.0
"""What is watched: an orchestrator in-process, a node's host, or an engine on a node."""

from collections.abc import Mapping
from typing import Protocol

from bodocache.hints.stats import HintStats
from bodocache.move.choice import Why
from bodocache.move.link import Link
from bodocache.move.requests import Requests
from bodocache.move.residency import Residency
from bodocache.move.windows import Unplanned
from bodocache.move.worth import Worth
from bodocache.pages import Tier


class Hinted(Protocol):
    """Who counts hints."""

    def stats(self) -> HintStats:
        """Everything counted."""
        ...


class Watchable(Protocol):
    """What metrics, timelines and ``why`` read. Nothing of it is changed; all on its loop."""

    def now_s(self) -> float:
        """Its clock."""
        ...

    @property
    def residency(self) -> Residency:
        """Where its pages lie."""
        ...

    @property
    def links(self) -> Mapping[str, Link]:
        """Its links, by name."""
        ...

    @property
    def requests(self) -> Requests:
        """The newest requests, and what was counted of all."""
        ...

    @property
    def worth(self) -> Worth:
        """What it gains."""
        ...

    @property
    def hints(self) -> Hinted:
        """Hints of callers."""
        ...

    @property
    def hits(self) -> Mapping[Tier, int]:
        """Pages that loads delivered, by the tier they lay in."""
        ...

    @property
    def decided_cuts(self) -> Mapping[Why, int]:
        """Loads that were cut."""
        ...

    @property
    def unplanned(self) -> Mapping[Unplanned, int]:
        """Windows that were not planned."""
        ...

    @property
    def joined(self) -> int:
        """Pages that were on their way for another load."""
        ...

    @property
    def failed_checks(self) -> int:
        """Pages whose bytes failed their digest."""
        ...

    @property
    def credit_waits(self) -> int:
        """Chunks that waited for their tenant's credits."""
        ...

    @property
    def not_admitted(self) -> int:
        """Pages that were not written to disk."""
        ...

    @property
    def task_failures(self) -> int:
        """Background tasks that raised."""
        ...
