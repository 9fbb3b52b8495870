"""The listings, explanations, dry runs, switches and metrics: for whom, of whom, and page by page."""

from typing import Any

import pytest

from nexcache import NexCache, Settings
from nexcache.admin.endpoints import ENDPOINTS
from nexcache.telemetry.counts import OTHER_TENANTS
from nexcache.telemetry.events import BackendFailed, Evicted
from tests.admin.conftest import OPERATOR, SECRETS, Site

OPERATORS_ONLY = [each for each in ENDPOINTS if each.operators]


def concrete(path: str) -> str:
    return "/admin" + path.replace("{operation}", "overview").replace("{tag}", "service:cart").replace(
        "{tenant}", "globex"
    )


async def pages(site: Site, path: str, name: str, *, who: str = "acme", limit: int = 2) -> list[Any]:
    found: list[Any] = []
    cursor = ""
    for _ in range(20):
        page = (await site.ask(f"{path}?limit={limit}{cursor}", who=who)).json()
        assert len(page[name]) <= limit
        found += page[name]
        if page["next"] is None:
            return found
        cursor = f"&cursor={page['next']}"
    raise AssertionError("the pages do not end")


@pytest.mark.parametrize("endpoint", OPERATORS_ONLY, ids=lambda each: each.id)
async def test_what_concerns_all_tenants_is_for_operators(site: Site, endpoint: Any) -> None:
    path = concrete(endpoint.path)

    refused = await site.ask(path, method=endpoint.method)
    allowed = await site.ask(path, method=endpoint.method, who="operator")

    assert (refused.status_code, allowed.status_code) == (403, 200), allowed.text


async def test_a_listing_comes_page_by_page_and_whole(site: Site) -> None:
    for number in range(5):
        await site.ask(f"/services/s{number}")
    await site.ask("/services/theirs", who="globex")

    entries = await pages(site, "/admin/entries", "entries")
    tags = await pages(site, "/admin/tags", "tags")

    assert len({each["hash"] for each in entries}) == 5
    assert [each["tag"] for each in tags] == [f"service:s{number}" for number in range(5)]
    assert {each["entries"] for each in tags} == {1}
    assert all(each["live"] and each["status"] == 200 and each["operation"] == "service" for each in entries)


async def test_a_listing_of_the_store_is_that_of_memory(redis_url: str) -> None:
    site = Site(Settings(redis_url=redis_url, op_timeout_ms=1000))
    try:
        await site.ask("/services/stored")
        await site.cache.invalidate("acme", "service")
        await site.ask("/services/live")
        entries = await pages(site, "/admin/entries", "entries")
        tenants = await pages(site, "/admin/tenants", "tenants", who="operator", limit=1000)
    finally:
        await site.cache.aclose()

    assert {tuple(each["tags"]): each["live"] for each in entries} | {("service:stored",): False} == {
        ("service:stored",): False,
        ("service:live",): True,
    }
    assert "acme" in {each["id"] for each in tenants}


async def test_operations_say_what_they_are_asked_for_and_whether_they_are_switched_off(site: Site) -> None:
    await site.ask("/overview")
    await site.ask("/overview")
    await site.ask("/admin/operations/service/disable", method="POST", who="operator")

    assert await pages(site, "/admin/operations", "operations", limit=1) == [
        {"name": "overview", "disabled": False, "requests": 2, "hits": 1},
        {"name": "service", "disabled": True, "requests": 0, "hits": 0},
    ]


async def test_a_tenant_whose_requests_are_counted_with_others_has_a_name_for_people(site: Site) -> None:
    site.cache.counts.of("acme", "overview")
    site.cache.counts._counts[OTHER_TENANTS, "overview"] = site.cache.counts.of("globex", "overview")

    found = await pages(site, "/admin/tenants", "tenants", who="operator")

    assert {"id": None, "name": "(all other tenants)"} in found
    assert "\0" not in str(found)


