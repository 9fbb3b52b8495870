"""The connection over which nodes hear of each other."""

import asyncio
from typing import Any

import pytest

from nexcache.invalidation.backplane import Backplane
from nexcache.telemetry.events import Emitter


async def test_a_server_that_was_away_for_long_is_looked_for_again_within_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An outage of minutes ends for the memory when it ends for the store: promised are 2 s, 4 s with Sentinel."""
    pauses: list[float] = []
    sleep, away = asyncio.sleep, asyncio.Event()

    async def paused(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 50:
            away.set()
        await sleep(0)

    class Nobody:
        async def connect(self) -> None:
            raise ConnectionRefusedError

        async def disconnect(self) -> None:
            pass

    unused: Any = None
    backplane = Backplane(Nobody, store=unused, view=unused, emitter=Emitter())  # type: ignore[arg-type]
    monkeypatch.setattr(asyncio, "sleep", paused)
    backplane.start()
    async with asyncio.timeout(5):
        await away.wait()
    await backplane.aclose()
    assert pauses[0] <= 0.1
    assert pauses == sorted(pauses)
    assert 0.5 <= pauses[-1] < 1
