"""OTLP over HTTP: spans are stored, then what they changed is invalidated, then the sender is answered.

See https://opentelemetry.io/docs/specs/otlp/#otlphttp. A sender that has its acknowledgement can rely on it:
whatever is read from now on is not answered from data without its spans.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final, Protocol, TypeAlias, assert_never

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache.asgi import Receive, Scope, Send
from nexcache.errors import ConfigurationError
from nexcache.ingest.answers import Answer, accepted, refused
from nexcache.ingest.payload import MalformedOtlp, MediaType, Undecoded, decompress
from nexcache.ingest.spans import count_spans, read_request
from nexcache.telemetry.events import Emitter, HookFailed
from nexcache.tenants import Resolver, is_valid_id

Sink: TypeAlias = Callable[[str, ExportTraceServiceRequest], int | Awaitable[int | None] | None]
"""Stores a tenant's spans; returns how many of them it rejected (None: none), or raises to have them sent again."""

MAX_BODY: Final = 20 * 1024 * 1024
"""Bytes, before and after decompression: what the OTLP specification recommends."""

_INLINE: Final = 64 * 1024
"""Bytes; more than that is parsed beside the event loop."""

_LENGTH_DIGITS: Final = 20
_OTHER_SIGNALS: Final = frozenset(("metrics", "logs", "profiles"))
_RETRY_AFTER: Final = (b"retry-after", b"5")
_CHALLENGE: Final = (b"www-authenticate", b'ApiKey realm="otlp"')
_CODINGS: Final = (b"accept-encoding", b"gzip, identity")
_ALLOW: Final = (b"allow", b"POST")

_Body: TypeAlias = bytes | Undecoded


class Notifies(Protocol):
    """What the endpoint needs of the hook."""

    async def notify(self, tenant: str, spans: ExportTraceServiceRequest, *, rejected: int = 0) -> object:
        """Invalidate what the spans could have changed."""

    @property
    def emitter(self) -> Emitter:
        """Where events go."""


