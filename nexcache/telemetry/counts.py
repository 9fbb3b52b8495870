"""Plain integers per tenant and operation: what the statistics and the observable instruments read.

Counting on the path of a hit must cost nanoseconds, so nothing here locks, allocates or knows a metrics API.
One event loop's thread writes; any thread may read, and sees each integer whole but not all at one instant.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

from nexcache.telemetry.names import Bypass, Tier

_GROWTH: Final = 1.25
_BOUNDS: Final = tuple(accumulate(range(79), lambda bound, _: bound * _GROWTH, initial=1e-6))
"""Upper bounds in seconds, 1 µs to about 45 s: a percentile is right to within a quarter of its value."""

OTHER: Final = "_other"
"""The word for everything beyond a bound: operations here, tenants on a metric."""

OTHER_TENANTS: Final = "\0_other"
"""The tenants beyond the bound. No tenant can be called so (control characters are refused): none reads their sum."""


class Latency:
    """A histogram of durations in seconds, with the exact count and sum."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets: list[int] = [0] * (len(_BOUNDS) + 1)
        self.total: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.buckets[bisect_left(_BOUNDS, seconds)] += 1
        self.total += seconds

    @property
    def count(self) -> int:
        """How many were counted."""
        return sum(self.buckets)

    @property
    def mean(self) -> float:
        """The mean in seconds; 0 when nothing was counted."""
        count = self.count
        return self.total / count if count else 0.0

    def quantile(self, fraction: float) -> float:
        """Return an upper bound in seconds of the given quantile, at most a quarter too large."""
        wanted = fraction * self.count
        seen = 0
        for index, number in enumerate(self.buckets):
            seen += number
            if number and seen >= wanted:
                return _BOUNDS[min(index, len(_BOUNDS) - 1)]
        return 0.0


class OperationCounts:
    """What happened to the requests of one tenant's operation in this process."""

    __slots__ = (
        "bypasses",
        "coalesced",
        "errors",
        "fallback_hits",
        "hit_latency",
        "invalidations",
        "memory_hits",
        "miss_latency",
        "misses",
        "redis_hits",
        "shadow_checks",
        "shadow_wrong",
        "stale",
        "stored_fallback",
        "stored_memory",
        "stored_redis",
    )

    def __init__(self) -> None:
        self.memory_hits: int = 0
        self.redis_hits: int = 0
        self.fallback_hits: int = 0
        self.misses: int = 0
        self.stale: int = 0
        self.errors: int = 0
        self.coalesced: int = 0
        self.invalidations: int = 0
        self.stored_memory: int = 0
        self.stored_redis: int = 0
        self.stored_fallback: int = 0
        self.shadow_checks: int = 0
        self.shadow_wrong: int = 0
        self.bypasses: dict[Bypass, int] = dict.fromkeys(Bypass, 0)
        self.hit_latency: Latency = Latency()
        self.miss_latency: Latency = Latency()

    @property
    def hits(self) -> int:
        """Requests answered with a fresh stored response."""
        return self.memory_hits + self.redis_hits + self.fallback_hits

    @property
    def requests(self) -> int:
        """Requests that asked for this operation, bypasses included."""
        return self.hits + self.misses + self.stale + self.errors + sum(self.bypasses.values())

    def stored(self, tier: Tier) -> None:
        """Count one stored entry."""
        match tier:
            case Tier.MEMORY:
                self.stored_memory += 1
            case Tier.REDIS:
                self.stored_redis += 1
            case Tier.FALLBACK:
                self.stored_fallback += 1

    def vector(self) -> list[int]:
        """Write all counts down as integers in the order of `FIELDS`, durations in microseconds."""
        return [
            *(getattr(self, name) for name in _PLAIN),
            *self.bypasses.values(),
            *(int(latency.total * 1e6) for latency in (self.hit_latency, self.miss_latency)),
            *self.hit_latency.buckets,
            *self.miss_latency.buckets,
        ]

    @classmethod
    def from_vector(cls, vector: Sequence[int]) -> "OperationCounts":
        """Undo `vector`; sums of vectors give the counts of several processes."""
        counts = cls()
        numbers = iter(vector)
        for name in _PLAIN:
            setattr(counts, name, next(numbers))
        for reason in counts.bypasses:
            counts.bypasses[reason] = next(numbers)
        latencies = (counts.hit_latency, counts.miss_latency)
        for latency in latencies:
            latency.total = next(numbers) / 1e6
        for latency in latencies:
            latency.buckets = [next(numbers) for _ in latency.buckets]
        return counts


_PLAIN: Final = (
    "memory_hits",
    "redis_hits",
    "fallback_hits",
    "misses",
    "stale",
    "errors",
    "coalesced",
    "invalidations",
    "stored_memory",
    "stored_redis",
    "stored_fallback",
    "shadow_checks",
    "shadow_wrong",
)
FIELDS: Final = (
    *_PLAIN,
    *(f"bypass.{reason}" for reason in Bypass),
    "hit.us",
    "miss.us",
    *(f"hit.{index}" for index in range(len(_BOUNDS) + 1)),
    *(f"miss.{index}" for index in range(len(_BOUNDS) + 1)),
)
"""The names of the numbers of `OperationCounts.vector`."""


class Counts:
    """The counts of every tenant and operation, bounded.

    Beyond `limit` pairs, the other tenants count as one, still by operation; beyond `limit` more, all is `OTHER`.
    """

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._counts: dict[tuple[str, str], OperationCounts] = {}
        self.ingested_accepted = 0
        self.ingested_rejected = 0
        self.ingested_ignored = 0

    def of(self, tenant: str | None, operation: str) -> OperationCounts:
        """Return the counts of a tenant's operation; `None` stands for requests without a tenant."""
        pair = (tenant or "", operation)
        counts = self._counts.get(pair)
        return self._first(*pair) if counts is None else counts

    def _first(self, tenant: str, operation: str) -> OperationCounts:
        if len(self._counts) >= self._limit:
            tenant = OTHER_TENANTS
            if len(self._counts) >= 2 * self._limit and (tenant, operation) not in self._counts:
                operation = OTHER
        return self._counts.setdefault((tenant, operation), OperationCounts())

    def forget(self, tenant: str) -> None:
        """Forget the counts of a tenant."""
        for pair in [pair for pair in self._counts if pair[0] == tenant]:
            del self._counts[pair]

    def __iter__(self) -> Iterator[tuple[str, str, OperationCounts]]:
        """Give (tenant, operation, counts).

        The tenant is empty for requests without one, and `OTHER_TENANTS` for those beyond the bound.
        """
        for (tenant, operation), counts in self._counts.copy().items():
            yield tenant, operation, counts
