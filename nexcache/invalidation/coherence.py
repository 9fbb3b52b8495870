"""Keeps what this node remembers of generations right, without asking the store at every hit.

Three things, none of which relies on messages: reads are trusted for one lease from their sending; what is in use is
read again, all at once, every half lease; and nothing is trusted unless this node stands in the register, so that
whoever invalidates strictly knows whom to wait for.
"""

import asyncio
import secrets
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

from nexcache.ending import end
from nexcache.errors import StoreError
from nexcache.invalidation.backplane import Backplane
from nexcache.invalidation.generations import all_seen
from nexcache.invalidation.view import REGISTERED_FOR, View
from nexcache.stores.base import Reading, Register
from nexcache.stores.redis import EVENTS

LONGEST_LEASE: Final = 1.0
"""Seconds; no node may trust a read for longer, so after this time nobody trusts what was read before."""
_FORGOTTEN: Final = REGISTERED_FOR + LONGEST_LEASE
"""Seconds; who stood only in a register that was lost before that trusts nothing any more."""
_IDLE: Final = 10.0
"""Seconds without a read after which a node leaves off renewing."""


class Registers(Protocol):
    """A store that keeps the register of nodes."""

    async def renew(self, node: bytes, registration: bytes, keys: Sequence[bytes]) -> tuple[Reading, bytes | None]:
        """Register a node, then read generations; returns also the register's name. Raises StoreError."""

    async def nodes(self) -> Register:
        """Return the register as it is; raises StoreError."""

    async def begin_register(self) -> None:
        """Give the register a name, if it has none; raises StoreError."""

    async def vouch(self, register: bytes) -> None:
        """Tell all that may ask that a register is whole; raises StoreError."""

    async def remove_node(self, node: bytes, registration: bytes) -> None:
        """Remove a node that has not registered itself again since; raises StoreError."""

    async def publish(self, channel: bytes, payload: bytes) -> None:
        """Send a message; raises StoreError."""


