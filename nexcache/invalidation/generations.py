"""Generations: a random token per tag in the store, captured before an answer is computed.

An entry is served only while every token it was captured under is still there and equal. Removing a token is
therefore an invalidation of everything that depends on it, whatever its number; a token that is lost costs a
miss, never a stale answer. As a reader sees it a generation is the token followed by the server's epoch, so
that a restart or a failover revives nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from nexcache.errors import StoreUnavailable
from nexcache.key import CacheKey, KeySpace, segment
from nexcache.stores.base import Capture, LeaseOffer, Reading, Store, new_token
from nexcache.stores.memory import MemoryStore
from nexcache.telemetry.names import Tier

_ATTEMPTS: Final = 4
_SHORTEST: Final = 60.0
_RESTORING_MS: Final = 200
"""Milliseconds for which a node that restores a registry is left to it."""
_LOOKS: Final = 5
_LOOK: Final = 0.004
"""Seconds between two looks at whether it has."""


class Snapshot(NamedTuple):
    """The generations that a fill was started under, and where they were read."""

    tier: Tier
    generations: tuple[bytes, ...]
    """In the order of `CacheKey.generations`."""
    any: bytes
    """The generation that every invalidation of the tenant changes."""
    leased: bool = False
    """The lease that was asked for beside it is this node's."""
    captured: int = 0
    """When, by the store's clock."""
    lost: bool = False
    """They are not the store's, which answered but took no capture: nothing is kept under them."""