class OtlpEndpoint:
    """An ASGI app that takes OTLP traces (protobuf or JSON, gzip or not) for the tenant that `tenant` resolves.

    In this order: tenant, body, `sink`, invalidation, acknowledgement. `sink(tenant, request)` gets the same
    protobuf message for both encodings; it is called on the event loop, and a sync one holds it up. When it
    raises, the sender is asked to send again, and nothing is invalidated. It returns None, or the number of
    spans it rejected, which the sender is told and must not send again. Without a sink the spans are stored
    by somebody else, before.

    The tenant comes from the request's authentication only: no attribute of a span, resource or scope ever
    names it.

    | answer | when |
    |---|---|
    | 200 | stored and invalidated, or the invalidation is queued because the store is away; also for no spans |
    | 400 | the body is not OTLP, or its gzip is damaged |
    | 401 | no tenant, an impossible one, or the resolver raised |
    | 404 | the path is that of another OTLP signal |
    | 405 | not a POST |
    | 413 | more than `max_body` bytes, before or after decompression |
    | 415 | a content type or content coding that OTLP/HTTP does not have |
    | 503 | the sink raised; retryable, with `Retry-After` |

    It answers whatever path it is given, with or without a last slash and without redirects, so mount it one
    level above: `Mount("/v1", OtlpEndpoint(...))` takes `/v1/traces` and `/v1/traces/`;
    `Route("/v1/traces", OtlpEndpoint(...), methods=["POST"])` takes the one.
    """

    def __init__(self, hook: Notifies, *, tenant: Resolver, sink: Sink | None = None, max_body: int = MAX_BODY) -> None:
        if max_body < 1:
            raise ConfigurationError("max_body must be a positive number of bytes")
        self._hook = hook
        self._tenant = tenant
        self._sink = sink
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            raise NotImplementedError(f"OtlpEndpoint answers HTTP requests, not {scope['type']!r}")
        answer = await self._answer(scope, receive)
        if answer is None:  # the client is gone
            return
        await send({"type": "http.response.start", "status": answer.status.value, "headers": list(answer.headers)})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, scope: Scope, receive: Receive) -> Answer | None:
        media_type = MediaType.of(_field(scope, b"content-type"))
        if scope["path"].rstrip("/").rpartition("/")[2] in _OTHER_SIGNALS:
            return refused(HTTPStatus.NOT_FOUND, media_type, "only traces are taken here")
        if scope["method"] != "POST":
            return refused(HTTPStatus.METHOD_NOT_ALLOWED, media_type, "spans are sent by POST", _ALLOW)
        tenant = await self._resolve(scope)
        if tenant is None:
            return refused(HTTPStatus.UNAUTHORIZED, media_type, "the request names no tenant", _CHALLENGE)
        if media_type is None:
            types = " or ".join(MediaType)
            return refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, None, f"the content type must be {types}")
        body = await self._read(scope, receive)
        if body is None:
            return None
        if isinstance(body, bytes):
            body = await self._decompressed(_field(scope, b"content-encoding"), body)
        if isinstance(body, Undecoded):
            return self._undecoded(body, media_type)
        try:
            if len(body) <= _INLINE:
                request = read_request(media_type, body)
            else:
                request = await asyncio.to_thread(read_request, media_type, body)
        except MalformedOtlp as malformed:
            return refused(HTTPStatus.BAD_REQUEST, media_type, str(malformed))
        return await self._stored(tenant, request, media_type)

    async def _resolve(self, scope: Scope) -> str | None:
        try:
            tenant = self._tenant(scope)
            if inspect.isawaitable(tenant):
                tenant = await tenant
        except Exception as error:  # noqa: BLE001 - who cannot be identified is nobody
            self._hook.emitter.emit(HookFailed("tenant", type(error).__name__))
            return None
        return tenant if is_valid_id(tenant) else None

    async def _read(self, scope: Scope, receive: Receive) -> _Body | None:
        """Read the body as it was sent; None when the client left before its end."""
        announced = _field(scope, b"content-length")
        if announced.isdecimal() and int(announced[:_LENGTH_DIGITS]) > self._max_body:
            return Undecoded.TOO_LARGE
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_body:
                return Undecoded.TOO_LARGE
            if not message.get("more_body", False):
                return bytes(body)

    async def _decompressed(self, coding: str, body: bytes) -> _Body:
        if len(body) <= _INLINE:
            found = decompress(coding, body, min(_INLINE, self._max_body))
            if found is not Undecoded.TOO_LARGE or self._max_body <= _INLINE:
                return found
        return await asyncio.to_thread(decompress, coding, body, self._max_body)

    def _undecoded(self, reason: Undecoded, media_type: MediaType) -> Answer:
        match reason:
            case Undecoded.TOO_LARGE:
                text = f"the body is larger than {self._max_body} bytes"
                return refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, media_type, text)
            case Undecoded.UNKNOWN_CODING:
                text = "the content encoding must be gzip or identity"
                return refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, media_type, text, _CODINGS)
            case Undecoded.CORRUPT:
                return refused(HTTPStatus.BAD_REQUEST, media_type, "the gzip body is truncated or damaged")
            case _:
                assert_never(reason)

    async def _stored(self, tenant: str, request: ExportTraceServiceRequest, media_type: MediaType) -> Answer:
        rejected = 0
        if self._sink is not None:
            try:
                result = self._sink(tenant, request)
                if inspect.isawaitable(result):
                    result = await result
            except Exception as error:  # noqa: BLE001 - whatever it was, the spans are not stored: send them again
                self._hook.emitter.emit(HookFailed("sink", type(error).__name__))
                text = "the spans could not be stored; send them again"
                return refused(HTTPStatus.SERVICE_UNAVAILABLE, media_type, text, _RETRY_AFTER)
            rejected = _rejected(result, request)
        await self._hook.notify(tenant, request, rejected=rejected)
        return accepted(media_type, rejected=rejected)


def _rejected(result: object, request: ExportTraceServiceRequest) -> int:
    """Read what a sink returned; whatever is no number, such as a cursor or True, rejects nothing."""
    if not isinstance(result, int) or isinstance(result, bool) or result <= 0:
        return 0
    count = count_spans(request)
    return min(result, count.accepted + count.ignored)


def _field(scope: Scope, name: bytes) -> str:
    """Return a header field; a repeated one is joined, so that it is no known value."""
    return ", ".join(value.decode("latin-1") for field, value in scope["headers"] if field == name)
