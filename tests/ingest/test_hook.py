import asyncio
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import pytest

from nexcache.errors import ConfigurationError, InvalidName
from nexcache.ingest.changes import Changes
from nexcache.ingest.hook import IngestHook
from nexcache.ingest.rules import IngestRule, RuleSet
from nexcache.ingest.spans import Span
from nexcache.ingest.warming import Refresh
from nexcache.invalidation.targets import Targets
from nexcache.policy import Policy
from nexcache.refresh import Target
from nexcache.telemetry.events import Emitter, HookFailed, Ingested, Reached, RuleDoubtful
from nexcache.telemetry.names import Trigger
from nexcache.testing import FakeClock
from tests.ingest.batches import RecordingCache, protobuf_batch, span

BY_SERVICE = IngestRule(tags=["service:{service.name}"])


async def test_a_batch_invalidates_what_its_rules_say_before_notify_returns() -> None:
    cache = RecordingCache()
    outcome = await IngestHook(cache, [BY_SERVICE]).notify("acme", protobuf_batch("cart", "checkout", spans=2))
    assert cache.invalidated == [("acme", Targets.of(tags=["service:cart", "service:checkout"]), Trigger.INGEST)]
    assert outcome is not None
    assert outcome.targets == ("tag:service:cart", "tag:service:checkout")


async def test_without_rules_a_span_invalidates_every_operation_of_its_tenant() -> None:
    cache = RecordingCache()
    await IngestHook(cache).notify("acme", protobuf_batch("cart"))
    assert cache.invalidated == [("acme", Targets.of(["*"]), Trigger.INGEST)]


async def test_spans_can_be_given_as_such() -> None:
    cache = RecordingCache()
    spans = (each for each in [span(resource={"service.name": "cart"}), span(scope="nexcache")])
    await IngestHook(cache, [BY_SERVICE]).notify("acme", spans)
    assert cache.invalidated == [("acme", Targets.of(tags=["service:cart"]), Trigger.INGEST)]
    assert cache.events == [Ingested("acme", accepted=1, rejected=0, ignored=1)]


@pytest.mark.parametrize(
    "spans",
    [
        pytest.param(protobuf_batch("cart", scope="nexcache", spans=3), id="a request"),
        pytest.param([span(scope="nexcache")] * 3, id="spans"),
    ],
)
async def test_spans_of_nexcache_itself_invalidate_nothing(spans: list[Span]) -> None:
    cache = RecordingCache()
    assert await IngestHook(cache).notify("acme", spans) is None
    assert cache.invalidated == []
    assert cache.counts.ingested_ignored == 3
    assert cache.events == [Ingested("acme", accepted=0, rejected=0, ignored=3)]


async def test_no_spans_invalidate_nothing() -> None:
    cache = RecordingCache()
    assert await IngestHook(cache).notify("acme", protobuf_batch()) is None
    assert cache.invalidated == []


async def test_spans_that_no_rule_matches_invalidate_nothing() -> None:
    cache = RecordingCache()
    hook = IngestHook(cache, [IngestRule(match={"service.name": "payment"}, ops=["*"])])
    assert await hook.notify("acme", protobuf_batch("cart")) is None
    assert cache.invalidated == []
    assert cache.counts.ingested_accepted == 1


async def test_rejected_spans_are_counted_and_still_invalidate() -> None:
    cache = RecordingCache()
    await IngestHook(cache).notify("acme", protobuf_batch("cart", spans=5), rejected=2)
    assert (cache.counts.ingested_accepted, cache.counts.ingested_rejected) == (3, 2)
    assert cache.events == [Ingested("acme", accepted=3, rejected=2, ignored=0)]
    assert len(cache.invalidated) == 1


async def test_an_invalidation_that_is_queued_is_returned_as_such() -> None:
    cache = RecordingCache()
    cache.queued = True
    outcome = await IngestHook(cache).notify("acme", protobuf_batch("cart"))
    assert outcome is not None
    assert (outcome.acknowledged, outcome.queued) == (False, True)


async def test_spans_are_counted_even_if_nobody_listens() -> None:
    cache = RecordingCache()
    cache.emitter = Emitter()
    await IngestHook(cache).notify("acme", protobuf_batch("cart"))
    assert cache.counts.ingested_accepted == 1
    assert cache.events == []


