"""A cluster of real servers: tenants on their nodes, slots that move, a node that is lost, and failover."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from nexcache import NexCache, Settings
from nexcache.cli import examination
from nexcache.entries import Found
from nexcache.errors import OverQuota, StoreError
from nexcache.key import CacheKey
from nexcache.stores.base import LeaseOffer
from nexcache.stores.cluster import ClusterStore, slots_of
from nexcache.telemetry.names import Tier
from tests.invalidation.nodes import Node
from tests.servers import Valkey
from tests.test_forgetting import SETTINGS, live
from tests.topologies.servers import Cluster, until

FAILOVER = 5.0
"""Seconds until the app uses the cache again after a node has died; asserted with slack for a busy machine."""


@pytest.fixture(scope="module")
def cluster(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three primaries, not to be harmed."""
    with Cluster(tmp_path_factory.mktemp("cluster"), program) as made:
        yield made


@pytest.fixture
def own_cluster(program: Path, tmp_path: Path) -> Iterator[Cluster]:
    """Three primaries with a replica each, for one test."""
    with Cluster(tmp_path, program, replicas=True) as made:
        yield made


def key_of(node: Node, tenant: str, name: str = "x") -> CacheKey:
    return node.keys.key(tenant, "overview", name.encode())


async def test_each_tenant_lives_on_one_node_and_all_are_used(cluster: Cluster) -> None:
    node = Node(cluster.url, l1_enabled=True)
    tenants = cluster.tenants()
    for tenant in tenants:
        assert await node.fill(key_of(node, tenant), tenant.encode()) == (Tier.REDIS, True)
    await node.cache.start()

    for tenant in tenants:
        assert await node.body(key_of(node, tenant)) == tenant.encode()
        keys = [key.decode() for key in cluster.of(tenant).ask("KEYS", f"nexarch:*{tenant}*")]
        assert all(key.startswith(f"nexarch:{{{tenant}}}:") for key in keys)
        assert len([key for key in keys if not key.endswith(":@restoring")]) == 5  # entry, three generations, registry
        done = await node.cache.invalidate(tenant, "overview", wait="strict")
        assert done.acknowledged
        assert await node.body(key_of(node, tenant)) is None
    health = await node.cache.health()
    assert health.available
    assert health.detail == ""
    await node.cache.aclose()
    assert len(tenants) == 3


async def test_leases_are_taken_on_the_tenants_node_also_where_all_generations_are_known(cluster: Cluster) -> None:
    node = Node(cluster.url)
    for tenant in cluster.tenants():
        key = key_of(node, tenant, "leased")
        await node.fill(key, b"x")  # its generations are there, and young
        for number in range(3):
            offer = LeaseOffer(key.name + b":l:%d" % number, b"mine", 1_000)
            captured = await node.redis.capture(
                key.generations, registry=node.keys.registry(tenant), operation=b"overview", ttl_ms=120_000, lease=offer
            )
            assert (captured.leased, captured.complete, captured.registered) == (True, True, True)
            assert cluster.of(tenant).ask("EXISTS", offer.name) == 1
    await node.cache.aclose()


async def test_statistics_count_what_a_tenants_node_holds(cluster: Cluster) -> None:
    node = Node(cluster.url)
    tenant = cluster.tenants()[0] + "-counted"
    for name in "abc":
        await node.fill(key_of(node, tenant, name))
    statistics = await node.cache.stats(tenant)
    await node.cache.aclose()

    assert statistics.merged
    assert statistics.usage is not None
    assert (statistics.usage.entries, statistics.usage.estimated) == (3, False)


async def test_values_and_functions_live_where_their_tenant_does(cluster: Cluster) -> None:
    async with NexCache(Settings(redis_url=cluster.url, op_timeout_ms=2000, l1_enabled=False)) as cache:

        @cache.cached("users", ttl=60, tenant="tenant")
        async def users(tenant: str, number: int) -> str:
            computed.append(tenant)
            return f"{tenant} {number}"

        computed: list[str] = []
        for tenant in cluster.tenants():
            values = cache.tenant(tenant)
            await values.set_many({"a": 1, "b": [2], "c": None})
            assert await values.increment("a", 4, expiry=60) == 5
            assert await values.expire("a", None)
            assert await values.get_many(["a", "b", "c", "d"]) == {"a": 5, "b": [2], "c": None}
            assert await values.delete("a", "b", "c", "d") == 3
            assert [await users(tenant, 1), await users(tenant, 1)] == [f"{tenant} 1"] * 2
            await cache.invalidate(tenant, "users")
            await users(tenant, 1)
    assert computed == [tenant for tenant in cluster.tenants() for _ in range(2)]


