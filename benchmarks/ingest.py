"""What a constant stream of spans leaves of the hit ratio: naive, coalesced, with windows, and soft. And spans/s.

    python benchmarks/ingest.py [--scale N] [--seconds N] [--redis-url URL] [--quick] [--json]

100 tenants drawn by Zipf 1.0, 40 dashboards each by Zipf 1.1, two in five over the last hour and the rest over windows
that closed more than an hour ago; TTL 120 s, 2,000 reads/s; 7,000 spans/s arrive singly, mixed over all tenants and
services, 5 % of them up to an hour late; `min_interval` 1 s. Reads and spans are Poisson. `--scale N` divides the
rates and multiplies interval and TTL by N, which leaves the ratios as they are and asks for 1/N of the machine. Every
dashboard is read once before anything is counted, because a run is shorter than the TTL.

It is the real software: requests through `CacheMiddleware`, spans through `IngestHook`. A checker compares every
answer with the spans that had been acknowledged before its request began: none may be missing that were acknowledged
longer ago than the stated bound, `min_interval` (nothing where it is 0) and the time of the invalidation itself; with
soft invalidation, `stale_while_revalidate` more.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache import CacheMiddleware, IngestHook, IngestRule, NexCache, Policy, Settings, TimeWindow, tenants
from nexcache.asgi import Message, Receive, Scope, Send
from nexcache.ingest.spans import Span

TENANTS, DASHBOARDS, SERVICES = 100, 40, 10
READS, SPANS, TTL, INTERVAL = 2000.0, 7000.0, 120.0, 1.0
LATE, HOUR = 0.05, 3600
COMPUTING = 0.01
"""Seconds that a dashboard takes to compute."""
STALE = 60.0
"""Seconds of `stale_while_revalidate`."""
SLACK = 0.25
"""Seconds that an invalidation itself may take here; by how much the event loop is behind, is added."""


def zipf(count: int, exponent: float) -> list[float]:
    """Cumulative weights."""
    return list(accumulate((rank + 1) ** -exponent for rank in range(count)))


@dataclass
class Truth:
    """What was stored and acknowledged of one tenant."""

    stored: int = 0
    at: list[float] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)

    def acknowledge(self, number: int, now: float) -> None:
        self.at.append(now)
        self.acknowledged.append(number)

    def required(self, before: float) -> int:
        """How many spans an answer must hold that were acknowledged before."""
        index = bisect_right(self.at, before)
        return self.acknowledged[index - 1] if index else 0


class BackEnd:
    """Dashboards that count the spans of their window."""

    def __init__(self) -> None:
        self.truth = {f"tenant-{number}": Truth() for number in range(TENANTS)}
        self.computed = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tenant = dict(scope["headers"])[b"x-scope-orgid"].decode()
        live = b"to=now" in scope["query_string"]
        spans = self.truth[tenant].stored if live else 0
        self.computed += 1
        await asyncio.sleep(COMPUTING)
        body = b"%d" % spans
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@dataclass
class Run:
    """One way to invalidate, under the workload."""

    name: str
    expected: float
    min_interval: float
    windows: bool
    soft: bool
    scale: float
    seconds: float
    seed: int
    redis_url: str | None
    reads: int = 0
    hits: int = 0
    at_once: int = 0
    spans: int = 0
    too_old: int = 0
    checked: int = 0
    worst: float = 0.0
    lag: float = 0.0
    answers: list[tuple[Truth, float, int]] = field(default_factory=list)
    """Whose, from when, and of how many spans they told."""
    cpu: float = 0.0
    bound: float = 0.0

    async def measure(self) -> "Run":
        backend = BackEnd()
        cache = NexCache(Settings(redis_url=self.redis_url, redis_host=None, op_timeout_ms=500))
        interval = self.min_interval * self.scale
        rule = IngestRule(windows=["spans"]) if self.windows else IngestRule(ops=["dashboard"])
        hook = IngestHook(cache, [rule], min_interval=interval, soft=self.soft)
        self.bound = interval + (STALE * self.scale if self.soft else 0.0)
        stale = STALE * self.scale if self.soft else 0
        ttl = TTL * self.scale
        window = TimeWindow("from", "to", closed_ttl=ttl) if self.windows else None
        app = CacheMiddleware(
            backend,
            cache=cache,
            tenant=tenants.header("x-scope-orgid", trusted=True),
            policies=[
                Policy("/dashboards/{number}", op="dashboard", ttl=ttl, window=window, stale_while_revalidate=stale)
            ],
        )
        async with cache:
            await self._load(app, hook, backend)
        return self

    async def _load(self, app: CacheMiddleware, hook: IngestHook, backend: BackEnd) -> None:
        chance = random.Random(self.seed)
        began = int(time.time())
        names = list(backend.truth)
        queries = {}
        for name in names:
            live = set(chance.sample(range(DASHBOARDS), DASHBOARDS * 2 // 5))
            for number in range(DASHBOARDS):
                end = began - HOUR - chance.randrange(60, 23 * HOUR)
                closed = b"from=%d&to=%d" % (end - chance.choice((1, 3, 6)) * HOUR, end)
                queries[name, number] = b"from=now-1h&to=now" if number in live else closed
        await asyncio.gather(*(self._read(app, key, query, backend) for key, query in queries.items()))
        self.reads = self.hits = self.at_once = 0
        self.answers.clear()

        of_tenant, of_dashboard = zipf(TENANTS, 1.0), zipf(DASHBOARDS, 1.1)
        reads, spans = READS / self.scale, SPANS / self.scale
        share = reads / (reads + spans)
        tasks: set[asyncio.Task[None]] = set()
        cpu, start = time.process_time(), time.monotonic()
        at = start
        while at < start + self.seconds:
            ahead = at - time.monotonic()
            if ahead > 0:
                await asyncio.sleep(ahead)
            self.lag = max(self.lag, -ahead)
            name = names[chance.choices(range(TENANTS), cum_weights=of_tenant)[0]]
            if chance.random() < share:
                number = chance.choices(range(DASHBOARDS), cum_weights=of_dashboard)[0]
                work = self._read(app, (name, number), queries[name, number], backend)
            else:
                late = chance.random() * HOUR if chance.random() < LATE else 0.0
                work = self._ingest(hook, name, chance.randrange(SERVICES), time.time() - late, backend.truth[name])
            task = asyncio.create_task(work)
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            at += chance.expovariate(reads + spans)
        while tasks:
            await asyncio.wait(tuple(tasks))
        self.cpu = time.process_time() - cpu
        self.judge()
        self.worst = max((each.worst for name in names if (each := hook.staleness(name)) is not None), default=0.0)

    async def _ingest(self, hook: IngestHook, tenant: str, service: int, when: float, truth: Truth) -> None:
        ns = int(when * 1e9)
        truth.stored += 1
        number = truth.stored
        span = Span("GET /", {}, {"service.name": f"service-{service}"}, "shop", {}, 2, 1, ns, ns + 1_000_000)
        await hook.notify(tenant, [span])
        truth.acknowledge(max(number, truth.acknowledged[-1] if truth.acknowledged else 0), time.monotonic())
        self.spans += 1

    async def _read(self, app: CacheMiddleware, dashboard: tuple[str, int], query: bytes, backend: BackEnd) -> None:
        tenant, number = dashboard
        path = f"/dashboards/{number}"
        sent: list[Message] = []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "root_path": "",
            "headers": [(b"host", b"api.example.com"), (b"x-scope-orgid", tenant.encode())],
        }

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        began = time.monotonic()
        await app(scope, receive, send)
        status = next(value for name, value in sent[0]["headers"] if name == b"cache-status")
        self.reads += 1
        self.hits += b"; hit" in status and b"stale" not in status
        self.at_once += b"; hit" in status
        if query == b"from=now-1h&to=now":
            told = int(b"".join(part["body"] for part in sent[1:]))
            self.answers.append((backend.truth[tenant], began, told))

    def judge(self) -> None:
        """Compare the answers with what had been acknowledged; last, because only then is known how late it was."""
        allowed = self.bound + SLACK + self.lag if self.bound else 0.0
        self.checked = len(self.answers)
        self.too_old = sum(told < truth.required(began - allowed) for truth, began, told in self.answers)

    @property
    def ratio(self) -> float:
        return self.hits / max(1, self.reads)

    def row(self) -> dict[str, Any]:
        return {
            "invalidation": self.name,
            "expected": self.expected,
            "hit ratio": round(self.ratio, 3),
            "at once": round(self.at_once / max(1, self.reads), 3),
            "reads": self.reads,
            "spans": self.spans,
            "checked": self.checked,
            "too old": self.too_old,
            "bound s": self.bound,
            "worst s": round(self.worst, 3),
            "behind s": round(self.lag, 2),
            "cpu s": round(self.cpu, 2),
        }


# --- spans per second --------------------------------------------------------------------------------------------

TEN_RULES = (
    IngestRule(ops=["dashboard_*"]),
    IngestRule(tags=["service:{service.name}"]),
    IngestRule(match={"span.kind": "server"}, tags=["route:{http.route}"]),
    IngestRule(match={"http.status_code": "5*"}, ops=["errors"]),
    IngestRule(match={"span.status": "error"}, tags=["errors:{service}"]),
    IngestRule(windows=["spans"]),
    IngestRule(windows=["service:{service.name}"]),
    IngestRule(match={"db.system": "postgresql"}, ops=["databases"]),
    IngestRule(match={"resource.host.name": "node-*"}, tags=["host:{host.name}"]),
    IngestRule(match={"span.name": "GET *"}, ops=["reads"]),
)


def batch(chance: random.Random, spans: int) -> bytes:
    """An OTLP request of five services, as an exporter sends it."""
    request = ExportTraceServiceRequest()
    now = time.time_ns()
    for number in range(5):
        resource_spans = request.resource_spans.add()
        for key, text in (("service.name", f"service-{number}"), ("host.name", "node-1"), ("k8s.pod.name", "pod")):
            resource_spans.resource.attributes.add(key=key).value.string_value = text
        scope_spans = resource_spans.scope_spans.add()
        scope_spans.scope.name = "shop"
        for _ in range(spans // 5):
            late = int(chance.random() * HOUR * 1e9) if chance.random() < LATE else 0
            span = scope_spans.spans.add(
                trace_id=chance.randbytes(16),
                span_id=chance.randbytes(8),
                name=chance.choice(("GET /cart", "POST /pay", "SELECT")),
                kind=chance.choice((2, 3)),
                start_time_unix_nano=now - late,
                end_time_unix_nano=now - late + 1_000_000,
            )
            for key, text in (
                ("http.route", "/cart"),
                ("http.request.method", "GET"),
                ("enduser.id", f"user-{chance.randrange(1000)}"),
                ("db.system", "postgresql"),
                ("server.address", "shop"),
            ):
                span.attributes.add(key=key).value.string_value = text
            span.attributes.add(key="http.status_code").value.int_value = chance.choice((200, 500))
    sent: bytes = request.SerializeToString()
    return sent


class Writes:
    """Counts, per second, how often each generation is removed."""

    def __init__(self, cache: NexCache) -> None:
        self.counts: Counter[tuple[int, bytes]] = Counter()
        store = cache._parts.invalidations._local  # noqa: SLF001 - what is measured
        unlink = store.unlink

        async def counted(keys: Sequence[bytes], *, message: bytes | None = None, deadline: float | None = None) -> int:
            second = int(time.monotonic())
            self.counts.update((second, key) for key in keys if not key.endswith(b":@any"))
            return await unlink(keys, message=message, deadline=deadline)

        store.unlink = counted  # type: ignore[method-assign] # as above


async def speed(spans: int) -> dict[str, Any]:
    """Read batches of 500 spans, apply ten rules, coalesce and invalidate: CPU seconds of this process."""
    chance = random.Random(1)
    batches = [batch(chance, 500) for _ in range(40)]
    cache = NexCache(Settings(redis_url=None, redis_host=None))
    hook = IngestHook(cache, TEN_RULES, min_interval=0.1)
    names, weights = [f"tenant-{number}" for number in range(TENANTS)], zipf(TENANTS, 1.0)
    whose = chance.choices(names, cum_weights=weights, k=spans // 500)
    async with cache:
        writes = Writes(cache)
        cpu, start = time.process_time(), time.monotonic()
        for number, tenant in enumerate(whose):
            await hook.notify(tenant, ExportTraceServiceRequest.FromString(batches[number % len(batches)]))
            await asyncio.sleep(0)
        seconds, took = time.process_time() - cpu, time.monotonic() - start
    return {
        "spans": spans,
        "spans per CPU second": round(spans / seconds),
        "spans per second": round(spans / took),
        "writes per second and target, at most": max(writes.counts.values(), default=0),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print one table."""
    names = list(rows[0])
    widths = [max(len(name), *(len(str(row[name])) for row in rows)) for name in names]
    print("  ".join(name.ljust(width) for name, width in zip(names, widths, strict=True)))
    for row in rows:
        print("  ".join(str(row[name]).ljust(width) for name, width in zip(names, widths, strict=True)))


