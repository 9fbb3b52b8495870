"""What a hit costs, as a ratio to the bare app of the same run: in process, and through uvicorn.

    python benchmarks/hit.py [--rounds N] [--json] [--no-server]

The request is the one of every comparison: a body of 2,000 bytes, 256 distinct URLs with three query parameters
each, ten request header fields; the cache does all it does in production (tenant, principal, policy with a tag,
generations, ETag, Age, Cache-Status, statistics, telemetry present and unsampled). Rounds of the contenders are
interleaved and the median of their ratios is printed, because machines are noisy; the second row of the bare app
(A/A) says how noisy. Every answer is checked before it is timed.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import ASGIApp, Message, Receive, Scope, Send

BODY = b"x" * 2000
URLS = 256
HEADERS = [
    (b"host", b"api.example.com"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"),
    (b"accept", b"application/json"),
    (b"accept-encoding", b"gzip, deflate, br"),
    (b"accept-language", b"en-GB,en;q=0.9"),
    (b"connection", b"keep-alive"),
    (b"x-api-key", b"a-long-random-key-of-the-tenant-acme"),
    (b"x-request-id", b"0123456789abcdef"),
    (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"),
    (b"referer", b"https://app.example.com/dashboards"),
]


class Bare:
    """The app itself: prebuilt messages, nothing else."""

    def __init__(self) -> None:
        self.calls = 0
        self._headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("no lifespan here")
        self.calls += 1
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await send({"type": "http.response.body", "body": BODY})


def cached(app: ASGIApp) -> ASGIApp:
    """The app behind NexCache, in memory, with everything on."""
    cache = NexCache(Settings(redis_url=None, redis_host=None))
    keys = tenants.api_key(keys={"acme": "a-long-random-key-of-the-tenant-acme"})
    policy = Policy("/api/v1/services/{service}", op="service_details", ttl="1h", tags=["service:{service}"])
    return CacheMiddleware(app, cache=cache, tenant=keys, principal=keys, policies=[policy])


def scope(number: int) -> Scope:
    """One of the requests."""
    path = f"/api/v1/services/checkout-{number % 16}"
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"from=%d&to=now&step=60" % number,
        "root_path": "",
        "headers": list(HEADERS),
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }


async def receive() -> Message:
    """An empty request."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def one_round(app: ASGIApp, requests: int) -> float:
    """Microseconds per request, new scopes included in none of it."""
    scopes = [scope(number % URLS) for number in range(requests)]

    async def send(message: Message) -> None:
        pass

    began = time.perf_counter()
    for each in scopes:
        await app(each, receive, send)
    return (time.perf_counter() - began) / requests * 1e6


async def check(app: ASGIApp, bare: Bare) -> None:
    """Every URL is answered right, and the second time without the app."""
    for again in (False, True):
        before = bare.calls
        for number in range(URLS):
            sent: list[Message] = []

            async def send(message: Message, sent: list[Message] = sent) -> None:
                sent.append(message)

            await app(scope(number), receive, send)
            if sent[0]["status"] != 200 or b"".join(part["body"] for part in sent[1:]) != BODY:
                raise SystemExit("a wrong answer: nothing is timed")
        if again and bare.calls != before:
            raise SystemExit("a hit ran the app: nothing is timed")


async def in_process(rounds: int, requests: int = 20_000) -> list[dict[str, Any]]:
    """Interleaved rounds; ratios are taken within a round."""
    bare, origin = Bare(), Bare()
    contenders: dict[str, ASGIApp] = {
        "bare app": bare,
        "bare app (A/A)": bare,
        "NexCache, hit in memory": cached(origin),
    }
    await check(contenders["NexCache, hit in memory"], origin)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, app in contenders.items():
            times[name].append(await one_round(app, requests))
    return rows(times, "µs", lambda value, base: value / base)


def rows(times: dict[str, list[float]], unit: str, ratio: Callable[[float, float], float]) -> list[dict[str, Any]]:
    """Medians, and the median of the ratios to the first contender of the same round."""
    base = next(iter(times.values()))
    return [
        {
            "contender": name,
            unit: round(statistics.median(values), 2),
            "best": round(min(values) if unit == "µs" else max(values), 2),
            "ratio": round(
                statistics.median(ratio(value, first) for value, first in zip(values, base, strict=True)), 3
            ),
        }
        for name, values in times.items()
    ]


def serve(kind: str, path: str) -> None:
    """Run uvicorn on a Unix socket until killed (in a process of its own)."""
    import uvicorn  # noqa: PLC0415 - only in the server's process

    app: ASGIApp = Bare() if kind == "bare" else cached(Bare())
    uvicorn.run(app, uds=path, log_level="error", access_log=False, lifespan="off", loop="uvloop", http="httptools")


async def load(path: str, *, connections: int, requests: int) -> float:
    """Requests per second over keep-alive connections, closed loop."""
    lines = b"".join(b"%b: %b\r\n" % (name, value) for name, value in HEADERS)

    async def client(first: int) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        for number in range(first, first + requests // connections):
            url = b"/api/v1/services/checkout-%d?from=%d&to=now&step=60" % (number % URLS % 16, number % URLS)
            writer.write(b"GET " + url + b" HTTP/1.1\r\n" + lines + b"\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"a wrong answer: {head[:40]!r}")
            await reader.readexactly(len(BODY))
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client(number * 7) for number in range(connections)))
    return requests / (time.perf_counter() - began)


async def through_uvicorn(rounds: int) -> list[dict[str, Any]]:
    """The share of the bare app's throughput that is left behind the same server."""
    spawn = get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        servers = {}
        for name, kind in (("bare app", "bare"), ("NexCache, hit in memory", "cached")):
            path = str(Path(directory, kind))
            process = spawn.Process(target=serve, args=(kind, path), daemon=True)
            process.start()
            servers[name] = (process, path)
        try:
            for _, path in servers.values():
                for _ in range(400):
                    if Path(path).exists():  # noqa: ASYNC240 - nothing else runs on this loop
                        break
                    await asyncio.sleep(0.05)
                await load(path, connections=8, requests=4 * URLS)
            times: dict[str, list[float]] = {name: [] for name in servers}
            for _ in range(rounds):
                for name, (_, path) in servers.items():
                    times[name].append(await load(path, connections=16, requests=4000))
        finally:
            for process, _ in servers.values():
                process.terminate()
                process.join()
    return rows(times, "req/s", lambda value, base: value / base)


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
    parser.add_argument("--no-server", action="store_true")
    arguments = parser.parse_args()
    run: Callable[[Awaitable[Any]], Any] = asyncio.run  # type: ignore[assignment]
    result = {"in process": run(in_process(arguments.rounds))}
    if not arguments.no_server:
        result["through uvicorn (uvloop, httptools; the load comes from the same machine)"] = run(
            through_uvicorn(max(3, arguments.rounds // 3))
        )
    if arguments.json:
        json.dump({"python": sys.version.split()[0], "cpus": os.cpu_count(), **result}, sys.stdout, indent=2)
        return
    for title, table in result.items():
        show(title, table)


if __name__ == "__main__":
    main()
