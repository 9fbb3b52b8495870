"""Targeted Cache-Control (RFC 9213): what an origin says to caches of one kind, in place of Cache-Control. Pure."""

from collections.abc import Iterable
from typing import Final

import http_sf

from nexcache.asgi import Headers
from nexcache.semantics.cache_control import LONGEST_FIELD
from nexcache.semantics.headers import values

TARGETS: Final = (b"nexcache-cache-control", b"cdn-cache-control")
"""The fields that are for this cache, the most specific first (§2.2)."""
_REPLACED: Final = frozenset((b"cache-control", b"expires"))


def effective(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the fields that rule a response in this cache: a valid targeted field takes the place of Cache-Control.

    Cache-Control and Expires are then as if they were not there (§2.2). A field that is no dictionary, or an empty
    one, is ignored (§2.1). Never raises.
    """
    headers = tuple((name.lower(), value) for name, value in headers)
    for target in TARGETS:
        found = list(values(headers, target))
        if not found:
            continue
        written = _as_cache_control(b", ".join(found))
        if written is not None:
            return (*(pair for pair in headers if pair[0] not in _REPLACED), (b"cache-control", written))
    return headers


def _as_cache_control(value: bytes) -> bytes | None:
    """Write a dictionary of directives down as Cache-Control has them; None where it does not count."""
    if len(value) > LONGEST_FIELD:
        return None
    try:
        parsed = http_sf.parse(value, tltype="dictionary")
    except (ValueError, TypeError):
        return None
    if not isinstance(parsed, dict) or not parsed:
        return None
    return b", ".join(_directive(name.encode(), member) for name, member in parsed.items() if member != (False, {}))


def _directive(name: bytes, member: object) -> bytes:
    """Write one directive; a value of another type than the directive has is malformed, and stays so (§2.1)."""
    value = member[0] if isinstance(member, tuple) else None
    match value:
        case True:
            return name
        case int():
            return b"%b=%d" % (name, value)
        case str():
            return b'%b="%b"' % (name, value.encode("utf-8", "replace"))
        case _:
            return b"%b=?" % name