def main() -> int:
    """Measure and print; status 1 if an answer was too old."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=40.0, help="per way to invalidate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--redis-url", default=None, help="without it the cache is in memory")
    parser.add_argument("--only", choices=("naive", "coalesced", "windows", "soft"), default=None)
    parser.add_argument("--quick", action="store_true", help="a few seconds: it works, the ratios are rough")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    scale, seconds = (4.0, 6.0) if arguments.quick else (arguments.scale, arguments.seconds)
    ways = (
        ("naive", 0.03, 0.0, False, False),
        ("coalesced", 0.6, INTERVAL, False, False),
        ("windows", 0.8, INTERVAL, True, False),
        ("soft", 0.8, INTERVAL, True, True),
    )
    runs = [
        asyncio.run(Run(*way, scale, seconds, arguments.seed, arguments.redis_url).measure())
        for way in ways
        if arguments.only in (None, way[0])
    ]
    fast = asyncio.run(speed(20_000 if arguments.quick else 500_000))
    if arguments.json:
        document = {"python": sys.version.split()[0], "cpus": os.cpu_count(), "scale": scale}
        json.dump({**document, "ratios": [run.row() for run in runs], "speed": fast}, sys.stdout, indent=2)
    else:
        print(f"scale 1/{scale:g}, {seconds:g} s each, {'Redis' if arguments.redis_url else 'in memory'}\n")
        show([run.row() for run in runs])
        print("\nreading, rules, coalescing and invalidating, in batches of 500 with ten rules and 100 tenants")
        show([fast])
    return int(any(run.too_old for run in runs))


if __name__ == "__main__":
    sys.exit(main())
