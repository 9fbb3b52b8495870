"""Which answers are worth a place: a tenant that floods the cache with new keys keeps only those asked for again.

Every tenant may have so many answers of keys that nobody has asked for lately stored per minute. Beyond that an
answer is stored at its key's second miss: who sends random queries pays for them alone, and neither memory nor the
store fills up with what nobody will read. In this process only, and exact there.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from nexcache.stores.memory import Bounded, tenant_of

WINDOW: Final = 60.0
"""Seconds in which the new keys of a tenant are counted."""
_REMEMBERED: Final = 600.0
"""Seconds for which a key is not new."""
_MOST_KEYS: Final = 50_000
_MOST_BYTES: Final = 16 * 1024 * 1024
UNBOUNDED: Final = 0


class Admission:
    """Decides whether an answer is stored. `most` new keys per tenant and minute; 0: all of them."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._seen: Bounded[None] = Bounded(max_bytes=_MOST_BYTES, max_entries=_MOST_KEYS, clock=clock, owner=tenant_of)
        """Shared fairly: whoever holds most makes room, so that no flood makes another tenant's keys new again."""
        self._new: Counter[bytes] = Counter()
        self._since = clock()

    def admits(self, key: bytes) -> bool:
        """Whether the answer of this key may be stored; notes that it was asked for."""
        if self._most == UNBOUNDED:
            return True
        known = key in self._seen
        self._seen.put(key, None, size=0, lifetime=_REMEMBERED)
        if known:
            return True
        now = self._clock()
        if now - self._since >= WINDOW:
            self._new.clear()
            self._since = now
        tenant = tenant_of(key)
        self._new[tenant] += 1
        return self._new[tenant] <= self._most
