"""Events as log lines, through structlog.

The name of a line is the event's class (`nexcache.answered`, `nexcache.backend_changed`), its fields are the
event's fields; those that say nothing are left out. Where the application has configured structlog, its
processors render the lines. Where it has not, they go to the standard library's logger `nexcache` (as logfmt,
with the fields as `extra`), because structlog's own default would print to the host's stdout. Nothing is
configured globally.

WARNING: the store became unavailable; an alert began; what the start warns of; a store that refuses and a callable of
the application that raises (one line per kind and minute, with a count); an ingest rule that does not fit the policies.
INFO: started; the store is available again; an alert ended; what was changed through the admin endpoints, by whom.
DEBUG: everything else, and single requests only if DEBUG was enabled when the listener subscribed.
"""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import fields
from enum import Enum
from typing import Any, Final, Literal, get_args

import structlog
from opentelemetry.trace import get_current_span
from structlog.processors import LogfmtRenderer
from structlog.stdlib import BoundLogger, filter_by_level
from structlog.typing import EventDict, WrappedLogger

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
from nexcache.telemetry.names import SCOPE, Trigger

REPEAT_AFTER: Final = 60.0
"""Seconds for which the same warning is only counted."""

_ALWAYS: Final = (
    Started,
    BackendChanged,
    BackplaneChanged,
    BackendFailed,
    HookFailed,
    Invalidated,
    RuleDoubtful,
    Audited,
    AlertChanged,
    Distrusted,
    Stopped,
)
_DEBUG: Final = (Answered, LookedUp, Filled, Stored, NotStored, Evicted, Ingested, Reached, ShadowChecked)
_ANNOUNCED: Final = frozenset({"timeout", "connection", "breaker", "busy"})
"""Kinds of failure that end in one `BackendChanged`, which is the line for an operator."""

_NAMES: Final = {kind: f"{SCOPE}.{re.sub(r'(?<!^)(?=[A-Z])', '_', kind.__name__).lower()}" for kind in get_args(Event)}
_FIELDS: Final = {kind: tuple(field.name for field in fields(kind)) for kind in get_args(Event)}


class LogListener:
    """Writes the events of an emitter to the log."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._debug = True
        self._warned: dict[tuple[str, ...], tuple[float, int]] = {}

    def subscribe(self, emitter: Emitter) -> None:
        """Listen; to the events of single requests only if DEBUG is enabled now, so that a hit builds none in vain.

        Call it again after the log's level has changed.
        """
        self.unsubscribe(emitter)
        emitter.subscribe(self.write, *_ALWAYS)
        self._debug = _debug_enabled()
        if self._debug:
            emitter.subscribe(self.write, *_DEBUG)

    def unsubscribe(self, emitter: Emitter) -> None:
        """Stop listening."""
        emitter.unsubscribe(self.write)

    def write(self, event: Event) -> None:
        """Write the line of one event."""
        match event:
            case Started():
                _log("info", event, warnings=None)
                for warning in event.warnings:
                    library_logger().warning(f"{SCOPE}.start_warning", warning=_plain(warning))
            case BackendChanged():
                _log("info" if event.available else "warning", event)
            case BackplaneChanged():
                _log("info" if event.connected else "warning", event)
            case RuleDoubtful() | Distrusted():
                _log("warning", event)
            case HookFailed():
                self._warn(event, "hook", event.hook)
            case BackendFailed() if event.kind not in _ANNOUNCED:
                self._warn(event, event.operation, event.kind)
            case BackendFailed() if not self._debug:
                pass  # one for each request while the store is away
            case AlertChanged():
                _log("warning" if event.firing else "info", event)
            case Audited() | Invalidated(trigger=Trigger.ADMIN):
                _log("info", event)
            case _:
                _log("debug", event)

    def _warn(self, event: Event, *about: str) -> None:
        """Write a warning, at most once in `REPEAT_AFTER` seconds per subject; `count` tells how many it stands for."""
        now = self._clock()
        next_at, unwritten = self._warned.get(about, (now, 0))
        if now < next_at:
            self._warned[about] = (next_at, unwritten + 1)
            return
        self._warned[about] = (now + REPEAT_AFTER, 0)
        _log("warning", event, count=unwritten + 1)


def library_logger() -> Any:
    """Return the application's structlog logger, or one on `logging.getLogger("nexcache")` without one."""
    return structlog.get_logger(SCOPE) if structlog.is_configured() else _STANDARD


def _debug_enabled() -> bool:
    logger = library_logger().bind()
    # Asked of the class: structlog's generic logger takes any name for a method of the logger that it wraps.
    kind = type(logger)
    enabled = getattr(kind, "is_enabled_for", None) or getattr(kind, "isEnabledFor", None)
    return True if enabled is None else bool(enabled(logger, logging.DEBUG))


def _log(level: Literal["debug", "info", "warning"], event: Event, **more: object) -> None:
    kind = type(event)
    line = {name: _plain(getattr(event, name)) for name in _FIELDS[kind]} | more
    context = get_current_span().get_span_context()
    if context.is_valid:  # also where the span is not recorded here: the caller's logs have the same trace
        line |= {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    # By the level's method: it is what every kind of structlog logger has.
    write = getattr(library_logger(), level)
    write(_NAMES[kind], **{name: value for name, value in line.items() if value not in (None, [])})


def _plain(value: object) -> object:
    """Return enums as their words, tuples as lists, and text without anything that could forge or hide a line."""
    match value:
        case Enum():
            return value.value
        case str():
            # Not every renderer of structlog escapes control characters, and none those that reorder a line.
            return value if value.isprintable() else "".join(_printable(each) for each in value)
        case tuple():
            return [_plain(each) for each in value]
        case _:
            return value


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


_logfmt: Final = LogfmtRenderer(bool_as_flag=False)


def _render(_: WrappedLogger, __: str, line: EventDict) -> tuple[tuple[str], dict[str, object]]:
    extra = dict(line)
    return (f"{line.pop('event')} {_logfmt(None, '', line)}",), {"extra": extra}


_STANDARD: Final = structlog.wrap_logger(
    logging.getLogger(SCOPE),
    processors=[filter_by_level, _render],
    wrapper_class=BoundLogger,
    context_class=dict,
    cache_logger_on_first_use=True,
)
