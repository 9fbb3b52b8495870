"""The tags that a response names for itself: Cache-Groups (RFC 9875), Surrogate-Key and Cache-Tag. Pure."""

from typing import Final

import http_sf

from nexcache.asgi import Headers
from nexcache.errors import InvalidName
from nexcache.invalidation.targets import check_name
from nexcache.semantics.headers import values

_FIELDS: Final = frozenset((b"cache-groups", b"surrogate-key", b"cache-tag"))
LONGEST: Final = 16 * 1024
"""Bytes of such a field that are read."""


def named_groups(headers: Headers, field: bytes = b"cache-groups") -> tuple[str, ...] | None:
    """Read a list of strings (RFC 9875 §2, RFC 9651 §3.1); None where the field is not one. Never raises.

    Parameters are ignored. Such a list is case-sensitive.
    """
    combined = b", ".join(values(headers, field))
    if not combined:
        return ()
    if len(combined) > LONGEST:
        return None
    try:
        parsed = http_sf.parse(combined, tltype="list")
    except Exception:  # noqa: BLE001 - whatever it raises, the field is no list
        return None
    if not isinstance(parsed, list):
        return None
    found: dict[str, None] = {}
    for item in parsed:
        name = item[0] if isinstance(item, tuple) else item
        if type(name) is not str:  # a token, which is a subclass
            return None
        found[name] = None
    return tuple(found)


def tags_in(headers: Headers) -> tuple[str, ...]:
    """Return the tags that a response names, sorted; raises InvalidName where one cannot be part of a key.

    `Cache-Groups` is a list of strings, `Surrogate-Key` separates its keys by spaces, `Cache-Tag` by commas.
    """
    if _FIELDS.isdisjoint([name.lower() for name, _ in headers]):
        return ()
    groups = named_groups(headers)
    if groups is None:
        raise InvalidName("Cache-Groups is no list of strings")
    found = set(groups)
    for field, separator in ((b"surrogate-key", None), (b"cache-tag", b",")):
        for value in values(headers, field):
            if len(value) > LONGEST:
                raise InvalidName(f"{field.decode()} is longer than {LONGEST} bytes")
            for part in value.split(separator):
                if name := part.strip(b" \t"):
                    try:
                        found.add(name.decode())
                    except UnicodeDecodeError:
                        raise InvalidName(f"{field.decode()} is no UTF-8") from None
    return tuple(sorted(check_name("tag", name) for name in found))
