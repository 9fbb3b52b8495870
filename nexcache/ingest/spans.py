"""From the bytes of an OTLP request to spans, as far as rules need them. Pure.

The protobuf runtime does the work; nothing is copied out of a message before a rule asks for it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # protobuf ships no types
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache.ingest.density import check_protobuf
from nexcache.ingest.otlp_json import read_json
from nexcache.ingest.payload import MalformedOtlp, MediaType
from nexcache.telemetry.names import SCOPE


class Attributes(Protocol):
    """The attributes of a span, a resource or a scope; a dict is one."""

    def get(self, name: str, /) -> object:
        """Return the value, None where there is none; whatever is no str, bool, int or float is compound."""


@dataclass(frozen=True, slots=True)
class Span:
    """One span, as rules see it. Kind and status code are OTLP's numbers, times are Unix nanoseconds."""

    name: str
    attributes: Attributes
    resource: Attributes
    scope_name: str
    scope_attributes: Attributes
    kind: int
    status_code: int
    start_unix_nano: int
    end_unix_nano: int

    @property
    def service(self) -> str | None:
        """The resource's `service.name`; None where it has none that is a string."""
        name = self.resource.get("service.name")
        return name if isinstance(name, str) else None

    @property
    def own(self) -> bool:
        """Whether NexCache itself made the span: such spans never invalidate anything."""
        return self.scope_name == SCOPE


@dataclass(frozen=True, slots=True)
class SpanCount:
    """How many spans a request holds."""

    accepted: int
    ignored: int
    """Spans of NexCache's own scope."""


def read_request(media_type: MediaType, body: bytes) -> ExportTraceServiceRequest:
    """Parse a decompressed body; an empty one is an empty request.

    Both encodings give the same message. Raises MalformedOtlp and nothing else, whatever the bytes. Memory
    is bounded by a small multiple of the body's size.
    """
    if media_type is MediaType.JSON:
        return read_json(body)
    check_protobuf(body)
    try:
        request: ExportTraceServiceRequest = ExportTraceServiceRequest.FromString(body)
    except DecodeError:
        raise MalformedOtlp("the body is not an ExportTraceServiceRequest in protobuf") from None
    return request


def spans_of(request: ExportTraceServiceRequest) -> Iterator[Span]:
    """Give the spans of a request, without those that NexCache made itself."""
    return (span for span in every_span_of(request) if not span.own)


def every_span_of(request: ExportTraceServiceRequest) -> Iterator[Span]:
    """Give the spans of a request."""
    for resource_spans in request.resource_spans:
        resource = MessageAttributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            scope = scope_spans.scope
            scope_name = scope.name
            scope_attributes = MessageAttributes(scope.attributes)
            for span in scope_spans.spans:
                yield Span(
                    span.name,
                    MessageAttributes(span.attributes),
                    resource,
                    scope_name,
                    scope_attributes,
                    span.kind,
                    span.status.code,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                )


def count_spans(request: ExportTraceServiceRequest) -> SpanCount:
    """Count the spans of a request without looking at them."""
    accepted = ignored = 0
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            if scope_spans.scope.name == SCOPE:
                ignored += len(scope_spans.spans)
            else:
                accepted += len(scope_spans.spans)
    return SpanCount(accepted, ignored)


class MessageAttributes:
    """Attributes as OTLP's `KeyValue` list; indexed when first asked. Of a repeated key the last one counts."""

    __slots__ = ("_index", "_pairs")

    def __init__(self, pairs: Iterable[Any]) -> None:
        self._pairs = pairs
        self._index: dict[str, Any] | None = None

    def get(self, name: str, /) -> object:
        """Return the value: a str, bool, int or float; bytes, arrays and maps as the message has them."""
        if self._index is None:
            self._index = {pair.key: pair for pair in self._pairs}
        pair = self._index.get(name)
        return None if pair is None else value_of(pair.value)


def value_of(value: Any) -> object:
    """Return what an AnyValue holds: a str, bool, int or float; bytes, arrays and maps as the message has them."""
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)
