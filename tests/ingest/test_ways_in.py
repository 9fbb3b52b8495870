"""The ways in beside a sink: a collector behind the endpoint, an app's own route, an SDK in the same process."""

import asyncio
import gzip
import json
import sys
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # ships no types
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import SecretStr

from nexcache import AdminApp, NexCache, Settings
from nexcache.admin.auth import Caller
from nexcache.asgi import ASGIApp, Message, Receive, Scope, Send
from nexcache.errors import ConfigurationError
from nexcache.ingest import payload
from nexcache.ingest.exporter import InvalidatingSpanExporter, InvalidatingSpanProcessor, from_sdk
from nexcache.ingest.forward import Forward
from nexcache.ingest.hook import IngestHook
from nexcache.ingest.middleware import IngestMiddleware
from nexcache.ingest.otlp_endpoint import OtlpEndpoint
from nexcache.ingest.rules import IngestRule
from nexcache.invalidation.targets import Targets
from nexcache.telemetry.events import HookFailed
from nexcache.tenants import api_key, first_of, fixed, header
from nexcache.testing import FakeClock
from tests.ingest.batches import RecordingCache, attribute, json_batch, protobuf_batch
from tests.ingest.test_otlp_endpoint import BODY, JSON, PROTOBUF, call, endpoint

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CART = ("acme", Targets.of(tags=["service:cart"]))
RULES = [IngestRule(tags=["service:{service.name}"])]


def invalidated(cache: RecordingCache) -> list[tuple[str, Targets]]:
    return [(tenant, targets) for tenant, targets, _ in cache.invalidated]


# --- the endpoint ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param(PROTOBUF, BODY, id="protobuf"),
        pytest.param(JSON, json.dumps(json_batch("cart")).encode(), id="json"),
    ],
)
async def test_a_zstd_body_is_taken(headers: dict[str, str], body: bytes) -> None:
    cache = RecordingCache()
    answered = await call(endpoint(cache), zstd.compress(body), {**headers, "content-encoding": "zstd"})
    assert answered.status == 200
    assert invalidated(cache) == [CART]


async def test_a_zstd_bomb_is_too_large_and_a_damaged_body_is_refused() -> None:
    def answered(body: bytes) -> Any:
        return call(endpoint(max_body=100_000), body, {**PROTOBUF, "content-encoding": "zstd"})

    bomb = zstd.compress(bytes(50_000_000))
    assert len(bomb) < 10_000
    assert (await answered(bomb)).status == 413
    assert (await answered(zstd.compress(BODY)[:-3])).status == 400
    assert (await answered(b"not zstd")).status == 400
    wide = zstd.compress(BODY * 1000, options={zstd.CompressionParameter.window_log: 27})
    assert (await answered(wide[:8] + bytes(8))).status == 400


async def test_without_its_extra_zstd_is_a_coding_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "_zstd", None)
    answered = await call(endpoint(), zstd.compress(BODY), {**PROTOBUF, "content-encoding": "zstd"})
    assert (answered.status, answered.headers["accept-encoding"]) == (415, "gzip, identity")


def at_once(cache: RecordingCache, clock: FakeClock | None = None, **options: Any) -> OtlpEndpoint:
    options.setdefault("tenant", fixed("acme"))
    hook = IngestHook(cache, RULES, clock=clock or FakeClock())
    return OtlpEndpoint(hook, **options)


async def test_acknowledged_after_the_store_a_queued_invalidation_is_200() -> None:
    cache = RecordingCache()
    cache.queued = True
    assert (await call(at_once(cache))).status == 200


@pytest.mark.parametrize(("headers", "code"), [(PROTOBUF, 14), (JSON, 14)])
async def test_acknowledged_after_the_invalidation_a_queued_one_is_503_in_the_senders_encoding(
    headers: dict[str, str], code: int
) -> None:
    cache = RecordingCache()
    cache.queued = True
    stored: list[object] = []
    app = at_once(cache, sink=lambda *arguments: stored.append(arguments), ack="after-invalidation")
    body = BODY if headers is PROTOBUF else json.dumps(json_batch("cart")).encode()
    answered = await call(app, body, headers)
    assert (answered.status, answered.headers["retry-after"]) == (503, "5")
    found = Status.FromString(answered.body).code if headers is PROTOBUF else json.loads(answered.body)["code"]
    assert found == code
    assert len(stored) == 1, "it is stored, and will be again: hence the idempotent sink"
    cache.queued = False
    cache.invalidated.clear()
    sender = asyncio.create_task(call(app, body, headers))
    await asyncio.sleep(0)
    await app._hook.aclose()  # type: ignore[attr-defined] # as the cache does
    assert (await sender).status == 200


