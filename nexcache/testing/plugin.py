"""Fixtures for pytest, which is needed for nothing else: `pytest_plugins = ["nexcache.testing.plugin"]`."""

import asyncio
from collections.abc import Callable, Iterator
from threading import Thread

import pytest

from nexcache.stores.memory import MemoryStore
from nexcache.testing.clock import FakeClock
from nexcache.testing.proxy import FaultProxy
from nexcache.testing.store import FaultyStore


@pytest.fixture
def nexcache_clock() -> FakeClock:
    """Give a clock that stands still until it is moved."""
    return FakeClock()


@pytest.fixture
def nexcache_faulty_store() -> FaultyStore:
    """Give a store in memory that does what it is told to."""
    return FaultyStore(MemoryStore(max_bytes=64 * 1024 * 1024))


@pytest.fixture
def nexcache_fault_proxy() -> Iterator[Callable[[int], FaultProxy]]:
    """Give what makes a proxy before a server, by its port; it is closed after the test.

    It runs in a thread of its own, so that tests of every kind may use it, plain functions included.
    """
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="nexcache-fault-proxy", daemon=True)
    thread.start()
    proxies: list[FaultProxy] = []

    def before(port: int) -> FaultProxy:
        proxy = FaultProxy(port)
        asyncio.run_coroutine_threadsafe(proxy.start(), loop).result(timeout=5)
        proxies.append(proxy)
        return proxy

    try:
        yield before
    finally:
        for proxy in proxies:
            asyncio.run_coroutine_threadsafe(proxy.aclose(), loop).result(timeout=5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5)
        loop.close()
