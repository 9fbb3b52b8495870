"""The body of an OTLP/HTTP request, before it is understood: its type, its coding, its weight. Pure.

See https://opentelemetry.io/docs/specs/otlp/#otlphttp.
"""

import sys
import zlib
from collections.abc import Callable
from enum import Enum, StrEnum
from typing import Any, Final, Protocol

from nexcache.errors import NexCacheError

_GZIP: Final = 16 + zlib.MAX_WBITS
_CHUNK: Final = 64 * 1024
_ZSTD_WINDOW_LOG: Final = 23
"""8 MiB: what a decoder should be able to do (RFC 8878 §3.1.1.1.2), and all the memory that one may take."""
_MEMBERS: Final = 64
"""No sender concatenates more members or frames; thousands of empty ones would buy much work for few bytes."""


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
    """Undo a Content-Encoding (`gzip`, `identity`, nothing, or `zstd` if its extra is installed).

    At most `limit` bytes come out.

    Memory is bounded by the limit, whatever the body claims to hold: nothing beyond the first byte over
    the limit is ever produced.
    """
    match coding.strip().lower():
        case "" | "identity":
            return body if len(body) <= limit else Undecoded.TOO_LARGE
        case "gzip" | "x-gzip":
            return _unpacked(lambda: zlib.decompressobj(wbits=_GZIP), zlib.error, body, limit)
        case "zstd" if _zstd is not None:
            return _unpacked(_new_zstd, _zstd.ZstdError, body, limit)
        case _:
            return Undecoded.UNKNOWN_CODING


def codings() -> str:
    """Return the codings that can be undone, as `Accept-Encoding` lists them."""
    return "gzip, identity" if _zstd is None else "gzip, zstd, identity"


def _zstandard() -> Any:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415 - new in 3.14
        else:
            from backports import zstd  # noqa: PLC0415 - the extra `zstd`
    except ImportError:
        return None
    return zstd


_zstd: Final = _zstandard()


def _new_zstd() -> "_Member":
    member: _Member = _zstd.ZstdDecompressor(options={_zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})
    return member


class _Member(Protocol):
    """One gzip member or Zstandard frame that is being undone."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _unpacked(new: Callable[[], _Member], error: type[Exception], body: bytes, limit: int) -> bytes | Undecoded:
    pieces: list[bytes] = []
    room = limit + 1
    members = 0
    member: _Member | None = None
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
                member = new()
            try:
                piece = member.decompress(data, room)
            except error:
                return Undecoded.CORRUPT
            room -= len(piece)
            if room <= 0:
                return Undecoded.TOO_LARGE
            pieces.append(piece)
            data = member.unused_data
            if member.eof:
                member = None
    return b"".join(pieces) if member is None else Undecoded.CORRUPT
