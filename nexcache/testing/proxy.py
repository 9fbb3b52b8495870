"""A TCP proxy that makes the faults of a network: slow, silent, cut off, garbled. It counts each as it happens.

For instance, a server that hears us, and that we no longer hear:

    async with FaultProxy(6379) as proxy:
        cache = NexCache(Settings(redis_url=f"redis://127.0.0.1:{proxy.port}"))
        ...
        proxy.down.swallow = True
        ...
        assert proxy.seen["swallowed"]
"""

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

_CHUNK: Final = 64 * 1024
_SHARE: Final = 0.05
"""Seconds of a throttled way's rate that are passed on at once."""
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a RST at once, and drops what was not sent."""
_AHEAD: Final = 64
"""Pieces that a delayed way holds; then no more is read."""


@dataclass
class Way:
    """What becomes of the bytes in one direction; each field may be changed at any time."""

    delay: float = 0.0
    """Seconds by which everything is late. What follows is late too, but not held up: a long way, not a slow one."""
    jitter: float = 0.0
    """Up to so many seconds more, drawn for each piece; the order stays."""
    rate: float | None = None
    """Bytes per second, at most."""
    swallow: bool = False
    """A black hole: nothing arrives, and nobody is told."""
    flips: int = 0
    """In so many of the pieces to come one bit is turned."""

    def heal(self) -> None:
        """Pass everything on as it comes."""
        self.delay = self.jitter = 0.0
        self.rate, self.swallow, self.flips = None, False, 0


class _Link:
    """One client's connection, and ours to the server for it."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.near = near
        self.far = far
        self.heard: set[bytes] = set()
        """For which bytes, of those that were looked for, it has been seen to send them."""

    def reset(self) -> None:
        for writer in (self.near, self.far):
            _reset(writer)

    def close(self) -> None:
        for writer in (self.near, self.far):
            writer.close()


class FaultProxy:
    """Stands between clients and one TCP server, on a loopback port of its own, and does to both what it is told.

    `up` is the way to the server, `down` the way back. Every method and field may be used from any thread; faults
    that concern open connections have been made when the call returns, or are made in the loop's next turn where the
    call comes from its own thread. The draws of jitter and flipped bits follow from `seed`.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", *, seed: int = 0) -> None:
        self.upstream: tuple[str, int] = (host, port)
        """Where connections that are made from now on lead."""
        self.port: int = 0
        """Where clients are to connect; the same until the end, also after another start."""
        self.only: bytes = b""
        """The ways' faults concern only connections that have sent these bytes in one piece, such as `SUBSCRIBE`."""
        self.up: Way = Way()
        self.down: Way = Way()
        self.seen: Counter[str] = Counter()
        """What was done: `accepted`, `refused`, `reset`, `closed` and `half-closed` connections, `delayed`, `throttled`
        and `flipped` pieces, `swallowed` bytes, and connections for which the server was `unreachable`."""
        self._refusing = False
        self._draw = random.Random(seed)  # noqa: S311 - no secret
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; raises OSError where the port has been taken meanwhile."""
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=_CHUNK)
        self.port = self._server.sockets[0].getsockname()[1]

    async def aclose(self) -> None:
        """Stop listening, and reset what is open."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for link in tuple(self._links):
            link.reset()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._links)

    def heal(self) -> None:
        """Pass everything on again, and let everybody in."""
        self.up.heal()
        self.down.heal()
        self._refusing = False

    def swallow(self) -> None:
        """Be a black hole in both directions: connections stay open, and are silent."""
        self.up.swallow = self.down.swallow = True

    def delay(self, seconds: float, *, jitter: float = 0.0) -> None:
        """Make every answer late by so many seconds, and by up to `jitter` more."""
        self.down.delay, self.down.jitter = seconds, jitter

    def refuse(self) -> None:
        """Reset all connections, and each that comes, until `heal`: to a client, a server that has just died."""
        self._refusing = True
        self.reset()

    def reset(self) -> None:
        """Reset all connections (RST); who connects again is let through."""
        self._each("reset", _Link.reset)

    def close(self) -> None:
        """Close all connections in order (FIN), as a server does that shuts down; who connects again is let through."""
        self._each("closed", _Link.close)

    def half_close(self) -> None:
        """Say to all clients that nothing more will come, and go on listening to them."""

        def end(link: _Link) -> None:
            if not link.near.is_closing():
                link.near.write_eof()

        self._each("half-closed", end)

    def lead_to(self, port: int, host: str = "127.0.0.1") -> None:
        """Lead to another server from now on, and reset what leads to the old one."""
        self.upstream = (host, port)
        self.reset()

    def _each(self, what: str, do: Callable[[_Link], None]) -> None:
        def now() -> None:
            for link in tuple(self._links):
                try:
                    do(link)
                except OSError:
                    continue  # it has ended by itself
                self.seen[what] += 1

        if self._loop is None:
            return
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            now()
            return

        async def there() -> None:
            now()

        asyncio.run_coroutine_threadsafe(there(), self._loop).result(timeout=5)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            self.seen["refused"] += 1
            _reset(writer)
            return
        self.seen["accepted"] += 1
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.upstream, limit=_CHUNK)
        except OSError:
            self.seen["unreachable"] += 1
            _reset(writer)
            return
        link = _Link(writer, far_writer)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on(link, self.up, reader, far_writer))
                group.create_task(self._pass_on(link, self.down, far_reader, writer))
        except* (OSError, RuntimeError):
            link.reset()  # one side is gone at once: so is the other
        finally:
            self._links.discard(link)
            link.close()

    async def _pass_on(
        self, link: _Link, given: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Read and write apart from each other, so that what is late holds up nothing that follows."""
        loop, plain = asyncio.get_running_loop(), Way()

        def now() -> Way:
            return given if not self.only or self.only in link.heard else plain

        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_AHEAD)

        async def read() -> None:
            due = 0.0
            while True:
                rate = now().rate
                data = await reader.read(_CHUNK if rate is None else max(1, int(rate * _SHARE)))
                if given is self.up and self.only and self.only in data:
                    link.heard.add(self.only)
                way = now()
                late = way.delay + (self._draw.uniform(0, way.jitter) if way.jitter else 0.0)
                if late:
                    self.seen["delayed"] += 1
                due = max(due, loop.time() + late)  # the order stays
                await held.put((due, data))
                if not data:
                    return

        async def write() -> None:
            while True:
                due, data = await held.get()
                if (wait := due - loop.time()) > 0:
                    await asyncio.sleep(wait)
                if not data:
                    if writer.can_write_eof():
                        writer.write_eof()
                    return
                way = now()
                if way.swallow:
                    self.seen["swallowed"] += len(data)
                    continue
                if way.flips > 0:
                    way.flips -= 1
                    self.seen["flipped"] += 1
                    data = _flipped(data, self._draw.randrange(8 * len(data)))
                writer.write(data)
                await writer.drain()
                if way.rate is not None:
                    self.seen["throttled"] += 1
                    await asyncio.sleep(len(data) / way.rate)

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(write())


def _flipped(data: bytes, place: int) -> bytes:
    at, bit = divmod(place, 8)
    return data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]


def _reset(writer: asyncio.StreamWriter) -> None:
    if (raw := writer.get_extra_info("socket")) is not None:
        try:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except OSError:
            pass  # closed already
    writer.transport.abort()