async def test_acknowledged_after_the_invalidation_the_sender_waits_for_the_trailing_edge() -> None:
    cache, clock, sequence = RecordingCache(), FakeClock(), list[object]()
    cache.sequence = sequence
    hook = IngestHook(cache, RULES, clock=clock)
    app = OtlpEndpoint(hook, tenant=fixed("acme"), ack="after-invalidation")
    await call(app, sequence=sequence)
    second = asyncio.create_task(call(app, sequence=sequence))
    for _ in range(10):
        await asyncio.sleep(0)
    assert sequence == ["invalidated", "acknowledged"]
    clock.advance(1.0)
    await hook.carry_out()
    assert (await second).status == 200
    assert sequence == ["invalidated", "acknowledged"] * 2


async def test_with_the_store_away_only_a_sender_who_waits_hears_of_it_and_health_counts_it() -> None:
    cache = NexCache(Settings(redis_url=SecretStr("redis://127.0.0.1:1"), l1_enabled=False))
    async with cache:
        hook = IngestHook(cache, RULES, min_interval=0)
        assert (await call(OtlpEndpoint(hook, tenant=fixed("acme")))).status == 200
        waits = OtlpEndpoint(hook, tenant=fixed("acme"), ack="after-invalidation")
        assert (await call(waits)).status == 503
        assert cache.queued == 1
        admin = AdminApp(cache, authorize=lambda _: Caller("acme", operator=True))
        health = await call(admin, path="/health", method="GET")
        assert json.loads(health.body)["details"]["queued_invalidations"] == 1


def of_tenants(*tenants: str | None) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    for tenant in tenants:
        part = protobuf_batch("cart")
        if tenant is not None:
            part.resource_spans[0].resource.attributes.add(key="tenant.id").value.string_value = tenant
        request.resource_spans.append(part.resource_spans[0])
    return request


async def test_a_resource_attribute_never_names_the_tenant_unless_that_is_allowed() -> None:
    cache = RecordingCache()
    assert (await call(at_once(cache), of_tenants("victim").SerializeToString())).status == 200
    assert [tenant for tenant, _ in invalidated(cache)] == ["acme"]
    nobody = at_once(RecordingCache(), tenant=lambda _: None)
    assert (await call(nobody, of_tenants("victim").SerializeToString())).status == 401


async def test_authentication_comes_before_a_header_and_both_before_the_resource_attribute() -> None:
    cache = RecordingCache()
    tenant = first_of(api_key(keys={"acme": "s3cret"}), header("x-scope-orgid", trusted=True))
    app = at_once(cache, tenant=tenant, tenant_attribute="tenant.id")
    body = of_tenants("victim").SerializeToString()
    await call(app, body, {**PROTOBUF, "x-api-key": "s3cret", "x-scope-orgid": "victim"})
    await call(app, body, {**PROTOBUF, "x-scope-orgid": "globex"})
    await call(app, body, PROTOBUF)
    assert [tenant for tenant, _ in invalidated(cache)] == ["acme", "globex", "victim"]


async def test_where_it_is_allowed_each_resource_is_its_own_tenants_and_nobodys_spans_are_rejected() -> None:
    cache = RecordingCache()
    stored: list[tuple[str, int]] = []
    app = at_once(
        cache,
        tenant=lambda _: None,
        tenant_attribute="tenant.id",
        sink=lambda tenant, request: stored.append((tenant, len(request.resource_spans))),
    )
    answered = await call(app, of_tenants("acme", "globex", None, "acme", "a\nb").SerializeToString())
    assert stored == [("acme", 2), ("globex", 1)]
    assert ExportTraceServiceResponse.FromString(answered.body).partial_success.rejected_spans == 2
    assert (await call(app, of_tenants(None).SerializeToString())).status == 401


