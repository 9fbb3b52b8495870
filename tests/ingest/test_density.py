import gzip

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache.ingest import density
from nexcache.ingest.density import LARGE, check_json, check_protobuf
from nexcache.ingest.payload import MalformedOtlp, MediaType
from nexcache.ingest.spans import count_spans, read_request
from tests.ingest.batches import protobuf_batch


def wrapped(field: int, content: bytes) -> bytes:
    """Write a length-delimited field."""
    length, size = b"", len(content)
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([field << 3 | 2]) + length + bytes([size]) + content


def in_span(content: bytes) -> bytes:
    return wrapped(1, wrapped(2, wrapped(2, content)))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(wrapped(1, b"") * LARGE, id="resources"),
        pytest.param(wrapped(1, wrapped(2, b"") * LARGE), id="scopes"),
        pytest.param(wrapped(1, wrapped(2, wrapped(2, b"") * LARGE)), id="spans"),
        pytest.param(wrapped(1, wrapped(1, wrapped(1, b"") * LARGE)), id="resource attributes"),
        pytest.param(wrapped(1, wrapped(2, wrapped(1, wrapped(3, b"") * LARGE))), id="scope attributes"),
        pytest.param(in_span(wrapped(9, b"") * LARGE), id="attributes"),
        pytest.param(in_span(wrapped(11, b"") * LARGE), id="events"),
        pytest.param(in_span(wrapped(13, b"") * LARGE), id="links"),
        pytest.param(in_span(wrapped(11, wrapped(3, b"") * LARGE)), id="attributes of an event"),
        pytest.param(in_span(b"\xca\x80\x00\x00" * LARGE), id="attributes with overlong tags"),
    ],
)
def test_more_elements_than_a_real_body_can_hold_are_refused_before_they_are_parsed(body: bytes) -> None:
    assert len(gzip.compress(body)) < len(body) / 100, "it would reach us as next to nothing"
    with pytest.raises(MalformedOtlp, match="more elements than a body of its size"):
        check_protobuf(body)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x0a\xff\xff\xff\x7f" + b"x" * LARGE, id="longer than the body"),
        pytest.param(b"\x08" + b"\xff" * LARGE, id="endless number"),
        pytest.param(b"\x0b" * (LARGE + 1), id="groups"),
        pytest.param(b"\x0d" * LARGE + b"\x0d" * 8, id="fixed32 over the end"),
        pytest.param(b"\x22\x00" * LARGE + b"\x22", id="truncated after the tag"),
    ],
)
def test_a_large_body_that_is_not_protobuf_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedOtlp):
        read_request(MediaType.PROTOBUF, body)


def test_a_large_real_batch_passes() -> None:
    request = protobuf_batch("cart", "checkout", spans=3_000, attributes={"http.route": "/", "a": "b"})
    body = request.SerializeToString()
    assert len(body) > LARGE
    assert count_spans(read_request(MediaType.PROTOBUF, body)).accepted == 6_000


def test_fields_that_nobody_knows_are_skipped() -> None:
    unknown = b"\xa0\x06\x01" + b"\xa1\x06" + b"8" * 8 + b"\xa5\x06" + b"4" * 4 + b"\xa2\x06\x01x"
    body = unknown * 8 + wrapped(7, b"x" * LARGE)
    assert len(body) > LARGE
    assert count_spans(read_request(MediaType.PROTOBUF, body)).accepted == 0


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\0" * LARGE * 2, id="zeros"),
        pytest.param(b" " * LARGE * 2, id="spaces"),
        pytest.param(b"9" * LARGE * 2, id="digits"),
        pytest.param(wrapped(1, b" " * LARGE * 2), id="spaces in a resource"),
        pytest.param(in_span(b"\x30\x01" * LARGE), id="kinds"),
        pytest.param(in_span(b"\x30\x01" * 40) * LARGE, id="spans of kinds"),
        pytest.param(b"\x0a\x00" * LARGE, id="empty resources"),
    ],
)
def test_what_is_no_span_is_refused_where_it_begins(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 MiB of spaces, which are 20 kB of gzip, would keep the process busy for eight seconds."""
    steps, varint = 0, density._varint

    def counted(body: bytes, at: int) -> tuple[int, int]:
        nonlocal steps
        steps += 1
        return varint(body, at)

    monkeypatch.setattr(density, "_varint", counted)
    with pytest.raises(MalformedOtlp):
        check_protobuf(body)
    assert steps < 200_000


def test_the_barest_spans_that_an_exporter_sends_are_taken() -> None:
    request = protobuf_batch("cart", spans=20_000, attributes={})
    for span in request.resource_spans[0].scope_spans[0].spans:
        span.name = "x"
    body = request.SerializeToString()
    assert len(body) > LARGE
    assert count_spans(read_request(MediaType.PROTOBUF, body)).accepted == 20_000


def test_small_bodies_are_not_looked_through() -> None:
    body = wrapped(1, wrapped(2, wrapped(2, b"") * 100))
    assert count_spans(read_request(MediaType.PROTOBUF, body)).accepted == 100
    assert isinstance(ExportTraceServiceRequest.FromString(body), ExportTraceServiceRequest)


@pytest.mark.parametrize("element", [b"{},", b"[],"])
def test_json_with_more_brackets_than_its_size_allows_is_refused(element: bytes) -> None:
    with pytest.raises(MalformedOtlp, match="more elements"):
        check_json(b"[" + element * LARGE)


def test_json_arrays_with_more_elements_than_their_size_allows_are_refused() -> None:
    body = b'{"resourceSpans":[' + b",".join([b"{      }"] * LARGE) + b"]}"
    with pytest.raises(MalformedOtlp, match="more elements"):
        read_request(MediaType.JSON, body)
