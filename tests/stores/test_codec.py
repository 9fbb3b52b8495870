"""Entries as bytes: what was written is read, and nothing else is."""

import gzip
import json
import os
import tracemalloc
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexcache.message import Entry, StoredResponse
from nexcache.stores.codec import VERSION, Codec, Undecodable

KEY = b"nexarch:acme:dashboard:0123456789abcdef"
FIELDS_OF_IT = ((b"content-type", b"application/json"), (b"link", b"<a>"), (b"link", b"<b>"))
RESPONSE = StoredResponse(200, FIELDS_OF_IT, b'{"spans": 5}', b'"tag"', 1000.5, 60.25, 7, 1.5, 30.5)
DEPENDS = ((b"nexarch:acme:@tenant", b"t" * 32), (b"nexarch:acme:@op:dashboard", b"o" * 32))
ENTRY = Entry(b"4:test", RESPONSE, DEPENDS, 77)

UNSIGNED = Codec()
SIGNED = Codec({"k1": b"first secret"})
ROTATED = Codec({"k2": b"second secret", "k1": b"first secret"})
CODECS = [pytest.param(UNSIGNED, id="digest"), pytest.param(SIGNED, id="signed"), pytest.param(ROTATED, id="two keys")]


def seal(payload: object, *, version: object = VERSION, codec: Codec = UNSIGNED) -> bytes:
    """Write any payload down with a MAC that is right."""
    packed = msgpack.packb(payload)
    return bytes(msgpack.packb((version, codec._kid, codec._mac(codec._kid, KEY, packed), packed)))


FIELDS: dict[str, Any] = {
    "request": ENTRY.request,
    "generations": ENTRY.generations,
    "captured": 77,
    "stored_at": 1000500,
    "ttl": 60250,
    "kept_on": 30500,
    "initial_age": 7,
    "cost": 1500,
    "status": 200,
    "etag": b'"tag"',
    "headers": RESPONSE.headers,
    "body": RESPONSE.body,
}


@pytest.mark.parametrize("codec", CODECS)
def test_an_entry_is_read_as_it_was_written(codec: Codec) -> None:
    assert codec.decode(KEY, codec.encode(KEY, ENTRY)) == ENTRY
    assert codec.encode(KEY, ENTRY) == codec.encode(KEY, ENTRY)


def test_the_format_is_the_documented_one() -> None:
    assert UNSIGNED.encode(KEY, ENTRY) == seal(tuple(FIELDS.values()))


@pytest.mark.parametrize("filled_by", [b"", b"x" * 23, b"x" * 25, "x" * 24, 24, None])
def test_the_span_that_filled_an_entry_is_24_bytes_or_absent(filled_by: object) -> None:
    good = UNSIGNED.decode(KEY, seal((*FIELDS.values(), b"x" * 24)))
    assert isinstance(good, Entry)
    assert good.response.filled_by == b"x" * 24
    assert UNSIGNED.decode(KEY, seal((*FIELDS.values(), filled_by))) == Undecodable("corrupt")
    assert UNSIGNED.decode(KEY, seal((*FIELDS.values(), b"x" * 24, b""))) == Undecodable("corrupt")


PAIRS = st.lists(st.tuples(st.binary(), st.binary()), max_size=5).map(tuple)
NAMES = st.from_regex(rb"\Ax-[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
VALUES = st.from_regex(rb"\A[\t\x20-\x7e\x80-\xff]*\Z")
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=5).map(tuple)
ENTRIES = st.builds(
    Entry,
    request=st.binary(),
    response=st.builds(
        StoredResponse,
        status=st.integers(200, 599),
        headers=HEADERS,
        body=st.binary(),
        etag=VALUES,
        stored_at=st.integers(0, 2**41).map(lambda value: value / 1000),
        ttl=st.integers(1, 30 * 86400 * 1000).map(lambda value: value / 1000),
        initial_age=st.integers(0, 2**31 - 1),
        cost=st.integers(0, 2**31 - 1).map(lambda value: value / 1000),
        kept_on=st.integers(0, 30 * 86400 * 1000).map(lambda value: value / 1000),
        filled_by=st.one_of(st.just(b""), st.binary(min_size=24, max_size=24)),
    ),
    generations=PAIRS.filter(bool),
    captured=st.integers(0, 2**40 - 1),
)


