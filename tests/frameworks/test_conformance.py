"""What holds in every framework, behind every server: the cache helps, and is otherwise not there.

Routes below `/api` have a policy, the same routes below `/bare` have none: "as without the cache" means as those.
"""

import json
import re
import socket
import time
from collections.abc import Callable
from contextlib import closing
from urllib.parse import urlsplit

import httpx2
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.frameworks.conftest import Site
from tests.frameworks.servers import FRAMEWORKS, SERVERS, Setup
from tests.ingest.batches import json_batch

SETUPS = [Setup(framework, server) for framework in FRAMEWORKS for server in SERVERS]
WITHOUT_LIFESPAN = [
    Setup(framework, server) for framework in FRAMEWORKS for server in ("uvicorn-no-lifespan", "granian-no-lifespan")
]
everywhere = pytest.mark.parametrize("site", SETUPS, ids=str, indirect=True)

NO_REPEATED_FIELDS = {"django"}
"""Django keeps header fields in a dict, so that a handler cannot repeat one, cookies apart."""
FIELDS_GROUPED = {"granian"}
"""granian groups header fields by name; the order of those of one name is kept, which is all that HTTP asks for."""
NO_LIFESPAN = {"django"}
"""Django raises on the lifespan scope, so that an app has no hooks; the middleware answers the server instead."""
NO_WEBSOCKETS = {"django"}
"""Django raises on the websocket scope: a router before it must take those."""


def status(response: httpx2.Response) -> str:
    return response.headers["cache-status"].partition("; ttl=")[0]


def fields(response: httpx2.Response) -> list[tuple[str, str]]:
    own = ("date", "server", "age", "etag", "cache-control", "cache-status", "content-length", "transfer-encoding")
    return [(name.lower(), value) for name, value in response.headers.multi_items() if name.lower() not in own]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


@everywhere
def test_the_first_request_is_computed_and_the_second_is_a_hit(site: Site) -> None:
    cold, warm = site.get("/api/dashboard"), site.get("/api/dashboard")
    assert (status(cold), status(warm)) == ("NexCache; fwd=uri-miss; stored", "NexCache; hit")
    assert cold.json() == warm.json() == {"calls": 1}
    assert site.get("/api/dashboard", tenant="globex").json() == {"calls": 2}


@everywhere
def test_a_path_without_a_policy_is_not_touched(site: Site) -> None:
    answers = [site.get("/bare/dashboard") for _ in range(2)]
    assert [answer.json()["calls"] for answer in answers] == [1, 2]
    assert "cache-status" not in answers[1].headers


@everywhere
def test_a_route_of_the_app_can_invalidate(site: Site) -> None:
    site.get("/api/dashboard")
    assert site.send("POST", "/invalidate", params={"tenant": "acme"}).json() == {"acknowledged": True}
    assert site.get("/api/dashboard").json() == {"calls": 2}


@everywhere
@pytest.mark.parametrize("path", ["/v1/traces", "/v1/traces/"])
def test_spans_that_arrive_invalidate_what_they_could_have_changed(site: Site, path: str) -> None:
    mine, other = f"/api/services/{site.run}", f"/api/services/{site.run}-other"
    for service in (mine, other):
        site.get(service)
    sent = site.send(
        "POST", path, content=json.dumps(json_batch(site.run)), headers={"content-type": "application/json"}
    )
    assert sent.status_code == 200
    assert site.get(mine).json() == {"calls": 2}
    assert site.get(other).json() == {"calls": 1}


@everywhere
def test_the_admin_endpoints_are_mounted_behind_their_key(site: Site) -> None:
    assert site.get("/cache/health").json()["status"] == "healthy"
    assert site.get("/cache/health", tenant=None).status_code == 401


@everywhere
def test_the_first_chunk_of_a_miss_arrives_before_the_last_is_produced(site: Site) -> None:
    with site.client.stream(
        "GET", "/api/stream", params={"run": site.run}, headers={"x-api-key": "the-key-of-acme"}
    ) as answer:
        chunks = answer.iter_raw()
        assert next(chunks) == b"first\n"
        assert site.state()["stream"] == "running"
        site.send("POST", "/gate")
        assert b"".join(chunks) == b"last\n"
    warm = site.get("/api/stream")
    assert (status(warm), warm.text, site.state()["calls"]) == ("NexCache; hit", "first\nlast\n", 1)


@everywhere
def test_repeated_header_fields_stay_repeated_and_in_order(site: Site) -> None:
    bare, cold, warm = site.get("/bare/dashboard"), site.get("/api/dashboard"), site.get("/api/dashboard")
    if site.setup.framework in NO_REPEATED_FIELDS:
        expected = [("x-part", "one, two"), ("x-between", "these")]
    elif site.setup.server in FIELDS_GROUPED:
        expected = [("x-part", "one"), ("x-part", "two"), ("x-between", "these")]
    else:
        expected = [("x-part", "one"), ("x-between", "these"), ("x-part", "two")]
    for answer in (bare, cold, warm):
        assert [pair for pair in fields(answer) if pair[0].startswith("x-")] == expected
    assert sorted(fields(warm)) == sorted(fields(cold)) == sorted(fields(bare))


