"""How long a response is fresh (RFC 9111 §4.2), and how old it is (§4.2.3). Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import Final

from nexcache.semantics.cache_control import LARGEST, MALFORMED, delta_seconds, directives
from nexcache.semantics.dates import http_date
from nexcache.semantics.headers import first, members, values

HEURISTIC_STATUSES: Final = frozenset((200, 203, 204, 206, 300, 301, 308, 404, 405, 410, 414, 501))
"""Statuses whose responses may be kept without being told to (RFC 9110 §15.1)."""
_PART: Final = 0.1
"""The part of the time since its last change for which a response is taken to be fresh (§4.2.2)."""
_LONGEST_GUESS: Final = 86_400


class Rule(StrEnum):
    """What a freshness lifetime was taken from."""

    S_MAXAGE = "s-maxage"
    MAX_AGE = "max-age"
    EXPIRES = "expires"
    HEURISTIC = "heuristic"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Lifetime:
    """For how many seconds a response is fresh, counted from when the origin made it, and by which rule."""

    seconds: int
    rule: Rule

    @property
    def explicit(self) -> bool:
        """Whether the origin said so."""
        return self.rule not in (Rule.HEURISTIC, Rule.NONE)


def freshness_lifetime(status: int, headers: Iterable[tuple[bytes, bytes]], *, received: float) -> Lifetime:
    """Calculate a lifetime for a shared cache from the fields that rule it (§4.2.1); malformed is stale.

    `received` is when the response came, which stands for a Date that it has not got.
    """
    headers = tuple(headers)
    for name, rule in ((b"s-maxage", Rule.S_MAXAGE), (b"max-age", Rule.MAX_AGE)):
        seconds = delta_seconds(headers, name)
        if seconds is MALFORMED:
            return Lifetime(0, rule)
        if seconds is not None:
            return Lifetime(seconds, rule)
    date = date_of(headers, received=received)
    expires = set(values(headers, b"expires"))
    if expires:
        until = http_date(expires.pop(), now=received) if len(expires) == 1 else None  # §4.2.1: two of them
        return Lifetime(_whole(until - date) if until is not None else 0, Rule.EXPIRES)
    modified = last_modified(headers, now=received)
    guessable = status in HEURISTIC_STATUSES or b"public" in directives(headers)
    if modified is None or not guessable or b"no-cache" in members(headers, b"pragma"):
        return Lifetime(0, Rule.NONE)
    guess = _whole(ceil((date - modified) * _PART))  # a second at least: ages are whole ones
    return Lifetime(min(guess, _LONGEST_GUESS), Rule.HEURISTIC if guess else Rule.NONE)


def date_of(headers: Iterable[tuple[bytes, bytes]], *, received: float) -> float:
    """Return when the origin made a response; when it was received if it does not say (RFC 9110 §6.6.1)."""
    date = first(headers, b"date")
    parsed = http_date(date, now=received) if date is not None else None
    return received if parsed is None else parsed


def last_modified(headers: Iterable[tuple[bytes, bytes]], *, now: float) -> float | None:
    """Return when the representation was last changed (RFC 9110 §8.8.2)."""
    value = first(headers, b"last-modified")
    return http_date(value, now=now) if value is not None else None


def initial_age(headers: Iterable[tuple[bytes, bytes]], *, requested: float, received: float) -> int:
    """Calculate the age in whole seconds that a response had when it was received (§4.2.3)."""
    headers = tuple(headers)
    apparent = max(0.0, received - date_of(headers, received=received))
    corrected = age_value(headers) + max(0.0, received - requested)
    return min(int(max(apparent, corrected)), LARGEST)


def age_value(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Read Age: the first member of a list counts, and what is no number is ignored (§5.1)."""
    value = (first(headers, b"age") or b"").partition(b",")[0].strip(b" \t")
    return min(int(value[:20]), LARGEST) if value.isdigit() and value.isascii() else 0


def _whole(seconds: float) -> int:
    return max(0, min(int(seconds), LARGEST))
