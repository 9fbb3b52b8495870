import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import fields
from io import StringIO
from typing import get_args

import pytest
import structlog
from structlog.processors import JSONRenderer, KeyValueRenderer, LogfmtRenderer
from structlog.testing import LogCapture
from structlog.typing import EventDict, Processor

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
    LookedUp,
    NotStored,
    Reached,
    RuleDoubtful,
    ShadowChecked,
    Started,
    Stopped,
    Stored,
)
from nexcache.telemetry.log import LogListener
from nexcache.telemetry.names import Bypass, NotStoredReason, Result, Tier, Trigger
from tests.telemetry.conftest import Traces

DEBUG_EVENTS = (Answered, LookedUp, Filled, Stored, NotStored, Evicted, Ingested)


@pytest.fixture(autouse=True)
def structlog_as_it_comes() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.fixture
def lines() -> list[EventDict]:
    """Configure structlog as an application would, and keep the lines."""
    capture = LogCapture()
    structlog.configure(processors=[capture])
    return capture.entries


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def listening(clock: Callable[[], float] = Clock()) -> Emitter:  # noqa: B008 - a clock that stands still
    emitter = Emitter()
    LogListener(clock=clock).subscribe(emitter)
    return emitter


def invalidated(trigger: Trigger = Trigger.INGEST, **more: object) -> Invalidated:
    parts: dict[str, object] = {
        "tenant": "acme",
        "scope": "operation",
        "operations": ("dashboard",),
        "tags": (),
        "acknowledged": True,
        "duration": 0.001,
    }
    return Invalidated(trigger=trigger, **(parts | more))  # type: ignore[arg-type]


