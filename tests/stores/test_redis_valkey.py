"""The Redis store on a real server: the contract, the lane, and the server's refusals."""

import asyncio
import random
import socket
import time
import warnings
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection

from nexcache.errors import StoreError, StoreRefused, StoreUnavailable
from nexcache.stores.base import SENTINEL, LeaseOffer, Store
from nexcache.stores.faults import classify
from nexcache.stores.lane import Again, Before
from nexcache.stores.redis import EVENTS, RedisStore, Target
from nexcache.telemetry.events import BackendChanged, BackendFailed, Emitter, Event
from nexcache.testing import KEY, REGISTRY, TENANT, TOKENS, StoreContract
from tests.servers import Valkey
from tests.stores.reading import read_again

Made = Callable[..., RedisStore]


class Heard(list[Event]):
    """The events of a store."""

    @property
    def changes(self) -> list[tuple[bool, str]]:
        return [(event.available, event.kind) for event in self if isinstance(event, BackendChanged)]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def make(heard: Heard) -> AsyncIterator[Made]:
    """Make stores, and see afterwards that they have given everything back."""
    stores: list[RedisStore] = []

    def store_on(server: Valkey, **options: Any) -> RedisStore:
        target = Target(host="127.0.0.1", port=server.port, password=options.pop("password", None))
        emitter = Emitter()
        emitter.subscribe(heard.append, BackendChanged, BackendFailed)
        store = RedisStore(target, emitter=emitter, **{"timeout": 1.0, **options})
        stores.append(store)
        return store

    yield store_on
    for store in stores:
        await store.aclose()
    await asyncio.sleep(0)
    left = {task.get_name() for task in asyncio.all_tasks()} - {asyncio.current_task().get_name()}  # type: ignore[union-attr]
    assert not {name for name in left if name.startswith("nexcache")}


@pytest.fixture
def server(valkey: Valkey, redis_url: str) -> Valkey:
    """The shared server, emptied."""
    return valkey


class TestValkey(StoreContract):
    @pytest.fixture
    def store(self, server: Valkey, make: Made) -> RedisStore:
        return make(server)

    async def remaining(self, store: Store, key: bytes) -> float:
        assert isinstance(store, RedisStore)
        (left,), _ = await store._lanes[0].execute((("PTTL", key),))
        return max(0.0, float(left) / 1000)

    async def lose(self, store: Store, registry: bytes) -> None:
        await store.unlink([registry])


# --- one connection, few writes ----------------------------------------------------------------------------


async def test_500_reads_at_once_use_one_connection_and_leave_in_one_write(server: Valkey, make: Made) -> None:
    store = make(server)
    await store.read([KEY])
    writes = 0
    send = store._lanes[0]._connect().__class__.send_packed_command

    async def counting(*args: Any, **kwargs: Any) -> None:
        nonlocal writes
        writes += 1
        await send(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store._lanes[0]._connect().__class__, "send_packed_command", counting)
        before = server.calls()
        readings = await asyncio.gather(*(store.read([KEY, TENANT]) for _ in range(500)))
    after = server.calls()

    assert len({reading.epoch for reading in readings}) == 1
    assert after["mget"] - before["mget"] == 500
    assert after["info"] - before["info"] <= 1 + 2  # ours to count, and one renewal of the epoch
    assert writes <= 2
    assert len(server.clients()) == 1
    assert store.commands - 500 <= 1 + 2


async def test_the_epoch_is_read_now_and_then_and_not_per_request(server: Valkey, make: Made) -> None:
    store = make(server)
    for _ in range(200):
        await store.read([KEY])

    assert server.calls()["info"] <= 2 + 2 * 10


