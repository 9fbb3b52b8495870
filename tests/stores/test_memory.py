"""The store in this process: the contract, and its bounds."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nexcache.stores.base import Store
from nexcache.stores.memory import Bounded, Expiries, MemoryStore, tenant_of
from nexcache.testing import FakeClock, StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()

    async def remaining(self, store: Store, key: bytes) -> float:
        assert isinstance(store, MemoryStore)
        return store._values.remaining(key)

    async def lose(self, store: Store, registry: bytes) -> None:
        assert isinstance(store, MemoryStore)
        store._registries.pop(registry)
        store._complete.discard(registry)


class BoundedModel(RuleBasedStateMachine):
    """Everything that can be done to a bounded mapping, beside a plain one that is told of every leaving."""

    MAX_BYTES, MAX_ENTRIES = 4_000, 8
    keys = st.sampled_from([b"a", b"bb", b"c" * 40, b"d", b"e", b"f", b"g", b"h", b"i", b"j", b"k"])

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.left: list[tuple[str, int]] = []
        self.bounded: Bounded[int] = Bounded(
            max_bytes=self.MAX_BYTES,
            max_entries=self.MAX_ENTRIES,
            clock=self.clock,
            left=lambda reason, value: self.left.append((reason, value)),
            owner=lambda key: key[:1] if key < b"e" else b"others",
        )
        self.model: dict[bytes, tuple[int, float]] = {}
        self.count = 0

    @rule(key=keys, size=st.integers(0, 5_000), lifetime=st.floats(0, 50))
    def put(self, key: bytes, size: int, lifetime: float) -> None:
        self.count += 1
        kept = self.bounded.put(key, self.count, size=size, lifetime=lifetime)
        self.model.pop(key, None)
        if kept:
            self.model[key] = (self.count, self.clock() + lifetime)
        else:
            assert size + len(key) > self.MAX_BYTES - 200

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        self.same(key, self.bounded.get(key))

    @rule(key=keys)
    def peek(self, key: bytes) -> None:
        self.same(key, self.bounded.peek(key))

    @rule(key=keys, by=st.integers(0, 3_000))
    def grow(self, key: bytes, by: int) -> None:
        self.bounded.grow(key, by=by)

    @rule(key=keys)
    def pop(self, key: bytes) -> None:
        self.bounded.pop(key)
        self.model.pop(key, None)

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.count > 20)
    @rule()
    def clear(self) -> None:
        self.bounded.clear()
        self.model.clear()

    def same(self, key: bytes, value: int | None) -> None:
        expected = self.model.get(key)
        if value is None:
            # expired, or gone for want of room: then the mapping said so
            assert expected is None or expected[1] <= self.clock() or expected[0] in [gone for _, gone in self.left]
        else:
            assert expected is not None
            assert (value, True) == (expected[0], expected[1] > self.clock())

    @invariant()
    def the_bounds_hold(self) -> None:
        assert self.bounded.bytes <= self.MAX_BYTES
        assert len(self.bounded) <= self.MAX_ENTRIES

    @invariant()
    def the_bytes_are_those_of_the_items(self) -> None:
        assert self.bounded.bytes == sum(self.bounded.size_of(key) for key in self.bounded)

    @invariant()
    def what_is_noted_is_no_longer_than_twice_the_items(self) -> None:
        assert len(self.bounded._expiries) <= 2 * self.MAX_ENTRIES + 64

    @invariant()
    def the_shares_are_all_there_is(self) -> None:
        shares = self.bounded._shares
        assert self.bounded.bytes == sum(share.bytes for share in shares.values())
        assert len(self.bounded) == sum(len(share.items) for share in shares.values())
        assert all(share.items for share in shares.values())
        assert len(self.bounded._heaviest) <= 2 * len(shares) + 64
        known = {owner: max(-weight for weight, each in self.bounded._heaviest if each == owner) for owner in shares}
        assert all(known[owner] >= share.bytes for owner, share in shares.items())

    @invariant()
    def nothing_leaves_twice(self) -> None:
        assert len(self.left) == len(set(self.left))


TestBounds = BoundedModel.TestCase
TestBounds.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def bounded(**bounds: Any) -> tuple[Bounded[str], FakeClock, list[tuple[str, str]]]:
    clock, left = FakeClock(), []

    def note(reason: str, value: str) -> None:
        left.append((reason, value))

    return Bounded(**{"max_bytes": 10_000, "max_entries": 100, **bounds}, clock=clock, left=note), clock, left


def test_what_was_used_since_room_was_last_looked_for_stays_once_more() -> None:
    items, _, left = bounded(max_entries=3)
    for name in "abc":
        items.put(name.encode(), name, size=1, lifetime=60)
    items.get(b"a")
    items.peek(b"b")
    items.put(b"d", "d", size=1, lifetime=60)
    items.get(b"c")
    items.put(b"e", "e", size=1, lifetime=60)
    items.put(b"f", "f", size=1, lifetime=60)

    assert left == [("capacity", "b"), ("capacity", "d"), ("capacity", "a")]
    assert list(items) == [b"e", b"c", b"f"]


def test_who_holds_most_makes_room_and_nobody_else() -> None:
    """A tenant that floods the memory drives out its own entries only."""
    items, _, left = bounded(max_bytes=20_000, max_entries=1_000, owner=lambda key: key[:1])
    for number in range(5):
        items.put(b"quiet %d" % number, f"quiet {number}", size=700, lifetime=60)
    for number in range(1_000):
        items.put(b"noisy %d" % number, f"noisy {number}", size=100, lifetime=60)

    assert [value for _, value in left] == [f"noisy {number}" for number in range(len(left))]
    assert len(left) > 900
    assert all(items.peek(b"quiet %d" % number) for number in range(5))


def test_equal_owners_share_the_room_equally() -> None:
    items, _, _ = bounded(max_bytes=30_000, max_entries=1_000, owner=lambda key: key[:1])
    for number in range(300):
        for owner in b"abc":
            items.put(bytes((owner,)) + b"%d" % number, "x", size=100, lifetime=60)

    held = [sum(key.startswith(bytes((owner,))) for key in items) for owner in b"abc"]
    assert max(held) - min(held) <= 1
    assert sum(held) > 90


@pytest.mark.parametrize(
    ("key", "tenant"),
    [
        (b"nexarch:acme:overview:0a1b", b"acme"),
        (b"nexarch:acme:@tag:x%3Ay", b"acme"),
        (b"nexarch:{acme}:overview:0a1b", b"{acme}"),
        (b"nexarch:a%3Ab:@any", b"a%3Ab"),
    ],
)
def test_the_tenant_is_read_from_a_key(key: bytes, tenant: bytes) -> None:
    assert tenant_of(key) == tenant


def test_what_is_expired_leaves_before_what_is_used_little() -> None:
    items, clock, left = bounded(max_entries=2)
    items.put(b"long", "long", size=1, lifetime=60)
    items.put(b"short", "short", size=1, lifetime=1)
    clock.advance(1)
    items.put(b"new", "new", size=1, lifetime=60)

    assert left == [("expired", "short")]
    assert items.get(b"long") == "long"


def test_an_item_is_gone_at_the_instant_of_its_expiry() -> None:
    items, clock, _ = bounded()
    items.put(b"a", "a", size=1, lifetime=2)
    clock.advance(1.999)
    assert items.get(b"a") == "a"
    clock.advance(0.001)
    assert items.peek(b"a") is None
    assert items.get(b"a") is None
    assert len(items) == 0


def test_a_longer_lifetime_given_later_counts() -> None:
    items, clock, _ = bounded()
    items.put(b"a", "old", size=1, lifetime=1)
    items.put(b"a", "new", size=1, lifetime=60)
    clock.advance(30)
    items.put(b"b", "b", size=1, lifetime=60)  # sweeps what has expired

    assert items.get(b"a") == "new"


def test_what_is_too_large_alone_is_not_kept_and_drives_nothing_out() -> None:
    items, _, left = bounded(max_bytes=1_000)
    items.put(b"a", "a", size=1, lifetime=60)

    assert not items.put(b"b", "b", size=1_000, lifetime=60)
    assert left == []
    assert list(items) == [b"a"]


def test_what_replaces_a_value_and_is_too_large_does_not_leave_the_old_one() -> None:
    items, _, _ = bounded(max_bytes=1_000)
    items.put(b"a", "old", size=1, lifetime=60)

    assert not items.put(b"a", "new", size=1_000, lifetime=60)
    assert items.get(b"a") is None


def test_writing_one_key_a_hundred_thousand_times_holds_one_item() -> None:
    items, clock, _ = bounded()
    for number in range(100_000):
        items.put(b"a", "a", size=1, lifetime=60 + number % 7)
        clock.advance(0.000_01)

    assert len(items) == 1
    assert len(items._expiries) <= 70


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 10_000)), max_size=200), st.floats(0, 20_000))
def test_what_is_over_is_found_a_64th_of_its_lifetime_late_at_most(puts: list[tuple[int, float]], now: float) -> None:
    expiries = Expiries()
    for number, lifetime in puts:
        expiries.add(b"%d" % number, lifetime, lifetime)
    due = sorted(expiries.due(now))
    assert all(b"%d" % number in due for number, lifetime in puts if lifetime + max(lifetime, 0.001) / 64 <= now)
    assert len(due) <= sum(lifetime <= now for _, lifetime in puts)
    assert len(expiries) == len(puts) - len(due)
    assert expiries.due(now) == []


def test_what_never_ends_is_not_noted() -> None:
    items, clock, _ = bounded()
    items.put(b"a", "a", size=1, lifetime=float("inf"))
    clock.advance(1e12)
    assert items.get(b"a") == "a"


async def test_the_number_of_registries_is_bounded_and_a_lost_one_is_incomplete() -> None:
    store = MemoryStore(max_registries=3)
    for number in range(5):
        await store.restore_sentinel(b"registry-%d" % number, b"token-%d" % number, ttl_ms=60_000)
        await store.capture([b"token-%d" % number], registry=b"registry-%d" % number, operation=b"op", ttl_ms=60_000)

    assert await store.members(b"registry-0") is None
    assert await store.members(b"registry-4") == frozenset((b"op",))
    assert len(store._registries) <= 3
    assert len(store._complete) <= 3


async def test_a_memory_too_small_for_the_tokens_holds_no_generation_that_it_has_lost() -> None:
    store = MemoryStore(max_entries=2)
    keys = [b"token-%d" % number for number in range(4)]
    captured = store.capture_now(keys, registry=b"registry", operation=b"op", ttl_ms=60_000)
    pairs = [(key, token) for key, token in zip(keys, captured.tokens, strict=True) if token is not None]

    assert not store.current(pairs)
