"""The ladder of states in which a cache still answers, from all well to switched off. Pure."""

from enum import StrEnum
from typing import Final

SLOW: Final = 0.5
"""The share of the time that a store may take, from which on it counts as slow."""


class Rung(StrEnum):
    """A state of the cache, worst last; `GET /health` and the events say it by this name."""

    OK = "ok"
    BACKPLANE_LOST = "backplane-lost"
    """Other nodes' invalidations are noticed when a lease ends, not at once."""
    SLOW = "slow"
    """The store takes most of the time that requests wait for it."""
    DOWN = "down"
    """The store is away or refuses; this process answers from what it has filled itself, for a short time."""
    DISABLED = "disabled"


def rung_of(*, enabled: bool, available: bool, backplane: bool | None, response_time: float, timeout: float) -> Rung:
    """Return the state; times in seconds, `backplane` None where there is none to lose."""
    if not enabled:
        return Rung.DISABLED
    if not available:
        return Rung.DOWN
    if response_time > timeout * SLOW:
        return Rung.SLOW
    return Rung.BACKPLANE_LOST if backplane is False else Rung.OK
