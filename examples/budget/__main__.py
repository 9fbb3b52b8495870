"""Measure the calculations without and with the cache: `python -m examples.budget`."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from examples.budget import calculations as calculate
from nexcache.sync import SyncCached

USER, MONTH = "alice", "2024-06"


def plain(function: Callable[..., Any], *arguments: str, times: int) -> float:
    """Return the seconds of one call."""
    began = time.perf_counter()
    for _ in range(times):
        function(*arguments)
    return (time.perf_counter() - began) / times


async def awaited(function: Callable[..., Awaitable[Any]], *arguments: str, times: int) -> float:
    """Return the seconds of one call."""
    began = time.perf_counter()
    for _ in range(times):
        await function(*arguments)
    return (time.perf_counter() - began) / times


def main() -> None:
    """Measure, and print the table."""
    calculate.prepare()
    print("calculation  without, ms  with, µs   factor")
    with calculate.cache.sync:
        measured: list[tuple[str, SyncCached[..., Any], tuple[str, ...]]] = [
            ("summary", calculate.summary, (USER, MONTH)),
            ("trends", calculate.trends, (USER,)),
            ("anomalies", calculate.anomalies, (USER, MONTH)),
        ]
        for name, function, arguments in measured:
            calculate.cache.sync.invalidate(USER, "*")
            without = plain(function.bypass, *arguments, times=1)
            plain(function, *arguments, times=2)
            show(name, without, plain(function, *arguments, times=2_000))
    asyncio.run(predict())


async def predict() -> None:
    """Measure the model, on an event loop."""
    async with calculate.cache:
        without = await awaited(calculate.prediction.bypass, USER, MONTH, times=1)
        await awaited(calculate.prediction, USER, MONTH, times=2)
        show("prediction", without, await awaited(calculate.prediction, USER, MONTH, times=2_000))


def show(name: str, without: float, cached: float) -> None:
    """Print a line."""
    print(f"{name:11}  {without * 1e3:11.1f}  {cached * 1e6:8.1f} {without / cached:8,.0f}")


if __name__ == "__main__":
    main()
