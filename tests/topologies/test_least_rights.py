"""The user of the shipped ACL file: what NexCache does is permitted, and nothing is permitted that it does not do."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from nexcache import NexCache, Settings
from nexcache.errors import StoreError
from nexcache.rate_limit import Algorithm
from nexcache.telemetry.names import Tier
from tests.invalidation.nodes import Node
from tests.servers import PASSWORD, USER, USERS, Valkey, rights
from tests.stores.reading import read_again
from tests.topologies.servers import Cluster

ON_A_CLUSTER_ONLY = {"cluster|slots", "asking"}
ENCRYPTION = {"encryption_keys": {"k1": SecretStr("k" * 32)}}


@pytest.fixture(scope="module")
def server(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("acl"), program=program) as made:
        yield made


async def exercise(url: str) -> None:
    """Use everything that NexCache does with a server."""
    node = Node(f"{url}/1" if "cluster" not in url else url, l1_enabled=True, quota_entries=10, **ENCRYPTION)
    other = Node(f"{url}/1" if "cluster" not in url else url, l1_enabled=True, **ENCRYPTION)
    key = node.key("x", tags=("service:a",))
    for each in (node, other):
        await each.cache.start()
        if await each.body(key) is None:
            await each.fill(key)
        each.cache.counts.of("acme", "overview").misses += 1
    for _ in range(100):
        if all(each.cache._parts.coherence and each.cache._parts.coherence.connected for each in (node, other)):
            break
        await asyncio.sleep(0.01)
    await node.cache.invalidate("acme", "over*", tags=["service:a"], wait="strict")
    await node.cache.stats("acme")
    await node.cache.health()
    for algorithm in Algorithm:
        await node.cache.rate_limit("5/minute", algorithm=algorithm).check("someone", tenant="acme")
    values = node.cache.tenant("acme", encrypted=True)
    await values.set("a", "x", 60)
    await values.expire("a", 60)
    await values.expire("a", None)
    await values.increment("b", expiry=60)
    assert (await values.exists("a"), await values.get("a"), await values.delete("a")) == (True, "x", 1)
    sessions = node.cache.sessions(tenant="acme")
    if (begun := await sessions.rotate((await sessions.create(user="ann")).id)) is not None:
        await sessions.update(begun.id, {"a": 1})
    await sessions.revoke("ann")
    await node.redis.names(b"nexarch:", most=100)
    await node.redis.peek_many([key.name], longest=1000)
    if (again := node.redis.again) is not None:
        read = await again.read((key.name, *key.generations))
        before = again.before((key.name, *key.generations), read.values, read.epoch)
        assert await read_again(again, before)[0]
    values = node.cache.tenant("acme")
    await values.set("kept", 1)
    await values.set("for a while", 1, expiry=60)
    await values.set_many({"a": 1, "b": 2})
    assert await values.get_many(["a", "b"]) == {"a": 1, "b": 2}
    assert await values.exists("kept")
    await values.increment("counted")
    await values.expire("kept", 60)
    await values.expire("kept", None)
    await values.delete("kept")
    vault = node.cache._parts.vault
    assert vault is not None
    entries, _ = node.keys.quota("acme")
    # an entry whose time is over is taken off the account
    await node.redis.evaluate(b"return redis.call('ZADD', KEYS[1], 1, 'gone')", (entries,), ())
    await node.cache.stats("acme")
    await vault.shred("acme")
    await node.cache.forget("acme")
    await asyncio.sleep(0.3)  # the backplane asks whether the server is there
    for each in (node, other):
        await each.cache.aclose()


async def ask(server: Valkey, *words: str) -> list[dict[str, str]]:
    """Return the refusals that the server has logged."""
    found = await asyncio.to_thread(server.ask, *words)
    return [
        {str(name, "utf-8"): value.decode() if isinstance(value, bytes) else str(value) for name, value in pairs}
        for pairs in (zip(entry[::2], entry[1::2], strict=True) for entry in found)
    ]


async def refusals(server: Valkey, without: str = "") -> set[tuple[str, str]]:
    """Exercise a user who lacks one right; returns what was refused and why."""
    words = [word for word in rights() if word != without]
    for command in (
        ("FLUSHALL",),
        ("CONFIG", "RESETSTAT"),
        ("ACL", "LOG", "RESET"),
        ("ACL", "SETUSER", USER, "reset", *words),
    ):
        await asyncio.to_thread(server.ask, *command)
    try:
        await exercise(f"redis://{USER}:{PASSWORD}@127.0.0.1:{server.port}")
    except (StoreError, AssertionError):
        pass  # what cannot be done shows below
    return {(entry["reason"], entry["object"]) for entry in await ask(server, "ACL", "LOG", "128")}


async def test_all_that_is_done_is_permitted_and_all_that_is_permitted_is_done(server: Valkey) -> None:
    """Both at once: whoever adds a command adds the right and its use here."""
    assert await refusals(server) == set()

    found = await asyncio.to_thread(server.ask, "INFO", "commandstats")
    looking = {
        "info",
        "acl|log",
        "acl|setuser",
        "config|resetstat",
        "client|setinfo",
        "flushall",
        "command",
        "command|docs",
    }
    called = {name.removeprefix("cmdstat_") for name in found} - looking | {"info"}
    permitted = {word[1:] for word in rights() if word.startswith("+")}
    assert permitted - ON_A_CLUSTER_ONLY == called - ON_A_CLUSTER_ONLY


@pytest.mark.parametrize("right", [word for word in rights() if word.startswith(("~", "&"))])
async def test_each_pattern_of_keys_and_channels_is_needed(server: Valkey, right: str) -> None:
    refused = await refusals(server, right)

    assert {reason for reason, _ in refused} == {"key" if right.startswith("~") else "channel"}
    assert all(name.startswith(right[1:].rstrip("*")) for _, name in refused)


async def test_other_peoples_keys_and_the_servers_administration_are_out_of_reach(server: Valkey) -> None:
    # Names of keys are visible to whoever may SCAN, values are not.
    store = Node(server.least_rights_url).redis
    for command in (
        ("GET", b"other"),
        ("MGET", b"nexarch:a", b"other"),
        ("KEYS", b"*"),
        ("FLUSHALL",),
        ("CONFIG", b"GET", b"*"),
        ("ACL", b"LIST"),
        ("SUBSCRIBE", b"other"),
        ("EVAL", b"return redis.call('GET', 'other')", 0),
    ):
        with pytest.raises(StoreError):
            await store._call("get", (command,), deadline=None)
    await store.aclose()


async def test_a_cluster_needs_no_more(program: Path, tmp_path: Path) -> None:
    with Cluster(tmp_path, program) as cluster:
        for node in cluster.nodes:
            node.ask("ACL", "SETUSER", USER, "reset", *rights())
        await exercise(cluster.url.replace("://", f"://{USER}:{PASSWORD}@"))
        user = Node(cluster.url.replace("://", f"://{USER}:{PASSWORD}@"))
        for tenant in cluster.tenants():
            assert (await user.fill(user.keys.key(tenant, "overview", b"x")))[0] is Tier.REDIS
        await user.cache.aclose()
        for each in cluster.nodes:
            assert await ask(each, "ACL", "LOG", "10") == []


async def test_the_file_is_one_that_a_server_takes(program: Path, tmp_path: Path) -> None:
    """It closes the door to everybody else."""
    file = tmp_path / "users.acl"
    file.write_text(USERS.read_text(encoding="utf-8"), encoding="utf-8")
    with Valkey(tmp_path, program=program, aclfile=str(file)) as server:
        cache = NexCache(
            Settings(redis_url=SecretStr(f"redis://{USER}:{PASSWORD}@127.0.0.1:{server.port}"), op_timeout_ms=1000)
        )
        assert (await cache.health()).available
        await cache.aclose()
        stranger = Node(server.url)
        assert (await stranger.cache.health()).detail == "the server refused the credentials"
        await stranger.cache.aclose()
