from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexcache.ingest.changes import MAX_TARGETS, WHOLE_TENANT, Changes, Target
from nexcache.ingest.coalescing import MOST_ORIGINS, Coalescer, Due
from nexcache.ingest.windows import MINUTE, SpanTimes
from nexcache.invalidation.targets import Targets


def changes(*names: str, interval: float = 1.0) -> Changes:
    found = Changes()
    found.add({Target("op", name): interval for name in names})
    return found


def at_minute(minute: int, interval: float = 1.0) -> Changes:
    found = Changes()
    found.add({Target("window", "spans"): interval})
    found.times["spans"] = SpanTimes()
    found.times["spans"].add(minute * MINUTE, minute * MINUTE)
    return found


def names(dues: Iterable[Due | None]) -> list[tuple[str, set[str]]]:
    return [(due.tenant, set(due.targets.operations)) for due in dues if due is not None]


def test_the_first_change_is_due_at_once() -> None:
    assert names([Coalescer().offer("acme", changes("a", "b"), now=5.0)]) == [("acme", {"a", "b"})]


def test_further_changes_are_due_together_when_the_interval_has_passed() -> None:
    coalescer = Coalescer()
    coalescer.offer("acme", changes("a"), now=0.0)
    for tenth in range(1, 10):
        assert coalescer.offer("acme", changes("a"), now=tenth / 10) is None
    assert coalescer.next == 1.0
    assert coalescer.due(0.99) == []
    (due,) = coalescer.due(1.0)
    assert (due.targets, due.since) == (Targets.of(["a"]), 0.1)


def test_a_change_after_a_quiet_interval_is_due_at_once_again() -> None:
    coalescer = Coalescer()
    coalescer.offer("acme", changes("a"), now=0.0)
    assert coalescer.due(1.0) == []
    assert len(coalescer) == 0, "nothing is remembered of a quiet target"
    assert names([coalescer.offer("acme", changes("a"), now=1.0)]) == [("acme", {"a"})]


def test_after_the_trailing_edge_the_interval_begins_anew() -> None:
    coalescer = Coalescer()
    for now in (0.0, 0.5):
        coalescer.offer("acme", changes("a"), now=now)
    assert len(coalescer.due(1.0)) == 1
    assert coalescer.offer("acme", changes("a"), now=1.1) is None
    assert coalescer.due(1.9) == []
    assert len(coalescer.due(2.0)) == 1


def test_targets_and_tenants_do_not_wait_for_each_other() -> None:
    coalescer = Coalescer()
    coalescer.offer("acme", changes("a"), now=0.0)
    assert names([coalescer.offer("acme", changes("a", "b"), now=0.5)]) == [("acme", {"b"})]
    assert names([coalescer.offer("globex", changes("a"), now=0.5)]) == [("globex", {"a"})]


def test_each_rule_has_its_own_interval_and_a_target_of_two_the_shorter() -> None:
    coalescer = Coalescer()
    coalescer.offer("acme", changes("slow", interval=10.0), now=0.0)
    coalescer.offer("acme", changes("fast", interval=0.1), now=0.0)
    coalescer.offer("acme", changes("slow", "fast", interval=10.0), now=0.05)
    assert names(coalescer.due(0.1)) == [("acme", {"fast"})]
    coalescer.offer("acme", changes("slow", interval=2.0), now=0.2)
    assert names(coalescer.due(2.0)) == [("acme", {"slow"})]


def test_an_interval_of_zero_keeps_nothing_back() -> None:
    coalescer = Coalescer()
    for _ in range(3):
        assert coalescer.offer("acme", changes("a", interval=0), now=0.0) is not None
    assert len(coalescer) == 0


def test_times_are_kept_and_merged() -> None:
    coalescer = Coalescer()
    coalescer.offer("acme", at_minute(100), now=0.0)
    for minute in (200, 300):
        assert coalescer.offer("acme", at_minute(minute), now=0.5) is None
    (due,) = coalescer.due(1.0)
    assert {"window:spans:0:200", "window:spans:0:300"} <= due.targets.tags
    assert "window:spans:0:100" not in due.targets.tags, "it was invalidated already"


def test_the_whole_tenant_settles_all_that_is_kept_of_it() -> None:
    coalescer = Coalescer()
    for now in (0.0, 0.5):
        coalescer.offer("acme", changes("a", "b"), now=now)
    due = coalescer.offer("acme", changes("*"), now=0.7)
    assert due is not None
    assert due.targets.whole_tenant
    assert due.since == 0.5
    assert due.settles(Target("op", "a"))
    assert coalescer.kept == 0
    assert coalescer.due(9.0) == []


