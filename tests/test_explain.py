"""`explain` says what would become of a request, `preview` what an invalidation would reach; both change nothing."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nexcache import CacheMiddleware, InvalidName, NexCache, Policy, Query, Settings, principals, tenants
from nexcache.fastapi import cached_route
from nexcache.telemetry.events import Answered, Event

KEYS = {"acme": "the-key-of-acme", "globex": "the-key-of-globex"}
SECRETS = ("the-key-of-acme", "Bearer canary", "session=canary", "namespace-canary-secret")
resolve = tenants.api_key(keys=KEYS)


async def handler(request: Request) -> Response:
    headers = {"cache-control": "no-store"} if "nostore" in request.url.query else {}
    return JSONResponse({"path": request.url.path}, headers=headers)


POLICIES = [
    Policy("/overview", op="overview", ttl="2m"),
    Policy("/services/{name}", op="service", tags=["service:{name}", "env:{env}"], query=Query(ignore=["utm_*"])),
    Policy("/varied", op="varied", vary=["authorization", "cookie", "x-session", "accept-language"]),
]


class App:
    def __init__(self, settings: Settings, *, principal: tenants.Resolver | None = resolve) -> None:
        self.cache = NexCache(settings)
        self.answered: list[Answered] = []
        self.cache.emitter.subscribe(self._note, Answered)
        self.app = Starlette(
            routes=[Route("/overview", handler), Route("/services/{name:path}", handler), Route("/varied", handler)],
            middleware=[
                Middleware(CacheMiddleware, cache=self.cache, tenant=resolve, principal=principal, policies=POLICIES)
            ],
        )

    def _note(self, event: Event) -> None:
        assert isinstance(event, Answered)
        self.answered.append(event)

    async def get(self, path: str, tenant: str = "acme", headers: dict[str, str] | None = None) -> httpx2.Response:
        transport = httpx2.ASGITransport(app=self.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
            return await client.get(path, headers={"x-api-key": KEYS[tenant]} | (headers or {}))

    async def explain(self, path: str, tenant: str = "acme", **options: Any) -> dict[str, Any]:
        return (await self.cache.explain(tenant, path, **options)).as_dict()


@asynccontextmanager
async def running(settings: Settings, **options: Any) -> AsyncIterator[App]:
    app = App(settings, **options)
    try:
        await app.get("/")  # Starlette builds its middleware at the first request
        yield app
    finally:
        await app.cache.aclose()


@pytest.fixture(params=["memory", "redis", "redis without a memory"])
async def app(request: pytest.FixtureRequest) -> AsyncIterator[App]:
    if request.param == "memory":
        settings = Settings(redis_url=None, redis_host=None)
    else:
        url = request.getfixturevalue("redis_url")
        settings = Settings(redis_url=url, op_timeout_ms=1000, l1_enabled=request.param == "redis")
    async with running(settings) as app:
        await app.cache.invalidate("acme", "*")
        yield app


async def test_a_stored_answer_is_explained_by_the_very_key_it_is_stored_under(app: App) -> None:
    await app.get("/services/caf%C3%A9?env=prod&utm_source=x", headers={"accept-language": "de"})

    told = await app.explain("/services/caf%C3%A9?env=prod&utm_source=x")

    assert told["verdict"] == "stored"
    assert told["request"]["seen"]
    assert told["key"]["hash"] == app.answered[-1].key_hash
    assert told["key"]["name"] == f"nexarch:acme:service:{told['key']['hash']}"
    assert told["key"]["parts"]["query"] == "env=prod"
    assert {"name": "host", "value": "app"} in told["key"]["parts"]["headers"]
    assert told["policy"]["path"] == "/services/{name}"
    assert told["tags"] == ["env:prod", "service:café"]
    assert {each["of"]: each["present"] for each in told["generations"]} == {
        "tenant": True,
        "operation:service": True,
        "tag:env:prod": True,
        "tag:service:café": True,
    }
    assert told["invalidated_by"] == {"operations": ["*", "service"], "tags": ["env:prod", "service:café"]}
    usable = [copy for copy in told["copies"] if copy["usable"]]
    assert usable
    assert all(copy["age"] == 0 and 265 < copy["ttl"] <= 300 and copy["status"] == 200 for copy in usable)


async def test_every_request_that_was_answered_is_explained_by_its_own_key(app: App) -> None:
    """Whatever the middleware keys, `explain` keys: the two may not drift apart."""
    for path in ("/overview", "/overview?b=1&a=2", "/services/x?utm_a=1", "/services/%C3%A9?env=a&env=b", "/varied?q"):
        for headers in ({}, {"x-forwarded-host": "proxy", "accept-language": "fr"}, {"authorization": "Bearer canary"}):
            await app.get(path, headers=headers)
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            told = await app.explain(path, headers=[*raw, (b"x-api-key", b"the-key-of-acme")])
            assert told["key"]["hash"] == app.answered[-1].key_hash, (path, headers)


async def test_what_was_never_asked_for_is_not_stored_and_nobodys_doing(app: App) -> None:
    told = await app.explain("/overview?never")

    assert told["verdict"] == "not-stored"
    assert not told["request"]["seen"]
    assert told["not_stored"] is None
    assert {copy["why_not"] for copy in told["copies"]} == {"absent"}


async def test_why_an_answer_was_not_kept_is_told(app: App) -> None:
    await app.get("/overview?nostore")

    told = await app.explain("/overview?nostore")

    assert told["verdict"] == "not-stored"
    assert told["not_stored"]["reason"] == "no-store"
    assert told["not_stored"]["seconds_ago"] < 60


async def test_an_invalidated_answer_is_told_by_its_generations(app: App) -> None:
    await app.get("/services/cart")
    await app.cache.invalidate("acme", tags=["service:cart"])

    told = await app.explain("/services/cart")

    assert told["verdict"] == "not-stored"
    assert {"of": "tag:service:cart", "present": False} in told["generations"]
    assert {"of": "tenant", "present": True} in told["generations"]
    assert told["copies"][-1]["why_not"] == "generations"


async def test_a_tenant_is_told_nothing_of_anothers_entries(app: App) -> None:
    await app.get("/overview?mine", tenant="globex")
    await app.cache.invalidate("acme", "*")

    told = await app.explain("/overview?mine", tenant="acme")

    assert told["verdict"] == "not-stored"
    assert not told["request"]["seen"]
    assert not any(each["present"] for each in told["generations"])
    assert "globex" not in json.dumps(told)


async def test_asking_changes_nothing(app: App) -> None:
    await app.get("/overview")
    before = (await app.cache.stats("acme")).as_dict()
    stored = await app.explain("/overview")

    await app.explain("/overview?other")
    await app.cache.preview("acme", "*")

    after = (await app.cache.stats("acme")).as_dict()
    assert after == before
    assert (await app.explain("/overview"))["key"] == stored["key"]
    assert "; hit;" in (await app.get("/overview")).headers["cache-status"]


@pytest.mark.parametrize(
    ("path", "options", "verdict", "bypass"),
    [
        ("/unknown", {}, "no-policy", None),
        ("/overview", {"method": "POST"}, "bypass", "method"),
        ("/overview", {"headers": [(b"range", b"bytes=0-1")]}, "bypass", "range"),
        ("/overview?" + "q" * 16_300, {}, "bypass", "key-too-long"),
    ],
)
async def test_a_request_that_never_asks_the_cache_is_told_so(
    path: str, options: dict[str, Any], verdict: str, bypass: str | None
) -> None:
    async with running(Settings(redis_url=None, redis_host=None)) as app:
        told = await app.explain(path, **options)
        assert (told["verdict"], told["bypass"], told["key"]) == (verdict, bypass, None)


async def test_a_disabled_operation_is_told_so() -> None:
    async with running(Settings(redis_url=None, redis_host=None)) as app:
        app.cache.disable("overview")
        assert (await app.explain("/overview"))["bypass"] == "disabled"


async def test_a_principal_is_whom_the_credentials_stand_for_or_who_is_named() -> None:
    async with running(Settings(redis_url=None, redis_host=None), principal=principals.per_credential()) as app:
        await app.get("/overview")
        unnamed = await app.explain("/overview", headers=[(b"x-api-key", b"the-key-of-acme")])
        named = await app.explain("/overview", principal="a-role")

    assert unnamed["verdict"] == "stored"
    assert unnamed["key"]["parts"]["principal"].startswith("(keyed ")
    assert (named["verdict"], named["key"]["parts"]["principal"]) == ("not-stored", "a-role")


async def test_no_secret_is_in_any_answer() -> None:
    settings = Settings(redis_url=None, redis_host=None, namespace_secret="namespace-canary-secret")
    async with running(settings, principal=principals.per_credential()) as app:
        headers = {"authorization": "Bearer canary", "cookie": "session=canary", "x-session": "session=canary"}
        await app.get("/varied", headers=headers)
        told = await app.explain("/varied", headers=[(k.encode(), v.encode()) for k, v in headers.items()])

    text = json.dumps(told)
    assert told["key"] is not None
    assert {each["name"] for each in told["key"]["parts"]["headers"]} >= {"authorization", "cookie", "x-session"}
    assert not any(secret in text for secret in SECRETS)


@pytest.mark.parametrize("request_", ["overview", "http://evil/", "/a b\n", "/a#b", "", "/" + "x" * 20_000])
async def test_what_is_no_path_is_refused(request_: str) -> None:
    async with running(Settings(redis_url=None, redis_host=None)) as app:
        with pytest.raises(ValueError, match="path and query"):
            await app.cache.explain("acme", request_)


async def test_what_is_no_tenant_is_refused() -> None:
    async with running(Settings(redis_url=None, redis_host=None)) as app:
        with pytest.raises(InvalidName):
            await app.cache.explain("a\nb", "/overview")
        with pytest.raises(InvalidName):
            await app.cache.preview("", "*")


async def test_a_preview_counts_what_an_invalidation_would_reach(app: App) -> None:
    for path in ("/overview", "/services/cart?env=a", "/services/cart?env=b", "/services/checkout?env=a"):
        await app.get(path)
    await app.get("/services/cart", tenant="globex")

    whole = await app.cache.preview("acme", "*")
    some = await app.cache.preview("acme", "over*", tags=["service:cart", "env:a", "nothing:here"])
    after = [(await app.get(path)).headers["cache-status"] for path in ("/overview", "/services/cart?env=a")]

    assert (whole.targets, whole.entries, whole.estimated) == (("*",), 4, False)
    assert whole.operations == {"overview": 1, "service": 3}
    assert (some.entries, some.operations) == (4, {"overview": 1, "service": 3})
    assert some.tags == {"env:a": 2, "nothing:here": 0, "service:cart": 2}
    assert some.targets == ("overview", "tag:env:a", "tag:nothing:here", "tag:service:cart")
    assert all("; hit;" in status for status in after)


async def test_a_preview_leaves_out_what_is_invalid_already(app: App) -> None:
    for path in ("/services/cart", "/services/checkout"):
        await app.get(path)
    await app.cache.invalidate("acme", tags=["service:cart"])

    assert (await app.cache.preview("acme", "service")).entries == 1


async def test_a_preview_of_many_entries_is_projected_from_a_part(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexcache.sample.READ", 10)
    for number in range(40):
        await app.get(f"/overview?{number}")

    preview = await app.cache.preview("acme", "overview")

    in_store = not app.cache.entries.in_process
    assert preview.estimated is in_store
    assert preview.entries == 40


@pytest.mark.parametrize("included", [False, True])
async def test_a_cached_route_is_explained_without_calling_its_dependencies(included: bool) -> None:
    called = []

    def user() -> str:
        called.append("user")
        return "ada"

    async with NexCache(Settings(redis_url=None, redis_host=None)) as cache:
        router = APIRouter(prefix="/deep") if included else APIRouter()

        @router.get("/reports/{number}")
        @cached_route(cache, op="report", tenant=lambda: "acme", principal="who", tags=["report:{number}"])
        async def report(number: int, who: Annotated[str, Depends(user)]) -> dict[str, int]:
            return {"number": number}

        app = FastAPI()
        app.include_router(router)
        path = ("/deep" if included else "") + "/reports/7"
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://app") as client:
            await client.get(path)
        called.clear()

        told = (await cache.explain("acme", path, principal="ada")).as_dict()
        unnamed = (await cache.explain("acme", path)).as_dict()
        elsewhere = (await cache.explain("acme", "/elsewhere")).as_dict()

    assert (told["verdict"], told["tags"]) == ("stored", ["report:7"])
    assert unnamed["bypass"] == "no-principal"
    assert elsewhere["verdict"] == "no-policy"
    assert called == []
