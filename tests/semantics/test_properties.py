"""What holds of the rules for any bytes: they never raise, never become laxer, and what is stored comes back whole."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nexcache import CacheMiddleware, NexCache, Settings, tenants
from nexcache.asgi import Headers, Receive, Scope, Send
from nexcache.message import StoredResponse
from nexcache.semantics.asked import Asked, asked
from nexcache.semantics.cache_control import LARGEST, MALFORMED, delta_seconds, directives, field_names
from nexcache.semantics.choosing import Use, choose, stands_in
from nexcache.semantics.dates import format_date, http_date
from nexcache.semantics.encoding import accepted, is_encodable, varying_by_encoding
from nexcache.semantics.freshening import head_agrees, is_confirmed, updated, validating
from nexcache.semantics.freshness import Rule, freshness_lifetime, initial_age
from nexcache.semantics.invalidating import Target, groups_invalidated, invalidated, named_by
from nexcache.semantics.keeping import Keepable, may_keep
from nexcache.semantics.partial import combined, content_range, missing_part, part_within
from nexcache.semantics.ranges import Unsatisfiable, ranges
from nexcache.semantics.sending import outgoing
from nexcache.semantics.stored import Facts, facts
from nexcache.semantics.targeted import effective
from nexcache.semantics.validation import none_match
from nexcache.semantics.vary import nominated, resembling, selecting
from tests.wire.server import Answer, ask

NOW = 1_700_000_000.0
NAMES = [
    *(b"cache-control", b"cdn-cache-control", b"nexcache-cache-control", b"expires", b"date", b"age", b"pragma"),
    *(b"last-modified", b"etag", b"vary", b"content-range", b"content-length", b"content-type", b"set-cookie"),
    *(b"if-none-match", b"if-modified-since", b"if-range", b"range", b"accept-encoding", b"accept-language"),
    *(b"location", b"content-location", b"cache-groups", b"cache-group-invalidation", b"surrogate-key", b"connection"),
]
WORDS = [
    *(b"no-store", b"no-cache", b"private", b"public", b"max-age=", b"s-maxage=", b"60", b'"', b",", b";", b"=", b" "),
    *(b"must-revalidate", b"stale-while-revalidate=", b"*", b"W/", b'"a"', b"bytes=", b"bytes ", b"-", b"/", b"0"),
    *(
        b"Sun, 06 Nov 1994 08:49:37 GMT",
        b"http://a.test/x",
        b"//b",
        b"?0",
        b"(",
        b")",
        b"\\",
        b"\xff",
        b"q=0.5",
        b"foo",
    ),
]
VALUES = st.one_of(st.lists(st.sampled_from(WORDS), max_size=12).map(b"".join), st.binary(max_size=60))
FIELDS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=8).map(tuple)
TARGET = Target("http", "a.test", "/x")


def stored(headers: Headers, body: bytes = b"0123456789", status: int = 200) -> StoredResponse:
    return StoredResponse(status, headers, body, b"", NOW, 60.0)


def known(headers: Headers) -> Facts:
    return facts(200, headers, received=NOW)


RULES: dict[str, Callable[[Headers], object]] = {
    "directives": directives,
    "delta_seconds": lambda headers: delta_seconds(headers, b"max-age"),
    "field_names": lambda headers: [field_names(value) for _, value in headers],
    "http_date": lambda headers: [http_date(value, now=NOW) for _, value in headers],
    "effective": effective,
    "freshness_lifetime": lambda headers: freshness_lifetime(200, headers, received=NOW),
    "initial_age": lambda headers: initial_age(headers, requested=NOW, received=NOW),
    "nominated": nominated,
    "selecting": lambda headers: selecting(headers, tuple(NAMES)),
    "resembling": resembling,
    "asked": asked,
    "facts": known,
    "may_keep": lambda headers: may_keep(Asked(), 200, headers, requested=NOW, received=NOW, max_body=99),
    "validating": lambda headers: validating(headers, known(headers), asked(headers)),
    "is_confirmed": lambda headers: is_confirmed(known(headers), headers, asked(headers)),
    "updated": lambda headers: updated(headers, headers),
    "head_agrees": lambda headers: head_agrees(headers, headers),
    "outgoing": lambda headers: outgoing(stored(headers), known(headers), asked(headers), method="GET", now=NOW),
    "ranges": lambda headers: [ranges(value, 10) for _, value in headers],
    "content_range": content_range,
    "part_within": lambda headers: [part_within(stored(headers), value) for _, value in headers],
    "missing_part": lambda headers: missing_part(stored(headers)),
    "combined": lambda headers: combined(stored(headers), headers, b"01234"),
    "invalidated": lambda headers: invalidated(TARGET, "POST", 200, headers),
    "groups_invalidated": lambda headers: groups_invalidated(TARGET, "POST", headers),
    "named_by": lambda headers: named_by(TARGET, headers),
    "none_match": lambda headers: [none_match(value, b'"a"') for _, value in headers],
    "accepted": lambda headers: accepted(headers, (b"zstd", b"gzip")),
    "is_encodable": lambda headers: is_encodable(200, headers),
    "varying_by_encoding": varying_by_encoding,
}


@pytest.mark.parametrize("rule", [pytest.param(rule, id=name) for name, rule in RULES.items()])
@given(headers=FIELDS)
@settings(max_examples=60)
def test_no_rule_raises_whatever_the_bytes(rule: Callable[[Headers], object], headers: Headers) -> None:
    rule(headers)


def keeps(*control: bytes, request: Asked | None = None, status: int = 200) -> bool:
    headers = tuple((b"cache-control", value) for value in control)
    return isinstance(may_keep(request or Asked(), status, headers, requested=NOW, received=NOW, max_body=99), Keepable)


@given(st.lists(VALUES, max_size=3), st.sampled_from([b"no-store", b"NO-STORE", b"no-store=1", b"private", b"Private"]))
def test_nothing_that_stands_beside_it_takes_a_prohibition_away(others: list[bytes], word: bytes) -> None:
    others = [other for other in others if b"must-understand" not in other]
    assert not keeps(*others, word)
    assert not keeps(word, *others)


@given(st.integers(0, LARGEST), st.integers(0, LARGEST))
def test_two_lifetimes_that_differ_are_none(one: int, two: int) -> None:
    headers = ((b"cache-control", b"max-age=%d, max-age=%d" % (one, two)),)
    assert freshness_lifetime(200, headers, received=NOW).seconds == (one if one == two else 0)


@given(VALUES)
@example(b"60.0")
@example(b"-60")
@example(b"'60'")
@example(b"6 0")
@example(b"")
def test_a_lifetime_is_digits_or_none(value: bytes) -> None:
    seconds = delta_seconds(((b"cache-control", b"max-age=" + value),), b"max-age")
    digits = value.strip(b" \t").strip(b'"')
    if seconds is not MALFORMED and seconds is not None and b"," not in value:
        assert digits.isdigit()
        assert seconds == min(int(digits), LARGEST)


CONTROLS = st.builds(
    Facts,
    lifetime=st.integers(0, 1000),
    rule=st.just(Rule.MAX_AGE),
    must_validate=st.booleans(),
    withheld=st.just(frozenset()),
    never_stale=st.booleans(),
    stale_while_revalidate=st.integers(0, 1000),
    stale_if_error=st.none() | st.integers(0, 1000),
    etag=st.none() | st.just(b'"a"'),
    last_modified=st.none(),
    date=st.just(NOW),
)
REQUESTS = st.builds(
    Asked,
    no_cache=st.booleans(),
    max_age=st.none() | st.integers(0, 1000),
    min_fresh=st.integers(0, 1000),
    max_stale=st.integers(0, 1000),
    stale_if_error=st.integers(0, 1000),
)


@given(CONTROLS, REQUESTS, st.integers(0, 2500), st.integers(0, 2500))
def test_what_may_be_used_old_may_be_used_young(stored: Facts, request: Asked, one: int, two: int) -> None:
    young, old = sorted((one, two))
    if isinstance(choose(stored, old, request), Use) and not (request.min_fresh and request.max_stale):
        assert isinstance(choose(stored, young, request), Use)
    if stands_in(stored, old, request):
        assert stands_in(stored, young, request)


@given(CONTROLS, REQUESTS, st.integers(0, 2500))
def test_what_is_never_to_be_stale_never_is(stored: Facts, request: Asked, age: int) -> None:
    if stored.never_stale and age >= stored.lifetime:
        assert not isinstance(choose(stored, age, request), Use)
        assert not stands_in(stored, age, request)


@given(FIELDS, st.integers(0, 10_000), st.integers(0, 10_000))
def test_an_answer_that_took_longer_is_not_younger(headers: Headers, one: int, two: int) -> None:
    quick, slow = sorted((one, two))
    assert initial_age(headers, requested=NOW - slow, received=NOW) >= initial_age(
        headers, requested=NOW - quick, received=NOW
    )


@given(st.integers(0, 4_000_000_000))
def test_a_date_is_read_as_it_was_written(instant: int) -> None:
    assert http_date(format_date(instant), now=NOW) == instant


@given(
    st.lists(st.sampled_from([b"en", b"de;q=0.5", b"fr-CA", b"*;q=0"]), min_size=1), st.randoms(use_true_random=False)
)
def test_order_and_lines_of_a_negotiated_list_say_nothing(members: list[bytes], random: object) -> None:
    shuffled = list(members)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one = ((b"accept-language", b", ".join(members)),)
    two = tuple((b"accept-language", member.upper()) for member in shuffled)
    assert selecting(one, (b"accept-language",)) == selecting(two, (b"accept-language",))


@given(st.integers(1, 200), VALUES)
def test_ranges_lie_within_and_apart(size: int, value: bytes) -> None:
    found = ranges(b"bytes=" + value, size)
    if isinstance(found, tuple):
        assert all(0 <= first <= last < size for first, last in found)
        covered = [position for first, last in found for position in range(first, last + 1)]
        assert len(covered) == len(set(covered))
    else:
        assert found is None or isinstance(found, Unsatisfiable)


TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12).map(str.encode)
NAMED = st.from_regex(rb"\Ax-[a-z]{1,8}\Z")


@given(
    status=st.sampled_from([200, 203, 404, 410, 501]),
    headers=st.lists(st.tuples(NAMED, TEXT), max_size=6),
    pieces=st.lists(st.binary(max_size=40), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_what_is_stored_and_fresh_comes_back_byte_for_byte(
    status: int, headers: list[tuple[bytes, bytes]], pieces: list[bytes]
) -> None:
    calls = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        calls += 1
        fields = [(b"cache-control", b"max-age=60"), *headers]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        for number, piece in enumerate(pieces, 1):
            await send({"type": "http.response.body", "body": piece, "more_body": number < len(pieces)})

    async def twice() -> tuple[Answer, Answer]:
        async with NexCache(Settings(redis_url=None, redis_host=None)) as cache:
            cached = CacheMiddleware(app, cache=cache, tenant=tenants.fixed("acme"), mode="rfc")
            return await ask(cached), await ask(cached)

    sent, again = asyncio.run(twice())
    assert calls == 1
    assert (again.status, again.body) == (status, b"".join(pieces)) == (sent.status, sent.body)
    ours = ("age", "cache-status", "content-length")
    theirs = [pair for pair in sent.fields if pair[0] not in ours]
    assert [pair for pair in again.fields if pair[0] not in ours] == theirs
    assert again.hit
