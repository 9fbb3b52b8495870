"""Which requests an operation was asked for lately, and how to compute them again before anybody waits.

Kept in this process only: what a request was made of, never its credentials. Who warms an operation sends their
own credentials, so that the app decides what they may see; a request that makes its own answer be computed again in
the background lends its scope to that computation, and to nothing after it.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from nexcache.asgi import Scope
from nexcache.ending import end
from nexcache.key import CacheKey, segment
from nexcache.known import KnownRequests
from nexcache.policy import Policy
from nexcache.shadow import Computed
from nexcache.stores.memory import Bounded, tenant_of

REFRESH: Final = "nexcache.refresh"
"""The scope's key that makes the middleware compute instead of looking up; no client can set it."""

CREDENTIALS: Final = frozenset((b"authorization", b"cookie", b"x-api-key"))
"""Header fields that say who asks: never remembered."""

_PER_OPERATION: Final = 50
_SAMPLED: Final = 16
"""One in so many hits is counted where the hottest requests are."""
_COUNTERS: Final = 128
_HALVED_AFTER: Final = 4_096
_OPERATIONS: Final = 5_000
_LONGEST: Final = 8 * 1024
"""Bytes of a request that is remembered: a longer one is seldom asked for twice."""
_PER_TENANT: Final = 4
"""Refreshes of one tenant at a time: nobody waits for them, so they leave the app to those who do."""
_AT_ONCE: Final = 64
"""Refreshes of all tenants at a time."""
AGAIN: Final = 5.0
"""Seconds after which a key is refreshed again where the last attempt stored nothing."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a request asked for: everything but who asked."""

    method: str
    path: str
    raw_path: bytes | None
    query_string: bytes
    root_path: str
    scheme: str
    fields: tuple[tuple[bytes, bytes], ...]
    """The keyed header fields; credentials that a policy varies by are left out."""
    body: bytes

    @property
    def size(self) -> int:
        """About how many bytes of memory it holds."""
        return (
            400
            + len(self.path)
            + len(self.raw_path or b"")
            + len(self.query_string)
            + sum(len(name) + len(value) + 120 for name, value in self.fields)
            + len(self.body)
        )

    def scope(self, headers: Sequence[tuple[bytes, bytes]], **extra: Any) -> Scope:
        """Write the request down as an ASGI scope, with further header fields that say who asks now."""
        named = {name for name, _ in headers}
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": self.scheme,
            "path": self.path,
            "raw_path": self.raw_path,
            "query_string": self.query_string,
            "root_path": self.root_path,
            "headers": [*(pair for pair in self.fields if pair[0] not in named), *headers],
            "client": None,
            "server": None,
            **extra,
        }


