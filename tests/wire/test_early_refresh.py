"""A hit shortly before the end has the answer computed again: in the background, once, as the one who asked."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from nexcache import CacheMiddleware, NexCache, Policy, tenants
from nexcache.asgi import Receive, Scope, Send
from nexcache.refresh import REFRESH, Refreshing
from tests.wire.server import Exchange, ask, until

TTL = 60.0


class Costly:
    """An app whose answer takes time, by the clock that the fill reads, and says who asked."""

    def __init__(self) -> None:
        self.calls: list[dict[bytes, bytes]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.status = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls.append(dict(scope["headers"]))
        number = len(self.calls)
        await asyncio.sleep(0.005)
        await self.gate.wait()
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"answer %d of " % number + scope["method"].encode()})


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let the cache's clock of the day run ahead; what is stored is as it was."""
    real = time.time

    def move(seconds: float) -> None:
        monkeypatch.setattr("nexcache.middleware.time.time", lambda: real() + seconds)

    return move


def site(app: Costly, cache: NexCache, **options: Any) -> CacheMiddleware:
    options = {"ttl": TTL, "jitter": 0, **options}
    who = tenants.header("x-who", trusted=True)
    return CacheMiddleware(
        app, cache=cache, tenant=tenants.fixed("acme"), principal=who, policies=[Policy("/", op="home", **options)]
    )


ALICE = [(b"x-who", b"alice"), (b"authorization", b"Bearer alice")]
BEFORE_THE_END = TTL - 0.004
"""Within one cost of the end, whatever is drawn."""


async def test_a_hit_shortly_before_the_end_is_answered_at_once_and_refreshes_in_the_background(
    cache: NexCache, late: Callable[[float], None]
) -> None:
    app = Costly()
    cached = site(app, cache)
    assert (await ask(cached, headers=ALICE)).body == b"answer 1 of GET"
    await until(lambda: cache.flights.running == 0)
    late(BEFORE_THE_END)
    app.gate.clear()
    for _ in range(20):
        hit = await ask(cached, headers=ALICE)
        assert (hit.hit, hit.body) == (True, b"answer 1 of GET")
    await until(lambda: len(app.calls) == 2)
    assert app.calls[1] == app.calls[0] == {b"host": b"test", **dict(ALICE)}  # who asked, with all that the request had
    late(0)
    app.gate.set()
    await until(lambda: cache.refreshes.running == cache.flights.running == 0)
    assert (await ask(cached, headers=ALICE)).body == b"answer 2 of GET"
    assert len(app.calls) == 2


async def test_hits_before_that_start_nothing(cache: NexCache, late: Callable[[float], None]) -> None:
    app = Costly()
    cached = site(app, cache)
    await ask(cached, headers=ALICE)
    await until(lambda: cache.flights.running == 0)
    late(TTL / 2 - 1)
    for _ in range(20):
        assert (await ask(cached, headers=ALICE)).hit
    assert (len(app.calls), cache.refreshes.running) == (1, 0)
    assert not {"nexcache-refresh", "nexcache-fill"} & {task.get_name() for task in asyncio.all_tasks()}


async def test_a_policy_without_early_refresh_has_none(cache: NexCache, late: Callable[[float], None]) -> None:
    app = Costly()
    cached = site(app, cache, early_refresh=False)
    await ask(cached, headers=ALICE)
    await until(lambda: cache.flights.running == 0)
    late(BEFORE_THE_END)
    for _ in range(5):
        assert (await ask(cached, headers=ALICE)).hit
    assert (len(app.calls), cache.refreshes.running) == (1, 0)


async def test_a_head_refreshes_with_a_get(cache: NexCache, late: Callable[[float], None]) -> None:
    app = Costly()
    cached = site(app, cache)
    await ask(cached, headers=ALICE)
    await until(lambda: cache.flights.running == 0)
    late(BEFORE_THE_END)
    assert (await ask(cached, headers=ALICE, method="HEAD")).hit
    late(0)
    await until(lambda: len(app.calls) == 2 and cache.refreshes.running == 0)
    assert (await ask(cached, headers=ALICE)).body == b"answer 2 of GET"


async def test_a_refresh_that_fails_changes_nothing_and_is_not_repeated_at_every_hit(
    cache: NexCache, late: Callable[[float], None]
) -> None:
    app = Costly()
    cached = site(app, cache)
    await ask(cached, headers=ALICE)
    await until(lambda: cache.flights.running == 0)
    late(BEFORE_THE_END)
    app.status = 503
    for _ in range(20):
        assert (await ask(cached, headers=ALICE)).body == b"answer 1 of GET"
        await until(lambda: cache.refreshes.running == 0)
    assert len(app.calls) == 2


async def test_a_refresh_during_which_the_data_changed_is_not_stored(
    cache: NexCache, late: Callable[[float], None]
) -> None:
    app = Costly()
    cached = site(app, cache)
    await ask(cached, headers=ALICE)
    await until(lambda: cache.flights.running == 0)
    late(BEFORE_THE_END)
    app.gate.clear()
    await ask(cached, headers=ALICE)
    await until(lambda: len(app.calls) == 2)
    await cache.invalidate("acme", "home")
    late(0)
    app.gate.set()
    await until(lambda: cache.refreshes.running == cache.flights.running == 0)
    assert (await ask(cached, headers=ALICE)).body == b"answer 3 of GET"


@pytest.mark.parametrize(("older", "calls"), [(1.0, 1), (0.0, 2)], ids=["stored by another since", "still the same"])
async def test_what_another_node_has_refreshed_is_not_computed_again(cache: NexCache, older: float, calls: int) -> None:
    app = Costly()
    cached = site(app, cache)
    began = time.time()
    await ask(cached, headers=ALICE)
    await until(lambda: cache.flights.running == 0)
    refreshing = Refreshing("acme", replaces=began - older if older else time.time())
    exchange = Exchange(cached, headers=ALICE)
    await cached({**exchange.scope, REFRESH: refreshing}, exchange.receive, exchange.send)
    assert (len(app.calls), refreshing.kept) == (calls, True)
