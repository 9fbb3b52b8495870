import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import (
    NonRecordingSpan,
    NoOpTracer,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
)
from opentelemetry.util.types import Attributes

from nexcache.errors import StoreUnavailable
from nexcache.telemetry.events import Answered, Invalidated, RequestSpan, Tracing
from nexcache.telemetry.names import Bypass, Result, Tier, Trigger
from nexcache.telemetry.otel import SCHEMA_URL, VERSION, OpenSpan, OTelTracing
from tests.telemetry.conftest import Traces

HIT = Answered(
    operation="dashboard",
    tenant="acme",
    result=Result.HIT,
    tier=Tier.MEMORY,
    key_hash="0f",
    age=1.5,
    ttl=28.5,
    size=2048,
)
MISS = Answered(operation="dashboard", tenant="acme", result=Result.MISS)
INVALIDATED = Invalidated(
    tenant="acme",
    trigger=Trigger.INGEST,
    scope="operation",
    operations=("dashboard",),
    tags=(),
    acknowledged=True,
    duration=0.001,
)


def opened(tracing: OTelTracing, operation: str = "dashboard") -> OpenSpan:
    span = tracing.get(operation)
    assert span is not None
    return span


@contextmanager
def parent(*, sampled: bool, remote: bool = False) -> Iterator[None]:
    """Make a valid span that does not record the current one."""
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    span = NonRecordingSpan(SpanContext(1, 2, is_remote=remote, trace_flags=flags))
    token = attach(trace.set_span_in_context(span))
    yield
    detach(token)


def test_the_classes_are_what_the_core_expects(traces: Traces) -> None:
    tracing: Tracing = OTelTracing(traces.provider)
    span: RequestSpan | None = tracing.get("dashboard")
    assert span is not None
    span.end(MISS)


@pytest.mark.parametrize(
    ("answered", "name", "attributes"),
    [
        pytest.param(
            HIT,
            "cache.hit dashboard",
            {
                "nexcache.operation": "dashboard",
                "nexcache.tenant.id": "acme",
                "nexcache.cache.result": "hit",
                "nexcache.cache.tier": "memory",
                "nexcache.cache.key_hash": "0f",
                "nexcache.cache.age": 1.5,
                "nexcache.cache.ttl": 28.5,
                "nexcache.entry.size": 2048,
                "nexcache.coalesced": False,
                "cache.hit": True,
            },
            id="hit",
        ),
        pytest.param(
            Answered(operation="dashboard", tenant="acme", result=Result.MISS, coalesced=True, key_hash="0f"),
            "cache.miss dashboard",
            {
                "nexcache.operation": "dashboard",
                "nexcache.tenant.id": "acme",
                "nexcache.cache.result": "miss",
                "nexcache.cache.key_hash": "0f",
                "nexcache.coalesced": True,
                "cache.hit": False,
            },
            id="miss",
        ),
        pytest.param(
            Answered(operation="dashboard", tenant="acme", result=Result.STALE, tier=Tier.REDIS, age=0.0),
            "cache.stale dashboard",
            {
                "nexcache.operation": "dashboard",
                "nexcache.tenant.id": "acme",
                "nexcache.cache.result": "stale",
                "nexcache.cache.tier": "redis",
                "nexcache.cache.age": 0.0,
                "nexcache.coalesced": False,
                "cache.hit": True,
            },
            id="stale",
        ),
        pytest.param(
            Answered(operation="dashboard", tenant="acme", result=Result.REVALIDATED, tier=Tier.FALLBACK),
            "cache.hit dashboard",
            {
                "nexcache.operation": "dashboard",
                "nexcache.tenant.id": "acme",
                "nexcache.cache.result": "revalidated",
                "nexcache.cache.tier": "fallback",
                "nexcache.coalesced": False,
                "cache.hit": True,
            },
            id="revalidated",
        ),
        pytest.param(
            Answered(operation="dashboard", tenant=None, result=Result.BYPASS, reason=Bypass.NO_TENANT),
            "cache.bypass dashboard",
            {
                "nexcache.operation": "dashboard",
                "nexcache.cache.result": "bypass",
                "nexcache.bypass.reason": "no-tenant",
                "nexcache.coalesced": False,
                "cache.hit": False,
            },
            id="bypass",
        ),
    ],
)
def test_the_span_is_named_after_the_result(
    traces: Traces, answered: Answered, name: str, attributes: dict[str, object]
) -> None:
    opened(OTelTracing(traces.provider)).end(answered)
    [span] = traces.exporter.get_finished_spans()
    assert span.name == name
    assert dict(span.attributes or {}) == attributes
    assert span.kind is SpanKind.INTERNAL
    assert span.status.status_code is StatusCode.UNSET


