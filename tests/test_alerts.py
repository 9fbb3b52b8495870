"""When an alert begins and when it ends: a table of figures over time, and a watch that tells of it."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from nexcache import NexCache, Settings
from nexcache.alerting import Gauges, Watch, Webhook
from nexcache.alerts import BREAKER, ERROR_RATE, HIT_RATE, MEMORY, STALENESS, Figures, Rule, judge, rules, watch
from nexcache.telemetry.counts import Counts
from nexcache.telemetry.events import AlertChanged, Emitter, Event, HookFailed
from nexcache.testing import FakeClock

LOW = Rule("low", 0.5, 0.6, 30.0, "too low", below=True)
HIGH = Rule("high", 0.9, 0.8, 0.0, "too high")


@pytest.mark.parametrize(
    ("rule", "figures", "told"),
    [
        pytest.param(LOW, [(0, 0.4), (29, 0.4)], [], id="a short dip is no alert"),
        pytest.param(LOW, [(0, 0.4), (30, 0.4)], [(30, True)], id="a long one is"),
        pytest.param(LOW, [(0, 0.4), (20, 0.5), (40, 0.4), (69, 0.4)], [], id="a dip that ends begins anew"),
        pytest.param(LOW, [(0, 0.4), (20, None), (40, 0.4), (69, 0.4)], [], id="nothing known begins anew"),
        pytest.param(
            LOW, [(0, 0.4), (30, 0.4), (31, 0.55), (90, 0.55)], [(30, True)], id="within the margin it goes on"
        ),
        pytest.param(
            LOW,
            [(0, 0.4), (30, 0.4), (40, 0.6), (69, 0.6), (70, 0.6)],
            [(30, True), (70, False)],
            id="it ends as it began",
        ),
        pytest.param(
            LOW,
            [(0, 0.4), (30, 0.4), (40, 0.7), (50, 0.4), (60, 0.7), (89, 0.7)],
            [(30, True)],
            id="a swing is one alert",
        ),
        pytest.param(
            LOW, [(0, 0.4), (30, 0.4), (31, None), (500, None)], [(30, True)], id="nothing known ends nothing"
        ),
        pytest.param(
            HIGH, [(0, 0.9), (1, 0.91), (2, 0.85), (3, 0.8)], [(1, True), (3, False)], id="high figures are bad"
        ),
    ],
)
def test_hysteresis(rule: Rule, figures: list[tuple[float, float | None]], told: list[tuple[float, bool]]) -> None:
    alerts, changes = watch([rule]), []
    for now, value in figures:
        alerts, changed = judge(alerts, {rule.name: value}, now=now)
        changes += [(now, each.firing) for each in changed]
    assert changes == told


def test_every_rule_can_end() -> None:
    """The figure at which an alert is over is not itself beyond the threshold."""
    for share in (0.0, 0.05, 0.5, 0.95, 1.0):
        for rule in rules(
            hit_rate=share, error_rate=share, staleness=5.0, fullness=share or 0.1, wrong_answers=share, after=0.0
        ):
            assert not rule.is_bad(rule.resolves), rule
            assert rule.is_good(rule.resolves)


def gauges(counts: Counts, clock: FakeClock, **state: object) -> Gauges:
    return Gauges(
        counts,
        available=lambda: bool(state.get("available", True)),
        queued=lambda: int(str(state.get("queued", 0))),
        memory=lambda: float(str(state.get("memory", 0.0))),
        clock=clock,
    )


def test_rates_are_those_since_the_last_look_and_need_enough_requests() -> None:
    counts, clock = Counts(), FakeClock()
    take = gauges(counts, clock)
    each = counts.of("acme", "overview")
    each.memory_hits, each.misses, each.errors = 60, 30, 10

    first = take()
    each.misses += 100
    second = take()
    each.misses += 10
    third = take()

    assert (first[HIT_RATE], first[ERROR_RATE]) == (0.6, 0.1)
    assert (second[HIT_RATE], second[ERROR_RATE]) == (0.0, 0.0)
    assert (third[HIT_RATE], third[ERROR_RATE]) == (None, None)


def test_staleness_is_how_long_an_invalidation_has_been_waiting() -> None:
    clock, state = FakeClock(), {"queued": 0}
    take = Gauges(Counts(), available=lambda: True, queued=lambda: state["queued"], memory=lambda: 0.0, clock=clock)
    figures = []
    for queued, after in ((0, 1.0), (2, 3.0), (1, 4.0), (0, 1.0), (1, 1.0)):
        state["queued"] = queued
        figures.append(take()[STALENESS])
        clock.advance(after)
    assert figures == [0.0, 0.0, 3.0, 0.0, 0.0]


def test_a_watch_tells_of_changes_only() -> None:
    emitter, clock, heard = Emitter(), FakeClock(), list[Event]()
    emitter.subscribe(heard.append, AlertChanged)
    state: dict[str, float | None] = {}

    def figures() -> Figures:
        return state

    watching = Watch(
        rules(hit_rate=0.5, error_rate=0.05, staleness=5.0, fullness=0.9, wrong_answers=0.01, after=60.0),
        figures,
        emitter=emitter,
        interval=15.0,
        clock=clock,
    )
    for value, seconds in ((1.0, 15.0), (1.0, 15.0), (0.0, 15.0), (0.0, 15.0)):
        state[BREAKER] = value
        watching.look()
        clock.advance(seconds)

    assert [(each.alert, each.firing) for each in heard if isinstance(each, AlertChanged)] == [
        (BREAKER, True),
        (BREAKER, False),
    ]


async def test_figures_that_cannot_be_had_do_not_end_the_watch() -> None:
    emitter, failed = Emitter(), asyncio.Event()
    emitter.subscribe(lambda _: failed.set(), HookFailed)

    def figures() -> Figures:
        raise LookupError

    watching = Watch((), figures, emitter=emitter, interval=0.0)
    watching.start()
    for _ in range(2):
        failed.clear()
        await asyncio.wait_for(failed.wait(), 5)
    await watching.aclose()


class Receiver(BaseHTTPRequestHandler):
    received: ClassVar[list[tuple[str, bytes]]] = []
    status: ClassVar[int] = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.received.append((self.path, body))
        self.send_response(self.status)
        if self.status == 302:
            self.send_header("location", "/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_POST  # noqa: N815 - the base class finds it by this name

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[str]:
    Receiver.received, Receiver.status = [], 200
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/hook?token=canary"
    server.shutdown()
    thread.join()
    server.server_close()


ALERT = AlertChanged(MEMORY, firing=True, value=0.95, threshold=0.9, summary="full")


async def until(true: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - a thread sets no event of this loop
            await asyncio.sleep(0.01)


async def delivered(hook: Webhook, emitter: Emitter, *, wanted: int) -> list[HookFailed]:
    failures: list[HookFailed] = []
    emitter.subscribe(lambda event: failures.append(event) if isinstance(event, HookFailed) else None, HookFailed)
    hook.start()
    hook.tell(ALERT)
    await until(lambda: len(Receiver.received) >= wanted and (Receiver.status == 200 or bool(failures)))
    await hook.aclose()
    return failures


async def test_a_webhook_gets_what_began_as_json(receiver: str) -> None:
    emitter = Emitter()
    assert await delivered(Webhook(receiver, emitter=emitter), emitter, wanted=1) == []
    ((path, body),) = Receiver.received
    assert path == "/hook?token=canary"
    assert json.loads(body) == {
        "source": "nexcache",
        "alert": "memory",
        "status": "firing",
        "value": 0.95,
        "threshold": 0.9,
        "summary": "full",
    }


@pytest.mark.parametrize("status", [302, 500])
async def test_a_receiver_that_refuses_is_told_of_without_its_url_and_no_redirect_is_followed(
    receiver: str, status: int
) -> None:
    Receiver.status = status
    emitter = Emitter()
    (failure,) = await delivered(Webhook(receiver, emitter=emitter), emitter, wanted=1)
    assert failure == HookFailed("webhook", "HTTPError")
    assert len(Receiver.received) == 1


async def test_a_receiver_that_never_answers_holds_up_nothing() -> None:
    emitter, failures, blocked = Emitter(), list[Event](), threading.Event()
    emitter.subscribe(failures.append, HookFailed)

    def post(_url: str, _body: bytes) -> None:
        blocked.wait(10)

    hook = Webhook("http://h", emitter=emitter, post=post, deadline=0.01)
    hook.start()
    for _ in range(120):
        hook.tell(ALERT)
    assert {str(each) for each in failures} == {str(HookFailed("webhook", "QueueFull"))}
    failures.clear()
    await until(lambda: bool(failures))
    blocked.set()
    await hook.aclose()
    assert failures[0] == HookFailed("webhook", "TimeoutError")


async def test_a_caches_alerts_are_watched_from_its_start_to_its_end() -> None:
    before = {task.get_name() for task in asyncio.all_tasks()}
    async with NexCache(Settings(redis_url=None, redis_host=None, alert_webhook="http://127.0.0.1:1/")) as cache:
        assert {"nexcache-alerts", "nexcache-webhook"} <= {task.get_name() for task in asyncio.all_tasks()}
        assert {each.rule.name for each in cache.alerts} >= {HIT_RATE, ERROR_RATE, STALENESS, BREAKER, MEMORY, "quota"}
    assert {task.get_name() for task in asyncio.all_tasks()} == before


async def test_a_store_that_is_away_fires_the_breakers_alert_and_shows_in_health() -> None:
    async with NexCache(Settings(redis_url="redis://127.0.0.1:1/0", op_timeout_ms=500)) as cache:
        for _ in range(6):
            await cache.invalidate("acme", "*")
        cache._parts.watch.look()
        status = await cache.status()
    assert "breaker" in status.alerts
    assert status.queued == 1
