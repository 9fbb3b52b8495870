"""The OpenAPI document is right, and what it says is what the endpoints do: schemathesis asks them anything."""

import asyncio
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection

from nexcache import Settings
from nexcache.admin.app import AdminApp
from nexcache.admin.endpoints import ENDPOINTS
from nexcache.asgi import ASGIApp, Receive, Scope, Send
from tests.admin.conftest import OPERATOR, SECRETS, Site

STREAMS = "^events$"
"""Watched by tests of its own: it has no end to wait for."""


def served() -> ASGIApp:
    """Give the app with something stored in it, and a schema made from its own document."""
    site = Site(Settings(redis_url=None, redis_host=None))

    async def fill() -> None:
        for path in ("/overview", "/services/cart", "/services/checkout"):
            await site.ask(path)

    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        """Mount the endpoints at /admin. (Starlette answers a path with a line break by itself, as plain text.)"""
        await site.admin({**scope, "root_path": "/admin"}, receive, send)

    asyncio.run(fill())
    return mounted


APP = served()
HEADERS = {"acme": {"X-API-Key": SECRETS["acme"]}, "operator": {"X-API-Key": OPERATOR}}
document = schemathesis.openapi.from_asgi("/admin/openapi.json", APP, headers=HEADERS["operator"])
asked = document.exclude(operation_id_regex=STREAMS)
bounded = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_every_endpoint_is_in_the_document_and_no_other() -> None:
    told = {
        (method.upper(), path)
        for path, methods in document.raw_schema["paths"].items()
        for method in methods
        if method in ("get", "post", "delete")
    }
    assert told == {(each.method, each.path) for each in ENDPOINTS}


def test_the_document_is_openapi_3_1() -> None:
    assert document.raw_schema["openapi"] == "3.1.0"
    assert document.raw_schema["servers"] == [{"url": "/admin"}]
    document.validate()


def test_every_endpoint_has_a_handler() -> None:
    app = AdminApp(Site(Settings(redis_url=None, redis_host=None)).cache, authorize=lambda _: None)
    assert set(app._handlers) == {each.id for each in ENDPOINTS}


@pytest.mark.parametrize("who", ["acme", "operator"])
@asked.parametrize()
@bounded
def test_the_endpoints_keep_to_the_document(case: Any, who: str) -> None:
    """Names of tags and tenants that the schema leaves out may be taken: what can be one, no schema can say."""
    free = case.operation.definition.raw["operationId"] in ("invalidate_tag", "forget")
    is_negative = case.meta is not None and case.meta.generation.mode is GenerationMode.NEGATIVE
    excluded: list[Any] = [negative_data_rejection] if free and is_negative else []
    if who == "operator" and "tenant" not in (case.query or {}):
        excluded.append(schemathesis.checks.CHECKS.get_one("positive_data_acceptance"))  # it must name one
    case.call_and_validate(headers=HEADERS[who], excluded_checks=excluded)
