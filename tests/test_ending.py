"""A task that is ended has ended when `end` returns, whatever it does with its cancellation."""

import asyncio
import threading
from contextlib import suppress

import pytest

from nexcache import ending
from nexcache.ending import end


async def forever() -> None:
    await asyncio.Event().wait()


async def test_tasks_have_ended_and_what_they_raise_is_nobodys() -> None:
    async def fails() -> None:
        try:
            await forever()
        finally:
            raise ValueError

    tasks = [asyncio.ensure_future(each()) for each in (forever, fails, forever)]
    await asyncio.sleep(0)
    await end(*tasks, None)
    assert [task.cancelled() for task in tasks] == [True, False, True]
    await end()
    await end(*tasks)


async def test_a_task_that_forgets_its_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_AGAIN", 0.001)
    forgotten = 0

    async def forgets() -> None:
        nonlocal forgotten
        while forgotten < 3:
            with suppress(asyncio.CancelledError):
                await forever()
            forgotten += 1
        await forever()

    task = asyncio.ensure_future(forgets())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await end(task)
    assert forgotten == 3
    assert task.cancelled()


async def test_what_wait_for_forgets_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of Python 3.11: the result comes in the turn of the cancellation. Later ones do not forget."""
    monkeypatch.setattr(ending, "_AGAIN", 0.001)
    came = asyncio.get_running_loop().create_future()

    async def goes_on() -> None:
        await asyncio.wait_for(came, 60)
        await forever()

    task = asyncio.ensure_future(goes_on())
    await asyncio.sleep(0)
    came.set_result(None)
    async with asyncio.timeout(5):
        await end(task)
    assert task.cancelled()


async def test_tasks_of_another_loop_are_left_alone() -> None:
    other, made = asyncio.new_event_loop(), threading.Event()
    tasks: list[asyncio.Task[None]] = []

    def run() -> None:
        asyncio.set_event_loop(other)
        tasks.append(other.create_task(forever()))
        other.call_soon(made.set)
        other.run_forever()
        other.run_until_complete(end(*tasks))
        other.close()

    thread = threading.Thread(target=run)
    thread.start()
    made.wait(5)
    await end(*tasks)
    assert not tasks[0].cancelling()
    other.call_soon_threadsafe(other.stop)
    thread.join(5)
    assert tasks[0].cancelled()
