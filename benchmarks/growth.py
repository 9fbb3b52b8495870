"""How costs grow: with entries, tenants, generations, the size of a body, what is in flight, processes and distance.

    python -m benchmarks.growth [--quick] [--json] [--only TOPIC ...] [--write DIRECTORY]

Each topic changes one number and leaves all others as they are in benchmarks/compare.py. What is printed are medians of
interleaved rounds. `--write docs` draws a picture of each topic (SVG), and puts the tables into docs/performance.md.
"""

import argparse
import asyncio
import json
import logging
import selectors
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
import uvloop

from benchmarks import functions, page, serving
from benchmarks.compare import Client, ignore, machine, number
from benchmarks.hit import HEADERS, scope
from benchmarks.peers import KEY, PATH
from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Receive, Scope, Send

MEMORY = "hit in memory, µs"
STORE = "hit in Redis, µs"
GET = "one redis-py GET, µs"
MISS = "miss, µs"


@dataclass
class Topic:
    """One number that grows, and what is measured as it does."""

    name: str
    title: str
    grows: str
    steps: list[str] = field(default_factory=list)
    lines: dict[str, list[float | None]] = field(default_factory=dict)
    log: bool = False
    """Whether the costs span so much that a linear axis would hide the small ones."""

    def add(self, step: str, figures: Mapping[str, float | None]) -> None:
        """Note what was measured at one step."""
        self.steps.append(step)
        for line, value in figures.items():
            self.lines.setdefault(line, []).append(value)

    def markdown(self) -> str:
        """Write the table down."""
        names = list(self.lines)
        rows = [(step, *(number(self.lines[name][place]) for name in names)) for place, step in enumerate(self.steps)]
        return page.markdown((self.grows, *names), rows)


class Site:
    """An app behind a cache: any number of tenants, tags and bytes."""

    def __init__(self, cache: NexCache, *, body: int = 2_000, tags: int = 1, tenants_of: int = 1) -> None:
        self._body = b"x" * body
        by_tenant = {f"tenant-{each}": f"{KEY}-{each}" for each in range(tenants_of)}
        self._fields = [
            [(name, secret.encode() if name == b"x-api-key" else value) for name, value in HEADERS]
            for secret in by_tenant.values()
        ]
        keys = tenants.api_key(keys=by_tenant)
        named = [f"t{each}:{{service}}" for each in range(tags)]
        policy = Policy(PATH, op="service_details", ttl="1h", tags=named, max_body="2MiB")
        self.app = CacheMiddleware(self._origin, cache=cache, tenant=keys, principal=keys, policies=[policy])

    async def _origin(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": self._body})

    def request(self, url: int, tenant: int = 0) -> Scope:
        """Make one of the requests."""
        asked = scope(url)
        asked["headers"] = list(self._fields[tenant % len(self._fields)])
        return asked

    async def ask(self, asked: Sequence[Scope], in_flight: int = 1) -> float:
        """Microseconds per request."""
        queue = iter([(dict(each), Client()) for each in asked])

        async def worker() -> None:
            for each, client in queue:
                await self.app(each, client, ignore)

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(in_flight)))
        return (time.perf_counter() - began) / len(asked) * 1e6


async def median(rounds: int, *measures: Callable[[], Awaitable[float]]) -> list[float]:
    """Measure in turn, and return the medians."""
    times: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for place, each in enumerate(measures):
            times[place].append(await each())
    return [statistics.median(each) for each in times]


