"""Windows: which span times a response covers, and which responses the times of spans reach. Pure.

Time is cut into minutes, and these into dyadic buckets: bucket `i` of level `l` is the minutes from `i * 2**l` on,
`2**l` of them. A response depends on at most 8 buckets that cover its range, widened outward. A span reaches the
bucket of every level that its time lies in, so that it meets any cover of that time and, but for the widening, no
other.

A batch whose spans lie so far apart that this would be more than 64 buckets is looked at in coarser *cells* (8
minutes, then 8.5 hours, then 23 days) instead. A response whose cover has buckets finer than a cell depends on that
cell too, and a batch in coarse cells reaches it by that.
"""

import calendar
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote_from_bytes

from nexcache.errors import ConfigurationError, InvalidName
from nexcache.invalidation.targets import check_name
from nexcache.policy import LONGEST, Covered, Duration, TagsInvalid, parameter_name, query_parameters, seconds

MINUTE: Final = 60 * 10**9
"""Nanoseconds of a bucket of level 0."""

LONGEST_COVER: Final = 8
"""Buckets that a response depends on."""

MOST_BUCKETS: Final = 64
"""Buckets that the spans of one timeline reach in one batch."""

COARSE: Final = (3, 9, 15)
"""Levels of the cells that a batch moves up to: 8 minutes, 8.5 hours, and 23 days."""

SPANS: Final = "spans"
"""The timeline of a window that names none: that of all the tenant's spans."""

_TOP: Final = 22
"""The level of the widest bucket, eight years; a range that eight of them do not cover is taken to be all time."""
_END: Final = (1 << 64) // MINUTE
"""The last minute that OTLP can name."""
_SKEW: Final = 300.0
"""Seconds that a sender's clock may be ahead of this one."""
_EDGES: Final = (0, *COARSE)

_RELATIVE: Final = re.compile(r"now(?:\s*([+-])\s*(\d{1,9})(ms|s|m|h|d|w))?", re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,19}(?:\.\d{1,9})?", re.ASCII)
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_DIGITS: Final = re.compile(r"\d+", re.ASCII)
# The unit of a number is told by its size, as back ends do: what would be later than the year 5138 is a finer one.
_MILLISECONDS: Final = 10**11
_MICROSECONDS: Final = 10**14
_NANOSECONDS: Final = 10**17


@dataclass(frozen=True, slots=True)
class Instant:
    """A point in time as a request gives it."""

    ns: int
    """Nanoseconds since the epoch."""
    unit: int
    """Nanoseconds of the unit it was written in; 0 for RFC 3339."""
    relative: bool = False
    """Written as `now` or `now-1h`: another point at every request."""

    def written(self, ns: int) -> str:
        """Write another point in time in the same way."""
        if self.unit:
            whole, rest = divmod(ns, self.unit)
            return f"{whole}.{rest * 10**9 // self.unit:09d}".rstrip("0") if rest else str(whole)
        whole, rest = divmod(ns, 10**9)
        days, second = divmod(whole, 86400)
        year, month, day = _date(days)
        text = f"{year:04d}-{month:02d}-{day:02d}T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
        return f"{text}.{rest:09d}".rstrip("0") + "Z" if rest else f"{text}Z"


def _date(days: int) -> tuple[int, int, int]:
    """Return year, month and day of so many days after the epoch, in the Gregorian calendar."""
    # Counted from 1 March of the year 0, so that a leap day is the last of its year.
    era, of_era = divmod(days + 719_468, 146_097)
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    day = of_year - (153 * month + 2) // 5 + 1
    month = month + 3 if month < 10 else month - 9  # noqa: PLR2004 - March is 0
    return year + 400 * era + (month <= 2), month, day  # noqa: PLR2004 - January and February


