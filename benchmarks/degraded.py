"""What the cache costs an app when it is of no use: switched off, or without its store. Through uvicorn, as a share.

    python benchmarks/degraded.py [--rounds N] [--work MS] [--json]

The app computes for about a millisecond, which is little for a dashboard's query, or for as long as `--work` says;
every answer is checked. Redis is gone: nothing listens on its port, and the breaker has opened. With the fallback,
this process answers for ten seconds what it has computed itself; without, every request is computed.

Each contender is a process that serves the app both with the cache before it and without, on a socket each: two
processes that run the same differ by several hundredths for as long as they live. Many short rounds, in each of which
one of the two is measured right after the other; the median of their ratios is printed. The row of the bare app beside
itself says how noisy the machine is. Throughput is that of one processor: requests by the time for which the server's
process ran, so that what else runs on the machine does not count.
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
from zlib import crc32

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import ASGIApp, Receive, Scope, Send

BODY: Final = b"x" * 2000
URLS: Final = 256
ROUNDS: Final = 60
REQUESTS: Final = 64
"""Of each of the two in a round: the shorter a round, the less has the machine changed."""
_BLOCK: Final = bytes(range(256)) * 8
NOBODY: Final = "redis://127.0.0.1:1"
SETTINGS: Final[dict[str, dict[str, Any] | None]] = {
    "bare app (A/A)": None,
    "switched off": {"enabled": False},
    "Redis gone": {},
    "Redis gone, without a fallback": {"fallback_ttl_seconds": 0},
}
"""The contenders, and how the cache before each is set up; None: there is none."""


class App:
    """Computes, so many rounds, then answers."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        spin(self._rounds)
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await send({"type": "http.response.body", "body": BODY})


def spin(rounds: int) -> int:
    """Compute something that takes the same time whatever else the process has allocated: loops over numbers do not."""
    total = 0
    for _ in range(rounds):
        total = crc32(_BLOCK, total)
    return total


def rounds_of(milliseconds: float) -> int:
    """Return how many rounds take so long where nothing else runs: measured once, and the same for every contender."""
    best = min(_timed(1_000) for _ in range(20))
    return int(1_000 * milliseconds / 1000 / best)


def _timed(rounds: int) -> float:
    began = time.perf_counter()
    spin(rounds)
    return time.perf_counter() - began


def serve(settings: dict[str, Any] | None, work: int, bare: str, other: str) -> None:
    """Run the bare app and the contender on a Unix socket each until killed (in a process of its own)."""
    import uvicorn  # noqa: PLC0415 - only in the server's process
    import uvloop  # noqa: PLC0415

    logging.getLogger("nexcache").setLevel(logging.ERROR)
    app = App(work)
    contender: ASGIApp = app
    if settings is not None:
        cache = NexCache(Settings(redis_url=NOBODY, redis_host=None, **settings))
        keys = tenants.api_key(keys={"acme": "a-long-random-key-of-the-tenant-acme"})
        policy = Policy("/api/v1/services/{service}", op="service_details", ttl="1h", tags=["service:{service}"])
        contender = CacheMiddleware(app, cache=cache, tenant=keys, principal=keys, policies=[policy])

    async def both() -> None:
        await asyncio.gather(
            *(
                uvicorn.Server(
                    uvicorn.Config(
                        each, uds=path, log_level="error", access_log=False, lifespan="off", http="httptools"
                    )
                ).serve()
                for path, each in ((bare, app), (other, contender))
            )
        )

    uvloop.run(both())


def ran(pid: int) -> float:
    """Return the seconds for which a process has run."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9


async def load(path: str, pid: int, *, connections: int, requests: int) -> float:
    """Requests per second of the server's processor, over keep-alive connections, closed loop."""

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

    before = ran(pid)
    await asyncio.gather(*(client(number * 7) for number in range(connections)))
    return requests / (ran(pid) - before)


async def measure(names: Sequence[str], rounds: int, work: int, requests: int) -> list[dict[str, Any]]:
    """Start a server for each contender, and take rounds in turn."""
    spawn = get_context("spawn")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as ends:
        sockets = {name: (f"{directory}/{index}b", f"{directory}/{index}") for index, name in enumerate(names)}
        pids: dict[str, int] = {}
        for name, paths in sockets.items():
            process = spawn.Process(target=serve, args=(SETTINGS[name], work, *paths), daemon=True)
            process.start()
            assert process.pid is not None
            pids[name] = process.pid
            ends.callback(process.join)
            ends.callback(process.kill)
        for name, paths in sockets.items():
            for path in paths:
                while not Path(path).exists():  # noqa: ASYNC110, ASYNC240 - nothing else runs on this loop
                    await asyncio.sleep(0.05)
                await load(path, pids[name], connections=8, requests=2 * URLS)
        for turn in range(rounds):
            for name, (bare, other) in sockets.items():
                rates = {
                    path: await load(path, pids[name], connections=16, requests=requests)
                    for path in ((bare, other) if turn % 2 == 0 else (other, bare))
                }
                times[name].append((rates[bare], rates[other]))
    return [
        {
            "contender": name,
            "req/s": round(statistics.median(rate for _, rate in values)),
            "share": round(statistics.median(rate / bare for bare, rate in values), 3),
        }
        for name, values in times.items()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of each of the two in a round")
    parser.add_argument("--work", type=float, default=1.0, help="milliseconds that the app computes")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = asyncio.run(measure(tuple(SETTINGS), asked.rounds, rounds_of(asked.work), asked.requests))
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
