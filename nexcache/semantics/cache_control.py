"""Cache-Control (RFC 9111 §5.2): directives as they are, malformed or repeated ones read the safe way."""

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, TypeAlias

from nexcache.semantics.headers import values

# an unquoted argument ends at white space and `;` too, so that no directive hides behind a missing comma
_DIRECTIVE = re.compile(rb'([^\s,;="]+)(?:[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^\s,;"]*))?', re.DOTALL)

LONGEST_FIELD: Final = 2048
"""Bytes of a field that is parsed."""


def directives(headers: Iterable[tuple[bytes, bytes]], field: bytes = b"cache-control") -> Mapping[bytes, bytes | None]:
    """Parse every Cache-Control field of a message into lower-cased names and their arguments.

    A directive that appears with and without an argument counts as the one without, which is the more
    restrictive reading of `private` and `no-cache`; the arguments of one that appears twice are one list. Never
    raises. A field too long to be meant seriously forbids all.
    """
    found: dict[bytes, bytes | None] = {}
    for value in values(headers, field):
        if len(value) > LONGEST_FIELD:
            found |= {b"no-store": None, b"no-cache": None}
            continue
        for match in _DIRECTIVE.finditer(value):
            name, argument = match.group(1).lower(), match.group(2)
            argument = argument.strip(b'" \t') if argument is not None else None
            before = found.get(name, b"")
            if before is None or argument is None:
                found[name] = None
            else:
                found[name] = before + b"," + argument if before else argument
    return MappingProxyType(found)


LARGEST: Final = 2**31
"""Seconds that stand for any larger number (RFC 9111 §1.2.2)."""


class Malformed(Enum):
    """What stands for an argument that cannot be relied on."""

    ARGUMENT = "argument"


MALFORMED: Final = Malformed.ARGUMENT
Seconds: TypeAlias = int | Malformed | None
"""A number of seconds; None where the directive is not there, `MALFORMED` where its value cannot be relied on."""

_QUOTED_OR_NOT: Final = re.compile(rb'(?:"(?:[^"\\]|\\.)*"|[^,])+', re.DOTALL)
_PAIR: Final = re.compile(rb'([!#$%&\'*+.^_`|~0-9A-Za-z-]+)(?:=(?:"(\d+)"|(\d+)))?')


def delta_seconds(headers: Iterable[tuple[bytes, bytes]], *names: bytes, field: bytes = b"cache-control") -> Seconds:
    """Read the first of the directives `names` that is there as a number of seconds (§1.2.2). Never raises.

    What is no number, or is there twice with two values, is `MALFORMED`: whoever asks takes the safe side (§4.2.1).
    """
    wanted: dict[bytes, set[int | Malformed]] = {name: set() for name in names}
    for value in values(headers, field):
        if len(value) > LONGEST_FIELD:
            return MALFORMED
        for piece in _QUOTED_OR_NOT.findall(value):
            text = piece.strip(b" \t")
            name = re.split(rb"[\s=;]", text, maxsplit=1)[0].lower()
            if name in wanted:
                match = _PAIR.fullmatch(text)
                number = (match[2] or match[3]) if match else None
                wanted[name].add(MALFORMED if number is None else min(int(number[:20]), LARGEST))
    for name in names:
        if found := wanted[name]:
            return found.pop() if len(found) == 1 else MALFORMED
    return None


def field_names(argument: bytes | None) -> frozenset[bytes] | None:
    """Read the argument of `private` or `no-cache`; None: it is the whole response that is meant (§5.2.2.4, §5.2.2.7).

    An argument that is no list of field names means the whole response, too.
    """
    names = [name.strip(b" \t").lower() for name in (argument or b"").split(b",")]
    names = [name for name in names if name]
    return frozenset(names) if names and all(_PAIR.fullmatch(name) for name in names) else None
