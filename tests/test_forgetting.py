"""A tenant forgotten: nothing of it is left anywhere, nothing of others is touched, and repeating it is harmless."""

from typing import Any

import pytest
from pydantic import SecretStr

from nexcache.errors import InvalidName, StoreError, StoreUnavailable
from nexcache.forgetting import Forgotten, belongs
from nexcache.key import KeySpace
from nexcache.quota import Quota
from tests.invalidation.nodes import Node
from tests.servers import Valkey

SETTINGS: dict[str, Any] = {
    "l1_enabled": True,
    "quota_entries": 100,
    "encryption_keys": {"k1": SecretStr("k" * 32)},
}


async def live(node: Node, tenant: str) -> None:
    """Leave something in every family of keys."""
    for name in "abc":
        await node.fill(node.keys.key(tenant, "overview", name.encode(), ("service:a",)))
    node.cache.counts.of(tenant, "overview").misses += 1
    await node.cache.tenant(tenant).set("colour", "red")
    await node.cache.rate_limit("5/minute").check("someone", tenant=tenant)
    sessions = node.cache.sessions(tenant=tenant, encrypted=node.cache._parts.vault is not None)
    await sessions.create({"cart": [1]}, user="ann")
    await node.cache.switch("details", tenant=tenant, off=True)
    await node.cache.switch("overview", tenant=tenant, off=True)
    await node.cache.switch("overview", tenant=tenant, off=False)
    await node.cache.stats(tenant)
    await node.cache._parts.ledger.flush()


def keys_of(valkey: Valkey, tenant: str) -> set[bytes]:
    """Return a tenant's keys, without the lease of a moment that goes by itself; and its fields among others'."""
    keys = {key for key in valkey.ask("KEYS", "*") if tenant.encode() in key and not key.endswith(b"@restoring")}
    switches = valkey.ask("HGETALL", "nexarch.switch:all") if valkey.ask("EXISTS", "nexarch.switch:all") else {}
    return keys | {name for name in switches if name.startswith(tenant.encode() + b"|")}


async def test_nothing_of_a_forgotten_tenant_is_left_and_nothing_of_others_is_touched(
    redis_url: str, valkey: Valkey
) -> None:
    node, other = Node(redis_url, **SETTINGS), Node(redis_url, **SETTINGS)
    for tenant in ("acme", "acme2", "globex"):
        await live(node, tenant)
    await other.look(node.key("a", tags=("service:a",)))
    families = {key.split(b":")[0] for key in keys_of(valkey, "acme2")}
    assert families >= {b"nexarch", b"nexarch.value", b"nexarch.limit", b"nexarch.quota", b"nexarch.key",
                        b"nexarch.stats", b"nexarch.trend", b"nexarch.session", b"acme2|details"}  # fmt: skip
    others = keys_of(valkey, "acme2") | keys_of(valkey, "globex")
    mine = keys_of(valkey, "acme") - keys_of(valkey, "acme2")
    steps: list[Forgotten] = []

    done = await node.cache.forget("acme", progress=steps.append)

    assert done.done
    assert done.removed >= len(mine) - 5  # the invalidation before took the generations
    assert steps[-1] == done
    assert keys_of(valkey, "acme") - keys_of(valkey, "acme2") == set()
    assert keys_of(valkey, "acme2") | keys_of(valkey, "globex") == others
    for each in (node, other):
        assert await each.body(each.keys.key("acme", "overview", b"a", ("service:a",))) is None
        assert await each.body(each.keys.key("globex", "overview", b"a", ("service:a",))) == b"1"
    assert node.entries.memory.held_by(node.keys.prefix("acme")) == (0, 0)
    assert (await node.cache.stats("acme")).operations == {}
    assert (await node.cache.stats("globex")).operations["overview"].misses > 0
    await other.cache._parts.switches.look()
    for each in (node, other):
        assert not each.cache.is_disabled("details", "acme")
        assert each.cache.is_disabled("details", "globex")
    again = await node.cache.forget("acme")
    assert again.done
    for each in (node, other):
        await each.cache.aclose()


async def test_a_forgotten_tenant_may_come_back_and_begins_anew(redis_url: str) -> None:
    node = Node(redis_url, quotas={"acme": Quota(entries=3)})
    await live(node, "acme")
    await node.cache.forget("acme")

    assert await node.cache.tenant("acme").get("colour") is None
    await live(node, "acme")
    quota = (await node.cache.stats("acme")).quota
    assert quota is not None
    assert quota.entries == 3
    await node.cache.aclose()


