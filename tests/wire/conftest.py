"""The cache, in memory and on a real Valkey, for the tests that speak to it as a client does."""

from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from nexcache import NexCache, Settings
from tests.wire.server import PARSERS
from tests.wire.valkey import Valkey


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    yield server
    server.kill()


@pytest.fixture
def redis_server(valkey_server: Valkey) -> Valkey:
    """A real server, empty."""
    valkey_server.empty()
    return valkey_server


@pytest.fixture
async def memory_cache() -> AsyncIterator[NexCache]:
    cache = NexCache(Settings(redis_url=None, redis_host=None))
    yield cache
    await cache.aclose()


@pytest.fixture
async def redis_cache(redis_server: Valkey) -> AsyncIterator[NexCache]:
    cache = NexCache(Settings(redis_url=redis_server.url))
    yield cache
    await cache.aclose()


@pytest.fixture(params=["memory", "redis"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[NexCache]:
    settings = {"redis_url": None, "redis_host": None}
    if request.param == "redis":
        server: Valkey = request.getfixturevalue("redis_server")
        settings = {"redis_url": server.url, "redis_host": None}
    cache = NexCache(Settings(**settings))
    yield cache
    await cache.aclose()


@pytest.fixture(params=PARSERS)
def http(request: pytest.FixtureRequest) -> str:
    parser: str = request.param
    return parser


@pytest.fixture
def stored(request: pytest.FixtureRequest, cache: NexCache) -> Callable[[], int]:
    """How many entries there are."""
    if cache.entries.in_process:
        return lambda: cache.entries.memory.size[0]
    server: Valkey = request.getfixturevalue("redis_server")
    return lambda: len(server.entries())
