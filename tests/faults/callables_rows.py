"""What the application and its telemetry bring along: exporters that hang, loggers and callables that raise."""

import asyncio
import logging
import statistics
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from unittest import mock

import structlog
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult

from nexcache import Policy
from nexcache.asgi import Receive, Scope, Send
from nexcache.telemetry.metrics import OTelMetrics
from nexcache.telemetry.otel import OTelTracing
from tests.faults.rows import Place, Seen, row
from tests.faults.site import Site, no_crossing, site
from tests.wire.server import ask

HITS: Final = 300


class _Exporter(SpanExporter):
    """Takes spans, or hangs, or raises; it counts what it was given."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.given = 0
        self.let_go = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.given += len(spans)
        if self.how == "hangs":
            self.let_go.wait(30)
        elif self.how == "raises":
            raise RuntimeError("as the row wants it")
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.let_go.set()


async def _page(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise RuntimeError("knows no lifespan")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


async def _hits(at: Site) -> float:
    """Ask for misses and hits; returns the median time of a hit in milliseconds."""
    took = []
    for number in range(10):
        path = f"/{number}"
        no_crossing([(await at.client.get(path), path.encode()) for _ in range(3)])
    for number in range(HITS):
        path = f"/{number % 10}"
        started = time.perf_counter()
        answer = await ask(at.app, path)
        took.append(time.perf_counter() - started)
        no_crossing([(answer, path.encode())])
    done = await at.cache.invalidate("acme", "page")
    assert done.acknowledged
    return statistics.median(took) * 1000


@contextmanager
def _spans(at: Site, how: str, *, batched: bool = True) -> Iterator[_Exporter]:
    exporter, provider = _Exporter(how), TracerProvider(shutdown_on_exit=False)
    processor = BatchSpanProcessor(exporter, schedule_delay_millis=5) if batched else SimpleSpanProcessor(exporter)
    provider.add_span_processor(processor)
    before, at.cache.emitter.tracing = at.cache.emitter.tracing, OTelTracing(provider)
    try:
        yield exporter
    finally:
        at.cache.emitter.tracing = before
        exporter.let_go.set()
        provider.shutdown()


@row("F35", "the exporter of spans hangs, raises, raises in the request itself", "no effect on any answer, ≤ 1 ms")
async def exporters(place: Place, seen: Seen) -> None:
    quiet = logging.getLogger("opentelemetry")
    before, quiet.level = quiet.level, logging.CRITICAL
    try:
        with place.server() as server:
            async with site(_page, place, server) as at:
                with _spans(at, "works") as exporter:
                    usual = await _hits(at)
                for how, batched in (("hangs", True), ("raises", True), ("raises", False)):
                    with _spans(at, how, batched=batched) as exporter:
                        took = await _hits(at)
                        for _ in range(100):
                            if exporter.given:
                                break
                            await asyncio.sleep(0.01)
                        seen.fault(f"spans given to an exporter that {how}", exporter.given)
                    where = "" if batched else " in the request"
                    seen.figure(f"added to a hit, exporter {how}{where}", took - usual, "ms", most=1)
                assert not at.failures
                assert not at.changes
    finally:
        quiet.level = before


class _RaisingProcessor:
    """A structlog processor that raises."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: object) -> Any:
        self.calls += 1
        raise RuntimeError("as the row wants it")


@row("F35", "the logger raises, and every instrument of the metrics", "no effect on any answer; counted")
async def loggers_and_meters(place: Place, seen: Seen) -> None:
    raising = _RaisingProcessor()
    recorded = mock.Mock(side_effect=RuntimeError("as the row wants it"))
    provider: MeterProvider = SdkMeterProvider(metric_readers=[InMemoryMetricReader()], shutdown_on_exit=False)
    with place.server() as server:
        async with site(_page, place, server) as at:
            usual = await _hits(at)
            metrics = OTelMetrics(at.cache.emitter, at.cache.counts, meter_provider=provider)
            instruments = "opentelemetry.sdk.metrics._internal.instrument"
            try:
                with (
                    mock.patch(f"{instruments}.Histogram.record", recorded),
                    mock.patch(f"{instruments}.Counter.add", recorded),
                    _structlog(raising),
                ):
                    took = await _hits(at)
                    server.kill()  # what is logged then, the loss of the store, cannot be logged
                    for _ in range(3):
                        no_crossing([(await at.client.get("/9"), b"/9")])
                    failures = at.cache.emitter.failures
            finally:
                metrics.close()
            server.start()
            seen.fault("lines that the logger did not take", raising.calls)
            seen.fault("measurements that the meter did not take", recorded.call_count)
            seen.figure("counted", failures, least=recorded.call_count)
            seen.figure("added to a hit", took - usual, "ms", most=1)
    provider.shutdown()  # type: ignore[attr-defined]


@contextmanager
def _structlog(processor: _RaisingProcessor) -> Iterator[None]:
    structlog.configure(processors=[processor])
    try:
        yield
    finally:
        structlog.reset_defaults()


