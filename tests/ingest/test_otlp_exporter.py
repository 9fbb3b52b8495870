"""The OpenTelemetry SDK's own exporter against a real server on loopback."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.routing import Mount

from nexcache.asgi import ASGIApp
from nexcache.ingest.hook import IngestHook
from nexcache.ingest.otlp_endpoint import OtlpEndpoint
from nexcache.ingest.rules import IngestRule
from nexcache.invalidation.targets import Targets
from nexcache.tenants import api_key
from tests.ingest.batches import RecordingCache


class Announcing(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override] # None here
        await super().startup()
        self.listening.set()


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Run an app in uvicorn on a free port of loopback, in a thread."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", ws="none", lifespan="off")
    server = Announcing(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        assert server.listening.wait(10)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.mark.parametrize("compression", [Compression.Gzip, Compression.NoCompression])
def test_spans_of_the_sdks_exporter_invalidate_their_service_and_those_of_nexcache_nothing(
    compression: Compression,
) -> None:
    cache = RecordingCache()
    stored: list[ExportTraceServiceRequest] = []
    endpoint = OtlpEndpoint(
        IngestHook(cache, [IngestRule(tags=["service:{service.name}", "route:{http.route}"])]),
        tenant=api_key("x-api-key", keys={"acme": "s3cret"}),
        sink=lambda _, request: stored.append(request),
    )
    finished = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "cart"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(finished))
    with provider.get_tracer("shop").start_as_current_span("GET /cart", attributes={"http.route": "/cart"}):
        pass
    with provider.get_tracer("nexcache").start_as_current_span("cache.hit dashboard"):
        pass
    from_the_app, from_nexcache = finished.get_finished_spans()

    with served(Starlette(routes=[Mount("/v1", endpoint)])) as url:
        exporter = OTLPSpanExporter(f"{url}/v1/traces", headers={"x-api-key": "s3cret"}, compression=compression)
        stranger = OTLPSpanExporter(f"{url}/v1/traces", compression=compression)
        try:
            assert exporter.export([from_nexcache]) is SpanExportResult.SUCCESS
            assert cache.invalidated == []
            assert exporter.export([from_the_app, from_nexcache]) is SpanExportResult.SUCCESS
            assert stranger.export([from_the_app]) is SpanExportResult.FAILURE
        finally:
            exporter.shutdown()  # type: ignore[no-untyped-call] # the SDK left it untyped
            stranger.shutdown()  # type: ignore[no-untyped-call] # the SDK left it untyped

    assert [(tenant, targets) for tenant, targets, _ in cache.invalidated] == [
        ("acme", Targets.of(tags=["service:cart", "route:/cart"]))
    ]
    assert len(stored) == 2
    assert (cache.counts.ingested_accepted, cache.counts.ingested_ignored) == (1, 2)
