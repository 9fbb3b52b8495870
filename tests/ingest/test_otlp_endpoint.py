import asyncio
import gzip
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # ships no types
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from nexcache.asgi import ASGIApp, Message, Scope
from nexcache.errors import ConfigurationError
from nexcache.ingest import reading as reading_module
from nexcache.ingest.hook import IngestHook
from nexcache.ingest.otlp_endpoint import OtlpEndpoint
from nexcache.ingest.payload import MediaType
from nexcache.ingest.rules import IngestRule
from nexcache.ingest.spans import read_request
from nexcache.invalidation.targets import Targets
from nexcache.telemetry.events import HookFailed, Ingested
from nexcache.tenants import api_key, fixed
from tests.ingest.batches import RecordingCache, json_batch, protobuf_batch

PROTOBUF = {"content-type": "application/x-protobuf"}
JSON = {"content-type": "application/json"}
BATCH = protobuf_batch("cart")
BODY = BATCH.SerializeToString()


@dataclass
class Answered:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


async def call(
    app: ASGIApp,
    body: bytes | list[bytes] = BODY,
    headers: dict[str, str] | None = None,
    *,
    method: str = "POST",
    path: str = "/v1/traces",
    sequence: list[object] | None = None,
) -> Answered:
    """Send one request; a list is a body in several messages."""
    chunks = [body] if isinstance(body, bytes) else body
    messages: list[Message] = [
        {"type": "http.request", "body": chunk, "more_body": index < len(chunks) - 1}
        for index, chunk in enumerate(chunks)
    ]
    answered = Answered()

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answered.status = message["status"]
            answered.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            if sequence is not None:
                sequence.append("acknowledged")
        else:
            answered.body += message["body"]

    await app(http_scope(PROTOBUF if headers is None else headers, method, path), receive, send)
    return answered


def http_scope(headers: dict[str, str], method: str = "POST", path: str = "/v1/traces") -> Scope:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


def endpoint(cache: RecordingCache | None = None, **options: Any) -> OtlpEndpoint:
    options.setdefault("tenant", fixed("acme"))
    rules = [IngestRule(tags=["service:{service.name}"])]
    return OtlpEndpoint(IngestHook(cache or RecordingCache(), rules), **options)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_spans_are_stored_then_invalidated_then_acknowledged(kind: str) -> None:
    sequence: list[object] = []
    cache = RecordingCache(sequence)

    def sync_sink(tenant: str, request: ExportTraceServiceRequest) -> None:
        sequence.append(("stored", tenant, request))

    async def async_sink(tenant: str, request: ExportTraceServiceRequest) -> None:
        await asyncio.sleep(0)
        sync_sink(tenant, request)

    sink = sync_sink if kind == "sync" else async_sink
    answered = await call(endpoint(cache, sink=sink), sequence=sequence)
    assert answered.status == 200
    assert sequence == [("stored", "acme", BATCH), "invalidated", "acknowledged"]
    assert [(tenant, targets) for tenant, targets, _ in cache.invalidated] == [
        ("acme", Targets.of(tags=["service:cart"]))
    ]


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        pytest.param(PROTOBUF, BODY, b"", id="protobuf"),
        pytest.param(PROTOBUF, gzip.compress(BODY), b"", id="protobuf, gzip"),
        pytest.param(JSON, json.dumps(json_batch("cart")).encode(), b"{}", id="json"),
        pytest.param(JSON, gzip.compress(json.dumps(json_batch("cart")).encode()), b"{}", id="json, gzip"),
    ],
)
async def test_full_success_is_an_empty_message_in_the_encoding_of_the_request(
    headers: dict[str, str], body: bytes, expected: bytes
) -> None:
    stored: list[ExportTraceServiceRequest] = []
    coding = {"content-encoding": "gzip"} if body.startswith(b"\x1f\x8b") else {}
    answered = await call(endpoint(sink=lambda _, request: stored.append(request)), body, {**headers, **coding})
    assert (answered.status, answered.body) == (200, expected)
    assert answered.headers == {"content-type": headers["content-type"], "content-length": str(len(expected))}
    assert stored == [BATCH], "a sink gets the same message whatever the encoding"


