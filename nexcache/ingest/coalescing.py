"""When what spans change is invalidated: the first change at once, later ones together, none ever lost. Pure.

Time is given, in seconds of any clock that never goes back. Per tenant and target:

    change ─▶ invalidated at once            (leading edge)
    changes within `min_interval` ─▶ kept
    last invalidation + `min_interval` ─▶ what was kept is invalidated   (trailing edge), and so on

So an answer may be older than a change that was acknowledged by at most `min_interval`, and the time that the
invalidation itself takes. Memory is bounded: a tenant with too many targets has one, all of it.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from nexcache.ingest.changes import WHOLE_TENANT, Changes, Target, aimed_at
from nexcache.ingest.windows import SpanTimes
from nexcache.invalidation.targets import Targets

MOST_OF_A_TENANT: Final = 256
"""Targets of a tenant that are remembered; one with more has its whole tenant as the target."""
MOST_IN_ALL: Final = 50_000
"""Targets of all tenants that are remembered; beyond, those of further tenants are not kept back at all."""
MOST_ORIGINS: Final = 16
"""Origins that a kept change remembers."""


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be invalidated now."""

    tenant: str
    found: frozenset[Target]
    """What is thereby done with; the whole tenant does everything else of it too."""
    targets: Targets
    since: float
    """When the oldest of the changes arrived."""
    origins: tuple[object, ...] = ()
    """What the changes came from, as it was offered: some of them where they are many."""

    def settles(self, target: Target) -> bool:
        """Whether a change of this target is done with."""
        return target in self.found or WHOLE_TENANT in self.found


@dataclass(slots=True)
class _State:
    """A target that was invalidated lately."""

    interval: float
    due: float
    """When it may be invalidated again."""
    since: float | None = None
    """When the oldest change that is kept arrived; None: nothing is kept."""
    times: SpanTimes | None = None
    origins: list[object] = field(default_factory=list)

    def settle(self) -> None:
        self.since = self.times = None
        self.origins = []


