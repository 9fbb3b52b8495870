"""The statistics of a tenant: this process's own counts, exact, and those of all processes, added up in the store.

Each process adds what happened since it last did to one hash per tenant. A failure in doubt is not repeated: the
sum may then miss what happened in a few seconds, but counts nothing twice. The hash is as large as the tenant has
operations, whatever the number of processes and of requests.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nexcache.ending import end
from nexcache.entries import Memory
from nexcache.errors import StoreError, StoreUnavailable
from nexcache.key import KeySpace, name_of, segment
from nexcache.quota import Quotas, QuotaUse
from nexcache.savings import saving
from nexcache.stores.base import Store, Usage
from nexcache.telemetry.counts import FIELDS, OTHER_TENANTS, Counts, Latency, OperationCounts
from nexcache.trends import SLOT, SLOTS, Slot, Trend, Trends, added

_KEPT_MS: Final = 30 * 86_400_000
_EVERY: Final = 2.0
"""Seconds between two additions."""
_AT_ONCE: Final = 50
"""Pairs of tenant and operation that are written down before others get their turn."""
_LOOKED_AT: Final = 20_000
_SINCE: Final = b"since"
_WHOLE: Final = "*"
"""Stands for invalidations of the whole tenant, which concern no single operation."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What happened to a tenant's requests, by operation, and what it holds."""

    tenant: str
    operations: Mapping[str, OperationCounts]
    invalidations: int
    usage: Usage | None
    """None: the store could not be asked."""
    since: float
    """Seconds since the epoch."""
    merged: bool
    """The figures are those of all processes; otherwise of this one."""
    quota: QuotaUse | None = None
    """None: the tenant has none."""

    def as_dict(self) -> dict[str, object]:
        """Give the document that `GET /stats` answers."""
        saved = {name: saving(counts) for name, counts in self.operations.items()}
        return {
            "tenant": self.tenant,
            **_figures(added(list(self.operations.values()))),
            "saved": {
                "computations": sum(each.computations for each in saved.values()),
                "seconds": round(sum(each.seconds for each in saved.values()), 3),
            },
            "invalidations": self.invalidations,
            "entries": self.usage.entries if self.usage else None,
            "bytes": self.usage.bytes if self.usage else None,
            "estimated": bool(self.usage and self.usage.estimated),
            "quota": self.quota.as_dict() if self.quota is not None else None,
            "operations": {
                name: {**_figures(counts), "saved": saved[name].as_dict(), **_held(self.usage, name)}
                for name, counts in sorted(self.operations.items())
            },
            "since": _instant(self.since),
            "merged": self.merged,
        }