@pytest.mark.parametrize(("headers", "body"), [(PROTOBUF, b""), (JSON, b"{}"), (JSON, b"")])
async def test_an_empty_request_is_a_success_that_invalidates_nothing(headers: dict[str, str], body: bytes) -> None:
    cache = RecordingCache()
    assert (await call(endpoint(cache), body, headers)).status == 200
    assert cache.invalidated == []


async def test_a_body_in_many_pieces_is_one_body() -> None:
    cache = RecordingCache()
    pieces = [BODY[index : index + 7] for index in range(0, len(BODY), 7)]
    assert (await call(endpoint(cache), [*pieces, b""])).status == 200
    assert len(cache.invalidated) == 1


async def test_spans_of_nexcache_itself_are_stored_and_invalidate_nothing() -> None:
    cache, stored = RecordingCache(), list[object]()
    body = protobuf_batch("cart", scope="nexcache").SerializeToString()
    answered = await call(endpoint(cache, sink=lambda *arguments: stored.append(arguments)), body)
    assert answered.status == 200
    assert len(stored) == 1
    assert cache.invalidated == []
    assert cache.events == [Ingested("acme", accepted=0, rejected=0, ignored=1)]


async def test_an_invalidation_that_is_only_queued_is_acknowledged() -> None:
    cache = RecordingCache()
    cache.queued = True
    assert (await call(endpoint(cache))).status == 200


@dataclass(frozen=True)
class Refusal:
    status: int
    code: int
    headers: dict[str, str] = field(default_factory=dict)


BAD = Refusal(400, 3)
TOO_LARGE = Refusal(413, 8)
STRANGER = Refusal(401, 16, {"www-authenticate": 'ApiKey realm="otlp"'})
KEYS = api_key("x-api-key", keys={"acme": "s3cret"})


def failing(*_: object) -> None:
    raise RuntimeError("s3cret")


REFUSALS = [
    pytest.param(b"\xff\xff", {}, {}, BAD, id="malformed"),
    pytest.param(b"spans", {"content-encoding": "gzip"}, {}, BAD, id="not gzip"),
    pytest.param(gzip.compress(BODY)[:-1], {"content-encoding": "gzip"}, {}, BAD, id="truncated gzip"),
    pytest.param(BODY, {}, {"tenant": KEYS}, STRANGER, id="no key"),
    pytest.param(
        BODY,
        {"x-api-key": "wrong"},
        {"tenant": KEYS},
        STRANGER,
        id="wrong key",
    ),
    pytest.param(BODY, {}, {"max_body": len(BODY) - 1}, TOO_LARGE, id="too large"),
    pytest.param(
        gzip.compress(BODY * 9), {"content-encoding": "gzip"}, {"max_body": 9 * len(BODY) - 1}, TOO_LARGE, id="bomb"
    ),
    pytest.param(
        gzip.compress(b"\0" * 1_000_000),
        {"content-encoding": "gzip"},
        {"max_body": 500_000},
        TOO_LARGE,
        id="a bomb that is opened beside the event loop",
    ),
    pytest.param(b"", {"content-length": "9" * 30}, {}, TOO_LARGE, id="announced as too large"),
    pytest.param(
        BODY,
        {"content-encoding": "br"},
        {},
        Refusal(415, 3, {"accept-encoding": "gzip, zstd, identity"}),
        id="unknown coding",
    ),
    pytest.param(BODY, {}, {"sink": failing}, Refusal(503, 14, {"retry-after": "5"}), id="sink fails"),
]


