"""What an invalidation by pattern costs as the number of entries grows, beside what is done without generations.

    python benchmarks/invalidate.py [--entries 1000 10000 100000 1000000] [--rounds N] [--json]

A Valkey of its own holds the entries of one tenant, written as the cache writes them. NexCache invalidates
`dashboard_*`; so do `SCAN` with `UNLINK` and `KEYS` with `DEL`. Meanwhile another process reads, one read at a time:
its longest read is the stall that other clients see, and "nothing" is what the machine does by itself; "server" is the
longest that any command held up the server itself while NexCache invalidated (0.1 stands for less). Each way is
checked: an entry is served before, and a miss afterwards.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

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


def read(port: int) -> None:
    """Be another client: read until standard input ends, then print the longest read in milliseconds."""
    client = redis.Redis(port=port, protocol=2)
    print("ready", flush=True)
    longest = 0.0
    stop = Path(sys.argv[3])
    while not stop.exists():
        started = time.perf_counter()
        client.mget("nexarch:globex:a", "nexarch:globex:@tenant", "nexarch:globex:@op:a")
        longest = max(longest, time.perf_counter() - started)
    print(longest * 1000)


class Other:
    """Another client, for the time of a block."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.longest = 0.0

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory()
        self._stop = Path(self._directory.name) / "stop"
        self._process = subprocess.Popen(
            [sys.executable, __file__, "read", str(self._port), str(self._stop)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.touch()
        self.longest = float(self._process.communicate(timeout=60)[0])
        self._directory.cleanup()


async def measure(url: str, port: int, entries: int, rounds: int) -> dict[str, Any]:
    """Fill, and invalidate in each way."""
    client = redis.Redis(port=port, protocol=2, socket_timeout=120)
    client.flushall()
    cache = NexCache(Settings(redis_url=SecretStr(url), op_timeout_ms=5000, l1_enabled=False))
    await fill(cache, client, entries)
    found: dict[str, Any] = {"entries": entries, "memory": client.info("memory")["used_memory"]}
    with Other(port) as other:
        await asyncio.sleep(rounds * 0.005)
    found["nothing stall ms"] = other.longest
    times = []
    client.config_set("slowlog-log-slower-than", "100")
    client.slowlog_reset()
    with Other(port) as other:
        for _ in range(rounds):
            assert await is_served(cache, OPERATIONS[0])
            started = time.perf_counter()
            done = await cache.invalidate(TENANT, "dashboard_*")
            times.append((time.perf_counter() - started) * 1000)
            assert done.acknowledged
            assert not await is_served(cache, OPERATIONS[-1])
            await capture(cache)
    slow = [entry["duration"] / 1000 for entry in client.slowlog_get(128)]
    client.config_set("slowlog-log-slower-than", "-1")
    found |= {"NexCache ms": statistics.median(times), "NexCache stall ms": other.longest}
    found["NexCache server ms"] = max(slow, default=0.1)
    for name, way in (("SCAN+UNLINK", scan), ("KEYS+DEL", keys)):
        client.flushall()
        await fill(cache, client, entries)
        with Other(port) as other:
            started = time.perf_counter()
            await asyncio.to_thread(way, client)
            found[f"{name} ms"] = (time.perf_counter() - started) * 1000
        found[f"{name} stall ms"] = other.longest
        assert not client.exists(cache.keys.key(TENANT, OPERATIONS[0], b"0").name)
    await cache.aclose()
    return found


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    with EmbeddedValkey() as server:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        with redis.Redis(port=port, protocol=2) as client:
            client.config_set("maxmemory", "0")  # nothing leaves by itself
        for entries in arguments.entries:
            rows.append(await measure(server.url, port, entries, arguments.rounds))
            print(f"{entries:,} entries measured", file=sys.stderr)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    ways = ("NexCache", "SCAN+UNLINK", "KEYS+DEL")
    heads = "  ".join(f"{way:>12} {'stall':>9}" for way in ways)
    print(f"{'entries':>10}  {heads}  {'nothing: stall':>14}  {'NexCache: server':>16}")
    for row in rows:
        cells = "  ".join(f"{row[f'{way} ms']:9.2f} ms {row[f'{way} stall ms']:6.1f} ms" for way in ways)
        print(
            f"{row['entries']:>10,}  {cells}  {row['nothing stall ms']:11.1f} ms  {row['NexCache server ms']:13.1f} ms"
        )
    first, last = rows[0], rows[-1]
    ratio = last["NexCache ms"] / first["NexCache ms"]
    print(f"NexCache with {last['entries']:,} entries takes {ratio:.2f} times as long as with {first['entries']:,}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["read"]:
        read(int(sys.argv[2]))
    else:
        asyncio.run(main())