# --- answers are never mixed up ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
async def test_every_reader_gets_its_own_keys_value_whatever_is_cancelled_or_late(
    server: Valkey, make: Made, heard: Heard, seed: int
) -> None:
    draw = random.Random(seed)
    store = make(server, timeout=0.5, failures=1_000_000)
    keys = [b"nexarch:acme:o:%03d" % number for number in range(64)]
    await asyncio.gather(*(store.write(key, b"value of " + key, ttl_ms=600_000) for key in keys))
    right = failed = cancelled = 0

    async def reader() -> None:
        nonlocal right, failed, cancelled
        loop = asyncio.get_running_loop()
        for _ in range(250):
            asked = draw.sample(keys, draw.randint(1, 5))
            deadline = loop.time() + draw.choice((0.0003, 0.001, 0.003, 0.5, 0.5))
            call = asyncio.create_task(store.read(asked, deadline=deadline))
            if draw.random() < 0.3:
                for _ in range(draw.randint(0, 4)):
                    await asyncio.sleep(0)
                call.cancel()
            try:
                reading = await call
            except asyncio.CancelledError:
                cancelled += 1
            except StoreUnavailable:
                failed += 1
            else:
                assert list(reading.values) == [b"value of " + key for key in asked]
                right += 1

    async def disturb(readers: list[asyncio.Task[None]]) -> None:
        while not all(task.done() for task in readers):
            await asyncio.to_thread(server.ask, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(draw.choice((0.01, 0.03)))

    readers = [asyncio.create_task(reader()) for _ in range(40)]
    await asyncio.gather(disturb(readers), *readers)

    assert right > 500
    assert failed > 0
    assert cancelled > 100


async def test_cancelling_one_that_waits_leaves_the_others_alone(server: Valkey, make: Made) -> None:
    store = make(server)
    keys = [b"nexarch:acme:o:%03d" % number for number in range(100)]
    await asyncio.gather(*(store.write(key, key, ttl_ms=60_000) for key in keys))
    calls = [asyncio.create_task(store.read([key])) for key in keys]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()

    readings = await asyncio.gather(*calls[1::2])

    assert [list(reading.values) for reading in readings] == [[key] for key in keys[1::2]]
    assert len(server.clients()) == 2


# --- a server that is silent, or goes away -----------------------------------------------------------------


async def test_a_silent_server_costs_the_deadline_and_is_used_again_when_it_answers(
    own_valkey: Valkey, make: Made
) -> None:
    store = make(own_valkey, timeout=0.05)
    await store.write(KEY, b"value", ttl_ms=60_000)
    await store.read([KEY])
    loop = asyncio.get_running_loop()
    own_valkey.pause()
    started = loop.time()
    with pytest.raises(StoreUnavailable) as silent:
        await store.read([KEY])
    took = loop.time() - started
    own_valkey.resume()

    assert silent.value.kind == "timeout"
    assert took < 0.15  # the deadline, and what a busy machine adds
    assert list((await store.read([KEY])).values) == [b"value"]


async def test_a_shorter_deadline_of_the_caller_is_kept(own_valkey: Valkey, make: Made) -> None:
    store = make(own_valkey, timeout=5.0)
    await store.read([KEY])
    loop = asyncio.get_running_loop()
    own_valkey.pause()

    started = loop.time()
    with pytest.raises(StoreUnavailable):
        await store.read([KEY], deadline=loop.time() + 0.02)

    assert loop.time() - started < 0.5


@pytest.mark.parametrize("idle", [0.0, 0.2], ids=["in use", "idle, so that the epoch is asked for first"])
async def test_a_silent_connection_is_given_up_and_another_one_opened(make: Made, idle: float, server: Valkey) -> None:
    """The network swallows one connection: it never hears of its end, while new ones work."""
    proxy = Swallowing(server.port)
    await proxy.start()
    store = RedisStore(Target(host="127.0.0.1", port=proxy.port), emitter=Emitter(), timeout=0.05, failures=100)
    await store.read([KEY])
    await asyncio.sleep(idle)
    proxy.swallow()

    failures = 0
    for _ in range(3):
        try:
            await store.read([KEY])
        except StoreUnavailable:
            failures += 1
    await store.aclose()
    await proxy.aclose()

    assert failures == 1
    assert proxy.accepted == 2


async def test_a_silent_connection_is_given_up_even_if_nobody_asks_again(make: Made, server: Valkey) -> None:
    proxy = Swallowing(server.port)
    await proxy.start()
    store = RedisStore(Target(host="127.0.0.1", port=proxy.port), emitter=Emitter(), timeout=0.05)
    await store.read([KEY])
    proxy.swallow()
    with pytest.raises(StoreUnavailable):
        await store.read([KEY], deadline=asyncio.get_running_loop().time() + 0.01)
    for _ in range(100):
        if store._lanes[0].connections == 0:
            break
        await asyncio.sleep(0.01)

    assert store._lanes[0].connections == 0
    await store.aclose()
    await proxy.aclose()


async def test_answers_that_came_in_time_count_though_the_loop_was_held_up(server: Valkey, make: Made) -> None:
    store = make(server, timeout=0.03)
    await store.write(KEY, b"value", ttl_ms=60_000)
    await store.read([KEY])
    calls = [asyncio.create_task(store.read([KEY])) for _ in range(50)]
    for _ in range(2):
        await asyncio.sleep(0)  # the command leaves

    block(0.08)

    assert [list(reading.values) for reading in await asyncio.gather(*calls)] == [[b"value"]] * 50


async def test_a_deadline_that_has_passed_says_nothing_about_the_store(
    server: Valkey, make: Made, heard: Heard
) -> None:
    store = make(server, failures=2)
    loop = asyncio.get_running_loop()
    for _ in range(10):
        with pytest.raises(StoreUnavailable, match="no time was left"):
            await store.read([KEY], deadline=loop.time() - 1)

    assert store.available
    assert heard == []


async def test_after_a_killed_connection_a_read_is_sent_once_more(own_valkey: Valkey, make: Made) -> None:
    store = make(own_valkey)
    await store.write(KEY, b"value", ttl_ms=60_000)
    await store.read([KEY])
    sent: list[int] = []
    for number in range(20):
        own_valkey.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        reading = await store.read([KEY], on_sent=lambda number=number: sent.append(number))  # type: ignore[misc]

        assert list(reading.values) == [b"value"]
    assert sent == list(range(20))


async def test_what_must_not_be_repeated_is_not(own_valkey: Valkey, make: Made) -> None:
    store = make(own_valkey)
    await store.add(b"numbers", {b"n": 1}, once={}, ttl_ms=60_000)
    own_valkey.pause()
    adding = asyncio.create_task(store.add(b"numbers", {b"n": 1}, once={}, ttl_ms=60_000))
    await asyncio.sleep(0.01)  # it is in the server's socket
    own_valkey.kill()

    with pytest.raises(StoreUnavailable):
        await adding


async def test_a_killed_server_fails_fast_and_each_change_is_told_once(
    own_valkey: Valkey, make: Made, heard: Heard
) -> None:
    store = make(own_valkey, timeout=0.05)
    recovered: list[bool] = []
    store.on_recovery = lambda: recovered.append(store.available)
    loop = asyncio.get_running_loop()
    for turn in range(2):
        await store.write(KEY, b"value", ttl_ms=60_000)
        own_valkey.kill()
        started = loop.time()
        for _ in range(200):
            with pytest.raises(StoreUnavailable):
                await store.read([KEY])
        assert loop.time() - started < 0.5
        assert not store.available
        assert not (await store.health()).available

        own_valkey.start()
        for _ in range(200):
            if store.available:
                break
            await asyncio.sleep(0.02)

        assert list((await store.read([KEY])).values) == [None]
        assert heard.changes == [(False, "connection"), (True, "answers")] * (turn + 1)
        assert recovered == [True] * (turn + 1)


async def test_an_answer_that_closes_the_circuit_is_told_too(own_valkey: Valkey, make: Made, heard: Heard) -> None:
    """The prober is not the only one that can find out: a slow answer may come after the circuit has opened."""
    store = make(own_valkey, timeout=0.05, failures=1)
    await store.read([KEY])
    await store.write(KEY, b"value", ttl_ms=60_000)
    own_valkey.pause()
    writing = asyncio.create_task(store.write(KEY, b"value", ttl_ms=60_000))  # may take ten times as long
    with pytest.raises(StoreUnavailable):
        await store.read([KEY])
    assert not store.available
    own_valkey.resume()

    await writing

    assert store.available
    assert heard.changes == [(False, "timeout"), (True, "answers")]


async def test_a_store_closed_while_its_server_was_away_starts_anew_and_tells_of_the_return(
    own_valkey: Valkey, make: Made, heard: Heard
) -> None:
    store = make(own_valkey, failures=1)
    own_valkey.kill()
    with pytest.raises(StoreUnavailable):
        await store.read([KEY])
    await store.aclose()
    own_valkey.start()

    await store.read([KEY])

    assert heard.changes == [(False, "connection"), (True, "answers")]


async def test_a_repeated_command_does_not_outlive_its_deadline(make: Made) -> None:
    """The connection ends half-way, and the next one is never answered."""
    accepted = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        if accepted == 1:
            await asyncio.sleep(0.03)
            writer.close()
        else:
            await reader.read(1_000_000)
            await asyncio.sleep(0.3)
            writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    store = RedisStore(Target(host="127.0.0.1", port=port), emitter=Emitter(), timeout=0.05)
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(StoreUnavailable):
        await store.read([KEY])
    took = loop.time() - started
    await store.aclose()
    listener.close()

    assert took < 0.15


# --- a server that refuses ---------------------------------------------------------------------------------


async def test_a_wrong_password_is_told_and_not_tried_again_at_once(
    own_valkey: Valkey, make: Made, heard: Heard
) -> None:
    own_valkey.ask("CONFIG", "SET", "requirepass", "right")
    store = make(own_valkey, password="wrong")
    for _ in range(100):
        with pytest.raises(StoreRefused) as refused:
            await store.read([KEY])
        assert refused.value.kind == "auth"
        assert "wrong" not in str(refused.value)

    assert store.available  # the server is there; requests pay nothing for it
    assert heard.changes == [(False, "auth")]
    assert not (await store.health()).available
    good = make(own_valkey, password="right")
    await good.read([KEY])
    (info,), _ = await good._lanes[0].execute((("INFO", "commandstats"),))
    auths = next(line for line in info.decode().splitlines() if line.startswith("cmdstat_auth:"))
    assert int(auths.partition("calls=")[2].partition(",")[0]) <= 3


async def test_a_password_that_is_right_again_is_noticed(own_valkey: Valkey, make: Made, heard: Heard) -> None:
    own_valkey.ask("CONFIG", "SET", "requirepass", "right")
    store = make(own_valkey, password="other")
    with pytest.raises(StoreRefused):
        await store.read([KEY])
    good = make(own_valkey, password="right")
    await good.read([KEY])
    await good._lanes[0].execute((("CONFIG", "SET", "requirepass", "other"),))
    store.door._until = 0  # a second has gone by

    assert list((await store.read([KEY])).values) == [None]
    assert heard.changes == [(False, "auth"), (True, "answers")]


async def test_a_full_server_refuses_to_store_and_still_invalidates(
    own_valkey: Valkey, make: Made, heard: Heard
) -> None:
    store = make(own_valkey)
    await store.restore_sentinel(REGISTRY, TENANT, ttl_ms=60_000)
    captured = await store.capture(TOKENS, registry=REGISTRY, operation=b"o", ttl_ms=60_000)
    await store.write(KEY, b"value", ttl_ms=60_000)
    own_valkey.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    own_valkey.ask("CONFIG", "SET", "maxmemory", "1mb")

    for _ in range(10):
        with pytest.raises(StoreRefused) as full:
            await store.write(KEY, b"v" * 1000, ttl_ms=60_000)
        assert full.value.kind == "out-of-memory"
        with pytest.raises(StoreRefused):
            await store.capture(TOKENS, registry=REGISTRY, operation=b"o", ttl_ms=60_000)
        assert list((await store.read([KEY, TENANT])).values) == [b"value", captured.tokens[0]]
        assert await store.members(REGISTRY) == frozenset((b"o",))
        await store.unlink([b"nexarch:acme:@any"], message=b"message")
    assert await store.unlink(TOKENS, message=b"message") == 3
    assert store.available
    assert heard.changes == [(False, "out-of-memory")]
    assert (await store.health()).detail == "refuses: out-of-memory"

    own_valkey.ask("CONFIG", "SET", "maxmemory", "0")
    await store.write(KEY, b"value", ttl_ms=60_000)
    assert heard.changes == [(False, "out-of-memory"), (True, "answers")]


async def test_a_server_that_became_a_replica_is_left(own_valkey: Valkey, make: Made) -> None:
    store = make(own_valkey)
    before = await store.read([KEY])
    clients = {client["id"] for client in own_valkey.clients()}
    own_valkey.ask("REPLICAOF", "127.0.0.1", "1")
    own_valkey.ask("CONFIG", "SET", "replica-serve-stale-data", "yes")

    with pytest.raises(StoreRefused) as refused:
        await store.unlink([TENANT])
    assert refused.value.kind == "readonly"
    own_valkey.ask("REPLICAOF", "NO", "ONE")

    after = await store.read([KEY])
    assert after.epoch != before.epoch  # it was promoted: another history
    assert clients.isdisjoint({client["id"] for client in own_valkey.clients()})


async def test_a_user_without_the_right_to_publish_invalidates_all_the_same(
    own_valkey: Valkey, make: Made, heard: Heard
) -> None:
    own_valkey.ask("ACL", "SETUSER", "default", "resetchannels")
    store = make(own_valkey)
    await store.write(KEY, b"value", ttl_ms=60_000)

    assert await store.unlink([KEY], message=b"message") == 1
    assert heard == [BackendFailed("publish", "auth")]


async def test_the_sentinel_is_not_written_where_the_token_could_not_be_removed(own_valkey: Valkey, make: Made) -> None:
    own_valkey.ask("ACL", "SETUSER", "default", "-unlink")
    store = make(own_valkey)

    with pytest.raises(StoreRefused):
        await store.restore_sentinel(REGISTRY, TENANT, ttl_ms=60_000)

    assert own_valkey.ask("SISMEMBER", REGISTRY, SENTINEL) == 0


async def test_a_server_that_hides_its_history_is_refused_with_the_setting_to_choose(
    own_valkey: Valkey, make: Made
) -> None:
    own_valkey.ask("ACL", "SETUSER", "default", "-info")
    store = make(own_valkey)

    with pytest.raises(StoreRefused, match="CACHE_FAILOVER=trust"):
        await store.read([KEY])


async def test_a_server_that_is_loading_is_away_for_now(own_valkey: Valkey, make: Made, heard: Heard) -> None:
    for start in range(0, 20_000, 10_000):
        own_valkey.ask("MSET", *(word for n in range(start, start + 10_000) for word in (b"k%d" % n, b"v" * 100)))
    own_valkey.ask("SAVE")
    own_valkey.ask("CONFIG", "SET", "key-load-delay", "20", "loading-process-events-interval-bytes", "4096")
    store = make(own_valkey, timeout=0.2)
    await store.read([KEY])
    reloading = asyncio.create_task(asyncio.to_thread(own_valkey.ask, "DEBUG", "RELOAD", "NOSAVE"))
    kinds = set()
    while not reloading.done():
        try:
            await store.read([KEY])
        except StoreUnavailable as error:
            kinds.add(error.kind)
        await asyncio.sleep(0.005)
    await reloading

    assert "busy" in kinds
    store._breaker.succeeded()
    assert list((await store.read([KEY])).values) == [None]


@pytest.mark.parametrize(
    ("error", "kind", "word"),
    [
        pytest.param(redis_errors.AuthenticationError("WRONGPASS x"), StoreRefused, "auth", id="wrong password"),
        pytest.param(redis_errors.ResponseError("NOAUTH Authentication required."), StoreRefused, "auth", id="none"),
        pytest.param(redis_errors.NoPermissionError("NOPERM"), StoreRefused, "auth", id="ACL"),
        pytest.param(redis_errors.OutOfMemoryError("OOM"), StoreRefused, "out-of-memory", id="memory full"),
        pytest.param(redis_errors.ReadOnlyError("READONLY"), StoreRefused, "readonly", id="replica"),
        pytest.param(redis_errors.BusyLoadingError("LOADING"), StoreUnavailable, "busy", id="loading"),
        pytest.param(redis_errors.MasterDownError("MASTERDOWN"), StoreUnavailable, "busy", id="primary down"),
        pytest.param(redis_errors.ClusterDownError("CLUSTERDOWN"), StoreUnavailable, "busy", id="cluster down"),
        pytest.param(redis_errors.ResponseError("BUSY running a script"), StoreUnavailable, "busy", id="script"),
        pytest.param(redis_errors.ResponseError("TRYAGAIN moving"), StoreUnavailable, "busy", id="resharding"),
        pytest.param(redis_errors.ResponseError("NOREPLICAS few"), StoreRefused, "refused", id="no replicas"),
        pytest.param(redis_errors.ResponseError("MISCONF disk"), StoreRefused, "refused", id="misconfigured"),
        pytest.param(redis_errors.ResponseError("WRONGTYPE"), StoreRefused, "refused", id="wrong type"),
        pytest.param(redis_errors.ConnectionError("x"), StoreUnavailable, "connection", id="connection"),
        pytest.param(ConnectionResetError("x"), StoreUnavailable, "connection", id="reset"),
        pytest.param(socket.gaierror("x"), StoreUnavailable, "connection", id="no such host"),
        pytest.param(redis_errors.TimeoutError("x"), StoreUnavailable, "timeout", id="client's timeout"),
        pytest.param(TimeoutError("x"), StoreUnavailable, "timeout", id="timeout"),
        pytest.param(ValueError("x"), StoreUnavailable, "connection", id="anything else"),
        pytest.param(StoreUnavailable("breaker", "x"), StoreUnavailable, "breaker", id="our own"),
    ],
)
def test_what_an_error_means(error: Exception, kind: type[StoreError], word: str) -> None:
    classified = classify(error)

    assert type(classified) is kind
    assert classified.kind == word


def test_a_message_never_repeats_what_was_sent() -> None:
    for error in (redis_errors.ResponseError("ERR secret nexarch:acme:x"), redis_errors.AuthenticationError("secret")):
        assert "secret" not in str(classify(error))
        assert "acme" not in str(classify(error))


# --- the registry, with losses in the middle ---------------------------------------------------------------


@pytest.mark.parametrize("at", range(1, 10))
async def test_a_registry_that_is_lost_between_two_steps_of_a_capture_is_noticed(
    server: Valkey, make: Made, at: int
) -> None:
    store = make(server)
    await store.restore_sentinel(REGISTRY, TENANT, ttl_ms=60_000)
    lane = store._lanes[0]
    execute = lane.execute

    async def losing(commands: Any, **options: Any) -> Any:
        commands = list(commands)
        if commands[0][0] != "SADD" or at >= len(commands):
            return await execute(commands, **options)
        replies, epoch = await execute([*commands[:at], ("DEL", REGISTRY), *commands[at:]], **options)
        return [*replies[:at], *replies[at + 1 :]], epoch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lane, "execute", losing)
        captured = await store.capture(TOKENS, registry=REGISTRY, operation=b"o", ttl_ms=60_000)

    assert not (captured.complete and captured.registered)
    assert await store.members(REGISTRY) is None


