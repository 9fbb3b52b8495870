"""Nothing is held back: first bytes, streams, events, WebSockets, background tasks and errors pass as if uncached."""

import asyncio
import contextvars
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from nexcache import CacheMiddleware, NexCache, Policy, tenants
from nexcache.asgi import ASGIApp, Message, Receive, Scope, Send
from tests.wire.server import Exchange, Origin, ask, serving, until


def cached(app: ASGIApp, cache: NexCache, **options: Any) -> CacheMiddleware:
    policies = [Policy("/", op="home", **options)]
    return CacheMiddleware(app, cache=cache, tenant=tenants.fixed("acme"), policies=policies)


class Slow:
    """Sends each part of its answer when the test says so."""

    def __init__(self, *pieces: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        self.pieces = pieces
        self.headers = headers or []
        self.calls = 0
        self.go = [asyncio.Event() for _ in range(len(pieces) + 1)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("knows no lifespan")
        self.calls += 1
        await self.go[0].wait()
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        for number, piece in enumerate(self.pieces, 1):
            await self.go[number].wait()
            await send({"type": "http.response.body", "body": piece, "more_body": number < len(self.pieces)})


async def test_a_client_has_the_header_fields_before_the_app_has_a_body(cache: NexCache, http: str) -> None:
    app = Slow(b"one", b"two")
    app.go[0].set()
    async with serving(cached(app, cache), http=http) as client:
        connection = await client.connect()
        await connection.ask("/")
        assert (await connection.head()).status == 200  # the app waits: only now is it told to go on
        for number, piece in enumerate((b"one", b"two"), 1):
            app.go[number].set()
            assert await connection.chunk() == piece
        assert await connection.chunk() == b""
        await until(lambda: cache.flights.running == 0)
        hit = await client.get("/")
    assert (hit.hit, hit.body, app.calls) == (True, b"onetwo", 1)


async def test_a_piece_reaches_the_client_before_an_app_that_never_waits_computes_the_next(cache: NexCache) -> None:
    arrived: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(5):
            arrived.append(len(exchange.messages))  # and no awaiting in between
            await send({"type": "http.response.body", "body": b"x", "more_body": number < 4})

    exchange = Exchange(cached(app, cache))
    await exchange.run()
    assert arrived == [0, 2, 3, 4, 5]


async def test_an_endless_event_stream_ends_with_its_client(
    cache: NexCache, http: str, stored: Callable[[], int]
) -> None:
    ended = asyncio.Event()

    async def events() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: x\n\n"
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    async def stream(request: Request) -> Response:
        return StreamingResponse(events(), media_type="text/event-stream")

    async with serving(cached(Starlette(routes=[Route("/", stream)]), cache), http=http) as client:
        connection = await client.connect()
        await connection.ask("/")
        assert (await connection.head()).cache == "NexCache; fwd=uri-miss; detail=event-stream"
        for _ in range(3):
            assert await connection.chunk() == b"data: x\n\n"
        other = await client.connect()  # and it holds up nobody
        await other.ask("/")
        assert (await other.head()).status == 200
        connection.close()
        await asyncio.wait_for(ended.wait(), 5)
    assert stored() == 0


async def test_an_endless_stream_without_a_client_is_told_and_ends(cache: NexCache, http: str) -> None:
    """It could have been stored, so it is given some time to end by itself."""
    ended = asyncio.Event()

    async def lines() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"line\n"
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    async def stream(request: Request) -> Response:
        return StreamingResponse(lines(), media_type="application/x-ndjson")

    site = cached(Starlette(routes=[Route("/", stream)]), cache, fill_soft_limit=0.05, fill_hard_limit=0.05)
    async with serving(site, http=http) as client:
        connection = await client.connect()
        await connection.ask("/")
        await connection.head()
        connection.close()
        await asyncio.wait_for(ended.wait(), 5)
        await until(lambda: cache.flights.running == 0)


async def test_a_stream_that_is_not_stored_is_held_back_by_its_client(cache: NexCache) -> None:
    """Otherwise it would pile up in memory."""
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})
            sent += 1

    exchange = Exchange(cached(app, cache))
    exchange.reading.clear()
    running = asyncio.create_task(exchange.run())
    for _ in range(200):
        await asyncio.sleep(0)
    await until(lambda: sent > 5)
    for _ in range(200):
        await asyncio.sleep(0)
    assert sent < 32
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await until(lambda: cache.flights.running == 0)


async def test_a_large_stream_costs_no_more_memory_than_the_bound(memory_cache: NexCache) -> None:
    piece = b"x" * 65_536

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3200):
            await send({"type": "http.response.body", "body": bytes(bytearray(piece)), "more_body": number < 3199})

    received = 0

    async def send(message: Message) -> None:
        nonlocal received
        received += len(message.get("body", b""))
        await asyncio.sleep(0)

    exchange = Exchange(cached(app, memory_cache))
    tracemalloc.start()
    try:
        await cached(app, memory_cache)(exchange.scope, exchange.receive, send)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert received == 3200 * 65_536
    assert peak < 4 * 1024 * 1024


