"""Rate limits: how often something may happen, counted for all processes in the store.

Each algorithm exists twice, as a script that the server carries out at one moment and as a function for one process;
a test holds them equal. Durations are microseconds inside, seconds outside. The server's own clock counts, so
that nodes need not agree on the time.

While the store is away each process lets through its share of the limit, everything, or nothing: every limit says
which.
"""

import asyncio
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal, Protocol, TypeAlias

from nexcache.errors import ConfigurationError, StoreError
from nexcache.key import KeySpace

_RATE: Final = re.compile(r"(\d+)\s*(?:/|\s+per\s+)\s*(\d*)\s*([a-z]+)", re.IGNORECASE | re.ASCII)
_UNITS: Final = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hr": 3600, "hour": 3600}
_UNITS_LONG: Final = {"d": 86400, "day": 86400, "w": 7 * 86400, "week": 7 * 86400}
_LARGEST: Final = 10**9
_LONGEST: Final = 366 * 86400.0
_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_MOST_COUNTED: Final = 100_000

State: TypeAlias = tuple[float, ...]
"""What one process remembers of one subject."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in so many seconds. Raises ConfigurationError for what is no rate."""

    limit: int
    window: float
    """Seconds."""

    def __post_init__(self) -> None:
        if type(self.limit) is not int or not 1 <= self.limit <= _LARGEST:
            raise ConfigurationError(f"a rate's limit is a whole number from 1 to {_LARGEST:,}, not {self.limit!a}")
        if not 0.001 <= self.window <= _LONGEST or self.limit / self.window > 1_000_000:  # noqa: PLR2004
            raise ConfigurationError("a rate's window is 1 ms to 366 days, and its rate at most 1,000,000 a second")

    @classmethod
    def parse(cls, text: "str | Rate") -> "Rate":
        """Read `"100/minute"`, `"5 per 10 seconds"` or `"1000/day"`."""
        if isinstance(text, Rate):
            return text
        match = _RATE.fullmatch(str(text).strip())
        unit = match[3].lower() if match else ""
        length = (_UNITS | _UNITS_LONG).get(unit.removesuffix("s") or unit)
        if match is None or length is None:
            raise ConfigurationError(f'a rate is written "100/minute", "5 per 10 seconds" or "1000/day", not {text!a}')
        return cls(int(match[1]), float(int(match[2] or 1) * length))


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether it may happen now, and what is left."""

    allowed: bool
    limit: int
    count: int
    """How much of the limit is used; what was refused does not count."""
    reset_after: float
    """Seconds until nothing of the limit is used any more, if nothing else happens."""
    retry_after: float
    """Seconds after which it may be tried again; 0 if it was allowed."""
    counted_by: Literal["store", "process", "nobody"] = "store"

    @property
    def remaining(self) -> int:
        """How much of the limit is left."""
        return max(0, self.limit - self.count)


class Algorithm(StrEnum):
    """How the time that passes is turned into room for more."""

    FIXED_WINDOW = "fixed-window"
    """The window begins with the first event and ends all at once: exact counts, and twice the rate at the border."""
    SLIDING_WINDOW = "sliding-window"
    """The last window's count fades out evenly while the next one fills."""
    GCRA = "gcra"
    """Room comes back evenly, one by one: a burst of the whole limit, then the steady rate (the leaky bucket)."""


_FIXED: Final = b"""
local limit, window, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local state = redis.call('HMGET', KEYS[1], 'c', 'u')
local count, ends = tonumber(state[1] or '0'), tonumber(state[2] or '0')
if ends <= now then count, ends = 0, 0 end
local reset = ends > 0 and ends - now or 0
if count + cost > limit then return {0, count, reset, reset} end
if cost > 0 then
  if ends == 0 then ends, reset = now + window, window end
  redis.call('HSET', KEYS[1], 'c', count + cost, 'u', string.format('%.0f', ends))
  redis.call('PEXPIRE', KEYS[1], math.ceil(reset / 1000))
end
return {1, count + cost, reset, 0}
"""

