"""Policies: what they refuse, which path they match, which parameters they key, which tags they give."""

import re
from collections.abc import Mapping
from itertools import product
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from starlette.routing import compile_path

from nexcache.errors import ConfigurationError
from nexcache.policy import (
    LONGEST,
    Policies,
    Policy,
    Query,
    TagsInvalid,
    query_parameters,
    seconds,
    size_in_bytes,
    tags_of,
)

# --- durations and sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("duration", "value"),
    [
        (0, 0.0), (5, 5.0), (0.5, 0.5), ("5", 5.0), (" 5 ", 5.0), ("1.5", 1.5), ("1.", 1.0), ("250ms", 0.25),
        ("90s", 90.0), ("2m", 120.0), ("2M", 120.0), ("2 m", 120.0), ("1h", 3600.0), ("1h30m", 5400.0),
        ("1h 30m", 5400.0), ("1d", 86400.0), ("1w", 604800.0), ("1.5h", 5400.0), ("1m500ms", 60.5),
    ],
)  # fmt: skip
def test_a_duration_is_seconds_or_text(duration: float | str, value: float) -> None:
    assert seconds(duration) == value
    assert type(seconds(duration)) is float


@pytest.mark.parametrize(
    "duration",
    [
        "", " ", "x", "2minutes", "m", "1h30", "-5", "-5m", "1e3", "0x10", "5 5", "1..5", ".", "²", "5\u017f",
        "\u0665", "\u0665 m", "2m!", True, False, None, [], -1, -0.1, float("nan"), float("inf"),
        10**400, "9" * 400, "9" * 400 + "s",
    ],
)  # fmt: skip
def test_what_is_no_duration_is_refused_by_name(duration: Any) -> None:
    with pytest.raises(ConfigurationError, match="ttl must be"):
        seconds(duration, "ttl")


@pytest.mark.parametrize(
    ("size", "value"),
    [
        (0, 0), (1024, 1024), ("1024", 1024), ("1b", 1), ("1kb", 1000), ("1KiB", 1024), ("1 MiB", 1024**2),
        ("1mb", 1000**2), ("1.5KiB", 1536), ("1GiB", 1024**3), ("1gb", 1000**3),
    ],
)  # fmt: skip
def test_a_size_is_bytes_or_text(size: int | str, value: int) -> None:
    assert size_in_bytes(size) == value