async def test_a_registry_rebuilt_by_another_node_in_the_middle_of_a_capture_lacks_its_operation(
    server: Valkey, make: Made
) -> None:
    store = make(server)
    await store.restore_sentinel(REGISTRY, TENANT, ttl_ms=60_000)
    lane = store._lanes[0]
    execute = lane.execute
    meanwhile = (("DEL", REGISTRY), ("UNLINK", TENANT), ("SADD", REGISTRY, SENTINEL))

    async def rebuilding(commands: Any, **options: Any) -> Any:
        commands = list(commands)
        replies, epoch = await execute([*commands[:-1], *meanwhile, commands[-1]], **options)
        return [*replies[:-4], replies[-1]], epoch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lane, "execute", rebuilding)
        captured = await store.capture(TOKENS, registry=REGISTRY, operation=b"o", ttl_ms=60_000)

    assert (captured.complete, captured.registered) == (True, False)


async def _before(store: RedisStore, server: Valkey) -> Before:
    server.ask("MSET", b"nexarch:acme:o:1", b"value", TENANT, b"token")
    read = await store.read((b"nexarch:acme:o:1", TENANT))
    return store.before((b"nexarch:acme:o:1", TENANT), read.values, read.epoch)


async def test_what_was_read_before_is_asked_for_together_and_each_is_told(server: Valkey, make: Made) -> None:
    store = make(server)
    same = await _before(store, server)
    other = store.before((b"nexarch:acme:o:1", TENANT), [b"value", b"another token"], same.epoch)
    gone = store.before((b"nexarch:acme:o:2", TENANT), [b"value", b"token"], same.epoch)
    moved = store.before((b"nexarch:acme:o:1", TENANT), [b"value", b"token"], b"of another history")

    asked = [first := read_again(store, same)]
    asked += [read_again(store, each, first[1]) for each in (other, same, gone, moved)]

    assert [await each[0] for each in asked] == [True, False, True, False, False]
    assert len({id(each[1]) for each in asked}) == 1


