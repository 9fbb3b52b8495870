"""Redis or Valkey as a store: every call has a deadline, and a breaker keeps requests from a server that is away.

The client's own defaults wait for a minute on a silent server; none of them applies here.
"""

import asyncio
import math
import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError

from nexcache.ending import end
from nexcache.errors import StoreError, StoreRefused, StoreUnavailable
from nexcache.invalidation.view import boottime
from nexcache.stores.answers import all_fit, fits
from nexcache.stores.base import (
    SENTINEL,
    Capture,
    LeaseOffer,
    Names,
    Reading,
    Register,
    StoreHealth,
    Usage,
    add_up,
    new_token,
)
from nexcache.stores.breaker import Breaker
from nexcache.stores.door import Door
from nexcache.stores.epoch import InfoEpoch, TrustedEpoch
from nexcache.stores.faults import classify, redirected
from nexcache.stores.lane import Again, Before, Command, Epoch, Lane
from nexcache.stores.target import AnyTarget, SentinelTarget, Target
from nexcache.stores.tokens import CLOCK
from nexcache.telemetry.events import BackendChanged, BackendFailed, Emitter
from nexcache.telemetry.names import Result, Tier

__all__ = ["EVENTS", "NODES", "InfoEpoch", "RedisCommands", "RedisStore", "Target", "TrustedEpoch"]

EVENTS: Final = b"nexarch:@events"
"""The channel on which nodes tell each other of invalidations."""
NODES: Final = b"nexarch:@nodes"
"""The hash of the nodes that trust what they have read for a lease."""
_VOUCHED: Final = b"@vouched"
"""The field of that hash which names the register that somebody vouches for; no node has such a name."""
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
_MOST_YOUNG: Final = 50_000
"""Keys of which it is remembered that they need no more time."""
_PROBE: Final = 0.25
"""Seconds between two attempts to reach a server that is away."""
_PROBE_RELAPSED: Final = 1.0
"""The same at most, where it comes and goes: each coming costs requests a deadline, and operators two lines."""
_RELAPSE: Final = 2.0
"""Seconds; a server that goes away again within them has not been well."""


_SOFTEN: Final = b"""
local time = redis.call('TIME')
local now = (time[1] * 1000 + math.floor(time[2] / 1000)) % 1099511627776
for _, key in ipairs(KEYS) do
  local soft = redis.call('GETRANGE', key, 16, 18)
  if #soft == 3 then
    local count = (soft:byte(1) * 65536 + soft:byte(2) * 256 + soft:byte(3) + 1) % 16777216
    local bytes = {}
    for place = 8, 1, -1 do
      local from = place > 3 and now or count
      bytes[place] = string.char(from % 256)
      if place > 3 then now = math.floor(now / 256) else count = math.floor(count / 256) end
    end
    redis.call('SETRANGE', key, 16, table.concat(bytes))
    now = (time[1] * 1000 + math.floor(time[2] / 1000)) % 1099511627776
  end
end
"""
"""Does what `nexcache.stores.base.softened` does, by the server's clock."""


