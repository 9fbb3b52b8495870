"""Quotas: what a tenant holds together in all processes never exceeds what it may, and nobody else notices."""

import asyncio
import math
import subprocess
import sys
import time
from typing import Literal

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.alerts import QUOTA
from nexcache.errors import ConfigurationError, OverQuota
from nexcache.quota import Quota
from nexcache.stores.memory import Bounded
from nexcache.telemetry.events import NotStored
from nexcache.telemetry.names import NotStoredReason, Tier
from nexcache.testing import FakeClock
from tests.invalidation.nodes import Node
from tests.servers import Valkey


async def fills(node: Node, names: str, body: bytes = b"1", tenant: str = "acme") -> str:
    """Return the names whose answer was kept."""
    kept = ""
    for name in names:
        key = node.keys.key(tenant, "overview", name.encode())
        try:
            done = await node.fill(key, body)
        except OverQuota:
            continue
        assert done[1]
        kept += name
    return kept


async def test_a_tenant_holds_no_more_entries_than_it_may_and_others_notice_nothing(redis_url: str) -> None:
    node = Node(redis_url, quotas={"acme": Quota(entries=2)})

    assert await fills(node, "abcd") == "ab"
    assert await fills(node, "abcd", tenant="globex") == "abcd"
    assert [await node.body(node.key(name)) for name in "abc"] == [b"1", b"1", None]
    statistics = (await node.cache.stats("acme")).as_dict()
    assert statistics["quota"] == {
        "limit": None,
        "used": statistics["quota"]["used"],  # type: ignore[index]
        "entries": {"limit": 2, "used": 2},
        "fills_per_second": None,
        "refused": 2,
    }
    assert (await node.cache.stats("globex")).as_dict()["quota"] is None
    await node.cache.aclose()


async def test_an_entry_that_is_written_again_counts_once(redis_url: str) -> None:
    node = Node(redis_url, quota_entries=1, quota_bytes=2000)
    key = node.key("a")
    for size in (900, 100, 900):
        assert (await node.fill(key, b"x" * size))[1]
        quota = (await node.cache.stats("acme")).quota
        assert quota is not None
        assert quota.entries == 1
        assert quota.bytes == len(key.name) + (await _length(node, key.name))
        await node.cache.invalidate("acme", "overview")
    await node.cache.aclose()


async def _length(node: Node, name: bytes) -> int:
    (value,) = (await node.redis.read((name,))).values
    return len(value or b"")


async def test_bytes_are_those_of_keys_and_values_in_the_store(redis_url: str) -> None:
    node = Node(redis_url, quota_bytes=4000)

    assert await fills(node, "abcd", b"x" * 1200) == "ab"
    quota = (await node.cache.stats("acme")).quota
    assert quota is not None
    held = [len(node.key(name).name) + await _length(node, node.key(name).name) for name in "ab"]
    assert quota.bytes == sum(held) <= 4000
    assert await fills(node, "e", b"x" * 100) == "e"  # a smaller one fits yet
    await node.cache.aclose()


async def test_what_has_expired_makes_room_again(redis_url: str, valkey: Valkey) -> None:
    node = Node(redis_url, quota_entries=2)
    for name in "ab":
        key = node.key(name)
        snapshot = await node.capture(key, await node.look(key))  # type: ignore[arg-type]
        assert await node.keep(key, snapshot, b"1", ttl=600)
    assert await fills(node, "c") == ""

    entries, _ = node.keys.quota("acme")
    past = int(time.time() * 1000) - 1  # the server's clock cannot be moved: the instant it is compared with can
    valkey.ask("ZADD", entries, str(past), node.key("a").name.removeprefix(node.keys.prefix("acme")))

    quota = (await node.cache.stats("acme")).quota
    assert quota is not None
    assert (quota.entries, quota.bytes) == (1, len(node.key("b").name) + await _length(node, node.key("b").name))
    assert await fills(node, "cd") == "c"
    await node.cache.aclose()


