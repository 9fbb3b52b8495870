"""Takes the figures of this process regularly, judges them, and tells: as events, and to a webhook.

Nothing here is waited for by a request, and nothing that fails here reaches one.
"""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, Final

from nexcache.alerts import (
    BREAKER,
    ERROR_RATE,
    HIT_RATE,
    MEMORY,
    QUOTA,
    STALENESS,
    WRONG_ANSWERS,
    Alert,
    Figures,
    Rule,
    judge,
    watch,
)
from nexcache.ending import end
from nexcache.telemetry.counts import Counts
from nexcache.telemetry.events import AlertChanged, Emitter, HookFailed

_FEWEST: Final = 50
"""Requests within an interval below which a rate says nothing."""
_QUEUED: Final = 100
_DEADLINE: Final = 5.0
"""Seconds that the webhook's receiver has to answer."""


class Gauges:
    """Takes this process's figures; rates are those since the last time."""

    def __init__(
        self,
        counts: Counts,
        *,
        available: Callable[[], bool],
        queued: Callable[[], int],
        memory: Callable[[], float],
        quota: Callable[[], float | None] = lambda: None,
        wrong: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counts = counts
        self._available = available
        self._queued = queued
        self._memory = memory
        self._quota = quota
        self._wrong = wrong
        self._clock = clock
        self._before = (0, 0, 0)
        self._queued_since: float | None = None

    def __call__(self) -> Figures:
        """Take the figures now."""
        hits = asked = errors = 0
        for _, _, each in self._counts:
            hits += each.hits + each.stale
            asked += each.hits + each.stale + each.misses + each.errors
            errors += each.errors
        (hits_before, asked_before, errors_before), self._before = self._before, (hits, asked, errors)
        since = asked - asked_before
        now = self._clock()
        if not self._queued():
            self._queued_since = None
        elif self._queued_since is None:
            self._queued_since = now
        return {
            HIT_RATE: (hits - hits_before) / since if since >= _FEWEST else None,
            ERROR_RATE: (errors - errors_before) / since if since >= _FEWEST else None,
            STALENESS: now - self._queued_since if self._queued_since is not None else 0.0,
            BREAKER: 0.0 if self._available() else 1.0,
            QUOTA: self._quota(),
            MEMORY: self._memory(),
            WRONG_ANSWERS: self._wrong(),
        }


class Watch:
    """Watches one cache: `interval` in seconds."""

    def __init__(
        self,
        rules: Sequence[Rule],
        figures: Callable[[], Figures],
        *,
        emitter: Emitter,
        interval: float,
        webhook: "Webhook | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.alerts: tuple[Alert, ...] = watch(rules)
        self._figures = figures
        self._emitter = emitter
        self._interval = interval
        self._webhook = webhook
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch from now on, on this event loop."""
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._task = loop.create_task(self._run(), name="nexcache-alerts")
        if self._webhook is not None:
            self._webhook.start()

    async def aclose(self) -> None:
        """Stop."""
        task, self._task = self._task, None
        await end(task)
        if self._webhook is not None:
            await self._webhook.aclose()

    def look(self) -> tuple[Alert, ...]:
        """Judge the figures of now; returns the alerts that began or ended."""
        self.alerts, changed = judge(self.alerts, self._figures(), now=self._clock())
        for alert in changed:
            event = AlertChanged(
                alert.rule.name, alert.firing, round(alert.value or 0.0, 4), alert.rule.threshold, alert.rule.summary
            )
            self._emitter.emit(event)
            if self._webhook is not None:
                self._webhook.tell(event)
        return changed

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - a figure that cannot be had must not end the watch
                self._emitter.emit(HookFailed("alerts", type(error).__name__))


class Webhook:
    """Posts alerts as JSON to a URL: one at a time, bounded in number and in time, once each.

    What cannot be delivered is told as `HookFailed` and given up: the alert is in the log and on the page.
    """

    def __init__(
        self,
        url: str,
        *,
        emitter: Emitter,
        post: Callable[[str, bytes], None] | None = None,
        deadline: float = _DEADLINE,
    ) -> None:
        self._url = url
        self._emitter = emitter
        self._post = post if post is not None else _post
        self._deadline = deadline
        self._waiting: asyncio.Queue[AlertChanged] = asyncio.Queue(_QUEUED)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Deliver from now on, on this event loop."""
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._waiting = asyncio.Queue(_QUEUED)
            self._task = loop.create_task(self._run(), name="nexcache-webhook")

    def tell(self, event: AlertChanged) -> None:
        """Deliver an alert soon."""
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            self._emitter.emit(HookFailed("webhook", "QueueFull"))

    async def aclose(self) -> None:
        """Stop; what waits is given up."""
        task, self._task = self._task, None
        await end(task)

    async def _run(self) -> None:
        while True:
            event = await self._waiting.get()
            body = json.dumps(_payload(event)).encode()
            try:
                async with asyncio.timeout(self._deadline):
                    await asyncio.to_thread(self._post, self._url, body)
            except Exception as error:  # noqa: BLE001 - the receiver's failure is not the cache's
                self._emitter.emit(HookFailed("webhook", type(error).__name__))


def _payload(event: AlertChanged) -> dict[str, Any]:
    return {
        "source": "nexcache",
        "alert": event.alert,
        "status": "firing" if event.firing else "resolved",
        "value": event.value,
        "threshold": event.threshold,
        "summary": event.summary,
    }


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the URL was chosen by the operator, its target would be by somebody else."""

    def redirect_request(self, *_: Any) -> None:
        """Give none."""


_opener: Final = urllib.request.build_opener(_Stay)


def _post(url: str, body: bytes) -> None:
    request = urllib.request.Request(  # noqa: S310 - the settings permit http and https only
        url, data=body, headers={"content-type": "application/json"}, method="POST"
    )
    with _opener.open(request, timeout=_DEADLINE) as answer:
        answer.read(1024)
