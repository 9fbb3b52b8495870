"""The short form of the benchmarks, on the Redis of the settings: what hits and misses cost, and what to change."""

import asyncio
import importlib.util
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

from nexcache.asgi import Message, Receive, Scope, Send
from nexcache.cache import NexCache
from nexcache.cli.local import patient, quiet
from nexcache.cli.source import Failed
from nexcache.middleware import CacheMiddleware
from nexcache.policy import Policy
from nexcache.settings import Settings
from nexcache.tenants import fixed

_BODY: Final = b"x" * 2_000
_URLS: Final = 64
_ROUNDS: Final = 5
_MISSES: Final = 16
_FAR: Final = 1_000.0
_PATIENCE: Final = 10


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured, in microseconds."""

    round_trip: float
    """A PING over the cache's own connection."""
    memory: float
    """A hit in this process."""
    store: float
    """A hit in Redis, nothing else under way."""
    together: float
    """The same with 64 under way, each."""
    miss: float
    """What the cache adds to a handler that takes no time."""


def measured() -> tuple[Speed, Settings]:
    """Measure the store of the settings, with a tenant that nobody has; raises Failed."""
    settings = patient()
    if settings.get_redis_url() is None:
        raise Failed("the settings name no store: set REDIS_URL, or name the pages of a running app")
    with quiet():
        return asyncio.run(_measure(settings)), Settings()


def advice(speed: Speed, settings: Settings, *, uvloop: bool) -> list[str]:
    """Say what to change, the most worthwhile first; empty where nothing is to be gained."""
    said = []
    limit = settings.op_timeout_ms * 1000
    if speed.round_trip * _PATIENCE > limit:
        at_least = speed.round_trip * _PATIENCE / 1000
        said.append(
            f"CACHE_OP_TIMEOUT_MS={settings.op_timeout_ms:g} is short for a round trip of {speed.round_trip:,.0f} µs: "
            f"set it to {max(1.0, at_least):,.0f} or more, or slow answers count as failures"
        )
    if not settings.l1_enabled:
        said.append(
            f"the memory is off: with CACHE_L1_ENABLED=true a hit takes {speed.memory:,.1f} µs instead of "
            f"{speed.store:,.0f}, and stays coherent"
        )
    if speed.round_trip > _FAR:
        said.append(
            f"Redis is {speed.round_trip / 1000:,.1f} ms away, most of it the way there: run it in the zone of the "
            "app; hits in memory do not wait for it, so give those room (CACHE_L1_MAX_BYTES)"
        )
    if not uvloop:
        said.append("uvloop is not installed: servers that use it answer about twice as many hits (pip install uvloop)")
    if speed.together > speed.store / 2 and speed.store < _FAR:
        said.append(
            f"64 hits at a time cost {speed.together:,.0f} µs each, alone {speed.store:,.0f}: this processor is the "
            "limit, not Redis; more processes help, if there are processors for them"
        )
    return said


def as_dict(speed: Speed, said: Sequence[str]) -> dict[str, Any]:
    """Give the figures and the advice."""
    return {"microseconds": {name: round(value, 2) for name, value in asdict(speed).items()}, "advice": list(said)}


def has_uvloop() -> bool:
    """Whether servers here can use it."""
    return importlib.util.find_spec("uvloop") is not None


async def _measure(settings: Settings) -> Speed:
    tenant = f"bench-{secrets.token_hex(8)}"
    options = {"op_timeout_ms": settings.op_timeout_ms}
    async with (
        NexCache(Settings(**options, l1_enabled=True)) as near,
        NexCache(Settings(**options, l1_enabled=False)) as far,
    ):
        health = await far.health()
        if not health.available:
            raise Failed(f"{far.store_name} does not answer: {health.detail}; nexcache doctor says more")
        try:
            await asyncio.sleep(0.3)  # the first is registered by now, and may trust what it reads
            here, there = _Site(near, tenant), _Site(far, tenant)
            for site in (here, there):
                for _ in range(3):
                    await site.ask(range(_URLS))
            trips = [(await far.health()).response_time_ms * 1000 for _ in range(30)]
            memory, store, together, miss = [], [], [], []
            for turn in range(_ROUNDS):
                memory.append(await here.ask(range(_URLS), times=20))
                store.append(await there.ask(range(_URLS)))
                together.append(await there.ask(range(_URLS), times=8, in_flight=_URLS))
                first = 1_000 + turn * _MISSES
                miss.append(await there.ask(range(first, first + _MISSES)))
        finally:
            await far.forget(tenant)
    return Speed(median(trips), median(memory), median(store), median(together), median(miss))


class _Site:
    """A handler that takes no time, behind a cache."""

    def __init__(self, cache: NexCache, tenant: str) -> None:
        policy = Policy("/bench", op="bench", ttl="1m")
        self._app = CacheMiddleware(self._answer, cache=cache, tenant=fixed(tenant), policies=[policy])

    @staticmethod
    async def _answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": _BODY})

    async def ask(self, urls: range, *, times: int = 1, in_flight: int = 1) -> float:
        """Ask for every URL so often; microseconds of one request."""
        asked = iter([_request(number) for _ in range(times) for number in urls])

        async def worker() -> None:
            for scope in asked:
                await self._app(scope, _receive, _send)

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(in_flight)))
        return (time.perf_counter() - began) / (times * len(urls)) * 1e6


def _request(number: int) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/bench",
        "raw_path": b"/bench",
        "query_string": b"number=%d" % number,
        "root_path": "",
        "headers": [(b"host", b"bench"), (b"accept", b"*/*")],
    }


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(_message: Message) -> None:
    pass
