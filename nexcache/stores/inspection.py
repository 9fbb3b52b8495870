"""Reads from a server what its diagnosis needs, over a connection of its own; changes nothing that is not its own."""

import asyncio
import math
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any, Final, Self

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from nexcache.diagnosis import Facts, Keys, Refusal, Unreachable
from nexcache.stores.cluster import slots_of
from nexcache.stores.faults import classify
from nexcache.stores.target import Address, AnyTarget, ClusterTarget, SentinelTarget, Target

_LOOPBACK: Final = frozenset(("localhost", "127.0.0.1", "::1"))
_LOOKED_AT: Final = 20_000
_STEP: Final = 500
_EXAMPLES: Final = 3
_PINGS: Final = 5
_CLOSING: Final = 0.1
"""Seconds for connections that the client gave up itself: with TLS, closing one takes an answer."""
_CONFIG: Final = (
    "min-replicas-to-write",
    "min-replicas-max-lag",
    "min-slaves-to-write",
    "min-slaves-max-lag",
    "maxmemory-policy",
)
_KEPT_FAMILIES: Final = (b"nexarch.value:", b"nexarch.session:")
"""What may be kept until it is deleted."""
PROBED_FAMILIES: Final = (
    "nexarch:",
    "nexarch.stats:",
    "nexarch.trend:",
    "nexarch.switch:",
    "nexarch.limit:",
    "nexarch.value:",
    "nexarch.session:",
    "nexarch.quota:",
    "nexarch.key:",
)
"""Where the cache has keys that it must be permitted to use."""


def probes(tenant: str) -> Sequence[tuple[str, tuple[str, ...]]]:
    """Return every command that the cache uses, on keys of a tenant that nobody has; what is written goes in seconds.

    The keys carry a hash tag, so that on a cluster all are on one node.
    """
    own = f"{{{tenant}}}"
    text, other, names, fields = (f"nexarch:{own}:doctor:{name}" for name in ("text", "other", "names", "fields"))
    count, ranks = f"nexarch:{own}:doctor:count", f"nexarch:{own}:doctor:ranks"
    found: list[tuple[str, tuple[str, ...]]] = [
        ("ping", ("PING",)),
        ("info", ("INFO", "server")),
        ("time", ("TIME",)),
        ("dbsize", ("DBSIZE",)),
        ("scan", ("SCAN", "0", "COUNT", "1")),
        ("set", ("SET", text, "1", "PX", "10000")),
        ("get", ("GET", text)),
        ("mget", ("MGET", text, other)),
        ("strlen", ("STRLEN", text)),
        ("getrange", ("GETRANGE", text, "0", "1")),
        ("pttl", ("PTTL", text)),
        ("pexpire", ("PEXPIRE", text, "10000")),
        ("persist", ("PERSIST", other)),
        ("exists", ("EXISTS", text)),
        ("incrby", ("INCRBY", text, "1")),
        ("sadd", ("SADD", names, "a")),
        ("smembers", ("SMEMBERS", names)),
        ("smismember", ("SMISMEMBER", names, "a")),
        ("hset", ("HSET", fields, "a", "1")),
        ("hsetnx", ("HSETNX", fields, "b", "1")),
        ("hincrby", ("HINCRBY", fields, "a", "1")),
        ("hget", ("HGET", fields, "a")),
        ("hmget", ("HMGET", fields, "a")),
        ("hgetall", ("HGETALL", fields)),
        ("hdel", ("HDEL", fields, "a")),
        ("zadd", ("ZADD", ranks, "1", "a")),
        ("zrangebyscore", ("ZRANGEBYSCORE", ranks, "-inf", "1")),
        ("zcard", ("ZCARD", ranks)),
        ("zrem", ("ZREM", ranks, "a")),
        ("pfadd", ("PFADD", count, "a")),
        ("pfcount", ("PFCOUNT", count)),
        ("eval", ("EVAL", "return redis.call('GET', KEYS[1])", "1", text)),
        ("publish", ("PUBLISH", f"nexarch:@acks:doctor-{tenant}", "")),
    ]
    found += [
        (f"set on {family}*", ("SET", f"{family}{own}:doctor", "1", "PX", "1000")) for family in PROBED_FAMILIES[1:]
    ]
    # last, so that nothing is left behind
    found += [("del", ("DEL", other)), ("unlink", ("UNLINK", text, names, fields, count))]
    return found


async def servers(target: AnyTarget) -> Sequence[Target | SentinelTarget]:
    """Return the servers of a target, each to be looked at by itself.

    Of a cluster these are its primaries, and those that are named beside them: a node that is not reached is told of.
    """
    if not isinstance(target, ClusterTarget):
        return [target]
    return [target.server.at(address) for address in dict.fromkeys((*await primaries(target), *target.nodes))]


async def primaries(target: ClusterTarget) -> Sequence[Address]:
    """Ask one node after the other which primaries the cluster has; none if nobody says it."""
    for address in target.nodes:
        try:
            async with Inspection(target.server.at(address)) as inspection:
                slots = await inspection.ask("CLUSTER", "SLOTS")
        except (exceptions.RedisError, OSError):
            continue
        found = None if isinstance(slots, Exception) else slots_of(slots, address)
        if found is not None:
            return tuple(dict.fromkeys(found))
    return ()


