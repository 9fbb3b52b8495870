"""What an OTLP/HTTP endpoint answers, in both encodings of OTLP. Pure.

Errors carry a google.rpc.Status, in the encoding of the request
(https://opentelemetry.io/docs/specs/otlp/#otlphttp-response).
"""

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # protobuf ships no types
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # ships no types
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from nexcache.asgi import Headers
from nexcache.ingest.payload import MediaType

# The google.rpc.Code that says the same as each HTTP status.
_CODES: Final = {
    HTTPStatus.BAD_REQUEST: 3,  # INVALID_ARGUMENT
    HTTPStatus.UNAUTHORIZED: 16,  # UNAUTHENTICATED
    HTTPStatus.NOT_FOUND: 5,  # NOT_FOUND
    HTTPStatus.METHOD_NOT_ALLOWED: 12,  # UNIMPLEMENTED
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: 8,  # RESOURCE_EXHAUSTED
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: 3,  # INVALID_ARGUMENT
    HTTPStatus.TOO_MANY_REQUESTS: 8,  # RESOURCE_EXHAUSTED
    HTTPStatus.INTERNAL_SERVER_ERROR: 13,  # INTERNAL
    HTTPStatus.BAD_GATEWAY: 14,  # UNAVAILABLE
    HTTPStatus.SERVICE_UNAVAILABLE: 14,  # UNAVAILABLE
    HTTPStatus.GATEWAY_TIMEOUT: 14,  # UNAVAILABLE
}

_REJECTED: Final = "the back end did not store these spans"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response, complete."""

    status: HTTPStatus
    headers: Headers
    body: bytes


def accepted(media_type: MediaType, *, rejected: int = 0) -> Answer:
    """Acknowledge a request; `partial_success` stays unset unless spans were rejected."""
    if media_type is MediaType.JSON:
        partial = {"partialSuccess": {"rejectedSpans": str(rejected), "errorMessage": _REJECTED}}
        return _answer(HTTPStatus.OK, media_type, json.dumps(partial if rejected else {}).encode())
    response = ExportTraceServiceResponse()
    if rejected:
        response.partial_success.CopyFrom(ExportTracePartialSuccess(rejected_spans=rejected, error_message=_REJECTED))
    return _answer(HTTPStatus.OK, media_type, response.SerializeToString())


def passed_on(status: HTTPStatus, headers: Headers, body: bytes) -> Answer:
    """Give a collector's answer to the sender as it is."""
    return Answer(status, (*headers, (b"content-length", str(len(body)).encode())), body)


def rejected_of(media_type: MediaType, body: bytes) -> int:
    """Read from a collector's answer how many spans it rejected; 0 where it does not say so."""
    try:
        if media_type is MediaType.JSON:
            partial = json.loads(body or b"{}").get("partialSuccess") or {}
            return max(0, int(partial.get("rejectedSpans", 0)))
        rejected: int = ExportTraceServiceResponse.FromString(body).partial_success.rejected_spans
        return max(0, rejected)
    except (DecodeError, ValueError, AttributeError, TypeError, RecursionError):
        return 0


def refused(status: HTTPStatus, media_type: MediaType | None, message: str, *headers: tuple[bytes, bytes]) -> Answer:
    """Refuse a request; where its encoding is not known, the answer is JSON."""
    code = _CODES[status]
    if media_type is MediaType.PROTOBUF:
        body: bytes = Status(code=code, message=message).SerializeToString()
    else:
        body = json.dumps({"code": code, "message": message}).encode()
    return _answer(status, media_type or MediaType.JSON, body, *headers)


def _answer(status: HTTPStatus, media_type: MediaType, body: bytes, *headers: tuple[bytes, bytes]) -> Answer:
    return Answer(
        status,
        (
            (b"content-type", media_type.value.encode()),
            (b"content-length", str(len(body)).encode()),
            *headers,
        ),
        body,
    )
