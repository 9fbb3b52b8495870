"""Answering a client with a stored response: conditions first, then ranges (RFC 9110 §13.2.2). Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from nexcache.asgi import Headers
from nexcache.message import StoredResponse
from nexcache.semantics.asked import Asked
from nexcache.semantics.dates import http_date
from nexcache.semantics.headers import first
from nexcache.semantics.ranges import Unsatisfiable, ranges
from nexcache.semantics.stored import Facts
from nexcache.semantics.validation import none_match, not_modified_headers

_OK: Final = 200
_STRONG_AFTER: Final = 1.0
"""Seconds after its last change from which a response's Last-Modified is a strong validator (RFC 9110 §8.8.2.2)."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What is sent."""

    status: int
    headers: Headers
    body: bytes


def outgoing(response: StoredResponse, stored: Facts, asked: Asked, *, method: str, now: float) -> Outgoing:
    """Choose what a client that asked so is sent of a stored response that may be used."""
    headers, body = response.headers, response.body
    if response.status == _OK:
        if is_not_modified(headers, stored, asked, now=now):
            return Outgoing(304, not_modified(headers), b"")
        if method == "GET" and asked.range is not None and range_holds(stored, asked, now=now):
            part = _part(response, asked.range)
            if part is not None:
                return part
    return Outgoing(response.status, headers, b"" if method == "HEAD" else body)


def is_not_modified(headers: Iterable[tuple[bytes, bytes]], stored: Facts, asked: Asked, *, now: float) -> bool:
    """Whether the client has what is stored already (RFC 9111 §4.3.2)."""
    if asked.if_none_match is not None:  # it takes precedence (RFC 9110 §13.1.3)
        return none_match(asked.if_none_match, stored.etag or b"")
    if asked.if_modified_since is None:
        return False
    since = http_date(asked.if_modified_since, now=now)
    value = first(headers, b"last-modified")
    changed = http_date(value, now=now) if value is not None else stored.date
    return since is not None and changed is not None and changed <= since


def not_modified(headers: Headers) -> Headers:
    """Return the fields of a 304; Last-Modified where there is no entity tag (RFC 9110 §15.4.5)."""
    kept = not_modified_headers(headers)
    if first(kept, b"etag") is None:
        return (*kept, *(pair for pair in headers if pair[0] == b"last-modified"))
    return kept


def range_holds(stored: Facts, asked: Asked, *, now: float) -> bool:
    """Whether If-Range lets the range be answered (RFC 9110 §13.1.5): by strong comparison only."""
    if asked.if_range is None:
        return True
    condition = asked.if_range.strip(b" \t")
    if condition.startswith((b'"', b"W/")):
        return condition == stored.etag and not condition.startswith(b"W/")
    if stored.last_modified is None:
        return False
    wanted, changed = http_date(condition, now=now), http_date(stored.last_modified, now=now)
    return wanted is not None and wanted == changed and stored.date - wanted >= _STRONG_AFTER


def _part(response: StoredResponse, wanted: bytes) -> Outgoing | None:
    size = len(response.body)
    found = ranges(wanted, size)
    if found is None:
        return None
    if isinstance(found, Unsatisfiable):
        kept = _without(response.headers, b"content-length")
        return Outgoing(416, (*kept, (b"content-range", b"bytes */%d" % size), (b"content-length", b"0")), b"")
    if len(found) == 1:
        begin, end = found[0]
        body = response.body[begin : end + 1]
        headers = (
            *_without(response.headers, b"content-length"),
            (b"content-range", b"bytes %d-%d/%d" % (begin, end, size)),
            (b"content-length", b"%d" % len(body)),
        )
        return Outgoing(206, headers, body)
    return _several(response, found)


def _several(response: StoredResponse, found: tuple[tuple[int, int], ...]) -> Outgoing:
    """Write several ranges as one multipart message (RFC 9110 §14.6)."""
    media = first(response.headers, b"content-type")
    boundary = blake2b(response.body, digest_size=16, person=b"nexcache-range").hexdigest().encode()
    pieces = []
    for begin, end in found:
        pieces += [
            b"--" + boundary + b"\r\n",
            b"Content-Type: " + media + b"\r\n" if media is not None else b"",
            b"Content-Range: bytes %d-%d/%d\r\n\r\n" % (begin, end, len(response.body)),
            response.body[begin : end + 1] + b"\r\n",
        ]
    body = b"".join([*pieces, b"--" + boundary + b"--\r\n"])
    headers = (
        *_without(response.headers, b"content-length", b"content-type"),
        (b"content-type", b"multipart/byteranges; boundary=" + boundary),
        (b"content-length", b"%d" % len(body)),
    )
    return Outgoing(206, headers, body)


def _without(headers: Headers, *names: bytes) -> Headers:
    return tuple(pair for pair in headers if pair[0] not in names)
