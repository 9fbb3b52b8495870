import gc
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Mapping

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    Gauge,
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    Sum,
)

from nexcache.telemetry.counts import Counts
from nexcache.telemetry.events import (
    BackendChanged,
    BackendFailed,
    Emitter,
    Event,
    Evicted,
    Filled,
    Invalidated,
    NotStored,
    Stored,
)
from nexcache.telemetry.metrics import OTelMetrics
from nexcache.telemetry.names import FILL_BOUNDS, LOOKUP_BOUNDS, Bypass, NotStoredReason, Result, Tier, Trigger
from tests.telemetry.conftest import Meters


class Cache:
    """What of a cache the metrics read."""

    def __init__(self, meters: Meters | None = None, tenants: tuple[str, ...] = ()) -> None:
        self.emitter = Emitter()
        self.counts = Counts()
        self.memory = (0, 0)
        self.available = {"redis": True}
        self.state = {"ok": True, "down": False}
        self.metrics = OTelMetrics(
            self.emitter,
            self.counts,
            memory=lambda: self.memory,
            available=lambda: self.available,
            state=lambda: self.state,
            tenants=tenants,
            meter_provider=None if meters is None else meters.provider,
        )


def invalidated(tenant: str = "acme", trigger: Trigger = Trigger.INGEST, scope: str = "operation") -> Invalidated:
    return Invalidated(tenant, trigger, scope, ("dashboard",), (), acknowledged=True, duration=0.001)


def series(**attributes: str) -> frozenset[tuple[str, object]]:
    words = {
        "operation": "nexcache.operation",
        "state": "nexcache.state.name",
        "result": "nexcache.cache.result",
        "tier": "nexcache.cache.tier",
        "tenant": "nexcache.tenant.id",
        "bypass": "nexcache.bypass.reason",
        "refused": "nexcache.not_stored.reason",
        "trigger": "nexcache.invalidation.trigger",
        "scope": "nexcache.invalidation.scope",
        "evicted": "nexcache.eviction.reason",
        "error": "error.type",
        "call": "nexcache.backend.operation",
        "backend": "nexcache.backend",
        "outcome": "nexcache.ingest.outcome",
    }
    return frozenset((words[name], value) for name, value in attributes.items())


def a_bit_of_everything(cache: Cache) -> None:
    counts = cache.counts.of("acme", "dashboard")
    counts.memory_hits = 10
    counts.redis_hits = 5
    counts.fallback_hits = 2
    counts.misses = 3
    counts.stale = 1
    counts.errors = 4
    counts.coalesced = 7
    counts.bypasses[Bypass.NO_PRINCIPAL] = 6
    counts.stored(Tier.MEMORY)
    counts.stored(Tier.REDIS)
    counts.stored(Tier.FALLBACK)
    cache.counts.of(None, "dashboard").bypasses[Bypass.NO_TENANT] = 8
    cache.counts.ingested_accepted = 100
    cache.counts.ingested_ignored = 9
    cache.memory = (12, 4096)
    cache.emitter.looked_up("dashboard", Result.HIT, Tier.REDIS, 0.0002)
    events: tuple[Event, ...] = (
        Filled("dashboard", "acme", 0.04, coalesced=7),
        Stored("dashboard", "acme", Tier.REDIS, 2048, 30.0),
        NotStored("dashboard", "acme", NotStoredReason.QUOTA),
        invalidated(),
        Evicted("capacity", 3),
        BackendFailed("get", "timeout"),
    )
    for event in events:
        cache.emitter.emit(event)


REQUESTS = {
    series(operation="dashboard", result="hit", tier="memory"): 10,
    series(operation="dashboard", result="hit", tier="redis"): 5,
    series(operation="dashboard", result="hit", tier="fallback"): 2,
    series(operation="dashboard", result="miss"): 3,
    series(operation="dashboard", result="stale"): 1,
    series(operation="dashboard", result="error"): 4,
    series(operation="dashboard", result="bypass"): 14,
}


