"""Watches a route of the app that takes OTLP: what the app accepts is invalidated before its sender hears of it."""

from collections.abc import Sequence
from typing import Final, Protocol

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache.asgi import ASGIApp, Message, Receive, Scope, Send
from nexcache.errors import ConfigurationError
from nexcache.ingest.reading import MAX_BODY, Refused, by_tenant, request_of, resolved
from nexcache.invalidation.apply import Invalidation
from nexcache.telemetry.events import Emitter, HookFailed
from nexcache.tenants import Resolver

_HELD: Final = 64 * 1024
"""Bytes of an answer that are held back; what acknowledges spans is shorter."""


class Notifies(Protocol):
    """What the middleware needs of the hook."""

    async def notify(
        self, tenant: str, spans: ExportTraceServiceRequest, *, rejected: int = 0, wait: bool = False
    ) -> Invalidation | None:
        """Invalidate what the spans could have changed."""

    async def notify_unread(self, tenant: str, *, wait: bool = False) -> Invalidation | None:
        """Invalidate the whole tenant: what the spans could have changed is not known."""

    @property
    def emitter(self) -> Emitter:
        """Where events go."""


class IngestMiddleware:
    """Passes everything on unchanged, and reads along where spans are posted to `path`, one or several.

    When the app answers 2xx, what the spans changed is invalidated, as the hook does it, and then the answer goes to
    the sender; whatever else it answers invalidates nothing. Spans that cannot be read (another format, more than
    `max_body` bytes) but were accepted invalidate the whole tenant. `tenant` resolves whose they are, like
    `OtlpEndpoint`'s; a request without one passes too, and is none of the cache's business unless the app takes it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hook: Notifies,
        path: str | Sequence[str] = "/v1/traces",
        tenant: Resolver,
        tenant_attribute: str | None = None,
        max_body: int = MAX_BODY,
    ) -> None:
        paths = (path,) if isinstance(path, str) else tuple(path)
        if not paths or not all(each.startswith("/") for each in paths):
            raise ConfigurationError("path names one or several paths that start with a slash")
        self.app = app
        self._hook = hook
        self._paths = frozenset(each.rstrip("/") for each in paths)
        self._tenant = tenant
        self._attribute = tenant_attribute
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and notice spans."""
        if scope["type"] != "http" or scope["method"] != "POST" or self._route_path(scope) not in self._paths:
            await self.app(scope, receive, send)
            return
        copied: bytearray | None = bytearray()
        whole = False
        held: list[Message] | None = []
        size = 0
        accepted = False

        async def tee() -> Message:
            nonlocal copied, whole
            message = await receive()
            if message["type"] == "http.request" and copied is not None:
                copied += message.get("body", b"")
                whole = not message.get("more_body", False)
                if len(copied) > self._max_body:
                    copied = None
            return message

        async def notify() -> None:
            await self._notify(scope, bytes(copied) if copied is not None and whole else None)

        async def release() -> None:
            nonlocal held
            waiting, held = held, None
            for message in waiting or ():
                await send(message)

        async def hold(message: Message) -> None:
            nonlocal accepted, size
            if message["type"] == "http.response.start":
                accepted = 200 <= message["status"] < 300  # noqa: PLR2004 - success
            if held is None or not accepted:
                await release()
                await send(message)
                return
            held.append(message)
            size += len(message.get("body", b""))
            last = message["type"] != "http.response.start" and not message.get("more_body", False)
            if last or size > _HELD:
                await notify()
                await release()

        try:
            await self.app(scope, tee, hold)
        except BaseException:
            if held and accepted:  # it said that it has them, and then failed
                await notify()
            await release()
            raise
        if held:  # an answer without an end
            await notify()
        await release()

    async def _notify(self, scope: Scope, body: bytes | None) -> None:
        emitter = self._hook.emitter
        try:
            tenant = await resolved(self._tenant, scope, emitter)
        except Refused:
            return
        if tenant is None and self._attribute is None:
            emitter.emit(HookFailed("tenant", "NoTenant"))
            return
        request = None if body is None else await request_of(scope, body, self._max_body)
        if tenant is not None:
            if request is None:
                await self._hook.notify_unread(tenant)
            else:
                await self._hook.notify(tenant, request)
            return
        if request is None:
            emitter.emit(HookFailed("tenant", "NoTenant"))
            return
        for each, part in by_tenant(request, self._attribute or "")[0].items():
            await self._hook.notify(each, part)

    def _route_path(self, scope: Scope) -> str:
        path: str = scope["path"]
        root: str = scope.get("root_path", "")
        if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
            path = path[len(root) :]
        return path.rstrip("/")
