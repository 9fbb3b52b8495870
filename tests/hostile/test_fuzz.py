"""Whatever bytes come from outside, a decoder answers with a value or with its own error, within its bounds.

The seeds are kept in `seeds.toml`; what the fuzzer finds is added there.
"""

import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import httpx2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nexcache.errors import InvalidName
from nexcache.ingest.payload import MalformedOtlp, MediaType, Undecoded, decompress
from nexcache.ingest.spans import read_request, spans_of
from nexcache.key import HeaderRules, Keyed, name_of, segment
from nexcache.message import Entry, StoredResponse
from nexcache.policy import Policies, Policy, Query
from nexcache.semantics import dates, encoding, freshness, groups, validation
from nexcache.semantics.cache_control import delta_seconds, directives
from nexcache.semantics.headers import is_end_to_end, is_sendable
from nexcache.stores.codec import Codec, Undecodable
from nexcache.telemetry.names import Bypass

SEEDS: Final = {
    kind: tuple(bytes.fromhex(text) for text in texts)
    for kind, texts in tomllib.loads(Path(__file__).with_name("seeds.toml").read_text()).items()
}
Test = TypeVar("Test", bound=Callable[..., None])
KEY: Final = b"nexarch:acme:op:" + b"0" * 32
SIGNED: Final = Codec({"k1": b"a-signing-key-that-nobody-knows"})
RESPONSE: Final = StoredResponse(200, ((b"content-type", b"text/plain"),), b"body" * 20, b'"tag"', 1e9, 60.0)
STORED: Final = SIGNED.encode(KEY, Entry(b"request", RESPONSE, ((b"g", b"token"),)))
POLICIES: Final = Policies(
    [Policy("/{a}/x/{b:path}", op="a"), Policy("/{n:int}.{f:float}", op="b"), Policy("/{u:uuid}", op="c")]
)


def seeded(kind: str) -> Callable[[Test], Test]:
    """Begin with the kept seeds."""

    def add(test: Test) -> Test:
        for seed in SEEDS[kind]:
            test = example(seed)(test)
        return test

    return add


@seeded("envelopes")
@given(st.binary(max_size=400))
def test_bytes_that_nobody_signed_are_no_entry(value: bytes) -> None:
    assert isinstance(SIGNED.decode(KEY, value), Undecodable)
    found = Codec().decode(KEY, value)
    assert isinstance(found, Undecodable)
    assert found.reason in {"corrupt", "forged", "sealed", "newer", "older"}


