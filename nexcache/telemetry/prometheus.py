"""This process's metrics as Prometheus' text, of one tenant or of all: the names are those of OpenTelemetry's export.

From the same plain counters that the observable instruments read; nothing but the standard library.
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from nexcache.telemetry import names
from nexcache.telemetry.counts import Counts, OperationCounts
from nexcache.telemetry.events import (
    BackendFailed,
    Emitter,
    Event,
    Evicted,
    Filled,
    Invalidated,
    NotStored,
    Stored,
)
from nexcache.telemetry.metrics import TOTALS, Series
from nexcache.telemetry.names import Result, Tier

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_MOST_SERIES: Final = 10_000
_OF_A_LOOKUP: Final[Mapping[str, tuple[str, None, Series]]] = {
    result + tier: (
        names.METRIC_LOOKUP_DURATION,
        None,
        ((names.ATTR_RESULT, result.value), (names.ATTR_TIER, tier.value)),
    )
    for result in Result
    for tier in Tier
}
_BOUNDS: Final[Mapping[str, Sequence[float]]] = {
    names.METRIC_LOOKUP_DURATION: names.LOOKUP_BOUNDS,
    names.METRIC_FILL_DURATION: names.FILL_BOUNDS,
    names.METRIC_ENTRY_SIZE: names.SIZE_BOUNDS,
}
_SUFFIX: Final = {
    names.METRIC_LOOKUP_DURATION: "_seconds",
    names.METRIC_FILL_DURATION: "_seconds",
    names.METRIC_ENTRY_SIZE: "_bytes",
    names.METRIC_MEMORY_USAGE: "_bytes",
    names.METRIC_BACKEND_AVAILABLE: "_ratio",
}
_HELP: Final = {
    names.METRIC_NOT_STORED: "Answers that were not kept, by reason.",
    names.METRIC_INVALIDATIONS: "Invalidations, by what asked for them.",
    names.METRIC_EVICTIONS: "Entries that left this process's memory.",
    names.METRIC_BACKEND_ERRORS: "Calls of the store that failed.",
    names.METRIC_LOOKUP_DURATION: "Time to ask the store for an entry.",
    names.METRIC_FILL_DURATION: "Time that the app took to compute an answer.",
    names.METRIC_ENTRY_SIZE: "Size of the bodies stored.",
}


_COUNTED: Final = (
    names.METRIC_NOT_STORED,
    names.METRIC_INVALIDATIONS,
    names.METRIC_EVICTIONS,
    names.METRIC_BACKEND_ERRORS,
)
"""What is counted from events."""


class _Histogram:
    __slots__ = ("buckets", "total")

    def __init__(self, bounds: int) -> None:
        self.buckets = [0] * (bounds + 1)
        self.total = 0.0


class _Share(Counts):
    """One tenant's part of the counts, or the whole (None)."""

    def __init__(self, counts: Counts, tenant: str | None) -> None:
        super().__init__()
        self._all = counts
        self._tenant = tenant
        if tenant is None:
            self.ingested_accepted = counts.ingested_accepted
            self.ingested_rejected = counts.ingested_rejected
            self.ingested_ignored = counts.ingested_ignored

    def __iter__(self) -> Iterator[tuple[str, str, OperationCounts]]:
        return (each for each in self._all if self._tenant is None or each[0] == self._tenant)


