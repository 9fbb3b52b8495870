"""Sessions: the same in memory, on fakeredis and in the store; who ends them; what happens while the store is away."""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from hashlib import blake2b
from typing import Any

import pytest
from fakeredis import FakeServer
from fakeredis.aioredis import FakeAsyncRedisConnection

from nexcache import ConfigurationError, NexCache, Settings
from nexcache.errors import InvalidName, StoreError, StoreUnavailable, ValueUnreadable
from nexcache.key import KeySpace
from nexcache.sessions import Sessions
from nexcache.stores.codec import Codec
from nexcache.stores.redis import NODES, RedisStore, Target, TrustedEpoch
from nexcache.telemetry.events import Emitter
from nexcache.testing import FakeClock
from nexcache.value_codec import NotEncodable, Types
from nexcache.values import Backend, Delete, MemoryValues, NotAsked, Operation, Put, RedisValues
from tests.servers import Valkey

HOUR = 3600.0


def in_store(url: str, **more: Any) -> NexCache:
    return NexCache(Settings(redis_url=url, op_timeout_ms=2000, **more))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_700_000_000.0)


@pytest.fixture(params=["memory", "fakeredis", "store"])
async def backend(request: pytest.FixtureRequest, clock: FakeClock) -> AsyncIterator[Backend]:
    if request.param == "memory":
        yield MemoryValues(clock=clock)
    elif request.param == "fakeredis":
        server = FakeServer()
        store = RedisStore(
            Target(),
            emitter=Emitter(),
            timeout=1.0,
            epoch=TrustedEpoch(),  # fakeredis has no INFO
            connect=lambda: FakeAsyncRedisConnection(server=server),
        )
        yield RedisValues(store)
        await store.aclose()
    else:
        async with in_store(request.getfixturevalue("redis_url")) as cache:
            yield cache._parts.values


def made(backend: Backend, clock: FakeClock, **options: Any) -> Sessions:
    settings = {"ttl": "1h", "max_age": "1d", "tenant": "acme", "memory": None} | options
    return Sessions(backend=backend, keys=KeySpace(), codec=Codec(), types=Types(), clock=clock, **settings)


@pytest.fixture
def sessions(backend: Backend, clock: FakeClock) -> Sessions:
    return made(backend, clock)


# --- the same everywhere --------------------------------------------------------------------------------------------


async def test_a_session_is_begun_read_changed_and_ended(sessions: Sessions) -> None:
    begun = await sessions.create({"cart": ["a", (1, 2)]})
    assert await sessions.get(begun.id) == begun

    changed = await sessions.update(begun.id, {"cart": []})
    assert changed is not None
    assert (changed.id, changed.data, changed.created_at) == (begun.id, {"cart": []}, begun.created_at)
    assert await sessions.get(begun.id) == changed

    assert [await sessions.delete(begun.id), await sessions.delete(begun.id)] == [True, False]
    assert await sessions.get(begun.id) is None
    assert await sessions.update(begun.id, {"cart": ["x"]}) is None
    assert await sessions.get(begun.id) is None


async def test_ids_are_256_random_bits(sessions: Sessions) -> None:
    ids = {(await sessions.create()).id for _ in range(100)}

    assert len(ids) == 100
    assert {len(base64.urlsafe_b64decode(each + "=")) for each in ids} == {32}


async def test_an_id_that_was_not_given_out_is_no_session_and_never_becomes_one(sessions: Sessions) -> None:
    for guess in ("", "x", "A" * 43, "A" * 44, "é" * 43, "*" * 43, "A" * 42 + "\n", "@user:" + "A" * 37):
        assert await sessions.get(guess) is None
        assert await sessions.update(guess, {"admin": True}) is None
        assert await sessions.rotate(guess, user="eve") is None
        assert not await sessions.delete(guess)
        assert await sessions.get(guess) is None