@pytest.mark.parametrize("media_type", MediaType)
@pytest.mark.parametrize(("body", "headers", "options", "refusal"), REFUSALS)
async def test_a_refusal_is_a_status_in_the_encoding_of_the_request(
    body: bytes, headers: dict[str, str], options: dict[str, Any], refusal: Refusal, media_type: MediaType
) -> None:
    if media_type is MediaType.JSON and body == BODY:
        body = json.dumps(json_batch("cart")).encode()
    cache, stored = RecordingCache(), list[object]()
    options = {"sink": lambda *arguments: stored.append(arguments), **options}
    answered = await call(endpoint(cache, **options), body, {"content-type": media_type.value, **headers})
    assert answered.status == refusal.status
    assert answered.headers.pop("content-type") == media_type.value
    assert answered.headers.pop("content-length") == str(len(answered.body))
    assert answered.headers == refusal.headers
    if media_type is MediaType.JSON:
        status = json.loads(answered.body)
        assert status.keys() == {"code", "message"}
        code, message = status["code"], status["message"]
    else:
        parsed = Status.FromString(answered.body)
        code, message = parsed.code, parsed.message
    assert code == refusal.code
    assert message
    assert "s3cret" not in message
    assert "wrong" not in message
    assert cache.invalidated == []
    assert stored == []


