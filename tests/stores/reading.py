"""Asking a store again whether what was read is still so."""

import asyncio
import math

from nexcache.stores.lane import Again, Before
from nexcache.stores.redis import RedisStore


def read_again(store: RedisStore, before: Before) -> tuple[asyncio.Future[bool], Again] | None:
    """Ask without a limit of time."""
    loop = asyncio.get_running_loop()
    return store.read_again(before, loop, loop.time(), math.inf)
