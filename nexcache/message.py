"""The values that the parts of NexCache hand to each other."""

from dataclasses import dataclass
from typing import Final

from nexcache.asgi import Headers

_EMPTY: Final = 400
"""Bytes of an entry in memory without a body."""
_CODING: Final = 400
"""Bytes of a further content coding beside its body."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A complete response as it was stored (RFC 9111 §2), ready to be sent again byte for byte."""

    status: int
    headers: Headers
    """In the app's order, without the fields that belong to one connection, with `etag` and `content-length`."""
    body: bytes
    etag: bytes
    """The entity tag of this body, quoted; the app's own where it sent one (RFC 9110 §8.8.3)."""
    stored_at: float
    """When it was computed, in seconds since the epoch, by the clock of the node that computed it."""
    ttl: float
    """Seconds for which it may be served, counted from `stored_at`."""
    initial_age: int = 0
    """The age in seconds that it already had when the app sent it (RFC 9111 §4.2.3)."""
    cost: float = 0.0
    """Seconds that computing it took; 0 where that is not known."""
    kept_on: float = 0.0
    """Seconds after the end of `ttl` for which it is kept, to be served stale where a policy says so."""
    encoded: tuple[tuple[bytes, bytes], ...] = ()
    """The body in further content codings, each with the coding's name, the preferred first."""
    filled_by: bytes = b""
    """The trace id (16 bytes) and the span id (8) of the span that computed it; empty where none was recorded."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored response with what decides whether it may be used: for which request, and under which generations."""

    request: bytes
    """The canonical request; a read compares it, so that a collision of hashes is a miss."""
    response: StoredResponse
    generations: tuple[tuple[bytes, bytes], ...]
    """Pairs of a generation's key and the token (with its epoch) that was current before the response was computed."""
    captured: int = 0
    """When they were, by the store's clock."""

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes, beside what it shares with others: header fields, generations."""
        return _EMPTY + len(self.response.body) + sum(_CODING + len(body) for _, body in self.response.encoded)
