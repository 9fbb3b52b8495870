"""Policies with a window, in front of an app: which spans reach which answers, in every store."""

import asyncio
import time

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nexcache import (
    CacheMiddleware,
    ConfigurationError,
    IngestHook,
    IngestRule,
    NexCache,
    Policy,
    Query,
    Refresh,
    Settings,
    TimeWindow,
    tenants,
)
from nexcache.ingest.spans import Span
from nexcache.testing import FakeClock
from tests.wire.server import Client, serving

HOUR = 3600


class BackEnd:
    """Counts how often it is asked, and says with which query."""

    def __init__(self, cache: NexCache, window: TimeWindow, rules: list[IngestRule], **options: object) -> None:
        self.asked: list[str] = []
        tenant = tenants.header("x-tenant", trusted=True)
        policies = [
            Policy("/d", op="dashboard", ttl="2m", window=window, jitter=0),
            Policy("/s/{service}", op="service", window=TimeWindow("from", "to", of="service:{service}")),
        ]
        self.hook = IngestHook(cache, rules, min_interval=0, policies=policies, **options)  # type: ignore[arg-type]
        self.app = Starlette(
            routes=[Route("/d", self.answer), Route("/s/{service}", self.answer)],
            middleware=[Middleware(CacheMiddleware, cache=cache, tenant=tenant, policies=policies)],
        )

    async def further(self, asked: int) -> None:
        """Wait until it is asked more often than so many times."""
        while len(self.asked) <= asked:  # noqa: ASYNC110 - it is asked from within a request
            await asyncio.sleep(0.01)

    async def answer(self, request: Request) -> Response:
        self.asked.append(request.url.query)
        return JSONResponse(len(self.asked))


def a_span(at: float, service: str = "cart") -> Span:
    ns = int(at * 1e9)
    return Span("GET /", {}, {"service.name": service}, "shop", {}, 2, 0, ns, ns + 1_000_000)


async def kept(client: Client, path: str) -> None:
    """Ask until the answer is in the store, which takes it after the client has it."""
    async with asyncio.timeout(10):
        while not await hit(client, path):
            pass


RULES = [IngestRule(windows=["spans", "service:{service.name}"])]


async def hit(client: Client, path: str) -> bool:
    answer = await client.get(path, x_tenant="acme")
    assert answer.status == 200
    return "hit" in dict(answer.fields)["cache-status"]


async def test_spans_reach_the_windows_that_cover_them_and_no_others(cache: NexCache, http: str) -> None:
    back_end = BackEnd(cache, TimeWindow("from", "to"), RULES)
    now = time.time()
    closed = f"/d?from={int(now - 43 * HOUR)}&to={int(now - 40 * HOUR)}"
    live = "/d?from=now-1h&to=now"
    cart, pay = (f"/s/{name}?from=now-1h&to=now" for name in ("cart", "pay"))
    async with serving(back_end.app, http=http) as client:
        assert [await hit(client, path) for path in (closed, live, cart, pay) * 2] == [False] * 4 + [True] * 4
        await back_end.hook.notify("acme", [a_span(now)])
        assert [await hit(client, path) for path in (closed, live, cart, pay)] == [True, False, False, True]
        await back_end.hook.notify("globex", [a_span(now - 41 * HOUR)])
        assert [await hit(client, path) for path in (closed, live, cart, pay)] == [True] * 4
        await back_end.hook.notify("acme", [a_span(now - 41 * HOUR)])  # late, and still seen
        assert [await hit(client, path) for path in (closed, live, cart, pay)] == [False, True, True, True]
        # so many times that they are looked at in cells of 8.5 hours
        await back_end.hook.notify("acme", [a_span(now - minute * 60) for minute in range(120)])
        assert [await hit(client, path) for path in (closed, live, cart, pay)] == [True, False, False, True]


async def test_a_closed_window_is_kept_for_hours_and_an_open_one_for_its_ttl(cache: NexCache) -> None:
    back_end = BackEnd(cache, TimeWindow("from", "to", closed_ttl="6h"), RULES)
    now = int(time.time())
    async with serving(back_end.app, http="h11") as client:
        for path, ttl in ((f"/d?from={now - 9 * HOUR}&to={now - 6 * HOUR}", 6 * HOUR), ("/d?from=now-1h&to=now", 120)):
            await kept(client, path)
            status = dict((await client.get(path, x_tenant="acme")).fields)["cache-status"]
            left = int(status.partition("ttl=")[2].partition(";")[0])
            assert ttl - 60 <= left <= ttl