def _milliseconds(reply: Sequence[bytes]) -> int:
    """Read what TIME answers."""
    return (int(reply[0]) * 1000 + int(reply[1]) // 1000) % CLOCK


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


def named_in(name: bytes | None, epoch: bytes) -> bytes | None:
    """Name a register as a reader sees it: one that a restart or a failover brought back is another one."""
    return None if name is None else name + epoch


class RedisCommands(ABC):
    """What each call of a store says to a server; which server that is, and whether it answers, is others' matter."""

    tier = Tier.REDIS

    def __init__(self, *, emitter: Emitter, clock: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self._emitter = emitter
        self._young: dict[bytes, float] = {}
        """Until when keys need not be given more time."""
        self._young_of = 0
        self.on_recovery: Callable[[], None] | None = None

    @property
    @abstractmethod
    def target(self) -> AnyTarget:
        """Where the server or the servers are."""

    @property
    @abstractmethod
    def connect(self) -> Callable[[], AbstractConnection]:
        """Makes further connections, over which messages can be heard."""

    @property
    @abstractmethod
    def door(self) -> Door:
        """What further connections enter through."""

    @property
    def again(self) -> "RedisStore | None":
        """What reads again at once what was read before; None where several servers are asked."""
        return None

    @property
    @abstractmethod
    def available(self) -> bool:
        """Whether calls are let through."""

    @property
    def breaker(self) -> Breaker | None:
        """What keeps all calls from the server; None where there are several servers, each with its own."""
        return None

    @property
    @abstractmethod
    def pace(self) -> float:
        """About how many seconds an answer takes lately; of any thread."""

    @property
    @abstractmethod
    def commands(self) -> int:
        """Commands sent since start."""

    @abstractmethod
    async def health(self) -> StoreHealth:
        """Ask the store how it is; never raises StoreError."""

    @abstractmethod
    async def aclose(self) -> None:
        """Give back sockets; a later call opens them again."""

    @abstractmethod
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
        """Send commands; raises for an answer that is an error, unless it is one of the `optional` ones.

        All keys of a group are of one tenant, and those of a cluster therefore on one node.
        """

    async def read(
        self,
        keys: Sequence[bytes],
        *,
        deadline: float | None = None,
        on_sent: Callable[[], None] | None = None,
        timed: bool = False,
        expiring: bool = False,
    ) -> Reading:
        """Read several keys with one MGET, the clock with TIME, and the first key's expiry with PTTL.

        The expiry is read first: of a key that is written in between it is that of the older value.
        """
        sent = _Sent(self._clock, on_sent)
        commands: list[Command] = [("PTTL", keys[0])] if expiring else []
        commands.append(("MGET", *keys))
        if timed:
            commands.append(("TIME",))
        replies, epoch = await self._call("get", commands, deadline=deadline, on_sent=sent)
        left = replies.pop(0) if expiring else -1
        return Reading(
            replies[0],
            epoch,
            sent.at,
            _milliseconds(replies[1]) if timed else None,
            left / 1000 if left >= 0 else None,
        )

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
        shows that a glob would not have found it. Who asks for a lease has just read the generations: where all is
        there, nothing is registered or created.
        """
        leased, tokens, registered_as = False, (registry, *keys), (registry, operation)
        if lease is not None:
            aging, sent = self._aging(tokens, ttl_ms), _Sent(self._clock, on_sent)
            commands = self._capturing((), keys, registered_as, aging)
            commands.append(("SET", lease.name, lease.token, "NX", "PX", lease.ttl_ms))
            replies, epoch = await self._call("capture", commands, deadline=deadline, on_sent=sent)
            won = replies.pop() is not None
            found, left = self._captured(replies, epoch, sent.at, leased=won)
            if found.complete and found.registered and None not in found.tokens:
                if aging:
                    await self._extend(aging, left, ttl_ms=ttl_ms, deadline=deadline)
                return found
            leased, on_sent = won, None
        creating: list[Command] = [("SADD", registry, operation)]
        creating += [("SET", key, new_token(), "PX", ttl_ms, "NX") for key in keys]
        sent = _Sent(self._clock, on_sent)
        commands = self._capturing(creating, keys, registered_as, tokens)
        replies, epoch = await self._call("capture", commands, deadline=deadline, on_sent=sent)
        found, left = self._captured(replies[len(creating) :], epoch, sent.at, leased=leased)
        if found.complete and found.registered:
            await self._extend(tokens, left, ttl_ms=ttl_ms, deadline=deadline)
        return found

    @staticmethod
    def _capturing(
        creating: Sequence[Command], keys: Sequence[bytes], registered_as: tuple[bytes, bytes], aging: Sequence[bytes]
    ) -> list[Command]:
        """Say what a capture does, in one breath; with for how long those that are `aging` will live."""
        registry, operation = registered_as
        commands: list[Command] = [*creating, *[("PTTL", key) for key in aging], ("TIME",)]
        commands += [("MGET", *keys), ("SMISMEMBER", registry, SENTINEL, operation)]
        return commands

    @staticmethod
    def _captured(
        replies: Sequence[Any], epoch: bytes, sent_at: float, *, leased: bool
    ) -> tuple[Capture, Sequence[int]]:
        """Read what the server answered, but for what was created."""
        *left, clock, tokens, (complete, registered) = replies
        now = _milliseconds(clock)
        return Capture(tokens, epoch, bool(complete), bool(registered), sent_at, leased, now), left

    def _aging(self, keys: Sequence[bytes], ttl_ms: int) -> Sequence[bytes]:
        """Return those keys of which it is not known that they have most of their time before them.

        One that was removed since, and made again with less time by somebody else, expires early, which is a miss.
        """
        now, young = self._clock(), self._young
        if self._young_of != ttl_ms or len(young) > _MOST_YOUNG:
            young.clear()
            self._young_of = ttl_ms
        return [key for key in keys if young.get(key, 0.0) <= now]

    async def _extend(
        self, keys: Sequence[bytes], remaining: Sequence[int], *, ttl_ms: int, deadline: float | None
    ) -> None:
        """Give keys more time that have lived for an eighth of it, and only those: another node may have given more."""
        old, now = ttl_ms - ttl_ms // 8, self._clock()
        due = []
        for key, left in zip(keys, remaining, strict=True):
            if left < old:
                due.append(key)
            else:
                self._young[key] = now + (left - old) / 1000
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

    async def soften(
        self, keys: Sequence[bytes], *, message: bytes | None = None, deadline: float | None = None
    ) -> None:
        """Change tokens that are there with one script, then PUBLISH; refused for lack of memory, among others.

        Not with a bare SETRANGE: on a key that is not there it would make a token that everybody knows, and that
        an entry of before an earlier removal could fit.
        """
        commands: list[Command] = [("EVAL", _SOFTEN, len(keys), *keys)]
        if message is not None:
            commands.append(("PUBLISH", EVENTS, message))
        replies, _ = await self._call("invalidate", commands, deadline=deadline, optional=(1,))
        if message is not None and isinstance(replies[1], Exception):
            self._emitter.emit(BackendFailed("publish", classify(replies[1]).kind))

    async def renew(self, node: bytes, registration: bytes, keys: Sequence[bytes]) -> tuple[Reading, bytes | None]:
        """Register a node that trusts what it has read, then read generations again, in this order.

        Returns also which register that was; None where it was lost at that moment.
        """
        commands = self._registering(node, registration)
        if keys:
            commands.append(("MGET", *keys))
        sent = _Sent(self._clock, None)
        replies, epoch = await self._call("renew", commands, deadline=None, on_sent=sent)
        return Reading(replies[3] if keys else (), epoch, sent.at), named_in(replies[2], epoch)

    @staticmethod
    def _registering(node: bytes, registration: bytes) -> list[Command]:
        """Name the register if it has no name, register a node, and read the register's name."""
        name = ("HSETNX", NODES, SENTINEL, new_token())
        return [name, ("HSET", NODES, node, registration), ("HGET", NODES, SENTINEL)]

    async def nodes(self) -> Register:
        """Read the register with HGETALL."""
        (flat,), epoch = await self._call("invalidate", (("HGETALL", NODES),), deadline=None)
        found = dict(zip(flat[::2], flat[1::2], strict=True))
        name, vouched = named_in(found.pop(SENTINEL, None), epoch), found.pop(_VOUCHED, None)
        return Register(found, name, vouched=name is not None and vouched == name)

    async def begin_register(self) -> None:
        """Give the register a name with HSETNX, if it has none: one that nobody stands in can then be known again."""
        await self._call("renew", (("HSETNX", NODES, SENTINEL, new_token()),), deadline=None)

    async def vouch(self, register: bytes) -> None:
        """Say that a register is known for so long that whoever trusts anything stands in it."""
        await self._call("renew", (("HSET", NODES, _VOUCHED, register),), deadline=None, waited_for=False)

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

    async def ask(
        self,
        operation: str,
        commands: Sequence[Command],
        *,
        repeatable: bool,
        numbers: Sequence[int] = (),
        on_sent: Callable[[], None] | None = None,
    ) -> list[Any]:
        """Send commands and return their answers; those at the places `numbers` may be told that a value is none."""
        replies, _ = await self._call(
            operation, commands, deadline=None, on_sent=on_sent, repeatable=repeatable, optional=frozenset(numbers)
        )
        for place in numbers:
            if isinstance(replies[place], Exception) and not _is_no_number(replies[place]):
                raise classify(replies[place])
        return replies

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

    async def drop(self, key: bytes, names: Sequence[bytes]) -> None:
        """Remove with HDEL."""
        if names:
            await self._call("stats", (("HDEL", key, *names),), deadline=None, waited_for=False)

    async def distinct(self, key: bytes, names: Sequence[bytes], *, ttl_ms: int) -> int:
        """Count with PFADD and PFCOUNT, to about one in a hundred; begins anew `ttl_ms` after its first name."""
        commands: Sequence[Command] = (("PFADD", key, *names), ("PFCOUNT", key), ("PTTL", key))
        (_, number, left), _ = await self._call("stats", commands, deadline=None, waited_for=False)
        if left < 0:
            await self._call("stats", (("PEXPIRE", key, ttl_ms),), deadline=None, waited_for=False)
        return int(number)

    async def usage(self, prefix: bytes, *, most: int) -> Usage:
        """Count with SCAN, in steps that hold up nobody; beyond `most` keys the rest is projected."""
        pattern = re.sub(rb"([\\*?\[\]])", rb"\\\1", prefix) + b"*"
        cursor, looked_at = b"0", 0
        found: dict[bytes, int] = {}  # SCAN may give a key twice
        while True:
            scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", 500)
            (reply, total), _ = await self._call("stats", (scan, ("DBSIZE",)), deadline=None, waited_for=False)
            cursor, keys = reply
            looked_at += 500
            keys = [key for key in keys if not key.startswith(prefix + b"@") and key.count(b":") == _COLONS]
            if keys:
                sizes, _ = await self._call("stats", [("STRLEN", key) for key in keys], deadline=None, waited_for=False)
                found.update(zip(keys, sizes, strict=True))
            if cursor == b"0":
                return add_up(found.items())
            if looked_at >= most:
                factor = max(1.0, total / looked_at)
                return add_up(found.items(), factor=factor, estimated=True)

    async def names(self, prefix: bytes, *, most: int) -> Names:
        """List keys with SCAN, in steps that hold up nobody."""
        pattern = re.sub(rb"([\\*?\[\]])", rb"\\\1", prefix) + b"*"
        cursor, looked_at = b"0", 0
        found: dict[bytes, None] = {}  # SCAN may give a key twice
        while True:
            scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", 500)
            (reply, total), _ = await self._call("stats", (scan, ("DBSIZE",)), deadline=None, waited_for=False)
            cursor, keys = reply
            looked_at += 500
            found |= dict.fromkeys(keys)
            if cursor == b"0":
                return Names(tuple(found), 1.0, complete=True)
            if looked_at >= most:
                return Names(tuple(found), max(1.0, total / looked_at), complete=False)

    async def sweep(self, pattern: bytes, *, cursor: bytes, chosen: Callable[[bytes], bool]) -> tuple[bytes, int]:
        """Go on with SCAN and UNLINK, behind the requests."""
        scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", 500)
        ((following, keys),), _ = await self._call("stats", (scan,), deadline=None, waited_for=False)
        keys = [key for key in keys if chosen(key)]
        removed = 0
        if keys:
            (removed,), _ = await self._call("unlink", (("UNLINK", *keys),), deadline=None, waited_for=False)
        return bytes(following), int(removed)

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


class RedisStore(RedisCommands):
    """The Store protocol over two connections: one for what requests wait for, one for what they do not.

    `timeout` in seconds bounds any answer that a request waits for. After `failures` failures in a row the
    breaker opens: calls fail at once, and one probe at a time looks whether the server is back. With `redirects`,
    whoever calls knows the nodes of a cluster: an answer that names another one is raised as Redirected.
    """

    def __init__(
        self,
        target: Target | SentinelTarget,
        *,
        emitter: Emitter,
        timeout: float = 0.05,
        failures: int = 5,
        epoch: Epoch | None = None,
        connect: Callable[[], AbstractConnection] | None = None,
        clock: Callable[[], float] = boottime,
        redirects: bool = False,
    ) -> None:
        super().__init__(emitter=emitter, clock=clock)
        self._target = target
        self._redirects = redirects
        self._door = Door()
        self._timeout = timeout
        self._breaker = Breaker(failures=failures)
        self._epoch = epoch if epoch is not None else InfoEpoch()
        self._connect = connect if connect is not None else lambda: target.connection(timeout)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._prober: asyncio.Task[None] | None = None
        self._commands_before = 0
        self._away = False
        self._recovered_at = -math.inf
        self._relapses = 0
        self._refused: tuple[str, str] | None = None
        self._lanes = self._new_lanes()

    @property
    def target(self) -> Target | SentinelTarget:
        """Where the server is."""
        return self._target

    @property
    def connect(self) -> Callable[[], AbstractConnection]:
        """Makes further connections to the same server."""
        return self._connect

    @property
    def door(self) -> Door:
        """What all connections to the server enter through."""
        return self._door

    @property
    def again(self) -> "RedisStore | None":
        """What reads again at once what was read before."""
        return self

    @property
    def available(self) -> bool:
        """Whether calls are let through to the server."""
        return not self._breaker.is_open

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
    def breaker(self) -> Breaker:
        """What keeps all calls from the server."""
        return self._breaker

    @property
    def pace(self) -> float:
        """About how many seconds an answer that requests wait for takes lately."""
        return self._lanes[0].pace(self._loop.time()) if self._loop is not None else 0.0

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
        await end(prober)
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
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._on_this_loop()
        if self._breaker.is_open:
            raise StoreUnavailable("breaker", "the store is away; it is being looked for")
        if deadline is not None and deadline <= loop.time():  # says nothing about the store
            raise StoreUnavailable("timeout", "no time was left to ask the store")
        lane = self._lanes[0 if waited_for else 1]
        try:
            replies, epoch = await lane.execute(commands, deadline=deadline, on_sent=on_sent, repeatable=repeatable)
            if not all_fit(commands, replies):
                self._look_at(lane, commands, replies, optional)
        except (StoreUnavailable, StoreRefused) as error:
            self._failed(operation, lane, error)
            raise
        if self._away or self._breaker.in_a_row:
            self._answers()
        if self._refused is not None and self._refused[0] == operation:
            self._refused = None
            self._emitter.emit(BackendChanged("redis", available=True, kind="answers"))
        return replies, epoch

    call = _call

    def _look_at(
        self, lane: Lane, commands: Sequence[Command], replies: Sequence[Any], optional: Collection[int]
    ) -> None:
        """Raise for an error that is not `optional`, and for what is no answer to its command."""
        for index, reply in enumerate(replies):
            if isinstance(reply, Exception):
                if index not in optional:
                    raise self._fault(reply, replies, optional)
            elif not fits(commands[index], reply):
                error = StoreUnavailable("connection", "an answer was not one to what was asked")
                lane.drop(error)  # bytes were lost or changed: nor is what follows the answer to anything
                raise error

    def _failed(self, operation: str, lane: Lane, error: StoreUnavailable | StoreRefused) -> None:
        self._emitter.emit(BackendFailed(operation, error.kind))
        if isinstance(error, StoreRefused):
            self._refuses(operation, error.kind)
            return
        ended_here = lane not in self._lanes  # by `aclose`: not the server's doing
        if error.kind != "busy" and not ended_here and self._breaker.failed():
            self._went_away(error.kind)

    def before(self, keys: Sequence[bytes], values: Sequence[bytes | None], epoch: bytes) -> Before:
        """Write down what was read of an entry and its generations, so that it can be read again at once."""
        return Before(keys, values, epoch)

    def together(self, started: float, budget: float) -> Again | None:
        """Begin to ask for several requests whether that is still so; None where it is to be read whole."""
        loop = self._on_this_loop()
        if self._breaker.is_open:
            return None
        try:
            return self._lanes[0].together(loop, started, budget)
        except (StoreUnavailable, StoreRefused) as error:
            self._failed("get", self._lanes[0], error)
            return None

    def failed(self, again: Again, error: Exception) -> None:
        """Note that a read failed."""
        if isinstance(error, StoreUnavailable | StoreRefused):
            self._failed("get", again.lane, error)

    def _fault(
        self, reply: Exception, replies: Sequence[Any], optional: Collection[int]
    ) -> StoreUnavailable | StoreRefused:
        if not isinstance(reply, AskError):
            return classify(reply)
        if not self._redirects:
            return StoreRefused("refused", "the server is a node of a cluster: set REDIS_URL to redis+cluster://…")
        return redirected(replies, optional) or classify(reply)

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
            self._recovered_at = time.monotonic()
            if self.on_recovery is not None:
                self.on_recovery()
            self._emitter.emit(BackendChanged("redis", available=True, kind="answers"))

    def _went_away(self, kind: str) -> None:
        if not self._away:
            self._away = True
            self._relapses = self._relapses + 1 if time.monotonic() - self._recovered_at < _RELAPSE else 0
            self._emitter.emit(BackendChanged("redis", available=False, kind=kind))
        if self._prober is None or self._prober.done():
            self._prober = asyncio.get_running_loop().create_task(self._probe(), name="nexcache-probe")

    async def _probe(self) -> None:
        """Look for the server until it answers; requests meanwhile pay nothing."""
        pause = min(_PROBE * 2 ** min(self._relapses, 8), _PROBE_RELAPSED)
        while self._breaker.is_open:
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - processes are to spread, not hide
            try:
                replies, _ = await self._lanes[0].execute((("PING",),))
            except StoreError:
                continue
            if not isinstance(replies[0], Exception):
                self._lanes[1].drop()  # it may still wait, more patiently, for a server that has been replaced
                self._answers()

    def _on_this_loop(self) -> asyncio.AbstractEventLoop:
        """Leave sockets of another event loop, or of the process that this one was forked from, alone."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._renew_lanes()
            self._prober = None
            if self._breaker.is_open:
                self._breaker.succeeded()
            self._loop = loop
        return loop

    def _renew_lanes(self) -> None:
        self._commands_before = self.commands
        self._lanes = self._new_lanes()

    def _new_lanes(self) -> tuple[Lane, Lane]:
        return (
            self._new_lane(self._timeout, self._epoch),
            self._new_lane(max(self._timeout * 10, 0.5), TrustedEpoch()),
        )

    def _new_lane(self, timeout: float, epoch: Epoch) -> Lane:
        return Lane(
            self._connect,
            timeout=timeout,
            epoch=epoch,
            renewal=_HALF_LEASE,
            door=self._door,
            opening=self._target.opening,
            told=self._read_same,
        )

    def _read_same(self, number: int, seconds: float) -> None:
        """Note that so many were read again, and were the same."""
        self._emitter.timed(Result.HIT, Tier.REDIS, seconds, number)
        if self._away or self._breaker.in_a_row:
            self._answers()


def _is_no_number(error: Exception) -> bool:
    return any(words in str(error) for words in ("not an integer", "overflow", "wrong kind of value"))
