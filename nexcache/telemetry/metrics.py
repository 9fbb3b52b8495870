"""Metrics through the OpenTelemetry API, under the names of `names`.

What happens on every request is read from `Counts` when a reader asks (observable instruments); what happens
next to a store, an app or an operator is recorded from events. Tenants are on no metric unless they are listed.

An SDK keeps one instrument per name and ignores the callbacks of whoever asks for it again. So all caches of a
process share one `_Instruments` per meter provider, which gives the sums over them; a cache that is gone stays
in the totals, because a counter must not fall.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from threading import RLock
from typing import Final, NamedTuple, TypeAlias
from weakref import ref

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from nexcache.telemetry import names
from nexcache.telemetry.counts import OTHER, Counts
from nexcache.telemetry.events import (
    BackendFailed,
    Emitter,
    Event,
    Evicted,
    Filled,
    Invalidated,
    NotStored,
    Reached,
    Stored,
)
from nexcache.telemetry.names import Bypass, Result, Tier
from nexcache.telemetry.otel import SCHEMA_URL, VERSION, is_placeholder

Series: TypeAlias = tuple[tuple[str, str], ...]
"""The attributes of one time series."""
_Label: TypeAlias = Callable[[str], Series]
"""Gives the attributes that stand for a tenant."""


class OTelMetrics:
    """Reports one cache on the meter `nexcache`, until `close()` or until the cache is gone.

    `memory` gives the entries and bytes that the process holds, `available` the state of each backend by its
    name, `state` every state of the ladder and whether it is that; readers call them from threads of their own.
    `tenants` are those that may appear as `nexcache.tenant.id` on the counters of requests, of what was stored or not,
    and of invalidations; all others are `_other` there. Without `meter_provider` it is the global one, also if that is
    installed later.
    """

    _HEARD: Final = (Filled, Stored, NotStored, Invalidated, Evicted, BackendFailed, Reached)

    def __init__(
        self,
        emitter: Emitter,
        counts: Counts,
        *,
        memory: Callable[[], tuple[int, int]] | None = None,
        available: Callable[[], Mapping[str, bool]] | None = None,
        state: Callable[[], Mapping[str, bool]] | None = None,
        tenants: Collection[str] = (),
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._emitter = emitter
        self._memory = memory
        self._available = available
        self._state = state
        self._label = _label(frozenset(tenants))
        self._instruments = _instruments_of(meter_provider)
        self._instruments.observe(self, counts, self._label)
        emitter.subscribe(self._record, *self._HEARD)
        emitter.time_lookups(self._looked_up)

    def close(self) -> None:
        """Stop listening and being observed; what was counted stays in the totals. May be called twice."""
        self._emitter.unsubscribe(self._record)
        self._emitter.unsubscribe(self._looked_up)
        self._instruments.forget(self)

    def memory(self) -> tuple[int, int] | None:
        """Return entries and bytes in this process; None where unknown or where asking raises (counted)."""
        try:
            return None if self._memory is None else self._memory()
        except Exception:  # noqa: BLE001 - telemetry must never break what it observes
            self._emitter.failures += 1
            return None

    def available(self) -> Mapping[str, bool]:
        """Return the state of each backend; nothing where asking raises (counted)."""
        return self._asked(self._available)

    def state(self) -> Mapping[str, bool]:
        """Return in which state the cache answers; nothing where asking raises (counted)."""
        return self._asked(self._state)

    def _asked(self, ask: Callable[[], Mapping[str, bool]] | None) -> Mapping[str, bool]:
        try:
            return ask() if ask is not None else {}
        except Exception:  # noqa: BLE001 - as above
            self._emitter.failures += 1
            return {}

    def _looked_up(self, ended: str, seconds: float, number: int) -> None:
        for _ in range(number):
            self._instruments.lookup_duration.record(seconds, _OF_A_LOOKUP[ended])

    def _record(self, event: Event) -> None:
        to = self._instruments
        match event:
            case Filled():
                to.fill_duration.record(event.duration, {names.ATTR_OPERATION: event.operation})
            case Stored():
                to.entry_size.record(event.size)
            case NotStored():
                to.not_stored.add(
                    1,
                    {
                        **dict(self._label(event.tenant or "")),
                        names.ATTR_OPERATION: event.operation,
                        names.ATTR_NOT_STORED_REASON: event.reason.value,
                    },
                )
            case Invalidated():
                to.invalidations.add(
                    1,
                    {
                        **dict(self._label(event.tenant)),
                        names.ATTR_TRIGGER: event.trigger.value,
                        names.ATTR_SCOPE: event.scope,
                    },
                )
            case Reached():
                to.staleness.record(event.delay, dict(self._label(event.tenant)))
            case Evicted():
                to.evictions.add(event.count, {names.ATTR_EVICTION_REASON: event.reason})
            case BackendFailed():
                to.backend_errors.add(
                    1, {names.ATTR_ERROR_TYPE: event.kind, names.ATTR_BACKEND_OPERATION: event.operation}
                )


_OF_A_LOOKUP: Final = {
    result + tier: {names.ATTR_RESULT: result.value, names.ATTR_TIER: tier.value} for result in Result for tier in Tier
}


def _label(tenants: frozenset[str]) -> _Label:
    if not tenants:
        return lambda _: ()
    return lambda tenant: ((names.ATTR_TENANT, tenant if tenant in tenants else OTHER),) if tenant else ()


# What each observable counter reads: its attributes and its value, from the counts of one cache.


def _requests(counts: Counts, label: _Label) -> Iterator[tuple[Series, int]]:
    for tenant, operation, each in counts:
        about = (*label(tenant), (names.ATTR_OPERATION, operation))
        hit = (*about, (names.ATTR_RESULT, Result.HIT.value))
        # Hits and misses from zero on: a hit ratio must be a number from the first scrape.
        yield (*hit, (names.ATTR_TIER, Tier.MEMORY.value)), each.memory_hits
        yield (*about, (names.ATTR_RESULT, Result.MISS.value)), each.misses
        for tier, number in ((Tier.REDIS, each.redis_hits), (Tier.FALLBACK, each.fallback_hits)):
            if number:
                yield (*hit, (names.ATTR_TIER, tier.value)), number
        for result, number in (
            (Result.STALE, each.stale),
            (Result.ERROR, each.errors),
            (Result.BYPASS, sum(each.bypasses.values())),
        ):
            if number:
                yield (*about, (names.ATTR_RESULT, result.value)), number


def _bypasses(counts: Counts, label: _Label) -> Iterator[tuple[Series, int]]:
    for reason in Bypass:
        yield ((names.ATTR_BYPASS_REASON, reason.value),), 0
    for tenant, _, each in counts:
        for reason, number in each.bypasses.items():
            if number:
                yield (*label(tenant), (names.ATTR_BYPASS_REASON, reason.value)), number


def _coalesced(counts: Counts, label: _Label) -> Iterator[tuple[Series, int]]:
    for tenant, operation, each in counts:
        yield (*label(tenant), (names.ATTR_OPERATION, operation)), each.coalesced


def _stores(counts: Counts, label: _Label) -> Iterator[tuple[Series, int]]:
    for tenant, operation, each in counts:
        about = (*label(tenant), (names.ATTR_OPERATION, operation))
        for tier, number in (
            (Tier.MEMORY, each.stored_memory),
            (Tier.REDIS, each.stored_redis),
            (Tier.FALLBACK, each.stored_fallback),
        ):
            if number:
                yield (*about, (names.ATTR_TIER, tier.value)), number


def _shadowed(counts: Counts, label: _Label) -> Iterator[tuple[Series, int]]:
    for tenant, operation, each in counts:
        about = (*label(tenant), (names.ATTR_OPERATION, operation))
        if each.shadow_checks:
            yield (*about, (names.ATTR_SHADOW_RESULT, "same")), each.shadow_checks - each.shadow_wrong
            yield (*about, (names.ATTR_SHADOW_RESULT, "wrong")), each.shadow_wrong


def _ingested(counts: Counts, _: _Label) -> Iterator[tuple[Series, int]]:
    yield ((names.ATTR_OUTCOME, "accepted"),), counts.ingested_accepted
    yield ((names.ATTR_OUTCOME, "rejected"),), counts.ingested_rejected
    yield ((names.ATTR_OUTCOME, "ignored"),), counts.ingested_ignored


class Total(NamedTuple):
    """What an observable counter tells, and how it is read from the counts of one cache."""

    unit: str
    description: str
    read: Callable[[Counts, _Label], Iterator[tuple[Series, int]]]


TOTALS: Final[Mapping[str, Total]] = {
    names.METRIC_REQUESTS: Total("{request}", "Requests of paths with a policy.", _requests),
    names.METRIC_BYPASSES: Total("{request}", "Requests that did not ask the cache, by reason.", _bypasses),
    names.METRIC_COALESCED: Total("{request}", "Requests answered with what was computed for another.", _coalesced),
    names.METRIC_STORES: Total("{entry}", "Entries stored.", _stores),
    names.METRIC_SHADOW_CHECKS: Total("{check}", "Hits that were computed again and compared.", _shadowed),
    names.METRIC_INGEST_SPANS: Total("{span}", "Spans received for invalidation.", _ingested),
}


class _Observed(NamedTuple):
    owner: ref[OTelMetrics]
    counts: Counts
    label: _Label


class _Instruments:
    """The instruments of one meter provider, and the caches that they tell of."""

    def __init__(self, provider: MeterProvider) -> None:
        self._lock = RLock()
        self._observed: list[_Observed] = []
        self._retired: dict[str, Counter[Series]] = {name: Counter() for name in TOTALS}

        meter = provider.get_meter(names.SCOPE, VERSION, SCHEMA_URL)
        for name, total in TOTALS.items():
            meter.create_observable_counter(name, [partial(self._totals, name)], total.unit, total.description)
        meter.create_observable_up_down_counter(
            names.METRIC_MEMORY_ENTRIES, [partial(self._held, 0)], "{entry}", "Entries in this process's memory."
        )
        meter.create_observable_up_down_counter(
            names.METRIC_MEMORY_USAGE, [partial(self._held, 1)], "By", "Memory that these entries take."
        )
        meter.create_observable_gauge(
            names.METRIC_BACKEND_AVAILABLE, [self._states], "1", "1 while the backend answers, else 0."
        )
        self.lookup_duration = meter.create_histogram(
            names.METRIC_LOOKUP_DURATION,
            "s",
            "Time to ask the store for an entry.",
            explicit_bucket_boundaries_advisory=names.LOOKUP_BOUNDS,
        )
        meter.create_observable_up_down_counter(
            names.METRIC_STATE, [self._rungs], "{cache}", "Caches that are in a state: ok, slow, down, and so on."
        )
        self.fill_duration = meter.create_histogram(
            names.METRIC_FILL_DURATION,
            "s",
            "Time that the app took to compute an answer.",
            explicit_bucket_boundaries_advisory=names.FILL_BOUNDS,
        )
        self.entry_size = meter.create_histogram(
            names.METRIC_ENTRY_SIZE,
            "By",
            "Size of the bodies stored.",
            explicit_bucket_boundaries_advisory=names.SIZE_BOUNDS,
        )
        self.not_stored = meter.create_counter(
            names.METRIC_NOT_STORED, "{entry}", "Answers that were not kept, by reason."
        )
        self.invalidations = meter.create_counter(
            names.METRIC_INVALIDATIONS, "{invalidation}", "Invalidations, by what asked for them."
        )
        self.staleness = meter.create_histogram(
            names.METRIC_STALENESS,
            "s",
            "Time from the arrival of spans until what they changed was invalidated.",
            explicit_bucket_boundaries_advisory=names.STALENESS_BOUNDS,
        )
        self.evictions = meter.create_counter(
            names.METRIC_EVICTIONS, "{entry}", "Entries that left this process's memory."
        )
        self.backend_errors = meter.create_counter(
            names.METRIC_BACKEND_ERRORS, "{error}", "Calls of the store that failed."
        )

    def observe(self, owner: OTelMetrics, counts: Counts, label: _Label) -> None:
        """Tell of `counts` for as long as `owner` lives."""
        with self._lock:
            self._retire()
            self._observed = [*self._observed, _Observed(ref(owner), counts, label)]

    def forget(self, owner: OTelMetrics) -> None:
        """Tell no more of `owner`, except in the totals."""
        with self._lock:
            self._retire(owner)

    def _retire(self, leaving: OTelMetrics | None = None) -> None:
        staying = []
        for each in self._observed:
            if each.owner() not in (None, leaving):
                staying.append(each)
                continue
            for name, total in TOTALS.items():
                for series, number in total.read(each.counts, each.label):
                    self._retired[name][series] += number
        self._observed = staying

    def _totals(self, name: str, _: CallbackOptions) -> list[Observation]:
        with self._lock:
            self._retire()
            observed, totals = self._observed, self._retired[name].copy()
        for each in observed:
            for series, number in TOTALS[name].read(each.counts, each.label):
                totals[series] += number
        return [Observation(number, dict(series)) for series, number in totals.items()]

    def _owners(self) -> list[OTelMetrics]:
        return [owner for each in self._observed if (owner := each.owner()) is not None]

    def _held(self, which: int, _: CallbackOptions) -> list[Observation]:
        held = [memory[which] for owner in self._owners() if (memory := owner.memory()) is not None]
        return [Observation(sum(held))] if held else []

    def _rungs(self, _: CallbackOptions) -> list[Observation]:
        rungs: Counter[str] = Counter()
        for owner in self._owners():
            rungs.update({name: int(it) for name, it in owner.state().items()})
        return [Observation(number, {names.ATTR_STATE: name}) for name, number in rungs.items()]

    def _states(self, _: CallbackOptions) -> list[Observation]:
        states: dict[str, bool] = {}
        for owner in self._owners():
            for backend, available in owner.available().items():
                states[backend] = available and states.get(backend, True)
        return [Observation(int(available), {names.ATTR_BACKEND: backend}) for backend, available in states.items()]


_known: list[tuple[ref[MeterProvider], _Instruments]] = []
_known_lock: Final = RLock()


def _instruments_of(given: MeterProvider | None) -> _Instruments:
    """Return the one set of instruments of a provider, made on first use."""
    provider = given or metrics.get_meter_provider()
    with _known_lock:
        _known[:] = [each for each in _known if each[0]() is not None]
        for known, instruments in _known:
            if known() is provider:
                return instruments
        if provider is metrics.get_meter_provider():
            for index, (known, instruments) in enumerate(_known):
                # Made before any SDK was there: the API has moved them to the provider that then came.
                if is_placeholder(known()):
                    _known[index] = (ref(provider), instruments)
                    return instruments
        _known.append((ref(provider), instruments := _Instruments(provider)))
        return instruments