@pytest.mark.parametrize(
    "size",
    ["", "x", "1k", "1i", "1ib", "-1", -1, "1 MiB x", "1e3", True, None, "\u0665", "1\u212aB", "9" * 400, "2000GiB"],
)
def test_what_is_no_size_is_refused_by_name(size: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_body must be"):
        size_in_bytes(size, "max_body")


# --- what a policy refuses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"path": "dashboard"}, "the path must be a string that starts with a slash"),
        ({"path": ""}, "the path must be a string that starts with a slash"),
        ({"path": None}, "the path must be a string that starts with a slash"),
        ({"path": "/{a:date}"}, "unknown convertor 'date'; there are str, path, int, float, uuid"),
        ({"path": "/{a}/{a}"}, "the parameter 'a' appears twice"),
        ({"path": "/{a"}, "a parameter is written {name} or {name:convertor}"),
        ({"path": "/{1a}"}, "a parameter is written {name} or {name:convertor}"),
        ({"op": ""}, "the operation must not be empty"),
        ({"op": None}, "the operation must be a string, not NoneType"),
        ({"op": "a\nb"}, "the operation contains control or unprintable characters"),
        ({"op": "x" * 201}, "the operation is longer than 200 bytes"),
        ({"op": "a*"}, "op names one operation, so it cannot contain * or ?"),
        ({"ttl": 0}, "ttl must be more than 0 seconds and at most 30 days"),
        ({"ttl": "31d"}, "ttl must be more than 0 seconds and at most 30 days"),
        ({"ttl": -1}, "ttl must be a finite number of seconds, and not negative"),
        ({"ttl": "soon"}, "ttl must be seconds or text such as"),
        ({"methods": "GET"}, "methods takes a list or a tuple, not str"),
        ({"methods": ()}, "methods are GET, POST, QUERY, or HEAD with GET"),
        ({"methods": ["DELETE"]}, "methods are GET, POST, QUERY, or HEAD with GET"),
        ({"methods": ["HEAD"]}, "methods are GET, POST, QUERY, or HEAD with GET"),
        ({"methods": [None]}, "methods are GET, POST, QUERY, or HEAD with GET"),
        ({"statuses": "200"}, "statuses takes a list or a tuple, not str"),
        ({"statuses": 200}, "statuses takes a list or a tuple, not int"),
        ({"statuses": ()}, "statuses are numbers from 200 to 599, at least one"),
        ({"statuses": ["200"]}, "statuses are numbers from 200 to 599, at least one"),
        ({"statuses": [199]}, "statuses are numbers from 200 to 599, at least one"),
        ({"statuses": [600]}, "statuses are numbers from 200 to 599, at least one"),
        ({"statuses": [206]}, "206 and 304 are parts of an answer"),
        ({"statuses": [200, 304]}, "206 and 304 are parts of an answer"),
        ({"vary": "Accept"}, "vary takes a list or a tuple, not str"),
        ({"vary": ["*"]}, "`*` would match no two requests"),
        ({"vary": ["Accept Language"]}, "vary: not the name of a header field"),
        ({"vary": [""]}, "vary: not the name of a header field"),
        ({"vary": ["é"]}, "vary: not the name of a header field"),
        ({"vary": ["Range"]}, "vary: range tells the cache what to do"),
        ({"vary": ["cache-control"]}, "vary: cache-control tells the cache what to do"),
        ({"vary": ["if-none-match"]}, "vary: if-none-match tells the cache what to do"),
        ({"query": ["a"]}, r"query takes Query(allow=…) or Query(ignore=…)"),
        ({"tags": "a"}, "tags takes a list or a tuple, not str"),
        ({"tags": [5]}, "a tag is a string, not int"),
        ({"tags": [""]}, "the tag must not be empty"),
        ({"tags": ["a\n{b}"]}, "the tag contains control or unprintable characters"),
        ({"tags": ["{}"]}, "a tag's placeholder is written {name}"),
        ({"tags": ["{a"]}, "a tag's placeholder is written {name}"),
        ({"tags": ["a}"]}, "a tag's placeholder is written {name}"),
        ({"tags": ["x" * 201]}, "the tag is longer than 200 bytes"),
        ({"tags": [str(number) for number in range(33)]}, "more than 32 tags"),
        ({"tags": ["{s}"], "query": Query(allow=["t"])}, "needs the query parameter 's', which query= does not key"),
        ({"tags": ["{s}"], "query": Query(ignore=["s"])}, "needs the query parameter 's', which query= does not key"),
        ({"max_body": "big"}, "max_body must be bytes or text such as"),
        ({"jitter": 1}, "jitter is a part of the ttl"),
        ({"jitter": -0.1}, "jitter is a part of the ttl"),
        ({"jitter": True}, "jitter is a part of the ttl"),
        ({"jitter": "10%"}, "jitter is a part of the ttl"),
        ({"fill_soft_limit": 0}, "fill_soft_limit must be more than 0"),
        ({"fill_soft_limit": "2m"}, "fill_soft_limit must be more than 0, and at most fill_hard_limit"),
        ({"fill_hard_limit": "soon"}, "fill_hard_limit must be seconds or text"),
        ({"version": 2}, "version is a string of at most 64 printable characters"),
        ({"version": "\ud800"}, "version is a string of at most 64 printable characters"),
        ({"version": "x" * 65}, "version is a string of at most 64 printable characters"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Policy(**{"path": "/d", "op": "d", **arguments})
    assert str(raised.value).startswith("Policy(")
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"ttl": LONGEST}, {"ttl": "30d"}, {"ttl": None}, {"statuses": [200, 404]}, {"statuses": (200, 599)},
        {"statuses": {200}}, {"methods": ["get", "post"]}, {"methods": ("GET", "HEAD")}, {"vary": ["X-A", "x-b"]},
        {"tags": [str(number) for number in range(32)]}, {"tags": ["x" * 200]}, {"max_body": 0}, {"version": "x" * 64},
        {"tags": ["{s}"], "query": Query(allow=["s"])}, {"tags": ["{s}"], "query": Query(ignore=["t"])},
        {"path": "/d/{s}", "tags": ["{s}"], "query": Query(allow=[])}, {"op": "x" * 200}, {"op": "a:b/é"},
    ],
)  # fmt: skip
def test_what_can_work_is_taken(arguments: dict[str, Any]) -> None:
    Policy(**{"path": "/d", "op": "d", **arguments})


