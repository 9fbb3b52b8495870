"""Redis or Valkey as a store: every call has a deadline, and a breaker keeps requests from a server that is away.

The client's own defaults wait for a minute on a silent server; none of them applies here.
"""

import asyncio
import math
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.maint_notifications import MaintNotificationsConfig

from nexcache.errors import StoreError, StoreRefused, StoreUnavailable
from nexcache.invalidation.view import boottime
from nexcache.stores.base import SENTINEL, Capture, LeaseOffer, Names, Reading, StoreHealth, Usage, new_token
from nexcache.stores.breaker import Breaker, Circuit
from nexcache.stores.faults import classify
from nexcache.stores.lane import Command, Epoch, Lane
from nexcache.telemetry.events import BackendChanged, BackendFailed, Emitter
from nexcache.telemetry.names import Tier

EVENTS: Final = b"nexarch:@events"
"""The channel on which nodes tell each other of invalidations."""
NODES: Final = b"nexarch:@nodes"
"""The hash of the nodes that trust what they have read for a lease."""
_REMOVE_NODE: Final = (
    b"if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('HDEL', KEYS[1], ARGV[1]) end return 0"
)
_PROLONG: Final = (
    b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
)
_RELEASE: Final = b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
_COLONS: Final = 3
"""How many colons the key of an entry has: `nexarch:<tenant>:<op>:<hash>`."""
_HALF_LEASE: Final = 0.125
"""Seconds after which the server's history is read again."""
_AT_ONCE: Final = 16
"""Values that are read together where nobody waits for them."""
_PROBE: Final = 0.5
"""Seconds between two attempts to reach a server that is away."""


class InfoEpoch:
    """Tells a server's history by its run id and its replication id: a restart or a failover is a new epoch."""

    commands: Sequence[Command] = (("INFO", "server"), ("INFO", "replication"))

    def of(self, replies: Sequence[Any]) -> bytes:
        """Return the digest of both ids; raises StoreRefused where INFO is not to be had."""
        found: dict[bytes, bytes] = {}
        for reply in replies:
            if isinstance(reply, BaseException):
                refused = classify(reply)
                if isinstance(refused, StoreUnavailable):
                    raise refused
                raise StoreRefused(
                    "refused",
                    "the server does not permit INFO, which tells a restart or a failover: allow it, or set "
                    "CACHE_FAILOVER=trust and accept that an invalidation may be lost in a failover",
                )
            for line in bytes(reply).splitlines():
                name, _, value = line.partition(b":")
                found[name] = value
        try:
            ids = found[b"run_id"] + b"/" + found[b"master_replid"]
        except KeyError:
            raise StoreRefused("refused", "INFO tells no run_id or master_replid: set CACHE_FAILOVER=trust") from None
        return blake2b(ids, digest_size=8, person=b"nexcache-epoch").digest()


