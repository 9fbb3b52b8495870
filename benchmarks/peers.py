"""The peers, each mounted as its documentation says, in front of the same handler; and NexCache with everything on.

A peer is imported only when it is asked for: one that is not installed, or does not run on this Python, says why.
None of them is asked for more than it does by itself, which favours it: most know no tenant, no generations, no
validation and no statistics. Where a peer lets its key be chosen, it is made of the tenant, the path and the query.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from benchmarks.hit import BODY, HEADERS
from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import ASGIApp, Receive, Scope, Send

PATH = "/api/v1/services/{service}"
KEY = "a-long-random-key-of-the-tenant-acme"
COLD = "cold"
"""What the path of a slow answer begins with."""
SLOW = 0.1
IN_MEMORY = "in memory"

assert (b"x-api-key", KEY.encode()) in HEADERS


class Origin:
    """The handler behind a cache: the same bytes for everybody, and a count of its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.answers: Callable[[], bytes] | None = None
        """Makes a body of its own for each answer."""

    async def body(self, service: str) -> bytes:
        """Answer one request."""
        self.calls += 1
        if self.answers is not None:
            return self.answers()
        if service.startswith(COLD):
            await asyncio.sleep(SLOW)
        return BODY

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Be an app by itself: prebuilt messages, nothing else."""
        if scope["type"] != "http":
            raise RuntimeError("no lifespan here")
        body = await self.body(scope["path"].rpartition("/")[2])
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _nothing() -> None:
    pass


@dataclass
class Contender:
    """An app, the handler behind it, and what must happen before its first request and after its last."""

    app: ASGIApp
    origin: Origin
    start: Callable[[], Awaitable[None]] = field(default=_nothing)
    close: Callable[[], Awaitable[None]] = field(default=_nothing)


def nexcache(url: str | None, **settings: Any) -> Contender:
    """Tenant, principal, policy with a tag, generations, ETag, Age, Cache-Status, statistics, telemetry unsampled."""
    origin = Origin()
    cache = NexCache(
        Settings(redis_url=url, op_timeout_ms=2000, signing_keys={"k1": "k" * 32}, **settings)
        if url is not None
        else Settings(redis_url=None, redis_host=None, **settings)
    )
    keys = tenants.api_key(keys={"acme": KEY})
    policy = Policy(PATH, op="service_details", ttl="1h", tags=["service:{service}"])
    app = CacheMiddleware(origin, cache=cache, tenant=keys, principal=keys, policies=[policy])
    return Contender(app, origin, cache.start, cache.aclose)


def _starlette(endpoint: Callable[..., Awaitable[Any]], **options: Any) -> Any:
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.routing import Route  # noqa: PLC0415

    return Starlette(routes=[Route(PATH, endpoint, **options)])


def _response(body: bytes, **headers: str) -> Any:
    from starlette.responses import Response  # noqa: PLC0415

    return Response(body, media_type="application/json", headers=headers)


def _fastapi_cache2(url: str | None) -> Contender:
    from fastapi import FastAPI, Request, Response  # noqa: PLC0415

    module = import_module("fastapi_cache")
    decorator = import_module("fastapi_cache.decorator")
    origin = Origin()
    client: Any = None
    if url is None:
        backend = import_module("fastapi_cache.backends.inmemory").InMemoryBackend()
    else:
        client = import_module("redis.asyncio").Redis.from_url(url)
        backend = import_module("fastapi_cache.backends.redis").RedisBackend(client)

    def key(function: Any, namespace: str = "", *, request: Any = None, **_: Any) -> str:
        return f"{namespace}:{request.headers['x-api-key']}:{request.url.path}?{request.url.query}"

    class Plain(import_module("fastapi_cache.coder").Coder):  # type: ignore[misc] # there is none for plain bodies
        @classmethod
        def encode(cls, value: Any) -> bytes:
            return bytes(value.body)

        @classmethod
        def decode(cls, value: bytes) -> Any:
            return Response(value, media_type="application/json")

        @classmethod
        def decode_as_type(cls, value: bytes, *, type_: Any) -> Any:
            return cls.decode(value)

    app = FastAPI()

    async def endpoint(service: str, request: Request) -> Response:
        return Response(await origin.body(service), media_type="application/json")

    app.get(PATH)(decorator.cache(expire=3600, key_builder=key, coder=Plain)(endpoint))

    async def start() -> None:
        module.FastAPICache.reset()
        module.FastAPICache.init(backend, prefix="fastapi-cache2")

    async def close() -> None:
        if client is not None:
            await client.aclose()

    return Contender(app, origin, start, close)


def _cashews(url: str | None) -> Contender:
    cache = import_module("cashews").Cache()
    cache.setup("mem://", size=100_000) if url is None else cache.setup(url, client_side=False)
    origin = Origin()

    @cache(ttl="1h", key="cashews:{tenant}:{path}:{query}")  # type: ignore[untyped-decorator]
    async def load(tenant: str, path: str, query: str) -> bytes:
        return await origin.body(path.rpartition("/")[2])

    async def endpoint(request: Any) -> Any:
        return _response(await load(request.headers["x-api-key"], request.url.path, request.url.query))

    return Contender(_starlette(endpoint), origin, _nothing, cache.close)


def _aiocache(url: str | None) -> Contender:
    module, serializers = import_module("aiocache"), import_module("aiocache.serializers")
    origin = Origin()
    where: dict[str, Any] = {"cache": module.Cache.MEMORY}
    if url is not None:
        port = int(url.rstrip("/0").rpartition(":")[2])
        where = {"cache": module.Cache.REDIS, "endpoint": "127.0.0.1", "port": port}

    def key(_: Any, tenant: str, path: str, query: str) -> str:
        return f"aiocache:{tenant}:{path}?{query}"

    @module.cached(ttl=3600, key_builder=key, serializer=serializers.StringSerializer(), **where)  # type: ignore[untyped-decorator]
    async def load(tenant: str, path: str, query: str) -> str:
        return (await origin.body(path.rpartition("/")[2])).decode()

    async def endpoint(request: Any) -> Any:
        text = await load(request.headers["x-api-key"], request.url.path, request.url.query)
        return _response(text.encode())

    async def close() -> None:
        await load.cache.close()

    return Contender(_starlette(endpoint), origin, _nothing, close)


def _asgi_caches(url: str | None) -> Contender:
    if url is not None:
        import_module("caches.backends.redis")  # says why it cannot
    cache = import_module("caches").Cache("locmem://default" if url is None else url, ttl=3600)
    origin = Origin()

    async def endpoint(request: Any) -> Any:
        return _response(await origin.body(request.path_params["service"]))

    app = import_module("asgi_caches.middleware").CacheMiddleware(_starlette(endpoint), cache=cache)
    return Contender(app, origin, cache.connect, cache.disconnect)


def _litestar(url: str | None) -> Contender:
    litestar, stores = import_module("litestar"), import_module("litestar.stores.memory")
    config = import_module("litestar.config.response_cache").ResponseCacheConfig(
        key_builder=lambda request: f"{request.headers['x-api-key']}:{request.url.path}?{request.url.query}"
    )
    store = stores.MemoryStore()
    if url is not None:
        store = import_module("litestar.stores.redis").RedisStore.with_client(url)
    origin = Origin()

    async def endpoint(service: str) -> Any:
        return litestar.Response(await origin.body(service), media_type="application/json")

    endpoint.__annotations__ = {"service": str, "return": litestar.Response[bytes]}
    handler = litestar.get(PATH.replace("}", ":str}"), cache=3600)(endpoint)
    app = litestar.Litestar(
        [handler], response_cache_config=config, stores={"response_cache": store}, openapi_config=None
    )
    return Contender(app, origin)


def _hishel(url: str | None) -> Contender:
    asgi, hishel = import_module("hishel.asgi"), import_module("hishel")
    origin = Origin()
    client: Any = None
    if url is None:
        directory = tempfile.mkdtemp(prefix="hishel-")
        storage = hishel.AsyncSqliteStorage(database_path=str(Path(directory, "cache.db")))
    else:
        client = import_module("redis.asyncio").Redis.from_url(url)
        storage = hishel.AsyncRedisStorage(client)

    async def endpoint(request: Any) -> Any:
        body = await origin.body(request.path_params["service"])
        return _response(body, **{"cache-control": "max-age=3600"})

    async def close() -> None:
        await storage.close()

    return Contender(asgi.ASGICacheMiddleware(_starlette(endpoint), storage=storage), origin, _nothing, close)


def _django(url: str | None) -> Contender:
    django, conf = import_module("django"), import_module("django.conf")
    if not conf.settings.configured:
        redis_url = os.environ.get("PEERS_REDIS_URL", url)
        caches: dict[str, Any] = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
        caches["default"]["OPTIONS"] = {"MAX_ENTRIES": 100_000}
        if redis_url is not None:
            caches["redis"] = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": redis_url}
        conf.settings.configure(
            ALLOWED_HOSTS=["*"],
            SECRET_KEY="benchmark",
            CACHES=caches,
            ROOT_URLCONF="benchmarks.peers",
            LOGGING_CONFIG=None,
        )
        django.setup()
    http, cached = import_module("django.http"), import_module("django.views.decorators.cache")
    origin = Origin()

    def view(request: Any, service: str) -> Any:
        origin.calls += 1
        if service.startswith(COLD):
            time.sleep(SLOW)
        return http.HttpResponse(BODY, content_type="application/json")

    view = cached.cache_page(3600, cache="default" if url is None else "redis")(view)
    route = import_module("django.urls").path(PATH[1:].replace("{service}", "<str:service>"), view)

    class Handler(import_module("django.core.handlers.asgi").ASGIHandler):  # type: ignore[misc]
        """One URL configuration per contender."""

        def create_request(self, scope: Any, body_file: Any) -> Any:
            request, error = super().create_request(scope, body_file)
            if request is not None:
                request.urlconf = (route,)
            return request, error

    return Contender(Handler(), origin)


urlpatterns: list[Any] = []
"""Django wants such a module; each contender has patterns of its own."""


@dataclass(frozen=True)
class Peer:
    """One of the packages, as it caches in memory and in Redis; None: it does not."""

    name: str
    distribution: str
    build: Callable[[str | None], Contender]
    memory: str | None = IN_MEMORY
    redis: str | None = "in Redis"
    sized: bool = True
    """Its handler can be told to answer bodies of one size."""

    @property
    def version(self) -> str:
        """The release that is installed."""
        return metadata.version(self.distribution)


PEERS = (
    Peer("Litestar's response cache", "litestar", _litestar),
    Peer("aiocache", "aiocache", _aiocache),
    Peer("cashews", "cashews", _cashews),
    Peer("asgi-caches", "asgi-caches", _asgi_caches),
    Peer("fastapi-cache2", "fastapi-cache2", _fastapi_cache2),
    Peer("hishel", "hishel", _hishel, memory="in SQLite"),
    Peer("Django's cache_page", "django", _django, sized=False),
)
