"""Refuse bodies that would cost far more memory than they have bytes. Pure.

A span can be written in two bytes and takes two hundred in memory: 20 MiB of empty spans are 2 GB, and reach
us as 20 kB of gzip. Whatever a real exporter sends has ids, times and keys. So each message of a large body
is charged the bytes that it has at the very least, and a body that cannot pay is refused before it is parsed: where
it stops paying, not at its end, because looking through 20 MiB of what is no span takes seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nexcache.ingest.payload import MalformedOtlp

LARGE: Final = 256 * 1024
"""Bytes; smaller bodies cost little whatever is in them, and are not looked through."""

JSON_ELEMENT: Final = 12
"""The least bytes of an element of a JSON array: `{"key":"a"}` and a comma."""

_JSON_CONTAINER: Final = 5
"""The least bytes per opening bracket, those inside strings counted too."""

_FIELD: Final = 3
"""What a field that is none of the messages below is charged; nearly all are longer."""

_MOST_FIELDS: Final = 64
"""Such fields in one message: none of them is repeated, and a span has thirteen."""

_CREDIT: Final = 64 * 1024
"""Bytes that a body may be behind with its payments."""

_VARINT_BYTES: Final = 10
_MORE: Final = 0x80
"""The bit that says that another byte of the number follows."""


@dataclass(frozen=True, slots=True)
class _Message:
    bytes: int
    fields: "Mapping[int, _Message]" = field(default_factory=dict)


_ATTRIBUTE: Final = _Message(8)
_ATTRIBUTES: Final = {1: _ATTRIBUTE}
_EVENT: Final = _Message(9, {3: _ATTRIBUTE})
_LINK: Final = _Message(24, {4: _ATTRIBUTE})
_SPAN: Final = _Message(26, {9: _ATTRIBUTE, 11: _EVENT, 13: _LINK})
_SCOPE_SPANS: Final = _Message(32, {1: _Message(0, {3: _ATTRIBUTE}), 2: _SPAN})
_RESOURCE_SPANS: Final = _Message(32, {1: _Message(0, _ATTRIBUTES), 2: _SCOPE_SPANS})
_REQUEST: Final = {1: _RESOURCE_SPANS}
"""Field numbers of opentelemetry/proto/trace/v1/trace.proto."""


def check_protobuf(body: bytes) -> None:
    """Raise MalformedOtlp when a large protobuf body holds more messages than its bytes allow."""
    if len(body) > LARGE:
        try:
            _charge(body, 0, len(body), _REQUEST, 0)
        except IndexError:
            raise MalformedOtlp("the body is truncated") from None


def check_json(body: bytes) -> None:
    """Raise MalformedOtlp when a large JSON body holds more arrays and objects than its bytes allow."""
    if len(body) > LARGE and (body.count(b"{") + body.count(b"[")) * _JSON_CONTAINER > len(body):
        raise MalformedOtlp("the body holds more elements than a body of its size can")


def _charge(body: bytes, at: int, end: int, fields: Mapping[int, _Message], charged: int) -> int:
    """Add the price of everything in body[at:end]; return the sum."""
    others = 0
    while at < end:
        if charged > at + _CREDIT:
            raise MalformedOtlp("the body holds more elements than a body of its size can")
        tag, at = _varint(body, at)
        message = fields.get(tag >> 3) if tag & 7 == 2 else None  # noqa: PLR2004
        if message is None:
            others += 1
            charged += _FIELD
            if others > _MOST_FIELDS or tag < 8:  # noqa: PLR2004 - there is no field 0
                raise MalformedOtlp("the body is not an ExportTraceServiceRequest in protobuf")
        match tag & 7:
            case 0:
                _, at = _varint(body, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                size, at = _varint(body, at)
                stop = at + size
                if stop > end:
                    raise MalformedOtlp("the body is truncated")
                if message is not None:
                    charged += message.bytes
                    if message.fields:
                        charged = _charge(body, at, stop, message.fields, charged)
                at = stop
            case _:
                raise MalformedOtlp("the body is not protobuf")
    return charged


def _varint(body: bytes, at: int) -> tuple[int, int]:
    byte = body[at]
    if byte < _MORE:  # nearly all of them
        return byte, at + 1
    value = 0
    for index in range(_VARINT_BYTES):
        byte = body[at + index]
        value |= (byte & ~_MORE) << (7 * index)
        if byte < _MORE:
            return value, at + index + 1
    raise MalformedOtlp("the body is not protobuf")
