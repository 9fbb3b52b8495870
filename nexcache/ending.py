"""Ending tasks for certain: Python's own cancellation is a request, and may be forgotten."""

import asyncio
from typing import Any, Final

_AGAIN: Final = 1.0
"""Seconds after which a task that goes on is cancelled again."""


async def end(*tasks: "asyncio.Task[Any] | asyncio.Future[Any] | None") -> None:
    """Cancel tasks, and return when they have ended; what they raise is nobody's any more.

    One that has forgotten it is cancelled again: `asyncio.wait_for` of Python 3.11 does where what it waits for comes
    in the same moment, and any code may that catches CancelledError. Those of other event loops are left alone.
    """
    loop = asyncio.get_running_loop()
    ours = [task for task in tasks if task is not None and task.get_loop() is loop]
    going = {task for task in ours if not task.done()}
    while going:
        for task in going:
            task.cancel()
        _, going = await asyncio.wait(going, timeout=_AGAIN)
    await asyncio.gather(*ours, return_exceptions=True)
