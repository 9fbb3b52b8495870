"""What a monitor judges: the figures of a period, and whether they keep their targets. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Figures:
    """What happened to requests since some moment; durations in milliseconds, added up."""

    requests: int = 0
    hits: int = 0
    stale: int = 0
    misses: int = 0
    bypasses: int = 0
    errors: int = 0
    hit_ms: float = 0.0
    miss_ms: float = 0.0

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Figures":
        """Read them from what `GET /stats` answers, for a tenant or one of its operations."""
        counts = {name: int(document[name]) for name in ("requests", "hits", "stale", "misses", "bypasses", "errors")}
        latency = document["latency"]
        return cls(
            **counts,
            hit_ms=latency["hit"]["mean"] * (counts["hits"] + counts["stale"]),
            miss_ms=latency["miss"]["mean"] * counts["misses"],
        )

    def since(self, before: "Figures") -> "Figures":
        """Return what came after `before`; where a number became smaller, counting had begun anew."""
        if self.requests < before.requests:
            return self
        return Figures(*(max(0, getattr(self, each.name) - getattr(before, each.name)) for each in fields(self)))

    @property
    def asked(self) -> int:
        """Requests that asked the cache: bypasses do not."""
        return self.requests - self.bypasses

    @property
    def hit_rate(self) -> float | None:
        """The share answered from the cache; None where nothing was asked."""
        return (self.hits + self.stale) / self.asked if self.asked > 0 else None

    @property
    def error_rate(self) -> float | None:
        """The share that failed in the app."""
        return self.errors / self.asked if self.asked > 0 else None

    @property
    def mean_ms(self) -> float | None:
        """The mean time to an answer, hits and misses together."""
        answered = self.hits + self.stale + self.misses
        return (self.hit_ms + self.miss_ms) / answered if answered else None

    @property
    def mean_hit_ms(self) -> float | None:
        """The mean time to an answer from the cache."""
        answered = self.hits + self.stale
        return self.hit_ms / answered if answered else None

    @property
    def mean_miss_ms(self) -> float | None:
        """The mean time to an answer from the app."""
        return self.miss_ms / self.misses if self.misses else None


@dataclass(frozen=True, slots=True)
class Targets:
    """What is good enough: percentages and milliseconds."""

    hit_rate: float = 80.0
    mean_ms: float = 50.0
    error_rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one target was kept."""

    name: str
    target: str
    value: float | None
    """In the target's unit; None where there was nothing to judge."""
    unit: str
    kept: bool | None

    def as_dict(self) -> dict[str, Any]:
        """Give the document."""
        value = None if self.value is None else round(self.value, 3)
        return {"name": self.name, "target": self.target, "value": value, "unit": self.unit, "kept": self.kept}


def verdicts(figures: Figures, targets: Targets) -> tuple[Verdict, ...]:
    """Judge the figures of a period; a target is kept strictly above, or below, its bound."""
    hits = None if figures.hit_rate is None else figures.hit_rate * 100
    errors = None if figures.error_rate is None else figures.error_rate * 100
    mean = figures.mean_ms
    return (
        Verdict("hit rate", f"> {targets.hit_rate:g} %", hits, "%", None if hits is None else hits > targets.hit_rate),
        Verdict("mean", f"< {targets.mean_ms:g} ms", mean, "ms", None if mean is None else mean < targets.mean_ms),
        Verdict(
            "errors",
            f"< {targets.error_rate:g} %",
            errors,
            "%",
            None if errors is None else errors < targets.error_rate,
        ),
    )