@pytest.mark.parametrize(
    ("name", "unit", "kind", "values"),
    [
        pytest.param("nexcache.requests", "{request}", Sum, REQUESTS, id="requests"),
        pytest.param(
            "nexcache.bypasses",
            "{request}",
            Sum,
            {series(bypass=reason): {"no-principal": 6, "no-tenant": 8}.get(reason, 0) for reason in Bypass},
            id="bypasses",
        ),
        pytest.param(
            "nexcache.coalesced.requests", "{request}", Sum, {series(operation="dashboard"): 7}, id="coalesced"
        ),
        pytest.param(
            "nexcache.stores",
            "{entry}",
            Sum,
            {
                series(operation="dashboard", tier="memory"): 1,
                series(operation="dashboard", tier="redis"): 1,
                series(operation="dashboard", tier="fallback"): 1,
            },
            id="stores",
        ),
        pytest.param(
            "nexcache.not_stored", "{entry}", Sum, {series(operation="dashboard", refused="quota"): 1}, id="not stored"
        ),
        pytest.param(
            "nexcache.ingest.spans",
            "{span}",
            Sum,
            {series(outcome="accepted"): 100, series(outcome="rejected"): 0, series(outcome="ignored"): 9},
            id="ingest",
        ),
        pytest.param(
            "nexcache.lookup.duration", "s", Histogram, {series(result="hit", tier="redis"): 0.0002}, id="lookup"
        ),
        pytest.param("nexcache.fill.duration", "s", Histogram, {series(operation="dashboard"): 0.04}, id="fill"),
        pytest.param("nexcache.entry.size", "By", Histogram, {series(): 2048}, id="size"),
        pytest.param(
            "nexcache.invalidations",
            "{invalidation}",
            Sum,
            {series(trigger="ingest", scope="operation"): 1},
            id="invalidations",
        ),
        pytest.param("nexcache.evictions", "{entry}", Sum, {series(evicted="capacity"): 3}, id="evictions"),
        pytest.param("nexcache.backend.errors", "{error}", Sum, {series(error="timeout", call="get"): 1}, id="errors"),
        pytest.param("nexcache.memory.entry.count", "{entry}", Sum, {series(): 12}, id="entries"),
        pytest.param("nexcache.memory.usage", "By", Sum, {series(): 4096}, id="bytes"),
        pytest.param("nexcache.state", "{cache}", Sum, {series(state="ok"): 1, series(state="down"): 0}, id="state"),
        pytest.param("nexcache.backend.available", "1", Gauge, {series(backend="redis"): 1}, id="available"),
    ],
)
def test_each_metric_has_its_name_unit_and_attributes(
    meters: Meters,
    name: str,
    unit: str,
    kind: type,
    values: Mapping[frozenset[tuple[str, object]], float],
) -> None:
    cache = Cache(meters)
    a_bit_of_everything(cache)
    metric = meters.collect()[name]
    assert metric.unit == unit
    assert isinstance(metric.data, kind)
    assert metric.description
    assert meters.values(name) == values


def test_counters_only_rise_and_memory_may_fall(meters: Meters) -> None:
    cache = Cache(meters)
    a_bit_of_everything(cache)
    sums = {name: metric.data.is_monotonic for name, metric in meters.collect().items() if isinstance(metric.data, Sum)}
    falling = {"nexcache.memory.entry.count", "nexcache.memory.usage", "nexcache.state"}
    assert {name for name, monotonic in sums.items() if not monotonic} == falling


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        pytest.param("nexcache.lookup.duration", LOOKUP_BOUNDS, id="lookup"),
        pytest.param("nexcache.fill.duration", FILL_BOUNDS, id="fill"),
    ],
)
def test_histograms_have_bounds_that_fit(meters: Meters, name: str, bounds: tuple[float, ...]) -> None:
    cache = Cache(meters)
    a_bit_of_everything(cache)
    [point] = meters.points(name).values()
    assert isinstance(point, HistogramDataPoint)
    assert tuple(point.explicit_bounds) == bounds


