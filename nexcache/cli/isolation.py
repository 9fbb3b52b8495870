"""Asks a cache as two tenants and two principals would, and looks whether each gets its own answers, and only those."""

import time
from collections.abc import Sequence
from itertools import count
from secrets import token_hex
from typing import Any, Final

from nexcache.asgi import ASGIApp, Message, Receive, Scope, Send
from nexcache.cache import NexCache
from nexcache.diagnosis import Area, Finding, Severity
from nexcache.errors import StoreError
from nexcache.middleware import CacheMiddleware
from nexcache.policy import Policy
from nexcache.settings import Settings
from nexcache.telemetry.events import BackendFailed, Event
from nexcache.trends import SLOT

_OPERATION: Final = "nexcache-doctor"
_TTL: Final = 30


async def examine(settings: Settings) -> Sequence[Finding]:
    """Use the store for two tenants that nobody has, and remove what that left behind."""
    # what this process holds itself would hide what the store does
    cache = NexCache(settings.model_copy(update={"l1_enabled": False, "fallback_ttl_seconds": 0.0, "enabled": True}))
    failed: list[BackendFailed] = []

    def hear(event: Event) -> None:
        if isinstance(event, BackendFailed):
            failed.append(event)

    cache.emitter.subscribe(hear, BackendFailed)
    one, other = (f"nexcache-doctor-{token_hex(6)}" for _ in range(2))
    try:
        return await _examine(cache, one, other, failed)
    finally:
        await cache.aclose()
        await _clean(cache, (one, other))


async def _examine(cache: NexCache, one: str, other: str, failed: list[BackendFailed]) -> Sequence[Finding]:
    numbers = count()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        body = str(next(numbers)).encode()
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
        await send(start)
        await send({"type": "http.response.body", "body": body})

    app = CacheMiddleware(
        answer,
        cache=cache,
        tenant=lambda scope: scope["doctor"][0],
        principal=lambda scope: scope["doctor"][1],
        policies=[Policy("/", op=_OPERATION, ttl=_TTL, early_refresh=False)],
    )
    first = await _ask(app, one, "a")
    again = await _ask(app, one, "a")
    if again != first:
        kinds = ", ".join(sorted({f"{each.operation}: {each.kind}" for each in failed})) or "it was not found again"
        return [
            _problem(
                "not-stored",
                f"what is stored does not come back ({kinds})",
                "the findings above say why; without one, look at the server's log",
            )
        ]
    foreign, second = await _ask(app, other, "a"), await _ask(app, one, "b")
    found = []
    if foreign == first:
        found.append(_problem("tenants-mixed", "a tenant was answered with another's entry", _STOP))
    if second == first:
        found.append(_problem("principals-mixed", "a principal was answered with another's entry", _STOP))
    failed.clear()
    done = await cache.invalidate(one, _OPERATION)
    if not done.acknowledged:
        found.append(
            _problem("not-invalidated", "the store does not carry out an invalidation", "see the findings above")
        )
    elif await _ask(app, one, "a") == first:
        found.append(_problem("still-answered", "an invalidated entry is still answered", _STOP))
    elif await _ask(app, other, "a") != foreign:
        found.append(_problem("invalidated-too-much", "an invalidation reached another tenant", _STOP))
    if done.acknowledged:
        await _tell(cache, one)
    if any(each.operation == "publish" for each in failed):
        found.append(
            Finding(
                "publish",
                Area.ISOLATION,
                Severity.WARNING,
                "PUBLISH is not permitted: other nodes notice invalidations when their lease ends, not at once",
                "permit it on the channel: ACL SETUSER … &nexarch:@events +publish",
            )
        )
    return found


_STOP: Final = "set CACHE_ENABLED=false and report it: this must not happen, whatever the server is"


def _problem(code: str, what: str, remedy: str) -> Finding:
    return Finding(code, Area.ISOLATION, Severity.PROBLEM, what, remedy)


async def _ask(app: ASGIApp, tenant: str, principal: str) -> bytes:
    body = bytearray()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        body.extend(message.get("body", b""))

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"doctor")],
        "client": None,
        "server": None,
        "doctor": (tenant, principal),
    }
    await app(scope, receive, send)
    return bytes(body)


async def _tell(cache: NexCache, tenant: str) -> None:
    """Tell the other nodes of an invalidation of nothing; a cache without memory in front of its store tells nobody."""
    try:
        await cache._parts.store.unlink((cache.keys.prefix(tenant) + b"@nothing",), message=b"")  # noqa: SLF001 - as below
    except StoreError:
        pass


async def _clean(cache: NexCache, tenants: Sequence[str]) -> None:
    """Remove what has no short expiry of its own: generations, the register, statistics."""
    store = cache._parts.store  # noqa: SLF001 - the cache was made here
    for tenant in tenants:
        prefix = cache.keys.prefix(tenant)
        names = [prefix + name for name in (b"@tenant", b"@any", b"@ops")]
        whose = prefix.removeprefix(b"nexarch:")
        slot = int(time.time()) // SLOT * SLOT
        names += [cache.keys.of_operation(tenant, _OPERATION), b"nexarch.stats:" + whose.removesuffix(b":")]
        names += [b"nexarch.trend:" + whose + b"%d" % at for at in (slot - SLOT, slot)]
        try:
            await store.unlink(names)
        except StoreError:
            pass  # they expire
    await cache.aclose()
