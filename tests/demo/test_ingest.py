from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache.demo.database import Span
from nexcache.demo.ingest import rows


def request_of(service: str | None = "cart") -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    if service is not None:
        attribute = resource_spans.resource.attributes.add()
        attribute.key = "service.name"
        attribute.value.string_value = service
    span = resource_spans.scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name = b"t" * 16, b"s" * 8, "Add"
    span.start_time_unix_nano, span.end_time_unix_nano = 5_000_999, 9_000_000
    return request


def test_a_span_becomes_a_row_in_microseconds() -> None:
    assert list(rows(request_of())) == [Span(b"t" * 16, b"s" * 8, None, "cart", None, "Add", False, 5000, 4000)]


def test_a_span_with_a_parent_and_an_error_keeps_both() -> None:
    request = request_of()
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.parent_span_id, span.status.code = b"p" * 8, 2
    (row,) = rows(request)
    assert (row.parent_id, row.failed) == (b"p" * 8, True)


def test_a_resource_without_a_name_is_an_unknown_service() -> None:
    assert [row.service for row in rows(request_of(None))] == ["unknown_service"]


def test_the_journey_is_what_the_span_says() -> None:
    request = request_of()
    attribute = request.resource_spans[0].scope_spans[0].spans[0].attributes.add()
    attribute.key, attribute.value.string_value = "app.journey", "checkout"
    (row,) = rows(request)
    assert row.subjects == ("service:cart", "journey:checkout")


def test_spans_without_valid_ids_are_left_out() -> None:
    request = request_of()
    request.resource_spans[0].scope_spans[0].spans[0].span_id = b"short"
    assert list(rows(request)) == []


def test_a_span_that_ends_before_it_begins_takes_no_time() -> None:
    request = request_of()
    request.resource_spans[0].scope_spans[0].spans[0].end_time_unix_nano = 1
    assert [row.duration_us for row in rows(request)] == [0]
