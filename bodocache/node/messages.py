# SPDX-License-Identifier: Apache-2.0
"""What engines and their node say to each other; codec.py says how it travels.

A request with a number gets one answer: the message named in its docstring, or :class:`Failed`.
Notes have number 0 and are not answered. Deadlines are seconds from when a message is read. A page
is named by its position in the keys that came with the request.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from bodocache.node.codec import Column
from bodocache.pages import KEY_NBYTES

PROTOCOL = 3

Keys = Annotated[NDArray[np.uint8], Column("u1", KEY_NBYTES)]
Indices = Annotated[NDArray[np.int64], Column("<i8")]
Bytes = Annotated[NDArray[np.uint8], Column("u1")]
Floats = Annotated[NDArray[np.float64], Column("<f8")]
Digests = Annotated[NDArray[np.uint64], Column("<u8", 2)]


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message. Answer: Welcome, with the memory's descriptor beside it."""

    protocol: int
    pages: str  # JSON: what a page is (terms.py)
    identity: Bytes  # key_0 of the engine's root without its weights
    weights: Bytes  # key_0 of the root


@dataclass(frozen=True, slots=True)
class Welcome:
    """The engine is attached, in ``epoch``."""

    epoch: int
    num_pages: int  # of the host pool
    silence_s: float
    table_words: int  # of the table behind the pool (presence.py)


@dataclass(frozen=True, slots=True)
class Failed:
    """The request was not carried out; ``error`` is a class of bodocache.errors."""

    error: str
    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """It was carried out."""


@dataclass(frozen=True, slots=True)
class Ping:
    """The engine is alive. Answer: Done."""


@dataclass(frozen=True, slots=True)
class Resume:
    """The engine knows that it was fenced, and writes no more to old slots. Answer: Welcome."""


@dataclass(frozen=True, slots=True)
class Bye:
    """The engine leaves, and writes no more. Answer: Done, when the node holds nothing of it."""


@dataclass(frozen=True, slots=True)
class Find:
    """What lies in host memory or on disk of a chain? Answer: Found."""

    request: int  # the match's number: a load of it says no more than how many pages it is of
    tenant: int  # who asks
    spent_s: float  # by the engine since it asked last: looking up, and copies of stores
    keys: Keys


@dataclass(frozen=True, slots=True)
class Found:
    """The Tier of each leading page that is there, the Reason of each behind them."""

    tiers: Bytes
    reasons: Bytes
    announced: int  # pages behind those that are there
    due_s: float  # when they are meant to be
    disk: Floats  # LINK of the disk, for who comes now; none where it was never measured
    is_aside: int  # 1: it costs more than it gains; what is there is not to be loaded
    credits: Floats  # what the tenant can have loaded now, and bytes/s more; none: no limit


@dataclass(frozen=True, slots=True)
class Announce:
    """A note: these pages are being computed, and meant to be stored in ``ready_s``."""

    announcement: int
    ready_s: float
    limit_s: float
    keys: Keys


@dataclass(frozen=True, slots=True)
class Withdraw:
    """A note: they are stored, or not being computed any more."""

    announcement: int


@dataclass(frozen=True, slots=True)
class Await:
    """Wait for announced pages, if they are meant to be there in ``within_s``. Answer: Awaited."""

    within_s: float
    keys: Keys


@dataclass(frozen=True, slots=True)
class Awaited:
    """1: the first announcement is over, or ``within_s`` is; 0: there was nothing to wait for."""

    was_there: int


@dataclass(frozen=True, slots=True)
class Holds:
    """Which of these pages lie in some tier, reachable or not? Answer: Held."""

    keys: Keys


