"""Warm after invalidation: the hottest requests are computed again before anybody asks, within a budget."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from nexcache.asgi import Headers
from nexcache.ending import end
from nexcache.errors import ConfigurationError
from nexcache.refresh import Target
from nexcache.telemetry.events import Emitter, HookFailed

RefreshAs: TypeAlias = Mapping[str, str] | Callable[[str], Mapping[str, str]]
"""The header fields of the service principal, or a function from a tenant to them."""

_MOST_TENANTS: Final = 1_000
"""Tenants that wait for their turn; of more, those that have waited longest go without."""


@dataclass(frozen=True, slots=True)
class Refresh:
    """How much may be computed ahead: the `top` hottest requests per invalidation, so many at once and per second.

    Raises ConfigurationError for a budget of nothing.
    """

    top: int = 10
    concurrency: int = 2
    per_second: float = 10.0

    def __post_init__(self) -> None:
        if self.top < 1 or self.concurrency < 1 or not self.per_second > 0:
            raise ConfigurationError("Refresh: top, concurrency and per_second must be more than 0")


class Warms(Protocol):
    """What warming needs of the cache."""

    def watch_hottest(self) -> None:
        """Begin to count which requests are asked for most."""

    def hottest(self, tenant: str, operations: Collection[str] | None, most: int) -> Sequence[tuple[str, Target]]:
        """Return the requests that are asked for most, with their operations (None: of any operation)."""

    async def refill(self, tenant: str, operation: str, target: Target, headers: Headers) -> bool:
        """Compute a request for the sender of these header fields if no answer to it is stored."""

    @property
    def emitter(self) -> Emitter:
        """Where events go."""


class Warming:
    """Computes the hottest requests of invalidated tenants again, one tenant after the other."""

    def __init__(
        self, cache: Warms, refresh_as: RefreshAs, budget: Refresh, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not isinstance(refresh_as, Mapping) and not callable(refresh_as):
            raise ConfigurationError('refresh_as takes header fields, such as {"x-api-key": "…"}, or a function')
        self._cache = cache
        self._refresh_as = refresh_as
        self._budget = budget
        self._clock = clock
        self._wanted: OrderedDict[str, set[str] | None] = OrderedDict()
        self._worker: asyncio.Task[None] | None = None
        self._free_at = 0.0
        cache.watch_hottest()

    def after(self, tenant: str, invalidated: Iterable[str]) -> None:
        """Have a tenant's turn come; `invalidated` as `Invalidation.targets` names it."""
        names: set[str] | None = set()
        for name in invalidated:
            if name == "*" or name.startswith("tag:"):  # whose entries depend on a tag is not known
                names = None
                break
            assert names is not None  # noqa: S101 - for the type checker: the loop ends with None
            names.add(name)
        known = self._wanted.pop(tenant, names)
        self._wanted[tenant] = None if known is None or names is None else known | names
        if len(self._wanted) > _MOST_TENANTS:
            self._wanted.popitem(last=False)
        loop = asyncio.get_running_loop()
        if self._worker is None or self._worker.done() or self._worker.get_loop() is not loop:
            self._worker = loop.create_task(self._work(), name="nexcache-warming")

    async def aclose(self) -> None:
        """Stop; what is not computed yet is computed when it is asked for."""
        self._wanted.clear()
        worker, self._worker = self._worker, None
        await end(worker)

    async def _work(self) -> None:
        gate = asyncio.Semaphore(self._budget.concurrency)
        async with asyncio.TaskGroup() as group:
            while self._wanted:
                tenant, operations = self._wanted.popitem(last=False)
                headers = self._headers(tenant)
                if headers is None:
                    continue
                for operation, target in self._cache.hottest(tenant, operations, self._budget.top):
                    await gate.acquire()
                    await self._pace()
                    task = group.create_task(self._refill(tenant, operation, target, headers))
                    task.add_done_callback(lambda _: gate.release())

    async def _pace(self) -> None:
        now = self._clock()
        wait = self._free_at - now
        self._free_at = max(now, self._free_at) + 1 / self._budget.per_second
        if wait > 0:
            await asyncio.sleep(wait)

    async def _refill(self, tenant: str, operation: str, target: Target, headers: Headers) -> None:
        try:
            await self._cache.refill(tenant, operation, target, headers)
        except Exception as error:  # noqa: BLE001 - warming is never in the way of anything
            self._cache.emitter.emit(HookFailed("refresh", type(error).__name__))

    def _headers(self, tenant: str) -> Headers | None:
        try:
            fields = self._refresh_as(tenant) if callable(self._refresh_as) else self._refresh_as
            return tuple((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields.items())
        except Exception as error:  # noqa: BLE001 - without credentials nothing is computed
            self._cache.emitter.emit(HookFailed("refresh_as", type(error).__name__))
            return None