async def test_an_id_of_one_tenant_is_none_of_another(backend: Backend, clock: FakeClock) -> None:
    begun = await made(backend, clock, tenant="acme").create({"a": 1}, user="ann")
    other = made(backend, clock, tenant="globex")

    assert await other.get(begun.id) is None
    assert not await other.delete(begun.id)
    await other.revoke("ann")
    assert await made(backend, clock, tenant="acme").get(begun.id) == begun


async def test_no_use_prolongs_a_session_beyond_its_age(sessions: Sessions, clock: FakeClock) -> None:
    begun = await sessions.create({"a": 1})
    for _ in range(47):
        clock.advance(HOUR / 2)
        assert await sessions.update(begun.id, {"a": 1}) is not None
    clock.advance(HOUR / 2)

    assert await sessions.get(begun.id) is None
    assert await sessions.save(begun, {"a": 2}) is None
    assert await sessions.get(begun.id) is None


async def test_a_new_id_ends_the_old_one_and_not_the_age(sessions: Sessions, clock: FakeClock) -> None:
    begun = await sessions.create({"cart": 1}, user="ann")
    clock.advance(60)

    rotated = await sessions.rotate(begun.id)

    assert rotated is not None
    assert rotated.id != begun.id
    assert (rotated.data, rotated.user, rotated.ends_at) == ({"cart": 1}, "ann", begun.ends_at)
    assert await sessions.get(rotated.id) == rotated
    assert await sessions.get(begun.id) is None
    assert await sessions.save(begun, {"cart": 2}) is None
    assert await sessions.rotate(begun.id) is None


async def test_a_login_begins_the_age_anew_under_another_id(sessions: Sessions, clock: FakeClock) -> None:
    begun = await sessions.create({"cart": 1})
    clock.advance(60)

    ours = await sessions.rotate(begun.id, user="ann")

    assert ours is not None
    assert (ours.user, ours.data, ours.ends_at) == ("ann", {"cart": 1}, clock.now + 24 * HOUR)
    assert await sessions.get(begun.id) is None


async def test_of_several_new_ids_at_once_one_is_given(sessions: Sessions) -> None:
    begun = await sessions.create({"a": 1}, user="ann")

    rotated = await asyncio.gather(*(sessions.rotate(begun.id) for _ in range(8)))

    assert sum(each is not None for each in rotated) == 1


async def test_revoking_a_user_ends_all_of_the_users_sessions_and_no_others(sessions: Sessions) -> None:
    anns = [await sessions.create(user="ann") for _ in range(3)]
    others = [await sessions.create(user="bob"), await sessions.create()]

    await sessions.revoke("ann")

    assert [await sessions.get(each.id) for each in anns] == [None] * 3
    assert [await sessions.get(each.id) for each in others] == others
    for each in anns:
        assert await sessions.save(each, {"still": "here"}) is None
        assert await sessions.rotate(each.id) is None
    after = await sessions.create(user="ann")
    assert await sessions.get(after.id) == after


async def test_a_session_that_was_read_before_a_revocation_is_not_written_back_to_life(sessions: Sessions) -> None:
    begun = await sessions.create(user="ann")
    await sessions.revoke("ann")

    await sessions.save(begun, {"a": 1})

    assert await sessions.get(begun.id) is None


async def test_where_the_users_token_was_lost_the_users_sessions_have_ended(
    backend: Backend, sessions: Sessions
) -> None:
    """A store that evicts must not bring a revoked session back."""
    begun = await sessions.create(user="ann")
    await backend.carry_out([Delete(KeySpace().session_user("acme", "ann"))])

    assert await sessions.get(begun.id) is None


@pytest.mark.parametrize("user", ["", "x" * 1025])
async def test_a_user_is_text(sessions: Sessions, user: str) -> None:
    with pytest.raises(InvalidName):
        await sessions.create(user=user)
    with pytest.raises(InvalidName):
        await sessions.revoke(user)


