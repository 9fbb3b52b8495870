"""Whether a tenant can tell from the time of an answer what another tenant has asked for. It must not.

    python benchmarks/side_channel.py [--requests N] [--redis-url URL] [--json]

Tenant B asks for addresses that nobody of B has asked for; for a random half of them tenant A holds the answer. If the
times of the two halves are drawn from one distribution, the Mann-Whitney test gives any p between 0 and 1 alike; a side
channel gives a small one. The same is done with an answer that B itself holds, to show that the test can notice it.
"""

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Message, Receive, Scope, Send

LEAST: Final = 0.01
"""The p below which there is a side channel."""


def mann_whitney(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the two-sided p, by the normal approximation; the numbers are times, ties do not matter."""
    ranks = {id(value): rank for rank, value in enumerate(sorted([*one, *other]), 1)}
    n, m = len(one), len(other)
    u = sum(ranks[id(value)] for value in one) - n * (n + 1) / 2
    z = (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
    return math.erfc(abs(z) / math.sqrt(2))


class Site:
    """An app behind a cache, and who has computed what."""

    def __init__(self, url: str | None) -> None:
        self.cache = NexCache(Settings(redis_url=url, redis_host=None, tenant_new_keys_per_minute=0))
        self.computed: set[tuple[bytes, str]] = set()
        tenant = tenants.header("x-tenant", trusted=True)
        self.app = CacheMiddleware(self._work, cache=self.cache, tenant=tenant, policies=[Policy("/{page}", op="page")])

    async def _work(self, scope: Scope, _receive: Receive, send: Send) -> None:
        self.computed.add((dict(scope["headers"])[b"x-tenant"], scope["path"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 2_000})

    async def ask(self, tenant: bytes, path: str) -> float:
        """Send one request; returns the seconds until its answer was whole, and waits until it is stored."""

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(_: Message) -> None:
            pass

        scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "scheme": "http", "headers": [(b"host", b"x"), (b"x-tenant", tenant)],
        }  # fmt: skip
        began = time.perf_counter()
        await self.app(scope, receive, send)
        took = time.perf_counter() - began
        while self.cache.flights.running:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        return took


async def measure(url: str | None, requests: int, holder: bytes) -> dict[str, Any]:
    """Time B's requests for what `holder` has asked for before, and for what nobody has."""
    site, chance = Site(url), random.Random()
    times: tuple[list[float], list[float]] = ([], [])
    own = 0
    for number in range(-requests // 10, requests):  # the first tenth warms up
        held, path = chance.random() < 0.5, f"/{chance.getrandbits(60)}"
        await site.ask(holder, path if held else f"{path}-other")
        took = await site.ask(b"b", path)
        own += (b"b", path) in site.computed
        if number >= 0:
            times[held].append(took)
    await site.cache.aclose()
    return {
        "store": "Redis" if url else "memory",
        "held by": "another tenant" if holder != b"b" else "the same tenant",
        "requests": requests,
        "held us": round(1e6 * statistics.median(times[True]), 1),
        "not held us": round(1e6 * statistics.median(times[False]), 1),
        "p": round(mann_whitney(*times), 4),
        "computed for b": own - requests // 10,
    }


def main() -> int:
    """Print what the times tell; 1 if they tell of another tenant, or if the test notices nothing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=4_000, help="of B: each half has half of them")
    parser.add_argument("--redis-url", default=None, help="besides the memory")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    urls = [None, given.redis_url] if given.redis_url else [None]
    rows = [asyncio.run(measure(url, given.requests, holder)) for url in urls for holder in (b"a", b"b")]
    if given.json:
        json.dump(rows, sys.stdout)
    else:
        for row in rows:
            print(
                f"{row['store']}, held by {row['held by']}: {row['held us']} us, not held {row['not held us']} us, "
                f"p = {row['p']} over {row['requests']} requests"
            )
    return int(any((row["p"] < LEAST) == (row["held by"] == "another tenant") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
