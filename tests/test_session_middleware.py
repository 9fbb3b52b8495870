"""Sessions in front of an app, as a browser sees them."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from nexcache import CacheMiddleware, ConfigurationError, NexCache, Policy, SessionMiddleware, Settings, tenants
from nexcache.asgi import Message, Receive, Scope, Send
from nexcache.sessions import Sessions
from tests.servers import Valkey
from tests.wire.server import serving

COOKIE = "__Host-session"


async def read(request: Request) -> Response:
    return JSONResponse({"user": request.session.user, "data": dict(request.session)})  # type: ignore[attr-defined]


async def write(request: Request) -> Response:
    request.session.update(dict(request.query_params))
    request.session.setdefault("nested", []).append(len(request.session))
    return PlainTextResponse("written")


async def append(request: Request) -> Response:
    request.session["nested"].append("more")
    return PlainTextResponse("appended")


async def login(request: Request) -> Response:
    request.session.login(request.query_params["user"])  # type: ignore[attr-defined]
    return PlainTextResponse("welcome")


async def rotate(request: Request) -> Response:
    request.session.rotate()  # type: ignore[attr-defined]
    return PlainTextResponse("rotated")


async def logout(request: Request) -> Response:
    request.session.end()  # type: ignore[attr-defined]
    return PlainTextResponse("bye")


async def public(_: Request) -> Response:
    return PlainTextResponse("the same for all", headers={"cache-control": "public, max-age=60"})


async def late(request: Request) -> Response:
    async def body() -> Any:
        yield "begun"
        request.session["late"] = 1

    return StreamingResponse(body())


async def talk(websocket: WebSocket) -> None:
    websocket.session["seen"] = websocket.session.get("seen", 0) + 1
    await websocket.accept()
    await websocket.send_json(dict(websocket.session))
    await websocket.close()


ROUTES = [
    *(Route(f"/{each.__name__}", each) for each in (read, write, append, login, rotate, logout, public, late)),
    WebSocketRoute("/talk", talk),
]


def site(sessions: Sessions, **options: Any) -> Starlette:
    return Starlette(routes=ROUTES, middleware=[Middleware(SessionMiddleware, sessions=sessions, **options)])


def browser(sessions: Sessions, **options: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=site(sessions, **options)), base_url="https://app.example"
    )


@pytest.fixture
def sessions() -> Sessions:
    return NexCache(Settings(redis_url=None)).sessions(ttl="1h", max_age="7d")


async def test_the_cookie_is_out_of_reach_of_scripts_other_hosts_and_other_sites(sessions: Sessions) -> None:
    async with browser(sessions) as http:
        answer = await http.get("/write?a=1")

    name, _, rest = answer.headers["set-cookie"].partition("=")
    value, *attributes = rest.split("; ")
    assert (name, len(value)) == (COOKIE, 43)
    assert attributes == ["Max-Age=604800", "Path=/", "HttpOnly", "Secure", "SameSite=Lax"]
    assert answer.headers["vary"] == "Cookie"
    assert answer.headers["cache-control"] == "no-store"


async def test_what_is_remembered_is_there_at_the_next_request_and_the_cookie_is_sent_once(sessions: Sessions) -> None:
    async with browser(sessions) as http:
        await http.get("/write?a=1")
        appended = await http.get("/append")
        answer = await http.get("/read")

    assert answer.json() == {"user": None, "data": {"a": "1", "nested": [2, "more"]}}
    assert [each.headers["vary"] for each in (appended, answer)] == ["Cookie", "Cookie"]
    assert "set-cookie" not in appended.headers | answer.headers


async def test_who_only_looks_gets_no_session(sessions: Sessions) -> None:
    async with browser(sessions) as http:
        answer = await http.get("/read")
    assert answer.headers["vary"] == "Cookie"
    assert "set-cookie" not in answer.headers


async def test_what_does_not_look_at_the_session_does_not_vary_by_it(sessions: Sessions) -> None:
    async with browser(sessions) as http:
        await http.get("/write")
        answer = await http.get("/public")
    assert "vary" not in answer.headers
    assert "set-cookie" not in answer.headers
    assert answer.headers["cache-control"] == "public, max-age=60"


async def test_an_id_that_the_browser_brings_along_is_never_taken_over(sessions: Sessions) -> None:
    """Session fixation: neither one that was made up, nor one that was known before the login."""
    planted = await sessions.create({"planted": 1})
    made_up = "A" * 43

    async def id_after(path: str, cookie: str) -> str:
        async with browser(sessions) as http:
            answer = await http.get(path, headers={"cookie": f"{COOKIE}={cookie}"})
        return answer.headers["set-cookie"].partition("=")[2].partition(";")[0]

    assert await id_after("/write?a=1", made_up) != made_up
    assert await sessions.get(made_up) is None
    known = await id_after("/login?user=ann", planted.id)
    assert known != planted.id
    assert await sessions.get(planted.id) is None
    found = await sessions.get(known)
    assert found is not None
    assert (found.user, found.data) == ("ann", {"planted": 1})


async def test_the_next_user_does_not_inherit_what_the_last_one_did(sessions: Sessions) -> None:
    async with browser(sessions) as http:
        await http.get("/login?user=ann")
        await http.get("/write?cart=anns")
        await http.get("/login?user=bob")
        assert (await http.get("/read")).json() == {"user": "bob", "data": {}}


async def test_a_new_id_ends_the_old_one(sessions: Sessions) -> None:
    async with browser(sessions) as http:
        await http.get("/write?a=1")
        before = http.cookies[COOKIE]
        await http.get("/rotate")

        assert http.cookies[COOKIE] != before
        assert (await http.get("/read")).json()["data"]["a"] == "1"
        assert await sessions.get(before) is None


async def test_a_logout_ends_the_session_and_takes_the_cookie(sessions: Sessions) -> None:
    async with browser(sessions) as http:
        await http.get("/login?user=ann")
        ours = http.cookies[COOKIE]
        answer = await http.get("/logout")

        assert answer.headers["set-cookie"].startswith(f"{COOKIE}=; Max-Age=0; Path=/")
        assert COOKIE not in http.cookies
    assert await sessions.get(ours) is None


async def test_a_revoked_user_is_nobody_from_the_next_request_on(sessions: Sessions) -> None:
    async with browser(sessions) as http:
        await http.get("/login?user=ann")
        await sessions.revoke("ann")
        assert (await http.get("/read")).json() == {"user": None, "data": {}}


@pytest.mark.parametrize("change", ["end", "revoke", "rotate"])
async def test_what_ends_while_a_request_is_on_its_way_is_not_begun_again_by_it(
    sessions: Sessions, change: str
) -> None:
    """And the cookie is left alone: it may be a new one already."""
    begun = await sessions.create({"a": 1}, user="ann")

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        match change:
            case "end":
                await sessions.delete(begun.id)
            case "revoke":
                await sessions.revoke("ann")
            case _:
                await sessions.rotate(begun.id)
        scope["session"]["a"] = 2
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    transport = httpx2.ASGITransport(app=SessionMiddleware(app, sessions=sessions))
    async with httpx2.AsyncClient(transport=transport, base_url="https://x") as http:
        answer = await http.get("/", headers={"cookie": f"{COOKIE}={begun.id}"})

    assert "set-cookie" not in answer.headers
    assert await sessions.get(begun.id) is None


@pytest.mark.parametrize(
    ("lines", "is_found"),
    [
        (["{}"], True),
        (["a=1; {}; b=2"], True),
        (["a=1", "{}"], True),
        (["={}; ;;{}"], True),
        (["{}; {}"], True),
        (["{}; __Host-session=other"], False),
        (["__Host-session=other", "{}"], False),
        (["x{}"], False),
        (['__Host-session=""'], False),
        (["__Host-session"], False),
        (["__Host-session=\xe9\x00"], False),
    ],
)
async def test_of_two_cookies_neither_is_believed(sessions: Sessions, lines: Sequence[str], *, is_found: bool) -> None:
    begun = await sessions.create({"a": 1})
    seen: list[dict[str, Any]] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(dict(scope["session"]))

    headers = [(b"cookie", line.replace("{}", f"{COOKIE}={begun.id}").encode("latin-1")) for line in lines]
    scope = {"type": "http", "headers": headers, "method": "GET"}

    async def nothing(*_: Message) -> Message:
        return {}

    await SessionMiddleware(app, sessions=sessions)(scope, nothing, nothing)  # type: ignore[arg-type]

    assert seen == [{"a": 1} if is_found else {}]
    assert "session" not in scope


async def test_changes_after_the_response_has_begun_are_not_kept(sessions: Sessions) -> None:
    async with browser(sessions) as http:
        await http.get("/write?a=1")
        await http.get("/late")
        assert "late" not in (await http.get("/read")).json()["data"]


def test_a_websocket_has_the_same_session(sessions: Sessions) -> None:
    with TestClient(site(sessions), base_url="https://app.example") as client:
        with client.websocket_connect("wss://app.example/talk") as first:
            assert first.receive_json() == {"seen": 1}
            accepted: Any = first.extra_headers
            cookie = dict(accepted)[b"set-cookie"].partition(b";")[0].decode()
        with client.websocket_connect("wss://app.example/talk", headers={"cookie": cookie}) as second:
            assert second.receive_json() == {"seen": 2}


def test_for_development_without_tls_the_cookie_has_another_name(sessions: Sessions) -> None:
    with TestClient(site(sessions, secure=False), base_url="http://localhost") as client:
        answer = client.get("/write?a=1")
        assert answer.headers["set-cookie"].startswith("session=")
        assert "Secure" not in answer.headers["set-cookie"]
        assert client.get("/read").json()["data"]["a"] == "1"


@pytest.mark.parametrize(
    "options",
    [
        {"cookie": "a b"},
        {"cookie": ""},
        {"cookie": "a=b"},
        {"cookie": "a;b"},
        {"cookie": "__Host-x", "secure": False},
        {"same_site": "none", "secure": False},
        {"same_site": "Lax; Domain=x"},
        {"when_away": "guess"},
    ],
)
def test_what_cannot_work_is_refused(sessions: Sessions, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        SessionMiddleware(site(sessions), sessions=sessions, **options)


async def test_a_session_says_nothing_of_what_it_holds(sessions: Sessions) -> None:
    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        scope["session"]["secret"] = "word"
        assert "word" not in repr(scope["session"])

    async def nothing(*_: Message) -> Message:
        return {}

    await SessionMiddleware(app, sessions=sessions)({"type": "http", "headers": []}, nothing, nothing)  # type: ignore[arg-type]


# --- behind a real server --------------------------------------------------------------------------------------------


async def test_what_depends_on_a_session_is_not_shared_by_the_cache(valkey: Valkey, redis_url: str) -> None:
    """The cache stands in front of the sessions: neither an answer nor a cookie of one browser is another's."""
    cache = NexCache(Settings(redis_url=redis_url, op_timeout_ms=2000))
    policies = [Policy("/{rest:path}", op="all", ttl=60)]
    app = CacheMiddleware(site(cache.sessions()), cache=cache, tenant=tenants.fixed("acme"), policies=policies)
    async with serving(app, cache=cache) as client:
        base = f"http://127.0.0.1:{client.port}"
        users = ("ann", "bob")
        async with httpx2.AsyncClient(base_url=base) as http:
            cookies = {}
            for user in users:
                answer = await http.get("/login", params={"user": user})
                cookies[user] = answer.headers["set-cookie"].partition(";")[0]
                http.cookies.clear()
            assert cookies["ann"] != cookies["bob"]
            again = await http.get("/login", params={"user": "ann"})
            assert again.headers["set-cookie"].partition(";")[0] != cookies["ann"]
            http.cookies.clear()
            for _ in range(2):
                for user in users:
                    assert (await http.get("/read", headers={"cookie": cookies[user]})).json()["user"] == user
                assert (await http.get("/read")).json()["user"] is None
    assert valkey.ask("DBSIZE") >= 4