async def test_data_that_would_not_come_back_is_refused(sessions: Sessions) -> None:
    begun = await sessions.create({"a": 1})
    with pytest.raises(NotEncodable):
        await sessions.create({"a": object()})
    with pytest.raises(NotEncodable):
        await sessions.update(begun.id, {"a": object()})
    assert await sessions.get(begun.id) == begun


@pytest.mark.parametrize("options", [{"ttl": 0}, {"ttl": "2h", "max_age": "1h"}, {"ttl": -1}, {"ttl": "soon"}])
def test_lifetimes_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        NexCache(Settings(redis_url=None)).sessions(**options)


async def test_a_session_says_nothing_of_its_id_and_its_data(sessions: Sessions) -> None:
    begun = await sessions.create({"secret": "word"}, user="ann")
    assert begun.id not in repr(begun)
    assert "word" not in repr(begun)


# --- how long --------------------------------------------------------------------------------------------------------


async def test_in_memory_a_session_ends_an_hour_after_its_last_use(clock: FakeClock) -> None:
    sessions = made(MemoryValues(clock=clock), clock)
    used, unused = await sessions.create(user="ann"), await sessions.create()
    clock.advance(HOUR - 1)
    assert await sessions.get(used.id) is not None
    clock.advance(1)

    assert await sessions.get(unused.id) is None
    assert await sessions.get(used.id) is not None
    clock.advance(HOUR)
    assert await sessions.get(used.id) is None


async def test_in_the_store_each_use_gives_the_whole_time_again(
    valkey: Valkey, redis_url: str, clock: FakeClock
) -> None:
    async with in_store(redis_url) as cache:
        sessions = made(cache._parts.values, clock)
        begun = await sessions.create()
        key = KeySpace().session("acme", begun.id)

        async def left_after(use: Any) -> int:
            valkey.ask("PEXPIRE", key, "1000")
            assert await use is not None
            return int(valkey.ask("PTTL", key))

        assert 3_590_000 < int(valkey.ask("PTTL", key)) <= 3_600_000
        assert 3_590_000 < await left_after(sessions.get(begun.id)) <= 3_600_000
        assert 3_590_000 < await left_after(sessions.update(begun.id, {"a": 1})) <= 3_600_000
        clock.advance(24 * HOUR - 60)
        assert await left_after(sessions.update(begun.id, {"a": 1})) <= 60_000


async def test_a_users_token_is_kept_as_long_as_any_session_of_the_user(
    valkey: Valkey, redis_url: str, clock: FakeClock
) -> None:
    async with in_store(redis_url) as cache:
        await made(cache._parts.values, clock, max_age="7d").create(user="ann")
        await made(cache._parts.values, clock, max_age="1h").create(user="ann")

        left = int(valkey.ask("PTTL", KeySpace().session_user("acme", "ann")))

        assert left > 7 * 24 * HOUR * 1000


# --- what the store holds --------------------------------------------------------------------------------------------


async def test_neither_id_nor_user_is_in_a_key_and_all_keys_end(valkey: Valkey, redis_url: str) -> None:
    async with in_store(redis_url) as cache:
        begun = await cache.sessions(tenant="acme").create({"a": 1}, user="ann")

        names = {name.decode() for name in valkey.ask("KEYS", "*")} - {NODES.decode()}

        hashed = blake2b(begun.id.encode(), digest_size=32, person=b"nexcache-session").hexdigest()
        assert f"nexarch.session:acme:{hashed}" in names
        assert all(name.startswith("nexarch.session:acme:") for name in names)
        assert len(names) == 2
        for name in names:
            assert "ann" not in name
            assert begun.id not in name
            assert begun.id.encode() not in valkey.ask("GET", name)
            assert int(valkey.ask("PTTL", name)) > 0


async def test_no_invalidation_reaches_a_session(valkey: Valkey, redis_url: str) -> None:
    async with in_store(redis_url) as cache:
        sessions = cache.sessions(tenant="acme")
        begun = await sessions.create({"a": 1}, user="ann")
        before = {name: valkey.ask("GET", name) for name in valkey.ask("KEYS", "nexarch.session:*")}

        await cache.invalidate("acme", "*", wait="strict")
        await cache.invalidate("acme", "session*", tags=["ann"])

        assert {name: valkey.ask("GET", name) for name in before} == before
        assert await sessions.get(begun.id) == begun