async def test_a_later_one_does_not_join_what_was_asked_before_a_change(server: Valkey, make: Made) -> None:
    store = make(server)
    before = await _before(store, server)
    first, others = read_again(store, before)

    changing = asyncio.ensure_future(store.unlink([TENANT]))
    await asyncio.sleep(0)
    assert others.join(before, time.perf_counter()) is None
    then, _ = read_again(store, before, others)

    assert await first
    await changing
    assert not await then


async def test_what_has_left_or_is_full_or_old_is_not_joined_and_nobody_waits_on_another_loop(
    server: Valkey, make: Made
) -> None:
    store = make(server)
    before = await _before(store, server)
    first, others = read_again(store, before)
    assert others.join(before, others.started + 0.0021) is None, "it was begun too long ago"
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="attached to a different loop"):
        pool.submit(lambda: asyncio.run(_joined(others, before))).result()  # this loop does not go on meanwhile
    assert await first
    assert others.join(before, others.started) is None, "it has left"

    _, full = read_again(store, before)
    joined = [full.join(before, full.started) for _ in range(40)]

    assert [each is not None for each in joined] == [True] * 31 + [False] * 9
    assert all([await each for each in joined if each is not None])


async def _joined(others: Again, before: Before) -> None:
    same = others.join(before, others.started)
    assert same is not None
    await same