@pytest.mark.parametrize("content_type", ["text/plain", "application/protobuf", ""])
async def test_an_unknown_content_type_is_refused_in_json(content_type: str) -> None:
    answered = await call(endpoint(), headers={"content-type": content_type})
    assert answered.status == 415
    assert json.loads(answered.body)["code"] == 3


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_spans_are_taken_by_post_only(method: str) -> None:
    answered = await call(endpoint(), method=method)
    assert (answered.status, answered.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/v1/metrics", "/v1/logs/", "/otlp/v1development/profiles", "/metrics"])
async def test_other_signals_are_not_taken_for_traces(path: str) -> None:
    cache = RecordingCache()
    assert (await call(endpoint(cache), path=path)).status == 404
    assert cache.invalidated == []


async def test_a_tenant_is_asked_for_before_the_body_is_read() -> None:
    async def receive() -> Message:
        raise AssertionError("the body of a stranger is not read")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await endpoint(tenant=lambda _: None)(http_scope(PROTOBUF), receive, send)
    assert sent[0]["status"] == 401


@pytest.mark.parametrize("tenant", ["", "x" * 151, "a\nb", None, 5])
async def test_an_impossible_tenant_is_none(tenant: Any) -> None:
    async def resolve(_: Scope) -> str | None:
        return tenant  # type: ignore[no-any-return] # resolvers are not always typed

    assert (await call(endpoint(tenant=resolve))).status == 401


async def test_a_resolver_that_raises_is_a_401_and_an_event() -> None:
    cache = RecordingCache()
    assert (await call(endpoint(cache, tenant=failing))).status == 401
    assert cache.events == [HookFailed("tenant", "RuntimeError")]


async def test_the_tenant_is_never_taken_from_the_spans() -> None:
    cache = RecordingCache()
    body = protobuf_batch("cart", attributes={"tenant.id": "victim", "nexcache.tenant.id": "victim"})
    await call(endpoint(cache), body.SerializeToString())
    assert [tenant for tenant, _, _ in cache.invalidated] == ["acme"]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_sink_that_raises_asks_for_the_spans_again_and_says_so(kind: str) -> None:
    async def failing_later(*_: object) -> None:
        failing()

    cache = RecordingCache()
    answered = await call(endpoint(cache, sink=failing if kind == "sync" else failing_later))
    assert (answered.status, answered.headers["retry-after"]) == (503, "5")
    assert cache.events == [HookFailed("sink", "RuntimeError")]
    assert cache.invalidated == []


@pytest.mark.parametrize(("returned", "rejected"), [(2, 2), (99, 3), (0, 0), (-1, 0), (True, 0), ("rows", 0)])
async def test_a_sink_may_reject_spans(returned: Any, rejected: int) -> None:
    cache = RecordingCache()
    app = endpoint(cache, sink=lambda *_: returned)
    response = ExportTraceServiceResponse.FromString((await call(app, batch_of_three())).body)
    assert response.partial_success.rejected_spans == rejected
    assert response.HasField("partial_success") is (rejected > 0)
    assert bool(response.partial_success.error_message) is (rejected > 0)
    assert (cache.counts.ingested_accepted, cache.counts.ingested_rejected) == (3 - rejected, rejected)
    assert len(cache.invalidated) == 1


def batch_of_three() -> bytes:
    body: bytes = protobuf_batch("cart", spans=3).SerializeToString()
    return body


async def test_partial_success_is_told_in_json_as_well() -> None:
    answered = await call(endpoint(sink=lambda *_: 1), json.dumps(json_batch("cart")).encode(), JSON)
    assert answered.status == 200
    partial = json.loads(answered.body)["partialSuccess"]
    assert partial["rejectedSpans"] == "1"
    assert partial["errorMessage"]


@pytest.mark.parametrize("before", [[], [{"type": "http.request", "body": BODY, "more_body": True}]])
async def test_a_client_that_leaves_while_sending_changes_nothing(before: list[Message]) -> None:
    cache, stored = RecordingCache(), list[object]()
    messages = [*before, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError("nobody is there to be answered")

    app = endpoint(cache, sink=lambda *arguments: stored.append(arguments))
    await app(http_scope(PROTOBUF), receive, send)
    assert (stored, cache.invalidated, cache.events) == ([], [], [])


async def test_a_body_over_the_limit_is_not_read_to_its_end() -> None:
    async def endless() -> AsyncIterator[Message]:
        while True:
            yield {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    source = endless()
    read = 0

    async def receive() -> Message:
        nonlocal read
        read += 1
        return await anext(source)

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await endpoint(max_body=10_000)(http_scope(PROTOBUF), receive, send)
    assert sent[0]["status"] == 413
    assert read == 11


@pytest.mark.parametrize("coding", ["identity", "gzip"])
async def test_large_bodies_are_parsed_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch, coding: str) -> None:
    threads: list[threading.Thread] = []

    def recording(media_type: MediaType, body: bytes) -> ExportTraceServiceRequest:
        threads.append(threading.current_thread())
        return read_request(media_type, body)

    monkeypatch.setattr(reading_module, "read_request", recording)
    large = protobuf_batch("cart", spans=2_000).SerializeToString()
    cache = RecordingCache()
    for body in (BODY, large):
        sent = gzip.compress(body) if coding == "gzip" else body
        assert (await call(endpoint(cache), sent, {**PROTOBUF, "content-encoding": coding})).status == 200
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()
    assert cache.counts.ingested_accepted == 2_001


async def test_a_large_gzip_body_is_taken() -> None:
    cache = RecordingCache()
    noise = "".join(chr(0x4E00 + index * 7919 % 20_000) for index in range(60_000))
    body = gzip.compress(protobuf_batch("cart", attributes={"noise": noise}).SerializeToString())
    assert len(body) > 64 * 1024
    assert (await call(endpoint(cache), body, {**PROTOBUF, "content-encoding": "gzip"})).status == 200
    assert cache.counts.ingested_accepted == 1


Routes = Callable[[OtlpEndpoint], Starlette]


@pytest.mark.parametrize(
    ("routes", "path"),
    [
        (lambda app: Starlette(routes=[Route("/v1/traces", app, methods=["POST"])]), "/v1/traces"),
        (lambda app: Starlette(routes=[Mount("/v1", app)]), "/v1/traces"),
        (lambda app: Starlette(routes=[Mount("/v1", app)]), "/v1/traces/"),
        (lambda app: Starlette(routes=[Mount("/otlp", app)]), "/otlp/v1/traces"),
        (lambda app: Starlette(routes=[Mount("/v1/traces", app)]), "/v1/traces/"),
    ],
)
async def test_it_answers_without_a_redirect_where_it_is_mounted(routes: Routes, path: str) -> None:
    cache = RecordingCache()
    assert (await call(routes(endpoint(cache)), path=path)).status == 200
    assert len(cache.invalidated) == 1


async def test_a_websocket_is_closed() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    await endpoint()({"type": "websocket", "path": "/v1/traces", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_a_lifespan_is_left_to_the_app_around_it() -> None:
    async def unused(*_: object) -> Any:
        raise AssertionError("nothing is received or sent")

    sending: Callable[[Message], Awaitable[None]] = unused
    with pytest.raises(NotImplementedError, match="not 'lifespan'"):
        await endpoint()({"type": "lifespan"}, unused, sending)


def test_a_limit_that_lets_nothing_through_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_body"):
        endpoint(max_body=0)