async def test_a_resolver_that_fails_leaves_the_choice_to_nobody() -> None:
    def broken(scope: Scope) -> str:
        raise RuntimeError

    cache = RecordingCache()
    app = at_once(cache, tenant=broken, tenant_attribute="tenant.id")
    assert (await call(app, of_tenants("victim").SerializeToString())).status == 401
    app = at_once(cache, tenant=fixed("x" * 150), tenant_attribute="tenant.id")
    assert cache.invalidated == []


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"ack": "never"}, "ack is"),
        ({"sink": print, "forward": "http://collector:4318"}, "not to both"),
        ({"tenant_attribute": ""}, "tenant_attribute names"),
        ({"forward": "collector:4318"}, "forward takes a URL"),
        ({"forward": "ftp://collector"}, "forward takes a URL"),
    ],
)
def test_an_endpoint_that_cannot_work_is_refused(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        at_once(RecordingCache(), **options)


# --- forwarding --------------------------------------------------------------------------------------------------


class Collector:
    """A collector on loopback that answers as it is told, and keeps what it was sent."""

    def __init__(self) -> None:
        self.answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.url = ""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Collector"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/traces"
        async with server:
            yield self

    def says(self, status: int, body: bytes = b"", **headers: str) -> None:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self.answer = f"HTTP/1.1 {status} X\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")[1:-2]
                fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                self.requests.append((fields, await reader.readexactly(int(fields["content-length"]))))
                writer.write(self.answer)
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def forwarding(cache: RecordingCache, **options: Any) -> AsyncIterator[tuple[Collector, OtlpEndpoint]]:
    async with Collector().listening() as collector:
        hook = IngestHook(cache, RULES, min_interval=0)
        tenant_header = options.pop("tenant_header", None)
        forward = Forward(collector.url, tenant_header=tenant_header, headers={"x-from": "nexcache"})
        yield collector, OtlpEndpoint(hook, tenant=fixed("acme"), forward=forward, **options)
        await hook.aclose()


async def test_a_body_is_passed_on_byte_for_byte_and_invalidates_after_the_collectors_2xx() -> None:
    cache = RecordingCache()
    sent = gzip.compress(BODY)
    async with forwarding(cache, tenant_header="X-Scope-OrgID") as (collector, app):
        credentials = {"x-api-key": "secret", "cookie": "secret"}
        answered = await call(app, sent, {**PROTOBUF, **credentials, "content-encoding": "gzip"})
        ((fields, body),) = collector.requests
    assert (answered.status, answered.body) == (200, b"")
    assert body == sent
    assert fields["content-type"] == "application/x-protobuf"
    assert fields["content-encoding"] == "gzip"
    assert (fields["x-scope-orgid"], fields["x-from"]) == ("acme", "nexcache")
    assert "secret" not in str(fields)
    assert invalidated(cache) == [CART]


async def test_a_collectors_partial_success_is_the_senders_and_is_counted() -> None:
    cache = RecordingCache()
    partial = ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=3)
    ).SerializeToString()
    async with forwarding(cache) as (collector, app):
        collector.says(200, partial, content_type="application/x-protobuf")
        answered = await call(app, protobuf_batch("cart", spans=5).SerializeToString())
    assert (answered.status, answered.body) == (200, partial)
    assert (cache.counts.ingested_accepted, cache.counts.ingested_rejected) == (2, 3)
    assert invalidated(cache) == [CART]


@pytest.mark.parametrize("status", [400, 413, 429, 500, 503])
async def test_a_collectors_refusal_is_the_senders_and_invalidates_nothing(status: int) -> None:
    cache = RecordingCache()
    async with forwarding(cache) as (collector, app):
        collector.says(status, b"no", content_type="text/plain", retry_after="7")
        answered = await call(app)
    assert (answered.status, answered.body, answered.headers["retry-after"]) == (status, b"no", "7")
    assert cache.invalidated == []


