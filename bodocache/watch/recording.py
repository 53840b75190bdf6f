# SPDX-License-Identifier: Apache-2.0
"""A snapshot of what a cache did lately, and the file it is written to.

It is taken on the cache's loop, as copies of a few MB at most; turning it into JSON takes longer
and is for any thread. The file is in Chrome's trace format, which Perfetto opens, with what ``why``
needs beside it: page keys, reasons and times, no tokens and no bytes of pages.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import WatchError
from bodocache.move.ghosts import Activity
from bodocache.move.requests import Request, sources_of
from bodocache.move.residency import Residency
from bodocache.move.timeline import Fields, Record
from bodocache.move.watchable import Watchable
from bodocache.move.whereabouts import known_keys, whereabouts
from bodocache.pages import KEY_NBYTES, Reason, Tier
from bodocache.watch.trace import trace_events

FORMAT = 1
PAGES_SHOWN = 16_384  # whose whereabouts a recording holds: those of the newest requests


@dataclass(frozen=True, slots=True)
class Recording:
    """The newest requests, events and, of their pages, where they lie."""

    taken_s: float  # on the cache's clock
    links: tuple[str, ...]
    requests: list[Request]
    events: Sequence[Fields]  # of Records
    keys: NDArray[np.uint8]  # [n, 32]: of pages of these requests; one may stand twice
    places: NDArray[np.void]  # WHEREABOUTS[n]

    @classmethod
    def of(cls, watched: Watchable) -> "Recording":
        """What ``watched`` remembers now. Call it on the loop."""
        requests = watched.requests
        kept = requests.kept()
        keys = _newest_keys(kept)
        return cls(
            watched.now_s(),
            requests.timeline.links,
            kept,
            requests.timeline.copied(),
            keys,
            whereabouts(watched.residency, keys),
        )

    def document(self) -> dict[str, Any]:
        """It as JSON: ``traceEvents`` for Perfetto, ``bodocache`` for ``why``."""
        records = [Record(*fields) for fields in self.events]
        return {
            "traceEvents": trace_events(self.links, self.requests, records, self.taken_s),
            "displayTimeUnit": "ms",
            "bodocache": {
                "format": FORMAT,
                "taken_s": self.taken_s,
                "links": self.links,
                "requests": [_request(request) for request in self.requests],
                "events": [
                    [None if isinstance(field, float) and not np.isfinite(field) else field
                     for field in record]
                    for record in self.events
                ],
                "pages": pages_document(self.keys, self.places),
            },
        }  # fmt: skip

    def write(self, path: Path) -> None:
        """Write it to ``path``."""
        path.write_text(json.dumps(self.document(), separators=(",", ":")), encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """What :meth:`Recording.write` wrote.

    Raises:
        WatchError: it is no such file.
    """
    try:
        return checked(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise WatchError(f"{path}: {error}") from error


def checked(document: Any, source: str) -> dict[str, Any]:
    """The part of ``document`` that is ours; WatchError where there is none."""
    ours = document.get("bodocache") if isinstance(document, dict) else None
    if not isinstance(ours, dict) or ours.get("format") != FORMAT:
        raise WatchError(
            f"{source}: no timeline of format {FORMAT}; write one with `bodocache replay"
            " --timeline FILE` or Cache.timeline()"
        )
    return ours


def pages_document(keys: NDArray[np.uint8], places: NDArray[np.void]) -> dict[str, Any]:
    """Key in hex -> where it lies, or how it left."""
    return {name: _page(place) for name, place in zip(_hex(keys), places, strict=True)}


def page_document(residency: Residency, prefix: bytes) -> dict[str, Any]:
    """The known pages whose keys begin with ``prefix``, as :func:`pages_document`."""
    keys = known_keys(residency, prefix)
    return pages_document(keys, whereabouts(residency, keys))


def runs_of(reasons: NDArray[np.uint8], first: int) -> list[tuple[int, int, str]]:
    """(first page, pages, reason) of each run of one reason, from page ``first`` on."""
    runs = []
    for reason, group in groupby(reasons.tolist()):
        pages = len(list(group))
        runs.append((first, pages, Reason(reason).name.lower()))
        first += pages
    return runs


def _hex(keys: NDArray[np.uint8]) -> Iterator[str]:
    packed, width = keys.tobytes().hex(), 2 * KEY_NBYTES
    return (packed[i : i + width] for i in range(0, len(packed), width))


def _newest_keys(requests: Iterable[Request]) -> NDArray[np.uint8]:
    chains: list[NDArray[np.uint8]] = [np.empty((0, KEY_NBYTES), np.uint8)]
    left = PAGES_SHOWN
    for request in reversed(list(requests)):
        if left <= 0:
            break
        chains.append(request.keys[:left])
        left -= len(chains[-1])
    return np.concatenate(chains)


def _request(request: Request) -> dict[str, Any]:
    return {
        "keys": list(_hex(request.keys)),
        "number": request.number,
        "tenant": request.tenant,
        "session": request.session,
        "begun_s": request.begun_s,
        "deadline_s": request.deadline_s if np.isfinite(request.deadline_s) else None,
        "pages": len(request.keys),
        "matched": request.matched,
        "missing": runs_of(request.missing, request.matched),
        "delivered": request.delivered,
        "sources": {tier.name.lower(): pages for tier, pages in sources_of(request).items()},
        "undelivered": runs_of(request.undelivered, request.delivered or 0),
        "settled_s": request.settled_s if np.isfinite(request.settled_s) else None,
    }


def _page(place: np.void) -> dict[str, Any] | None:
    if not place["is_known"]:
        return None
    departure = place["departure"]
    page: dict[str, Any] = {
        "tiers": [tier.name.lower() for tier in Tier if int(place["tiers"]) & tier.bit],
        "depth": int(place["depth"]),
        "in_use": bool(place["pins"]),
    }
    if place["reason"]:
        page["reason"] = Reason(int(place["reason"])).name.lower()
    if np.isfinite(departure["left_s"]):
        page |= {
            "is_ghost": bool(place["is_ghost"]),
            "left_s": float(departure["left_s"]),
            "left": Tier(int(departure["tier"])).name.lower() if departure["tier"] >= 0 else None,
            "for": Activity(int(departure["activity"])).name.lower(),
            "for_tenant": int(departure["tenant"]),
        }
    return page