def instant(text: str, *, now: float) -> Instant | None:
    """Read epoch seconds, milliseconds, microseconds or nanoseconds, RFC 3339, `now` or `now-1h`; None for others."""
    text = text.strip()
    if match := _RELATIVE.fullmatch(text):
        sign, number, unit = match.groups()
        offset = float(number) * _UNITS[unit] if number else 0.0
        return _checked(int((now - offset if sign == "-" else now + offset) * 1e9), 10**9, relative=True)
    if _NUMBER.fullmatch(text):
        whole, _, fraction = text.partition(".")
        value, unit = int(whole), 10**9
        if value >= _NANOSECONDS:
            unit = 1
        elif value >= _MICROSECONDS:
            unit = 10**3
        elif value >= _MILLISECONDS:
            unit = 10**6
        part = int(fraction.ljust(9, "0")) * unit // 10**9 if fraction else 0
        return _checked(value * unit + part, unit)
    if match := _RFC3339.fullmatch(text):
        return _from_rfc3339(*match.groups())
    return None


def _from_rfc3339(
    day: str, fraction: str | None, sign: str | None, hours: str | None, minutes: str | None
) -> Instant | None:
    year, month, date, hour, minute, second = (int(part) for part in _DIGITS.findall(day))
    if not (1 <= month <= 12 and hour < 24 and minute < 60 and second <= 60):  # noqa: PLR2004 - RFC 3339 §5.6
        return None
    if year < 1 or not 1 <= date <= calendar.monthrange(year, month)[1]:
        return None
    ns = calendar.timegm((year, month, date, hour, minute, second)) * 10**9
    ns += int(fraction.ljust(9, "0")) if fraction else 0
    if sign is not None:
        offset = (int(hours or 0) * 60 + int(minutes or 0)) * MINUTE
        ns += offset if sign == "-" else -offset
    return _checked(ns, 0)


def _checked(ns: int, unit: int, *, relative: bool = False) -> Instant | None:
    return Instant(ns, unit, relative) if 0 <= ns < 1 << 64 else None


# --- covers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cover:
    """What the responses over one range depend on."""

    buckets: tuple[tuple[int, int], ...]
    """Level and index; at most 8. Empty: the range is all time."""
    cells: tuple[tuple[int, int], ...]
    """The coarse cells that hold finer buckets of the cover."""

    def tags(self, timeline: str) -> tuple[str, ...]:
        """Return the tags; raises InvalidName for a timeline that cannot be part of one."""
        if not self.buckets:
            return (check_name("tag", f"window:{timeline}:all"),)
        return tuple(
            check_name("tag", f"window:{timeline}:{kind}{level}:{index}")
            for kind, parts in (("", self.buckets), ("c", self.cells))
            for level, index in parts
        )


def cover(start_ns: int, end_ns: int) -> Cover:
    """Cover a range, both ends included, by at most 8 buckets.

    Each end is widened outward by less than a minute and a twentieth of the range.
    """
    low, high = max(0, start_ns) // MINUTE, min(max(end_ns, start_ns, 0) // MINUTE, _END)
    for level in range(_TOP + 1):
        buckets = _decomposed(low >> level << level, high | ((1 << level) - 1))
        if len(buckets) <= LONGEST_COVER:
            cells = {
                (coarse, index >> (coarse - fine)) for coarse in COARSE for fine, index in buckets if fine < coarse
            }
            return Cover(tuple(buckets), tuple(sorted(cells)))
    return Cover((), ())


def _decomposed(low: int, high: int) -> list[tuple[int, int]]:
    """Return the fewest buckets that are exactly the minutes from low to high, as far as that matters."""
    buckets: list[tuple[int, int]] = []
    while low <= high and len(buckets) <= LONGEST_COVER:
        level = min((low & -low).bit_length() - 1 if low else _TOP, (high - low + 1).bit_length() - 1, _TOP)
        buckets.append((level, low >> level))
        low += 1 << level
    return buckets


# --- times of spans ----------------------------------------------------------------------------------------------


