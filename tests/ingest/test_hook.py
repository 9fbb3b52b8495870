import threading
from collections.abc import Callable
from typing import Any

import pytest

from nexcache.errors import ConfigurationError
from nexcache.ingest.changes import Changes
from nexcache.ingest.hook import IngestHook
from nexcache.ingest.rules import IngestRule, RuleSet
from nexcache.ingest.spans import Span
from nexcache.invalidation.targets import Targets
from nexcache.telemetry.events import Emitter, Ingested
from nexcache.telemetry.names import Trigger
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
