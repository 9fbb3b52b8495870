"""Spans through the OpenTelemetry API: what happened to a request, under the names of `names`.

    SERVER span of the app's own instrumentation
    └─ cache.get {op}  →  cache.hit {op} | cache.miss {op} | cache.stale {op} | cache.bypass {op}
       ├─ cache.fill {op}   around the app; the app's own spans nest in it
       └─ cache.put {op}

A hit's span links to the `cache.fill` that computed its entry, in whatever process that was.

Only the API is imported here: without an SDK, or under a parent that is not recorded, no span is made.
Whatever an SDK, a sampler or a span processor raises is counted in `OTelTracing.failures` and goes no further.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import Final, TypeVar, cast

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import (
    Link,
    NoOpTracer,
    ProxyTracerProvider,
    Span,
    SpanContext,
    StatusCode,
    TraceFlags,
    Tracer,
    TracerProvider,
)

from nexcache.errors import StoreError
from nexcache.telemetry import names
from nexcache.telemetry.events import Answered, Invalidated
from nexcache.telemetry.names import Result

VERSION: Final = version("nexcache")
SCHEMA_URL: Final = Schemas.V1_30_0.value
"""The newest schema that every supported release of the semantic conventions knows."""

_END_NAMES: Final[Mapping[Result, str]] = {
    Result.HIT: "cache.hit",
    Result.REVALIDATED: "cache.hit",
    Result.STALE: "cache.stale",
    Result.MISS: "cache.miss",
    Result.ERROR: "cache.miss",
    Result.BYPASS: "cache.bypass",
}
_FROM_CACHE: Final = frozenset({Result.HIT, Result.REVALIDATED, Result.STALE})
_ERROR_TYPE_UNKNOWN: Final = "_OTHER"
"""The value that the semantic conventions give to an error of no known type."""
_HIDDEN: Final = object()
_T = TypeVar("_T")


class OTelTracing:
    """Opens NexCache's spans (`events.Tracing`) with the tracer provider given, or else the global one.

    The global provider may be installed later; it is used from then on. No method raises.
    """

    __slots__ = ("_given", "_provider", "_tracer", "failures")

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        self._given = tracer_provider
        self._provider: TracerProvider | None = None
        self._tracer: Tracer | None = None
        self.failures: int = 0
        """How often the SDK raised; the requests went on without the span."""
        if tracer_provider is None:
            # Once, for its effect: it installs the provider that OTEL_PYTHON_TRACER_PROVIDER names, if any.
            self.guarded(trace.get_tracer_provider)

    def get(self, operation: str) -> "OpenSpan | None":
        """Start `cache.get {operation}`, or return None where nobody would record it.

        It is recorded if the current span is, or if there is none (or a sampled one of another process) and
        the provider samples it.
        """
        try:
            if (
                self._tracer is None
                and self._given is None
                and getattr(trace, "_TRACER_PROVIDER", _HIDDEN) is self._provider
            ):
                return None  # as at the last request: the API holds nothing that an application has installed
            tracer = self._recording_tracer()
            if tracer is None:
                return None
            context = get_current()
            span = tracer.start_span(
                f"{names.SPAN_GET} {operation}", context, attributes={names.ATTR_OPERATION: operation}
            )
            return OpenSpan(self, tracer, span, context) if span.is_recording() else None
        except Exception:  # noqa: BLE001 - telemetry must never break what it observes
            self.failures += 1
            return None

    def current(self) -> SpanContext | None:
        """Return the context of the current span where it is recorded, else None."""
        span = trace.get_current_span()
        return span.get_span_context() if span.is_recording() else None

    def invalidate(self, links: Sequence[object] = ()) -> AbstractContextManager[Callable[[Invalidated], None]]:
        """Cover an invalidation with `cache.invalidate`; the yielded callable gives it its attributes.

        It is linked to the spans that `links` came from (`current`), except to the one that it is a child of.
        """
        tracer = self.guarded(self._recording_tracer)
        return _UNRECORDED if tracer is None else self._invalidate(tracer, links)

    @contextmanager
    def _invalidate(self, tracer: Tracer, links: Sequence[object]) -> Iterator[Callable[[Invalidated], None]]:
        parent = trace.get_current_span().get_span_context()
        linked = [Link(each) for each in links if isinstance(each, SpanContext) and each != parent]
        with self.covering(tracer, names.SPAN_INVALIDATE, get_current(), links=linked, expected=StoreError) as span:
            yield lambda invalidated: self.guarded(lambda: _describe_invalidation(span, invalidated))

    @contextmanager
    def covering(
        self,
        tracer: Tracer,
        name: str,
        context: Context,
        attributes: Mapping[str, str] | None = None,
        *,
        links: Sequence[Link] = (),
        expected: type[Exception] | tuple[()] = (),
    ) -> Iterator[Span]:
        """Start a span under `context`, keep it current inside the block, and end it.

        What the block raises goes on; it makes the span an error unless it is `expected`.
        """
        span = self.guarded(lambda: tracer.start_span(name, context, attributes=attributes, links=links))
        if span is None:
            yield trace.INVALID_SPAN
            return
        token = attach(trace.set_span_in_context(span, context))
        try:
            yield span
        except expected:
            raise
        except Exception as error:
            kind = error_type(error)
            self.guarded(lambda: _fail(span, kind))
            raise
        finally:
            detach(token)
            self.guarded(span.end)

    def guarded(self, call: Callable[[], _T]) -> _T | None:
        """Return what `call` returns; count what it raises, and return None."""
        try:
            return call()
        except Exception:  # noqa: BLE001 - telemetry must never break what it observes
            self.failures += 1
            return None

    def _recording_tracer(self) -> Tracer | None:
        """Return the tracer if a span started now might be recorded."""
        tracer = self._current_tracer()
        if tracer is None:
            return None
        parent = trace.get_current_span()
        if not parent.is_recording():
            context = parent.get_span_context()
            if context.is_valid and not (context.is_remote and context.trace_flags.sampled):
                return None
        return tracer

    def _current_tracer(self) -> Tracer | None:
        """Return the tracer of the provider, or None while no SDK is installed (or it is switched off)."""
        provider = self._given or _installed_provider()
        if provider is not self._provider:
            self._provider, self._tracer = provider, None
            if provider is not None:
                tracer = provider.get_tracer(names.SCOPE, VERSION, SCHEMA_URL)
                self._tracer = None if isinstance(tracer, NoOpTracer) else tracer
        return self._tracer


class OpenSpan:
    """The span of one cacheable request (`events.RequestSpan`). No method raises anything of its own."""

    __slots__ = ("_context", "_error", "_span", "_tracer", "_tracing", "filling")

    def __init__(self, tracing: OTelTracing, tracer: Tracer, span: Span, context: Context) -> None:
        self._tracing = tracing
        self._tracer = tracer
        self._span: Span | None = span
        # The request's own context, with its baggage: the app may run in a task that was started elsewhere.
        self._context = trace.set_span_in_context(span, context)
        self._error: str | None = None
        self.filling: bytes = b""
        """What hits link to: the trace id and the span id of the computation."""

    @contextmanager
    def fill(self, operation: str) -> Iterator[None]:
        """Cover the app's work with `cache.fill {operation}`, current inside the block, in any task.

        What the app raises goes on, and makes the span an error.
        """
        attributes = {names.ATTR_OPERATION: operation}
        try:
            name = f"{names.SPAN_FILL} {operation}"
            with self._tracing.covering(self._tracer, name, self._context, attributes) as span:
                self.filling = self._tracing.guarded(lambda: _identity(span)) or b""
                yield
        except Exception as error:
            self._error = error_type(error)
            raise

    @contextmanager
    def put(self, operation: str) -> Iterator[None]:
        """Cover the storing with `cache.put {operation}`; a store that fails is no error of the request."""
        attributes = {names.ATTR_OPERATION: operation}
        with self._tracing.covering(
            self._tracer, f"{names.SPAN_PUT} {operation}", self._context, attributes, expected=StoreError
        ):
            yield

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the request's span current inside the block."""
        token = attach(self._context)
        try:
            yield
        finally:
            detach(token)

    def end(self, answered: Answered) -> None:
        """Name the span after the result, give it its attributes, and end it. Later calls do nothing."""
        span, self._span = self._span, None
        if span is None:
            return
        try:
            span.update_name(f"{_END_NAMES[answered.result]} {answered.operation}")
            span.set_attributes(_attributes(answered))
            if answered.filled_by is not None:
                span.add_link(_linked(answered.filled_by))
            if answered.result is Result.ERROR:
                _fail(span, self._error or _ERROR_TYPE_UNKNOWN)
        except Exception:  # noqa: BLE001 - as above
            self._tracing.failures += 1
        self._tracing.guarded(span.end)


