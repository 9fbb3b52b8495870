"""A cluster as a store: each tenant's keys carry its hash tag, so that a tenant lives on one node.

Every node has what a single server has: two connections, a breaker, an epoch of its own. A node that is lost takes
its own tenants along and nobody else's. Who has which slot is asked of any node, whenever an answer or a failure
suggests that it has changed.
"""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import RedisError

from nexcache.ending import end
from nexcache.errors import StoreError, StoreUnavailable
from nexcache.invalidation.view import boottime
from nexcache.stores.base import Names, Reading, StoreHealth
from nexcache.stores.door import Door
from nexcache.stores.faults import Redirected, classify
from nexcache.stores.lane import Command, Epoch
from nexcache.stores.redis import InfoEpoch, RedisCommands, RedisStore, named_in
from nexcache.stores.target import Address, ClusterTarget, named
from nexcache.telemetry.events import BackendChanged, Emitter

_APART: Final = 0.25
"""Seconds between two questions who has which slot, at least."""
_ASKED_FOR: Final = 0.5
"""Seconds for one node to say it."""
_NOT_LATER: Final = 0.25
"""Seconds for which a registration may take; one that took longer may have been removed again."""
_KEY_AT: Final[Mapping[object, int]] = {"EVAL": 3, "SCAN": 3}
"""Where a command's key is, if it is not the first word; SCAN's pattern begins with a tenant's hash tag."""
_KEYLESS: Final = frozenset(("PUBLISH", "DBSIZE", "PING", "INFO", "TIME"))