@given(ENTRIES, st.sampled_from([UNSIGNED, SIGNED, ROTATED]), st.binary())
def test_any_entry_is_read_as_it_was_written(entry: Entry, codec: Codec, key: bytes) -> None:
    read = codec.decode(key, codec.encode(key, entry))
    assert isinstance(read, Entry)
    assert read.request == entry.request
    assert (read.generations, read.captured) == (entry.generations, entry.captured)
    assert read.response.kept_on == pytest.approx(entry.response.kept_on, abs=0.0011)
    assert read.response.stored_at == pytest.approx(entry.response.stored_at, abs=0.0011)
    assert read.response.ttl == pytest.approx(entry.response.ttl, abs=0.0011)
    assert read.response.cost == pytest.approx(entry.response.cost, abs=0.0011)
    for name in ("status", "headers", "body", "etag", "initial_age", "filled_by"):
        assert getattr(read.response, name) == getattr(entry.response, name)


def test_a_large_body_is_read_too() -> None:
    body = b"x" * (70 * 1024 * 1024)
    entry = Entry(b"r", StoredResponse(200, (), body, b"", 0.0, 1.0), ((b"g", b"t"),))
    assert SIGNED.decode(KEY, SIGNED.encode(KEY, entry)) == entry


@pytest.mark.parametrize("codec", CODECS)
def test_no_single_bit_can_be_changed(codec: Codec) -> None:
    value = codec.encode(KEY, ENTRY)
    accepted = []
    for bit in range(len(value) * 8):
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << bit % 8
        if not isinstance(codec.decode(KEY, bytes(changed)), Undecodable):
            accepted.append(bit)
    assert accepted == []


@pytest.mark.parametrize("codec", CODECS)
def test_no_end_can_be_missing_and_nothing_can_follow(codec: Codec) -> None:
    value = codec.encode(KEY, ENTRY)
    for length in range(len(value)):
        assert isinstance(codec.decode(KEY, value[:length]), Undecodable)
    for more in (b"\0", b"x", value):
        assert codec.decode(KEY, value + more) == Undecodable("corrupt")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("other", [b"", KEY[:-1], KEY + b"0", KEY.replace(b"acme", b"evil")])
def test_a_value_belongs_to_its_key(codec: Codec, other: bytes) -> None:
    assert isinstance(codec.decode(other, codec.encode(KEY, ENTRY)), Undecodable)


def test_the_border_between_key_and_value_cannot_be_moved() -> None:
    digests = {UNSIGNED._mac("", key, payload) for key, payload in ((b"a", b"bc"), (b"ab", b"c"), (b"1:a", b""))}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("reader", "writer", "outcome"),
    [
        pytest.param(ROTATED, SIGNED, None, id="the second key verifies"),
        pytest.param(ROTATED, Codec({"k2": b"second secret"}), None, id="the first key verifies"),
        pytest.param(SIGNED, ROTATED, "forged", id="a key that is not known yet"),
        pytest.param(SIGNED, UNSIGNED, "forged", id="no signature where one is asked for"),
        pytest.param(UNSIGNED, SIGNED, "forged", id="a signature that nobody can check"),
        pytest.param(SIGNED, Codec({"k1": b"another secret"}), "forged", id="the same id, another secret"),
        pytest.param(SIGNED, Codec({"": b"first secret"}), "forged", id="the empty id"),
    ],
)
def test_keys_are_rotated_and_forgeries_refused(reader: Codec, writer: Codec, outcome: str | None) -> None:
    read = reader.decode(KEY, writer.encode(KEY, ENTRY))
    assert read == (ENTRY if outcome is None else Undecodable(outcome))


