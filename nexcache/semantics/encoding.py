"""Content codings of a stored response (RFC 9110 §8.4, §12.5.3). Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Final

from nexcache.asgi import Headers
from nexcache.message import StoredResponse
from nexcache.semantics.cache_control import directives
from nexcache.semantics.headers import first, members, values

IDENTITY: Final = b"identity"
SMALLEST: Final = 512
"""Bytes of a body below which a coding saves less than it costs."""
_GAIN: Final = 0.9
"""The part of its size that a body may keep and be worth it."""
_TEXTUAL: Final = (b"text/", b"application/json", b"application/javascript", b"application/xml", b"image/svg+xml")
_SUFFIXES: Final = (b"+json", b"+xml", b"+text")
_ACCEPT: Final = b"accept-encoding"
_OK: Final = 200
_LONGEST: Final = 512


def is_encodable(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response's body may be sent in a coding, and is likely to gain by it.

    What the app has encoded itself stays as it is, and so does what nobody may transform (RFC 9110 §7.7).
    """
    headers = tuple(headers)
    media = (first(headers, b"content-type") or b"").partition(b";")[0].strip().lower()
    return (
        status == _OK
        and (media.startswith(_TEXTUAL) or media.endswith(_SUFFIXES))
        and not media.startswith(b"text/event-stream")
        and first(headers, b"content-encoding") is None
        and first(headers, b"content-range") is None
        and b"no-transform" not in directives(headers)
    )


def is_worth_it(size: int, encoded: int) -> bool:
    """Whether a coding has made a body enough smaller."""
    return encoded < size * _GAIN


def varying_by_encoding(headers: Headers) -> Headers:
    """Say that the response depends on Accept-Encoding (RFC 9110 §12.5.5)."""
    named = set(members(headers, b"vary"))
    if _ACCEPT in named or b"*" in named:
        return headers
    kept = tuple(pair for pair in headers if pair[0].lower() != b"vary")
    return (*kept, (b"vary", b", ".join([*values(headers, b"vary"), b"Accept-Encoding"])))


def variant(response: StoredResponse, coding: bytes, body: bytes) -> StoredResponse:
    """Return the response in one of its codings, with an entity tag of its own (RFC 9110 §8.8.3.3)."""
    etag = response.etag[:-1] + b"-" + coding + b'"' if response.etag.endswith(b'"') else response.etag
    changed = {b"content-length": b"%d" % len(body), b"etag": etag}
    headers = tuple((name, changed.get(name, value)) for name, value in response.headers)
    return replace(response, headers=(*headers, (b"content-encoding", coding)), body=body, etag=etag, encoded=())


def accepted(headers: Iterable[tuple[bytes, bytes]], available: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return which codings a request accepts, the preferred first; identity is always the last resort.

    `available` is in the server's order, which decides between equal weights.
    """
    value = b",".join(values(headers, _ACCEPT))
    return _accepted(value, available) if value and len(value) <= _LONGEST else (IDENTITY,)


@lru_cache(maxsize=1024)
def _accepted(value: bytes, available: tuple[bytes, ...]) -> tuple[bytes, ...]:
    weights = _weights(value)
    rest = weights.get(b"*", 0.0)
    found = [(weights.get(coding, rest), coding) for coding in available]
    plain = weights.get(IDENTITY, 0.0)
    usable = [(weight, coding) for weight, coding in found if weight > 0 and weight >= plain]
    usable.sort(key=lambda pair: -pair[0])
    return (*(coding for _, coding in usable), IDENTITY)


def _weights(value: bytes) -> Mapping[bytes, float]:
    """Read weights (RFC 9110 §12.4.2); what is malformed has none."""
    found: dict[bytes, float] = {}
    for member in value.lower().split(b","):
        coding, *parameters = (part.strip() for part in member.split(b";"))
        weight = 1.0
        for parameter in parameters:
            name, _, text = parameter.partition(b"=")
            if name.strip() == b"q":
                try:
                    weight = float(text)
                except ValueError:
                    weight = 0.0
        if coding:
            found[{b"x-gzip": b"gzip"}.get(coding, coding)] = weight if 0 <= weight <= 1 else 0.0
    return found