def test_spans_say_whose_they_are(traces: Traces) -> None:
    opened(OTelTracing(traces.provider)).end(HIT)
    [span] = traces.exporter.get_finished_spans()
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "nexcache"
    assert span.instrumentation_scope.version == VERSION
    assert span.instrumentation_scope.schema_url == SCHEMA_URL


def test_a_span_starts_as_a_get_and_a_sampler_sees_the_operation() -> None:
    seen: list[tuple[str, Attributes]] = []

    class Recorder(SpanProcessor):
        def on_start(self, span: ReadableSpan, parent_context: Context | None = None) -> None:
            seen.append((span.name, dict(span.attributes or {})))

    provider = TracerProvider()
    provider.add_span_processor(Recorder())
    opened(OTelTracing(provider)).end(HIT)
    assert seen == [("cache.get dashboard", {"nexcache.operation": "dashboard"})]
    provider.shutdown()


def test_ending_twice_is_harmless(traces: Traces) -> None:
    span = opened(OTelTracing(traces.provider))
    span.end(HIT)
    span.end(MISS)
    assert list(traces.finished) == ["cache.hit dashboard"]


async def test_the_origin_nests_in_the_fill_and_the_fill_in_the_get_across_tasks(traces: Traces) -> None:
    tracing = OTelTracing(traces.provider)
    ready = asyncio.Event()
    span: list[OpenSpan] = []

    async def filler() -> None:
        # This task was started before there was a request: its own context knows nothing of it.
        await ready.wait()
        with span[0].fill("dashboard"):
            await asyncio.sleep(0)
            with traces.tracer.start_as_current_span("SELECT"):
                await asyncio.sleep(0)
        assert not trace.get_current_span().get_span_context().is_valid
        with span[0].put("dashboard"), traces.tracer.start_as_current_span("SET"):
            pass

    task = asyncio.create_task(filler())
    with traces.tracer.start_as_current_span("GET /dashboard"):
        span.append(opened(tracing))
        ready.set()
        await task
        span[0].end(MISS)

    parents = {
        name: next((other for other, s in traces.finished.items() if s.context == each.parent), None)
        for name, each in traces.finished.items()
    }
    assert parents == {
        "SELECT": "cache.fill dashboard",
        "cache.fill dashboard": "cache.miss dashboard",
        "SET": "cache.put dashboard",
        "cache.put dashboard": "cache.miss dashboard",
        "cache.miss dashboard": "GET /dashboard",
        "GET /dashboard": None,
    }
    for name in ("cache.fill dashboard", "cache.put dashboard"):
        assert dict(traces.finished[name].attributes or {}) == {"nexcache.operation": "dashboard"}


async def test_the_origin_sees_the_baggage_of_its_request(traces: Traces) -> None:
    token = attach(baggage.set_baggage("user", "u1"))
    span = opened(OTelTracing(traces.provider))
    detach(token)
    with span.fill("dashboard"):
        assert baggage.get_baggage("user") == "u1"
    span.end(MISS)


def test_a_failing_origin_makes_its_fill_and_its_request_an_error(traces: Traces) -> None:
    span = opened(OTelTracing(traces.provider))
    with pytest.raises(RuntimeError, match="password=hunter2"), span.fill("dashboard"):
        raise RuntimeError("password=hunter2")
    span.end(Answered(operation="dashboard", tenant="acme", result=Result.ERROR))
    for name in ("cache.fill dashboard", "cache.miss dashboard"):
        failed = traces.finished[name]
        assert failed.status.status_code is StatusCode.ERROR
        assert (failed.attributes or {})["error.type"] == "RuntimeError"
        assert "hunter2" not in failed.to_json()


def test_an_error_of_unknown_origin_is_an_error_of_type_other(traces: Traces) -> None:
    opened(OTelTracing(traces.provider)).end(Answered(operation="dashboard", tenant="acme", result=Result.ERROR))
    [span] = traces.exporter.get_finished_spans()
    assert (span.attributes or {})["error.type"] == "_OTHER"
    assert span.status.status_code is StatusCode.ERROR