class Coalescer:
    """Decides, per tenant and target, what is invalidated when."""

    def __init__(self, *, most_of_a_tenant: int = MOST_OF_A_TENANT, most_in_all: int = MOST_IN_ALL) -> None:
        self._most_of_a_tenant = most_of_a_tenant
        self._most_in_all = most_in_all
        self._tenants: dict[str, dict[Target, _State]] = {}
        self._count = 0
        self._schedule: list[tuple[float, str, Target]] = []

    def __len__(self) -> int:
        """How many targets are remembered."""
        return self._count

    @property
    def kept(self) -> int:
        """How many targets have changes that are still to be invalidated."""
        return sum(state.since is not None for states in self._tenants.values() for state in states.values())

    @property
    def next(self) -> float | None:
        """When to ask `due` again; None while nothing is remembered."""
        return self._schedule[0][0] if self._schedule else None

    def pending(self, tenant: str, changes: Changes) -> frozenset[Target]:
        """Return those targets of changes just offered that are kept for later."""
        states = self._tenants.get(tenant, {})
        waiting = {target for target in changes.intervals if (state := states.get(target)) and state.since is not None}
        whole = states.get(WHOLE_TENANT)
        if whole is not None and whole.since is not None:  # they may have been widened to it
            waiting.add(WHOLE_TENANT)
        return frozenset(waiting)

    def offer(self, tenant: str, changes: Changes, *, now: float, origin: object = None) -> Due | None:
        """Take changes; returns what of them is to be invalidated at once, and keeps the rest."""
        found: set[Target] = set()
        states = self._tenants.setdefault(tenant, {})
        for target, interval in changes.intervals.items():
            state = states.get(target)
            if state is not None and interval < state.interval:
                state.due += interval - state.interval
                state.interval = interval
                self._plan(state, tenant, target)
            if state is None or (state.since is None and state.due <= now):
                found.add(target)
                if interval > 0 and not self._remember(tenant, states, target, interval, now):
                    return self._whole(tenant, interval, now, origin)
                continue
            if state.since is None:
                state.since = now
            if origin is not None and len(state.origins) < MOST_ORIGINS:
                state.origins.append(origin)
            if target.kind == "window":
                if state.times is None:
                    state.times = SpanTimes()
                state.times.merge(changes.times[target.name])
        if not states:
            del self._tenants[tenant]
        if not found:
            return None
        due = Due(
            tenant,
            frozenset(found),
            aimed_at({target: changes.intervals[target] for target in found}, changes.times),
            now,
            () if origin is None else (origin,),
        )
        return self._settled(due)

    def due(self, now: float) -> Sequence[Due]:
        """Return what is to be invalidated by now, one per tenant."""
        ripe: dict[str, dict[Target, _State]] = {}
        while self._schedule and self._schedule[0][0] <= now:
            due, tenant, target = heapq.heappop(self._schedule)
            state = self._tenants.get(tenant, {}).get(target)
            if state is None or state.due != due:  # it was planned anew, or given up
                continue
            if state.since is None:
                self._forget(tenant, target)
            else:
                ripe.setdefault(tenant, {})[target] = state
        return [self._take(tenant, states, now) for tenant, states in ripe.items()]

    def flush(self) -> Sequence[Due]:
        """Return everything that is kept, whenever it would be due, and forget all."""
        kept = [
            self._take(tenant, waiting, 0.0)
            for tenant, states in list(self._tenants.items())
            if (waiting := {target: state for target, state in states.items() if state.since is not None})
        ]
        self._tenants.clear()
        self._schedule.clear()
        self._count = 0
        return kept

    def _take(self, tenant: str, states: dict[Target, _State], now: float) -> Due:
        due = Due(
            tenant,
            frozenset(states),
            aimed_at(
                {target: state.interval for target, state in states.items()},
                {target.name: state.times for target, state in states.items() if state.times is not None},
            ),
            min(state.since for state in states.values() if state.since is not None),
            tuple(origin for state in states.values() for origin in state.origins)[:MOST_ORIGINS],
        )
        for target, state in states.items():
            state.settle()
            state.due = now + state.interval
            self._plan(state, tenant, target)
        return self._settled(due)

    def _settled(self, due: Due) -> Due:
        """Let the whole tenant settle all that is kept of it."""
        if not due.targets.whole_tenant:
            return due
        since = due.since
        for state in self._tenants.get(due.tenant, {}).values():
            if state.since is not None:
                since = min(since, state.since)
            state.settle()
        return Due(due.tenant, due.found | {WHOLE_TENANT}, Targets(frozenset(("*",))), since, due.origins)

    def _remember(self, tenant: str, states: dict[Target, _State], target: Target, interval: float, now: float) -> bool:
        """Note that a target is invalidated now; False if the tenant has too many for that."""
        state = states.get(target)
        if state is None:
            if len(states) >= self._most_of_a_tenant or (self._count >= self._most_in_all and len(states) > 1):
                return False
            if self._count >= self._most_in_all:
                return True  # nothing is left to be widened: it is not kept back
            state = states[target] = _State(interval, 0.0)
            self._count += 1
        state.interval, state.due = interval, now + interval
        self._plan(state, tenant, target)
        return True

    def _whole(self, tenant: str, interval: float, now: float, origin: object) -> Due | None:
        """Have the whole tenant as the one target from now on, for what was kept and for what is offered."""
        states = self._tenants[tenant]
        kept = [state for state in states.values() if state.since is not None]
        since = min((state.since for state in kept if state.since is not None), default=now)
        origins = [each for state in kept for each in state.origins]
        interval = min(interval, *(state.interval for state in states.values()))
        whole = states.get(WHOLE_TENANT)
        self._count -= len(states)
        states.clear()
        if whole is None:
            whole = _State(interval, now)
        elif interval < whole.interval:
            whole.due += interval - whole.interval
            whole.interval = interval
        states[WHOLE_TENANT] = whole
        self._count += 1
        whole.since = since
        whole.origins = (origins if origin is None else [*origins, origin])[:MOST_ORIGINS]
        if whole.due <= now:
            return self._take(tenant, {WHOLE_TENANT: whole}, now)
        self._plan(whole, tenant, WHOLE_TENANT)
        return None

    def _forget(self, tenant: str, target: Target) -> None:
        states = self._tenants[tenant]
        del states[target]
        self._count -= 1
        if not states:
            del self._tenants[tenant]

    def _plan(self, state: _State, tenant: str, target: Target) -> None:
        heapq.heappush(self._schedule, (state.due, tenant, target))
        if len(self._schedule) > 2 * self._count + 1024:
            self._schedule = sorted(self._planned())

    def _planned(self) -> Iterable[tuple[float, str, Target]]:
        for tenant, states in self._tenants.items():
            for target, state in states.items():
                yield state.due, tenant, target
