"""`cached_route`: the dependencies decide on every request, the cache spares the endpoint only."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, BackgroundTasks, Cookie, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel

from nexcache import ConfigurationError, NexCache, Settings, tenants
from nexcache.fastapi import Identify, cached_route

TOKENS = {"ada": ("acme", "admin"), "bob": ("acme", "viewer"), "eve": ("globex", "admin")}


class User(BaseModel):
    """Somebody whose token was found good."""

    name: str
    tenant: str
    role: str


async def current_user(request: Request, response: Response) -> User:
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    if token not in TOKENS:
        raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})
    tenant, role = TOKENS[token]
    response.headers["x-user"] = token
    response.headers.append("set-cookie", f"seen={token}")
    return User(name=token, tenant=tenant, role=role)


Authenticated = Annotated[User, Depends(current_user)]


class Service(BaseModel):
    """What the route promises: `secret` is not part of it."""

    name: str
    calls: int


class Harness:
    """A FastAPI app, its cache, and how often its endpoints ran."""

    def __init__(self) -> None:
        self.cache = NexCache(Settings(redis_url=None, redis_host=None))
        self.app = FastAPI()
        self.calls = 0

    def count(self) -> int:
        self.calls += 1
        return self.calls

    async def get(self, path: str, token: str | None = "ada", **headers: str) -> httpx2.Response:
        return await self.send("GET", path, token, headers=headers)

    async def send(self, method: str, path: str, token: str | None = "ada", **options: Any) -> httpx2.Response:
        headers = {name.replace("_", "-"): value for name, value in options.pop("headers", {}).items()}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        transport = httpx2.ASGITransport(self.app, raise_app_exceptions=False)
        async with asyncio.timeout(10), httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
            return await client.request(method, path, headers=headers, **options)


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    harness = Harness()
    yield harness
    await harness.cache.aclose()


def status(response: httpx2.Response) -> str:
    return response.headers["cache-status"].partition("ttl=")[0].rstrip("; ")


def service_route(harness: Harness) -> None:
    @harness.app.get("/services/{name}", response_model=Service)
    @cached_route(
        harness.cache,
        op="service",
        ttl="2m",
        tenant="user.tenant",
        principal=lambda user: user.role,
        tags=["service:{name}"],
    )
    async def service(name: str, user: Authenticated) -> dict[str, object]:
        return {"name": name, "calls": harness.count(), "secret": user.name}


async def test_the_endpoint_runs_once_and_the_dependency_every_time(harness: Harness) -> None:
    service_route(harness)
    cold, warm = await harness.get("/services/cart"), await harness.get("/services/cart")
    assert cold.json() == warm.json() == {"name": "cart", "calls": 1}
    assert status(cold) == "NexCache; fwd=uri-miss; stored"
    assert status(warm) == "NexCache; hit"
    assert warm.headers["etag"] == cold.headers["etag"]
    assert warm.headers["x-user"] == cold.headers["x-user"] == "ada"


@pytest.mark.parametrize("token", [None, "mallory"])
async def test_who_is_refused_is_refused_cold_and_warm(harness: Harness, token: str | None) -> None:
    service_route(harness)
    cold = await harness.get("/services/cart", token)
    await harness.get("/services/cart")
    warm = await harness.get("/services/cart", token)
    assert cold.status_code == warm.status_code == 401
    assert warm.headers["www-authenticate"] == "Bearer"


async def test_neither_another_tenant_nor_another_role_shares_an_answer(harness: Harness) -> None:
    service_route(harness)
    answers = [(await harness.get("/services/cart", token)).json()["calls"] for token in ("ada", "bob", "eve") * 2]
    assert answers == [1, 2, 3, 1, 2, 3]


async def test_what_a_dependency_sets_goes_to_its_own_client_and_is_never_stored(harness: Harness) -> None:
    @harness.app.get("/a")
    @cached_route(harness.cache, op="a", tenant="user.tenant", principal="user.tenant")
    async def endpoint(user: Authenticated, response: Response) -> int:
        response.headers["x-endpoint"] = user.name
        return harness.count()

    for token in ("ada", "bob"):
        answer = await harness.get("/a", token)
        assert answer.json() == 1
        assert answer.headers["x-user"] == token
        assert answer.headers["x-endpoint"] == "ada"
        assert answer.headers.get_list("set-cookie") == [f"seen={token}"]


async def test_an_invalidation_by_tag_makes_the_route_compute_again(harness: Harness) -> None:
    service_route(harness)
    await harness.get("/services/cart")
    await harness.get("/services/pay")
    await harness.cache.invalidate("acme", tags=["service:cart"])
    assert status(await harness.get("/services/cart")).startswith("NexCache; fwd=uri-miss")
    assert status(await harness.get("/services/pay")) == "NexCache; hit"


async def test_a_validator_is_answered_with_304(harness: Harness) -> None:
    service_route(harness)
    etag = (await harness.get("/services/cart")).headers["etag"]
    answer = await harness.get("/services/cart", if_none_match=etag)
    assert (answer.status_code, answer.content) == (304, b"")


async def test_many_at_once_share_one_computation_and_all_are_authenticated(harness: Harness) -> None:
    gate, entered = asyncio.Event(), asyncio.Event()

    @harness.app.get("/slow")
    @cached_route(harness.cache, op="slow", tenant="user.tenant", principal="user.tenant")
    async def slow(user: Authenticated) -> int:
        entered.set()
        await gate.wait()
        return harness.count()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(harness.get("/slow", token)) for token in ("ada", "bob", "ada", "bob", "mallory")]
        await entered.wait()
        await asyncio.wait(tasks[-1:])  # it came last, so all others are waiting by now
        gate.set()
    assert [task.result().status_code for task in tasks] == [200, 200, 200, 200, 401]
    assert harness.calls == 1
    assert sum("collapsed" in status(task.result()) for task in tasks[:4]) == 3


async def test_statistics_and_warming_are_the_middlewares(harness: Harness) -> None:
    service_route(harness)
    await harness.get("/services/cart")
    await harness.get("/services/cart")
    statistics = (await harness.cache.stats("acme")).as_dict()
    assert (statistics["requests"], statistics["hits"], statistics["misses"]) == (2, 1, 1)
    refused = await harness.cache.warm("acme", "service")
    assert (refused.requested, refused.refreshed) == (1, 0)
    foreign = await harness.cache.warm("acme", "service", headers=[(b"authorization", b"Bearer eve")])
    assert (foreign.requested, foreign.refreshed) == (1, 0)
    warmed = await harness.cache.warm("acme", "service", headers=[(b"authorization", b"Bearer ada")])
    assert (warmed.requested, warmed.refreshed) == (1, 1)
    assert (await harness.get("/services/cart")).json()["calls"] == 2


async def test_a_sync_endpoint_is_cached_too(harness: Harness) -> None:
    @harness.app.get("/sync")
    @cached_route(harness.cache, op="sync", tenant="user.tenant", principal="user.role")
    def sync(user: Authenticated) -> int:
        return harness.count()

    assert [(await harness.get("/sync")).json() for _ in range(2)] == [1, 1]


async def test_an_http_exception_reaches_the_dependencies_and_is_not_stored(harness: Harness) -> None:
    seen: list[int] = []

    async def session() -> AsyncIterator[None]:
        try:
            yield
        except HTTPException as refusal:
            seen.append(refusal.status_code)
            raise

    @harness.app.get("/missing", dependencies=[Depends(session)])
    @cached_route(harness.cache, op="missing", tenant="user.tenant", principal="user.role", statuses=(200, 404))
    async def missing(user: Authenticated) -> int:
        harness.count()
        raise HTTPException(404, "There is no such service.")

    answers = [await harness.get("/missing") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[1].json() == {"detail": "There is no such service."}
    assert (harness.calls, seen) == (2, [404, 404])
    assert (await harness.cache.stats("acme")).as_dict()["errors"] == 0


async def test_a_failure_is_the_apps_and_is_not_stored(harness: Harness) -> None:
    @harness.app.get("/broken")
    @cached_route(harness.cache, op="broken", tenant="user.tenant", principal="user.role")
    async def broken(user: Authenticated) -> int:
        if harness.count() < 3:
            raise LookupError
        return harness.calls

    assert [(await harness.get("/broken")).status_code for _ in range(4)] == [500, 500, 200, 200]
    assert harness.calls == 3


async def test_a_stream_passes_and_is_not_stored(harness: Harness) -> None:
    async def lines() -> AsyncIterator[str]:
        yield f"{harness.count()}"

    @harness.app.get("/stream")
    @cached_route(harness.cache, op="stream", tenant="user.tenant", principal="user.role")
    async def stream(user: Authenticated) -> Response:
        return StreamingResponse(lines(), media_type="text/plain")

    answers = [await harness.get("/stream") for _ in range(2)]
    assert [answer.text for answer in answers] == ["1", "2"]
    assert status(answers[1]) == "NexCache; fwd=uri-miss; detail=unbuffered"


async def test_a_credential_without_a_principal_is_a_bypass(harness: Harness) -> None:
    @harness.app.get("/shared")
    @cached_route(harness.cache, op="shared", tenant="user.tenant")
    async def shared(user: Authenticated) -> int:
        return harness.count()

    answers = [await harness.get("/shared") for _ in range(2)]
    assert [answer.json() for answer in answers] == [1, 2]
    assert status(answers[1]) == "NexCache; fwd=bypass; detail=authorization"


async def test_header_fields_and_cookies_that_the_endpoint_declares_are_part_of_the_key(harness: Harness) -> None:
    class Page(BaseModel):
        """A header model."""

        x_zone: str = "utc"

    @harness.app.get("/declared")
    @cached_route(harness.cache, op="declared", tenant="user.tenant", principal="user.role")
    async def declared(
        user: Authenticated,
        theme: Annotated[str, Cookie()] = "light",
        x_zone: str = Header("utc"),
        unit: str = Header("ms", alias="x-unit"),
    ) -> list[str]:
        harness.count()
        return [x_zone, theme, unit]

    @harness.app.get("/model")
    @cached_route(harness.cache, op="model", tenant="user.tenant", principal="user.role")
    async def model(user: Authenticated, page: Annotated[Page, Header()]) -> str:
        harness.count()
        return page.x_zone

    for _ in range(2):
        assert (await harness.get("/declared")).json() == ["utc", "light", "ms"]
        assert (await harness.get("/declared", x_zone="cet")).json() == ["cet", "light", "ms"]
        assert (await harness.get("/declared", x_unit="s")).json() == ["utc", "light", "s"]
        assert (await harness.get("/declared", cookie="theme=dark")).json() == ["utc", "dark", "ms"]
        assert (await harness.get("/model")).json() == "utc"
        assert (await harness.get("/model", x_zone="cet")).json() == "cet"
    assert harness.calls == 6


async def test_a_query_endpoint_is_keyed_by_its_body(harness: Harness) -> None:
    @harness.app.post("/query")
    @cached_route(harness.cache, op="query", tenant="user.tenant", principal="user.role", methods=("POST",))
    async def query(user: Authenticated, wanted: Service) -> str:
        return f"{wanted.name} {harness.count()}"

    for name, answer in (("cart", "cart 1"), ("pay", "pay 2"), ("cart", "cart 1")):
        assert (await harness.send("POST", "/query", json={"name": name, "calls": 0})).json() == answer


async def test_a_router_included_with_its_own_response_class_keeps_it(harness: Harness) -> None:
    router = APIRouter()

    @router.get("/text", status_code=201)
    @cached_route(harness.cache, op="text", tenant="user.tenant", principal="user.role", statuses=(201,))
    async def text(user: Authenticated) -> str:
        return f"plain {harness.count()}"

    harness.app.include_router(router, prefix="/v1", default_response_class=PlainTextResponse)
    answers = [await harness.get("/v1/text") for _ in range(2)]
    assert [(answer.status_code, answer.text) for answer in answers] == [(201, "plain 1"), (201, "plain 1")]
    assert answers[1].headers["content-type"] == "text/plain; charset=utf-8"


async def test_background_tasks_run_after_the_answer_that_was_computed(harness: Harness) -> None:
    done: list[str] = []

    @harness.app.get("/later")
    @cached_route(harness.cache, op="later", tenant="user.tenant", principal="user.role")
    async def later(user: Authenticated, tasks: BackgroundTasks) -> int:
        tasks.add_task(done.append, user.name)
        return harness.count()

    assert [(await harness.get("/later")).json() for _ in range(2)] == [1, 1]
    assert done == ["ada"]


async def test_an_endpoint_ends_before_its_dependencies_when_its_request_is_cancelled(harness: Harness) -> None:
    order: list[str] = []
    entered = asyncio.Event()

    async def connection() -> AsyncIterator[None]:
        try:
            yield
        finally:
            order.append("closed")

    @harness.app.get("/hang")
    @cached_route(harness.cache, op="hang", tenant="user.tenant", principal="user.role")
    async def hang(user: Authenticated, connection: Annotated[None, Depends(connection)]) -> int:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            order.append("ended")
        return 0

    request = asyncio.create_task(harness.get("/hang"))
    await asyncio.wait_for(entered.wait(), 10)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert order == ["ended", "closed"]


async def test_openapi_shows_the_route_as_it_would_be_without_the_cache(harness: Harness) -> None:
    service_route(harness)
    bare = FastAPI()

    @bare.get("/services/{name}", response_model=Service)
    async def service(name: str, user: Authenticated) -> None: ...

    assert harness.app.openapi() == bare.openapi()


async def test_a_decorated_endpoint_can_still_be_called_as_a_function(harness: Harness) -> None:
    @cached_route(harness.cache, op="plain", tenant="user.tenant")
    async def plain(user: User) -> str:
        return user.name

    assert await plain(User(name="ada", tenant="acme", role="admin")) == "ada"


async def test_a_resolver_of_a_scope_can_name_the_tenant(harness: Harness) -> None:
    @harness.app.get("/keys")
    @cached_route(
        harness.cache,
        op="keys",
        tenant=tenants.header("x-tenant", trusted=True),
        principal=lambda request: request.headers.get("authorization"),
    )
    async def by_header() -> int:
        return harness.count()

    assert [(await harness.get("/keys", x_tenant=tenant)).json() for tenant in ("acme", "globex", "acme")] == [1, 2, 1]
    assert status(await harness.get("/keys")) == "NexCache; fwd=bypass; detail=no-tenant"


def anything() -> Iterator[str]:
    yield ""


@pytest.mark.parametrize(
    ("identify", "sentence"),
    [
        pytest.param("usr.tenant", "the endpoint has no parameter 'usr'", id="path"),
        pytest.param(lambda usr: usr, "the endpoint has no parameter 'usr'", id="function"),
    ],
)
def test_a_tenant_of_an_unknown_parameter_fails_at_start(harness: Harness, identify: Identify, sentence: str) -> None:
    async def endpoint(user: User) -> None: ...

    with pytest.raises(ConfigurationError, match=sentence):
        cached_route(harness.cache, op="a", tenant=identify)(endpoint)


def test_an_endpoint_that_yields_fails_at_start(harness: Harness) -> None:
    with pytest.raises(ConfigurationError, match="an endpoint that yields is a stream"):
        cached_route(harness.cache, op="a", tenant=tenants.fixed("acme"))(anything)
