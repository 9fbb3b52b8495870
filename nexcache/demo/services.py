"""The shop's instrumented services: each has its own tracer provider and sends real spans through the SDK."""

import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import requests
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id, set_span_in_context

from nexcache.demo import shop
from nexcache.demo.checks import CANARY, Acknowledgements
from nexcache.demo.database import subjects
from nexcache.demo.history import VISITS_PER_SECOND
from nexcache.demo.ingest import JOURNEY

ROUND_SECONDS: Final = 0.95
"""How often a tenant's services send what they have: at least one batch per second."""

_AT_ONCE: Final = 8
"""Threads that send; no visit keeps more services busy."""

_SCHEDULE_DELAY_MS: Final = 500.0
_EXPORT_SECONDS: Final = 10.0
_PARTS: Final = 1000  # nanoseconds in a microsecond


class AcknowledgedExporter(OTLPSpanExporter):
    """The SDK's own OTLP exporter, which also notes each acknowledgement (HTTP 200) when it has received it."""

    def __init__(self, endpoint: str, key: str, tenant: str, service: str, acknowledgements: Acknowledgements) -> None:
        session = requests.Session()
        session.trust_env = False  # loopback: a proxy from the environment would send our spans elsewhere
        super().__init__(
            endpoint=endpoint,
            headers={"X-API-Key": key},
            timeout=_EXPORT_SECONDS,
            compression=Compression.Gzip,
            session=session,
        )
        self._tenant = tenant
        self._service = service
        self._acknowledgements = acknowledgements

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; when it was acknowledged, every read that starts from now on must see it."""
        result = super().export(spans)
        if result is SpanExportResult.SUCCESS:
            seen = Counter(
                subject for span in spans for subject in subjects(self._service, (span.attributes or {}).get(JOURNEY))
            )
            self._acknowledgements.add(self._tenant, seen, len(spans))
        else:
            self._acknowledgements.refuse(self._tenant)
        return result


class Services:
    """One tenant's instrumented services. Its methods block: call them beside the event loop, one at a time."""

    def __init__(
        self, endpoint: str, key: str, tenant: str, acknowledgements: Acknowledgements, rng: random.Random
    ) -> None:
        self._rng = rng
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix=f"send-{tenant}")
        self._providers = {}
        for service in (*shop.services(), CANARY):
            provider = TracerProvider(
                sampler=ALWAYS_ON,
                resource=Resource({"service.name": service, "service.namespace": "shop"}),
                shutdown_on_exit=False,
            )
            exporter = AcknowledgedExporter(endpoint, key, tenant, service, acknowledgements)
            provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_SCHEDULE_DELAY_MS))
            self._providers[service] = provider
        self._tracers = {name: provider.get_tracer("shop") for name, provider in self._providers.items()}

    def round(self, now_ns: int) -> str:
        """Send a span of the canary, and those of a visit if one has just ended; returns the canary's trace id.

        All services send at the same moment, as they would through one collector: otherwise each would change
        the dashboards at a moment of its own. When this returns, the batches have been acknowledged or given up.
        """
        trace_id = self._sing(now_ns)
        busy = {CANARY}
        if self._rng.random() < VISITS_PER_SECOND * ROUND_SECONDS:
            journey, visit = shop.visit(self._rng, 0)
            self._record(visit, journey.name, now_ns - visit.duration_us * _PARTS, None)
            busy.update(done.call.service for done in visit.walk())
        list(self._threads.map(lambda service: self._providers[service].force_flush(), sorted(busy)))
        return trace_id

    def close(self) -> None:
        """Send what is left and end the threads."""
        list(self._threads.map(lambda provider: provider.shutdown(), self._providers.values()))
        self._threads.shutdown()

    def _sing(self, now_ns: int) -> str:
        span = self._tracers[CANARY].start_span("sing", Context(), SpanKind.INTERNAL, start_time=now_ns)
        span.end(now_ns + _PARTS)
        return format_trace_id(span.get_span_context().trace_id)

    def _record(self, done: shop.Done, journey: str, start_ns: int, caller: tuple[str, Context] | None) -> None:
        service, context = caller or (None, Context())
        call = done.call
        span = self._tracers[call.service].start_span(
            call.operation,
            context,
            SpanKind.CLIENT if call.service == service else SpanKind.SERVER,
            attributes={JOURNEY: journey},
            start_time=start_ns + done.start_us * _PARTS,
        )
        for made in done.made:
            self._record(made, journey, start_ns, (call.service, set_span_in_context(span)))
        if done.failed:
            span.set_status(StatusCode.ERROR)
        span.end(start_ns + (done.start_us + done.duration_us) * _PARTS)
