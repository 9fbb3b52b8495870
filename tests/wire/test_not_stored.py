"""What is not stored (§5 of the design): the app answers again, and nothing is left behind."""

from collections.abc import Callable

import pytest

from nexcache import CacheMiddleware, NexCache, Policy, tenants
from nexcache.asgi import ASGIApp, Receive, Scope, Send
from tests.wire import broken
from tests.wire.server import Exchange, Origin, ask, serving


def cached(app: ASGIApp, cache: NexCache, **policy: object) -> CacheMiddleware:
    policies = [Policy("/", op="home", **policy)]  # type: ignore[arg-type]
    return CacheMiddleware(app, cache=cache, tenant=tenants.fixed("acme"), policies=policies)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        pytest.param((b"set-cookie", b"session=1"), "set-cookie", id="set-cookie"),
        pytest.param((b"Set-Cookie", b"session=1"), "set-cookie", id="set-cookie in capitals"),
        pytest.param((b"cache-control", b"private"), "private", id="private"),
        pytest.param((b"cache-control", b'max-age=9, PRIVATE="x-name"'), "private", id="private with a field"),
        pytest.param((b"cache-control", b"no-store"), "no-store", id="no-store"),
        pytest.param((b"cache-control", b"public, no-cache"), "no-cache", id="no-cache"),
        pytest.param((b"vary", b"*"), "vary", id="vary by everything"),
        pytest.param((b"vary", b"accept-language"), "vary", id="vary by what is not keyed"),
        pytest.param((b"vary", b"host, X-User"), "vary", id="vary by one that is not keyed"),
        pytest.param((b"content-range", b"bytes 0-1/9"), "partial", id="content-range"),
        pytest.param((b"content-type", b"text/event-stream; charset=utf-8"), "event-stream", id="server-sent events"),
        pytest.param((b"trailer", b"x-sum"), "trailers", id="trailer announced"),
        pytest.param((b"content-length", b"2000000"), "too-large", id="too long by its own word"),
        pytest.param((b"x-split", b"a\r\nset-cookie: b=c"), "header", id="CR LF in a value"),
        pytest.param((b"x-split", b"a\nb"), "header", id="LF in a value"),
        pytest.param((b"x-nul", b"a\0b"), "header", id="NUL in a value"),
        pytest.param((b"x-split\r\nx", b"a"), "header", id="CR LF in a name"),
    ],
)
async def test_such_a_response_is_not_stored(
    cache: NexCache, stored: Callable[[], int], header: tuple[bytes, bytes], reason: str
) -> None:
    origin = Origin(headers=[header])
    app = cached(origin, cache)
    for number in (1, 2, 3):
        answer = await ask(app)
        assert answer.cache == f"NexCache; fwd=uri-miss; detail={reason}"
        assert answer.body == b"answer %d" % number
        assert (header[0].decode(), header[1].decode("latin-1")) in answer.fields
    assert stored() == 0


@pytest.mark.parametrize(("status", "reason"), [(206, "partial"), (201, "status"), (302, "status"), (500, "status")])
async def test_such_a_status_is_not_stored(
    cache: NexCache, stored: Callable[[], int], status: int, reason: str
) -> None:
    origin = Origin(status=status)
    app = cached(origin, cache)
    for _ in range(2):
        answer = await ask(app)
        assert (answer.status, answer.cache) == (status, f"NexCache; fwd=uri-miss; detail={reason}")
    assert (origin.calls, stored()) == (2, 0)


async def test_a_partial_response_stays_one_through_a_server(cache: NexCache, http: str) -> None:
    origin = Origin(status=206, headers=[(b"content-range", b"bytes 0-7/100")])
    async with serving(cached(origin, cache), http=http, cache=cache) as client:
        for number in (1, 2):
            answer = await client.get("/")
            assert (answer.status, answer.get("content-range"), answer.body) == (
                206,
                "bytes 0-7/100",
                b"answer %d" % number,
            )


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_bound_reaches_the_client_whole_and_is_not_stored(
    cache: NexCache, http: str, stored: Callable[[], int], announced: bool
) -> None:
    pieces = [bytes([65 + number]) * 100 for number in range(20)]
    origin = Origin(headers=[(b"content-length", b"2000")] if announced else [], pieces=pieces)
    async with serving(cached(origin, cache, max_body=1999), http=http, cache=cache) as client:
        for _ in range(2):
            assert (await client.get("/")).body == b"".join(pieces)
    assert (origin.calls, stored()) == (2, 0)


async def test_a_body_of_exactly_the_bound_is_stored(cache: NexCache, stored: Callable[[], int]) -> None:
    app = cached(Origin(pieces=[b"x" * 1000, b"x" * 1000]), cache, max_body=2000)
    await ask(app)
    assert ((await ask(app)).hit, stored()) == (True, 1)


async def test_a_body_in_too_many_pieces_is_not_stored(
    cache: NexCache, stored: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexcache.fill._MOST_PIECES", 50)
    app = cached(Origin(pieces=[b"", b"x"] * 30), cache)
    assert (await ask(app)).body == b"x" * 30
    assert stored() == 0


async def test_a_get_with_a_body_is_a_bypass(cache: NexCache, http: str, stored: Callable[[], int]) -> None:
    origin = Origin()
    async with serving(cached(origin, cache), http=http, cache=cache) as client:
        for _ in range(2):
            answer = await client.ask("/", body=b"secret=1")
            assert answer.cache == "NexCache; fwd=bypass; detail=body"
        connection = await client.connect()
        await connection.send(
            b"GET / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        )
        assert (await connection.answer()).cache == "NexCache; fwd=bypass; detail=body"
    assert (origin.calls, stored()) == (3, 0)


@pytest.mark.parametrize("app", broken.ALL)
async def test_what_is_not_whole_or_no_plain_body_passes_as_it_is_and_is_not_stored(
    cache: NexCache, stored: Callable[[], int], app: ASGIApp
) -> None:
    calls = 0

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        calls += 1
        await app(scope, receive, send)

    for number in (1, 2, 3):
        bare, exchange = Exchange(app), Exchange(cached(counted, cache))
        for each in (bare, exchange):
            try:
                await each.run()
            except broken.Trouble:
                assert app is broken.raises
        assert [message["type"] for message in exchange.messages] == [message["type"] for message in bare.messages]
        assert exchange.messages[1:] == bare.messages[1:] or app is broken.two_starts
        assert calls == number
    assert stored() == 0


@pytest.mark.parametrize("app", [broken.raises, broken.returns, broken.too_short, broken.too_long, broken.nothing])
async def test_an_incomplete_answer_is_one_for_the_client_too(cache: NexCache, http: str, app: ASGIApp) -> None:
    """The server gets to see exactly what it would see without the cache."""

    async def seen(site: ASGIApp) -> tuple[bytes, list[type[BaseException]]]:
        async with serving(site, http=http, lifespan="off") as client:
            connection = await client.connect()
            await connection.ask("/", fields=[("connection", "close")])
            raw = await connection.rest()
            return raw.partition(b"\r\n\r\n")[2], [type(error) for error in client.errors if app is not broken.nothing]

    bare, bare_errors = await seen(app)
    for _ in range(2):
        body, errors = await seen(cached(app, cache))
        assert (body, errors) == (bare, bare_errors)
