# SPDX-License-Identifier: Apache-2.0
"""The built-in workload: multi-turn chats over shared system prompts of several tenants.

A shape is a function that yields the turns of one conversation (:func:`chat`; shapes.py has more);
all else here serves any shape: arrivals, the merge by time, and the ids of pages. Memory is bounded
by the conversations open at one moment. Equal configurations give equal requests.
"""

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from typing import NamedTuple

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from bodocache.errors import ConfigError
from bodocache.replay.requests import TraceRequest


@dataclass(frozen=True, slots=True)
class Spread:
    """A log-normal quantity by its median and the sigma of its logarithm, clipped to a range."""

    median: float
    sigma: float
    least: float
    most: float

    def __post_init__(self) -> None:
        if not (0 < self.least <= self.median <= self.most < math.inf and 0 <= self.sigma <= 10):
            raise ConfigError(f"{self}: expected 0 < least <= median <= most, and sigma in 0..10")

    def draw(self, rng: Generator) -> float:
        """Draw one value."""
        value = self.median * math.exp(self.sigma * float(rng.standard_normal()))
        return min(max(value, self.least), self.most)

    def draw_tokens(self, rng: Generator) -> int:
        """Draw a whole number, at least 1."""
        return max(1, int(self.draw(rng)))


@dataclass(frozen=True, slots=True)
class WorkloadConfig:
    """What is generated. With the defaults an infinite cache hits on about half of all touches.

    Conversations arrive as a Poisson process of two states: calm, and bursts ``burst_factor``
    times as dense. ``requests_per_s`` is the mean over both, in the long run.
    """

    seed: int = 7
    requests: int = 600
    requests_per_s: float = 1.0
    tenants: int = 4
    tenant_zipf: float = 0.8  # the i-th tenant's share of the traffic ~ 1 / i^0.8
    prompts_per_tenant: int = 6
    prompt_zipf: float = 1.1  # popularity of a tenant's i-th system prompt ~ 1 / i^1.1
    page_tokens: int = 512
    context_tokens: int = 131_072  # a conversation ends before it outgrows this
    mean_turns: float = 2.5  # geometric
    burst_factor: float = 8.0
    calm_s: float = 90.0  # mean length of a calm, exponential
    burst_s: float = 10.0  # mean length of a burst, exponential
    think_s: Spread = Spread(120, 1.0, 5, 3600)
    prompt_tokens: Spread = Spread(1800, 0.6, 600, 8192)
    first_tokens: Spread = Spread(2600, 1.1, 16, 65_536)
    next_tokens: Spread = Spread(900, 1.1, 8, 32_768)
    output_tokens: Spread = Spread(350, 0.8, 1, 2000)

    def __post_init__(self) -> None:
        for name in ("requests", "tenants", "prompts_per_tenant", "page_tokens", "context_tokens"):
            self._check_count(name, least=1)
        self._check_count("seed", least=0)
        for name in ("mean_turns", "burst_factor"):
            self._check_number(name, least=1)
        for name in ("requests_per_s", "calm_s", "burst_s"):
            self._check_number(name, least=1e-6)
        for name in ("tenant_zipf", "prompt_zipf"):
            self._check_number(name, least=0)
        opening = self.prompt_tokens.most + self.first_tokens.most
        if opening > self.context_tokens:
            raise ConfigError(
                f"workload.context_tokens: got {self.context_tokens}, expected at least "
                f"{opening:.0f} (prompt_tokens.most + first_tokens.most)"
            )

    def _check_count(self, name: str, *, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"workload.{name}: got {value}, expected an integer >= {least}")

    def _check_number(self, name: str, *, least: float) -> None:
        value = getattr(self, name)
        if not least <= value < math.inf:
            raise ConfigError(f"workload.{name}: got {value}, expected a number >= {least:g}")


class Turn(NamedTuple):
    """One request of a conversation, made ``wait_s`` after the one before it."""

    wait_s: float
    new_tokens: int
    output_tokens: int
    dropped_tokens: int = 0  # that the end of the context loses before the new ones come
    forks: "tuple[Iterator[Turn], ...]" = ()  # conversations that go on from here, beside this one


Shape = Callable[[WorkloadConfig, Generator], Iterator[Turn]]


def chat(config: WorkloadConfig, rng: Generator) -> Iterator[Turn]:
    """Yield the turns of a chat: a first message, then shorter ones after log-normal thought."""
    wait_s, message = 0.0, config.first_tokens
    for _ in range(int(rng.geometric(1 / config.mean_turns))):
        yield Turn(wait_s, message.draw_tokens(rng), config.output_tokens.draw_tokens(rng))
        wait_s, message = config.think_s.draw(rng), config.next_tokens


def generate(config: WorkloadConfig, shape: Shape = chat) -> Iterator[TraceRequest]:
    """Yield ``config.requests`` requests in order of time, page ids in order of appearance."""
    rng = Generator(PCG64(config.seed))
    world = _World(config, rng, shape)
    return islice(_merge(_arrivals(config, rng), world), config.requests)