async def test_a_cancelled_fill_ends_its_span_and_is_no_error(traces: Traces) -> None:
    span = opened(OTelTracing(traces.provider))

    async def fill() -> None:
        with span.fill("dashboard"):
            await asyncio.Event().wait()

    task = asyncio.create_task(fill())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    span.end(MISS)
    assert traces.finished["cache.fill dashboard"].status.status_code is StatusCode.UNSET


def test_a_store_that_fails_is_no_error_of_the_request(traces: Traces) -> None:
    tracing = OTelTracing(traces.provider)
    span = opened(tracing)
    with pytest.raises(StoreUnavailable), span.put("dashboard"):
        raise StoreUnavailable("timeout", "slow")
    span.end(MISS)
    with pytest.raises(StoreUnavailable), tracing.invalidate():
        raise StoreUnavailable("timeout", "slow")
    assert len(traces.finished) == 3
    assert all(each.status.status_code is StatusCode.UNSET for each in traces.finished.values())
    assert not any("error.type" in (each.attributes or {}) for each in traces.finished.values())


def test_anything_else_that_fails_while_storing_is_an_error(traces: Traces) -> None:
    span = opened(OTelTracing(traces.provider))
    with pytest.raises(ZeroDivisionError), span.put("dashboard"):
        raise ZeroDivisionError
    span.end(MISS)
    assert traces.finished["cache.put dashboard"].status.status_code is StatusCode.ERROR
    assert traces.finished["cache.miss dashboard"].status.status_code is StatusCode.UNSET


def test_an_invalidation_is_a_span_with_its_trigger_and_scope(traces: Traces) -> None:
    tracing = OTelTracing(traces.provider)
    with traces.tracer.start_as_current_span("POST /v1/traces"), tracing.invalidate() as describe:
        with traces.tracer.start_as_current_span("UNLINK"):
            pass
        describe(INVALIDATED)
    span = traces.finished["cache.invalidate"]
    assert dict(span.attributes or {}) == {
        "nexcache.tenant.id": "acme",
        "nexcache.invalidation.trigger": "ingest",
        "nexcache.invalidation.scope": "operation",
    }
    assert traces.finished["UNLINK"].parent == span.context
    assert span.parent == traces.finished["POST /v1/traces"].context


def test_an_invalidation_that_was_put_off_is_linked_to_the_requests_that_it_is_done_for(traces: Traces) -> None:
    tracing = OTelTracing(traces.provider)
    origins = [tracing.current()]
    for name in ("first", "second"):
        with traces.tracer.start_as_current_span(name):
            origins.append(tracing.current())
    with tracing.invalidate(origins) as describe:
        describe(INVALIDATED)
    requests = [traces.finished[name].context for name in ("first", "second")]
    assert [link.context for link in traces.finished["cache.invalidate"].links] == requests
    assert traces.finished["cache.invalidate"].parent is None


def test_an_invalidation_at_once_is_a_child_of_its_request_and_not_linked_to_it(traces: Traces) -> None:
    tracing = OTelTracing(traces.provider)
    with traces.tracer.start_as_current_span("POST /v1/traces"), tracing.invalidate([tracing.current()]) as describe:
        describe(INVALIDATED)
    assert not traces.finished["cache.invalidate"].links


class Counting(trace.TracerProvider):
    """Counts the spans that are started."""

    def __init__(self) -> None:
        self.started = 0
        self.real = TracerProvider(sampler=ParentBased(ALWAYS_ON))

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> Tracer:
        tracer = self.real.get_tracer(instrumenting_module_name)
        start = tracer.start_span

        def counted(*args: object, **more: object) -> trace.Span:
            self.started += 1
            return start(*args, **more)  # type: ignore[arg-type]

        tracer.start_span = counted  # type: ignore[method-assign]
        return tracer


@pytest.mark.parametrize(
    ("sampled", "remote", "started"),
    [
        pytest.param(False, False, 0, id="an unsampled parent"),
        pytest.param(False, True, 0, id="an unsampled parent of another process"),
        pytest.param(True, False, 0, id="a parent that has ended"),
        pytest.param(True, True, 1, id="a sampled parent of another process"),
    ],
)
def test_a_span_is_started_only_where_it_would_be_recorded(sampled: bool, remote: bool, started: int) -> None:
    provider = Counting()
    tracing = OTelTracing(provider)
    with parent(sampled=sampled, remote=remote):
        span = tracing.get("dashboard")
        assert (span is not None) is bool(started)
        assert provider.started == started
        if span is not None:
            span.end(HIT)
        with tracing.invalidate() as describe:
            describe(INVALIDATED)
        assert provider.started == 2 * started
    provider.real.shutdown()


