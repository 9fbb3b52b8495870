"""OTLP over HTTP: spans are stored, then what they changed is invalidated, then the sender is answered.

See https://opentelemetry.io/docs/specs/otlp/#otlphttp. A sender that has its acknowledgement can rely on it: after
the hook's `min_interval` at most, or at once with `ack="after-invalidation"`, nothing is answered from data without
its spans.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final, Literal, Protocol, TypeAlias, assert_never

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache.asgi import Receive, Scope, Send
from nexcache.errors import ConfigurationError
from nexcache.ingest.answers import Answer, accepted, passed_on, refused, rejected_of
from nexcache.ingest.forward import Forward, Forwarded
from nexcache.ingest.payload import MalformedOtlp, MediaType, Undecoded, codings
from nexcache.ingest.reading import MAX_BODY, Refused, body_of, by_tenant, decoded, field, parsed, resolved
from nexcache.ingest.spans import count_spans
from nexcache.invalidation.apply import Invalidation
from nexcache.telemetry.events import Emitter, HookFailed
from nexcache.tenants import Resolver

Sink: TypeAlias = Callable[[str, ExportTraceServiceRequest], int | Awaitable[int | None] | None]
"""Stores a tenant's spans; returns how many of them it rejected (None: none), or raises to have them sent again."""

_OTHER_SIGNALS: Final = frozenset(("metrics", "logs", "profiles"))
_RETRY_AFTER: Final = (b"retry-after", b"5")
_CHALLENGE: Final = (b"www-authenticate", b'ApiKey realm="otlp"')
_ALLOW: Final = (b"allow", b"POST")
_TRY_AGAIN: Final = "the spans could not be stored; send them again"


class Notifies(Protocol):
    """What the endpoint needs of the hook."""

    async def notify(
        self, tenant: str, spans: ExportTraceServiceRequest, *, rejected: int = 0, wait: bool = False
    ) -> Invalidation | None:
        """Invalidate what the spans could have changed."""

    def closes(self, part: Callable[[], Awaitable[None]]) -> None:
        """Have something called when the cache closes."""

    @property
    def emitter(self) -> Emitter:
        """Where events go."""