async def test_a_session_that_another_wrote_is_refused_under_a_signing_key(valkey: Valkey, redis_url: str) -> None:
    async with in_store(redis_url, signing_keys={"k": "a" * 32}) as cache:
        sessions = cache.sessions(tenant="acme")
        ours, other = await sessions.create({"admin": True}), await sessions.create()
        key = [cache.keys.session("acme", each.id) for each in (ours, other)]
        taken = valkey.ask("GET", key[0])

        for forged in (b"forged" * 20, taken[:-1] + b"x", b"", taken):  # the last: signed, but another's
            valkey.ask("SET", key[1], forged)
            with pytest.raises(ValueUnreadable):
                await sessions.get(other.id)


async def test_encrypted_sessions_are_not_in_the_store_as_text(valkey: Valkey, redis_url: str) -> None:
    key = base64.b64encode(b"k" * 32).decode()
    async with in_store(redis_url, encryption_keys={"k": key}) as cache, in_store(redis_url) as without:
        sessions = cache.sessions(tenant="acme", encrypted=True)
        begun = await sessions.create({"secret": "a long sentence"}, user="ann")

        assert await sessions.get(begun.id) == begun
        for name in valkey.ask("KEYS", "nexarch.session:*"):
            assert b"sentence" not in valkey.ask("GET", name)
        with pytest.raises(ValueUnreadable):
            await without.sessions(tenant="acme").get(begun.id)
        with pytest.raises(ConfigurationError, match="CACHE_ENCRYPTION_KEYS"):
            without.sessions(tenant="acme", encrypted=True)


# --- the store is away ------------------------------------------------------------------------------------------------


async def until_back(*caches: NexCache) -> None:
    """Wait until the breakers let commands through again."""
    for cache in caches:
        for _ in range(100):
            if (await cache.health()).available:
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("the store is not used again")


@pytest.mark.parametrize("when_away", ["raise", "memory"])
async def test_while_the_store_is_away_nothing_of_it_is_guessed_and_no_end_is_pretended(
    own_valkey: Valkey, when_away: Any
) -> None:
    async with in_store(own_valkey.url) as cache:
        sessions = cache.sessions(when_away=when_away)
        begun = await sessions.create(user="ann")
        own_valkey.kill()

        for call in (
            sessions.get(begun.id),
            sessions.update(begun.id, {}),
            sessions.save(begun, {}),
            sessions.rotate(begun.id),
            sessions.delete(begun.id),
            sessions.revoke("ann"),
        ):
            with pytest.raises(StoreUnavailable):
                await call


async def test_sessions_in_memory_go_over_to_the_store_when_it_comes(own_valkey: Valkey) -> None:
    """From memory to Redis while running: those that were begun go on, with the rest of their lives."""
    own_valkey.kill()
    async with in_store(own_valkey.url) as cache, in_store(own_valkey.url) as replica:
        sessions = cache.sessions(when_away="memory")
        begun = [await sessions.create({"n": n}, user=user) for n, user in enumerate(("ann", "ann", None))]
        for n, each in enumerate(begun):
            assert await sessions.update(each.id, {"n": n + 10}) is not None
        rotated = await sessions.rotate(begun[2].id)
        assert rotated is not None
        ended = await sessions.create()
        assert await sessions.delete(ended.id)
        gone = [ended.id, begun[2].id]
        begun[2] = rotated

        own_valkey.start()
        await until_back(cache, replica)
        assert own_valkey.ask("DBSIZE") == 0
        assert [await sessions.get(each) for each in gone] == [None, None]

        for n, each in enumerate(begun):
            found = await sessions.get(each.id)
            assert found is not None
            assert (found.data, found.user, found.ends_at) == ({"n": n + 10}, each.user, each.ends_at)
            assert await replica.sessions().get(each.id) == found
        assert len(cache._parts.memory_values) == 0
        new = await sessions.create({"new": 1})
        assert await replica.sessions().get(new.id) == new
        await sessions.revoke("ann")
        assert await replica.sessions().get(begun[0].id) is None


