"""What Prometheus' OTLP receiver makes of OpenTelemetry's metrics under `UnderscoreEscapingWithSuffixes`.

The rules are those of https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
as Prometheus applies them; the collector's Prometheus exporter does the same. (OpenTelemetry's Python exporter for
Prometheus adds no `_ratio` to a gauge of unit 1.)
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from opentelemetry.sdk.metrics.export import Gauge, Histogram, Metric, MetricsData, Sum
from opentelemetry.sdk.resources import Resource
from opentelemetry.util.types import Attributes

_UNITS: Final = {
    "d": "days", "h": "hours", "min": "minutes", "s": "seconds", "ms": "milliseconds", "us": "microseconds",
    "ns": "nanoseconds", "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "GiBy": "gibibytes",
    "KBy": "kilobytes", "MBy": "megabytes", "GBy": "gigabytes", "m": "meters", "V": "volts", "A": "amperes",
    "J": "joules", "W": "watts", "g": "grams", "Cel": "celsius", "Hz": "hertz", "%": "percent", "1": "",
}  # fmt: skip
_PER: Final = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}


class Kind(Enum):
    """What of an instrument matters for its name."""

    COUNTER = "counter"
    UP_DOWN_COUNTER = "up-down counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass
class Series:
    """The labels of one Prometheus metric and the values that each had."""

    labels: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def metric_name(name: str, unit: str, kind: Kind) -> str:
    """Words joined by underscores, then the unit, then `total` (counters) or `ratio` (gauges of unit 1)."""
    words = _words(name)
    main, _, per = unit.partition("/")
    # A unit in braces is a comment on what is counted, and no part of the name.
    main = "_".join(_words(_UNITS.get(main.strip(), main.strip()))) if "{" not in main else ""
    per = "_".join(_words(_PER.get(per.strip(), per.strip()))) if "{" not in per else ""
    if main and main not in words:
        words.append(main)
    if per:
        words.append(f"per_{per}")
    if kind is Kind.COUNTER:
        words = [*(word for word in words if word != "total"), "total"]
    if kind is Kind.GAUGE and unit == "1":
        words = [*(word for word in words if word != "ratio"), "ratio"]
    joined = "_".join(words)
    return f"_{joined}" if joined[:1].isdigit() else joined


def label_name(name: str) -> str:
    """Underscores for what a label may not hold; a prefix where it may not begin so."""
    label = re.sub(r"_+", "_", re.sub(r"[^a-zA-Z0-9_]", "_", name))
    if label[:1].isdigit():
        return f"key_{label}"
    return f"key{label}" if label.startswith("_") else label


def kind_of(metric: Metric) -> Kind:
    match metric.data:
        case Sum(is_monotonic=True):
            return Kind.COUNTER
        case Sum():
            return Kind.UP_DOWN_COUNTER
        case Gauge():
            return Kind.GAUGE
        case Histogram():
            return Kind.HISTOGRAM
        case other:
            raise NotImplementedError(type(other).__name__)


def target_labels(resource: Resource) -> dict[str, str]:
    """Give what every series of a resource carries: `job` and `instance`."""
    name, namespace = (str(resource.attributes.get(f"service.{each}", "")) for each in ("name", "namespace"))
    instance = resource.attributes.get("service.instance.id")
    labels = {"job": f"{namespace}/{name}" if namespace else name}
    return labels | ({"instance": str(instance)} if instance else {})


def series(data: MetricsData) -> dict[str, Series]:
    """Give every Prometheus metric that Prometheus would hold after receiving this."""
    found: dict[str, Series] = defaultdict(Series)

    def add(name: str, attributes: Attributes, target: dict[str, str], **more: str) -> None:
        own = {label_name(key): str(value) for key, value in (attributes or {}).items()}
        for label, value in (target | own | more).items():
            found[name].labels[label].add(value)

    for of_resource in data.resource_metrics:
        target = target_labels(of_resource.resource)
        for metric in (metric for scope in of_resource.scope_metrics for metric in scope.metrics):
            name = metric_name(metric.name, metric.unit or "", kind_of(metric))
            for point in metric.data.data_points:
                if not isinstance(metric.data, Histogram):
                    add(name, point.attributes, target)
                    continue
                add(f"{name}_sum", point.attributes, target)
                add(f"{name}_count", point.attributes, target)
                add(f"{name}_bucket", point.attributes, target, le="+Inf")
    return dict(found)


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-zA-Z0-9:]+", text) if word]
