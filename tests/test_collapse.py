"""Calls that are shared until they have left, and no longer."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from nexcache.collapse import UntilSent


class Calls:
    """Calls whose leaving and whose end are decided by hand."""

    def __init__(self) -> None:
        self.made: list[asyncio.Future[str]] = []
        self.sent: list[Callable[[], None]] = []

    async def __call__(self, on_sent: Callable[[], None]) -> str:
        self.sent.append(on_sent)
        self.made.append(asyncio.get_running_loop().create_future())
        return await self.made[-1]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def shared() -> UntilSent[str]:
    return UntilSent()


@pytest.fixture
def calls() -> Calls:
    return Calls()


def ask(shared: UntilSent[str], calls: Any, name: bytes = b"key") -> "asyncio.Task[str]":
    return asyncio.create_task(shared.run(name, calls))


async def test_a_call_is_shared_until_it_has_left_and_not_after(shared: UntilSent[str], calls: Calls) -> None:
    before = [ask(shared, calls) for _ in range(100)]
    await settle()
    assert len(calls.made) == 1
    calls.sent[0]()
    after = [ask(shared, calls) for _ in range(100)]
    await settle()
    assert len(calls.made) == 2
    calls.made[0].set_result("old")
    calls.made[1].set_result("new")

    assert set(await asyncio.gather(*before)) == {"old"}
    assert set(await asyncio.gather(*after)) == {"new"}


async def test_another_name_is_another_call(shared: UntilSent[str], calls: Calls) -> None:
    tasks = [ask(shared, calls, name) for name in (b"a", b"b", b"a")]
    await settle()
    for number, made in enumerate(calls.made):
        made.set_result(str(number))

    assert await asyncio.gather(*tasks) == ["0", "1", "0"]


async def test_a_call_that_never_says_that_it_left_ends_with_its_result(shared: UntilSent[str], calls: Calls) -> None:
    first = ask(shared, calls)
    await settle()
    calls.made[0].set_result("first")
    assert await first == "first"
    second = ask(shared, calls)
    await settle()
    calls.made[1].set_result("second")

    assert await second == "second"
    assert shared._open == {}


async def test_a_late_sign_of_leaving_does_not_close_the_next_call(shared: UntilSent[str], calls: Calls) -> None:
    first = ask(shared, calls)
    await settle()
    calls.sent[0]()
    second = ask(shared, calls)
    await settle()
    calls.sent[0]()
    third = ask(shared, calls)
    await settle()
    for made in calls.made:
        made.set_result("done")
    await asyncio.gather(first, second, third)

    assert len(calls.made) == 2


async def test_where_the_maker_is_cancelled_one_of_the_others_makes_the_call_for_all(
    shared: UntilSent[str], calls: Calls
) -> None:
    tasks = [ask(shared, calls) for _ in range(10)]
    await settle()
    tasks[0].cancel()
    await settle()
    assert len(calls.made) == 2
    calls.made[1].set_result("done")

    assert await asyncio.gather(*tasks[1:]) == ["done"] * 9
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


async def test_where_the_maker_fails_the_others_ask_again_and_only_it_hears_of_it(
    shared: UntilSent[str], calls: Calls
) -> None:
    tasks = [ask(shared, calls) for _ in range(10)]
    await settle()
    calls.made[0].set_exception(RuntimeError("broken"))
    await settle()
    calls.made[1].set_result("done")

    with pytest.raises(RuntimeError, match="broken"):
        await tasks[0]
    assert await asyncio.gather(*tasks[1:]) == ["done"] * 9


async def test_one_who_shares_can_leave_without_disturbing_the_call(shared: UntilSent[str], calls: Calls) -> None:
    tasks = [ask(shared, calls) for _ in range(3)]
    await settle()
    tasks[1].cancel()
    await settle()
    calls.made[0].set_result("done")

    assert [await tasks[0], await tasks[2]] == ["done", "done"]
    assert tasks[1].cancelled()


async def test_one_who_shares_and_is_cancelled_together_with_the_maker_is_cancelled(
    shared: UntilSent[str], calls: Calls
) -> None:
    tasks = [ask(shared, calls) for _ in range(2)]
    await settle()
    future = shared._open.pop(b"key").future
    assert future is not None
    future.cancel()  # as the maker's end does
    tasks[1].cancel()
    await settle()

    assert tasks[1].cancelled()
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_first_event_loops_end_leaves_nothing_open(shared: UntilSent[str], calls: Calls) -> None:
    tasks = [ask(shared, calls) for _ in range(5)]
    await settle()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert shared._open == {}