@pytest.mark.parametrize("as_request", [True, False])
async def test_large_batches_are_read_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch, as_request: bool) -> None:
    threads: list[threading.Thread] = []

    changes: Callable[..., Changes] = RuleSet.changes

    def recording(rules: RuleSet, spans: Any) -> Changes:
        threads.append(threading.current_thread())
        return changes(rules, spans)

    monkeypatch.setattr(RuleSet, "changes", recording)
    hook = IngestHook(RecordingCache())
    await hook.notify("acme", protobuf_batch("cart"))
    await hook.notify("acme", protobuf_batch("cart", spans=10_000) if as_request else [span()] * 10_000)
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()


@pytest.mark.parametrize(
    ("rules", "fault"), [([], "rules is empty"), (["service:{service.name}"], "must hold IngestRule, not str")]
)
def test_rules_that_are_none_are_refused(rules: list[IngestRule], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        IngestHook(RecordingCache(), rules)


# --- coalesced ---------------------------------------------------------------------------------------------------


def hooked(cache: RecordingCache, clock: FakeClock, **options: Any) -> IngestHook:
    return IngestHook(cache, [IngestRule(ops=["dashboard"])], clock=clock, **options)


async def test_a_stream_of_batches_invalidates_once_at_once_and_then_once_per_interval() -> None:
    cache, clock = RecordingCache(), FakeClock()
    hook = hooked(cache, clock)
    for _ in range(100):
        await hook.notify("acme", protobuf_batch("cart"))
        clock.advance(0.0099)
    assert len(cache.invalidated) == 1
    assert hook.pending == 1
    clock.advance(0.01)
    await hook.carry_out()
    assert len(cache.invalidated) == 2
    assert hook.pending == 0
    assert hook.staleness_bound == 1.0
    stale = hook.staleness("acme")
    assert stale is not None
    assert stale.worst == pytest.approx(0.9901, abs=1e-3)
    assert [type(event) for event in cache.reached] == [Reached, Reached]
    assert hook.staleness("globex") is None


async def test_the_timer_carries_out_what_was_kept() -> None:
    cache = RecordingCache()
    twice = asyncio.Event()
    cache.emitter.subscribe(lambda _: twice.set() if len(cache.invalidated) == 2 else None, Reached)
    hook = IngestHook(cache, [IngestRule(ops=["dashboard"])], min_interval=0.1)
    for _ in range(3):
        await hook.notify("acme", protobuf_batch("cart"))
    async with asyncio.timeout(10):
        await twice.wait()
    assert len(cache.invalidated) == 2
    await hook.aclose()


async def test_what_is_kept_is_invalidated_when_the_cache_closes() -> None:
    cache, clock = RecordingCache(), FakeClock()
    hook = hooked(cache, clock)
    for tenant in ("acme", "acme", "globex", "globex"):
        await hook.notify(tenant, protobuf_batch("cart"))
    assert [tenant for tenant, _, _ in cache.invalidated] == ["acme", "globex"]
    await hook.aclose()
    assert [tenant for tenant, _, _ in cache.invalidated] == ["acme", "globex", "acme", "globex"]
    await hook.aclose()
    assert len(cache.invalidated) == 4


async def test_a_caller_that_is_cancelled_loses_no_invalidation() -> None:
    """Spans are stored by then: that their sender has gone changes nothing."""
    cache = RecordingCache()
    entered, go_on = asyncio.Event(), asyncio.Event()
    invalidate = cache.invalidate_targets

    async def slow(*arguments: Any, **more: Any) -> Any:
        entered.set()
        await go_on.wait()
        return await invalidate(*arguments, **more)

    cache.invalidate_targets = slow  # type: ignore[method-assign] # a slow store
    hook = IngestHook(cache)
    caller = asyncio.create_task(hook.notify("acme", protobuf_batch("cart")))
    await entered.wait()
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert caller.cancelled()
    go_on.set()
    await hook.aclose()
    assert len(cache.invalidated) == 1


async def test_a_large_batch_whose_caller_is_cancelled_while_it_is_read_still_invalidates() -> None:
    cache = RecordingCache()
    hook = IngestHook(cache)
    caller = asyncio.create_task(hook.notify("acme", [span()] * 10_000))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    await hook.aclose()
    assert len(cache.invalidated) == 1


async def test_who_waits_goes_on_when_all_of_its_batch_is_invalidated() -> None:
    cache, clock = RecordingCache(), FakeClock()
    hook = hooked(cache, clock)
    await hook.notify("acme", protobuf_batch("cart"))
    waiting = asyncio.create_task(hook.notify("acme", protobuf_batch("cart"), wait=True))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    clock.advance(1.0)
    await hook.carry_out()
    outcome = await waiting
    assert outcome is not None
    assert (outcome.acknowledged, outcome.queued) == (True, False)
    assert len(cache.invalidated) == 2


async def test_who_waits_hears_that_the_invalidation_is_only_queued() -> None:
    cache, clock = RecordingCache(), FakeClock()
    hook = hooked(cache, clock)
    await hook.notify("acme", protobuf_batch("cart"))
    cache.queued = True
    waiting = asyncio.create_task(hook.notify("acme", protobuf_batch("cart"), wait=True))
    await asyncio.sleep(0)
    clock.advance(1.0)
    await hook.carry_out()
    outcome = await waiting
    assert outcome is not None
    assert (outcome.acknowledged, outcome.queued) == (False, True)


async def test_one_tenant_that_fails_does_not_keep_back_the_others() -> None:
    cache, clock = RecordingCache(), FakeClock()
    hook = hooked(cache, clock)
    for tenant in ("acme", "globex") * 2:
        await hook.notify(tenant, protobuf_batch("cart"))
    invalidate = cache.invalidate_targets

    async def failing(tenant: str, *arguments: Any, **more: Any) -> Any:
        if tenant == "acme":
            raise RuntimeError
        return await invalidate(tenant, *arguments, **more)

    cache.invalidate_targets = failing  # type: ignore[method-assign] # a defect
    clock.advance(1.0)
    await hook.carry_out()
    assert [tenant for tenant, _, _ in cache.invalidated] == ["acme", "globex", "globex"]
    assert HookFailed("invalidation", "RuntimeError") in cache.events


async def test_spans_that_could_not_be_read_invalidate_the_whole_tenant_as_often() -> None:
    cache, clock = RecordingCache(), FakeClock()
    hook = hooked(cache, clock)
    for _ in range(3):
        await hook.notify_unread("acme")
    assert cache.invalidated == [("acme", Targets.of(["*"]), Trigger.INGEST)]


@pytest.mark.parametrize("tenant", ["", "a\nb", "x" * 151])
async def test_an_impossible_tenant_is_refused(tenant: str) -> None:
    hook = IngestHook(RecordingCache())
    with pytest.raises(InvalidName):
        await hook.notify(tenant, [span()])
    with pytest.raises(InvalidName):
        await hook.notify_unread(tenant)
    with pytest.raises(InvalidName):
        hook.notify_from_thread(tenant, [span()])


@pytest.mark.parametrize("interval", [0.05, -1, "often"])
def test_an_interval_that_would_be_too_many_writes_is_refused(interval: Any) -> None:
    with pytest.raises(ConfigurationError, match="min_interval"):
        IngestHook(RecordingCache(), min_interval=interval)
    with pytest.raises(ConfigurationError, match="min_interval"):
        IngestRule(ops=["x"], min_interval=interval)


class Tracing:
    """Knows which request is current, as a tracer does."""

    def __init__(self) -> None:
        self.request: ContextVar[str | None] = ContextVar("request", default=None)

    def current(self) -> object:
        return self.request.get()

    def get(self, operation: str) -> None:
        return None

    def invalidate(self, links: Sequence[object] = ()) -> Any:
        raise NotImplementedError


async def test_what_was_kept_back_is_linked_to_its_requests_and_runs_in_none_of_them() -> None:
    cache, clock, tracing = RecordingCache(), FakeClock(), Tracing()
    cache.emitter.tracing = tracing
    current: list[object] = []
    cache.emitter.subscribe(lambda _: current.append(tracing.current()), Reached)
    hook = hooked(cache, clock, min_interval=0.1)
    for number in range(3):
        tracing.request.set(f"request {number}")
        await hook.notify("acme", protobuf_batch("cart"))
    clock.advance(0.1)
    ringing = asyncio.Event()
    cache.emitter.subscribe(lambda _: ringing.set(), Reached)
    async with asyncio.timeout(10):
        await ringing.wait()
    assert cache.links == [("request 0",), ("request 1", "request 2")]
    assert current == ["request 0", None]


# --- rules and policies ------------------------------------------------------------------------------------------


def test_rules_that_do_not_fit_the_policies_given_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="no policy has the operation 'dashbord'"):
        IngestHook(RecordingCache(), [IngestRule(ops=["dashbord"])], policies=[Policy("/d", op="dashboard")])


