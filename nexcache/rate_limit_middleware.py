"""Rate limits in front of an app: 429 with `Retry-After` (RFC 6585 §4), and `RateLimit` fields on every answer.

The fields are those of draft-ietf-httpapi-ratelimit-headers: `RateLimit-Policy: "api";q=100;w=60` and
`RateLimit: "api";r=42;t=17`. A refusal is problem+json of the type `quota-exceeded`.
"""

import inspect
import json
import math
from collections.abc import Sequence
from typing import Final, Protocol

from nexcache.asgi import ASGIApp, Message, Receive, Scope, Send, route_path
from nexcache.errors import ConfigurationError
from nexcache.policy import Policies, Policy
from nexcache.rate_limit import Decision, RateLimit
from nexcache.telemetry.events import Emitter, HookFailed
from nexcache.tenants import Resolver, is_valid_id

_TYPE: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"
_ANONYMOUS: Final = "_anonymous"


class Limiting(Protocol):
    """What the middleware needs of a cache."""

    @property
    def emitter(self) -> Emitter:
        """Takes events."""

    def rate_limit(self, rate: str, *, name: str) -> RateLimit:
        """Make a limit."""


class RateLimitMiddleware:
    """Lets through so many requests of each tenant, and of each subject of it, and answers the others with 429.

    `limit` is text such as `"100/minute"`, or what `cache.rate_limit(…)` made; all of several must have room, and
    the first without decides. `by` names the subject within the tenant (a user, a key); without it the tenant is
    limited as a whole. Requests without a tenant are limited by their client's address. `paths` are templates as in
    `Policy`; without them every HTTP request counts. Raises ConfigurationError for what cannot work.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        cache: Limiting,
        limit: str | RateLimit | Sequence[str | RateLimit],
        tenant: Resolver,
        by: Resolver | None = None,
        paths: Sequence[str] = (),
    ) -> None:
        self.app = app
        self._cache = cache
        given = (limit,) if isinstance(limit, str | RateLimit) else tuple(limit)
        if not given:
            raise ConfigurationError('RateLimitMiddleware needs a limit, such as limit="100/minute"')
        self._limits = [
            each
            if isinstance(each, RateLimit)
            else cache.rate_limit(each, name="default" if len(given) == 1 else f"default-{number}")
            for number, each in enumerate(given, 1)
        ]
        names = [each.name for each in self._limits]
        if len(set(names)) != len(names):
            raise ConfigurationError(f"RateLimitMiddleware: two limits have one name: {', '.join(names)}")
        self._tenant = tenant
        self._by = by
        if isinstance(paths, str):
            raise ConfigurationError(f"RateLimitMiddleware: paths takes a list, such as [{paths!a}]")
        self._paths = Policies(Policy(path, op=f"limited-{number}") for number, path in enumerate(paths))
        self._policy = b", ".join(
            b'"%b";q=%d;w=%d' % (each.name.encode(), each.rate.limit, math.ceil(each.rate.window))
            for each in self._limits
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count a request, and refuse it where there is no room for it."""
        if scope["type"] != "http" or (self._paths.all and self._paths.match(route_path(scope)) is None):
            await self.app(scope, receive, send)
            return
        tenant = await self._resolve("tenant", self._tenant, scope)
        if tenant is None or not is_valid_id(tenant):
            client = scope.get("client")
            tenant, subject = _ANONYMOUS, f"address:{client[0] if client else ''}"
        else:
            found = None if self._by is None else await self._resolve("by", self._by, scope)
            subject = "" if found is None else f"id:{found}"
        tightest: tuple[RateLimit, Decision] | None = None
        for limit in self._limits:
            decision = await limit.check(subject, tenant=tenant)
            if tightest is None or not decision.allowed or decision.remaining < tightest[1].remaining:
                tightest = limit, decision
            if not decision.allowed:
                break
        assert tightest is not None  # noqa: S101 - there is at least one limit
        fields = [(b"ratelimit-policy", self._policy), (b"ratelimit", _state(*tightest))]
        if not tightest[1].allowed:
            await _refuse(scope, send, *tightest, fields)
            return

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *fields]}
            await send(message)

        await self.app(scope, receive, tell)

    async def _resolve(self, hook: str, resolver: Resolver, scope: Scope) -> str | None:
        try:
            found = resolver(scope)
            if inspect.isawaitable(found):
                found = await found
        except Exception as error:  # noqa: BLE001 - a resolver that fails must not name anybody
            self._cache.emitter.emit(HookFailed(hook, type(error).__name__))
            return None
        return found if isinstance(found, str) else None


def _state(limit: RateLimit, decision: Decision) -> bytes:
    return b'"%b";r=%d;t=%d' % (limit.name.encode(), decision.remaining, math.ceil(decision.reset_after))


async def _refuse(
    scope: Scope, send: Send, limit: RateLimit, decision: Decision, fields: Sequence[tuple[bytes, bytes]]
) -> None:
    after = max(1, math.ceil(decision.retry_after))
    body = json.dumps(
        {
            "type": _TYPE,
            "title": "Too Many Requests",
            "status": 429,
            "detail": f"At most {limit.rate.limit} requests in {limit.rate.window:g} s; try again in {after} s.",
            "violated-policies": [limit.name],
        }
    ).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"retry-after", b"%d" % after),
        *fields,
    ]
    await send({"type": "http.response.start", "status": 429, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body, "more_body": False})
