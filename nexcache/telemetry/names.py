"""Every name that NexCache's telemetry uses, and the closed lists of its attribute values.

OpenTelemetry has no conventions for caches yet; these names follow its naming rules under `nexcache.*`.
A reason is one word, and the same word is the `detail` of `Cache-Status` (RFC 9211), the field in the log
and the attribute of the metric.
"""

from enum import StrEnum
from typing import Final

SCOPE: Final = "nexcache"
"""Tracer, meter and logger name; spans of this scope never invalidate anything."""


class Result(StrEnum):
    """How a request was answered (attribute `nexcache.cache.result`)."""

    HIT = "hit"
    MISS = "miss"
    STALE = "stale"
    REVALIDATED = "revalidated"
    BYPASS = "bypass"
    ERROR = "error"


class Tier(StrEnum):
    """Where the answer came from (attribute `nexcache.cache.tier`)."""

    MEMORY = "memory"
    REDIS = "redis"
    FALLBACK = "fallback"


class Bypass(StrEnum):
    """Why a request was sent to the app without asking the cache (`nexcache.bypass.reason`)."""

    METHOD = "method"
    NO_STORE = "no-store"
    AUTHORIZATION = "authorization"
    NO_TENANT = "no-tenant"
    NO_PRINCIPAL = "no-principal"
    BODY = "body"
    HOST = "host"
    OVERRIDE = "override"
    RANGE = "range"
    PRECONDITION = "precondition"
    KEY_TOO_LONG = "key-too-long"
    DISABLED = "disabled"
    DISTRUSTED = "distrusted"


class NotStoredReason(StrEnum):
    """Why an answer was not kept (`nexcache.not_stored.reason`)."""

    NO_STORE = "no-store"
    PRIVATE = "private"
    NO_CACHE = "no-cache"
    SET_COOKIE = "set-cookie"
    VARY = "vary"
    STATUS = "status"
    PARTIAL = "partial"
    TOO_LARGE = "too-large"
    TRUNCATED = "truncated"
    FAILED = "failed"
    HEADER = "header"
    TRAILERS = "trailers"
    EVENT_STREAM = "event-stream"
    UNBUFFERED = "unbuffered"
    METHOD = "method"
    TAGS = "tags"
    AUTHORIZATION = "authorization"
    NOT_FRESH = "not-fresh"
    INVALIDATED = "invalidated"
    ADMISSION = "admission"
    BACKEND = "backend"
    VALUE = "value"
    CONDITION = "condition"
    QUOTA = "quota"


class Trigger(StrEnum):
    """What asked for an invalidation (`nexcache.invalidation.trigger`)."""

    INGEST = "ingest"
    ADMIN = "admin"
    API = "api"
    WRITE = "write"


# Span names; `{op}` is appended after a space where the span concerns one operation.
SPAN_GET: Final = "cache.get"
SPAN_FILL: Final = "cache.fill"
SPAN_PUT: Final = "cache.put"
SPAN_INVALIDATE: Final = "cache.invalidate"

# Attributes.
ATTR_TENANT: Final = "nexcache.tenant.id"
ATTR_OPERATION: Final = "nexcache.operation"
ATTR_RESULT: Final = "nexcache.cache.result"
ATTR_TIER: Final = "nexcache.cache.tier"
ATTR_KEY_HASH: Final = "nexcache.cache.key_hash"
ATTR_AGE: Final = "nexcache.cache.age"
ATTR_TTL: Final = "nexcache.cache.ttl"
ATTR_ENTRY_SIZE: Final = "nexcache.entry.size"
ATTR_BYPASS_REASON: Final = "nexcache.bypass.reason"
ATTR_NOT_STORED_REASON: Final = "nexcache.not_stored.reason"
ATTR_COALESCED: Final = "nexcache.coalesced"
ATTR_TRIGGER: Final = "nexcache.invalidation.trigger"
ATTR_SCOPE: Final = "nexcache.invalidation.scope"
ATTR_CACHE_HIT: Final = "cache.hit"
ATTR_EVICTION_REASON: Final = "nexcache.eviction.reason"
ATTR_SHADOW_RESULT: Final = "nexcache.shadow.result"
ATTR_OUTCOME: Final = "nexcache.ingest.outcome"
ATTR_BACKEND: Final = "nexcache.backend"
ATTR_BACKEND_OPERATION: Final = "nexcache.backend.operation"
ATTR_STATE: Final = "nexcache.state.name"
ATTR_ERROR_TYPE: Final = "error.type"

# Metrics.
METRIC_REQUESTS: Final = "nexcache.requests"
METRIC_BYPASSES: Final = "nexcache.bypasses"
METRIC_LOOKUP_DURATION: Final = "nexcache.lookup.duration"
METRIC_FILL_DURATION: Final = "nexcache.fill.duration"
METRIC_COALESCED: Final = "nexcache.coalesced.requests"
METRIC_STORES: Final = "nexcache.stores"
METRIC_NOT_STORED: Final = "nexcache.not_stored"
METRIC_ENTRY_SIZE: Final = "nexcache.entry.size"
METRIC_INVALIDATIONS: Final = "nexcache.invalidations"
METRIC_EVICTIONS: Final = "nexcache.evictions"
METRIC_MEMORY_ENTRIES: Final = "nexcache.memory.entry.count"
METRIC_MEMORY_USAGE: Final = "nexcache.memory.usage"
METRIC_BACKEND_ERRORS: Final = "nexcache.backend.errors"
METRIC_BACKEND_AVAILABLE: Final = "nexcache.backend.available"
METRIC_STATE: Final = "nexcache.state"
METRIC_SHADOW_CHECKS: Final = "nexcache.shadow.checks"
METRIC_INGEST_SPANS: Final = "nexcache.ingest.spans"
METRIC_STALENESS: Final = "nexcache.invalidation.staleness"

LOOKUP_BOUNDS: Final = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
)  # fmt: skip
"""Histogram bounds of `nexcache.lookup.duration`, in seconds."""

FILL_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Histogram bounds of `nexcache.fill.duration`, in seconds: those of `http.server.request.duration`."""

STALENESS_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Histogram bounds of `nexcache.invalidation.staleness`, in seconds."""

SIZE_BOUNDS: Final = (256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216)
"""Histogram bounds of `nexcache.entry.size`, in bytes: the default ones end at 10 kB."""
