# SPDX-License-Identifier: Apache-2.0
"""What is exported for Prometheus: one table, read when somebody asks.

Every figure is counted anyway; nothing is added to a load or a store. Labels are links, tiers,
reasons, stages and classes of tenants, never tenants, requests or keys, so their number is bounded.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

from bodocache.move.requests import STAGE_BOUNDS_S, Stage, TenantCounts
from bodocache.move.timeline import Cut, Event
from bodocache.move.watchable import Watchable
from bodocache.pages import Reason, Tier
from bodocache.pools import OwnedPool

TIERS = (Tier.DEVICE, Tier.HOST, Tier.DISK)

Labels = tuple[str, ...]
Samples = Iterable[tuple[Labels, float]]


@dataclass(frozen=True, slots=True)
class Watched:
    """A cache or a node, as the metrics see it."""

    mover: Watchable
    misses: Callable[[], dict[Reason, int]]


class Kind(Enum):
    """How Prometheus takes a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. ``read`` gives a value for each set of labels; of a histogram, see ``stages``."""

    name: str  # without the "_total" that a counter is exported with
    kind: Kind
    labels: Labels
    what: str
    read: Callable[[Watched], Samples]

    @property
    def exported_name(self) -> str:
        """The name in Prometheus."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


def name_of(member: Event | Cut | Reason | Tier) -> str:
    """An enum's member, as labels and words name it."""
    return member.name.lower()


def collected(watched: Watched) -> list[Family]:
    """Everything as it is now. Call it on the loop."""
    families = [_family(metric, watched) for metric in METRICS]
    return [*families, _stages(watched.mover.requests.stages)]