_SLIDING: Final = b"""
local limit, window, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local state = redis.call('HMGET', KEYS[1], 'w', 'c', 'p')
local index = math.floor(now / window)
local known = tonumber(state[1] or '-1')
local current, previous = tonumber(state[2] or '0'), tonumber(state[3] or '0')
if known == index - 1 then current, previous = 0, current
elseif known ~= index then current, previous = 0, 0 end
local left = window - (now - index * window)
local used = current + previous * left / window
local reset = current > 0 and left + window or (previous > 0 and left or 0)
if used + cost > limit then
  local room, retry = limit - cost, 0
  if room < 0 then retry = reset
  elseif current <= room then retry = left - (room - current) / previous * window
  else retry = left + window - room / current * window end
  return {0, math.ceil(used), math.ceil(reset), math.ceil(retry)}
end
if cost > 0 then
  redis.call('HSET', KEYS[1], 'w', string.format('%.0f', index), 'c', current + cost, 'p', previous)
  redis.call('PEXPIRE', KEYS[1], math.ceil((left + window) / 1000))
  reset = left + window
end
return {1, math.ceil(used + cost), math.ceil(reset), 0}
"""

_GCRA: Final = b"""
local limit, window, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local each = window / limit
local from = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
local to = from + each * cost
local wait = to - window - now
if wait > 0.5 then
  if cost > limit then wait = from - now end
  return {0, math.ceil((from - now) / each - 0.000001), math.ceil(from - now), math.ceil(wait)}
end
if cost > 0 then
  redis.call('SET', KEYS[1], string.format('%.17g', to), 'PX', math.max(1, math.ceil((to - now) / 1000)))
end
return {1, math.ceil((to - now) / each - 0.000001), math.ceil(to - now), 0}
"""

SCRIPTS: Final = {Algorithm.FIXED_WINDOW: _FIXED, Algorithm.SLIDING_WINDOW: _SLIDING, Algorithm.GCRA: _GCRA}

Reply: TypeAlias = tuple[int, int, int, int]
"""Allowed, count, microseconds until reset, microseconds until it may be tried again."""


def decide(
    algorithm: Algorithm, state: State, *, now: int, limit: int, window: int, cost: int
) -> tuple[Reply, State, int]:
    """Do what the script does; returns its reply, what to remember, and until when (microseconds, as `now`)."""
    match algorithm:
        case Algorithm.FIXED_WINDOW:
            return _fixed(state, now, limit, window, cost)
        case Algorithm.SLIDING_WINDOW:
            return _sliding(state, now, limit, window, cost)
        case Algorithm.GCRA:
            return _gcra(state, now, limit, window, cost)


def _fixed(state: State, now: int, limit: int, window: int, cost: int) -> tuple[Reply, State, int]:
    count, until = state or (0, 0)
    if until <= now:
        count, until = 0, 0
    reset = int(until - now) if until else 0
    if count + cost > limit:
        return (0, int(count), reset, reset), state, int(until)
    if cost and not until:
        until, reset = now + window, window
    return (1, int(count + cost), reset, 0), (count + cost, until), int(until)


def _sliding(state: State, now: int, limit: int, window: int, cost: int) -> tuple[Reply, State, int]:
    index = now // window
    known, current, previous = state or (-1, 0, 0)
    if known == index - 1:
        current, previous = 0, current
    elif known != index:
        current, previous = 0, 0
    left = window - (now - index * window)
    used = current + previous * left / window
    reset = left + window if current > 0 else left if previous > 0 else 0
    if used + cost > limit:
        room = limit - cost
        if room < 0:
            retry: float = reset
        elif current <= room:
            retry = left - (room - current) / previous * window
        else:
            retry = left + window - room / current * window
        return (0, math.ceil(used), math.ceil(reset), math.ceil(retry)), state, now + left + window
    if cost:
        reset = left + window
    return (1, math.ceil(used + cost), math.ceil(reset), 0), (index, current + cost, previous), now + left + window


def _gcra(state: State, now: int, limit: int, window: int, cost: int) -> tuple[Reply, State, int]:
    each = window / limit
    start = max(state[0] if state else 0, now)
    to = start + each * cost
    wait = to - window - now
    if wait > 0.5:  # noqa: PLR2004 - half a microsecond: what the sums of fractions are rounded to
        if cost > limit:
            wait = start - now
        used = math.ceil((start - now) / each - 0.000001)
        return (0, used, math.ceil(start - now), math.ceil(wait)), state, int(start)
    return (1, math.ceil((to - now) / each - 0.000001), math.ceil(to - now), 0), (to,), math.ceil(to)


class Scripted(Protocol):
    """A store that carries out scripts."""

    async def evaluate(
        self, script: bytes, keys: Sequence[bytes], arguments: Sequence[int | bytes], *, deadline: float | None = None
    ) -> Any:
        """Carry out a script at one moment, once; raises StoreError, after which it may have been done or not."""