def test_every_reason_of_a_bypass_is_there_from_the_start(meters: Meters) -> None:
    cache = Cache(meters)
    assert meters.values("nexcache.bypasses") == {series(bypass=reason): 0 for reason in Bypass}
    cache.counts.of("acme", "dashboard")
    assert meters.values("nexcache.requests") == {
        series(operation="dashboard", result="hit", tier="memory"): 0,
        series(operation="dashboard", result="miss"): 0,
    }


def test_what_a_cache_does_not_know_is_not_reported(meters: Meters) -> None:
    emitter = Emitter()
    metrics = OTelMetrics(emitter, Counts(), meter_provider=meters.provider)
    assert "nexcache.requests" not in meters.collect()
    assert "nexcache.memory.usage" not in meters.collect()
    assert "nexcache.backend.available" not in meters.collect()
    assert "nexcache.state" not in meters.collect()
    metrics.close()


def test_an_event_without_a_metric_changes_none(meters: Meters) -> None:
    cache = Cache(meters)
    before = meters.collect().keys()
    cache.emitter.emit(BackendChanged("redis", available=False, kind="timeout"))
    assert meters.collect().keys() == before


def test_five_thousand_tenants_make_no_further_series(meters: Meters) -> None:
    cache = Cache(meters)
    for number in range(5_000):
        for operation in ("dashboard", "map", "details"):
            counts = cache.counts.of(f"tenant-{number}", operation)
            counts.memory_hits += 1
            counts.bypasses[Bypass.METHOD] += 1
            counts.stored(Tier.MEMORY)
        cache.emitter.emit(invalidated(tenant=f"tenant-{number}"))
    assert {name: len(metric.data.data_points) for name, metric in meters.collect().items()} == {
        "nexcache.requests": 3 * 3,
        "nexcache.bypasses": len(Bypass),
        "nexcache.coalesced.requests": 3,
        "nexcache.stores": 3,
        "nexcache.ingest.spans": 3,
        "nexcache.invalidations": 1,
        "nexcache.memory.entry.count": 1,
        "nexcache.memory.usage": 1,
        "nexcache.backend.available": 1,
        "nexcache.state": 2,
    }
    assert meters.values("nexcache.requests")[series(operation="map", result="hit", tier="memory")] == 5_000
    assert meters.values("nexcache.invalidations")[series(trigger="ingest", scope="operation")] == 5_000


def test_only_the_tenants_on_the_list_appear_and_all_others_are_one(meters: Meters) -> None:
    cache = Cache(meters, tenants=("acme",))
    for tenant in ("acme", "globex", "initech"):
        cache.counts.of(tenant, "dashboard").misses = 1
        cache.emitter.emit(invalidated(tenant=tenant))
    cache.counts.of(None, "dashboard").bypasses[Bypass.NO_TENANT] = 1
    misses = {labels: value for labels, value in meters.values("nexcache.requests").items() if value and labels}
    assert misses == {
        series(tenant="acme", operation="dashboard", result="miss"): 1,
        series(tenant="_other", operation="dashboard", result="miss"): 2,
        series(operation="dashboard", result="bypass"): 1,
    }
    assert meters.values("nexcache.invalidations") == {
        series(tenant="acme", trigger="ingest", scope="operation"): 1,
        series(tenant="_other", trigger="ingest", scope="operation"): 2,
    }


