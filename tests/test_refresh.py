"""Refreshes in the background: once per key, a few per tenant, and never again at once after a failure."""

import asyncio
from collections.abc import Callable, Coroutine

from nexcache.refresh import Recent, Refreshes, Target
from nexcache.testing import FakeClock


class Work:
    """Refreshes that end when the test says so."""

    def __init__(self) -> None:
        self.begun = 0
        self.ending: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> bool:
        self.begun += 1
        return await asyncio.shield(self.ending)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def start(refreshes: Refreshes, work: Callable[[], Coroutine[None, None, bool]], key: str, tenant: str = "a") -> bool:
    return refreshes.start(tenant, key.encode(), work)


async def test_a_key_is_refreshed_once_at_a_time() -> None:
    refreshes, work = Refreshes(), Work()
    assert [start(refreshes, work, "k") for _ in range(100)] == [True] + [False] * 99
    await settle()
    assert (work.begun, refreshes.running) == (1, 1)
    work.ending.set_result(True)
    await settle()
    assert refreshes.running == 0
    assert start(refreshes, work, "k")
    await refreshes.aclose()


async def test_a_tenant_has_four_refreshes_at_a_time_and_takes_none_from_another() -> None:
    refreshes, work = Refreshes(), Work()
    assert sum(start(refreshes, work, f"a{number}") for number in range(20)) == 4
    assert sum(start(refreshes, work, f"b{number}", "b") for number in range(20)) == 4
    work.ending.set_result(True)
    await settle()
    assert start(refreshes, work, "a19")
    await refreshes.aclose()


async def test_all_tenants_together_have_64_refreshes_at_a_time() -> None:
    refreshes, work = Refreshes(), Work()
    assert sum(start(refreshes, work, f"{number}", f"{number}") for number in range(100)) == 64
    await refreshes.aclose()


async def test_a_refresh_that_stored_nothing_is_not_tried_again_at_once() -> None:
    clock = FakeClock()
    refreshes, work = Refreshes(clock=clock), Work()
    assert start(refreshes, work, "k")
    work.ending.set_result(False)
    await settle()
    assert not start(refreshes, work, "k")
    clock.advance(5.0)
    assert start(refreshes, work, "k")
    await refreshes.aclose()


async def test_closing_ends_what_is_under_way() -> None:
    refreshes, work = Refreshes(), Work()
    start(refreshes, work, "k")
    await settle()
    await refreshes.aclose()
    assert refreshes.running == 0


def test_refreshes_of_an_event_loop_that_has_ended_hold_up_nobody() -> None:
    refreshes = Refreshes()

    async def abandon() -> None:
        for number in range(4):
            start(refreshes, Work(), f"k{number}")

    async def again() -> bool:
        started = start(refreshes, Work(), "k0")
        await refreshes.aclose()
        return started

    loop = asyncio.new_event_loop()
    loop.run_until_complete(abandon())
    kept = asyncio.all_tasks(loop)
    assert asyncio.run(again())
    for task in kept:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*kept, return_exceptions=True))
    loop.close()


def target(number: int, *, body: int = 0) -> Target:
    return Target("GET", "/", b"/", b"%d" % number, "", "http", (), b"x" * body)


def held(recent: Recent) -> int:
    return sum(each.size for number in range(10_000) for each in recent.of(f"t{number}", "op"))


def test_what_is_remembered_for_warming_is_bounded_in_bytes_and_shared_fairly() -> None:
    recent = Recent(max_bytes=1024 * 1024)
    recent.note("quiet", "op", target(1))
    for number in range(3_000):
        recent.note("noisy", f"op{number % 300}", target(number, body=7_000))
    assert recent.of("quiet", "op") == (target(1),)
    assert sum(each.size for number in range(300) for each in recent.of("noisy", f"op{number}")) <= 1024 * 1024
    for number in range(10_000):
        recent.note(f"t{number}", "op", target(number, body=7_000))
    assert held(recent) <= 1024 * 1024


def test_a_request_that_leaves_makes_room_again() -> None:
    recent = Recent(max_bytes=1024 * 1024)
    for number in range(10_000):
        recent.note("acme", "op", target(number, body=7_000))
    assert recent.of("acme", "op") == tuple(target(number, body=7_000) for number in range(9_999, 9_949, -1))


def test_a_very_long_request_is_not_remembered() -> None:
    recent = Recent()
    recent.note("acme", "op", target(1, body=60_000))
    assert recent.of("acme", "op") == ()