class TrustedEpoch:
    """Takes every answer for one history (`CACHE_FAILOVER=trust`): a failover may revive what was invalidated."""

    commands: Sequence[Command] = ()

    def of(self, replies: Sequence[Any]) -> bytes:
        """Return the only epoch."""
        del replies
        return b""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the server is. Shown without its password."""

    host: str = "localhost"
    port: int = 6379
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_certs: str | None = None
    unix_socket: str | None = None

    def __str__(self) -> str:
        """Name the server for people: no credentials."""
        if self.unix_socket:
            return f"unix://{self.unix_socket}?db={self.db}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"

    def connection(self, timeout: float) -> AbstractConnection:
        """Make a connection, not yet opened, that tries once and leaves all waiting to its lane."""
        options: dict[str, Any] = {
            "db": self.db,
            "username": self.username,
            "password": self.password,
            "socket_timeout": None,  # the lane bounds every wait; a timer per call would cost more than the call
            "socket_connect_timeout": timeout,
            "retry": None,
            "protocol": 2,
            "client_name": f"nexcache-{os.getpid()}",
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if self.unix_socket:
            return UnixDomainSocketConnection(path=self.unix_socket, **options)
        options |= {"host": self.host, "port": self.port}
        if self.tls:
            return SSLConnection(ssl_ca_certs=self.ca_certs, **options)
        return Connection(**options)


class _Sent:
    """Notes when a command left; one that is sent again counts from the first time."""

    __slots__ = ("_clock", "_then", "at")

    def __init__(self, clock: Callable[[], float], then: Callable[[], None] | None) -> None:
        self.at = math.inf
        self._clock = clock
        self._then = then

    def __call__(self) -> None:
        if self.at < math.inf:
            return
        self.at = self._clock()
        if self._then is not None:
            self._then()


class RedisStore:
    """The Store protocol over two connections: one for what requests wait for, one for what they do not.

    `timeout` in seconds bounds any answer that a request waits for. After `failures` failures in a row the
    breaker opens: calls fail at once, and one probe at a time looks whether the server is back.
    """

    tier = Tier.REDIS

    def __init__(
        self,
        target: Target,
        *,
        emitter: Emitter,
        timeout: float = 0.05,
        failures: int = 5,
        epoch: Epoch | None = None,
        connect: Callable[[], AbstractConnection] | None = None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._target = target
        self._clock = clock
        self._emitter = emitter
        self._timeout = timeout
        self._breaker = Breaker(failures=failures)
        self._epoch = epoch if epoch is not None else InfoEpoch()
        self._connect = connect if connect is not None else lambda: target.connection(timeout)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._prober: asyncio.Task[None] | None = None
        self._commands_before = 0
        self._away = False
        self._refused: tuple[str, str] | None = None
        self.on_recovery: Callable[[], None] | None = None
        self._lanes = self._new_lanes()

    @property
    def target(self) -> Target:
        """Where the server is."""
        return self._target

    @property
    def connect(self) -> Callable[[], AbstractConnection]:
        """Makes further connections to the same server."""
        return self._connect

    @property
    def available(self) -> bool:
        """Whether calls are let through to the server."""
        return self._breaker.circuit is Circuit.CLOSED

    async def read(
        self, keys: Sequence[bytes], *, deadline: float | None = None, on_sent: Callable[[], None] | None = None
    ) -> Reading:
        """Read several keys with one MGET."""
        sent = _Sent(self._clock, on_sent)
        (values,), epoch = await self._call("get", (("MGET", *keys),), deadline=deadline, on_sent=sent)
        return Reading(values, epoch, sent.at)

    async def capture(
        self,
        keys: Sequence[bytes],
        *,
        registry: bytes,
        operation: bytes,
        ttl_ms: int,
        deadline: float | None = None,
        on_sent: Callable[[], None] | None = None,
        lease: LeaseOffer | None = None,
    ) -> Capture:
        """Register an operation, create missing tokens, read all of them, and read the registry back.

        The registry is read last: had it been lost and rebuilt by others in between, the operation's absence
        shows that a glob would not have found it.
        """
        commands: list[Command] = [("SADD", registry, operation)]
        commands += [("SET", key, new_token(), "PX", ttl_ms, "NX") for key in keys]
        commands += [("PTTL", key) for key in (registry, *keys)]
        commands += [("MGET", *keys), ("SMISMEMBER", registry, SENTINEL, operation)]
        if lease is not None:
            commands.append(("SET", lease.name, lease.token, "NX", "PX", lease.ttl_ms))
        sent = _Sent(self._clock, on_sent)
        replies, epoch = await self._call("capture", commands, deadline=deadline, on_sent=sent)
        leased = lease is not None and replies.pop() is not None
        tokens, (complete, registered) = replies[-2:]
        if complete and registered:
            await self._extend((registry, *keys), replies[1 + len(keys) : -2], ttl_ms=ttl_ms, deadline=deadline)
        return Capture(
            tokens, epoch, complete=bool(complete), registered=bool(registered), sent_at=sent.at, leased=leased
        )

    async def _extend(
        self, keys: Sequence[bytes], remaining: Sequence[int], *, ttl_ms: int, deadline: float | None
    ) -> None:
        """Give keys more time that have lived for an eighth of it, and only those: another node may have given more."""
        due = [key for key, left in zip(keys, remaining, strict=True) if left < ttl_ms - ttl_ms // 8]
        if due:
            try:
                await self._call("capture", [("PEXPIRE", key, ttl_ms) for key in due], deadline=deadline)
            except StoreError:
                pass  # what expires early is a miss

    async def acquire(self, name: bytes, token: bytes, *, ttl_ms: int, deadline: float | None = None) -> bool:
        """Take a lease with SET NX."""
        (reply,), _ = await self._call("lease", (("SET", name, token, "NX", "PX", ttl_ms),), deadline=deadline)
        return reply is not None

    async def prolong(self, name: bytes, token: bytes, *, ttl_ms: int) -> bool:
        """Renew a lease that is still the holder's; where the server permits no scripts, it cannot be renewed."""
        commands: Sequence[Command] = (("EVAL", _PROLONG, 1, name, token, ttl_ms),)
        (reply,), _ = await self._call("lease", commands, deadline=None, waited_for=False, optional=(0,))
        return bool(reply == 1)

    async def release(self, name: bytes, token: bytes, *, message: bytes) -> None:
        """Remove a lease that is still the holder's, then PUBLISH; neither is needed for anybody to go on."""
        commands: Sequence[Command] = (("EVAL", _RELEASE, 1, name, token), ("PUBLISH", EVENTS, message))
        await self._call("lease", commands, deadline=None, waited_for=False, optional=(0, 1))

    async def lease_left(self, name: bytes) -> float:
        """Ask with PTTL."""
        (left,), _ = await self._call("lease", (("PTTL", name),), deadline=None)
        return max(0, int(left)) / 1000

    async def write(self, key: bytes, value: bytes, *, ttl_ms: int, deadline: float | None = None) -> None:
        """Keep a value with SET PX."""
        await self._call("set", (("SET", key, value, "PX", max(1, ttl_ms)),), deadline=deadline, waited_for=False)

    async def unlink(
        self, keys: Sequence[bytes], *, message: bytes | None = None, deadline: float | None = None
    ) -> int:
        """Remove keys with UNLINK, then PUBLISH: a server without memory still carries out both.

        No promise depends on the message: where the server does not permit it, the keys are removed all the same.
        """
        commands: list[Command] = [("UNLINK", *keys)]
        if message is not None:
            commands.append(("PUBLISH", EVENTS, message))
        replies, _ = await self._call("invalidate", commands, deadline=deadline, optional=(1,))
        if message is not None and isinstance(replies[1], Exception):
            self._emitter.emit(BackendFailed("publish", classify(replies[1]).kind))
        return int(replies[0])

    async def renew(self, node: bytes, registration: bytes, keys: Sequence[bytes]) -> Reading:
        """Register a node that trusts what it has read, then read generations again, in this order."""
        commands: list[Command] = [("HSET", NODES, node, registration)]
        if keys:
            commands.append(("MGET", *keys))
        sent = _Sent(self._clock, None)
        replies, epoch = await self._call("renew", commands, deadline=None, on_sent=sent)
        return Reading(replies[1] if keys else (), epoch, sent.at)

    async def nodes(self) -> Mapping[bytes, bytes]:
        """Return the registered nodes and their registrations."""
        (flat,), _ = await self._call("invalidate", (("HGETALL", NODES),), deadline=None)
        return dict(zip(flat[::2], flat[1::2], strict=True))

    async def remove_node(self, node: bytes, registration: bytes) -> None:
        """Remove a node from the register, unless it has registered itself again since."""
        commands: Sequence[Command] = (("EVAL", _REMOVE_NODE, 1, NODES, node, registration),)
        await self._call("renew", commands, deadline=None, waited_for=False)

    async def publish(self, channel: bytes, payload: bytes) -> None:
        """Send a message to whoever listens."""
        await self._call("invalidate", (("PUBLISH", channel, payload),), deadline=None)

    async def members(self, registry: bytes, *, deadline: float | None = None) -> frozenset[bytes] | None:
        """Read a registry with SMEMBERS; None where its sentinel is missing."""
        (members,), _ = await self._call("invalidate", (("SMEMBERS", registry),), deadline=deadline)
        found = frozenset(members)
        return found - {SENTINEL} if SENTINEL in found else None

    async def restore_sentinel(
        self, registry: bytes, token: bytes, *, ttl_ms: int, deadline: float | None = None
    ) -> None:
        """Remove the tenant's token, and write the sentinel only when that is known to be done."""
        await self._call("capture", (("UNLINK", token),), deadline=deadline)
        commands: Sequence[Command] = (("SADD", registry, SENTINEL), ("PEXPIRE", registry, ttl_ms))
        await self._call("capture", commands, deadline=deadline)

    async def evaluate(
        self, script: bytes, keys: Sequence[bytes], arguments: Sequence[int | bytes], *, deadline: float | None = None
    ) -> Any:
        """Carry out a script with EVAL; never repeated after a doubtful failure, which would count twice."""
        command = ("EVAL", script, len(keys), *keys, *arguments)
        (reply,), _ = await self._call("script", (command,), deadline=deadline, repeatable=False)
        return reply

    async def add(self, key: bytes, amounts: Mapping[bytes, int], *, once: Mapping[bytes, int], ttl_ms: int) -> None:
        """Add with HINCRBY, set with HSETNX."""
        commands: list[Command] = [("HINCRBY", key, name, amount) for name, amount in amounts.items()]
        commands += [("HSETNX", key, name, amount) for name, amount in once.items()]
        commands.append(("PEXPIRE", key, ttl_ms))
        await self._call("stats", commands, deadline=None, waited_for=False, repeatable=False)

    async def numbers(self, key: bytes) -> Mapping[bytes, int]:
        """Read with HGETALL."""
        (flat,), _ = await self._call("stats", (("HGETALL", key),), deadline=None, waited_for=False)
        return {name: int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}

    async def usage(self, prefix: bytes, *, most: int) -> Usage:
        """Count with SCAN, in steps that hold up nobody; beyond `most` keys the rest is projected."""
        pattern = re.sub(rb"([\\*?\[\]])", rb"\\\1", prefix) + b"*"
        cursor, looked_at, entries, size = b"0", 0, 0, 0
        while True:
            (reply,), _ = await self._call(
                "stats", (("SCAN", cursor, "MATCH", pattern, "COUNT", 500),), deadline=None, waited_for=False
            )
            cursor, keys = reply
            looked_at += 500
            keys = [key for key in keys if not key.startswith(prefix + b"@") and key.count(b":") == _COLONS]
            if keys:
                sizes, _ = await self._call("stats", [("STRLEN", key) for key in keys], deadline=None, waited_for=False)
                entries, size = entries + len(keys), size + sum(sizes)
            if cursor == b"0":
                return Usage(entries, size, estimated=False)
            if looked_at >= most:
                (total,), _ = await self._call("stats", (("DBSIZE",),), deadline=None, waited_for=False)
                factor = max(1.0, total / looked_at)
                return Usage(round(entries * factor), round(size * factor), estimated=True)

    async def names(self, prefix: bytes, *, most: int) -> Names:
        """List keys with SCAN, in steps that hold up nobody."""
        pattern = re.sub(rb"([\\*?\[\]])", rb"\\\1", prefix) + b"*"
        cursor, looked_at = b"0", 0
        found: dict[bytes, None] = {}  # SCAN may give a key twice
        while True:
            (reply,), _ = await self._call(
                "stats", (("SCAN", cursor, "MATCH", pattern, "COUNT", 500),), deadline=None, waited_for=False
            )
            cursor, keys = reply
            looked_at += 500
            found |= dict.fromkeys(keys)
            if cursor == b"0":
                return Names(tuple(found), 1.0, complete=True)
            if looked_at >= most:
                (total,), _ = await self._call("stats", (("DBSIZE",),), deadline=None, waited_for=False)
                return Names(tuple(found), max(1.0, total / looked_at), complete=False)

    async def peek_many(self, keys: Sequence[bytes], *, longest: int) -> Sequence[bytes | None]:
        """Read what STRLEN says is short enough, a few values at a time."""
        if not keys:
            return ()
        sizes, _ = await self._call("stats", [("STRLEN", key) for key in keys], deadline=None, waited_for=False)
        wanted = [key for key, size in zip(keys, sizes, strict=True) if 0 < size <= longest]
        values: dict[bytes, bytes | None] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            (read,), _ = await self._call("stats", (("MGET", *some),), deadline=None, waited_for=False)
            values.update(zip(some, read, strict=True))
        return [values.get(key) for key in keys]

    async def health(self) -> StoreHealth:
        """Ask the server for a PING, past the breaker."""
        started = time.perf_counter()
        detail = ""
        try:
            self._on_this_loop()
            replies, _ = await self._lanes[1].execute((("PING",),))
            if isinstance(replies[0], Exception):
                raise classify(replies[0])
            available = self.available
            if not available:
                detail = "recovering"
            elif self._refused is not None:
                detail = f"refuses: {self._refused[1]}"
        except StoreError as error:
            available, detail = False, str(error)
        return StoreHealth(
            mode="redis",
            available=available,
            response_time_ms=(time.perf_counter() - started) * 1000,
            connections=sum(lane.connections for lane in self._lanes),
            commands=self.commands,
            detail=detail,
        )

    @property
    def commands(self) -> int:
        """Commands sent since start."""
        return self._commands_before + sum(lane.commands for lane in self._lanes)

    async def aclose(self) -> None:
        """Close both connections and stop probing; the next call starts again."""
        if self._loop is not asyncio.get_running_loop():
            return
        prober, self._prober = self._prober, None
        lanes = self._lanes
        self._loop = None  # a call that comes meanwhile opens connections of its own
        self._renew_lanes()
        if prober is not None:
            prober.cancel()
            await asyncio.gather(prober, return_exceptions=True)
        for lane in lanes:
            await lane.aclose()

    async def _call(
        self,
        operation: str,
        commands: Sequence[Command],
        *,
        deadline: float | None,
        on_sent: Callable[[], None] | None = None,
        waited_for: bool = True,
        repeatable: bool = True,
        optional: Collection[int] = (),
    ) -> tuple[list[Any], bytes]:
        """Send commands; raises for an answer that is an error, unless it is one of the `optional` ones."""
        loop = self._on_this_loop()
        if self._breaker.circuit is Circuit.OPEN:
            raise StoreUnavailable("breaker", "the store is away; it is being looked for")
        if deadline is not None and deadline <= loop.time():  # says nothing about the store
            raise StoreUnavailable("timeout", "no time was left to ask the store")
        lane = self._lanes[0 if waited_for else 1]
        try:
            replies, epoch = await lane.execute(commands, deadline=deadline, on_sent=on_sent, repeatable=repeatable)
            for index, reply in enumerate(replies):
                if isinstance(reply, Exception) and index not in optional:
                    raise classify(reply)
        except StoreUnavailable as error:
            self._emitter.emit(BackendFailed(operation, error.kind))
            ended_here = lane not in self._lanes  # by `aclose`: not the server's doing
            if error.kind != "busy" and not ended_here and self._breaker.failed():
                self._went_away(error.kind)
            raise
        except StoreRefused as error:
            self._emitter.emit(BackendFailed(operation, error.kind))
            self._refuses(operation, error.kind)
            raise
        self._answers()
        if self._refused is not None and self._refused[0] == operation:
            self._refused = None
            self._emitter.emit(BackendChanged("redis", available=True, kind="answers"))
        return replies, epoch

    def _refuses(self, operation: str, kind: str) -> None:
        """Report a server that is there but refuses once per change, not once per request.

        Only the same operation can show that it is over: a full server refuses to store, but answers reads.
        """
        if self._refused is None or self._refused[1] != kind:
            self._refused = (operation, kind)
            self._emitter.emit(BackendChanged("redis", available=False, kind=kind))

    def _answers(self) -> None:
        self._breaker.succeeded()
        if self._away:
            self._away = False
            if self.on_recovery is not None:
                self.on_recovery()
            self._emitter.emit(BackendChanged("redis", available=True, kind="answers"))

    def _went_away(self, kind: str) -> None:
        if not self._away:
            self._away = True
            self._emitter.emit(BackendChanged("redis", available=False, kind=kind))
        if self._prober is None or self._prober.done():
            self._prober = asyncio.get_running_loop().create_task(self._probe(), name="nexcache-probe")

    async def _probe(self) -> None:
        """Look for the server until it answers; requests meanwhile pay nothing."""
        while self._breaker.circuit is Circuit.OPEN:
            await asyncio.sleep(_PROBE)
            try:
                replies, _ = await self._lanes[0].execute((("PING",),))
            except StoreError:
                continue
            if not isinstance(replies[0], Exception):
                self._answers()

    def _on_this_loop(self) -> asyncio.AbstractEventLoop:
        """Leave sockets of another event loop, or of the process that this one was forked from, alone."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._renew_lanes()
            self._prober = None
            if self._breaker.circuit is Circuit.OPEN:
                self._breaker.succeeded()
            self._loop = loop
        return loop

    def _renew_lanes(self) -> None:
        self._commands_before = self.commands
        self._lanes = self._new_lanes()

    def _new_lanes(self) -> tuple[Lane, Lane]:
        return (
            Lane(self._connect, timeout=self._timeout, epoch=self._epoch, renewal=_HALF_LEASE),
            Lane(self._connect, timeout=max(self._timeout * 10, 0.5), epoch=TrustedEpoch(), renewal=_HALF_LEASE),
        )
