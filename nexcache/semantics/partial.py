"""Incomplete stored responses (RFC 9111 §3.3, §3.4): what they answer, and how they become whole. Pure."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from nexcache.asgi import Headers
from nexcache.message import StoredResponse
from nexcache.semantics.freshening import updated
from nexcache.semantics.headers import first, values
from nexcache.semantics.ranges import Unsatisfiable, ranges

PARTIAL: Final = 206
_OK: Final = 200
_CONTENT_RANGE: Final = re.compile(rb"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.IGNORECASE)


def content_range(headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, int, int] | None:
    """Read the first and last position of a part, and the size of the whole (RFC 9110 §14.4).

    None where it is malformed, repeated, contradicts itself, or the whole is of unknown size.
    """
    found = list(values(headers, b"content-range"))
    match = _CONTENT_RANGE.fullmatch(found[0].strip(b" \t")) if len(found) == 1 else None
    if match is None:
        return None
    begin, end, size = int(match[1]), int(match[2]), int(match[3])
    return (begin, end, size) if begin <= end < size else None


def is_whole_part(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
    """Whether a part has as many bytes as it says."""
    place = content_range(headers)
    return place is not None and len(body) == place[1] - place[0] + 1


def part_within(response: StoredResponse, wanted: bytes | None) -> StoredResponse | None:
    """Cut out of a stored part what a Range asks for; None where it holds less than that (§3.3)."""
    place = content_range(response.headers)
    if place is None or wanted is None:
        return None
    begin, end, size = place
    found = ranges(wanted, size)
    if found is None or isinstance(found, Unsatisfiable) or len(found) != 1:
        return None
    low, high = found[0]
    if low < begin or high > end:
        return None
    body = response.body[low - begin : high - begin + 1]
    headers = (
        *(pair for pair in response.headers if pair[0] not in (b"content-length", b"content-range")),
        (b"content-range", b"bytes %d-%d/%d" % (low, high, size)),
        (b"content-length", b"%d" % len(body)),
    )
    return replace(response, headers=headers, body=body)


def missing_part(response: StoredResponse) -> bytes | None:
    """Return the Range that makes a stored part whole; None where it cannot be (§3.4).

    Only a strong entity tag says that two parts are of one representation.
    """
    place = content_range(response.headers)
    if place is None or place[0] != 0 or not _strong(response.headers):
        return None
    return b"bytes=%d-" % (place[1] + 1) if place[1] + 1 < place[2] else None


def combined(response: StoredResponse, headers: Headers, body: bytes) -> tuple[int, Headers, bytes] | None:
    """Join a stored part and another that touches it; None where they do not belong together (§3.4).

    Returns what a response with both has: its status (200 when nothing is missing), its fields and its body.
    """
    place, other = content_range(response.headers), content_range(headers)
    etag = _strong(response.headers)
    if place is None or other is None or etag is None or first(headers, b"etag") != etag:
        return None
    (begin, end, size), (low, high, of) = place, other
    if size != of or low > end + 1 or begin > high + 1 or not is_whole_part(headers, body):
        return None
    before, after = response.body[: max(0, low - begin)], response.body[max(0, high + 1 - begin) :]
    begin, joined = min(begin, low), before + body + after
    dropped = (b"content-range", b"content-length")
    kept = tuple(pair for pair in updated(response.headers, headers) if pair[0] not in dropped)
    kept = (*kept, (b"content-length", b"%d" % len(joined)))
    if len(joined) == size:
        return _OK, kept, joined
    return PARTIAL, (*kept, (b"content-range", b"bytes %d-%d/%d" % (begin, begin + len(joined) - 1, size))), joined


def _strong(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    etag = first(headers, b"etag")
    return etag if etag is not None and etag.startswith(b'"') else None