async def test_a_session_in_memory_does_not_outlive_a_revocation_elsewhere(own_valkey: Valkey) -> None:
    own_valkey.kill()
    async with in_store(own_valkey.url) as cache, in_store(own_valkey.url) as replica:
        sessions = cache.sessions(when_away="memory")
        anns, bobs = await sessions.create(user="ann"), await sessions.create(user="bob")
        own_valkey.start()
        await until_back(cache, replica)

        await replica.sessions().revoke("ann")

        assert await sessions.get(anns.id) is None
        assert await sessions.get(bobs.id) is not None


async def test_a_session_in_memory_is_revoked_here_even_while_the_store_stays_away(own_valkey: Valkey) -> None:
    own_valkey.kill()
    async with in_store(own_valkey.url) as cache:
        sessions = cache.sessions(when_away="memory")
        anns, bobs = await sessions.create(user="ann"), await sessions.create(user="bob")
        with pytest.raises(StoreUnavailable):  # others may hold some too
            await sessions.revoke("ann")

        with pytest.raises(StoreUnavailable):
            await sessions.get(anns.id)
        assert await sessions.get(bobs.id) is not None


async def test_a_session_whose_way_into_the_store_is_doubtful_is_not_ended_in_memory_alone(
    own_valkey: Valkey,
) -> None:
    """The server took it, and its answer was lost."""
    async with NexCache(Settings(redis_url=own_valkey.url, op_timeout_ms=300)) as cache:
        sessions = cache.sessions(when_away="memory")
        await sessions.create()
        own_valkey.pause()
        try:
            doubtful = await sessions.create({"a": 1})
            with pytest.raises(StoreError):
                await sessions.delete(doubtful.id)
        finally:
            own_valkey.resume()
        await until_back(cache)
        await sessions.delete(doubtful.id)

        assert await sessions.get(doubtful.id) is None
        assert len(own_valkey.ask("KEYS", "nexarch.session:*")) == 1


async def test_a_session_that_is_ended_while_it_goes_over_does_not_come_back(own_valkey: Valkey) -> None:
    own_valkey.kill()
    async with in_store(own_valkey.url) as cache:
        sessions = cache.sessions(when_away="memory")
        begun = await sessions.create(user="ann")
        own_valkey.start()
        await until_back(cache)

        going_over = asyncio.create_task(sessions.get(begun.id))
        await asyncio.sleep(0)  # the user's token is asked for
        assert await sessions.delete(begun.id)
        await going_over

        assert await sessions.get(begun.id) is None


class SlowToAnswer:
    """A store that is away at first, and then has done what it was asked to before it says so."""

    def __init__(self, values: MemoryValues) -> None:
        self._values = values
        self.away = True
        self.done = asyncio.Event()
        self.answers = asyncio.Event()

    async def carry_out(self, operations: Sequence[Operation]) -> list[Any]:
        if self.away:
            raise NotAsked("breaker", "away")
        answers = await self._values.carry_out(operations)
        if isinstance(operations[0], Put):
            self.done.set()
            await self.answers.wait()
        return answers


async def test_a_session_that_is_ended_before_the_store_says_that_it_has_it_is_ended_there_too(
    clock: FakeClock,
) -> None:
    store = SlowToAnswer(MemoryValues(clock=clock))
    sessions = made(store, clock, memory=MemoryValues(clock=clock))
    begun = await sessions.create({"a": 1})
    store.away = False

    going_over = asyncio.create_task(sessions.get(begun.id))
    await store.done.wait()
    assert await sessions.delete(begun.id)
    store.answers.set()
    await going_over

    assert await sessions.get(begun.id) is None
