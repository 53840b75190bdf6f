# SPDX-License-Identifier: Apache-2.0
"""How adjacent the frames of one store call lie once a slab has been turned over ten times.

The slab is held 95 % full: each request of the trace stores what it does not find in one call,
behind the page it continues, and the coldest pages make room. Share of parent-to-child pairs of a
call in adjacent frames, after ten turnovers: under the planner's own evictions (plan/evict.py), and
under random leaves, the worst that a policy could do to the allocator. The trace is repeated as
often as it takes. The default is Mooncake's conversation trace in ../shared/traces.
"""

import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from _common import Claim, parser, write
from numpy.typing import NDArray

from bodocache import jit
from bodocache.io.frames import FrameAllocator
from bodocache.pages import PAGE, Tier
from bodocache.plan import evict, victims
from bodocache.plan.records import POLICY
from bodocache.replay.policy import HALF_LIFE_S, Recompute
from bodocache.replay.trace import Trace, load_trace

CONVERSATION = Path(__file__).parents[2] / "shared" / "traces" / "conversation_trace.jsonl"
FRAMES = (3_000, 10_000, 30_000)
FILL, TURNOVERS_BEFORE, TURNOVERS = 0.95, 10, 12
ADJACENT = 0.95

Ids = NDArray[np.int64]


class Store(NamedTuple):
    """One store call: who goes, who comes, and the page that the first of them continues."""

    victims: Ids
    pages: Ids
    parent: int  # -1 for none


class Evictor(Protocol):
    """A policy over the pages of a trace."""

    def serve(self, chain: Ids, now_s: float) -> Store:
        """The store call of a request of ``chain``, a trace's pages from the first on."""
        ...


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("trace", nargs="?", type=Path, help="a .jsonl or .jsonl.gz trace")
    chosen = arguments.parse_args()
    path = chosen.trace or CONVERSATION
    if not path.exists():
        sys.exit(f"{path.name}: not there; pass the path of a trace (bodocache trace fetch)")
    trace = load_trace(path)
    jit.warm()
    rows = [
        {"evicts": name, **turn_over(trace, evictor(trace, int(FILL * frames)), frames)}
        for frames in FRAMES
        for name, evictor in (("heat", Heat), ("random leaf", RandomLeaf))
    ]
    claims = [
        Claim.at_least(f"adjacent pairs, {row['frames']} frames", row["adjacent"], ADJACENT, "")
        for row in rows
        if row["evicts"] == "heat"
    ]
    write(chosen.json, rows, claims, trace=path.name, fill=FILL, turnovers=TURNOVERS)


def turn_over(trace: Trace, evictor: Evictor, frames: int) -> dict[str, Any]:
    """Serve the trace again and again until the frames have been filled TURNOVERS times."""
    allocator = FrameAllocator(np.zeros(frames, np.bool_))
    place = np.full(len(trace.parent), -1, np.int64)
    stored, pairs, adjacent, calls, spent_s = 0, 0, 0, 0, 0.0
    for store in stores(trace, evictor):
        begin_s = time.perf_counter()
        allocator.release(place[store.victims])
        after = int(place[store.parent]) if store.parent >= 0 else -1
        taken = allocator.reserve(len(store.pages), after=after)
        if stored > TURNOVERS_BEFORE * frames:
            spent_s += time.perf_counter() - begin_s
            calls, pairs = calls + 1, pairs + max(0, len(taken) - 1)
            adjacent += int(np.count_nonzero(np.diff(taken) == 1))
        place[store.victims] = -1
        place[store.pages] = taken
        stored += len(store.pages)
        if stored > TURNOVERS * frames:
            break
    return {
        "frames": frames,
        "stored_pages": stored,
        "calls": calls,
        "pairs": pairs,
        "adjacent": round(adjacent / pairs, 4),
        "us_per_call": round(1e6 * spent_s / calls, 1),
    }


