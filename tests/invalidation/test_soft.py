"""Answers that are served stale: after a soft invalidation, after their end, and where the app fails; and no longer."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from pydantic import SecretStr

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Receive, Scope, Send
from nexcache.stores import redis as redis_store
from nexcache.stores.base import Reading, new_token
from nexcache.stores.memory import MemoryStore
from nexcache.stores.redis import RedisCommands
from nexcache.stores.tokens import CLOCK, softened, stale_since
from nexcache.telemetry.counts import OperationCounts
from tests.servers import Valkey
from tests.wire.server import Exchange, ask, until


class App:
    """Answers when its gate is open, with a number, or fails."""

    def __init__(self) -> None:
        self.calls = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.status = 200
        self.error: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        number, self.calls = self.calls, self.calls + 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"answer %d" % number})


class Site:
    """Nodes in front of one app, and the clock of their store."""

    def __init__(self, url: str | None, patch: pytest.MonkeyPatch, *, nodes: int = 1, l1: bool = True) -> None:
        self.app = App()
        self.shift = 0.0
        settings = Settings(
            redis_url=SecretStr(url) if url else None, redis_host=None, op_timeout_ms=2000, l1_enabled=l1
        )
        self.caches = [NexCache(settings) for _ in range(nodes)]
        self.options: dict[str, Any] = {"stale_while_revalidate": 30, "early_refresh": False, "jitter": 0}
        store = self.caches[0]._parts.store
        read = redis_store._milliseconds
        if isinstance(store, MemoryStore):
            clock = store._clock
            patch.setattr(store, "_clock", lambda: clock() + self.shift)
            held = self.caches[0].entries._local.memory
            patch.setattr(held, "_clock", lambda: clock() + self.shift)
            patch.setattr(held._entries, "_clock", lambda: clock() + self.shift)
        else:
            patch.setattr(redis_store, "_milliseconds", lambda reply: (read(reply) + int(self.shift * 1000)) % CLOCK)
            self._shift_expiries(patch)
        wall = time.time
        patch.setattr(time, "time", lambda: wall() + self.shift)

    def _shift_expiries(self, patch: pytest.MonkeyPatch) -> None:
        """Have every key expire by the clock that is shifted, from when it was written."""
        read, write = RedisCommands.read, RedisCommands.write
        written: dict[bytes, float] = {}

        async def reading(store: RedisCommands, keys: Sequence[bytes], **options: Any) -> Reading:
            found = await read(store, keys, **options)
            if found.left is None:
                return found
            return found._replace(left=found.left - self.shift + written.get(keys[0], 0.0))

        async def writing(store: RedisCommands, key: bytes, value: bytes, **options: Any) -> None:
            written[key] = self.shift
            await write(store, key, value, **options)

        patch.setattr(RedisCommands, "read", reading)
        patch.setattr(RedisCommands, "write", writing)

    def middleware(self, number: int = 0) -> CacheMiddleware:
        policies = [Policy("/", op="home", ttl=120, **self.options)]
        return CacheMiddleware(self.app, cache=self.caches[number], tenant=tenants.fixed("acme"), policies=policies)

    async def asked(self, number: int = 0) -> tuple[bytes, str]:
        answer = await ask(self.middleware(number))
        return answer.body, answer.cache

    async def settled(self) -> None:
        await until(lambda: not any(cache.refreshes.running or cache.flights.running for cache in self.caches))

    async def soften(self, number: int = 0) -> None:
        done = await self.caches[number].invalidate("acme", "home", soft=True, wait="strict")
        assert done.acknowledged

    @property
    def counts(self) -> OperationCounts:
        return self.caches[0].counts.of("acme", "home")


@pytest.fixture(params=["memory", "valkey", "valkey without L1"])
async def site(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    url = None if request.param == "memory" else request.getfixturevalue("redis_url")
    site = Site(url, monkeypatch, l1=request.param != "valkey without L1")
    yield site
    site.app.gate.set()
    for cache in site.caches:
        await cache.aclose()


async def filled(site: Site) -> None:
    assert (await site.asked())[0] == b"answer 0"
    await site.settled()
    body, status = await site.asked()
    assert body == b"answer 0"
    assert "; hit;" in status


async def test_after_a_soft_invalidation_nobody_waits_while_the_answer_is_computed_anew(site: Site) -> None:
    await filled(site)
    await site.soften()
    site.app.gate.clear()
    for _ in range(3):
        body, status = await site.asked()
        assert body == b"answer 0"
        assert status.endswith("detail=stale")
    await until(lambda: site.app.calls == 2)
    site.app.gate.set()
    await site.settled()
    body, status = await site.asked()
    assert body == b"answer 1"
    assert "stale" not in status
    assert (site.app.calls, site.counts.stale) == (2, 3)


async def test_a_policy_that_does_not_opt_in_knows_no_soft_invalidation(site: Site) -> None:
    site.options["stale_while_revalidate"] = 0
    await filled(site)
    await site.soften()
    assert (await site.asked())[0] == b"answer 1"


async def test_never_beyond_the_bound(site: Site) -> None:
    await filled(site)
    await site.soften()
    site.app.gate.clear()
    site.shift = 15.0
    assert (await site.asked())[0] == b"answer 0"
    site.shift = 31.0
    exchange = Exchange(site.middleware())
    waiting = asyncio.create_task(exchange.run())
    await until(lambda: any(fill.followers for fill in site.caches[0].flights._running) or site.app.calls > 2)
    assert not exchange.messages
    site.app.gate.set()
    await waiting
    assert exchange.answer.body != b"answer 0"


async def test_the_bound_counts_from_the_first_of_several(site: Site) -> None:
    """Of two or more only the last one's time is known: then it counts from the capture, which was earlier."""
    await filled(site)
    site.app.gate.clear()
    await site.soften()
    site.shift = 20.0
    assert (await site.asked())[0] == b"answer 0"
    await site.soften()
    site.shift = 31.0
    exchange = Exchange(site.middleware())
    waiting = asyncio.create_task(exchange.run())
    await until(lambda: any(fill.followers for fill in site.caches[0].flights._running) or site.app.calls > 2)
    site.app.gate.set()
    await waiting
    assert exchange.answer.body != b"answer 0"


