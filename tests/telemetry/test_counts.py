from nexcache.telemetry.counts import OTHER, OTHER_TENANTS, Counts, Latency
from nexcache.telemetry.events import Emitter, Event, Evicted
from nexcache.telemetry.names import Bypass, Tier


def test_hits_of_all_tiers_are_hits_and_bypasses_are_requests() -> None:
    counts = Counts().of("acme", "dashboard")
    counts.memory_hits, counts.redis_hits, counts.fallback_hits = 1, 2, 4
    counts.misses, counts.stale, counts.errors = 8, 16, 32
    counts.bypasses[Bypass.RANGE] = 64
    assert (counts.hits, counts.requests) == (7, 127)


def test_stored_entries_are_counted_by_tier() -> None:
    counts = Counts().of("acme", "dashboard")
    for tier in (Tier.MEMORY, Tier.REDIS, Tier.REDIS, Tier.FALLBACK):
        counts.stored(tier)
    assert (counts.stored_memory, counts.stored_redis, counts.stored_fallback) == (1, 2, 1)


def test_a_pair_has_one_set_of_counts() -> None:
    counts = Counts()
    assert counts.of("acme", "dashboard") is counts.of("acme", "dashboard")
    assert counts.of(None, "dashboard") is not counts.of("acme", "dashboard")
    assert [(tenant, operation) for tenant, operation, _ in counts] == [("acme", "dashboard"), ("", "dashboard")]


def test_beyond_the_bound_the_other_tenants_count_as_one_under_their_operation() -> None:
    counts = Counts(limit=2)
    for tenant in ("a", "b", "c", "d"):
        counts.of(tenant, "dashboard").misses += 1
    assert {(tenant, operation): each.misses for tenant, operation, each in counts} == {
        ("a", "dashboard"): 1,
        ("b", "dashboard"): 1,
        (OTHER_TENANTS, "dashboard"): 2,
    }


def test_beyond_twice_the_bound_everything_else_counts_as_one() -> None:
    counts = Counts(limit=2)
    for number in range(100):
        counts.of("acme", f"operation-{number}").misses += 1
    counts.of("acme", "operation-2").misses += 1
    every = {(tenant, operation): each.misses for tenant, operation, each in counts}
    assert len(every) == 5
    assert every[OTHER_TENANTS, OTHER] == 96
    assert every[OTHER_TENANTS, "operation-2"] == 2


def test_a_tenant_called_like_the_rest_does_not_see_it() -> None:
    counts = Counts(limit=1)
    counts.of(OTHER, "dashboard").misses += 1
    counts.of("acme", "dashboard").misses += 1
    assert counts.of(OTHER, "dashboard").misses == 1


def test_counts_may_be_read_while_they_grow() -> None:
    counts = Counts()
    counts.of("acme", "dashboard")
    for number, _ in enumerate(counts):
        counts.of(f"tenant-{number}", "dashboard")
    assert len(list(counts)) == 2


def test_a_quantile_is_an_upper_bound_at_most_a_quarter_too_large() -> None:
    latency = Latency()
    assert (latency.mean, latency.quantile(0.5)) == (0.0, 0.0)
    for milliseconds in range(1, 101):
        latency.add(milliseconds / 1000)
    assert abs(latency.mean - 0.0505) < 1e-9
    for fraction, true in ((0.5, 0.050), (0.95, 0.095), (0.99, 0.099)):
        assert true <= latency.quantile(fraction) <= true * 1.25
    latency.add(1_000.0)
    assert latency.quantile(1.0) > 30


def test_a_listener_that_raises_is_counted_and_the_others_still_hear() -> None:
    emitter, heard = Emitter(), list[Event]()

    def broken(_: Event) -> None:
        raise RuntimeError("listener")

    emitter.subscribe(broken, Evicted)
    emitter.subscribe(heard.append, Evicted)
    emitter.emit(Evicted("capacity", 1))
    assert heard == [Evicted("capacity", 1)]
    assert emitter.failures == 1


def test_a_bound_method_can_be_unsubscribed() -> None:
    emitter, heard = Emitter(), list[Event]()
    emitter.subscribe(heard.append, Evicted)
    assert emitter.hears(Evicted)
    emitter.unsubscribe(heard.append)
    assert not emitter.hears(Evicted)
