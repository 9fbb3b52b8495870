"""Whether a response may be kept. The table crosses every reason with the ways in which it may be written."""

from collections.abc import Collection, Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexcache.semantics.storing import Storable, may_store
from nexcache.telemetry.names import NotStoredReason

Fields = Sequence[tuple[bytes, bytes]]


def decide(
    headers: Fields = (),
    status: int = 200,
    *,
    statuses: Collection[int] = (200,),
    keyed: Collection[bytes] = (b"host", b"accept-language"),
    max_body: int = 100,
    trailers: bool = False,
) -> Storable | NotStoredReason:
    return may_store(status, headers, statuses=statuses, keyed=keyed, max_body=max_body, trailers=trailers)


REASONS = [
    pytest.param((b"Cache-Control", b"no-store"), NotStoredReason.NO_STORE, id="no-store"),
    pytest.param((b"Cache-Control", b"public, no-store"), NotStoredReason.NO_STORE, id="no-store in a list"),
    pytest.param((b"Cache-Control", b"max-age=60;no-store"), NotStoredReason.NO_STORE, id="no-store, malformed"),
    pytest.param((b"Cache-Control", b"private"), NotStoredReason.PRIVATE, id="private"),
    pytest.param((b"Cache-Control", b'private="x-a"'), NotStoredReason.PRIVATE, id="private for a field"),
    pytest.param((b"Cache-Control", b"no-cache"), NotStoredReason.NO_CACHE, id="no-cache"),
    pytest.param((b"Cache-Control", b'no-cache="set-cookie"'), NotStoredReason.NO_CACHE, id="no-cache for a field"),
    pytest.param((b"Pragma", b"no-cache"), NotStoredReason.NO_CACHE, id="pragma"),
    pytest.param((b"Set-Cookie", b"a=b"), NotStoredReason.SET_COOKIE, id="set-cookie"),
    pytest.param((b"Set-Cookie", b""), NotStoredReason.SET_COOKIE, id="empty set-cookie"),
    pytest.param((b"Vary", b"*"), NotStoredReason.VARY, id="vary star"),
    pytest.param((b"Vary", b"host, *"), NotStoredReason.VARY, id="vary star in a list"),
    pytest.param((b"Vary", b"Accept"), NotStoredReason.VARY, id="vary by what is not keyed"),
    pytest.param((b"Vary", b"Host, accept"), NotStoredReason.VARY, id="vary by one that is not keyed"),
    pytest.param((b"Content-Range", b"bytes 0-1/2"), NotStoredReason.PARTIAL, id="content-range"),
    pytest.param((b"Trailer", b"x"), NotStoredReason.TRAILERS, id="trailer"),
    pytest.param((b"Content-Type", b"text/event-stream"), NotStoredReason.EVENT_STREAM, id="event stream"),
    pytest.param((b"Content-Type", b" Text/Event-Stream; charset=utf-8"), NotStoredReason.EVENT_STREAM, id="its type"),
    pytest.param((b"X-A", b"a\r\nb: c"), NotStoredReason.HEADER, id="line break"),
    pytest.param((b"X-A", b"a\0"), NotStoredReason.HEADER, id="NUL"),
    pytest.param((b"X-A\n", b"a"), NotStoredReason.HEADER, id="line break in a name"),
    pytest.param((b"Content-Length", b"101"), NotStoredReason.TOO_LARGE, id="too large"),
]
HARMLESS: Fields = ((b"content-type", b"application/json"), (b"vary", b"host"), (b"x-a", b"b"))


@pytest.mark.parametrize(("header", "reason"), REASONS)
def test_a_response_is_not_stored_however_the_reason_is_written(
    header: tuple[bytes, bytes], reason: NotStoredReason
) -> None:
    name, value = header
    places = ((), HARMLESS), (HARMLESS, ()), (HARMLESS, HARMLESS)
    for spelled, (before, after) in product((name, name.lower(), name.upper(), name.swapcase()), places):
        harmless = [pair for pair in (*before, *after) if pair[0] != name.lower()]
        at = len([pair for pair in before if pair[0] != name.lower()])
        headers = [*harmless[:at], (spelled, value), *harmless[at:]]
        assert decide(headers) is reason


