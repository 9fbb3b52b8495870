"""The rules of a shared cache as tables: what they take, what they give. Through servers: tests/conformance."""

from dataclasses import replace

import pytest

from nexcache.asgi import Headers
from nexcache.message import StoredResponse
from nexcache.semantics.asked import Asked, asked
from nexcache.semantics.cache_control import LARGEST, MALFORMED, delta_seconds, directives, field_names
from nexcache.semantics.choosing import Choice, Use, Validate, choose, stands_in
from nexcache.semantics.dates import format_date, http_date
from nexcache.semantics.freshening import head_agrees, is_confirmed, updated, validating
from nexcache.semantics.freshness import Lifetime, Rule, age_value, freshness_lifetime, initial_age
from nexcache.semantics.invalidating import Target, groups_invalidated, invalidated, named_by, tag_of, target_of
from nexcache.semantics.keeping import Keepable, may_keep
from nexcache.semantics.partial import combined, content_range, missing_part, part_within
from nexcache.semantics.ranges import Unsatisfiable, ranges
from nexcache.semantics.sending import is_not_modified, outgoing, range_holds
from nexcache.semantics.stored import Facts, facts
from nexcache.semantics.targeted import effective
from nexcache.semantics.vary import Nominated, nominated, selecting
from nexcache.telemetry.names import NotStoredReason

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT
DATE = format_date(NOW)
LATER, EARLIER = format_date(NOW + 100), format_date(NOW - 100)


def cc(value: bytes) -> Headers:
    return ((b"cache-control", value),)


# --- dates (RFC 9110 §5.6.7) -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 784111777),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", 784111777),
        (b"Sun Nov  6 08:49:37 1994", 784111777),
        (b"  Sun, 06 Nov 1994 08:49:37 GMT\t", 784111777),
        (b"SUN, 06 nov 1994 08:49:37 gmt", 784111777),
        (b"Thu, 29 Feb 2024 00:00:00 GMT", 1709164800),
        (b"Fri, 29 Feb 2023 00:00:00 GMT", None),
        (b"Sat, 31 Dec 2016 23:59:60 GMT", 1483228799),
        (b"Saturday, 01-Jan-73 00:00:00 GMT", 3250454400),
        (b"Tuesday, 01-Jan-74 00:00:00 GMT", 126230400),
        (b"Sun, 06 Nov 1994 08:49:37 UTC", None),
        (b"Sun, 06 Nov 1994 08:49:37 +0000", None),
        (b"Sun, 6 Nov 1994 08:49:37 GMT", None),
        (b"Sun 06 Nov 1994 08:49:37 GMT", None),
        (b"Sun, 06 Nov 1994 8:49:37 GMT", None),
        (b"Sun, 06 Nov 94 08:49:37 GMT", None),
        (b"0", None),
        (b"", None),
    ],
)
def test_a_date_has_one_of_three_formats(text: bytes, instant: int | None) -> None:
    assert http_date(text, now=NOW) == instant


# --- Cache-Control (RFC 9111 §5.2) -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"max-age=60", 60),
        (b'max-age="60"', 60),
        (b"MAX-AGE=60", 60),
        (b"max-age=0", 0),
        (b"max-age=0060", 60),
        (b"max-age=99999999999999999999999", LARGEST),
        (b"a, max-age=60 , b", 60),
        (b'a="max-age=1", max-age=60', 60),
        (b"max-age=60, max-age=60", 60),
        (b"max-age=60, max-age=61", MALFORMED),
        (b"max-age", MALFORMED),
        (b"max-age=", MALFORMED),
        (b"max-age=-1", MALFORMED),
        (b"max-age=1.0", MALFORMED),
        (b"max-age=1s", MALFORMED),
        (b"max-age =1", MALFORMED),
        (b"max-age= 1", MALFORMED),
        (b"max-age=1;b", MALFORMED),
        (b"max-age=1 b", MALFORMED),
        (b"max-age='1'", MALFORMED),
        (b'max-age="1', MALFORMED),
        (b"x-max-age=1", None),
        (b"", None),
        (b"x" * 3000, MALFORMED),
    ],
)
def test_seconds_are_digits_or_malformed(value: bytes, seconds: object) -> None:
    assert delta_seconds(cc(value), b"max-age") == seconds


