"""The Redis store on fakeredis: the contract without a server."""

from collections.abc import AsyncIterator

import pytest
from fakeredis import FakeServer
from fakeredis.aioredis import FakeAsyncRedisConnection

from nexcache.stores.base import Store
from nexcache.stores.redis import RedisStore, Target, TrustedEpoch
from nexcache.telemetry.events import Emitter
from nexcache.testing import StoreContract


class TestFakeRedis(StoreContract):
    @pytest.fixture(params=["7.4", "6.2"], ids=["Redis 7", "Redis 6.2"])
    async def store(self, request: pytest.FixtureRequest) -> AsyncIterator[RedisStore]:
        server = FakeServer(version=request.param)
        store = RedisStore(
            Target(),
            emitter=Emitter(),
            timeout=1.0,
            epoch=TrustedEpoch(),  # fakeredis has no INFO
            connect=lambda: FakeAsyncRedisConnection(server=server),
        )
        yield store
        await store.aclose()

    async def remaining(self, store: Store, key: bytes) -> float:
        assert isinstance(store, RedisStore)
        (left,), _ = await store._lanes[0].execute((("PTTL", key),))
        return max(0.0, float(left) / 1000)

    async def lose(self, store: Store, registry: bytes) -> None:
        await store.unlink([registry])
