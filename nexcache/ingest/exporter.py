"""Ways in for an OpenTelemetry SDK in the same process: an exporter and a processor that tell the hook.

Both run in the SDK's or the app's threads and never wait for the cache: the hook is told, and invalidates on the loop
of the cache.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol, TypeAlias

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from nexcache.ingest.spans import Span
from nexcache.telemetry.events import Emitter, HookFailed
from nexcache.tenants import is_valid_id

TenantOf: TypeAlias = str | Callable[[ReadableSpan], str | None]
"""The tenant of all spans, or a function from a span to its tenant (None: nobody's)."""

_KIND: Final = 1
"""OTLP's numbers of the kinds are the SDK's and one: 0 is for unspecified."""


class Notified(Protocol):
    """What is told of spans."""

    def notify_from_thread(self, tenant: str, spans: Sequence[Span]) -> None:
        """Invalidate what the spans could have changed, soon."""

    @property
    def emitter(self) -> Emitter:
        """Where events go."""


class InvalidatingSpanExporter(SpanExporter):
    """Exports with `exporter`, and invalidates what the spans changed after it has succeeded.

    Use it where the SDK of this process stores spans in the back end that the cache is in front of:
    `BatchSpanProcessor(InvalidatingSpanExporter(hook, OTLPSpanExporter(…), tenant="acme"))`.
    """

    def __init__(self, hook: Notified, exporter: SpanExporter, *, tenant: TenantOf) -> None:
        self._hook = hook
        self._exporter = exporter
        self._tenant = tenant

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export, then invalidate; the result is the exporter's."""
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            _tell(self._hook, self._tenant, spans)
        return result

    def shutdown(self) -> None:
        """Shut the exporter down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the exporter."""
        return self._exporter.force_flush(timeout_millis)


class InvalidatingSpanProcessor(SpanProcessor):
    """Invalidates what each span changes when it ends, after `processor` has had it.

    For a processor that stores the span before it returns (`SimpleSpanProcessor`), or for spans that are stored as
    they end in some other way. One that stores later (`BatchSpanProcessor`) needs the exporter instead.
    """

    def __init__(self, hook: Notified, processor: SpanProcessor | None = None, *, tenant: TenantOf) -> None:
        self._hook = hook
        self._processor = processor
        self._tenant = tenant

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        """Tell the processor."""
        if self._processor is not None:
            self._processor.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """Have the processor store the span, then invalidate."""
        if self._processor is not None:
            self._processor.on_end(span)
        context = span.get_span_context()
        if context is not None and context.trace_flags.sampled:
            _tell(self._hook, self._tenant, (span,))

    def shutdown(self) -> None:
        """Shut the processor down."""
        if self._processor is not None:
            self._processor.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the processor."""
        return True if self._processor is None else self._processor.force_flush(timeout_millis)


def from_sdk(span: ReadableSpan) -> Span:
    """Return a span of the SDK as rules see it."""
    scope = span.instrumentation_scope
    return Span(
        span.name,
        span.attributes or {},
        span.resource.attributes,
        "" if scope is None else scope.name,
        (None if scope is None else scope.attributes) or {},
        span.kind.value + _KIND,
        span.status.status_code.value,
        span.start_time or 0,
        span.end_time or 0,
    )


def _tell(hook: Notified, tenant: TenantOf, spans: Iterable[ReadableSpan]) -> None:
    """Tell the hook, tenant by tenant. Whatever goes wrong is an event: an SDK must not fail because of a cache."""
    try:
        found: dict[str, list[Span]] = {}
        for span in spans:
            whose = tenant if isinstance(tenant, str) else tenant(span)
            if whose is not None and is_valid_id(whose):
                found.setdefault(whose, []).append(from_sdk(span))
        for whose, own in found.items():
            hook.notify_from_thread(whose, own)
    except Exception as error:  # noqa: BLE001 - as above
        hook.emitter.emit(HookFailed("exporter", type(error).__name__))