def exposition(families: list[Family]) -> bytes:
    """It in Prometheus's text format. Any thread."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(families))
    return generate_latest(registry)


class _Collected:
    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        """One family a metric."""
        return self._families


def _family(metric: Metric, watched: Watched) -> Family:
    made = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = made(metric.name, metric.what, labels=metric.labels)
    for labels, value in metric.read(watched):
        family.add_metric(labels, value)
    return family


def _stages(stages: dict[str, Stage]) -> Family:
    family = HistogramMetricFamily(STAGE_SECONDS.name, STAGE_SECONDS.what, labels=("stage",))
    for name, stage in stages.items():
        below, buckets = 0, []
        bounds = (*map(str, STAGE_BOUNDS_S), "+Inf")
        for bound, count in zip(bounds, stage.counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        family.add_metric((name,), buckets, stage.seconds)
    return family


# Readers


def _one(read: Callable[[Watchable], float]) -> Callable[[Watched], Samples]:
    return lambda watched: (((), read(watched.mover)),)


def _by_link(column: int) -> Callable[[Watched], Samples]:
    """A column of :meth:`Link.counted`."""

    def read(watched: Watched) -> Samples:
        for label, link in watched.mover.links.items():
            yield (label,), link.counted()[column]

    return read


def _estimated(name: str) -> Callable[[Watched], Samples]:
    """Of links that have moved enough to be known."""

    def read(watched: Watched) -> Samples:
        for label, link in watched.mover.links.items():
            known = link.estimate()
            if known is not None:
                yield (label,), getattr(known, name)

    return read


def _judged(name: str) -> Callable[[Watched], Samples]:
    def read(watched: Watched) -> Samples:
        for label, link in watched.mover.links.items():
            yield (label,), getattr(link.calibration.accuracy, name)

    return read


def _queued(watched: Watched) -> Samples:
    links = watched.mover.links
    return (((name,), link.queue.queued_nbytes) for name, link in links.items())


def _in_flight(watched: Watched) -> Samples:
    return (((name,), link.in_flight) for name, link in watched.mover.links.items())


def _used(watched: Watched) -> Samples:
    residency = watched.mover.residency
    for tier, pool in ((Tier.DEVICE, residency.device), (Tier.HOST, residency.host)):
        if isinstance(pool, OwnedPool):
            yield (name_of(tier),), pool.num_pages - pool.free
    if residency.backend is not None:
        yield (name_of(Tier.DISK),), residency.backend.usage.used_frames


def _capacity(watched: Watched) -> Samples:
    residency = watched.mover.residency
    for (tier,), _ in _used(watched):
        yield (tier,), residency.capacity(Tier[tier.upper()])


def _by_tier(read: Callable[[Watchable], Mapping[Tier, int]]) -> Callable[[Watched], Samples]:
    return lambda watched: (((name_of(tier),), read(watched.mover)[tier]) for tier in TIERS)


def _misses(watched: Watched) -> Samples:
    counted = watched.misses()
    return (((name_of(it),), counted.get(it, 0)) for it in Reason if it is not Reason.NONE)


def _cuts(watched: Watched) -> Samples:
    return (((name_of(cut),), watched.mover.requests.cuts[cut]) for cut in Cut)


def _decided(watched: Watched) -> Samples:
    return (((str(why),), count) for why, count in watched.mover.decided_cuts.items())


def _unplanned(watched: Watched) -> Samples:
    return (((str(why),), count) for why, count in watched.mover.unplanned.items())


def _events(watched: Watched) -> Samples:
    counts = watched.mover.requests.timeline.counts
    return (((name_of(event),), counts[event]) for event in Event)


def _by_class(read: Callable[[TenantCounts], int]) -> Callable[[Watched], Samples]:
    return lambda watched: (
        ((name,), read(counts)) for name, counts in watched.mover.requests.by_class.items()
    )


def _hints(watched: Watched) -> Samples:
    return watched.mover.hints.stats().outcomes.items()


_COUNTER, _GAUGE = Kind.COUNTER, Kind.GAUGE
_LINK, _TIER, _TENANTS = ("link",), ("tier",), ("tenants",)

STAGE_SECONDS = Metric(
    "bodocache_stage_seconds",
    Kind.HISTOGRAM,
    ("stage",),
    "how long a stage took: load (asked to settled), drain (settled to released),"
    " store (asked to visible), write (visible to written)",
    lambda _: (),
)

METRICS = (
    Metric("bodocache_hits", _COUNTER, _TIER, "pages that loads delivered, by the tier they lay in",
           _by_tier(lambda it: it.hits)),
    Metric("bodocache_misses", _COUNTER, ("reason",), "pages asked for and not delivered", _misses),
    Metric("bodocache_evicted", _COUNTER, _TIER, "pages that left the tier to make room",
           _by_tier(lambda it: it.residency.evicted)),
    Metric("bodocache_cuts", _COUNTER, ("reason",), "loads whose rest did not come", _cuts),
    Metric("bodocache_decided_cuts", _COUNTER, ("why",),
           "loads that were cut: before the first byte, when found tardy, by their deadline, or for"
           " lack of credits",
           _decided),
    Metric("bodocache_joined", _COUNTER, (),
           "pages that were on their way for another load, and not read again",
           _one(lambda it: it.joined)),
    Metric("bodocache_loads_in_flight", _GAUGE, (), "loads asked for and not settled",
           _one(lambda it: it.requests.loads_in_flight)),
    Metric("bodocache_stores_in_flight", _GAUGE, (), "stores asked for and not visible",
           _one(lambda it: it.requests.stores_in_flight)),
    Metric("bodocache_tier_pages", _GAUGE, _TIER, "slots or frames taken, by pages or on their way",
           _used),
    Metric("bodocache_tier_capacity_pages", _GAUGE, _TIER, "slots or frames", _capacity),
    Metric("bodocache_link_ops", _COUNTER, _LINK, "ops that ended", _by_link(0)),
    Metric("bodocache_link_pages", _COUNTER, _LINK, "pages that arrived", _by_link(1)),
    Metric("bodocache_link_bytes", _COUNTER, _LINK, "bytes of them", _by_link(2)),
    Metric("bodocache_link_busy_seconds", _COUNTER, _LINK, "with at least one op in flight",
           _by_link(3)),
    Metric("bodocache_link_in_flight", _GAUGE, _LINK, "ops that wait or move", _in_flight),
    Metric("bodocache_link_queued_bytes", _GAUGE, _LINK,
           "that wait or move in its queue; links of one device share it", _queued),
    Metric("bodocache_link_predictions", _COUNTER, _LINK, "finishes predicted that could be judged",
           _judged("made")),
    Metric("bodocache_link_predictions_kept", _COUNTER, _LINK,
           "of them, finished by then; nine of ten are meant", _judged("early")),
    Metric("bodocache_link_rate_bytes_per_second", _GAUGE, _LINK,
           "its rate as learned; absent until enough has moved", _estimated("rate")),
    Metric("bodocache_link_spread", _GAUGE, _LINK, "of its rate, s/sqrt(byte); idem",
           _estimated("spread")),
    Metric("bodocache_link_drift", _GAUGE, _LINK, "its rate's learned relative error; idem",
           _estimated("drift")),
    Metric("bodocache_planner_windows", _COUNTER, (), "windows planned",
           _one(lambda it: it.residency.windows)),
    Metric("bodocache_planner_seconds", _COUNTER, (), "that planning them took",
           _one(lambda it: it.residency.planning_s)),
    Metric("bodocache_planner_unplanned", _COUNTER, ("why",),
           "windows that went by deadlines alone: the planner raised, took too long, or rested"
           " after that", _unplanned),
    Metric("bodocache_saved_seconds", _COUNTER, (),
           "of computing, by pages that loads brought from the host or the disk",
           _one(lambda it: it.worth.saved_s)),
    Metric("bodocache_spent_seconds", _COUNTER, (),
           "of waiting for loads, looking up, and copies of stores",
           _one(lambda it: it.worth.spent_s)),
    Metric("bodocache_aside", _GAUGE, (),
           "1 while the cache stands aside because it cost more than it gained",
           _one(lambda it: it.worth.is_aside)),
    Metric("bodocache_times_aside", _COUNTER, (), "times that it stepped aside",
           _one(lambda it: it.worth.times_aside)),
    Metric("bodocache_credit_waits", _COUNTER, (),
           "times that a chunk's tenant lacked the credits for it",
           _one(lambda it: it.credit_waits)),
    Metric("bodocache_tenant_loads", _COUNTER, _TENANTS, "loads settled",
           _by_class(lambda it: it.loads)),
    Metric("bodocache_tenant_hits", _COUNTER, _TENANTS, "pages they delivered",
           _by_class(lambda it: it.hits)),
    Metric("bodocache_tenant_misses", _COUNTER, _TENANTS, "pages of their prompts they did not",
           _by_class(lambda it: it.misses)),
    Metric("bodocache_tenant_stored", _COUNTER, _TENANTS, "new pages stored",
           _by_class(lambda it: it.stored)),
    Metric("bodocache_failed_checks", _COUNTER, (), "pages whose bytes failed their digest",
           _one(lambda it: it.failed_checks)),
    Metric("bodocache_writes_refused", _COUNTER, (), "pages not written to disk",
           _one(lambda it: it.not_admitted)),
    Metric("bodocache_task_failures", _COUNTER, (), "background tasks that raised: a bug or a disk",
           _one(lambda it: it.task_failures)),
    Metric("bodocache_hints", _COUNTER, ("action", "status"), "hints of callers", _hints),
    Metric("bodocache_sessions", _GAUGE, (), "sessions remembered",
           _one(lambda it: it.hints.stats().sessions)),
    Metric("bodocache_timeline_events", _COUNTER, ("event",), "events noted", _events),
    Metric("bodocache_timeline_lost", _COUNTER, (), "of them, that made room for newer ones",
           _one(lambda it: it.requests.timeline.lost)),
)  # fmt: skip