@pytest.mark.parametrize(
    ("value", "worthless"),
    [
        pytest.param(b"", True, id="nothing"),
        pytest.param(SIGNED.encode(KEY, ENTRY)[:-1], True, id="cut short"),
        pytest.param(SIGNED.encode(KEY + b"0", ENTRY), True, id="of another key"),
        pytest.param(SIGNED.sign(KEY, b"no entry"), True, id="of another kind"),
        pytest.param(UNSIGNED.encode(KEY, ENTRY), False, id="of a node without keys"),
        pytest.param(Codec({"k9": b"n" * 32}).encode(KEY, ENTRY), False, id="of a node with a newer key"),
        pytest.param(msgpack.packb((VERSION + 1, "what", "follows", "is", "not known")), False, id="newer"),
        pytest.param(msgpack.packb((VERSION - 1, "", b"", b"")), False, id="older"),
    ],
)
def test_only_what_no_node_can_read_may_be_removed(value: bytes, worthless: bool) -> None:
    decoded = SIGNED.decode(KEY, value)

    assert isinstance(decoded, Undecodable)
    assert decoded.worthless is worthless


def test_the_first_key_signs() -> None:
    assert msgpack.unpackb(ROTATED.encode(KEY, ENTRY))[1] == "k2"
    assert (SIGNED.signs, UNSIGNED.signs) == (True, False)


def test_a_digest_is_not_accepted_as_a_signature() -> None:
    _, _, mac, payload = msgpack.unpackb(UNSIGNED.encode(KEY, ENTRY))
    assert SIGNED.decode(KEY, msgpack.packb((VERSION, "k1", mac, payload))) == Undecodable("forged")


@pytest.mark.parametrize(("version", "reason"), [(VERSION + 1, "newer"), (2**31, "newer"), (0, "older"), (-1, "older")])
def test_another_version_is_told_apart(version: int, reason: str) -> None:
    assert UNSIGNED.decode(KEY, seal(tuple(FIELDS.values()), version=version)) == Undecodable(reason)
    assert UNSIGNED.decode(KEY, msgpack.packb((version, "anything"))) == Undecodable(reason)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xc1", id="never used"),
        pytest.param(b'{"json": 1}', id="json"),
        pytest.param(b"\x80\x04\x95.", id="pickle"),
        pytest.param(msgpack.packb(None), id="nil"),
        pytest.param(msgpack.packb(()), id="empty list"),
        pytest.param(msgpack.packb({"a": 1}), id="map"),
        pytest.param(msgpack.packb((True, "", b"", b"")), id="a version that is true"),
        pytest.param(msgpack.packb((1.0, "", b"", b"")), id="a version that is a float"),
        pytest.param(msgpack.packb((VERSION,)), id="version only"),
        pytest.param(msgpack.packb((VERSION, b"", b"", b"")), id="the id is bytes"),
        pytest.param(msgpack.packb((VERSION, "", "", b"")), id="the MAC is text"),
        pytest.param(msgpack.packb((VERSION, "", b"", "")), id="the payload is text"),
        pytest.param(msgpack.packb((VERSION, "", b"", b"", b"")), id="too many"),
        pytest.param(msgpack.packb((VERSION, "k" * 65, b"", b"")), id="a long id"),
        pytest.param(msgpack.packb(msgpack.ExtType(5, b"x")), id="extension"),
        pytest.param(msgpack.packb(msgpack.Timestamp(5)), id="timestamp"),
        pytest.param(b"\x91" * 5000 + b"\xc0", id="deep"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="four billion members"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="four gigabytes"),
    ],
)
@pytest.mark.parametrize("codec", CODECS)
def test_a_foreign_value_is_corrupt(codec: Codec, value: bytes) -> None:
    assert isinstance(codec.decode(KEY, value), Undecodable)
    assert UNSIGNED.decode(KEY, value) == Undecodable("corrupt")


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("request", "text"), ("request", None),
        ("generations", ()), ("generations", ((b"a",),)), ("generations", ((b"a", b"b", b"c"),)),
        ("generations", ((b"a", "b"),)), ("generations", ((b"a", b"b"),) * 65), ("generations", b"x"),
        ("captured", -1), ("captured", 2**40), ("captured", True), ("captured", None),
        ("kept_on", -1), ("kept_on", 30 * 86400 * 1000 + 1), ("kept_on", False), ("kept_on", "1"),
        ("stored_at", -1), ("stored_at", 1.5), ("stored_at", True), ("stored_at", None),
        ("ttl", 0), ("ttl", -1), ("ttl", True), ("ttl", 30 * 86400 * 1000 + 1), ("ttl", "1"),
        ("initial_age", -1), ("initial_age", 2**31), ("initial_age", False),
        ("status", -5), ("status", 0), ("status", 199), ("status", 600), ("status", "200"), ("status", True),
        ("etag", '"tag"'), ("etag", None),
        ("headers", ((b"a", b"b\r\nset-cookie: x"),)), ("headers", ((b"a\n", b"b"),)), ("headers", ((b"a", b"\0"),)),
        ("headers", (("a", "b"),)), ("headers", ((b"a", 1),)), ("headers", ((b"a",),)), ("headers", None),
        ("headers", ((b"a", b"b"),) * 257), ("headers", (b"ab",)), ("headers", ((b"", b"b"),)),
        ("headers", ((b"a:", b"b"),)), ("headers", ((b"a b", b"b"),)),
        ("headers", ((b"a", b"\x01"),)), ("headers", ((b"a", b"\x7f"),)),
        ("headers", ((b"Transfer-Encoding", b"chunked"),)), ("headers", ((b"connection", b"x"),)),
        ("headers", ((b"content-length", b"999"),)), ("headers", ((b"Content-Length", b"+4"),)),
        ("etag", b'"a"\r\nset-cookie: x'),
        ("body", "text"), ("body", None), ("body", {}), ("body", msgpack.ExtType(1, b"")),
    ],
)  # fmt: skip
def test_every_type_and_bound_is_checked_even_if_the_mac_is_right(field: str, bad: object) -> None:
    assert UNSIGNED.decode(KEY, seal(tuple((FIELDS | {field: bad}).values()))) == Undecodable("corrupt")


