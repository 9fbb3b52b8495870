"""What a stored response says of its own use (RFC 9111 §4, RFC 5861), read once from its header fields. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from nexcache.semantics.cache_control import MALFORMED, delta_seconds, directives, field_names
from nexcache.semantics.freshness import Rule, date_of, freshness_lifetime
from nexcache.semantics.headers import first
from nexcache.semantics.targeted import effective


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides about the use of a stored response."""

    lifetime: int
    """Seconds for which it is fresh, counted from when the origin made it."""
    rule: Rule
    must_validate: bool
    """It is never used without asking the origin (§5.2.2.4)."""
    withheld: frozenset[bytes]
    """Fields that are not sent without asking the origin (§5.2.2.4, with field names)."""
    never_stale: bool
    """It says that it must not be used stale, whatever happens (§4.2.4)."""
    stale_while_revalidate: int
    stale_if_error: int | None
    """Seconds; None where the response does not say (RFC 5861 §4)."""
    etag: bytes | None
    last_modified: bytes | None
    date: float

    @property
    def can_be_validated(self) -> bool:
        """Whether it has anything that the origin can compare (RFC 9110 §8.8)."""
        return self.etag is not None or self.last_modified is not None


def facts(status: int, headers: Iterable[tuple[bytes, bytes]], *, received: float) -> Facts:
    """Read a response's fields; what is malformed or contradicts itself is read the restrictive way (§4.2.1)."""
    headers = tuple(headers)
    ruling = effective(headers)
    control = directives(ruling)
    lifetime = freshness_lifetime(status, ruling, received=received)
    withheld = field_names(control[b"no-cache"]) if b"no-cache" in control else frozenset()
    return Facts(
        lifetime.seconds,
        lifetime.rule,
        withheld is None,
        withheld or frozenset(),
        withheld is None or not {b"must-revalidate", b"proxy-revalidate", b"s-maxage"}.isdisjoint(control),
        _seconds(ruling, b"stale-while-revalidate") or 0,
        _seconds(ruling, b"stale-if-error"),
        first(headers, b"etag"),
        first(headers, b"last-modified"),
        date_of(headers, received=received),
    )


def _seconds(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> int | None:
    seconds = delta_seconds(headers, name)
    return 0 if seconds is MALFORMED else seconds
