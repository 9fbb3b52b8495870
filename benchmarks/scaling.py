"""What nodes cost a Redis Cluster: many of them in this process, against real servers.

    python -m benchmarks.scaling [--nodes N ...] [--seconds S] [--json]

Three primaries, and nodes with everything on, each of which answers hits of the same few tenants from memory. Counted
are the commands that the primaries carried out and the processor time that they took; measured is how long an
invalidation takes until it is acknowledged, until the last node has heard of it, and with `wait="strict"`. All nodes
share one process: what it needs itself delays the last two, so they are upper bounds.
"""

import argparse
import asyncio
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.compare import Table, number
from nexcache import NexCache, Settings
from tests.servers import Valkey, binary
from tests.topologies.servers import Cluster

TENANTS = 6
INVALIDATIONS = 10


@dataclass
class Measured:
    """What so many nodes cost."""

    nodes: int
    commands: float
    """Per second and node, on all primaries together."""
    info: float
    """Those of them that read the servers' history."""
    busiest: float
    """The share of one processor that the busiest primary took, in percent."""
    per_node: float
    """Microseconds of processor time per second and node, on all primaries together."""
    acknowledged: float
    """Milliseconds of an invalidation, as are the next two."""
    heard: float
    strict: float
    invalidation: float
    """Microseconds of the servers' processor time that a strict invalidation takes, per node."""


class Node:
    """A node whose memory answers one call per tenant again and again."""

    def __init__(self, url: str, tenants: Sequence[str]) -> None:
        self.cache = NexCache(Settings(redis_url=url, op_timeout_ms=5000))
        self._tenants = tenants
        self._serving: asyncio.Task[None] | None = None

        async def load(tenant: str) -> str:
            return tenant

        self._load = self.cache.cached("load", ttl="1h", tenant="tenant")(load)

    async def start(self) -> None:
        """Fill the memory and go on asking it."""
        await self.cache.start()
        self._serving = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        while True:
            for tenant in self._tenants:
                await self._load(tenant)
            await asyncio.sleep(0.1)

    @property
    def changes(self) -> int:
        """Rises when the node hears of an invalidation."""
        view = self.cache.entries._view  # noqa: SLF001 - nobody else needs to know
        assert view is not None
        return view.changes

    async def aclose(self) -> None:
        """End."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        await self.cache.aclose()


def used(servers: Sequence[Valkey]) -> list[tuple[int, int, float]]:
    """Return for each server the commands carried out, the INFO among them, and the seconds of processor time."""
    found = []
    for server in servers:
        stats: Mapping[str, Any] = server.ask("INFO", "commandstats")
        cpu: Mapping[str, Any] = server.ask("INFO", "cpu")
        calls = {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}
        seconds = float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
        found.append((sum(calls.values()), calls.get("info", 0), seconds))
    return found


async def measure(cluster: Cluster, count: int, seconds: float) -> Measured:
    """Let so many nodes run, count, and invalidate."""
    tenants = [f"tenant-{each}" for each in range(TENANTS)]
    nodes = [Node(cluster.url, tenants) for _ in range(count)]
    try:
        for node in nodes:
            await node.start()
        await asyncio.sleep(2.0)  # all are registered, and trust
        before, began = used(cluster.nodes), time.perf_counter()
        await asyncio.sleep(seconds)
        after, took = used(cluster.nodes), time.perf_counter() - began
        spent = [now[2] - then[2] for then, now in zip(before, after, strict=True)]
        commands = sum(now[0] - then[0] for then, now in zip(before, after, strict=True))
        info = sum(now[1] - then[1] for then, now in zip(before, after, strict=True))
        acknowledged, heard = await invalidated(nodes)
        strictly, started = [], used(cluster.nodes)
        for _ in range(INVALIDATIONS):
            at = time.perf_counter()
            await nodes[0].cache.invalidate("tenant-0", "load", wait="strict")
            strictly.append((time.perf_counter() - at) * 1000)
        ended, lasted = used(cluster.nodes), sum(strictly) / 1000
        idle = sum(spent) / took * lasted
        for_them = sum(now[2] - then[2] for then, now in zip(started, ended, strict=True)) - idle
    finally:
        for node in nodes:
            await node.aclose()
    return Measured(
        count,
        commands / took / count,
        info / took / count,
        max(spent) / took * 100,
        sum(spent) / took / count * 1e6,
        acknowledged,
        heard,
        statistics.median(strictly),
        max(0.0, for_them) / INVALIDATIONS / count * 1e6,
    )


async def invalidated(nodes: Sequence[Node]) -> tuple[float, float]:
    """Return milliseconds until an invalidation is acknowledged, and until every node distrusts what it held."""
    acknowledged, heard = [], []
    for _ in range(INVALIDATIONS):
        await asyncio.sleep(0.3)
        changes = [node.changes for node in nodes]
        began = time.perf_counter()
        await nodes[0].cache.invalidate("tenant-0", "load")
        acknowledged.append((time.perf_counter() - began) * 1000)
        while any(node.changes == before for node, before in zip(nodes, changes, strict=True)):
            if time.perf_counter() - began > 1:
                break
            await asyncio.sleep(0)
        heard.append((time.perf_counter() - began) * 1000)
    return statistics.median(acknowledged), statistics.median(heard)


async def run(counts: Sequence[int], seconds: float) -> list[Measured]:
    """Measure each number of nodes against servers of its own."""
    found = []
    for count in counts:
        print(f"{count} node(s) …", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as directory, Cluster(Path(directory), binary()) as cluster:
            found.append(await measure(cluster, count, seconds))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--nodes", nargs="+", type=int, default=[1, 10, 30, 60])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)
    found = uvloop.run(run(arguments.nodes, arguments.seconds))
    if arguments.json:
        json.dump([asdict(each) for each in found], sys.stdout, indent=2)
        return
    columns = (
        "nodes",
        "commands/s per node",
        "INFO/s",
        "busiest primary, %",
        "server µs/s per node",
        "acknowledged, ms",
        "heard by all, ms",
        "strict, ms",
        "server µs per strict and node",
    )
    table = Table(f"three primaries, {TENANTS} tenants in use on every node", columns)
    for each in found:
        table.rows.append(tuple(number(value) for value in asdict(each).values()))
    table.show()


if __name__ == "__main__":
    main()
