"""NexCache beside its peers, and beside what it promises: one command, one table.

    python -m benchmarks.compare [--rounds N] [--quick] [--json] [--only SECTION ...] [--write docs]

The request is the one of every comparison: a body of 2,000 bytes, 256 distinct URLs with three query parameters each,
ten request header fields. NexCache does all it does in production: tenant, principal, policy with a tag,
generations, ETag, Age, Cache-Status, statistics, telemetry present and unsampled, values signed. Each contender is
checked before it is timed: every URL is answered right, the second time without its handler, and the Redis commands
of a hit are counted. Rounds of the contenders are interleaved and every figure is the median of ratios taken within a
round, because machines are noisy; the A/A row, the same app measured twice, says how noisy. What a miss adds is a
time, no ratio: of it the quietest of several rounds counts, between which everything else is measured. The 256 URLs
rotate: with one hot URL, requests that share what is in flight make a slow store look fast.

A Valkey is started for it, or REDIS_URL names one that may be filled. nginx, Varnish and wrk are used where they are
installed; without wrk the load comes from a client in Python, which takes from the server what it needs itself.
"""

import argparse
import asyncio
import gc
import json
import logging
import os
import platform
import random
import shutil
import statistics
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
import uvloop

from benchmarks import degraded, functions, invalidate, page, serving, stampede
from benchmarks.hit import BODY, HEADERS, URLS, scope
from benchmarks.peers import COLD, IN_MEMORY, KEY, PATH, PEERS, Contender, Origin, nexcache
from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import ASGIApp, Message, Receive, Scope, Send
from nexcache.demo.valkey import EmbeddedValkey

NEXCACHE = "NexCache"
NEXCACHE_L2 = "NexCache, memory off"
ENTRIES = 1_000
ENTRIES_IN_MEMORY = 10_000
"""So many that what they share, and their contenders' too, counts for little."""
COLD_REQUESTS = 500


@dataclass
class Row:
    """One figure of ours beside what is promised, and the best of the peers in the same run."""

    figure: str
    unit: str
    ours: float | None
    must: float | None
    aim: float | None
    at_least: bool = False
    best_peer: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """Say which of the two bounds it keeps: `aim`, `must` or `MISSED`."""
        if self.ours is None:
            return "not measured"

        def holds(bound: float) -> bool:
            assert self.ours is not None
            return self.ours >= bound if self.at_least else self.ours <= bound

        if self.must is not None and not holds(self.must):
            return "MISSED"
        if self.aim is None or holds(self.aim):
            return "aim" if self.aim is not None else "must"
        return "must" if self.must is not None else "aim missed"


@dataclass
class Table:
    """Figures of all contenders of one kind."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def show(self) -> None:
        """Print it."""
        print(f"\n{self.title}")
        widths = [max(len(row[place]) for row in (self.columns, *self.rows)) for place in range(len(self.columns))]
        for row in (self.columns, *self.rows):
            cells = [
                text.ljust(width) if not at else text.rjust(width)
                for at, (text, width) in enumerate(zip(row, widths, strict=True))
            ]
            print("  ".join(cells).rstrip())


@dataclass
class Result:
    """Everything that one run has found."""

    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


class Wrong(Exception):  # noqa: N818 - reads as what it says
    """A contender that answers wrongly, or runs its handler for a hit, is not timed."""


class Client:
    """One request's client: sends nothing, and stays."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        self.asked = False

    async def __call__(self) -> Message:
        if self.asked:
            await asyncio.get_running_loop().create_future()
        self.asked = True
        return {"type": "http.request", "body": b"", "more_body": False}


async def ignore(message: Message) -> None:
    """Take a message."""


async def check(contender: Contender, count: Callable[[], int] | None = None) -> float:
    """Ask for every URL twice; returns the Redis commands of a hit."""
    commands = 0
    for again in (False, True):
        before = contender.origin.calls
        counted = count() if count is not None else 0
        for number in range(URLS):
            sent: list[Message] = []

            async def send(message: Message, sent: list[Message] = sent) -> None:
                sent.append(message)

            await contender.app(scope(number), Client(), send)
            body = b"".join(part.get("body", b"") for part in sent[1:])
            if sent[0]["status"] != 200 or body != BODY:
                raise Wrong(f"answers {sent[0]['status']} with {len(body)} bytes")
        commands = (count() if count is not None else 0) - counted
        if again and contender.origin.calls != before:
            raise Wrong("a hit runs the handler")
    return commands / URLS