def test_a_field_too_long_to_be_meant_forbids_all() -> None:
    assert {b"no-store", b"no-cache"} <= directives(cc(b"max-age=60" + b" " * 3000)).keys()


@pytest.mark.parametrize(
    ("argument", "names"),
    [
        (b"a", {b"a"}),
        (b"A, b", {b"a", b"b"}),
        (b" a ,, b", {b"a", b"b"}),
        (b"", None),
        (None, None),
        (b"a b", None),
        (b'a"', None),
    ],
)
def test_a_list_of_field_names_is_one_or_the_whole_is_meant(argument: bytes | None, names: set[bytes] | None) -> None:
    assert field_names(argument) == names


# --- freshness (RFC 9111 §4.2) -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "lifetime"),
    [
        (200, cc(b"max-age=60"), Lifetime(60, Rule.MAX_AGE)),
        (200, cc(b"s-maxage=10, max-age=60"), Lifetime(10, Rule.S_MAXAGE)),
        (200, cc(b"s-maxage=x, max-age=60"), Lifetime(0, Rule.S_MAXAGE)),
        (200, ((b"expires", LATER),), Lifetime(100, Rule.EXPIRES)),
        (200, ((b"expires", LATER), (b"date", EARLIER)), Lifetime(200, Rule.EXPIRES)),
        (200, ((b"expires", LATER), (b"date", b"nonsense")), Lifetime(100, Rule.EXPIRES)),
        (200, ((b"expires", b"0"), (b"last-modified", EARLIER)), Lifetime(0, Rule.EXPIRES)),
        (200, ((b"expires", LATER), (b"expires", LATER)), Lifetime(100, Rule.EXPIRES)),
        (200, ((b"expires", LATER), (b"expires", EARLIER)), Lifetime(0, Rule.EXPIRES)),
        (200, ((b"last-modified", EARLIER),), Lifetime(10, Rule.HEURISTIC)),
        (200, ((b"last-modified", LATER),), Lifetime(0, Rule.NONE)),
        (200, ((b"last-modified", format_date(0)),), Lifetime(86_400, Rule.HEURISTIC)),
        (200, ((b"last-modified", EARLIER), (b"pragma", b"no-cache")), Lifetime(0, Rule.NONE)),
        (302, ((b"last-modified", EARLIER),), Lifetime(0, Rule.NONE)),
        (302, (*cc(b"public"), (b"last-modified", EARLIER)), Lifetime(10, Rule.HEURISTIC)),
        (200, (), Lifetime(0, Rule.NONE)),
    ],
)
def test_a_lifetime_is_taken_from_the_first_that_says_one(status: int, headers: Headers, lifetime: Lifetime) -> None:
    assert freshness_lifetime(status, headers, received=NOW) == lifetime


@pytest.mark.parametrize(
    ("headers", "took", "age"),
    [
        ((), 0, 0),
        ((), 5, 5),
        (((b"age", b"10"),), 5, 15),
        (((b"date", EARLIER),), 5, 100),
        (((b"date", EARLIER), (b"age", b"200")), 0, 200),
        (((b"date", LATER),), 0, 0),
        (((b"age", b"9" * 30),), 0, LARGEST),
    ],
)
def test_an_age_is_never_taken_too_small(headers: Headers, took: float, age: int) -> None:
    assert initial_age(headers, requested=NOW - took, received=NOW) == age


@pytest.mark.parametrize(
    ("values", "age"),
    [
        ([b"10"], 10),
        ([b"10, 20"], 10),
        ([b"10", b"20"], 10),
        ([b"x, 10"], 0),
        ([b"-1"], 0),
        ([b"1.5"], 0),
        ([b"10;a=b"], 0),
        ([], 0),
        ([b"\xb2"], 0),
    ],
)
def test_the_first_member_of_age_counts_if_it_is_a_number(values: list[bytes], age: int) -> None:
    assert age_value([(b"age", value) for value in values]) == age