@pytest.mark.parametrize("path", ["/admin/operations", "/admin/entries", "/admin/tags"])
async def test_a_tenant_that_is_not_there_looks_like_one_that_has_nothing(site: Site, path: str) -> None:
    await site.ask("/services/secret", who="globex")
    await site.ask("/services/secret", who="globex")

    known = await site.ask(path + "?tenant=globex")
    unknown = await site.ask(path + "?tenant=initech")

    assert known.status_code == unknown.status_code == 403
    assert known.json() == unknown.json()


async def test_an_operation_that_is_switched_off_goes_to_the_app_until_it_is_switched_on(site: Site) -> None:
    await site.ask("/overview")

    off = await site.ask("/admin/operations/overview/disable", method="POST", who="operator")
    bypassed = await site.ask("/overview")
    on = await site.ask("/admin/operations/overview/disable", method="DELETE", who="operator")
    hit = await site.ask("/overview")
    unknown = await site.ask("/admin/operations/nothing/disable", method="POST", who="operator")

    assert off.json() == {"operation": "overview", "disabled": True, "tenant": None, "scope": "process"}
    assert "detail=disabled" in bypassed.headers["cache-status"]
    assert on.json()["disabled"] is False
    assert "; hit;" in hit.headers["cache-status"]
    assert unknown.status_code == 404


async def test_a_tenant_switches_its_own_and_nobody_elses(site: Site) -> None:
    for who in ("acme", "globex"):
        await site.ask("/overview", who=who)

    off = await site.ask("/admin/operations/overview/disable", method="POST")
    foreign = await site.ask("/admin/operations/overview/disable?tenant=globex", method="POST")
    own = await site.ask("/overview")
    others = await site.ask("/overview", who="globex")
    on = await site.ask("/admin/operations/overview/enable", method="POST")

    assert off.json() == {"operation": "overview", "disabled": True, "tenant": "acme", "scope": "process"}
    assert foreign.status_code == 403
    assert "detail=disabled" in own.headers["cache-status"]
    assert "; hit;" in others.headers["cache-status"]
    assert on.json()["disabled"] is False
    assert "; hit;" in (await site.ask("/overview")).headers["cache-status"]


async def test_a_switch_reaches_other_nodes(redis_url: str) -> None:
    site, other = (Site(Settings(redis_url=redis_url, op_timeout_ms=1000)) for _ in range(2))
    try:
        await site.ask("/overview")
        off = await site.ask("/admin/operations/overview/disable?tenant=acme", method="POST", who="operator")
        await other.cache._parts.switches.look()
        listed = await pages(other, "/admin/operations", "operations")
        bypassed = await other.ask("/overview")
    finally:
        await site.cache.aclose()
        await other.cache.aclose()

    assert off.json() == {"operation": "overview", "disabled": True, "tenant": "acme", "scope": "all-nodes"}
    assert {each["name"] for each in listed if each["disabled"]} == {"overview"}
    assert "detail=disabled" in bypassed.headers["cache-status"]


