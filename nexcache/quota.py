"""Quotas: how much a tenant may hold in the store, and how many answers may be kept for it each second.

The store keeps a ledger per tenant: a sorted set of its entries by the instant at which they are gone, and a hash of
their sizes. One script carries out the write and its account at one moment, by the server's clock, so that processes
together never hold more than the quota. What the server itself evicted counts until its time would have been over.

Only tenants with a quota pay for any of this, and only where an answer is kept.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nexcache.errors import OverQuota
from nexcache.key import KeySpace
from nexcache.rate_limit import LocalCounts, Rate, RateLimit, Scripted

_MOST_SEEN: Final = 10_000
_RECENT: Final = 60.0
"""Seconds for which the fullness that a write showed is told."""
_REFUSED_FOR: Final = 1.0
"""Seconds for which a full tenant's answers are not even offered to the store."""

_ACCOUNT: Final = b"""
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local used = tonumber(redis.call('HGET', KEYS[2], '@') or '0')
local function leave(name)
  local size = tonumber(redis.call('HGET', KEYS[2], name) or '0')
  redis.call('HDEL', KEYS[2], name)
  redis.call('ZREM', KEYS[1], name)
  used = used - size
end
local gone = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 500)
for _, name in ipairs(gone) do leave(name) end
local entries = redis.call('ZCARD', KEYS[1])
if entries == 0 then used = 0 end
"""

_WRITE: Final = (
    _ACCOUNT
    + b"""
local name, value, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local most_bytes, most_entries = tonumber(ARGV[4]), tonumber(ARGV[5])
local size = #KEYS[3] + #value
local before = tonumber(redis.call('HGET', KEYS[2], name) or '-1')
local kept_entries, kept_bytes = entries, used
if before < 0 then entries = entries + 1 else used = used - before end
used = used + size
if (most_bytes >= 0 and used > most_bytes) or (most_entries >= 0 and entries > most_entries) then
  if #gone > 0 then redis.call('HSET', KEYS[2], '@', kept_bytes) end
  return {0, kept_entries, kept_bytes}
end
redis.call('SET', KEYS[3], value, 'PX', ttl)
redis.call('ZADD', KEYS[1], now + ttl, name)
redis.call('HSET', KEYS[2], name, size, '@', used)
local lives = math.max(ttl, redis.call('PTTL', KEYS[1]))
redis.call('PEXPIRE', KEYS[1], lives)
redis.call('PEXPIRE', KEYS[2], lives)
return {1, entries, used}
"""
)
_READ: Final = _ACCOUNT + b"if #gone > 0 then redis.call('HSET', KEYS[2], '@', used) end return {1, entries, used}"


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may use; None: as much as there is."""

    bytes: int | None = None
    """Keys and values of its entries, as the store holds them."""
    entries: int | None = None
    fills: int | None = None
    """Answers kept per second, evenly; as many at once."""

    @property
    def holds(self) -> bool:
        """Whether it limits what is held."""
        return self.bytes is not None or self.entries is not None

    def permits(self, entries: int, size: int) -> bool:
        """Whether so much may be held."""
        return (self.entries is None or entries <= self.entries) and (self.bytes is None or size <= self.bytes)

    def fullness(self, entries: int, size: int) -> float:
        """Return which part of it is used up."""
        return max(
            entries / max(self.entries, 1) if self.entries is not None else 0.0,
            size / max(self.bytes, 1) if self.bytes is not None else 0.0,
        )


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """A tenant's quota, and what it uses of it; None where that could not be asked."""

    quota: Quota
    entries: int | None
    bytes: int | None
    refused: int
    """Answers that this process did not keep for want of quota."""

    def as_dict(self) -> dict[str, object]:
        """Give the member `quota` of what `GET /stats` answers."""
        return {
            "limit": self.quota.bytes,
            "used": self.bytes,
            "entries": {"limit": self.quota.entries, "used": self.entries},
            "fills_per_second": self.quota.fills,
            "refused": self.refused,
        }


