"""Whether a stored response answers a request (RFC 9111 §4, RFC 5861). Pure."""

from dataclasses import dataclass
from typing import Final, TypeAlias

from nexcache.semantics.asked import Asked
from nexcache.semantics.stored import Facts

ERRORS: Final = frozenset((500, 502, 503, 504))
"""Answers in whose place a stale one may be sent (RFC 5861 §4)."""


@dataclass(frozen=True, slots=True)
class Use:
    """It does as it is."""

    ttl: int
    """Seconds for which it stays fresh; negative: it has been stale so long."""
    refresh: bool = False
    """It is validated in the background (RFC 5861 §3)."""


@dataclass(frozen=True, slots=True)
class Validate:
    """The origin is asked first; `fwd` is the reason as Cache-Status has it (RFC 9211 §2.2)."""

    fwd: str


Choice: TypeAlias = Use | Validate


def choose(stored: Facts, age: int, asked: Asked) -> Choice:
    """Decide about a stored response of this age."""
    ttl = stored.lifetime - age
    if asked.no_cache:  # §5.2.1.4
        return Validate("request")
    if stored.must_validate:  # §5.2.2.4
        return Validate("stale")
    if asked.max_age is not None and age > asked.max_age:  # §5.2.1.1
        return Validate("request" if ttl > 0 else "stale")
    if ttl > 0:  # §4.2
        return Use(ttl) if ttl >= asked.min_fresh else Validate("request")  # §5.2.1.3
    if stored.never_stale or asked.min_fresh:  # §4.2.4
        return Validate("stale")
    if 0 < asked.max_stale >= -ttl:  # §5.2.1.2
        return Use(ttl)
    if asked.max_age is None and 0 < stored.stale_while_revalidate >= -ttl:  # §5.2.1.1: who names an age wants it fresh
        return Use(ttl, refresh=True)
    return Validate("stale")


def stands_in(stored: Facts, age: int, asked: Asked) -> bool:
    """Whether a stored response may be sent, stale as it is, because the origin failed (§4.2.4, RFC 5861 §4)."""
    if stored.never_stale or asked.no_cache or (asked.max_age is not None and age > asked.max_age):
        return False
    stale = max(0, age - stored.lifetime)
    if stored.stale_if_error is not None or asked.stale_if_error:
        return stale <= max(stored.stale_if_error or 0, asked.stale_if_error)
    return True
