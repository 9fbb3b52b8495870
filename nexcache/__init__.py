"""A multi-tenant cache for observability back ends, mounted in any ASGI app.

A request meets the modules in this order: `middleware` receives it, `tenants` and `principals` say whose it is,
`policy` whether it is cached, `key` under which name, `entries` looks it up, `semantics` decides, `collapse` and
`fill` compute what is missing once, `entries` keeps it, `telemetry` says what happened. `invalidation` and
`ingest` decide when it is no longer true.

Names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nexcache import principals, tenants
    from nexcache.admin.app import AdminApp
    from nexcache.cache import NexCache
    from nexcache.errors import ConfigurationError, InvalidName, NexCacheError, StoreRefused, StoreUnavailable
    from nexcache.ingest.exporter import InvalidatingSpanExporter, InvalidatingSpanProcessor
    from nexcache.ingest.forward import Forward
    from nexcache.ingest.hook import IngestHook
    from nexcache.ingest.middleware import IngestMiddleware
    from nexcache.ingest.otlp_endpoint import OtlpEndpoint
    from nexcache.ingest.rule_file import read_rules
    from nexcache.ingest.rules import IngestRule
    from nexcache.ingest.warming import Refresh
    from nexcache.ingest.windows import TimeWindow
    from nexcache.invalidation.apply import Invalidation
    from nexcache.middleware import CacheMiddleware
    from nexcache.policy import Policy, Query, Shadow
    from nexcache.rate_limit_middleware import RateLimitMiddleware
    from nexcache.session_middleware import SessionMiddleware
    from nexcache.settings import Settings
    from nexcache.telemetry.configure import configure_telemetry

_HOME = {
    "AdminApp": "nexcache.admin.app",
    "CacheMiddleware": "nexcache.middleware",
    "ConfigurationError": "nexcache.errors",
    "Forward": "nexcache.ingest.forward",
    "IngestHook": "nexcache.ingest.hook",
    "IngestMiddleware": "nexcache.ingest.middleware",
    "IngestRule": "nexcache.ingest.rules",
    "InvalidName": "nexcache.errors",
    "InvalidatingSpanExporter": "nexcache.ingest.exporter",
    "InvalidatingSpanProcessor": "nexcache.ingest.exporter",
    "Invalidation": "nexcache.invalidation.apply",
    "NexCache": "nexcache.cache",
    "NexCacheError": "nexcache.errors",
    "OtlpEndpoint": "nexcache.ingest.otlp_endpoint",
    "Policy": "nexcache.policy",
    "Query": "nexcache.policy",
    "RateLimitMiddleware": "nexcache.rate_limit_middleware",
    "Refresh": "nexcache.ingest.warming",
    "SessionMiddleware": "nexcache.session_middleware",
    "Settings": "nexcache.settings",
    "Shadow": "nexcache.policy",
    "StoreRefused": "nexcache.errors",
    "StoreUnavailable": "nexcache.errors",
    "TimeWindow": "nexcache.ingest.windows",
    "configure_telemetry": "nexcache.telemetry.configure",
    "principals": "nexcache.principals",
    "read_rules": "nexcache.ingest.rule_file",
    "tenants": "nexcache.tenants",
}

__all__ = [
    "AdminApp",
    "CacheMiddleware",
    "ConfigurationError",
    "Forward",
    "IngestHook",
    "IngestMiddleware",
    "IngestRule",
    "InvalidName",
    "InvalidatingSpanExporter",
    "InvalidatingSpanProcessor",
    "Invalidation",
    "NexCache",
    "NexCacheError",
    "OtlpEndpoint",
    "Policy",
    "Query",
    "RateLimitMiddleware",
    "Refresh",
    "SessionMiddleware",
    "Settings",
    "Shadow",
    "StoreRefused",
    "StoreUnavailable",
    "TimeWindow",
    "configure_telemetry",
    "principals",
    "read_rules",
    "tenants",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'nexcache' has no attribute {name!r}")
    module = import_module(home)
    value = module if home.rpartition(".")[2] == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