class Coherence:
    """This node's part in keeping every node's memory coherent."""

    def __init__(self, *, store: Registers, view: View, backplane: Backplane) -> None:
        self._store = store
        self._backplane = backplane
        self.view = view
        self._count = 0
        self._asked_at = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._removals: set[asyncio.Task[None]] = set()
        self._register: tuple[bytes, float] | None = None
        """The register's name, and when it was first read under this one."""
        self._vouched_for: bytes | None = None
        self.blocked = False
        """The store has not been told of invalidations yet: nothing that is read from it may be trusted."""

    @property
    def connected(self) -> bool:
        """Whether invalidations of other nodes are heard at once."""
        return self._backplane.connected

    @property
    def lost(self) -> bool:
        """Whether invalidations of other nodes are not heard at once, although this node has tried."""
        return self._backplane.lost

    @property
    def hears(self) -> bool | None:
        """What health says of `connected`; None where it makes no difference to what this node answers."""
        return self.connected

    def on_announcement(self, callback: Callable[[object], None]) -> None:
        """Pass on what other nodes say beside invalidations."""
        self._backplane.on_announcement = callback

    def start(self) -> None:
        """Take part from now on, on this event loop."""
        loop = asyncio.get_running_loop()
        self._backplane.start()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._task = loop.create_task(self._renew(), name="nexcache-renewal")

    async def aclose(self) -> None:
        """Trust nothing any more, and leave the register."""
        self.view.distrust()
        tasks = (self._task, *self._removals)
        self._task = None
        await end(*tasks)
        await self._backplane.aclose()
        if self._count:
            try:
                await self._store.remove_node(self._backplane.node, self._registration())
            except StoreError:
                pass  # whoever waits for this node in vain will remove it

    def observe(self, keys: Sequence[bytes], reading: Reading) -> None:
        """Take generations over that were just read, as a reader sees them."""
        self._asked_at = self.view.clock()
        if not self.blocked:
            self.view.observe(keys, all_seen(reading.values, reading.epoch), sent_at=reading.sent_at)

    def invalidated(self, keys: Collection[bytes]) -> None:
        """Trust these generations no more in this process."""
        self.view.invalidated(keys)

    def message(self, keys: Sequence[bytes]) -> bytes:
        """Write the message down that tells other nodes."""
        return self._backplane.message(keys)

    async def confirmed(self, keys: Sequence[bytes]) -> None:
        """After the generations were removed: return when no node trusts the old ones any more."""
        identity = secrets.token_bytes(12)
        confirmations = self._backplane.expect(identity)
        try:
            register = await self._store.nodes()
            whole = self._is_whole(register.name) or register.vouched
            nodes = dict(register.nodes)
            nodes.pop(self._backplane.node, None)
            await self._store.publish(EVENTS, self._backplane.message(keys, identity))
            if not whole:
                await asyncio.sleep(LONGEST_LEASE)  # for nodes that stand in no register that could be read
            missing = await confirmations.all_of(nodes, timeout=LONGEST_LEASE if whole else 0)
        except StoreError:
            await asyncio.sleep(LONGEST_LEASE)
            return
        finally:
            self._backplane.forget(identity)
        for node in missing:
            removal = asyncio.create_task(self._remove(node, nodes[node]), name="nexcache-removal")
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)

    def _is_whole(self, register: bytes | None) -> bool:
        """Whether every node that may trust what it has read stands in this register.

        One that began lately, by eviction, restart or failover of the server, may have been preceded by one in which
        others stand that still think that they are registered. It has a name of its own, and is relied on only when
        that has been known for as long as anything of before can be trusted.
        """
        now = self.view.clock()
        if register is None:
            self._register = None
        elif self._register is None or self._register[0] != register:
            self._register = register, now
        return self._register is not None and now - self._register[1] >= _FORGOTTEN

    async def _vouch(self, register: bytes | None) -> None:
        """Spare others the wait for a register that this node has known for long enough."""
        if self._is_whole(register) and register is not None and register != self._vouched_for:
            try:
                await self._store.vouch(register)
            except StoreError:
                return
            self._vouched_for = register

    async def _remove(self, node: bytes, registration: bytes) -> None:
        """Take a node out that is gone: one that has not renewed its registration until nothing can be trusted."""
        await asyncio.sleep(LONGEST_LEASE)
        try:
            await self._store.remove_node(node, registration)
        except StoreError:
            pass

    async def _renew(self) -> None:
        while True:
            if self.view.clock() - self._asked_at < _IDLE and not self.blocked:
                keys = self.view.used()
                self._count += 1
                try:
                    reading, register = await self._store.renew(self._backplane.node, self._registration(), keys)
                except StoreError:
                    pass  # trust runs out by itself
                else:
                    self.view.registered(sent_at=reading.sent_at)
                    if keys and not self.blocked:
                        self.view.observe(keys, all_seen(reading.values, reading.epoch), sent_at=reading.sent_at)
                    await self._vouch(register)
            await asyncio.sleep(self.view.lease / 2)

    def _registration(self) -> bytes:
        return b"%d:%d" % (self.view.lease * 1000, self._count)


class Bystander(Coherence):
    """The part of a node that has no memory: it trusts nothing and stands in no register, and tells those that do.

    It listens from its first strict invalidation on, for the confirmations of others.
    """

    @property
    def hears(self) -> bool | None:
        """Not asked: it reads the store at each request."""
        return None

    @property
    def lost(self) -> bool:
        """Not asked, either."""
        return False

    def start(self) -> None:
        """Take no part until there is something to wait for."""

    def observe(self, keys: Sequence[bytes], reading: Reading) -> None:
        """Take nothing over."""

    def invalidated(self, keys: Collection[bytes]) -> None:
        """Trust nothing less than before."""

    async def confirmed(self, keys: Sequence[bytes]) -> None:
        """After the generations were removed: return when no node trusts the old ones any more."""
        self._backplane.start()
        try:
            await self._store.begin_register()  # where no node has a memory, nobody else does
        except StoreError:
            pass
        await super().confirmed(keys)
