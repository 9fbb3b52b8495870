"""What a batch of spans changes: operations, tags, and times on timelines, each with its least interval. Pure."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from nexcache.errors import InvalidName
from nexcache.ingest.windows import SpanTimes
from nexcache.invalidation.targets import Targets

MAX_TARGETS: Final = 1_000
"""Operations, tags and timelines of one batch; one that names more invalidates the whole tenant, which costs less."""


class Target(NamedTuple):
    """One thing to invalidate: an operation's name or glob (`op`), a tag (`tag`), or a timeline (`window`)."""

    kind: str
    name: str


WHOLE_TENANT: Final = Target("op", "*")


class Changes:
    """The union of what spans change. A target with two intervals has the shorter one, in seconds."""

    __slots__ = ("intervals", "times")

    def __init__(self) -> None:
        self.intervals: dict[Target, float] = {}
        self.times: dict[str, SpanTimes] = {}
        """By timeline: when the spans were that touch it."""

    @classmethod
    def of_everything(cls, interval: float) -> "Changes":
        """Change the whole tenant."""
        changes = cls()
        changes.intervals[WHOLE_TENANT] = interval
        return changes

    def __bool__(self) -> bool:
        """Whether anything changes."""
        return bool(self.intervals)

    def add(self, found: Mapping[Target, float]) -> bool:
        """Add targets; True once all the tenant is meant, so that nothing more needs to be added."""
        intervals = self.intervals
        if not found:
            return False
        for target, interval in found.items():
            known = intervals.get(target)
            if known is None or interval < known:
                intervals[target] = interval
            if target.kind == "op" and target.name.strip("*") == "":
                self._widen()
                return True
        if len(intervals) > MAX_TARGETS or (WHOLE_TENANT in intervals and len(intervals) > 1):
            self._widen()
        return WHOLE_TENANT in self.intervals

    def merge(self, other: "Changes") -> None:
        """Add all of another."""
        if self.add(other.intervals):
            return
        for timeline, times in other.times.items():
            self.times.setdefault(timeline, SpanTimes()).merge(times)

    @property
    def targets(self) -> Targets:
        """What an invalidation of all of it is aimed at."""
        return aimed_at(self.intervals, self.times)

    def _widen(self) -> None:
        self.intervals = {WHOLE_TENANT: min(self.intervals.values())}
        self.times = {}


def aimed_at(found: Mapping[Target, float], times: Mapping[str, SpanTimes]) -> Targets:
    """Return what an invalidation is aimed at; times too far apart for their buckets are the whole tenant."""
    operations = {target.name for target in found if target.kind == "op"}
    tags = {target.name for target in found if target.kind == "tag"}
    for target in found:
        if target.kind != "window":
            continue
        try:
            buckets = times[target.name].tags(target.name)
        except InvalidName:
            buckets = None
        if buckets is None:
            return Targets(frozenset(("*",)))
        tags |= buckets
    return Targets(frozenset(operations), frozenset(tags))
