"""A primary and a replica that is about to take over, behind in what it has heard."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from nexcache.testing import FaultProxy
from tests.servers import Valkey
from tests.topologies.servers import REPLICATION, replicates, until

Pair = tuple[Valkey, Valkey, FaultProxy, FaultProxy]
"""A primary, a replica that follows it over a link, that link, and one that leads the app to whoever is in charge."""


@asynccontextmanager
async def pair_of(program: Path, directory: Path) -> AsyncIterator[Pair]:
    """Start both, and wait until the replica follows."""
    for name in ("one", "two"):
        (directory / name).mkdir()
    with (
        Valkey(directory / "one", program=program, **REPLICATION) as one,
        Valkey(directory / "two", program=program, **REPLICATION) as two,
    ):
        async with FaultProxy(one.port) as replication, FaultProxy(one.port) as front:
            await asyncio.to_thread(two.ask, "REPLICAOF", "127.0.0.1", replication.port)
            await asyncio.to_thread(until, lambda: replicates(two), "the replica follows")
            yield one, two, replication, front


async def has(server: Valkey, keys: Sequence[bytes]) -> int:
    """Count which of these keys a server has, without holding up the links."""
    return int(await asyncio.to_thread(server.ask, "EXISTS", *keys))


async def lagging(pair: Pair, keys: Sequence[bytes], invalidate: Callable[[], Awaitable[bool]]) -> None:
    """Once both servers have these keys, have the first alone acknowledge an invalidation that removes some."""
    one, two, replication, _ = pair
    while await has(two, keys) != len(keys):
        await asyncio.sleep(0.01)
    replication.down.swallow = True
    assert await invalidate()
    while not replication.seen["swallowed"]:
        await asyncio.sleep(0.01)
    assert await has(one, keys) < len(keys)
    assert await has(two, keys) == len(keys), "the fault was not seen"


async def promote(server: Valkey, front: FaultProxy) -> None:
    """Put a replica in charge, and lead the app to it."""
    await asyncio.to_thread(server.ask, "REPLICAOF", "NO", "ONE")
    front.lead_to(server.port)
