"""What happened to a tenant's requests over the last hour, in slots of half a minute.

With a store, each process adds what it counted to one hash per tenant and slot, which lives a little over an hour; so
a tenant takes at most 120 small hashes, whatever the number of processes and requests. Without a store, or while it is
away, the slots are this process's own, of at most 256 tenants.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from nexcache.errors import StoreError, StoreUnavailable
from nexcache.key import KeySpace
from nexcache.stores.base import Store
from nexcache.telemetry.counts import FIELDS, OperationCounts

SLOT: Final = 30
"""Seconds."""
SLOTS: Final = 120
"""An hour of them."""
_KEPT_MS: Final = (SLOTS + 4) * SLOT * 1000
_SETTLED: Final = 10
"""Seconds after a slot's end after which no process adds to it any more."""
_TENANTS: Final = 256
_WAITING: Final = 5_000
"""Pairs of tenant and slot that wait for the store; beyond that the oldest are left out of its sums."""
_AT_ONCE: Final = 40

Numbers: TypeAlias = Mapping[str, int]
"""Of the names in `FIELDS`; those that are 0 may be absent."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Slot:
    """What was counted within one slot, all operations of the tenant together."""

    at: int
    """When it begins: seconds since the epoch."""
    counts: OperationCounts


@dataclass(frozen=True, slots=True)
class Trend:
    """The slots of the last hour in which anything happened, oldest first."""

    slots: Sequence[Slot]
    now: int
    """The beginning of the slot that is being counted."""
    merged: bool
    """The figures are those of all processes; otherwise of this one."""

    def last(self, seconds: int) -> OperationCounts:
        """Add up the slots that began within so many seconds, the one under way included."""
        return added([slot.counts for slot in self.slots if slot.at > self.now - seconds])


class Trends:
    """Keeps the slots of this process, delivers them to the store, and reads everybody's."""

    def __init__(self, *, keys: KeySpace, shared: Store | None, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._shared = shared
        self._clock = clock
        self._own: OrderedDict[str, OrderedDict[int, dict[str, int]]] = OrderedDict()
        self._settled: OrderedDict[str, dict[int, dict[str, int]]] = OrderedDict()
        """What the store said of slots to which nothing is added any more."""
        self._waiting: OrderedDict[tuple[str, int], dict[str, int]] = OrderedDict()

    def note(self, tenant: str, numbers: Numbers) -> None:
        """Count these now."""
        slot = self._slot()
        slots = _latest(self._own, tenant, OrderedDict)
        _add(slots.setdefault(slot, {}), numbers)
        while next(iter(slots)) <= slot - SLOTS * SLOT:
            slots.popitem(last=False)
        if self._shared is not None:
            _add(self._waiting.setdefault((tenant, slot), {}), numbers)
            if len(self._waiting) > _WAITING:
                self._waiting.popitem(last=False)

    def forget(self, tenant: str) -> None:
        """Forget what this process knows of a tenant."""
        self._own.pop(tenant, None)
        self._settled.pop(tenant, None)
        for pair in [pair for pair in self._waiting if pair[0] == tenant]:
            del self._waiting[pair]

    async def deliver(self) -> None:
        """Add what was noted to the store's; what did not even leave waits for the next time. Raises StoreError."""
        if self._shared is None:
            return
        while self._waiting:
            (tenant, slot), numbers = self._waiting.popitem(last=False)
            amounts = {name.encode(): number for name, number in numbers.items()}
            try:
                await self._shared.add(self._key(tenant, slot), amounts, once={}, ttl_ms=_KEPT_MS)
            except StoreError as error:
                if isinstance(error, StoreUnavailable) and error.kind == "breaker":
                    _add(self._waiting.setdefault((tenant, slot), {}), numbers)
                    self._waiting.move_to_end((tenant, slot), last=False)
                raise

    async def of(self, tenant: str) -> Trend:
        """Return a tenant's last hour: of all processes if the store answers."""
        now = self._slot()
        wanted = range(now - (SLOTS - 1) * SLOT, now + SLOT, SLOT)
        merged = self._shared is not None
        try:
            found: Mapping[int, Mapping[str, int]] = await self._read(tenant, wanted)
        except StoreError:
            found, merged = self._own.get(tenant, {}), False
        slots = [Slot(at, counts_of(found[at])) for at in wanted if found.get(at)]
        return Trend(slots, now, merged)

    async def _read(self, tenant: str, wanted: range) -> Mapping[int, Mapping[str, int]]:
        if self._shared is None:
            return self._own.get(tenant, {})
        settled = _latest(self._settled, tenant, dict)
        for at in [at for at in settled if at < wanted.start]:
            del settled[at]
        found = dict(settled)
        asked = [at for at in wanted if at not in settled]
        for start in range(0, len(asked), _AT_ONCE):
            some = asked[start : start + _AT_ONCE]
            read = await asyncio.gather(*(self._shared.numbers(self._key(tenant, at)) for at in some))
            until = self._clock() - SLOT - _SETTLED
            for at, numbers in zip(some, read, strict=True):
                found[at] = {name.decode("ascii", "replace"): number for name, number in numbers.items()}
                if at < until:
                    settled[at] = found[at]
        return found

    def _slot(self) -> int:
        return int(self._clock()) // SLOT * SLOT

    def _key(self, tenant: str, slot: int) -> bytes:
        return b"nexarch.trend:" + self._keys.prefix(tenant).removeprefix(b"nexarch:") + b"%d" % slot


def added(counts: Sequence[OperationCounts]) -> OperationCounts:
    """Add counts up."""
    vectors = [each.vector() for each in counts] or [OperationCounts().vector()]
    return OperationCounts.from_vector([sum(column) for column in zip(*vectors, strict=True)])


def counts_of(numbers: Numbers) -> OperationCounts:
    """Read numbers by their names; names of another version are passed over."""
    return OperationCounts.from_vector([numbers.get(name, 0) for name in FIELDS])


def _add(to: dict[str, int], numbers: Numbers) -> None:
    for name, number in numbers.items():
        to[name] = to.get(name, 0) + number


def _latest(tenants: OrderedDict[str, _T], tenant: str, make: Callable[[], _T]) -> _T:
    """Return what is kept of a tenant, and note that it was used; the one not used for longest leaves."""
    if tenant not in tenants:
        tenants[tenant] = make()
        if len(tenants) > _TENANTS:
            tenants.popitem(last=False)
    tenants.move_to_end(tenant)
    return tenants[tenant]
