"""What a noisy tenant costs a quiet one: hit ratio, and the time of a request.

    python benchmarks/fairness.py [--requests N] [--json]

One process with the whole cache in memory, and an app with a pool of eight places, as a database has. The quiet tenant
asks for 50 pages, each many times; the noisy one meanwhile asks for a new key with every request, 128 requests at a
time. Both times are of the same program run, alternately, without and with the noise. `--unfair` switches the
safeguards off, to see what they are for.
"""

import argparse
import asyncio
import json
import logging
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Message, Receive, Scope, Send

PAGES: Final = 50
POOL: Final = 8
ENTRIES: Final = 150
NOISE: Final = 128
COST: Final = 0.002
"""Seconds that the app computes."""


@dataclass(slots=True)
class Side:
    """What the quiet tenant saw."""

    seconds: list[float] = field(default_factory=list)
    hits: int = 0

    @property
    def ratio(self) -> float:
        """Hits per request, in percent."""
        return 100 * self.hits / len(self.seconds)

    @property
    def p99(self) -> float:
        """Milliseconds."""
        return 1000 * statistics.quantiles(self.seconds, n=100)[98]


class Site:
    """An app of few places behind a cache."""

    def __init__(self, *, fair: bool) -> None:
        self.cache = NexCache(
            Settings(
                redis_url=None,
                redis_host=None,
                l1_max_entries=ENTRIES,
                tenant_max_fills=POOL // 2 if fair else 0,
                tenant_new_keys_per_minute=ENTRIES // 2 if fair else 0,
            )
        )
        if not fair:
            self.cache.entries.first._entries._owner = lambda _: b""  # type: ignore[union-attr]  # noqa: SLF001
        self._pool = asyncio.Semaphore(POOL)
        tenant = tenants.header("x-tenant", trusted=True)
        self.app = CacheMiddleware(self._work, cache=self.cache, tenant=tenant, policies=[Policy("/{page}", op="page")])

    async def _work(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        async with self._pool:
            await asyncio.sleep(COST)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 2_000})

    async def ask(self, tenant: bytes, path: str) -> bool:
        """Send one request; whether it was a hit."""
        status = b""

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = dict(message["headers"]).get(b"cache-status", b"")

        scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "scheme": "http", "headers": [(b"host", b"x"), (b"x-tenant", tenant)],
        }  # fmt: skip
        await self.app(scope, receive, send)
        return b"; hit" in status


async def quiet(site: Site, side: Side, requests: int, chance: random.Random) -> None:
    """Ask for pages, one in fifty of them new: both hits and misses are measured."""
    for number in range(requests):
        page = f"/{chance.randrange(PAGES)}" if number % 50 else f"/new-{chance.getrandbits(60)}"
        began = time.perf_counter()
        side.hits += await site.ask(b"quiet", page)
        side.seconds.append(time.perf_counter() - began)
        if number % 4 == 0:
            await asyncio.sleep(0.001)


async def noise(site: Site, over: asyncio.Event, asked: list[int]) -> None:
    """Ask for a new key each time, as fast as there are answers."""
    while not over.is_set():
        asked[0] += 1
        await site.ask(b"noisy", f"/{asked[0]}-{random.getrandbits(60)}")
        await asyncio.sleep(0)


async def measure(requests: int, *, fair: bool) -> dict[str, Any]:
    """Run both sides alternately on one site."""
    site, sides, chance, asked = Site(fair=fair), (Side(), Side()), random.Random(1), [0]
    for turn in range(10):
        for page in range(PAGES):  # what the turn before has cost is not counted twice
            await site.ask(b"quiet", f"/{page}")
        noisy, over = turn % 2 == 1, asyncio.Event()
        tasks = [asyncio.create_task(noise(site, over, asked)) for _ in range(NOISE if noisy else 0)]
        enough = asked[0] + 2 * ENTRIES
        while noisy and asked[0] < enough:  # noqa: ASYNC110 - as many keys as there is room for, twice
            await asyncio.sleep(0.001)
        await quiet(site, sides[noisy], requests // 10, chance)
        over.set()
        await asyncio.gather(*tasks)
    alone, beside = sides
    held = site.cache.entries.first
    assert held is not None
    row = {
        "build": "fair" if fair else "without the safeguards",
        "alone_hit_ratio": round(alone.ratio, 2),
        "beside_hit_ratio": round(beside.ratio, 2),
        "points_lost": round(alone.ratio - beside.ratio, 2),
        "alone_p99_ms": round(alone.p99, 3),
        "beside_p99_ms": round(beside.p99, 3),
        "times_p99": round(beside.p99 / alone.p99, 2),
        "noisy_requests": asked[0],
        "entries_held": held.size[0],
        "noisy_entries": held.usage(b"nexarch:noisy:").entries,
    }
    await site.cache.aclose()
    return row


def main() -> None:
    """Print what the noise costs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000, help="of the quiet tenant")
    parser.add_argument("--unfair", action="store_true", help="without the safeguards, too")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    logging.getLogger("nexcache").disabled = True  # alerts of a memory that is full, as it is meant to be
    rows = [asyncio.run(measure(given.requests, fair=True))]
    if given.unfair:  # it takes long, which is the point
        rows.append(asyncio.run(measure(max(100, given.requests // 10), fair=False)))
    if given.json:
        json.dump(rows, sys.stdout)
        return
    for row in rows:
        print(
            f"{row['build']}: a noisy tenant with {row['noisy_requests']} new keys costs a quiet one "
            f"{row['points_lost']} points of its hit ratio ({row['alone_hit_ratio']} % to {row['beside_hit_ratio']} %) "
            f"and {row['times_p99']} times its p99 ({row['alone_p99_ms']} to {row['beside_p99_ms']} ms); "
            f"it holds {row['noisy_entries']} of {row['entries_held']} entries"
        )


if __name__ == "__main__":
    main()