def test_a_policy_is_normalised() -> None:
    policy = Policy("/d", op="d", methods=["get"], vary=["X-B", "x-a", "X-A"], statuses=[200], tags=["a"])
    assert (policy.methods, policy.vary, policy.statuses, policy.tags) == (("GET",), ("x-a", "x-b"), (200,), ("a",))
    assert policy == Policy("/d", op="d", methods=("GET",), vary=("x-a", "x-b"), tags=("a",))


def test_a_policys_shape_is_what_it_keys() -> None:
    def shape(**arguments: Any) -> bytes:
        return Policy("/d", op="d", **arguments).shape

    shapes = [
        shape(), shape(vary=["a"]), shape(query=Query(allow=["a"])), shape(query=Query(ignore=["a"])),
        shape(query=Query(allow=[])), shape(query=Query()), shape(query=Query(allow=["a", "b"])),
    ]  # fmt: skip
    assert len(set(shapes)) == len(shapes)
    assert shape(vary=["A"]) == shape(vary=["a"])
    assert shape(query=Query(allow=["a"])) == shape(query=Query(allow=("a",)))


# --- paths --------------------------------------------------------------------------------------------------------

TEMPLATES = [
    "/", "/d", "/d/", "/s/{name}", "/s/{name:str}", "/s/{name}/t", "/i/{n:int}", "/f/{x:float}", "/p/{rest:path}",
    "/u/{id:uuid}", "/{a}/{b}", "/{a}-{b}", "/{a}.json", "/{n:int}{rest:path}", "/a.b+c", "/x/{a:path}/y",
]  # fmt: skip
PATHS = [
    "", "/", "/d", "/d/", "/D", "//d", "/s", "/s/", "/s/a", "/s/a/", "/s/a/t", "/s/a/b/t", "/s//t", "/s/a%2Fb", "/s/é",
    "/i/1", "/i/-1", "/i/1.0", "/i/\u0661", "/i/1a", "/f/1", "/f/1.5", "/f/1.", "/f/.5", "/p/", "/p/a/b", "/p",
    "/u/123e4567-e89b-12d3-a456-426614174000", "/u/123e4567e89b12d3a456426614174000", "/u/123", "/a/b", "/a/b/c",
    "/a-b", "/a-b-c", "/x.json", "/.json", "/1", "/1/2", "/a.b+c", "/aXb+c", "/x//y", "/x/a/b/y", "/x/y", "/s/a?b",
    "/s/a;b", "/s/\x00", "/s/..", "/s/a\\b",
]  # fmt: skip


def starlettes_match(template: str, path: str) -> Mapping[str, str] | None:
    match = compile_path(template)[0].match(path)
    return match.groupdict() if match else None


def our_match(template: str, path: str) -> Mapping[str, str] | None:
    matched = Policies([Policy(template, op="op")]).match(path)
    return None if matched is None else matched.parameters


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_matches_what_starlettes_matches(template: str) -> None:
    for path in PATHS:
        assert our_match(template, path) == starlettes_match(template, path), path


PATH_TEXT = st.lists(st.sampled_from([*"/d1.-a", "é", "%2F", "..", "s/", "y"]), max_size=12).map("".join)


@given(st.sampled_from(TEMPLATES), PATH_TEXT.map("/".__add__))
def test_any_path_is_matched_as_starlette_does(template: str, path: str) -> None:
    assert our_match(template, path) == starlettes_match(template, path)


@given(st.sampled_from(TEMPLATES), st.text(st.characters(exclude_characters="\n")).map("/".__add__))
def test_any_text_is_matched_as_starlette_does(template: str, path: str) -> None:
    assert our_match(template, path) == starlettes_match(template, path)


def test_a_template_matches_the_whole_path_and_nothing_after_it() -> None:
    assert our_match("/d", "/d\n") is None
    assert our_match("/d", "/d/x.css") is None
    assert our_match("/d", "/x/d") is None


