"""The face of a cache: its start-up lines, its master switch, what it refuses."""

import logging

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.errors import InvalidName, NoTenant


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "nexcache"]


async def test_without_a_server_one_line_says_that_entries_are_in_memory(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nexcache")
    cache = NexCache(Settings(redis_url=None, redis_host=None))

    async with cache:
        await cache.start()

    [line] = lines(caplog)
    assert "nexcache.started" in line
    assert "in memory (fallback)" in line


async def test_with_a_server_the_line_names_it_without_the_password(
    caplog: pytest.LogCaptureFixture, redis_url: str
) -> None:
    caplog.set_level(logging.INFO, "nexcache")
    url = redis_url.replace("redis://", "redis://somebody:c4nary-secret@")

    async with NexCache(Settings(redis_url=url)):
        pass

    started = [line for line in lines(caplog) if "nexcache.started" in line]
    assert len(started) == 1
    assert f"Redis {redis_url}" in started[0]
    assert "c4nary-secret" not in caplog.text


async def test_several_workers_without_a_server_are_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "4")

    async with NexCache(Settings(redis_url=None, redis_host=None)):
        pass

    assert any("4 worker processes" in line and "REDIS_URL" in line for line in lines(caplog))


async def test_statistics_are_those_of_the_default_tenant_unless_another_is_named() -> None:
    async with NexCache(Settings(redis_url=None, redis_host=None), default_tenant="acme") as cache:
        assert [(await cache.stats()).tenant, (await cache.stats("globex")).tenant] == ["acme", "globex"]
    async with NexCache(Settings(redis_url=None, redis_host=None)) as cache:
        with pytest.raises(NoTenant):
            await cache.stats()


async def test_the_master_switch_takes_the_cache_out_of_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_ENABLED", "false")
    calls = 0

    async def handler(_: Request) -> Response:
        nonlocal calls
        calls += 1
        return PlainTextResponse("answer")

    cache = NexCache(Settings(redis_url=None, redis_host=None))
    middleware = Middleware(
        CacheMiddleware, cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/", op="page")]
    )
    app = Starlette(routes=[Route("/", handler)], middleware=[middleware])
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://app") as client:
        for _ in range(3):
            answer = await client.get("/")
            assert answer.headers["cache-status"] == "NexCache; fwd=bypass; detail=disabled"
            assert answer.text == "answer"

    assert calls == 3


async def test_an_invalidation_needs_a_target_and_good_names() -> None:
    cache = NexCache(Settings(redis_url=None, redis_host=None))

    with pytest.raises(ValueError, match="needs a target"):
        await cache.invalidate("acme")
    with pytest.raises(InvalidName):
        await cache.invalidate("", "page")
    with pytest.raises(InvalidName):
        await cache.invalidate("acme", "a\nb")
    with pytest.raises(TypeError, match="takes a list"):
        await cache.invalidate("acme", tags="one")
    with pytest.raises(ValueError, match="fast"):
        await cache.invalidate("acme", "page", wait="soon")  # type: ignore[arg-type]