def test_several_caches_of_a_process_give_their_sums(meters: Meters, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Cache(meters), Cache(meters)
    a_bit_of_everything(first)
    a_bit_of_everything(second)
    second.available = {"redis": False, "other": True}
    assert meters.values("nexcache.requests") == {labels: 2 * value for labels, value in REQUESTS.items()}
    assert meters.values("nexcache.memory.usage") == {series(): 8192}
    assert meters.values("nexcache.evictions") == {series(evicted="capacity"): 6}
    assert meters.values("nexcache.backend.available") == {
        series(backend="redis"): 0,
        series(backend="other"): 1,
    }
    assert not caplog.records


def test_a_closed_cache_is_observed_no_more_and_no_counter_falls(meters: Meters) -> None:
    closing, staying = Cache(meters), Cache(meters)
    a_bit_of_everything(closing)
    closing.metrics.close()
    closing.metrics.close()
    a_bit_of_everything(closing)
    closing.counts.of("acme", "dashboard").memory_hits = 1_000
    staying.counts.of("acme", "dashboard").memory_hits = 1
    values = meters.values("nexcache.requests")
    assert values[series(operation="dashboard", result="hit", tier="memory")] == 11
    assert meters.values("nexcache.memory.usage") == {series(): 0}
    assert meters.values("nexcache.evictions") == {series(evicted="capacity"): 3}
    assert not closing.emitter.hears(Evicted)


def test_a_cache_that_is_dropped_is_freed_and_no_counter_falls(meters: Meters) -> None:
    cache = Cache(meters)
    a_bit_of_everything(cache)
    gone = weakref.ref(cache), weakref.ref(cache.metrics)
    before = meters.values("nexcache.requests")
    del cache
    gc.collect()
    assert [each() for each in gone] == [None, None]
    for _ in range(2):
        assert meters.values("nexcache.requests") == before
        assert meters.values("nexcache.backend.available") == {}
        assert meters.values("nexcache.memory.usage") == {}


def test_a_provider_that_is_dropped_is_not_kept() -> None:
    provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    metrics = OTelMetrics(Emitter(), Counts(), meter_provider=provider)
    provider.shutdown()
    gone = weakref.ref(provider)
    del provider, metrics
    gc.collect()
    assert gone() is None


def test_what_raises_while_it_is_read_is_counted_and_leaves_the_rest(meters: Meters) -> None:
    emitter, counts = Emitter(), Counts()
    counts.of("acme", "dashboard").misses = 1

    def broken() -> tuple[int, int]:
        raise RuntimeError("memory")

    def broken_too() -> Mapping[str, bool]:
        raise RuntimeError("available")

    metrics = OTelMetrics(emitter, counts, memory=broken, available=broken_too, meter_provider=meters.provider)
    assert meters.values("nexcache.requests")[series(operation="dashboard", result="miss")] == 1
    assert emitter.failures == 3  # entries, bytes and states
    metrics.close()


def test_an_instrument_that_raises_changes_nothing_and_is_counted(
    meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(meters)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("record")

    monkeypatch.setattr("opentelemetry.sdk.metrics._internal.instrument.Histogram.record", broken)
    monkeypatch.setattr("opentelemetry.sdk.metrics._internal.instrument.Counter.add", broken)
    a_bit_of_everything(cache)
    assert cache.emitter.failures == 7


def test_caches_made_before_and_after_the_global_provider_are_all_observed() -> None:
    """Run in a process of its own, because a global provider can be set only once."""
    program = """
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from nexcache.telemetry.counts import Counts
        from nexcache.telemetry.events import Emitter, Evicted
        from nexcache.telemetry.metrics import OTelMetrics

        def cache(provider=None):
            emitter, counts = Emitter(), Counts()
            counts.of("acme", "dashboard").misses = 1
            kept.append((emitter, OTelMetrics(emitter, counts, meter_provider=provider)))

        kept = []
        cache()
        cache()
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader])
        metrics.set_meter_provider(provider)
        cache()
        cache(provider)
        for emitter, _ in kept:
            emitter.emit(Evicted("capacity", 1))
        for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
            if metric.name == "nexcache.requests":
                print(*sorted(point.value for point in metric.data.data_points))
            if metric.name == "nexcache.evictions":
                print(*(point.value for point in metric.data.data_points))
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert sorted(done.stdout.splitlines()) == ["0 4", "4"]