LINES = [
    pytest.param(
        Answered("dashboard", "acme", Result.HIT, Tier.MEMORY, None, "0f", 1.5, 28.5, 2048, duration=0.001),
        {
            "event": "nexcache.answered",
            "log_level": "debug",
            "operation": "dashboard",
            "tenant": "acme",
            "result": "hit",
            "tier": "memory",
            "key_hash": "0f",
            "age": 1.5,
            "ttl": 28.5,
            "size": 2048,
            "coalesced": False,
            "duration": 0.001,
        },
        id="answered with a hit",
    ),
    pytest.param(
        Answered("dashboard", None, Result.BYPASS, reason=Bypass.NO_TENANT),
        {
            "event": "nexcache.answered",
            "log_level": "debug",
            "operation": "dashboard",
            "result": "bypass",
            "reason": "no-tenant",
            "coalesced": False,
            "duration": 0.0,
        },
        id="answered with a bypass",
    ),
    pytest.param(
        LookedUp("dashboard", Result.MISS, Tier.REDIS, 0.0002),
        {
            "event": "nexcache.looked_up",
            "log_level": "debug",
            "operation": "dashboard",
            "result": "miss",
            "tier": "redis",
            "duration": 0.0002,
        },
        id="looked up",
    ),
    pytest.param(
        Filled("dashboard", "acme", 0.04, 0),
        {
            "event": "nexcache.filled",
            "log_level": "debug",
            "operation": "dashboard",
            "tenant": "acme",
            "duration": 0.04,
            "coalesced": 0,
        },
        id="filled",
    ),
    pytest.param(
        Stored("dashboard", "acme", Tier.FALLBACK, 2048, 30.0),
        {
            "event": "nexcache.stored",
            "log_level": "debug",
            "operation": "dashboard",
            "tenant": "acme",
            "tier": "fallback",
            "size": 2048,
            "ttl": 30.0,
        },
        id="stored",
    ),
    pytest.param(
        NotStored("dashboard", "acme", NotStoredReason.SET_COOKIE),
        {
            "event": "nexcache.not_stored",
            "log_level": "debug",
            "operation": "dashboard",
            "tenant": "acme",
            "reason": "set-cookie",
        },
        id="not stored",
    ),
    pytest.param(
        invalidated(),
        {
            "event": "nexcache.invalidated",
            "log_level": "debug",
            "tenant": "acme",
            "trigger": "ingest",
            "scope": "operation",
            "operations": ["dashboard"],
            "acknowledged": True,
            "duration": 0.001,
        },
        id="invalidated by ingest",
    ),
    pytest.param(
        invalidated(Trigger.ADMIN, operations=(), tags=("service:checkout",), acknowledged=False),
        {
            "event": "nexcache.invalidated",
            "log_level": "info",
            "tenant": "acme",
            "trigger": "admin",
            "scope": "operation",
            "tags": ["service:checkout"],
            "acknowledged": False,
            "duration": 0.001,
        },
        id="invalidated by an operator",
    ),
    pytest.param(
        Evicted("capacity", 3),
        {"event": "nexcache.evicted", "log_level": "debug", "reason": "capacity", "count": 3},
        id="evicted",
    ),
    pytest.param(
        BackendFailed("get", "timeout"),
        {"event": "nexcache.backend_failed", "log_level": "debug", "operation": "get", "kind": "timeout"},
        id="backend failed",
    ),
    pytest.param(
        BackendFailed("set", "out-of-memory"),
        {
            "event": "nexcache.backend_failed",
            "log_level": "warning",
            "operation": "set",
            "kind": "out-of-memory",
            "count": 1,
        },
        id="backend refused",
    ),
    pytest.param(
        BackendChanged("redis", available=False, kind="timeout"),
        {
            "event": "nexcache.backend_changed",
            "log_level": "warning",
            "backend": "redis",
            "available": False,
            "kind": "timeout",
        },
        id="backend unavailable",
    ),
    pytest.param(
        BackendChanged("redis", available=True, kind="connection"),
        {
            "event": "nexcache.backend_changed",
            "log_level": "info",
            "backend": "redis",
            "available": True,
            "kind": "connection",
        },
        id="backend available",
    ),
    pytest.param(
        BackplaneChanged(connected=False),
        {"event": "nexcache.backplane_changed", "log_level": "warning", "connected": False},
        id="backplane lost",
    ),
    pytest.param(
        Started("redis", "Redis redis://host:6379/0"),
        {
            "event": "nexcache.started",
            "log_level": "info",
            "backend": "redis",
            "description": "Redis redis://host:6379/0",
        },
        id="started",
    ),
    pytest.param(
        Reached("acme", 0.25, 1.0),
        {"event": "nexcache.reached", "log_level": "debug", "tenant": "acme", "delay": 0.25, "bound": 1.0},
        id="reached",
    ),
    pytest.param(
        ShadowChecked("overview", "acme", wrong=True),
        {
            "event": "nexcache.shadow_checked",
            "log_level": "debug",
            "operation": "overview",
            "tenant": "acme",
            "wrong": True,
        },
        id="shadow",
    ),
    pytest.param(
        Distrusted("overview", 0.2, 300.0),
        {
            "event": "nexcache.distrusted",
            "log_level": "warning",
            "operation": "overview",
            "rate": 0.2,
            "seconds": 300.0,
        },
        id="distrusted",
    ),
    pytest.param(
        RuleDoubtful("ingest rule 1: no policy has the operation 'x'"),
        {
            "event": "nexcache.rule_doubtful",
            "log_level": "warning",
            "fault": "ingest rule 1: no policy has the operation 'x'",
        },
        id="doubtful rule",
    ),
    pytest.param(
        Ingested("acme", 10, 0, 2),
        {
            "event": "nexcache.ingested",
            "log_level": "debug",
            "tenant": "acme",
            "accepted": 10,
            "rejected": 0,
            "ignored": 2,
        },
        id="ingested",
    ),
    pytest.param(
        HookFailed("tenant", "KeyError"),
        {
            "event": "nexcache.hook_failed",
            "log_level": "warning",
            "hook": "tenant",
            "error": "KeyError",
            "count": 1,
        },
        id="hook failed",
    ),
    pytest.param(
        Audited("acme", "ci", False, "invalidate", "dash\nboard", "done"),
        {
            "event": "nexcache.audited",
            "log_level": "info",
            "tenant": "acme",
            "who": "ci",
            "operator": False,
            "action": "invalidate",
            "target": "dash\\nboard",
            "outcome": "done",
        },
        id="audited",
    ),
    pytest.param(
        AlertChanged("hit-rate", True, 0.2, 0.5, "few hits"),
        {
            "event": "nexcache.alert_changed",
            "log_level": "warning",
            "alert": "hit-rate",
            "firing": True,
            "value": 0.2,
            "threshold": 0.5,
            "summary": "few hits",
        },
        id="alert",
    ),
    pytest.param(
        AlertChanged("hit-rate", False, 0.9, 0.5, "few hits"),
        {
            "event": "nexcache.alert_changed",
            "log_level": "info",
            "alert": "hit-rate",
            "firing": False,
            "value": 0.9,
            "threshold": 0.5,
            "summary": "few hits",
        },
        id="alert over",
    ),
    pytest.param(Stopped(), {"event": "nexcache.stopped", "log_level": "debug"}, id="stopped"),
]