class LocalCounts:
    """The counts of one process. Bounded: what was asked for longest ago is forgotten first."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, most: int = _MOST_COUNTED) -> None:
        self._clock = clock
        self._most = most
        self._states: OrderedDict[bytes, tuple[State, int]] = OrderedDict()

    def __len__(self) -> int:
        """How many subjects are remembered."""
        return len(self._states)

    def count(self, algorithm: Algorithm, key: bytes, rate: Rate, cost: int) -> Reply:
        """Count in this process."""
        now = int(self._clock() * 1e6)
        state, until = self._states.pop(key, ((), 0))
        reply, state, until = decide(
            algorithm,
            state if until > now else (),
            now=now,
            limit=rate.limit,
            window=int(rate.window * 1e6),
            cost=cost,
        )
        if until > now:
            self._states[key] = (state, until)
            while len(self._states) > self._most:
                self._states.popitem(last=False)
        return reply

    def forget(self, prefix: bytes) -> int:
        """Forget every count whose key begins so; returns how many."""
        gone = [key for key in self._states if key.startswith(prefix)]
        for key in gone:
            del self._states[key]
        return len(gone)


class RateLimit:
    """One limit, counted apart for each tenant and each subject (a user, an API key's name, an address).

    `when_away` says what happens while the store cannot count: `"local"` counts in this process against the limit
    divided by `instances`; `"open"` lets everything through; `"closed"` refuses everything. Never raises for the
    store, and never asks it twice: what may have been counted is not counted again.
    """

    def __init__(
        self,
        rate: str | Rate,
        *,
        name: str = "default",
        algorithm: Algorithm | str = Algorithm.GCRA,
        when_away: Literal["local", "open", "closed"] = "local",
        instances: int = 1,
        store: Scripted | None,
        keys: KeySpace,
        local: LocalCounts,
        budget: float = 0.06,
    ) -> None:
        self.rate: Rate = Rate.parse(rate)
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"a rate limit's name is 1 to 64 of A-Z a-z 0-9 _ . : -, not {name!a}")
        self.name = name
        try:
            self.algorithm: Algorithm = Algorithm(algorithm)
        except ValueError:
            known = ", ".join(Algorithm)
            raise ConfigurationError(f"unknown rate limit algorithm {algorithm!a}; there are {known}") from None
        if when_away not in ("local", "open", "closed"):
            raise ConfigurationError(f'when_away is "local", "open" or "closed", not {when_away!a}')
        if instances < 1:
            raise ConfigurationError("instances is the number of processes that share the limit, at least 1")
        self._when_away = when_away
        self._share = Rate(max(1, self.rate.limit // instances), self.rate.window) if store is not None else self.rate
        self._store = store
        self._keys = keys
        self._local = local
        self._budget = budget

    async def check(self, subject: str, *, tenant: str, cost: int = 1) -> Decision:
        """Count `cost` events of a subject if there is room for all of them; with 0 only look.

        Raises ValueError for a negative cost.
        """
        if type(cost) is not int or cost < 0:
            raise ValueError(f"cost is a whole number, not negative: {cost!a}")
        key = self._keys.limit(tenant, self.name, f"{self.algorithm}\0{self.rate.window}\0{subject}")
        if self._store is None:
            return _decision(self.rate, self._local.count(self.algorithm, key, self.rate, cost), "process")
        try:
            reply = await self._store.evaluate(
                SCRIPTS[self.algorithm],
                (key,),
                (self.rate.limit, int(self.rate.window * 1e6), cost),
                deadline=asyncio.get_running_loop().time() + self._budget,
            )
        except StoreError:
            return self._without_store(key, cost)
        allowed, count, reset, retry = (int(number) for number in reply)
        return _decision(self.rate, (allowed, count, reset, retry), "store")

    def _without_store(self, key: bytes, cost: int) -> Decision:
        match self._when_away:
            case "local":
                return _decision(self._share, self._local.count(self.algorithm, key, self._share, cost), "process")
            case "open":
                return Decision(allowed=True, limit=self.rate.limit, count=0, reset_after=0, retry_after=0,
                                counted_by="nobody")  # fmt: skip
            case "closed":
                return Decision(allowed=False, limit=self.rate.limit, count=self.rate.limit, reset_after=1,
                                retry_after=1, counted_by="nobody")  # fmt: skip


def _decision(rate: Rate, reply: Reply, counted_by: Literal["store", "process"]) -> Decision:
    allowed, count, reset, retry = reply
    return Decision(bool(allowed), rate.limit, min(count, rate.limit), reset / 1e6, retry / 1e6, counted_by)
