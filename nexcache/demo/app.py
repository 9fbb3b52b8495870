"""NexCache in front of the back end: what is cached, for how long, and what spans may change."""

from typing import Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, Route

from nexcache import AdminApp, CacheMiddleware, IngestHook, IngestRule, NexCache, OtlpEndpoint, Policy
from nexcache.asgi import ASGIApp, Receive, Scope, Send
from nexcache.demo.backend import Backend
from nexcache.tenants import ApiKeys

POLICIES: Final = (
    Policy("/api/v1/dashboard", op="dashboard_overview", ttl="2m"),
    Policy("/api/v1/architecture", op="architecture_map", ttl="5m"),
    Policy("/api/v1/services", op="service_list", ttl="5m"),
    Policy("/api/v1/services/{service}", op="service_details", ttl="5m", tags=["service:{service}"]),
    Policy("/api/v1/metrics", op="metrics_aggregation", ttl="5m", tags=["service:{service}", "journey:{journey}"]),
    Policy("/api/v1/graph", op="graph_analysis", ttl="5m", tags=["journey:{journey}"]),
)
RULES: Final = (
    # these look at every service, so every span changes them
    IngestRule(ops=["dashboard_*", "architecture_map", "service_list"]),
    # these look at one service or one journey, or by name at all
    IngestRule(tags=["service:{service.name}", "service:all", "journey:{app.journey}", "journey:all"]),
)
UNCACHED: Final = "/direct"
"""Below this path the same back end answers without the cache, to compare."""


def create_app(cache: NexCache, backend: Backend, keys: ApiKeys, rules: tuple[IngestRule, ...] = RULES) -> ASGIApp:
    """Mount the cache in front of the back end, and the back end alone below `/direct`."""
    hook = IngestHook(cache, rules=rules, min_interval=0)  # a read after an acknowledgement sees the spans
    cached = Starlette(
        routes=[
            *backend.routes,
            Route("/v1/traces", OtlpEndpoint(hook, tenant=keys, sink=backend.store_spans), methods=["POST"]),
            Mount("/api/v1/cache", AdminApp(cache, authorize=keys)),
        ],
        middleware=[Middleware(CacheMiddleware, cache=cache, tenant=keys, principal=keys, policies=POLICIES)],
    )
    uncached = Starlette(routes=[Mount(UNCACHED, routes=backend.routes)])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        plain = scope["type"] == "http" and scope["path"].startswith(UNCACHED + "/")
        await (uncached if plain else cached)(scope, receive, send)

    return app
