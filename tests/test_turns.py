"""A tenant computes so many answers at a time; its other requests wait in their order, and nobody else does."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Receive, Scope, Send
from nexcache.key import CacheKey
from nexcache.turns import Turns
from tests.wire.server import Answer, ask, until


async def test_names_beyond_the_bound_wait_in_their_order() -> None:
    turns = Turns(2)
    first, second = turns.at_once("acme", "a"), turns.at_once("acme", "b")
    assert first is not None
    assert second is not None
    assert turns.at_once("acme", "c") is None

    waiting = [asyncio.create_task(turns.wait("acme", name, 60)) for name in "cde"]
    await asyncio.sleep(0)
    first.give_back()
    first.give_back()  # a second time gives nobody anything
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [True, False, False]
    second.give_back()
    third = await waiting[0]
    assert third is not None
    third.give_back()
    for task in waiting[1:]:
        turn = await task
        assert turn is not None
        turn.give_back()
    assert turns.under_way("acme") == 0
    assert not turns._queues  # nothing is left of a tenant that computes nothing


async def test_those_of_one_name_have_one_place_together() -> None:
    turns = Turns(1)
    first, again = turns.at_once("acme", "a"), turns.at_once("acme", "a")
    assert first is not None
    assert again is not None
    waiting = [asyncio.create_task(turns.wait("acme", "b", 60)) for _ in range(3)]
    await asyncio.sleep(0)
    first.give_back()
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    again.give_back()
    got = await asyncio.gather(*waiting)
    assert [turn is not None for turn in got] == [True] * 3
    assert turns.under_way("acme") == 1


async def test_nobody_waits_for_another_tenant() -> None:
    turns = Turns(1)
    assert turns.at_once("noisy", "a") is not None
    assert turns.at_once("noisy", "b") is None
    assert turns.at_once("quiet", "a") is not None


async def test_a_limit_of_zero_is_none() -> None:
    turns = Turns(0)
    assert all(turns.at_once("acme", number) is not None for number in range(1000))


async def test_who_has_waited_long_enough_goes_on_without_a_place() -> None:
    turns = Turns(1)
    turn = turns.at_once("acme", "a")
    assert turn is not None
    assert await turns.wait("acme", "b", 0.001) is None
    turn.give_back()
    assert turns.under_way("acme") == 0


async def test_who_leaves_while_waiting_holds_no_place() -> None:
    turns = Turns(1)
    turn = turns.at_once("acme", "a")
    assert turn is not None
    before = asyncio.create_task(turns.wait("acme", "b", 60))
    at_the_last_moment = asyncio.create_task(turns.wait("acme", "c", 60))
    await asyncio.sleep(0)
    before.cancel()
    await asyncio.gather(before, return_exceptions=True)
    turn.give_back()
    at_the_last_moment.cancel()
    await asyncio.gather(at_the_last_moment, return_exceptions=True)
    assert turns.under_way("acme") == 0
    assert turns.at_once("acme", "d") is not None


class Busy:
    """An app whose answers wait to be let go, and that counts how many it computes at a time."""

    def __init__(self, **fields: bytes) -> None:
        self.now: dict[bytes, int] = {}
        self.most: dict[bytes, int] = {}
        self.calls = 0
        self.go = asyncio.Event()
        self.headers = [(name.replace("_", "-").encode(), value) for name, value in fields.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        who = dict(scope["headers"])[b"x-tenant"]
        self.calls += 1
        self.now[who] = self.now.get(who, 0) + 1
        self.most[who] = max(self.most.get(who, 0), self.now[who])
        await self.go.wait()
        self.now[who] -= 1
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await send({"type": "http.response.body", "body": scope["query_string"]})


def site(app: Busy, cache: NexCache, **more: str) -> CacheMiddleware:
    tenant = tenants.header("x-tenant", trusted=True)
    return CacheMiddleware(app, cache=cache, tenant=tenant, policies=[Policy("/", op="home", **more)])  # type: ignore[arg-type]


async def turned(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came")


@pytest.fixture
async def cache() -> NexCache:
    return NexCache(Settings(redis_url=None, redis_host=None, tenant_max_fills=3))


def storm(app: CacheMiddleware, tenant: bytes, numbers: range) -> list[asyncio.Task[Answer]]:
    return [asyncio.create_task(ask(app, query=b"%d" % each, headers=[(b"x-tenant", tenant)])) for each in numbers]


async def test_a_noisy_tenant_computes_so_many_at_a_time_and_a_quiet_one_at_once(cache: NexCache) -> None:
    busy = Busy()
    app = site(busy, cache)
    noisy = storm(app, b"noisy", range(50))
    await turned(lambda: busy.now.get(b"noisy") == 3)
    quiet = storm(app, b"quiet", range(3))
    await turned(lambda: busy.now.get(b"quiet") == 3)
    busy.go.set()
    answers = await asyncio.gather(*noisy)
    assert sorted(answer.body for answer in answers) == sorted(b"%d" % number for number in range(50))
    assert (busy.most[b"noisy"], busy.calls) == (3, 53)
    await asyncio.gather(*quiet)
    assert cache.turns.under_way("noisy") == 0
    await cache.aclose()


async def test_waiting_requests_for_one_key_are_one_computation(cache: NexCache) -> None:
    busy = Busy()
    app = site(busy, cache)
    ahead = storm(app, b"noisy", range(3))
    await turned(lambda: busy.now.get(b"noisy") == 3)
    same = [asyncio.create_task(ask(app, query=b"same", headers=[(b"x-tenant", b"noisy")])) for _ in range(20)]
    for _ in range(50):
        await asyncio.sleep(0)
    busy.go.set()
    await asyncio.gather(*ahead, *same)
    assert busy.calls == 4
    await cache.aclose()


async def test_answers_that_cannot_be_shared_are_bounded_too(cache: NexCache) -> None:
    busy = Busy(cache_control=b"private")
    app = site(busy, cache)
    busy.go.set()
    await ask(app, query=b"same", headers=[(b"x-tenant", b"noisy")])  # it is known to be private from here on
    busy.go.clear()
    same = [asyncio.create_task(ask(app, query=b"same", headers=[(b"x-tenant", b"noisy")])) for _ in range(20)]
    await turned(lambda: busy.now.get(b"noisy") == 3)
    for _ in range(50):
        await asyncio.sleep(0)
    busy.go.set()
    await asyncio.gather(*same)
    assert busy.most[b"noisy"] == 3
    assert cache.turns.under_way("noisy") == 0
    await cache.aclose()


async def test_a_cache_is_never_the_reason_that_nothing_is_answered(cache: NexCache) -> None:
    """A handler that asks its own app for more than there are places waits no longer than others wait for a fill."""
    busy = Busy()
    app = site(busy, cache, fill_soft_limit="20ms")
    everybody = storm(app, b"noisy", range(10))
    await turned(lambda: busy.now.get(b"noisy") == 3)
    await until(lambda: busy.now[b"noisy"] == 10)
    busy.go.set()
    await asyncio.gather(*everybody)
    await cache.aclose()


async def test_a_client_that_leaves_while_it_waits_takes_its_place_along(cache: NexCache) -> None:
    busy = Busy()
    app = site(busy, cache)
    ahead = storm(app, b"noisy", range(3))
    await turned(lambda: busy.now.get(b"noisy") == 3)
    leaving = [asyncio.create_task(ask(app, query=b"x=%d" % n, headers=[(b"x-tenant", b"noisy")])) for n in range(5)]
    for _ in range(20):
        await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    busy.go.set()
    await asyncio.gather(*ahead)
    assert busy.calls == 3
    assert cache.turns.under_way("noisy") == 0
    await cache.aclose()


async def test_two_requests_of_one_hash_are_two_computations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while both are under way, when nothing is stored that could be compared."""
    cache = NexCache(Settings(redis_url=None, redis_host=None))
    whole = cache.keys.key

    def one_hash(tenant: str, operation: str, request: bytes, tags: Sequence[str] = ()) -> CacheKey:
        key = whole(tenant, operation, request, tags)
        return key._replace(name=key.name.rpartition(b":")[0] + b":" + b"0" * 32)

    monkeypatch.setattr(cache.keys, "key", one_hash)
    busy = Busy()
    app = site(busy, cache)
    both = storm(app, b"acme", range(2))
    await turned(lambda: busy.calls == 2)
    busy.go.set()
    assert [answer.body for answer in await asyncio.gather(*both)] == [b"0", b"1"]
    await cache.aclose()
