"""One computation, whatever the number of those who wait for it, and nobody left waiting when it comes to nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nexcache import CacheMiddleware, NexCache, Policy, tenants
from nexcache.asgi import ASGIApp, Receive, Scope, Send
from nexcache.telemetry.events import Event, NotStored
from tests.servers import Valkey
from tests.wire.server import Exchange, Origin, ask, serving, until

CROWD = 200


def cached(app: ASGIApp, cache: NexCache, **options: Any) -> CacheMiddleware:
    policies = [Policy("/", op="home", **options)]
    return CacheMiddleware(app, cache=cache, tenant=tenants.fixed("acme"), policies=policies)


async def introduce(cache: NexCache, *names: str) -> None:
    """Make tenants known to the store: whoever meets an unknown one prepares its registry, perhaps twice at once."""
    for name in names or ("acme",):
        policies = [Policy("/introduction", op="home")]
        await ask(
            CacheMiddleware(Origin(), cache=cache, tenant=tenants.fixed(name), policies=policies), "/introduction"
        )


class Gated:
    """An app that answers when the test opens its gate, and counts who is inside."""

    def __init__(self, answer: Callable[[int, Send], Awaitable[None]] | None = None) -> None:
        self.calls = 0
        self.inside = 0
        self.gates = [asyncio.Event() for _ in range(CROWD + 1)]
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("knows no lifespan")
        number, self.calls = self.calls, self.calls + 1
        self.inside += 1
        try:
            await self.gates[number].wait()
            if self._answer is not None:
                await self._answer(number, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"answer %d" % number})
        finally:
            self.inside -= 1

    def open(self, *numbers: int) -> None:
        for number in numbers or range(len(self.gates)):
            self.gates[number].set()


def crowd(app: ASGIApp, number: int) -> tuple[list[Exchange], "asyncio.Future[list[object]]"]:
    exchanges = [Exchange(app) for _ in range(number)]
    running = asyncio.gather(*(each.run() for each in exchanges), return_exceptions=True)
    return exchanges, running  # type: ignore[return-value]


async def test_two_hundred_cold_requests_call_the_app_once(cache: NexCache) -> None:
    await introduce(cache)
    app = Gated()
    exchanges, running = crowd(cached(app, cache), CROWD)
    await until(lambda: app.calls == 1)
    app.open()
    await running
    assert app.calls == 1
    assert {each.answer.body for each in exchanges} == {b"answer 0"}
    kinds = sorted(each.answer.cache for each in exchanges)
    assert kinds == ["NexCache; fwd=uri-miss; collapsed"] * (CROWD - 1) + ["NexCache; fwd=uri-miss; stored"]
    assert all(each.answer.get("etag") == exchanges[0].answer.get("etag") for each in exchanges)


async def test_two_hundred_cold_requests_cost_a_handful_of_commands(
    redis_cache: NexCache, redis_server: Valkey
) -> None:
    await introduce(redis_cache)
    redis_server.ask("CONFIG", "RESETSTAT")
    app = Gated()
    app.open()
    _, running = crowd(cached(app, redis_cache), CROWD)
    await running
    calls = redis_server.calls()
    assert app.calls == 1
    assert calls["mget"] <= 4, calls  # a lookup, what captures read, and the look before storing
    assert calls["smismember"] <= 2, calls  # captures: one, or two that crossed
    assert calls["set"] <= 7, calls  # the entry, and three generations per capture


async def test_two_hundred_cold_connections_call_the_app_once(cache: NexCache, http: str) -> None:
    await introduce(cache)
    app = Gated()
    async with serving(cached(app, cache), http=http) as client:
        running = asyncio.gather(*(client.get("/") for _ in range(CROWD)))
        await until(lambda: app.calls == 1)
        app.open()
        answers = await running
    assert app.calls == 1
    assert {(each.status, each.body) for each in answers} == {(200, b"answer 0")}


async def test_an_unknown_tenants_first_requests_are_answered_by_one_computation(cache: NexCache) -> None:
    app = Gated()
    app.open()
    exchanges, running = crowd(cached(app, cache), CROWD)
    await running
    assert app.calls == 1
    assert {each.answer.status for each in exchanges} == {200}


async def test_connections_that_come_one_by_one_cost_one_lookup_each_at_most(
    redis_cache: NexCache, redis_server: Valkey
) -> None:
    await introduce(redis_cache)
    redis_server.ask("CONFIG", "RESETSTAT")
    app = Gated()
    async with serving(cached(app, redis_cache)) as client:
        running = asyncio.gather(*(client.get("/") for _ in range(CROWD)))
        await until(lambda: app.calls == 1)
        app.open()
        await running
    calls = redis_server.calls()
    assert app.calls == 1
    assert calls["mget"] < CROWD / 2, calls
    assert calls["smismember"] < 20, calls


async def test_a_slow_client_holds_up_nobody_who_waits_for_the_same(cache: NexCache) -> None:
    await introduce(cache)
    app = Gated()
    site = cached(app, cache)
    slow = Exchange(site)
    slow.reading.clear()
    leading = asyncio.create_task(slow.run())
    await until(lambda: app.calls == 1)
    exchanges, running = crowd(site, 5)
    await asyncio.sleep(0)
    app.open()
    await running
    assert (app.calls, slow.messages) == (1, [])
    assert {each.answer.body for each in exchanges} == {b"answer 0"}
    await until(lambda: cache.flights.running == 0)
    assert (await ask(site)).hit
    slow.reading.set()
    await leading
    assert slow.answer.body == b"answer 0"


async def test_a_request_after_an_invalidation_never_joins_a_computation_from_before(cache: NexCache) -> None:
    app = Gated()
    site = cached(app, cache)
    before = Exchange(site)
    first = asyncio.create_task(before.run())
    await until(lambda: app.calls == 1)
    await cache.invalidate("acme", "home")
    after = Exchange(site)
    second = asyncio.create_task(after.run())
    await until(lambda: app.calls == 2)
    app.open()
    await asyncio.gather(first, second)
    assert (before.answer.body, after.answer.body) == (b"answer 0", b"answer 1")
    assert (await ask(site)).body == b"answer 1"


@pytest.mark.parametrize("how", ["raises", "answers 503", "stops half-way"])
async def test_when_a_leader_fails_one_takes_over_and_then_each_goes_alone(cache: NexCache, how: str) -> None:
    await introduce(cache)

    async def fail(number: int, send: Send) -> None:
        if number >= 2:
            await Origin(pieces=[b"right"])({"type": "http"}, None, send)  # type: ignore[arg-type]
        elif how == "raises":
            raise LookupError("as the test wants it")
        elif how == "answers 503":
            await Origin(status=503)({"type": "http"}, None, send)  # type: ignore[arg-type]
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ha", "more_body": True})

    app = Gated(fail)
    exchanges, running = crowd(cached(app, cache), 10)
    await until(lambda: app.calls == 1)
    for _ in range(20):
        await asyncio.sleep(0)
    assert app.calls == 1
    app.open(0)
    await until(lambda: app.calls == 2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert app.calls == 2  # one took over, the others wait once more
    app.open(1)
    await until(lambda: app.inside == 8)  # and now all together
    app.open()
    await running
    assert app.calls == 10
    assert sum(b"".join(m.get("body", b"") for m in each.messages) == b"right" for each in exchanges) == 8


async def test_when_a_leaders_client_leaves_its_followers_are_answered(cache: NexCache) -> None:
    await introduce(cache)
    app = Gated()
    site = cached(app, cache)
    leading = asyncio.create_task(Exchange(site).run())
    await until(lambda: app.calls == 1)
    exchanges, running = crowd(site, 5)
    await asyncio.sleep(0.01)
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)
    app.open()
    await running
    assert app.calls == 1
    assert {each.answer.body for each in exchanges} == {b"answer 0"}
    await until(lambda: cache.flights.running == 0)
    assert (await ask(site)).hit


async def test_a_leader_that_leaves_half_way_leaves_nothing_partial(cache: NexCache, stored: Callable[[], int]) -> None:
    half, go = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        half.set()
        await go.wait()
        raise LookupError("as the test wants it")

    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    leading = asyncio.create_task(Exchange(cached(app, cache)).run())
    await half.wait()
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)
    go.set()
    await until(lambda: cache.flights.running == 0)
    assert stored() == 0
    assert [type(error) for error in reported] == [LookupError]  # nobody else could have told


async def test_what_cannot_be_shared_is_computed_by_all_together_and_remembered(cache: NexCache) -> None:
    await introduce(cache)

    async def private(number: int, send: Send) -> None:
        origin = Origin(headers=[(b"cache-control", b"private")], pieces=[b"answer %d" % number])
        await origin({"type": "http"}, None, send)  # type: ignore[arg-type]

    app = Gated(private)
    site = cached(app, cache)
    exchanges, running = crowd(site, 10)
    await until(lambda: app.calls == 1)
    app.open(0)
    await until(lambda: app.inside == 9)
    app.open()
    await running
    assert sorted(each.answer.body for each in exchanges) == [b"answer %d" % number for number in range(10)]
    again = Gated(private)
    _, running = crowd(cached(again, cache), 10)
    await until(lambda: again.inside == 10)  # nobody waits for anybody
    again.open()
    await running


async def test_followers_go_on_at_the_header_fields_of_what_cannot_be_shared(cache: NexCache) -> None:
    """An endless stream is known by its start, and by its start those who wait are let go."""
    await introduce(cache)
    started = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal started
        started += 1
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await asyncio.Event().wait()

    exchanges, running = crowd(cached(app, cache), 5)
    await asyncio.gather(*(each.sent(0) for each in exchanges))
    assert started == 5
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await until(lambda: cache.flights.running == 0)


async def test_an_app_that_never_ends_is_ended_some_time_after_its_client(
    cache: NexCache, stored: Callable[[], int]
) -> None:
    app = Gated()
    site = cached(app, cache, fill_soft_limit=0.02, fill_hard_limit=0.02)
    leading = asyncio.create_task(Exchange(site).run())
    await until(lambda: app.inside == 1)
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)
    await until(lambda: app.inside == 0)
    assert stored() == 0


async def test_nobody_waits_for_ever_for_an_app_that_hangs(cache: NexCache) -> None:
    await introduce(cache)
    app = Gated()
    site = cached(app, cache, fill_soft_limit=0.02)
    leading = asyncio.create_task(Exchange(site).run())
    await until(lambda: app.calls == 1)
    exchanges, running = crowd(site, 3)
    await until(lambda: app.calls > 1)
    app.open(*range(1, 4))
    await running
    assert b"answer 0" not in {each.answer.body for each in exchanges}
    app.open()
    await leading


async def test_what_others_wait_for_no_longer_is_stored_all_the_same(cache: NexCache) -> None:
    await introduce(cache)
    unstored: list[Event] = []
    cache.emitter.subscribe(unstored.append, NotStored)
    app = Gated()
    site = cached(app, cache, fill_soft_limit=0.02)
    leading = asyncio.create_task(Exchange(site).run())
    await until(lambda: app.calls == 1)
    impatient = asyncio.create_task(Exchange(site).run())
    await until(lambda: app.calls == 2)
    app.open(0)
    await leading
    await until(lambda: cache.flights.running == 1)
    app.open()
    await impatient

    assert unstored == []


async def test_two_tenants_never_share_a_computation(cache: NexCache) -> None:
    await introduce(cache, "acme", "globex")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        who = dict(scope["headers"])[b"x-tenant"]
        await asyncio.sleep(0.005)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"of " + who})

    site = CacheMiddleware(
        app, cache=cache, tenant=tenants.header("x-tenant", trusted=True), policies=[Policy("/", op="home")]
    )
    names = [b"acme", b"globex"] * 50
    for hit in (False, True, True):
        answers = await asyncio.gather(*(ask(site, headers=[(b"x-tenant", name)]) for name in names))
        assert [each.body for each in answers] == [b"of " + name for name in names]
        assert {each.hit for each in answers} == {hit}
