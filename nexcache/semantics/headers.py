"""Reading header fields (RFC 9110 §5), and which of them belong to one connection only (§7.6.1)."""

from collections.abc import Iterable, Iterator
from typing import Final

from nexcache.asgi import Headers

_CONNECTION_FIELDS: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_FORBIDDEN: Final = (b"\r", b"\n", b"\0")

MOST_FIELDS: Final = 256
"""Header fields that a stored response may have."""


def spellings(name: str) -> frozenset[bytes]:
    """Give a field's name with `_` for any of its `-`: CGI-minded frameworks take all of them for one field."""
    first, *rest = name.lower().replace("_", "-").split("-")
    found = [first]
    for word in rest:
        found = [start + mark + word for start in found for mark in "-_"]
    return frozenset(spelling.encode() for spelling in found)


def values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> Iterator[bytes]:
    """Give the values of every field of this (lower-case) name, in order."""
    for field, value in headers:
        if field.lower() == name:
            yield value


def first(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """Return the first value of a field, or None."""
    return next(values(headers, name), None)


def members(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> Iterator[bytes]:
    """Give the members of a comma-separated list field, lower-cased and trimmed (RFC 9110 §5.6.1)."""
    for value in values(headers, name):
        for member in value.split(b","):
            if trimmed := member.strip(b" \t").lower():
                yield trimmed


def is_sendable(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether no name or value could split a message in two (RFC 9110 §5.5)."""
    return not any(bad in field or bad in value for field, value in headers for bad in _FORBIDDEN)


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return what may be stored: without the fields that concern one connection (RFC 9111 §3.1).

    Names are lower-cased, as ASGI wants them; order and repetition stay.
    """
    headers = tuple((bytes(name).lower(), bytes(value)) for name, value in headers)
    dropped = _CONNECTION_FIELDS | set(members(headers, b"connection"))
    return tuple((name, value) for name, value in headers if name not in dropped)