class SpanTimes:
    """The times of the spans of one timeline, in at most 64 buckets however many they are."""

    __slots__ = ("_cells", "_edge", "everything")

    def __init__(self) -> None:
        self._edge = 0
        self._cells: set[int] = set()
        self.everything: bool = False
        """The spans lie so far apart that every range is reached."""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self.everything or bool(self._cells)

    @property
    def cells(self) -> tuple[int, Iterable[int]]:
        """How coarse the times are held, and in which cells."""
        return self._edge, self._cells

    def add(self, start_ns: int, end_ns: int) -> None:
        """Add the time of a span, from its start to its end; one that ends before it starts has a start only."""
        if self.everything:
            return
        level = _EDGES[self._edge]
        low = start_ns // MINUTE
        high = end_ns // MINUTE
        if high <= low:  # nearly all of them
            self._cells.add(low >> level)
            if len(self._cells) > MOST_BUCKETS:
                self._settle()
            return
        while (high >> level) - (low >> level) >= MOST_BUCKETS:
            self._coarsen()
            if self.everything:
                return
            level = _EDGES[self._edge]
        self._cells.update(range(low >> level, (high >> level) + 1))
        if len(self._cells) > MOST_BUCKETS:
            self._settle()

    def merge(self, other: "SpanTimes") -> None:
        """Add the times of another."""
        if other.everything:
            self._give_up()
        if self.everything:
            return
        edge, cells = other.cells
        while self._edge < edge:
            self._coarsen()
        shift = _EDGES[self._edge] - _EDGES[edge]
        self._cells.update(cell >> shift for cell in cells)
        if len(self._cells) > MOST_BUCKETS:
            self._settle()

    def tags(self, timeline: str) -> frozenset[str] | None:
        """Return the tags to invalidate; None: everything. Raises InvalidName for an impossible timeline."""
        self._settle()
        if self.everything:
            return None
        level = _EDGES[self._edge]
        names = [f"window:{timeline}:all"]
        if level:
            names += (f"window:{timeline}:c{level}:{cell}" for cell in self._cells)
        names += (f"window:{timeline}:{each}:{index}" for each, index in self._path())
        return frozenset(check_name("tag", name) for name in names)

    def _path(self) -> list[tuple[int, int]]:
        """Return every bucket that the times lie in, from the present level upwards."""
        found = []
        cells: Iterable[int] = self._cells
        for level in range(_EDGES[self._edge], _TOP + 1):
            cells = set(cells)
            found += [(level, cell) for cell in cells]
            cells = (cell >> 1 for cell in cells)
        return found

    def _settle(self) -> None:
        """Move up while there are too many."""
        while not self.everything and self._reached() > MOST_BUCKETS:
            self._coarsen()

    def _reached(self) -> int:
        cells = len(self._cells)
        if cells > MOST_BUCKETS:
            return cells
        return len(self._path()) + (cells if self._edge else 0) + 1

    def _coarsen(self) -> None:
        if self._edge + 1 == len(_EDGES):
            self._give_up()
            return
        shift = _EDGES[self._edge + 1] - _EDGES[self._edge]
        self._edge += 1
        self._cells = {cell >> shift for cell in self._cells}

    def _give_up(self) -> None:
        self.everything = True
        self._cells = set()


