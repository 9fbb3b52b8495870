"""Alerts: when one begins, and when it ends. Pure; time is an argument.

An alert fires once its figure has been beyond the threshold for a while, and ends once it has been back by a margin
for as long: a figure that swings around the threshold makes one alert, not a hundred.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

Figures: TypeAlias = Mapping[str, float | None]
"""Figures by the name of the rule that watches them; None (or absent) where nothing can be said."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is watched, and beyond what it is an alert."""

    name: str
    threshold: float
    resolves: float
    """The figure at which it is over: on the good side of the threshold."""
    after: float
    """Seconds for which the figure must be beyond the threshold, or back."""
    summary: str
    """What it means, and what to look at."""
    below: bool = False
    """Low figures are bad."""

    def is_bad(self, value: float) -> bool:
        """Whether the figure is beyond the threshold."""
        return value < self.threshold if self.below else value > self.threshold

    def is_good(self, value: float) -> bool:
        """Whether the figure is back, margin included."""
        return value >= self.resolves if self.below else value <= self.resolves


@dataclass(frozen=True, slots=True)
class Alert:
    """The state of one rule."""

    rule: Rule
    firing: bool = False
    value: float | None = None
    """The last figure; None where nothing could be said yet."""
    turning_since: float | None = None
    """Since when the figures have spoken for the other state."""


def watch(rules: Sequence[Rule]) -> tuple[Alert, ...]:
    """Return the state before any figure came."""
    return tuple(Alert(rule) for rule in rules)


def judge(alerts: Sequence[Alert], figures: Figures, *, now: float) -> tuple[tuple[Alert, ...], tuple[Alert, ...]]:
    """Take figures in; returns the new state, and those alerts that began or ended with them.

    Where there is no figure nothing changes, and what was about to change begins anew.
    """
    judged = tuple(_judged(alert, figures.get(alert.rule.name), now) for alert in alerts)
    changed = tuple(new for old, new in zip(alerts, judged, strict=True) if old.firing is not new.firing)
    return judged, changed


def _judged(alert: Alert, value: float | None, now: float) -> Alert:
    if value is None:
        return replace(alert, turning_since=None)
    rule = alert.rule
    if not (rule.is_good(value) if alert.firing else rule.is_bad(value)):
        return replace(alert, value=value, turning_since=None)
    since = now if alert.turning_since is None else alert.turning_since
    if now - since >= rule.after:
        return Alert(rule, not alert.firing, value)
    return replace(alert, value=value, turning_since=since)


HIT_RATE: Final = "hit-rate"
ERROR_RATE: Final = "error-rate"
STALENESS: Final = "staleness"
BREAKER: Final = "breaker"
QUOTA: Final = "quota"
MEMORY: Final = "memory"
WRONG_ANSWERS: Final = "wrong-answers"


def rules(
    *, hit_rate: float, error_rate: float, staleness: float, fullness: float, wrong_answers: float, after: float
) -> tuple[Rule, ...]:
    """Return the rules of a cache: shares from 0 to 1, `staleness` and `after` in seconds."""
    return (
        Rule(
            HIT_RATE,
            hit_rate,
            min(1.0, hit_rate * 1.1),
            after,
            "Few requests are answered from the cache: compare with the invalidations, and `explain` a request.",
            below=True,
        ),
        Rule(ERROR_RATE, error_rate, error_rate / 2, after, "The app fails behind the cache: look at its own errors."),
        Rule(
            STALENESS,
            staleness,
            0.0,
            0.0,
            "Invalidations wait for the store: other nodes may answer with what was invalidated until it is back.",
        ),
        Rule(BREAKER, 0.5, 0.0, 0.0, "The store is away or refuses: requests go to the app."),
        Rule(QUOTA, fullness, fullness * 0.9, after, "A tenant has used up most of its quota."),
        Rule(
            MEMORY,
            fullness,
            fullness * 0.9,
            after,
            "This process's memory for entries is nearly full: raise CACHE_L1_MAX_BYTES, or expect evictions.",
        ),
        Rule(
            WRONG_ANSWERS,
            wrong_answers,
            wrong_answers / 2,
            0.0,
            "Stored answers differ from what the app answers now: something changes data without an invalidation.",
        ),
    )
