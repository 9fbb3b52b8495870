"""Decide by HTTP's own rules, and no policy, whether a response may be stored (RFC 9111 §3). Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from nexcache.asgi import Headers
from nexcache.semantics.asked import Asked
from nexcache.semantics.cache_control import delta_seconds, directives, field_names
from nexcache.semantics.freshness import HEURISTIC_STATUSES, initial_age
from nexcache.semantics.headers import MOST_FIELDS, end_to_end, first, is_sendable
from nexcache.semantics.partial import PARTIAL
from nexcache.semantics.stored import Facts, facts
from nexcache.semantics.targeted import effective
from nexcache.semantics.vary import Nominated, nominated
from nexcache.telemetry.names import NotStoredReason

UNDERSTOOD: Final = frozenset(
    (*range(200, 207), *range(300, 304), 305, 307, 308, *range(400, 418), 421, 422, 426, *range(500, 506))
)
"""Final statuses whose requirements on caches are known and kept (§3, §5.2.2.3)."""
_FINAL: Final = range(200, 600)
_NOT_MODIFIED: Final = 304
_UNSATISFIABLE: Final = 416
"""It answers the range that was asked for, and nobody who asks for another or for none."""
_ADDED: Final = 1
"""Fields that a stored response gets if it has not got them: `content-length`."""
RETAINED: Final = 86_400.0
"""Seconds for which a stale response is kept, so that it can be validated or stand in for an origin that is away."""
_RETAINED_BARE: Final = 3_600.0
"""The same for one that cannot be validated."""


@dataclass(frozen=True, slots=True)
class Keepable:
    """A response that may be stored once it is complete, as it is stored."""

    headers: Headers
    facts: Facts
    varies: Nominated
    initial_age: int
    retention: float
    """Seconds after which it is of no more use to anybody."""
    length: int | None
    """What `Content-Length` announces, in bytes."""


def may_keep(
    asked: Asked,
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    *,
    requested: float,
    received: float,
    max_body: int,
    trailers: bool = False,
    whole: bool = True,
) -> Keepable | NotStoredReason:
    """Decide by status and header fields whether a shared cache may store the response to a GET.

    `whole`: the request asked for no range, so that a part is no answer to it.
    """
    headers = tuple((name.lower(), value) for name, value in headers)
    control = directives(effective(headers))
    if (status == PARTIAL and whole) or (status == _UNSATISFIABLE and not whole):  # §3.3; RFC 9110 §15.5.17
        return NotStoredReason.PARTIAL
    reason = _forbidden(asked, status, control, effective(headers))
    if reason is not None:
        return reason
    kept = _without_private(end_to_end(headers), control)
    stored = facts(status, kept, received=received)
    varies = nominated(kept)
    if varies is None:  # §4.1
        return NotStoredReason.VARY
    if trailers:
        return NotStoredReason.TRAILERS
    if not is_sendable(headers) or len(headers) > MOST_FIELDS - _ADDED:
        return NotStoredReason.HEADER
    reason = _useless(status, kept, control, stored)
    if reason is not None:
        return reason
    length = _length(kept)
    if length is not None and length > max_body:
        return NotStoredReason.TOO_LARGE
    age = initial_age(headers, requested=requested, received=received)
    return Keepable(
        tuple(pair for pair in kept if pair[0] != b"age"), stored, varies, age, _retention(stored, age), length
    )


def _forbidden(
    asked: Asked, status: int, control: Mapping[bytes, bytes | None], ruling: Headers
) -> NotStoredReason | None:
    """Say what forbids storing (§3)."""
    if asked.no_store:  # §5.2.1.5
        return NotStoredReason.NO_STORE
    if status not in _FINAL or status == _NOT_MODIFIED:
        return NotStoredReason.STATUS
    if b"must-understand" in control:  # §5.2.2.3: it takes the place of no-store
        if status not in UNDERSTOOD:
            return NotStoredReason.STATUS
    elif b"no-store" in control:  # §5.2.2.5
        return NotStoredReason.NO_STORE
    if b"private" in control and field_names(control[b"private"]) is None:  # §5.2.2.7
        return NotStoredReason.PRIVATE
    if (
        asked.authorized
        and not {b"public", b"must-revalidate"} & control.keys()
        and not isinstance(delta_seconds(ruling, b"s-maxage"), int)
    ):  # §3.5
        return NotStoredReason.AUTHORIZATION
    return None


def _useless(
    status: int, headers: Headers, control: Mapping[bytes, bytes | None], stored: Facts
) -> NotStoredReason | None:
    """Say why a response that nothing forbids to store is not kept: nothing allows it, or it could never be used."""
    explicit = stored.rule not in ("heuristic", "none")
    if not explicit and status not in HEURISTIC_STATUSES and b"public" not in control:
        return NotStoredReason.STATUS
    if not explicit and first(headers, b"set-cookie") is not None:  # §7.3
        return NotStoredReason.SET_COOKIE
    if stored.must_validate and not stored.can_be_validated:
        return NotStoredReason.NO_CACHE
    usable = stored.lifetime or stored.can_be_validated or stored.stale_while_revalidate or stored.stale_if_error
    return None if usable else NotStoredReason.NOT_FRESH


def _without_private(headers: Headers, control: Mapping[bytes, bytes | None]) -> Headers:
    private = field_names(control[b"private"]) if b"private" in control else None
    return tuple(pair for pair in headers if pair[0] not in private) if private else headers


def _retention(stored: Facts, age: int) -> float:
    stale = RETAINED if stored.can_be_validated else 0.0 if stored.never_stale else _RETAINED_BARE
    stale = max(stale, stored.stale_while_revalidate, stored.stale_if_error or 0)
    return max(1.0, max(0, stored.lifetime - age) + stale)


def _length(headers: Headers) -> int | None:
    announced = first(headers, b"content-length")
    return int(announced) if announced is not None and announced.isdigit() and len(announced) < 20 else None  # noqa: PLR2004