class Hottest:
    """The requests that a tenant asks for most, in so many counters whatever their number.

    Space-Saving (Metwally, Agrawal, El Abbadi 2005): a request without a counter takes over the lowest one. A request
    with more than 1/128 of the weight is always among them. Counts are halved now and then, so that what was hot
    yesterday is not.
    """

    __slots__ = ("_counts", "_weight")

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Target], int] = {}
        self._weight = 0

    def add(self, operation: str, target: Target, weight: int = 1) -> None:
        """Count a request."""
        request = operation, target
        counts = self._counts
        if request in counts or len(counts) < _COUNTERS:
            counts[request] = counts.get(request, 0) + weight
        else:
            lowest = min(counts, key=counts.__getitem__)
            counts[request] = counts.pop(lowest) + weight
        self._weight += weight
        if self._weight > _HALVED_AFTER:
            self._weight //= 2
            self._counts = {each: count // 2 for each, count in counts.items() if count > 1}

    def of(self, operations: Collection[str] | None, most: int) -> tuple[tuple[str, Target], ...]:
        """Return the hottest requests of these operations (None: of all), the hottest first."""
        found = [each for each in self._counts if operations is None or each[0] in operations]
        return tuple(sorted(found, key=self._counts.__getitem__, reverse=True)[:most])


class Recent:
    """The last requests of every tenant's operation, bounded; where that is watched, the hottest of a tenant too."""

    def __init__(self, *, max_bytes: int = 64 * 1024 * 1024) -> None:
        self.watched = False
        """Whether the hottest requests are counted."""
        self.known = KnownRequests()
        """The keys of requests that were looked up lately."""
        self._hits = 0
        self._hottest: Bounded[Hottest] = Bounded(max_bytes=64 * 1024 * 1024, max_entries=_OPERATIONS)
        self._operations: Bounded[OrderedDict[Target, None]] = Bounded(
            max_bytes=max_bytes, max_entries=_OPERATIONS, owner=tenant_of
        )

    def note(self, tenant: str, operation: str, target: Target) -> None:
        """Remember a request as the latest."""
        if target.size > _LONGEST:
            return
        name = _name(tenant, operation)
        targets = self._operations.get(name)
        if targets is None:
            targets = OrderedDict()
            self._operations.put(name, targets, size=0, lifetime=86_400.0)
        grown = 0 if target in targets else target.size
        targets[target] = None
        targets.move_to_end(target)
        if self.watched:
            self._count(tenant, operation, target, 1)
        if len(targets) > _PER_OPERATION:
            grown -= targets.popitem(last=False)[0].size
        if grown:
            self._operations.grow(name, by=grown)

    def forget(self, tenant: str) -> None:
        """Forget what a tenant has asked for."""
        begin = f"{len(tenant)}:{tenant}".encode("utf-8", "surrogatepass")
        for name in [name for name in self._operations if name.startswith(begin)]:
            self._operations.pop(name)
        self._hottest.pop(tenant.encode("utf-8", "surrogatepass"))
        self.known.forget(tenant)

    def samples(self) -> bool:
        """Whether this hit is one of those that `hit` is to be told of."""
        self._hits += 1
        return self._hits % _SAMPLED == 0

    def hit(self, tenant: str, operation: str, target: Target) -> None:
        """Count a hit that stands for those before it."""
        if target.size <= _LONGEST:
            self._count(tenant, operation, target, _SAMPLED)

    def hottest(self, tenant: str, operations: Collection[str] | None, most: int) -> tuple[tuple[str, Target], ...]:
        """Return a tenant's hottest requests, the hottest first."""
        hottest = self._hottest.get(tenant.encode("utf-8", "surrogatepass"))
        return hottest.of(operations, most) if hottest is not None else ()

    def _count(self, tenant: str, operation: str, target: Target, weight: int) -> None:
        name = tenant.encode("utf-8", "surrogatepass")
        hottest = self._hottest.get(name)
        if hottest is None:
            hottest = Hottest()
            self._hottest.put(name, hottest, size=0, lifetime=86_400.0)
        hottest.add(operation, target, weight)

    def of(self, tenant: str, operation: str) -> tuple[Target, ...]:
        """Return the requests of an operation, the latest first."""
        return tuple(reversed(self._operations.get(_name(tenant, operation)) or ()))


def _name(tenant: str, operation: str) -> bytes:
    return b"recent:%b:%b" % (segment(tenant), segment(operation))


@dataclass(slots=True)
class Refreshing:
    """A computation that nobody waits for, and whether its answer was stored."""

    tenant: str
    replaces: float | None = None
    """When the entry that is to be replaced was stored: a later one makes the computation needless. None: computed
    whatever is stored."""
    kept: bool = False
    if_missing: bool = False
    """Only if nothing is stored that could be served."""
    shadow: Computed | None = None
    """Takes the answer, which is then neither stored nor looked up."""
    key: CacheKey | None = None
    """Of the shadow's request."""


class Refreshes:
    """Computations in the background: one per key at a time, and a few per tenant."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._running: dict[bytes, asyncio.Task[None]] = {}
        self._tenants: Counter[str] = Counter()
        self._paused: Bounded[None] = Bounded(
            max_bytes=4 * 1024 * 1024, max_entries=10_000, clock=clock, owner=tenant_of
        )

    def start(self, tenant: str, name: bytes, refresh: Callable[[], Coroutine[Any, Any, bool]]) -> bool:
        """Begin `refresh`, which returns whether it stored anything, for the key of this name; False: not now.

        Not while one of the same key is under way or has just failed, nor beyond the tenant's share.
        """
        loop = asyncio.get_running_loop()
        if self._running and next(iter(self._running.values())).get_loop() is not loop:  # that loop has ended
            self._running.clear()
            self._tenants.clear()
        if (
            name in self._running
            or name in self._paused
            or self._tenants[tenant] >= _PER_TENANT
            or len(self._running) >= _AT_ONCE
        ):
            return False
        # in the request's context: what middlewares left there for the app is what the app will look for
        task = loop.create_task(self._run(name, refresh), name="nexcache-refresh")
        self._running[name] = task
        self._tenants[tenant] += 1
        task.add_done_callback(lambda task: self._ended(task, tenant, name))
        return True

    @property
    def running(self) -> int:
        """How many are under way."""
        return len(self._running)

    async def aclose(self) -> None:
        """Wait for no refresh any more; what the app still computes is stored if it ends soon."""
        await end(*self._running.values())

    async def _run(self, name: bytes, refresh: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        if not await refresh():
            self._paused.put(name, None, size=8, lifetime=AGAIN)

    def _ended(self, task: "asyncio.Task[None]", tenant: str, name: bytes) -> None:
        if self._running.get(name) is task:
            del self._running[name]
            self._tenants[tenant] -= 1
            if self._tenants[tenant] <= 0:
                del self._tenants[tenant]


@dataclass(frozen=True, slots=True)
class Warmed:
    """What became of a warm-up."""

    operation: str
    requested: int
    """How many requests were known."""
    refreshed: int
    """How many of them are now stored anew."""
    failed: int
    """How many were not: the app refused, failed, or answered what may not be stored."""
    ms: float


class Warms(Protocol):
    """An app behind the cache that can compute its requests again."""

    @property
    def operations(self) -> frozenset[str]:
        """The operations that it has policies for."""

    @property
    def policies(self) -> Sequence[Policy]:
        """The policies, in their order."""

    async def refresh(
        self, tenant: str, target: Target, headers: Sequence[tuple[bytes, bytes]], *, if_missing: bool = False
    ) -> bool:
        """Compute one request for the sender of these header fields, and store it; False if that did not work."""
