"""Measure the assistant without and with its cache: `python -m examples.calendar_assistant`."""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis.asyncio

from nexcache.demo.valkey import EmbeddedValkey, ValkeyUnavailable

TO_BEAT = {
    "get_all_users(100)": 50,
    "get_user_by_user_id": 40,
    "search_users": 40,
    "get_all_departments": 77,
    "get_calendar_events": 25,
}


async def timed(function: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...], times: int) -> float:
    """Return the seconds of one call, the median of `times`."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await function(*arguments)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


async def measure(*, hits: int) -> list[dict[str, Any]]:
    """Call everything without the cache, fill it, and call it again."""
    from examples.calendar_assistant.assistant import CALLS, cache  # noqa: PLC0415 - after REDIS_URL is known

    url = cache.settings.get_redis_url()
    rows = []
    async with cache:
        without = {name: await timed(function.bypass, arguments, 1) for name, (function, arguments) in CALLS.items()}
        results = {name: await function(*arguments) for name, (function, arguments) in CALLS.items()}
        await asyncio.sleep(0.5)  # until this process may trust what it holds
        for name, (function, arguments) in CALLS.items():
            if [await function(*arguments) for _ in range(3)] != [results[name]] * 3:
                raise SystemExit(f"{name}: a hit is not what was computed")
            rows.append(
                {
                    "operation": name,
                    "without": without[name],
                    "with": await timed(function, arguments, hits),
                    "dict": await timed(Held({arguments: results[name]}), arguments, hits),
                    "get": await bare_get(url, function.key(*arguments), hits) if url else None,
                }
            )
    return rows


class Held:
    """A bare dict in a coroutine function."""

    def __init__(self, results: dict[tuple[Any, ...], Any]) -> None:
        self._results = results

    async def __call__(self, *arguments: Any) -> Any:
        return self._results[arguments]


async def bare_get(url: str, key: str, times: int) -> float:
    """Return the seconds of a GET of the very same value, and nothing else."""
    async with redis.asyncio.Redis.from_url(url) as client:
        if await client.get(key) is None:
            raise SystemExit(f"{key} is not in the store")
        return await timed(client.get, (key,), times)


async def maintain() -> None:
    """Show what an operator looks at: hit ratios, lifetimes, and where one call is kept."""
    from examples.calendar_assistant.assistant import CALLS, ORGANISATION, cache  # noqa: PLC0415 - see above

    async with cache:
        kept = {}
        for function, arguments in CALLS.values():
            await function(*arguments)
            found = await function.explain(*arguments)
            kept[found.operation] = found.ttl
        print("\noperation     hits  misses  hit ratio  kept for")
        for name, counts in sorted((await cache.stats(ORGANISATION)).operations.items()):
            asked = counts.hits + counts.misses
            print(f"{name:12} {counts.hits:5} {counts.misses:7} {counts.hits / asked:9.1%}  {kept[name]:.0f} s")
        function, arguments = CALLS["get_user_by_user_id"]
        found = await function.explain(*arguments)
        print(f"\nget_user_by_user_id{arguments} is {found.key}: {found.remaining:.0f} of {found.ttl:.0f} s left,")
        print(f"until one of these is invalidated: {', '.join(('*', found.operation, *found.tags))}")


@contextmanager
def store() -> Iterator[None]:
    """Start a Valkey for this run, unless REDIS_URL names one or none can be started."""
    if "REDIS_URL" in os.environ or "REDIS_HOST" in os.environ:
        yield
        return
    try:
        valkey = EmbeddedValkey()
    except ValkeyUnavailable:
        yield
        return
    with valkey:
        os.environ["REDIS_URL"] = valkey.url
        yield


def from_store_alone(hits: int) -> dict[str, float]:
    """Measure the same hits in a process that holds nothing in its own memory."""
    if not os.environ.get("REDIS_URL"):
        return {}
    words = [sys.executable, "-m", "examples.calendar_assistant", "--hits", str(hits), "--raw"]
    environment = os.environ | {"CACHE_L1_ENABLED": "false", "DIRECTORY_SCALE": "0"}
    printed = subprocess.run(words, env=environment, capture_output=True, check=True, text=True).stdout  # noqa: S603
    return {row["operation"]: row["with"] for row in json.loads(printed)}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hits", type=int, default=1000, help="hits that are timed per operation")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--raw", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.raw:
        json.dump(asyncio.run(measure(hits=options.hits)), sys.stdout)
        return
    with store():
        rows = asyncio.run(measure(hits=options.hits))
        stored = from_store_alone(options.hits)
        for row in rows:
            row["store"] = stored.get(row["operation"])
            row["factor"] = row["without"] / row["with"]
            row["store_factor"] = row["without"] / row["store"] if row["store"] else None
            row["to_beat"] = TO_BEAT[row["operation"]]
        if options.json:
            json.dump(rows, sys.stdout, indent=2)
            return
        table(rows)
        asyncio.run(maintain())


def table(rows: list[dict[str, Any]]) -> None:
    """Print the rows: seconds without the cache, microseconds with it."""
    print("                       without  │ with cache            │ from the store alone │ for comparison, µs")
    print("operation                    s  │    µs   factor  (old) │       µs      factor │ bare dict   bare GET")
    for row in rows:
        alone = f"{row['store'] * 1e6:8.0f}  {row['store_factor']:10,.0f}" if row["store"] else " " * 20
        get = f"{row['get'] * 1e6:10.0f}" if row["get"] else ""
        print(
            f"{row['operation']:22}{row['without']:8.3f}  │ {row['with'] * 1e6:5.1f} {row['factor']:8,.0f}"
            f"  ({row['to_beat']:3}) │ {alone} │ {row['dict'] * 1e6:9.2f} {get}"
        )


if __name__ == "__main__":
    main()
