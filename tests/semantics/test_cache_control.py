import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexcache.semantics.cache_control import directives


def parse(*fields: bytes) -> dict[bytes, bytes | None]:
    return dict(directives([(b"cache-control", field) for field in fields]))


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (b"", {}),
        (b"no-store", {b"no-store": None}),
        (b"NO-Store", {b"no-store": None}),
        (b"max-age=60, public", {b"max-age": b"60", b"public": None}),
        (b'max-age="60"', {b"max-age": b"60"}),
        (b"max-age = 60", {b"max-age": b"60"}),
        (b'private="x-a, x-b", max-age=1', {b"private": b"x-a, x-b", b"max-age": b"1"}),
        (b'ext="no-store"', {b"ext": b"no-store"}),
        (b'ext="a\\", no-store, \\"b"', {b"ext": b'a\\", no-store, \\"b'.strip(b'" \t')}),
        (b",, no-store ,,", {b"no-store": None}),
        (b"max-age=1, max-age=2", {b"max-age": b"1,2"}),
        (b'private="x", private', {b"private": None}),
        (b'private, private="x"', {b"private": None}),
    ],
)
def test_directives_are_read(field: bytes, expected: dict[bytes, bytes | None]) -> None:
    assert parse(field) == expected


@pytest.mark.parametrize(
    "field",
    [
        b"public no-store", b"max-age=60 no-store", b"max-age=60; no-store", b"max-age=60;no-store", b"public;no-store",
        b'"no-store"', b'max-age="60, no-store', b"max-age=, no-store", b"=no-store", b"no-store=1", b"no-store=",
        b'no-store="', b"max-age=60\tno-store", b"\x00, no-store", b"\xff no-store", b"no-store,no-store",
        b'a="b" no-store', b'a="b"no-store',
    ],
)  # fmt: skip
def test_a_malformed_field_hides_no_directive(field: bytes) -> None:
    assert b"no-store" in parse(field)


@pytest.mark.parametrize("field", [b"no-stores", b"x-no-store", b"no_store", b"a=no-store", b"no store"])
def test_what_only_looks_like_a_directive_is_none(field: bytes) -> None:
    assert b"no-store" not in parse(field)


def test_all_fields_count() -> None:
    assert parse(b"max-age=5", b"no-store") == {b"max-age": b"5", b"no-store": None}


@given(st.lists(st.binary(max_size=30), max_size=3))
def test_any_bytes_are_read(fields: list[bytes]) -> None:
    assert all(name == name.lower() and name for name in parse(*fields))


@given(st.text(st.sampled_from('a=,"; \\1'), max_size=12).map(str.encode))
def test_a_directive_after_a_comma_outside_quotes_is_always_seen(before: bytes) -> None:
    if before.count(b'"') == 0:
        assert b"no-store" in parse(before + b", no-store")
