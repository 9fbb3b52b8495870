"""What a cached call costs: in memory beside a bare dict, in the store beside a bare GET, and through threads.

    python benchmarks/functions.py [--rounds N] [--json]

The call has two arguments, a number and a text; the result is a text (which nobody can change, so that it is read
once) or a dict of twenty fields (read anew for every caller). Rounds of the contenders are interleaved; the median is
printed, and the best. An "empty hop" is what it costs to run nothing on another thread's event loop and wait for it.
Every answer is checked before it is timed.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import redis
import redis.asyncio

from nexcache import NexCache, Settings
from nexcache.demo.valkey import EmbeddedValkey

TEXT = "x" * 200
RECORD: dict[str, Any] = {f"field_{number}": [number, f"value {number}"] for number in range(20)}
CALLS = 64


async def per_call(function: Callable[[int, str], Awaitable[Any]], times: int) -> float:
    """Microseconds of one awaited call."""
    began = time.perf_counter()
    for number in range(times):
        await function(number % CALLS, "a")
    return (time.perf_counter() - began) / times * 1e6


def per_plain_call(function: Callable[[int, str], Any], times: int) -> float:
    """Microseconds of one call."""
    began = time.perf_counter()
    for number in range(times):
        function(number % CALLS, "a")
    return (time.perf_counter() - began) / times * 1e6


def memory() -> NexCache:
    """A cache without a server."""
    return NexCache(Settings(redis_url=None, redis_host=None), default_tenant="acme")


def check(condition: object) -> None:
    """Stop before anything wrong is timed."""
    if not condition:
        raise SystemExit("a wrong answer: nothing is timed")


async def coroutines(rounds: int) -> dict[str, list[float]]:
    """Calls of coroutine functions that memory answers."""
    held: dict[tuple[int, str], str] = {}

    async def in_dict(number: int, text: str) -> str:
        found = held.get((number, text))
        if found is None:
            found = held[number, text] = TEXT
        return found

    async with memory() as cache:

        @cache.cached("text", ttl="1h")
        async def text(number: int, text: str) -> str:
            return TEXT

        @cache.cached("record", ttl="1h", tags=["number:{number}"])
        async def record(number: int, text: str) -> dict[str, Any]:
            return RECORD

        for _ in range(3):
            for number in range(CALLS):
                check(await text(number, "a") == TEXT and await record(number, "a") == RECORD)
        check((await cache.stats("acme")).operations["text"].misses == CALLS)
        contenders: dict[str, Callable[[int, str], Awaitable[Any]]] = {
            "a bare dict in a coroutine": in_dict,
            "cached, a text in memory": text,
            "cached, a dict of 20 fields in memory": record,
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, function in contenders.items():
                times[name].append(await per_call(function, 20_000))
    return times


def plain(rounds: int) -> dict[str, list[float]]:
    """Calls of plain functions that memory answers, and what a hop between threads costs."""
    bare = lru_cache(maxsize=1000)(lambda number, text: TEXT)
    cache = memory()

    @cache.sync.cached("text", ttl="1h")
    def text(number: int, text: str) -> str:
        return TEXT

    async def nothing() -> None:
        pass

    with cache.sync:
        for _ in range(3):
            for number in range(CALLS):
                check(text(number, "a") == TEXT)
        values = cache.sync.tenant("acme")
        values.set("a", TEXT)
        check(values.get("a") == TEXT)
        loop = cache.home
        assert loop is not None

        def hop(number: int, text: str) -> None:
            asyncio.run_coroutine_threadsafe(nothing(), loop).result()

        contenders: dict[str, tuple[Callable[[int, str], Any], int]] = {
            "functools.lru_cache": (bare, 20_000),
            "cached, a text in memory (no hop)": (text, 20_000),
            "an empty hop": (hop, 1_000),
            "a value in memory (one hop)": (lambda number, text: values.get("a"), 1_000),
            "a call computed and kept (two hops)": (lambda number, _: text.refresh(number, "a"), 1_000),
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, (function, count) in contenders.items():
                times[name].append(per_plain_call(function, count))
    return times


async def stored(rounds: int, url: str) -> dict[str, list[float]]:
    """Calls that the store answers, since nothing is held in memory."""
    settings = Settings(redis_url=url, l1_enabled=False, op_timeout_ms=2000)
    async with NexCache(settings, default_tenant="acme") as cache, redis.asyncio.Redis.from_url(url) as client:

        @cache.cached("text", ttl="1h")
        async def text(number: int, text: str) -> str:
            return TEXT

        async def get(number: int, text: str) -> Any:
            return await client.get("bare")

        await client.set("bare", TEXT)
        for _ in range(2):
            for number in range(CALLS):
                check(await text(number, "a") == TEXT)
        check(await get(0, "a") == TEXT.encode())
        check((await cache.stats("acme")).operations["text"].misses == CALLS)
        contenders: dict[str, Callable[[int, str], Awaitable[Any]]] = {
            "a bare GET (redis-py)": get,
            "cached, a text in the store": text,
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, function in contenders.items():
                times[name].append(await per_call(function, 1_000))
    return times


@contextmanager
def server() -> Iterator[str]:
    """A Valkey of its own, or the one that REDIS_URL names."""
    if "REDIS_URL" in os.environ:
        yield os.environ["REDIS_URL"]
        return
    with EmbeddedValkey() as started:
        yield started.url


def rows(times: dict[str, list[float]], base: str) -> list[dict[str, Any]]:
    """Medians, and the median of the ratios to `base` in the same round, whose own is 1."""
    return [
        {
            "call": name,
            "µs": round(statistics.median(values), 2),
            "best": round(min(values), 2),
            "ratio": round(
                statistics.median(value / first for value, first in zip(values, times[base], strict=True)), 2
            ),
        }
        for name, values in times.items()
    ]


def show(title: str, table: list[dict[str, Any]]) -> None:
    """Print one table."""
    print(f"\n{title}")
    names = list(table[0])
    widths = [max(len(name), *(len(str(row[name])) for row in table)) for name in names]
    print("  ".join(name.ljust(width) for name, width in zip(names, widths, strict=True)))
    for row in table:
        print("  ".join(str(row[name]).ljust(width) for name, width in zip(names, widths, strict=True)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = {
        "coroutine functions": rows(asyncio.run(coroutines(arguments.rounds)), "a bare dict in a coroutine"),
        "plain functions, and the way to the event loop": rows(plain(arguments.rounds), "an empty hop"),
    }
    with server() as url:
        result["through the store"] = rows(asyncio.run(stored(arguments.rounds, url)), "a bare GET (redis-py)")
    if arguments.json:
        json.dump({"python": sys.version.split()[0], "cpus": os.cpu_count(), **result}, sys.stdout, indent=2)
        return
    for title, table in result.items():
        show(title, table)


if __name__ == "__main__":
    main()
