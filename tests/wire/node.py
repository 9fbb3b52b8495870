"""A node in a process of its own whose app computes until it is killed. Run with the server's URL."""

import asyncio
import sys

from pydantic import SecretStr

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Receive, Scope, Send
from tests.wire.server import Exchange


async def main(url: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        sys.stdout.write("computing\n")
        sys.stdout.flush()
        await asyncio.sleep(60)

    cache = NexCache(Settings(redis_url=SecretStr(url), op_timeout_ms=2000))
    site = CacheMiddleware(app, cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/", op="home")])
    await Exchange(site).run()


asyncio.run(main(sys.argv[1]))