@pytest.mark.parametrize("status", [301, 401, 404])
async def test_what_is_between_us_and_the_collector_is_not_the_senders_fault(status: int) -> None:
    cache = RecordingCache()
    async with forwarding(cache) as (collector, app):
        collector.says(status, location="http://127.0.0.1:1/")
        answered = await call(app)
    assert answered.status == 502
    assert Status.FromString(answered.body).code == 14
    assert cache.invalidated == []


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n"])
async def test_a_collector_that_does_not_answer_is_503_and_invalidates_nothing(answer: bytes) -> None:
    cache = RecordingCache()
    async with Collector().listening() as collector:
        collector.answer = answer
        forward = Forward(collector.url, timeout=0.2)
        hook = IngestHook(cache, RULES)
        answered = await call(OtlpEndpoint(hook, tenant=fixed("acme"), forward=forward))
        await hook.aclose()
    assert (answered.status, answered.headers["retry-after"]) == (503, "5")
    assert cache.invalidated == []


async def test_what_is_no_otlp_is_not_passed_on() -> None:
    async with forwarding(RecordingCache()) as (collector, app):
        assert (await call(app, b"\xff\xff")).status == 400
        assert collector.requests == []


# --- an app's own route ------------------------------------------------------------------------------------------


class App:
    """An app that takes spans itself."""

    def __init__(self, status: int = 200, *, chunks: Sequence[bytes] = (b"{}",), fails: bool = False) -> None:
        self.status = status
        self.chunks = chunks
        self.fails = fails
        self.bodies: list[bytes] = []
        self.reads = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while self.reads:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"x-app", b"1")]})
        if self.fails:
            raise RuntimeError
        for index, chunk in enumerate(self.chunks):
            await send({"type": "http.response.body", "body": chunk, "more_body": index < len(self.chunks) - 1})


def watched(app: ASGIApp, cache: RecordingCache, **options: Any) -> IngestMiddleware:
    options.setdefault("tenant", fixed("acme"))
    return IngestMiddleware(app, hook=IngestHook(cache, RULES, min_interval=0), **options)


@pytest.mark.parametrize("path", ["/v1/traces", "/v1/traces/"])
async def test_what_the_app_accepts_is_invalidated_before_its_sender_hears_of_it(path: str) -> None:
    sequence: list[object] = []
    cache, app = RecordingCache(sequence), App(202)
    body = [gzip.compress(BODY)[:20], gzip.compress(BODY)[20:]]
    answered = await call(
        watched(app, cache), body, {**PROTOBUF, "content-encoding": "gzip"}, path=path, sequence=sequence
    )
    assert (answered.status, answered.body, answered.headers) == (202, b"{}", {"x-app": "1"})
    assert app.bodies == [b"".join(body)]
    assert sequence == ["invalidated", "acknowledged"]
    assert invalidated(cache) == [CART]


@pytest.mark.parametrize("status", [199, 302, 400, 401, 429, 500, 503])
async def test_what_the_app_refuses_invalidates_nothing(status: int) -> None:
    cache = RecordingCache()
    assert (await call(watched(App(status), cache))).status == status
    assert cache.invalidated == []


@pytest.mark.parametrize(("path", "method"), [("/v1/metrics", "POST"), ("/v1/traces", "GET"), ("/", "POST")])
async def test_other_requests_pass_untouched(path: str, method: str) -> None:
    cache = RecordingCache()
    assert (await call(watched(App(), cache), path=path, method=method)).status == 200
    assert cache.invalidated == []


async def test_below_a_root_path_and_on_several_paths_it_is_the_apps_route() -> None:
    cache, answered = RecordingCache(), list[Message]()
    app = watched(App(), cache, path=["/api/spans", "/v2/traces"])
    await call(app, path="/v2/traces")

    async def receive() -> Message:
        return {"type": "http.request", "body": BODY}

    async def send(message: Message) -> None:
        answered.append(message)

    scope = {"type": "http", "method": "POST", "path": "/mounted/api/spans", "root_path": "/mounted"}
    await app({**scope, "headers": [(b"content-type", b"application/x-protobuf")]}, receive, send)
    assert len(cache.invalidated) == 2


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param({"content-type": "application/x-thrift"}, b"x", id="another format"),
        pytest.param(PROTOBUF, b"\xff\xff", id="not protobuf"),
        pytest.param({**PROTOBUF, "content-encoding": "br"}, BODY, id="another coding"),
        pytest.param(PROTOBUF, bytes(2_000), id="too large"),
    ],
)
async def test_spans_that_cannot_be_read_but_were_accepted_invalidate_the_whole_tenant(
    headers: dict[str, str], body: bytes
) -> None:
    cache, app = RecordingCache(), App()
    assert (await call(watched(app, cache, max_body=1_000), body, headers)).status == 200
    assert app.bodies == [body]
    assert invalidated(cache) == [("acme", Targets.of(["*"]))]


