"""Tells other nodes of invalidations, over pub/sub. It only shortens a delay: no promise depends on its messages.

A node that hears of an invalidation raises a barrier in its view and, where the sender waits for it, confirms.
Messages may be lost, late, repeated or out of order; a barrier too many costs one read.
"""

import asyncio
import math
import secrets
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NoReturn, Protocol

import msgpack
from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from nexcache.ending import end
from nexcache.errors import StoreError
from nexcache.invalidation.view import View
from nexcache.stores.door import Door
from nexcache.stores.faults import classify
from nexcache.stores.redis import EVENTS
from nexcache.stores.wire import Wire
from nexcache.telemetry.events import BackplaneChanged, Emitter

_ACKS: Final = b"nexarch:@acks:"
_MOST_KEYS: Final = 10_000
_LONGEST: Final = 1024 * 1024
_HEARTBEAT: Final = 0.15
"""Seconds of silence after which the server is asked whether it is still there."""
_PULSE: Final = 0.3
"""Seconds for its answer: a server that does not answer is hung, and its silence means nothing."""
_SLOWEST: Final = 0.8
"""Seconds between attempts to connect, at most: after an outage the memory is to be of use as soon as the store is."""


class Confirmations:
    """Which nodes have confirmed one invalidation."""

    def __init__(self) -> None:
        self._confirmed: set[bytes] = set()
        self._news = asyncio.Event()

    def add(self, node: bytes) -> None:
        """Note a confirmation."""
        self._confirmed.add(node)
        self._news.set()

    async def all_of(self, nodes: Collection[bytes], *, timeout: float) -> frozenset[bytes]:  # noqa: ASYNC109
        """Wait until all of these nodes have confirmed; returns those that have not when the time is over."""
        missing = frozenset(nodes) - self._confirmed
        try:
            async with asyncio.timeout(timeout):
                while missing:
                    self._news.clear()
                    await self._news.wait()
                    missing = frozenset(nodes) - self._confirmed
        except TimeoutError:
            pass
        return missing


class Publishes(Protocol):
    """A store that can send messages."""

    async def publish(self, channel: bytes, payload: bytes) -> None:
        """Send a message to whoever listens; raises StoreError."""


