# SPDX-License-Identifier: Apache-2.0
"""The built-in workloads by name: shapes of conversations, each with the figures that suit it.

``chat`` is workload.py's. The others are what an eviction policy meets elsewhere: documents that
are asked about and forgotten, agents that fork, hundreds of tenants, and a tenant that scans.
Equal names, seeds and numbers of requests give equal requests; fewer are a prefix of more.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any, NamedTuple

from numpy.random import Generator

from bodocache.errors import ConfigError
from bodocache.replay.requests import TraceRequest
from bodocache.replay.workload import Shape, Spread, Turn, WorkloadConfig, chat, generate

SCANNER = "scanner"  # the tenant
_SCAN_IDS = 1 << 40  # ids of scanned pages begin here, far from those of conversations
_OWN_DOCUMENT = 0.5  # share of conversations whose document nobody else asks about
_FORKING = 1 / 12  # of an agent's steps begin sub-agents,
_FORKS = 3  # so many,
_FORK_STEPS = 4.0  # of so many steps each, on average: as many steps as the agents' own
_STEP_S = Spread(4, 0.9, 0.3, 300)  # a tool runs


def document(config: WorkloadConfig, rng: Generator) -> Iterator[Turn]:
    """Yield questions about one document, each behind the document alone, not behind the others.

    The document is the conversation's own (``first_tokens``), or the shared prompt: a popular one.
    """
    asked = config.next_tokens.draw_tokens(rng)
    owned = config.first_tokens.draw_tokens(rng) if rng.random() < _OWN_DOCUMENT else 0
    wait_s, dropped, new = 0.0, 0, owned + asked
    for _ in range(int(rng.geometric(1 / config.mean_turns))):
        answered = config.output_tokens.draw_tokens(rng)
        yield Turn(wait_s, new, answered, dropped)
        wait_s, dropped = config.think_s.draw(rng), asked + answered
        new = asked = config.next_tokens.draw_tokens(rng)


def agent(config: WorkloadConfig, rng: Generator) -> Iterator[Turn]:
    """Yield steps seconds apart, each with a tool's output; some fork sub-agents off.

    With its sub-agents an agent makes ``mean_turns`` steps on average.
    """
    forked = _FORKING * _FORKS * _FORK_STEPS
    message = config.first_tokens
    for turn in _steps(config, rng, max(1.0, config.mean_turns / (1 + forked)), message):
        forking = rng.random() < _FORKING
        forks = [_steps(config, rng, _FORK_STEPS, config.next_tokens) for _ in range(_FORKS)]
        yield turn._replace(forks=tuple(forks) if forking else ())


def _steps(config: WorkloadConfig, rng: Generator, mean: float, message: Spread) -> Iterator[Turn]:
    wait_s = 0.0
    for _ in range(int(rng.geometric(1 / mean))):
        yield Turn(wait_s, message.draw_tokens(rng), config.output_tokens.draw_tokens(rng))
        wait_s, message = config.think_s.draw(rng), config.next_tokens


@dataclass(frozen=True, slots=True)
class Scan:
    """A tenant that streams pages nobody uses again, in requests of ``request_pages`` each."""

    pages: int  # a time
    begin_s: float
    pages_per_s: float
    request_pages: int = 64
    period_s: float = 0.0  # from one time to the next; 0: once

    def __post_init__(self) -> None:
        if not (min(self.pages, self.request_pages) >= 1 and self.pages_per_s > 0):
            raise ConfigError(f"{self}: expected pages, request_pages and pages_per_s above 0")
        if min(self.begin_s, self.period_s) < 0:
            raise ConfigError(f"{self}: expected begin_s and period_s of at least 0")

    def requests(self, page_tokens: int) -> Iterator[TraceRequest]:
        """Yield the requests in order of time, for ever where there is a period."""
        ids = count(_SCAN_IDS)
        for number in count() if self.period_s else (0,):
            for done in range(0, self.pages, self.request_pages):
                at_s = self.begin_s + number * self.period_s + done / self.pages_per_s
                pages = tuple(islice(ids, min(self.request_pages, self.pages - done)))
                tokens = len(pages) * page_tokens
                yield TraceRequest(int(at_s * 1000), tokens, 1, pages, SCANNER)


def with_scan(
    requests: Iterator[TraceRequest], scan: Scan, page_tokens: int
) -> Iterator[TraceRequest]:
    """Yield ``requests`` and the scan's between them, by time."""
    scanned = scan.requests(page_tokens)
    return heapq.merge(requests, scanned, key=lambda request: request.timestamp_ms)


class Workload(NamedTuple):
    """A shape and the figures that suit it."""

    name: str
    shape: Shape
    config: WorkloadConfig
    scan: Scan | None = None

    def requests(self) -> Iterator[TraceRequest]:
        """Yield ``config.requests`` requests in order of time."""
        found = generate(self.config, self.shape)
        if self.scan is not None:
            found = with_scan(found, self.scan, self.config.page_tokens)
        return islice(found, self.config.requests)


_DOCUMENTS = WorkloadConfig(
    prompts_per_tenant=40,
    prompt_zipf=1.0,
    mean_turns=6,
    think_s=Spread(45, 1.0, 2, 1800),
    prompt_tokens=Spread(12_000, 0.8, 1_000, 50_000),
    first_tokens=Spread(16_000, 0.8, 2_000, 60_000),
    next_tokens=Spread(80, 0.8, 8, 2_000),
)
_AGENTS = WorkloadConfig(
    requests_per_s=8.0,
    prompts_per_tenant=3,
    mean_turns=24,
    think_s=_STEP_S,
    prompt_tokens=Spread(9_000, 0.4, 4_000, 24_000),
    first_tokens=Spread(600, 1.0, 32, 8_192),
    next_tokens=Spread(700, 1.4, 16, 32_768),
    output_tokens=Spread(150, 0.8, 1, 2000),
)

_NAMED = (
    Workload("chat", chat, WorkloadConfig()),
    Workload("documents", document, _DOCUMENTS),
    Workload("agents", agent, _AGENTS),
    Workload("tenants", chat, WorkloadConfig(tenants=400, tenant_zipf=1.0)),
    Workload("scans", chat, WorkloadConfig(), Scan(4_000, 120, 200, period_s=600)),
)
WORKLOADS = {workload.name: workload for workload in _NAMED}


def workload(name: str, **changes: float | None) -> Workload:
    """The workload of that name, with the fields of its config in ``changes`` that are not None.

    Raises:
        ConfigError: there is no such workload, or a field is out of range.
    """
    if name not in WORKLOADS:
        raise ConfigError(f"workload: got {name!r}, expected one of {', '.join(WORKLOADS)}")
    found = WORKLOADS[name]
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    return found._replace(config=replace(found.config, **given))
