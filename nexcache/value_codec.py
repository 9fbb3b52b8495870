"""Python values as bytes, and back with the same types: msgpack, and an extension for each other type. Never pickle.

What msgpack knows (None, bool, int, float, str, bytes, list, dict) is written as it is. Tuples, sets, datetimes,
dates, times, timedeltas, decimals, UUIDs, paths and complex numbers come back as what they were. Dataclasses, named
tuples, enums and pydantic models come back too, if the reader knows the class: from a function's return annotation or
because it was registered. A name in the data is looked up among the known classes and never imported.

Keys are written with the same encoder, which there needs to know no class: two values are the same bytes only if they
are of the same type and equal, so that `1`, `True`, `1.0` and `"1"` are four keys.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, Final, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack

from nexcache.errors import NexCacheError

Registered: TypeAlias = tuple[type, Callable[[Any], Any], Callable[[Any], Any]]


class Ext(IntEnum):
    """The extension types: numbers that stay what they are."""

    TUPLE = 1
    SET = 2
    FROZENSET = 3
    INT = 4
    DATETIME = 5
    DATE = 6
    TIME = 7
    TIMEDELTA = 8
    DECIMAL = 9
    UUID = 10
    PATH = 11
    COMPLEX = 12
    ENUM = 13
    DATACLASS = 14
    MODEL = 15
    NAMED = 16
    CUSTOM = 17
    SUBCLASS = 18
    """Keys only: an instance of a class derived from one of msgpack's types."""
    KEYED = 19
    """Keys only: what `__cache_key__` returned."""
    ZONED = 20
    """Keys only: a time in a zone that could not be restored."""


_BINARY: Final = (b"\xc4", b"\xc5", b"\xc6")
"""What msgpack begins a string of bytes with."""
_PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes, complex))
_FIXED: Final = frozenset((Decimal, UUID, date, timedelta, PurePosixPath, PureWindowsPath, PosixPath, WindowsPath))
_BUILTINS: Final[Mapping[type, Callable[[Any], Any]]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: bytes.__bytes__,
    list: list,
    dict: dict,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
}
"""How an instance of a class derived from one of these becomes one of them; its own methods are not asked."""
_PATHS: Final = {kind.__name__: kind for kind in (PurePosixPath, PureWindowsPath, PosixPath, WindowsPath)}


