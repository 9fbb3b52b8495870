import base64
import gzip
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache.errors import NexCacheError
from nexcache.ingest.payload import MalformedOtlp, MediaType
from nexcache.ingest.spans import SpanCount, count_spans, read_request, spans_of
from tests.ingest.batches import SPAN_ID, START, TRACE_ID, Json, attribute, json_batch, protobuf_batch


def read_json(document: object) -> ExportTraceServiceRequest:
    return read_request(MediaType.JSON, json.dumps(document).encode())


def with_span(**fields: object) -> Json:
    return {"resourceSpans": [{"scopeSpans": [{"spans": [fields]}]}]}


def with_value(value: object) -> Json:
    return with_span(attributes=[{"key": "k", "value": value}])


def only_span(request: ExportTraceServiceRequest) -> Any:
    return request.resource_spans[0].scope_spans[0].spans[0]


def test_both_encodings_give_the_same_message() -> None:
    attributes = {"http.route": "/cart", "user.name": "Zoë"}
    expected = protobuf_batch("cart", "checkout", attributes=attributes, spans=3)
    assert read_json(json_batch("cart", "checkout", attributes=attributes, spans=3)) == expected
    assert read_request(MediaType.PROTOBUF, expected.SerializeToString()) == expected


def test_every_field_of_a_span_is_read_from_json() -> None:
    request = read_json(
        {
            "resourceSpans": [
                {
                    "resource": {"attributes": [attribute("a", 1)], "droppedAttributesCount": 2},
                    "schemaUrl": "https://opentelemetry.io/schemas/1.30.0",
                    "scopeSpans": [
                        {
                            "scope": {"name": "n", "version": "v", "attributes": [attribute("b", b"".decode())]},
                            "spans": [
                                {
                                    "traceId": TRACE_ID.upper(),
                                    "spanId": SPAN_ID,
                                    "parentSpanId": "",
                                    "traceState": "x=y",
                                    "flags": 257,
                                    "events": [
                                        {"timeUnixNano": START, "name": "e", "attributes": [attribute("c", 0.5)]}
                                    ],
                                    "links": [{"traceId": TRACE_ID, "spanId": SPAN_ID}],
                                    "status": {"message": "m", "code": 2},
                                }
                            ],
                        }
                    ],
                }
            ]
        }
    )
    resource_spans = request.resource_spans[0]
    assert resource_spans.resource.dropped_attributes_count == 2
    assert resource_spans.schema_url == "https://opentelemetry.io/schemas/1.30.0"
    assert resource_spans.scope_spans[0].scope.version == "v"
    read = only_span(request)
    assert read.trace_id == read.links[0].trace_id == bytes.fromhex(TRACE_ID)
    assert read.parent_span_id == b""
    assert (read.trace_state, read.flags) == ("x=y", 257)
    assert read.events[0].time_unix_nano == START
    assert read.events[0].attributes[0].value.double_value == 0.5
    assert (read.status.message, read.status.code) == ("m", 2)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ({"stringValue": "x"}, "string_value", "x"),
        ({"stringValue": ""}, "string_value", ""),
        ({"boolValue": False}, "bool_value", False),
        ({"intValue": "-9223372036854775808"}, "int_value", -(2**63)),
        ({"intValue": 7}, "int_value", 7),
        ({"intValue": 7.0}, "int_value", 7),
        ({"doubleValue": 1}, "double_value", 1.0),
        ({"doubleValue": "Infinity"}, "double_value", math.inf),
        ({"bytesValue": base64.b64encode(b"\xff\xfe\xfd").decode()}, "bytes_value", b"\xff\xfe\xfd"),
        ({"bytesValue": "__79"}, "bytes_value", b"\xff\xfe\xfd"),
        ({"bytesValue": "YQ"}, "bytes_value", b"a"),
        ({"stringValue": None, "intValue": 1}, "int_value", 1),
    ],
)
def test_values_of_every_kind_are_read_from_json(value: Json, kind: str, expected: object) -> None:
    read = only_span(read_json(with_value(value))).attributes[0].value
    assert read.WhichOneof("value") == kind
    assert getattr(read, kind) == expected


def test_compound_values_are_read_from_json() -> None:
    value = {"kvlistValue": {"values": [{"key": "list", "value": {"arrayValue": {"values": [{"intValue": 1}, {}]}}}]}}
    read = only_span(read_json(with_value(value))).attributes[0].value
    inner = read.kvlist_value.values[0].value.array_value
    assert [each.WhichOneof("value") for each in inner.values] == ["int_value", None]


def test_an_empty_array_is_not_the_same_as_no_value() -> None:
    read = only_span(read_json(with_value({"arrayValue": {}}))).attributes[0].value
    assert read.WhichOneof("value") == "array_value"