class ClusterStore(RedisCommands):
    """The Store protocol over a cluster's primaries. Replicas are never read from."""

    def __init__(
        self,
        target: ClusterTarget,
        *,
        emitter: Emitter,
        timeout: float = 0.05,
        failures: int = 5,
        epoch: Callable[[], Epoch] = InfoEpoch,
        clock: Callable[[], float] = boottime,
    ) -> None:
        super().__init__(emitter=emitter, clock=clock)
        self._target = target
        self._timeout = timeout
        self._failures = failures
        self._epoch = epoch
        self._door = Door()
        self._shards: dict[Address, RedisStore] = {}
        self._slots: list[Address] = []
        """The primary of each slot; empty until it has been asked for."""
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")
        self._commands_before = 0

    @property
    def target(self) -> ClusterTarget:
        """Where some of the nodes are."""
        return self._target

    @property
    def connect(self) -> Callable[[], AbstractConnection]:
        """Makes connections to any node: a message that is published on one is heard on all."""
        return lambda: self._target.server.at(random.choice(self._known())).connection(self._timeout)  # noqa: S311

    @property
    def door(self) -> Door:
        """What connections that are not a shard's own enter through."""
        return self._door

    @property
    def available(self) -> bool:
        """Whether calls are let through to every primary."""
        return all(shard.available for shard in self._primaries().values())

    @property
    def pace(self) -> float:
        """About how many seconds an answer of the slowest primary takes lately."""
        return max((shard.pace for shard in self._primaries().values()), default=0.0)

    @property
    def commands(self) -> int:
        """Commands sent since start."""
        return self._commands_before + sum(shard.commands for shard in self._shards.values())

    def shard_of(self, key: bytes) -> RedisStore | None:
        """Return the store of the primary that has a key, as far as it is known."""
        return self._shard(self._slots[key_slot(key)]) if self._slots else None

    async def renew(self, node: bytes, registration: bytes, keys: Sequence[bytes]) -> tuple[Reading, bytes | None]:
        """Register a node, and only when that is known to be done read generations again, on all nodes at once.

        The values are generations as a reader sees them, with the epoch of the node that each was read from.
        """
        started = self._clock()
        replies, history = await self._call("renew", self._registering(node, registration), deadline=None)
        sent_at = self._clock()
        if sent_at - started > _NOT_LATER:
            raise StoreUnavailable("timeout", "the registration took so long that it may have been removed again")
        by_slot = sorted(range(len(keys)), key=lambda index: key_slot(keys[index]))
        groups = [list(group) for _, group in groupby(by_slot, key=lambda index: key_slot(keys[index]))]
        values: list[bytes | None] = [None] * len(keys)

        async def read(group: Sequence[int]) -> None:
            try:
                (found,), epoch = await self._call(
                    "renew", (("MGET", *(keys[index] for index in group)),), deadline=None
                )
            except StoreError:
                return  # trust in these runs out
            for index, value in zip(group, found, strict=True):
                values[index] = None if value is None else value + epoch

        await asyncio.gather(*(read(group) for group in groups))
        return Reading(values, b"", sent_at), named_in(replies[2], history)

    async def names(self, prefix: bytes, *, most: int) -> Names:
        """List keys where they are: on a tenant's node, or on all if the prefix names no tenant."""
        if b"{" in prefix:
            return await super().names(prefix, most=most)
        await self._known_slots(None)
        shards = self._primaries().values()
        found = await asyncio.gather(*(shard.names(prefix, most=max(1, most // len(shards))) for shard in shards))
        return Names(
            tuple(key for names in found for key in names.keys),
            max(names.factor for names in found),
            all(names.complete for names in found),
        )

    async def health(self) -> StoreHealth:
        """Ask every primary for a PING, all at once."""
        started = time.perf_counter()
        try:
            await self._known_slots(None)
        except StoreError as error:
            return StoreHealth("redis", False, _ms(started), 0, self.commands, str(error))
        primaries = self._primaries()
        found = await asyncio.gather(*(shard.health() for shard in primaries.values()))
        faults = [
            f"{named(*address)}: {health.detail or 'away'}"
            for address, health in zip(primaries, found, strict=True)
            if not health.available or health.detail
        ]
        if any(not health.available for health in found):
            self._ask_again()
        return StoreHealth(
            mode="redis",
            available=all(health.available for health in found),
            response_time_ms=_ms(started),
            connections=sum(health.connections for health in found),
            commands=self.commands,
            detail="; ".join(faults),
        )

    async def aclose(self) -> None:
        """Close the connections to all nodes; the next call starts again."""
        asking, self._asking = self._asking, None
        await end(asking)
        for shard in list(self._shards.values()):
            await shard.aclose()

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
        """Send commands to the node that has their keys, and once more where that node names another one."""
        slots = await self._known_slots(deadline)
        key = _key_of(commands)
        address = slots[key_slot(key)] if key is not None else random.choice(slots)  # noqa: S311 - any will do
        shard = self._shard(address)
        options: dict[str, Any] = {"deadline": deadline, "waited_for": waited_for, "repeatable": repeatable}
        try:
            return await shard.call(operation, commands, on_sent=on_sent, optional=optional, **options)
        except Redirected as elsewhere:
            place = (elsewhere.host or address[0], elsewhere.port)
            ask, slot = elsewhere.ask, elsewhere.slot
        except StoreUnavailable:
            self._ask_again()  # another node may have taken over
            raise
        if not ask:
            self._slots[slot] = place
            self._ask_again()
            return await self._shard(place).call(operation, commands, optional=optional, **options)
        asking = [word for command in commands for word in (("ASKING",), command)]
        replies, epoch = await self._shard(place).call(
            operation, asking, optional=[2 * index + 1 for index in optional], **options
        )
        return replies[1::2], epoch

    def _primaries(self) -> dict[Address, RedisStore]:
        return {address: self._shard(address) for address in dict.fromkeys(self._slots)}

    def _known(self) -> list[Address]:
        return list(dict.fromkeys((*self._slots, *self._target.nodes)))

    def _shard(self, address: Address) -> RedisStore:
        shard = self._shards.get(address)
        if shard is None:
            shard = self._shards[address] = RedisStore(
                self._target.server.at(address),
                emitter=self._emitter,
                timeout=self._timeout,
                failures=self._failures,
                epoch=self._epoch(),
                clock=self._clock,
                redirects=True,
            )
            shard.on_recovery = self._recovered
        return shard

    def _recovered(self) -> None:
        if self.on_recovery is not None:
            self.on_recovery()

    async def _known_slots(self, deadline: float | None) -> list[Address]:
        """Return the primary of each slot; only the first call has to wait for it."""
        if self._slots:
            return self._slots
        loop = asyncio.get_running_loop()
        asking = self._ask()
        await asyncio.wait((asking,), timeout=self._timeout if deadline is None else max(0.0, deadline - loop.time()))
        if not self._slots:
            if asking.done() and not asking.cancelled() and isinstance(error := asking.exception(), StoreError):
                raise classify(error)
            raise StoreUnavailable("timeout", "no node of the cluster said in time who has what")
        return self._slots

    def _ask_again(self) -> None:
        """Ask who has which slot, behind the requests, unless that was done a moment ago."""
        if time.monotonic() - self._asked_at >= _APART:
            _ = self._ask()

    def _ask(self) -> "asyncio.Task[None]":
        loop = asyncio.get_running_loop()
        if self._asking is None or self._asking.done() or self._asking.get_loop() is not loop:
            self._asking = loop.create_task(self._learn(), name="nexcache-slots")
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._asking

    async def _learn(self) -> None:
        """Ask one node after the other who has which slot, until one says it."""
        self._asked_at = time.monotonic()
        known = self._known()
        failure: StoreError = StoreUnavailable("connection", "no node of the cluster could be reached")
        for address in random.sample(known, len(known)):
            try:
                slots = await self._ask_node(address)
            except StoreError as error:
                failure = error
                continue
            finally:
                self._asked_at = time.monotonic()
            if slots is not None:
                await self._take(slots)
                return
        raise failure

    async def _ask_node(self, address: Address) -> list[Address] | None:
        connection = self._target.server.at(address).connection(_ASKED_FOR)
        try:
            async with asyncio.timeout(_ASKED_FOR):
                await self._door.enter(connection)
                self._door.opened()
                await connection.send_command("CLUSTER", "SLOTS", check_health=False)
                return slots_of(await connection.read_response(), address)
        except (RedisError, OSError) as error:
            raise classify(error) from error
        finally:
            try:
                await connection.disconnect()
            except (RedisError, OSError):
                pass

    async def _take(self, slots: list[Address]) -> None:
        before, self._slots = set(self._slots), slots
        for address in before - set(slots):  # no longer a primary
            shard = self._shards.pop(address, None)
            if shard is not None:
                self._commands_before += shard.commands
                if not shard.available:
                    self._emitter.emit(BackendChanged("redis", available=True, kind="failover"))
                await shard.aclose()


def slots_of(reply: Any, asked: Address) -> list[Address] | None:
    """Read CLUSTER SLOTS; None where no node has any, as in a cluster that has not formed yet.

    A node that does not know its own name gives none: it is the one that was asked. It also stands for slots that
    nobody has, and refuses their commands.
    """
    slots: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
    for first, last, (host, port, *_), *_ in reply:
        name = bytes(host or b"").decode()
        address = (name if name not in ("", "?") else asked[0], int(port))
        slots[first : last + 1] = [address] * (last + 1 - first)
    return [address or asked for address in slots] if any(slots) else None


def _key_of(commands: Sequence[Command]) -> bytes | None:
    for command in commands:
        if command[0] not in _KEYLESS:
            key = command[_KEY_AT.get(command[0], 1)]
            return key if isinstance(key, bytes) else bytes(str(key), "utf-8")
    return None


def _ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000
