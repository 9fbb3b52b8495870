"""The rows are worth something: without the safeguard that it is about, a row fails."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest

from nexcache import middleware, rate_limit
from nexcache.errors import StoreError
from nexcache.fill import Fill
from nexcache.middleware import CacheMiddleware
from nexcache.rate_limit import Decision, RateLimit
from nexcache.sessions import Session, Sessions
from nexcache.stores.codec import Codec
from nexcache.telemetry.events import Emitter, Event
from nexcache.telemetry.names import Result, Tier
from tests.faults.rows import Place, Row, Seen
from tests.faults.table import rows
from tests.model.mutants import ALL
from tests.wire import server as wire

Weaken = Callable[[pytest.MonkeyPatch], None]
ROWS: Final = {row.name: row for row in rows()}


def _macs_are_not_compared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("nexcache.stores.codec.compare_digest", lambda *_: True)


def _any_key_of_a_ring_will_do(patch: pytest.MonkeyPatch) -> None:
    def trusting(self: Codec, key: bytes, value: bytes) -> Any:
        return msgpack.unpackb(value, use_list=False)[3]

    patch.setattr(Codec, "verify", trusting)


def _the_wall_clock_says_what_is_fresh(patch: pytest.MonkeyPatch) -> None:
    def by_the_wall(response: Any, _: float | None) -> float:
        return float(response.stored_at + response.ttl - time.time())

    patch.setattr("nexcache.entries._fresh_for", by_the_wall)


def _a_client_that_leaves_ends_the_computation(patch: pytest.MonkeyPatch) -> None:
    def at_once(self: Fill) -> None:
        self.task.cancel()

    patch.setattr(Fill, "_end_later", at_once)


def _all_who_waited_compute_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(middleware, "_FOLLOWS", 1)


def _lengths_are_not_compared(patch: pytest.MonkeyPatch) -> None:
    completed = Fill._completed

    def anyhow(self: Fill) -> Any:
        self._headers = tuple(pair for pair in self._headers or () if pair[0].lower() != b"content-length")
        return completed(self)

    patch.setattr(Fill, "_completed", anyhow)


def _limits_let_everybody_through(patch: pytest.MonkeyPatch) -> None:
    def through(self: RateLimit, key: bytes, cost: int) -> Decision:
        return rate_limit._decision(self.rate, (1, 0, 0, 0), "process")

    patch.setattr(RateLimit, "_without_store", through)


def _the_last_session_stands_in(patch: pytest.MonkeyPatch) -> None:
    get, last = Sessions.get, list[Session | None]()

    async def stand_in(self: Sessions, session_id: str) -> Session | None:
        try:
            found = await get(self, session_id)
        except StoreError:
            return last[-1]
        last.append(found)
        return found

    patch.setattr(Sessions, "get", stand_in)


def _who_has_no_name_is_acme(patch: pytest.MonkeyPatch) -> None:
    identify = CacheMiddleware._identify

    async def somebody(self: CacheMiddleware, *args: Any) -> Any:
        whose, acting, reason = await identify(self, *args)
        return ("acme", acting, None) if reason is not None else (whose, acting, reason)

    patch.setattr(CacheMiddleware, "_identify", somebody)


def _listeners_may_fail_what_they_hear(patch: pytest.MonkeyPatch) -> None:
    def emit(self: Emitter, event: Event) -> None:
        for listener in self._listeners.get(type(event), ()):
            listener(event)

    def timed(self: Emitter, result: Result, tier: Tier, seconds: float, number: int = 1) -> None:
        for timer in self._timers:
            timer(result + tier, seconds, number)

    patch.setattr(Emitter, "emit", emit)
    patch.setattr(Emitter, "timed", timed)


@pytest.mark.parametrize(
    ("row", "weaken"),
    [
        pytest.param(ROWS[name], weaken, id=name)
        for name, weaken in (
            ("F13-corrupted", _macs_are_not_compared),
            ("F15-rings", _any_key_of_a_ring_will_do),
            ("F16-clocks", _the_wall_clock_says_what_is_fresh),
            ("F18-clients_leave", _a_client_that_leaves_ends_the_computation),
            ("F19-leader_raises", _all_who_waited_compute_at_once),
            ("F21-truncated", _lengths_are_not_compared),
            ("F22-invalidations_race_fills", ALL["joined_across_an_invalidation"].apply),
            ("F27-failover", ALL["histories_are_not_told_apart"].apply),
            ("F28-forgotten", ALL["generations_not_compared"].apply),
            ("F35-loggers_and_meters", _listeners_may_fail_what_they_hear),
            ("F36-resolvers", _who_has_no_name_is_acme),
            ("F37-rate_limits", _limits_let_everybody_through),
            ("F38-sessions", _the_last_session_stands_in),
        )
    ],
)
async def test_a_row_fails_without_its_safeguard(
    row: Row, weaken: Weaken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "PATIENCE", 1.5)
    weaken(monkeypatch)
    seen = Seen()
    with pytest.raises(AssertionError):  # noqa: PT012 - either may notice it
        await row.act(Place("valkey", "httptools", tmp_path), seen)
        seen.judge()