class _Raising:
    """A callable of the application, which raises, and counts how often."""

    def __init__(self, *, later: bool = False) -> None:
        self.calls = 0
        self._later = later

    def __call__(self, *_: object, **__: object) -> Any:
        self.calls += 1
        if self._later:
            return self._fail()
        raise LookupError("as the row wants it")

    async def _fail(self) -> str:
        raise LookupError("as the row wants it")


Wrong = Callable[[Any], Any]
IDS: Final = ("", "a\x00b", "x" * 151, 7, ["acme"])


@asynccontextmanager
async def _with(place: Place, server: Any, policy: Policy | None = None, **options: Any) -> AsyncIterator[Site]:
    policies = [policy if policy is not None else Policy("/{page}", op="page", ttl="1h")]
    async with site(_page, place, server, policies=policies, **options) as at:
        yield at


@row("F36", "resolvers of tenant and principal raise, or name nobody", "a bypass, counted; the handler's own answer")
async def resolvers(place: Place, seen: Seen) -> None:
    with place.server() as server:
        for later in (False, True):
            for hook in ("tenant", "principal"):
                raising = _Raising(later=later)
                options: dict[str, Any] = {hook: raising}
                async with _with(place, server, **options) as at:
                    for _ in range(3):
                        answer = await at.client.get("/1")
                        no_crossing([(answer, b"/1")])
                        assert answer.cache == f"NexCache; fwd=bypass; detail=no-{hook}"
                    assert [each.hook for each in at.hooks] == [hook] * 3
                    seen.fault(f"a resolver of the {hook} that raised", raising.calls)
        for given in IDS:
            named = mock.Mock(return_value=given)
            async with _with(place, server, tenant=named) as at:
                for _ in range(2):
                    answer = await at.client.get("/1")
                    no_crossing([(answer, b"/1")])
                    assert answer.cache == "NexCache; fwd=bypass; detail=no-tenant"
            seen.fault("a tenant that is none", named.call_count)
        entries = [key for key in server.ask("KEYS", "nexarch:*") if key.count(b":") == 3 and b"@" not in key]
        seen.figure("stored under nobody's name", len(entries), most=0)


@row("F36", "a callable for the tags raises, or a function's for key, tags, tenant, condition", "answered, not kept")
async def tags_keys_and_conditions(place: Place, seen: Seen) -> None:
    with place.server() as server:
        raising = _Raising()
        policy = Policy("/{page}", op="page", ttl="1h", tags=[raising])
        async with _with(place, server, policy) as at:
            for _ in range(3):
                answer = await at.client.get("/1")
                no_crossing([(answer, b"/1")])
                assert not answer.hit
                await at.quiet()
            assert [each.hook for each in at.hooks] == ["tags"] * 3
            seen.fault("a callable for the tags that raised", raising.calls)
        async with _with(place, server) as at:
            kept = 0
            for hook in ("key", "tags", "tenant", "condition"):
                raising, calls = _Raising(), [0]
                options: dict[str, Any] = {"ttl": 60, "tenant": lambda: "acme", hook: raising}

                async def compute(calls: list[int] = calls) -> int:
                    calls[0] += 1
                    return calls[0]

                function: Callable[[], Awaitable[int]] = at.cache.cached(f"op-{hook}", **options)(compute)
                kept += 3 - len({await function() for _ in range(3)})
                assert [each.hook for each in at.hooks[-3:]] == [hook] * 3
                seen.fault(f"a function's {hook} that raised", raising.calls)
            seen.figure("kept although nobody knew under what", kept, most=0)


class _Unwritable:
    """What no serializer knows."""


@row("F36", "a result that cannot be written down, one that raises when it is, and one that cannot be read", "computed")
async def serializers(place: Place, seen: Seen) -> None:
    with place.server() as server:
        async with _with(place, server, l1_enabled=False) as at:
            calls: list[object] = []

            async def compute() -> Any:
                calls.append(_Unwritable())
                return calls[-1]

            function = at.cache.cached("unwritable", ttl=60, tenant=lambda: "acme")(compute)
            results = [await function() for _ in range(3)]
            assert results == calls
            seen.fault("results that cannot be written down", sum(each.reason == "value" for each in at.not_stored))

            number = 0

            async def count() -> int:
                nonlocal number
                number += 1
                return number

            counted = at.cache.cached("counted", ttl=60, tenant=lambda: "acme")(count)
            assert [await counted(), await counted()] == [1, 1]
            raising = mock.Mock(side_effect=RuntimeError("as the row wants it"))
            reported: list[object] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
            try:
                with mock.patch("nexcache.stores.codec.Codec.encode", raising):
                    no_crossing([(await at.client.get("/1"), b"/1") for _ in range(2)])
                    await at.quiet()
            finally:
                asyncio.get_running_loop().set_exception_handler(None)
            seen.fault("a serializer that raised", raising.call_count)
            assert len(reported) == raising.call_count, "somebody hears of each"
            assert not (await at.client.get("/1")).hit
            await at.quiet()
            assert (await at.client.get("/1")).hit
