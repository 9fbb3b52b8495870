"""What the cache costs an app when it is of no use: switched off, or without its store. Through uvicorn, as a share.

    python benchmarks/degraded.py [--rounds N] [--work MS] [--json]

The app computes for about a millisecond, which is little for a dashboard's query, or for as long as `--work` says;
every answer is checked. Redis is gone: nothing listens on its port, and the breaker has opened. With the fallback, this
process answers for ten seconds what it has computed itself; without, every request is computed. Rounds of the
contenders are interleaved, and the median of the ratios to the bare app of the same round is printed; the second row of
the bare app says how noisy the machine is.
"""

import argparse
import asyncio
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import ASGIApp, Receive, Scope, Send

BODY: Final = b"x" * 2000
URLS: Final = 256
NOBODY: Final = "redis://127.0.0.1:1"
SETTINGS: Final[dict[str, dict[str, Any] | None]] = {
    "bare app": None,
    "bare app (A/A)": None,
    "switched off": {"enabled": False},
    "Redis gone": {},
    "Redis gone, without a fallback": {"fallback_ttl_seconds": 0},
}
"""The contenders, and how the cache before each is set up; None: there is none."""


class App:
    """Computes for so many milliseconds of the processor, then answers."""

    def __init__(self, work: float) -> None:
        self._rounds = 0
        if work > 0:
            began = time.perf_counter()
            self._spin(20_000)
            self._rounds = int(20_000 * work / 1000 / (time.perf_counter() - began))
        self._headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]

    @staticmethod
    def _spin(rounds: int) -> int:
        total = 0
        for number in range(rounds):
            total += number & 7
        return total

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._spin(self._rounds)
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await send({"type": "http.response.body", "body": BODY})


def serve(settings: dict[str, Any] | None, work: float, path: str) -> None:
    """Run uvicorn on a Unix socket until killed (in a process of its own)."""
    import uvicorn  # noqa: PLC0415 - only in the server's process

    logging.getLogger("nexcache").setLevel(logging.ERROR)
    app: ASGIApp = App(work)
    if settings is not None:
        cache = NexCache(Settings(redis_url=NOBODY, redis_host=None, **settings))
        keys = tenants.api_key(keys={"acme": "a-long-random-key-of-the-tenant-acme"})
        policy = Policy("/api/v1/services/{service}", op="service_details", ttl="1h", tags=["service:{service}"])
        app = CacheMiddleware(app, cache=cache, tenant=keys, principal=keys, policies=[policy])
    uvicorn.run(app, uds=path, log_level="error", access_log=False, lifespan="off", loop="uvloop", http="httptools")


async def load(path: str, *, connections: int, requests: int) -> float:
    """Requests per second over keep-alive connections, closed loop."""

    async def client(first: int) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        for number in range(first, first + requests // connections):
            url = b"/api/v1/services/checkout-%d?from=%d&to=now" % (number % URLS % 16, number % URLS)
            writer.write(
                b"GET " + url + b" HTTP/1.1\r\nhost: app\r\nx-api-key: a-long-random-key-of-the-tenant-acme\r\n\r\n"
            )
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200") or await reader.readexactly(len(BODY)) != BODY:
                raise SystemExit(f"a wrong answer: {head[:40]!r}")
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client(number * 7) for number in range(connections)))
    return requests / (time.perf_counter() - began)


async def measure(names: Sequence[str], rounds: int, work: float, requests: int) -> list[dict[str, Any]]:
    """Start a server for each contender, and take rounds in turn."""
    spawn = get_context("spawn")
    times: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as ends:
        paths = {name: str(Path(directory, str(index))) for index, name in enumerate(names)}
        for name, path in paths.items():
            process = spawn.Process(target=serve, args=(SETTINGS[name], work, path), daemon=True)
            process.start()
            ends.callback(process.join)
            ends.callback(process.terminate)
        for path in paths.values():
            while not Path(path).exists():  # noqa: ASYNC110, ASYNC240 - nothing else runs on this loop
                await asyncio.sleep(0.05)
            await load(path, connections=8, requests=2 * URLS)
        for _ in range(rounds):
            for name, path in paths.items():
                times[name].append(await load(path, connections=16, requests=requests))
    base = times[names[0]]
    return [
        {
            "contender": name,
            "req/s": round(statistics.median(values)),
            "share": round(statistics.median(value / first for value, first in zip(values, base, strict=True)), 3),
        }
        for name, values in times.items()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=1600)
    parser.add_argument("--work", type=float, default=1.0, help="milliseconds that the app computes")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = asyncio.run(measure(tuple(SETTINGS), asked.rounds, asked.work, asked.requests))
    if asked.json:
        json.dump(
            {"python": sys.version.split()[0], "cpus": os.cpu_count(), "work": asked.work, "rows": rows}, sys.stdout
        )
        return
    print(f"through uvicorn, with an app that computes for {asked.work:g} ms\n")
    for row in rows:
        print(f"{row['contender']:32} {row['req/s']:7} req/s   {row['share']:.3f} of the bare app")


if __name__ == "__main__":
    main()