async def test_a_websocket_passes_untouched(cache: NexCache, http: str) -> None:
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text((await websocket.receive_text()).upper())
        await websocket.close()

    app = cached(Starlette(routes=[WebSocketRoute("/", echo)]), cache)
    async with serving(app, http=http) as client:
        connection = await client.connect()
        fields = [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")]
        await connection.ask("/", fields=[*fields, ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")])
        assert (await connection.head()).status == 101
        await connection.send(b"\x81\x85\0\0\0\0hello")  # a masked text frame
        assert await connection.read(7) == b"\x81\x05HELLO"


async def test_scopes_of_other_kinds_and_their_callables_are_the_apps_own(cache: NexCache) -> None:
    seen: list[tuple[object, ...]] = []

    async def app(*arguments: object) -> None:
        seen.append(arguments)

    async def receive() -> Message:
        return {}

    async def send(message: Message) -> None:
        pass

    for kind in ("websocket", "something-new"):
        scope = {"type": kind, "path": "/"}
        await cached(app, cache)(scope, receive, send)
        assert seen.pop() == (scope, receive, send)


async def test_context_set_outside_is_visible_in_the_app(cache: NexCache) -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who")
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(who.get())
        await Origin()(scope, receive, send)

    site = cached(app, cache)
    who.set("outside")
    await ask(site)
    assert seen == ["outside"]


async def test_a_background_task_runs_and_holds_up_neither_client_nor_followers(cache: NexCache, http: str) -> None:
    go, done, calls = asyncio.Event(), asyncio.Event(), 0

    async def later() -> None:
        await go.wait()
        done.set()

    async def answer(request: Request) -> Response:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.02)
        return PlainTextResponse("here", background=BackgroundTask(later))

    async with serving(cached(Starlette(routes=[Route("/", answer)]), cache), http=http) as client:
        answers = await asyncio.gather(*(client.get("/") for _ in range(5)))
        assert {each.body for each in answers} == {b"here"}
        assert not done.is_set()
        go.set()
        await asyncio.wait_for(done.wait(), 5)
    assert calls == 1


async def test_a_streamed_answer_is_stored_though_the_app_stops_when_its_client_has_it(
    cache: NexCache, http: str
) -> None:
    """Starlette ends a stream as soon as it hears of the end of the exchange."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"a", b"b", b"c"):
            yield piece
            await asyncio.sleep(0)

    async def stream(request: Request) -> Response:
        return StreamingResponse(pieces(), media_type="text/plain")

    app = cached(Starlette(routes=[Route("/", stream)]), cache)
    async with serving(app, http=http, cache=cache) as client:
        for _ in range(10):
            await cache.invalidate("acme", "*")
            assert (await client.get("/")).body == b"abc"
            hit = await client.get("/")
            assert (hit.hit, hit.body) == (True, b"abc")


async def test_a_failing_app_is_answered_by_the_layer_outside(cache: NexCache, http: str) -> None:
    async def fail(request: Request) -> Response:
        raise ZeroDivisionError("as the test wants it")

    middleware = [
        Middleware(CacheMiddleware, cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/", op="home")])
    ]
    app = Starlette(routes=[Route("/", fail)], middleware=middleware)
    async with serving(app, http=http) as client:
        for _ in range(2):
            answer = await client.get("/")
            assert (answer.status, answer.body, answer.all("cache-status")) == (500, b"Internal Server Error", [])
        assert [type(error) for error in client.errors] == [ZeroDivisionError] * 2


@pytest.mark.parametrize("after", [0, 1, 2], ids=["before the start", "after the start", "after a piece"])
async def test_what_the_app_raises_reaches_the_outer_layers_itself(cache: NexCache, after: int) -> None:
    error = LookupError("as the test wants it")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        messages: list[Message] = [
            {"type": "http.response.start", "status": 200, "headers": []},
            {"type": "http.response.body", "body": b"x", "more_body": True},
        ]
        for message in messages[:after]:
            await send(message)
        raise error

    exchange = Exchange(cached(app, cache))
    with pytest.raises(LookupError) as raised:
        await exchange.run()
    assert raised.value is error
    assert len(exchange.messages) == after


async def test_what_a_background_task_raises_reaches_the_outer_layers_and_the_answer_is_stored(
    cache: NexCache,
) -> None:
    origin = Origin()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await origin(scope, receive, send)
        raise LookupError("in the background")

    exchange = Exchange(cached(app, cache))
    with pytest.raises(LookupError):
        await exchange.run()
    assert exchange.answer.body == b"answer 1"
    assert (await ask(cached(app, cache))).hit