# --- storing (RFC 9111 §3) ---------------------------------------------------------------------------------------


def kept(headers: Headers, *, status: int = 200, request: Asked | None = None, **options: bool) -> Keepable | str:
    asking = request if request is not None else Asked()
    return may_keep(asking, status, headers, requested=NOW, received=NOW, max_body=100, **options)


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        (cc(b"no-store"), 200, NotStoredReason.NO_STORE),
        (cc(b"private, max-age=60"), 200, NotStoredReason.PRIVATE),
        (cc(b"max-age=60"), 206, NotStoredReason.PARTIAL),
        (cc(b"max-age=60"), 304, NotStoredReason.STATUS),
        (cc(b"max-age=60"), 100, NotStoredReason.STATUS),
        (cc(b"max-age=60, must-understand"), 299, NotStoredReason.STATUS),
        ((), 302, NotStoredReason.STATUS),
        ((), 200, NotStoredReason.NOT_FRESH),
        (cc(b"max-age=0"), 200, NotStoredReason.NOT_FRESH),
        (cc(b"no-cache"), 200, NotStoredReason.NO_CACHE),
        ((*cc(b"max-age=60"), (b"vary", b"*")), 200, NotStoredReason.VARY),
        ((*cc(b"max-age=60"), (b"content-length", b"101")), 200, NotStoredReason.TOO_LARGE),
        (((b"set-cookie", b"a"), (b"last-modified", EARLIER)), 200, NotStoredReason.SET_COOKIE),
        ((*cc(b"max-age=60"), (b"x", b"a\nb")), 200, NotStoredReason.HEADER),
        ((*cc(b"max-age=60"), *[(b"x", b"1")] * 300), 200, NotStoredReason.HEADER),
    ],
)
def test_why_a_response_is_not_stored(headers: Headers, status: int, reason: NotStoredReason) -> None:
    assert kept(headers, status=status) == reason


def test_why_a_request_keeps_its_response_from_being_stored() -> None:
    assert kept(cc(b"max-age=60"), request=Asked(no_store=True)) == NotStoredReason.NO_STORE
    assert kept(cc(b"max-age=60"), request=Asked(authorized=True)) == NotStoredReason.AUTHORIZATION
    assert kept(cc(b"max-age=60"), trailers=True) == NotStoredReason.TRAILERS


@pytest.mark.parametrize(
    ("headers", "retention"),
    [
        pytest.param(cc(b"max-age=60"), 3660, id="it may stand in for an origin that is away"),
        pytest.param(cc(b"max-age=60, must-revalidate"), 60, id="it may not"),
        pytest.param((*cc(b"max-age=60"), (b"etag", b'"a"')), 86_460, id="it can be validated"),
        pytest.param((*cc(b"max-age=60, must-revalidate"), (b"etag", b'"a"')), 86_460, id="it must be validated"),
        pytest.param(cc(b"max-age=60, stale-if-error=90000"), 90_060, id="it says for how long"),
        pytest.param((*cc(b"s-maxage=60"), (b"age", b"50")), 10, id="it has an age"),
        pytest.param((*cc(b"s-maxage=60"), (b"age", b"500")), 1, id="it is of no use any more"),
    ],
)
def test_a_response_is_stored_as_long_as_it_is_of_use(headers: Headers, retention: float) -> None:
    found = kept(headers)
    assert isinstance(found, Keepable)
    assert found.retention == retention


def test_a_response_is_stored_without_what_concerns_one_connection_or_one_user() -> None:
    headers = (
        *cc(b'max-age=60, private="x-mine"'),
        (b"X-Mine", b"1"),
        (b"connection", b"x-hop"),
        (b"x-hop", b"1"),
        (b"age", b"7"),
        (b"x-kept", b"1"),
    )
    found = kept(headers)
    assert isinstance(found, Keepable)
    assert found.headers == (headers[0], (b"x-kept", b"1"))
    assert found.initial_age == 7