class Run:
    """One run."""

    def __init__(self, url: str, *, quick: bool) -> None:
        self.url = url
        self.quick = quick
        self.rounds = 2 if quick else 7

    def memory(self, **settings: Any) -> NexCache:
        """A cache without a server."""
        return NexCache(Settings(redis_url=None, redis_host=None, **settings))

    def store(self, url: str | None = None, *, l1: bool = False) -> NexCache:
        """A cache in front of a server."""
        return NexCache(
            Settings(redis_url=url or self.url, op_timeout_ms=5000, signing_keys={"k": "k" * 32}, l1_enabled=l1)
        )

    async def entries(self) -> Topic:
        """Keys in the server that are not asked for, and an invalidation of them all."""
        topic = Topic("entries", "Entries in Redis", "entries")
        client = redis.asyncio.Redis.from_url(self.url)
        held = 0
        async with self.store() as cache:
            site = Site(cache)
            urls = [site.request(each % 256) for each in range(1024)]
            for wanted in (1_000, 10_000) if self.quick else (1_000, 10_000, 100_000, 1_000_000):
                while held < wanted:
                    keys = {f"nexarch:tenant-0:other:{each:032x}": b"x" * 100 for each in range(held, held + 1_000)}
                    await client.mset(keys)
                    held += 1_000
                await site.ask(urls[:512])

                async def invalidate() -> float:
                    began = time.perf_counter()
                    await cache.invalidate("tenant-0", "*")
                    return (time.perf_counter() - began) * 1e6

                async def hit() -> float:
                    await site.ask(urls[:256])
                    await site.ask(urls[:256])
                    return await site.ask(urls)

                gone, served = await median(self.rounds, invalidate, hit)
                topic.add(f"{wanted:,}", {STORE: served, "invalidate them all, µs": gone})
        await client.flushall()
        await client.aclose()
        return topic

    async def tenants(self) -> Topic:
        """Tenants that take turns, each with an entry of its own."""
        topic = Topic("tenants", "Tenants", "tenants")
        for count in (1, 10, 100) if self.quick else (1, 10, 100, 1_000, 10_000):
            async with self.memory() as cache:
                site = Site(cache, tenants_of=count)
                asked = [site.request(1, tenant) for tenant in range(count)]
                many = (asked * (5_000 // count + 1))[: max(5_000, count)]
                await site.ask(asked)
                await site.ask(asked)
                (served,) = await median(self.rounds, lambda site=site, many=many: site.ask(many))  # type: ignore[misc]
                topic.add(f"{count:,}", {MEMORY: served})
        return topic

    async def generations(self) -> Topic:
        """Tags of one policy; tenant and operation are two generations more."""
        topic = Topic("generations", "Generations that an entry depends on", "generations", log=True)
        for count in (3, 8) if self.quick else (3, 4, 8, 16, 32):
            figures = await self._site(body=2_000, tags=count - 2)
            topic.add(str(count), figures)
        return topic

    async def body(self) -> Topic:
        """Bytes of an answer."""
        topic = Topic("body", "Size of the body", "bytes", log=True)
        client = redis.asyncio.Redis.from_url(self.url)
        for size in (200, 20_000) if self.quick else (200, 2_000, 20_000, 200_000, 1_000_000):

            async def get(size: int = size) -> float:
                await client.set("bare", b"x" * size)
                began = time.perf_counter()
                for _ in range(50):
                    await client.get("bare")
                return (time.perf_counter() - began) / 50 * 1e6

            figures = await self._site(body=size, tags=1)
            (bare,) = await median(self.rounds, get)
            topic.add(f"{size:,}", {**figures, GET: bare})
        await client.aclose()
        return topic

    async def _site(self, *, body: int, tags: int) -> dict[str, float | None]:
        urls = 16
        with redis.Redis.from_url(self.url) as server:
            server.flushall()  # nothing of the step before
        async with self.memory() as cache, self.store() as stored:
            here, there = Site(cache, body=body, tags=tags), Site(stored, body=body, tags=tags)
            asked = [here.request(each) for each in range(urls)]
            fresh = iter(range(1_000, 1_000_000))
            for site in (here, there):
                for _ in range(3):
                    await site.ask(asked)
            in_memory, in_store, miss = await median(
                self.rounds,
                lambda: here.ask(asked * 100),
                lambda: there.ask(asked * 12),
                lambda: there.ask([there.request(next(fresh)) for _ in range(8)]),
            )
        return {MEMORY: in_memory, STORE: in_store, MISS: miss}

    async def in_flight(self) -> Topic:
        """Requests that are under way at the same time, each for another URL."""
        topic = Topic("in-flight", "Requests in flight", "in flight")
        client = redis.asyncio.Redis.from_url(self.url, max_connections=512)
        await client.set("bare", b"x" * 2_000)
        async with self.store() as cache:
            site = Site(cache)
            asked = [site.request(each % 256) for each in range(2_048)]
            for _ in range(3):
                await site.ask(asked[:256])

            async def get(many: int) -> float:
                queue = iter(range(1_024))

                async def worker() -> None:
                    for _ in queue:
                        await client.get("bare")

                began = time.perf_counter()
                await asyncio.gather(*(worker() for _ in range(many)))
                return (time.perf_counter() - began) / 1_024 * 1e6

            for many in (1, 16) if self.quick else (1, 4, 16, 64, 256):
                bare, served = await median(
                    self.rounds,
                    lambda many=many: get(many),  # type: ignore[misc]
                    lambda many=many: site.ask(asked, many),  # type: ignore[misc]
                )
                topic.add(str(many), {GET: bare, STORE: served})
        await client.aclose()
        return topic

    def processes(self) -> Topic:
        """Server processes, each under its own load, which needs the processors too."""
        topic = Topic("processes", "Server processes", "processes")
        for count in (1, 2) if self.quick else (1, 2, 4):
            rates: dict[str, float | None] = {}
            for name, line in (
                ("bare", "bare app, requests/s"),
                ("nexcache memory", "hit in memory, requests/s"),
                ("nexcache redis", "hit in Redis, requests/s"),
            ):
                with ExitStack() as stack:
                    ports = [stack.enter_context(serving.running("uvicorn", name, self.url)) for _ in range(count)]
                    for port in ports:
                        serving.check(port)
                    with ThreadPoolExecutor(count) as pool:
                        totals = [
                            sum(pool.map(lambda port: serving.load(port, 1.0), ports))
                            for _ in range(1 if self.quick else 3)
                        ]
                rates[line] = statistics.median(totals)
            topic.add(str(count), rates)
        return topic

    async def distance(self) -> Topic:
        """A server that is farther away: a proxy holds back what passes, in both directions."""
        topic = Topic("distance", "Time to Redis and back", "round trip", log=True)
        for milliseconds in (0.0, 1.0) if self.quick else (0.0, 0.5, 1.0, 2.0, 5.0):
            with far(self.url, milliseconds / 2000) as url:
                topic.add(f"+{milliseconds:g} ms", await self._at(url))
        return topic

    async def _at(self, url: str) -> dict[str, float | None]:
        async with self.store(url) as cache, self.store(url, l1=True) as with_memory:
            site, near = Site(cache), Site(with_memory)
            asked = [site.request(each % 256) for each in range(1_024)]
            fresh = iter(range(1_000, 1_000_000))
            await asyncio.sleep(0.3)  # the second is registered by now
            for each in (site, near):
                for _ in range(3):
                    await each.ask(asked[:256], 64)
            async with redis.asyncio.Redis.from_url(url) as client:

                async def held() -> float:
                    await near.ask(asked[:256], 64)  # what nobody has asked for lately is looked at again
                    return await near.ask(asked)

                async def trip() -> float:
                    await client.ping()  # the connection is open
                    began = time.perf_counter()
                    for _ in range(5):
                        await client.ping()
                    return (time.perf_counter() - began) / 5 * 1e6

                away, alone, together, memory, miss = await median(
                    max(3, self.rounds // 2),
                    trip,
                    lambda: site.ask(asked[:32]),
                    lambda: site.ask(asked, 64),
                    held,
                    lambda: site.ask([site.request(next(fresh)) for _ in range(8)]),
                )
        figures: dict[str, float | None] = {"one PING, µs": away, MEMORY: memory, STORE: alone}
        return figures | {"hit in Redis, 64 in flight, µs": together, MISS: miss}


def proxy(port: int, upstream: int, delay: float) -> None:
    """Pass on what comes, both ways, so many seconds later (in a process of its own)."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(1 << 18):
            loop.call_later(delay, writer.write, data)  # what comes later leaves later
        loop.call_later(delay, writer.close)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", upstream)
        await asyncio.gather(carry(reader, back), carry(there, writer), return_exceptions=True)

    async def listen() -> None:
        async with await asyncio.start_server(accept, "127.0.0.1", port) as server:
            await server.serve_forever()

    # epoll waits for whole milliseconds
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(listen())


@contextmanager
def far(url: str, delay: float) -> Iterator[str]:
    """Give the URL of a server that is `delay` seconds farther away, each way."""
    port, upstream = serving.free_port(), int(url.rstrip("/0").rpartition(":")[2])
    process = get_context("spawn").Process(target=proxy, args=(port, upstream, delay), daemon=True)
    process.start()
    try:
        serving.wait_for(port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.join()


def draw(topic: Topic, file: Path) -> None:
    """Draw one topic."""
    import matplotlib as mpl  # noqa: PLC0415 - only where pictures are wanted

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "nexcache", "font.size": 9})
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(5.6, 2.9), layout="constrained")
    for (line, values), marker in zip(topic.lines.items(), "osD^v", strict=False):
        axes.plot(
            topic.steps, [float("nan") if value is None else value for value in values], label=line, marker=marker
        )
    if topic.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.yaxis.set_minor_formatter(lambda *_: "")
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(topic.title)
    axes.grid(visible=True, axis="y", linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(file, metadata={"Date": None, "Title": topic.title})
    plt.close(figure)


TOPICS: dict[str, Callable[[Run], Any]] = {
    "entries": Run.entries,
    "tenants": Run.tenants,
    "generations": Run.generations,
    "body": Run.body,
    "in-flight": Run.in_flight,
    "processes": Run.processes,
    "distance": Run.distance,
}


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="the first steps only")
    parser.add_argument("--only", nargs="+", choices=TOPICS, default=list(TOPICS))
    parser.add_argument("--write", type=Path, metavar="DIRECTORY", help="the directory of performance.md")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)
    topics: list[Topic] = []
    with functions.server() as url:
        found = machine(url)
        run = Run(url, quick=arguments.quick)
        for name in arguments.only:
            print(f"{name} …", file=sys.stderr, flush=True)
            with redis.Redis.from_url(url) as server:
                server.flushall()  # nothing of the topic before
            measured = TOPICS[name](run)
            topics.append(measured if isinstance(measured, Topic) else uvloop.run(measured))
    if arguments.write is not None:
        (arguments.write / "figures").mkdir(exist_ok=True)
        for topic in topics:
            draw(topic, arguments.write / "figures" / f"growth-{topic.name}.svg")
            page.put(arguments.write / "performance.md", f"growth-{topic.name}", f"\n{topic.markdown()}\n")
        machine_line = "; ".join(f"{name}: {value}" for name, value in found.items())
        page.put(arguments.write / "performance.md", "growth-machine", machine_line)
    if arguments.json:
        json.dump({"machine": found, "topics": [asdict(topic) for topic in topics]}, sys.stdout, indent=2)
        return
    print("; ".join(f"{name}: {value}" for name, value in found.items()))
    for topic in topics:
        print(f"\n{topic.title}\n\n{topic.markdown()}")


if __name__ == "__main__":
    main()
