"""What the readers measured: how many, how fast, from where. Counts and histograms."""

import math
import time
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_GROWTH: Final = math.log(1.02)
_SECONDS: Final = 120


class Kind(StrEnum):
    """Where an answer came from, as its `Cache-Status` says (RFC 9211)."""

    HIT = "hit"
    MISS = "miss"
    UNCACHED = "uncached"

    @classmethod
    def of(cls, cache_status: str) -> "Kind":
        """Read the field; an answer that was computed for another request at the same time is a miss too."""
        return cls.HIT if "; hit" in cache_status else cls.MISS


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer that a reader got: whose, what, from where, after how many seconds."""

    tenant: str
    operation: str
    target: str
    kind: Kind
    seconds: float


class Durations:
    """A histogram of durations in seconds, fine enough to be read as exact: two per cent from bound to bound."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self._buckets[round(math.log(max(seconds, 1e-6)) / _GROWTH)] += 1

    def __add__(self, other: "Durations") -> "Durations":
        """Count both."""
        both = Durations()
        both._buckets = self._buckets + other._buckets
        return both

    def percentile(self, percent: int) -> float | None:
        """Return the smallest duration that is at least as long as `percent` of all; None of none."""
        wanted = self._buckets.total() * percent
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket] * 100
            if seen >= wanted:
                return math.exp(bucket * _GROWTH)
        return None


class Figures:
    """What was measured since `started`; times are those of `time.monotonic`, given by the caller where it matters."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.kinds: Counter[Kind] = Counter()
        self.operations: dict[str, Counter[Kind]] = {}
        self.targets: set[tuple[str, str]] = set()
        self.failures: Counter[str] = Counter()
        """Answers other than 200, and none at all, by status or error."""
        self.per_second: Counter[int] = Counter()
        """Reads through the cache per whole second since the start; only the latest two minutes."""
        self._durations: dict[Kind, dict[str, Durations]] = {kind: {} for kind in Kind}

    def answered(self, answer: Answered) -> None:
        """Count an answer with status 200."""
        self.kinds[answer.kind] += 1
        self.operations.setdefault(answer.operation, Counter())[answer.kind] += 1
        self._durations[answer.kind].setdefault(answer.operation, Durations()).add(answer.seconds)
        if answer.kind is not Kind.UNCACHED:
            self.targets.add((answer.tenant, answer.target))
            second = int(time.monotonic() - self.started)
            self.per_second[second] += 1
            self.per_second.pop(second - _SECONDS, None)

    def failed(self, operation: str, reason: str) -> None:
        """Count an answer that was none."""
        self.failures[f"{operation}: {reason}"] += 1

    @property
    def reads(self) -> int:
        """Answers through the cache."""
        return self.kinds[Kind.HIT] + self.kinds[Kind.MISS]

    @property
    def hit_ratio(self) -> float:
        """The share of hits among the answers through the cache; 0 without any."""
        return self.kinds[Kind.HIT] / self.reads if self.reads else 0.0

    def durations(self, kind: Kind, operation: str | None = None) -> Durations:
        """Return how long one kind of answers took, of one operation or of all."""
        found = self._durations[kind]
        if operation is not None:
            return found.get(operation, Durations())
        return sum(found.values(), Durations())

    def latest(self, seconds: int, now: float) -> list[int]:
        """Return the reads per second of the latest whole seconds, the oldest first."""
        current = int(now - self.started)
        return [self.per_second[second] for second in range(max(0, current - seconds), current)]