async def test_an_account_that_was_lost_begins_anew_and_expires_with_its_entries(
    redis_url: str, valkey: Valkey
) -> None:
    node = Node(redis_url, quota_entries=1)
    assert await fills(node, "a") == "a"
    keys = node.keys.quota("acme")
    for key in keys:
        assert 590_000 < int(valkey.ask("PTTL", key)) <= 600_000
    valkey.ask("UNLINK", keys[1])  # the sizes alone: evicted

    assert await fills(node, "b") == ""
    valkey.ask("UNLINK", *keys)
    assert await fills(node, "b") == "b"
    await node.cache.aclose()


WORKER = """
import asyncio, sys
from nexcache.errors import OverQuota
from tests.invalidation.nodes import Node

async def main():
    sys.stdin.readline()
    node = Node(sys.argv[1], quota_entries=100, quota_bytes=1_000_000)
    kept = 0
    async def fill(number):
        nonlocal kept
        try:
            _, done = await node.fill(node.key(f"{sys.argv[2]}-{number}"), b"x" * 100)
            kept += bool(done)
        except OverQuota:
            pass
    for start in range(0, 150, 25):
        await asyncio.gather(*(fill(number) for number in range(start, start + 25)))
    await node.cache.aclose()
    print(kept)

asyncio.run(main())
"""


async def test_two_processes_together_keep_exactly_what_the_quota_permits(redis_url: str, valkey: Valkey) -> None:
    workers = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            WORKER,
            redis_url,
            name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in ("one", "two")
    ]
    outputs = await asyncio.gather(*(worker.communicate(b"go\n") for worker in workers))
    kept = [int(output) for output, _ in outputs]

    assert all(worker.returncode == 0 for worker in workers)
    assert sum(kept) == 100
    found = [key for key in valkey.ask("KEYS", "nexarch:acme:overview:*") if key.count(b":") == 3]
    assert len(found) == 100


async def test_more_answers_a_second_than_may_be_kept_are_answered_and_not_kept(redis_url: str) -> None:
    node = Node(redis_url, quota_fills_per_second=3)

    kept = await fills(node, "abcdefgh")
    assert kept.startswith("abc")
    assert len(kept) < 8
    assert (await fills(node, "abc", tenant="globex")) == "abc"
    await node.cache.aclose()


@pytest.mark.parametrize(("announced", "kept"), [({}, 6), ({"instances": 3}, 2), ({"instances": 9}, 1)])
async def test_while_the_store_is_away_a_process_keeps_its_part_of_the_answers_a_second(
    own_valkey: Valkey, announced: dict[str, int], kept: int
) -> None:
    node = Node(own_valkey.url, op_timeout_ms=500, quota_fills_per_second=6, **announced)
    clock = node.cache._parts.limits._clock = FakeClock()
    assert (await fills(node, "abcdefghi")).startswith("abcdef")
    own_valkey.kill()

    assert len(await fills(node, "jklmnopq")) == kept
    clock.advance(1)
    assert len(await fills(node, "rstuvwxy")) == kept
    await node.cache.aclose()


async def test_without_a_store_it_is_this_process_that_counts() -> None:
    node = Node(None, quotas={"acme": Quota(entries=2, bytes=100_000)})

    assert await fills(node, "abc") == "ab"
    assert await fills(node, "abc", tenant="globex") == "abc"
    quota = (await node.cache.stats("acme")).quota
    assert quota is not None
    assert (quota.entries, quota.refused) == (2, 1)
    await node.cache.aclose()


async def test_while_the_store_is_away_the_fallback_keeps_the_quota_too(own_valkey: Valkey) -> None:
    node = Node(own_valkey.url, quota_entries=1, op_timeout_ms=500)
    assert await fills(node, "a") == "a"
    own_valkey.kill()

    tier, kept = await node.fill(node.key("b"))
    assert (tier, kept) == (Tier.FALLBACK, True)
    with pytest.raises(OverQuota):
        await node.fill(node.key("c"))
    quota = (await node.cache.stats("acme")).quota
    assert quota is not None
    assert (quota.quota.entries, quota.entries) == (1, None)
    await node.cache.aclose()