# --- the window of a policy --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """The range of span times that a response covers, as two parameters of its request give it.

    `start` and `end` name path or query parameters: epoch seconds, milliseconds, microseconds or nanoseconds, RFC 3339,
    `now` or `now-1h`. A missing end is now, a missing start the beginning of time; a value that is none of these, or
    that is there twice, makes the response one over all time.

    `of` names the timeline, a template as a tag is: `"service:{service}"` for responses about one service's spans.
    Only rules whose `windows` name the same timeline reach it by time.

    A window that ended more than `settled` ago is closed: its response is kept for `closed_ttl`, since only late spans
    change it, and these are seen. One that is open is kept for the policy's ttl, at most `open_ttl`.

    `step` rounds absolute times outward, so that near requests are one: the handler is asked for the rounded range.
    Without it nothing is rounded. Raises ConfigurationError for what cannot work.
    """

    start: str
    end: str
    step: Duration | None = field(default=None, kw_only=True)
    of: str = field(default=SPANS, kw_only=True)
    settled: Duration = field(default="1h", kw_only=True)
    closed_ttl: Duration = field(default="6h", kw_only=True)
    open_ttl: Duration | None = field(default=None, kw_only=True)
    _step_ns: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        where = f"TimeWindow({self.start!a}, {self.end!a})"
        for name in (self.start, self.end):
            if not name:
                raise ConfigurationError(f"{where}: start and end name two parameters of the request")
        if self.start == self.end:
            raise ConfigurationError(f"{where}: start and end are two parameters, not one")
        if self.step is not None:
            step = seconds(self.step, f"{where}: step")
            if step < 0.001:  # noqa: PLR2004 - a millisecond
                raise ConfigurationError(f"{where}: step must be at least a millisecond")
            object.__setattr__(self, "_step_ns", int(step * 1e9))
        seconds(self.settled, f"{where}: settled")
        for name in ("closed_ttl", "open_ttl"):
            value = getattr(self, name)
            if value is not None and not 0 < seconds(value, f"{where}: {name}") <= LONGEST:
                raise ConfigurationError(f"{where}: {name} must be more than 0 seconds and at most 30 days")

    @property
    def names(self) -> tuple[str, str]:
        """The parameters that give the range."""
        return self.start, self.end

    @property
    def longest(self) -> float:
        """Seconds for which a response over a closed window is kept."""
        return seconds(self.closed_ttl)

    @property
    def most_tags(self) -> int:
        """How many tags a response over a window has at most."""
        return LONGEST_COVER + 2 * len(COARSE)

    def covered(
        self, query: bytes, parameters: Mapping[str, str], timeline: str, *, ttl: float, now: float
    ) -> Covered | TagsInvalid:
        """Say what the response of one request depends on, how long it is kept, and what the handler is asked for."""
        given = query_parameters(query)
        found = [(parameters[name],) if name in parameters else given.get(name, ()) for name in self.names]
        start = instant(found[0][0], now=now) if len(found[0]) == 1 else None
        end = instant(found[1][0] if found[1] else "now", now=now) if len(found[1]) <= 1 else None
        if self.open_ttl is not None:
            ttl = min(ttl, seconds(self.open_ttl))
        if end is None or (found[0] and start is None):
            return self._named(timeline, Cover((), ()), query, ttl)
        if self._step_ns:
            query, start, end = self._aligned(query, parameters, start, end)
        end_ns = end.ns
        if end.relative:  # the same request has a later end while its response is kept
            end_ns += int((max(ttl, 0.0) + _SKEW) * 1e9)
        # An absolute end that is still to come covers what arrives until then: nothing is added.
        elif end_ns < (now - seconds(self.settled)) * 1e9 and (start is None or not start.relative):
            ttl = self.longest
        return self._named(timeline, cover(0 if start is None else start.ns, end_ns), query, ttl)

    def _named(self, timeline: str, found: Cover, query: bytes, ttl: float) -> Covered | TagsInvalid:
        try:
            return Covered(query, found.tags(timeline), ttl)
        except InvalidName as error:
            return TagsInvalid(str(error))

    def _aligned(
        self, query: bytes, parameters: Mapping[str, str], start: Instant | None, end: Instant
    ) -> tuple[bytes, Instant | None, Instant]:
        """Round what the query gives in absolute times outward, in the query as in the range."""
        step = self._step_ns
        rounded: dict[str, str] = {}
        if start is not None and not start.relative and self.start not in parameters:
            start = Instant(start.ns // step * step, start.unit)
            rounded[self.start] = start.written(start.ns)
        if not end.relative and self.end not in parameters:
            end = Instant(-(-end.ns // step) * step, end.unit)
            rounded[self.end] = end.written(end.ns)
        parts = []
        for part in query.split(b"&"):
            name, _, _ = part.partition(b"=")
            value = rounded.get(parameter_name(name)) if name else None
            parts.append(part if value is None else name + b"=" + quote_from_bytes(value.encode(), safe=":").encode())
        return b"&".join(parts), start, end