async def test_while_the_store_is_away_nobody_is_somebody_else(own_valkey: Valkey) -> None:
    cache = NexCache(Settings(redis_url=own_valkey.url, op_timeout_ms=1000))
    async with (
        cache,
        browser(cache.sessions()) as refused,
        browser(cache.sessions(), when_away="anonymous") as anonymous,
        browser(cache.sessions(when_away="memory"), when_away="anonymous") as memory,
    ):
        browsers = (refused, anonymous, memory)
        for http in browsers:
            assert (await http.get("/login?user=ann")).status_code == 200
        own_valkey.kill()

        answer = await refused.get("/read")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.headers["content-type"] == "application/problem+json"
        for http in (anonymous, memory):
            assert (await http.get("/read")).json() == {"user": None, "data": {}}
            assert [(await http.get(f"/{each}")).status_code for each in ("write?a=1", "logout")] == [503, 503]
        assert (await anonymous.get("/login?user=ann")).status_code == 503
        assert all(COOKIE in http.cookies for http in browsers)

        assert (await memory.get("/login?user=bob")).status_code == 200
        assert (await memory.get("/read")).json()["user"] == "bob"

        own_valkey.start()
        for _ in range(100):
            if (await cache.health()).available:
                break
            await asyncio.sleep(0.1)
        assert (await memory.get("/read")).json()["user"] == "bob"


async def test_a_websocket_is_closed_while_its_session_cannot_be_read(own_valkey: Valkey) -> None:
    cache = NexCache(Settings(redis_url=own_valkey.url, op_timeout_ms=1000))
    async with cache:
        begun = await cache.sessions().create()
        own_valkey.kill()
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "websocket.connect"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "websocket", "headers": [(b"cookie", f"{COOKIE}={begun.id}".encode())]}
        await SessionMiddleware(site(cache.sessions()), sessions=cache.sessions())(scope, receive, send)

    assert sent == [{"type": "websocket.close", "code": 1013}]