@pytest.mark.parametrize(("event", "line"), LINES)
def test_each_event_is_one_line(lines: list[EventDict], event: Event, line: EventDict) -> None:
    emitter = listening()
    emitter.emit(event)
    assert lines == [line]
    assert emitter.failures == 0


def test_the_table_of_lines_holds_every_event() -> None:
    assert {type(param.values[0]) for param in LINES} == set(get_args(Event))


def test_each_warning_of_the_start_is_a_line(lines: list[EventDict]) -> None:
    listening().emit(Started("memory", "in memory (fallback)", ("several workers", "no MAC key")))
    assert lines == [
        {
            "event": "nexcache.started",
            "log_level": "info",
            "backend": "memory",
            "description": "in memory (fallback)",
        },
        {"event": "nexcache.start_warning", "log_level": "warning", "warning": "several workers"},
        {"event": "nexcache.start_warning", "log_level": "warning", "warning": "no MAC key"},
    ]


def test_a_failing_hook_is_one_line_a_minute_with_a_count(lines: list[EventDict]) -> None:
    clock = Clock()
    emitter = listening(clock)
    for _ in range(1_000):
        emitter.emit(HookFailed("tenant", "KeyError"))
    emitter.emit(HookFailed("tags", "TypeError"))
    clock.now += 59.9
    emitter.emit(HookFailed("tenant", "KeyError"))
    assert [(line["hook"], line["count"]) for line in lines] == [("tenant", 1), ("tags", 1)]
    clock.now += 0.1
    emitter.emit(HookFailed("tenant", "KeyError"))
    emitter.emit(HookFailed("tenant", "KeyError"))
    assert [(line["hook"], line["count"]) for line in lines[2:]] == [("tenant", 1_001)]


def test_a_refusing_store_is_one_line_a_minute_for_each_kind(lines: list[EventDict]) -> None:
    emitter = listening()
    for _ in range(100):
        emitter.emit(BackendFailed("set", "out-of-memory"))
        emitter.emit(BackendFailed("get", "auth"))
    assert [(line["operation"], line["kind"]) for line in lines] == [("set", "out-of-memory"), ("get", "auth")]


@pytest.mark.parametrize(
    ("level", "hears"), [pytest.param(logging.DEBUG, True, id="debug"), pytest.param(logging.INFO, False, id="info")]
)
@pytest.mark.parametrize("logger", ["filtering", "structlog on logging", "unconfigured"])
def test_single_requests_are_listened_to_only_at_debug(
    caplog: pytest.LogCaptureFixture, level: int, hears: bool, logger: str
) -> None:
    caplog.set_level(level, "nexcache")
    if logger == "filtering":
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
    elif logger == "structlog on logging":
        structlog.configure(wrapper_class=structlog.stdlib.BoundLogger, logger_factory=structlog.stdlib.LoggerFactory())
    emitter = listening()
    assert [emitter.hears(kind) for kind in DEBUG_EVENTS] == [hears] * len(DEBUG_EVENTS)
    assert emitter.hears(Started)


def test_a_logger_that_cannot_tell_its_level_gets_everything() -> None:
    structlog.configure(wrapper_class=structlog.BoundLogger)
    assert listening().hears(Answered)


def test_subscribing_again_follows_the_level(caplog: pytest.LogCaptureFixture) -> None:
    listener, emitter = LogListener(), Emitter()
    for level, heard in ((logging.INFO, 0), (logging.DEBUG, 1), (logging.INFO, 0)):
        caplog.set_level(level, "nexcache")
        listener.subscribe(emitter)
        caplog.clear()
        emitter.emit(Evicted("capacity", 1))
        emitter.emit(Started("memory", "in memory"))
        assert len(caplog.records) == heard + 1
    listener.unsubscribe(emitter)
    assert not emitter.hears(Started)