class NotEncodable(NexCacheError, TypeError):  # noqa: N818 - reads as what it says
    """A value that cannot be written down so that it comes back as it was; `kind` is its type's name."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class NotDecodable(NexCacheError, ValueError):  # noqa: N818 - reads as what it says
    """Bytes that are no value of the known types: corrupt, or of a class that is unknown here or has changed."""


class Types:
    """The classes that may be restored, by module and name; those of `others` too."""

    def __init__(self, types: Iterable[Any] = (), *, others: "Types | None" = None) -> None:
        self._known: dict[str, Registered | type] = {}
        self._others = others
        for each in types:
            self.learn(each)

    def register(self, kind: type, *, encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> None:
        """Make a class restorable by two functions: to something that can be written, and back from it."""
        self._known[name_of(kind)] = (kind, encode, decode)

    def learn(self, annotation: Any) -> None:
        """Make the classes that an annotation names restorable, and those that their fields name."""
        pending = [annotation]
        seen: set[int] = set()
        while pending:
            each = pending.pop()
            if id(each) in seen:
                continue
            seen.add(id(each))
            if isinstance(each, type) and typing.get_origin(each) is None:
                if _code_of(each) is not None:
                    self._known.setdefault(name_of(each), each)
                    pending += _fields_of(each)
                continue
            pending += typing.get_args(each)
            for alias in ("__value__", "__supertype__", "__bound__"):
                if not isinstance(each, str | tuple | list) and getattr(each, alias, None) is not None:
                    pending.append(getattr(each, alias))
            origin = typing.get_origin(each)
            if isinstance(origin, type):  # a generic dataclass or model
                pending.append(origin)
            if isinstance(each, list | tuple):
                pending += each

    def get(self, name: str) -> Registered | type | None:
        """Return what is known under a name."""
        found = self._known.get(name)
        return self._others.get(name) if found is None and self._others is not None else found


class ValueCodec:
    """Encodes and decodes values of msgpack's types, of the standard library's, and of the known classes."""

    def __init__(self, types: Types | None = None) -> None:
        self.types: Types = types if types is not None else Types()

    def encode(self, value: Any) -> bytes:
        """Write a value down; raises NotEncodable for one that would not come back as it was."""
        try:
            return _pack(value, self._extension)
        except NotEncodable:
            raise
        except (ValueError, TypeError, OverflowError, RecursionError, AttributeError) as error:
            raise NotEncodable(type(value).__name__, f"a value of type {type(value).__name__}: {error}") from error

    def decode(self, data: bytes) -> Any:
        """Read a value; a new one each time. Raises NotDecodable, whatever the bytes are."""
        try:
            return _unpack(data, self._restore)
        except NotDecodable:
            raise
        except Exception as error:
            raise NotDecodable(f"not a value: {type(error).__name__}") from error

    def _extension(self, value: Any) -> msgpack.ExtType:
        found = _standard(value, self._extension)
        if found is not None:
            return found
        kind = type(value)
        known = self.types.get(name_of(kind))
        if isinstance(known, tuple) and known[0] is kind:
            return _ext(Ext.CUSTOM, [name_of(kind), known[1](value)], self._extension)
        code = _code_of(kind)
        if code is not None and known is kind:
            return _ext(code, [name_of(kind), _content(code, value)], self._extension)
        hint = "return plain data" if code is None else "name the class in the function's return annotation"
        raise NotEncodable(
            kind.__qualname__,
            f"a value of type {kind.__qualname__} would not come back as it was: {hint}, or register the class",
        )

    def _restore(self, code: int, data: bytes) -> Any:
        content = _unpack(data, self._restore)
        if code < Ext.ENUM or code > Ext.CUSTOM:
            return _standard_from(code, content, self._restore)
        name, inner = content
        known = self.types.get(name)
        if known is None:
            raise NotDecodable(f"the class {name} is not known here: name it in the annotation, or register it")
        if isinstance(known, tuple) != (code == Ext.CUSTOM):
            raise NotDecodable(f"the class {name} is written differently here")
        return known[2](inner) if isinstance(known, tuple) else _rebuild(code, known, inner)


def encode_key(value: Any) -> bytes:
    """Write a value down so that no two different ones give the same bytes; raises NotEncodable.

    An object of another class is keyed by what its method `__cache_key__()` returns. Dicts in another order are
    another value, for a function may look at it.
    """
    try:
        data: bytes = _plain_packer.pack(value)
    except (TypeError, OverflowError):
        try:
            return _pack(value, _key_extension)
        except NotEncodable:
            raise
        except (ValueError, TypeError, OverflowError, RecursionError, AttributeError) as error:
            kind = type(value).__qualname__
            raise NotEncodable(kind, f"a value of type {kind} cannot be part of a key: {error}") from error
    except ValueError as error:  # nested too deeply
        raise NotEncodable(type(value).__qualname__, f"it cannot be part of a key: {error}") from error
    if b"\xc4" in data or b"\xc5" in data or b"\xc6" in data:
        _refuse_views(value)
    return data


def is_immutable(value: Any) -> bool:
    """Whether a value can be handed to several callers, because none of them can change it."""
    kind = type(value)
    if kind in _PLAIN or kind in _FIXED or isinstance(value, Enum):
        return True
    if kind in (datetime, time):
        return value.tzinfo is None or type(value.tzinfo) in (timezone, ZoneInfo)
    if kind is tuple or kind is frozenset:
        return all(map(is_immutable, value))
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return all(map(is_immutable, value))
    if dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return not hasattr(value, "__dict__") and all(
            is_immutable(getattr(value, field.name, None)) for field in dataclasses.fields(kind)
        )
    return False


def name_of(kind: type) -> str:
    """Name a class for the data."""
    return f"{kind.__module__}:{kind.__qualname__}"


# without a hook it runs no Python code, so that threads may share it
_plain_packer: Final = msgpack.Packer(strict_types=True, unicode_errors="surrogatepass", buf_size=4096)


def _pack(value: Any, default: Callable[[Any], Any]) -> bytes:
    data: bytes = msgpack.packb(value, default=default, strict_types=True, unicode_errors="surrogatepass")
    if any(mark in data for mark in _BINARY):
        _refuse_views(value)
    return data


def _unpack(data: bytes, hook: Callable[[int, bytes], Any]) -> Any:
    return msgpack.unpackb(data, ext_hook=hook, strict_map_key=False, unicode_errors="surrogatepass")


def _refuse_views(value: Any) -> None:
    """Raise for what msgpack writes as bytes although it is something else that can change."""
    pending = [value]
    while pending:
        each = pending.pop()
        kind = type(each)
        if kind is list:
            pending += each
        elif kind is dict:
            pending += each.values()
        elif kind is bytearray or kind is memoryview:
            raise NotEncodable(kind.__name__, f"a {kind.__name__} would come back as bytes: pass bytes(…) instead")


def _ext(code: Ext, content: Any, default: Callable[[Any], Any]) -> msgpack.ExtType:
    return msgpack.ExtType(int(code), _pack(content, default))


def _standard(value: Any, default: Callable[[Any], Any]) -> msgpack.ExtType | None:
    """Write the standard library's types: exactly these, no subclasses."""
    kind = type(value)
    if kind is tuple:
        return _ext(Ext.TUPLE, list(value), default)
    if kind is set or kind is frozenset:
        return _ext(Ext.SET if kind is set else Ext.FROZENSET, sorted(_pack(each, default) for each in value), default)
    if kind is int:  # beyond 64 bits
        return _ext(Ext.INT, hex(value), default)
    if kind is datetime or kind is time:
        zone = _zone(value.tzinfo)
        if zone is None:
            return None
        naive = value.replace(tzinfo=None).isoformat()
        return _ext(Ext.DATETIME if kind is datetime else Ext.TIME, [naive, value.fold, *zone], default)
    if kind is date:
        return _ext(Ext.DATE, value.isoformat(), default)
    if kind is timedelta:
        return _ext(Ext.TIMEDELTA, [value.days, value.seconds, value.microseconds], default)
    if kind is Decimal:
        return _ext(Ext.DECIMAL, str(value), default)
    if kind is UUID:
        return _ext(Ext.UUID, value.bytes, default)
    if kind is complex:
        return _ext(Ext.COMPLEX, [value.real, value.imag], default)
    if kind in _PATHS.values():
        return _ext(Ext.PATH, [kind.__name__, str(value)], default)
    return None


