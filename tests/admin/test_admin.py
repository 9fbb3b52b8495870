"""The admin endpoints: who may do what, what they answer, and that a tenant touches only its own."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from nexcache import AdminApp, CacheMiddleware, ConfigurationError, NexCache, Policy, Settings, tenants
from nexcache.admin.auth import Caller
from nexcache.asgi import Scope

KEYS = {"acme": "the-key-of-acme", "globex": "the-key-of-globex"}
resolve = tenants.api_key(keys=KEYS)


def authorize(scope: Scope) -> str | Caller | None:
    """Know tenants by their key, operators by theirs; one key breaks the check itself."""
    key = dict(scope["headers"]).get(b"x-api-key", b"").decode()
    if key == "the-key-of-operators":
        return Caller(None, operator=True)
    if key == "a-key-that-breaks-the-check":
        raise LookupError("the identity provider is away")
    return resolve(scope)


class App:
    """An app behind the cache, with its admin endpoints and the number of times its handler ran."""

    def __init__(self) -> None:
        self.cache = NexCache(Settings(redis_url=None, redis_host=None))
        self.calls: list[str] = []
        self.app = Starlette(
            routes=[
                Route("/overview", self.handler),
                Route("/services/{name}", self.handler),
                Mount("/api/v1/cache", AdminApp(self.cache, authorize=authorize)),
            ],
            middleware=[
                Middleware(
                    CacheMiddleware,
                    cache=self.cache,
                    tenant=resolve,
                    principal=resolve,
                    policies=[
                        Policy("/overview", op="overview"),
                        Policy("/services/{name}", op="service", tags=["service:{name}"]),
                    ],
                )
            ],
        )

    async def handler(self, request: Request) -> Response:
        key = request.headers.get("x-api-key")
        if key not in KEYS.values():
            return JSONResponse({}, 401)
        if request.url.path == "/services/broken" and self.calls.count("/services/broken"):
            raise RuntimeError("this handler works only once")
        self.calls.append(request.url.path)
        return JSONResponse({"key": key, "query": request.url.query, "calls": len(self.calls)})


@pytest.fixture
async def app() -> AsyncIterator[App]:
    made = App()
    yield made
    await made.cache.aclose()


@pytest.fixture
async def client(app: App) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=app.app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
        yield client


def key(tenant: str) -> dict[str, str]:
    return {"x-api-key": KEYS[tenant]}


ENDPOINTS = {
    "health": ("GET", "/health"),
    "stats": ("GET", "/stats"),
    "invalidate all": ("DELETE", "/invalidate"),
    "invalidate one": ("DELETE", "/invalidate/overview"),
    "invalidate tag": ("DELETE", "/invalidate/tags/service:checkout"),
    "warm": ("POST", "/warm/overview"),
}
TENANT_BOUND = [name for name in ENDPOINTS if name != "health"]
CALLERS: dict[str, tuple[list[tuple[str, str]], str, dict[str, int]]] = {
    # caller: headers, query, what each endpoint answers
    "nobody": ([], "", dict.fromkeys(ENDPOINTS, 401)),
    "a wrong key": ([("x-api-key", "guessed")], "", dict.fromkeys(ENDPOINTS, 401)),
    "two keys at once": (
        [("x-api-key", KEYS["acme"]), ("x-api-key", KEYS["globex"])],
        "",
        dict.fromkeys(ENDPOINTS, 401),
    ),
    "a check that fails": ([("x-api-key", "a-key-that-breaks-the-check")], "", dict.fromkeys(ENDPOINTS, 401)),
    "a tenant": ([("x-api-key", KEYS["acme"])], "", dict.fromkeys(ENDPOINTS, 200)),
    "a tenant that names itself": ([("x-api-key", KEYS["acme"])], "?tenant=acme", dict.fromkeys(ENDPOINTS, 200)),
    "a tenant that names another": (
        [("x-api-key", KEYS["globex"])],
        "?tenant=acme",
        {**dict.fromkeys(TENANT_BOUND, 403), "health": 200},
    ),
    "a tenant that names nobody known": (
        [("x-api-key", KEYS["globex"])],
        "?tenant=initech",
        {**dict.fromkeys(TENANT_BOUND, 403), "health": 200},
    ),
    "an operator that names no tenant": (
        [("x-api-key", "the-key-of-operators")],
        "",
        {**dict.fromkeys(TENANT_BOUND, 400), "health": 200},
    ),
    "an operator that names a tenant": (
        [("x-api-key", "the-key-of-operators")],
        "?tenant=acme",
        {**dict.fromkeys(ENDPOINTS, 200), "warm": 403},
    ),
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("caller", CALLERS)
async def test_who_may_do_what(client: httpx2.AsyncClient, caller: str, endpoint: str) -> None:
    await client.get("/overview", headers=key("acme"))
    headers, query, expected = CALLERS[caller]
    method, path = ENDPOINTS[endpoint]

    answer = await client.request(method, f"/api/v1/cache{path}{query}", headers=headers)

    assert answer.status_code == expected[endpoint], answer.text
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code
        assert set(answer.json()) == {"type", "title", "status", "detail"}
    if answer.status_code == 401:
        assert "www-authenticate" in answer.headers


@pytest.mark.parametrize("caller", [name for name, (_, _, answers) in CALLERS.items() if answers["stats"] != 200])
async def test_a_refused_invalidation_leaves_everything_stored(
    app: App, client: httpx2.AsyncClient, caller: str
) -> None:
    await client.get("/overview", headers=key("acme"))
    headers, query, _ = CALLERS[caller]

    await client.delete(f"/api/v1/cache/invalidate{query}", headers=headers)
    await client.get("/overview", headers=key("acme"))

    assert app.calls == ["/overview"]


async def test_a_tenant_invalidates_its_own_entries_only(app: App, client: httpx2.AsyncClient) -> None:
    for tenant in KEYS:
        await client.get("/overview", headers=key(tenant))

    answer = await client.delete("/api/v1/cache/invalidate", headers=key("acme"))
    after = {tenant: await client.get("/overview", headers=key(tenant)) for tenant in KEYS}

    assert answer.json() | {"waited_ms": 0} == {
        "acknowledged": True,
        "queued": False,
        "targets": ["*"],
        "waited_ms": 0,
    }
    assert "fwd=uri-miss" in after["acme"].headers["cache-status"]
    assert "; hit;" in after["globex"].headers["cache-status"]


@pytest.mark.parametrize(
    ("operation", "status", "missed"),
    [
        pytest.param("overview", 200, {"/overview"}, id="a name"),
        pytest.param("over*", 200, {"/overview"}, id="a glob"),
        pytest.param("*", 200, {"/overview", "/services/checkout"}, id="everything"),
        pytest.param("%2A", 200, {"/overview", "/services/checkout"}, id="everything, encoded"),
        pytest.param("nothing_like_it", 404, set(), id="an operation that nothing knows"),
        pytest.param("nothing_*", 404, set(), id="a glob that matches nothing known"),
        pytest.param("over%09view", 400, set(), id="a control character"),
        pytest.param("o" * 300, 400, set(), id="too long"),
        pytest.param("..%2F..%2Fglobex", 404, set(), id="a path out of the segment"),
    ],
)
async def test_an_invalidation_by_operation_hits_what_it_names(
    client: httpx2.AsyncClient, operation: str, status: int, missed: set[str]
) -> None:
    paths = ("/overview", "/services/checkout")
    for path in paths:
        await client.get(path, headers=key("acme"))

    answer = await client.delete(f"/api/v1/cache/invalidate/{operation}", headers=key("acme"))

    assert answer.status_code == status, answer.text
    after = {path: await client.get(path, headers=key("acme")) for path in paths}
    assert {path for path, got in after.items() if "hit" not in got.headers["cache-status"]} == missed


async def test_an_invalidation_by_tag_hits_what_carries_it(client: httpx2.AsyncClient) -> None:
    for name in ("checkout", "cart"):
        await client.get(f"/services/{name}", headers=key("acme"))

    answer = await client.delete("/api/v1/cache/invalidate/tags/service:cart", headers=key("acme"))

    assert answer.json()["targets"] == ["tag:service:cart"]
    after = {name: await client.get(f"/services/{name}", headers=key("acme")) for name in ("checkout", "cart")}
    assert "; hit;" in after["checkout"].headers["cache-status"]
    assert "uri-miss" in after["cart"].headers["cache-status"]


async def test_a_warm_up_computes_the_recent_requests_again_for_its_caller(
    app: App, client: httpx2.AsyncClient
) -> None:
    for number in range(3):
        await client.get(f"/overview?n={number}", headers=key("acme"))
    before = len(app.calls)

    answer = await client.post("/api/v1/cache/warm/overview", headers=key("acme"))

    assert answer.json() | {"ms": 0} == {"operation": "overview", "requested": 3, "refreshed": 3, "failed": 0, "ms": 0}
    assert len(app.calls) == before + 3
    after = await client.get("/overview?n=1", headers=key("acme"))
    assert "; hit;" in after.headers["cache-status"]
    assert after.json()["calls"] > before


async def test_a_warm_up_recomputes_what_was_invalidated(app: App, client: httpx2.AsyncClient) -> None:
    await client.get("/overview", headers=key("acme"))
    await client.delete("/api/v1/cache/invalidate/overview", headers=key("acme"))

    await client.post("/api/v1/cache/warm/overview", headers=key("acme"))

    assert "; hit;" in (await client.get("/overview", headers=key("acme"))).headers["cache-status"]
    assert app.calls == ["/overview", "/overview"]


async def test_a_warm_up_never_touches_another_tenants_requests(app: App, client: httpx2.AsyncClient) -> None:
    await client.get("/overview?secret=1", headers=key("globex"))
    before = list(app.calls)

    answer = await client.post("/api/v1/cache/warm/overview", headers=key("acme"))

    assert answer.json()["requested"] == 0
    assert app.calls == before


async def test_a_warm_up_counts_what_failed(client: httpx2.AsyncClient) -> None:
    await client.get("/services/broken", headers=key("acme"))
    await client.get("/services/checkout", headers=key("acme"))

    answer = await client.post("/api/v1/cache/warm/service", headers=key("acme"))

    assert answer.json() | {"ms": 0} == {"operation": "service", "requested": 2, "refreshed": 1, "failed": 1, "ms": 0}


@pytest.mark.parametrize(
    "operation",
    [
        "http:%2F%2F169.254.169.254%2Flatest",
        "file:%2F%2F%2Fetc%2Fpasswd",
        "gopher:%2F%2F127.0.0.1:6379%2F_FLUSHALL",
        "%2F%2Fevil.example%2F@overview",
        "overview%3Fhost=evil.example",
    ],
)
async def test_a_warm_up_takes_no_url(app: App, client: httpx2.AsyncClient, operation: str) -> None:
    answer = await client.post(
        f"/api/v1/cache/warm/{operation}?url=http://evil.example/", headers=key("acme") | {"x-forwarded-host": "evil"}
    )

    assert answer.status_code in (400, 404)
    assert app.calls == []


async def test_warming_does_not_count_as_anybodys_request(client: httpx2.AsyncClient) -> None:
    await client.get("/overview", headers=key("acme"))

    await client.post("/api/v1/cache/warm/overview", headers=key("acme"))

    stats = (await client.get("/api/v1/cache/stats", headers=key("acme"))).json()
    assert (stats["requests"], stats["misses"]) == (1, 1)


async def test_statistics_are_exact_and_by_operation(client: httpx2.AsyncClient) -> None:
    for _ in range(4):
        await client.get("/overview", headers=key("acme"))
    await client.get("/services/checkout", headers=key("acme"))
    await client.post("/overview", headers=key("acme"))
    await client.get("/overview", headers=key("globex"))
    await client.delete("/api/v1/cache/invalidate/overview", headers=key("acme"))
    await client.delete("/api/v1/cache/invalidate", headers=key("acme"))

    stats = (await client.get("/api/v1/cache/stats", headers=key("acme"))).json()

    figures = ("requests", "hits", "misses", "bypasses", "errors", "hit_rate", "invalidations")
    assert {name: stats[name] for name in ("tenant", *figures)} == {
        "tenant": "acme",
        "requests": 6,
        "hits": 3,
        "misses": 2,
        "bypasses": 1,
        "errors": 0,
        "hit_rate": 0.6,
        "invalidations": 2,
    }
    assert set(stats["operations"]) == {"overview", "service"}
    assert {name: stats["operations"]["overview"][name] for name in figures} == {
        "requests": 5,
        "hits": 3,
        "misses": 1,
        "bypasses": 1,
        "errors": 0,
        "hit_rate": 0.75,
        "invalidations": 1,
    }
    for kind in ("hit", "miss"):
        latency = stats["latency"][kind]
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]


async def test_errors_of_the_app_are_counted_as_errors(client: httpx2.AsyncClient) -> None:
    await client.get("/services/broken?first", headers=key("acme"))
    answer = await client.get("/services/broken?second", headers=key("acme"))

    stats = (await client.get("/api/v1/cache/stats", headers=key("acme"))).json()

    assert answer.status_code == 500
    assert stats["errors"] == 1


async def test_health_says_mode_and_state(client: httpx2.AsyncClient) -> None:
    health = (await client.get("/api/v1/cache/health", headers=key("acme"))).json()

    assert health == {
        "status": "healthy",
        "mode": "memory",
        "state": "ok",
        "response_time_ms": 0.0,
        "connections": 0,
        "commands": health["commands"],
        "details": {"backplane": None, "listener_failures": 0, "tracing_failures": 0},
    }


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/stats", "GET"),
        ("GET", "/invalidate", "DELETE"),
        ("POST", "/invalidate/overview", "DELETE"),
        ("GET", "/warm/overview", "POST"),
    ],
)
async def test_a_wrong_method_changes_nothing_and_says_which_is_right(
    app: App, client: httpx2.AsyncClient, method: str, path: str, allow: str
) -> None:
    await client.get("/overview", headers=key("acme"))

    answer = await client.request(method, f"/api/v1/cache{path}", headers=key("acme"))

    assert (answer.status_code, answer.headers["allow"]) == (405, allow)
    await client.get("/overview", headers=key("acme"))
    assert app.calls == ["/overview"]


@pytest.mark.parametrize("path", ["/", "/stats/", "/health/", "/unknown", "/stats/more", "/invalidate/a/b", "//stats"])
async def test_no_path_below_the_mount_is_redirected(client: httpx2.AsyncClient, path: str) -> None:
    answer = await client.get(f"/api/v1/cache{path}", headers=key("acme"))

    assert answer.status_code in (200, 404, 405)


async def test_answers_are_never_stored_by_anybody(client: httpx2.AsyncClient) -> None:
    for path in ("/stats", "/health", "/unknown"):
        answer = await client.get(f"/api/v1/cache{path}", headers=key("acme"))
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_there_are_no_endpoints_for_everybody() -> None:
    with pytest.raises(ConfigurationError, match="needs authorize"):
        AdminApp(NexCache(Settings(redis_url=None, redis_host=None)))


@pytest.mark.parametrize(
    "mounted",
    [
        pytest.param(lambda app: Mount("/deep", routes=[Mount("/er", app)]), id="in another mount"),
        pytest.param(lambda app: Mount("/deep/er", app), id="at another prefix"),
    ],
)
async def test_it_can_be_mounted_anywhere(app: App, mounted: Callable[[Any], Mount]) -> None:
    outer = Starlette(routes=[mounted(AdminApp(app.cache, authorize=authorize))])
    transport = httpx2.ASGITransport(app=outer)
    async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
        answer = await client.get("/deep/er/stats", headers=key("acme"))
        assert answer.json()["tenant"] == "acme"
        assert (await client.delete("/deep/er/invalidate/x", headers=key("acme"))).status_code == 404
