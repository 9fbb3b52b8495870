"""The app under attack: handlers that reflect all they are told, behind the cache in every way that it can be mounted.

Every request says in one field, which nothing behind it sees, where it goes: `X-Hostile: <tier>/<area>`. The tier is
`l1` (memory before the store), `l2` (the store alone) or `none` (no cache: what the app itself would answer).
"""

import asyncio
import base64
import json
import logging
import os
import posixpath
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

from pydantic import SecretStr
from starlette.responses import StreamingResponse
from starlette.routing import Mount, Route, Router

from nexcache import (
    AdminApp,
    CacheMiddleware,
    IngestHook,
    IngestRule,
    NexCache,
    OtlpEndpoint,
    Policy,
    Query,
    RateLimitMiddleware,
    Settings,
    principals,
    tenants,
)
from nexcache.admin.auth import Authorize
from nexcache.asgi import ASGIApp, Receive, Scope, Send
from nexcache.key import CacheKey
from nexcache.tenants import ApiKey, Resolver

NAMES: Final = ("acme", "globex", "initech")
SECRET_KEYS: Final = {name: f"the-key-of-{name}" for name in NAMES}
OPERATOR: Final = "the-key-of-ops"
KEYS: Final = (
    *(ApiKey.of(name, secret) for name, secret in SECRET_KEYS.items()),
    ApiKey.parse(f"{ApiKey.of('ops', OPERATOR)};role=operator"),
    ApiKey.parse(f"{ApiKey.of('acme', 'the-old-key-of-acme')};expires=2020-01-01"),
)
TOKENS: Final = {b"Bearer token-of-acme": "acme", b"Bearer token-of-globex": "globex"}
SIGNING: Final = "a-signing-key-that-nobody-outside-knows"
WHERE: Final = b"x-hostile"
NEW_KEYS: Final = 24
"""New keys a tenant may store per minute."""
MEMORY: Final = 48
"""Entries that the memory may hold."""
_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
READ: Final = ("accept", "accept-encoding", "accept-language", "cookie", "dnt", "origin", "referer", "save-data",
               "sec-ch-ua", "sec-ch-ua-mobile", "user-agent", "x-country", "x-custom-ip-authorization",
               "x-device", "x-forwarded-for", "x-real-ip", "true-client-ip", "cf-connecting-ip", "x-client-ip",
               "x-requested-with", "x-locale", "via", "x-experiment", "x-feature", "x-theme")  # fmt: skip
"""What the reflecting handler reads beside what every key holds: its policy says so."""
POLICIES: Final = (
    Policy("/echo/{rest:path}", op="echo", vary=READ),
    Policy("/allowed/{rest:path}", op="allowed", query=Query(allow=["q", "page"])),
    Policy("/ignoring/{rest:path}", op="ignoring", query=Query(ignore=["utm_*"])),
    Policy("/posted/{rest:path}", op="posted", methods=("GET", "POST"), vary=READ),
    Policy("/secret/{rest:path}", op="secret"),
    Policy("/me", op="me"),
    Policy("/files/{name}", op="file"),
    Policy("/lenient/{rest:path}", op="lenient"),
    Policy("/assets/{name}.css", op="style"),
    Policy("/respond/{rest:path}", op="respond", max_body="64KiB", tags=["answer:{t}"]),
)