def test_unknown_fields_snake_case_and_nulls_are_ignored() -> None:
    document = with_span(name="n", kind=None, start_time_unix_nano="x", newField={"deep": [1, 2]}, attributes=None)
    request = read_json({"resource_spans": 5, "resourceSpans": document["resourceSpans"], "later": []})
    assert only_span(request).name == "n"
    assert only_span(request).start_time_unix_nano == 0


@pytest.mark.parametrize("media_type", MediaType)
def test_an_empty_body_is_an_empty_request(media_type: MediaType) -> None:
    assert count_spans(read_request(media_type, b"")) == SpanCount(accepted=0, ignored=0)


@pytest.mark.parametrize(
    "document",
    [
        pytest.param([], id="a list"),
        pytest.param(None, id="null"),
        pytest.param({"resourceSpans": {}}, id="resourceSpans an object"),
        pytest.param({"resourceSpans": [None]}, id="a null element"),
        pytest.param({"resourceSpans": [[]]}, id="an element that is a list"),
        pytest.param({"resourceSpans": [{"resource": []}]}, id="resource a list"),
        pytest.param({"resourceSpans": [{"scopeSpans": "x"}]}, id="scopeSpans a string"),
        pytest.param({"resourceSpans": [{"scopeSpans": [{"scope": 1}]}]}, id="scope a number"),
        pytest.param(with_span(name=1), id="name a number"),
        pytest.param(with_span(name="\ud800"), id="name half a character"),
        pytest.param(with_span(kind="SPAN_KIND_SERVER"), id="kind by name"),
        pytest.param(with_span(kind=True), id="kind a boolean"),
        pytest.param(with_span(kind=2**31), id="kind out of range"),
        pytest.param(with_span(startTimeUnixNano="1e9"), id="time with exponent in a string"),
        pytest.param(with_span(startTimeUnixNano=1.5), id="time a fraction"),
        pytest.param(with_span(startTimeUnixNano=-1), id="time negative"),
        pytest.param(with_span(startTimeUnixNano=2**64), id="time out of range"),
        pytest.param(with_span(startTimeUnixNano="9" * 5000), id="time endless"),
        pytest.param(with_span(startTimeUnixNano="\u0661"), id="time in other digits"),
        pytest.param(with_span(startTimeUnixNano=True), id="time a boolean"),
        pytest.param(with_span(traceId="AAAAAAAAAAAAAAAAAAAAAA=="), id="trace id in base64"),
        pytest.param(with_span(traceId="  " * 16), id="trace id of spaces"),
        pytest.param(with_span(traceId=TRACE_ID[:-2]), id="trace id too short"),
        pytest.param(with_span(spanId=5), id="span id a number"),
        pytest.param(with_span(spanId="zz" * 8), id="span id not hexadecimal"),
        pytest.param(with_span(status=2), id="status a number"),
        pytest.param(with_span(attributes={"k": "v"}), id="attributes a map"),
        pytest.param(with_value("x"), id="value a string"),
        pytest.param(with_value({"stringValue": 1}), id="string a number"),
        pytest.param(with_value({"boolValue": 1}), id="boolean a number"),
        pytest.param(with_value({"doubleValue": "1.5"}), id="double a string"),
        pytest.param(with_value({"doubleValue": True}), id="double a boolean"),
        pytest.param(with_value({"doubleValue": 10**400}), id="double endless"),
        pytest.param(with_value({"bytesValue": "%"}), id="bytes not base64"),
        pytest.param(with_value({"bytesValue": 1}), id="bytes a number"),
        pytest.param(with_value({"stringValue": "x", "intValue": 1}), id="two values"),
    ],
)
def test_json_of_a_wrong_shape_is_malformed(document: object) -> None:
    with pytest.raises(MalformedOtlp) as raised:
        read_json(document)
    assert isinstance(raised.value, NexCacheError)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{", id="truncated"),
        pytest.param(b"\xff\xfe\x00", id="bytes"),
        pytest.param(b'{"resourceSpans": NaN}', id="NaN"),
        pytest.param(b"[" * 100_000, id="nested"),
        pytest.param(b"9" * 5000, id="endless number"),
    ],
)
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedOtlp):
        read_request(MediaType.JSON, body)


def nested(depth: int) -> Json:
    value: Json = {"intValue": 1}
    for _ in range(depth):
        value = {"arrayValue": {"values": [value]}}
    return with_value(value)


def test_values_nested_too_deeply_are_malformed_and_all_others_can_be_read_again() -> None:
    with pytest.raises(MalformedOtlp, match="nested too deeply"):
        read_json(nested(43))
    request = read_json(nested(42))
    assert read_request(MediaType.PROTOBUF, request.SerializeToString()) == request