def _standard_from(code: int, content: Any, hook: Callable[[int, bytes], Any]) -> Any:
    match code:
        case Ext.TUPLE:
            return tuple(content)
        case Ext.SET:
            return {_unpack(each, hook) for each in content}
        case Ext.FROZENSET:
            return frozenset(_unpack(each, hook) for each in content)
        case Ext.INT:
            return int(content, 16)
        case Ext.DATETIME:
            return datetime.fromisoformat(content[0]).replace(fold=content[1], tzinfo=_zone_from(*content[2:]))
        case Ext.DATE:
            return date.fromisoformat(content)
        case Ext.TIME:
            return time.fromisoformat(content[0]).replace(fold=content[1], tzinfo=_zone_from(*content[2:]))
        case Ext.TIMEDELTA:
            return timedelta(*content)
        case Ext.DECIMAL:
            return Decimal(content)
        case Ext.UUID:
            return UUID(bytes=content)
        case Ext.PATH:
            return _PATHS[content[0]](content[1])
        case Ext.COMPLEX:
            return complex(*content)
        case _:
            raise NotDecodable(f"an extension of type {code}")


def _zone(zone: Any) -> list[Any] | None:
    """Write a time zone down; None for one that would not come back as it was."""
    if zone is None:
        return []
    if zone is UTC:
        return ["utc"]
    if type(zone) is timezone:
        return ["offset", *zone.__getinitargs__()]  # type: ignore[attr-defined]
    if type(zone) is ZoneInfo and zone.key is not None:
        return ["zone", zone.key]
    return None


