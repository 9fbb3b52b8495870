"""The lease by itself: whose it is, how it ends, and who is told."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from nexcache.errors import StoreUnavailable
from nexcache.fill_lease import Captured, End, FillLeases, announced, lease_name
from nexcache.invalidation.generations import Snapshot
from nexcache.key import KeySpace
from nexcache.stores.base import LeaseOffer
from nexcache.stores.redis import RedisStore, Target
from nexcache.telemetry.events import Emitter
from nexcache.telemetry.names import Tier
from nexcache.testing import FakeClock
from tests.servers import Valkey

KEY = KeySpace().key("acme", "home", b"request")
NAME = lease_name(KEY, (b"g",))


@pytest.fixture
async def store(valkey: Valkey, redis_url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(Target("127.0.0.1", valkey.port), emitter=Emitter(), timeout=2.0)
    yield store
    await store.aclose()


async def test_a_lease_is_one_holders(store: RedisStore, valkey: Valkey) -> None:
    assert await store.acquire(NAME, b"mine", ttl_ms=60_000)
    assert not await store.acquire(NAME, b"another's", ttl_ms=60_000)
    assert valkey.ask("GET", NAME) == b"mine"
    assert 59 < await store.lease_left(NAME) <= 60


async def test_only_the_holder_can_give_a_lease_back(store: RedisStore, valkey: Valkey) -> None:
    """One whose lease has lapsed, and was taken by another, must not take it from him."""
    await store.acquire(NAME, b"another's", ttl_ms=60_000)
    await store.release(NAME, b"mine", message=b"m")
    assert valkey.ask("GET", NAME) == b"another's"
    await store.release(NAME, b"another's", message=b"m")
    assert valkey.ask("EXISTS", NAME) == 0


async def test_only_the_holder_can_renew_a_lease(store: RedisStore, valkey: Valkey) -> None:
    assert not await store.prolong(NAME, b"mine", ttl_ms=60_000)
    await store.acquire(NAME, b"another's", ttl_ms=10_000)
    assert not await store.prolong(NAME, b"mine", ttl_ms=60_000)
    assert valkey.ask("PTTL", NAME) <= 10_000
    assert await store.prolong(NAME, b"another's", ttl_ms=60_000)
    assert valkey.ask("PTTL", NAME) > 10_000


async def test_a_lease_lapses(store: RedisStore) -> None:
    await store.acquire(NAME, b"mine", ttl_ms=1)
    await asyncio.sleep(0.01)
    assert await store.lease_left(NAME) == 0
    assert await store.acquire(NAME, b"another's", ttl_ms=60_000)


def test_another_request_or_another_generation_is_another_lease() -> None:
    names = {
        lease_name(key, generations)
        for key in (KEY, KeySpace().key("acme", "home", b"other"), KeySpace().key("globex", "home", b"request"))
        for generations in ((b"a", b"b"), (b"ab", b""), (b"a", b"c"))
    }
    assert len(names) == 9
    assert all(name.startswith((b"nexarch:acme:home:", b"nexarch:globex:home:")) for name in names)


@pytest.mark.parametrize(
    ("message", "means"),
    [
        ([2, b"name", "over"], (b"name", End.OVER)),
        ([2, b"name", "alone"], (b"name", End.ALONE)),
        ([2, b"name", "lapsed"], None),
        ([2, b"name", "overdue"], None),
        ([2, "name", "over"], None),
        ([3, b"name", "over"], None),
        ([1, b"n", b"", [], False], None),
        (None, None),
        ({}, None),
    ],
)
def test_an_announcement_is_read_and_nothing_else_is(message: object, means: object) -> None:
    assert announced(message) == means


class Kept:
    """A store of one lease, moved by hand."""

    def __init__(self, left: float = 1.0, *, away: bool = False) -> None:
        self.left = left
        self.away = away
        self.asked = 0
        self.acquired: list[bytes] = []
        self.released: list[bytes] = []

    async def acquire(self, name: bytes, token: bytes, *, ttl_ms: int, deadline: float | None = None) -> bool:
        if self.away:
            raise StoreUnavailable("connection", "as the test wants it")
        self.acquired.append(name)
        return self.left <= 0

    async def prolong(self, name: bytes, token: bytes, *, ttl_ms: int) -> bool:
        return True

    async def release(self, name: bytes, token: bytes, *, message: bytes) -> None:
        self.released.append(name)

    async def lease_left(self, name: bytes) -> float:
        self.asked += 1
        if self.away:
            raise StoreUnavailable("connection", "as the test wants it")
        return self.left


async def test_an_announcement_that_came_before_the_wait_began_is_not_waited_for() -> None:
    clock = FakeClock()
    leases = FillLeases(Kept(), connected=lambda: True, clock=clock)
    leases.heard(NAME, End.ALONE)
    assert await leases.ended(NAME, since=clock.now - 0.001, limit=60) is End.ALONE


async def test_an_announcement_of_an_earlier_holder_ends_no_wait() -> None:
    clock = FakeClock()
    leases = FillLeases(Kept(), connected=lambda: True, clock=clock)
    leases.heard(NAME, End.OVER)
    clock.advance(0.1)
    assert await leases.ended(NAME, since=clock.now, limit=0.01) is End.OVERDUE


async def test_all_who_wait_are_told_at_once_and_nobody_asks_the_store() -> None:
    store = Kept()
    leases = FillLeases(store, connected=lambda: True)
    waiting = [asyncio.create_task(leases.ended(NAME, since=float("inf"), limit=60)) for _ in range(10)]
    await asyncio.sleep(0)
    leases.received([2, NAME, "over"])
    assert await asyncio.gather(*waiting) == [End.OVER] * 10
    assert store.asked == 0


async def test_what_a_node_has_announced_is_no_news_to_it_and_what_another_does_is() -> None:
    clock = FakeClock()
    leases = FillLeases(Kept(), connected=lambda: True, clock=clock)
    leases.give_back(LeaseOffer(NAME, b"mine", 1000), End.OVER)
    at = clock.now
    clock.advance(0.001)
    leases.received([2, NAME, "over"])
    assert leases._heard.peek(NAME) == (End.OVER, at)

    leases.received([2, NAME, "over"])
    assert leases._heard.peek(NAME) == (End.OVER, clock.now)
    await leases.aclose()


async def test_an_announcement_that_was_lost_hides_no_later_one() -> None:
    clock = FakeClock()
    leases = FillLeases(Kept(), connected=lambda: True, clock=clock)
    leases.give_back(LeaseOffer(NAME, b"mine", 1000), End.OVER)
    clock.advance(3.0)
    leases.received([2, NAME, "over"])

    assert leases._heard.peek(NAME) == (End.OVER, clock.now)
    await leases.aclose()


@pytest.mark.parametrize("store", [Kept(left=0.0), Kept(away=True)], ids=["lapsed", "store away"])
async def test_without_announcements_the_lease_is_looked_at(store: Kept) -> None:
    leases = FillLeases(store, connected=lambda: False)
    assert await leases.ended(NAME, since=float("inf"), limit=60) is End.LAPSED
    assert store.asked == 1
    assert not leases._waiting


def captured(*, leased: bool = False, tier: Tier = Tier.REDIS) -> Snapshot:
    return Snapshot(tier, (b"g",), b"any", leased=leased)


@pytest.mark.parametrize(
    ("known", "leased", "left", "mine", "asked_again", "given_back"),
    [
        pytest.param((b"g",), True, 1.0, True, 0, 0, id="taken beside the capture"),
        pytest.param((b"g",), False, 1.0, False, 0, 0, id="another's"),
        pytest.param(None, False, 0.0, True, 1, 0, id="generations unknown: asked for afterwards"),
        pytest.param((b"old",), True, 0.0, True, 1, 1, id="generations changed: the wrong one is given back"),
        pytest.param((b"old",), True, 1.0, False, 1, 1, id="generations changed, and another's"),
    ],
)
async def test_who_computes_is_known_with_the_generations(
    *, known: tuple[bytes, ...] | None, leased: bool, left: float, mine: bool, asked_again: int, given_back: int
) -> None:
    store = Kept(left=left)
    leases = FillLeases(store, connected=lambda: True)
    offers: list[LeaseOffer | None] = []

    async def capture(*, lease: LeaseOffer | None, on_sent: object) -> Snapshot:
        offers.append(lease)
        return captured(leased=leased)

    found = await leases.capture(KEY, known, capture, deadline=None)
    await leases.aclose()
    assert (found.lease is not None, found.elsewhere) == (mine, None if mine else NAME)
    assert store.acquired == [NAME] * asked_again
    assert len(store.released) == given_back
    assert NAME not in store.released


@pytest.mark.parametrize("tier", [Tier.REDIS, Tier.FALLBACK])
async def test_without_the_store_every_node_computes(tier: Tier) -> None:
    leases = FillLeases(Kept(away=True), connected=lambda: True)

    async def capture(*, lease: LeaseOffer | None, on_sent: object) -> Snapshot:
        return captured(tier=tier)

    assert await leases.capture(KEY, None, capture, deadline=None) == Captured(captured(tier=tier))