class Backplane:
    """This node's ear for invalidations, on a connection of its own."""

    def __init__(
        self,
        connect: Callable[[], AbstractConnection],
        *,
        store: Publishes,
        view: View,
        emitter: Emitter,
        timeout: float = 1.0,
        door: Door | None = None,
    ) -> None:
        self._door = door if door is not None else Door()
        self.node: bytes = secrets.token_hex(8).encode()
        self.connected: bool = False
        self.lost: bool = False
        """It is not connected, and that is not for its having only begun."""
        self._connect = connect
        self._store = store
        self._view = view
        self._emitter = emitter
        self._timeout = timeout
        self.on_announcement: Callable[[object], None] = lambda _: None
        """Is told of every message that concerns no invalidation."""
        self._expected: dict[bytes, Confirmations] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen from now on, on this event loop."""
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self.connected = self.lost = False
            self._task = loop.create_task(self._run(), name="nexcache-backplane")

    async def aclose(self) -> None:
        """Stop listening."""
        task, self._task = self._task, None
        self.connected = False  # beforehand: an end on purpose is no loss to tell of
        await end(task)
        self.connected = self.lost = False

    def message(self, keys: Sequence[bytes], identity: bytes = b"") -> bytes:
        """Write down that these generations changed; with an identity the nodes are to confirm it."""
        return bytes(msgpack.packb((1, self.node, identity, list(keys[:_MOST_KEYS]), len(keys) > _MOST_KEYS)))

    def expect(self, identity: bytes) -> Confirmations:
        """Collect the confirmations of an invalidation, until `forget`."""
        return self._expected.setdefault(identity, Confirmations())

    def forget(self, identity: bytes) -> None:
        """Collect no longer."""
        self._expected.pop(identity, None)

    async def _run(self) -> None:
        delay = 0.05
        while True:
            connection = self._connect()
            try:
                await self._listen(connection)
            except (RedisError, OSError, TimeoutError, StoreError):
                delay = min(delay * 2, _SLOWEST) if not self.connected else 0.05
            finally:
                self.lost = True
                self._changed(connected=False)
                try:
                    await connection.disconnect()
                except (RedisError, OSError, TimeoutError):
                    pass
            await asyncio.sleep(delay)

    async def _listen(self, connection: AbstractConnection) -> None:
        async with asyncio.timeout(self._timeout):
            await self._door.enter(connection)
            self._door.opened()
            await connection.send_command("SUBSCRIBE", EVENTS, _ACKS + self.node, check_health=False)
            for _ in range(2):
                await connection.read_response(timeout=math.inf)
        self.lost = False
        self._changed(connected=True)
        heard = _Heard()
        wire = Wire.over(connection, heard.take)
        if wire is not None:
            await self._hear(wire, heard)
        while True:
            try:
                async with asyncio.timeout(_HEARTBEAT):
                    reply = await connection.read_response(timeout=math.inf, disconnect_on_error=False)
            except TimeoutError:
                async with asyncio.timeout(_PULSE):
                    await connection.send_command("PING", check_health=False)
                    reply = await connection.read_response(timeout=math.inf)
            await self._take(reply)

    async def _hear(self, wire: Wire, heard: "_Heard") -> NoReturn:
        """Take what comes as it comes; raises for why no more does."""
        wire.ended.add_done_callback(heard.wake)
        wire.data_received(b"")  # what came right behind the subscription
        while True:
            while heard.replies:
                await self._take(heard.replies.popleft())
            if not await heard.something(_HEARTBEAT, wire):
                wire.write(bytes(pack_command(("PING",))))
                if not await heard.something(_PULSE, wire):
                    raise TimeoutError

    async def _take(self, reply: object) -> None:
        match reply:
            case [b"message", bytes(channel), bytes(payload)]:
                await self._received(channel, payload)

    async def _received(self, channel: bytes, payload: bytes) -> None:
        message = _unpacked(payload)
        if channel == _ACKS + self.node:
            match message:
                case [bytes(identity), bytes(node)] if identity in self._expected:
                    self._expected[identity].add(node)
            return
        match message:
            case [int(), bytes(sender), bytes(identity), list(keys), bool(cut)]:
                if cut:
                    self._view.distrust()
                self._view.invalidated(key for key in keys if isinstance(key, bytes))
                if identity and sender != self.node:
                    await self._confirm(sender, identity)
            case _:
                self.on_announcement(message)

    async def _confirm(self, sender: bytes, identity: bytes) -> None:
        payload = bytes(msgpack.packb((identity, self.node)))
        try:
            await self._store.publish(_ACKS + sender, payload)
        except StoreError:
            pass  # the sender waits the lease out

    def _changed(self, *, connected: bool) -> None:
        if connected != self.connected:
            self.connected = connected
            self._emitter.emit(BackplaneChanged(connected))


class _Heard:
    """What the server has said and nobody has taken yet."""

    def __init__(self) -> None:
        self.replies: deque[object] = deque()
        self._news: asyncio.Future[None] | None = None

    def take(self, replies: list[Any], _errors: bool) -> None:
        """Keep it for whoever waits."""
        self.replies += replies
        self.wake()

    def wake(self, _: object = None) -> None:
        """Have whoever waits look again."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def something(self, seconds: float, wire: Wire) -> bool:
        """Wait until there is something; False: there was nothing for so long. Raises for why no more comes."""
        if not self.replies and not wire.ended.done():
            loop = asyncio.get_running_loop()
            self._news = loop.create_future()
            timer = loop.call_later(seconds, self.wake)
            try:
                await self._news
            finally:
                timer.cancel()
        if not self.replies and wire.ended.done():
            raise classify(wire.ended.result())
        return bool(self.replies)


def _unpacked(payload: bytes) -> Any:
    try:
        return msgpack.unpackb(payload) if len(payload) <= _LONGEST else None
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError):
        return None
