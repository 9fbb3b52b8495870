"""Validating stored responses with the origin, and updating them (RFC 9111 §3.2, §4.3). Pure."""

from collections.abc import Iterable
from typing import Final

from nexcache.asgi import Headers
from nexcache.semantics.asked import Asked
from nexcache.semantics.headers import end_to_end, first
from nexcache.semantics.stored import Facts
from nexcache.semantics.validation import none_match

CONDITIONS: Final = frozenset((b"if-none-match", b"if-modified-since"))
_NOT_UPDATED: Final = frozenset((b"content-encoding", b"content-length", b"content-range", b"age"))
"""Fields that say how the stored bytes are to be read (§3.2), and the age, which is calculated."""


def validating(headers: Iterable[tuple[bytes, bytes]], stored: Facts, asked: Asked) -> list[tuple[bytes, bytes]]:
    """Return a request's fields with the conditions that validate a stored response (§4.3.1).

    The client's entity tags stay beside the stored one, so that what the client has can be confirmed in the same
    request (RFC 9110 §13.1.2). Ranges are left out: the whole is what is validated.
    """
    dropped = CONDITIONS | {b"range", b"if-range"}
    kept = [pair for pair in headers if pair[0] not in dropped]
    if asked.if_none_match is not None:
        tags = asked.if_none_match
        if stored.etag is not None and tags.strip() != b"*" and not none_match(tags, stored.etag):
            tags = tags + b", " + stored.etag
        kept.append((b"if-none-match", tags))
    elif stored.etag is not None:
        kept.append((b"if-none-match", stored.etag))
    if stored.last_modified is not None:
        kept.append((b"if-modified-since", stored.last_modified))
    return kept


def is_confirmed(stored: Facts, not_modified: Iterable[tuple[bytes, bytes]], asked: Asked) -> bool:
    """Whether a 304 is about the stored response (§4.3.4), and not about what else the client has."""
    not_modified = tuple(not_modified)
    etag = first(not_modified, b"etag")
    if etag is not None:
        return stored.etag is not None and none_match(etag, stored.etag)
    modified = first(not_modified, b"last-modified")
    if modified is not None and stored.last_modified is not None:
        return modified.strip() == stored.last_modified.strip()
    if asked.if_none_match is None:
        return True
    return stored.etag is not None and none_match(asked.if_none_match, stored.etag)


def updated(stored: Headers, news: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return stored fields with those of a 304, or of a HEAD, in their place (§3.2)."""
    fresh = [pair for pair in end_to_end(news) if pair[0] not in _NOT_UPDATED]
    replaced = {name for name, _ in fresh}
    return (*(pair for pair in stored if pair[0] not in replaced), *fresh)


def head_agrees(stored: Headers, head: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the answer to a HEAD is about the stored response: validators and length are the same (§4.3.5)."""
    head = tuple(head)
    for name in (b"etag", b"last-modified", b"content-length"):
        said = first(head, name)
        if said is not None and said.strip() != (first(stored, name) or b"").strip():
            return False
    return True