def _identity(span: Span) -> bytes:
    context = span.get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return b""
    return context.trace_id.to_bytes(16, "big") + context.span_id.to_bytes(8, "big")


def _linked(filled_by: str) -> SpanContext:
    trace_id, _, span_id = filled_by.partition("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def error_type(error: BaseException) -> str:
    """Return the value of `error.type`: the exception's qualified class name, and nothing of its text."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def is_placeholder(provider: object) -> bool:
    """Whether this is what the API's `get_…_provider()` gives while no application has installed a provider."""
    # The API has a public name for one of the two only.
    return isinstance(provider, ProxyTracerProvider) or type(provider).__name__ == "_ProxyMeterProvider"


def _installed_provider() -> TracerProvider | None:
    """Return the global provider once an application has installed one."""
    # The public function reads the environment on each call, which would be most of what an unrecorded hit pays.
    provider = getattr(trace, "_TRACER_PROVIDER", _HIDDEN)
    if provider is _HIDDEN:
        provider = trace.get_tracer_provider()
        return None if is_placeholder(provider) else provider
    return cast("TracerProvider | None", provider)


def _attributes(answered: Answered) -> dict[str, str | int | float | bool]:
    known = {
        names.ATTR_OPERATION: answered.operation,
        names.ATTR_TENANT: answered.tenant,
        names.ATTR_RESULT: answered.result.value,
        names.ATTR_TIER: answered.tier and answered.tier.value,
        names.ATTR_KEY_HASH: answered.key_hash,
        names.ATTR_AGE: answered.age,
        names.ATTR_TTL: answered.ttl,
        names.ATTR_ENTRY_SIZE: answered.size,
        names.ATTR_BYPASS_REASON: answered.reason and answered.reason.value,
        names.ATTR_COALESCED: answered.coalesced,
        names.ATTR_CACHE_HIT: answered.result in _FROM_CACHE,
    }
    return {name: value for name, value in known.items() if value is not None}


def _describe_invalidation(span: Span, invalidated: Invalidated) -> None:
    span.set_attributes(
        {
            names.ATTR_TENANT: invalidated.tenant,
            names.ATTR_TRIGGER: invalidated.trigger.value,
            names.ATTR_SCOPE: invalidated.scope,
        }
    )


def _fail(span: Span, kind: str) -> None:
    # Without a description: the text of an exception may hold a secret.
    span.set_attribute(names.ATTR_ERROR_TYPE, kind)
    span.set_status(StatusCode.ERROR)


def _ignore(_: Invalidated) -> None:
    pass


_UNRECORDED: Final = nullcontext(_ignore)