@pytest.mark.parametrize(
    ("field", "good"),
    [
        ("captured", 0), ("captured", 2**40 - 1), ("kept_on", 0), ("kept_on", 30 * 86400 * 1000),
        ("status", 599), ("ttl", 1), ("ttl", 30 * 86400 * 1000), ("initial_age", 2**31 - 1), ("stored_at", 0),
        ("headers", ()), ("headers", ((b"a", b"b"),) * 256), ("generations", ((b"a", b"b"),) * 64), ("body", b""),
    ],
)  # fmt: skip
def test_the_bounds_themselves_are_fine(field: str, good: object) -> None:
    assert isinstance(UNSIGNED.decode(KEY, seal(tuple((FIELDS | {field: good}).values()))), Entry)


def test_a_payload_of_another_length_is_corrupt() -> None:
    values = tuple(FIELDS.values())
    for payload in (values[:-1], (*values, b""), (), None, 5, FIELDS):
        assert UNSIGNED.decode(KEY, seal(payload)) == Undecodable("corrupt")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary() | st.text(),
    lambda children: st.lists(children, max_size=5) | st.dictionaries(st.text() | st.binary(), children, max_size=3),
    max_leaves=10,
)


@given(ANYTHING, st.sampled_from([UNSIGNED, SIGNED]))
def test_any_value_of_msgpack_is_refused_quietly(value: object, codec: Codec) -> None:
    assert isinstance(codec.decode(KEY, msgpack.packb(value)), Undecodable)
    assert isinstance(UNSIGNED.decode(KEY, seal(value)), Undecodable)


@given(st.binary())
def test_any_bytes_are_refused_quietly(value: bytes) -> None:
    assert isinstance(UNSIGNED.decode(KEY, value), Undecodable)
    assert isinstance(
        UNSIGNED.decode(KEY, msgpack.packb((VERSION, "", UNSIGNED._mac("", KEY, value), value))), Undecodable
    )


@given(st.sampled_from(list(FIELDS)), ANYTHING)
def test_any_value_in_place_of_a_field_is_decided_quietly(field: str, value: object) -> None:
    assert isinstance(UNSIGNED.decode(KEY, seal(tuple((FIELDS | {field: value}).values()))), Undecodable | Entry)


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param("gzip", id="no pairs"),
        pytest.param((("gzip", b"x"),), id="a name that is text"),
        pytest.param(((b"gzip",),), id="no body"),
        pytest.param(tuple((b"c%d" % number, b"") for number in range(9)), id="too many"),
    ],
)
def test_further_codings_are_checked_as_the_rest_is(encoded: object) -> None:
    assert UNSIGNED.decode(KEY, seal((*FIELDS.values(), encoded))) == Undecodable("corrupt")
    packed = replace(ENTRY, response=replace(RESPONSE, encoded=((b"gzip", b"x"), (b"br", b"y"))))
    assert UNSIGNED.decode(KEY, UNSIGNED.encode(KEY, packed)) == packed


