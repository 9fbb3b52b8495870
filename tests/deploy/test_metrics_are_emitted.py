"""Every metric and label that the dashboard or a rule names comes out of a run of the app."""

import asyncio
import contextlib
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource

from deploy import traffic
from nexcache import NexCache, Settings, tenants
from nexcache.demo.app import create_app
from nexcache.demo.backend import Backend
from nexcache.demo.valkey import EmbeddedValkey
from nexcache.telemetry import names
from nexcache.telemetry.events import BackendChanged, Event, NotStored
from tests.deploy.files import ROOT, panels, rules, variables
from tests.deploy.prometheus_names import Series, label_name, series
from tests.deploy.promql import Selector, grouped_by, output_labels, parse, selectors, variable

Emitted = dict[str, Series]

EXPRESSIONS = [
    *(
        pytest.param(target["expr"], id=f"{panel['title']}: {target['refId']}")
        for panel in panels()
        for target in panel["targets"]
    ),
    *(pytest.param(rule["expr"], id=rule["alert"]) for rule in rules()),
]
LEGENDS = [
    pytest.param(
        target["expr"],
        re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]),
        id=f"{panel['title']}: {target['refId']}",
    )
    for panel in panels()
    for target in panel["targets"]
]
ANNOTATIONS = [
    pytest.param(rule["expr"], re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())), id=rule["alert"])
    for rule in rules()
]
CLOSED = {
    label_name(attribute): {each.value for each in words}
    for attribute, words in {
        names.ATTR_RESULT: names.Result,
        names.ATTR_TIER: names.Tier,
        names.ATTR_BYPASS_REASON: names.Bypass,
        names.ATTR_TRIGGER: names.Trigger,
        names.ATTR_NOT_STORED_REASON: names.NotStoredReason,
    }.items()
} | {label_name(names.ATTR_EVICTION_REASON): {"capacity", "expired"}}
"""The attributes whose values are closed lists, those included that a short run does not meet."""


async def use(app: httpx2.AsyncClient, key: str) -> None:
    """Send spans, ask for every page and then again, and for one without a key."""
    rng = random.Random(1)  # the same visits in every run
    headers = {"X-API-Key": key}
    for _ in range(8):
        body = traffic.visit(rng, time.time_ns())
        sent = await app.post("/v1/traces", content=body, headers=headers | {"Content-Type": "application/json"})
        assert sent.status_code == 200
    for page in traffic.PAGES:
        for _ in range(2):
            assert (await app.get(page, headers=headers)).status_code == 200
    assert (await app.get("/api/v1/dashboard")).status_code == 401


@contextlib.contextmanager
def hanging(valkey: EmbeddedValkey) -> Iterator[None]:
    os.kill(valkey.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(valkey.pid, signal.SIGCONT)


def note_return(back: asyncio.Event, event: Event) -> None:
    if isinstance(event, BackendChanged) and event.available:
        back.set()


async def run(directory: Path, reader: InMemoryMetricReader) -> Emitted:
    """Run the back end with its memory only, then with a store, then with that store hanging for a while."""
    data = None
    keys = (tenants.ApiKey.of("acme", "secret"),)
    resolver = tenants.api_key("X-API-Key", keys=keys)
    with EmbeddedValkey() as valkey:
        for store, name in ((None, "memory.db"), (valkey, "redis.db")):
            # so little room that something has to leave
            settings = Settings(redis_url=store and store.url, redis_host=None, api_keys=keys, l1_max_entries=3)
            backend = Backend(directory / name, resolver)
            async with NexCache(settings) as cache:
                back = asyncio.Event()
                cache.emitter.subscribe(partial(note_return, back), BackendChanged)
                transport = httpx2.ASGITransport(app=create_app(cache, backend, resolver))
                async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
                    await use(client, "secret")
                    await cache.invalidate("acme", "dashboard_*", tags=["service:cart"])
                    cache.counts.of("acme", "dashboard_overview").shadow_checks += 1  # no policy of the demo's has any
                    cache.emitter.emit(NotStored("dashboard_overview", "acme", names.NotStoredReason.QUOTA))
                    if store is not None:
                        with hanging(store):
                            await use(client, "secret")
                        await asyncio.wait_for(back.wait(), 10)
                data = reader.get_metrics_data()
            backend.database.close()
    assert data is not None
    return series(data)


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emitted]:
    reader = InMemoryMetricReader()
    resource = Resource.create({"service.name": "nexcache-demo"})
    provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    with pytest.MonkeyPatch.context() as patch:
        # as if it were the program's, without being left to the tests that follow
        patch.setattr("opentelemetry.metrics.get_meter_provider", lambda: provider)
        patch.setattr("nexcache.telemetry.metrics._known", [])  # other tests' caches tell another provider
        told = asyncio.run(run(tmp_path_factory.mktemp("spans"), reader))
    yield told
    provider.shutdown()