class TestWithoutStructlogConfigured:
    def test_lines_go_to_the_standard_library_and_never_to_stdout(
        self, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        caplog.set_level(logging.INFO, "nexcache")
        listening().emit(Started("memory", "in memory (fallback)"))
        [record] = caplog.records
        assert record.name == "nexcache"
        assert record.levelno == logging.INFO
        assert record.getMessage() == ('nexcache.started backend=memory description="in memory (fallback)"')
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize(("event", "line"), LINES)
    def test_a_formatter_finds_the_fields_of_each_event(
        self, caplog: pytest.LogCaptureFixture, event: Event, line: EventDict
    ) -> None:
        caplog.set_level(logging.DEBUG, "nexcache")
        emitter = listening()
        emitter.emit(event)
        [record] = caplog.records
        assert emitter.failures == 0
        assert record.levelname.lower() == line["log_level"]
        assert {name: getattr(record, name) for name in line if name != "log_level"} == {
            name: value for name, value in line.items() if name != "log_level"
        }

    def test_a_per_cent_sign_is_a_per_cent_sign(self, caplog: pytest.LogCaptureFixture) -> None:
        listening().emit(HookFailed("%s", "%d"))
        assert caplog.messages == ["nexcache.hook_failed hook=%s error=%d count=1"]

    def test_a_level_that_is_off_writes_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING, "nexcache")
        emitter = listening()
        emitter.emit(invalidated())
        emitter.emit(Started("memory", "in memory"))
        assert caplog.records == []


def test_structlog_that_is_configured_later_is_used(caplog: pytest.LogCaptureFixture) -> None:
    emitter = listening()
    capture = LogCapture()
    structlog.configure(processors=[capture])
    emitter.emit(Started("memory", "in memory"))
    assert [line["event"] for line in capture.entries] == ["nexcache.started"]
    assert caplog.records == []


FORGED = 'a\r\nnexcache.started backend="redis"\x1b[2J\x85\u2028\u202e\x00\udc80é'


@pytest.mark.parametrize(
    "renderer",
    [
        pytest.param(structlog.dev.ConsoleRenderer(colors=False), id="console"),
        pytest.param(KeyValueRenderer(repr_native_str=False), id="key-value"),
        pytest.param(LogfmtRenderer(), id="logfmt"),
        pytest.param(JSONRenderer(ensure_ascii=False), id="json"),
        pytest.param(None, id="standard library"),
    ],
)
def test_nobody_can_forge_a_line(renderer: Processor | None) -> None:
    output = StringIO()
    handler = logging.StreamHandler(output)
    logger = logging.getLogger("nexcache")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    if renderer is not None:
        structlog.configure(processors=[renderer], logger_factory=structlog.PrintLoggerFactory(output))
    try:
        emitter = listening()
        emitter.emit(invalidated(tenant=FORGED, tags=(FORGED, "x")))
        emitter.emit(Started("memory", "in memory", (FORGED,)))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    text = output.getvalue()
    assert emitter.failures == 0
    assert text.endswith("\n")
    assert len(text.splitlines()) == 3
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert "é" in text
    assert "u202e" in text


def test_a_line_carries_the_ids_of_the_span_that_is_recorded(lines: list[EventDict], traces: Traces) -> None:
    emitter = listening()
    with traces.tracer.start_as_current_span("GET /dashboard") as span:
        emitter.emit(Evicted("capacity", 1))
    context = span.get_span_context()
    assert lines[0]["trace_id"] == f"{context.trace_id:032x}"
    assert lines[0]["span_id"] == f"{context.span_id:016x}"


def test_an_event_without_a_field_of_its_own_meaning_does_not_exist() -> None:
    """structlog and `LogRecord` have names of their own, which no event may use for a field."""
    taken = set(vars(logging.makeLogRecord({}))) | {"event", "level", "timestamp", "message", "asctime"}
    for kind in get_args(Event):
        assert taken.isdisjoint(field.name for field in fields(kind))


def test_a_logger_that_raises_changes_nothing_and_is_counted() -> None:
    def broken(*_: object) -> EventDict:
        raise RuntimeError("renderer")

    structlog.configure(processors=[broken])
    emitter = listening()
    after: list[Event] = []
    emitter.subscribe(after.append, Evicted)
    emitter.emit(Evicted("capacity", 1))
    assert emitter.failures == 1
    assert after == [Evicted("capacity", 1)]


def test_json_lines_can_be_read_back() -> None:
    output = StringIO()
    structlog.configure(processors=[JSONRenderer()], logger_factory=structlog.PrintLoggerFactory(output))
    listening().emit(invalidated(tags=("service:checkout",)))
    assert json.loads(output.getvalue())["tags"] == ["service:checkout"]
