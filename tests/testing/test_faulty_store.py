"""A faulty store does as it is told, counts it, and is the store that it stands for in all else."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from nexcache import NexCache, Settings
from nexcache.errors import StoreError, StoreRefused, StoreUnavailable
from nexcache.stores.base import Store
from nexcache.stores.memory import MemoryStore
from nexcache.stores.redis import RedisStore, Target
from nexcache.telemetry.events import Emitter
from nexcache.telemetry.names import Tier
from nexcache.testing import KEY, REGISTRY, TOKENS, FaultyStore, StoreContract
from tests.servers import Valkey


class TestHealthy(StoreContract):
    """Without a fault it is the store."""

    @pytest.fixture
    async def store(self) -> AsyncIterator[Store]:
        store = FaultyStore(MemoryStore())
        yield store
        assert not store.seen
        await store.aclose()

    async def remaining(self, store: Store, key: bytes) -> float:
        inner: MemoryStore = vars(store)["_store"]
        return inner._values.remaining(key)

    async def lose(self, store: Store, registry: bytes) -> None:
        inner: MemoryStore = vars(store)["_store"]
        inner._registries.pop(registry)
        inner._complete.discard(registry)


@pytest.fixture
def store(nexcache_faulty_store: FaultyStore) -> FaultyStore:
    return nexcache_faulty_store


async def test_calls_fail_as_often_as_was_asked_for_and_are_not_carried_out(store: FaultyStore) -> None:
    store.fail("write", times=2)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.write(KEY, b"value", ttl_ms=60_000)
    assert (await store.read([KEY])).values[0] is None
    await store.write(KEY, b"value", ttl_ms=60_000)
    assert store.seen == {"write failed": 2}


async def test_a_call_is_carried_out_and_its_answer_is_lost(store: FaultyStore) -> None:
    await store.write(KEY, b"value", ttl_ms=60_000)
    store.fail("unlink", answer_lost=True, error=lambda: StoreRefused("readonly", "a replica"))
    with pytest.raises(StoreRefused):
        await store.unlink([KEY])
    assert (await store.read([KEY])).values[0] is None
    assert store.seen == {"unlink lost": 1}


async def test_a_call_is_delayed_and_fails_at_its_deadline(store: FaultyStore) -> None:
    store.delay("read", 0.02, times=1)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await store.read([KEY])
    assert loop.time() - began >= 0.02
    store.delay("read", 60)
    with pytest.raises(StoreUnavailable, match="in time"):
        await store.read([KEY], deadline=loop.time() + 0.01)
    assert store.seen == {"read delayed": 2}


async def test_one_bit_of_a_value_is_turned_and_of_nothing_nothing(store: FaultyStore) -> None:
    await store.write(KEY, bytes(100), ttl_ms=60_000)
    store.corrupt()
    assert (await store.read([b"absent"])).values[0] is None
    (value,) = (await store.read([KEY])).values
    assert sum(byte.bit_count() for byte in value) == 1
    assert store.seen == {"read corrupted": 1}
    store.heal()
    assert (await store.read([KEY])).values[0] == bytes(100)


async def test_tokens_are_garbled_too(store: FaultyStore) -> None:
    store.corrupt("capture", times=1)
    first, second = [
        await store.capture(TOKENS, registry=REGISTRY, operation=b"overview", ttl_ms=60_000) for _ in range(2)
    ]
    assert sum(one != other for one, other in zip(first.tokens, second.tokens, strict=True)) == 1


async def test_what_happens_by_chance_follows_from_the_seed() -> None:
    async def failures(seed: int) -> list[bool]:
        store, failed = FaultyStore(MemoryStore(), seed=seed), []
        store.fail("r*", chance=0.3)
        for _ in range(200):
            try:
                await store.read([KEY])
                failed.append(False)
            except StoreError:
                failed.append(True)
        assert store.seen["read failed"] == sum(failed)
        return failed

    one, again, other = [await failures(seed) for seed in (1, 1, 2)]
    assert one == again != other
    assert 30 < sum(one) < 90


async def test_a_cache_whose_store_fails_computes(valkey: Valkey, redis_url: str) -> None:
    """It stands for a store of Redis as well, with all that is beyond the protocol."""
    emitter = Emitter()
    store = FaultyStore(RedisStore(Target(port=valkey.port), emitter=emitter, timeout=2))
    async with NexCache(Settings(redis_url=redis_url, l1_enabled=False, fallback_ttl_seconds=0), store=store) as cache:
        calls = 0

        async def compute() -> int:
            nonlocal calls
            calls += 1
            return calls

        async def ask() -> int:
            return await cache.get_or_compute("acme", "count", ("x",), compute, ttl=60)

        assert [await ask(), await ask()] == [1, 1]
        store.fail("read")
        assert [await ask(), await ask()] == [2, 3]
        assert store.seen["read failed"] >= 2
        store.fail("unlink", times=1)
        assert (await cache.invalidate("acme", "count")).queued
        store.heal()
        assert await ask() == 4
        assert store.tier is Tier.REDIS