async def test_an_app_that_has_not_read_the_whole_body_and_accepts_it_invalidates_the_whole_tenant() -> None:
    cache, app = RecordingCache(), App()
    app.reads = False
    await call(watched(app, cache))
    assert invalidated(cache) == [("acme", Targets.of(["*"]))]


async def test_an_app_that_fails_after_its_2xx_has_perhaps_stored() -> None:
    cache = RecordingCache()
    with pytest.raises(RuntimeError):
        await call(watched(App(fails=True), cache))
    assert invalidated(cache) == [CART]


async def test_a_long_answer_is_not_held_back_whole() -> None:
    cache, app = RecordingCache(), App(chunks=[b"x" * 50_000] * 4)
    answered = await call(watched(app, cache))
    assert len(answered.body) == 200_000
    assert invalidated(cache) == [CART]


async def test_a_request_without_a_tenant_is_the_apps_business_alone() -> None:
    cache = RecordingCache()
    assert (await call(watched(App(401), cache, tenant=lambda _: None))).status == 401
    assert cache.events == []
    assert (await call(watched(App(), cache, tenant=lambda _: None))).status == 200
    assert cache.events == [HookFailed("tenant", "NoTenant")]
    assert cache.invalidated == []


async def test_an_attribute_names_the_tenant_of_a_watched_route_only_where_it_is_allowed() -> None:
    cache = RecordingCache()
    body = of_tenants("acme", "globex").SerializeToString()
    await call(watched(App(), cache, tenant=lambda _: None, tenant_attribute="tenant.id"), body)
    assert [tenant for tenant, _ in invalidated(cache)] == ["acme", "globex"]


async def test_spans_of_nexcache_itself_on_a_watched_route_invalidate_nothing() -> None:
    cache = RecordingCache()
    await call(watched(App(), cache), protobuf_batch("cart", scope="nexcache").SerializeToString())
    assert cache.invalidated == []
    assert cache.counts.ingested_ignored == 1


@pytest.mark.parametrize("path", ["v1/traces", [], ["/ok", "no"]])
def test_a_path_that_is_none_is_refused(path: Any) -> None:
    with pytest.raises(ConfigurationError, match="path names"):
        watched(App(), RecordingCache(), path=path)


# --- an SDK in this process --------------------------------------------------------------------------------------


class Exporting(SpanExporter):
    def __init__(self, result: SpanExportResult = SpanExportResult.SUCCESS) -> None:
        self.result = result
        self.exported: list[ReadableSpan] = []
        self.calls: list[str] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.exported += spans
        return self.result

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        self.calls.append("flush")
        return True


def traced(*processors: Any, scope: str = "shop", **options: Any) -> TracerProvider:
    provider = TracerProvider(resource=Resource({"service.name": "cart"}), shutdown_on_exit=False, **options)
    for processor in processors:
        provider.add_span_processor(processor)
    tracer = provider.get_tracer(scope, attributes={"team": "a"})
    with tracer.start_as_current_span("GET /cart", kind=SpanKind.SERVER, attributes={"http.route": "/cart"}) as span:
        span.set_status(StatusCode.ERROR)
    return provider


async def invalidated_by(cache: RecordingCache, hook: IngestHook) -> list[tuple[str, Targets]]:
    for _ in range(5):
        await asyncio.sleep(0)
    await hook.aclose()
    return invalidated(cache)


async def test_an_exporter_invalidates_after_the_export_has_succeeded() -> None:
    cache, exporter = RecordingCache(), Exporting()
    hook = IngestHook(cache, RULES, min_interval=0)
    hook.started([])
    provider = traced(SimpleSpanProcessor(InvalidatingSpanExporter(hook, exporter, tenant="acme")))
    assert len(exporter.exported) == 1
    assert await invalidated_by(cache, hook) == [CART]
    assert provider.force_flush()
    provider.shutdown()
    assert exporter.calls[-1] == "shutdown"


