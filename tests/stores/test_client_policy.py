"""What the client library is really told: none of its own defaults, which wait for a minute on a silent server."""

import asyncio
import inspect
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import hiredis
import pytest
from pydantic import SecretStr
from redis.asyncio import connection as client
from redis.asyncio.client import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from nexcache import NexCache, Settings
from nexcache.errors import StoreError, StoreRefused, StoreUnavailable
from nexcache.stores.redis import RedisStore
from nexcache.stores.target import ClusterTarget, SentinelTarget, Target
from nexcache.telemetry.events import BackendChanged, Emitter
from nexcache.testing import FaultProxy
from tests.servers import Valkey
from tests.wire.server import until

TIMEOUT: Final = 0.05
TOLD: Final[dict[str, Any]] = {
    "db": 3,
    "socket_timeout": None,  # every wait is bounded by the lane: one timer for all that waits
    "socket_connect_timeout": TIMEOUT,
    "retry_on_error": [],
    "health_check_interval": 0,
    "client_name": None,
    "driver_info": None,
    "protocol": 2,
    "username": "nexcache",
    "password": "secret",
}
LEFT_TO_THE_CLIENT: Final = {
    "credential_provider",  # where there is none
    "host",  # of a primary that a Sentinel is to name
    "port",
    "parser",
    "encoding",  # nothing is text: decode_responses is False, and all that is sent is bytes
    "encoding_errors",
    "encoder_class",
    "parser_class",  # hiredis where it is there
    "socket_read_size",
    "socket_type",
    "legacy_responses",  # of the client's own commands, none of which is used
    "lib_name",  # both are superseded by driver_info
    "lib_version",
    "redis_connect_func",
    "event_dispatcher",
    "kwargs",
    # of notices of maintenance, which are switched off
    "maint_notifications_pool_handler",
    "maintenance_state",
    "maintenance_notification_hash",
    "orig_host_address",
    "orig_socket_timeout",
    "orig_socket_connect_timeout",
    "oss_cluster_maint_notifications_handler",
    "himport_registry",
    # of TLS, beside what is told: the interpreter's own
    "ssl_include_verify_flags",
    "ssl_exclude_verify_flags",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_min_version",
    "ssl_ciphers",
    "ssl_password",
}
"""What a connection could be told and is not, because none of it can make anybody wait, retry or trust."""

SERVER: Final = Target(host="127.0.0.1", port=6379, db=3, username="nexcache", password="secret")
SENTINEL: Final = SentinelTarget(SERVER, "main", (("127.0.0.1", 26379),))
TARGETS: Final[dict[str, Target | SentinelTarget]] = {
    "tcp": SERVER,
    "tls": Target(host="127.0.0.1", db=3, username="nexcache", password="secret", tls=True),
    "unix": Target(unix_socket="/run/redis.sock", db=3, username="nexcache", password="secret"),
    "sentinel": SENTINEL,
    "node of a cluster": ClusterTarget(SERVER, (("127.0.0.1", 7000),)).server.at(("127.0.0.1", 7000)),
}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the client's class is given, by name."""
    given: dict[str, Any] = {}
    init = AbstractConnection.__init__

    def spy(self: AbstractConnection, **options: Any) -> None:
        given.update(options)
        init(self, **options)

    monkeypatch.setattr(AbstractConnection, "__init__", spy)
    return given


@pytest.mark.parametrize("kind", TARGETS)
def test_what_a_connection_is_told(kind: str, told: dict[str, Any]) -> None:
    connection = TARGETS[kind].connection(TIMEOUT)

    expected = TOLD | {"client_name": told["client_name"]}
    if kind == "tls":
        expected["socket_connect_timeout"] = 1.0  # the handshake too; behind the requests, which do not wait for it
    assert {name: told[name] for name in expected} == expected
    assert told["client_name"].startswith("nexcache-")
    assert told["retry"].get_retries() == 0
    assert isinstance(told["retry"]._backoff, NoBackoff)
    assert (told["retry_on_timeout"], told["decode_responses"]) == (False, False)
    assert not told["maint_notifications_config"].enabled
    if kind != "unix":
        assert connection.socket_keepalive is True  # type: ignore[attr-defined]
        assert connection.socket_keepalive_options[socket.TCP_KEEPIDLE] <= 15  # type: ignore[attr-defined]
    if kind == "tls":
        context = connection.ssl_context  # type: ignore[attr-defined]
        assert (context.cert_reqs, context.check_hostname) == (2, True)