def test_the_first_template_that_matches_counts() -> None:
    policies = Policies([Policy("/s/all", op="all"), Policy("/s/{name}", op="one"), Policy("/s/{other}", op="never")])
    all_, one = policies.match("/s/all"), policies.match("/s/cart")
    assert all_ is not None
    assert one is not None
    assert (all_.policy.op, all_.index, all_.parameters) == ("all", 0, {})
    assert (one.policy.op, one.index, one.parameters) == ("one", 1, {"name": "cart"})
    assert policies.match("/s/cart") is one
    assert policies.match("/s") is None


def test_paths_from_outside_do_not_fill_the_memory() -> None:
    policies = Policies([Policy("/{rest:path}", op="op")])
    for number in range(10_000):
        policies.match(f"/{number}")
    long = "/" + "x" * 4000
    assert policies.match(long) is not None
    assert len(policies._seen) <= 4096
    assert long not in policies._seen


def test_a_path_that_is_too_long_for_a_key_has_no_policy() -> None:
    policies = Policies([Policy("/{a}-{b}-{c}", op="op"), Policy("/{rest:path}", op="rest")])
    assert policies.match("/" + "-" * 4095) is not None
    assert policies.match("/" + "-" * 4096) is None


# --- query --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "raw", "canonical"),
    [
        pytest.param(Query(allow=["a"]), b"a=1&b=2", b"a=1", id="only what is allowed"),
        pytest.param(Query(allow=["a", "b"]), b"b=2&a=1", b"a=1&b=2", id="ordered by name"),
        pytest.param(Query(allow=["a"]), b"a=2&a=1", b"a=2&a=1", id="one name keeps its order"),
        pytest.param(Query(allow=["a"]), b"b=2", b"", id="nothing left"),
        pytest.param(Query(allow=[]), b"a=1", b"", id="nothing allowed"),
        pytest.param(Query(allow=["a"]), b"%61=1&a=2", b"%61=1&a=2", id="names are decoded, spellings stay"),
        pytest.param(Query(allow=["a b"]), b"a+b=1&a%20b=2", b"a+b=1&a%20b=2", id="plus is a space"),
        pytest.param(Query(allow=["a"]), b"a&a=&a=1", b"a&a=&a=1", id="without and with empty value"),
        pytest.param(Query(allow=["a"]), b"&&a=1&", b"a=1", id="empty parts are nothing"),
        pytest.param(Query(allow=["a"]), b"A=1", b"", id="case counts"),
        pytest.param(Query(allow=[""]), b"=1&a=2", b"=1", id="the empty name"),
        pytest.param(Query(allow=["filter[name]"]), b"filter[name]=1&filtern=2", b"filter[name]=1", id="brackets"),
        pytest.param(Query(allow=["filter[*]"]), b"filter%5Bx%5D=1&filter=2", b"filter%5Bx%5D=1", id="glob"),
        pytest.param(Query(allow=["a[]"]), b"a[]=1&a[]=2&a=3", b"a[]=1&a[]=2", id="lists"),
        pytest.param(Query(allow=["a?"]), b"a=1&ab=2", b"ab=2", id="one character"),
        pytest.param(Query(allow=["é"]), b"%C3%A9=1&%E9=2", b"%C3%A9=1", id="utf-8"),
        pytest.param(Query(allow=["a", "b"]), b"ab=1", b"", id="names are matched whole"),
        pytest.param(Query(ignore=["utm_*"]), b"b=1&utm_source=x&a=2", b"a=2&b=1", id="all but what is ignored"),
        pytest.param(Query(ignore=["u"]), b"%75=1&a=1", b"a=1", id="ignored in any spelling"),
        pytest.param(Query(ignore=["u"]), b"%u=1", b"%u=1", id="a broken escape is another name"),
        pytest.param(Query(ignore=[]), b"b=1&a=1", b"a=1&b=1", id="nothing ignored"),
        pytest.param(Query(), b"b=1&a=1", b"a=1&b=1", id="neither"),
        pytest.param(Query(allow=["b"]), b"a=1;b=2", b"a=1;b=2", id="a semicolon hides nothing from allow"),
        pytest.param(Query(ignore=["u"]), b"u=1;b=2", b"u=1;b=2", id="a semicolon hides nothing from ignore"),
        pytest.param(Query(allow=["a"]), b"b=2;&a=1", b"b=2;&a=1", id="a query with a semicolon is kept whole"),
        pytest.param(Query(allow=["a"]), b"b=2%3B&a=1", b"a=1", id="an encoded semicolon is a character"),
    ],
)
def test_a_query_is_written_in_one_form(query: Query, raw: bytes, canonical: bytes) -> None:
    assert query.canonical(raw) == canonical


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"allow": ["a"], "ignore": ["b"]}, "either allow=… or ignore=…"),
        ({"allow": "a"}, r"a list of names, such as \['a'\], not one string"),
        ({"ignore": "a"}, r"a list of names, such as \['a'\], not one string"),
        ({"allow": [1]}, "names of parameters, which are strings"),
    ],
)
def test_a_query_that_cannot_work_is_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Query(**arguments)


