"""Which request fields choose between the responses of one URI (RFC 9111 §4.1). Pure."""

import re
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from nexcache.semantics.headers import is_token, members, values

Nominated: TypeAlias = tuple[bytes, ...]
"""The lower-case names of a Vary, in order; empty where nothing is varied by."""

_UNORDERED: Final = frozenset((b"accept", b"accept-charset", b"accept-encoding", b"accept-language"))
"""Lists in which order says nothing: preference is in their weights (RFC 9110 §12.4.2)."""
_CASELESS: Final = _UNORDERED - {b"accept"}
_UNSEEN: Final = frozenset((b"*", b"via", b"x-forwarded-for"))
_NOBODY_VARIES_BY: Final = frozenset(
    (
        *(b"connection", b"keep-alive", b"content-length", b"date", b"via"),
        *(b"cache-control", b"pragma", b"if-none-match", b"if-modified-since", b"range", b"if-range"),
        *(b"traceparent", b"tracestate", b"baggage", b"x-request-id", b"x-correlation-id"),
        *(b"x-forwarded-for", b"x-real-ip"),
    )
)
"""Fields that concern a connection, caches, one request or one machine."""
_COMMA: Final = re.compile(rb'((?:"(?:[^"\\]|\\.)*"|[^",])+)|,|"', re.DOTALL)
_LONGEST: Final = 2048
_MOST: Final = 32


def nominated(headers: Iterable[tuple[bytes, bytes]]) -> Nominated | None:
    """Return by which request fields a response varies; None: by something that this cache cannot see (`*`).

    So are what is no name of a field, and fields that only the proxy behind the cache writes.
    """
    names = sorted(set(members(headers, b"vary")))
    if len(names) > _MOST or not all(name not in _UNSEEN and is_token(name) for name in names):
        return None
    return tuple(names)


def selecting(headers: Iterable[tuple[bytes, bytes]], names: Nominated) -> tuple[tuple[bytes, bytes | None], ...]:
    """Return the values of the nominated request fields such that equal ones choose the same response.

    Lines of one field are one list, white space around its commas says nothing, nor does order in the fields of
    content negotiation. A field that is not there is None, which only its absence equals.
    """
    headers = tuple(headers)
    return tuple((name, _normal(name, list(values(headers, name)))) for name in names)


def resembling(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return what two requests have in common that select the same response, whatever it varies by."""
    kept = sorted((name, value) for name, value in headers if name not in _NOBODY_VARIES_BY)
    return b"".join(b"%d:%b%d:%b" % (len(name), name, len(value), value) for name, value in kept)


def _normal(name: bytes, lines: Sequence[bytes]) -> bytes | None:
    if not lines:
        return None
    joined = b",".join(lines)
    if len(joined) > _LONGEST:
        return joined
    listed = [
        b"".join(match[0].split(None)) if name in _UNORDERED else b" ".join(match[0].split())
        for match in _COMMA.finditer(joined)
        if match[1]
    ]
    listed = [member for member in listed if member]
    if name in _CASELESS:
        listed = [member.lower() for member in listed]
    if name in _UNORDERED:
        listed = sorted(set(listed))
    return b", ".join(listed)