@pytest.mark.parametrize("kind", TARGETS)
def test_nothing_else_is_left_to_the_clients_defaults(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version of the client that can be told more fails here, and somebody decides."""
    given: set[str] = set()
    made = type(TARGETS[kind].connection(TIMEOUT))
    for each in made.__mro__[:-1]:
        if "__init__" in vars(each) and each.__module__.startswith("redis."):
            monkeypatch.setattr(each, "__init__", _noting(vars(each)["__init__"], given))
    TARGETS[kind].connection(TIMEOUT)

    possible = {
        name
        for each in made.__mro__
        if each.__module__.startswith("redis.")
        for name in inspect.signature(getattr(client, each.__name__).__init__).parameters
    }
    assert possible - given - {"self"} - LEFT_TO_THE_CLIENT == set()


def _noting(init: Callable[..., None], given: set[str]) -> Callable[..., None]:
    def noting(self: object, *args: Any, **options: Any) -> None:
        given.update(options)
        init(self, *args, **options)

    noting.__signature__ = inspect.signature(init)  # type: ignore[attr-defined]
    return noting


async def test_a_sentinel_is_asked_once_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Redis] = []

    async def discover(self: Sentinel, _: str) -> tuple[str, int]:
        asked.extend(self.sentinels)
        return "127.0.0.1", 6379

    monkeypatch.setattr(Sentinel, "discover_master", discover)
    await SENTINEL.primary()

    (sentinel,) = asked
    options = sentinel.connection_pool.connection_kwargs
    assert (options["socket_timeout"], options["socket_connect_timeout"], options["protocol"]) == (0.2, 0.2, 2)
    assert options["retry"].get_retries() == 0
    assert options["socket_keepalive"] is True


# --- what is said on the wire ----------------------------------------------------------------------------------------


class Recording:
    """A server that notes what it is told, and answers only a greeting and who it is."""

    def __init__(self) -> None:
        self.port = 0
        self.connections: list[list[tuple[bytes, ...]]] = []
        self.silent = False
        self._writers: list[asyncio.StreamWriter] = []

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard: list[tuple[bytes, ...]] = []
        self.connections.append(heard)
        self._writers.append(writer)
        parser = hiredis.Reader()
        while data := await reader.read(65536):
            parser.feed(data)
            while (words := parser.gets()) is not False:
                heard.append(tuple(words))
                if self.silent:
                    continue
                match [bytes(word).upper() for word in words]:
                    case [b"INFO", b"SERVER"]:
                        writer.write(b"$12\r\nrun_id:abcde\r\n")
                    case [b"INFO", *_]:
                        writer.write(b"$28\r\nrole:master\r\nmaster_replid:a\r\n")
                    case [b"AUTH" | b"SELECT" | b"CLIENT", *_]:
                        writer.write(b"+OK\r\n")

    def hang_up(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def said(self, name: bytes) -> list[tuple[bytes, ...]]:
        """Return every such command, of all connections."""
        return [words for heard in self.connections for words in heard if words[0].upper() == name]


@pytest.fixture
async def recording() -> AsyncIterator[Recording]:
    made = Recording()
    server = await asyncio.start_server(made.accept, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    made.hang_up()
    server.close()


@asynccontextmanager
async def store_on(port: int, *, timeout: float = 0.3, **place: Any) -> AsyncIterator[RedisStore]:  # noqa: ASYNC109
    emitter = Emitter()
    store = RedisStore(Target(host="127.0.0.1", port=port, **place), emitter=emitter, timeout=timeout)
    try:
        yield store
    finally:
        await store.aclose()


async def test_the_greeting_is_a_password_a_name_and_a_database_and_nothing_else(recording: Recording) -> None:
    async with store_on(recording.port, db=3, username="nexcache", password="secret") as store:
        with pytest.raises(StoreUnavailable):
            await store.read([b"k"])

    (heard,) = recording.connections[:1]
    assert [words[0] for words in heard] == [b"AUTH", b"CLIENT", b"SELECT", b"INFO", b"INFO", b"MGET"]
    assert heard[0] == (b"AUTH", b"nexcache", b"secret")
    assert heard[1][1] == b"SETNAME"


async def test_a_command_that_is_not_answered_in_time_is_sent_once(recording: Recording) -> None:
    async with store_on(recording.port) as store:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="in time"):
            await store.read([b"k"])
        assert time.monotonic() - started < 5  # the client would have tried ten times

    assert len(recording.said(b"MGET")) == 1


async def test_a_read_whose_connection_is_lost_is_sent_twice_and_no_more(recording: Recording) -> None:
    async with store_on(recording.port, timeout=5.0) as store:
        reading = asyncio.create_task(store.read([b"k"]))
        for times in (1, 2):
            await until(lambda times=times: len(recording.said(b"MGET")) == times)  # type: ignore[misc]
            recording.hang_up()
        with pytest.raises(StoreUnavailable):
            await reading

    assert len(recording.said(b"MGET")) == 2


# --- what counts is never sent twice ---------------------------------------------------------------------------------

Count = Callable[[NexCache], Awaitable[object]]


async def _pipelined(cache: NexCache) -> None:
    async with cache.tenant("acme").pipeline() as pipeline:
        pipeline.set("other", 1)
        pipeline.increment("n", 7)


async def _limited(cache: NexCache) -> None:
    await cache.rate_limit("100/hour", name="n").check("x", tenant="acme")


async def _counted(cache: NexCache) -> None:
    store = cache._parts.store
    assert isinstance(store, RedisStore)
    await store.add(b"nexarch:acme:@stats", {b"n": 7}, once={}, ttl_ms=60_000)


def _value(server: Valkey) -> int:
    (key,) = server.ask("KEYS", "nexarch.value:*n")
    return int(server.ask("GET", key))


COUNTS: Final[dict[str, tuple[Count, Callable[[Valkey], int], int]]] = {
    "increment": (lambda cache: cache.tenant("acme").increment("n", 7), _value, 7),
    "increment in a pipeline": (_pipelined, _value, 7),
    "rate limit": (_limited, lambda server: server.calls().get("eval", 0), 1),
    "statistics": (_counted, lambda server: int(server.ask("HGET", "nexarch:acme:@stats", "n")), 7),
}


@pytest.mark.parametrize("kind", COUNTS)
async def test_an_increment_whose_answer_was_lost_is_not_sent_again(own_valkey: Valkey, kind: str) -> None:
    """The server has carried it out, and nobody heard of it: a second time would count twice."""
    count, read, expected = COUNTS[kind]
    async with FaultProxy(own_valkey.port) as link:
        url = SecretStr(f"redis://127.0.0.1:{link.port}")
        cache = NexCache(Settings(redis_url=url, redis_host=None, op_timeout_ms=2000, l1_enabled=False))
        async with cache:
            await cache.tenant("acme").get("nothing")
            await cache._parts.store.numbers(b"nexarch:acme:@stats")  # both connections are open
            link.down.swallow = True
            doing: asyncio.Future[object] = asyncio.ensure_future(count(cache))
            await until(lambda: link.seen["swallowed"], "the server answers")
            link.heal()
            link.reset()
            outcome = (await asyncio.gather(doing, return_exceptions=True))[0]
            assert kind == "rate limit" or isinstance(outcome, StoreError), outcome
            assert await asyncio.to_thread(read, own_valkey) == expected
            await cache.tenant("acme").get("nothing")  # and the connection was opened again


# --- who is refused does not knock again and again -------------------------------------------------------------------


async def test_with_a_wrong_password_all_connections_together_knock_once_a_second(own_valkey: Valkey) -> None:
    """Counted by the server: two lanes, the ear for messages, and whoever asks for health."""
    own_valkey.ask("CONFIG", "SET", "requirepass", "right")
    cache = NexCache(Settings(redis_url=SecretStr(f"redis://:wrong@127.0.0.1:{own_valkey.port}"), redis_host=None))
    changes: list[BackendChanged] = []
    cache.emitter.subscribe(changes.append, BackendChanged)  # type: ignore[arg-type]

    def refused() -> int:
        import redis  # noqa: PLC0415 - the helper has no password

        with redis.Redis(port=own_valkey.port, password="right", protocol=2) as inside:
            found: Any = inside.execute_command("INFO", "errorstats")
            return int(found.get("errorstat_WRONGPASS", {}).get("count", 0))

    async with cache:
        store = cache._parts.store
        started = time.monotonic()
        while time.monotonic() - started < 2.2:
            with pytest.raises(StoreRefused):
                await store.read([b"k"])
            await cache.health()
            await asyncio.sleep(0.01)
        took = time.monotonic() - started
        knocked = await asyncio.to_thread(refused)
        health = await cache.health()

    assert 2 <= knocked <= took + 1
    assert "auth" in health.store.detail if hasattr(health, "store") else "credentials" in health.detail
    assert [change.kind for change in changes if not change.available] == ["auth"], "one line"


@pytest.mark.parametrize(
    ("what", "words", "kind"),
    [
        ("no memory", ("CONFIG", "SET", "maxmemory", "1"), "out-of-memory"),
        ("no permission", ("ACL", "SETUSER", "default", "-set"), "auth"),
    ],
)
async def test_what_is_refused_is_asked_for_once_and_has_a_health_state_of_its_own(
    own_valkey: Valkey, what: str, words: tuple[str, ...], kind: str
) -> None:
    emitter, changes = Emitter(), list[BackendChanged]()
    emitter.subscribe(changes.append, BackendChanged)  # type: ignore[arg-type]
    store = RedisStore(Target(host="127.0.0.1", port=own_valkey.port), emitter=emitter, timeout=1.0)
    await store.read([b"k"])
    own_valkey.ask(*words)
    before = _refusals(own_valkey)
    for _ in range(20):
        with pytest.raises(StoreRefused):
            await store.write(b"k", b"v" * 100, ttl_ms=1000)
    assert _refusals(own_valkey) - before == 20, f"{what}: none of them twice"
    assert store.available, "the breaker is not for this"
    assert list((await store.read([b"k"])).values) == [None]
    assert (await store.health()).detail == f"refuses: {kind}"
    assert [change.kind for change in changes] == [kind]
    await store.aclose()


def _refusals(server: Valkey) -> int:
    found = server.ask("INFO", "errorstats")
    return sum(
        int(numbers["count"]) for name, numbers in found.items() if name in ("errorstat_OOM", "errorstat_NOPERM")
    )