class OtlpEndpoint:
    """An ASGI app that takes OTLP traces (protobuf or JSON, gzip, zstd or not) for the tenant that `tenant` resolves.

    In this order: tenant, body, `sink` or `forward`, invalidation, acknowledgement. `sink(tenant, request)` gets the
    same protobuf message for both encodings; it is called on the event loop, and a sync one holds it up. When it
    raises, the sender is asked to send again, and nothing is invalidated. It returns None, or the number of
    spans it rejected, which the sender is told and must not send again. `forward`, a URL or a `Forward`, passes the
    body on to a collector unchanged; its answer is the sender's, and only after a 2xx anything is invalidated. With
    neither the spans are stored by somebody else, before.

    `ack="after-store"` acknowledges what is stored; what it changed is invalidated by then, or is within the hook's
    `min_interval`, or is queued while the store is away. `ack="after-invalidation"` acknowledges when everything is
    invalidated, and answers 503 where that is only queued: the sender sends spans again that are stored already, so
    the sink must be idempotent.

    The tenant comes from the request's authentication. Only where `tenant_attribute` allows it, and only for
    requests that name no tenant, a resource attribute of that name does: whoever can reach the endpoint without
    authentication can then invalidate any tenant's entries, so it is for networks where a gateway sets it.

    | answer | when |
    |---|---|
    | 200 | stored, and invalidated as `ack` says; also for no spans |
    | 400 | the body is not OTLP, or its coding is damaged |
    | 401 | no tenant, an impossible one, or the resolver raised |
    | 404 | the path is that of another OTLP signal |
    | 405 | not a POST |
    | 413 | more than `max_body` bytes, before or after decompression |
    | 415 | a content type or content coding that OTLP/HTTP does not have |
    | 502 | the collector answered what no collector does |
    | 503 | the sink raised, the collector did not answer, or an invalidation was only queued; retryable |

    It answers whatever path it is given, with or without a last slash and without redirects, so mount it one
    level above: `Mount("/v1", OtlpEndpoint(...))` takes `/v1/traces` and `/v1/traces/`;
    `Route("/v1/traces", OtlpEndpoint(...), methods=["POST"])` takes the one.
    """

    def __init__(
        self,
        hook: Notifies,
        *,
        tenant: Resolver,
        sink: Sink | None = None,
        forward: str | Forward | None = None,
        ack: Literal["after-store", "after-invalidation"] = "after-store",
        tenant_attribute: str | None = None,
        max_body: int = MAX_BODY,
    ) -> None:
        if max_body < 1:
            raise ConfigurationError("max_body must be a positive number of bytes")
        if ack not in ("after-store", "after-invalidation"):
            raise ConfigurationError(f'ack is "after-store" or "after-invalidation", not {ack!a}')
        if sink is not None and forward is not None:
            raise ConfigurationError("spans go to a sink or to a collector (forward), not to both")
        if tenant_attribute is not None and not tenant_attribute:
            raise ConfigurationError("tenant_attribute names a resource attribute, such as tenant.id")
        self._hook = hook
        self._tenant = tenant
        self._sink = sink
        self._forward = Forward(forward) if isinstance(forward, str) else forward
        self._wait = ack == "after-invalidation"
        self._attribute = tenant_attribute
        self._max_body = max_body
        if self._forward is not None:
            hook.closes(self._forward.aclose)

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
        media_type = MediaType.of(field(scope, b"content-type"))
        if scope["path"].rstrip("/").rpartition("/")[2] in _OTHER_SIGNALS:
            return refused(HTTPStatus.NOT_FOUND, media_type, "only traces are taken here")
        if scope["method"] != "POST":
            return refused(HTTPStatus.METHOD_NOT_ALLOWED, media_type, "spans are sent by POST", _ALLOW)
        try:
            tenant = await resolved(self._tenant, scope, self._hook.emitter)
        except Refused:
            return _unknown(media_type)
        if tenant is None and self._attribute is None:
            return _unknown(media_type)
        if media_type is None:
            types = " or ".join(MediaType)
            return refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, None, f"the content type must be {types}")
        sent = await body_of(scope, receive, self._max_body)
        if sent is None:
            return None
        coding = field(scope, b"content-encoding")
        body = sent if isinstance(sent, Undecoded) else await decoded(coding, sent, self._max_body)
        if isinstance(body, Undecoded):
            return self._undecoded(body, media_type)
        try:
            request = await parsed(media_type, body)
        except MalformedOtlp as malformed:
            return refused(HTTPStatus.BAD_REQUEST, media_type, str(malformed))
        nobodys = 0
        requests: Mapping[str, ExportTraceServiceRequest]
        if tenant is not None:
            requests = {tenant: request}
        else:
            requests, nobodys = by_tenant(request, self._attribute or "")
            if nobodys and not requests:
                return _unknown(media_type)
        if self._forward is not None:
            assert isinstance(sent, bytes)  # noqa: S101 - for the type checker: `body` was decoded from it
            forwarded = await self._forward.send(
                tenant, sent, content_type=field(scope, b"content-type"), coding=coding
            )
            return await self._forwarded(forwarded, requests, media_type)
        return await self._stored(requests, nobodys, media_type)

    def _undecoded(self, reason: Undecoded, media_type: MediaType) -> Answer:
        match reason:
            case Undecoded.TOO_LARGE:
                text = f"the body is larger than {self._max_body} bytes"
                return refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, media_type, text)
            case Undecoded.UNKNOWN_CODING:
                text = f"the content encoding must be one of {codings()}"
                accepts = (b"accept-encoding", codings().encode())
                return refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, media_type, text, accepts)
            case Undecoded.CORRUPT:
                return refused(HTTPStatus.BAD_REQUEST, media_type, "the compressed body is truncated or damaged")
            case _:
                assert_never(reason)

    async def _stored(
        self, requests: Mapping[str, ExportTraceServiceRequest], nobodys: int, media_type: MediaType
    ) -> Answer:
        rejected, queued = nobodys, False
        for tenant, request in requests.items():
            refusals = 0
            if self._sink is not None:
                try:
                    result = self._sink(tenant, request)
                    if inspect.isawaitable(result):
                        result = await result
                except Exception as error:  # noqa: BLE001 - whatever it was, the spans are not stored: send them again
                    self._hook.emitter.emit(HookFailed("sink", type(error).__name__))
                    return refused(HTTPStatus.SERVICE_UNAVAILABLE, media_type, _TRY_AGAIN, _RETRY_AFTER)
                refusals = _rejected(result, request)
            done = await self._hook.notify(tenant, request, rejected=refusals, wait=self._wait)
            queued = queued or (done is not None and done.queued)
            rejected += refusals
        if queued and self._wait:
            return _queued(media_type)
        return accepted(media_type, rejected=rejected)

    async def _forwarded(
        self, forwarded: Forwarded | None, requests: Mapping[str, ExportTraceServiceRequest], media_type: MediaType
    ) -> Answer:
        if forwarded is None:
            return refused(HTTPStatus.SERVICE_UNAVAILABLE, media_type, _TRY_AGAIN, _RETRY_AFTER)
        if not forwarded.stored:
            if not forwarded.body:
                return refused(forwarded.status, media_type, "the collector did not take the spans", *forwarded.headers)
            return passed_on(forwarded.status, forwarded.headers, forwarded.body)
        rejected, queued = rejected_of(media_type, forwarded.body), False
        for tenant, request in requests.items():
            count = count_spans(request)
            refusals = min(rejected, count.accepted + count.ignored)
            done = await self._hook.notify(tenant, request, rejected=refusals, wait=self._wait)
            queued = queued or (done is not None and done.queued)
            rejected -= refusals
        if queued and self._wait:
            return _queued(media_type)
        return passed_on(forwarded.status, forwarded.headers, forwarded.body)


def _unknown(media_type: MediaType | None) -> Answer:
    return refused(HTTPStatus.UNAUTHORIZED, media_type, "the request names no tenant", _CHALLENGE)


def _queued(media_type: MediaType) -> Answer:
    text = "the spans are stored, but not every reader can know of them yet; send them again"
    return refused(HTTPStatus.SERVICE_UNAVAILABLE, media_type, text, _RETRY_AFTER)


def _rejected(result: object, request: ExportTraceServiceRequest) -> int:
    """Read what a sink returned; whatever is no number, such as a cursor or True, rejects nothing."""
    if not isinstance(result, int) or isinstance(result, bool) or result <= 0:
        return 0
    count = count_spans(request)
    return min(result, count.accepted + count.ignored)