# --- targeted fields (RFC 9213) ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (b"max-age=60", b"max-age=60"),
        (b"max-age=60;a=b, no-store", b"max-age=60, no-store"),
        (b"no-store=?0, max-age=1", b"max-age=1"),
        (b'max-age="60x"', b'max-age="60x"'),
        (b"max-age=6.5", b"max-age=?"),
        (b"private=(a b)", b"private=?"),
        (b"No-Store", None),
        (b"max-age=60,", None),
        (b"", None),
        (b"a" * 3000, None),
    ],
)
def test_a_targeted_field_takes_the_place_of_cache_control(value: bytes, written: bytes | None) -> None:
    headers = ((b"Cache-Control", b"x"), (b"expires", b"y"), (b"cdn-cache-control", value))
    found = dict(effective(headers))
    assert found[b"cache-control"] == (b"x" if written is None else written)
    assert (b"expires" in found) is (written is None)


# --- Vary (RFC 9111 §4.1) ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([], ()),
        ([b""], ()),
        ([b"B, a", b"A"], (b"a", b"b")),
        ([b"a, *"], None),
        ([b", ".join(b"x%d" % number for number in range(33))], None),
    ],
)
def test_a_response_varies_by_the_names_in_vary(values: list[bytes], names: Nominated | None) -> None:
    assert nominated([(b"vary", value) for value in values]) == names


@pytest.mark.parametrize(
    ("name", "one", "two", "same"),
    [
        (b"x", [b"a, b"], [b"a", b"b"], True),
        (b"x", [b"a,b"], [b"a ,  b"], True),
        (b"x", [b"a  b"], [b"a b"], True),
        (b"x", [b"a, b"], [b"b, a"], False),
        (b"x", [b"a"], [b"A"], False),
        (b"x", [b'"a,b"'], [b'"a, b"'], False),
        (b"x", [], [b""], False),
        (b"x", [], [], True),
        (b"accept-language", [b"en, de"], [b"DE,en"], True),
        (b"accept", [b"text/html, */*;q=0.1"], [b"*/*; q=0.1", b"text/html"], True),
        (b"accept", [b"a/b;x=Y"], [b"a/b;x=y"], False),
        (b"x", [b"a" * 3000], [b"a" * 3000], True),
    ],
)
def test_which_values_select_the_same_response(name: bytes, one: list[bytes], two: list[bytes], *, same: bool) -> None:
    left = selecting([(name, value) for value in one], (name,))
    right = selecting([(name, value) for value in two], (name,))
    assert (left == right) is same


# --- choosing (RFC 9111 §4, RFC 5861) ----------------------------------------------------------------------------


def known(value: bytes = b"max-age=60", *more: tuple[bytes, bytes]) -> Facts:
    return facts(200, (*cc(value), *more), received=NOW)


@pytest.mark.parametrize(
    ("control", "age", "request_", "choice"),
    [
        (b"max-age=60", 59, Asked(), Use(1)),
        (b"max-age=60", 60, Asked(), Validate("stale")),
        (b"max-age=60, no-cache", 0, Asked(), Validate("stale")),
        (b'max-age=60, no-cache="a"', 0, Asked(), Use(60)),
        (b"max-age=60", 0, Asked(no_cache=True), Validate("request")),
        (b"max-age=60", 10, Asked(max_age=10), Use(50)),
        (b"max-age=60", 11, Asked(max_age=10), Validate("request")),
        (b"max-age=60", 50, Asked(min_fresh=10), Use(10)),
        (b"max-age=60", 51, Asked(min_fresh=10), Validate("request")),
        (b"max-age=60", 70, Asked(max_stale=10), Use(-10)),
        (b"max-age=60", 71, Asked(max_stale=10), Validate("stale")),
        (b"max-age=60", 70, Asked(max_stale=10, min_fresh=1), Validate("stale")),
        (b"max-age=60, must-revalidate", 70, Asked(max_stale=10), Validate("stale")),
        (b"s-maxage=60", 70, Asked(max_stale=10), Validate("stale")),
        (b"max-age=60, stale-while-revalidate=10", 70, Asked(), Use(-10, refresh=True)),
        (b"max-age=60, stale-while-revalidate=10", 71, Asked(), Validate("stale")),
        (b"max-age=60, stale-while-revalidate=x", 60, Asked(), Validate("stale")),
        (b"s-maxage=60, stale-while-revalidate=10", 61, Asked(), Validate("stale")),
    ],
)
def test_whether_a_stored_response_is_used(control: bytes, age: int, request_: Asked, choice: Choice) -> None:
    assert choose(known(control), age, request_) == choice