@pytest.mark.parametrize("order", ["soft, hard", "hard, soft", "soft, hard, soft"])
async def test_what_was_invalidated_for_good_is_never_served(site: Site, order: str) -> None:
    await filled(site)
    for kind in order.split(", "):
        await site.caches[0].invalidate("acme", "home", soft=kind == "soft", wait="strict")
    assert (await site.asked())[0] == b"answer 1"


async def test_a_computation_that_a_soft_invalidation_overtakes_is_kept_and_stale_from_the_start(site: Site) -> None:
    site.app.gate.clear()
    exchange = Exchange(site.middleware())
    running = asyncio.create_task(exchange.run())
    await until(lambda: site.app.calls == 1)
    await site.soften()
    site.app.gate.set()
    await running
    await site.settled()
    body, status = await site.asked()
    assert body == b"answer 0"
    assert status.endswith("detail=stale")
    await site.settled()
    assert (await site.asked())[0] == b"answer 1"


async def test_after_its_end_an_answer_is_served_while_it_is_computed_anew(site: Site) -> None:
    await filled(site)
    site.shift = 125.0
    body, status = await site.asked()
    assert body == b"answer 0"
    assert "; ttl=-5; detail=stale" in status
    await site.settled()
    assert (await site.asked())[0] == b"answer 1"


async def test_after_its_end_and_the_time_after_that_it_is_not(site: Site) -> None:
    await filled(site)
    site.shift = 151.0
    assert (await site.asked())[0] == b"answer 1"


@pytest.mark.parametrize("failure", ["500", "raises"])
async def test_where_the_app_fails_a_stale_answer_is_sent_instead(site: Site, failure: str) -> None:
    site.options = {"stale_if_error": 60, "early_refresh": False, "jitter": 0}
    await filled(site)
    site.shift = 150.0
    site.app.status, site.app.error = (500, None) if failure == "500" else (200, LookupError("as the test wants it"))
    body, status = await site.asked()
    assert body == b"answer 0"
    assert status.endswith("detail=stale-if-error")
    assert site.counts.stale == 1
    site.app.status, site.app.error = 200, None
    assert (await site.asked())[0] == b"answer 2"


