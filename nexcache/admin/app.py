"""The admin endpoints as an ASGI app, to be mounted anywhere.

Answers are JSON; errors are `application/problem+json` (RFC 9457). The tenant comes from the credentials; what a
request says about itself can only be refused.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, Protocol
from urllib.parse import unquote

from nexcache.admin.auth import Authorize, Caller, Denied, authenticate, tenant_of
from nexcache.asgi import Headers, Receive, Scope, Send
from nexcache.errors import ConfigurationError, InvalidName
from nexcache.invalidation.apply import Invalidation
from nexcache.invalidation.targets import Targets, check_name, is_glob, matches
from nexcache.ledger import Statistics
from nexcache.policy import query_parameters
from nexcache.refresh import CREDENTIALS, Warmed
from nexcache.stores.base import StoreHealth
from nexcache.telemetry.events import Emitter, HookFailed
from nexcache.telemetry.names import Trigger

_TITLES: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
}


class Administered(Protocol):
    """What the admin endpoints need of a cache."""

    @property
    def emitter(self) -> Emitter:
        """Takes events."""

    @property
    def enabled(self) -> bool:
        """Whether the cache is used at all."""

    async def health(self) -> StoreHealth:
        """Ask the store."""

    async def stats(self, tenant: str) -> Statistics:
        """Return a tenant's statistics."""

    async def operations(self, tenant: str) -> frozenset[str]:
        """Return the operations that are known for a tenant."""

    async def invalidate_targets(self, tenant: str, targets: Targets, *, trigger: Trigger) -> Invalidation:
        """Invalidate."""

    async def warm(self, tenant: str, operation: str, *, headers: Sequence[tuple[bytes, bytes]] = ()) -> Warmed:
        """Compute an operation's recent requests again."""


class _Answer:
    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, document: Mapping[str, Any], *, headers: Headers = ()) -> None:
        self.status = status
        self.body = json.dumps(document, ensure_ascii=True).encode()
        self.headers = headers


