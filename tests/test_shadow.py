"""The shadow check: a planted wrong answer is found, told, and taken out of the way; a right one is not doubted."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nexcache import CacheMiddleware, ConfigurationError, NexCache, Policy, Settings, Shadow, tenants
from nexcache.fastapi import cached_route
from nexcache.message import StoredResponse
from nexcache.shadow import Computed, Doubts, alike
from nexcache.telemetry.events import Distrusted, Event, ShadowChecked

JSON = ((b"content-type", b"application/json"),)
TEXT = ((b"content-type", b"text/plain"),)
ALL = Shadow(1, grace=0, after=3, limit=0.3)
"""Every hit is checked."""


def stored(body: bytes, *, status: int = 200, headers: Any = JSON) -> StoredResponse:
    return StoredResponse(status, headers, body, b'"x"', 0.0, 60.0)


@pytest.mark.parametrize(
    ("kept", "body", "ignore", "same"),
    [
        pytest.param(stored(b"a", headers=TEXT), b"a", (), True, id="equal"),
        pytest.param(stored(b"a", headers=TEXT), b"b", (), False, id="another body"),
        pytest.param(stored(b'{"a":1,"b":2}'), b'{"b": 2, "a": 1}', (), True, id="JSON in another order"),
        pytest.param(stored(b'{"a":1}'), b'{"a":2}', (), False, id="another JSON"),
        pytest.param(stored(b'{"x":[{"at":1,"v":2}]}'), b'{"x":[{"at":9,"v":2}]}', ("at",), True, id="ignored member"),
        pytest.param(stored(b'{"x":[{"at":1,"v":2}]}'), b'{"x":[{"at":9,"v":3}]}', ("at",), False, id="another beside"),
        pytest.param(stored(b"{", headers=JSON), b"[", (), False, id="no JSON"),
        pytest.param(stored(b"[" * 9, headers=JSON), b"[" * 90_000, (), False, id="JSON without a bottom"),
    ],
)
def test_answers_are_compared_by_what_they_say(kept: StoredResponse, body: bytes, ignore: Any, same: bool) -> None:
    assert alike(kept, Computed(kept.status, kept.headers, bytearray(body), complete=True), ignore) is same


def test_status_and_media_type_are_part_of_an_answer() -> None:
    assert not alike(stored(b"1"), Computed(404, JSON, bytearray(b"1"), complete=True))
    assert not alike(stored(b"1"), Computed(200, TEXT, bytearray(b"1"), complete=True))


def test_an_operation_is_doubted_after_enough_checks_and_beyond_the_limit_only() -> None:
    doubts = Doubts(Shadow(0.5, after=10, limit=0.1))
    assert [doubts.note(wrong=True) for _ in range(9)] == [False] * 9
    assert doubts.rate is None
    assert doubts.note(wrong=True)
    rare = Doubts(Shadow(0.5, after=10, limit=0.1))
    assert not any(rare.note(wrong=number % 10 == 9) for number in range(100))
    assert rare.rate == pytest.approx(0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": 0},
        {"share": 2},
        {"share": True},
        {"share": 0.1, "limit": -1},
        {"share": 0.1, "after": 0},
        {"share": 0.1, "after": 1000},
        {"share": 0.1, "grace": "soon"},
        {"share": 0.1, "bypass_for": 0},
        {"share": 0.1, "ignore": "generated_at"},
    ],
)
def test_a_check_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="Shadow"):
        Shadow(**wrong)


def test_a_policy_takes_a_shadow_only() -> None:
    with pytest.raises(ConfigurationError, match="shadow takes Shadow"):
        Policy("/", op="x", shadow=0.1)  # type: ignore[arg-type]


async def checked(cache: NexCache) -> None:
    """Wait until the checks under way have ended."""
    for _ in range(2_000):
        if not cache.shadows.running:
            return
        await asyncio.sleep(0.001)
    raise AssertionError("a check does not end")


class Shop:
    """An app whose data may change without anybody being told."""

    def __init__(self, settings: Settings, shadow: Shadow | None = ALL) -> None:
        self.cache = NexCache(settings)
        self.price = 1
        self.calls = 0
        self.fails = False
        self.events: list[Event] = []
        self.during: Callable[[], Any] | None = None
        self.cache.emitter.subscribe(self.events.append, ShadowChecked, Distrusted)
        resolve = tenants.header("x-tenant", trusted=True)
        self.app: Any = Starlette(
            routes=[Route("/price", self.handler, methods=["GET", "POST"])],
            middleware=[
                Middleware(
                    CacheMiddleware,
                    cache=self.cache,
                    tenant=resolve,
                    policies=[Policy("/price", op="price", methods=("GET", "POST"), shadow=shadow)],
                )
            ],
        )

    async def handler(self, request: Request) -> Response:
        del request
        self.calls += 1
        if self.during is not None:
            await self.during()
        return JSONResponse({"price": self.price}, status_code=500 if self.fails else 200)

    async def ask(self, *, method: str = "GET", times: int = 1, content: bytes = b"") -> httpx2.Response:
        transport = httpx2.ASGITransport(app=self.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://shop") as client:
            for _ in range(times - 1):
                await client.request(method, "/price", headers={"x-tenant": "acme"}, content=content)
                await checked(self.cache)
            answer = await client.request(method, "/price", headers={"x-tenant": "acme"}, content=content)
        await checked(self.cache)
        return answer

    def told(self) -> list[bool]:
        return [event.wrong for event in self.events if isinstance(event, ShadowChecked)]


@pytest.fixture(params=["memory", "redis"])
async def shop(request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    made = Shop(Settings(redis_url=url, redis_host=None, op_timeout_ms=1000))
    await made.ask()
    yield made
    await made.cache.aclose()


async def test_right_answers_are_checked_and_not_doubted(shop: Shop) -> None:
    before = shop.calls
    answer = await shop.ask(times=5)

    assert shop.told() == [False] * 5
    assert shop.calls == before + 5
    assert "hit" in answer.headers["cache-status"]
    figures = (await shop.cache.stats("acme")).as_dict()["operations"]
    assert isinstance(figures, dict)
    assert figures["price"]["shadow"] == {"checks": 5, "wrong": 0}
    assert figures["price"]["hits"] == 5  # the checks are nobody's requests
    assert shop.cache.shadows.worst == 0.0


async def test_a_planted_wrong_answer_is_found_told_and_sent_past_the_cache(shop: Shop) -> None:
    shop.price = 2  # and nobody invalidates

    answers = [await shop.ask() for _ in range(3)]
    bypassed = await shop.ask()
    alerts = {alert.rule.name: alert for alert in shop.cache._parts.watch.look()}

    assert [answer.json() for answer in answers] == [{"price": 1}] * 3
    assert shop.told() == [True] * 3
    assert Distrusted("price", 1.0, 300.0) in shop.events
    assert bypassed.json() == {"price": 2}
    assert "detail=distrusted" in bypassed.headers["cache-status"]
    assert alerts["wrong-answers"].firing

    shop.cache.shadows._trust("price")  # what the timer does after `bypass_for`
    await shop.cache.invalidate("acme", "price")
    assert (await shop.ask(times=2)).json() == {"price": 2}
    assert shop.told()[3:] == [False]
    assert shop.cache.shadows.worst is None


async def test_a_change_that_is_invalidated_in_time_is_no_wrong_answer(shop: Shop) -> None:
    async def overtaken() -> None:
        shop.during = None
        shop.price = 2
        await shop.cache.invalidate("acme", "price")

    shop.during = overtaken
    await shop.ask()
    assert shop.told() == []
    assert (await shop.ask()).json() == {"price": 2}


async def test_an_app_that_fails_says_nothing_about_the_stored_answer(shop: Shop) -> None:
    shop.fails = True
    assert (await shop.ask()).status_code == 200
    assert shop.told() == []


async def test_a_check_stores_nothing(shop: Shop) -> None:
    shop.price = 2
    await shop.ask()
    assert (await shop.ask()).json() == {"price": 1}


async def test_requests_with_a_body_are_checked_with_it(shop: Shop) -> None:
    await shop.ask(method="POST", content=b"query")
    await shop.ask(method="POST", content=b"query", times=2)
    assert shop.told() == [False, False]


async def test_nothing_is_checked_unless_a_policy_asks_for_it() -> None:
    shop = Shop(Settings(redis_url=None, redis_host=None), shadow=None)
    await shop.ask(times=5)
    assert (shop.calls, shop.told()) == (1, [])
    await shop.cache.aclose()


async def test_only_the_share_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(Settings(redis_url=None, redis_host=None), shadow=Shadow(0.25, grace=0))
    draws = iter([0.1, 0.3, 0.24, 0.25, 0.9])
    monkeypatch.setattr(shop.cache.shadows, "_draw", lambda: next(draws))
    await shop.ask(times=6)
    assert len(shop.told()) == 2
    await shop.cache.aclose()


async def test_a_cached_route_is_checked_after_its_dependencies() -> None:
    cache = NexCache(Settings(redis_url=None, redis_host=None))
    events: list[Event] = []
    cache.emitter.subscribe(events.append, ShadowChecked)
    app = FastAPI()
    solved = 0
    price = 1

    async def whose() -> str:
        nonlocal solved
        solved += 1
        return "acme"

    @app.get("/price")
    @cached_route(cache, op="price", ttl=60, tenant="tenant", shadow=ALL)
    async def handler(tenant: Annotated[str, Depends(whose)]) -> dict[str, Any]:
        return {"price": price, "tenant": tenant}

    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://shop") as client:
        await client.get("/price")
        answer = await client.get("/price")
        await checked(cache)
        price = 2
        await client.get("/price")
        await checked(cache)
    await cache.aclose()

    assert json.loads(answer.content) == {"price": 1, "tenant": "acme"}
    assert [event.wrong for event in events if isinstance(event, ShadowChecked)] == [False, True]
    assert solved == 5  # three requests and two checks
