"""The hook: spans arrived, so invalidate what they could have changed.

Per tenant and target the first change is invalidated at once, later ones at most once per `min_interval`, together,
and none is lost: not when the cache closes, nor with the store away (`Invalidations` queues it then). Only a process
that is killed loses what it had not invalidated yet; who cannot accept that lets the sender wait (`wait=True`,
`OtlpEndpoint(ack="after-invalidation")`) and so send again.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import Context
from dataclasses import dataclass
from threading import Lock
from typing import Final, Protocol, TypeVar

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache.errors import ConfigurationError, InvalidName
from nexcache.ingest.changes import Changes, Target
from nexcache.ingest.checking import faults
from nexcache.ingest.coalescing import Coalescer, Due
from nexcache.ingest.rules import IngestRule, RuleSet
from nexcache.ingest.spans import Span, SpanCount, count_spans
from nexcache.ingest.warming import Refresh, RefreshAs, Warming, Warms
from nexcache.invalidation.apply import Invalidation
from nexcache.invalidation.targets import Targets
from nexcache.policy import Duration, Policy
from nexcache.telemetry.counts import Counts
from nexcache.telemetry.events import Emitter, HookFailed, Ingested, Reached, RuleDoubtful
from nexcache.telemetry.names import Trigger
from nexcache.tenants import is_valid_id

_LARGE_BYTES: Final = 512 * 1024
_LARGE_SPANS: Final = 2_000
"""From here on, reading the spans would hold up the event loop for more than some milliseconds."""
_MOST_TENANTS: Final = 10_000
"""Tenants whose staleness is remembered."""

_T = TypeVar("_T")


class Invalidates(Warms, Protocol):
    """What the hook needs of the cache."""

    async def invalidate_targets(
        self, tenant: str, targets: Targets, *, trigger: Trigger, soft: bool = False, links: Sequence[object] = ()
    ) -> Invalidation:
        """Invalidate a union of targets; never raises for a store that is away."""

    def attach(self, part: "IngestHook") -> None:
        """Have the hook checked when the cache starts, and closed before the cache is."""

    @property
    def emitter(self) -> Emitter:
        """Where events go."""

    @property
    def counts(self) -> Counts:
        """What the statistics are made of."""


@dataclass(frozen=True, slots=True)
class Staleness:
    """How long a tenant's changes took from their arrival until they were invalidated, in seconds."""

    latest: float
    worst: float


class _Waiter:
    """Someone who goes on when all the targets are invalidated."""

    __slots__ = ("done", "queued", "targets")

    def __init__(self, targets: Iterable[Target], done: "asyncio.Future[None]") -> None:
        self.targets = set(targets)
        self.done = done
        self.queued = False