async def test_an_invalidation_reaches_the_memory_of_nodes_that_listen_elsewhere_in_the_cluster(
    cluster: Cluster,
) -> None:
    """Messages go over the cluster's bus; strict needs no message at all, but every node's confirmation is quick."""
    nodes = [Node(cluster.url, l1_enabled=True) for _ in range(3)]
    tenant = cluster.tenants()[0]
    for node in nodes:
        await node.cache.start()
    while not all(node.cache._parts.coherence and node.cache._parts.coherence.connected for node in nodes):
        await asyncio.sleep(0.01)
    key = key_of(nodes[0], tenant, "strict")
    await nodes[0].fill(key, b"old")
    for node in nodes:
        assert await node.body(key) == b"old"

    done = await nodes[1].cache.invalidate(tenant, "overview", wait="strict")

    for node in nodes:
        assert node.entries.lookup_here(key) is None or await node.body(key) is None
    assert done.acknowledged
    for node in nodes:
        await node.cache.aclose()


async def test_slots_that_move_under_load_cost_misses_and_never_an_error_or_an_old_answer(
    cluster: Cluster, told: Callable[[str], None]
) -> None:
    """Tools move a slot key by key: in between, a tenant's keys are on two nodes."""
    nodes = [Node(cluster.url, fallback_ttl_seconds=0) for _ in range(2)]
    tenants = cluster.tenants()[:2]
    version, acknowledged, hits, checked = 0, 0, 0, 0
    moving = True

    async def read(node: Node, tenant: str, name: str) -> None:
        nonlocal hits, checked
        key = key_of(node, tenant, name)
        while moving:
            least = acknowledged
            looked = await node.look(key)
            if isinstance(looked, Found):
                hits += 1
                assert int(looked.prepared.response.body) >= least, "an old answer"
            else:
                try:
                    snapshot = await node.capture(key, looked)
                except StoreError:
                    pass  # the handler answers, and nothing is kept
                else:
                    await node.keep(key, snapshot, b"%d" % version)
            checked += 1
            await asyncio.sleep(0.001)

    async def change() -> None:
        nonlocal version, acknowledged
        while moving:
            version += 1
            written = version
            done = [
                await node.cache.invalidate(tenant, "overview") for tenant, node in zip(tenants, nodes, strict=True)
            ]
            if all(each.acknowledged for each in done):
                acknowledged = written
            await asyncio.sleep(0.05)

    def move() -> None:
        for _ in range(3):
            for tenant in tenants:
                slot, source = key_slot(b"{%b}" % tenant.encode()), cluster.of(tenant)
                goal = next(each for each in cluster.nodes if each.port != source.port)
                cluster.move(slot, source, goal)
                time.sleep(0.1)

    before = {name: cluster.errors(name) for name in ("MOVED", "ASK", "TRYAGAIN")}
    work = [read(node, tenant, name) for node in nodes for tenant in tenants for name in "abc"]
    load = [asyncio.create_task(each) for each in (*work, change())]
    await asyncio.to_thread(move)
    moving = False
    await asyncio.gather(*load)
    seen = {name: cluster.errors(name) - count for name, count in before.items()}
    for node in nodes:
        await node.cache.aclose()

    told(f"resharding: {checked} requests, {hits} hits, 0 errors, 0 old answers; redirects answered: {seen}")
    assert seen["MOVED"] > 0, "the fault was not seen to happen"
    assert seen["ASK"] + seen["TRYAGAIN"] > 0, "the fault was not seen to happen"
    assert hits > 0
    assert acknowledged > 0


async def test_a_lost_node_takes_its_own_tenants_along_and_nobody_else(
    own_cluster: Cluster, told: Callable[[str], None]
) -> None:
    """Its replica then takes over, and the app uses it without a restart: nothing that was kept before is served."""
    node = Node(own_cluster.url, op_timeout_ms=500, fallback_ttl_seconds=0)
    tenants = own_cluster.tenants()
    keys = {tenant: key_of(node, tenant) for tenant in tenants}
    for key in keys.values():
        await node.fill(key)
    lost, *others = tenants
    own_cluster.of(lost).kill()
    killed_at = time.monotonic()

    assert (await node.cache.invalidate(lost, "overview")).queued
    for tenant in others:
        assert await node.body(keys[tenant]) == b"1"
        assert (await node.cache.invalidate(tenant, "overview")).acknowledged
        assert await node.fill(keys[tenant], b"2") == (Tier.REDIS, True)
    assert not (await node.cache.health()).available

    while time.monotonic() - killed_at < FAILOVER * 5:
        assert await node.body(keys[lost]) in (None, b"3")
        try:
            if await node.fill(keys[lost], b"3") == (Tier.REDIS, True):
                break
        except (StoreError, AssertionError):
            pass
        await asyncio.sleep(0.02)
    took = time.monotonic() - killed_at
    while node.invalidations.queued:
        await asyncio.sleep(0.01)
    health = await node.cache.health()
    await node.cache.aclose()

    told(f"cluster failover: used again {took:.2f} s after the kill (promised: {FAILOVER:.0f} s)")
    assert took < FAILOVER * 5
    assert health.available


async def test_a_cluster_that_is_away_at_the_start_is_found_when_it_comes(program: Path, tmp_path: Path) -> None:
    with Cluster(tmp_path, program) as made:
        node = Node(made.url, op_timeout_ms=500)
        for each in made.nodes:
            each.kill()
        key = key_of(node, "acme")
        assert await node.body(key) is None
        assert (await node.cache.health()).detail == "the store could not be reached"
        for each in made.nodes:
            each.start()
        until(lambda: made.of("acme").ask("SET", "{acme}", "1"), "the cluster is back")
        end = time.monotonic() + 10
        while (await node.fill(key))[0] is not Tier.REDIS:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        await node.cache.aclose()


