"""An app for a process of its own: pages whose data are files that the test changes.

`REDIS_URL=… PAGES=<directory> uvicorn tests.faults.paged:app`
"""

import asyncio
import os
import time
from pathlib import Path

from nexcache import CacheMiddleware, NexCache, Policy, tenants
from nexcache.asgi import Receive, Scope, Send

PAGES = Path(os.environ["PAGES"])


async def _pages(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `/<page>` with its version, after the seconds in the query; `/stall` holds up everything for as long."""
    if scope["type"] != "http":
        raise RuntimeError("knows no lifespan")
    path, takes = scope["path"].removeprefix("/"), float(scope["query_string"] or b"0")
    if path == "stall":
        (PAGES / "stalled").write_text(str(os.getpid()), encoding="utf-8")
        time.sleep(takes)  # noqa: ASYNC251 - this is the fault
        body = b"stalled"
    else:
        body = path.encode() + b" " + (PAGES / path).read_bytes()
        (PAGES / f"{path}.computed").write_text(str(os.getpid()), encoding="utf-8")
        await asyncio.sleep(takes)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


cache = NexCache.from_env()
app = CacheMiddleware(
    _pages,
    cache=cache,
    tenant=tenants.fixed("acme"),
    policies=[Policy("/stall/never", op="never"), Policy("/p{page}", op="page", ttl="1h", fill_hard_limit=60)],
)