async def test_everybody_is_told_who_they_are(site: Site) -> None:
    tenant = (await site.ask("/admin/whoami")).json()
    operator = (await site.ask("/admin/whoami", who="operator")).json()
    assert (tenant["tenant"], tenant["operator"]) == ("acme", False)
    assert (operator["tenant"], operator["operator"]) == (None, True)
    assert len(tenant["id"]) == len(operator["id"]) == 8


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_the_trends_are_the_tenants_own(kind: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("redis_url") if kind == "redis" else None
    site = Site(Settings(redis_url=url, redis_host=None, op_timeout_ms=1000))
    try:
        for _ in range(3):
            await site.ask("/overview")
        await site.ask("/overview", who="globex")
        found = (await site.ask("/admin/trends")).json()
        later = (await site.ask(f"/admin/trends?since={found['now'] + 30}")).json()
        foreign = await site.ask("/admin/trends?tenant=globex")
    finally:
        await site.cache.aclose()

    assert sum(slot["requests"] for slot in found["slots"]) == 3
    assert found["minutes"]["5"]["hits"] == found["minutes"]["60"]["hits"] == 2
    assert found["minutes"]["5"]["latency"]["miss"]["p95"] > 0
    assert found["merged"] is (kind == "redis")
    assert not later["slots"]
    assert foreign.status_code == 403


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_statistics_say_what_each_operation_holds_and_saves(kind: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("redis_url") if kind == "redis" else None
    site = Site(Settings(redis_url=url, redis_host=None, op_timeout_ms=1000))
    try:
        for path in ("/overview", "/overview", "/services/cart", "/services/checkout"):
            await site.ask(path)
        stats = (await site.ask("/admin/stats")).json()
        quick = (await site.ask("/admin/stats?usage=0")).json()
    finally:
        await site.cache.aclose()

    assert {name: each["entries"] for name, each in stats["operations"].items()} == {"overview": 1, "service": 2}
    assert sum(each["bytes"] for each in stats["operations"].values()) == stats["bytes"] > 0
    assert stats["saved"]["computations"] == stats["operations"]["overview"]["saved"]["computations"] == 1
    assert stats["operations"]["service"]["saved"] == {"computations": 0, "seconds": 0.0, "verdict": "too-few"}
    assert quick["entries"] is quick["operations"]["overview"]["bytes"] is None


async def test_a_processes_memory_is_for_operators(site: Site) -> None:
    await site.ask("/overview", who="globex")
    assert (await site.ask("/admin/memory")).status_code == 403
    held = (await site.ask("/admin/memory", who="operator")).json()
    assert held["entries"] == 1
    assert 0 < held["bytes"] < held["max_bytes"]


async def test_explain_tells_a_tenant_of_its_own_request(site: Site) -> None:
    await site.ask("/services/cart?a=1")

    told = (await site.ask("/admin/explain?path=/services/cart?a%3D1")).json()
    theirs = (await site.ask("/admin/explain?path=/services/cart?a%3D1", who="globex")).json()
    operators = (await site.ask("/admin/explain?path=/services/cart?a%3D1&tenant=acme&principal=acme", who="o")).json()

    assert (told["verdict"], told["request"]["path"], told["tags"]) == ("stored", "/services/cart", ["service:cart"])
    assert theirs["verdict"] == "not-stored"
    assert operators["verdict"] == "stored"
    assert not any(secret in str((told, theirs, operators)) for secret in (*SECRETS.values(), OPERATOR))


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("?path=overview", 400),
        ("?path=http://169.254.169.254/", 400),
        ("?path=/a&path=/b", 400),
        ("?path=/overview&method=TRACE", 400),
        ("?path=/overview&principal=admin", 403),
        ("?path=/overview&tenant=globex", 403),
        ("?path=/overview", 200),
    ],
)
async def test_explain_takes_a_path_and_what_the_caller_may_name(site: Site, query: str, status: int) -> None:
    assert (await site.ask("/admin/explain" + query)).status_code == status


@pytest.mark.parametrize(
    ("path", "reached"),
    [
        ("/admin/invalidate", {"overview": 1, "service": 2}),
        ("/admin/invalidate/serv*", {"service": 2}),
        ("/admin/invalidate/tags/service:cart", {"service": 1}),
    ],
)
async def test_a_dry_run_says_what_would_be_reached_and_changes_nothing(
    site: Site, path: str, reached: dict[str, int]
) -> None:
    paths = ("/overview", "/services/cart", "/services/checkout")
    for each in paths:
        await site.ask(each)

    told = (await site.ask(path + "?dry_run=1", method="DELETE")).json()
    after = [(await site.ask(each)).headers["cache-status"] for each in paths]

    assert told["dry_run"] is True
    assert (told["operations"], told["entries"], told["estimated"]) == (reached, sum(reached.values()), False)
    assert all("; hit;" in status for status in after)
    assert site.audited == []


@pytest.mark.parametrize("query", ["dry_run=yes", "dry_run=", "dry_run=1&dry_run=0", "dry_run=01"])
async def test_a_dry_run_that_is_misspelt_invalidates_nothing(site: Site, query: str) -> None:
    await site.ask("/overview")

    assert (await site.ask(f"/admin/invalidate?{query}", method="DELETE")).status_code == 400
    assert "; hit;" in (await site.ask("/overview")).headers["cache-status"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=٣", "cursor=zz", "cursor=abc", "cursor="]
)
async def test_a_page_that_is_none_is_refused(site: Site, query: str) -> None:
    assert (await site.ask(f"/admin/operations?{query}")).status_code == 400


