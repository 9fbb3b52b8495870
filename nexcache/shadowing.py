"""Carries shadow checks out in the background, and takes operations that answered wrongly out of the cache."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

from nexcache.ending import end
from nexcache.policy import Shadow, seconds
from nexcache.shadow import Doubts
from nexcache.telemetry.counts import OperationCounts
from nexcache.telemetry.events import Distrusted, Emitter, HookFailed, ShadowChecked

_AT_ONCE: Final = 8
"""Checks at a time: nobody waits for them, so they leave the app to those who do."""


class Shadows:
    """The shadow checks of one cache."""

    def __init__(self, emitter: Emitter, *, draw: Callable[[], float] = random.random) -> None:
        self._emitter = emitter
        self._draw = draw
        self._doubts: dict[str, Doubts] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._until: dict[str, asyncio.TimerHandle] = {}
        self.distrusted: set[str] = set()
        """Operations that are sent past the cache, because their answers were wrong."""

    def draws(self, shadow: Shadow) -> bool:
        """Whether a hit is one of those that are checked."""
        return self._draw() < shadow.share

    def start(
        self,
        tenant: str,
        operation: str,
        shadow: Shadow,
        counts: OperationCounts,
        check: Callable[[], Coroutine[Any, Any, bool | None]],
    ) -> None:
        """Begin `check`, which returns whether the answer was wrong, or None where that cannot be said."""
        if len(self._tasks) >= _AT_ONCE or operation in self.distrusted:
            return
        task = asyncio.get_running_loop().create_task(
            self._run(tenant, operation, shadow, counts, check), name="nexcache-shadow"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def running(self) -> int:
        """How many are under way."""
        return len(self._tasks)

    @property
    def worst(self) -> float | None:
        """The highest rate of wrong answers of any operation; None where no operation had enough checks."""
        rates = [rate for doubts in self._doubts.values() if (rate := doubts.rate) is not None]
        return max(rates, default=None)

    async def aclose(self) -> None:
        """End the checks; what is distrusted stays so, until its time is over."""
        await end(*self._tasks)

    async def _run(
        self,
        tenant: str,
        operation: str,
        shadow: Shadow,
        counts: OperationCounts,
        check: Callable[[], Coroutine[Any, Any, bool | None]],
    ) -> None:
        try:
            wrong = await check()
        except Exception as error:  # noqa: BLE001 - nobody waits for this
            self._emitter.emit(HookFailed("shadow", type(error).__name__))
            return
        if wrong is None:
            return
        counts.shadow_checks += 1
        counts.shadow_wrong += wrong
        self._emitter.emit(ShadowChecked(operation, tenant, wrong))
        doubts = self._doubts.get(operation)
        if doubts is None or doubts.shadow is not shadow:
            doubts = self._doubts[operation] = Doubts(shadow)
        if doubts.note(wrong=wrong) and operation not in self.distrusted:
            self.distrusted.add(operation)
            for_ = seconds(shadow.bypass_for)
            self._until[operation] = asyncio.get_running_loop().call_later(for_, self._trust, operation)
            self._emitter.emit(Distrusted(operation, doubts.rate or 0.0, for_))

    def _trust(self, operation: str) -> None:
        """Try the operation again, with everything forgotten that was known of it."""
        self.distrusted.discard(operation)
        self._until.pop(operation, None)
        self._doubts.pop(operation, None)
