# SPDX-License-Identifier: Apache-2.0
"""One frame of ``bodocache top``: what a cache's metrics say, as tables for a terminal."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bodocache.errors import WatchError

BAR = 20  # cells of a tier's fill

Values = dict[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Frame:
    """The metrics as they were at one moment: name -> labels' values -> value."""

    taken_s: float
    values: Mapping[str, Values] = field(repr=False)

    @classmethod
    def parsed(cls, text: str, taken_s: float) -> "Frame":
        """Of Prometheus's text format. WatchError: it is not that of a cache."""
        values: dict[str, Values] = {}
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    name = sample.name.removeprefix("bodocache_").removesuffix("_total")
                    labels = tuple(sample.labels[key] for key in sorted(sample.labels))
                    values.setdefault(name, {})[labels] = sample.value
        except ValueError as error:
            raise WatchError(f"not what a cache exports: {error}; another program?") from error
        if "tier_capacity_pages" not in values:
            raise WatchError("no bodocache metrics there: another program listens")
        return cls(taken_s, values)

    def of(self, name: str) -> Values:
        """All values of a metric."""
        return self.values.get(name, {})

    def one(self, name: str, *labels: str) -> float:
        """One value; 0 where there is none."""
        return self.of(name).get(labels, 0.0)


def render(now: Frame, before: Frame | None = None) -> RenderableType:
    """A frame; rates are since ``before``, where there is one."""
    tables = (_tiers(now), _links(now, before), _reasons(now), _stages(now), _tenants(now))
    return Group(_headline(now, before), *(table for table in tables if table.row_count))


def _headline(now: Frame, before: Frame | None) -> Text:
    hits, misses = sum(now.of("hits").values()), sum(now.of("misses").values())
    loads, stores = now.one("loads_in_flight"), now.one("stores_in_flight")
    words = [f"{loads:.0f} loads and {stores:.0f} stores in flight"]
    words.append(f"hit ratio {_share(hits, hits + misses)}")
    if before is not None and now.taken_s > before.taken_s:
        new = hits - sum(before.of("hits").values())
        missed = misses - sum(before.of("misses").values())
        words[1] += f" ({_share(new, new + missed)} since the last frame)"
    for name, text in (("failed_checks", "failed checks"), ("task_failures", "task failures")):
        if now.one(name):
            words.append(f"{now.one(name):.0f} {text}")
    return Text("   ".join(words), style="bold")


def _tiers(now: Frame) -> Table:
    table = _table("tier", "fill", "pages", "of", "hits", "evicted")
    for (tier,), capacity in now.of("tier_capacity_pages").items():
        pages = now.one("tier_pages", tier)
        full = round(BAR * pages / capacity) if capacity else 0
        table.add_row(
            tier,
            f"{'#' * full}{'.' * (BAR - full)}",
            f"{pages:,.0f}",
            f"{capacity:,.0f}",
            f"{now.one('hits', tier):,.0f}",
            f"{now.one('evicted', tier):,.0f}",
        )
    return table


def _links(now: Frame, before: Frame | None) -> Table:
    table = _table(
        "link", "in flight", "MB queued", "MB/s now", "GB/s busy", "GB/s learned", "GB moved"
    )
    for (link,), moved in now.of("link_bytes").items():
        busy_s = now.one("link_busy_seconds", link)
        learned = now.of("link_rate_bytes_per_second").get((link,))
        rate = ""
        if before is not None and now.taken_s > before.taken_s:
            new = moved - before.one("link_bytes", link)
            rate = f"{new / (now.taken_s - before.taken_s) / 1e6:,.1f}"
        table.add_row(
            link,
            f"{now.one('link_in_flight', link):.0f}",
            f"{now.one('link_queued_bytes', link) / 1e6:.1f}",
            rate,
            f"{moved / busy_s / 1e9:.2f}" if busy_s else "",
            f"{learned / 1e9:.2f}" if learned else "",
            f"{moved / 1e9:.3f}",
        )
    return table


def _reasons(now: Frame) -> Table:
    """Misses and cuts, the most frequent first, and only those that happened."""
    table = _table("why", "reason", "count")
    for name, unit in (("misses", "pages missed"), ("cuts", "loads cut")):
        counted = sorted(now.of(name).items(), key=lambda it: -it[1])
        for (reason,), count in counted:
            if count:
                table.add_row(unit, reason, f"{count:,.0f}")
    return table


def _stages(now: Frame) -> Table:
    table = _table("stage", "count", "mean ms", "p50 ms <=", "p99 ms <=")
    for (stage,), count in now.of("stage_seconds_count").items():
        if count:
            mean_s = now.one("stage_seconds_sum", stage) / count
            table.add_row(
                stage,
                f"{count:,.0f}",
                f"{1e3 * mean_s:.2f}",
                _quantile(now, stage, 0.50),
                _quantile(now, stage, 0.99),
            )
    return table


def _quantile(now: Frame, stage: str, share: float) -> str:
    """The bound of the bucket that holds it."""
    every = now.of("stage_seconds_bucket").items()
    buckets = {float(bound): count for (bound, name), count in every if name == stage}
    wanted = share * max(buckets.values())
    bound_s = min(bound for bound, count in buckets.items() if count >= wanted)
    return f"{1e3 * bound_s:g}"


def _tenants(now: Frame) -> Table:
    table = _table("tenants", "loads", "hit ratio", "pages stored")
    for (tenants,), loads in now.of("tenant_loads").items():
        hits = now.one("tenant_hits", tenants)
        table.add_row(
            tenants,
            f"{loads:,.0f}",
            _share(hits, hits + now.one("tenant_misses", tenants)),
            f"{now.one('tenant_stored', tenants):,.0f}",
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        words = i == 0 or column in ("fill", "reason")
        table.add_column(column, justify="left" if words else "right")
    return table


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