@pytest.mark.parametrize(("header", "reason"), REASONS)
@pytest.mark.parametrize("other", ["cache-control", "vary", "pragma", "set-cookie"])
def test_another_reason_beside_it_does_not_make_it_storable(
    header: tuple[bytes, bytes], reason: NotStoredReason, other: str
) -> None:
    assert isinstance(decide([header, (other.encode(), b"no-store")]), NotStoredReason)
    assert isinstance(decide([(other.encode(), b"*"), header]), NotStoredReason)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="none"),
        pytest.param(HARMLESS, id="ordinary"),
        pytest.param([(b"cache-control", b"public, max-age=60, s-maxage=5")], id="public"),
        pytest.param([(b"cache-control", b"must-revalidate")], id="must-revalidate"),
        pytest.param([(b"cache-control", b'ext="no-store"')], id="another directive's argument"),
        pytest.param([(b"vary", b"")], id="empty vary"),
        pytest.param([(b"vary", b"Host"), (b"VARY", b"Accept-Language")], id="vary by what is keyed"),
        pytest.param([(b"content-type", b"text/event-streams-not".replace(b"event-", b"event_"))], id="another type"),
        pytest.param([(b"pragma", b"x")], id="another pragma"),
        pytest.param([(b"x-latin", b"\xe9")], id="latin-1"),
    ],
)
def test_an_ordinary_response_is_stored(headers: Fields) -> None:
    assert decide(headers) == Storable(None)


@pytest.mark.parametrize(
    ("status", "statuses", "decision"),
    [
        (200, (200,), Storable(None)),
        (404, (200, 404), Storable(None)),
        (404, (200,), NotStoredReason.STATUS),
        (500, (200,), NotStoredReason.STATUS),
        (304, (200,), NotStoredReason.STATUS),
        (206, (200,), NotStoredReason.PARTIAL),
        (206, (206,), NotStoredReason.PARTIAL),
    ],
)
def test_only_the_listed_statuses_are_stored(
    status: int, statuses: tuple[int, ...], decision: Storable | NotStoredReason
) -> None:
    assert decide(status=status, statuses=statuses) == decision


@pytest.mark.parametrize(
    ("length", "decision"),
    [
        (b"0", Storable(0)),
        (b"100", Storable(100)),
        (b"101", NotStoredReason.TOO_LARGE),
        (b"9999999999999999999", NotStoredReason.TOO_LARGE),
        (b"x", Storable(None)),
        (b"-1", Storable(None)),
        (b"", Storable(None)),
        (b"9" * 30, Storable(None)),
    ],
)
def test_the_announced_length_is_read(length: bytes, decision: Storable | NotStoredReason) -> None:
    assert decide([(b"content-length", length)]) == decision


def test_a_response_that_varies_by_everything_is_not_stored_whatever_is_keyed() -> None:
    assert decide([(b"vary", b"*")], keyed=(b"*",)) is NotStoredReason.VARY


def test_a_response_with_trailers_is_not_stored() -> None:
    assert decide(trailers=True) is NotStoredReason.TRAILERS


def test_a_response_with_more_fields_than_an_entry_may_have_is_not_stored() -> None:
    fields = [(b"x-%d" % number, b"") for number in range(255)]
    assert decide(fields[:254]) == Storable(None)
    assert decide(fields) is NotStoredReason.HEADER


@given(
    st.lists(st.tuples(st.sampled_from([b"cache-control", b"Vary", b"x", b"content-length"]), st.binary()), max_size=4)
)
def test_any_fields_are_decided(headers: list[tuple[bytes, bytes]]) -> None:
    assert isinstance(decide(headers), Storable | NotStoredReason)
