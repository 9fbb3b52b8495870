"""Generations as tokens: invalidated softly, and compared. Pure."""

from typing import Final

HARD: Final = 16
"""Bytes of a token that decide whether what was captured under it may be used at all."""
_COUNT: Final = 3
_TIME: Final = 5
UNTOUCHED: Final = bytes(_COUNT + _TIME)
"""The other bytes of a new token: how often it was invalidated softly, and when last."""
_COUNTS: Final = 1 << 8 * _COUNT
CLOCK: Final = 1 << 8 * _TIME
"""A store's clock counts milliseconds up to here, and begins anew (after 34 years)."""


def softened(token: bytes, now: int) -> bytes:
    """Invalidate a token softly, at an instant of the store's clock."""
    count = (int.from_bytes(token[HARD : HARD + _COUNT]) + 1) % _COUNTS
    return token[:HARD] + count.to_bytes(_COUNT) + (now % CLOCK).to_bytes(_TIME) + token[HARD + _COUNT + _TIME :]


def stale_since(old: bytes, new: bytes, captured: int) -> int | None:
    """Say since when (on the store's clock) what was captured as `old` is stale, now that the token is `new`.

    None: it was invalidated for good. Where there were several soft invalidations, only the time of the last is
    known: then it counts as stale since it was `captured`, which is not later than the first.
    """
    if old[:HARD] != new[:HARD] or old[HARD + _COUNT + _TIME :] != new[HARD + _COUNT + _TIME :] or len(old) < HARD:
        return None
    counts = [int.from_bytes(each[HARD : HARD + _COUNT]) for each in (old, new)]
    once = (counts[0] + 1) % _COUNTS == counts[1]
    return int.from_bytes(new[HARD + _COUNT : HARD + _COUNT + _TIME]) if once else captured