async def test_with_a_step_near_requests_are_one_and_the_handler_is_asked_for_the_range(
    cache: NexCache,
) -> None:
    back_end = BackEnd(cache, TimeWindow("from", "to", step="1m"), RULES)
    async with serving(back_end.app, http="h11") as client:
        assert not await hit(client, "/d?from=1700000003&to=1700003603&x=1")
        await kept(client, "/d?from=1700000003&to=1700003603&x=1")
        assert await hit(client, "/d?from=1700000017&to=1700003599&x=1")
        assert not await hit(client, "/d?from=1700000103&to=1700003603&x=1")
    assert back_end.asked[0] == "from=1699999980&to=1700003640&x=1"


async def test_an_answer_whose_timeline_is_not_named_is_not_kept(cache: NexCache) -> None:
    tenant = tenants.header("x-tenant", trusted=True)
    policy = Policy("/d", op="dashboard", window=TimeWindow("from", "to", of="service:{service}"))
    app = Starlette(
        routes=[Route("/d", BackEnd(cache, TimeWindow("from", "to"), RULES).answer)],
        middleware=[Middleware(CacheMiddleware, cache=cache, tenant=tenant, policies=[policy])],
    )
    async with serving(app, http="h11") as client:
        for _ in range(2):
            assert not await hit(client, "/d?from=now-1h&to=now")
        await kept(client, "/d?service=cart")


async def test_the_hottest_requests_are_stored_again_before_anybody_asks() -> None:
    cache = NexCache(Settings(redis_url=None, redis_host=None))
    back_end = BackEnd(
        cache,
        TimeWindow("from", "to"),
        RULES,
        refresh_as=lambda tenant: {"x-tenant": tenant},
        refresh=Refresh(top=1, per_second=1000),
    )
    hot, cold = "/d?from=now-1h&to=now&hot=1", "/d?from=now-1h&to=now&cold=1"
    async with serving(back_end.app, http="h11") as client:
        await hit(client, cold)
        for _ in range(40):
            await hit(client, hot)
        asked = len(back_end.asked)
        await back_end.hook.notify("acme", [a_span(time.time())])
        async with asyncio.timeout(10):
            await back_end.further(asked)
        assert await hit(client, hot)
        assert not await hit(client, cold)
    assert back_end.asked[asked] == hot.partition("?")[2]


async def test_what_is_kept_back_reaches_the_answers_when_the_interval_has_passed() -> None:
    cache, clock = NexCache(Settings(redis_url=None, redis_host=None)), FakeClock()
    back_end = BackEnd(cache, TimeWindow("from", "to"), RULES)
    hook = IngestHook(cache, RULES, clock=clock)
    live = "/d?from=now-1h&to=now"
    async with serving(back_end.app, http="h11") as client:
        await hook.notify("acme", [a_span(time.time())])
        await hit(client, live)
        await hook.notify("acme", [a_span(time.time())])
        assert await hit(client, live), "the interval has not passed"
        clock.advance(1.0)
        await hook.carry_out()
        assert not await hit(client, live)


async def test_what_is_kept_back_when_the_app_ends_reaches_other_nodes(redis_url: str) -> None:
    """The trailing edge at shutdown: the second node shares nothing but the store."""
    first, second = (NexCache(Settings(redis_url=redis_url, op_timeout_ms=2000)) for _ in range(2))
    hook = IngestHook(first, RULES, min_interval="1h")
    back_end = BackEnd(second, TimeWindow("from", "to"), RULES)
    live = "/d?from=now-1h&to=now"
    async with serving(back_end.app, http="h11") as client:
        async with first:
            await hook.notify("acme", [a_span(time.time())])
            await kept(client, live)
            asked = len(back_end.asked)
            await hook.notify("acme", [a_span(time.time())])
        async with asyncio.timeout(10):
            while await hit(client, live):  # until the first node's message, or its lease
                pass
    assert len(back_end.asked) == asked + 1


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"window": "from"}, "window takes TimeWindow"),
        ({"window": TimeWindow("from", "to"), "query": Query(allow=["from"])}, "the window needs the parameter 'to'"),
        ({"window": TimeWindow("a", "b", of="s:{x"), "query": None}, "a tag's placeholder"),
        ({"window": TimeWindow("a", "b"), "tags": [str(number) for number in range(30)]}, "there is room for"),
    ],
)
def test_a_policy_whose_window_cannot_work_is_refused(arguments: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        Policy("/d", op="d", **arguments)  # type: ignore[arg-type] # that is the test