async def test_an_export_that_fails_invalidates_nothing() -> None:
    cache = RecordingCache()
    hook = IngestHook(cache, RULES, min_interval=0)
    hook.started([])
    exporter = Exporting(SpanExportResult.FAILURE)
    traced(SimpleSpanProcessor(InvalidatingSpanExporter(hook, exporter, tenant="acme")))
    assert await invalidated_by(cache, hook) == []


@pytest.mark.parametrize("scope", ["shop", "nexcache"])
async def test_a_processor_invalidates_what_was_stored_and_nothing_for_spans_of_nexcache(scope: str) -> None:
    cache, exporter = RecordingCache(), Exporting()
    hook = IngestHook(cache, RULES, min_interval=0)
    hook.started([])
    provider = traced(InvalidatingSpanProcessor(hook, SimpleSpanProcessor(exporter), tenant="acme"), scope=scope)
    assert len(exporter.exported) == 1
    assert await invalidated_by(cache, hook) == ([CART] if scope == "shop" else [])
    provider.shutdown()


async def test_a_span_that_is_not_sampled_invalidates_nothing() -> None:
    cache = RecordingCache()
    hook = IngestHook(cache, RULES, min_interval=0)
    hook.started([])
    traced(InvalidatingSpanProcessor(hook, tenant="acme"), sampler=ALWAYS_OFF)
    assert await invalidated_by(cache, hook) == []


async def test_each_span_can_name_its_tenant_and_whatever_goes_wrong_breaks_no_export() -> None:
    cache, exporter = RecordingCache(), Exporting()
    hook = IngestHook(cache, RULES, min_interval=0)
    hook.started([])

    def broken(span: ReadableSpan) -> str:
        raise RuntimeError

    def by_route(span: ReadableSpan) -> str | None:
        return {"/cart": "globex"}.get(str((span.attributes or {}).get("http.route")))

    for tenant in (broken, by_route, lambda _: None, "a\nb"):
        traced(SimpleSpanProcessor(InvalidatingSpanExporter(hook, exporter, tenant=tenant)))
    assert len(exporter.exported) == 4
    assert await invalidated_by(cache, hook) == [("globex", CART[1])]
    assert HookFailed("exporter", "RuntimeError") in cache.events


def test_a_span_of_the_sdk_is_read_as_one_that_came_by_otlp() -> None:
    exporter = Exporting()
    traced(SimpleSpanProcessor(exporter))
    (span,) = exporter.exported
    read = from_sdk(span)
    assert (read.name, read.kind, read.status_code, read.scope_name) == ("GET /cart", 2, 2, "shop")
    assert read.attributes.get("http.route") == "/cart"
    assert read.resource.get("service.name") == "cart"
    assert read.scope_attributes.get("team") == "a"
    assert 0 < read.start_unix_nano <= read.end_unix_nano


# --- what other exporters send -----------------------------------------------------------------------------------

RECORDED = json.loads((Path(__file__).parent / "data" / "otlp_json_exporter.json").read_text())


@pytest.mark.parametrize(
    "sent", RECORDED["requests"], ids=lambda sent: sent["headers"].get("content-encoding", "plain")
)
async def test_what_the_sdks_json_exporter_sends_is_taken(sent: dict[str, Any]) -> None:
    """Recorded, because the released exporter cannot be installed beside the current SDK."""
    cache = RecordingCache()
    rules = [IngestRule(tags=["service:{service.name}", "route:{http.route}", "code:{code}", "{ok}/{rate}"])]
    app = OtlpEndpoint(IngestHook(cache, rules), tenant=fixed("acme"))
    answered = await call(app, b64decode(sent["body"]), sent["headers"])
    assert (answered.status, answered.body) == (200, b"{}")
    expected = Targets.of(tags=["service:cart", "route:/cart", "code:200", "true/0.5"])
    assert invalidated(cache) == [("acme", expected)]
    assert attribute("x", 1)["value"] == {"intValue": "1"}