class Generations:
    """Captures generations in a store, and keeps the tenant's registry of operations whole."""

    def __init__(
        self, store: Store, keys: KeySpace, *, observe: Callable[[Sequence[bytes], Reading], None] | None = None
    ) -> None:
        self._observe = observe
        self._store = store
        self._keys = keys
        self.ttl_ms: int = int(_SHORTEST * 2000)
        """How long a token lives from its last capture, in milliseconds."""
        self._restoring: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    def keep_for(self, ttl: float) -> None:
        """Make tokens live twice as long as the longest-lived entry, so that they outlive what they guard."""
        self.ttl_ms = max(self.ttl_ms, int(ttl * 2000))

    async def capture(
        self,
        key: CacheKey,
        *,
        deadline: float | None = None,
        on_sent: Callable[[], None] | None = None,
        lease: LeaseOffer | None = None,
    ) -> Snapshot:
        """Read the generations of a key, creating missing ones, and take a lease if it is free; raises StoreError.

        Whoever finds the registry without its sentinel removes the tenant's token before restoring it: what was
        filled under a lost registry could not be found by a glob.
        """
        registry, of_any = self._keys.guards(key.tenant)
        tokens = (*key.generations, of_any)
        leased, absent = False, list[bytes]()
        for _ in range(_ATTEMPTS):
            captured = await self._store.capture(
                tokens,
                registry=registry,
                operation=segment(key.operation),
                ttl_ms=self.ttl_ms,
                deadline=deadline,
                on_sent=on_sent,
                lease=lease,
            )
            leased = leased or captured.leased
            snapshot = _snapshot(self._store.tier, captured, leased=leased)
            if lease is not None and snapshot is not None:  # whoever asks for a lease has just read them
                return snapshot
            on_sent = lease = None
            if self._observe is not None:
                self._observe(tokens, Reading(captured.tokens, captured.epoch, captured.sent_at))
            if snapshot is not None:
                return snapshot
            if not captured.complete:
                await self._restore(key.tenant, registry, tokens[0], deadline)
            absent = [name for name, token in zip(tokens, captured.tokens, strict=True) if token is None]
        if absent:  # created in the same breath, and not there: a value of another type is in the way
            await self._store.unlink(absent, deadline=deadline)
        raise StoreUnavailable("busy", "the store loses generations as fast as they are made: is its memory full?")

    async def _restore(self, tenant: str, registry: bytes, token: bytes, deadline: float | None) -> None:
        """Restore a registry's sentinel, one node at a time: a second removal would undo the first one's capture."""
        loop = asyncio.get_running_loop()
        if self._restoring is None or self._restoring[0] is not loop:
            self._restoring = loop, asyncio.Lock()
        async with self._restoring[1]:
            turn = self._keys.of_restoration(tenant)
            mine = await self._store.acquire(turn, new_token(), ttl_ms=_RESTORING_MS, deadline=deadline)
            for _ in range(1 if mine else _LOOKS):
                if await self._store.members(registry, deadline=deadline) is not None:
                    return
                if not mine:  # another node is at it; should it die, this one does it
                    await asyncio.sleep(_LOOK)
            await self._store.restore_sentinel(registry, token, ttl_ms=self.ttl_ms, deadline=deadline)

    async def extend(
        self, key: CacheKey, names: Sequence[bytes], snapshot: Snapshot, *, deadline: float | None = None
    ) -> tuple[bytes, ...] | None:
        """Read the generations of tags that became known only now; None if they may be younger than the answer.

        Created and read first, then compared with the one that every invalidation changes: had one of these tags
        been invalidated since the snapshot, it would be another. Raises StoreError.
        """
        registry, of_any = self._keys.guards(key.tenant)
        names = (*names, of_any)
        captured = await self._store.capture(
            names,
            registry=registry,
            operation=segment(key.operation),
            ttl_ms=self.ttl_ms,
            deadline=deadline,
        )
        if self._observe is not None:
            self._observe(names, Reading(captured.tokens, captured.epoch, captured.sent_at))
        return _same(snapshot, captured)

    def extend_now(
        self, store: MemoryStore, key: CacheKey, names: Sequence[bytes], snapshot: Snapshot
    ) -> tuple[bytes, ...] | None:
        """Do what `extend` does, in this process's memory and without waiting."""
        registry, of_any = self._keys.guards(key.tenant)
        captured = store.capture_now(
            (*names, of_any),
            registry=registry,
            operation=segment(key.operation),
            ttl_ms=self.ttl_ms,
        )
        return _same(snapshot, captured)

    def capture_now(self, store: MemoryStore, key: CacheKey) -> Snapshot:
        """Do what `capture` does, in this process's memory and without waiting."""
        registry, of_any = self._keys.guards(key.tenant)
        tokens = (*key.generations, of_any)
        for _ in range(_ATTEMPTS):
            captured = store.capture_now(
                tokens, registry=registry, operation=segment(key.operation), ttl_ms=self.ttl_ms
            )
            known = tuple([token for token in captured.tokens if token is not None])
            if captured.complete and captured.registered and len(known) == len(tokens):
                return Snapshot(store.tier, known[:-1], known[-1], captured=captured.now)
            store.restore_sentinel_now(registry, tokens[0])
        raise StoreUnavailable("busy", "the memory for generations is too small to hold those of one request")


def seen(token: bytes | None, epoch: bytes) -> bytes | None:
    """Return a generation as a reader sees it: with the epoch of the server that it was read from."""
    return None if token is None else token + epoch


def all_seen(tokens: Sequence[bytes | None], epoch: bytes) -> list[bytes | None]:
    """Do the same for several."""
    return [None if token is None else token + epoch for token in tokens]


def _same(snapshot: Snapshot, captured: Capture) -> tuple[bytes, ...] | None:
    found = all_seen(captured.tokens, captured.epoch)
    known = tuple(token for token in found if token is not None)
    return known[:-1] if len(known) == len(found) and known[-1] == snapshot.any else None


def _snapshot(tier: Tier, captured: Capture, *, leased: bool = False) -> Snapshot | None:
    if not (captured.complete and captured.registered):
        return None
    found = all_seen(captured.tokens, captured.epoch)
    known = tuple([token for token in found if token is not None])
    return Snapshot(tier, known[:-1], known[-1], leased, captured.now) if len(known) == len(found) else None
