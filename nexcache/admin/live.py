"""What happens, as it happens: the events of one tenant, or of all, for those who watch.

Every watcher has a queue of bounded length; what does not fit is dropped and counted, and the count is told. Only
while somebody watches is there a listener at all: nobody's hit pays for a page that is not open.
"""

import asyncio
import json
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict
from enum import Enum
from typing import Any, Final

from nexcache.telemetry.events import (
    AlertChanged,
    Answered,
    Audited,
    BackendChanged,
    BackendFailed,
    BackplaneChanged,
    Distrusted,
    Emitter,
    Event,
    Evicted,
    Filled,
    HookFailed,
    Ingested,
    Invalidated,
    NotStored,
    ShadowChecked,
    Started,
    Stopped,
    Stored,
)

_OF_ONE: Final = (Answered, Filled, Stored, NotStored, Invalidated, Ingested, ShadowChecked, Audited)
"""Events of one tenant."""
_OF_ALL: Final = (BackendChanged, BackplaneChanged, Stopped)
"""Events that concern every tenant and tell of none."""
_OF_OPERATORS: Final = (BackendFailed, Evicted, HookFailed, AlertChanged, Distrusted, Started)
_QUEUED: Final = 1_000
_HEARTBEAT: Final = 15.0
"""Seconds of silence after which a comment is sent, so that proxies do not take the stream for dead."""
_LONGEST: Final = 300.0
"""Seconds after which a stream ends, so that a server that waits for its connections can stop; clients come again."""
MOST: Final = 100
"""Watchers at a time."""


class Live:
    """The watchers of one cache."""

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter
        self.watching: int = 0

    async def watch(
        self,
        tenant: str | None,
        *,
        operator: bool,
        heartbeat: float = _HEARTBEAT,
        longest: float = _LONGEST,
        queued: int = _QUEUED,
        answered: int | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Give server-sent events (HTML §9.2) until the cache is closed: those of a tenant, or of all of them (None).

        What does not belong to one tenant and says more than the state of the store is for operators. Of `answered`
        events at most so many a second are given, and the number of the others (`thinned`); with 0 there are none,
        and nobody's hit pays for them.
        """
        loop = asyncio.get_running_loop()
        waiting: deque[Event] = deque()
        news = asyncio.Event()
        dropped = thinned = 0
        ends = False
        second, given = 0.0, 0

        def hear(event: Event) -> None:
            nonlocal dropped, thinned, ends, second, given
            if isinstance(event, _OF_ONE) and tenant is not None and event.tenant != tenant:
                return
            if answered is not None and isinstance(event, Answered):
                now = loop.time()
                if now - second >= 1.0:
                    second, given = now, 0
                if given >= answered:
                    thinned += 1  # told with the next event: there are more than enough of them
                    return
                given += 1
            if isinstance(event, Stopped):
                ends = True
            elif len(waiting) < queued:
                waiting.append(event)
            else:
                dropped += 1
            if not news.is_set():
                _wake(loop, news.set)

        kinds = (*_OF_ONE, *_OF_ALL, *(_OF_OPERATORS if operator and tenant is None else ()))
        if answered == 0:
            kinds = tuple(kind for kind in kinds if kind is not Answered)
        self._emitter.subscribe(hear, *kinds)
        self.watching += 1
        until = loop.time() + longest
        try:
            yield b"retry: 2000\n: watching\n\n"
            while True:
                frames = [_frame(waiting.popleft()) for _ in range(len(waiting))]
                if dropped:
                    frames.append(_sse("dropped", {"dropped": dropped}))
                    dropped = 0
                if thinned:
                    frames.append(_sse("thinned", {"answered": thinned}))
                    thinned = 0
                if frames:
                    yield b"".join(frames)
                if ends or loop.time() >= until:
                    yield _sse("end", {"reason": "stopped" if ends else "time"})
                    return
                news.clear()
                if waiting or dropped or ends:
                    continue
                try:
                    async with asyncio.timeout(min(heartbeat, until - loop.time())):
                        await news.wait()
                except TimeoutError:
                    yield b": still here\n\n"
        finally:
            self.watching -= 1
            self._emitter.unsubscribe(hear)


def _wake(loop: asyncio.AbstractEventLoop, wake: Callable[[], object]) -> None:
    """Wake a watcher, from whatever thread the event came."""
    try:
        here = asyncio.get_running_loop() is loop
    except RuntimeError:
        here = False
    if here:
        wake()
    elif not loop.is_closed():
        loop.call_soon_threadsafe(wake)


def _frame(event: Event) -> bytes:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
    fields = {key: _plain(value) for key, value in asdict(event).items() if value not in (None, (), "")}
    return _sse(name, fields)


def _sse(name: str, fields: dict[str, Any]) -> bytes:
    # in ASCII JSON there is no line break, whatever a name holds
    return f"event: {name}\ndata: {json.dumps(fields, ensure_ascii=True)}\n\n".encode()


def _plain(value: object) -> object:
    return value.value if isinstance(value, Enum) else value
