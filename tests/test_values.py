"""Values under names of one's own: the same answers in memory and in the store, and what happens while it is away."""

import asyncio
import base64
import dataclasses
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from nexcache import ConfigurationError, NexCache, Settings
from nexcache.errors import InvalidName, StoreRefused, StoreUnavailable, ValueUnreadable
from nexcache.testing import FakeClock
from nexcache.value_codec import NotEncodable
from nexcache.values import Expire, Get, Increment, MemoryValues, NotANumber, Put
from tests.servers import Valkey

LONGEST = 2**63 - 1


def in_memory(**more: Any) -> NexCache:
    return NexCache(Settings(redis_url=None, redis_host=None, **more))


def in_store(url: str, **more: Any) -> NexCache:
    return NexCache(Settings(redis_url=url, op_timeout_ms=2000, **more))


@pytest.fixture(params=["memory", "store"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[NexCache]:
    made = in_memory() if request.param == "memory" else in_store(request.getfixturevalue("redis_url"))
    async with made:
        yield made


# --- the same in memory and in the store ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -5, LONGEST, LONGEST + 1, True, None, 1.5, "1", b"1", {"a": [1, (2,)]}, ""])
async def test_a_value_comes_back_as_it_was(cache: NexCache, value: Any) -> None:
    values = cache.tenant("acme")

    await values.set("name", value)
    found = await values.get("name", "nothing")

    assert (type(found), found) == (type(value), value)


async def test_what_is_not_there_is_the_default(cache: NexCache) -> None:
    values = cache.tenant("acme")

    assert await values.get("name") is None
    assert await values.get("name", 5) == 5
    assert not await values.exists("name")
    assert await values.delete("name") == 0
    assert not await values.expire("name", 5)


async def test_a_value_is_added_only_where_there_is_none(cache: NexCache) -> None:
    values = cache.tenant("acme")

    assert [await values.add("name", 1), await values.add("name", 2)] == [True, False]
    assert await values.get("name") == 1
    await values.delete("name")
    assert await values.add("name", [3])
    assert await values.get("name") == [3]


async def test_a_stored_none_is_there(cache: NexCache) -> None:
    values = cache.tenant("acme")
    await values.set("name", None)

    assert await values.exists("name")
    assert await values.get("name", "nothing") is None
    assert await values.get_many(["name", "other"]) == {"name": None}


async def test_values_of_two_tenants_and_of_two_names_are_apart(cache: NexCache) -> None:
    """Names that would run into each other if they were only joined."""
    places = [("a", "b:c"), ("a:b", "c"), ("a", "b%3Ac"), ("A", "b:c"), ("a", "B:c"), ("a", "b:c ")]
    for number, (tenant, name) in enumerate(places):
        await cache.tenant(tenant).set(name, number)

    assert [await cache.tenant(tenant).get(name) for tenant, name in places] == list(range(len(places)))


async def test_increments_are_counted_from_nothing_and_from_a_number_that_was_set(cache: NexCache) -> None:
    values = cache.tenant("acme")
    await values.set("set", 40)

    assert [await values.increment("new"), await values.increment("new", 4), await values.increment("new", -10)] == [
        1, 5, -5,
    ]  # fmt: skip
    assert await values.increment("set", 2) == 42
    assert await values.get("set") == 42


@pytest.mark.parametrize("value", ["1", 1.0, True, None, LONGEST])
async def test_an_increment_of_what_is_no_number_or_would_not_fit_is_an_error_and_changes_nothing(
    cache: NexCache, value: Any
) -> None:
    values = cache.tenant("acme")
    await values.set("name", value)

    with pytest.raises(NotANumber):
        await values.increment("name")
    assert await values.get("name") == value


@pytest.mark.parametrize("by", [1.0, True, "1", LONGEST + 1])
async def test_only_whole_numbers_are_added(cache: NexCache, by: Any) -> None:
    with pytest.raises(TypeError, match="whole numbers"):
        await cache.tenant("acme").increment("name", by)


async def test_many_are_written_and_read_at_once(cache: NexCache) -> None:
    values = cache.tenant("acme")
    await values.set_many({"a": 1, "b": [2], "c": None})

    assert await values.get_many(["c", "b", "b", "nothing"]) == {"c": None, "b": [2]}
    assert await values.delete("a", "b", "nothing") == 2
    assert await values.get_many(["a", "b", "c"]) == {"c": None}
    assert (await values.get_many([]), await values.delete()) == ({}, 0)
    await values.set_many({})


async def test_a_pipeline_answers_in_order_at_its_end(cache: NexCache) -> None:
    values = cache.tenant("acme")
    async with values.pipeline() as pipeline:
        pipeline.set("a", 1)
        first = pipeline.increment("a")
        read = pipeline.get("a")
        there, gone = pipeline.exists("a"), pipeline.delete("a")
        later = pipeline.get("a", "default")
        given = pipeline.expire("a", 5)
        with pytest.raises(RuntimeError, match="block has ended"):
            _ = first.value

    assert (first.value, read.value, there.value, gone.value, later.value, given.value) == (
        2, 2, True, 1, "default", False,
    )  # fmt: skip


async def test_a_pipeline_whose_block_raises_sends_nothing(cache: NexCache) -> None:
    values = cache.tenant("acme")
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with values.pipeline() as pipeline:
            pipeline.set("a", 1)
            _ = 1 / 0

    assert not await values.exists("a")


async def test_a_pipeline_does_the_rest_before_it_raises_for_what_is_no_number(cache: NexCache) -> None:
    values = cache.tenant("acme")
    await values.set("text", "x")
    with pytest.raises(NotANumber):  # noqa: PT012 - the block is what is tested
        async with values.pipeline() as pipeline:
            pipeline.increment("text")
            pipeline.set("after", 1)
            after = pipeline.get("after")

    assert after.value == 1


@pytest.mark.parametrize("name", ["", "x" * 1025, "é" * 513])
async def test_a_name_is_text_of_1_to_1024_bytes(cache: NexCache, name: str) -> None:
    with pytest.raises(InvalidName):
        await cache.tenant("acme").set(name, 1)


@pytest.mark.parametrize("tenant", ["", "a\nb", "x" * 151])
async def test_a_tenant_is_a_tenants_id(cache: NexCache, tenant: str) -> None:
    with pytest.raises(InvalidName):
        cache.tenant(tenant)


@pytest.mark.parametrize("expiry", [0, -1, "soon", float("nan")])
async def test_an_expiry_that_is_none_is_refused(cache: NexCache, expiry: Any) -> None:
    with pytest.raises(ConfigurationError, match="expiry"):
        await cache.tenant("acme").set("name", 1, expiry)


@dataclasses.dataclass
class Client:
    name: str


async def test_classes_come_back_where_they_were_named(cache: NexCache) -> None:
    with pytest.raises(NotEncodable):
        await cache.tenant("acme").set("client", Client("a"))
    await cache.tenant("acme", types=[Client]).set("client", Client("a"))

    assert await cache.tenant("acme", types=[Client]).get("client") == Client("a")
    with pytest.raises(ValueUnreadable, match="not known here"):
        await cache.tenant("acme").get("client")


async def test_no_invalidation_reaches_values(cache: NexCache) -> None:
    await cache.tenant("acme").set("name", 1)

    await cache.invalidate("acme", "*")

    assert await cache.tenant("acme").get("name") == 1


# --- time -------------------------------------------------------------------------------------------------------------


async def test_in_memory_a_value_ends_with_its_expiry_and_an_increment_keeps_it() -> None:
    clock = FakeClock()
    memory = MemoryValues(clock=clock)
    await memory.carry_out([Put(b"a", b"1", 1000), Put(b"b", b"1", None), Increment(b"c", 1, 1000)])
    clock.advance(0.9)
    assert await memory.carry_out([Increment(b"a", 1, 5000), Increment(b"c", 1, 5000)]) == [2, 2]
    clock.advance(0.1)

    assert await memory.carry_out([Get(b"a"), Get(b"b"), Get(b"c")]) == [None, b"1", None]


async def test_in_memory_an_expiry_can_be_given_moved_and_taken_away() -> None:
    clock = FakeClock()
    memory = MemoryValues(clock=clock)
    await memory.carry_out([Put(b"a", b"1", None), Put(b"b", b"1", 1000), Put(b"c", b"1", 1000)])
    assert await memory.carry_out([Expire(b"a", 500), Expire(b"b", None), Expire(b"c", 3000)]) == [1, 1, 1]
    clock.advance(2)

    assert await memory.carry_out([Get(b"a"), Get(b"b"), Get(b"c")]) == [None, b"1", b"1"]


async def test_what_is_longer_is_not_made_shorter_and_what_is_gone_is_not_written_again() -> None:
    clock = FakeClock()
    memory = MemoryValues(clock=clock)
    await memory.carry_out([Put(b"a", b"1", 3000), Put(b"b", b"1", 1000), Put(b"kept", b"1", None)])
    await memory.carry_out([Expire(name, 2000, longer=True) for name in (b"a", b"b", b"kept", b"gone")])
    assert await memory.carry_out([Put(b"a", b"2", 3000, present=True), Put(b"gone", b"2", 3000, present=True)]) == [
        True, False,
    ]  # fmt: skip
    clock.advance(1.5)
    assert await memory.carry_out([Get(b"a"), Get(b"b"), Get(b"kept"), Get(b"gone")]) == [b"2", b"1", b"1", None]
    clock.advance(1)
    assert await memory.carry_out([Get(b"a"), Get(b"b"), Get(b"kept")]) == [b"2", None, b"1"]


async def test_in_memory_what_has_ended_makes_room_before_anything_is_refused() -> None:
    clock = FakeClock()
    memory = MemoryValues(max_bytes=1000, clock=clock)
    await memory.carry_out([Put(b"a", bytes(600), 1000)])
    with pytest.raises(StoreRefused, match="nothing is evicted"):
        await memory.carry_out([Put(b"b", bytes(600), None)])
    assert await memory.carry_out([Get(b"a"), Get(b"b")]) == [bytes(600), None]
    clock.advance(1)

    await memory.carry_out([Put(b"b", bytes(600), None)])

    assert await memory.carry_out([Get(b"b")]) == [bytes(600)]


async def test_in_the_store_a_value_without_expiry_is_kept_and_one_with_it_is_not(
    valkey: Valkey, redis_url: str
) -> None:
    async with in_store(redis_url) as cache:
        values = cache.tenant("acme")
        await values.set("kept", 1)
        await values.set("ends", 1, "2h")
        await values.increment("counter", expiry=60)
        await values.increment("kept", expiry=60)
        await values.increment("ends", expiry=60)

        def left(name: str) -> int:
            return int(valkey.ask("PTTL", f"nexarch.value:acme:{name}"))

        assert 7_190_000 < left("ends") <= 7_200_000
        assert 50_000 < left("counter") <= 60_000
        assert 50_000 < left("kept") <= 60_000
        assert await values.expire("kept", None)
        assert await values.expire("counter", 600)
        assert (left("kept"), left("counter") > 590_000) == (-1, True)
        await values.set("ends", 2)
        assert left("ends") == -1


# --- what the store holds ------------------------------------------------------------------------------------------


async def test_a_value_that_another_wrote_is_refused_under_a_signing_key(valkey: Valkey, redis_url: str) -> None:
    async with in_store(redis_url, signing_keys={"k": "a" * 32}) as cache:
        values = cache.tenant("acme")
        await values.set("a", "true")
        await values.set("b", "other")
        taken = valkey.ask("GET", "nexarch.value:acme:a")

        for forged in (b"\x00" + b"forged" * 20, taken[:-1] + b"x", b"text"):
            valkey.ask("SET", "nexarch.value:acme:b", forged)
            with pytest.raises(ValueUnreadable):
                await values.get("b")
        valkey.ask("SET", "nexarch.value:acme:b", taken)
        with pytest.raises(ValueUnreadable):  # signed, but under another name
            await values.get("b")


async def test_encrypted_values_are_not_in_the_store_as_text_and_only_open_with_the_key(
    valkey: Valkey, redis_url: str
) -> None:
    key = base64.b64encode(b"k" * 32).decode()
    async with in_store(redis_url, encryption_keys={"k": key}) as cache, in_store(redis_url) as without:
        values = cache.tenant("acme", encrypted=True)
        await values.set("secret", "a long sentence that nobody is to read")
        await values.set("count", 5)

        assert await values.get("secret") == "a long sentence that nobody is to read"
        assert await values.increment("count") == 6
        assert b"sentence" not in valkey.ask("GET", "nexarch.value:acme:secret")
        with pytest.raises(ValueUnreadable):
            await without.tenant("acme").get("secret")
        with pytest.raises(ConfigurationError, match="CACHE_ENCRYPTION_KEYS"):
            without.tenant("acme", encrypted=True)


# --- the store is away ---------------------------------------------------------------------------------------------


async def test_while_the_store_is_away_calls_raise(own_valkey: Valkey) -> None:
    async with in_store(own_valkey.url) as cache:
        values = cache.tenant("acme")
        await values.set("name", 1)
        own_valkey.kill()

        for call in (values.get("name"), values.set("name", 2), values.increment("name"), values.exists("name")):
            with pytest.raises(StoreUnavailable):
                await call


async def test_values_in_memory_go_over_to_the_store_when_it_comes(own_valkey: Valkey) -> None:
    """From memory to Redis while running: what was begun goes on, with the rest of its life."""
    own_valkey.kill()
    async with in_store(own_valkey.url) as cache:
        values = cache.tenant("acme", when_away="memory")
        await values.set("session", {"user": 7}, "1h")
        await values.set("kept", "x")
        assert await values.increment("count", 3) == 3
        assert await values.get_many(["session", "kept", "count"]) == {"session": {"user": 7}, "kept": "x", "count": 3}

        own_valkey.start()
        await until_back(cache)

        assert await values.get("session") == {"user": 7}
        assert await values.increment("count") == 4
        assert 3_500_000 < int(own_valkey.ask("PTTL", "nexarch.value:acme:session")) <= 3_600_000
        assert own_valkey.ask("GET", "nexarch.value:acme:count") == b"4"
        await values.set("new", 1)
        assert own_valkey.ask("EXISTS", "nexarch.value:acme:new") == 1
        own_valkey.kill()
        with pytest.raises(StoreUnavailable):
            await cache.tenant("acme").get("session")
        assert await values.get("session") is None  # handed over, and not kept beside the store


async def test_where_the_store_has_a_value_of_the_same_name_it_counts(own_valkey: Valkey) -> None:
    own_valkey.kill()
    async with in_store(own_valkey.url) as cache:
        values = cache.tenant("acme", when_away="memory")
        await values.set("name", "from memory")
        own_valkey.start()
        async with in_store(own_valkey.url) as other:
            await other.tenant("acme").set("name", "from the store")
        await until_back(cache)

        assert await values.get("name") == "from the store"


async def test_an_increment_whose_fate_is_not_known_is_raised_and_never_made_twice(own_valkey: Valkey) -> None:
    async with NexCache(Settings(redis_url=own_valkey.url, op_timeout_ms=300)) as cache:
        values = cache.tenant("acme", when_away="memory")
        assert await values.increment("count") == 1
        own_valkey.pause()
        try:
            with pytest.raises(StoreUnavailable):
                await values.increment("count")
        finally:
            own_valkey.resume()
        await until_back(cache)

        assert await values.get("count") in (1, 2)


async def until_back(cache: NexCache) -> None:
    """Wait until the breaker lets commands through again."""
    for _ in range(100):
        if (await cache.health()).available:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the store is not used again")


# --- atomic --------------------------------------------------------------------------------------------------------

WORKER = """
import asyncio, sys
from nexcache import NexCache, Settings
async def main():
    async with NexCache(Settings(redis_url=sys.argv[1], op_timeout_ms=5000)) as cache:
        values = cache.tenant("acme")
        await asyncio.gather(*(values.increment("count") for _ in range(500)))
asyncio.run(main())
"""


async def test_a_thousand_concurrent_increments_of_two_processes_count_exactly(redis_url: str) -> None:
    workers = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, redis_url, stderr=asyncio.subprocess.PIPE)
        for _ in range(2)
    ]
    for worker in workers:
        _, errors = await worker.communicate()
        assert worker.returncode == 0, errors.decode()

    async with in_store(redis_url) as cache:
        assert await cache.tenant("acme").get("count") == 1000


async def test_a_value_that_is_no_string_in_the_store_is_not_a_number(valkey: Valkey, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.hset("nexarch.value:acme:name", "a", "b")
    async with in_store(redis_url) as cache:
        with pytest.raises(NotANumber):
            await cache.tenant("acme").increment("name")