@everywhere
def test_cookies_stay_repeated_and_their_answers_are_not_stored(site: Site) -> None:
    answers = [site.get("/api/cookies") for _ in range(2)]
    for answer in answers:
        assert [cookie.partition(";")[0] for cookie in answer.headers.get_list("set-cookie")] == ["a=1", "b=2"]
    assert [answer.json()["calls"] for answer in answers] == [1, 2]
    site.client.cookies.clear()


@everywhere
def test_a_post_passes_with_its_body_and_is_not_cached(site: Site) -> None:
    answers = [site.send("POST", "/api/dashboard", content=b"a question") for _ in range(2)]
    assert [answer.json() for answer in answers] == [{"calls": calls, "body": "a question"} for calls in (1, 2)]
    assert status(answers[1]) == "NexCache; fwd=method"
    assert site.get("/api/dashboard").json() == {"calls": 3}


@everywhere
def test_a_head_is_answered_from_a_get_and_never_makes_an_entry(site: Site) -> None:
    bare, cold = site.send("HEAD", "/bare/dashboard"), site.send("HEAD", "/api/dashboard")
    assert (cold.status_code, cold.content) == (bare.status_code, b"")
    full = site.get("/api/dashboard")
    assert status(full) == "NexCache; fwd=uri-miss; stored"
    warm = site.send("HEAD", "/api/dashboard")
    assert (warm.status_code, warm.content, status(warm)) == (200, b"", "NexCache; hit")
    assert warm.headers["content-length"] == str(len(full.content))
    assert warm.headers["etag"] == full.headers["etag"]


@everywhere
def test_an_entity_tag_is_answered_with_304(site: Site) -> None:
    etag = site.get("/api/dashboard").headers["etag"]
    answer = site.get("/api/dashboard", headers={"if-none-match": etag})
    assert (answer.status_code, answer.content) == (304, b"")


@everywhere
def test_an_exception_is_answered_as_without_the_cache_and_is_not_cached(site: Site) -> None:
    last = {"connection": "close"}  # some servers close it after an exception, whatever the app has answered
    bare = site.get("/bare/fail", headers=last)
    answers = [site.get("/api/fail", headers=last) for _ in range(2)]
    assert bare.status_code == 500
    for answer in answers:
        assert (answer.status_code, answer.content) == (500, bare.content)
    assert site.state()["calls"] == 3


@everywhere
def test_what_a_route_refuses_is_refused_cold_and_warm(site: Site) -> None:
    granted = {"authorization": "Bearer ada"}
    assert site.get("/api/report").status_code == 401
    answers = [site.get("/api/report", headers=granted) for _ in range(2)]
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"calls": 1})] * 2
    assert status(answers[1]) == "NexCache; hit"
    for headers in ({}, {"authorization": "Bearer eve"}, {"authorization": "bearer ada"}):
        assert site.get("/api/report", headers=headers).status_code == 401
    assert site.get("/api/report", tenant=None).status_code == 401


def leave(site: Site, path: str, *, after: bytes) -> None:
    """Go away in the middle of an answer."""
    where = urlsplit(site.url)
    assert where.hostname is not None
    with closing(socket.create_connection((where.hostname, where.port or 80), timeout=10.0)) as connection:
        connection.sendall(
            f"GET {path}?run={site.run} HTTP/1.1\r\nHost: {where.netloc}\r\nX-API-Key: the-key-of-acme\r\n\r\n".encode()
        )
        received = b""
        while after not in received:
            chunk = connection.recv(65_536)
            assert chunk
            received += chunk


@everywhere
def test_a_client_that_leaves_does_not_leave_a_partial_answer_behind(site: Site) -> None:
    leave(site, "/api/stream", after=b"first\n")
    assert site.state()["stream"] == "running"
    site.send("POST", "/gate")
    until(lambda: site.state()["stream"] in ("finished", "ended"))
    assert site.get("/api/stream").text == "first\nlast\n"


@everywhere
def test_an_endless_answer_ends_when_its_client_leaves(site: Site) -> None:
    leave(site, "/api/endless", after=b"x" * 1000)
    until(lambda: bool(site.state()["stream"] == "ended"))


@everywhere
def test_websockets_pass(site: Site) -> None:
    url = site.url.replace("http", "ws") + "/ws"
    if site.setup.framework in NO_WEBSOCKETS:
        with pytest.raises(InvalidStatus) as refused, connect(url):
            pass
        assert refused.value.response.status_code in (403, 500)
        return
    with connect(url) as websocket:
        websocket.send("hello")
        assert websocket.recv(timeout=10) == "echo hello"


@everywhere
def test_the_apps_own_lifespan_runs_once(site: Site) -> None:
    assert site.state()["lifespan"] == ([] if site.setup.framework in NO_LIFESPAN else ["started"])


@everywhere
def test_no_request_of_these_tests_failed_otherwise_than_it_should(site: Site) -> None:
    """The last of a setup's tests: an exception after an answer shows in the server's log only."""
    raised = set(re.findall(r"^(?:\w+\.)*(\w*(?:Error|Exception|Warning)): ", site.log.read_text(), re.MULTILINE))
    assert raised <= ({"LookupError", "ValueError"} if site.setup.framework in NO_WEBSOCKETS else {"LookupError"})


@pytest.mark.parametrize("site", WITHOUT_LIFESPAN, ids=str, indirect=True)
def test_the_cache_needs_no_lifespan(site: Site) -> None:
    assert [status(site.get("/api/dashboard")) for _ in range(2)] == ["NexCache; fwd=uri-miss; stored", "NexCache; hit"]