def stores(trace: Trace, evictor: Evictor) -> Iterator[Store]:
    """Every store call that stores something; the trace's time goes on with each repetition."""
    span_s = float(trace.timestamps_s[-1]) + 1.0
    for repetition in count():
        for i, at_s in enumerate(trace.timestamps_s.tolist()):
            chain = trace.pages[trace.offsets[i] : trace.offsets[i + 1]]
            store = evictor.serve(chain, at_s + repetition * span_s)
            if len(store.pages):
                yield store


class Heat:
    """plan/evict.py itself, as the cache calls it."""

    def __init__(self, trace: Trace, capacity: int) -> None:
        self._pages = np.zeros(len(trace.parent), PAGE)
        self._pages["parent"], self._pages["depth"] = trace.parent, trace.depth
        self._pages["recompute_s"] = Recompute().seconds(trace.depth)
        self._pages["nbytes"] = 1
        self._queues = evict.open_queues(len(self._pages))
        self._policy = np.zeros(1, POLICY)
        self._policy["half_life_s"] = HALF_LIFE_S
        self._victims = np.empty(capacity, np.int64)
        self._free = capacity

    def serve(self, chain: Ids, now_s: float) -> Store:
        """See :class:`Evictor`."""
        state, tier = (self._pages, self._queues, self._policy), int(Tier.DISK)
        held = leading(self._pages["tiers"][chain] != 0)
        found, missing = chain[:held].copy(), chain[held:].copy()
        evict.touch(*state, found, now_s)
        evict.pin(*state, found[-1:])
        gone, short = 0, len(missing) - self._free
        if short > 0:
            gone = victims.coldest(*state, tier, short, now_s, self._victims)
        self._free += gone
        stored = missing[: self._free]
        self._free -= len(stored)
        self._pages["heat"][stored] = 0.0
        evict.touch(*state, stored, now_s)
        evict.arrive(*state, stored, tier, now_s)
        evict.unpin(*state, found[-1:])
        return Store(self._victims[:gone].copy(), stored, int(found[-1]) if held else -1)


class RandomLeaf:
    """Any leaf that is not the request's own, by a seeded draw."""

    def __init__(self, trace: Trace, capacity: int) -> None:
        self._parent = trace.parent
        self._present = np.zeros(len(trace.parent), np.bool_)
        self._children = np.zeros(len(trace.parent), np.int64)
        self._leaves: list[int] = []
        self._places: dict[int, int] = {}
        self._free = capacity
        self._random = np.random.default_rng(1)

    def serve(self, chain: Ids, now_s: float) -> Store:  # noqa: ARG002 -- chance knows no time
        """See :class:`Evictor`."""
        held = leading(self._present[chain])
        parent = int(chain[held - 1]) if held else -1
        if parent >= 0 and parent in self._places:
            self._drop_leaf(parent)  # the request's own: held while it is served
        victims: list[int] = []
        while len(victims) + self._free < len(chain) - held and self._leaves:
            victims.append(self._leaves[self._random.integers(len(self._leaves))])
            self._depart(victims[-1], held_page=parent)
        self._free += len(victims)
        stored = chain[held : held + self._free]
        self._free -= len(stored)
        self._present[stored] = True
        for page in stored.tolist():
            if self._parent[page] >= 0:
                self._children[self._parent[page]] += 1
        last = int(stored[-1]) if len(stored) else parent
        if last >= 0 and not self._children[last]:
            self._add_leaf(last)
        return Store(np.array(victims, np.int64), stored, parent)

    def _depart(self, page: int, *, held_page: int) -> None:
        self._drop_leaf(page)
        self._present[page] = False
        before = int(self._parent[page])
        if before >= 0:
            self._children[before] -= 1
            if not self._children[before] and before != held_page:
                self._add_leaf(before)

    def _add_leaf(self, page: int) -> None:
        self._places[page] = len(self._leaves)
        self._leaves.append(page)

    def _drop_leaf(self, page: int) -> None:
        place, last = self._places.pop(page), self._leaves.pop()
        if last != page:
            self._leaves[place] = last
            self._places[last] = place


def leading(held: NDArray[np.bool_]) -> int:
    """How many of ``held`` are true before the first that is not."""
    return len(held) if held.all() else int(np.argmin(held))


if __name__ == "__main__":
    main()
