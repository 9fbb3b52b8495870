# ruff: noqa: INP001 - a program, not a package
"""The demo's back end as a container runs it: configured by the environment, telemetry by OTLP.

    uvicorn --factory app:create

Besides NexCache's settings and OpenTelemetry's own: `SPANS_DB`, the SQLite file.
"""

import logging
import os
from pathlib import Path

from nexcache import NexCache, configure_telemetry, tenants
from nexcache.asgi import ASGIApp
from nexcache.demo.app import create_app
from nexcache.demo.backend import Backend


def create() -> ASGIApp:
    """Build the app; raises ConfigurationError naming a bad setting."""
    # Without the profile `observability` nobody listens at OTEL_EXPORTER_OTLP_ENDPOINT. The exporters go on trying,
    # so that it may be started later; they need not say so every few seconds.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    configure_telemetry()
    cache = NexCache.from_env()
    keys = tenants.api_key("X-API-Key", keys=cache.settings.api_keys)
    backend = Backend(Path(os.environ.get("SPANS_DB", "spans.db")), keys)
    return create_app(cache, backend, keys)
