from collections.abc import Iterator

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource

from tests.deploy.prometheus_names import Kind, label_name, metric_name, series


@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        pytest.param("nexcache.requests", "{request}", Kind.COUNTER, "nexcache_requests_total", id="annotation"),
        pytest.param("fill.duration", "s", Kind.HISTOGRAM, "fill_duration_seconds", id="seconds"),
        pytest.param("memory.usage", "By", Kind.UP_DOWN_COUNTER, "memory_usage_bytes", id="bytes"),
        pytest.param("io", "By", Kind.COUNTER, "io_bytes_total", id="unit-before-total"),
        pytest.param("io", "By/s", Kind.GAUGE, "io_bytes_per_second", id="per"),
        pytest.param("io", "{packet}/s", Kind.GAUGE, "io_per_second", id="annotation-per"),
        pytest.param("io.bytes.read", "By", Kind.GAUGE, "io_bytes_read", id="unit-is-there"),
        pytest.param("jobs.total.done", "1", Kind.COUNTER, "jobs_done_total", id="total-moves-to-the-end"),
        pytest.param("backend.available", "1", Kind.GAUGE, "backend_available_ratio", id="gauge-of-1"),
        pytest.param("users", "1", Kind.UP_DOWN_COUNTER, "users", id="up-down-counter-of-1"),
        pytest.param("load", "%", Kind.GAUGE, "load_percent", id="percent"),
        pytest.param("a..b-c__d", "", Kind.GAUGE, "a_b_c_d", id="runs-become-one"),
        pytest.param("2xx", "", Kind.GAUGE, "_2xx", id="no-digit-first"),
        pytest.param("fuel", "[gal_us]", Kind.GAUGE, "fuel_gal_us", id="unknown-unit"),
    ],
)
def test_an_instrument_is_renamed_by_the_rules(name: str, unit: str, kind: Kind, expected: str) -> None:
    assert metric_name(name, unit, kind) == expected


@pytest.mark.parametrize(
    ("attribute", "label"),
    [
        ("nexcache.cache.result", "nexcache_cache_result"),
        ("error.type", "error_type"),
        ("2x", "key_2x"),
        ("_a", "key_a"),
    ],
)
def test_an_attribute_is_renamed_by_the_rules(attribute: str, label: str) -> None:
    assert label_name(attribute) == label


@pytest.fixture
def meters() -> Iterator[tuple[MeterProvider, InMemoryMetricReader]]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], resource=Resource({"service.name": "api", "service.namespace": "shop"}))
    yield provider, reader
    provider.shutdown()


def test_every_kind_of_point_becomes_its_series(meters: tuple[MeterProvider, InMemoryMetricReader]) -> None:
    provider, reader = meters
    meter = provider.get_meter("test")
    meter.create_counter("hits", "{hit}").add(1, {"the.tier": "redis"})
    meter.create_up_down_counter("held", "By").add(1)
    meter.create_gauge("up", "1").set(1)
    meter.create_histogram("took", "s").record(0.1, {"the.tier": "redis"})
    data = reader.get_metrics_data()
    assert data is not None
    found = {name: dict(each.labels) for name, each in series(data).items()}
    job, tier = {"job": {"shop/api"}}, {"the_tier": {"redis"}}
    assert found == {
        "hits_total": job | tier,
        "held_bytes": job,
        "up_ratio": job,
        "took_seconds_sum": job | tier,
        "took_seconds_count": job | tier,
        "took_seconds_bucket": job | tier | {"le": {"+Inf"}},
    }
