"""An OpenTelemetry SDK for a program that has none.

The only module that imports the SDK; nothing imports this one before it is asked for.
"""

import atexit
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias, get_args
from urllib.parse import urlsplit

from opentelemetry import metrics as metrics_api
from opentelemetry import trace
from opentelemetry.metrics import MeterProvider as AnyMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    InMemoryMetricReader,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
    SpanExporter,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import TracerProvider as AnyTracerProvider

from nexcache.errors import ConfigurationError
from nexcache.telemetry.log import library_logger
from nexcache.telemetry.names import SCOPE
from nexcache.telemetry.otel import is_placeholder

Destination: TypeAlias = Literal["otlp", "console", "memory"]
_DESTINATIONS: Final[tuple[str, ...]] = get_args(Destination)


class Telemetry:
    """What `configure_telemetry` set up. As a context manager it shuts it down at the end."""

    def __init__(
        self,
        tracer_provider: AnyTracerProvider,
        meter_provider: AnyMeterProvider | None,
        *,
        left_alone: tuple[str, ...],
        spans: InMemorySpanExporter | None,
        reader: InMemoryMetricReader | None,
    ) -> None:
        self.tracer_provider = tracer_provider
        """The provider in use: for `OTelTracing`, or anything else that takes one."""
        self.meter_provider = meter_provider
        """The provider in use: for `OTelMetrics`; None with `metrics=False` or an exporter of your own."""
        self.left_alone = left_alone
        """`traces` and `metrics`, as far as the application had set them up itself."""
        self._spans = spans
        self._reader = reader
        self._own = [
            provider
            for name, provider in (("traces", tracer_provider), ("metrics", meter_provider))
            if name not in left_alone and isinstance(provider, TracerProvider | MeterProvider)
        ]
        # Here rather than by the SDK, whose own hook lets an exporter's exception out at the end of the program.
        atexit.register(self.shutdown)

    @property
    def configured(self) -> bool:
        """Whether everything that was asked for was set up; False if the application had done so itself."""
        return not self.left_alone

    @property
    def spans(self) -> InMemorySpanExporter:
        """The finished spans, with `exporter="memory"`; otherwise a ConfigurationError."""
        if self._spans is None:
            raise ConfigurationError('Spans can be read only where exporter="memory" set them up.')
        return self._spans

    def metrics(self) -> MetricsData | None:
        """Collect the metrics now, with `exporter="memory"`; otherwise a ConfigurationError."""
        if self._reader is None:
            raise ConfigurationError('Metrics can be read only where exporter="memory" set them up.')
        return self._reader.get_metrics_data()

    def flush(self, timeout: float = 10.0) -> bool:
        """Export what was recorded so far; False if that failed or took longer than `timeout` seconds."""
        done = True
        for provider in self._own:
            try:
                done = provider.force_flush(int(timeout * 1000)) and done
            except Exception:  # noqa: BLE001 - the SDK raises plain exceptions for what an exporter did
                done = False
        return done

    def shutdown(self) -> None:
        """Export the rest and stop; what the application set up itself is left alone. May be called twice."""
        atexit.unregister(self.shutdown)
        own, self._own = self._own, []
        for provider in own:
            try:
                provider.shutdown()
            except Exception as error:  # noqa: BLE001 - as above; a program's end must not fail over it
                library_logger().warning(f"{SCOPE}.telemetry_shutdown_failed", error=type(error).__name__)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()


