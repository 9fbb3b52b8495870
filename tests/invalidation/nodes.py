"""A node: a cache whose entries are asked, filled and invalidated without an app."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import SecretStr

from nexcache import NexCache, Settings
from nexcache.entries import Found, Missing
from nexcache.invalidation.apply import Invalidations
from nexcache.invalidation.generations import Snapshot
from nexcache.key import CacheKey
from nexcache.message import StoredResponse
from nexcache.stores.base import Store
from nexcache.stores.memory import MemoryStore
from nexcache.stores.redis import RedisCommands
from nexcache.telemetry.names import Tier


def response(body: bytes, *, ttl: float = 600.0) -> StoredResponse:
    """Make an answer."""
    return StoredResponse(200, ((b"content-type", b"text/plain"),), body, b'"%b"' % body[:8], time.time(), ttl)


class Node:
    """One process's part, as the middleware uses it."""

    def __init__(self, url: str | None, **settings: Any) -> None:
        settings = {"l1_enabled": False, "op_timeout_ms": 2000, "redis_host": None, **settings}
        self.cache = NexCache(Settings(redis_url=SecretStr(url) if url is not None else None, **settings))
        self.entries = self.cache.entries
        self.keys = self.cache.keys

    @property
    def store(self) -> Store:
        return self.cache._parts.store

    @property
    def redis(self) -> RedisCommands:
        assert isinstance(self.store, RedisCommands)
        return self.store

    @property
    def local(self) -> MemoryStore:
        return self.cache.entries._local._store

    @property
    def invalidations(self) -> Invalidations:
        return self.cache._parts.invalidations

    def key(self, name: str = "x", *, operation: str = "overview", tags: tuple[str, ...] = ()) -> CacheKey:
        return self.keys.key("acme", operation, name.encode(), tags)

    async def look(self, key: CacheKey) -> Found | Missing:
        return await self.entries.lookup(key, self.cache.counts.of(key.tenant, key.operation), deadline=None)

    async def capture(self, key: CacheKey, missing: Missing) -> Snapshot:
        return await self.entries.capture(key, missing, deadline=None)

    async def keep(self, key: CacheKey, snapshot: Snapshot, body: bytes, *, ttl: float = 600.0) -> bool | None:
        counts = self.cache.counts.of(key.tenant, key.operation)
        return await self.entries.keep(key, snapshot, response(body, ttl=ttl), counts)

    async def fill(
        self, key: CacheKey, body: bytes = b"1", *, meanwhile: Callable[[], Awaitable[Any]] | None = None
    ) -> tuple[Tier, bool | None]:
        """Answer a miss; returns where it was captured and whether it was kept."""
        missing = await self.look(key)
        assert isinstance(missing, Missing)
        snapshot = await self.capture(key, missing)
        if meanwhile is not None:
            await meanwhile()
        return snapshot.tier, await self.keep(key, snapshot, body)

    async def body(self, key: CacheKey) -> bytes | None:
        """Return the stored body; None for a miss."""
        found = await self.look(key)
        return found.prepared.response.body if isinstance(found, Found) else None