async def test_who_asks_again_after_the_connection_was_given_up_is_not_forgotten(server: Valkey, make: Made) -> None:
    store = make(server)
    before = await _before(store, server)
    lost = read_again(store, before)

    store._lanes[0].drop()
    asked = read_again(store, before)

    with pytest.raises(StoreUnavailable):
        await lost[0]
    assert await asyncio.wait_for(asked[0], 5)


async def test_who_asks_again_is_told_when_the_server_is_silent(server: Valkey, make: Made) -> None:
    store = make(server, timeout=0.05)
    before = await _before(store, server)
    server.pause()
    try:
        for _ in range(3):
            asked = read_again(store, before)
            with pytest.raises(StoreUnavailable):
                await asyncio.wait_for(asked[0], 5)
    finally:
        server.resume()


_OFFER = LeaseOffer(b"nexarch:acme:o:1:l:1", b"mine", 60_000)


async def test_a_capture_of_what_is_all_there_creates_nothing(server: Valkey, make: Made) -> None:
    store = make(server)
    await store.restore_sentinel(REGISTRY, TENANT, ttl_ms=60_000)
    await store.capture(TOKENS, registry=REGISTRY, operation=b"o", ttl_ms=60_000)
    there = (await store.read(TOKENS)).values
    before = server.calls()

    captured = await store.capture(TOKENS, registry=REGISTRY, operation=b"o", ttl_ms=60_000, lease=_OFFER)

    assert (captured.tokens, captured.complete, captured.registered, captured.leased) == (there, True, True, True)
    after = server.calls()
    assert after["sadd"] == before["sadd"]
    assert after["set"] == before["set"] + 1  # the lease


