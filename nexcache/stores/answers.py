"""Whether an answer can be one to a command: on a connection whose bytes were changed, everything is shifted. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

_BYTES_OR_NONE: Final[frozenset[type]] = frozenset({bytes, type(None)})


def _values(command: Sequence[Any], reply: object) -> bool:
    """As many as there were keys."""
    return type(reply) is list and len(reply) == len(command) - 1 and set(map(type, reply)) <= _BYTES_OR_NONE


def _flags(command: Sequence[Any], reply: object) -> bool:
    """As many as there were members, after the key."""
    return type(reply) is list and len(reply) == len(command) - 2 and set(map(type, reply)) <= {int}


def _texts(_: Sequence[Any], reply: object) -> bool:
    return type(reply) is list and set(map(type, reply)) <= {bytes}


def _pairs(command: Sequence[Any], reply: object) -> bool:
    return _texts(command, reply) and isinstance(reply, list) and len(reply) % 2 == 0


def _time(command: Sequence[Any], reply: object) -> bool:
    """Seconds, and microseconds."""
    if not _texts(command, reply) or not isinstance(reply, list):
        return False
    return len(reply) == 2 and reply[0].isdigit() and reply[1].isdigit()  # noqa: PLR2004


_OF_TYPE: Final[Mapping[object, frozenset[type]]] = {
    **dict.fromkeys(
        ("PTTL", "SADD", "UNLINK", "PUBLISH", "HSET", "HSETNX", "HINCRBY", "PEXPIRE", "PFADD", "PFCOUNT", "STRLEN"),
        frozenset({int}),
    ),
    **dict.fromkeys(("SET", "HGET"), _BYTES_OR_NONE),
}
_FITS: Final[Mapping[object, Callable[[Sequence[Any], object], bool]]] = {
    "MGET": _values,
    "SMISMEMBER": _flags,
    "SMEMBERS": _texts,
    "HGETALL": _pairs,
    "TIME": _time,
}


def all_fit(commands: Sequence[Sequence[Any]], replies: Sequence[object]) -> bool:
    """Whether each is an answer to its command, and none an error."""
    for command, reply in zip(commands, replies, strict=True):
        types = _OF_TYPE.get(command[0])
        if types is not None:
            if type(reply) not in types:
                return False
            continue
        check = _FITS.get(command[0])
        if isinstance(reply, Exception) if check is None else not check(command, reply):
            return False
    return True


def fits(command: Sequence[Any], reply: object) -> bool:
    """Whether this can be the answer to a command, as far as that can be told from its form."""
    types, check = _OF_TYPE.get(command[0]), _FITS.get(command[0])
    return (types is None or type(reply) in types) and (check is None or check(command, reply))
