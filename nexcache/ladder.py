"""The ladder of states in which a cache still answers, from all well to switched off. Pure."""

from collections.abc import Callable
from enum import StrEnum
from typing import Final

SLOW: Final = 0.5
"""The share of the time that a store may take, from which on it counts as slow."""


class Rung(StrEnum):
    """A state of the cache, worst last; `GET /health`, the metric and `Cache-Status` say it by this name."""

    OK = "ok"
    BACKPLANE_LOST = "backplane-lost"
    """Other nodes' invalidations are noticed when a lease ends, not at once."""
    SLOW = "slow"
    """The store takes most of the time that requests wait for it."""
    DOWN = "down"
    """The store is away or refuses; this process answers from what it has filled itself, for a short time."""
    DISABLED = "disabled"


class Ladder:
    """Tells the state of a cache without asking its store."""

    def __init__(self, known: Callable[[bool], Rung]) -> None:
        self._known = known
        self.enabled: Callable[[], bool] = lambda: True
        """Asks whether the cache is used at all."""

    @property
    def rung(self) -> Rung:
        """The state, as far as is known."""
        return self._known(self.enabled())

    def rungs(self) -> dict[str, bool]:
        """Return every state, and whether it is that."""
        rung = self.rung
        return {each.value: each is rung for each in Rung}


def rung_of(*, enabled: bool, available: bool, backplane: bool | None, response_time: float, timeout: float) -> Rung:
    """Return the state; times in seconds, `backplane` None where there is none to lose."""
    if not enabled:
        return Rung.DISABLED
    if not available:
        return Rung.DOWN
    if response_time > timeout * SLOW:
        return Rung.SLOW
    return Rung.BACKPLANE_LOST if backplane is False else Rung.OK