async def timed(app: ASGIApp, requests: int, in_flight: int = 1) -> float:
    """Microseconds per request; what a server would make before it calls the app is in none of it."""
    asked = [(scope(number % URLS), Client()) for number in range(requests)]
    queue = iter(asked)

    async def worker() -> None:
        for each, client in queue:
            await app(each, client, ignore)

    gc.collect()
    began = time.perf_counter()
    if in_flight == 1:
        await worker()
    else:
        await asyncio.gather(*(worker() for _ in range(in_flight)))
    return (time.perf_counter() - began) / requests * 1e6


async def pace(app: ASGIApp, in_flight: int = 1, *, most: int = 10_000, seconds: float = 0.08) -> int:
    """Return how many requests take about so long."""
    await timed(app, 2 * in_flight, in_flight)  # its connections are open now
    once = await timed(app, 2 * in_flight, in_flight)
    return int(max(2 * in_flight, min(most, seconds * 1e6 / once)))


@dataclass
class Measured:
    """One contender: what a request takes, in the same rounds as the bare one."""

    name: str
    times: list[float] = field(default_factory=list)
    commands: float | None = None

    def ratio(self, base: "Measured") -> float:
        """Return the median of the ratios within a round."""
        return statistics.median(mine / its for mine, its in zip(self.times, base.times, strict=True))


async def interleaved(apps: dict[str, ASGIApp], rounds: int, in_flight: int = 1) -> dict[str, Measured]:
    """Measure in turn, the whole field `rounds` times."""
    requests = {name: await pace(app, in_flight) for name, app in apps.items()}
    found = {name: Measured(name) for name in apps}
    for turn in range(rounds):
        names = list(apps) if turn % 2 == 0 else list(reversed(apps))
        for name in names:
            found[name].times.append(await timed(apps[name], requests[name], in_flight))
    return found