def samples(text: str) -> dict[str, float]:
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }


async def test_metrics_are_those_of_the_caller_and_an_operators_are_the_sums(site: Site) -> None:
    for who, times in (("acme", 3), ("globex", 2)):
        for _ in range(times):
            await site.ask("/overview", who=who)
    await site.cache.invalidate("globex", "overview")
    site.cache.emitter.emit(Evicted("capacity", 3))
    site.cache.emitter.emit(BackendFailed("get", "timeout"))

    answer = await site.ask("/admin/metrics")
    own, all_of = samples(answer.text), samples((await site.ask("/admin/metrics", who="operator")).text)
    named = samples((await site.ask("/admin/metrics?tenant=acme", who="operator")).text)

    about = 'nexcache_operation="overview"'
    hits = f'nexcache_requests_total{{{about},nexcache_cache_result="hit",nexcache_cache_tier="memory"}}'
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert (own[hits], all_of[hits]) == (2, 3)
    assert named == own
    assert not any(name.startswith(("nexcache_invalidations", "nexcache_evictions", "nexcache_memory")) for name in own)
    assert all_of['nexcache_evictions_total{nexcache_eviction_reason="capacity"}'] == 3
    invalidated = 'nexcache_invalidation_trigger="api",nexcache_invalidation_scope="operation"'
    assert all_of[f"nexcache_invalidations_total{{{invalidated}}}"] == 1
    assert all_of['nexcache_backend_available_ratio{nexcache_backend="memory"}'] == 1
    assert all_of["nexcache_memory_entry_count"] == 2
    assert own['nexcache_fill_duration_seconds_count{nexcache_operation="overview"}'] == 1
    assert all_of['nexcache_fill_duration_seconds_bucket{nexcache_operation="overview",le="+Inf"}'] == 2


async def test_health_tells_operators_more(site: Site) -> None:
    site.cache.disable("overview")

    tenant = (await site.ask("/admin/health")).json()
    operator = (await site.ask("/admin/health", who="operator")).json()

    assert set(operator["details"]) - set(tenant["details"]) == {
        "store",
        "queued_invalidations",
        "running_fills",
        "alerts",
    }


async def test_health_counts_what_telemetry_could_not_do(site: Site) -> None:
    site.cache._parts.tracing.guarded(lambda: 1 / 0)

    assert (await site.ask("/admin/health")).json()["details"]["tracing_failures"] == 1


async def test_health_names_a_store_that_is_away() -> None:
    site = Site(Settings(redis_url="redis://127.0.0.1:1/0", op_timeout_ms=500))
    try:
        health = (await site.ask("/admin/health", who="operator")).json()
    finally:
        await site.cache.aclose()

    assert (health["status"], health["mode"], health["state"]) == ("degraded", "fallback", "down")


async def test_a_cache_that_is_switched_off_says_so() -> None:
    async with NexCache(Settings(redis_url=None, redis_host=None, enabled=False)) as cache:
        assert (await cache.status()).state == "disabled"


async def test_an_operator_forgets_a_tenant_and_nobody_else_notices(site: Site) -> None:
    for who in ("acme", "globex"):
        await site.ask("/overview", who=who)

    refused = await site.ask("/admin/tenants/globex", method="DELETE", who="acme")
    done = await site.ask("/admin/tenants/globex", method="DELETE", who="operator")
    again = await site.ask("/admin/tenants/globex", method="DELETE", who="operator")
    bad = await site.ask("/admin/tenants/a%00b", method="DELETE", who="operator")

    assert refused.status_code == 403
    assert (done.status_code, done.json()["tenant"], done.json()["done"]) == (200, "globex", True)
    assert done.json()["removed"] > 0
    assert (again.status_code, again.json()["removed"]) == (200, 0)
    assert bad.status_code == 400
    assert "hit" in (await site.ask("/overview", who="acme")).headers["cache-status"]
    assert "fwd" in (await site.ask("/overview", who="globex")).headers["cache-status"]
