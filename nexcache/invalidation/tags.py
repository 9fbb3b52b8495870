"""Which generations a request's answer depends on, beyond what its path says.

A response may name tags that nobody could know before. They are remembered per key, so that the next computation
captures their generations in advance, and a lookup reads them in the same round trip as the entry. And a tenant has
a bounded number of tags with a generation of their own: what is beyond it shares one of 1,024, so that a flood of
names costs neither the store's memory nor a promise, only precision.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgpack

from nexcache.errors import StoreError
from nexcache.key import CacheKey, KeySpace, is_own_tag
from nexcache.stores.base import Reading
from nexcache.stores.memory import Bounded, tenant_of

MOST_TAGS: Final = 32
"""Tags of one entry."""
_LONGEST_NAME: Final = 1024
_MOST_TAGGING: Final = 10_000
_RECHECKED: Final = 60.0
"""Seconds for which a tenant that has too many tags is not counted again."""


class CountsDistinct(Protocol):
    """A store that counts names."""

    async def distinct(self, key: bytes, names: Sequence[bytes], *, ttl_ms: int) -> int:
        """Add names to a count, and return about how many different ones it has seen; raises StoreError."""


class LiveTags:
    """Decides which tags of a tenant have a generation of their own: about the first `most` that are in use.

    Nodes need not agree: an invalidation removes both, and an entry says which of them it depends on.
    """

    def __init__(
        self,
        keys: KeySpace,
        *,
        most: int,
        shared: CountsDistinct | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._most = most
        self._shared = shared
        self._known: Bounded[bool] = Bounded(
            max_bytes=64 * 1024 * 1024, max_entries=500_000, clock=clock, owner=tenant_of
        )
        self._full: Bounded[bool] = Bounded(max_bytes=4 * 1024 * 1024, max_entries=20_000, clock=clock)
        self._uncounted: dict[str, dict[bytes, None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def generations(self, tenant: str, tags: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Do what `generation` does for all tags of a request."""
        if self._known.count < self._most and not self._full.count:  # all tenants together have fewer
            return tags
        return tuple([self.generation(tenant, own) for own in tags])

    def generation(self, tenant: str, own: bytes) -> bytes:
        """Return the key of the generation of a tag, given that of its own: this, or one that it shares."""
        if self._known.peek(own) is not None or not is_own_tag(own):
            return own
        if self._known.held_by(own) >= self._most or self._full.peek(tenant.encode()) is not None:
            return self._keys.shared_by(own)
        return own

    def used(self, tenant: str, generations: Sequence[bytes], *, lifetime: float) -> None:
        """Note that these generations were created or kept alive, for `lifetime` seconds."""
        known, now = self._known.beside(generations[0]), self._clock()
        for own in generations:
            item = known.get(own)
            if item is not None and item.expires_at - now >= lifetime * 7 / 8:  # as the generation itself is left alone
                continue
            if not is_own_tag(own):
                continue
            if self._shared is not None and (item is None or item.expires_at <= now):
                self._uncounted.setdefault(tenant, {})[own] = None
            self._known.put(own, True, size=len(own) + 100, lifetime=lifetime)
            known = self._known.beside(own)
        if tenant in self._uncounted and self._shared is not None:
            task = asyncio.get_running_loop().create_task(self._count(tenant, self._shared, lifetime))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Let the counting end."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _count(self, tenant: str, shared: CountsDistinct, lifetime: float) -> None:
        """Count what is new here among the tags of all nodes."""
        names = tuple(self._uncounted.pop(tenant, ()))
        if not names:
            return
        try:
            number = await shared.distinct(self._keys.of_count(tenant), names, ttl_ms=int(lifetime * 1000))
        except StoreError:
            return  # this node's own bound holds
        if number > self._most:
            self._full.put(tenant.encode(), True, size=len(tenant) + 100, lifetime=_RECHECKED)


class Remembers(Protocol):
    """A store in which what was learnt of a key is kept for other nodes."""

    async def read(self, keys: Sequence[bytes], *, deadline: float | None = None) -> Reading:
        """Read several keys; raises StoreError."""

    async def write(self, key: bytes, value: bytes, *, ttl_ms: int, deadline: float | None = None) -> None:
        """Keep a value; raises StoreError."""


class Remembered:
    """The generations of the tags that responses named, per key."""

    def __init__(self, *, shared: Remembers | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._shared = shared
        self._of: Bounded[tuple[bytes, ...]] = Bounded(
            max_bytes=32 * 1024 * 1024, max_entries=100_000, clock=clock, owner=tenant_of
        )
        self._clock = clock
        self._tagging: dict[str, float] = {}
        """Until when it is remembered that responses of an operation name tags."""

    def of(self, key: CacheKey) -> tuple[bytes, ...] | None:
        """Return what this process remembers of a key; None where it has to ask for it."""
        until = self._tagging.get(key.operation)
        if until is None or until <= self._clock():
            return ()  # no response of this operation has named a tag yet
        return self._of.peek(key.name)

    async def recall(self, key: CacheKey, *, deadline: float | None, lifetime: float) -> tuple[bytes, ...]:
        """Ask the store what other nodes have learnt of a key; never raises for it.

        Whatever is found there decides only what is captured in advance, not what an entry depends on.
        """
        if self._shared is None:
            return ()
        try:
            (value,) = (await self._shared.read((_place(key),), deadline=deadline)).values
        except StoreError:
            return ()
        found = _names(value, key) if value is not None else ()
        self._put(key, found, lifetime)
        return found

    def learn(self, key: CacheKey, generations: tuple[bytes, ...], *, lifetime: float) -> bool:
        """Remember in this process what a response of this key depends on; True if that is news."""
        if not generations and self.of(key) == ():
            return False
        news = self._of.peek(key.name) != generations
        self._put(key, generations, lifetime)
        return news

    async def tell(self, key: CacheKey, generations: tuple[bytes, ...], *, lifetime: float) -> None:
        """Let other nodes know; never raises for the store."""
        if self._shared is not None:
            try:
                await self._shared.write(_place(key), bytes(msgpack.packb(generations)), ttl_ms=int(lifetime * 1000))
            except StoreError:
                pass

    def _put(self, key: CacheKey, generations: tuple[bytes, ...], lifetime: float) -> None:
        if len(self._tagging) >= _MOST_TAGGING:
            self._tagging.clear()
        self._tagging[key.operation] = self._clock() + lifetime
        size = sum(map(len, generations)) + len(key.name) + 100
        self._of.put(key.name, generations, size=size, lifetime=lifetime)


def _place(key: CacheKey) -> bytes:
    return key.name + b":t"


def _names(value: bytes, key: CacheKey) -> tuple[bytes, ...]:
    """Read a list of generations of the same tenant; what is anything else is none."""
    try:
        names = msgpack.unpackb(
            value, use_list=False, max_array_len=MOST_TAGS, max_bin_len=_LONGEST_NAME, max_str_len=0, max_map_len=0
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError):
        return ()
    prefix = key.generations[0].removesuffix(b"@tenant") + b"@tag"
    if isinstance(names, tuple) and all(type(name) is bytes and name.startswith(prefix) for name in names):
        return names
    return ()
