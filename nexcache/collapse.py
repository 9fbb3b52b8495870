"""One computation per key, whatever the number of those who wait (RFC 9111 §4, "collapsed requests").

Two stages, because a request may only be answered from data captured after it arrived or after the last
invalidation before it: a *lookup* is shared only until its command has left, and a *fill* only among those who
have read the very generations that it was started under.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final, Generic, TypeVar

from nexcache.ending import end
from nexcache.entries import Found, Missing
from nexcache.fill import Complete, Fill, Outcome, Unstorable
from nexcache.fill_lease import Captured, End
from nexcache.invalidation.generations import Snapshot
from nexcache.key import CacheKey
from nexcache.stores.memory import Bounded, tenant_of
from nexcache.telemetry.names import NotStoredReason

Result = TypeVar("Result")
_REMEMBERED: Final = 5.0
"""Seconds for which requests do not wait for each other after an answer turned out not to be shareable."""


class _Open(Generic[Result]):
    """A call that has not ended."""

    __slots__ = ("future", "sent_at")

    def __init__(self) -> None:
        self.future: asyncio.Future[Result] | None = None
        """Made by the first who shares it: most calls are nobody else's."""
        self.sent_at = math.inf

    def sent(self) -> None:
        """Note that it leaves; one that is sent again counts from the first time."""
        self.sent_at = min(self.sent_at, time.perf_counter())


class UntilSent(Generic[Result]):
    """Shares a call among those who asked for the same before it left for the store."""

    def __init__(self) -> None:
        self._open: dict[bytes, _Open[Result]] = {}

    async def run(self, name: bytes, call: Callable[..., Awaitable[Result]], *, since: float = math.inf) -> Result:
        """Return the result of a call of this name that has not left, or left after `since`, or make one.

        `since` is an instant of `time.perf_counter`. `call` is given, as `on_sent`, what to call when it is about to
        leave. Those who share a call whose maker was cancelled, or failed, make one of their own.
        """
        if name in self._open:
            shared = await self._share(name, since)
            if shared is not None:
                return shared.result()
        mine: _Open[Result] = _Open()
        self._open[name] = mine
        try:
            result = await call(on_sent=mine.sent)
        except BaseException:
            self._end(name, mine)
            if mine.future is not None:
                mine.future.cancel()
            raise
        self._end(name, mine)
        if mine.future is not None and not mine.future.done():
            mine.future.set_result(result)
        return result

    async def _share(self, name: bytes, since: float) -> "asyncio.Future[Result] | None":
        """Wait for a call that may be shared, if there is one and its maker gets a result."""
        task = asyncio.current_task()
        cancelling = task.cancelling() if task is not None else 0
        while (shared := self._open.get(name)) is not None and (shared.sent_at == math.inf or shared.sent_at > since):
            if shared.future is None:
                shared.future = asyncio.get_running_loop().create_future()
            try:
                await asyncio.shield(shared.future)
            except asyncio.CancelledError:
                if not shared.future.cancelled() or (task is not None and task.cancelling() > cancelling):
                    raise
            else:
                return shared.future
        return None

    def _end(self, name: bytes, mine: _Open[Result]) -> None:
        if self._open.get(name) is mine:
            del self._open[name]


class Elsewhere:
    """A computation on another node, and this node's wait for it."""

    __slots__ = ("followers", "outcome")

    def __init__(self, waiting: Coroutine[None, None, Outcome]) -> None:
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_task(waiting, name="nexcache-wait")
        self.followers: int = 0


class Flights:
    """The fills that are under way, by request and generations: two requests of one hash are two computations."""

    def __init__(self) -> None:
        self._fills: dict[tuple[bytes, tuple[bytes, ...]], Fill | Elsewhere] = {}
        self._alone: Bounded[float] = Bounded(max_bytes=4 * 1024 * 1024, max_entries=10_000, owner=tenant_of)
        self._running: set[Fill] = set()
        self.lookups: UntilSent[Found | Missing] = UntilSent()
        self.captures: UntilSent[Captured] = UntilSent()

    def get(self, key: CacheKey, generations: tuple[bytes, ...] | None) -> Fill | Elsewhere | None:
        """Return the fill of this key that was started under these generations, if its answer may be shared."""
        if generations is None or not self._fills:
            return None
        fill = self._fills.get((key.request, generations))
        return None if isinstance(fill, Fill) and not fill.may_be_followed() else fill

    def add(self, key: CacheKey, snapshot: Snapshot, fill: Fill, *, shared: bool) -> None:
        """Register a fill, so that others may follow it until its answer is stored or known not to be shareable."""
        self.track(fill)
        if shared:
            flight = (key.request, snapshot.generations)
            self._fills[flight] = fill
            fill.on_release(lambda: self._end(flight, fill))

    def track(self, fill: Fill) -> None:
        """Register a fill that nobody follows here, so that closing the cache ends it."""
        self._running.add(fill)
        fill.task.add_done_callback(lambda _: self._running.discard(fill))

    def add_elsewhere(self, key: CacheKey, snapshot: Snapshot, waiting: Coroutine[None, None, Outcome]) -> Elsewhere:
        """Wait for another node's computation, all of this node together."""
        elsewhere, flight = Elsewhere(waiting), (key.request, snapshot.generations)
        self._fills[flight] = elsewhere
        elsewhere.outcome.add_done_callback(lambda _: self._end(flight, elsewhere))
        return elsewhere

    def _end(self, flight: tuple[bytes, tuple[bytes, ...]], fill: Fill | Elsewhere) -> None:
        if self._fills.get(flight) is fill:
            del self._fills[flight]

    def waits(self, key: CacheKey) -> bool:
        """Whether requests for this key should wait for each other."""
        return not self._alone.count or self._alone.peek(key.name) is None

    def remember_alone(self, key: CacheKey) -> None:
        """Note that this key's answers cannot be shared for now."""
        self._alone.put(key.name, time.monotonic(), size=8, lifetime=_REMEMBERED)

    @property
    def running(self) -> int:
        """How many computations are under way."""
        return len(self._running)

    async def aclose(self, grace: float) -> None:
        """Let computations finish for `grace` seconds, then end them."""
        for flight in tuple(self._fills.values()):
            if isinstance(flight, Elsewhere):
                flight.outcome.cancel()
        tasks = [fill.task for fill in self._running]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        await end(*tasks)


def end_of(outcome: Outcome, not_stored: NotStoredReason | None) -> End:
    """Say to other nodes what became of a fill."""
    match outcome:
        case Complete():
            alone = (NotStoredReason.BACKEND, NotStoredReason.ADMISSION)
            return End.LOST if not_stored in alone else End.OVER
        case Unstorable():
            return End.ALONE
        case _:
            return End.FAILED
