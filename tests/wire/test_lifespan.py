"""The cache starts and ends with the app, whatever the app knows of lifespans."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from nexcache import CacheMiddleware, NexCache, Policy, tenants
from nexcache.asgi import ASGIApp, Message, Receive, Scope, Send
from nexcache.telemetry.events import Started
from tests.wire.server import Origin, StartupFailed, serving


def cached(app: ASGIApp, cache: NexCache) -> CacheMiddleware:
    return CacheMiddleware(app, cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/", op="home")])


@pytest.fixture
def life(memory_cache: NexCache, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened to the cache and to the app, in order."""
    happened: list[str] = []
    start, aclose = memory_cache.start, memory_cache.aclose

    async def starting() -> None:
        happened.append("cache starts")
        await start()

    async def closing() -> None:
        happened.append("cache ends")
        await aclose()

    monkeypatch.setattr(memory_cache, "start", starting)
    monkeypatch.setattr(memory_cache, "aclose", closing)
    return happened


def starlette(happened: list[str], *, fails: str = "") -> Starlette:
    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[dict[str, str]]:
        happened.append("app starts")
        if fails == "startup":
            raise LookupError("as the test wants it")
        yield {"state": "kept"}
        happened.append("app ends")
        if fails == "shutdown":
            raise LookupError("as the test wants it")

    async def home(request: object) -> PlainTextResponse:
        return PlainTextResponse(request.state.state)  # type: ignore[attr-defined]

    return Starlette(routes=[Route("/", home)], lifespan=lifespan)


async def test_the_cache_starts_before_the_app_and_ends_after_it(
    memory_cache: NexCache, life: list[str], http: str
) -> None:
    async with serving(cached(starlette(life), memory_cache), http=http) as client:
        assert [(await client.get("/")).body for _ in range(2)] == [b"kept"] * 2
    assert life == ["cache starts", "app starts", "app ends", "cache ends"]


async def test_a_start_up_that_fails_stays_a_failure(memory_cache: NexCache, life: list[str]) -> None:
    with pytest.raises(StartupFailed):
        async with serving(cached(starlette(life, fails="startup"), memory_cache)):
            pytest.fail("it started")
    assert life == ["cache starts", "app starts", "cache ends"]


async def test_a_shut_down_that_fails_closes_the_cache_and_stays_a_failure(
    memory_cache: NexCache, life: list[str]
) -> None:
    sent = await run_lifespan(cached(starlette(life, fails="shutdown"), memory_cache), raises=LookupError)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.failed"]
    assert life[-1] == "cache ends"


async def _refuses(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise ValueError("Django can only handle ASGI/HTTP connections")
    await Origin()(scope, receive, send)


async def _reads_and_refuses(scope: Scope, receive: Receive, send: Send) -> None:
    message = await receive()
    if message["type"] != "http.request":
        raise ValueError("what is this?")
    await Origin()(scope, receive, send)


async def _returns(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await Origin()(scope, receive, send)


@pytest.mark.parametrize("app", [_refuses, _reads_and_refuses, _returns])
async def test_an_app_without_a_lifespan_gets_one(
    memory_cache: NexCache, life: list[str], http: str, app: ASGIApp
) -> None:
    async with serving(cached(app, memory_cache), http=http) as client:
        assert (await client.get("/")).status == 200
    assert life == ["cache starts", "cache ends"]


async def run_lifespan(app: ASGIApp, *, raises: type[Exception] | None = None) -> list[str]:
    sent: list[str] = []
    messages: list[Message] = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message["type"])

    scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    if raises is None:
        await app(scope, receive, send)
    else:
        with pytest.raises(raises):
            await app(scope, receive, send)
    return sent


async def test_an_app_that_dies_between_its_start_and_its_end_closes_the_cache(
    memory_cache: NexCache, life: list[str]
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        raise LookupError("as the test wants it")

    assert await run_lifespan(cached(app, memory_cache), raises=LookupError) == ["lifespan.startup.complete"]
    assert life == ["cache starts", "cache ends"]


async def test_without_any_lifespan_the_cache_starts_at_the_first_request(cache: NexCache) -> None:
    started: list[object] = []
    cache.emitter.subscribe(started.append, Started)
    app = cached(Origin(), cache)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        answers = await asyncio.gather(*(client.get("/") for _ in range(3)))
        again = await client.get("/")
    assert {each.text for each in answers} == {"answer 1"}
    assert again.headers["cache-status"].startswith("NexCache; hit")
    assert len(started) == 1


async def test_closing_twice_is_harmless_and_use_opens_again(cache: NexCache) -> None:
    app = cached(Origin(), cache)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        await client.get("/")
        await cache.aclose()
        await cache.aclose()
        answer = await client.get("/")
    assert (answer.status_code, answer.text) == (200, "answer 1")


async def test_a_computation_under_way_is_finished_before_the_cache_closes(cache: NexCache) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.02)
        await Origin()(scope, receive, send)

    site = cached(app, cache)
    transport = httpx2.ASGITransport(app=site)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        asking = asyncio.create_task(client.get("/"))
        await asyncio.sleep(0.01)
        await cache.aclose()
        assert (await asking).text == "answer 1"