async def mend(target: AnyTarget, ttl_ms: int) -> int:
    """Give all of the cache's keys that never expire an expiry, on all servers that hold some.

    Returns how many now have one; raises StoreError.
    """
    mended = 0
    holders: Sequence[Target | SentinelTarget] = ()
    if isinstance(target, ClusterTarget):
        holders = [target.server.at(address) for address in await primaries(target)]
    for server in holders or await servers(target):
        try:
            async with Inspection(server) as inspection:
                mended += await inspection.give_expiry(ttl_ms, most=math.inf)
        except (exceptions.RedisError, OSError) as error:
            raise classify(error) from error
    return mended


class Inspection:
    """A connection to one server, to be asked one command after the other. An async context manager."""

    def __init__(self, target: Target | SentinelTarget, *, timeout: float = 2.0) -> None:
        self._target = target
        self._timeout = timeout
        self._connection: AbstractConnection = target.connection(timeout)

    async def __aenter__(self) -> Self:
        """Begin; the connection is opened by `facts`."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._connection.disconnect()
        except (exceptions.RedisError, OSError, TimeoutError):
            pass  # it was lost before
        await asyncio.sleep(_CLOSING)

    async def facts(self, *, on_cluster: bool = False) -> Facts:
        """Read all there is to know; a server that cannot be reached is a fact, too."""
        server = self._target.server if isinstance(self._target, SentinelTarget) else self._target
        known: dict[str, Any] = {
            "server": str(self._target),
            "loopback": bool(server.unix_socket) or all(host in _LOOPBACK for host in _hosts(self._target)),
            "tls": server.tls,
            "password": bool(server.password or server.credentials),
            "on_cluster": on_cluster,
        }
        # asked first: a server without TLS waits for the end of a line, and a handshake with it for its timeout
        if isinstance(self._target, Target) and server.tls and await self._speaks_plainly(self._target):
            return Facts(**known, unreachable=Unreachable("plain", ""))
        try:
            async with asyncio.timeout(self._timeout + self._target.opening):
                await self._connection.connect()  # type: ignore[no-untyped-call] # the client's
            known["certificate_ends"] = self._certificate_ends()
            return Facts(**known, **await self._read())
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            return Facts(**known, unreachable=_why(error, tls=server.tls))

    async def ask(self, *words: str | bytes) -> Any:
        """Send one command; an answer that is an error is returned. Raises for a connection that is lost."""
        async with asyncio.timeout(self._timeout):
            await self._connection.send_command(*words)
            try:
                return await self._connection.read_response(disable_decoding=True)
            except exceptions.ResponseError as refused:
                return refused

    async def give_expiry(self, ttl_ms: int, *, most: float = _LOOKED_AT) -> int:
        """Give those of the cache's keys that never expire an expiry; returns how many now have one."""
        given = 0
        cursor: bytes = b"0"
        looked_at = 0
        while True:
            scanned = await self._scan(cursor, b"nexarch:*")
            if scanned is None:
                return given
            cursor, keys = scanned
            for key in keys:
                if not key.startswith(b"nexarch:@") and await self.ask("PTTL", key) == -1:
                    given += await self.ask("PEXPIRE", key, str(ttl_ms)) == 1
            looked_at += _STEP
            if cursor == b"0" or looked_at > most:
                return given

    async def evict(self, policy: str) -> bool:
        """Set what the server evicts; False where that is not permitted."""
        return not isinstance(await self.ask("CONFIG", "SET", "maxmemory-policy", policy), Exception)

    async def _speaks_plainly(self, target: Target) -> bool:
        """Whether a server answers without TLS."""
        try:
            async with asyncio.timeout(self._timeout):
                reader, writer = await asyncio.open_connection(target.host, target.port)
                try:
                    writer.write(b"PING\r\n")
                    return await reader.read(1) in (b"+", b"-")
                finally:
                    writer.close()
                    await writer.wait_closed()
        except (OSError, TimeoutError):
            return False

    async def _read(self) -> dict[str, Any]:
        took = []
        for _ in range(_PINGS):
            started = time.perf_counter()
            answer = await self.ask("PING")
            took.append(time.perf_counter() - started)
            if isinstance(answer, exceptions.AuthenticationError) or str(answer).startswith("NOAUTH"):
                raise answer
        user = await self.ask("ACL", "WHOAMI")
        name = None if isinstance(user, Exception) else bytes(user).decode("utf-8", "replace")
        return {
            "response_ms": sorted(took)[_PINGS // 2] * 1000,
            "info": await self._info(),
            "config": await self._config(),
            "user": name,
            "user_words": await self._rights(name),
            "refusals": await self._refusals(),
            "clock_ahead": await self._clock(),
            "keys": await self._keys(),
        }

    async def _info(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for section in ("server", "replication", "memory", "cluster"):
            answer = await self.ask("INFO", section)
            if not isinstance(answer, Exception):
                for line in bytes(answer).decode("utf-8", "replace").splitlines():
                    name, separator, value = line.partition(":")
                    if separator:
                        found[name] = value
        return found

    async def _config(self) -> Mapping[str, str] | None:
        found: dict[str, str] = {}
        for name in _CONFIG:
            answer = await self.ask("CONFIG", "GET", name)
            if isinstance(answer, Exception):
                return None
            if len(answer) == 2:  # noqa: PLR2004 - a name and its value
                found[name] = bytes(answer[1]).decode("utf-8", "replace")
        return found

    async def _rights(self, user: str | None) -> Sequence[str] | None:
        answer = None if user is None else await self.ask("ACL", "GETUSER", user)
        if answer is None or isinstance(answer, Exception):
            return None
        document = dict(zip(answer[::2], answer[1::2], strict=True))
        words = [bytes(flag).decode() for flag in document.get(b"flags", ())]
        return [*words, *bytes(document.get(b"commands", b"")).decode().split()]

    async def _refusals(self) -> Mapping[str, Refusal]:
        found = {}
        for name, words in probes(f"nexcache-doctor-{token_hex(4)}"):
            answer = await self.ask(*words)
            if isinstance(answer, exceptions.AskError):  # another node's keys: it could have been carried out there
                continue
            if isinstance(answer, Exception):
                found[name] = _refusal(answer)
        return found

    async def _clock(self) -> float | None:
        before = time.time()
        answer = await self.ask("TIME")
        after = time.time()
        if isinstance(answer, Exception):
            return None
        return int(answer[0]) + int(answer[1]) / 1e6 - (before + after) / 2

    async def _keys(self) -> Keys:
        cursor: bytes = b"0"
        looked_at = unexpiring = kept = foreign = 0
        examples: list[str] = []
        while True:
            scanned = await self._scan(cursor)
            if scanned is None:
                return Keys()
            cursor, keys = scanned
            looked_at += len(keys)
            for key in keys:
                if not key.startswith((b"nexarch:", b"nexarch.")):
                    foreign += 1
                elif key.startswith(b"nexarch:") and not key.startswith(b"nexarch:@"):
                    if await self.ask("PTTL", key) == -1:
                        unexpiring += 1
                        if len(examples) < _EXAMPLES:
                            examples.append(key.decode("utf-8", "backslashreplace"))
                elif key.startswith(_KEPT_FAMILIES) and await self.ask("PTTL", key) == -1:
                    kept += 1
            if cursor == b"0" or looked_at >= _LOOKED_AT:
                return Keys(looked_at, cursor == b"0", unexpiring, tuple(examples), kept, foreign)

    async def _scan(self, cursor: bytes, pattern: bytes = b"*") -> Any:
        """Return the next cursor and keys; None where SCAN is not permitted."""
        answer = await self.ask("SCAN", cursor, "MATCH", pattern, "COUNT", str(_STEP))
        return None if isinstance(answer, Exception) else (bytes(answer[0]), answer[1])

    def _certificate_ends(self) -> float | None:
        writer = getattr(self._connection, "_writer", None)
        found = writer.get_extra_info("peercert") if writer is not None else None
        if not found:
            return None
        return datetime.strptime(found["notAfter"], "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC).timestamp()


def _hosts(target: Target | SentinelTarget) -> Sequence[str]:
    return [host for host, _ in target.sentinels] if isinstance(target, SentinelTarget) else [target.host]


def _refusal(error: Exception) -> Refusal:
    text = str(error)
    if isinstance(error, exceptions.NoPermissionError) or text.startswith("NOPERM"):
        return Refusal.PERMISSION
    if isinstance(error, exceptions.OutOfMemoryError) or text.startswith(
        ("OOM", "command not allowed when used memory")
    ):
        return Refusal.MEMORY
    if isinstance(error, exceptions.ReadOnlyError) or text.startswith("READONLY"):
        return Refusal.REPLICA
    if "unknown command" in text.lower():
        return Refusal.UNKNOWN
    return Refusal.OTHER


def _why(error: BaseException, *, tls: bool) -> Unreachable:
    """Say why no connection came about, in words of our own: the client's may repeat what was sent."""
    chain = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for each in chain:
        if isinstance(each, ssl.SSLCertVerificationError):
            return Unreachable("certificate", each.verify_message)
    for each in chain:
        if isinstance(each, ssl.SSLError):
            return Unreachable("plain", "")
    for each in chain:
        text = str(each)
        if isinstance(each, exceptions.AuthenticationError | exceptions.AuthorizationError) or text.startswith(
            ("NOAUTH", "WRONGPASS")
        ):
            return Unreachable("auth", "")
        if isinstance(each, socket.gaierror):
            return Unreachable("name", "")
    if isinstance(error, exceptions.TimeoutError | TimeoutError):
        return Unreachable("connection", "no answer in time")
    refused = any(isinstance(each, ConnectionRefusedError) for each in chain)
    if (
        not refused
        and not tls
        and any(isinstance(each, ConnectionError | EOFError | asyncio.IncompleteReadError) for each in chain)
    ):
        return Unreachable("tls", "")
    return Unreachable("connection", "connection refused" if refused else "")