async def test_nothing_is_left_open(cluster: Cluster) -> None:
    node = Node(cluster.url, l1_enabled=True)
    await node.cache.start()
    for tenant in cluster.tenants():
        await node.fill(key_of(node, tenant))
    await node.cache.aclose()
    await node.cache.aclose()
    await asyncio.sleep(0.05)

    assert isinstance(node.store, ClusterStore)
    assert [client for each in cluster.nodes for client in each.clients()] == []
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("nexcache")]


def test_a_node_without_a_name_is_the_one_that_was_asked() -> None:
    """A node that has met nobody yet does not know its own address; slots that nobody has are asked of it, too."""
    reply = [[0, 16000, [b"", 7000, b"id"], [b"10.0.0.9", 7009, b"id"]], [16001, 16382, [None, 7001, b"id", []]]]
    slots = slots_of(reply, ("10.0.0.1", 7000))

    assert slots is not None
    assert (slots[0], slots[16001], slots[16383]) == (("10.0.0.1", 7000), ("10.0.0.1", 7001), ("10.0.0.1", 7000))
    assert slots_of([], ("10.0.0.1", 7000)) is None


async def test_a_tenants_account_is_on_its_node_and_it_is_forgotten_there(cluster: Cluster) -> None:
    node = Node(cluster.url, quota_entries=2)
    tenants = [f"{tenant}-limited" for tenant in cluster.tenants()]
    for tenant in tenants:
        for name in "ab":
            assert await node.fill(key_of(node, tenant, name)) == (Tier.REDIS, True)
        with pytest.raises(OverQuota):
            await node.fill(key_of(node, tenant, "c"))
        quota = (await node.cache.stats(tenant)).quota
        assert quota is not None
        assert quota.entries == 2
    await node.cache.aclose()


def left(cluster: Cluster, tenant: str) -> list[bytes]:
    """Return what any node has of a tenant: keys, and fields of keys of all; not the lease of a moment."""
    found = [key for each in cluster.nodes for key in each.ask("KEYS", f"nexarch*{tenant}*")]
    switches = [name for each in cluster.nodes for name in _switches(each) if name.startswith(tenant.encode() + b"|")]
    return [key for key in found if not key.endswith(b"@restoring")] + switches


def _switches(node: Valkey) -> Collection[bytes]:
    try:
        return node.ask("HGETALL", "nexarch.switch:all") or {}
    except redis.RedisError:  # another node's
        return ()


async def test_a_tenant_is_forgotten_wherever_it_lives_and_nobody_else(cluster: Cluster) -> None:
    node = Node(cluster.url, **SETTINGS)
    tenants = cluster.tenants("known")
    for tenant in tenants:
        await live(node, tenant)
    before = {tenant: left(cluster, tenant) for tenant in tenants}
    families = {key.split(b":")[0].split(b"|")[-1] for key in before[tenants[0]]}
    assert families >= {b"nexarch", b"nexarch.value", b"nexarch.session", b"nexarch.limit", b"nexarch.quota",
                        b"nexarch.key", b"nexarch.stats", b"nexarch.trend", b"details"}  # fmt: skip
    for forgotten in tenants[:2]:
        done = await node.cache.forget(forgotten)
        assert done.done
        assert done.removed >= len(before[forgotten]) - 7  # the invalidation before took the generations
        assert left(cluster, forgotten) == []
    assert left(cluster, tenants[2]) == before[tenants[2]]
    await node.cache.aclose()


async def test_what_never_expires_is_found_and_mended_on_every_node_of_a_cluster(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One address is enough: the others are those that the cluster names."""
    first = f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}"
    node = Node(first)
    tenants = cluster.tenants("old")
    for tenant in tenants:
        await live(node, tenant)
        cluster.of(tenant).ask("PERSIST", key_of(node, tenant, "a").name)
        cluster.of(tenant).ask("SET", node.keys.session(tenant, "kept"), "1")
    monkeypatch.setenv("REDIS_URL", first)
    monkeypatch.setenv("CACHE_OP_TIMEOUT_MS", "2000")
    report = await examination.of_store(fix=False)
    found = {each.where for each in report.findings if each.code == "no-expiry"}
    assert found == {f"redis://127.0.0.1:{each.port}/0" for each in cluster.nodes}

    assert await node.cache.mend() == 3

    for tenant in tenants:
        server = cluster.of(tenant)
        assert 0 < server.ask("PTTL", key_of(node, tenant, "a").name) <= 30 * 86_400_000
        for kept in (node.keys.value(tenant, "colour"), node.keys.session(tenant, "kept")):
            assert server.ask("PTTL", kept) == -1
    assert "no-expiry" not in {each.code for each in (await examination.of_store(fix=False)).findings}
    assert await node.cache.mend() == 0
    await node.cache.aclose()
