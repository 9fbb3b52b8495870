"""Compressing a response once, when it is stored: with all codings that there are, best first."""

import asyncio
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final

from nexcache.message import StoredResponse
from nexcache.semantics.encoding import SMALLEST, is_encodable, is_worth_it, varying_by_encoding

_AT_ONCE: Final = 32 * 1024
"""Bytes that are compressed in the event loop: a thread costs more."""
_GZIP_LEVEL: Final = 6
_GZIP: Final = 31
"""The window of zlib, and gzip's frame around it."""
_ZSTD_LEVEL: Final = 6
_BROTLI_QUALITY: Final = 5


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP)
    return packer.compress(body) + packer.flush()


def _installed(*names: str) -> Any:
    for name in names:
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


def _codings() -> Mapping[bytes, Callable[[bytes], bytes]]:
    """Return what is installed: zstd with Python 3.14 or the extra `zstd`, brotli where that package is."""
    found: dict[bytes, Callable[[bytes], bytes]] = {}
    zstd, brotli = _installed("compression.zstd", "backports.zstd"), _installed("brotli")
    if zstd is not None:
        found[b"zstd"] = lambda body: bytes(zstd.compress(body, _ZSTD_LEVEL))
    if brotli is not None:
        found[b"br"] = lambda body: bytes(brotli.compress(body, quality=_BROTLI_QUALITY))
    found[b"gzip"] = _gzip
    return MappingProxyType(found)


CODINGS: Final = _codings()


async def compressed(response: StoredResponse) -> StoredResponse:
    """Return a response with its body in every coding that makes it smaller; unchanged where none may be used."""
    if not is_encodable(response.status, response.headers):
        return response
    response = replace(response, headers=varying_by_encoding(response.headers))
    if len(response.body) < SMALLEST:
        return response
    if len(response.body) <= _AT_ONCE:
        return _all(response)
    return await asyncio.to_thread(_all, response)


def _all(response: StoredResponse) -> StoredResponse:
    packed = [(coding, pack(response.body)) for coding, pack in CODINGS.items()]
    return replace(
        response,
        encoded=tuple((coding, body) for coding, body in packed if is_worth_it(len(response.body), len(body))),
    )