async def test_a_tenant_that_is_nearly_full_fires_an_alert(redis_url: str) -> None:
    node = Node(redis_url, quota_entries=2)
    gauges = node.cache._parts.watch._figures
    assert gauges()[QUOTA] is None
    await fills(node, "a")
    assert gauges()[QUOTA] == 0.5
    await fills(node, "bc")
    assert gauges()[QUOTA] == 1.0
    assert node.entries.quotas is not None
    clock = FakeClock(time.monotonic() + 61)
    node.entries.quotas._clock = clock
    assert gauges()[QUOTA] is None  # nobody has written for a minute
    await node.cache.aclose()


def app(cache: NexCache, mode: Literal["policy", "rfc"] = "policy", fields: str = "") -> Starlette:
    """Answer what is asked for; `fields` varies, and names what the answer varies by."""

    async def answer(request: Request) -> PlainTextResponse:
        headers = {} if mode == "policy" else {"cache-control": "max-age=600"} | ({"vary": fields} if fields else {})
        return PlainTextResponse(request.query_params.get("n", ""), headers=headers)

    policies = [Policy("/x", op="x", ttl="10m", jitter=0)] if mode == "policy" else []
    who = tenants.header("X-Tenant", trusted=True)
    middleware = Middleware(CacheMiddleware, cache=cache, tenant=who, policies=policies, mode=mode)
    return Starlette(routes=[Route("/x", answer)], middleware=[middleware])


@pytest.mark.parametrize("mode", ["policy", "rfc"])
def test_over_quota_is_told_in_events_and_in_the_answer_and_stops_nobody_else(
    redis_url: str, mode: Literal["policy", "rfc"]
) -> None:
    cache = NexCache(Settings(redis_url=redis_url, op_timeout_ms=2000, quotas="acme entries=1"))
    told: list[object] = []
    cache.emitter.subscribe(lambda event: told.append(getattr(event, "reason", event)), NotStored)
    with TestClient(app(cache, mode)) as client:

        def status(number: int, tenant: str = "acme") -> str:
            answer = client.get("/x", params={"n": number}, headers={"x-tenant": tenant})
            assert answer.text == str(number)
            return answer.headers["cache-status"]

        status(1)
        status(2)
        assert told == [NotStoredReason.QUOTA]
        known = "NexCache; fwd=uri-miss; fwd-status=200" if mode == "rfc" else "NexCache; fwd=uri-miss"
        assert status(3) == f"{known}; detail=quota"
        assert told == [NotStoredReason.QUOTA] * 2
        assert "hit" in status(1)
        status(2, "globex")
        assert "hit" in status(2, "globex")


async def test_a_cached_function_that_is_over_quota_is_computed_each_time(redis_url: str) -> None:
    cache = NexCache(Settings(redis_url=redis_url, op_timeout_ms=2000, quota_entries=1), default_tenant="acme")
    calls = 0

    @cache.cached("double")
    async def double(number: int) -> int:
        nonlocal calls
        calls += 1
        return 2 * number

    assert [await double(1), await double(1), await double(2), await double(2)] == [2, 2, 4, 4]
    assert calls == 3
    await cache.aclose()


async def test_tenants_have_lifetimes_of_their_own(redis_url: str, valkey: Valkey) -> None:
    settings = Settings(
        redis_url=redis_url, op_timeout_ms=2000, tenant_ttls="acme=30s,globex/double=2m", operation_ttls={"double": 50}
    )
    cache = NexCache(settings)

    @cache.cached("double", tenant="tenant", ttl=900)
    async def double(tenant: str, number: int) -> int:
        return 2 * number

    found = {}
    for tenant in ("acme", "globex", "initech"):
        await double(tenant, 1)
        (key,) = [key for key in valkey.ask("KEYS", f"nexarch:{tenant}:double:*") if key.count(b":") == 3]
        found[tenant] = math.ceil(int(valkey.ask("PTTL", key)) / 1000)
    await cache.aclose()
    assert found == {"acme": 30, "globex": 120, "initech": 50}


