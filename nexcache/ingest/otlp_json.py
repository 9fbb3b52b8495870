"""OTLP/JSON into the protobuf messages, so that both encodings are one thing from here on. Pure.

It is not the JSON mapping of protobuf: trace and span ids are hexadecimal rather than base64, enums are
numbers only, and field names are lowerCamelCase only
(https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding). Everything else is read as protobuf's
mapping says: unknown fields are ignored, null is the same as absent, 64-bit integers are numbers or strings.
"""

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NoReturn

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache.ingest.density import JSON_ELEMENT, LARGE, check_json
from nexcache.ingest.payload import MalformedOtlp

_DEPTH: Final = 90
"""Protobuf reads messages nested 100 deep; what a sink stores must be readable again."""

_ID_BYTES: Final = {"trace_id": 16, "span_id": 8, "parent_span_id": 8}
_INTEGER_DIGITS: Final = 20
_NON_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

_Converter = Callable[[Any], Any]
"""Turns a JSON value into a field's value, or raises ValueError saying what it must be."""


def read_json(body: bytes) -> ExportTraceServiceRequest:
    """Read a request; an empty body is an empty request. Raises MalformedOtlp, whatever the bytes."""
    request = ExportTraceServiceRequest()
    if not body:
        return request
    check_json(body)
    try:
        document = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise MalformedOtlp("the body is nested too deeply") from None
    except ValueError:
        raise MalformedOtlp("the body is not JSON") from None
    _Reading(max(len(body), LARGE) // JSON_ELEMENT).fill(request, document, 1)
    return request


class _Reading:
    """One body being read: how many more array elements it may have."""

    __slots__ = ("elements",)

    def __init__(self, elements: int) -> None:
        self.elements = elements

    def fill(self, message: Any, source: object, depth: int) -> None:
        shape = _shape(message.DESCRIPTOR)
        if not isinstance(source, dict):
            raise MalformedOtlp(f"{shape.name} must be an object")
        if depth > _DEPTH:
            raise MalformedOtlp("the body is nested too deeply")
        for key, value in source.items():
            field = shape.fields.get(key)
            if field is None or value is None:
                continue
            if field.oneof is not None and message.WhichOneof(field.oneof) is not None:
                raise MalformedOtlp(f"{shape.name} must have one {field.oneof} only")
            if field.convert is not None:
                try:
                    setattr(message, field.name, field.convert(value))
                except ValueError as wrong:
                    # a range or a lone surrogate is found by protobuf, whose text repeats the value
                    hint = str(wrong) if isinstance(wrong, _Wrong) else "a value that fits the field"
                    raise MalformedOtlp(f"{shape.name}.{key} must be {hint}") from None
            elif field.repeated:
                if not isinstance(value, list):
                    raise MalformedOtlp(f"{shape.name}.{key} must be an array")
                self.elements -= len(value)
                if self.elements < 0:
                    raise MalformedOtlp("the body holds more elements than a body of its size can")
                container = getattr(message, field.name)
                for item in value:
                    self.fill(container.add(), item, depth + 1)
            else:
                child = getattr(message, field.name)
                child.SetInParent()
                self.fill(child, value, depth + 1)


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    convert: _Converter | None
    """None for messages."""
    repeated: bool
    oneof: str | None


@dataclass(frozen=True, slots=True)
class _Shape:
    name: str
    fields: Mapping[str, _Field]


@cache
def _shape(descriptor: Any) -> _Shape:
    """Read a message type's fields from its descriptor: a field that OTLP adds is read without a change here."""
    return _Shape(
        descriptor.name,
        {
            field.json_name: _Field(
                field.name,
                _converter(field),
                field.default_value == [],
                None if field.containing_oneof is None else field.containing_oneof.name,
            )
            for field in descriptor.fields
        },
    )


def _converter(field: Any) -> _Converter | None:
    if field.name in _ID_BYTES:
        return _hexadecimal(_ID_BYTES[field.name])
    if field.cpp_type == field.CPPTYPE_STRING:
        return _base64 if field.type == field.TYPE_BYTES else _string
    return {
        field.CPPTYPE_MESSAGE: None,
        field.CPPTYPE_BOOL: _boolean,
        field.CPPTYPE_DOUBLE: _double,
        field.CPPTYPE_ENUM: _enum,
    }.get(field.cpp_type, _integer)


class _Wrong(ValueError):  # noqa: N818 - reads as what it says
    """A JSON value has the wrong type; the message says the right one."""


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise _Wrong("a string")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("true or false")
    return value


def _integer(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and len(value) <= _INTEGER_DIGITS:
        digits = value.removeprefix("-")
        if digits.isascii() and digits.isdigit():
            return int(value)
    raise _Wrong("an integer, as a number or a string")


def _enum(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _Wrong("an integer: names of enum values are not OTLP")


def _double(value: object) -> float:
    if isinstance(value, str):
        if value in _NON_FINITE:
            return _NON_FINITE[value]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise _Wrong("a number")


def _hexadecimal(size: int) -> _Converter:
    digits = re.compile(rf"(?:[0-9a-fA-F]{{{2 * size}}})?")

    def convert(value: object) -> bytes:
        if not isinstance(value, str) or digits.fullmatch(value) is None:
            raise _Wrong(f"{2 * size} hexadecimal digits")
        return bytes.fromhex(value)

    return convert


def _base64(value: object) -> bytes:
    if isinstance(value, str):
        standard = value.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
        except ValueError:
            pass
    raise _Wrong("base64")


def _no_constant(_name: str) -> NoReturn:
    raise _Wrong("JSON")  # NaN and Infinity are Python's, not JSON's
