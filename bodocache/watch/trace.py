# SPDX-License-Identifier: Apache-2.0
"""A timeline as Chrome's trace events, which Perfetto opens: a lane a link and a lane a request.

Where spans of one lane overlap (a link with several ops in flight), they get as many lanes as that
takes, one below the other. Format: "Trace Event Format", as Perfetto's documentation links to it.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bodocache.hints.reuse import request_name
from bodocache.move.requests import Request, sources_of
from bodocache.move.timeline import Cut, Event, Record
from bodocache.pages import Tier

LINKS, REQUESTS = 1, 2  # process ids: Perfetto groups lanes by them
MOST_LANES = 64  # below one another; more overlap than that is drawn over itself

_BEGINS = {Event.LOAD: "load", Event.STORE: "store"}
_ENDS = {Event.SETTLED: "load", Event.VISIBLE: "store"}
_GOES_ON = {Event.SETTLED: "drain", Event.VISIBLE: "write-through"}
_GONE_ON = {Event.RELEASED: "drain", Event.WRITTEN: "write-through"}
_MARKS = (Event.PLANNED, Event.PREDICTED, Event.LANDED, Event.COMMITTED, Event.CUT)


@dataclass(slots=True)
class _Span:
    """Something that took time; ``inner`` lie within it."""

    name: str
    begin_s: float
    end_s: float = math.nan
    details: dict[str, Any] = field(default_factory=dict)
    inner: list["_Span"] = field(default_factory=list)


def trace_events(
    links: Sequence[str], requests: Iterable[Request], records: Sequence[Record], taken_s: float
) -> list[dict[str, Any]]:
    """The events of ``traceEvents``; what had not ended at ``taken_s`` ends there."""
    known = {request.number: request for request in requests}
    events = [_named(LINKS, None, "links"), _named(REQUESTS, None, "requests")]
    for index, name in enumerate(links):
        moved = [it for it in records if it.event == Event.MOVED and it.detail == index]
        events += _lanes(LINKS, index, name, [_transfer(name, record) for record in moved])
    by_request = defaultdict(list)
    for record in records:
        if record.event != Event.MOVED:
            by_request[record.request].append(record)
    for number, own in by_request.items():
        spans = _spans(own, taken_s)
        request = known.get(number)
        if request is not None:
            _describe(spans, request)
        events += _lanes(REQUESTS, number, _title(number, request), spans)
        events += [_mark(number, record, links) for record in own if record.event in _MARKS]
    return events


def _transfer(name: str, record: Record) -> _Span:
    details = {"pages": record.pages, "bytes": int(record.nbytes)}
    return _Span(name, record.value, record.at_s, details)


def _spans(records: Sequence[Record], taken_s: float) -> list[_Span]:
    """The spans of one request. One whose beginning has left the ring is not drawn."""
    building = _Building()
    for record in records:
        building.add(Event(record.event), record.at_s)
    for name in list(building.under_way):
        building.end(name, taken_s)
    return building.spans


class _Building:
    """The spans of one request, event by event."""

    def __init__(self) -> None:
        self.spans: list[_Span] = []
        self.under_way: dict[str, _Span] = {}
        self.was_written = False

    def add(self, event: Event, at_s: float) -> None:
        """``event`` was at ``at_s``."""
        for ends in (_ENDS, _GONE_ON):
            if event in ends:
                self.end(ends[event], at_s)
        if event == Event.WRITTEN and "store" in self.under_way:
            self.was_written = True  # before its pages could be found: nothing goes on
        for begins in (_BEGINS, _GOES_ON):
            if event in begins and not (event == Event.VISIBLE and self.was_written):
                self.under_way[begins[event]] = _Span(begins[event], at_s)
                self.spans.append(self.under_way[begins[event]])
        if event == Event.VISIBLE:
            self.was_written = False
        load = self.under_way.get("load")
        if event == Event.LANDED and load is not None and not load.inner:
            waited = _Span("until the first pages", load.begin_s, at_s)
            load.inner = [waited, _Span("landing", at_s)]

    def end(self, name: str, at_s: float) -> None:
        """The span ``name`` is over, if it was seen to begin."""
        span = self.under_way.pop(name, None)
        if span is not None:
            span.end_s = at_s
            for inner in span.inner[1:]:
                inner.end_s = at_s


def _describe(spans: list[_Span], request: Request) -> None:
    for span in spans:
        if span.name == "load":
            span.details |= {
                "pages": len(request.keys),
                "matched": request.matched,
                "delivered": request.delivered,
                **{f"from {tier.name.lower()}": it for tier, it in sources_of(request).items()},
            }
            if math.isfinite(request.deadline_s):
                span.details["deadline after ms"] = 1e3 * (request.deadline_s - span.begin_s)
            if len(request.keys):
                span.details["first key"] = request.keys[0].tobytes().hex()


def _title(number: int, request: Request | None) -> str:
    if request is None:
        return f"request {request_name(number)}"
    session = f", {request.session}" if request.session else ""
    return f"request {request_name(number)} (tenant {request.tenant}{session})"


def _lanes(process: int, first: int, title: str, spans: list[_Span]) -> list[dict[str, Any]]:
    """``spans`` in lanes: each in the first one that is free by then."""
    free_s: list[float] = []
    events = []
    for span in sorted(spans, key=lambda it: it.begin_s):
        lane = next((i for i, end_s in enumerate(free_s) if end_s <= span.begin_s), len(free_s))
        lane = min(lane, MOST_LANES - 1)
        thread = first * MOST_LANES + lane
        if lane == len(free_s):
            free_s.append(0.0)
            events.append(_named(process, thread, title if lane == 0 else f"{title} #{lane + 1}"))
        free_s[lane] = span.end_s
        events += [_drawn(process, thread, it) for it in (span, *span.inner)]
    return events


def _drawn(process: int, thread: int, span: _Span) -> dict[str, Any]:
    return {
        "name": span.name,
        "ph": "X",
        "pid": process,
        "tid": thread,
        "ts": 1e6 * span.begin_s,
        "dur": 1e6 * max(0.0, span.end_s - span.begin_s),
        "args": span.details,
    }


def _mark(number: int, record: Record, links: Sequence[str]) -> dict[str, Any]:
    event = Event(record.event)
    details: dict[str, Any] = {"pages": record.pages}
    name = event.name.lower()
    if event == Event.CUT:
        name = f"cut: {Cut(record.detail).name.lower()}"
    elif event == Event.LANDED:
        details["from"] = Tier(record.detail).name.lower()
    elif event == Event.PLANNED:
        details |= {"link": links[record.detail], "bytes": int(record.nbytes)}
    if event == Event.PREDICTED:
        details = {
            "link": links[record.detail],
            "finish in ms": 1e3 * (record.value - record.at_s),
            "bytes ahead": int(record.nbytes),
            "bytes/s": record.rate,
        }
    return {
        "name": name,
        "ph": "i",
        "s": "t",
        "pid": REQUESTS,
        "tid": number * MOST_LANES,
        "ts": 1e6 * record.at_s,
        "args": details,
    }


def _named(process: int, thread: int | None, name: str) -> dict[str, Any]:
    kind = "process_name" if thread is None else "thread_name"
    event = {"name": kind, "ph": "M", "pid": process, "args": {"name": name}}
    return event if thread is None else {**event, "tid": thread}