def test_a_variant_that_is_over_quota_is_not_stored_by_the_rules_of_http_either(redis_url: str) -> None:
    """An answer that varies takes two places: its own, and that of what says by which fields."""
    cache = NexCache(Settings(redis_url=redis_url, op_timeout_ms=2000, quota_entries=3))
    told: list[object] = []
    cache.emitter.subscribe(lambda event: told.append(getattr(event, "reason", event)), NotStored)
    with TestClient(app(cache, "rfc", "x-language")) as client:

        def status(language: str) -> str:
            answer = client.get("/x", headers={"x-tenant": "acme", "x-language": language})
            return answer.headers["cache-status"]

        assert status("en") == "NexCache; fwd=uri-miss; fwd-status=200; stored"
        assert status("de") == "NexCache; fwd=vary-miss; fwd-status=200; stored"
        status("fr")
        assert told == [NotStoredReason.QUOTA]
        assert status("it") == "NexCache; fwd=vary-miss; fwd-status=200; detail=quota"
        assert "hit" in status("en")


def test_a_tenants_own_time_bounds_what_the_rules_of_http_would_keep(redis_url: str, valkey: Valkey) -> None:
    cache = NexCache(Settings(redis_url=redis_url, op_timeout_ms=2000, tenant_ttls="acme=30s,initech/http=2d"))
    with TestClient(app(cache, "rfc")) as client:
        found = {}
        for tenant in ("acme", "globex", "initech"):
            client.get("/x", headers={"x-tenant": tenant})
            (key,) = [key for key in valkey.ask("KEYS", f"nexarch:{tenant}:http:*") if key.count(b":") == 3]
            found[tenant] = math.ceil(int(valkey.ask("PTTL", key)) / 1000)
    assert found["acme"] == 30
    assert found["globex"] == found["initech"] > 500


def test_the_middleware_keeps_a_tenants_answers_for_its_own_time(redis_url: str, valkey: Valkey) -> None:
    cache = NexCache(Settings(redis_url=redis_url, op_timeout_ms=2000, tenant_ttls="acme/x=1h"))
    with TestClient(app(cache)) as client:
        for tenant, seconds in (("acme", 3600), ("globex", 600)):
            client.get("/x", headers={"x-tenant": tenant})
            (key,) = [key for key in valkey.ask("KEYS", f"nexarch:{tenant}:x:*") if key.count(b":") == 3]
            assert seconds - 20 < int(valkey.ask("PTTL", key)) / 1000 <= seconds
            assert int(valkey.ask("PTTL", f"nexarch:{tenant}:@tenant")) > int(valkey.ask("PTTL", key))


@pytest.mark.parametrize(
    ("text", "quotas"),
    [
        ("acme bytes=64MiB entries=10 fills=5", {"acme": Quota(64 * 2**20, 10, 5)}),
        ("acme entries=0,globex fills=7", {"acme": Quota(entries=0), "globex": Quota(fills=7)}),
        ("a%2Cb bytes=1", {"a,b": Quota(bytes=1)}),
    ],
)
def test_quotas_are_read(text: str, quotas: dict[str, Quota]) -> None:
    assert Settings(quotas=text).quotas == quotas


@pytest.mark.parametrize(
    "text", ["acme", "acme 5", "acme entries=x", "acme entries=-1", "acme fills=0", "acme entries=1,acme bytes=2",
             "acme entries=1 entries=2", "acme rows=2"]
)  # fmt: skip
def test_what_is_no_quota_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError, match="CACHE_QUOTAS is written"):
        Settings(quotas=text)


def test_a_tenants_quota_is_completed_by_everybodys() -> None:
    settings = Settings(quotas="acme entries=5", quota_bytes="1KiB", quota_entries=9, quota_fills_per_second=2)
    assert settings.tenant_quotas == {"acme": Quota(1024, 5, 2)}
    assert settings.default_quota == Quota(1024, 9, 2)


@pytest.mark.parametrize("text", ["acme", "acme=", "acme=0", "=5", "acme=1y", "acme=31d"])
def test_what_is_no_lifetime_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError, match="CACHE_TENANT_TTLS is written"):
        Settings(tenant_ttls=text)


def test_a_share_leaves_out_what_has_expired() -> None:
    clock = FakeClock()
    held: Bounded[int] = Bounded(max_bytes=10_000, max_entries=10, clock=clock)
    held.put(b"a", 1, size=10, lifetime=5)
    held.put(b"b", 1, size=10, lifetime=50)
    assert held.share_of(b"x") == (2, 2 * held.cost(b"a", 10))
    clock.advance(6)
    assert held.share_of(b"x") == (1, held.cost(b"b", 10))
