"""A flood of new keys costs the tenant that sends it: beyond its number a key is stored at its second miss."""

import pytest

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.admission import MOST_KEYS, REMEMBERED, WINDOW, Admission
from nexcache.testing import FakeClock
from tests.wire.server import Origin, ask


def key(tenant: str, number: int) -> bytes:
    return b"nexarch:%b:op:%032d" % (tenant.encode(), number)


def test_new_keys_are_stored_up_to_a_number_and_then_at_their_second_miss() -> None:
    admission = Admission(3, clock=FakeClock())
    assert [admission.admits(key("a", number)) for number in range(6)] == [True] * 3 + [False] * 3
    assert [admission.admits(key("a", number)) for number in range(6)] == [True] * 6
    assert not admission.admits(key("a", 7))


def test_the_number_is_every_tenants_own_and_for_every_minute() -> None:
    clock = FakeClock()
    admission = Admission(1, clock=clock)
    assert admission.admits(key("a", 1))
    assert not admission.admits(key("a", 2))
    assert admission.admits(key("b", 1))
    clock.advance(WINDOW)
    assert admission.admits(key("a", 3))


def test_no_flood_makes_another_tenants_keys_new_again() -> None:
    admission = Admission(10, clock=FakeClock())
    for number in range(10):
        assert admission.admits(key("quiet", number))
    for number in range(120_000):
        admission.admits(key("noisy", number))
    assert all(admission.admits(key("quiet", number)) for number in range(10))
    assert len(admission) <= MOST_KEYS


def test_a_key_is_new_again_when_nobody_has_asked_for_it_for_long() -> None:
    clock = FakeClock()
    admission = Admission(1, clock=clock)
    assert [admission.admits(key("a", number)) for number in (1, 2, 2)] == [True, False, True]
    clock.advance(REMEMBERED - 1)
    assert admission.admits(key("a", 2))
    clock.advance(REMEMBERED - 1)
    assert [admission.admits(key("a", number)) for number in (3, 2, 1)] == [True] * 3
    clock.advance(2 * REMEMBERED)
    assert [admission.admits(key("a", number)) for number in (4, 2)] == [True, False]


def test_of_too_many_keys_the_older_half_is_forgotten_at_once() -> None:
    admission = Admission(1, clock=FakeClock())
    for number in range(MOST_KEYS + 1):
        admission.admits(key("a", number))
    assert len(admission) == MOST_KEYS // 2
    assert admission.admits(key("a", MOST_KEYS))
    assert not admission.admits(key("a", 0))


def test_so_many_tenants_as_keys_are_remembered_with_one_key_each() -> None:
    admission = Admission(1, clock=FakeClock())
    for number in range(MOST_KEYS + 10):
        assert admission.admits(key(f"t{number}", 1))
    assert len(admission) == len(admission._seen) <= MOST_KEYS
    assert admission.admits(key("a", 1))


def test_zero_is_no_bound() -> None:
    admission = Admission(0, clock=FakeClock())
    assert all(admission.admits(key("a", number)) for number in range(10_000))


@pytest.mark.parametrize("query", [b"n=%d", b"a=%d&b=1", b"%d"])
async def test_random_queries_fill_nothing_and_say_why(query: bytes) -> None:
    cache = NexCache(Settings(redis_url=None, redis_host=None, tenant_new_keys_per_minute=5))
    app = CacheMiddleware(Origin(), cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/", op="home")])
    answers = [await ask(app, query=query % number) for number in range(20)]
    assert {answer.status for answer in answers} == {200}
    memory = cache.entries.first
    assert memory is not None
    assert memory.size[0] == 5
    assert answers[-1].cache == "NexCache; fwd=uri-miss; detail=admission"
    assert (await ask(app, query=query % 19)).cache == "NexCache; fwd=uri-miss; stored"
    assert (await ask(app, query=query % 19)).hit
    await cache.aclose()
