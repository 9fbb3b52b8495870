"""What happened, as frozen values. The core emits them; `telemetry.otel` and `telemetry.log` say them.

An event is one thing that an operator could want to know; its class, its log line and its span or metric
use the same words. Events hold no keys, no queries and no header values.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from nexcache.telemetry.names import Bypass, NotStoredReason, Result, Tier, Trigger


@dataclass(frozen=True, slots=True)
class Answered:
    """A request of a path with a policy was answered."""

    operation: str
    tenant: str | None
    result: Result
    tier: Tier | None = None
    reason: Bypass | None = None
    key_hash: str | None = None
    age: float | None = None
    """Seconds since the entry was stored; hits only."""
    ttl: float | None = None
    """Seconds for which the entry will still be served; hits only."""
    size: int | None = None
    """Bytes of the stored body; hits only."""
    coalesced: bool = False
    """The answer was computed for another request that was waiting for the same."""
    duration: float = 0.0
    """Seconds from the arrival of the request: until it was looked up (hit) or answered (otherwise)."""
    filled_by: str | None = None
    """The trace and the span that computed the entry, in hexadecimal, joined by a hyphen; hits only."""


@dataclass(frozen=True, slots=True)
class LookedUp:
    """The store was asked for an entry (not emitted for entries found in this process's memory).

    Told with `Emitter.looked_up`: there is one for every read of the store.
    """

    operation: str
    result: Result
    tier: Tier
    duration: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Filled:
    """The app computed an answer for the cache."""

    operation: str
    tenant: str
    duration: float
    """Seconds from calling the app to the last byte of its answer."""
    coalesced: int
    """How many further requests waited for it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An answer was kept."""

    operation: str
    tenant: str
    tier: Tier
    size: int
    """Bytes of the body."""
    ttl: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class NotStored:
    """An answer was not kept, and why."""

    operation: str
    tenant: str | None
    reason: NotStoredReason
    key_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Invalidated:
    """Entries of a tenant were invalidated."""

    tenant: str
    trigger: Trigger
    scope: str
    """`tenant`, `operation`, `pattern` or `tag`: the widest target."""
    operations: tuple[str, ...]
    tags: tuple[str, ...]
    acknowledged: bool
    """False: the store was away; it holds in this process and is queued for the others."""
    duration: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Evicted:
    """An entry left this process's memory before its time (`capacity`) or at its time (`expired`)."""

    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class BackendFailed:
    """A call of the store failed; the request was answered without it."""

    operation: str
    """`get`, `set`, `capture`, `invalidate`."""
    kind: str
    """One word of the error's closed list (`nexcache.errors`)."""


@dataclass(frozen=True, slots=True)
class BackendChanged:
    """The store became available or unavailable; one event per change."""

    backend: str
    available: bool
    kind: str


@dataclass(frozen=True, slots=True)
class BackplaneChanged:
    """This node hears of other nodes' invalidations at once, or only when its lease ends; one event per change."""

    connected: bool


@dataclass(frozen=True, slots=True)
class Started:
    """The cache was started: which store it uses, in words for the start-up line."""

    backend: str
    """`redis` or `memory`."""
    description: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ingested:
    """A batch of spans arrived."""

    tenant: str | None
    accepted: int
    rejected: int
    ignored: int
    """Spans of NexCache's own scope."""


@dataclass(frozen=True, slots=True)
class Audited:
    """Somebody asked the admin endpoints for a change; one event per attempt, dry runs excepted."""

    tenant: str | None
    who: str
    """The caller's id: a key's name or the first digits of its digest, a token's subject; never the credential."""
    operator: bool
    action: str
    """The endpoint's name in the OpenAPI document."""
    target: str
    """What it was aimed at: an operation, a tag, or `*`."""
    outcome: str
    """`done`, `queued`, `refused` (not permitted) or `rejected` (wrong, or not there)."""


@dataclass(frozen=True, slots=True)
class ShadowChecked:
    """A hit was computed again: what was answered from the cache was wrong, or was not."""

    operation: str
    tenant: str
    wrong: bool


@dataclass(frozen=True, slots=True)
class Distrusted:
    """Too many answers of an operation were wrong: it is sent past the cache for so many seconds."""

    operation: str
    rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class AlertChanged:
    """An alert began or ended; one event per change."""

    alert: str
    firing: bool
    value: float
    threshold: float
    summary: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The cache was closed; it may be used again."""


@dataclass(frozen=True, slots=True)
class Reached:
    """What spans changed was invalidated: how long after the oldest of them had arrived."""

    tenant: str
    delay: float
    """Seconds."""
    bound: float
    """Seconds: the longest `min_interval` of the rules."""


@dataclass(frozen=True, slots=True)
class RuleDoubtful:
    """An ingest rule does not fit the policies of this process."""

    fault: str


@dataclass(frozen=True, slots=True)
class HookFailed:
    """A callable of the application (tenant, principal, tags, sink) raised; the request went on without it."""

    hook: str
    error: str
    """The exception's class name; its text may hold secrets."""


Event: TypeAlias = (
    Answered
    | LookedUp
    | Filled
    | Stored
    | NotStored
    | Invalidated
    | Evicted
    | BackendFailed
    | BackendChanged
    | BackplaneChanged
    | Started
    | Ingested
    | Reached
    | RuleDoubtful
    | HookFailed
    | ShadowChecked
    | Distrusted
    | Audited
    | AlertChanged
    | Stopped
)
Listener: TypeAlias = Callable[[Event], None]
Timer: TypeAlias = Callable[[str, float, int], None]
"""Is told how a lookup ended and where (the words of `Result` and `Tier`, joined), and its seconds."""


class RequestSpan(Protocol):
    """The open span of one cacheable request."""

    @property
    def filling(self) -> bytes:
        """The trace id and the span id of `fill`, once it was entered; empty before, or where it is not recorded."""

    def fill(self, operation: str) -> AbstractContextManager[None]:
        """Make a child span current while the app computes, so that its own spans nest in it."""

    def put(self, operation: str) -> AbstractContextManager[None]:
        """Cover the storing of the answer."""

    def current(self) -> AbstractContextManager[None]:
        """Make the request's span current, so that what is logged names it."""

    def end(self, answered: Answered) -> None:
        """Give the span its final name and attributes, and end it. Later calls do nothing."""


class Tracing(Protocol):
    """Opens spans; the core knows no more of tracing than this."""

    def get(self, operation: str) -> RequestSpan | None:
        """Start `cache.get {operation}`, or return None at no cost where nobody would record it."""

    def current(self) -> object:
        """Return what a span that is made later can be linked to; None where nobody records."""

    def invalidate(self, links: Sequence[object] = ()) -> AbstractContextManager[Callable[[Invalidated], None]]:
        """Cover an invalidation; the yielded callable gives the span its attributes."""


class Emitter:
    """Passes events to those who listen. A listener that raises is counted and changes nothing."""

    __slots__ = ("_listeners", "_timers", "failures", "heard", "tracing")

    def __init__(self) -> None:
        self._listeners: dict[type[Event], tuple[Listener, ...]] = {}
        self._timers: tuple[Timer, ...] = ()
        self.heard: frozenset[type[Event]] = frozenset()
        """The classes that anyone listens to: the hot path builds no event that nobody hears."""
        self.failures: int = 0
        self.tracing: Tracing | None = None

    def subscribe(self, listener: Listener, *types: type[Event]) -> None:
        """Call `listener` with every event of these classes from now on."""
        for kind in types:
            self._listeners[kind] = (*self._listeners.get(kind, ()), listener)
        self._hear()

    def unsubscribe(self, listener: Listener | Timer) -> None:
        """Stop calling `listener`."""
        for kind, listeners in self._listeners.items():
            # By equality: two mentions of a bound method are equal, never identical.
            self._listeners[kind] = tuple(each for each in listeners if each != listener)
        self._timers = tuple(each for each in self._timers if each != listener)
        self._hear()

    def _hear(self) -> None:
        self.heard = frozenset(kind for kind, listeners in self._listeners.items() if listeners)

    def time_lookups(self, timer: Timer) -> None:
        """Call `timer` from now on: how and where lookups ended, how long each took, and how many those were."""
        self._timers = (*self._timers, timer)

    def looked_up(self, operation: str, result: Result, tier: Tier, seconds: float) -> None:
        """Tell of a lookup: those who only time it, and who listens to events, if anyone does."""
        self.timed(result, tier, seconds)
        if LookedUp in self.heard:
            self.emit(LookedUp(operation, result, tier, seconds))

    def timed(self, result: Result, tier: Tier, seconds: float, number: int = 1) -> None:
        """Tell those who only time lookups of so many that took this long together."""
        ended = result + tier
        for timer in self._timers:
            try:
                timer(ended, seconds, number)
            except Exception:  # noqa: BLE001 - as in `emit`
                self.failures += 1

    @property
    def listeners(self) -> tuple[Listener | Timer, ...]:
        """Everybody who listens to anything."""
        every: list[Listener | Timer] = [each for several in self._listeners.values() for each in several]
        return tuple({id(each): each for each in (*every, *self._timers)}.values())

    def hears(self, kind: type[Event]) -> bool:
        """Whether anyone listens to events of this class."""
        return kind in self.heard

    def emit(self, event: Event) -> None:
        """Tell the listeners."""
        for listener in self._listeners.get(type(event), ()):
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - telemetry must never break what it observes
                self.failures += 1