async def test_rules_that_do_not_fit_the_policies_of_the_app_are_warned_of_once() -> None:
    cache = RecordingCache()
    hook = IngestHook(cache, [IngestRule(ops=["dashbord"])])
    for _ in range(2):
        hook.started([Policy("/d", op="dashboard")])
    assert [type(event) for event in cache.events] == [RuleDoubtful]
    hook.started([])  # a process that only ingests knows no policies
    assert len(cache.events) == 1


# --- spans of an SDK in this process -----------------------------------------------------------------------------


async def test_spans_from_other_threads_are_invalidated_on_the_loop_of_the_cache() -> None:
    cache = RecordingCache()
    hook = IngestHook(cache, [BY_SERVICE], min_interval=0)
    hook.started([])
    reached = asyncio.Event()
    cache.emitter.subscribe(lambda _: reached.set(), Reached)
    spans = [span(resource={"service.name": "cart"}), span(scope="nexcache")]
    await asyncio.to_thread(hook.notify_from_thread, "acme", spans)
    async with asyncio.timeout(10):
        await reached.wait()
    assert cache.invalidated == [("acme", Targets.of(tags=["service:cart"]), Trigger.INGEST)]
    assert (cache.counts.ingested_accepted, cache.counts.ingested_ignored) == (1, 1)