@dataclass(frozen=True, slots=True)
class Held:
    """1 for each page that does."""

    present: Bytes


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring pages ``first`` to ``end`` of a chain to host slots. Answer: Arrived, and notes of it.

    The slots are leased to load ``load`` until EndFetch, which is due when any were leased.
    """

    load: int
    first: int  # the pages before lie on the engine's device
    end: int  # the engine computes the pages from there on
    due_s: float  # when they are needed
    deadline_s: float  # nothing is worth more reading later
    said: str  # JSON: Said
    missing: Bytes  # Reasons of the pages of the prompt behind ``keys``
    keys: Keys


@dataclass(frozen=True, slots=True)
class Settled:
    """A note: what a load delivered. Nothing more of it is counted; EndFetch follows."""

    load: int
    tiers: Bytes  # of each page that was delivered: where it came from
    reasons: Bytes  # of each other one that was matched: why not
    was_cut: str  # why, by the engine's decider; empty: it was not
    waited_s: float  # by the engine, for this load
    n_waiting: float  # requests that waited behind it


@dataclass(frozen=True, slots=True)
class Arrived:
    """Pages that lie in host slots, with their seeded digests; pages that will not come."""

    load: int
    positions: Indices
    slots: Indices
    tiers: Bytes  # where each came from
    digests: Digests
    lost: Indices
    reasons: Bytes


@dataclass(frozen=True, slots=True)
class EndFetch:
    """A note: the load needs its host slots no more. Pages ``bad`` had other bytes than stored."""

    load: int
    bad: Indices


@dataclass(frozen=True, slots=True)
class Reserve:
    """Lease host slots for new pages of a chain. Answer: Reserved.

    The engine holds the bytes of pages ``supplied`` and after.
    """

    store: int
    supplied: int
    said: str  # JSON: Said
    keys: Keys


@dataclass(frozen=True, slots=True)
class Reserved:
    """The slot for each page that is new and fits; none where the pages before are not there."""

    positions: Indices
    slots: Indices
    known: Indices


@dataclass(frozen=True, slots=True)
class Publish:
    """The slots of Reserved are filled: show the pages. Answer: Published; later, a note Written.

    ``digests`` are seeded. A Publish of none gives the slots back.
    """

    store: int
    digests: Digests


@dataclass(frozen=True, slots=True)
class Published:
    """Pages that can be found now; the others of Reserved were stored by somebody else, or lost."""

    shown: Indices
    known: Indices


@dataclass(frozen=True, slots=True)
class Written:
    """A note: of a store's pages, how many reached the disk."""

    store: int
    pages: int


@dataclass(frozen=True, slots=True)
class Rotate:
    """The engine's weights are those of root ``weights`` now. Answer: Done."""

    weights: Bytes


@dataclass(frozen=True, slots=True)
class Act:
    """Actions on pages (bodocache.hints), as JSON; the keys of their spans. Answer: Told."""

    actions: str
    counts: Indices  # of keys, by action
    keys: Keys


@dataclass(frozen=True, slots=True)
class Cancel:
    """A note: begin nothing more of operation ``operation``."""

    operation: int


@dataclass(frozen=True, slots=True)
class Over:
    """A note: an operation is over, ``pages`` arrived."""

    operation: int
    pages: int


@dataclass(frozen=True, slots=True)
class Clear:
    """Forget every page that nobody holds. Answer: Done."""


@dataclass(frozen=True, slots=True)
class Ask:
    """How is the node? Answer: Told."""


@dataclass(frozen=True, slots=True)
class Told:
    """JSON."""

    text: str


_NUMBERED: tuple[type[object], ...] = (
    *(Hello, Welcome, Failed, Done, Ping, Resume, Bye, Find, Found, Holds, Held, Fetch, Arrived),
    *(EndFetch, Reserve, Reserved, Publish, Published, Written, Rotate, Act, Cancel, Over, Ask),
    *(Told, Announce, Withdraw, Await, Awaited, Settled, Clear),
)
BY_KIND = dict(enumerate(_NUMBERED, 1))
KIND_OF = {shape: kind for kind, shape in BY_KIND.items()}