@pytest.mark.parametrize("gone", [(b"UNLINK", TOKENS[-1]), (b"SREM", REGISTRY, b"o"), (b"UNLINK", REGISTRY)])
async def test_a_capture_with_a_lease_creates_what_is_not_there_and_keeps_the_lease(
    server: Valkey, make: Made, gone: tuple[bytes, ...]
) -> None:
    store = make(server)
    await store.restore_sentinel(REGISTRY, TENANT, ttl_ms=60_000)
    await store.capture(TOKENS, registry=REGISTRY, operation=b"o", ttl_ms=60_000)
    server.ask(*gone)

    captured = await store.capture(TOKENS, registry=REGISTRY, operation=b"o", ttl_ms=60_000, lease=_OFFER)

    assert None not in captured.tokens
    assert (captured.complete, captured.registered, captured.leased) == (gone[-1] != REGISTRY, True, True)
    again = await store.capture(TOKENS, registry=REGISTRY, operation=b"o", ttl_ms=60_000, lease=_OFFER)
    assert not again.leased


async def test_a_registry_never_stays_without_an_expiry(server: Valkey, make: Made) -> None:
    store = make(server)
    server.ask("SADD", REGISTRY, SENTINEL)

    await store.capture(TOKENS, registry=REGISTRY, operation=b"o", ttl_ms=60_000)

    assert 50_000 < server.ask("PTTL", REGISTRY) <= 60_000