async def reply(send: Send, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    """Answer in one message."""
    fields = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


def credentials(scope: Scope) -> str:
    """Say who asks, as far as any framework could take it for that."""
    names = (b"x-api-key", b"x_api_key", b"x-tenant", b"x_tenant", b"x-role", b"x_role", b"authorization", b"cookie")
    return repr([(name, value) for name, value in scope["headers"] if name in names])


async def origin(scope: Scope, receive: Receive, send: Send) -> None:
    """Be the app: careless, and curious about everything in a request."""
    path: str = scope["path"]
    if path.startswith(("/echo/", "/posted/")):
        await echo(scope, receive, send)
    elif path.startswith("/allowed/"):
        await reply(send, 200, repr(parameters(scope, {"q", "page"})).encode())
    elif path.startswith("/ignoring/"):
        await reply(send, 200, repr(parameters(scope, None)).encode())
    elif path.startswith("/respond/"):
        await respond(scope, receive, send)
    elif path.startswith("/secret/"):
        await reply(send, 200, f"secret of {credentials(scope)}".encode())
    elif leads_to_me(path):
        who = next((name for name, secret in SECRET_KEYS.items() if key_of(scope) == secret.encode()), None)
        await reply(send, 200 if who else 401, f"secret of {who}".encode() if who else b"who are you?")
    else:
        await reply(send, 404, b"nothing here: " + ascii(path).encode())


def key_of(scope: Scope) -> bytes | None:
    """Return the API key as a careless framework would: the last one."""
    return dict(scope["headers"]).get(b"x-api-key")


def leads_to_me(path: str) -> bool:
    """Route as the most helpful framework would: decoded again, cut at every delimiter, normalised."""
    for start in ("/lenient", "/files", "/assets"):
        path = path.removeprefix(start)
    path = unquote(path).replace("\\", "/")
    for delimiter in ";\0\n\r\t#?!,:@$ ":
        path = path.partition(delimiter)[0]
    path = posixpath.normpath("/" + path.lstrip("/")).casefold()
    return path == "/me" or path.startswith(("/me/", "/me."))


def parameters(scope: Scope, names: set[str] | None) -> list[Any]:
    """Parse the query as three kinds of framework do: by `&`, by `&` and `;`, and as an array."""
    query = scope["query_string"].decode("latin-1")
    found = [
        *parse_qsl(query, keep_blank_values=True, separator="&"),
        *parse_qsl(query.replace(";", "&"), keep_blank_values=True, separator="&"),
    ]
    # a handler reads what its policy says, whatever it calls an array
    chosen = [(name, value) for name, value in found if names is None or name in names]
    return [pair for pair in chosen if not pair[0].startswith("utm_")] if names is None else chosen


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Reflect everything, as far as the policy says that it is read."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body", False):
            break
    headers = dict(scope["headers"])
    method = next(
        (headers[name].decode("latin-1") for name in sorted(headers) if name.replace(b"_", b"-") in _OVERRIDES),
        dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("_method", scope["method"]),
    )
    fields = [(name, value) for name, value in scope["headers"] if name not in _UNSEEN]
    seen = {
        "method": scope["method"],
        "acts on": method,
        "scheme": scope.get("scheme"),
        "path": scope["path"],
        "raw path": scope.get("raw_path"),
        "root path": scope.get("root_path"),
        "query": scope["query_string"],
        "fields": sorted(fields),
        "body": body,
    }
    await reply(send, 200, "\n".join(f"{name}: {value!a}" for name, value in seen.items()).encode())


_OVERRIDES: Final = frozenset((b"x-http-method", b"x-http-method-override", b"x-method-override"))
_UNSEEN: Final = frozenset((b"connection", b"content-length", b"cache-control", b"pragma"))