@pytest.mark.parametrize(
    ("control", "age", "request_", "used"),
    [
        (b"max-age=60", 5000, Asked(), True),
        (b"max-age=60, stale-if-error=10", 70, Asked(), True),
        (b"max-age=60, stale-if-error=10", 71, Asked(), False),
        (b"max-age=60, stale-if-error=10", 71, Asked(stale_if_error=20), True),
        (b"max-age=60, stale-if-error=0", 61, Asked(), False),
        (b"max-age=60, must-revalidate, stale-if-error=10", 61, Asked(), False),
        (b"max-age=60, no-cache", 1, Asked(), False),
        (b"max-age=60", 61, Asked(no_cache=True), False),
        (b"max-age=60", 61, Asked(max_age=60), False),
    ],
)
def test_whether_it_stands_in_for_an_origin_that_failed(
    control: bytes, age: int, request_: Asked, *, used: bool
) -> None:
    assert stands_in(known(control), age, request_) is used


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ((), Asked()),
        (((b"x", b"1"),), Asked()),
        (cc(b"no-cache, no-store, only-if-cached"), Asked(no_cache=True, no_store=True, only_if_cached=True)),
        (cc(b"max-age=1, min-fresh=2, max-stale=3"), Asked(max_age=1, min_fresh=2, max_stale=3)),
        (cc(b"max-stale"), Asked(max_stale=LARGEST)),
        (cc(b"max-age=x, min-fresh=x, max-stale=x"), Asked(max_age=0, min_fresh=LARGEST, max_stale=0)),
        (cc(b"foo=bar"), Asked()),
        (((b"pragma", b"no-cache"),), Asked(no_cache=True)),
        (((b"pragma", b"x, NO-CACHE"),), Asked(no_cache=True)),
        (((b"pragma", b"no-cache"), (b"cache-control", b"max-age=1")), Asked(max_age=1)),
        (((b"authorization", b"x"),), Asked(authorized=True)),
        (((b"if-none-match", b"a"), (b"if-none-match", b"b")), Asked(if_none_match=b"a, b")),
        (((b"if-match", b"a"),), Asked(precondition=True)),
        (((b"range", b"a"), (b"if-range", b"b")), Asked(range=b"a", if_range=b"b")),
    ],
)
def test_what_a_request_asks(headers: Headers, expected: Asked) -> None:
    assert asked(headers) == expected


# --- validation (RFC 9111 §4.3) ----------------------------------------------------------------------------------

TAGGED = known(b"max-age=60", (b"etag", b'"a"'))
DATED = known(b"max-age=60", (b"last-modified", EARLIER))


@pytest.mark.parametrize(
    ("stored", "client", "sent"),
    [
        (TAGGED, (), ((b"if-none-match", b'"a"'),)),
        (DATED, (), ((b"if-modified-since", EARLIER),)),
        (TAGGED, ((b"if-none-match", b'"b"'),), ((b"if-none-match", b'"b", "a"'),)),
        (TAGGED, ((b"if-none-match", b'W/"a"'),), ((b"if-none-match", b'W/"a"'),)),
        (TAGGED, ((b"if-none-match", b"*"),), ((b"if-none-match", b"*"),)),
        (DATED, ((b"if-modified-since", LATER),), ((b"if-modified-since", EARLIER),)),
        (TAGGED, ((b"if-modified-since", LATER),), ((b"if-none-match", b'"a"'),)),
        (TAGGED, ((b"range", b"bytes=0-1"), (b"if-range", b"x")), ((b"if-none-match", b'"a"'),)),
    ],
)
def test_what_a_validation_asks(stored: Facts, client: Headers, sent: Headers) -> None:
    assert tuple(validating(client, stored, asked(client))) == sent


