"""Decide whether a response may be kept (RFC 9111 §3), before its body has been seen."""

from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from nexcache.semantics.cache_control import directives
from nexcache.semantics.headers import MOST_FIELDS, first, is_sendable, members
from nexcache.telemetry.names import NotStoredReason

_FORBIDDING: Final = frozenset((b"cache-control", b"pragma", b"set-cookie", b"vary"))
_ADDED = 2
"""Fields that a stored response gets if it has not got them: `etag` and `content-length`."""


class Storable(NamedTuple):
    """The response may be kept once it is complete."""

    length: int | None
    """What `Content-Length` announces, in bytes."""


def may_store(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    *,
    statuses: Collection[int],
    keyed: Collection[bytes],
    max_body: int,
    trailers: bool = False,
) -> Storable | NotStoredReason:
    """Decide by status and header fields whether a policy may keep a response.

    `keyed` are the (lower-case) request fields that are part of the key: a response that varies by any other
    could answer a request that it does not fit (RFC 9111 §4.1).
    """
    headers = tuple(headers)
    names = {name.lower() for name, _ in headers}
    if not _FORBIDDING.isdisjoint(names):
        control = directives(headers)
        if b"no-store" in control:  # §5.2.2.5
            return NotStoredReason.NO_STORE
        if b"private" in control:  # §5.2.2.7
            return NotStoredReason.PRIVATE
        if b"no-cache" in control or b"no-cache" in members(headers, b"pragma"):  # §5.2.2.4, §5.4
            return NotStoredReason.NO_CACHE
        if b"set-cookie" in names:
            return NotStoredReason.SET_COOKIE
        varies = set(members(headers, b"vary"))
        if b"*" in varies or not varies <= set(keyed):  # §4.1
            return NotStoredReason.VARY
    if status == 206 or b"content-range" in names:  # §3.3  # noqa: PLR2004
        return NotStoredReason.PARTIAL
    if status not in statuses:
        return NotStoredReason.STATUS
    if trailers or b"trailer" in names:
        return NotStoredReason.TRAILERS
    if (first(headers, b"content-type") or b"").strip().lower().startswith(b"text/event-stream"):
        return NotStoredReason.EVENT_STREAM
    if not is_sendable(headers) or len(headers) > MOST_FIELDS - _ADDED:
        return NotStoredReason.HEADER
    length = _length(headers)
    if length is not None and length > max_body:
        return NotStoredReason.TOO_LARGE
    return Storable(length)


def _length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    announced = first(headers, b"content-length")
    return int(announced) if announced is not None and announced.isdigit() and len(announced) < 20 else None  # noqa: PLR2004
