"""What caching an operation saves, and whether it pays. Pure.

A computation is saved by every answer that came from the cache, and by every request that waited for another's. Time
is what those who were answered from the cache would have waited for the app, at the mean of those who did.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from nexcache.telemetry.counts import OperationCounts

_FEWEST: Final = 20
"""Requests below which nothing is said."""
_SELDOM: Final = 0.2
"""The share of hits below which an operation is seldom hit."""
_WORTH: Final = 0.001
"""Seconds that a hit must save to be worth keeping an entry for."""


class Verdict(StrEnum):
    """Whether caching an operation pays."""

    PAYS = "pays"
    SELDOM_HIT = "seldom-hit"
    """Most entries are gone, or of no use, before anybody asks again: look at lifetime, invalidations and key."""
    CHEAP = "cheap"
    """The app answers about as fast as the cache does."""
    TOO_FEW = "too-few"
    """There were too few requests, hits or misses to tell."""


@dataclass(frozen=True, slots=True)
class Saving:
    """What caching saved."""

    computations: int
    """Calls of the app that were not needed."""
    seconds: float
    """What clients did not have to wait."""
    verdict: Verdict

    def as_dict(self) -> dict[str, object]:
        """Give what the statistics say of it."""
        return {"computations": self.computations, "seconds": round(self.seconds, 3), "verdict": self.verdict.value}


def saving(counts: OperationCounts) -> Saving:
    """Say what the cache saved for these requests."""
    found = counts.hits + counts.stale
    gain = counts.miss_latency.mean - counts.hit_latency.mean
    measured = counts.miss_latency.count > 0 and counts.hit_latency.count > 0
    seconds = found * max(0.0, gain) if measured else 0.0
    return Saving(found + counts.coalesced, seconds, _verdict(found, counts.misses, gain, measured=measured))


def _verdict(found: int, misses: int, gain: float, *, measured: bool) -> Verdict:
    asked = found + misses
    if asked < _FEWEST:
        return Verdict.TOO_FEW
    if found / asked < _SELDOM:
        return Verdict.SELDOM_HIT
    if not measured:
        return Verdict.TOO_FEW
    return Verdict.CHEAP if gain < _WORTH else Verdict.PAYS
