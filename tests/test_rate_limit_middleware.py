"""Rate limits in front of an app: who is refused, with which words, and what everybody is told."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nexcache import ConfigurationError, NexCache, RateLimitMiddleware, Settings, tenants
from nexcache.rate_limit import RateLimit
from tests.servers import Valkey

KEYS = tenants.api_key(keys={"acme": "key of acme", "globex": "key of globex"})


async def handler(_: Request) -> PlainTextResponse:
    return PlainTextResponse("answer")


def client(
    cache: NexCache, limit: str | RateLimit | Sequence[str | RateLimit] = "2/minute", **options: Any
) -> httpx2.AsyncClient:
    app = Starlette(
        routes=[Route("/{path:path}", handler)],
        middleware=[Middleware(RateLimitMiddleware, cache=cache, limit=limit, tenant=KEYS, **options)],
    )
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=app), base_url="http://api", headers={"x-api-key": "key of acme"}
    )


@pytest.fixture
def cache() -> NexCache:
    return NexCache(Settings(redis_url=None))


async def test_beyond_the_limit_a_request_is_refused_and_told_when_to_come_again(cache: NexCache) -> None:
    async with client(cache) as http:
        answers = [await http.get("/a") for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["ratelimit"] for answer in answers] == [
        '"default";r=1;t=30', '"default";r=0;t=60', '"default";r=0;t=60',
    ]  # fmt: skip
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"default";q=2;w=60'}
    refusal = answers[2]
    assert refusal.headers["retry-after"] == "30"
    assert refusal.headers["content-type"] == "application/problem+json"
    assert refusal.headers["cache-control"] == "no-store"
    assert refusal.json() == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "At most 2 requests in 60 s; try again in 30 s.",
        "violated-policies": ["default"],
    }


async def test_tenants_and_subjects_have_limits_of_their_own(cache: NexCache) -> None:
    async with client(cache, "1/minute", by=tenants.header("x-user", trusted=True)) as http:
        for key, user in (("acme", "1"), ("acme", "2"), ("globex", "1")):
            headers = {"x-api-key": f"key of {key}", "x-user": user}
            assert [(await http.get("/", headers=headers)).status_code for _ in range(2)] == [200, 429]


async def test_who_has_no_tenant_is_limited_by_address(cache: NexCache) -> None:
    """Another wrong key each time does not make another client."""
    async with client(cache, "1/minute") as http:
        statuses = [(await http.get("/", headers={"x-api-key": f"guess {number}"})).status_code for number in range(3)]
        assert statuses == [200, 429, 429]
        assert (await http.get("/")).status_code == 200


async def test_only_the_paths_that_are_named_are_limited(cache: NexCache) -> None:
    async with client(cache, "1/minute", paths=["/api/{rest:path}"]) as http:
        assert [(await http.get("/api/x")).status_code for _ in range(2)] == [200, 429]
        other = await http.get("/other")
    assert other.status_code == 200
    assert "ratelimit" not in other.headers


async def test_of_several_limits_the_first_without_room_decides(cache: NexCache) -> None:
    limits = [cache.rate_limit("10/minute", name="burst"), cache.rate_limit("2/hour", name="hourly")]
    async with client(cache, limits) as http:
        answers = [await http.get("/") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["violated-policies"] == ["hourly"]
    assert answers[2].headers["ratelimit-policy"] == '"burst";q=10;w=60, "hourly";q=2;w=3600'


async def test_a_resolver_that_fails_names_nobody(cache: NexCache) -> None:
    def broken(_: Any) -> str:
        raise RuntimeError

    async with client(cache, "1/minute", by=broken) as http:
        assert [(await http.get("/")).status_code for _ in range(2)] == [200, 429]


async def test_a_head_is_refused_without_a_body(cache: NexCache) -> None:
    async with client(cache, "1/minute") as http:
        await http.get("/")
        refusal = await http.head("/")
    assert refusal.status_code == 429
    assert refusal.content == b""


async def test_what_is_no_request_passes(cache: NexCache) -> None:
    seen: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["type"])

    inner: ASGIApp = app
    limited = RateLimitMiddleware(inner, cache=cache, limit="1/minute", tenant=KEYS)

    async def nothing(*_: Any) -> Any:
        return {}

    for _ in range(3):
        await limited({"type": "websocket"}, nothing, nothing)
    assert seen == ["websocket"] * 3


async def test_two_apps_share_one_limit_in_the_store(redis_url: str) -> None:
    caches = [NexCache(Settings(redis_url=redis_url, op_timeout_ms=1000)) for _ in range(2)]
    first, second = (client(cache, "50/minute") for cache in caches)
    answers = await asyncio.gather(*(each.get("/") for _ in range(50) for each in (first, second)))
    for cache in caches:
        await cache.aclose()

    assert sorted(answer.status_code for answer in answers) == [200] * 50 + [429] * 50


async def test_a_silent_store_delays_no_request_for_long(own_valkey: Valkey) -> None:
    async with (
        NexCache(Settings(redis_url=own_valkey.url, op_timeout_ms=500)) as cache,
        client(cache, "5/minute") as http,
    ):
        await http.get("/")
        own_valkey.pause()
        try:
            statuses = [(await http.get("/")).status_code for _ in range(20)]
        finally:
            own_valkey.resume()
        assert statuses.count(200) == 5, "this process's share of the limit"
        assert not cache._parts.store.available  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit": ()}, "needs a limit"),
        ({"limit": "often"}, "100/minute"),
        ({"limit": "1/s", "paths": "/api"}, "list"),
        ({"limit": "1/s", "paths": ["api"]}, "slash"),
    ],
)
def test_what_cannot_work_is_told_at_once(cache: NexCache, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        RateLimitMiddleware(Starlette(), cache=cache, tenant=KEYS, **options)


def test_two_limits_of_one_name_are_refused(cache: NexCache) -> None:
    limits = [cache.rate_limit("1/s", name="x"), cache.rate_limit("2/s", name="x")]
    with pytest.raises(ConfigurationError, match="one name"):
        RateLimitMiddleware(Starlette(), cache=cache, tenant=KEYS, limit=limits)
