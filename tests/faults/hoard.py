"""A program that asks for far more than its memory may hold, and prints what it held and how much it grew.

`python -m tests.faults.hoard <url> <bytes of the memory>`
"""

import asyncio
import ctypes
import gc
import json
import random
import resource
import sys
from pathlib import Path

from pydantic import SecretStr

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Receive, Scope, Send
from tests.wire.server import ask, until

BODIES = (2_000, 8_000, 60_000, 300_000)
HUGE = 3_000_000


def kept() -> int:
    """Return the bytes of memory that this process needs: without those that the C library could give back."""
    ctypes.CDLL(None).malloc_trim(0)
    return resident()


def resident() -> int:
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize()


async def main(url: str, bound: int) -> None:
    """Fill the memory three times over, with huge answers in between."""
    draw = random.Random(0)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        size = HUGE if scope["path"].startswith("/huge") else draw.choice(BODIES)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": draw.randbytes(1) * size})

    settings = Settings(
        redis_url=SecretStr(url),
        redis_host=None,
        l1_max_bytes=bound,
        op_timeout_ms=2000,
        tenant_new_keys_per_minute=0,
        ttl_seconds=600,
    )
    cache = NexCache(settings)
    site = CacheMiddleware(
        app, cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/{page}", op="page", max_body=HUGE * 2)]
    )
    async with cache:
        for number in range(60):  # all that is imported and made once
            await ask(site, f"/{'huge' if number % 20 == 0 else 'first'}-first-{number}")
        cache.entries.memory.clear()
        gc.collect()
        before = kept()
        asked = most_held = most_grown = peak = 0
        number = 0
        while asked < 3 * bound:
            number += 1
            path = f"/{'huge' if number % 50 == 0 else 'page'}-{number}"
            asked += len((await ask(site, path)).body)
            held = cache.entries.memory.size[1]
            most_held = max(most_held, held)
            if number % 50 == 25:
                await until(lambda: cache.flights.running == 0)  # what is still being stored is no part of the memory
                peak = max(peak, resident() - before)
                most_grown = max(most_grown, kept() - before)
        hot = f"/page-{number if number % 50 else number - 1}"
        again = await ask(site, hot)
        sys.stdout.write(
            json.dumps(
                {
                    "asked": asked,
                    "held": most_held,
                    "grown": most_grown,
                    "entries": cache.entries.memory.size[0],
                    "hit": again.hit,
                    "peak": peak,
                }
            )
        )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
