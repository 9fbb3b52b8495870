"""Restart and failover of real servers: used again without a restart of the app, and nothing revived."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from nexcache.errors import StoreError
from nexcache.telemetry.names import Tier
from tests.invalidation.nodes import Node
from tests.servers import Valkey
from tests.topologies.failover import Pair, has, lagging, pair_of, promote
from tests.topologies.servers import Watched

RESTART, SENTINEL = 2.0, 4.0
"""Seconds until the app uses the cache again; asserted with slack for a busy machine."""


@pytest.fixture
def server(program: Path, tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path, program=program) as made:
        yield made


@pytest.fixture
def watched(program: Path, tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path, program)
    yield made
    made.close()


async def used_again(node: Node, body: bytes, *, most: float) -> float:
    """Ask and fill as an app does until the server keeps what is filled; returns the seconds that it took."""
    started = time.monotonic()
    key = node.key()
    while True:
        assert await node.body(key) in (None, body), "revived"
        try:
            if await node.fill(key, body) == (Tier.REDIS, True):
                return time.monotonic() - started
        except (StoreError, AssertionError):
            pass
        assert time.monotonic() - started < most
        await asyncio.sleep(0.02)


async def test_a_server_that_is_started_again_is_used_within_two_seconds(
    server: Valkey, told: Callable[[str], None]
) -> None:
    node = Node(server.url, op_timeout_ms=500, fallback_ttl_seconds=0)
    await node.fill(node.key())
    server.kill()
    for _ in range(10):
        assert await node.body(node.key()) is None
    assert not node.redis.available
    server.start()

    took = await used_again(node, b"2", most=RESTART * 5)

    await node.cache.aclose()
    told(f"restart: used again {took:.2f} s after the server answers (promised: {RESTART:.0f} s)")


async def test_what_was_invalidated_before_a_restart_is_not_revived_by_an_old_copy(
    server: Valkey, tmp_path: Path
) -> None:
    """The server comes back with the data of before the invalidation, entry and generations alike."""
    node = Node(server.url, op_timeout_ms=2000, fallback_ttl_seconds=0)
    key = node.key()
    await node.fill(key, b"old")
    server.ask("SAVE")
    assert (await node.cache.invalidate("acme", "overview")).acknowledged
    server.kill()
    server.start()
    assert (tmp_path / "dump.rdb").exists()
    assert server.ask("EXISTS", key.name, *key.generations) == 1 + len(key.generations), "the fault was not seen"

    end = time.monotonic() + 10
    while not node.redis.available or (await node.cache.health()).detail:
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    assert await node.body(key) is None
    await node.cache.aclose()


@pytest.mark.parametrize("fault", ["killed", "hung"])
async def test_the_primary_that_a_sentinel_names_is_found_within_four_seconds(
    watched: Watched, fault: str, told: Callable[[str], None]
) -> None:
    """One of the Sentinels in the URL is away; the primary dies, or hangs; its replica takes over."""
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{watched.port}/main"
    node = Node(url, op_timeout_ms=200, fallback_ttl_seconds=0, l1_enabled=True)
    await node.cache.start()
    assert await node.fill(node.key()) == (Tier.REDIS, True)
    assert await node.body(node.key()) == b"1"
    assert watched.primary.ask("DBSIZE") > 0
    watched.primary.kill() if fault == "killed" else watched.primary.pause()

    done = await node.cache.invalidate("acme", "overview")
    took = await used_again(node, b"2", most=SENTINEL * 5)

    assert not done.acknowledged
    assert watched.named() == watched.replica.port
    assert await node.body(node.key()) == b"2"
    while node.cache._parts.coherence is None or not node.cache._parts.coherence.connected:
        await asyncio.sleep(0.02)
    await node.cache.aclose()
    told(f"Sentinel failover, primary {fault}: used again {took:.2f} s later (promised: {SENTINEL:.0f} s)")


async def test_a_replica_is_never_read_from(watched: Watched) -> None:
    """Its data may be older than an invalidation that its primary has acknowledged."""
    node = Node(watched.replica.url, op_timeout_ms=2000, fallback_ttl_seconds=0)
    assert await node.body(node.key()) is None
    detail = (await node.cache.health()).detail
    calls = watched.replica.calls()
    await node.cache.aclose()

    assert "mget" not in calls
    assert detail == ""


@pytest.fixture
async def pair(program: Path, tmp_path: Path) -> AsyncIterator[Pair]:
    async with pair_of(program, tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    ("failover", "served"), [pytest.param("epoch", None, id="epoch"), pytest.param("trust", b"old", id="trust")]
)
async def test_an_invalidation_that_a_failover_loses_revives_nothing(
    pair: Pair, failover: str, served: bytes | None
) -> None:
    """The promoted replica has entry and generations as they were. With CACHE_FAILOVER=trust they would be served."""
    one, two, _, front = pair
    node = Node(f"redis://127.0.0.1:{front.port}", fallback_ttl_seconds=0, failover=failover)
    key = node.key()
    await node.fill(key, b"old")

    async def invalidate() -> bool:
        return (await node.cache.invalidate("acme", "overview")).acknowledged

    await lagging(pair, (key.name, *key.generations), invalidate)
    one.kill()
    await promote(two, front)

    assert await node.body(node.key()) == served
    if served is None:
        assert await node.fill(node.key(), b"new") == (Tier.REDIS, True)
        assert await node.body(node.key()) == b"new"
    await node.cache.aclose()


async def test_nor_does_a_failback_to_a_server_that_has_been_in_charge_before(
    pair: Pair,
) -> None:
    """The first server, never restarted, comes back into charge with the data it had: its run id is the old one."""
    one, two, _, front = pair
    node = Node(f"redis://127.0.0.1:{front.port}", fallback_ttl_seconds=0)
    await node.fill(node.key(), b"old")
    await promote(two, front)
    await asyncio.to_thread(one.ask, "REPLICAOF", "127.0.0.1", "1")  # it follows nobody, and keeps what it has
    assert (await node.cache.invalidate("acme", "overview")).acknowledged
    key = node.key()
    assert await has(one, (key.name, *key.generations)) == 1 + len(key.generations)
    two.kill()
    await promote(one, front)

    assert await node.body(key) is None
    assert await node.fill(key, b"new") == (Tier.REDIS, True)
    await node.cache.aclose()
