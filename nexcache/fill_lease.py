"""The lease of a fill: one computation per key over all nodes, for as long as the store answers.

Who is about to compute an answer takes the lease of its key *and generations*, so that nobody ever waits for an
answer from before an invalidation. Others wait for the announcement of its end, and for the end of the lease itself
where no announcement comes: a holder that dies holds nobody up for longer than a second. Without the store, or
where it refuses, every node computes for itself.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from hashlib import blake2b
from typing import Final, NamedTuple, Protocol

import msgpack

from nexcache.errors import StoreError
from nexcache.invalidation.generations import Snapshot
from nexcache.key import CacheKey
from nexcache.stores.base import LeaseOffer
from nexcache.stores.memory import Bounded
from nexcache.telemetry.names import Tier

LEASE_MS: Final = 1000
"""Milliseconds for which a lease lives without renewal."""
_RENEWAL: Final = 0.3
_HEARD_FOR: Final = 2.0
"""Seconds for which an announcement is remembered that came before anybody waited for it."""
_MOST_TOLD: Final = 1000
_FIRST_LOOK: Final = 0.025
_SLOWEST_LOOK: Final = 0.25
"""Seconds between two looks at a lease where announcements are not heard."""


class End(StrEnum):
    """How a computation on some node ended, as it is announced."""

    OVER = "over"
    """What it stored can be looked up."""
    FAILED = "failed"
    """The app failed; one of those who wait takes over."""
    ALONE = "alone"
    """The answer cannot be shared: those who wait go on at once, all together."""
    LOST = "lost"
    """The answer could not be stored: those who wait compute it on their own node."""
    LAPSED = "lapsed"
    """Nothing was announced, and the lease is no more: never sent."""
    OVERDUE = "overdue"
    """It takes longer than anybody waits: never sent."""


class KeepsLeases(Protocol):
    """A store that keeps leases."""

    async def acquire(self, name: bytes, token: bytes, *, ttl_ms: int, deadline: float | None = None) -> bool:
        """Take a lease unless somebody has it; raises StoreError."""

    async def prolong(self, name: bytes, token: bytes, *, ttl_ms: int) -> bool:
        """Renew a lease; False if it is no longer the holder's; raises StoreError."""

    async def release(self, name: bytes, token: bytes, *, message: bytes) -> None:
        """Give a lease back, unless it is another's by now, and tell other nodes; raises StoreError."""

    async def lease_left(self, name: bytes) -> float:
        """Return the seconds that a lease will live without renewal, 0 if there is none; raises StoreError."""


def lease_name(key: CacheKey, generations: tuple[bytes, ...]) -> bytes:
    """Return the key of the lease: that of the entry, and a digest of the generations it is computed under."""
    digest = blake2b(b"".join([b"%d:%b" % (len(each), each) for each in generations]), digest_size=8)
    return b"%b:l:%b" % (key.name, digest.hexdigest().encode())


def announced(message: object) -> tuple[bytes, End] | None:
    """Read an announcement; None for any other message."""
    match message:
        case [2, bytes(name), str(end)] if end in (End.OVER, End.FAILED, End.ALONE, End.LOST):
            return name, End(end)
    return None


class Lease:
    """A lease that this node holds, from `keep` until `end`."""

    def __init__(self, leases: "FillLeases", offer: LeaseOffer) -> None:
        self._leases = leases
        self._offer = offer
        self._claimed = self._ended = False
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def claim(self) -> bool:
        """Take it for one computation; False if another has."""
        claimed, self._claimed = self._claimed, True
        return not claimed

    def keep(self, limit: float) -> None:
        """Renew it from now on, for `limit` seconds at most."""
        self._until = asyncio.get_running_loop().time() + limit
        self._later()

    def end(self, end: End) -> None:
        """Give it back, and tell all who wait."""
        if not self._ended:
            self._ended = True
            if self._timer is not None:
                self._timer.cancel()
            self._leases.give_back(self._offer, end)

    def _later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_RENEWAL, self._renew)

    def _renew(self) -> None:
        if not self._ended and asyncio.get_running_loop().time() < self._until:
            self._leases.in_background(self._prolong())

    async def _prolong(self) -> None:
        try:
            mine = await self._leases.store.prolong(self._offer.name, self._offer.token, ttl_ms=LEASE_MS)
        except StoreError:
            mine = True  # not known; the next attempt may tell
        if mine and not self._ended:
            self._later()


class Captured(NamedTuple):
    """Generations, and who computes under them."""

    snapshot: Snapshot
    lease: Lease | None = None
    """This node's."""
    elsewhere: bytes | None = None
    """The name of the lease that another holds."""
    at: float = 0.0
    """When it was asked for (`time.monotonic`)."""


