"""The trends of the last hour: of all processes, bounded, and this process's own without a store."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest

from nexcache.errors import StoreUnavailable
from nexcache.key import KeySpace
from nexcache.stores.redis import RedisStore
from nexcache.stores.target import Target
from nexcache.telemetry.events import Emitter
from nexcache.trends import _TENANTS, _WAITING, SLOT, SLOTS, Trends

NOW = 1_800_000_000
MINUTE = 60


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


def target(url: str) -> Target:
    place = urlsplit(url)
    return Target(host=place.hostname or "", port=place.port or 0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def made(redis_url: str, clock: Clock) -> AsyncIterator[Callable[[], tuple[Trends, RedisStore]]]:
    """Make the trends of processes that share one server."""
    async with AsyncExitStack() as stack:

        def make() -> tuple[Trends, RedisStore]:
            store = RedisStore(target(redis_url), emitter=Emitter(), timeout=2.0)
            stack.push_async_callback(store.aclose)
            return Trends(keys=KeySpace(), shared=store, clock=clock), store

        yield make


def alone(clock: Clock) -> Trends:
    return Trends(keys=KeySpace(), shared=None, clock=clock)


async def test_without_a_store_the_slots_are_this_processes_own(clock: Clock) -> None:
    trends = alone(clock)
    trends.note("acme", {"misses": 1, "miss.40": 1})
    clock.now += MINUTE
    trends.note("acme", {"redis_hits": 2})
    trends.note("acme", {"redis_hits": 1})
    await trends.deliver()

    trend = await trends.of("acme")

    assert [(slot.at - NOW, slot.counts.hits, slot.counts.misses) for slot in trend.slots] == [(0, 0, 1), (60, 3, 0)]
    assert trend.slots[0].counts.miss_latency.count == 1
    assert (trend.now, trend.merged) == (NOW + 60, False)


async def test_an_hour_is_kept_and_no_more(clock: Clock) -> None:
    trends = alone(clock)
    for _ in range(3 * SLOTS):
        trends.note("acme", {"misses": 1})
        clock.now += SLOT
    trends.note("acme", {"misses": 1})

    trend = await trends.of("acme")

    assert len(trend.slots) == SLOTS
    assert trend.slots[0].at == NOW + 2 * SLOTS * SLOT + SLOT
    assert trend.slots[-1].at == trend.now
    assert len(trends._own["acme"]) == SLOTS


async def test_a_tenant_that_was_silent_for_an_hour_has_nothing_to_show(clock: Clock) -> None:
    trends = alone(clock)
    trends.note("acme", {"misses": 1})
    clock.now += 3600 + SLOT
    assert not (await trends.of("acme")).slots


async def test_the_process_keeps_the_tenants_that_asked_last(clock: Clock) -> None:
    trends = alone(clock)
    for number in range(_TENANTS + 10):
        trends.note("first", {"misses": 1})
        trends.note(f"t{number}", {"misses": 1})

    assert len(trends._own) == _TENANTS
    assert (await trends.of("first")).slots
    assert not (await trends.of("t0")).slots


def test_the_last_minutes_are_added_up(clock: Clock) -> None:
    trends = alone(clock)
    for _ in range(20):
        trends.note("acme", {"misses": 1, "redis_hits": 3})
        clock.now += SLOT
    clock.now -= SLOT

    trend = trends.of("acme").send  # nothing is waited for without a store
    with pytest.raises(StopIteration) as ended:
        trend(None)

    assert ended.value.value.last(300).misses == 10
    assert ended.value.value.last(3600).hits == 60


async def test_the_slots_of_two_processes_are_added_up(made: Callable[[], tuple[Trends, RedisStore]]) -> None:
    (a, _), (b, _) = made(), made()
    a.note("acme", {"misses": 2, "miss.40": 2})
    b.note("acme", {"misses": 1, "miss.41": 1})
    b.note("globex", {"misses": 50})
    await a.deliver()
    await b.deliver()

    trend = await a.of("acme")

    assert [(slot.counts.misses, slot.counts.miss_latency.count) for slot in trend.slots] == [(3, 3)]
    assert trend.merged


async def test_a_settled_slot_is_read_once_and_the_current_one_each_time(
    made: Callable[[], tuple[Trends, RedisStore]], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    trends, store = made()
    read = 0
    numbers = store.numbers

    async def counted(key: bytes) -> object:
        nonlocal read
        read += 1
        return await numbers(key)

    monkeypatch.setattr(store, "numbers", counted)
    await trends.of("acme")
    first, read = read, 0
    clock.now += 15
    await trends.of("acme")

    assert first == SLOTS
    assert read <= 3
    trends.note("acme", {"misses": 1})
    await trends.deliver()
    assert (await trends.of("acme")).slots[-1].counts.misses == 1


async def test_a_tenants_keys_end_by_themselves_and_take_little(
    made: Callable[[], tuple[Trends, RedisStore]], clock: Clock
) -> None:
    trends, store = made()
    for _ in range(SLOTS):
        trends.note("acme", {"misses": 5, "redis_hits": 20, **{f"hit.{n}": 3 for n in range(12)}})
        await trends.deliver()
        clock.now += SLOT

    names = await store.names(b"nexarch.trend:acme:", most=10_000)
    ttls, _ = await store._call("stats", [("PTTL", key) for key in names.keys], deadline=None)
    sizes, _ = await store._call("stats", [("HLEN", key) for key in names.keys], deadline=None)

    assert len(names.keys) == SLOTS
    assert all(3_600_000 < ttl <= 3_720_000 for ttl in ttls)
    assert set(sizes) == {14}


async def test_what_happens_while_the_store_is_away_is_shown_and_added_later(
    made: Callable[[], tuple[Trends, RedisStore]], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trends, store), (other, _) = made(), made()
    asked = 0

    async def away(*_: object, **__: object) -> None:
        nonlocal asked
        asked += 1
        raise StoreUnavailable("breaker", "away")

    monkeypatch.setattr(store, "_call", away)
    trends.note("acme", {"misses": 1})
    with pytest.raises(StoreUnavailable):
        await trends.deliver()
    trend = await trends.of("acme")
    assert asked, "the fault was not seen to happen"
    assert (trend.merged, trend.slots[0].counts.misses) == (False, 1)
    clock.now += MINUTE
    monkeypatch.undo()
    await trends.deliver()

    assert [(slot.at - NOW, slot.counts.misses) for slot in (await other.of("acme")).slots] == [(0, 1)]


async def test_what_waits_for_the_store_is_bounded(clock: Clock, redis_url: str) -> None:
    store = RedisStore(target(redis_url), emitter=Emitter(), timeout=2.0)
    trends = Trends(keys=KeySpace(), shared=store, clock=clock)
    for number in range(_WAITING + 100):
        trends.note(f"t{number}", {"misses": 1})
    assert len(trends._waiting) == _WAITING
    await store.aclose()
