"""What an invalidation by pattern costs as the number of entries grows, beside what is done without generations.

    python benchmarks/invalidate.py [--entries 1000 10000 100000 1000000] [--rounds N] [--json]

A Valkey of its own holds the entries of one tenant, written as the cache writes them. NexCache invalidates
`dashboard_*`; so do `SCAN` with `UNLINK` and `KEYS` with `DEL`. Meanwhile another process reads, one read at a time:
its longest read is the stall that other clients see. NexCache does it in rounds of several invalidations, and in turn
does the same without invalidating, which is what the machine makes by itself. Whatever an invalidation does to others
it does in every round: printed are the median of the rounds' longest reads and the longest of all.
Server and reader come before everything else on their machine, where the system permits that (root); else they wait
for the one who invalidates, too. "Server" is the longest that any command held up the server itself while NexCache
invalidated (0.1 stands for less). Each way is checked: an entry is served before, and a miss afterwards.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Final, Self

import redis
from pydantic import SecretStr

from nexcache import NexCache, Settings
from nexcache.demo.valkey import EmbeddedValkey
from nexcache.entries import Found, Missing
from nexcache.key import CacheKey
from nexcache.message import Entry, StoredResponse

TENANT = "acme"
OPERATIONS = [f"dashboard_{number}" for number in range(20)]
BODY = b"x" * 200
AT_ONCE = 1000
IN_A_ROUND = 10
"""Invalidations."""


def response() -> StoredResponse:
    """Make an answer."""
    return StoredResponse(200, ((b"content-type", b"text/plain"),), BODY, b'"e"', time.time(), 3600.0)


async def capture(cache: NexCache) -> dict[str, tuple[CacheKey, tuple[tuple[bytes, bytes], ...], int]]:
    """Make the operations known and their generations present, as computing an answer does."""
    found = {}
    for operation in OPERATIONS:
        key = cache.keys.key(TENANT, operation, operation.encode())
        looked = await cache.entries.lookup(key, cache.counts.of(TENANT, operation), deadline=None)
        assert isinstance(looked, Missing | Found)
        snapshot = await cache.entries.capture(key, Missing(looked.tier, None), deadline=None)
        pairs = tuple(zip(key.generations, snapshot.generations, strict=True))
        found[operation] = (key, pairs, snapshot.captured)
        assert await cache.entries.keep(key, snapshot, response(), cache.counts.of(TENANT, operation))
    return found


async def fill(cache: NexCache, client: redis.Redis, entries: int) -> None:
    """Write entries as the cache does, many at once."""
    known = await capture(cache)
    codec = cache.entries._shared._codec  # type: ignore[union-attr]  # noqa: SLF001
    for start in range(0, entries, AT_ONCE):
        pipe = client.pipeline(transaction=False)
        for number in range(start, min(start + AT_ONCE, entries)):
            operation = OPERATIONS[number % len(OPERATIONS)]
            key = cache.keys.key(TENANT, operation, b"%d" % number)
            _, pairs, captured = known[operation]
            entry = Entry(key.request, response(), pairs, captured)
            pipe.set(key.name, codec.encode(key.name, entry), px=3_600_000)
        pipe.execute()


async def is_served(cache: NexCache, operation: str) -> bool:
    """Whether an entry of an operation may be used."""
    key = cache.keys.key(TENANT, operation, operation.encode())
    found = await cache.entries.lookup(key, cache.counts.of(TENANT, operation), deadline=None)
    return isinstance(found, Found)


def scan(client: redis.Redis) -> None:
    """Do without generations, politely."""
    cursor = 0
    while True:
        cursor, keys = client.scan(cursor, match=f"nexarch:{TENANT}:dashboard_*", count=1000)
        if keys:
            client.unlink(*keys)
        if cursor == 0:
            return


def keys(client: redis.Redis) -> None:
    """Do without generations, all at once."""
    found = client.keys(f"nexarch:{TENANT}:dashboard_*")
    for start in range(0, len(found), AT_ONCE):
        client.delete(*found[start : start + AT_ONCE])


def first(task: int) -> None:
    """Let a task run before everything else, where that is permitted."""
    with contextlib.suppress(AttributeError, PermissionError):
        os.sched_setscheduler(task, os.SCHED_FIFO, os.sched_param(1))


def read(port: int, longest: "Synchronized[float]") -> None:
    """Be another client: read until killed, and note the longest read in milliseconds."""
    first(0)
    client = redis.Redis(port=port, protocol=2)
    while True:
        started = time.perf_counter()
        client.mget("nexarch:globex:a", "nexarch:globex:@tenant", "nexarch:globex:@op:a")
        longest.value = max(longest.value, (time.perf_counter() - started) * 1000)


class Other:
    """Another client, for the time of a block."""

    def __init__(self, port: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._longest = spawn.Value("d", 0.0)
        self._process = spawn.Process(target=read, args=(port, self._longest), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        while not self._longest.value:
            time.sleep(0.01)
        self.again()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def again(self) -> float:
        """Return its longest read since the last time, in milliseconds."""
        time.sleep(0.002)  # one that waits now is among them
        longest = float(self._longest.value)
        self._longest.value = 0.0
        return longest


async def invalidated(cache: NexCache, times: int, *, really: bool = True) -> float:
    """Invalidate so often what is served, and return what each took, in milliseconds; or do all that is around it."""
    took = []
    for _ in range(times):
        assert await is_served(cache, OPERATIONS[0])
        started = time.perf_counter()
        if really:
            assert (await cache.invalidate(TENANT, "dashboard_*")).acknowledged
        took.append((time.perf_counter() - started) * 1000)
        assert await is_served(cache, OPERATIONS[-1]) is not really
        await capture(cache)
    return statistics.median(took)


async def measure(
    url: str, entries: int, rounds: int, ways: Mapping[str, Callable[[redis.Redis], None]]
) -> dict[str, Any]:
    """Fill, and invalidate in each way."""
    client = redis.Redis.from_url(url, protocol=2, socket_timeout=120)
    port = client.connection_pool.connection_kwargs["port"]
    first(client.info("server")["process_id"])
    client.config_set("maxmemory", "0")  # nothing leaves by itself
    client.flushall()
    cache = NexCache(Settings(redis_url=SecretStr(url), op_timeout_ms=5000, l1_enabled=False))
    await fill(cache, client, entries)
    found: dict[str, Any] = {"entries": entries, "memory": client.info("memory")["used_memory"]}
    client.config_set("slowlog-log-slower-than", "100")
    client.slowlog_reset()
    with Other(port) as other:
        times, stalls, nothing = [], [], []
        for _ in range(rounds):
            await invalidated(cache, IN_A_ROUND, really=False)
            nothing.append(other.again())
            times.append(await invalidated(cache, IN_A_ROUND))
            stalls.append(other.again())
    slow = [entry["duration"] / 1000 for entry in client.slowlog_get(128)]
    client.config_set("slowlog-log-slower-than", "-1")
    found |= {"NexCache ms": statistics.median(times), "NexCache stall ms": statistics.median(stalls)}
    found |= {"nothing stall ms": statistics.median(nothing), "NexCache server ms": max(slow, default=0.1)}
    found |= {"NexCache stall of all ms": max(stalls), "nothing stall of all ms": max(nothing)}
    for number, (name, way) in enumerate(ways.items()):
        if number:
            client.flushall()
            await fill(cache, client, entries)
        with Other(port) as other:
            started = time.perf_counter()
            await asyncio.to_thread(way, client)
            found[f"{name} ms"] = (time.perf_counter() - started) * 1000
            found[f"{name} stall ms"] = other.again()
        assert not client.exists(cache.keys.key(TENANT, OPERATIONS[0], b"0").name)
    await cache.aclose()
    client.close()
    return found


WAYS: Final = {"SCAN+UNLINK": scan, "KEYS+DEL": keys}


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=20, help=f"of {IN_A_ROUND} invalidations")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    with EmbeddedValkey() as server:
        for entries in arguments.entries:
            rows.append(await measure(server.url, entries, arguments.rounds, WAYS))
            print(f"{entries:,} entries measured", file=sys.stderr)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print("milliseconds, and another client's longest read meanwhile\n")
    ways = ("NexCache", *WAYS)
    heads = "  ".join(f"{way:>12} {'read':>9}" for way in ways)
    print(f"{'entries':>10}  {heads}  {'of all':>6}  {'without invalidating':>20} {'of all':>6}  {'server':>6}")
    for row in rows:
        cells = "  ".join(f"{row[f'{way} ms']:12,.2f} {row[f'{way} stall ms']:9.2f}" for way in ways)
        by_itself = f"{row['nothing stall ms']:20.2f} {row['nothing stall of all ms']:6.2f}"
        print(
            f"{row['entries']:>10,}  {cells}  {row['NexCache stall of all ms']:6.2f}  {by_itself}"
            f"  {row['NexCache server ms']:6.2f}"
        )
    few, many = rows[0], rows[-1]
    ratio = many["NexCache ms"] / few["NexCache ms"]
    print(f"NexCache with {many['entries']:,} entries takes {ratio:.2f} times as long as with {few['entries']:,}")


if __name__ == "__main__":
    asyncio.run(main())
