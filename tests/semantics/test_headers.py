import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexcache.semantics.headers import end_to_end, first, is_end_to_end, is_sendable, members, spellings, values

HEADERS = ((b"Vary", b"A, b"), (b"x", b"1"), (b"VARY", b" ,C,"), (b"x", b"2"))


def test_values_come_in_order_and_in_any_case_of_the_name() -> None:
    assert list(values(HEADERS, b"vary")) == [b"A, b", b" ,C,"]
    assert first(HEADERS, b"x") == b"1"
    assert first(HEADERS, b"y") is None


def test_members_of_all_fields_are_one_list() -> None:
    assert list(members(HEADERS, b"vary")) == [b"a", b"b", b"c"]
    assert list(members([(b"vary", b"\ta\t,, ")], b"vary")) == [b"a"]


@pytest.mark.parametrize(
    "name",
    [
        b"Connection", b"keep-alive", b"Proxy-Authenticate", b"proxy-authentication-info", b"proxy-authorization",
        b"Proxy-Connection", b"TE", b"Trailer", b"Transfer-Encoding", b"upgrade",
    ],
)  # fmt: skip
def test_fields_of_one_connection_are_not_stored(name: bytes) -> None:
    assert end_to_end([(b"A", b"1"), (name, b"x")]) == ((b"a", b"1"),)


def test_fields_that_connection_names_are_not_stored_either() -> None:
    headers = [(b"X-Hop", b"1"), (b"a", b"1"), (b"connection", b"close, X-Hop"), (b"x-other", b"2"), (b"x-hop", b"3")]
    assert end_to_end(headers) == ((b"a", b"1"), (b"x-other", b"2"))


def test_order_repetition_and_values_stay() -> None:
    headers = [(b"Link", b"<A>"), (b"b", b""), (b"link", b"<b>"), (bytearray(b"C"), memoryview(b"x"))]
    assert end_to_end(headers) == ((b"link", b"<A>"), (b"b", b""), (b"link", b"<b>"), (b"c", b"x"))  # type: ignore[arg-type]  # apps send such


@pytest.mark.parametrize("bad", [b"\r", b"\n", b"\0", b"a\r\nset-cookie: x"])
def test_what_could_split_a_message_is_not_sendable(bad: bytes) -> None:
    assert not is_sendable([(b"a", b"1"), (b"b", bad)])
    assert not is_sendable([(bad, b"1")])


@given(st.lists(st.tuples(st.binary(max_size=3), st.binary(max_size=3))))
def test_a_name_is_a_token_and_a_value_has_no_control_characters(headers: list[tuple[bytes, bytes]]) -> None:
    token = set(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    control = (set(range(32)) | {127}) - {9}
    clean = all(name and set(name) <= token and not set(value) & control for name, value in headers)
    assert is_sendable(headers) is clean


@pytest.mark.parametrize("name", [b"connection", b"Transfer-Encoding", b"te", b"upgrade", b"keep-alive", b"trailer"])
def test_a_field_of_one_connection_is_not_end_to_end(name: bytes) -> None:
    assert not is_end_to_end([(b"a", b"1"), (name, b"x")])
    assert is_end_to_end([(b"a", b"1"), (b"content-length", b"1")])


def test_a_name_has_a_spelling_for_every_choice_of_its_hyphens() -> None:
    assert spellings("X-A-b") == {b"x-a-b", b"x_a-b", b"x-a_b", b"x_a_b"}
    assert spellings("x_a") == {b"x-a", b"x_a"}
    assert spellings("Cookie") == {b"cookie"}
