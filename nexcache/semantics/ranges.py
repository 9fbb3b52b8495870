"""Ranges of bytes (RFC 9110 §14). Pure."""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

_SPEC: Final = re.compile(rb"[ \t]*(?:(\d+)-(\d*)|-(\d+))[ \t]*")
_UNIT: Final = re.compile(rb"bytes=(.*)", re.IGNORECASE | re.DOTALL)
_MOST: Final = 16
"""Ranges of one request; who asks for more is sent the whole (§14.2)."""
_LONGEST: Final = 1024


@dataclass(frozen=True, slots=True)
class Unsatisfiable:
    """None of the ranges is in the representation (RFC 9110 §15.5.17)."""


def ranges(value: bytes, size: int) -> tuple[tuple[int, int], ...] | Unsatisfiable | None:
    """Read a Range field as (first, last) positions in `size` bytes; None: it does not count, the whole is sent.

    Ranges that overlap, that are many, or of another unit, do not count (§14.2). Never raises.
    """
    match = _UNIT.fullmatch(value.strip(b" \t"))
    if match is None or len(value) > _LONGEST:
        return None
    found: list[tuple[int, int]] = []
    specs = [spec for spec in match[1].split(b",") if spec.strip(b" \t")]
    if not specs or len(specs) > _MOST:
        return None
    for spec in specs:
        parsed = _SPEC.fullmatch(spec)
        if parsed is None:
            return None
        if parsed[3] is not None:
            first, last = max(0, size - int(parsed[3])), size - 1
        else:
            first, last = int(parsed[1]), min(int(parsed[2]), size - 1) if parsed[2] else size - 1
            if parsed[2] and int(parsed[2]) < int(parsed[1]):
                return None
        if first <= last:
            found.append((first, last))
    if not found:
        return Unsatisfiable()
    ordered = sorted(found)
    if any(later[0] <= earlier[1] for earlier, later in pairwise(ordered)):
        return None
    return tuple(found)
