"""Which answers are worth a place: a tenant that floods the cache with new keys keeps only those asked for again.

Every tenant may have so many answers of keys that nobody has asked for lately stored per minute. Beyond that an
answer is stored at its key's second miss: who sends random queries pays for them alone, and neither memory nor the
store fills up with what nobody will read. In this process only, and exact there.
"""

import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Final

from nexcache.stores.memory import tenant_of

WINDOW: Final = 60.0
"""Seconds in which the new keys of a tenant are counted."""
REMEMBERED: Final = 600.0
"""Seconds for which a key is not new, at least; at most twice as long."""
MOST_KEYS: Final = 50_000
_ENOUGH: Final = MOST_KEYS * 7 // 8
"""As many are left where room had to be made, so that it is made seldom."""
UNBOUNDED: Final = 0


class _Seen:
    """The keys that a tenant asked for: those of this period, in their order, and those of the one before.

    Of each only Python's hash, which nobody outside can aim at: were two the same, one answer more would be stored.
    """

    __slots__ = ("_before", "_since", "_these")

    def __init__(self, since: float) -> None:
        self._these: dict[int, None] = {}
        self._before: dict[int, None] = {}
        self._since = since

    def __len__(self) -> int:
        return len(self._these) + len(self._before)

    def note(self, key: int, now: float) -> bool:
        """Note a key; whether it was noted before."""
        if now - self._since >= REMEMBERED:
            self._before = self._these if now - self._since < 2 * REMEMBERED else {}
            self._these, self._since = {}, now
        if key in self._these:
            return True
        known = key in self._before
        self._before.pop(key, None)
        self._these[key] = None
        return known

    def forget_half(self) -> None:
        """Forget what was asked for longest ago."""
        if self._before:
            self._before = {}
        else:
            self._these = dict.fromkeys(islice(self._these, (len(self._these) + 1) // 2, None))


class Admission:
    """Decides whether an answer is stored. `most` new keys per tenant and minute; 0: all of them."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._seen: dict[bytes, _Seen] = {}
        self._held = 0
        self._new: Counter[bytes] = Counter()
        self._since = clock()

    def __len__(self) -> int:
        """How many keys are remembered: never more than `MOST_KEYS`."""
        return self._held

    def admits(self, key: bytes) -> bool:
        """Whether the answer of this key may be stored; notes that it was asked for."""
        if self._most == UNBOUNDED:
            return True
        tenant, now = tenant_of(key), self._clock()
        seen = self._seen.get(tenant)
        if seen is None:
            seen = self._seen[tenant] = _Seen(now)
        held = len(seen)
        known = seen.note(hash(key), now)
        self._held += len(seen) - held
        if self._held > MOST_KEYS:
            self._make_room()
        if known:
            return True
        if now - self._since >= WINDOW:
            self._new.clear()
            self._since = now
        self._new[tenant] += 1
        return self._new[tenant] <= self._most

    def _make_room(self) -> None:
        """Let those that have most forget: no flood makes another tenant's keys new again."""
        for tenant, seen in sorted(self._seen.items(), key=lambda each: len(each[1]), reverse=True):
            held = len(seen)
            seen.forget_half()
            self._held -= held - len(seen)
            if not len(seen):
                del self._seen[tenant]
            if self._held <= _ENOUGH:
                return
