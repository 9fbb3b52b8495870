"""The cache, in memory and on a real Valkey, for the tests that speak to it as a client does."""

from collections.abc import AsyncIterator, Callable

import pytest
from pydantic import SecretStr

from nexcache import NexCache, Settings
from tests.servers import Valkey
from tests.wire.server import PARSERS


@pytest.fixture
def redis_server(redis_url: str, valkey: Valkey) -> Valkey:
    """A real server, empty."""
    return valkey


@pytest.fixture
async def memory_cache() -> AsyncIterator[NexCache]:
    cache = NexCache(Settings(redis_url=None, redis_host=None))
    yield cache
    await cache.aclose()


@pytest.fixture
async def redis_cache(redis_server: Valkey) -> AsyncIterator[NexCache]:
    cache = NexCache(Settings(redis_url=SecretStr(redis_server.url), l1_enabled=False, op_timeout_ms=2000))
    yield cache
    await cache.aclose()


CACHES = ("memory", "redis", "tiered")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on every kind of cache and behind both parsers, together in pairs that hold each of them."""
    if {"cache", "http"} <= set(metafunc.fixturenames):
        pairs = [("memory", "h11"), ("memory", "httptools"), ("redis", "h11"), ("tiered", "httptools")]
        metafunc.parametrize(("cache", "http"), pairs, indirect=True)
    elif "cache" in metafunc.fixturenames:
        metafunc.parametrize("cache", CACHES, indirect=True)
    elif "http" in metafunc.fixturenames:
        metafunc.parametrize("http", PARSERS, indirect=True)


@pytest.fixture
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[NexCache]:
    """A cache of each kind: in this process, on a server, and on a server with a memory before it."""
    url = None
    if request.param != "memory":
        server: Valkey = request.getfixturevalue("redis_server")
        url = SecretStr(server.url)
    tiered = request.param == "tiered"
    # a machine that is busy with other tests must not look like a server that is away
    cache = NexCache(Settings(redis_url=url, redis_host=None, l1_enabled=tiered, op_timeout_ms=2000))
    yield cache
    await cache.aclose()


@pytest.fixture
def http(request: pytest.FixtureRequest) -> str:
    parser: str = request.param
    return parser


@pytest.fixture
def stored(request: pytest.FixtureRequest, cache: NexCache) -> Callable[[], int]:
    """How many entries there are."""
    if cache.entries.in_process:
        memory = cache.entries.first
        assert memory is not None
        return lambda: memory.size[0]
    server: Valkey = request.getfixturevalue("redis_server")
    return lambda: len(server.entries())
