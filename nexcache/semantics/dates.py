"""HTTP-date (RFC 9110 §5.6.7): its three formats, and nothing else. Pure."""

import re
from calendar import monthrange, timegm
from email.utils import formatdate
from typing import Final

_MONTHS: Final = b"jan feb mar apr may jun jul aug sep oct nov dec".split()
_DAY: Final = rb"(?:mon|tue|wed|thu|fri|sat|sun)"
_TIME: Final = rb"(\d\d):(\d\d):(\d\d)"
_MONTH: Final = rb"(" + b"|".join(_MONTHS) + rb")"
_IMF: Final = re.compile(_DAY + rb", (\d\d) " + _MONTH + rb" (\d{4}) " + _TIME + rb" gmt")
_RFC850: Final = re.compile(
    rb"(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday), (\d\d)-" + _MONTH + rb"-(\d\d) " + _TIME + rb" gmt"
)
_ASCTIME: Final = re.compile(_DAY + rb" " + _MONTH + rb" (\d\d| \d) " + _TIME + rb" (\d{4})")
_CENTURY: Final = 100
_AHEAD: Final = 50
_YEAR: Final = 31_556_952
"""Seconds."""


def http_date(value: bytes, *, now: float) -> float | None:
    """Read a date as seconds since the epoch; None for what is none. Never raises.

    Case does not matter, but a zone that is not GMT does (RFC 9111 §4.2). A year of two digits that seems more than
    50 years ahead of `now` is one of the century before.
    """
    text = value.strip(b" \t").lower()
    if match := _IMF.fullmatch(text):
        day, month, year, *clock = match.groups()
    elif match := _ASCTIME.fullmatch(text):
        month, day, *clock, year = match.groups()
    elif match := _RFC850.fullmatch(text):
        day, month, short, *clock = match.groups()
        this = 1970 + int(now) // _YEAR
        full = this - this % _CENTURY + int(short)
        year = b"%d" % (full - _CENTURY if full > this + _AHEAD else full)
    else:
        return None
    hour, minute, second = map(int, clock)
    numbers = int(year), _MONTHS.index(month) + 1, int(day)
    if not numbers[0] or not 1 <= numbers[2] <= monthrange(*numbers[:2])[1]:
        return None
    if hour > 23 or minute > 59 or second > 60:  # noqa: PLR2004
        return None
    return float(timegm((*numbers, hour, minute, min(second, 59))))  # a leap second is the one before it


def format_date(instant: float) -> bytes:
    """Write a date in the one format that is generated."""
    return formatdate(instant, usegmt=True).encode()
