"""What an app behind the cache reads of its request is what the client sent, once."""

import asyncio

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Message, Receive, Scope, Send


async def test_an_app_that_listens_for_a_disconnect_never_reads_the_end_of_the_body_again() -> None:
    """Django does, and takes a second `http.request` for a server that breaks the protocol."""
    read: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        read.append((await receive())["type"])
        listening = asyncio.ensure_future(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})
        read.append((await listening)["type"])

    sent = iter(("http.request", "http.disconnect"))

    async def receive() -> Message:
        return {"type": next(sent)}

    async def send(message: Message) -> None:
        pass

    cache = NexCache(Settings(redis_url=None, redis_host=None))
    cached = CacheMiddleware(app, cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/", op="a")])
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    async with asyncio.timeout(10):
        await cached(scope, receive, send)
    await cache.aclose()
    assert read == ["http.request", "http.disconnect"]
