# SPDX-License-Identifier: Apache-2.0
"""What a live replay amounts to: the figures, as JSON, as a table and as a report.

The names of the JSON are stable; docs/replay.md lists them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bodocache.cache import CacheStats
from bodocache.io.config import QUEUE_DEPTH
from bodocache.move.link import LinkStats
from bodocache.move.regret import Regret
from bodocache.plan.optimum import min_hits
from bodocache.replay.live import LiveRun
from bodocache.replay.plain_reader import Rate, queue_depth_of, read_blocks, read_same_extents
from bodocache.replay.report import HitRatioSeries, LinkBar, ReportData, write_report
from bodocache.replay.trace import Trace

GB = 1e9


@dataclass(frozen=True, slots=True)
class DiskYardstick:
    """The plain reader's rates beside the cache's own."""

    queue_depth: float  # the cache's mean number of extents in flight while a load was
    loads: float  # and of loads
    same_extents: Rate  # each load's right after it
    afterwards: Rate  # all of them when the replay had ended, at the mean queue depth
    blocks: Rate


@dataclass(frozen=True, slots=True)
class Outcome:
    """One replay, judged."""

    trace: Trace
    run: LiveRun
    stats: CacheStats
    optimum: NDArray[np.int64]  # hits per request
    disk: DiskYardstick | None  # None: nothing was read from disk
    extents_per_page: float  # of disk reads

    @property
    def page_hits(self) -> int:
        """Pages that loads delivered."""
        return int(self.run.hits.sum())

    @property
    def optimum_hits(self) -> int:
        """Pages that MIN hits with the same pages in all tiers together, one request at a time."""
        return int(self.optimum.sum())

    @property
    def regret(self) -> float:
        """Share of the optimum's hits that were missed."""
        return 1 - self.page_hits / self.optimum_hits if self.optimum_hits else 0.0


def judge(trace: Trace, run: LiveRun) -> Outcome:
    """Set a replay beside the optimum and the plain reader; reads the disk for some seconds."""
    assert run.stats is not None, "the replay has ended"
    optimum = min_hits(
        trace.pages, trace.offsets, trace.distinct, run.sizes.total, resident=run.recovered
    )
    reads = [extent for extent in run.extents if not extent.writes]
    pages = sum(extent.pages for extent in reads)
    return Outcome(
        trace,
        run,
        run.stats,
        optimum.hits,
        _measure_disk(run, run.stats) if reads else None,
        len(reads) / pages if pages else 0.0,
    )


