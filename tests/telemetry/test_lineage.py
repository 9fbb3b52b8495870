"""Where an answer comes from: a hit's span links to the computation that filled its entry, and log lines name both."""

import httpx2
import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from structlog.testing import LogCapture

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.telemetry.events import Answered, Emitter, Event, Evicted
from nexcache.telemetry.log import LogListener
from nexcache.telemetry.otel import OTelTracing
from tests.telemetry.conftest import Traces


async def handler(_: Request) -> Response:
    return JSONResponse({})


class Node:
    """One process's cache, with its app and its spans."""

    def __init__(self, settings: Settings, traces: Traces | None) -> None:
        self.cache = NexCache(settings)
        self.cache.emitter.tracing = OTelTracing(traces.provider) if traces is not None else None
        self.answered: list[Answered] = []
        self.cache.emitter.subscribe(self._note, Answered)
        middleware = Middleware(
            CacheMiddleware,
            cache=self.cache,
            tenant=tenants.fixed("acme"),
            policies=[Policy("/overview", op="overview")],
        )
        self.app = Starlette(routes=[Route("/overview", handler)], middleware=[middleware])

    def _note(self, event: Event) -> None:
        assert isinstance(event, Answered)
        self.answered.append(event)

    async def get(self, path: str = "/overview") -> httpx2.Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=self.app), base_url="http://app") as client:
            return await client.get(path)


def spans(traces: Traces, name: str) -> list[ReadableSpan]:
    return [span for span in traces.exporter.get_finished_spans() if span.name == f"{name} overview"]


@pytest.mark.parametrize("tier", ["memory", "redis"])
async def test_a_hits_span_links_to_the_span_that_filled_the_entry(
    traces: Traces, tier: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("redis_url") if tier == "redis" else None
    settings = Settings(redis_url=url, redis_host=None, op_timeout_ms=1000)
    filling = Node(settings, traces)
    reading = Node(settings, traces) if tier == "redis" else filling
    await filling.cache.invalidate("acme", "*")

    await filling.get("/overview?lineage")
    await reading.get("/overview?lineage")
    for node in {filling, reading}:
        await node.cache.aclose()

    (fill,), (hit,), (miss,) = (spans(traces, name) for name in ("cache.fill", "cache.hit", "cache.miss"))
    assert fill.context is not None
    assert hit.context is not None
    (link,) = hit.links
    assert (link.context.trace_id, link.context.span_id) == (fill.context.trace_id, fill.context.span_id)
    assert hit.context.trace_id != fill.context.trace_id
    assert not miss.links
    assert reading.answered[-1].filled_by == f"{fill.context.trace_id:032x}-{fill.context.span_id:016x}"


async def test_an_entry_that_no_span_filled_is_linked_to_none(traces: Traces) -> None:
    node = Node(Settings(redis_url=None, redis_host=None), None)
    await node.get()
    node.cache.emitter.tracing = OTelTracing(traces.provider)
    await node.get()
    await node.cache.aclose()

    (hit,) = spans(traces, "cache.hit")
    assert not hit.links
    assert node.answered[-1].filled_by is None


async def test_the_line_of_a_request_names_its_trace_even_where_nobody_else_traces(traces: Traces) -> None:
    capture = LogCapture()
    structlog.configure(processors=[capture])
    try:
        node = Node(Settings(redis_url=None, redis_host=None), traces)
        await node.get()
        await node.cache.aclose()
    finally:
        structlog.reset_defaults()

    (miss,) = spans(traces, "cache.miss")
    assert miss.context is not None
    (line,) = [line for line in capture.entries if line["event"] == "nexcache.answered"]
    assert line["trace_id"] == f"{miss.context.trace_id:032x}"


def test_a_line_names_the_callers_trace_where_this_process_records_none() -> None:
    capture = LogCapture()
    structlog.configure(processors=[capture])
    emitter = Emitter()
    LogListener().subscribe(emitter)
    try:
        with use_span(NonRecordingSpan(SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(0)))):
            emitter.emit(Evicted("capacity", 1))
    finally:
        structlog.reset_defaults()
    assert capture.entries[0]["trace_id"] == f"{7:032x}"