class Ledger:
    """Adds this process's counts to the store's, and reads the sums."""

    def __init__(
        self,
        *,
        counts: Counts,
        keys: KeySpace,
        memory: Memory,
        shared: Store | None,
        quotas: Quotas | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._quotas = quotas
        self._counts = counts
        self._keys = keys
        self._memory = memory
        self._shared = shared
        self._clock = clock
        self._since = clock()
        self._trends = Trends(keys=keys, shared=shared, clock=clock)
        self._written: dict[tuple[str, str], list[int]] = {}
        self._noted: dict[tuple[str, str], list[int]] = {}
        """What the trends know of: they are told of everything at once, whether or not the store can be."""
        self._adding = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Add up regularly from now on."""
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._task = loop.create_task(self._run(), name="nexcache-ledger")

    async def aclose(self) -> None:
        """Add up once more, and stop."""
        task, self._task = self._task, None
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            await end(task)
            try:
                await self.flush()
            except StoreError:
                pass  # what happened last is lost to the sums, as after a crash

    async def trend(self, tenant: str) -> Trend:
        """Return what happened to a tenant within the last hour, of all processes if the store answers."""
        try:
            await self.flush(tenant)
        except StoreError:
            pass  # what is known here is noted already
        return await self._trends.of(tenant)

    async def of(self, tenant: str, *, usage: bool = True) -> Statistics:
        """Return a tenant's statistics, of all processes if the store answers; `usage`: what it holds, too."""
        statistics = await self._of(tenant, usage=usage)
        if self._quotas is None:
            return statistics
        try:
            quota = await self._quotas.use(tenant, lambda: self._memory.held_by(self._keys.prefix(tenant)))
        except StoreError:
            quota = self._quotas.unasked(tenant)
        return replace(statistics, quota=quota)

    async def _of(self, tenant: str, *, usage: bool) -> Statistics:
        own = {name: counts for who, name, counts in self._counts if who == tenant}
        if self._shared is None:
            held = self._memory.usage(self._keys.prefix(tenant)) if usage else None
            return _statistics(tenant, own, held, self._since, merged=False)
        try:
            await self.flush(tenant)
            numbers = await self._shared.numbers(self._key(tenant))
            held = await self._shared.usage(self._keys.prefix(tenant), most=_LOOKED_AT) if usage else None
        except StoreError:
            return _statistics(tenant, own, None, self._since, merged=False)
        return _statistics(tenant, _merged(numbers), held, numbers.get(_SINCE, self._since), merged=True)

    def forget(self, tenant: str) -> None:
        """Forget what this process has counted of a tenant."""
        self._counts.forget(tenant)
        self._trends.forget(tenant)
        for known in (self._written, self._noted):
            for pair in [pair for pair in known if pair[0] == tenant]:
                del known[pair]
        if self._quotas is not None:
            self._quotas.forget(tenant)

    async def flush(self, only: str | None = None) -> None:
        """Add what happened since the last time to the store; what cannot be added waits for the next."""
        async with self._adding:
            amounts: dict[str, dict[bytes, int]] = {}
            done: dict[tuple[str, str], list[int]] = {}
            news: dict[str, dict[str, int]] = {}
            for number, (tenant, operation, counts) in enumerate(self._counts):
                if tenant in ("", OTHER_TENANTS) or (only is not None and tenant != only):
                    continue
                vector = counts.vector()
                noted = self._noted.get((tenant, operation))
                if vector != noted:
                    _difference(noted, vector, news.setdefault(tenant, {}))
                    self._noted[tenant, operation] = vector
                before = self._written.get((tenant, operation))
                if self._shared is None or vector == before:
                    continue
                prefix = segment(operation) + b"|"
                fields = amounts.setdefault(tenant, {})
                for index, name in enumerate(FIELDS):
                    if change := vector[index] - (before[index] if before else 0):
                        fields[prefix + name.encode()] = change
                done[tenant, operation] = vector
                if number % _AT_ONCE == _AT_ONCE - 1:
                    await asyncio.sleep(0)
            for tenant, numbers in news.items():
                self._trends.note(tenant, numbers)
            if self._shared is None:
                return
            for tenant, fields in amounts.items():
                # noted before it is sent: what fails in doubt is lost rather than counted twice
                fresh = {pair: vector for pair, vector in done.items() if pair[0] == tenant}
                before_all = {pair: self._written.get(pair) for pair in fresh}
                self._written.update(fresh)
                try:
                    await self._shared.add(self._key(tenant), fields, once={_SINCE: int(self._since)}, ttl_ms=_KEPT_MS)
                except StoreUnavailable as error:
                    if error.kind == "breaker":  # it was not even sent
                        for pair, vector_before in before_all.items():
                            self._written[pair] = vector_before or [0] * len(FIELDS)
                    raise
            await self._trends.deliver()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            try:
                await self.flush()
            except StoreError:
                continue

    def _key(self, tenant: str) -> bytes:
        # beside the entries' prefix, so that no invalidation and no `forget` by prefix takes it for one
        return b"nexarch.stats:" + self._keys.prefix(tenant).removeprefix(b"nexarch:").removesuffix(b":")


def _statistics(
    tenant: str, operations: Mapping[str, OperationCounts], usage: Usage | None, since: float, *, merged: bool
) -> Statistics:
    invalidations = sum(counts.invalidations for counts in operations.values())
    named = {name: counts for name, counts in operations.items() if name != _WHOLE}
    return Statistics(tenant, named, invalidations, usage, since, merged)


def _merged(numbers: Mapping[bytes, int]) -> dict[str, OperationCounts]:
    places = {name.encode(): index for index, name in enumerate(FIELDS)}
    vectors: dict[str, list[int]] = {}
    for field, number in numbers.items():
        encoded, found, name = field.partition(b"|")
        if found and name in places:
            vectors.setdefault(name_of(encoded), [0] * len(FIELDS))[places[name]] = number
    return {operation: OperationCounts.from_vector(vector) for operation, vector in vectors.items()}


def _difference(before: Sequence[int] | None, after: Sequence[int], into: dict[str, int]) -> None:
    for index, name in enumerate(FIELDS):
        if change := after[index] - (before[index] if before is not None else 0):
            into[name] = into.get(name, 0) + change


def _held(usage: Usage | None, operation: str) -> dict[str, int | None]:
    if usage is None:
        return {"entries": None, "bytes": None}
    entries, size = usage.operations.get(segment(operation), (0, 0))
    return {"entries": entries, "bytes": size}


def trend_document(tenant: str, trend: Trend, *, since: int = 0) -> dict[str, object]:
    """Give the document that `GET /trends` answers: slots from `since` on, and sums."""
    return {
        "tenant": tenant,
        "merged": trend.merged,
        "slot_seconds": SLOT,
        "now": trend.now,
        "slots": [_slot(slot) for slot in trend.slots if slot.at >= since],
        "minutes": {"5": _figures(trend.last(300)), "60": _figures(trend.last(SLOTS * SLOT))},
    }


def _slot(slot: Slot) -> dict[str, object]:
    return {"at": slot.at, **_figures(slot.counts)}


def _instant(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _figures(counts: OperationCounts) -> dict[str, object]:
    bypasses = sum(counts.bypasses.values())
    asked = counts.requests - bypasses
    return {
        "requests": counts.requests,
        "hits": counts.hits,
        "misses": counts.misses,
        "stale": counts.stale,
        "bypasses": bypasses,
        "errors": counts.errors,
        "coalesced": counts.coalesced,
        "shadow": {"checks": counts.shadow_checks, "wrong": counts.shadow_wrong},
        "hit_rate": round((counts.hits + counts.stale) / asked, 4) if asked else 0.0,
        "latency": {"hit": _latency(counts.hit_latency), "miss": _latency(counts.miss_latency)},
        "invalidations": counts.invalidations,
    }


def _latency(latency: Latency) -> dict[str, float]:
    """Give milliseconds."""
    return {
        "mean": round(latency.mean * 1000, 3),
        "p50": round(latency.quantile(0.5) * 1000, 3),
        "p95": round(latency.quantile(0.95) * 1000, 3),
        "p99": round(latency.quantile(0.99) * 1000, 3),
    }