def test_a_query_may_be_given_any_iterable_and_compares_by_its_names() -> None:
    query = Query(allow=(name for name in ("a", "b")))  # type: ignore[arg-type]  # callers do
    assert query == Query(allow=["a", "b"])
    assert query.canonical(b"a=1&c=2") == b"a=1"
    assert query.keeps("b")
    assert not query.keeps("c")


RULES = [Query(allow=["a", "b"]), Query(allow=["a*"]), Query(ignore=["a"]), Query(ignore=["u*", "é"]), Query()]
RAW = st.lists(
    st.sampled_from([b"a", b"b", b"u", b"ab", b"=", b"&", b";", b"1", b"%61", b"%C3%A9", b"%", b"+", b"%26", b"%3D"]),
    max_size=10,
).map(b"".join)


def seen_by_apps(query: Query, raw: bytes) -> list[dict[str, list[str]]]:
    """Give the kept parameters as apps read them that split at `&`, and as those do that also split at `;`."""
    readings = []
    for text in (raw, raw.replace(b";", b"&")):
        found: dict[str, list[str]] = {}
        for name, value in parse_qsl(text.decode(), keep_blank_values=True):
            if query.keeps(name):
                found.setdefault(name, []).append(value)
        readings.append(found)
    return readings


@given(st.sampled_from(RULES), RAW, RAW)
def test_queries_that_an_app_reads_differently_never_share_a_key(query: Query, first: bytes, second: bytes) -> None:
    if query.canonical(first) == query.canonical(second):
        assert seen_by_apps(query, first) == seen_by_apps(query, second)


def test_no_two_short_queries_that_an_app_reads_differently_share_a_key() -> None:
    """Every query of up to five pieces, which finds what random pairs rarely meet: two with one key."""
    pieces = (b"a", b"=", b"&", b";", b"u", b"%61", b"1")
    raws = [b"".join(chosen) for length in range(6) for chosen in product(pieces, repeat=length)]
    for query in (Query(allow=["a"]), Query(ignore=["u"])):
        readings: dict[bytes, list[dict[str, list[str]]]] = {}
        for raw in raws:
            reading = seen_by_apps(query, raw)
            assert readings.setdefault(query.canonical(raw), reading) == reading, raw


@given(st.sampled_from(RULES), RAW, RAW)
def test_what_is_left_out_makes_no_difference(query: Query, raw: bytes, left_out: bytes) -> None:
    assume(not query.canonical(left_out) and b";" not in raw)
    assert query.canonical(raw + b"&" + left_out) == query.canonical(raw)


@given(st.sampled_from(RULES), RAW)
def test_the_canonical_form_is_its_own(query: Query, raw: bytes) -> None:
    assert query.canonical(query.canonical(raw)) == query.canonical(raw)


def test_a_query_that_is_too_long_is_not_taken_apart() -> None:
    raw = b"b=1&a=" + b"x" * 16 * 1024
    assert Query(allow=["a"]).canonical(raw) == raw


@given(st.lists(st.sampled_from([b"a", b"b", b"=", b"&", b"%61", b"%C3%A9", b"%ff", b"+", b"%"]), max_size=10))
def test_parameters_are_read_as_frameworks_read_them(pieces: list[bytes]) -> None:
    raw = b"".join(pieces)
    expected: dict[str, tuple[str, ...]] = {}
    for name, value in parse_qsl(raw.decode(), keep_blank_values=True):
        expected[name] = (*expected.get(name, ()), value)
    assert query_parameters(raw) == expected


