"""Time that is moved by hand: event loops that never wait, and a NexCache that reads no other clock.

Every node runs on an event loop of its own, so that one can be suspended while the others go on, as a process is.
"""

import asyncio
import heapq
import inspect
import math
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final

from nexcache.invalidation.view import boottime

_WALL: Final = 1_800_000_000.0


@dataclass
class Clock:
    """Seconds since the world began; the wall clocks of nodes differ by their skew, and nothing else does."""

    now: float = 1_000.0
    skew: float = 0.0
    """Of the node that is running."""

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        return _WALL + self.now + self.skew


class Loop(asyncio.BaseEventLoop):
    """An event loop that does what is due and returns, instead of waiting for what is not."""

    _ready: Any
    _scheduled: list[Any]
    _timer_cancelled_count: int

    def __init__(self, clock: Clock) -> None:
        self._virtual = clock
        super().__init__()
        self._selector = self
        self.errors: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    def time(self) -> float:
        return self._virtual.now

    @property
    def _clock_resolution(self) -> float:
        """What is due at this very instant is done, and nothing else: a later instant is one that time comes to."""
        return math.ulp(self._virtual.now)

    @_clock_resolution.setter
    def _clock_resolution(self, _: float) -> None:
        pass

    def select(self, timeout: float | None) -> list[Any]:
        """Stand in for the selector: nothing ever comes from outside."""
        if timeout is None or timeout > 0:
            self.stop()
        return []

    def _process_events(self, events: list[Any]) -> None:
        del events

    def _write_to_self(self) -> None:
        pass

    @property
    def next_timer(self) -> float:
        """When something is due; infinity if nothing is."""
        while self._scheduled and self._scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(self._scheduled)._scheduled = False
        return float(self._scheduled[0]._when) if self._scheduled else float("inf")

    @property
    def has_work(self) -> bool:
        return bool(self._ready) or self.next_timer <= self.time()

    def end(self) -> None:
        """Cancel what is left, and close."""
        for _ in range(20):
            tasks = asyncio.all_tasks(self)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            self.run_forever()
        self.close()


@dataclass
class _Time:
    """Stands in for the module `time` inside NexCache."""

    clock: Clock
    CLOCK_BOOTTIME: int = 7
    CLOCK_MONOTONIC: int = 1

    def time(self) -> float:
        return self.clock.wall()

    def monotonic(self) -> float:
        return self.clock.now

    def perf_counter(self) -> float:
        return self.clock.now

    def clock_gettime(self, _: int) -> float:
        return self.clock.now

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@dataclass
class Chance:
    """Stands in for the modules `secrets` and `random` inside NexCache: the same every time."""

    draw: random.Random = field(default_factory=lambda: random.Random(0))

    def token_bytes(self, size: int) -> bytes:
        return self.draw.randbytes(size)

    def token_hex(self, size: int) -> str:
        return self.draw.randbytes(size).hex()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.draw, name) if hasattr(self.draw, name) else getattr(secrets, name)


@contextmanager
def virtual_time(clock: Clock, chance: Chance) -> Iterator[None]:
    """Make all of NexCache read this clock and draw from this chance, its default arguments included."""
    undo: list[Callable[[], None]] = []
    real: dict[Callable[[], float], Callable[[], float]] = {
        time.monotonic: clock,
        time.perf_counter: clock,
        time.time: clock.wall,
        boottime: clock,
    }
    instead: dict[ModuleType, Any] = {time: _Time(clock), secrets: chance, random: chance}
    try:
        for name, module in sorted(sys.modules.items()):
            if not name.startswith("nexcache.") or name.startswith("nexcache.demo"):
                continue
            for attribute, value in list(vars(module).items()):
                if isinstance(value, ModuleType) and value in instead:
                    setattr(module, attribute, instead[value])
                    undo.append(lambda m=module, a=attribute, v=value: setattr(m, a, v))  # type: ignore[misc]
                elif inspect.isclass(value) and value.__module__ == name:
                    for method in vars(value).values():
                        defaults = getattr(method, "__kwdefaults__", None)
                        if defaults and any(inspect.isroutine(each) and each in real for each in defaults.values()):
                            method.__kwdefaults__ = {
                                key: real.get(each, each) if inspect.isroutine(each) else each
                                for key, each in defaults.items()
                            }
                            undo.append(lambda m=method, d=defaults: setattr(m, "__kwdefaults__", d))  # type: ignore[misc]
        yield
    finally:
        for back in reversed(undo):
            back()
