# SPDX-License-Identifier: Apache-2.0
"""Why pages of a request were misses or late, from a recording: the same whether file or live."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from bodocache.errors import WatchError
from bodocache.hints.reuse import request_name
from bodocache.move.timeline import Cut, Event, Record
from bodocache.pages import Reason

Document = dict[str, Any]

LEAST_HEX = 16  # digits of a key: shorter texts are numbers or sessions
_KEY = re.compile(rf"[0-9a-fA-F]{{{LEAST_HEX},64}}")

_WORDS = {
    Reason.NEVER_STORED: "never stored: nobody stored this prefix",
    Reason.DIVERGED: "diverged: stored prompts share the pages before and go on differently",
    Reason.EVICTED: "evicted",
    Reason.NOT_ADMITTED: "not admitted: it left the faster tiers, and the disk had refused it",
    Reason.UNREACHABLE: "unreachable: there, but a page before is not",
    Reason.OTHER_VERSION: "stored under other weights",
    Reason.CUT: "cut: it would have come later than the engine computes it",
    Reason.ASIDE: "the cache had stepped aside: lately it cost more than it gained",
    Reason.LATE: "late: not landed by the deadline",
    Reason.TRUNCATED: "its frame on disk ends too early",
    Reason.FOREIGN: "its frame on disk holds another page",
    Reason.OLD_FORMAT: "its frame on disk is of another format or form",
    Reason.CORRUPT: "corrupt: its bytes failed their digest",
    Reason.IO_ERROR: "the storage answered with an error",
    Reason.CANCELLED: "the load was cancelled",
    Reason.NO_ROOM: "no slot was free to load it into",
    Reason.FORGED: "its frame on disk was not made with our key",
    Reason.OVER_BUDGET: "not written: the day's bytes of writing were spent",
    Reason.UNAVAILABLE: "its directory is out of service",
    Reason.RELEASED: "released: its owner said that it is not needed",
}
_MADE_ROOM = ("evicted", "not_admitted")  # reasons of pages that left for others
_FOR = {
    "load": "a load of tenant {}",
    "store": "a store of tenant {}",
    "write": "a write to disk of tenant {}",
    "acquire": "slots that an engine took to compute in",
    "hint": "a hint of tenant {}",
}


def is_key(text: str) -> bool:
    """Whether ``text`` is a key, or enough of one, rather than a request or a session."""
    return _KEY.fullmatch(text) is not None


def explain(ours: Document, asked: str) -> Iterator[str]:
    """Lines that say what became of request or key ``asked``.

    Raises:
        WatchError: the recording knows no such request or key.
    """
    if is_key(asked):
        yield from _explain_key(ours, asked.lower())
        return
    request = _find(ours, asked)
    yield from _explain_request(ours, request)


def explain_page(page: Document | None, taken_s: float) -> str:
    """Where a page lies, or how it left."""
    if page is None:
        return "not known: never stored, or forgotten since"
    use = ", in use" if page["in_use"] else ""
    if page["tiers"]:
        return f"lies in {' and '.join(page['tiers'])} (page {page['depth']} of its prompt{use})"
    reason = page.get("reason", "none")
    return f"{_words(reason)}{_departure(page, reason, taken_s, 'ago')}"


def _find(ours: Document, asked: str) -> Document:
    requests: list[Document] = ours["requests"]
    for request in reversed(requests):
        if asked in (request_name(request["number"]), request["session"]):
            return request
    if not requests:
        raise WatchError("no requests: nothing was loaded or stored yet")
    first, last = (request_name(requests[i]["number"]) for i in (0, -1))
    raise WatchError(
        f"request {asked}: not among the {len(requests)} that are kept, {first} to {last}; say a"
        f" number (match.said.request), a session, or {LEAST_HEX} or more hex digits of a key"
    )


# Requests


def _explain_request(ours: Document, request: Document) -> Iterator[str]:
    session = f", session {request['session']}" if request["session"] else ""
    ago = _seconds(ours["taken_s"] - request["begun_s"])
    number = request_name(request["number"])
    yield f"request {number} (tenant {request['tenant']}{session}), begun {ago} ago"
    events = [Record(*it) for it in ours["events"] if it[1] == request["number"]]
    if request["delivered"] is None and not any(it.event == Event.LOAD for it in events):
        yield f"  stored {request['pages']} pages; nothing was loaded"
        return
    yield f"  {_outcome(request)}"
    yield from (f"  {line}" for line in _misses(ours, request))
    yield from (f"  {line}" for line in _cuts(ours, request, events))


def _outcome(request: Document) -> str:
    asked = f"{request['pages']} pages asked for, {request['matched']} of them lay in some tier"
    if request["delivered"] is None:
        return f"{asked}; its load is under way"
    sources = ", ".join(f"{pages} from {tier}" for tier, pages in request["sources"].items())
    took = _seconds(request["settled_s"] - request["begun_s"])
    delivered = f"{request['delivered']} delivered after {took}"
    return f"{asked}; {delivered}{f' ({sources})' if sources else ''}"


def _misses(ours: Document, request: Document) -> Iterator[str]:
    for first, pages, reason in (*request["undelivered"], *request["missing"]):
        lead = f"page {first}" if pages == 1 else f"pages {first} to {first + pages - 1}"
        words = f"{lead} of 0 to {request['pages'] - 1}: {_words(reason)}"
        page = ours["pages"].get(request["keys"][first])
        if page is None or reason not in _MADE_ROOM or "left_s" not in page:
            yield words
        elif page["left_s"] > request["begun_s"]:
            yield f"{words}; stored again since, so how it left then is forgotten"
        else:
            since = "the first of them " if pages > 1 else ""
            how = _departure(page, reason, request["begun_s"], "before").lstrip("; ")
            yield f"{words}; {since}{how}"


def _cuts(ours: Document, request: Document, events: Iterable[Record]) -> Iterator[str]:
    predicted: Record | None = None
    for event in events:
        if event.event == Event.PREDICTED:  # of several parts, the one that was to come last
            predicted = event if predicted is None else max(predicted, event, key=_finish_s)
        elif event.event == Event.CUT:
            after = _seconds(event.at_s - request["begun_s"])
            yield (
                f"cut after {after} ({Cut(event.detail).name.lower()}): {event.pages} of"
                f" {request['matched']} pages kept"
            )
            yield from _late(ours, request, predicted)


def _finish_s(predicted: Record) -> float:
    return predicted.value


def _late(ours: Document, request: Document, predicted: Record | None) -> Iterator[str]:
    deadline = ""
    if request["deadline_s"] is not None:
        deadline = f"deadline {_seconds(request['deadline_s'] - request['begun_s'])}"
    if predicted is None:
        if deadline:
            yield f"{deadline} after it was asked for; no finish had been predicted"
        return
    finish = _seconds(predicted.value - request["begun_s"])
    link = ours["links"][predicted.detail]
    yield (
        f"predicted finish {finish}{f', {deadline}' if deadline else ''}: {link} at"
        f" {predicted.rate / 1e9:.2f} GB/s with {predicted.nbytes / 1e6:.1f} MB ahead"
    )


# Pages


def _explain_key(ours: Document, asked: str) -> Iterator[str]:
    found = [key for key in ours["pages"] if key.startswith(asked)]
    if not found:
        raise WatchError(
            f"key {asked}: not known: never stored, or forgotten since; a file holds the keys of"
            f" its {len(ours['requests'])} requests only"
        )
    for key in found:
        yield f"page {key}: {explain_page(ours['pages'][key], ours['taken_s'])}"
        for request in reversed(ours["requests"]):
            if key in request["keys"]:
                yield f"  {_part_in(request, request['keys'].index(key))}"


def _part_in(request: Document, index: int) -> str:
    number = request_name(request["number"])
    said = f"page {index} of request {number} (tenant {request['tenant']})"
    if request["delivered"] is not None and index < request["delivered"]:
        return f"{said}: delivered"
    for first, pages, reason in (*request["undelivered"], *request["missing"]):
        if first <= index < first + pages:
            return f"{said}: {_words(reason)}"
    return f"{said}: stored, or on its way"


def _departure(page: Document, reason: str, moment_s: float, word: str) -> str:
    if "left_s" not in page:
        return ""
    left = f"left {page['left']}" if page["left"] else "its last copy was gone when its use ended"
    pressure = ""
    if reason in _MADE_ROOM and page["for"] in _FOR:
        pressure = f" to make room for {_FOR[page['for']].format(page['for_tenant'])}"
    ghost = ", a ghost still" if page["is_ghost"] else ""
    return f"; {left} {_seconds(moment_s - page['left_s'])} {word}{pressure}{ghost}"


def _words(reason: str) -> str:
    return _WORDS.get(Reason[reason.upper()], reason)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1.0 else f"{1e3 * seconds:.1f} ms"