@dataclass(slots=True)
class _Conversation:
    tenant: str
    turns: Iterator[Turn]
    pages: list[int]  # ids of the whole pages of the context
    context_tokens: int

    def ask(self, turn: Turn, at_s: float, page_tokens: int, ids: Iterator[int]) -> TraceRequest:
        """Make a request: earlier whole pages, then new ones; a page not filled ends it."""
        kept = self.context_tokens - turn.dropped_tokens
        del self.pages[kept // page_tokens :]
        asked = kept + turn.new_tokens
        whole, rest = divmod(asked, page_tokens)
        self.pages.extend(islice(ids, whole - len(self.pages)))
        self.context_tokens = asked + turn.output_tokens
        unfilled = (next(ids),) if rest else ()
        hash_ids = (*self.pages, *unfilled)
        return TraceRequest(int(at_s * 1000), asked, turn.output_tokens, hash_ids, self.tenant)

    def fork(self, turns: Iterator[Turn]) -> "_Conversation":
        """Begin another conversation of the same tenant on this one's context."""
        return _Conversation(self.tenant, turns, self.pages.copy(), self.context_tokens)


@dataclass(slots=True)
class _World:
    """What conversations share: the source of chance, page ids and the system prompts."""

    config: WorkloadConfig
    rng: Generator
    shape: Shape
    ids: Iterator[int] = field(default_factory=count)
    prompts: dict[tuple[int, int], tuple[int, list[int]]] = field(default_factory=dict)

    def begin(self) -> _Conversation:
        config = self.config
        tenant = _pick(self.rng, _zipf(config.tenants, config.tenant_zipf))
        prompt = _pick(self.rng, _zipf(config.prompts_per_tenant, config.prompt_zipf))
        tokens, pages = self._prompt(tenant, prompt)
        turns = self.shape(config, self.rng)
        return _Conversation(f"tenant-{tenant}", turns, pages.copy(), tokens)

    def next_turn(self, conversation: _Conversation) -> Turn | None:
        turn = next(conversation.turns, None)
        if turn is None:
            return None
        grown = conversation.context_tokens - turn.dropped_tokens + turn.new_tokens
        return turn if grown <= self.config.context_tokens else None

    def _prompt(self, tenant: int, prompt: int) -> tuple[int, list[int]]:
        if (tenant, prompt) not in self.prompts:
            tokens = self.config.prompt_tokens.draw_tokens(self.rng)
            pages = list(islice(self.ids, tokens // self.config.page_tokens))
            self.prompts[tenant, prompt] = tokens, pages
        return self.prompts[tenant, prompt]


def _merge(arrivals: Iterator[float], world: _World) -> Iterator[TraceRequest]:
    """Run all conversations at once, by a heap of the next turn of each open one."""
    due: list[tuple[float, int, Turn, _Conversation]] = []
    order = count()  # breaks ties, so that a turn is never compared

    def schedule(now_s: float, conversation: _Conversation) -> None:
        if (turn := world.next_turn(conversation)) is not None:
            heapq.heappush(due, (now_s + turn.wait_s, next(order), turn, conversation))

    for arrival_s in arrivals:
        while due and due[0][0] <= arrival_s:
            at_s, _, turn, conversation = heapq.heappop(due)
            yield conversation.ask(turn, at_s, world.config.page_tokens, world.ids)
            schedule(at_s, conversation)
            for turns in turn.forks:
                schedule(at_s, conversation.fork(turns))
        schedule(arrival_s, world.begin())


def _arrivals(config: WorkloadConfig, rng: Generator) -> Iterator[float]:
    """Yield when conversations begin, in seconds, for ever.

    A gap that crosses a change of state is drawn again from there: exponential gaps forget.
    """
    burst_share = config.burst_s / (config.calm_s + config.burst_s)
    mean_rate = config.requests_per_s / config.mean_turns
    calm_rate = mean_rate / (1 + burst_share * (config.burst_factor - 1))
    rates, lengths = (calm_rate, calm_rate * config.burst_factor), (config.calm_s, config.burst_s)
    now_s, state = 0.0, 0
    ends_s = float(rng.exponential(lengths[state]))
    while True:
        at_s = now_s + float(rng.exponential(1 / rates[state]))
        if at_s < ends_s:
            now_s = at_s
            yield now_s
        else:
            now_s, state = ends_s, 1 - state
            ends_s += float(rng.exponential(lengths[state]))


def _zipf(kinds: int, exponent: float) -> NDArray[np.float64]:
    """Return the cumulative shares of ``kinds`` things, the i-th ~ 1 / i^exponent."""
    shares = np.arange(1, kinds + 1, dtype=np.float64) ** -exponent
    cumulative: NDArray[np.float64] = np.cumsum(shares) / shares.sum()
    return cumulative


def _pick(rng: Generator, cumulative: NDArray[np.float64]) -> int:
    found = int(np.searchsorted(cumulative, rng.random(), side="right"))
    return min(found, len(cumulative) - 1)  # the last share may round to just below 1
