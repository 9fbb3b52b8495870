from typing import Any

import pytest

from nexcache.asgi import Headers
from nexcache.message import StoredResponse
from nexcache.semantics.reuse import (
    _MOST_HITS,
    REVALIDATE,
    Head,
    Prepared,
    _hits,
    answer,
    current_age,
    time_to_live,
    varying,
)

HEADERS: Headers = (
    (b"content-type", b"application/json"),
    (b"link", b"<a>"),
    (b"link", b"<b>"),
    (b"vary", b"host"),
    (b"etag", b'"tag"'),
    (b"content-length", b"2"),
)


def stored(
    headers: Headers = HEADERS, status: int = 200, *, stored_at: float = 1000.0, ttl: float = 60.0, initial_age: int = 0
) -> StoredResponse:
    return StoredResponse(status, headers, b"{}", b'"tag"', stored_at, ttl, initial_age)


def answered(response: StoredResponse, method: str = "GET", if_none_match: bytes | None = None) -> tuple[Any, Any]:
    return answer(Prepared(response), method=method, if_none_match=if_none_match, varying=varying(5, b"NexCache; hit"))


def test_a_stored_response_is_sent_as_it_was_with_its_age_and_what_the_cache_did() -> None:
    start, body = answered(stored())
    assert start["status"] == 200
    assert start["headers"] == [*HEADERS, REVALIDATE, (b"age", b"5"), (b"cache-status", b"NexCache; hit")]
    assert body == {"type": "http.response.body", "body": b"{}", "more_body": False}


def test_the_apps_own_cache_control_stays() -> None:
    headers = ((b"cache-control", b"max-age=5"), *HEADERS)
    start, _ = answered(stored(headers))
    assert [value for name, value in start["headers"] if name == b"cache-control"] == [b"max-age=5"]


def test_a_head_is_answered_without_body_but_with_its_length() -> None:
    start, body = answered(stored(), method="HEAD")
    assert (b"content-length", b"2") in start["headers"]
    assert body["body"] == b""


@pytest.mark.parametrize("method", ["GET", "HEAD", "QUERY"])
@pytest.mark.parametrize("field", [b'"tag"', b'W/"tag"', b'"x", "tag"', b"*"])
def test_a_client_that_has_it_already_gets_a_304(method: str, field: bytes) -> None:
    start, body = answered(stored(), method, field)
    assert start["status"] == 304
    assert start["headers"] == [
        (b"vary", b"host"),
        (b"etag", b'"tag"'),
        REVALIDATE,
        (b"age", b"5"),
        (b"cache-status", b"NexCache; hit"),
    ]
    assert body == {"type": "http.response.body", "body": b"", "more_body": False}


@pytest.mark.parametrize(
    ("status", "method", "field"),
    [
        pytest.param(200, "GET", b'"other"', id="another tag"),
        pytest.param(200, "GET", b"", id="empty"),
        pytest.param(200, "POST", b'"tag"', id="not for POST"),
        pytest.param(404, "GET", b"*", id="not for what is no success"),
        pytest.param(301, "GET", b'"tag"', id="not for a redirect"),
    ],
)
def test_a_client_that_has_it_not_gets_it_whole(status: int, method: str, field: bytes) -> None:
    start, body = answered(stored(status=status), method, field)
    assert start["status"] == status
    assert body["body"] == b"{}"


@pytest.mark.parametrize("status", [200, 204, 299])
def test_every_success_can_be_a_304(status: int) -> None:
    assert answered(stored(status=status), "GET", b"*")[0]["status"] == 304


@pytest.mark.parametrize("field", [None, b"*"])
def test_every_answer_has_a_list_of_its_own(field: bytes | None) -> None:
    prepared = Prepared(stored())
    first, _ = answer(prepared, method="GET", if_none_match=field, varying=varying(0, b"x"))
    first["headers"].append((b"x-outer", b"1"))
    second, _ = answer(prepared, method="GET", if_none_match=field, varying=varying(0, b"x"))
    assert (b"x-outer", b"1") not in second["headers"]