async def test_spans_from_before_the_start_are_invalidated_at_the_start_and_those_after_the_end_at_the_next() -> None:
    cache = RecordingCache()
    hook = IngestHook(cache, [BY_SERVICE], min_interval=0)
    hook.notify_from_thread("acme", [span(resource={"service.name": "early"})])
    assert cache.invalidated == []
    hook.started([])
    await hook.aclose()
    assert cache.invalidated == [("acme", Targets.of(tags=["service:early"]), Trigger.INGEST)]
    hook.notify_from_thread("acme", [span(resource={"service.name": "late"})])
    hook.started([])
    await hook.aclose()
    assert cache.invalidated[1:] == [("acme", Targets.of(tags=["service:late"]), Trigger.INGEST)]


# --- computed ahead ----------------------------------------------------------------------------------------------


def requested(path: str) -> Target:
    return Target("GET", path, path.encode(), b"", "", "http", (), b"")


async def test_the_hottest_requests_of_what_was_invalidated_are_computed_again_as_the_service_principal() -> None:
    cache = RecordingCache()
    cache.requests = [("dashboard", requested("/a")), ("other", requested("/b")), ("dashboard", requested("/c"))]
    hook = IngestHook(
        cache,
        [IngestRule(ops=["dashboard"])],
        refresh_as=lambda tenant: {"X-API-Key": f"service-of-{tenant}"},
        refresh=Refresh(top=5, per_second=1e6),
    )
    assert cache.watched
    done = asyncio.Event()
    refill = cache.refill

    async def noticed(*arguments: Any) -> bool:
        found = await refill(*arguments)
        if len(cache.refilled) == 2:
            done.set()
        return found

    cache.refill = noticed  # type: ignore[method-assign,assignment] # to know when
    await hook.notify("acme", protobuf_batch("cart"))
    async with asyncio.timeout(10):
        await done.wait()
    await hook.aclose()
    assert cache.refilled == [("acme", "dashboard", ((b"x-api-key", b"service-of-acme"),))] * 2


async def test_without_a_service_principal_nothing_is_computed_ahead() -> None:
    cache = RecordingCache()
    cache.requests = [("dashboard", requested("/a"))]
    hook = IngestHook(cache, [IngestRule(ops=["dashboard"])])
    await hook.notify("acme", protobuf_batch("cart"))
    await hook.aclose()
    assert not cache.watched
    assert cache.refilled == []
    with pytest.raises(ConfigurationError, match="refresh needs refresh_as"):
        IngestHook(cache, refresh=Refresh())


async def test_a_principal_that_cannot_be_named_computes_nothing_and_is_an_event() -> None:
    cache = RecordingCache()
    cache.requests = [("dashboard", requested("/a"))]

    def nobody(tenant: str) -> dict[str, str]:
        raise KeyError(tenant)

    failed = asyncio.Event()
    cache.emitter.subscribe(lambda _: failed.set(), HookFailed)
    hook = IngestHook(cache, [IngestRule(ops=["dashboard"])], refresh_as=nobody)
    await hook.notify("acme", protobuf_batch("cart"))
    async with asyncio.timeout(10):
        await failed.wait()
    await hook.aclose()
    assert cache.refilled == []
    assert HookFailed("refresh_as", "KeyError") in cache.events


@pytest.mark.parametrize("budget", [{"top": 0}, {"concurrency": 0}, {"per_second": 0}])
def test_a_budget_of_nothing_is_refused(budget: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="Refresh"):
        Refresh(**budget)