async def test_a_capture_in_use_costs_one_round_trip_and_writes_no_expiry(server: Valkey, make: Made) -> None:
    store = make(server)
    await store.restore_sentinel(REGISTRY, TENANT, ttl_ms=60_000)
    await store.capture(TOKENS, registry=REGISTRY, operation=b"o", ttl_ms=60_000)
    before = server.calls()["pexpire"]
    for _ in range(5):
        await store.capture(TOKENS, registry=REGISTRY, operation=b"o", ttl_ms=60_000)

    assert server.calls()["pexpire"] == before


# --- histories ---------------------------------------------------------------------------------------------


async def test_a_restart_is_another_epoch_though_the_data_came_back(own_valkey: Valkey, make: Made) -> None:
    store = make(own_valkey)
    await store.restore_sentinel(REGISTRY, TENANT, ttl_ms=60_000)
    before = await store.capture(TOKENS, registry=REGISTRY, operation=b"o", ttl_ms=60_000)
    own_valkey.ask("SAVE")
    await store.unlink(TOKENS)
    own_valkey.kill()
    own_valkey.start()

    after = await store.read(TOKENS)

    assert list(after.values) == list(before.tokens), "the old tokens did not come back: the fault was not seen"
    assert after.epoch != before.epoch


# --- loops and their ends ----------------------------------------------------------------------------------


