from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer

Point = NumberDataPoint | HistogramDataPoint


@dataclass
class Traces:
    """An SDK that keeps its spans, without being the process's global one."""

    provider: TracerProvider
    exporter: InMemorySpanExporter

    @property
    def tracer(self) -> Tracer:
        return self.provider.get_tracer("app")

    @property
    def finished(self) -> dict[str, ReadableSpan]:
        spans = self.exporter.get_finished_spans()
        assert len({span.name for span in spans}) == len(spans)
        return {span.name: span for span in spans}


@dataclass
class Meters:
    provider: MeterProvider
    reader: InMemoryMetricReader

    def collect(self) -> dict[str, Metric]:
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name: str) -> dict[frozenset[tuple[str, object]], Point]:
        metric = self.collect().get(name)
        points = {} if metric is None else {_series(point): point for point in metric.data.data_points}
        assert metric is None or len(points) == len(metric.data.data_points)
        return points  # type: ignore[return-value]  # no exponential histograms here

    def values(self, name: str) -> dict[frozenset[tuple[str, object]], float]:
        return {
            series: point.value if isinstance(point, NumberDataPoint) else point.sum
            for series, point in self.points(name).items()
        }


def _series(point: object) -> frozenset[tuple[str, object]]:
    return frozenset((getattr(point, "attributes") or {}).items())  # noqa: B009 - points have no common base


@pytest.fixture
def traces() -> Iterator[Traces]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Traces(provider, exporter)
    provider.shutdown()


@pytest.fixture
def meters() -> Iterator[Meters]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    yield Meters(provider, reader)
    provider.shutdown()