@pytest.mark.parametrize(
    ("stored", "told", "client", "confirmed"),
    [
        (TAGGED, ((b"etag", b'"a"'),), (), True),
        (TAGGED, ((b"etag", b'W/"a"'),), (), True),
        (TAGGED, ((b"etag", b'"b"'),), (), False),
        (DATED, ((b"etag", b'"b"'),), (), False),
        (DATED, ((b"last-modified", EARLIER),), (), True),
        (DATED, ((b"last-modified", LATER),), (), False),
        (TAGGED, (), (), True),
        (TAGGED, (), ((b"if-none-match", b'"a"'),), True),
        (TAGGED, (), ((b"if-none-match", b'"b"'),), False),
    ],
)
def test_what_a_304_is_about(stored: Facts, told: Headers, client: Headers, *, confirmed: bool) -> None:
    assert is_confirmed(stored, told, asked(client)) is confirmed


def test_an_update_replaces_fields_but_not_what_says_how_to_read_the_bytes() -> None:
    stored = ((b"a", b"1"), (b"a", b"2"), (b"b", b"3"), (b"content-length", b"5"), (b"content-encoding", b"x"))
    news = ((b"A", b"4"), (b"Content-Length", b"0"), (b"content-encoding", b"y"), (b"age", b"9"), (b"connection", b"c"))
    assert updated(stored, (*news, (b"c", b"1"))) == ((b"b", b"3"), *stored[3:], (b"a", b"4"))


@pytest.mark.parametrize(
    ("head", "agrees"),
    [
        ((), True),
        (((b"etag", b'"a"'), (b"content-length", b"5")), True),
        (((b"etag", b'"b"'),), False),
        (((b"content-length", b"6"),), False),
        (((b"last-modified", DATE),), False),
    ],
)
def test_a_head_agrees_with_what_is_stored(head: Headers, *, agrees: bool) -> None:
    assert head_agrees(((b"etag", b'"a"'), (b"content-length", b"5")), head) is agrees


@pytest.mark.parametrize(
    ("stored", "client", "unchanged"),
    [
        (TAGGED, ((b"if-none-match", b'"a"'),), True),
        (TAGGED, ((b"if-none-match", b'"b"'), (b"if-modified-since", LATER)), False),
        (DATED, ((b"if-none-match", b'"a"'),), False),
        (DATED, ((b"if-none-match", b"*"),), True),
        (DATED, ((b"if-modified-since", EARLIER),), True),
        (DATED, ((b"if-modified-since", format_date(NOW - 101)),), False),
        (DATED, ((b"if-modified-since", b"nonsense"),), False),
        (known(), ((b"if-modified-since", DATE),), True),
        (known(), ((b"if-modified-since", EARLIER),), False),
        (known(), (), False),
    ],
)
def test_a_client_has_it_already(stored: Facts, client: Headers, *, unchanged: bool) -> None:
    headers = tuple((b"last-modified", value) for value in [stored.last_modified] if value is not None)
    assert is_not_modified(headers, stored, asked(client), now=NOW) is unchanged


# --- ranges (RFC 9110 §14) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"bytes=0-0", ((0, 0),)),
        (b"bytes=2-", ((2, 9),)),
        (b"bytes=-3", ((7, 9),)),
        (b"bytes=-99", ((0, 9),)),
        (b"bytes=5-99", ((5, 9),)),
        (b"Bytes= 1-2 ,4-5", ((1, 2), (4, 5))),
        (b"bytes=4-5,1-2", ((4, 5), (1, 2))),
        (b"bytes=1-2,99-", ((1, 2),)),
        (b"bytes=10-", Unsatisfiable()),
        (b"bytes=-0", Unsatisfiable()),
        (b"bytes=1-3,3-4", None),
        (b"bytes=3-1", None),
        (b"bytes=", None),
        (b"bytes=1", None),
        (b"bytes=1-2-3", None),
        (b"bytes", None),
        (b"lines=1-2", None),
        (b"bytes=" + b"0-0," * 500, None),
    ],
)
def test_ranges_of_ten_bytes(value: bytes, found: object) -> None:
    assert ranges(value, 10) == found


