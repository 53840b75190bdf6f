# SPDX-License-Identifier: Apache-2.0
"""One request on its way through a simulated engine."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bodocache.match import Match
from bodocache.move.load import Load
from bodocache.move.store import Store

_NO_SLOTS = np.empty(0, np.int64)


@dataclass(slots=True, eq=False)
class Job:
    """A request: what it asks for, what it holds, what became of it. Times on the virtual clock."""

    number: int
    arrived_s: float
    tokens: int  # of its prompt
    output: int  # tokens it will decode
    keys: list[bytes]  # of its pages
    due_s: float  # its first token
    cold_s: float  # prefill of the whole prompt
    match: Match | None = None
    load: Load | None = None
    begun_s: float = 0.0  # its load
    admitted_s: float = 0.0
    first_token_s: float = 0.0
    matched: int = 0  # tokens that the cache said it held
    have: int = 0  # of those, tokens that it brought
    at: int = 0  # tokens that are in place
    left: int = 0  # tokens still to decode
    streams: bool = False  # its layers may still be on their way when it is computed
    committed: bool = False
    cut: bool = False  # at least a page that was matched was not brought
    recompute_s: float = 0.0
    slots: NDArray[np.int64] = field(default_factory=lambda: _NO_SLOTS)  # it computes into
    spare: NDArray[np.int64] = field(default_factory=lambda: _NO_SLOTS)  # it decodes into
    store: Store | None = None

    def anew(self) -> "Job":
        """The same request, of which nothing has been done."""
        asked = (self.number, self.arrived_s, self.tokens, self.output, self.keys)
        return Job(*asked, due_s=self.due_s, cold_s=self.cold_s)

    @property
    def ttft_s(self) -> float:
        """From its arrival to its first token."""
        return self.first_token_s - self.arrived_s

    @property
    def on_time(self) -> bool:
        """Whether its first token came when it was due."""
        return self.first_token_s <= self.due_s