async def respond(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer as the request says, to the caller that a field which nobody keys names."""
    wanted: dict[str, Any] = json.loads(base64.urlsafe_b64decode(scope["query_string"].partition(b"r=")[2] or b"e30="))
    caller = dict(scope["headers"]).get(b"x-caller", b"nobody")
    if wanted.get("raise"):
        raise RuntimeError(f"no answer for {caller!r} at {scope['query_string']!r}")
    body = b"for " + caller + b"\n" + wanted.get("body", "").encode("latin-1")
    body += b"x" * wanted.get("size", 0)
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in wanted.get("fields", [])]
    if wanted.get("announce"):
        fields.append((b"content-length", b"%d" % (wanted["announce"] if wanted["announce"] > 1 else len(body))))
    if wanted.get("endless"):
        streaming = StreamingResponse(endless(wanted), wanted.get("status", 200))
        streaming.raw_headers = fields
        await streaming(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": wanted.get("status", 200), "headers": fields})
    for _ in range(wanted.get("pieces", 0)):
        await send({"type": "http.response.body", "body": b"y" * wanted.get("piece", 1024), "more_body": True})
        if wanted.get("slowly"):
            await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def endless(wanted: Mapping[str, Any]) -> AsyncIterator[bytes]:
    """Give pieces as long as somebody takes them."""
    for _ in range(wanted.get("pieces", 0)):
        yield b"y" * wanted.get("piece", 1024)
    while True:
        _given["bytes"] += 65_536
        yield b"z" * 65_536
        await asyncio.sleep(0)


_given: Final = Counter[str]()


def claimed(app: ASGIApp) -> ASGIApp:
    """Authenticate in front: a known token puts its claims into the scope, any other does not."""

    async def site(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            tokens = [value for name, value in scope["headers"] if name == b"authorization"]
            who = TOKENS.get(tokens[0]) if len(tokens) == 1 else None
            scope = {**scope, "auth": {"tenant": who, "user": f"user-of-{who}"} if who else {}}
        await app(scope, receive, send)

    return site


class Area:
    """One way to mount the cache before the app."""

    def __init__(
        self,
        cache: NexCache,
        tenant: Resolver,
        principal: Resolver | None,
        authorize: Authorize,
        *,
        claims: bool = False,
    ) -> None:
        hook = IngestHook(cache, rules=[IngestRule(ops=["*"])], min_interval=0)
        behind = Router(
            routes=[
                Mount("/admin", AdminApp(cache, authorize=authorize)),
                Route("/v1/traces", OtlpEndpoint(hook, tenant=tenant), methods=["POST"]),
            ],
            default=origin,
            redirect_slashes=False,
        )
        site: ASGIApp = CacheMiddleware(behind, cache=cache, tenant=tenant, principal=principal, policies=POLICIES)
        self.cached = claimed(site) if claims else site
        self.uncached = claimed(behind) if claims else behind


class Site:
    """All areas over all tiers; the harness's field is taken off each request."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        url = environment.get("HOSTILE_REDIS_URL")
        if log := environment.get("HOSTILE_LOG"):
            handler = logging.FileHandler(log)
            logging.getLogger().addHandler(handler)
            logging.getLogger("nexcache").setLevel(logging.DEBUG)
        self.caches: dict[str, NexCache] = {}
        self.areas: dict[str, Area | ASGIApp] = {}
        keys = tenants.api_key(keys=KEYS)
        role = tenants.header("x-role", trusted=True)
        proxy = tenants.header("x-tenant", trusted=["127.0.0.0/8", "::1/128"])
        claims = tenants.first_of(tenants.scope("auth.tenant"), tenants.header("x-tenant", trusted="10.0.0.0/8"))
        for tier in ("l1", "l2"):
            cache = self.caches[tier] = NexCache(_settings(url, tier))
            self.areas |= {
                f"{tier}/public": Area(cache, tenants.fixed("acme"), None, lambda _: None),
                f"{tier}/keys": Area(cache, keys, keys, keys),
                f"{tier}/proxy": Area(cache, proxy, role, proxy),
                f"{tier}/claims": Area(cache, claims, principals.scope("auth.user"), claims, claims=True),
                f"{tier}/limited": RateLimitMiddleware(
                    origin, cache=cache, tenant=keys, limit="3/hour", paths=["/secret/{rest:path}"]
                ),
            }
            short = self.caches[f"{tier}/short"] = NexCache(_settings(url, tier, version="short"))
            _cut(short)
            self.areas[f"{tier}/short"] = Area(short, keys, keys, keys)
            flood = self.caches[f"{tier}/flood"] = NexCache(
                _settings(url, tier, version="flood", l1_max_entries=MEMORY, tenant_new_keys_per_minute=NEW_KEYS)
            )
            self.areas[f"{tier}/flood"] = Area(flood, proxy, role, proxy)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a request where it says."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        wanted = [value.decode("latin-1") for name, value in scope["headers"] if name == WHERE]
        scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != WHERE]}
        tier, _, area = (wanted[0] if wanted else "none/public").partition("/")
        if tier == "state":
            await reply(send, 200, json.dumps(self._state(anew=area == "anew")).encode())
            return
        found = self.areas[f"l1/{area}" if tier == "none" else f"{tier}/{area}"]
        app = found if not isinstance(found, Area) else found.uncached if tier == "none" else found.cached
        await app(scope, receive, send)

    def _state(self, *, anew: bool) -> dict[str, int]:
        """Say what is computed, and the most memory that was used since somebody asked for it `anew`."""
        if anew:
            _CLEAR.write_text("5")
        peak = int(_STATUS.read_text().partition("VmHWM:")[2].split()[0]) * 1024
        quiet = self.caches["l1/flood"].entries.first
        return {
            "peak": peak,
            "quiet": quiet.usage(b"nexarch:quiet:").entries if quiet is not None else 0,
            "given": _given["bytes"],
            "running": sum(cache.flights.running for cache in self.caches.values()),
        }

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for cache in self.caches.values():
            await cache.aclose()
        await send({"type": "lifespan.shutdown.complete"})


def _settings(url: str | None, tier: str, version: str = "", **more: int) -> Settings:
    return Settings(
        redis_url=SecretStr(url) if url else None,
        redis_host=None,
        l1_enabled=tier == "l1",
        l1_lease_ms=1000,
        op_timeout_ms=2000,
        **{"tenant_new_keys_per_minute": 0, **more},
        namespace_version=version + tier,
        namespace_secret=SecretStr("a-namespace-secret"),
        signing_keys={"k1": SecretStr(SIGNING)},
    )


def _cut(cache: NexCache) -> None:
    """Make every hash eight bits long: two requests in 256 collide."""
    whole = cache.keys.key

    def short(*given: Any) -> CacheKey:
        key = whole(*given)
        prefix, _, digest = key.name.rpartition(b":")
        return CacheKey(key.tenant, key.operation, prefix + b":" + digest[:2], key.request, key.generations)

    cache.keys.key = short  # type: ignore[method-assign,assignment]


def __getattr__(name: str) -> Any:
    """Build the app when a server asks for it, not when a test imports this module."""
    if name == "app":
        made = Site(os.environ)
        globals()["app"] = made
        return made
    raise AttributeError(name)
