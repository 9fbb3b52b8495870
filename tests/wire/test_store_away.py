"""The store dies under traffic, and comes back: nobody notices but the hit ratio."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Receive, Scope, Send
from nexcache.stores.redis import RedisStore
from tests.servers import Valkey
from tests.wire.server import Client, Origin, serving, until


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Valkey]:
    """A server of this test's own."""
    server = Valkey(tmp_path)
    yield server
    server.kill()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise RuntimeError("knows no lifespan")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


async def ask_all(client: Client, rounds: int = 5) -> tuple[int, int]:
    """Ask for ten addresses a few times; returns how many answers were right, and how many were hits."""
    right = hits = 0
    for _ in range(rounds):
        for answer, path in zip(
            await asyncio.gather(*(client.get(f"/{number}") for number in range(10))),
            (f"/{number}" for number in range(10)),
            strict=True,
        ):
            right += (answer.status, answer.body) == (200, path.encode())
            hits += answer.hit
    return right, hits


@pytest.mark.parametrize("l1", [False, True], ids=["redis", "tiered"])
async def test_a_store_that_dies_and_returns_costs_hits_and_never_an_answer(
    mortal: Valkey, http: str, l1: bool
) -> None:
    cache = NexCache(
        Settings(redis_url=SecretStr(mortal.url), op_timeout_ms=500, fallback_ttl_seconds=0, l1_enabled=l1)
    )
    app = CacheMiddleware(echo, cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/{n}", op="n", ttl="1h")])
    async with serving(app, http=http) as client:
        assert (await ask_all(client))[0] == 50
        await until(lambda: cache.flights.running == 0)
        assert await ask_all(client) == (50, 50)
        traffic = asyncio.create_task(ask_all(client, rounds=20))
        await asyncio.sleep(0)
        mortal.kill()
        assert (await traffic)[0] == 200
        store = cache._parts.store
        assert isinstance(store, RedisStore)
        await until(lambda: not store.available)
        assert (await ask_all(client))[0] == 50
        mortal.start()
        async with asyncio.timeout(10):
            while True:
                right, hits = await ask_all(client, rounds=1)
                assert right == 10
                if hits == 10:
                    break
        assert not client.errors
    await cache.aclose()


async def test_what_was_invalidated_while_the_store_was_away_stays_invalidated(mortal: Valkey) -> None:
    """A server that only hung still holds the entry when it answers again."""
    origin = Origin()
    cache = NexCache(Settings(redis_url=SecretStr(mortal.url), op_timeout_ms=500, l1_enabled=False))
    app = CacheMiddleware(origin, cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/", op="n", ttl="1h")])
    async with serving(app) as client:
        await client.get("/")
        await until(lambda: cache.flights.running == 0)
        hit = await client.get("/")
        assert (hit.hit, hit.body) == (True, b"answer 1")
        mortal.pause()
        invalidation = await cache.invalidate("acme", "n")
        assert (invalidation.acknowledged, invalidation.queued) == (False, True)
        assert (await client.get("/")).body != b"answer 1"
        mortal.resume()
        async with asyncio.timeout(10):
            while not (answer := await client.get("/")).cache.endswith("detail=redis"):
                assert answer.body != b"answer 1"
        assert answer.body != b"answer 1"
    await cache.aclose()


async def test_without_the_store_this_process_answers_for_a_while_and_says_so(mortal: Valkey, http: str) -> None:
    cache = NexCache(Settings(redis_url=SecretStr(mortal.url), fallback_ttl_seconds=10))
    app = CacheMiddleware(echo, cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/{n}", op="n", ttl="1h")])
    mortal.kill()
    async with serving(app, http=http, cache=cache) as client:
        miss, hit = await client.get("/1"), await client.get("/1")
        await cache.invalidate("acme", "n")
        after = await client.get("/1")
    assert miss.cache == after.cache == "NexCache; fwd=uri-miss; stored; detail=down"
    assert hit.cache == "NexCache; hit; ttl=10; detail=fallback"
    await cache.aclose()