class IngestHook:
    """Maps spans to what they could have changed, and invalidates it.

    Without `rules`, every span invalidates every operation of its tenant: never a stale answer, and the
    fewest hits. `min_interval` (at least 0.1 seconds, or 0 to invalidate for every batch) is the bound on how far an
    answer may lag behind what was ingested, beside the time of the invalidation itself; a rule may have its own.

    `policies`, where they are given, are what the rules are checked against at once: ConfigurationError for an
    operation that no policy has, a template that can meet no policy's tag, a window that no rule reaches. Without
    them the policies of the cache's middlewares are, when the cache starts, and a doubtful rule is a warning.

    With `refresh_as`, header fields or a function from a tenant to header fields, the hottest requests of what was
    invalidated are computed again with these credentials, before anybody asks, as far as `refresh` allows.
    With `soft`, what a policy permits (`stale_while_revalidate`) is served stale for that long while it is computed
    anew: readers do not wait for the stream of spans. Raises ConfigurationError for rules that are none.
    """

    def __init__(
        self,
        cache: Invalidates,
        rules: Iterable[IngestRule] | None = None,
        *,
        min_interval: Duration = 1.0,
        policies: Iterable[Policy] | None = None,
        refresh_as: RefreshAs | None = None,
        refresh: Refresh | None = None,
        soft: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._soft = soft
        self._rules = RuleSet((IngestRule(ops=["*"]),) if rules is None else _checked(rules), min_interval=min_interval)
        if policies is not None and (found := faults(self._rules.rules, tuple(policies))):
            raise ConfigurationError(found[0])
        if refresh is not None and refresh_as is None:
            raise ConfigurationError("refresh needs refresh_as: the credentials that requests are computed again with")
        self._known = policies is not None
        self._told: set[str] = set()
        self._clock = clock
        self._coalescer = Coalescer()
        self._staleness: OrderedDict[str, Staleness] = OrderedDict()
        self._waiters: dict[str, list[_Waiter]] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._timer: tuple[float, asyncio.AbstractEventLoop, asyncio.TimerHandle] | None = None
        self._lock = Lock()
        self._early: dict[str, Changes] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: list[Callable[[], Awaitable[None]]] = []
        self._warming = None if refresh_as is None else Warming(cache, refresh_as, refresh or Refresh(), clock=clock)
        cache.attach(self)

    @property
    def emitter(self) -> Emitter:
        """Where events go: the cache's."""
        return self._cache.emitter

    @property
    def staleness_bound(self) -> float:
        """Seconds by which an answer may lag behind acknowledged spans, beside the time that invalidating takes."""
        return self._rules.longest

    @property
    def pending(self) -> int:
        """How many targets have changes that are still to be invalidated."""
        return self._coalescer.kept

    def staleness(self, tenant: str) -> Staleness | None:
        """Return how long changes of a tenant took to be invalidated in this process; None where there were none."""
        return self._staleness.get(tenant)

    # --- spans arrive --------------------------------------------------------------------------------------

    async def notify(
        self,
        tenant: str,
        spans: ExportTraceServiceRequest | Iterable[Span],
        *,
        rejected: int = 0,
        wait: bool = False,
    ) -> Invalidation | None:
        """Invalidate what these spans of `tenant` could have changed: at once, or when `min_interval` has passed.

        Call it when reads can see the spans: after the commit. `spans` is an OTLP request or what
        `nexcache.ingest.spans` makes of one. NexCache's own spans are counted as ignored and invalidate
        nothing. `rejected` says how many of the spans were not stored, for the statistics: which ones is not
        known, so all are taken to have changed something.

        Returns what was invalidated at once, None where that is nothing. With `wait` it returns when everything is
        invalidated, after `min_interval` at most; `queued` then says that the store does not know of some of it.
        Raises InvalidName for an impossible tenant, nothing for a store that is away.
        """
        if not is_valid_id(tenant):
            raise InvalidName(f"not a tenant's id: {tenant!a}")
        if not isinstance(spans, ExportTraceServiceRequest):
            spans = list(spans)
            large = len(spans) > _LARGE_SPANS
        else:
            large = spans.ByteSize() > _LARGE_BYTES
        if large:  # beside the event loop, and to the end even if the caller is cancelled meanwhile
            return await self._to_the_end(self._read_beside(tenant, spans, rejected, wait))
        self._count(tenant, spans, rejected)
        return await self._changed(tenant, self._rules.changes(spans), wait=wait)

    async def notify_unread(self, tenant: str, *, wait: bool = False) -> Invalidation | None:
        """Invalidate the whole tenant, as often as `notify` would: spans of it arrived that could not be read."""
        if not is_valid_id(tenant):
            raise InvalidName(f"not a tenant's id: {tenant!a}")
        return await self._changed(tenant, Changes.of_everything(self._rules.shortest), wait=wait)

    def notify_from_thread(self, tenant: str, spans: Sequence[Span]) -> None:
        """Do what `notify` does, from any thread and without waiting: the spans of an SDK in this process.

        What arrives before the cache has started is invalidated when it does.
        """
        if not is_valid_id(tenant):
            raise InvalidName(f"not a tenant's id: {tenant!a}")
        changes, count = self._rules.changes(spans), _counted(spans)
        with self._lock:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._from_thread, tenant, changes, count)
                return
            self._early.setdefault(tenant, Changes()).merge(changes)
            if len(self._early) > _MOST_TENANTS:
                self._early.pop(next(iter(self._early)))

    # --- the life of the hook ------------------------------------------------------------------------------

    def started(self, policies: Sequence[Policy]) -> None:
        """Note the loop that invalidations run on, and warn of rules that do not fit the policies."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
            early, self._early = self._early, {}
        for tenant, changes in early.items():
            self._from_thread(tenant, changes, SpanCount(0, 0))
        if not self._known and policies:
            for fault in faults(self._rules.rules, policies):
                if fault not in self._told:
                    self._told.add(fault)
                    self.emitter.emit(RuleDoubtful(fault))

    def closes(self, part: Callable[[], Awaitable[None]]) -> None:
        """Have something called when the cache closes, after the last invalidation."""
        self._closing.append(part)

    async def carry_out(self) -> None:
        """Invalidate what is due by now; the hook's timer does it too."""
        dues = self._coalescer.due(self._clock())
        self._arm()
        await self._all(dues)

    async def aclose(self) -> None:
        """Invalidate everything that is still kept. The hook may be used again afterwards."""
        with self._lock:
            self._loop = None
        timer, self._timer = self._timer, None
        if timer is not None and timer[1] is asyncio.get_running_loop():
            timer[2].cancel()
        if self._warming is not None:
            await self._warming.aclose()
        await self._all(self._coalescer.flush())
        running = [task for task in self._tasks if task.get_loop() is asyncio.get_running_loop()]
        if running:
            await asyncio.wait(running)
        for part in self._closing:
            await part()

    # --- from changes to invalidations ---------------------------------------------------------------------

    async def _read_beside(
        self, tenant: str, spans: ExportTraceServiceRequest | Sequence[Span], rejected: int, wait: bool
    ) -> Invalidation | None:
        changes = await asyncio.to_thread(self._rules.changes, spans)
        self._count(tenant, spans, rejected)
        return await self._changed(tenant, changes, wait=wait)

    async def _changed(self, tenant: str, changes: Changes, *, wait: bool) -> Invalidation | None:
        if not changes:
            return None
        due = self._offer(tenant, changes)
        waiter = None
        if wait and (pending := self._coalescer.pending(tenant, changes)):
            waiter = _Waiter(pending, asyncio.get_running_loop().create_future())
            self._waiters.setdefault(tenant, []).append(waiter)
        done = None if due is None else await self._to_the_end(self._carry_out(due))
        if waiter is None:
            return done
        await waiter.done
        if done is None:
            return Invalidation(not waiter.queued, waiter.queued, (), 0.0)
        queued = waiter.queued or done.queued
        return Invalidation(not queued, queued, done.targets, done.waited)

    def _offer(self, tenant: str, changes: Changes) -> Due | None:
        tracing = self.emitter.tracing
        origin = tracing.current() if tracing is not None else None
        due = self._coalescer.offer(tenant, changes, now=self._clock(), origin=origin)
        self._arm()
        return due

    def _from_thread(self, tenant: str, changes: Changes, count: SpanCount) -> None:
        self._counted(tenant, count, 0)
        if changes and (due := self._offer(tenant, changes)) is not None:
            _ = self._spawn(self._carry_out(due))

    async def _carry_out(self, due: Due) -> Invalidation:
        concerned = tuple(self._waiters.get(due.tenant, ()))  # who comes from here on waits for the next
        queued = True
        try:
            done = await self._cache.invalidate_targets(
                due.tenant, due.targets, trigger=Trigger.INGEST, soft=self._soft, links=due.origins
            )
            queued = done.queued
        finally:
            for waiter in concerned:
                self._settle(due, waiter, queued=queued)
        self._measure(due)
        if self._warming is not None:
            self._warming.after(due.tenant, done.targets)
        return done

    def _settle(self, due: Due, waiter: _Waiter, *, queued: bool) -> None:
        settled = {target for target in waiter.targets if due.settles(target)}
        if settled:
            waiter.targets -= settled
            waiter.queued = waiter.queued or queued
            if not waiter.targets:
                waiters = self._waiters[due.tenant]
                waiters.remove(waiter)
                if not waiters:
                    del self._waiters[due.tenant]
                if not waiter.done.done():
                    waiter.done.set_result(None)

    def _measure(self, due: Due) -> None:
        delay = max(0.0, self._clock() - due.since)
        known = self._staleness.pop(due.tenant, None)
        self._staleness[due.tenant] = Staleness(delay, delay if known is None else max(delay, known.worst))
        if len(self._staleness) > _MOST_TENANTS:
            self._staleness.popitem(last=False)
        if self.emitter.hears(Reached):
            self.emitter.emit(Reached(due.tenant, delay, self.staleness_bound))

    async def _all(self, dues: Sequence[Due]) -> None:
        async def carry_out(due: Due) -> None:
            try:
                await self._carry_out(due)
            except Exception as error:  # noqa: BLE001 - one tenant's must not keep back the others'
                self.emitter.emit(HookFailed("invalidation", type(error).__name__))

        if dues:
            await asyncio.gather(*(carry_out(due) for due in dues))

    def _arm(self) -> None:
        """Have the timer set to when something is next due."""
        due, loop = self._coalescer.next, asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer[1] is loop and due is not None and self._timer[0] <= due:
                return
            if self._timer[1] is loop:
                self._timer[2].cancel()
            self._timer = None
        if due is not None:
            delay = max(0.0, due - self._clock())
            # not in the context of the request that happened to come first
            self._timer = (due, loop, loop.call_later(delay, self._ring, context=Context()))

    def _ring(self) -> None:
        self._timer = None
        _ = self._spawn(self.carry_out())

    def _spawn(self, work: Awaitable[_T]) -> "asyncio.Task[_T]":
        async def run() -> _T:
            return await work

        task = asyncio.get_running_loop().create_task(run(), name="nexcache-ingest")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _to_the_end(self, work: Awaitable[_T]) -> _T:
        """Wait for work that goes on if the caller is cancelled: the spans are stored already."""
        return await asyncio.shield(self._spawn(work))

    # --- statistics ----------------------------------------------------------------------------------------

    def _count(self, tenant: str, spans: ExportTraceServiceRequest | Sequence[Span], rejected: int) -> None:
        count = count_spans(spans) if isinstance(spans, ExportTraceServiceRequest) else _counted(spans)
        self._counted(tenant, count, rejected)

    def _counted(self, tenant: str, count: SpanCount, rejected: int) -> None:
        rejected = min(rejected, count.accepted)
        accepted = count.accepted - rejected
        counts = self._cache.counts
        counts.ingested_accepted += accepted
        counts.ingested_rejected += rejected
        counts.ingested_ignored += count.ignored
        if self.emitter.hears(Ingested) and (count.accepted or count.ignored):
            self.emitter.emit(Ingested(tenant, accepted, rejected, count.ignored))


def _counted(spans: Sequence[Span]) -> SpanCount:
    ignored = sum(span.own for span in spans)
    return SpanCount(len(spans) - ignored, ignored)


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
