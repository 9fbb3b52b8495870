"""The body of an OTLP/HTTP request, before it is understood: its type, its coding, its weight. Pure.

See https://opentelemetry.io/docs/specs/otlp/#otlphttp.
"""

import zlib
from enum import Enum, StrEnum
from typing import Final

from nexcache.errors import NexCacheError

_GZIP: Final = 16 + zlib.MAX_WBITS
_CHUNK: Final = 64 * 1024
_MEMBERS: Final = 64
"""No sender concatenates more gzip members; thousands of empty ones would buy much work for few bytes."""


class MalformedOtlp(NexCacheError, ValueError):  # noqa: N818 - reads as what it says
    """A body is no ExportTraceServiceRequest; the message says where, and repeats nothing of the body."""


class MediaType(StrEnum):
    """The two encodings of OTLP/HTTP; the answer uses the one of the request."""

    PROTOBUF = "application/x-protobuf"
    JSON = "application/json"

    @classmethod
    def of(cls, content_type: str) -> "MediaType | None":
        """Read a Content-Type; None for a type that OTLP does not have. Parameters do not matter."""
        essence = content_type.partition(";")[0].strip().lower()
        return next((each for each in cls if each.value == essence), None)


class Undecoded(Enum):
    """Why a body was not decoded."""

    TOO_LARGE = "too-large"
    UNKNOWN_CODING = "unknown-coding"
    CORRUPT = "corrupt"


def decompress(coding: str, body: bytes, limit: int) -> bytes | Undecoded:
    """Undo a Content-Encoding (`gzip`, `identity` or nothing); at most `limit` bytes come out.

    Memory is bounded by the limit, whatever the body claims to hold: nothing beyond the first byte over
    the limit is ever produced.
    """
    match coding.strip().lower():
        case "" | "identity":
            return body if len(body) <= limit else Undecoded.TOO_LARGE
        case "gzip" | "x-gzip":
            return _gunzip(body, limit)
        case _:
            return Undecoded.UNKNOWN_CODING


def _gunzip(body: bytes, limit: int) -> bytes | Undecoded:
    pieces: list[bytes] = []
    room = limit + 1
    members = 0
    member = None
    # The body is fed in chunks: what follows a member is copied out of the decompressor each time.
    for start in range(0, len(body), _CHUNK):
        data = body[start : start + _CHUNK]
        while data:
            if member is None:
                data = data.lstrip(b"\0") if members else data
                if not data:
                    break
                members += 1
                if members > _MEMBERS:
                    return Undecoded.CORRUPT
                member = zlib.decompressobj(wbits=_GZIP)
            try:
                piece = member.decompress(data, room)
            except zlib.error:
                return Undecoded.CORRUPT
            room -= len(piece)
            if room <= 0:
                return Undecoded.TOO_LARGE
            pieces.append(piece)
            data = member.unused_data
            if member.eof:
                member = None
    return b"".join(pieces) if member is None else Undecoded.CORRUPT