class AdminApp:
    """`GET /health`, `GET /stats`, `DELETE /invalidate[/{operation}]`, `POST /warm/{operation}` below any mount.

    `authorize` maps a request to its caller: a tenant's id, a `Caller`, or None. `tenants.api_key(…)` does.
    Raises ConfigurationError without it: there are no endpoints for everybody.
    """

    def __init__(self, cache: Administered, *, authorize: Authorize | None = None) -> None:
        if authorize is None:
            raise ConfigurationError(
                "AdminApp needs authorize=…, for example tenants.api_key(keys=cache.settings.api_keys)"
            )
        self._cache = cache
        self._authorize = authorize

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"AdminApp answers HTTP only, not {scope['type']}")
        answer = await self._answer(scope)
        kind = b"application/problem+json" if answer.status >= 400 else b"application/json"  # noqa: PLR2004
        await send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [
                    (b"content-type", kind),
                    (b"content-length", b"%d" % len(answer.body)),
                    (b"cache-control", b"no-store"),
                    (b"x-content-type-options", b"nosniff"),
                    *answer.headers,
                ],
            }
        )
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _answer(self, scope: Scope) -> _Answer:
        try:
            caller = await authenticate(scope, self._authorize)
        except Exception as error:  # noqa: BLE001 - who cannot be told is nobody
            self._cache.emitter.emit(HookFailed("authorize", type(error).__name__))
            caller = Denied(401, "An API key or token of a tenant is needed.")
        if isinstance(caller, Denied):
            challenge = ((b"www-authenticate", b'ApiKey realm="nexcache"'),)
            return _problem(caller.status, caller.detail, headers=challenge)
        match _segments(scope):
            case ["health"]:
                return _only(scope, "GET") or await self._health()
            case ["stats"]:
                return _only(scope, "GET") or await self._stats(scope, caller)
            case ["invalidate"]:
                return _only(scope, "DELETE") or await self._invalidate(scope, caller, "*")
            case ["invalidate", operation]:
                return _only(scope, "DELETE") or await self._invalidate(scope, caller, operation)
            case ["invalidate", "tags", tag]:
                return _only(scope, "DELETE") or await self._invalidate_tag(scope, caller, tag)
            case ["warm", operation]:
                return _only(scope, "POST") or await self._warm(scope, caller, operation)
            case _:
                return _problem(404, "There is no such endpoint.")

    async def _health(self) -> _Answer:
        health = await self._cache.health()
        state = "disabled" if not self._cache.enabled else "ok" if health.available else "down"
        return _Answer(
            200,
            {
                "status": "healthy" if state != "down" else "degraded",
                "mode": health.mode if health.available else "fallback",
                "state": state,
                "response_time_ms": round(health.response_time_ms, 3),
                "connections": health.connections,
                "commands": health.commands,
            },
        )

    async def _stats(self, scope: Scope, caller: Caller) -> _Answer:
        tenant = _tenant(scope, caller)
        if isinstance(tenant, _Answer):
            return tenant
        return _Answer(200, (await self._cache.stats(tenant)).as_dict())

    async def _invalidate(self, scope: Scope, caller: Caller, operation: str) -> _Answer:
        tenant = _tenant(scope, caller)
        if isinstance(tenant, _Answer):
            return tenant
        if operation != "*" and (refused := await self._unknown(tenant, operation)):
            return refused
        return await self._apply(tenant, Targets.of((operation,)))

    async def _invalidate_tag(self, scope: Scope, caller: Caller, tag: str) -> _Answer:
        tenant = _tenant(scope, caller)
        if isinstance(tenant, _Answer):
            return tenant
        try:
            targets = Targets.of(tags=(tag,))
        except InvalidName as error:
            return _problem(400, str(error))
        return await self._apply(tenant, targets)

    async def _apply(self, tenant: str, targets: Targets) -> _Answer:
        started = time.perf_counter()
        done = await self._cache.invalidate_targets(tenant, targets, trigger=Trigger.ADMIN)
        waited = (time.perf_counter() - started) * 1000
        return _Answer(
            200 if done.acknowledged else 202,
            {
                "acknowledged": done.acknowledged,
                "queued": done.queued,
                "targets": list(done.targets),
                "waited_ms": round(waited, 3),
            },
        )

    async def _warm(self, scope: Scope, caller: Caller, operation: str) -> _Answer:
        tenant = _tenant(scope, caller)
        if isinstance(tenant, _Answer):
            return tenant
        if tenant != caller.tenant:
            return _problem(403, "A warm-up runs with the caller's own permissions, so only for its own tenant.")
        if is_glob(operation):
            return _problem(400, "A warm-up takes one operation, not a pattern.")
        if refused := await self._unknown(tenant, operation):
            return refused
        credentials = [(name, value) for name, value in scope["headers"] if name in CREDENTIALS]
        warmed = await self._cache.warm(tenant, operation, headers=credentials)
        return _Answer(200, asdict(warmed))

    async def _unknown(self, tenant: str, operation: str) -> _Answer | None:
        try:
            check_name("operation", operation)
        except InvalidName as error:
            return _problem(400, str(error))
        if any(matches(operation, known) for known in await self._cache.operations(tenant)):
            return None
        return _problem(404, "No operation of this tenant has that name, or matches that pattern.")


def _segments(scope: Scope) -> list[str]:
    """Split the path below the mount; an encoded slash stays inside its segment where the server tells."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    raw: bytes | None = scope.get("raw_path")
    if raw is not None:
        raw_text = raw.partition(b"?")[0].decode("latin-1")
        segments = [unquote(part) for part in raw_text.strip("/").split("/")]
        depth = len([part for part in root.strip("/").split("/") if part]) if path.startswith(root) else 0
        if "/".join(segments).strip("/") == path.strip("/"):
            return [part for part in segments[depth:] if part]
    path = path.removeprefix(root)
    return [part for part in path.strip("/").split("/") if part]


def _tenant(scope: Scope, caller: Caller) -> str | _Answer:
    named = query_parameters(scope["query_string"]).get("tenant", ())
    if len(named) > 1:
        return _problem(400, "Name one tenant.")
    tenant = tenant_of(caller, named[0] if named else None)
    return _problem(tenant.status, tenant.detail) if isinstance(tenant, Denied) else tenant


def _only(scope: Scope, method: str) -> _Answer | None:
    if scope["method"] == method or (method == "GET" and scope["method"] == "HEAD"):
        return None
    return _problem(405, f"This endpoint takes {method}.", headers=((b"allow", method.encode()),))


def _problem(status: int, detail: str, *, headers: Headers = ()) -> _Answer:
    document = {"type": "about:blank", "title": _TITLES[status], "status": status, "detail": detail}
    return _Answer(status, document, headers=headers)
