"""A flood of new keys costs the tenant that sends it: beyond its number a key is stored at its second miss."""

import pytest

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.admission import WINDOW, Admission
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
    assert admission._seen.bytes <= 16 * 1024 * 1024


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
