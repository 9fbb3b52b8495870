"""What was worked out of a request, and what the store answered to it, and need not be again while both stay the same.

Kept for its speed alone, where nothing else is held in memory: a request that is known is still looked up in the
store, and is served only while its entry there bears the MAC that was verified before, and its generations are
the same.
"""

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Final

from nexcache.key import CacheKey
from nexcache.semantics.reuse import Prepared
from nexcache.telemetry.counts import OperationCounts

if TYPE_CHECKING:
    from nexcache.refresh import Target

Raw = tuple[Hashable, ...]

_MOST: Final = 4_096
_MOST_BYTES: Final = 16 * 1024 * 1024
_LONGEST: Final = 512 * 1024


class Known:
    """A request that was looked up before."""

    __slots__ = (
        "asked",
        "before",
        "counts",
        "held",
        "key",
        "noted_at",
        "prepared",
        "size",
        "target",
        "under_way",
    )

    def __init__(self, asked: CacheKey, counts: OperationCounts, target: "Target", noted_at: float) -> None:
        self.asked: CacheKey = asked
        self.key: CacheKey = asked
        """With what else its answer was known to depend on."""
        self.counts: OperationCounts = counts
        self.target: Target = target
        """What it asked for, without who asked."""
        self.noted_at: float = noted_at
        """When it was last noted as recent."""
        self.before: Any = None
        """What the store answered when its entry was last verified, and was fresh, as the store knows it."""
        self.held: int = 0
        """Bytes of that entry."""
        self.prepared: Prepared | None = None
        self.under_way: Any = None
        """The command that looked it up last, as the store knows it."""
        self.size: int = 0


class KnownRequests:
    """The requests that are known, by all that they are made of; bounded, the oldest first to go."""

    def __init__(self) -> None:
        self._known: dict[Raw, Known] = {}
        self._bytes = 0
        self.get = self._known.get
        """Return what is known of a raw request."""

    def __len__(self) -> int:
        return len(self._known)

    def keep(self, raw: Raw, known: Known) -> None:
        """Remember a request, unless it holds too much."""
        self._drop(raw)
        known.size = 3 * len(known.asked.request) + known.target.size + known.held
        if known.size > _LONGEST:
            return
        self._known[raw] = known
        self._bytes += known.size
        while len(self._known) > _MOST or self._bytes > _MOST_BYTES:
            self._drop(next(iter(self._known)))

    def forget(self, tenant: str) -> None:
        """Forget a tenant's requests."""
        for raw in [raw for raw, known in self._known.items() if known.asked.tenant == tenant]:
            self._drop(raw)

    def _drop(self, raw: Raw) -> None:
        dropped = self._known.pop(raw, None)
        if dropped is not None:
            self._bytes -= dropped.size
