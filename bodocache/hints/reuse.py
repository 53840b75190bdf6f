# SPDX-License-Identifier: Apache-2.0
"""What the caller of one request knows of its next use. All times are seconds from now."""

import math
from dataclasses import dataclass
from itertools import count

import numpy as np

from bodocache.errors import HintError
from bodocache.pages import NOBODY

PRIORITIES = range(101)
REQUESTS_PER_ENGINE = 1 << 40  # requests of two engines on a node have different numbers
MOST_TENANT = NOBODY - 1  # as many as a page's record can name
DEFAULT_PRIORITY = 35  # TensorRT-LLM's: what pages have of whom nothing is said

_numbers = count(1)


@dataclass(frozen=True, slots=True)
class TokenRange:
    """What is said of tokens ``start`` to ``stop`` (None: the prompt's end) of a prompt.

    A page that is partly in it counts as in it; of several ranges the greatest value counts.
    """

    start: int = 0
    stop: int | None = None
    priority: int = DEFAULT_PRIORITY
    priority_s: float = math.inf  # for how long the priority holds; then it is the default again
    keep_s: float | None = None  # not evicted before

    def __post_init__(self) -> None:
        is_span = self.start >= 0 and (self.stop is None or self.stop > self.start)
        if not is_span:
            raise HintError(
                f"range: tokens {self.start} to {self.stop}: expected 0 <= start < stop; leave"
                " stop out for the prompt's end"
            )
        check_priority(self.priority)
        check_seconds("range.priority_s", self.priority_s)
        check_seconds("range.keep_s", self.keep_s)

    def pages(self, page_tokens: int, num_pages: int) -> range:
        """The pages of a prompt of ``num_pages`` that are at least partly in it."""
        stop = num_pages if self.stop is None else -(-self.stop // page_tokens)
        return range(min(self.start // page_tokens, num_pages), min(stop, num_pages))


@dataclass(frozen=True, slots=True)
class Reuse:
    """What is known of the next use of a request's pages: say what you know, leave out the rest.

    How likely and how soon is weighed by how often it was right before; a wrong one costs a
    recompute, never a byte.
    """

    probability: float | None = None  # that the conversation goes on
    expected_s: float | None = None  # mean time until it does
    end_of_conversation: bool = False
    priority: int = DEFAULT_PRIORITY
    priority_s: float = math.inf
    keep_s: float | None = None  # not evicted before, within the tenant's share
    ranges: tuple[TokenRange, ...] = ()

    def __post_init__(self) -> None:
        if self.probability is not None and not 0.0 <= self.probability <= 1.0:
            raise HintError(f"reuse.probability = {self.probability}: expected 0 to 1, or None")
        if self.end_of_conversation and (self.probability or self.expected_s is not None):
            raise HintError(
                "reuse: end_of_conversation beside a probability or expected_s of going on; say one"
            )
        check_priority(self.priority)
        check_seconds("reuse.priority_s", self.priority_s)
        check_seconds("reuse.expected_s", self.expected_s)
        check_seconds("reuse.keep_s", self.keep_s)
        if not all(isinstance(it, TokenRange) for it in self.ranges):
            raise HintError("reuse.ranges: expected a tuple of TokenRange")

    def chance(self, horizon_s: float) -> float:
        """The said chance of a use within ``horizon_s``; NaN where nothing is said of it.

        ``p * (1 - exp(-horizon / expected))``: a next use after an exponential time.
        """
        if self.end_of_conversation:
            return 0.0
        if self.probability is None and self.expected_s is None:
            return math.nan
        chance = 1.0 if self.probability is None else self.probability
        if self.expected_s:
            chance *= -math.expm1(-horizon_s / self.expected_s)
        return chance

    @property
    def is_about_tokens(self) -> bool:
        """Whether a priority or a time to keep is said of anything."""
        whole = (self.priority, self.keep_s) != (DEFAULT_PRIORITY, None)
        return whole or bool(self.ranges)

    def all_ranges(self) -> tuple[TokenRange, ...]:
        """What is said of the whole prompt, as a range, and the ranges."""
        whole = TokenRange(0, None, self.priority, self.priority_s, self.keep_s)
        return (whole, *self.ranges)


@dataclass(frozen=True, slots=True)
class Said:
    """What came with one request, and whose it is. Every match has a number of its own.

    On a node it is that of the engine's epoch, times REQUESTS_PER_ENGINE, and the engine's own.
    """

    request: int = 0
    reuse: Reuse | None = None
    session: str | None = None
    tenant: int = 0

    @classmethod
    def with_request(cls, reuse: Reuse | None, session: str | None, tenant: int) -> "Said":
        """What is said with a request that begins now."""
        return cls(next(_numbers)).overridden(reuse, session, tenant)

    def overridden(self, reuse: Reuse | None, session: str | None, tenant: int | None) -> "Said":
        """The same, with what is not None in its place."""
        if reuse is None and session is None and tenant is None:
            return self
        if reuse is not None and not isinstance(reuse, Reuse):
            raise HintError(f"reuse: {type(reuse).__name__}; expected a Reuse")
        if session is not None and not (isinstance(session, str) and session):
            raise HintError("session: expected a text that is not empty, or None")
        whose = self.tenant if tenant is None else checked_tenant(tenant)
        return Said(self.request, reuse or self.reuse, session or self.session, whose)

    @property
    def is_silent(self) -> bool:
        """Whether nothing is said."""
        return self.reuse is None and self.session is None


def request_name(number: int) -> str:
    """A request's number as people say it: that of an engine on a node as EPOCH.NUMBER."""
    epoch, own = divmod(number, REQUESTS_PER_ENGINE)
    return f"{epoch}.{own}" if epoch else str(own)


def checked_tenant(tenant: int) -> int:
    """``tenant`` as an int; HintError unless it is an integer that a record can hold."""
    is_integer = isinstance(tenant, int | np.integer) and not isinstance(tenant, bool)
    if not (is_integer and 0 <= tenant <= MOST_TENANT):
        raise HintError(f"tenant = {tenant!r}: expected an integer from 0 to {MOST_TENANT}")
    return int(tenant)


def check_priority(priority: int) -> None:
    """Raise HintError unless ``priority`` is an integer from 0 to 100."""
    if isinstance(priority, bool) or priority not in PRIORITIES:
        raise HintError(
            f"priority = {priority}: expected an integer from 0 (first to go) to 100; default 35"
        )


def seconds_of(number: float) -> float:
    """``number`` as a float; an integer too large for one is without end."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def check_seconds(name: str, seconds: float | None) -> None:
    """Raise HintError unless ``seconds`` are 0 or more, or None."""
    if seconds is not None and not seconds >= 0:
        raise HintError(f"{name} = {seconds}: expected seconds from now, >= 0")