def test_a_tenant_with_too_many_targets_has_one() -> None:
    coalescer = Coalescer(most_of_a_tenant=3)
    coalescer.offer("acme", changes("a", "b", "c"), now=0.0)
    coalescer.offer("acme", changes("a"), now=0.2)
    due = coalescer.offer("acme", changes("d"), now=0.3)
    assert due is not None
    assert due.targets == Targets.of(["*"])
    assert due.since == 0.2, "what was kept is done with"
    assert (len(coalescer), coalescer.kept) == (1, 0)
    assert coalescer.offer("acme", changes("e", "f"), now=0.4) is not None
    assert coalescer.offer("acme", changes("g"), now=0.5) is None, "the whole tenant was invalidated lately"
    (last,) = coalescer.due(1.3)
    assert last.targets.whole_tenant


def test_memory_is_bounded_over_all_tenants_and_nothing_is_lost_by_it() -> None:
    coalescer = Coalescer(most_in_all=10)
    for number in range(100):
        due = coalescer.offer(f"tenant-{number}", changes("a", "b"), now=0.0)
        assert due is not None
    assert len(coalescer) <= 10
    assert coalescer.offer("tenant-99", changes("a"), now=0.1) is not None, "not remembered: not kept back either"


def test_the_schedule_does_not_grow_with_the_changes() -> None:
    coalescer = Coalescer()
    for number in range(10_000):
        coalescer.offer("acme", changes("a", interval=1.0 - number / 20_000), now=0.0)
    assert len(coalescer._schedule) <= 2 * len(coalescer) + 1025


def test_flush_gives_all_that_is_kept_and_forgets() -> None:
    coalescer = Coalescer()
    for tenant in ("acme", "globex"):
        for now in (0.0, 0.5):
            coalescer.offer(tenant, changes("a"), now=now)
    assert names(coalescer.flush()) == [("acme", {"a"}), ("globex", {"a"})]
    assert (len(coalescer), coalescer.next) == (0, None)
    assert names([coalescer.offer("acme", changes("a"), now=0.6)]) == [("acme", {"a"})]


def test_some_of_the_origins_come_with_what_is_due() -> None:
    coalescer = Coalescer()
    for number in range(50):
        coalescer.offer("acme", changes("a"), now=number / 100, origin=number)
    (due,) = coalescer.due(1.0)
    assert due.origins == tuple(range(1, 1 + MOST_ORIGINS))


def test_what_is_pending_of_a_batch_is_told() -> None:
    coalescer = Coalescer()
    batch = changes("a", "b")
    coalescer.offer("acme", batch, now=0.0)
    assert coalescer.pending("acme", batch) == frozenset()
    coalescer.offer("acme", batch, now=0.1)
    assert coalescer.pending("acme", changes("a")) == {Target("op", "a")}
    assert coalescer.pending("globex", batch) == frozenset()


@given(
    st.lists(
        st.tuples(
            st.floats(0, 5, allow_nan=False), st.sampled_from(["acme", "globex"]), st.sampled_from(["a", "b", "c", "*"])
        ),
        max_size=60,
    ),
    st.sampled_from([2, 256]),
)
def test_no_change_waits_longer_than_its_interval_and_no_target_is_done_twice_within_it(
    arrivals: list[tuple[float, str, str]], most: int
) -> None:
    """Driven as the hook's timer drives it, against the bound that is stated."""
    coalescer = Coalescer(most_of_a_tenant=most)
    open_since: dict[tuple[str, str], float] = {}
    done_at: dict[tuple[str, str], list[float]] = {}

    def done(due: Due | None, now: float) -> None:
        if due is None:
            return
        for (tenant, name), since in list(open_since.items()):
            if tenant == due.tenant and due.settles(Target("op", name)):
                assert now - since <= 1.0 + 1e-9
                del open_since[tenant, name]
        for target in due.found:
            done_at.setdefault((due.tenant, target.name), []).append(now)

    def run_until(now: float) -> None:
        while coalescer.next is not None and coalescer.next <= now:
            at = coalescer.next
            for due in coalescer.due(at):
                done(due, at)

    for now, tenant, name in sorted(arrivals):
        run_until(now)
        open_since.setdefault((tenant, name), now)
        done(coalescer.offer(tenant, changes(name), now=now), now)
    run_until(100.0)
    assert not open_since
    assert len(coalescer) == 0
    if most > 4:
        for moments in done_at.values():
            assert all(later - sooner >= 1.0 - 1e-9 for sooner, later in pairwise(moments))


@pytest.mark.parametrize("merged", [False, True])
def test_a_batch_with_too_many_targets_is_the_whole_tenant(merged: bool) -> None:
    batch = Changes()
    for number in range(MAX_TARGETS + 1):
        if merged:
            batch.merge(changes(str(number), interval=0.5))
        elif batch.add({Target("tag", str(number)): 0.5}):
            break
    assert batch.intervals == {WHOLE_TENANT: 0.5}
    batch.merge(at_minute(5))
    assert batch.targets == Targets.of(["*"])