# --- tags ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("templates", "parameters", "query", "tags"),
    [
        pytest.param([], {"s": "a"}, b"s=a", (), id="none"),
        pytest.param(["all"], {}, b"", ("all",), id="constant"),
        pytest.param(["service:{s}"], {"s": "cart"}, b"", ("service:cart",), id="path"),
        pytest.param(["service:{s}"], {}, b"s=cart", ("service:cart",), id="query"),
        pytest.param(["service:{s}"], {"s": "path"}, b"s=query", ("service:path",), id="the path wins"),
        pytest.param(["service:{s}"], {}, b"", (), id="absent"),
        pytest.param(["service:{s}"], {}, b"s", ("service:",), id="empty"),
        pytest.param(["service:{s}"], {}, b"s=b&s=a&s=b", ("service:a", "service:b"), id="repeated"),
        pytest.param(["{s}/{t}"], {"s": "x"}, b"t=1&t=2", ("x/1", "x/2"), id="two"),
        pytest.param(["{s}/{t}"], {"s": "x"}, b"", (), id="one of two is absent"),
        pytest.param(["{s}-{s}"], {"s": "x"}, b"", ("x-x",), id="twice"),
        pytest.param(["b", "a", "b"], {}, b"", ("a", "b"), id="sorted, once"),
        pytest.param(["{s}"], {}, b"s=%C3%A9+x", ("é x",), id="decoded"),
        pytest.param(["{service.name}"], {}, b"service.name=cart", ("cart",), id="dotted"),
        pytest.param(["{s}"], {}, b"s=" + b"x" * 200, ("x" * 200,), id="the longest"),
    ],
)
def test_tags_are_filled_from_the_request(
    templates: list[str], parameters: dict[str, str], query: bytes, tags: tuple[str, ...]
) -> None:
    assert tags_of(Policy("/d", op="d", tags=templates), parameters, query) == tags


@pytest.mark.parametrize(
    ("templates", "query", "reason"),
    [
        pytest.param(["{s}"], b"s=" + b"x" * 201, "longer than 200 bytes", id="too long"),
        pytest.param(["{s}"], b"s=%0A", "control or unprintable", id="control character"),
        pytest.param(["{s}"], b"s=", "must not be empty", id="empty"),
        pytest.param(["{s}"], b"&".join(b"s=%d" % number for number in range(33)), "more than 32", id="too many"),
        pytest.param(["{s}{t}"], b"&".join(b"s=%d&t=%d" % (n, n) for n in range(6)), "more than 32", id="product"),
        pytest.param(["{s}", "{t}"], b"&".join(b"s=%d&t=x%d" % (n, n) for n in range(17)), "more than 32", id="sum"),
        pytest.param(["a"], b"x" * 16 * 1024 + b"x", "too long", id="query too long"),
    ],
)
def test_tags_that_cannot_be_part_of_a_key_are_a_reason(templates: list[str], query: bytes, reason: str) -> None:
    tags = tags_of(Policy("/d", op="d", tags=templates), {}, query)
    assert isinstance(tags, TagsInvalid)
    assert re.search(reason, tags.reason)


def test_thirty_two_tags_are_not_too_many() -> None:
    query = b"&".join(b"s=%d" % number for number in range(32))
    tags = tags_of(Policy("/d", op="d", tags=["{s}"]), {}, query)
    assert not isinstance(tags, TagsInvalid)
    assert len(tags) == 32


def test_a_tenants_first_miss_of_a_path_takes_the_same_steps_whether_or_not_another_has_asked() -> None:
    """What is remembered of a path would tell, by the time that it saves."""
    steps = []
    for others in ([], ["acme"]):
        policies = Policies([Policy("/{page}", op="page")])
        matched: list[str] = []
        find = policies._find
        policies._find = lambda path, find=find, matched=matched: matched.append(path) or find(path)  # type: ignore[method-assign, misc]
        for tenant in others:
            policies.match("/a")
            policies.missed("/a", tenant)
        del matched[:]
        for _ in range(3):
            policies.match("/a")
            policies.missed("/a", "globex")
        steps.append(list(matched))
        assert not policies._unclaimed
    assert steps == [["/a"], ["/a"]]