def configure_telemetry(
    exporter: Destination | SpanExporter = "otlp",
    *,
    endpoint: str | None = None,
    headers: Mapping[str, str] | None = None,
    service_name: str | None = None,
    metrics: bool = True,
    sampler: Sampler | None = None,
    set_global: bool = True,
) -> Telemetry:
    """Set up OpenTelemetry's SDK for this program, unless the program has done so itself.

    `exporter`: `otlp` (over HTTP), `console`, `memory` (for tests), or a span exporter of your own, which gets
    spans only. `endpoint` is the receiver's base URL, such as `http://localhost:4318`; `/v1/traces` and
    `/v1/metrics` are appended. What is not given comes from OpenTelemetry's own environment variables, such as
    `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME` (else `nexcache`) and `OTEL_TRACES_SAMPLER`.
    With `set_global=False` no global provider is set or asked for; hand on those of the returned `Telemetry`.

    Raises ConfigurationError for arguments that cannot work.
    """
    if not isinstance(exporter, SpanExporter) and exporter not in _DESTINATIONS:
        raise ConfigurationError("exporter must be 'otlp', 'console', 'memory' or a SpanExporter.")
    if exporter != "otlp" and (endpoint is not None or headers is not None):
        raise ConfigurationError("endpoint and headers need exporter='otlp'.")
    if sampler is not None and not isinstance(sampler, Sampler):
        raise ConfigurationError("sampler must be a Sampler of opentelemetry.sdk.trace.sampling.")
    base = _base_url(endpoint)
    fields = _checked_headers(headers)

    left_alone: list[str] = []
    tracer_provider: AnyTracerProvider = trace.get_tracer_provider()
    meter_provider: AnyMeterProvider | None = None
    memory: InMemorySpanExporter | None = None
    reader: MetricReader | None = None
    resource = _resource(service_name)

    if set_global and not is_placeholder(tracer_provider):
        left_alone.append("traces")
    else:
        spans = exporter if isinstance(exporter, SpanExporter) else _span_exporter(exporter, base, fields)
        memory = spans if exporter == "memory" and isinstance(spans, InMemorySpanExporter) else None
        tracer_provider = own_tracers = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        processor: SpanProcessor = SimpleSpanProcessor(spans) if memory else BatchSpanProcessor(spans)
        own_tracers.add_span_processor(processor)
        if set_global:
            trace.set_tracer_provider(own_tracers)

    if metrics and not isinstance(exporter, SpanExporter):
        meter_provider = metrics_api.get_meter_provider()
        if set_global and not is_placeholder(meter_provider):
            left_alone.append("metrics")
        else:
            reader = _metric_reader(exporter, base, fields)
            meter_provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
            if set_global:
                metrics_api.set_meter_provider(meter_provider)

    if left_alone:
        library_logger().info(f"{SCOPE}.telemetry_left_alone", signals=left_alone)
    return Telemetry(
        tracer_provider,
        meter_provider,
        left_alone=tuple(left_alone),
        spans=memory,
        reader=reader if isinstance(reader, InMemoryMetricReader) else None,
    )


def _base_url(endpoint: str | None) -> str | None:
    if endpoint is None:
        return None
    if not _is_base_url(endpoint):
        raise ConfigurationError("endpoint must be a URL such as 'http://localhost:4318'.")
    return endpoint.rstrip("/").removesuffix("/v1/traces")


def _is_base_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and not (parts.query or parts.fragment)
        )
    except ValueError:
        return False


def _checked_headers(headers: Mapping[str, str] | None) -> dict[str, str] | None:
    if headers is None:
        return None
    if not all(name and name.isprintable() and value.isprintable() for name, value in headers.items()):
        raise ConfigurationError("headers must map names to values of printable text.")
    return dict(headers)


def _resource(service_name: str | None) -> Resource:
    resource = Resource.create({SERVICE_NAME: service_name} if service_name else None)
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return resource.merge(Resource({SERVICE_NAME: SCOPE}))
    return resource


def _span_exporter(to: Destination, base: str | None, headers: dict[str, str] | None) -> SpanExporter:
    match to:
        case "memory":
            return InMemorySpanExporter()
        case "console":
            return ConsoleSpanExporter()
        case "otlp":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - an HTTP client
                OTLPSpanExporter,
            )

            return OTLPSpanExporter(endpoint=base and f"{base}/v1/traces", headers=headers)


def _metric_reader(to: Destination, base: str | None, headers: dict[str, str] | None) -> MetricReader:
    match to:
        case "memory":
            return InMemoryMetricReader()
        case "console":
            return PeriodicExportingMetricReader(ConsoleMetricExporter())
        case "otlp":
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415 - an HTTP client
                OTLPMetricExporter,
            )

            return PeriodicExportingMetricReader(
                OTLPMetricExporter(endpoint=base and f"{base}/v1/metrics", headers=headers)
            )
