"""One computation per key, whatever the number of those who wait (RFC 9111 §4, "collapsed requests").

Two stages, because a request may only be answered from data captured after it arrived or after the last
invalidation before it: a *lookup* is shared only until its command has left, and a *fill* only among those who
have read the very generations that it was started under.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from nexcache.entries import Found, Missing
from nexcache.fill import Fill
from nexcache.invalidation.generations import Snapshot
from nexcache.key import CacheKey
from nexcache.stores.memory import Bounded

Result = TypeVar("Result")
_REMEMBERED: Final = 5.0
"""Seconds for which requests do not wait for each other after an answer turned out not to be shareable."""


class UntilSent(Generic[Result]):
    """Shares a call among those who ask for the same before it has left for the store."""

    def __init__(self) -> None:
        self._open: dict[bytes, asyncio.Future[Result]] = {}

    async def run(self, name: bytes, call: Callable[[Callable[[], None]], Awaitable[Result]]) -> Result:
        """Return the result of the open call of this name, or make one.

        `call` is given a function to call when it is about to leave. Those who share a call whose maker was
        cancelled, or failed, make one of their own.
        """
        task = asyncio.current_task()
        cancelling = task.cancelling() if task is not None else 0
        while (shared := self._open.get(name)) is not None:
            try:
                return await asyncio.shield(shared)
            except asyncio.CancelledError:
                if not shared.cancelled() or (task is not None and task.cancelling() > cancelling):
                    raise
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._open[name] = future

        def sent() -> None:
            if self._open.get(name) is future:
                del self._open[name]

        try:
            result = await call(sent)
        except BaseException:
            sent()
            future.cancel()
            raise
        sent()
        if not future.done():
            future.set_result(result)
        return result


class Flights:
    """The fills that are under way, by key and generations."""

    def __init__(self) -> None:
        self._fills: dict[tuple[bytes, tuple[bytes, ...]], Fill] = {}
        self._alone: Bounded[float] = Bounded(max_bytes=4 * 1024 * 1024, max_entries=10_000)
        self._running: set[Fill] = set()
        self.lookups: UntilSent[Found | Missing] = UntilSent()
        self.captures: UntilSent[Snapshot] = UntilSent()

    def get(self, key: CacheKey, generations: tuple[bytes, ...] | None) -> Fill | None:
        """Return the fill of this key that was started under these generations, if its answer may be shared."""
        if generations is None:
            return None
        return self._fills.get((key.name, generations))

    def add(self, key: CacheKey, snapshot: Snapshot, fill: Fill, *, shared: bool) -> None:
        """Register a fill, so that others may follow it until its answer is stored or known not to be shareable."""
        self._running.add(fill)
        fill.task.add_done_callback(lambda _: self._running.discard(fill))
        if shared:
            flight = (key.name, snapshot.generations)
            self._fills[flight] = fill
            fill.on_release(lambda: self._end(flight, fill))

    def _end(self, flight: tuple[bytes, tuple[bytes, ...]], fill: Fill) -> None:
        if self._fills.get(flight) is fill:
            del self._fills[flight]

    def waits(self, key: CacheKey) -> bool:
        """Whether requests for this key should wait for each other."""
        return self._alone.peek(key.name) is None

    def remember_alone(self, key: CacheKey) -> None:
        """Note that this key's answers cannot be shared for now."""
        self._alone.put(key.name, time.monotonic(), size=8, lifetime=_REMEMBERED)

    @property
    def running(self) -> int:
        """How many computations are under way."""
        return len(self._running)

    async def aclose(self, grace: float) -> None:
        """Let computations finish for `grace` seconds, then end them."""
        tasks = [fill.task for fill in self._running]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
