"""Entity tags and conditional requests (RFC 9110 §8.8.3, §13.1)."""

import re
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from nexcache.asgi import Headers

_TAG: Final = re.compile(rb'[\s,]*(?:W/)?("[^"]*")\s*(?:,|\Z)')
_KEPT_BY_304: Final = frozenset(
    (b"cache-control", b"content-location", b"date", b"etag", b"expires", b"vary", b"cdn-cache-control")
)


def entity_tag(body: bytes, content_type: bytes | None = None) -> bytes:
    """Make a strong entity tag: the same bytes give the same tag in every process and after every restart."""
    digest = blake2b(
        b"%d:%b" % (len(content_type or b""), content_type or b""), digest_size=16, person=b"nexcache-etag"
    )
    digest.update(body)
    return b'"' + digest.hexdigest().encode() + b'"'


def none_match(if_none_match: bytes, etag: bytes) -> bool:
    """Whether `If-None-Match` names this entity tag, by weak comparison (RFC 9110 §13.1.2)."""
    if if_none_match.strip() in (b"*", etag or b"*"):  # a tag without quotes is malformed, and still the same
        return True
    opaque = etag[2:] if etag.startswith(b"W/") else etag
    position = 0
    while match := _TAG.match(if_none_match, position):
        if match.group(1) == opaque:
            return True
        position = match.end()
    return False


def not_modified_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the fields that a 304 carries of the response that it stands for (RFC 9110 §15.4.5)."""
    return tuple([pair for pair in headers if pair[0] in _KEPT_BY_304])