@pytest.mark.parametrize("case", ["too late", "invalidated"])
async def test_where_the_app_fails_and_nothing_may_be_served_the_failure_is_the_answer(site: Site, case: str) -> None:
    site.options = {"stale_if_error": 60, "early_refresh": False, "jitter": 0}
    await filled(site)
    site.shift = 185.0 if case == "too late" else 150.0
    if case == "invalidated":
        await site.caches[0].invalidate("acme", "home", wait="strict")
    site.app.status = 503
    assert (await ask(site.middleware())).status == 503


async def test_another_nodes_memory_hears_of_it(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(redis_url, monkeypatch, nodes=2)
    for number in (0, 1, 1):
        assert (await site.asked(number))[0] == b"answer 0"
    await site.soften(0)
    body, status = await site.asked(1)
    assert body == b"answer 0"
    assert status.endswith("detail=stale")
    await site.settled()
    assert [(await site.asked(number))[0] for number in (0, 1)] == [b"answer 1"] * 2
    for cache in site.caches:
        await cache.aclose()


async def test_a_server_without_memory_removes_instead(own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(own_valkey.url, monkeypatch)
    await filled(site)
    await asyncio.to_thread(own_valkey.ask, "CONFIG", "SET", "maxmemory-policy", "noeviction")
    await asyncio.to_thread(own_valkey.ask, "CONFIG", "SET", "maxmemory", "1")
    await site.soften()
    refused = (await asyncio.to_thread(own_valkey.ask, "INFO", "errorstats")).get("errorstat_OOM", {})
    assert int(refused["count"]) >= 1, "the fault was not seen"
    assert (await site.asked())[0] == b"answer 1"
    await site.caches[0].aclose()


async def test_a_bare_setrange_would_revive_what_was_invalidated(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: on a key that is not there it makes a token of zeros, each time the same."""

    async def bare(self: RedisCommands, keys: Any, **_: Any) -> None:
        now = time.time_ns().to_bytes(8)[3:]
        await self._call("invalidate", [("SETRANGE", key, 16, bytes(3) + now) for key in keys], deadline=None)

    site = Site(redis_url, monkeypatch, l1=False)
    monkeypatch.setattr(RedisCommands, "soften", bare)
    await site.caches[0].invalidate("acme", "home", soft=True)
    await filled(site)  # captured under zeros
    await site.caches[0].invalidate("acme", "home")
    await site.caches[0].invalidate("acme", "home", soft=True)
    assert (await site.asked())[0] == b"answer 0"
    await site.caches[0].aclose()


@pytest.mark.parametrize("count", [0, 1, 255, 256, 65535, 65536, 2**24 - 1])
async def test_the_servers_script_does_what_the_pure_function_does(redis_url: str, count: int) -> None:
    store = NexCache(Settings(redis_url=SecretStr(redis_url), op_timeout_ms=2000))._parts.store
    token = new_token()[:16] + count.to_bytes(3) + bytes(5)
    await store.write(b"nexarch:acme:@op:script", token, ttl_ms=60_000)
    before = (await store.read([b"none"], timed=True)).now
    await store.soften([b"nexarch:acme:@op:script", b"nexarch:acme:@op:absent"])
    reading = await store.read([b"nexarch:acme:@op:script", b"nexarch:acme:@op:absent"], timed=True)
    assert before is not None
    assert reading.now is not None
    found, absent = reading.values
    assert absent is None
    assert found is not None
    at = int.from_bytes(found[19:24])
    assert before <= at <= reading.now
    assert found == softened(token, at)
    assert stale_since(token, found, 7) == at
    await store.aclose()


@pytest.mark.parametrize(
    ("old", "new", "since"),
    [
        pytest.param(lambda token: token, lambda token: softened(token, 50), 50, id="once"),
        pytest.param(lambda token: token, lambda token: softened(softened(token, 50), 60), 7, id="twice"),
        pytest.param(lambda token: softened(token, 5), lambda token: softened(softened(token, 5), 60), 60, id="again"),
        pytest.param(lambda token: token, lambda _: new_token(), None, id="another"),
        pytest.param(lambda token: token + b"e1", lambda token: softened(token, 50) + b"e2", None, id="another epoch"),
        pytest.param(lambda _: b"short", lambda _: b"short", None, id="no token"),
    ],
)
def test_since_when_it_is_stale(
    old: Callable[[bytes], bytes], new: Callable[[bytes], bytes], since: int | None
) -> None:
    token = new_token()
    assert stale_since(old(token), new(token), 7) == since
