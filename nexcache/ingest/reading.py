"""What every way in over HTTP does first: whose request it is, and what spans are in it."""

import asyncio
import inspect
from collections.abc import Mapping
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache.asgi import Receive, Scope
from nexcache.ingest.payload import MalformedOtlp, MediaType, Undecoded, decompress
from nexcache.ingest.spans import MessageAttributes, read_request
from nexcache.telemetry.events import Emitter, HookFailed
from nexcache.tenants import Resolver, is_valid_id

MAX_BODY: Final = 20 * 1024 * 1024
"""Bytes, before and after decompression: what the OTLP specification recommends."""

_INLINE: Final = 64 * 1024
"""Bytes; more than that is parsed beside the event loop."""
_LENGTH_DIGITS: Final = 20


class Refused(Exception):  # noqa: N818 - an outcome, raised where the tenant could not even be asked for
    """The resolver raised: nobody knows who this is, and nothing else may name the tenant."""


async def resolved(tenant: Resolver, scope: Scope, emitter: Emitter) -> str | None:
    """Return the request's tenant; None where it names none or an impossible one. Raises Refused."""
    try:
        found = tenant(scope)
        if inspect.isawaitable(found):
            found = await found
    except Exception as error:
        emitter.emit(HookFailed("tenant", type(error).__name__))
        raise Refused from error
    if found is None:
        return None
    if not is_valid_id(found):
        raise Refused
    return found


def field(scope: Scope, name: bytes) -> str:
    """Return a header field; a repeated one is joined, so that it is no known value."""
    return ", ".join(value.decode("latin-1") for each, value in scope["headers"] if each == name)


async def body_of(scope: Scope, receive: Receive, max_body: int) -> bytes | Undecoded | None:
    """Read a body as it was sent; None when the client left before its end."""
    announced = field(scope, b"content-length")
    if announced.isdecimal() and int(announced[:_LENGTH_DIGITS]) > max_body:
        return Undecoded.TOO_LARGE
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > max_body:
            return Undecoded.TOO_LARGE
        if not message.get("more_body", False):
            return bytes(body)


async def decoded(coding: str, body: bytes, max_body: int) -> bytes | Undecoded:
    """Undo a body's content coding, beside the event loop where it is large."""
    if len(body) <= _INLINE:
        found = decompress(coding, body, min(_INLINE, max_body))
        if found is not Undecoded.TOO_LARGE or max_body <= _INLINE:
            return found
    return await asyncio.to_thread(decompress, coding, body, max_body)


async def parsed(media_type: MediaType, body: bytes) -> ExportTraceServiceRequest:
    """Parse a decoded body, beside the event loop where it is large. Raises MalformedOtlp."""
    if len(body) <= _INLINE:
        return read_request(media_type, body)
    return await asyncio.to_thread(read_request, media_type, body)


async def request_of(scope: Scope, body: bytes, max_body: int) -> ExportTraceServiceRequest | None:
    """Return the spans of a body that somebody else has accepted; None where they cannot be read."""
    media_type = MediaType.of(field(scope, b"content-type"))
    if media_type is None:
        return None
    plain = await decoded(field(scope, b"content-encoding"), body, max_body)
    if isinstance(plain, Undecoded):
        return None
    try:
        return await parsed(media_type, plain)
    except MalformedOtlp:
        return None


def by_tenant(
    request: ExportTraceServiceRequest, attribute: str
) -> tuple[Mapping[str, ExportTraceServiceRequest], int]:
    """Split a request by the tenants that a resource attribute names; also how many spans name none."""
    found: dict[str, ExportTraceServiceRequest] = {}
    nobodys = 0
    for resource_spans in request.resource_spans:
        tenant = MessageAttributes(resource_spans.resource.attributes).get(attribute)
        if isinstance(tenant, str) and is_valid_id(tenant):
            found.setdefault(tenant, ExportTraceServiceRequest()).resource_spans.append(resource_spans)
        else:
            nobodys += sum(len(scope_spans.spans) for scope_spans in resource_spans.scope_spans)
    return found, nobodys
