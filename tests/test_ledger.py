"""The statistics of several processes are added up in the store: exact, bounded, and never in the way."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from nexcache import NexCache, Settings
from nexcache.errors import StoreUnavailable
from nexcache.stores.redis import RedisStore
from nexcache.telemetry.names import Bypass

Made = Callable[[], NexCache]


@pytest.fixture
async def node(redis_url: str) -> AsyncIterator[Made]:
    """Make nodes that share one server."""
    async with AsyncExitStack() as stack:

        def make() -> NexCache:
            cache = NexCache(Settings(redis_url=redis_url, op_timeout_ms=500))
            stack.push_async_callback(cache.aclose)
            return cache

        yield make


def happen(cache: NexCache, tenant: str, operation: str, *, hits: int, misses: int) -> None:
    counts = cache.counts.of(tenant, operation)
    for _ in range(hits):
        counts.redis_hits += 1
        counts.hit_latency.add(0.001)
    for _ in range(misses):
        counts.misses += 1
        counts.miss_latency.add(0.1)
    counts.bypasses[Bypass.METHOD] += 1


async def test_the_figures_of_two_nodes_are_added_up_exactly(node: Made) -> None:
    a, b = node(), node()
    happen(a, "acme", "overview", hits=7, misses=2)
    happen(b, "acme", "overview", hits=5, misses=1)
    happen(b, "acme", "details", hits=1, misses=1)
    await b._parts.ledger.flush()

    stats = (await a.stats("acme")).as_dict()

    assert {name: stats[name] for name in ("requests", "hits", "misses", "bypasses", "hit_rate", "merged")} == {
        "requests": 20,
        "hits": 13,
        "misses": 4,
        "bypasses": 3,
        "hit_rate": round(13 / 17, 4),
        "merged": True,
    }
    operations = stats["operations"]
    assert isinstance(operations, dict)
    assert {name: figures["requests"] for name, figures in operations.items()} == {"overview": 17, "details": 3}


async def test_percentiles_are_those_of_all_nodes(node: Made) -> None:
    a, b = node(), node()
    for _ in range(90):
        a.counts.of("acme", "overview").hit_latency.add(0.001)
    for _ in range(10):
        b.counts.of("acme", "overview").hit_latency.add(0.1)
    await b._parts.ledger.flush()

    merged = (await a.stats("acme")).operations["overview"].hit_latency

    assert merged.count == 100
    assert merged.mean == pytest.approx(0.0109, rel=0.01)
    assert 0.001 <= merged.quantile(0.5) <= 0.00125
    assert 0.1 <= merged.quantile(0.99) <= 0.125


async def test_adding_twice_counts_once(node: Made) -> None:
    cache = node()
    happen(cache, "acme", "overview", hits=3, misses=0)
    for _ in range(3):
        await cache._parts.ledger.flush()
        await cache.stats("acme")

    assert (await cache.stats("acme")).operations["overview"].hits == 3


async def test_a_node_that_ends_leaves_its_figures(node: Made) -> None:
    gone, stays = node(), node()
    await gone.start()
    happen(gone, "acme", "overview", hits=4, misses=0)

    await gone.aclose()

    assert (await stays.stats("acme")).operations["overview"].hits == 4


async def test_a_tenant_never_sees_anothers_figures(node: Made) -> None:
    cache = node()
    happen(cache, "acme", "overview", hits=3, misses=0)
    happen(cache, "acme:overview", "x", hits=2, misses=0)
    happen(cache, "globex", "invoices", hits=1, misses=0)

    assert set((await cache.stats("acme")).operations) == {"overview"}
    assert set((await cache.stats("globex")).operations) == {"invoices"}
    assert set((await cache.stats("initech")).operations) == set()


async def test_no_invalidation_reaches_the_figures(node: Made) -> None:
    cache = node()
    happen(cache, "acme", "overview", hits=3, misses=0)
    await cache._parts.ledger.flush()

    await cache.invalidate("acme", "*")

    assert (await cache.stats("acme")).operations["overview"].hits == 3


async def test_an_operations_name_may_hold_anything(node: Made) -> None:
    cache = node()
    for name in ("a|b", "hit.us", "since", "é:*"):
        happen(cache, "acme", name, hits=1, misses=0)

    assert {name: c.hits for name, c in (await cache.stats("acme")).operations.items()} == dict.fromkeys(
        ("a|b", "hit.us", "since", "é:*"), 1
    )


async def test_without_the_store_the_figures_are_this_processes_own(
    node: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = node()
    happen(cache, "acme", "overview", hits=3, misses=0)
    asked = 0

    async def away(*_: object, **__: object) -> None:
        nonlocal asked
        asked += 1
        raise StoreUnavailable("breaker", "away")

    monkeypatch.setattr(RedisStore, "_call", away)
    stats = await cache.stats("acme")
    monkeypatch.undo()

    assert asked, "the fault was not seen to happen"
    assert (stats.merged, stats.operations["overview"].hits) == (False, 3)
    assert (await cache.stats("acme")).operations["overview"].hits == 3


async def test_entries_and_bytes_are_those_of_the_tenant(node: Made) -> None:
    cache = node()
    store = cache._parts.store
    for number in range(30):
        await store.write(cache.keys.prefix("acme") + b"op:%032x" % number, b"x" * 100, ttl_ms=60_000)
    await store.write(cache.keys.prefix("acme2") + b"op:%032x" % 1, b"x" * 100, ttl_ms=60_000)
    await store.write(cache.keys.of_tag("acme", "t"), b"x" * 24, ttl_ms=60_000)

    usage = (await cache.stats("acme")).usage

    assert usage is not None
    assert (usage.entries, usage.bytes, usage.estimated) == (30, 3000, False)
