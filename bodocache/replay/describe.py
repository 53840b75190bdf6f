# SPDX-License-Identifier: Apache-2.0
"""What a trace holds, before anything is replayed: its size, its reuse and the gaps between uses.

The infinite-cache hit ratio is the share of touches whose page was touched before: no cache of any
capacity or policy exceeds it.
"""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from bodocache.replay.trace import Trace

# Upper edges: what a device, a host and a disk tier hold a page for, roughly.
GAP_EDGES_S = (1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, float("inf"))
_GAP_NAMES = ("< 1 s", "1-10 s", "10-60 s", "1-5 min", "5-15 min", "15-60 min", "> 1 h")


class Percentiles(NamedTuple):
    """Four points of a distribution, in the unit of its field."""

    p10: float
    p50: float
    p90: float
    p99: float


class GapBucket(NamedTuple):
    """Touches whose page was last touched within this range of seconds before."""

    name: str
    touches: int


@dataclass(frozen=True, slots=True)
class Description:
    """Counts and distributions of one trace; gaps are None where no page is used twice."""

    name: str
    requests: int
    tenants: int
    duration_s: float
    touches: int
    distinct_pages: int
    repeated_touches: int
    infinite_hit_ratio: float
    pages_used_once: int
    request_pages: Percentiles
    request_pages_max: int
    input_tokens: int
    output_tokens: int
    reuse_gap_s: Percentiles | None
    reuse_gap_requests: Percentiles | None
    reuse_gap_buckets: tuple[GapBucket, ...]


def describe(trace: Trace) -> Description:
    """Count a trace; needs a few times its touches in memory, 8 bytes each."""
    lengths = np.diff(trace.offsets)
    uses = np.bincount(trace.pages, minlength=trace.distinct)
    before, after = _reuses(trace)
    gaps_s = trace.timestamps_s[after] - trace.timestamps_s[before]
    return Description(
        name=trace.name,
        requests=trace.num_requests,
        tenants=len(trace.tenant_names),
        duration_s=float(trace.timestamps_s[-1] - trace.timestamps_s[0]),
        touches=trace.touches,
        distinct_pages=trace.distinct,
        repeated_touches=trace.touches - trace.distinct,
        infinite_hit_ratio=1 - trace.distinct / trace.touches,
        pages_used_once=int((uses == 1).sum()),
        request_pages=_percentiles(lengths),
        request_pages_max=int(lengths.max()),
        input_tokens=int(trace.input_lengths.sum()),
        output_tokens=int(trace.output_lengths.sum()),
        reuse_gap_s=_percentiles(gaps_s) if len(gaps_s) else None,
        reuse_gap_requests=_percentiles(after - before) if len(gaps_s) else None,
        reuse_gap_buckets=_buckets(gaps_s),
    )


def render(description: Description) -> RenderableType:
    """Return the tables ``bodocache trace describe`` prints."""
    return Group(_summary(description), _histogram(description))


def as_json(description: Description) -> dict[str, object]:
    """Return plain dicts, lists and numbers under the fields' names; no gaps are null."""
    plain = asdict(description)
    for name in ("request_pages", "reuse_gap_s", "reuse_gap_requests"):
        points = getattr(description, name)
        plain[name] = points and points._asdict()
    plain["reuse_gap_buckets"] = dict(description.reuse_gap_buckets)
    return plain


def _reuses(trace: Trace) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for each touch of a page seen before, the requests of the last use and of this."""
    request = np.repeat(np.arange(trace.num_requests), np.diff(trace.offsets))
    by_page = np.argsort(trace.pages, kind="stable")  # uses of one page side by side, in order
    page, request = trace.pages[by_page], request[by_page]
    again = page[1:] == page[:-1]
    return request[:-1][again], request[1:][again]


def _percentiles(values: NDArray[np.int64] | NDArray[np.float64]) -> Percentiles:
    return Percentiles(*(float(value) for value in np.percentile(values, [10, 50, 90, 99])))


def _buckets(gaps_s: NDArray[np.float64]) -> tuple[GapBucket, ...]:
    counts, _ = np.histogram(gaps_s, bins=[0.0, *GAP_EDGES_S])
    return tuple(GapBucket(*pair) for pair in zip(_GAP_NAMES, counts.tolist(), strict=True))


def _summary(description: Description) -> Table:
    table = Table(title=escape(description.name), show_header=False, title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    for label, value in _summary_rows(description):
        table.add_row(label, value)
    return table


def _summary_rows(description: Description) -> list[tuple[str, str]]:
    d = description
    p50, p99 = d.request_pages.p50, d.request_pages.p99
    pages = f"{p50:,.0f} / {p99:,.0f} / {d.request_pages_max:,}"
    once = d.pages_used_once / d.distinct_pages
    rows = [
        ("requests", f"{d.requests:,}"),
        ("tenants", f"{d.tenants:,}"),
        ("duration", f"{d.duration_s:,.0f} s"),
        ("tokens in / out", f"{d.input_tokens:,} / {d.output_tokens:,}"),
        ("page touches", f"{d.touches:,}"),
        ("distinct pages", f"{d.distinct_pages:,}"),
        ("pages used once", f"{d.pages_used_once:,} ({once:.1%})"),
        ("pages a request, p50 / p99 / max", pages),
        ("infinite-cache hits", f"{d.repeated_touches:,} ({d.infinite_hit_ratio:.2%})"),
    ]
    if d.reuse_gap_s is not None and d.reuse_gap_requests is not None:
        rows.append(("reuse gap, p10 / p50 / p90 / p99", _points(d.reuse_gap_s, "s")))
        rows.append(("", _points(d.reuse_gap_requests, "requests")))
    return rows


def _points(percentiles: Percentiles, unit: str) -> str:
    return " / ".join(f"{value:,.0f}" for value in percentiles) + f" {unit}"


def _histogram(description: Description) -> Table:
    table = Table(title="time since the page's last use", title_justify="left", box=None)
    table.add_column("gap", justify="right")
    table.add_column("touches", justify="right")
    table.add_column("share", justify="right")
    table.add_column("")
    most = max(1, *(bucket.touches for bucket in description.reuse_gap_buckets))
    total = max(1, description.repeated_touches)
    for name, touches in description.reuse_gap_buckets:
        bar = Bar(most, 0, touches, width=40)
        table.add_row(name, f"{touches:,}", f"{touches / total:.1%}", bar)
    return table