class Quotas:
    """The quotas of all tenants. `quotas` names those that have one of their own, `default` is everybody else's.

    While the store is away a process keeps its part of the answers a second: that of one of `instances`.
    """

    def __init__(
        self,
        *,
        default: Quota,
        quotas: Mapping[str, Quota],
        keys: KeySpace,
        store: Scripted | None,
        counts: LocalCounts,
        instances: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._default = default if default != Quota() else None
        self._quotas = dict(quotas)
        self._keys = keys
        self._store = store
        self._counts = counts
        self._instances = instances
        self._clock = clock
        self._seen: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._full: OrderedDict[str, float] = OrderedDict()
        self._refused: OrderedDict[str, int] = OrderedDict()

    def of(self, tenant: str) -> Quota | None:
        """Return a tenant's quota, None if it has none."""
        return self._quotas.get(tenant, self._default)

    def is_over(self, tenant: str) -> bool:
        """Whether an answer of this tenant was refused a moment ago, because it holds as much as it may."""
        return bool(self._full) and self._full.get(tenant, 0.0) > self._clock()

    async def admit(self, tenant: str, quota: Quota) -> None:
        """Count an answer that is to be kept; raises OverQuota if there are too many a second."""
        if quota.fills is None:
            return
        limit = RateLimit(
            Rate(quota.fills, 1.0),
            name="quota",
            instances=self._instances,
            store=self._store,
            keys=self._keys,
            local=self._counts,
        )
        if not (await limit.check("fills", tenant=tenant)).allowed:
            self._refuse(tenant)
            raise OverQuota(f"more than {quota.fills} answers a second are to be kept")

    async def write(self, tenant: str, quota: Quota, key: bytes, value: bytes, *, ttl_ms: int) -> None:
        """Write an entry to the store and account for it; raises OverQuota, and StoreError."""
        assert self._store is not None  # noqa: S101 - who writes to a store has one
        sorted_set, sizes = self._keys.quota(tenant)
        name = key.removeprefix(self._keys.prefix(tenant))
        limits = [-1 if most is None else most for most in (quota.bytes, quota.entries)]
        kept, entries, used = await self._store.evaluate(
            _WRITE, (sorted_set, sizes, key), (name, value, ttl_ms, *limits)
        )
        self.account(tenant, quota, int(entries), int(used), kept=bool(kept))

    def account(self, tenant: str, quota: Quota, entries: int, size: int, *, kept: bool) -> None:
        """Note what a tenant holds; raises OverQuota if something was not kept."""
        now = self._clock()
        _latest(self._seen, tenant, (1.0 if not kept else quota.fullness(entries, size), now))
        if kept:
            self._full.pop(tenant, None)
            return
        _latest(self._full, tenant, now + _REFUSED_FOR)
        self._refuse(tenant)
        raise OverQuota("the tenant holds as much as its quota permits")

    def refuse(self, tenant: str) -> None:
        """Raise OverQuota for what is not even offered."""
        self._refuse(tenant)
        raise OverQuota("the tenant held as much as its quota permits a moment ago")

    async def use(self, tenant: str, here: Callable[[], tuple[int, int]]) -> QuotaUse | None:
        """Return a tenant's quota and what it uses; `here` counts entries and bytes where there is no store.

        None if it has no quota. Raises StoreError.
        """
        quota = self.of(tenant)
        if quota is None:
            return None
        if self._store is None:
            entries, used = here()
        elif quota.holds:
            _, entries, used = (int(number) for number in await self._asked(tenant))
        else:
            return QuotaUse(quota, None, None, self._refused.get(tenant, 0))
        return QuotaUse(quota, entries, used, self._refused.get(tenant, 0))

    def unasked(self, tenant: str) -> QuotaUse | None:
        """Return a tenant's quota where what it uses could not be asked."""
        quota = self.of(tenant)
        return None if quota is None else QuotaUse(quota, None, None, self._refused.get(tenant, 0))

    @property
    def worst(self) -> float | None:
        """How full the fullest quota is that was written to lately; None: none was."""
        since = self._clock() - _RECENT
        return max((part for part, at in self._seen.values() if at >= since), default=None)

    def forget(self, tenant: str) -> None:
        """Forget what this process knows of a tenant."""
        for known in (self._seen, self._full, self._refused):
            known.pop(tenant, None)

    async def _asked(self, tenant: str) -> Any:
        assert self._store is not None  # noqa: S101 - checked by the caller
        return await self._store.evaluate(_READ, self._keys.quota(tenant), ())

    def _refuse(self, tenant: str) -> None:
        _latest(self._refused, tenant, self._refused.get(tenant, 0) + 1)


def _latest(known: "OrderedDict[str, Any]", tenant: str, value: Any) -> None:
    known[tenant] = value
    known.move_to_end(tenant)
    if len(known) > _MOST_SEEN:
        known.popitem(last=False)