@pytest.mark.parametrize(
    ("now", "initial", "age", "left"),
    [
        pytest.param(1000.0, 0, 0, 60.0, id="at once"),
        pytest.param(1000.9, 0, 0, 59.1, id="whole seconds"),
        pytest.param(1030.0, 0, 30, 30.0, id="later"),
        pytest.param(1030.0, 7, 37, 30.0, id="it had an age already"),
        pytest.param(1060.0, 0, 60, 0.0, id="at its end"),
        pytest.param(2000.0, 0, 1000, 0.0, id="after its end"),
        pytest.param(900.0, 0, 0, 60.0, id="a clock that runs behind"),
        pytest.param(900.0, 7, 7, 60.0, id="a clock that runs behind, with an age"),
    ],
)
def test_age_and_lifetime_count_from_when_it_was_computed(now: float, initial: int, age: int, left: float) -> None:
    response = stored(initial_age=initial)
    assert current_age(response, now) == age
    assert time_to_live(response, now) == pytest.approx(left)


@pytest.mark.parametrize(
    ("later", "age", "left"),
    [
        pytest.param(0.0, b"13", b"50", id="at once"),
        pytest.param(0.4, b"13", b"49", id="within the second"),
        pytest.param(0.5, b"14", b"49", id="a second older"),
        pytest.param(60.0, b"73", b"-10", id="when its time is over"),
        pytest.param(400.0, b"413", b"-350", id="long after"),
        pytest.param(-30.0, b"3", b"60", id="a clock that was set back"),
    ],
)
def test_the_fields_of_a_hit_tell_its_age_and_what_is_left(later: float, age: bytes, left: bytes) -> None:
    prepared = Prepared(stored(initial_age=3))
    assert prepared.varying(1010.5 + later, "memory") == (
        (b"age", age),
        (b"cache-status", b"NexCache; hit; ttl=" + left + b"; detail=memory"),
    )


def test_the_fields_of_a_hit_name_where_it_was_found() -> None:
    prepared = Prepared(stored())
    said = [dict(prepared.varying(1000.0, where))[b"cache-status"] for where in ("memory", "redis", "memory")]
    assert said == [b"NexCache; hit; ttl=60; detail=%b" % where for where in (b"memory", b"redis", b"memory")]


def test_what_is_known_of_hits_is_bounded() -> None:
    prepared = Prepared(stored())
    for second in range(3 * _MOST_HITS):
        prepared.varying(1000.0 + second, "bounded")
    assert len(_hits["bounded"]) <= _MOST_HITS


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(((b"x", b"1"), (b"etag", b'"v1"'), (b"y", b"2")), id="a tag between others"),
        pytest.param(((b"etag", b'"v1"'), (b"etag", b'"v1"')), id="twice the same"),
        pytest.param(((b"etag", b'"v0"'), (b"x", b"1"), (b"etag", b'"v1"')), id="another before it"),
        pytest.param(((b"x", b"1"),), id="none"),
        pytest.param(((b"etag", b'"v1"'), (b"cache-control", b"no-cache")), id="with a Cache-Control"),
    ],
)
def test_what_was_prepared_is_the_same_when_it_is_put_together_again(headers: Headers) -> None:
    response = StoredResponse(
        200, headers, b"{}", b'"v1"', 1000.0, 60.0, 3, 0.25, 5.0, ((b"gzip", b"zip"), (b"br", b"b")), b"i" * 24
    )
    shared: list[Head] = []

    def share(head: Head) -> Head:
        shared.append(head)
        return head

    prepared = Prepared(response, share=share)
    assert prepared.response == response
    assert prepared.headers[: len(headers)] == headers
    assert shared[0].headers.count((b"etag", b'"v1"')) == max(0, headers.count((b"etag", b'"v1"')) - 1)