def _zone_from(kind: str | None = None, *rest: Any) -> Any:
    match kind:
        case None:
            return None
        case "utc":
            return UTC
        case "offset":
            return timezone(*rest)
        case "zone":
            return ZoneInfo(*rest)
        case _:
            raise NotDecodable("a time zone of an unknown kind")


def _code_of(kind: type) -> Ext | None:
    """Return how instances of a class are written, if they can be taken apart."""
    if issubclass(kind, Enum):
        return Ext.ENUM
    if hasattr(kind, "__pydantic_fields__"):
        return Ext.MODEL
    if dataclasses.is_dataclass(kind):
        return Ext.DATACLASS
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return Ext.NAMED
    return None


def _content(code: Ext, value: Any) -> Any:
    """Take an instance apart."""
    kind = type(value)
    match code:
        case Ext.ENUM:
            return [value.name] if value.name in kind.__members__ else [None, value.value]
        case Ext.NAMED:
            return list(value)
        case Ext.DATACLASS:
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
        case _:
            state = value.__getstate__()
            fields = {name: each for name, each in state["__dict__"].items() if name in kind.__pydantic_fields__}
            set_ = sorted(state["__pydantic_fields_set__"])
            return [fields, state["__pydantic_extra__"], set_, state["__pydantic_private__"]]


def _rebuild(code: int, kind: type, content: Any) -> Any:
    """Put an instance together again, field by field: no code of the class runs that it ran when it was made."""
    if _code_of(kind) != code:
        raise NotDecodable(f"the class {name_of(kind)} is of another kind here")
    match code:
        case Ext.ENUM:
            return kind[content[0]] if content[0] is not None else kind(content[1])  # type: ignore[index]
        case Ext.NAMED:
            _same(kind, len(content) == len(kind._fields))  # type: ignore[attr-defined]
            return tuple.__new__(kind, content)
        case Ext.DATACLASS:
            _same(kind, content.keys() == {field.name for field in dataclasses.fields(kind)})
            instance: object = object.__new__(kind)
            for name, value in content.items():
                object.__setattr__(instance, name, value)
            return instance
        case _:
            fields, extra, names, private = content
            _same(kind, fields.keys() == kind.__pydantic_fields__.keys())  # type: ignore[attr-defined]
            model: Any = object.__new__(kind)
            model.__setstate__(
                {
                    "__dict__": fields,
                    "__pydantic_extra__": extra,
                    "__pydantic_fields_set__": set(names),
                    "__pydantic_private__": private,
                }
            )
            return model


def _same(kind: type, condition: bool) -> None:
    if not condition:
        raise NotDecodable(f"the class {name_of(kind)} has other fields than when the value was written")


def _fields_of(kind: type) -> list[Any]:
    """Return the annotations of a class's fields, as far as they can be resolved."""
    try:
        return list(typing.get_type_hints(kind).values())
    except Exception:  # noqa: BLE001 - annotations may name anything; what stays unknown is refused when it is written
        return []


def _key_extension(value: Any) -> msgpack.ExtType:
    kind = type(value)
    own = getattr(kind, "__cache_key__", None)
    if own is not None:
        return _ext(Ext.KEYED, [name_of(kind), own(value)], _key_extension)
    found = _standard(value, _key_extension)
    if found is not None:
        return found
    if kind is datetime or kind is time:
        zone = [str(value.tzinfo), value.tzname(), value.utcoffset()]
        return _ext(
            Ext.ZONED, [value.replace(tzinfo=None), value.fold, name_of(type(value.tzinfo)), zone], _key_extension
        )
    code = _code_of(kind)
    if code is not None:
        return _ext(code, [name_of(kind), _content(code, value)], _key_extension)
    for base, plain in _BUILTINS.items():
        if isinstance(value, base):
            return _ext(Ext.SUBCLASS, [name_of(kind), plain(value)], _key_extension)
    raise NotEncodable(kind.__qualname__, f"a value of type {kind.__qualname__} cannot be part of a key")