def _measure_disk(run: LiveRun, stats: CacheStats) -> DiskYardstick:
    reads = [extent for extent in run.extents if not extent.writes]
    link = stats.traffic.links["disk->device"]
    depth = queue_depth_of(reads, link.busy_s)
    return DiskYardstick(
        queue_depth=depth,
        loads=sum(link.latencies_s) / link.busy_s,
        same_extents=run.plain_reads,
        afterwards=read_same_extents(
            reads, threads=max(1, round(depth)), memory_nbytes=run.host_nbytes
        ),
        blocks=read_blocks(Path(reads[0].path), threads=QUEUE_DEPTH),
    )


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The figures under their documented names."""
    links = outcome.stats.traffic.links
    return {
        "trace": outcome.trace.name,
        "requests": outcome.trace.num_requests,
        "seconds": outcome.run.seconds,
        "pages_touched": outcome.trace.touches,
        "page_hits": outcome.page_hits,
        "hit_ratio": outcome.page_hits / max(1, outcome.trace.touches),
        "optimum_hits": outcome.optimum_hits,
        "optimum_hit_ratio": outcome.optimum_hits / max(1, outcome.trace.touches),
        "regret": outcome.regret,
        "recovered_pages": int(outcome.run.recovered.sum()),
        "wrong_bytes": outcome.run.wrong_bytes,
        "bytes_loaded": links["host->device"].nbytes + links["disk->device"].nbytes,
        "bytes_stored": links["device->host"].nbytes,
        "misses": {reason.name.lower(): n for reason, n in sorted(outcome.stats.misses.items())},
        "tiers": _tiers(outcome),
        "links": {name: _link(link) for name, link in links.items()},
        "disk_reads": _disk_reads(outcome),
        "not_admitted": outcome.stats.traffic.not_admitted,
        "ghost_hits": outcome.stats.ghost_hits,
        "live_regret": _live_regret(outcome.stats.regret),
    }


def _live_regret(found: Regret) -> dict[str, Any]:
    return {
        "sample_rate": found.sample_rate,
        "requests": found.requests,
        "touches": found.touches,
        "repeats": found.repeats,
        "hits": found.all_tiers.hits,
        "optimum_hits": found.all_tiers.optimum_hits,
        "regret": found.all_tiers.regret,
        "memory_hits": found.memory.hits,
        "memory_optimum_hits": found.memory.optimum_hits,
        "memory_regret": found.memory.regret,
    }


def _tiers(outcome: Outcome) -> dict[str, Any]:
    traffic = outcome.stats.traffic
    return {
        tier.name.lower(): {
            "capacity_pages": stats.capacity_pages,
            "pages": stats.pages,
            "hits": traffic.hits[tier],
            "evicted": traffic.evicted[tier],
        }
        for tier, stats in traffic.tiers.items()
    }


def _link(link: LinkStats) -> dict[str, Any]:
    p50, p99 = _percentiles_ms(link)
    return {
        "ops": link.ops,
        "pages": link.pages,
        "bytes": link.nbytes,
        "busy_s": link.busy_s,
        "gb_per_s": link.bytes_per_s / GB,
        "latency_p50_ms": p50,
        "latency_p99_ms": p99,
    }


def _disk_reads(outcome: Outcome) -> dict[str, Any] | None:
    if outcome.disk is None:
        return None
    ours = outcome.stats.traffic.links["disk->device"].bytes_per_s
    same = outcome.disk.same_extents
    return {
        "extents_per_page": outcome.extents_per_page,
        "loads_in_flight": outcome.disk.loads,
        "queue_depth": outcome.disk.queue_depth,
        "plain_reader_queue_depth": same.queue_depth,
        "gb_per_s": ours / GB,
        "plain_reader_gb_per_s": same.bytes_per_s / GB,
        "ratio_to_plain_reader": ours / same.bytes_per_s,
        "plain_afterwards_gb_per_s": outcome.disk.afterwards.bytes_per_s / GB,
        "plain_2mib_gb_per_s": outcome.disk.blocks.bytes_per_s / GB,
    }


def print_summary(outcome: Outcome, console: Console) -> None:
    """Print the table a person reads after a replay."""
    for table in (_summary_table(outcome), _tier_table(outcome), _link_table(outcome)):
        console.print(table)
    if outcome.stats.misses:
        console.print(_miss_table(outcome))
    if outcome.run.wrong_bytes:
        console.print(f"[bold red]{outcome.run.wrong_bytes} wrong bytes[/bold red]")


def _summary_table(outcome: Outcome) -> Table:
    table = Table(title=f"replay of {outcome.trace.name}", show_header=False, title_justify="left")
    for label, value in summary_rows(outcome):
        table.add_row(label, value)
    return table


def summary_rows(outcome: Outcome) -> list[tuple[str, str]]:
    """What happened, in a dozen rows."""
    figures = as_json(outcome)
    rows = [
        ("requests", f"{figures['requests']:,} in {figures['seconds']:.1f} s"),
        ("page touches", f"{figures['pages_touched']:,}"),
        ("hit ratio", f"{figures['hit_ratio']:.4f}  ({figures['page_hits']:,} pages)"),
        (
            "exact optimum",
            f"{figures['optimum_hit_ratio']:.4f}  ({outcome.optimum_hits:,} pages)",
        ),
        ("regret", f"{outcome.regret:.1%} of the optimum's hits"),
        ("regret as the cache sees it", _seen(outcome.stats.regret)),
        ("left too early", f"{figures['ghost_hits']:,} pages asked for after they were evicted"),
        ("found on disk at start", f"{figures['recovered_pages']:,} pages"),
        ("wrong bytes", f"{figures['wrong_bytes']:,}"),
    ]
    return rows + _disk_rows(figures["disk_reads"])


def _seen(found: Regret) -> str:
    return (
        f"{found.all_tiers.regret:.1%}; of device and host alone {found.memory.regret:.1%}"
        f"  (1 page in {1 / found.sample_rate:.0f}, last {found.requests:,} loads)"
    )


def _disk_rows(disk: dict[str, Any] | None) -> list[tuple[str, str]]:
    if disk is None:
        return []
    plain = (
        f"{disk['plain_reader_gb_per_s']:.2f} GB/s on the same extents at queue depth"
        f" {disk['plain_reader_queue_depth']:.1f} (ours: {disk['queue_depth']:.1f});"
        f" our loads reach {disk['ratio_to_plain_reader']:.0%} of it"
    )
    return [
        (
            "disk extents per page",
            f"{disk['extents_per_page']:.3f}  ({1 / disk['extents_per_page']:.1f} pages an extent)",
        ),
        ("plain O_DIRECT reader", plain),
        ("plain 2 MiB reads", f"{disk['plain_2mib_gb_per_s']:.2f} GB/s"),
    ]


def _tier_table(outcome: Outcome) -> Table:
    table = Table("tier", "capacity", "pages now", "hits", "evicted", title_justify="left")
    for name, tier in _tiers(outcome).items():
        columns = ("capacity_pages", "pages", "hits", "evicted")
        table.add_row(name, *(f"{tier[column]:,}" for column in columns))
    return table


def _link_table(outcome: Outcome) -> Table:
    table = Table("link", "ops", "pages", "GB", "GB/s", "p50 ms", "p99 ms", title_justify="left")
    for name, link in outcome.stats.traffic.links.items():
        p50, p99 = _percentiles_ms(link)
        table.add_row(
            name,
            f"{link.ops:,}",
            f"{link.pages:,}",
            f"{link.nbytes / GB:.3f}",
            f"{link.bytes_per_s / GB:.2f}",
            f"{p50:.2f}",
            f"{p99:.2f}",
        )
    return table


def _miss_table(outcome: Outcome) -> Table:
    table = Table("why a page was a miss", "pages", title_justify="left")
    for reason, pages in sorted(outcome.stats.misses.items(), key=lambda item: -item[1]):
        table.add_row(reason.name.lower().replace("_", " "), f"{pages:,}")
    return table


def save_report(outcome: Outcome, path: Path) -> None:
    """Write the self-contained page of a replay."""
    touches = np.cumsum(np.diff(outcome.trace.offsets))
    links = outcome.stats.traffic.links
    write_report(
        path,
        ReportData(
            title=f"Replay of {outcome.trace.name}",
            summary=summary_rows(outcome),
            hit_ratio=HitRatioSeries(
                outcome.trace.timestamps_s,
                np.cumsum(outcome.run.hits) / touches,
                np.cumsum(outcome.optimum) / touches,
            ),
            links=[
                LinkBar(name, link.nbytes / GB, link.bytes_per_s / GB if link.nbytes else None)
                for name, link in links.items()
            ],
            latencies_ms={
                name: np.array(link.latencies_s) * 1e3
                for name, link in links.items()
                if link.latencies_s
            },
            misses={
                reason.name.lower().replace("_", " "): pages
                for reason, pages in outcome.stats.misses.items()
            },
        ),
    )


def _percentiles_ms(link: LinkStats) -> tuple[float, float]:
    if not link.latencies_s:
        return 0.0, 0.0
    p50, p99 = np.percentile(np.array(link.latencies_s), [50, 99]) * 1e3
    return float(p50), float(p99)
