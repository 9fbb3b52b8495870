"""An app behind the cache, with its admin endpoints: keys of two tenants, and of an operator."""

from collections.abc import AsyncIterator

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from nexcache import AdminApp, CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.admin.auth import Authorize
from nexcache.telemetry.events import Audited, Event
from nexcache.tenants import ApiKey, ApiKeys

SECRETS = {"acme": "the-key-of-acme", "globex": "the-key-of-globex"}
OPERATOR = "the-key-of-ops"
KEYS = (
    *(ApiKey.of(tenant, secret) for tenant, secret in SECRETS.items()),
    ApiKey.parse(f"{ApiKey.of('ops', OPERATOR)};role=operator"),
)


async def handler(request: Request) -> Response:
    return JSONResponse({"path": request.url.path})


class Site:
    """The app, its cache and what was audited."""

    def __init__(self, settings: Settings, *, authorize: Authorize | None = None) -> None:
        self.cache = NexCache(settings)
        self.audited: list[Audited] = []
        self.cache.emitter.subscribe(self._note, Audited)
        resolve: ApiKeys = tenants.api_key(keys=KEYS)
        self.admin = AdminApp(self.cache, authorize=authorize or resolve)
        self.app = Starlette(
            routes=[
                Route("/overview", handler),
                Route("/services/{name}", handler),
                Mount("/admin", self.admin),
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

    def _note(self, event: Event) -> None:
        assert isinstance(event, Audited)
        self.audited.append(event)

    async def ask(
        self, path: str, *, method: str = "GET", who: str = "acme", headers: dict[str, str] | None = None
    ) -> httpx2.Response:
        transport = httpx2.ASGITransport(app=self.app)
        known = {"x-api-key": SECRETS.get(who, OPERATOR)} | (headers or {})
        async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
            return await client.request(method, path, headers=known)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site(Settings(redis_url=None, redis_host=None))
    await made.ask("/")
    yield made
    await made.cache.aclose()
