"""Asking a store again whether what was read is still so."""

import asyncio
import math
import time

from nexcache.stores.lane import Again, Before
from nexcache.stores.redis import RedisStore


def read_again(store: RedisStore, before: Before, others: Again | None = None) -> tuple[asyncio.Future[bool], Again]:
    """Ask without a limit of time, with others if it is not too late."""
    now = time.perf_counter()
    same = None if others is None else others.join(before, now)
    if others is None or same is None:
        others = store.together(now, math.inf)
        assert others is not None
        same = others.join(before, now)
        assert same is not None
    return same, others