def named(emitted: Emitted) -> dict[str, set[str]]:
    return {name: set(each.labels) for name, each in emitted.items()}


def unknown(found: list[Selector], emitted: Emitted) -> list[str]:
    """Say what of some selectors nobody emits: metrics, labels, and words of a closed list."""
    missing = [each.metric for each in found if each.metric not in emitted]
    for each in found:
        labels = emitted[each.metric].labels if each.metric in emitted else {}
        missing += [f"{each.metric}: {match.label}" for match in each.matches if match.label not in labels]
        missing += [
            f"{each.metric}: {match.label}={word}"
            for match in each.matches
            for word in match.values
            if word not in labels.get(match.label, set()) | CLOSED.get(match.label, set())
        ]
    return missing


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_selects_what_is_emitted(emitted: Emitted, expression: str) -> None:
    assert selectors(parse(expression))
    assert unknown(selectors(parse(expression)), emitted) == []


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_groups_by_labels_that_are_emitted(emitted: Emitted, expression: str) -> None:
    read = {label for each in selectors(parse(expression)) for label in emitted[each.metric].labels}
    assert grouped_by(parse(expression)) <= read


@pytest.mark.parametrize(("expression", "labels"), LEGENDS + ANNOTATIONS)
def test_a_legend_or_an_annotation_names_labels_of_the_result(
    emitted: Emitted, expression: str, labels: list[str]
) -> None:
    assert set(labels) <= output_labels(parse(expression), named(emitted))


@pytest.mark.parametrize("each", variables(), ids=lambda each: each["name"])
def test_a_variable_reads_a_label_that_is_emitted(emitted: Emitted, each: dict[str, Any]) -> None:
    found, label = variable(each["definition"])
    assert each["query"] == {"query": each["definition"], "refId": "Variable"}
    assert unknown(found, emitted) == []
    assert all(label in emitted[selector.metric].labels for selector in found)


def test_a_dashboards_expressions_use_variables_that_it_has() -> None:
    used = {
        name
        for panel in panels()
        for target in panel["targets"]
        for name in re.findall(r"\$([a-z]\w*)", target["expr"])
    }
    assert used == {each["name"] for each in variables()}


def test_what_nobody_emits_is_noticed(emitted: Emitted) -> None:
    found = selectors(
        parse('nexcache_hits_total / nexcache_requests_total{nexcache_cache_result="hitt", nexcache_tenant=""}')
    )
    assert unknown(found, emitted) == [
        "nexcache_hits_total",
        "nexcache_requests_total: nexcache_tenant",
        "nexcache_requests_total: nexcache_cache_result=hitt",
    ]


def test_every_metric_that_nexcache_emits_is_on_the_dashboard(emitted: Emitted) -> None:
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    shown = {selector.metric for expression in expressions for selector in selectors(parse(expression))}
    # of a histogram, its buckets tell what its sum and count would
    histograms = {name.removesuffix("_bucket") for name in emitted if name.endswith("_bucket")}
    derived = {f"{name}_{part}" for name in histograms for part in ("sum", "count")}
    assert set(emitted) - derived == shown


def test_the_run_met_what_the_charts_tell_apart(emitted: Emitted) -> None:
    requests = emitted["nexcache_requests_total"].labels
    assert {"hit", "miss", "bypass"} <= requests["nexcache_cache_result"]
    assert {"memory", "redis", "fallback"} <= requests["nexcache_cache_tier"]
    assert {"ingest", "api"} <= emitted["nexcache_invalidations_total"].labels["nexcache_invalidation_trigger"]
    assert emitted["nexcache_backend_errors_total"].labels["error_type"]
    assert emitted["nexcache_evictions_total"].labels["nexcache_eviction_reason"] == {"capacity"}


def test_the_page_about_it_names_metrics_that_are_emitted(emitted: Emitted) -> None:
    page = (ROOT / "docs/compose.md").read_text()
    named_there = set(re.findall(r"`(nexcache_\w+)`", page))
    labels = {label for each in emitted.values() for label in each.labels}
    assert named_there
    assert named_there <= set(emitted) | labels