def test_a_second_event_loop_can_use_the_same_store(server: Valkey) -> None:
    store = RedisStore(Target(host="127.0.0.1", port=server.port), emitter=Emitter(), timeout=1.0)

    async def use(value: bytes) -> list[bytes | None]:
        await store.write(KEY, value, ttl_ms=60_000)
        return list((await store.read([KEY])).values)

    async def use_and_close(value: bytes) -> list[bytes | None]:
        found = await use(value)
        await store.aclose()
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asyncio.run(use(b"first")) == [b"first"]  # ends without a word
        assert asyncio.run(use_and_close(b"second")) == [b"second"]
        assert asyncio.run(use_and_close(b"third")) == [b"third"]
    assert server.clients() == []
    assert store.commands >= 6


async def test_closing_ends_what_waits_and_gives_every_socket_back(
    own_valkey: Valkey, make: Made, heard: Heard
) -> None:
    store = make(own_valkey)
    await store.write(KEY, b"value", ttl_ms=60_000)
    own_valkey.pause()
    calls = [asyncio.create_task(store.read([KEY])) for _ in range(20)]
    await asyncio.sleep(0.01)
    await store.aclose()
    results = await asyncio.gather(*calls, return_exceptions=True)
    own_valkey.resume()

    assert {type(result) for result in results} == {StoreUnavailable}
    assert heard.changes == []
    assert own_valkey.clients() == []
    assert list((await store.read([KEY])).values) == [b"value"]


async def test_a_call_during_the_closing_is_served_and_closed_by_the_next(server: Valkey, make: Made) -> None:
    store = make(server)
    await store.read([KEY])
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    reading = await store.read([KEY])
    await closing
    await store.aclose()

    assert list(reading.values) == [None]
    assert server.clients() == []


async def test_nothing_is_begun_while_the_loop_is_ended_from_outside(
    server: Valkey, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that began then would be destroyed while it is pending: `asyncio.run` cancels those that are there."""
    store = make(server)
    assert list((await store.read([b"none"])).values) == [None]
    theirs = asyncio.all_tasks() - {asyncio.current_task()}
    assert theirs
    for task in theirs:
        task.cancel()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.read([b"none"])
        await asyncio.gather(*theirs, return_exceptions=True)
    assert asyncio.all_tasks() == {asyncio.current_task()}

    monkeypatch.setattr("nexcache.stores.lane._ENDING", 0.0)  # whoever goes on all the same is served again
    assert list((await store.read([b"none"])).values) == [None]


async def test_a_message_goes_to_the_channel_of_the_nodes(server: Valkey, make: Made) -> None:
    store = make(server)
    listener = store.connect()
    await listener.connect()  # type: ignore[no-untyped-call]
    await listener.send_command("SUBSCRIBE", EVENTS)
    await listener.read_response()
    await store.unlink([KEY], message=b"message")

    heard = await listener.read_response()
    await listener.disconnect()

    assert heard == [b"message", EVENTS, b"message"]


# --- helpers -----------------------------------------------------------------------------------------------


def block(seconds: float) -> None:
    """Hold the event loop up, as a handler does that computes without awaiting."""
    import time  # noqa: PLC0415 - only here is it meant to block

    time.sleep(seconds)


class Swallowing:
    """A proxy whose present connections can be made to lead nowhere; later ones work."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = 0
        self.accepted = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: list[dict[str, bool]] = []

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    def swallow(self) -> None:
        for connection in self._open:
            connection["swallows"] = True

    async def aclose(self) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        state = {"swallows": False}
        self._open.append(state)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._to)
        for source, sink in ((reader, server_writer), (server_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink, state))
            self._tasks.add(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, state: dict[str, bool]) -> None:
        try:
            while data := await source.read(65536):
                if not state["swallows"]:
                    sink.write(data)
                    await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()


async def test_closing_ends_a_connection_that_forgets_that_it_was_cancelled(make: Made, server: Valkey) -> None:
    """As `asyncio.wait_for` of Python 3.11 does, where what it waits for comes in that very moment."""
    store = make(server)
    lane = store._lanes[0]
    enter, entered = lane._door.enter, asyncio.Event()

    async def forgetful(connection: AbstractConnection) -> None:
        await enter(connection)
        entered.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    lane._door.enter = forgetful  # type: ignore[method-assign]
    asking = asyncio.ensure_future(store.read([b"a"]))
    await entered.wait()
    async with asyncio.timeout(5):
        await store.aclose()
    with pytest.raises(StoreUnavailable):
        await asking
    assert lane.connections == 0
