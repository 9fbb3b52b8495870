"""From an OTLP request to rows of the database. Pure."""

from collections.abc import Iterator
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache.demo.database import Span

JOURNEY: Final = "app.journey"
"""The attribute that says what the visitor was about to do."""

_TRACE_ID_BYTES: Final = 16
_SPAN_ID_BYTES: Final = 8
_STATUS_ERROR: Final = 2
_UNKNOWN: Final = "unknown_service"


def rows(request: ExportTraceServiceRequest) -> Iterator[Span]:
    """Give the spans of a request; those without valid ids are left out, as OTLP asks for."""
    for resource_spans in request.resource_spans:
        service = _UNKNOWN
        for attribute in resource_spans.resource.attributes:
            if attribute.key == "service.name":
                service = attribute.value.string_value or _UNKNOWN
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                if len(span.trace_id) != _TRACE_ID_BYTES or len(span.span_id) != _SPAN_ID_BYTES:
                    continue
                start_us = span.start_time_unix_nano // 1000
                yield Span(
                    span.trace_id,
                    span.span_id,
                    span.parent_span_id or None,
                    service,
                    next((each.value.string_value for each in span.attributes if each.key == JOURNEY), None),
                    span.name,
                    span.status.code == _STATUS_ERROR,
                    start_us,
                    max(0, span.end_time_unix_nano // 1000 - start_us),
                )