def test_errors_do_not_repeat_the_body() -> None:
    for document in (with_span(name="s3cret\ud800"), with_span(kind="s3cret"), {"resourceSpans": {"s3cret": 1}}):
        with pytest.raises(MalformedOtlp) as raised:
            read_json(document)
        assert "s3cret" not in str(raised.value)
        assert raised.value.__cause__ is None


_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(TRACE_ID)
_names = st.sampled_from(
    """
    resourceSpans scopeSpans spans resource scope attributes key value name kind stringValue intValue bytesValue
    doubleValue arrayValue kvlistValue values traceId startTimeUnixNano status code events links flags entityRefs
    unknown
    """.split()  # noqa: SIM905 - one name per line would be a page
)
_anything = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=4), max_leaves=20
)


@st.composite
def _almost_otlp(draw: st.DrawFn) -> object:
    """Replace one node of a real batch by anything."""
    document: Any = json_batch("cart", attributes={"a": "b", "n": 1, "list": ["x"]})
    node, key = document, "resourceSpans"
    while True:
        child = node[key]
        if not isinstance(child, dict | list) or not child or draw(st.booleans()):
            node[key] = draw(_anything)
            return document
        node = child
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))


def assert_readable(request: ExportTraceServiceRequest) -> None:
    """Read everything that a rule can ask for."""
    every = list(spans_of(request))
    assert len(every) == count_spans(request).accepted
    for each in every:
        assert each.service is None or isinstance(each.service, str)
        assert each.attributes.get("no such attribute") is None


@given(_anything | _almost_otlp())
def test_any_json_is_read_or_malformed(document: object) -> None:
    try:
        request = read_json(document)
    except MalformedOtlp:
        return
    assert count_spans(read_request(MediaType.PROTOBUF, request.SerializeToString())) == count_spans(request)
    assert_readable(request)


@given(st.binary(max_size=200), st.sampled_from(MediaType))
def test_any_bytes_are_read_or_malformed(body: bytes, media_type: MediaType) -> None:
    try:
        request = read_request(media_type, body)
    except MalformedOtlp:
        return
    assert_readable(request)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_batch_is_read_or_malformed(position: int, byte: int) -> None:
    body = bytearray(protobuf_batch("cart", attributes={"a": "b"}).SerializeToString())
    body[position % len(body)] = byte
    try:
        request = read_request(MediaType.PROTOBUF, bytes(body))
    except MalformedOtlp:
        return
    assert_readable(request)


def test_a_truncated_protobuf_body_is_malformed() -> None:
    with pytest.raises(MalformedOtlp):
        read_request(MediaType.PROTOBUF, protobuf_batch("cart").SerializeToString()[:-1])
    with pytest.raises(MalformedOtlp):
        read_request(MediaType.PROTOBUF, gzip.compress(b"still compressed"))


def test_a_span_gives_what_rules_need() -> None:
    request = read_json(json_batch("cart", attributes={"n": 7, "ok": True, "f": 0.5, "list": ["x"]}))
    (span,) = spans_of(request)
    assert (span.name, span.kind, span.status_code) == ("GET /cart", 2, 1)
    assert (span.start_unix_nano, span.end_unix_nano) == (START, START + 1_000)
    assert (span.service, span.scope_name, span.own) == ("cart", "shop", False)
    assert [span.attributes.get(name) for name in ("n", "ok", "f", "missing")] == [7, True, 0.5, None]
    assert span.resource.get("service.name") == "cart"
    assert span.scope_attributes.get("anything") is None
    assert not isinstance(span.attributes.get("list"), str | bool | int | float | None)


def test_an_attribute_without_a_value_is_no_attribute() -> None:
    (span,) = spans_of(read_json(with_value({})))
    assert span.attributes.get("k") is None


def test_of_a_repeated_attribute_the_last_one_counts() -> None:
    (span,) = spans_of(read_json(with_span(attributes=[attribute("k", "first"), attribute("k", "last")])))
    assert span.attributes.get("k") == "last"


def test_a_service_name_that_is_no_string_is_none() -> None:
    document = json_batch("cart")
    document["resourceSpans"][0]["resource"]["attributes"] = [attribute("service.name", 5)]
    (span,) = spans_of(read_json(document))
    assert span.service is None


def test_spans_of_nexcache_are_counted_and_never_given_out() -> None:
    request = protobuf_batch("cart", scope="nexcache", spans=3)
    request.MergeFrom(protobuf_batch("cart", spans=2))
    assert count_spans(request) == SpanCount(accepted=2, ignored=3)
    assert [each.scope_name for each in spans_of(request)] == ["shop", "shop"]