def test_without_an_sdk_no_span_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    tracing = OTelTracing()
    assert tracing.get("dashboard") is None
    with tracing.invalidate() as describe:
        describe(INVALIDATED)
        assert not trace.get_current_span().get_span_context().is_valid


def test_without_an_sdk_a_recorded_parent_of_another_provider_changes_nothing(
    traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    with traces.tracer.start_as_current_span("GET /dashboard"):
        assert OTelTracing().get("dashboard") is None


def test_a_root_that_is_sampled_out_is_dropped() -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF)
    assert OTelTracing(provider).get("dashboard") is None
    provider.shutdown()


def test_an_sdk_that_is_switched_off_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    provider = TracerProvider()
    assert isinstance(provider.get_tracer("app"), NoOpTracer)
    assert OTelTracing(provider).get("dashboard") is None
    provider.shutdown()


def test_a_global_provider_that_comes_later_is_used(traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    tracing = OTelTracing()
    assert tracing.get("dashboard") is None
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", traces.provider)
    opened(tracing).end(HIT)
    assert list(traces.finished) == ["cache.hit dashboard"]


@pytest.mark.parametrize("installed", [False, True])
def test_an_api_that_hides_its_provider_is_asked_the_slow_way(
    traces: Traces, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    tracing = OTelTracing()
    monkeypatch.delattr(trace, "_TRACER_PROVIDER")
    provider = traces.provider if installed else trace.ProxyTracerProvider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    span = tracing.get("dashboard")
    assert (span is not None) is installed
    if span is not None:
        span.end(HIT)


class Broken(SpanProcessor):
    """Raises wherever it is told of a span."""

    def __init__(self, when: str) -> None:
        self.when = when

    def on_start(self, span: object, parent_context: Context | None = None) -> None:
        if self.when == "start":
            raise RuntimeError("on_start")

    def on_end(self, span: ReadableSpan) -> None:
        if self.when == "end":
            raise RuntimeError("on_end")


def test_an_sdk_that_raises_on_each_start_costs_the_span_and_nothing_else(traces: Traces) -> None:
    tracing = OTelTracing(traces.provider)
    span = opened(tracing)
    traces.provider.add_span_processor(Broken("start"))
    ran = []
    with span.fill("dashboard"):
        ran.append("fill")
    with span.put("dashboard"):
        ran.append("put")
    with tracing.invalidate() as describe:
        describe(INVALIDATED)
        ran.append("invalidate")
    assert tracing.get("dashboard") is None
    span.end(MISS)
    assert ran == ["fill", "put", "invalidate"]
    assert tracing.failures == 4


def test_an_sdk_that_raises_on_each_end_changes_nothing(traces: Traces) -> None:
    tracing = OTelTracing(traces.provider)
    traces.provider.add_span_processor(Broken("end"))
    span = opened(tracing)
    with span.fill("dashboard"):
        pass
    span.end(MISS)
    assert tracing.failures == 2
    assert len(traces.finished) == 2


def test_a_provider_without_a_tracer_is_counted_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Useless(trace.TracerProvider):
        def get_tracer(self, *_: object, **__: object) -> Tracer:
            raise RuntimeError("no tracer")

    tracing = OTelTracing(Useless())
    assert tracing.get("dashboard") is None
    assert tracing.get("dashboard") is None
    assert tracing.failures == 1


def test_attributes_that_an_sdk_refuses_do_not_keep_the_span_open(
    traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracing = OTelTracing(traces.provider)
    span = opened(tracing)

    def refuse(self: object, _: object) -> None:
        raise TypeError("attributes")

    monkeypatch.setattr("opentelemetry.sdk.trace.Span.set_attributes", refuse)
    span.end(HIT)
    assert tracing.failures == 1
    assert len(traces.finished) == 1


def test_an_exporter_that_raises_changes_nothing(traces: Traces, caplog: pytest.LogCaptureFixture) -> None:
    class Raising(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            raise RuntimeError("export")

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Raising()))
    opened(OTelTracing(provider)).end(HIT)
    assert "Exception while exporting Span" in caplog.text
    provider.shutdown()
