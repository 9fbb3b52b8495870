"""The middleware as its app's author meets it: what it refuses to be built from, and what it counts and tells."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware

from nexcache import CacheMiddleware, ConfigurationError, NexCache, Policy, Settings, tenants
from nexcache.asgi import Receive, Scope, Send
from nexcache.telemetry.events import Answered, HookFailed, NotStored
from nexcache.telemetry.names import NotStoredReason, Result
from tests.wire.server import Exchange, Origin, ask


@pytest.fixture
async def cache() -> AsyncIterator[NexCache]:
    cache = NexCache(Settings(redis_url=None, redis_host=None))
    yield cache
    await cache.aclose()


def cached(app: Any, cache: NexCache, **options: Any) -> CacheMiddleware:
    return CacheMiddleware(
        app, **{"cache": cache, "tenant": tenants.fixed("acme"), "policies": [Policy("/", op="home")], **options}
    )


async def test_the_app_may_be_named(cache: NexCache) -> None:
    """Litestar does."""
    assert (await ask(CacheMiddleware(app=Origin(), cache=cache, tenant=tenants.fixed("a")))).status == 200


async def test_starlette_takes_it_with_its_options(cache: NexCache) -> None:
    app = Starlette(middleware=[Middleware(CacheMiddleware, cache=cache, tenant=tenants.fixed("acme"))])
    assert (await ask(app)).status == 404


async def test_one_operation_with_two_lifetimes_is_refused(cache: NexCache) -> None:
    with pytest.raises(ConfigurationError, match="'home' has two policies with different ttl"):
        cached(Origin(), cache, policies=[Policy("/a", op="home", ttl=1), Policy("/b", op="home", ttl=2)])


async def test_one_string_as_credentials_is_refused(cache: NexCache) -> None:
    with pytest.raises(ConfigurationError, match="credentials"):
        cached(Origin(), cache, credentials="authorization")


async def test_every_request_is_counted_once(cache: NexCache) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["query_string"] == b"fail":
            raise LookupError("as the test wants it")
        await Origin()(scope, receive, send)

    site = cached(app, cache)
    told: list[Result] = []
    cache.emitter.subscribe(lambda event: told.append(event.result), Answered)  # type: ignore[union-attr]
    await ask(site)
    await ask(site)
    await ask(site, method="HEAD")
    await ask(site, method="HEAD", query=b"other")
    await ask(site, method="PUT")
    with pytest.raises(LookupError):
        await ask(site, query=b"fail")
    assert told == [Result.MISS, Result.HIT, Result.HIT, Result.MISS, Result.BYPASS, Result.ERROR]
    counts = cache.counts.of("acme", "home")
    numbers = (counts.memory_hits, counts.misses, sum(counts.bypasses.values()), counts.errors, counts.requests)
    assert numbers == (2, 2, 1, 1, 6)


async def test_a_hit_whose_client_has_gone_is_no_error(cache: NexCache) -> None:
    site = cached(Origin(), cache)
    await ask(site)
    exchange = Exchange(site)
    exchange.reading.clear()
    running = asyncio.create_task(exchange.run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    counts = cache.counts.of("acme", "home")
    assert (counts.memory_hits, counts.errors) == (1, 0)


async def test_a_miss_is_told_before_what_the_app_does_in_the_background(cache: NexCache) -> None:
    told: list[object] = []
    cache.emitter.subscribe(told.append, Answered)
    seen: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Origin()(scope, receive, send)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        seen.append(len(told))

    await ask(cached(app, cache))
    assert seen == [1]
    assert len(told) == 1


async def test_a_failing_hook_is_told_without_what_it_said(cache: NexCache) -> None:
    told: list[object] = []
    cache.emitter.subscribe(told.append, HookFailed)

    def tenant(scope: Scope) -> str:
        raise LookupError("secret")

    await ask(cached(Origin(), cache, tenant=tenant))
    assert told == [HookFailed("tenant", "LookupError")]


async def test_why_something_was_not_stored_is_told_once(cache: NexCache) -> None:
    told: list[Any] = []
    cache.emitter.subscribe(told.append, NotStored)
    await ask(cached(Origin(headers=[(b"set-cookie", b"a=b")]), cache))
    assert [(event.operation, event.tenant, event.reason) for event in told] == [
        ("home", "acme", NotStoredReason.SET_COOKIE)
    ]


async def test_hits_of_what_was_warmed_are_counted(cache: NexCache) -> None:
    origin = Origin()
    site = cached(origin, cache)
    await ask(site)
    warmed = await cache.warm("acme", "home")
    assert (warmed.requested, warmed.refreshed, origin.calls) == (1, 1, 2)
    counts = cache.counts.of("acme", "home")
    assert counts.requests == 1  # nobody asked for the warm-up
    assert (await ask(site)).body == b"answer 2"
    assert (counts.requests, counts.memory_hits) == (2, 1)


async def test_what_is_remembered_of_a_request_holds_no_credential(cache: NexCache) -> None:
    site = cached(
        Origin(),
        cache,
        credentials=["x-token"],
        policies=[Policy("/", op="home", vary=["x-token", "accept", "x-api-key"], share_authenticated=True)],
    )
    await ask(site, headers=[(b"x-token", b"secret"), (b"x-api-key", b"secret"), (b"accept", b"a/b")])
    (target,) = cache.recent.of("acme", "home")
    assert target.fields == ((b"host", b"test"), (b"accept", b"a/b"))


async def test_long_bodies_do_not_stay_in_memory_as_part_of_a_key(cache: NexCache) -> None:
    site = cached(Origin(), cache, policies=[Policy("/", op="q", methods=["POST"])])
    body = b"x" * 60_000
    answers = [await ask(site, method="POST", body=body) for _ in range(2)]
    assert [answer.hit for answer in answers] == [False, True]
    memory = cache.entries.first
    assert memory is not None
    assert not any(body in raw for raw in memory._aliases)
