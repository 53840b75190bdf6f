# SPDX-License-Identifier: Apache-2.0
"""What a caller may ask of the cache, on a session or on tokens of a prompt, and the answers."""

import math
from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol, TypeAlias

from bodocache.errors import HintError
from bodocache.hints.reuse import check_seconds, checked_tenant
from bodocache.pages import Tier

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bodocache.match import Match


@dataclass(frozen=True, slots=True)
class Session:
    """The pages of the last request that a tenant sent with ``session=name``."""

    name: str
    tenant: int = 0

    def __post_init__(self) -> None:
        checked_tenant(self.tenant)


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Tokens ``start`` to ``stop`` (None: its end) of a prompt: its tokens, or a match of it."""

    prompt: "Match | NDArray[np.uint32]"
    start: int = 0
    stop: int | None = None
    tenant: int = 0

    def __post_init__(self) -> None:
        checked_tenant(self.tenant)
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise HintError(f"span: tokens {self.start} to {self.stop}: expected 0 <= start < stop")


Target: TypeAlias = Session | Span


class Leave(Enum):
    """When released pages go."""

    WHEN_NEEDED = "when_needed"  # before all others, as soon as room is needed
    AT_ONCE = "at_once"


@dataclass(frozen=True, slots=True, eq=False)
class Retain:
    """Do not evict the pages for ``keep_s`` seconds."""

    on: Target
    keep_s: float
    action_id: str = ""

    def __post_init__(self) -> None:
        check_seconds("retain.keep_s", self.keep_s)


@dataclass(frozen=True, slots=True, eq=False)
class Pin:
    """Do not evict the pages until they are unpinned, or for ``keep_s`` seconds."""

    on: Target
    keep_s: float = math.inf  # as long as the configuration allows
    action_id: str = ""

    def __post_init__(self) -> None:
        check_seconds("pin.keep_s", self.keep_s)


@dataclass(frozen=True, slots=True, eq=False)
class Unpin:
    """End the tenant's pin of the same target."""

    on: Target
    action_id: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Demote:
    """Copy the pages that are the target's alone to tier ``to``; then they leave faster tiers."""

    on: Target
    to: Tier = Tier.DISK
    action_id: str = ""

    def __post_init__(self) -> None:
        if self.to not in (Tier.HOST, Tier.DISK):
            raise HintError(f"demote.to = {self.to!r}: expected Tier.HOST or Tier.DISK")


@dataclass(frozen=True, slots=True, eq=False)
class Prefetch:
    """Read the pages from disk into host memory, those that arrive within ``deadline_s``."""

    on: Target
    deadline_s: float = math.inf
    action_id: str = ""

    def __post_init__(self) -> None:
        check_seconds("prefetch.deadline_s", self.deadline_s)


@dataclass(frozen=True, slots=True, eq=False)
class Release:
    """The pages that are the target's alone are not needed any more; its holds end."""

    on: Target
    leave: Leave = Leave.WHEN_NEEDED
    action_id: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Unknown:
    """An action of an envelope that this cache does not execute: answered as rejected."""

    name: str
    why: str
    action_id: str = ""


Action: TypeAlias = Retain | Pin | Unpin | Demote | Prefetch | Release | Unknown


class Status(Enum):
    """What became of an action."""

    ACCEPTED = "accepted"  # done, or begun, for all pages that were asked for
    CLIPPED = "clipped"  # done or begun for ``pages`` of ``asked_pages``, or until ``until_s``
    DEFERRED = "deferred"  # not now: the reason says what must happen first; ask again
    REJECTED = "rejected"  # not here, or not so
    MISSING = "missing"  # the session is not known, or its pages are in no tier


class Operation(Protocol):
    """Pages on their way between tiers. ``await`` gives how many arrived."""

    def __await__(self) -> Generator[object, None, int]: ...

    def cancel(self) -> None:
        """Begin nothing more; what has arrived stays. Harmless when it is over."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The answer to one action."""

    action_id: str
    action: str  # "retain", ...
    status: Status
    reason: str
    pages: int = 0  # to which it applies
    asked_pages: int = 0
    until_s: float | None = None  # seconds from now for which it holds
    operation: Operation | None = None  # of a prefetch or a demotion that was begun
