"""What many concurrent cold requests cost: calls of the handler, and Redis commands per node.

    python benchmarks/stampede.py [--requests N] [--json]

A Valkey of its own, one and then two uvicorn processes, an unknown tenant, and all requests at once for one URL whose
handler takes 300 ms. Every answer is checked. Commands are those that serve requests: what a node does by the clock
(its registration, the statistics) is left out.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import redis
import uvicorn

from nexcache import CacheMiddleware, NexCache, Policy, tenants
from nexcache.asgi import Receive, Scope, Send
from nexcache.demo.valkey import EmbeddedValkey

COUNTED = ("mget", "set", "sadd", "smismember", "smembers", "pttl", "unlink", "eval", "publish")
BODY = b"the answer"


def serve(port: int) -> None:
    """Be one node."""
    calls = Path(os.environ["STAMPEDE_CALLS"])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("no lifespan here")
        if scope["path"] == "/cold":
            note(calls)
            await asyncio.sleep(0.3)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(BODY))]})
        await send({"type": "http.response.body", "body": BODY})

    cache = NexCache.from_env(op_timeout_ms=2000)
    policies = [Policy("/cold", op="cold"), Policy("/other", op="other")]
    site = CacheMiddleware(app, cache=cache, tenant=tenants.header("x-tenant", trusted=True), policies=policies)
    uvicorn.run(site, port=port, log_level="warning", backlog=4096)


def note(calls: Path) -> None:
    """Count one call of the handler, in whichever process."""
    with calls.open("ab") as file:
        file.write(b"%d\n" % os.getpid())


def noted(calls: Path) -> int:
    """Return how many there were."""
    return len(calls.read_bytes().splitlines()) if calls.exists() else 0


async def ask(port: int, path: str, tenant: str) -> bool:
    """Send one request; whether it was answered rightly."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: b\r\nx-tenant: {tenant}\r\nconnection: close\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()
    return answer.startswith(b"HTTP/1.1 200") and answer.endswith(BODY)


async def storm(ports: list[int], requests: int, server: redis.Redis, calls: Path) -> dict[str, Any]:
    """Send all requests at once, and count."""
    for port in ports:  # each node is up, and connected
        while True:
            try:
                await ask(port, "/other", "warm")
                break
            except OSError:
                await asyncio.sleep(0.05)
    subscribed = time.monotonic() + 10
    while server.pubsub_numsub("nexarch:@events")[0][1] < len(ports) and time.monotonic() < subscribed:  # noqa: ASYNC110 - the server tells nobody
        await asyncio.sleep(0.02)
    server.config_resetstat()
    began = time.perf_counter()
    answers = await asyncio.gather(*(ask(ports[number % len(ports)], "/cold", "acme") for number in range(requests)))
    seconds = time.perf_counter() - began
    stats = server.info("commandstats")
    commands = {name: stats[f"cmdstat_{name}"]["calls"] for name in COUNTED if f"cmdstat_{name}" in stats}
    return {
        "processes": len(ports),
        "requests": requests,
        "answered": sum(answers),
        "handler_calls": noted(calls),
        "commands_per_node": round(sum(commands.values()) / len(ports), 1),
        "commands": commands,
        "seconds": round(seconds, 3),
    }


def run(processes: int, requests: int) -> dict[str, Any]:
    """Start the nodes, send the requests, stop the nodes."""
    with EmbeddedValkey() as valkey, tempfile.TemporaryDirectory() as directory:
        calls = Path(directory) / "calls"
        ports = []
        for _ in range(processes):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                ports.append(free.getsockname()[1])
        environment = {**os.environ, "REDIS_URL": valkey.url, "STAMPEDE_CALLS": str(calls)}
        nodes = [
            subprocess.Popen(
                [sys.executable, __file__, "--node", str(port)], env=environment, stderr=subprocess.DEVNULL
            )
            for port in ports
        ]
        try:
            with redis.Redis(port=valkey.port) as server:
                return asyncio.run(storm(ports, requests, server, calls))
        finally:
            for node in nodes:
                node.kill()
                node.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--node", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.node is not None:
        serve(options.node)
        return
    rows = [run(processes, options.requests) for processes in (1, 2)]
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        commands = ", ".join(f"{name} {number}" for name, number in row["commands"].items())
        print(
            f"{row['processes']} process(es): {row['requests']} cold requests, {row['answered']} answered, "
            f"{row['handler_calls']} handler call(s), {row['commands_per_node']} commands per node ({commands})"
        )


if __name__ == "__main__":
    main()
