"""The text says the same, under the same names and labels, as OpenTelemetry's metrics do when Prometheus has them."""

import re

from nexcache.telemetry.counts import Counts
from nexcache.telemetry.events import (
    BackendFailed,
    Emitter,
    Evicted,
    Filled,
    Invalidated,
    NotStored,
    Stored,
)
from nexcache.telemetry.metrics import OTelMetrics
from nexcache.telemetry.names import Bypass, NotStoredReason, Result, Tier, Trigger
from nexcache.telemetry.prometheus import PrometheusText
from tests.deploy.prometheus_names import series
from tests.telemetry.conftest import Meters


def filled(counts: Counts, emitter: Emitter) -> None:
    for tenant in ("acme", "globex"):
        each = counts.of(tenant, "dashboard")
        each.memory_hits += 3
        each.redis_hits += 2
        each.fallback_hits += 1
        each.misses += 2
        each.stale += 1
        each.errors += 1
        each.bypasses[Bypass.RANGE] += 1
        each.coalesced += 1
        each.stored_memory += 1
        emitter.emit(Filled("dashboard", tenant, 0.3, 0))
        emitter.emit(Stored("dashboard", tenant, Tier.REDIS, 3_000, 60.0))
        emitter.emit(NotStored("dashboard", tenant, NotStoredReason.QUOTA))
        emitter.emit(Invalidated(tenant, Trigger.INGEST, "operation", ("dashboard",), (), True, 0.001))
    counts.ingested_accepted += 5
    emitter.looked_up("dashboard", Result.HIT, Tier.REDIS, 0.0004)
    emitter.emit(Evicted("capacity", 2))
    emitter.emit(BackendFailed("get", "timeout"))


def parsed(text: str) -> dict[str, dict[str, set[str]]]:
    found: dict[str, dict[str, set[str]]] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (-?[0-9.e+-]+)", line)
        assert match is not None, line
        labels = found.setdefault(match[1], {})
        for name, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""):
            labels.setdefault(name, set()).add(value)
    return found


def test_names_and_labels_are_those_of_opentelemetry(meters: Meters) -> None:
    emitter, counts = Emitter(), Counts()

    def held() -> tuple[int, int]:
        return 4, 4_000

    def available() -> dict[str, bool]:
        return {"redis": True}

    metrics = OTelMetrics(emitter, counts, memory=held, available=available, meter_provider=meters.provider)
    text = PrometheusText(emitter, counts, memory=held, available=available)
    filled(counts, emitter)

    data = meters.reader.get_metrics_data()
    metrics.close()

    assert data is not None
    expected = {
        name: {label: values for label, values in each.labels.items() if label not in ("job", "instance", "le")}
        for name, each in series(data).items()
    }
    told = {
        name: {label: values for label, values in labels.items() if label != "le"}
        for name, labels in parsed(text.render(None)).items()
    }
    assert told == expected


def test_buckets_are_cumulative_and_end_in_the_count() -> None:
    emitter = Emitter()
    text = PrometheusText(emitter, Counts(), memory=lambda: (0, 0), available=dict)
    for seconds in (0.004, 0.005, 0.3, 60.0):
        emitter.emit(Filled("dashboard", "acme", seconds, 0))

    lines = [line for line in text.render("acme").splitlines() if line.startswith("nexcache_fill_duration")]

    numbers = {re.sub(r'.*le="([^"]+)".*', r"\1", line): line.split()[-1] for line in lines if "_bucket" in line}
    assert (numbers["0.005"], numbers["0.25"], numbers["0.5"], numbers["10.0"], numbers["+Inf"]) == (
        "2",
        "2",
        "3",
        "3",
        "4",
    )
    assert lines[-1] == 'nexcache_fill_duration_seconds_count{nexcache_operation="dashboard"} 4'


def test_a_tenant_is_told_nothing_of_others() -> None:
    emitter, counts = Emitter(), Counts()
    text = PrometheusText(emitter, counts, memory=lambda: (9, 9), available=lambda: {"redis": True})
    filled(counts, emitter)
    counts.of("globex", "secret_operation").misses += 1
    emitter.emit(Filled("secret_fill", "globex", 0.1, 0))

    told = text.render("acme")

    assert "secret" not in told
    assert "nexcache_memory" not in told
    assert "nexcache_ingest" not in told
    assert 'nexcache_cache_result="miss"} 2' in told


def test_a_hostile_name_stays_inside_its_quotes() -> None:
    counts = Counts()
    counts.of("acme", 'a"} 1\nforged{x="\\').misses += 1
    text = PrometheusText(Emitter(), counts, memory=lambda: (0, 0), available=dict).render("acme")

    assert not any(line.startswith("forged") for line in text.splitlines())
    assert 'nexcache_operation="a\\"} 1\\nforged{x=\\"\\\\"' in text


def test_what_is_beyond_the_bound_is_still_in_the_sums() -> None:
    emitter = Emitter()
    text = PrometheusText(emitter, Counts(), memory=lambda: (0, 0), available=dict)
    for number in range(11_000):
        emitter.emit(Invalidated(f"t{number}", Trigger.API, "tenant", ("*",), (), True, 0.0))

    assert len(text._totals) <= 10_001
    assert " 11000\n" in text.render(None)