async def test_it_takes_steps_and_goes_on_where_it_was_interrupted(redis_url: str, valkey: Valkey) -> None:
    node = Node(redis_url)
    script = """
    for number = 1, 3000 do
      redis.call('SET', 'nexarch.value:' .. (number % 2 == 1 and 'acme' or 'globex') .. ':' .. number, '1')
    end
    """
    valkey.ask("EVAL", script, 0)
    steps: list[Forgotten] = []

    def interrupt(step: Forgotten) -> None:
        steps.append(step)
        if len(steps) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await node.cache.forget("acme", progress=interrupt)
    assert not steps[-1].done
    assert 0 < steps[-1].removed < 1500
    done = await node.cache.forget("acme", resume=steps[-1], progress=steps.append)

    assert done == steps[-1]
    assert len(steps) > 4
    assert done.removed == 1500
    assert len(valkey.ask("KEYS", "nexarch.value:globex:*")) == 1500
    assert max(node.redis.commands, 1) < 60
    await node.cache.aclose()


async def test_while_the_store_is_away_it_says_so(own_valkey: Valkey) -> None:
    node = Node(own_valkey.url, op_timeout_ms=500)
    own_valkey.kill()
    with pytest.raises(StoreUnavailable, match="not forgotten"):
        await node.cache.forget("acme")
    with pytest.raises(StoreError):
        await node.cache.mend()
    await node.cache.aclose()


async def test_without_a_store_this_process_forgets() -> None:
    node = Node(None)
    for tenant in ("acme", "globex"):
        await live(node, tenant)

    assert (await node.cache.forget("acme")) == Forgotten("acme", 6, done=True)  # entries, a value, a session, a user

    assert await node.cache.tenant("acme").get("colour") is None
    assert await node.cache.tenant("globex").get("colour") == "red"
    assert await node.body(node.keys.key("globex", "overview", b"a", ("service:a",))) == b"1"
    assert (await node.cache.stats("acme")).operations == {}
    assert not node.cache.is_disabled("details", "acme")
    assert node.cache.is_disabled("details", "globex")
    assert [key for key in node.local._values if b"acme" in key] == []
    assert await node.cache.mend() == 0
    await node.cache.aclose()


async def test_a_bad_name_is_refused(redis_url: str) -> None:
    node = Node(redis_url)
    with pytest.raises(InvalidName):
        await node.cache.forget("a\nb")
    await node.cache.aclose()


@pytest.mark.parametrize("cluster", [False, True])
@pytest.mark.parametrize("tenant", ["acme", "a*b", "a?b", "a[b]", "@", "*"])
def test_a_tenants_keys_are_told_from_all_others(tenant: str, *, cluster: bool) -> None:
    keys = KeySpace(cluster=cluster)
    _, chosen = belongs(keys, tenant)
    own = [
        keys.of_tenant(tenant),
        keys.value(tenant, "x"),
        keys.limit(tenant, "x", "y"),
        keys.salt(tenant),
        *keys.quota(tenant),
    ]
    assert all(chosen(key) for key in own)
    for other in (tenant + "2", "x" + tenant, tenant[:-1] or "b", "overview"):
        theirs = [keys.of_tenant(other), keys.value(other, tenant), keys.salt(other), *keys.quota(other)]
        theirs.append(keys.key(other, tenant, b"x").name)
        assert not any(chosen(key) for key in theirs)


async def test_what_should_expire_and_does_not_is_mended_and_what_is_kept_is_not(
    redis_url: str, valkey: Valkey
) -> None:
    node = Node(redis_url)
    await live(node, "acme")
    name = node.key("a", tags=("service:a",)).name
    valkey.ask("PERSIST", name)
    valkey.ask("SET", "nexarch.session:acme:0123", "session")
    foreign = "somebody-elses"
    valkey.ask("SET", foreign, "1")
    before = {key: valkey.ask("PTTL", key) for key in valkey.ask("KEYS", "*")}

    assert await node.cache.mend() == 1

    assert 0 < valkey.ask("PTTL", name) <= 30 * 86_400_000
    for key in (node.keys.value("acme", "colour"), b"nexarch.session:acme:0123", foreign.encode()):
        assert before[key] == valkey.ask("PTTL", key) == -1
    assert await node.body(node.key("a", tags=("service:a",))) == b"1"
    assert await node.cache.mend() == 0
    await node.cache.aclose()