class FillLeases:
    """The leases that this node holds or waits for."""

    def __init__(
        self, store: KeepsLeases, *, connected: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.store = store
        self._connected = connected
        self._clock = clock
        self._waiting: dict[bytes, asyncio.Future[End]] = {}
        self._heard: Bounded[tuple[End, float]] = Bounded(max_bytes=4 * 1024 * 1024, max_entries=10_000, clock=clock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: dict[tuple[bytes, End], float] = {}
        """What this node has announced, and when: it will hear of it like everybody."""

    async def capture(
        self,
        key: CacheKey,
        known: tuple[bytes, ...] | None,
        capture: Callable[..., Awaitable[Snapshot]],
        *,
        deadline: float | None,
        since: float | None = None,
        on_sent: Callable[[], None] | None = None,
    ) -> Captured:
        """Capture generations and take the lease; never raises for the store.

        `capture` takes `lease`, a LeaseOffer or None, and `on_sent`, as a store does.

        Both in one turn where the generations are `known` beforehand and turn out to be these. A lease that is free
        because its computation has ended after `since`, when the entry was looked for, is not taken: it is to be looked
        for again.
        """
        at = self._clock()
        offer = LeaseOffer(lease_name(key, known), secrets.token_bytes(16), LEASE_MS) if known is not None else None
        snapshot = await capture(lease=offer, on_sent=on_sent)
        if snapshot.tier is not Tier.REDIS:
            return Captured(snapshot)
        if offer is not None and known == snapshot.generations:
            name, leased = offer.name, snapshot.leased
        else:
            if offer is not None and snapshot.leased:
                self.give_back(offer, End.FAILED)
            name = lease_name(key, snapshot.generations)
            offer = LeaseOffer(name, secrets.token_bytes(16), LEASE_MS)
            try:
                leased = await self.store.acquire(name, offer.token, ttl_ms=LEASE_MS, deadline=deadline)
            except StoreError:
                return Captured(snapshot)
        if not leased:
            return Captured(snapshot, elsewhere=name, at=at)
        heard = self._heard.peek(name)
        if since is not None and heard is not None and heard[0] is End.OVER and heard[1] > since:
            self.give_back(offer, End.OVER)
            return Captured(snapshot, elsewhere=name, at=since)
        return Captured(snapshot, Lease(self, offer), at=at)

    async def ended(self, name: bytes, *, since: float, limit: float) -> End:
        """Wait until another's computation has ended, for `limit` seconds at most; `since`: when its lease was seen."""
        loop = asyncio.get_running_loop()
        overdue = loop.time() + limit
        look = _FIRST_LOOK
        heard = self._heard.peek(name)
        if heard is not None and heard[1] >= since:
            return heard[0]
        future = self._waiting.get(name)
        if future is None or future.get_loop() is not loop:
            future = self._waiting[name] = loop.create_future()
        left = LEASE_MS / 1000
        while True:
            if not self._connected():
                left, look = min(left, look), min(look * 2, _SLOWEST_LOOK)
            await asyncio.wait((future,), timeout=max(0.001, min(left, overdue - loop.time())))
            if future.done():
                return future.result()
            if loop.time() >= overdue:
                break
            try:
                left = await self.store.lease_left(name)
            except StoreError:
                left = 0.0
            if left <= 0:
                break
        self._waiting.pop(name, None)  # who else waits for it looks for himself
        return End.OVERDUE if left > 0 else End.LAPSED

    def received(self, message: object) -> None:
        """Take a message of another node, if it is an announcement."""
        found = announced(message)
        if found is None:
            return
        told = self._told.pop(found, None)
        if told is None or self._clock() - told >= _HEARD_FOR:  # else it was the first to know
            self.heard(*found)

    def heard(self, name: bytes, end: End) -> None:
        """Take an announcement."""
        self._heard.put(name, (end, self._clock()), size=32, lifetime=_HEARD_FOR)
        future = self._waiting.pop(name, None)
        if future is not None and not future.done() and not future.get_loop().is_closed():
            future.set_result(end)

    def give_back(self, offer: LeaseOffer, end: End) -> None:
        """Release a lease in the background, and tell all who wait for it."""
        self.heard(offer.name, end)
        if self._connected():
            self._told[offer.name, end] = self._clock()
            if len(self._told) > _MOST_TOLD:  # it has not heard of them for long
                self._told.clear()
        self.in_background(self._release(offer, end))

    def in_background(self, work: Awaitable[None]) -> None:
        """Do something that nobody waits for."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Wait until what is released has been."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(task for task in self._tasks if task.get_loop() is loop), return_exceptions=True)

    async def _release(self, offer: LeaseOffer, end: End) -> None:
        try:
            message = bytes(msgpack.packb((2, offer.name, end.value)))
            await self.store.release(offer.name, offer.token, message=message)
        except StoreError:
            self._told.pop((offer.name, end), None)  # and the lease lapses
