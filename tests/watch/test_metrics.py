# SPDX-License-Identifier: Apache-2.0
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from bodocache.config import CacheConfig, MetricsConfig, parse
from bodocache.errors import ConfigError
from bodocache.move.orchestrator import Orchestrator
from bodocache.move.requests import Requests
from bodocache.move.timeline import Cut
from bodocache.pages import Reason, Tier
from bodocache.watch.metrics import METRICS, STAGE_SECONDS, collected, exposition


def samples(text):
    """(name, labels' values) -> value."""
    return {
        (one.name, *one.labels.values()): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


async def test_what_is_exported_is_what_was_counted(house, prompt, watched):
    async with house() as it:
        await it.put(prompt(3))
        it.leave_on(Tier.HOST)
        await it.get(prompt(4))
        it.leave_on(Tier.DISK)
        await it.get(prompt(3))  # planned; what only crosses from the host is not
        found, stats = samples(exposition(collected(watched(it))).decode()), it.cache.stats()
    for tier, hits in stats.traffic.hits.items():
        assert found["bodocache_hits_total", tier.name.lower()] == hits
    assert stats.traffic.hits[Tier.HOST] == stats.traffic.hits[Tier.DISK] == 3
    assert found["bodocache_misses_total", "never_stored"] == 1 == stats.misses[Reason.NEVER_STORED]
    for name, link in stats.traffic.links.items():
        assert found["bodocache_link_bytes_total", name] == link.nbytes
    assert found["bodocache_tier_pages", "host"] == 3
    assert found["bodocache_tier_capacity_pages", "host"] == 8
    assert found["bodocache_tier_pages", "disk"] == 3
    assert found["bodocache_stage_seconds_count", "load"] == 2
    assert found["bodocache_planner_windows_total",] == 1
    assert found["bodocache_loads_in_flight",] == 0


async def test_every_link_tier_reason_cut_and_class_has_its_label_from_the_start(house, watched):
    async with house() as it:
        found = set(samples(exposition(collected(watched(it))).decode()))
    expected = {("bodocache_misses_total", one.name.lower()) for one in Reason if one}
    expected |= {("bodocache_cuts_total", one.name.lower()) for one in Cut}
    expected |= {("bodocache_link_ops_total", name) for name in it.orchestrator.links}
    expected |= {("bodocache_evicted_total", name) for name in ("device", "host", "disk")}
    expected |= {("bodocache_tenant_loads_total", "other")}
    assert expected <= found


async def test_every_metric_of_the_table_is_exported_and_no_other(house, watched):
    async with house() as it:
        families = text_string_to_metric_families(exposition(collected(watched(it))).decode())
        found = {family.name: family.type for family in families}
    assert found == {metric.name: metric.kind.value for metric in (*METRICS, STAGE_SECONDS)}


def test_tenants_are_counted_by_class_however_many_there_are():
    requests = Requests(lambda: 0.0, ["a"], {"gold": (1, 2), "free": (3,)})
    for tenant in range(1000):
        requests.of_tenant(tenant).loads += 1
    assert {name: it.loads for name, it in requests.by_class.items()} == {
        "gold": 2, "free": 1, "other": 997,
    }  # fmt: skip


async def test_hits_and_misses_are_those_of_the_tenants_class(house, prompt, monkeypatch):
    classes = {"gold": (7,)}
    opened = Orchestrator.__init__

    def with_classes(self, **parts):
        opened(self, **{**parts, "metrics": MetricsConfig(tenant_classes=classes)})

    monkeypatch.setattr(Orchestrator, "__init__", with_classes)
    async with house() as it:
        await it.serve(prompt(2), tenant=7)
        await it.serve(prompt(3), tenant=7)
        await it.serve(prompt(2), tenant=8)
        by_class = it.orchestrator.requests.by_class
    gold, other = by_class["gold"], by_class["other"]
    assert (gold.loads, gold.hits, gold.misses, gold.stored) == (2, 2, 3, 3)
    assert (other.loads, other.hits, other.misses, other.stored) == (1, 2, 0, 0)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"port": 70000}, "metrics.port = 70000"),
        ({"tenant_classes": {"Gold": [1]}}, "Gold"),
        ({"tenant_classes": {"other": [1]}}, "choose another"),
        ({"tenant_classes": {"a": [1], "b": [1]}}, "tenant 1 is in two"),
        ({"tenant_classes": {"a": [-1]}}, "greater than or equal to 0"),
        ({"tenant_classes": {f"c{i}": [i] for i in range(17)}}, "at most 16"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(metrics, said):
    values = {"identity": {"model": "m", "dtype": "d"}, "metrics": metrics}
    with pytest.raises(ConfigError, match=said):
        parse(CacheConfig, {**values, "tiers": {"host": {"capacity_bytes": 1024}}})


def test_a_class_of_tenants_is_named_in_the_configuration():
    with pytest.raises(ValidationError):
        MetricsConfig(tenant_classes={"a b": (1,)})
    assert MetricsConfig(tenant_classes={"gold": (1, 2)}).tenant_classes == {"gold": (1, 2)}
