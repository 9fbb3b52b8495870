import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexcache.ingest.payload import MediaType, Undecoded, decompress

LIMIT = 1024


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/x-protobuf", MediaType.PROTOBUF),
        ("Application/JSON; charset=utf-8", MediaType.JSON),
        (" application/json ", MediaType.JSON),
        ("application/protobuf", None),
        ("application/json, application/json", None),
        ("text/plain", None),
        ("", None),
    ],
)
def test_only_the_two_types_of_otlp_are_known(content_type: str, expected: MediaType | None) -> None:
    assert MediaType.of(content_type) is expected


@pytest.mark.parametrize(
    ("coding", "body", "expected"),
    [
        pytest.param("", b"spans", b"spans", id="no coding"),
        pytest.param("identity", b"spans", b"spans", id="identity"),
        pytest.param("gzip", gzip.compress(b"spans"), b"spans", id="gzip"),
        pytest.param("GZip", gzip.compress(b"spans"), b"spans", id="case does not matter"),
        pytest.param("x-gzip", gzip.compress(b"spans"), b"spans", id="old name"),
        pytest.param("gzip", b"", b"", id="nothing at all"),
        pytest.param("gzip", gzip.compress(b""), b"", id="gzip of nothing"),
        pytest.param("gzip", gzip.compress(b"a") + gzip.compress(b"b"), b"ab", id="two members"),
        pytest.param("gzip", gzip.compress(b"a") + b"\0" * 100, b"a", id="zero padding"),
        pytest.param("gzip", gzip.compress(b"a") + b"\0" + gzip.compress(b"b"), b"ab", id="padding between"),
        pytest.param("gzip", gzip.compress(b"a") + b"garbage", Undecoded.CORRUPT, id="trailing garbage"),
        pytest.param("gzip", gzip.compress(b"spans")[:-1], Undecoded.CORRUPT, id="truncated"),
        pytest.param("gzip", gzip.compress(b"spans")[:3], Undecoded.CORRUPT, id="truncated header"),
        pytest.param("gzip", b"spans", Undecoded.CORRUPT, id="not gzip"),
        pytest.param("gzip", b"\0" * 10, Undecoded.CORRUPT, id="only padding"),
        pytest.param("gzip", zlib.compress(b"spans"), Undecoded.CORRUPT, id="zlib is not gzip"),
        pytest.param("gzip", gzip.compress(b"") * 65, Undecoded.CORRUPT, id="too many members"),
        pytest.param("deflate", b"", Undecoded.UNKNOWN_CODING, id="deflate"),
        pytest.param("gzip, gzip", b"", Undecoded.UNKNOWN_CODING, id="twice"),
        pytest.param("identity", b"x" * LIMIT, b"x" * LIMIT, id="at the limit"),
        pytest.param("identity", b"x" * (LIMIT + 1), Undecoded.TOO_LARGE, id="over the limit"),
        pytest.param("gzip", gzip.compress(b"x" * LIMIT), b"x" * LIMIT, id="at the limit inside"),
        pytest.param("gzip", gzip.compress(b"x" * (LIMIT + 1)), Undecoded.TOO_LARGE, id="over the limit inside"),
        pytest.param("gzip", gzip.compress(b"x" * 600) * 2, Undecoded.TOO_LARGE, id="over the limit together"),
    ],
)
def test_a_body_is_decompressed_or_the_reason_is_returned(
    coding: str, body: bytes, expected: bytes | Undecoded
) -> None:
    assert decompress(coding, body, LIMIT) == expected


def test_a_member_that_ends_at_any_place_of_a_chunk_is_read() -> None:
    noise = bytes(range(256)) * 1024
    body = gzip.compress(noise, 0) * 3
    assert decompress("gzip", body, 10 * len(noise)) == noise * 3


def test_a_bomb_produces_no_more_than_the_limit() -> None:
    bomb = gzip.compress(b"\0" * (64 * 1024 * 1024))
    assert len(bomb) < 70_000
    tracemalloc.start()
    try:
        outcome = decompress("gzip", bomb, 1024 * 1024)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert outcome is Undecoded.TOO_LARGE
    assert peak < 4 * 1024 * 1024


@given(st.binary(max_size=300), st.integers(1, 64))
def test_any_bytes_are_decompressed_within_the_limit_or_refused(body: bytes, limit: int) -> None:
    for data in (body, gzip.compress(body), gzip.compress(body)[:-3], b"\x1f\x8b\x08" + body):
        outcome = decompress("gzip", data, limit)
        assert isinstance(outcome, Undecoded) or len(outcome) <= limit