# --- a body that can be had from its gzip coding -----------------------------------------------------------

TEXT = json.dumps([{"service": f"service-{number % 7}", "p95_ms": number * 1.37} for number in range(60)]).encode()
OTHERS = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(TEXT)))
PACKED = Entry(
    ENTRY.request,
    replace(RESPONSE, headers=OTHERS, body=TEXT, encoded=((b"br", b"shorter"), (b"gzip", gzip.compress(TEXT)))),
    ENTRY.generations,
)


def told(body: object, *encoded: tuple[bytes, bytes], headers: object = OTHERS[:1]) -> bytes:
    return seal((*(FIELDS | {"headers": headers, "body": body}).values(), encoded))


def test_a_body_is_stored_once_where_its_gzip_coding_is() -> None:
    value = UNSIGNED.encode(KEY, PACKED)
    assert TEXT not in value
    assert len(value) < len(TEXT) / 2
    assert UNSIGNED.decode(KEY, value) == PACKED


@pytest.mark.parametrize(
    ("body", "packed"),
    [
        pytest.param(b"x" * 600, b"no gzip at all", id="not gzip"),
        pytest.param(b"x" * 600, gzip.compress(b"y" * 600), id="another body"),
        pytest.param(b"x" * 600, gzip.compress(b"x" * 600) + b"more", id="something behind it"),
        pytest.param(b"x" * 100_000, gzip.compress(b"x" * 100_000), id="denser than is read"),
        pytest.param(os.urandom(300_000), gzip.compress(b""), id="longer than is read"),
    ],
)
def test_a_body_that_could_not_be_had_again_is_stored_itself(body: bytes, packed: bytes) -> None:
    response = replace(RESPONSE, headers=OTHERS[:1], body=body, encoded=((b"gzip", packed),))
    entry = replace(ENTRY, response=response)
    value = UNSIGNED.encode(KEY, entry)
    assert body in value
    assert UNSIGNED.decode(KEY, value) == entry


BOMB = gzip.compress(b"\0" * 50_000_000)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(told(len(TEXT)), id="no coding"),
        pytest.param(told(len(TEXT), (b"br", gzip.compress(TEXT))), id="another coding"),
        pytest.param(told(len(TEXT) - 1, (b"gzip", gzip.compress(TEXT))), id="shorter than it is"),
        pytest.param(told(len(TEXT) + 1, (b"gzip", gzip.compress(TEXT))), id="longer than it is"),
        pytest.param(told(-1, (b"gzip", gzip.compress(TEXT))), id="less than nothing"),
        pytest.param(told(len(TEXT), (b"gzip", gzip.compress(TEXT)[:-9])), id="cut short"),
        pytest.param(told(len(TEXT), (b"gzip", gzip.compress(TEXT) * 2)), id="twice"),
        pytest.param(
            told(len(TEXT), (b"gzip", gzip.compress(TEXT)), headers=((b"content-length", b"7"),)), id="length"
        ),
        pytest.param(told(50_000_000, (b"gzip", BOMB)), id="a bomb that says so"),
        pytest.param(told(200_000, (b"gzip", BOMB)), id="a bomb that does not"),
        pytest.param(told(True, (b"gzip", gzip.compress(b"x"))), id="true"),
        pytest.param(told(1.0, (b"gzip", gzip.compress(b"x"))), id="no whole number"),
        pytest.param(told(2**63, (b"gzip", gzip.compress(b"x"))), id="a great number"),
    ],
)
def test_a_body_is_had_from_nothing_but_its_own_coding(value: bytes) -> None:
    tracemalloc.start()
    try:
        assert UNSIGNED.decode(KEY, value) == Undecodable("corrupt")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