@settings(max_examples=400)
@given(st.integers(0, len(STORED) * 8 - 1), st.binary(max_size=8), st.integers(0, len(STORED)))
def test_a_value_that_was_changed_anywhere_is_no_entry(bit: int, inserted: bytes, place: int) -> None:
    changed = bytearray(STORED)
    changed[bit // 8] ^= 1 << bit % 8
    assert isinstance(SIGNED.decode(KEY, bytes(changed)), Undecodable)
    longer = STORED[:place] + inserted + STORED[place:]
    assert isinstance(SIGNED.decode(KEY, longer), Entry) is (longer == STORED)


FIELDS: Final = st.one_of(st.binary(max_size=60), st.sampled_from(SEEDS["headers"]))
NAMES: Final = st.sampled_from(
    [
        b"host", b"forwarded", b"x-forwarded-host", b"content-length", b"content_length", b"transfer-encoding",
        b"cookie", b"cache-control", b"if-none-match", b"if-modified-since", b"range", b"x-http-method-override",
        b"accept", b"content-type", b"authorization", b"x-any",
    ]
)  # fmt: skip
POLICY: Final = Policy("/", op="op", vary=("accept",), methods=("GET", "POST"))
RULES: Final = HeaderRules(["authorization", "cookie"], [POLICY], principal=False)


@given(st.lists(st.tuples(NAMES, FIELDS), max_size=8), st.sampled_from(["GET", "HEAD", "POST"]))
def test_the_header_fields_of_a_request_are_keyed_or_a_bypass(headers: list[tuple[bytes, bytes]], method: str) -> None:
    match RULES.read(method, headers, POLICY):
        case Keyed(fields):
            assert {name for name, _ in fields} <= {name for name, _ in headers}
            assert [name for name, _ in headers].count(b"host") <= 1
            assert (
                not {b"authorization", b"cookie", b"content_length", b"x-http-method-override"} & dict(headers).keys()
            )
        case reason:
            assert isinstance(reason, Bypass)


@seeded("headers")
@given(st.binary(max_size=200))
def test_every_parser_of_a_header_field_takes_any_bytes(value: bytes) -> None:
    def fields(name: bytes) -> list[tuple[bytes, bytes]]:
        return [(name, value), (name, value)]

    assert all(isinstance(name, bytes) for name in directives(fields(b"cache-control")))
    delta_seconds(fields(b"cache-control"), b"max-age", b"s-maxage")
    assert freshness.age_value(fields(b"age")) >= 0
    lifetime = freshness.freshness_lifetime(200, fields(b"expires"), received=1e9)
    assert lifetime is not None
    instant = dates.http_date(value, now=1e9)
    assert instant is None or instant >= -1e12
    assert isinstance(validation.none_match(value, b'"tag"'), bool)
    assert set(encoding.accepted(fields(b"accept-encoding"), (b"gzip",))) <= {b"gzip", b"identity"}
    with suppress(InvalidName):
        assert all(tag.isprintable() for tag in groups.tags_in(tuple(fields(b"cache-groups"))))
    assert is_sendable(fields(b"x")) is not any((byte < 32 and byte != 9) or byte == 127 for byte in value)
    assert isinstance(is_end_to_end(((value, b""),)), bool)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_two_queries_that_a_handler_reads_differently_are_two_keys(one: bytes, other: bytes) -> None:
    query = Query(allow=["q", "page"])
    if query.canonical(one) == query.canonical(other):
        first, second = (dict.fromkeys(_read(each)) for each in (one, other))
        assert list(first) == list(second) or b";" in one + other


def _read(query: bytes) -> list[tuple[str, str]]:
    pairs = httpx2.QueryParams(query.decode("latin-1")).multi_items()
    return sorted((pair for pair in pairs if pair[0] in ("q", "page")), key=lambda pair: pair[0])


@given(st.text(max_size=300))
def test_any_path_has_a_policy_or_none_and_any_name_is_one_segment(path: str) -> None:
    found = POLICIES.match(path)
    assert found is None or found.policy.op in "abc"
    encoded = segment(path)
    assert name_of(encoded) == path
    assert not set(encoded) & set(b":{}*?[]@/ \r\n\0")


@pytest.mark.parametrize("media", MediaType)
@settings(max_examples=200)
@given(body=st.one_of(st.binary(max_size=200), st.sampled_from(SEEDS["protobuf"] + SEEDS["json"])))
def test_any_body_is_a_batch_of_spans_or_malformed(media: MediaType, body: bytes) -> None:
    for size in (1, 4_000):  # the latter is looked through before it is parsed
        request, told = None, ""
        try:
            request = read_request(media, body * size)
        except MalformedOtlp as malformed:
            told = str(malformed)
        assert request is None or all(isinstance(span.name, str) for span in spans_of(request))
        assert len(body) < 8 or body.decode("latin-1") not in told


@seeded("gzip")
@given(st.binary(max_size=300))
def test_any_body_is_decompressed_within_the_bound_or_refused(body: bytes) -> None:
    for coding in ("gzip", "", "identity", "br", "zstd", body.decode("latin-1")):
        found = decompress(coding, body, 100)
        assert isinstance(found, Undecoded) or len(found) <= 100


def test_there_are_seeds_for_every_decoder() -> None:
    assert set(SEEDS) == {"envelopes", "headers", "protobuf", "json", "gzip"}
    assert all(len(set(seeds)) == len(seeds) > 5 for seeds in SEEDS.values())