@pytest.mark.parametrize(
    ("stored", "condition", "holds"),
    [
        (TAGGED, None, True),
        (TAGGED, b'"a"', True),
        (TAGGED, b'"b"', False),
        (TAGGED, b'W/"a"', False),
        (known(b"max-age=60", (b"etag", b'W/"a"')), b'W/"a"', False),
        (DATED, EARLIER, True),
        (DATED, DATE, False),
        (known(b"max-age=60", (b"last-modified", DATE)), DATE, False),
        (TAGGED, DATE, False),
        (DATED, b"nonsense", False),
    ],
)
def test_if_range_holds_by_strong_comparison(stored: Facts, condition: bytes | None, *, holds: bool) -> None:
    assert range_holds(stored, Asked(if_range=condition), now=NOW) is holds


def test_several_ranges_are_one_multipart_message() -> None:
    response = StoredResponse(200, ((b"content-type", b"text/plain"),), b"0123456789", b"", NOW, 60.0)
    sent = outgoing(response, known(), Asked(range=b"bytes=0-1, 8-9"), method="GET", now=NOW)
    assert sent.status == 206
    media = dict(sent.headers)[b"content-type"]
    boundary = media.removeprefix(b"multipart/byteranges; boundary=")
    assert media != boundary
    assert sent.body == (
        b"--%(b)b\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\n01\r\n"
        b"--%(b)b\r\nContent-Type: text/plain\r\nContent-Range: bytes 8-9/10\r\n\r\n89\r\n--%(b)b--\r\n"
        % {b"b": boundary}
    )
    assert dict(sent.headers)[b"content-length"] == b"%d" % len(sent.body)


# --- parts (RFC 9111 §3.3, §3.4) ---------------------------------------------------------------------------------


def part(begin: int, end: int, etag: bytes = b'"a"') -> StoredResponse:
    headers = ((b"etag", etag), (b"content-range", b"bytes %d-%d/10" % (begin, end)))
    return StoredResponse(206, headers, b"0123456789"[begin : end + 1], etag, NOW, 60.0)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (b"bytes 0-4/10", (0, 4, 10)),
        (b"BYTES 9-9/10", (9, 9, 10)),
        (b"bytes 0-4/*", None),
        (b"bytes */10", None),
        (b"bytes 4-0/10", None),
        (b"bytes 0-10/10", None),
        (b"lines 0-4/10", None),
    ],
)
def test_where_a_part_belongs(value: bytes, place: tuple[int, int, int] | None) -> None:
    assert content_range(((b"content-range", value),)) == place


@pytest.mark.parametrize(
    ("wanted", "body"),
    [
        (b"bytes=2-6", b"23456"),
        (b"bytes=3-3", b"3"),
        (b"bytes=1-3", None),
        (b"bytes=6-7", None),
        (b"bytes=-4", None),
        (b"bytes=2-2,4-4", None),
        (b"bytes=10-", None),
        (None, None),
    ],
)
def test_what_a_stored_part_answers(wanted: bytes | None, body: bytes | None) -> None:
    found = part_within(part(2, 6), wanted)
    assert (found.body if found is not None else None) == body


@pytest.mark.parametrize(
    ("stored", "missing"),
    [
        (part(0, 4), b"bytes=5-"),
        (part(1, 4), None),
        (part(0, 9), None),
        (part(0, 4, b'W/"a"'), None),
    ],
)
def test_what_is_missing_of_a_part(stored: StoredResponse, missing: bytes | None) -> None:
    assert missing_part(stored) == missing


@pytest.mark.parametrize(
    ("one", "other", "joined"),
    [
        (part(0, 4), part(5, 9), (0, 9)),
        (part(0, 4), part(3, 9), (0, 9)),
        (part(5, 9), part(0, 4), (0, 9)),
        (part(0, 4), part(5, 8), (0, 8)),
        (part(2, 8), part(4, 5), (2, 8)),
        (part(4, 5), part(2, 8), (2, 8)),
        (part(0, 4), part(6, 9), None),
        (part(6, 9), part(0, 4), None),
        (part(0, 4), part(5, 9, b'"b"'), None),
        (part(0, 4, b'W/"a"'), part(5, 9, b'W/"a"'), None),
        (part(0, 4), replace(part(5, 9), body=b"567"), None),
    ],
)
def test_which_parts_belong_together(
    one: StoredResponse, other: StoredResponse, joined: tuple[int, int] | None
) -> None:
    found = combined(one, other.headers, other.body)
    if joined is None:
        assert found is None
        return
    low, high = joined
    fields = {b"etag": b'"a"', b"content-length": b"%d" % (high + 1 - low)}
    where = {} if joined == (0, 9) else {b"content-range": b"bytes %d-%d/10" % joined}
    assert found is not None
    assert (found[0], dict(found[1]), found[2]) == (
        206 if where else 200,
        fields | where,
        b"0123456789"[low : high + 1],
    )


