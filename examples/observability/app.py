"""An observability back end with NexCache in front of it: `uvicorn examples.observability.app:app`."""

import os
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, Route

from nexcache import AdminApp, CacheMiddleware, IngestHook, IngestRule, NexCache, OtlpEndpoint, Policy, tenants
from nexcache.demo.backend import Backend

# So that it runs as it is, with the keys `acme-demo-key` and `globex-demo-key`; `nexcache key TENANT` makes real ones.
DEMO_KEYS = [tenants.ApiKey.of(tenant, f"{tenant}-demo-key") for tenant in ("acme", "globex")]
os.environ.setdefault("CACHE_API_KEYS", ",".join(map(str, DEMO_KEYS)))

cache = NexCache.from_env()
keys = tenants.api_key("X-API-Key", keys=cache.settings.api_keys)
backend = Backend(Path(os.environ.get("SPANS_DB", "spans.db")), keys)
hook = IngestHook(
    cache,
    rules=[
        IngestRule(ops=["dashboard_*", "architecture_map", "service_list"]),  # every span changes these
        IngestRule(tags=["service:{service.name}", "service:all", "journey:{app.journey}", "journey:all"]),
    ],
    min_interval=0,  # few spans, and each is to be seen by the next read; under load leave it out (docs/ingest.md)
)
app = Starlette(
    routes=[
        Route("/api/v1/dashboard", backend.dashboard),
        Route("/api/v1/architecture", backend.architecture),
        Route("/api/v1/services", backend.services),
        Route("/api/v1/services/{service}", backend.service),
        Route("/api/v1/metrics", backend.metrics),
        Route("/api/v1/graph", backend.graph),
        Route("/v1/traces", OtlpEndpoint(hook, tenant=keys, sink=backend.store_spans), methods=["POST"]),
        Mount("/api/v1/cache", AdminApp(cache, authorize=keys)),
    ],
    middleware=[
        Middleware(
            CacheMiddleware,
            cache=cache,
            tenant=keys,
            principal=keys,
            policies=[
                Policy("/api/v1/dashboard", op="dashboard_overview", ttl="2m"),
                Policy("/api/v1/architecture", op="architecture_map", ttl="5m"),
                Policy("/api/v1/services", op="service_list", ttl="5m"),
                Policy("/api/v1/services/{service}", op="service_details", ttl="5m", tags=["service:{service}"]),
                Policy("/api/v1/metrics", op="metrics", ttl="5m", tags=["service:{service}", "journey:{journey}"]),
                Policy("/api/v1/graph", op="graph_analysis", ttl="5m", tags=["journey:{journey}"]),
            ],
        )
    ],
)
