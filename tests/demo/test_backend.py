from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache import NexCache, Settings, tenants
from nexcache.asgi import ASGIApp
from nexcache.demo.app import UNCACHED, create_app
from nexcache.demo.backend import Backend
from tests.demo.spans import NOW, SECOND, made, shop

KEYS = {"acme": "acme-key", "globex": "globex-key"}


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[ASGIApp]:
    keys = tenants.api_key("X-API-Key", keys=KEYS)
    backend = Backend(tmp_path / "spans.db", keys, now_us=lambda: NOW)
    backend.database.seed("acme", shop())
    backend.database.seed("globex", [made(9, 91, None, "frontend GET /", ago=5, ms=7, journey="home")])
    async with NexCache(Settings(redis_url="", redis_host=None)) as cache:
        yield create_app(cache, backend, keys)
    backend.database.close()


def client(app: ASGIApp, tenant: str | None = "acme") -> httpx2.AsyncClient:
    headers = {} if tenant is None else {"X-API-Key": KEYS[tenant]}
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://demo", headers=headers)


def span(service: str, *, journey: str | None = None) -> bytes:
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.add(key="service.name").value.string_value = service
    found = resource_spans.scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, name="x")
    found.start_time_unix_nano = (NOW - SECOND) * 1000
    found.end_time_unix_nano = NOW * 1000
    if journey is not None:
        found.attributes.add(key="app.journey").value.string_value = journey
    body: bytes = request.SerializeToString()
    return body


PAGES = [
    "/api/v1/dashboard",
    "/api/v1/architecture?window=15m",
    "/api/v1/services",
    "/api/v1/services/catalog",
    "/api/v1/metrics?service=catalog",
    "/api/v1/metrics?service=all&metric=failures",
    "/api/v1/metrics?journey=home&metric=own_time",
    "/api/v1/graph?journey=home",
    "/api/v1/graph?journey=home&analysis=fan_out&window=3h",
    "/api/v1/graph?journey=all&analysis=depth",
]


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_is_computed_once_and_then_a_hit(app: ASGIApp, page: str) -> None:
    async with client(app) as readers:
        first, second = await readers.get(page), await readers.get(page)
    assert (first.status_code, first.headers["cache-status"]) == (200, "NexCache; fwd=uri-miss; stored")
    assert "; hit;" in second.headers["cache-status"]
    assert first.json() == second.json()
    assert first.json()["tenant"] == "acme"


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_below_the_uncached_path_is_the_same_and_never_cached(app: ASGIApp, page: str) -> None:
    async with client(app) as readers:
        cached = await readers.get(page)
        answers = [await readers.get(UNCACHED + page) for _ in range(2)]
    assert all("cache-status" not in answer.headers for answer in answers)
    assert answers[1].json() == cached.json()


@pytest.mark.parametrize("page", PAGES)
async def test_without_a_key_there_is_no_page_cold_or_warm(app: ASGIApp, page: str) -> None:
    async with client(app) as readers, client(app, None) as stranger:
        cold = await stranger.get(page)
        await readers.get(page)
        warm = await stranger.get(page)
    assert (cold.status_code, warm.status_code) == (401, 401)


async def test_tenants_are_never_answered_with_each_others_page(app: ASGIApp) -> None:
    async with client(app) as acme, client(app, "globex") as globex:
        answers = [await each.get("/api/v1/dashboard") for each in (acme, globex, acme, globex)]
    assert [answer.json()["tenant"] for answer in answers] == ["acme", "globex", "acme", "globex"]


@pytest.mark.parametrize(
    ("page", "service", "journey", "changed"),
    [
        pytest.param("/api/v1/dashboard", "cart", None, True, id="dashboard: any span"),
        pytest.param("/api/v1/architecture", "cart", None, True, id="architecture: any span"),
        pytest.param("/api/v1/services", "cart", None, True, id="list of services: any span"),
        pytest.param("/api/v1/services/catalog", "catalog", None, True, id="details: its own span"),
        pytest.param("/api/v1/services/catalog", "cart", None, False, id="details: another's span"),
        pytest.param("/api/v1/metrics?service=catalog", "catalog", None, True, id="metrics: its own span"),
        pytest.param("/api/v1/metrics?service=catalog", "cart", None, False, id="metrics: another's span"),
        pytest.param("/api/v1/metrics?service=all", "cart", None, True, id="metrics of all: any span"),
        pytest.param("/api/v1/metrics?journey=home", "cart", "home", True, id="metrics: its journey"),
        pytest.param("/api/v1/metrics?journey=home", "cart", "search", False, id="metrics: another journey"),
        pytest.param("/api/v1/graph?journey=home", "cart", "home", True, id="graph: its journey"),
        pytest.param("/api/v1/graph?journey=home", "cart", None, False, id="graph: no journey"),
        pytest.param("/api/v1/graph?journey=all", "cart", None, True, id="graph of all: any span"),
    ],
)
async def test_a_span_changes_the_pages_that_it_belongs_to_and_no_other(
    app: ASGIApp, page: str, service: str, journey: str | None, changed: bool
) -> None:
    async with client(app) as readers:
        before = await readers.get(page)
        sent = await readers.post(
            "/v1/traces", content=span(service, journey=journey), headers={"content-type": "application/x-protobuf"}
        )
        after, computed = await readers.get(page), await readers.get(UNCACHED + page)
    assert sent.status_code == 200
    assert ("; hit;" not in after.headers["cache-status"]) is changed
    # whether it changed or not: what is answered is what the query finds now
    assert after.json() == computed.json()
    assert (after.json() != before.json()) is changed


@pytest.mark.parametrize(
    ("page", "status", "detail"),
    [
        pytest.param("/api/v1/dashboard?window=2h", 400, "window: one of 15m, 1h, 3h, 6h", id="window"),
        pytest.param("/api/v1/metrics", 400, "either service (a name, or all) or journey", id="neither"),
        pytest.param("/api/v1/metrics?service=a&journey=b", 400, "either service", id="both"),
        pytest.param("/api/v1/metrics?service=catalog&metric=own_time", 400, "metric: one of", id="metric"),
        pytest.param("/api/v1/metrics?service=catalog&step=0", 400, "step: whole seconds", id="step"),
        pytest.param("/api/v1/graph?journey=home&analysis=x", 400, "analysis: one of", id="analysis"),
        pytest.param("/api/v1/graph?journey=nowhere", 404, "no spans of 'journey:nowhere'", id="journey"),
        pytest.param("/api/v1/services/nobody", 404, "no spans of 'service:nobody'", id="service"),
    ],
)
async def test_a_question_that_cannot_be_answered_says_why(app: ASGIApp, page: str, status: int, detail: str) -> None:
    async with client(app) as readers:
        answer = await readers.get(page)
    assert answer.status_code == status
    assert detail in answer.text


async def test_the_first_span_of_a_service_makes_its_page(app: ASGIApp) -> None:
    async with client(app) as readers:
        before = await readers.get("/api/v1/services/cart")
        await readers.post("/v1/traces", content=span("cart"), headers={"content-type": "application/x-protobuf"})
        after = await readers.get("/api/v1/services/cart")
    assert (before.status_code, after.status_code) == (404, 200)


async def test_a_graph_that_names_no_journey_is_not_kept(app: ASGIApp) -> None:
    async with client(app) as readers:
        answers = [await readers.get("/api/v1/graph") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert all("; hit;" not in answer.headers["cache-status"] for answer in answers)
