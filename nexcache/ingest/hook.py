"""The hook: spans arrived, so invalidate what they could have changed."""

import asyncio
from collections.abc import Iterable
from typing import Final, Protocol

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache.errors import ConfigurationError
from nexcache.ingest.rules import IngestRule, targets
from nexcache.ingest.spans import Span, SpanCount, count_spans, spans_of
from nexcache.invalidation.apply import Invalidation
from nexcache.invalidation.targets import Targets
from nexcache.telemetry.counts import Counts
from nexcache.telemetry.events import Emitter, Ingested
from nexcache.telemetry.names import Trigger

_LARGE_BYTES: Final = 512 * 1024
_LARGE_SPANS: Final = 2_000
"""From here on, reading the spans would hold up the event loop for more than some milliseconds."""


class Invalidates(Protocol):
    """What the hook needs of the cache."""

    async def invalidate_targets(self, tenant: str, targets: Targets, *, trigger: Trigger) -> Invalidation:
        """Invalidate a union of targets; never raises for a store that is away."""

    @property
    def emitter(self) -> Emitter:
        """Where events go."""

    @property
    def counts(self) -> Counts:
        """What the statistics are made of."""


class IngestHook:
    """Maps spans to what they could have changed, and invalidates it.

    Without `rules`, every span invalidates every operation of its tenant: never a stale answer, and the
    fewest hits. Raises ConfigurationError for rules that are none.
    """

    def __init__(self, cache: Invalidates, rules: Iterable[IngestRule] | None = None) -> None:
        self._cache = cache
        self._rules = (IngestRule(ops=["*"]),) if rules is None else _checked(rules)

    @property
    def emitter(self) -> Emitter:
        """Where events go: the cache's."""
        return self._cache.emitter

    async def notify(
        self, tenant: str, spans: ExportTraceServiceRequest | Iterable[Span], *, rejected: int = 0
    ) -> Invalidation | None:
        """Invalidate what these spans of `tenant` could have changed, before it returns.

        Call it when reads can see the spans: after the commit. `spans` is an OTLP request or what
        `nexcache.ingest.spans` makes of one. NexCache's own spans are counted as ignored and invalidate
        nothing. `rejected` says how many of the spans were not stored, for the statistics: which ones is not
        known, so all are taken to have changed something. Returns None where there is nothing to invalidate.
        Raises InvalidName for an impossible tenant, nothing for a store that is away.
        """
        if isinstance(spans, ExportTraceServiceRequest):
            count = count_spans(spans)
            found = await self._targets(spans_of(spans), large=spans.ByteSize() > _LARGE_BYTES)
        else:
            all_spans = list(spans)
            foreign = [span for span in all_spans if not span.own]
            count = SpanCount(len(foreign), len(all_spans) - len(foreign))
            found = await self._targets(foreign, large=len(foreign) > _LARGE_SPANS)
        self._count(tenant, count, rejected)
        if not found:
            return None
        return await self._cache.invalidate_targets(tenant, found, trigger=Trigger.INGEST)

    async def _targets(self, spans: Iterable[Span], *, large: bool) -> Targets:
        if large:
            return await asyncio.to_thread(targets, self._rules, spans)
        return targets(self._rules, spans)

    def _count(self, tenant: str, count: SpanCount, rejected: int) -> None:
        rejected = min(rejected, count.accepted)
        accepted = count.accepted - rejected
        counts = self._cache.counts
        counts.ingested_accepted += accepted
        counts.ingested_rejected += rejected
        counts.ingested_ignored += count.ignored
        emitter = self._cache.emitter
        if emitter.hears(Ingested):
            emitter.emit(Ingested(tenant, accepted, rejected, count.ignored))


def _checked(rules: Iterable[IngestRule]) -> tuple[IngestRule, ...]:
    checked = tuple(rules)
    if not checked:
        raise ConfigurationError(
            "rules is empty, so spans would never invalidate anything: leave it out to invalidate every operation"
        )
    for rule in checked:
        if not isinstance(rule, IngestRule):
            raise ConfigurationError(f"rules must hold IngestRule, not {type(rule).__name__}")
    return checked
