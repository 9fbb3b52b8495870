"""Reading header fields (RFC 9110 §5), and which of them belong to one connection only (§7.6.1)."""

import re
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
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")  # §5.5

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
    for field, value in headers:
        if field.lower() == name:
            return value
    return None


def members(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> Iterator[bytes]:
    """Give the members of a comma-separated list field, lower-cased and trimmed (RFC 9110 §5.6.1)."""
    for value in values(headers, name):
        for member in value.split(b","):
            if trimmed := member.strip(b" \t").lower():
                yield trimmed


def is_token(name: bytes) -> bool:
    """Whether this can be the name of a field (RFC 9110 §5.6.2)."""
    return _NAME.fullmatch(name) is not None


def is_sendable(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether every name is a token and no value holds a control character (RFC 9110 §5.1, §5.5).

    Anything else could split a message in two, hide a field from one reader and show it to another, or be refused by
    the server each time it is sent.
    """
    return all(_NAME.fullmatch(field) and _VALUE.fullmatch(value) for field, value in headers)


def is_end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether no field concerns one connection only (RFC 9110 §7.6.1)."""
    return all(name.lower() not in _CONNECTION_FIELDS for name, _ in headers)


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return what may be stored: without the fields that concern one connection (RFC 9111 §3.1).

    Names are lower-cased, as ASGI wants them; order and repetition stay.
    """
    return lasting(tuple([lowered(pair) for pair in headers]))


def lasting(headers: Headers) -> Headers:
    """Do the same for fields with names in lower case."""
    if _CONNECTION_FIELDS.isdisjoint([name for name, _ in headers]):
        return headers
    dropped = _CONNECTION_FIELDS | set(members(headers, b"connection"))
    return tuple([pair for pair in headers if pair[0] not in dropped])


def lowered(pair: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Return a field that nobody can change, its name in lower case: the same one where it is so, held once."""
    name, value = pair
    if type(pair) is tuple and type(name) is type(value) is bytes and name == name.lower():
        return pair
    return bytes(name).lower(), bytes(value)