# --- invalidation (RFC 9111 §4.4, RFC 9875) ----------------------------------------------------------------------

TARGET = Target("http", "a.test", "/x?y")


@pytest.mark.parametrize(
    ("method", "status", "headers", "uris"),
    [
        ("POST", 200, (), ["/x?y"]),
        ("FOO", 302, (), ["/x?y"]),
        ("POST", 404, (), []),
        ("POST", 500, (), []),
        ("GET", 200, ((b"location", b"/z"),), []),
        ("PUT", 201, ((b"location", b"/z"),), ["/x?y", "/z"]),
        ("PUT", 201, ((b"content-location", b"http://A.test:80/z?q"),), ["/x?y", "/z?q"]),
        ("PUT", 201, ((b"location", b"?z"), (b"content-location", b"z#f")), ["/x?y", "/x?z", "/z"]),
        ("PUT", 201, ((b"location", b"http://b.test/z"),), ["/x?y"]),
        ("PUT", 201, ((b"location", b"https://a.test/z"),), ["/x?y"]),
        ("PUT", 201, ((b"location", b"http://a.test:81/z"),), ["/x?y"]),
        ("PUT", 201, ((b"location", b"http://own.test:9/z"),), ["/x?y", "/z"]),
        ("PUT", 201, ((b"location", b"http://[::1/z"),), ["/x?y"]),
        ("PUT", 201, ((b"location", b"http://a.test"),), ["/x?y", "/"]),
    ],
)
def test_what_a_write_invalidates(method: str, status: int, headers: Headers, uris: list[str]) -> None:
    tags = tuple(tag_of("http://a.test" + uri) for uri in uris)
    assert invalidated(TARGET, method, status, headers, also="http://own.test:9") == tags


def test_a_uri_is_the_same_however_its_host_is_written() -> None:
    scope = {
        "scheme": "http",
        "path": "/x",
        "raw_path": b"/x",
        "query_string": b"",
        "headers": [(b"host", b"A.Test:80")],
    }
    assert target_of(scope) == Target("http", "a.test", "/x")
    assert target_of(scope | {"raw_path": None, "path": "/ä"}).path == "/%C3%A4"
    assert target_of(scope | {"headers": [(b"host", b"a.test:8080")]}).authority == "a.test:8080"


def test_a_group_is_one_of_its_origin() -> None:
    headers = ((b"cache-groups", b'"one", "two"'), (b"surrogate-key", b"plain"))
    named = named_by(TARGET, headers)
    assert "plain" in named
    ended = groups_invalidated(TARGET, "POST", ((b"cache-group-invalidation", b'"two"'),))
    assert set(ended) & set(named)
    assert not set(
        groups_invalidated(Target("http", "b.test", "/"), "POST", ((b"cache-group-invalidation", b'"two"'),))
    ) & set(named)
    assert groups_invalidated(TARGET, "GET", ((b"cache-group-invalidation", b'"two"'),)) == ()
    assert groups_invalidated(TARGET, "POST", ((b"cache-group-invalidation", b"two"),)) == ()


def test_a_response_of_very_many_groups_is_of_one_that_any_invalidation_reaches() -> None:
    many = ((b"cache-groups", b", ".join(b'"g%d"' % number for number in range(200))),)
    ended = groups_invalidated(TARGET, "POST", ((b"cache-group-invalidation", b'"g150"'),))
    assert set(ended) & set(named_by(TARGET, many))
