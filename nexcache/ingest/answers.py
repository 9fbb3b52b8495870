"""What an OTLP/HTTP endpoint answers, in both encodings of OTLP. Pure.

Errors carry a google.rpc.Status, in the encoding of the request
(https://opentelemetry.io/docs/specs/otlp/#otlphttp-response).
"""

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

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
    HTTPStatus.SERVICE_UNAVAILABLE: 14,  # UNAVAILABLE
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