class PrometheusText:
    """Collects what counters do not hold, and writes everything down when it is asked to."""

    _HEARD: Final = (Filled, Stored, NotStored, Invalidated, Evicted, BackendFailed)

    def __init__(
        self,
        emitter: Emitter,
        counts: Counts,
        *,
        memory: Callable[[], tuple[int, int]],
        available: Callable[[], Mapping[str, bool]],
        state: Callable[[], Mapping[str, bool]] = dict,
    ) -> None:
        self._counts = counts
        self._memory = memory
        self._available = available
        self._state = state
        self._totals: Counter[tuple[str, str | None, Series]] = Counter()
        self._histograms: dict[tuple[str, str | None, Series], _Histogram] = {}
        self._lookups: dict[str, _Histogram] = {}
        """Those of lookups, by how one ended and where: found faster than by their place above."""
        emitter.subscribe(self._record, *self._HEARD)
        emitter.time_lookups(self._looked_up)

    def render(self, tenant: str | None) -> str:
        """Write the metrics of a tenant down, or the sums over all and what concerns no tenant (None)."""
        lines: list[str] = []
        share = _Share(self._counts, tenant)
        for name, total in TOTALS.items():
            if tenant is not None and name == names.METRIC_INGEST_SPANS:
                continue
            sums: Counter[Series] = Counter()
            for series, number in total.read(share, lambda _: ()):
                sums[series] += number
            lines += _family(f"{_words(name)}_total", "counter", total.description, sums)
        for name in _COUNTED:
            sums = Counter()
            for (metric, whose, series), number in self._totals.items():
                if metric == name and (tenant is None or whose == tenant):
                    sums[series] += number
            if tenant is None or sums:
                lines += _family(f"{_words(name)}_total", "counter", _HELP[name], sums)
        lines += self._histogram_lines(tenant)
        if tenant is None:
            entries, held = self._memory()
            lines += _family(_words(names.METRIC_MEMORY_ENTRIES), "gauge", "Entries in this process.", {(): entries})
            lines += _family(_words(names.METRIC_MEMORY_USAGE), "gauge", "Memory that these entries take.", {(): held})
            states: dict[Series, int] = {
                ((names.ATTR_BACKEND, name),): int(up) for name, up in self._available().items()
            }
            lines += _family(
                _words(names.METRIC_BACKEND_AVAILABLE), "gauge", "1 while the backend answers, else 0.", states
            )
            rungs: dict[Series, int] = {((names.ATTR_STATE, name),): int(it) for name, it in self._state().items()}
            lines += _family(_words(names.METRIC_STATE), "gauge", "1 for the state of the cache, else 0.", rungs)
        return "".join(f"{line}\n" for line in lines)

    def _histogram_lines(self, tenant: str | None) -> Iterator[str]:
        for name, bounds in _BOUNDS.items():
            merged: dict[Series, _Histogram] = {}
            for (metric, whose, series), each in self._histograms.items():
                if metric == name and (tenant is None or whose == tenant):
                    into = merged.setdefault(series, _Histogram(len(bounds)))
                    into.buckets = [mine + other for mine, other in zip(into.buckets, each.buckets, strict=True)]
                    into.total += each.total
            if not merged:
                continue
            exported = _words(name)
            yield f"# HELP {exported} {_HELP[name]}"
            yield f"# TYPE {exported} histogram"
            for series, each in sorted(merged.items()):
                seen = 0
                for bound, number in zip((*bounds, None), each.buckets, strict=True):
                    seen += number
                    le = "+Inf" if bound is None else str(float(bound))
                    yield f"{exported}_bucket{_labels((*series, ('le', le)))} {seen}"
                yield f"{exported}_sum{_labels(series)} {each.total}"
                yield f"{exported}_count{_labels(series)} {seen}"

    def _looked_up(self, ended: str, seconds: float, number: int) -> None:
        histogram = self._lookups.get(ended)
        if histogram is None:
            histogram = self._lookups[ended] = _Histogram(len(names.LOOKUP_BOUNDS))
            self._histograms[_OF_A_LOOKUP[ended]] = histogram
        histogram.buckets[bisect_left(names.LOOKUP_BOUNDS, seconds)] += number
        histogram.total += number * seconds

    def _record(self, event: Event) -> None:
        match event:
            case Filled():
                about_fill = ((names.ATTR_OPERATION, event.operation),)
                self._observe(names.METRIC_FILL_DURATION, event.tenant, about_fill, event.duration)
            case Stored():
                self._observe(names.METRIC_ENTRY_SIZE, event.tenant, (), event.size)
            case NotStored():
                about = ((names.ATTR_OPERATION, event.operation), (names.ATTR_NOT_STORED_REASON, event.reason.value))
                self._add(names.METRIC_NOT_STORED, event.tenant, about, 1)
            case Invalidated():
                about = ((names.ATTR_TRIGGER, event.trigger.value), (names.ATTR_SCOPE, event.scope))
                self._add(names.METRIC_INVALIDATIONS, event.tenant, about, 1)
            case Evicted():
                self._add(names.METRIC_EVICTIONS, None, ((names.ATTR_EVICTION_REASON, event.reason),), event.count)
            case BackendFailed():
                about = ((names.ATTR_ERROR_TYPE, event.kind), (names.ATTR_BACKEND_OPERATION, event.operation))
                self._add(names.METRIC_BACKEND_ERRORS, None, about, 1)

    def _add(self, name: str, tenant: str | None, series: Series, number: int) -> None:
        place = (name, tenant, series)
        if place not in self._totals and len(self._totals) >= _MOST_SERIES:
            place = (name, None, series)  # of nobody in particular: the sums stay right
        self._totals[place] += number

    def _observe(self, name: str, tenant: str | None, series: Series, value: float) -> None:
        place = (name, tenant, series)
        histogram = self._histograms.get(place)
        if histogram is None:
            if len(self._histograms) >= _MOST_SERIES:
                place = (name, None, ())
            histogram = self._histograms.setdefault(place, _Histogram(len(_BOUNDS[name])))
        histogram.buckets[bisect_left(_BOUNDS[name], value)] += 1
        histogram.total += value


def _words(name: str) -> str:
    return name.replace(".", "_") + _SUFFIX.get(name, "")


def _family(name: str, kind: str, text: str, values: Mapping[Series, int]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for series, number in sorted(values.items()):
        yield f"{name}{_labels(series)} {number}"


def _labels(series: Series) -> str:
    if not series:
        return ""
    return "{" + ",".join(f'{name.replace(".", "_")}="{_escaped(value)}"' for name, value in series) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