class Run:
    """One run of everything that is asked for."""

    def __init__(self, rounds: int, *, quick: bool, url: str) -> None:
        self.rounds = rounds
        self.quick = quick
        self.url = url
        self.result = Result(machine(url))
        self.calls_when_cold: dict[str, int] = {}
        self.rounds_of_misses: list[dict[str, float]] = []

    def leave_out(self, name: str, error: BaseException) -> None:
        """Note why a contender is not measured."""
        reason = f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if reason not in self.result.left_out:
            self.result.left_out.append(reason)

    @asynccontextmanager
    async def contenders(self, where: str) -> AsyncIterator[dict[str, tuple[Contender, float]]]:
        """Build, start and check NexCache and every peer that keeps its entries there; with the commands of a hit."""
        found: dict[str, tuple[Contender, float]] = {}
        started: list[Contender] = []
        server = redis.Redis.from_url(self.url)
        builds: dict[str, Callable[[], Contender]] = {}
        if where == "memory":
            builds[NEXCACHE] = lambda: nexcache(None)
        else:
            builds[NEXCACHE_L2] = lambda: nexcache(self.url, l1_enabled=False)
        for peer in PEERS:
            place = peer.memory if where == "memory" else peer.redis
            builds[f"{peer.name}, {place}"] = lambda peer=peer: peer.build(None if where == "memory" else self.url)  # type: ignore[misc]
        count = None if where == "memory" else lambda: commands_sent(server)
        try:
            for name, build in builds.items():
                try:
                    contender = build()
                    await contender.start()
                    started.append(contender)
                    found[name] = contender, await check(contender, count)
                except (Exception, SystemExit) as error:
                    if name in (NEXCACHE, NEXCACHE_L2):
                        raise
                    self.leave_out(name, error)
            yield found
        finally:
            for contender in started:
                try:
                    await contender.close()
                except Exception as error:  # noqa: BLE001 - a peer that cannot end must not end the run
                    self.leave_out(f"ending {contender.app!r:.60}", error)
            server.close()

    async def in_memory(self) -> None:
        """A hit in this process."""
        bare = Origin()
        async with self.contenders("memory") as found:
            apps: dict[str, ASGIApp] = {"bare app": bare, "bare app (A/A)": bare}
            apps.update({name: contender.app for name, (contender, _) in found.items()})
            measured = await interleaved(apps, self.rounds)
            cold = {name: await stampeded(contender) for name, (contender, _) in found.items()}
        base = measured["bare app"]
        table = Table(
            "hit in memory, in process",
            ("contender", "µs", "times bare", f"handler calls of {COLD_REQUESTS} cold requests", "failed"),
        )
        for name, each in sorted(measured.items(), key=lambda item: item[1].ratio(base)):
            calls, failed = cold.get(name, (None, None))
            table.rows.append(
                (name, number(statistics.median(each.times)), number(each.ratio(base)), number(calls), number(failed))
            )
        self.result.tables.append(table)
        peers = {name: each.ratio(base) for name, each in measured.items() if name in found and name != NEXCACHE}
        self.result.rows.append(
            Row(
                "hit in memory, in process",
                "times bare app",
                measured[NEXCACHE].ratio(base),
                12,
                6,
                best_peer=best(peers),
            )
        )

    async def in_redis(self) -> None:
        """A hit in Redis, alone and with others."""
        client = redis.asyncio.Redis.from_url(self.url)
        for number_of in range(URLS):
            await client.set(f"bare:{number_of}", BODY)

        async def get(asked: Scope, receive: Receive, send: Send) -> None:
            await client.get(b"bare:" + asked["query_string"].partition(b"&")[0][5:])

        for in_flight, must, aim in ((1, 1.5, 0.7), (64, 0.25, 0.16)):
            async with self.contenders("redis") as found:
                apps: dict[str, ASGIApp] = {"redis-py GET": get, "redis-py GET (A/A)": get}
                apps.update({name: contender.app for name, (contender, _) in found.items()})
                with one_processor(self.url) if in_flight == 1 else nullcontext():
                    measured = await interleaved(apps, self.rounds, in_flight)
            base = measured["redis-py GET"]
            table = Table(
                f"hit in Redis, in process, {in_flight} in flight",
                ("contender", "µs", "times one GET", "Redis commands of a hit"),
            )
            for name, each in sorted(measured.items(), key=lambda item: item[1].ratio(base)):
                commands = found[name][1] if name in found else 1.0
                table.rows.append(
                    (name, number(statistics.median(each.times)), number(each.ratio(base)), number(commands))
                )
            self.result.tables.append(table)
            peers = {name: each.ratio(base) for name, each in measured.items() if name in found and name != NEXCACHE_L2}
            self.result.rows.append(
                Row(
                    f"hit in Redis, {in_flight} in flight",
                    "times one redis-py GET",
                    measured[NEXCACHE_L2].ratio(base),
                    must,
                    aim,
                    best_peer=best(peers),
                    note=f"{found[NEXCACHE_L2][1]:.2f} commands a hit",
                )
            )
        await client.aclose()

    def served(self) -> None:
        """The same through servers, under load."""
        seconds, rounds = (1.0, 2) if self.quick else (2.0, max(3, self.rounds // 3))
        names = {"bare": "bare app", "nexcache memory": NEXCACHE, "nexcache redis": NEXCACHE_L2}
        peers = (
            {}
            if self.quick
            else {f"{PEERS[0].name} memory": f"{PEERS[0].name}, in memory", "cashews redis": "cashews, in Redis"}
        )
        for server, must, aim in (("uvicorn", 0.6, 0.8), ("granian", 0.7, 0.87)):
            with ExitStack() as stack:
                ports = {
                    title: stack.enter_context(serving.running(server, name, self.url)) for name, title in names.items()
                }
                if server == "uvicorn":
                    for name, title in peers.items():
                        try:
                            ports[title] = stack.enter_context(serving.running(server, name, self.url))
                        except RuntimeError as error:
                            self.leave_out(title, error)
                    for title, start in (("nginx proxy_cache", serving.nginx), ("Varnish", serving.varnish)):
                        try:
                            ports[title] = stack.enter_context(start(ports["bare app"]))
                        except (FileNotFoundError, RuntimeError) as error:
                            self.leave_out(title, error)
                for title, port in list(ports.items()):
                    try:
                        serving.check(port)
                        serving.load(port, 0.3)
                    except (RuntimeError, OSError) as error:
                        if title.startswith(NEXCACHE) or title == "bare app":
                            raise
                        self.leave_out(title, error)
                        del ports[title]
                rates: dict[str, list[float]] = {title: [] for title in (*ports, "bare app (A/A)")}
                for _ in range(rounds):
                    for title, reached in rates.items():
                        reached.append(serving.load(ports[title.removesuffix(" (A/A)")], seconds))
            shares = {title: share(found, rates["bare app"]) for title, found in rates.items()}
            table = Table(f"hit through {server}, 64 connections", ("contender", "requests/s", "share of bare"))
            for title, part in sorted(shares.items(), key=lambda item: -item[1]):
                table.rows.append((title, f"{statistics.median(rates[title]):,.0f}", number(part)))
            self.result.tables.append(table)
            peer = best({title: shares[title] for title in peers.values() if title in shares}, most=True)
            figures = [("memory", NEXCACHE, must, aim)]
            if server == "uvicorn":
                figures.append(("Redis", NEXCACHE_L2, 0.5, 0.65))
            for where, name, at_least, hoped in figures:
                figure = f"hit in {where} through {server}"
                row = Row(figure, "share of bare", shares[name], at_least, hoped, at_least=True, best_peer=peer)
                self.result.rows.append(row)

    def cold(self) -> None:
        """Many requests for what is not there yet."""
        commands = []
        for processes in (1, 2):
            found = stampede.run(processes, COLD_REQUESTS)
            calls = found["handler_calls"] + (found["requests"] - found["answered"])  # nobody may be turned away
            figure = f"{COLD_REQUESTS} cold requests, {processes} process{'es' * (processes > 1)}"
            self.result.rows.append(Row(figure, "handler calls", calls, 1, None))
            commands.append(sum(found["commands"].values()))
        waiting = max(0, commands[1] - commands[0])
        self.result.rows.append(Row("the same, commands of the node that waits", "Redis commands", waiting, None, 3))

    async def memory(self) -> None:
        """What an entry takes beyond its body, here and in Redis."""
        bounds = {2_000: (0.5, 0.25), 16_000: (0.15, 0.08)}
        table = Table("memory per entry in this process, beyond the body", ("contender", "2 KB", "16 KB"))
        found: dict[str, dict[int, float]] = {}
        builds: dict[str, Callable[[], Contender]] = {
            NEXCACHE: lambda: nexcache(None, l1_max_bytes=1 << 30, tenant_new_keys_per_minute=1_000_000)
        }
        for peer in PEERS:
            if peer.memory == IN_MEMORY and peer.sized:
                builds[f"{peer.name}, {peer.memory}"] = partial(peer.build, None)
        for name, build in builds.items():
            try:
                found[name] = {size: await beyond(build(), size) for size in bounds}
            except ImportError:
                continue  # said where its hits are measured
            except Wrong as reason:
                if name == NEXCACHE:
                    raise
                self.result.left_out.append(f"{name}, its size: {reason}")
        for name, sizes in sorted(found.items(), key=lambda each: each[1][2_000]):
            table.rows.append((name, *(f"{sizes[size]:.0%}" for size in bounds)))
        self.result.tables.append(table)
        for size, (must, aim) in bounds.items():
            best, name = min(
                ((sizes[size], each) for each, sizes in found.items() if each != NEXCACHE), default=(0, "")
            )
            told = f"{best:.2f} ({name.partition(',')[0]})" if name else ""
            figure = f"memory per entry, {size // 1000} KB"
            ours = found[NEXCACHE][size]
            self.result.rows.append(Row(figure, "of the body, beyond it", ours, must, aim, best_peer=told))
        plain, packed = await stored_size(self.url, compress=False), await stored_size(self.url, compress=True)
        self.result.rows.append(Row("Redis memory per 2 KB entry", "KB", plain / 1000, 2.8, None))
        self.result.rows.append(
            Row("the same, compressed", "KB", packed / 1000, 2.8, 2.0, note="a body of JSON records, 2,000 bytes")
        )

    async def look_at_misses(self) -> None:
        """Measure one round of what a miss adds."""
        first = 1_000_000 * (1 + len(self.rounds_of_misses))
        self.rounds_of_misses.append(await miss(self.url, 15 if self.quick else 100, first))

    async def misses(self) -> None:
        """What a miss adds to the handler's time, beyond the round trips; of several rounds the quietest."""
        while len(self.rounds_of_misses) < _ROUNDS_OF_MISSES:
            await self.look_at_misses()
        found = {name: min(each[name] for each in self.rounds_of_misses) for name in self.rounds_of_misses[0]}
        self.result.rows.append(Row("miss, in memory: added to the handler", "µs", found["memory"], 200, None))
        self.result.rows.append(
            Row(
                "miss, in Redis: added beyond its two round trips",
                "µs",
                found["redis"],
                200,
                None,
                note=f"which took {found['round trip']:.0f} µs each, by hand with redis-py",
            )
        )
        self.result.rows.append(
            Row("miss: the first byte, later than the handler's", "µs", found["first byte"], 200, None)
        )

    async def invalidation(self) -> None:
        """An invalidation by pattern, of few entries and of many, and what other clients see of it."""
        few, many = (100, 10_000) if self.quick else (1_000, 1_000_000)
        peer = "SCAN+UNLINK"
        with EmbeddedValkey() as server:
            found = [
                await invalidate.measure(server.url, entries, self.rounds * 3, {peer: invalidate.scan})
                for entries in (few, many)
            ]
        table = Table(
            "invalidate by pattern, all that a tenant has",
            (
                "contender",
                f"{few:,} entries, ms",
                f"{many:,}, ms",
                "another client's longest read, ms",
                "of a round",
            ),
        )
        for name in (NEXCACHE, peer, "nothing"):
            stall, of_all = found[1][f"{name} stall ms"], found[1].get(f"{name} stall of all ms")
            reads = (stall, None) if of_all is None else (of_all, stall)  # peers have one round
            table.rows.append((name, *(number(row.get(f"{name} ms")) for row in found), *map(number, reads)))
        self.result.tables.append(table)
        growth = {name: found[1][f"{name} ms"] / found[0][f"{name} ms"] for name in (NEXCACHE, peer)}
        self.result.rows.append(
            Row(
                f"invalidate {many:,} entries",
                f"times {few:,}",
                growth[NEXCACHE],
                3,
                1.5,
                best_peer=best({peer: growth[peer]}),
            )
        )
        self.result.rows.append(
            Row(
                "the same, another client's longest read",
                "ms",
                found[1][f"{NEXCACHE} stall of all ms"],
                2,
                1,
                best_peer=best({peer: found[1][f"{peer} stall ms"]}),
                note=f"which takes {found[1]['nothing stall of all ms']:.2f} ms where nobody invalidates",
            )
        )

    async def degraded(self) -> None:
        """The app behind a cache that is switched off, or has lost its Redis."""
        rounds = 10 if self.quick else degraded.ROUNDS
        rows = await degraded.measure(tuple(degraded.SETTINGS), rounds, degraded.rounds_of(1.0), degraded.REQUESTS)
        table = Table(
            "a cache of no use, before an app that computes for 1 ms", ("contender", "requests/s", "share of bare")
        )
        table.rows += [(row["contender"], f"{row['req/s']:,}", number(row["share"])) for row in rows]
        self.result.tables.append(table)
        shares = {row["contender"]: row["share"] for row in rows}
        for name in ("switched off", "Redis gone"):
            figure = f"an app of 1 ms, {name}"
            self.result.rows.append(Row(figure, "share of bare", shares[name], 0.95, 0.98, at_least=True))

    def functions(self) -> None:
        """A cached function, from a coroutine and from a thread."""
        rounds = max(3, self.rounds // 2)
        rows = functions.rows(asyncio.run(functions.coroutines(rounds)), "a bare dict in a coroutine")
        found = {row["call"]: row for row in rows}
        self.result.rows.append(Row("@cached hit in memory", "µs", found["cached, a text in memory"]["µs"], 8, 5))
        found = {row["call"]: row for row in functions.rows(functions.plain(rounds), "an empty hop")}
        self.result.rows.append(
            Row(
                "@cached, synchronous, hit in memory",
                "empty hops",
                found["cached, a text in memory (no hop)"]["ratio"],
                3,
                1,
            )
        )


async def stampeded(contender: Contender) -> tuple[int, int]:
    """Ask for one slow URL many times at once: how often the handler ran, and how many were not answered."""
    cold = scope(0)
    path = PATH.format(service=COLD)
    cold.update({"path": path, "raw_path": path.encode()})
    failed, before = 0, contender.origin.calls

    async def ask() -> None:
        nonlocal failed
        status = 0

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)

        try:
            await contender.app({**cold, "headers": list(HEADERS)}, Client(), send)
        except Exception:  # noqa: BLE001 - a request that is not answered
            status = 0
        failed += status != 200

    await asyncio.gather(*(ask() for _ in range(COLD_REQUESTS)))
    return contender.origin.calls - before, failed


def _behind(cache: NexCache, origin: Origin, **options: Any) -> CacheMiddleware:
    keys = tenants.api_key(keys={"acme": KEY})
    policy = Policy(PATH, op="service_details", ttl="1h", tags=["service:{service}"], **options)
    return CacheMiddleware(origin, cache=cache, tenant=keys, principal=keys, policies=[policy])


def _url(number: int) -> Scope:
    asked = scope(0)
    asked["query_string"] = b"from=%d&to=now&step=60" % number
    return asked


async def beyond(contender: Contender, size: int) -> float:
    """Return how much more than its body an entry takes, in shares of the body."""
    begin = size * ENTRIES_IN_MEMORY  # one of them shares its memory between all its instances
    contender.origin.answers = lambda: os.urandom(size // 2).hex().encode()
    await contender.start()
    for number_of in range(begin, begin + 50):
        await contender.app(_url(number_of), Client(), ignore)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number_of in range(begin + 50, begin + 50 + ENTRIES_IN_MEMORY):
        await contender.app(_url(number_of), Client(), ignore)
        await contender.app(_url(number_of), Client(), ignore)  # as a hit makes it: with the fields it was sent with
    gc.collect()
    taken = (tracemalloc.get_traced_memory()[0] - before) / ENTRIES_IN_MEMORY
    tracemalloc.stop()
    await contender.close()
    if contender.origin.calls != 50 + ENTRIES_IN_MEMORY:
        raise Wrong(f"{contender.origin.calls} computations for {50 + ENTRIES_IN_MEMORY} answers")
    return taken / size - 1


class JsonOrigin(Origin):
    """Answers records as an API does: 2,000 bytes, none like another."""

    async def body(self, service: str) -> bytes:
        self.calls += 1
        chance = random.Random(self.calls)
        records = [
            {
                "service": f"service-{chance.randrange(40)}",
                "requests": chance.randrange(100_000),
                "errors": chance.randrange(100),
                "p95_ms": round(chance.uniform(1, 900), 2),
            }
            for _ in range(40)
        ]
        return json.dumps(records).encode()[:1999] + b"]"


async def stored_size(url: str, *, compress: bool) -> float:
    """Return the bytes of Redis' memory that an entry takes."""
    client = redis.Redis.from_url(url)
    async with NexCache(Settings(redis_url=url, op_timeout_ms=2000), default_tenant="acme") as cache:
        origin: Origin = JsonOrigin() if compress else Origin()
        app = _behind(cache, origin, compress=compress)
        client.flushall()
        await app(_url(0), Client(), ignore)
        before, keys = memory_of(client), client.dbsize()
        for number_of in range(1, 1 + ENTRIES):
            await app(_url(number_of), Client(), ignore)
        taken = memory_of(client) - before
        if not ENTRIES <= client.dbsize() - keys <= ENTRIES + 4:  # statistics have keys too
            raise Wrong(f"{client.dbsize() - keys} keys for {ENTRIES} answers")
    client.close()
    return taken / ENTRIES


def memory_of(client: redis.Redis) -> int:
    """Return what the data set takes, the connections' buffers not counted."""
    return int(client.info("memory")["used_memory_dataset"]) + int(
        client.memory_stats()["db.0"]["overhead.hashtable.main"]
    )


def commands_sent(server: redis.Redis) -> int:
    """Return how many commands requests have caused; what a node does by the clock is not among them."""
    background = {
        "hset",
        "hsetnx",
        "hget",
        "hincrby",
        "pexpire",
        "info",
        "config",
        "command",
        "client",
        "hello",
        "publish",
        "subscribe",
        "ping",
        "pfadd",
        "pfcount",
        "pttl",
    }
    stats = server.info("commandstats")
    return sum(
        each["calls"]
        for name, each in stats.items()
        if name.removeprefix("cmdstat_").partition("|")[0] not in background
    )


@contextmanager
def one_processor(url: str) -> Iterator[None]:
    """Keep this process and a server of this machine on one processor, where the system lets us.

    With one request in flight each of them waits for the other: on two processors, most of what is measured is how long
    a virtual machine takes to wake one that sleeps, 20 to 80 µs as it comes, for every contender alike.
    """
    if not hasattr(os, "sched_setaffinity") or "127.0.0.1" not in url:
        yield
        return
    with redis.Redis.from_url(url) as client:
        server = Path("/proc") / str(client.info("server")["process_id"])
    tasks = [int(each.name) for each in (server / "task").iterdir()]
    mine = os.sched_getaffinity(0)
    before = {task: os.sched_getaffinity(task) for task in tasks}
    try:
        for task in (0, *tasks):
            os.sched_setaffinity(task, {min(mine)})
        yield
    finally:
        os.sched_setaffinity(0, mine)
        for task, processors in before.items():
            os.sched_setaffinity(task, processors)


class TimedOrigin(Origin):
    """Notes when it begins, when it sends its first bytes and when it is through with its last."""

    def __init__(self) -> None:
        super().__init__()
        self.began = self.first = self.last = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        self.began = time.perf_counter()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
        await asyncio.sleep(0.002)
        self.first = time.perf_counter()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": BODY[:1000], "more_body": True})
        await asyncio.sleep(0.002)
        self.last = time.perf_counter()
        await send({"type": "http.response.body", "body": BODY[1000:]})


async def miss(url: str, times: int, beginning: int) -> dict[str, float]:
    """Return microseconds that a miss adds, without Redis and with it; `beginning` is the first number of its URLs.

    In Redis beside what would be done by hand: GET, and SET NX so that nobody else computes the same, which are the two
    round trips that nobody can do without who has several processes. Both in turn, so that one finds the machine as the
    other does: after a handler's wait, with its caches cold.
    """
    found: dict[str, float] = {}
    client = redis.asyncio.Redis.from_url(url)
    for where, settings in (
        ("memory", Settings(redis_url=None, redis_host=None)),
        ("redis", Settings(redis_url=url, op_timeout_ms=2000)),
    ):
        async with NexCache(settings) as cache:
            origin, other = TimedOrigin(), TimedOrigin()

            async def by_hand(asked: Scope, receive: Receive, send: Send, other: TimedOrigin = other) -> None:
                name: bytes = asked["query_string"]
                if await client.get(name) is None and await client.set(b"lock:" + name, b"1", nx=True, px=1000):
                    await other(asked, receive, send)

            beside: ASGIApp = by_hand if where == "redis" else other
            app = _behind(cache, origin)
            await asyncio.sleep(0.2)  # it is registered, and listens
            added, first, trips = [], [], []
            for number_of in range(_UNCOUNTED + times):
                asked = _url(beginning + number_of + 100_000 * len(found))
                its, _ = await _timed(beside, asked, other)
                mine, late = await _timed(app, asked, origin)
                if origin.calls != number_of + 1 or other.calls != number_of + 1:
                    raise Wrong("a miss that did not run the handler")
                if number_of >= _UNCOUNTED:
                    added.append(mine - its)
                    first.append(late)
                    trips.append(its / 2)
            found[where] = max(0.0, statistics.median(added))
            found["first byte"] = statistics.median(first)
            found["round trip"] = statistics.median(trips)
    await client.aclose()
    return found


_UNCOUNTED = 10
"""Misses before those that are counted."""
_ROUNDS_OF_MISSES = 6
"""The quietest counts, as with `timeit`: these are times, not ratios, and what makes them longer is the machine's."""


async def _timed(app: ASGIApp, asked: Scope, origin: TimedOrigin) -> tuple[float, float]:
    """Return how many microseconds longer a request took than its handler, and by how many its first byte was later."""
    seen: list[float] = []

    async def send(message: Message) -> None:
        seen.append(time.perf_counter())

    began = time.perf_counter()
    await app(asked, Client(), send)
    return (seen[-1] - began - (origin.last - origin.began)) * 1e6, (seen[1] - origin.first) * 1e6


def best(ratios: dict[str, float], *, most: bool = False) -> str:
    """Name the best of the peers."""
    if not ratios:
        return ""
    name = (max if most else min)(ratios, key=lambda each: ratios[each])
    return f"{number(ratios[name])} ({name.partition(',')[0]})"


def share(rates: Sequence[float], base: Sequence[float]) -> float:
    """Return the median of the shares within a round."""
    return statistics.median(mine / its for mine, its in zip(rates, base, strict=True))


def number(value: float | None) -> str:
    """Write a number with as many digits as it deserves."""
    if value is None:
        return "-"
    if float(value).is_integer() or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 20 else f"{value:.2f}"


def machine(url: str) -> dict[str, Any]:
    """Say what it was measured on."""
    with redis.Redis.from_url(url) as client:
        server = client.info("server")
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            model = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "server": f"{server.get('server_name', 'redis')} {server.get('valkey_version', server.get('redis_version'))}",
        "redis-py": redis.__version__,
        "load": "wrk" if shutil.which("wrk") else "a client in Python",
    }


SECTIONS: dict[str, Callable[[Run], Coroutine[Any, Any, None] | None]] = {
    "memory-hit": Run.in_memory,
    "redis-hit": Run.in_redis,
    "served": Run.served,
    "cold": Run.cold,
    "memory": Run.memory,
    "miss": Run.misses,
    "functions": Run.functions,
    "invalidation": Run.invalidation,
    "degraded": Run.degraded,
}


def verdicts(result: Result) -> Table:
    """Set what was measured beside what is promised."""
    rows = Table(
        "NexCache, and what is promised", ("figure", "unit", "measured", "best peer", "must", "aim", "verdict")
    )
    for row in result.rows:
        sign = "≥" if row.at_least else "≤"
        rows.rows.append(
            (
                row.figure,
                row.unit,
                number(row.ours),
                row.best_peer,
                f"{sign} {number(row.must)}" if row.must is not None else "",
                f"{sign} {number(row.aim)}" if row.aim is not None else "",
                row.verdict,
            )
        )
    return rows


def show(result: Result) -> None:
    """Print everything."""
    print("; ".join(f"{name}: {value}" for name, value in result.machine.items()))
    for table in result.tables:
        table.show()
    rows = verdicts(result)
    rows.show()
    if result.left_out:
        print("\nNot measured:")
        for reason in result.left_out:
            print(f"  {reason}")


def main() -> None:
    """Measure and print; exits with 1 if a promise is not kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", type=Path, metavar="DIRECTORY", help="the directory of performance.md")
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)  # what peers and servers have to say is not part of the table
    with functions.server() as url:
        os.environ["PEERS_REDIS_URL"] = url
        run = Run(3 if arguments.quick else arguments.rounds, quick=arguments.quick, url=url)
        for name in arguments.only:
            print(f"{name} …", file=sys.stderr, flush=True)
            if "miss" in arguments.only:
                uvloop.run(run.look_at_misses())
            under_way = SECTIONS[name](run)
            if under_way is not None:
                uvloop.run(under_way)
    if arguments.write is not None:
        found = [*run.result.tables, verdicts(run.result)]
        texts = [f"**{table.title}**\n\n{page.markdown(table.columns, table.rows)}" for table in found]
        said = "; ".join(f"{name}: {value}" for name, value in run.result.machine.items())
        left_out = "\n".join(f"- {reason}" for reason in run.result.left_out)
        missing = f"\n\nNot measured:\n\n{left_out}" if left_out else ""
        page.put(arguments.write / "performance.md", "compare", f"\n{said}\n\n" + "\n\n".join(texts) + missing + "\n")
    if arguments.json:
        rows = [{**asdict(row), "verdict": row.verdict} for row in run.result.rows]
        json.dump({**asdict(run.result), "rows": rows}, sys.stdout, indent=2, ensure_ascii=False)
    else:
        show(run.result)
    raise SystemExit(any(row.verdict == "MISSED" for row in run.result.rows))


if __name__ == "__main__":
    main()
