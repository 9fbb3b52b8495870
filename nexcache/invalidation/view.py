"""What this node knows of generations, and for how long it may trust it.

A generation may be trusted for one lease from the instant at which the read that returned it was *sent*: whatever
is invalidated after that instant becomes visible here one lease later at the latest, with or without messages.
Messages only shorten the delay, so none of them has to arrive. The clock counts the time that the machine or the
process sleeps, so that who was suspended wakes up trusting nothing.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

REGISTERED_FOR: Final = 0.5
"""Seconds for which a node may take reads into its view after it has last registered itself."""
_BARRIERS_KEPT: Final = 5.0
"""Seconds; longer than any read can be under way."""


def boottime() -> float:
    """Return seconds of a clock that goes on during suspension, where the system has one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


if not hasattr(time, "CLOCK_BOOTTIME"):  # pragma: no cover - macOS, whose monotonic clock stops during sleep
    boottime = time.time


class Trusted(NamedTuple):
    """A generation as it was read, and until when it may be relied on."""

    token: bytes
    until: float


class View:
    """The generations that were read lately.

    `lease` is in seconds. A *barrier* marks the instant at which a generation is known to have changed: a read that
    was sent before it never enters the view, however late its reply comes.
    """

    def __init__(self, *, lease: float, clock: Callable[[], float] = boottime, most: int = 200_000) -> None:
        self.lease = lease
        self.clock = clock
        self.changes: int = 0
        """Rises with every change after which generations that were current may no longer be."""
        self._trusted: dict[bytes, Trusted] = {}
        self._barriers: dict[bytes, float] = {}
        self._most = most
        self._pruned_at = clock()
        self._used: set[bytes] = set()
        self._registered_at = float("-inf")
        self._barrier_for_all = float("-inf")

    def __len__(self) -> int:
        """How many generations are held, trusted or not."""
        return len(self._trusted)

    def good_until(self, generations: Iterable[tuple[bytes, bytes]]) -> float | None:
        """Return the instant until which all of these generations may be relied on, as long as `changes` stays.

        0 if one of them has changed; None where trust has merely run out. At most a quarter of a lease from now, so
        that what is in use is noted as used before each renewal.
        """
        now, trusted, use = self.clock(), self._trusted, self._used.add
        until = now + self.lease / 4
        for key, token in generations:
            known = trusted.get(key)
            if known is None:
                return None
            if known.token != token:
                return 0.0
            until = min(until, known.until)
            use(key)
        return until if until > now else None

    def tokens(self, keys: Sequence[bytes]) -> tuple[bytes, ...] | None:
        """Return the generations of these keys, if every one of them may be trusted now."""
        trusted, now, found = self._trusted, self.clock(), []
        for key in keys:
            known = trusted.get(key)
            if known is None:
                return None
            self._used.add(key)
            if known.until <= now:
                return None
            found.append(known.token)
        return tuple(found)

    def registered(self, *, sent_at: float) -> None:
        """Note that this node stands in the register since a command that was sent at this instant.

        Without it nothing enters the view: whoever invalidates strictly waits for the nodes of the register only.
        """
        self._registered_at = max(self._registered_at, sent_at)

    def observe(self, keys: Sequence[bytes], tokens: Sequence[bytes | None], *, sent_at: float) -> None:
        """Take over what a read returned that was sent at this instant of the view's clock."""
        self._prune()
        if not 0 <= sent_at - self._registered_at < REGISTERED_FOR:
            return
        until = sent_at + self.lease
        for key, token in zip(keys, tokens, strict=True):
            if max(self._barriers.get(key, self._barrier_for_all), self._barrier_for_all) >= sent_at:
                continue
            known = self._trusted.get(key)
            if known is not None and known.until > until:
                continue  # a later read has been here before this reply
            if known is not None and known.token != token:
                self.changes += 1
            if token is None:
                self._trusted.pop(key, None)
            else:
                self._trusted[key] = Trusted(token, until)

    def invalidated(self, keys: Iterable[bytes]) -> None:
        """Raise a barrier: these generations changed, at this instant or before."""
        self._prune()  # where nobody reads any more, messages come all the same
        now = self.clock()
        self.changes += 1
        for key in keys:
            self._trusted.pop(key, None)
            self._barriers[key] = now

    def distrust(self) -> None:
        """Trust nothing any more: something happened that no barrier describes."""
        self.changes += 1
        self._trusted.clear()
        self._barrier_for_all = self.clock()

    def used(self) -> tuple[bytes, ...]:
        """Return the keys that were relied on since the last call, to be read again before their lease ends."""
        used, self._used = self._used, set()
        return tuple(used & self._trusted.keys())

    def _prune(self) -> None:
        now = self.clock()
        if now - self._pruned_at < _BARRIERS_KEPT and len(self._trusted) <= self._most:
            return
        self._pruned_at = now
        self._trusted = {key: known for key, known in self._trusted.items() if known.until > now}
        self._barriers = {key: at for key, at in self._barriers.items() if now - at < _BARRIERS_KEPT}
        if len(self._trusted) > self._most:
            self._trusted.clear()
