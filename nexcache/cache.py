"""NexCache: the thin face of a cache. Every call goes on to the part that does it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self
from weakref import WeakSet

from nexcache.alerts import Alert
from nexcache.collapse import Flights
from nexcache.entries import Entries
from nexcache.explain import Behind, Explanation, scope_of
from nexcache.fill_lease import FillLeases
from nexcache.health import Health
from nexcache.invalidation.apply import Invalidation
from nexcache.invalidation.targets import Targets
from nexcache.key import KeySpace
from nexcache.ladder import rung_of
from nexcache.ledger import Statistics
from nexcache.policy import Policy, seconds
from nexcache.rate_limit import Algorithm, Rate, RateLimit
from nexcache.refresh import Recent, Refreshes, Target, Warmed
from nexcache.sample import Preview, Sample
from nexcache.settings import Settings
from nexcache.shadowing import Shadows
from nexcache.stores.base import StoreHealth
from nexcache.telemetry.counts import Counts
from nexcache.telemetry.events import Emitter, Stopped
from nexcache.telemetry.names import Trigger
from nexcache.telemetry.prometheus import CONTENT_TYPE
from nexcache.wiring import build, version

if TYPE_CHECKING:
    from nexcache.stores.redis import RedisCommands
    from nexcache.stores.target import CredentialProvider

_WARMED_AT_ONCE: Final = 4
_GRACE: Final = 5.0
_BUDGET_FACTOR: Final = 1.2


class Flushes(Protocol):
    """What keeps invalidations back for a while."""

    def started(self, policies: Sequence[Policy]) -> None:
        """Note that the cache was started, with these policies."""

    async def aclose(self) -> None:
        """Carry out what is kept back."""


class NexCache:
    """A cache of one program: configuration, life cycle, and what is done by hand.

    It opens nothing until it is used. `async with cache`, or the app's lifespan, closes it; so does `aclose()`,
    any number of times, and the next use opens it again.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        store: "RedisCommands | None" = None,
        credential_provider: "CredentialProvider | None" = None,
    ) -> None:
        self.settings: Settings = settings if settings is not None else Settings()
        self._parts = build(self.settings, store=store, credentials=credential_provider)
        self._told = False
        self.enabled: bool = self.settings.enabled
        self.store_budget: float = self.settings.op_timeout_ms / 1000 * _BUDGET_FACTOR
        self._disabled: set[str] = set()
        self._apps: WeakSet[Behind] = WeakSet()
        self._attached: WeakSet[Flushes] = WeakSet()

    @classmethod
    def from_env(cls, *, credential_provider: "CredentialProvider | None" = None, **overrides: Any) -> "NexCache":
        """Build a cache from the environment and `.env`; raises ConfigurationError naming a bad setting.

        `credential_provider` is the client's: it is asked for user and password at every new connection.
        """
        return cls(Settings(**overrides), credential_provider=credential_provider)

    # --- what the parts of the package use -----------------------------------------------------------------

    @property
    def keys(self) -> KeySpace:
        """The key space."""
        return self._parts.keys

    @property
    def entries(self) -> Entries:
        """The entries."""
        return self._parts.entries

    @property
    def flights(self) -> Flights:
        """The computations under way."""
        return self._parts.flights

    @property
    def leases(self) -> FillLeases | None:
        """The leases of fills; None where there are no other nodes."""
        return self._parts.leases

    @property
    def counts(self) -> Counts:
        """What happened so far in this process, as plain numbers."""
        return self._parts.counts

    @property
    def emitter(self) -> Emitter:
        """Where events can be listened to."""
        return self._parts.emitter

    @property
    def recent(self) -> Recent:
        """The requests that can be warmed."""
        return self._parts.recent

    @property
    def refreshes(self) -> Refreshes:
        """The refreshes under way."""
        return self._parts.refreshes

    @property
    def shadows(self) -> Shadows:
        """The shadow checks."""
        return self._parts.shadows

    def register(self, app: Behind) -> None:
        """Make an app's operations known, and able to be warmed; held weakly."""
        self._apps.add(app)

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies of the apps that use this cache."""
        return tuple(policy for app in self._apps for policy in app.policies)

    def attach(self, part: Flushes) -> None:
        """Have what keeps invalidations back told of the start, and closed before the cache; held weakly."""
        self._attached.add(part)

    def watch_hottest(self) -> None:
        """Begin to count which requests are asked for most."""
        self._parts.recent.watched = True

    def hottest(self, tenant: str, operations: Collection[str] | None, most: int) -> Sequence[tuple[str, Target]]:
        """Return the requests that a tenant asks for most in this process, with their operations."""
        return self._parts.recent.hottest(tenant, operations, most)

    async def refill(self, tenant: str, operation: str, target: Target, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Compute a request for the sender of these header fields if no answer to it is stored."""
        apps = [app for app in self._apps if operation in app.operations]
        return any([await app.refresh(tenant, target, headers, if_missing=True) for app in apps])

    def ttl_of(self, policy: Policy) -> float:
        """Return for how many seconds a policy's responses are kept: CACHE_TTL_<OP>, the policy's own, the default."""
        ttl = self.settings.ttl_of(policy.op)
        if ttl is None:
            ttl = self.settings.ttl_seconds if policy.ttl is None else seconds(policy.ttl)
        for generations in self._parts.generations:
            generations.keep_for(ttl if policy.window is None else max(ttl, policy.window.longest))
        return ttl

    # --- life cycle ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Say once which store is used. Sockets open at the first request."""
        if not self._told:
            self._told = True
            self.emitter.emit(self._parts.started)
        self._parts.ledger.start()
        self._parts.watch.start()
        if self._parts.coherence is not None:
            self._parts.coherence.start()
        for part in tuple(self._attached):
            part.started(self.policies)

    async def aclose(self) -> None:
        """Let computations finish, deliver what is queued, and close the sockets."""
        self.emitter.emit(Stopped())
        for part in tuple(self._attached):
            await part.aclose()
        await self._parts.refreshes.aclose()
        await self._parts.shadows.aclose()
        await self._parts.flights.aclose(_GRACE)
        if self._parts.leases is not None:
            await self._parts.leases.aclose()
        await self._parts.invalidations.aclose()
        await self._parts.entries.aclose()
        await self._parts.ledger.aclose()
        await self._parts.watch.aclose()
        if self._parts.coherence is not None:
            await self._parts.coherence.aclose()
        await self._parts.store.aclose()

    async def __aenter__(self) -> Self:
        """Start the cache."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the cache."""
        await self.aclose()

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """Start and close the cache with an app that takes a `lifespan` (Starlette, FastAPI)."""
        del app
        async with self:
            yield

    # --- by hand -------------------------------------------------------------------------------------------

    async def invalidate(
        self,
        tenant: str,
        operation: str | None = None,
        *,
        tags: Sequence[str] = (),
        wait: Literal["fast", "strict"] = "fast",
    ) -> Invalidation:
        """Make everything that depends on the targets a miss, at a cost that does not depend on its number.

        `operation` is a name or a glob, `"*"` the whole tenant; with `tags` it is the union. Once it is
        acknowledged, no request that starts later is answered from data captured before; with `wait="fast"` the
        memories of other nodes may lag behind by their lease (`CACHE_L1_LEASE_MS`), usually by a few milliseconds,
        with `"strict"` they may not. Raises InvalidName for a bad name and ValueError for no target, never for the
        store: see `Invalidation`.
        """
        if isinstance(tags, str):
            raise TypeError(f'tags takes a list, such as ["{tags}"], not one string')
        if wait not in ("fast", "strict"):
            raise ValueError(f'wait is "fast" or "strict", not {wait!a}')
        targets = Targets.of(() if operation is None else (operation,), tags)
        return await self.invalidate_targets(tenant, targets, trigger=Trigger.API, strict=wait == "strict")

    async def invalidate_targets(
        self,
        tenant: str,
        targets: Targets,
        *,
        trigger: Trigger,
        strict: bool = False,
        links: Sequence[object] = (),
    ) -> Invalidation:
        """Do what `invalidate` does for targets that were collected elsewhere; `links` says by which requests."""
        return await self._parts.invalidations.apply(tenant, targets, trigger=trigger, strict=strict, links=links)

    async def preview(self, tenant: str, operation: str | None = None, *, tags: Sequence[str] = ()) -> Preview:
        """Say what `invalidate` with these targets would reach, by operation and tag, and change nothing.

        The number of entries is exact as long as it is small; beyond that a bounded part is read and the rest
        projected (`estimated`). Raises as `invalidate` does.
        """
        if isinstance(tags, str):
            raise TypeError(f'tags takes a list, such as ["{tags}"], not one string')
        return await self.preview_targets(tenant, Targets.of(() if operation is None else (operation,), tags))

    async def preview_targets(self, tenant: str, targets: Targets) -> Preview:
        """Do what `preview` does for targets that were collected elsewhere."""
        return await self._parts.sampler.preview(tenant, targets)

    async def explain(
        self,
        tenant: str,
        request: str | Mapping[str, Any],
        *,
        method: str = "GET",
        principal: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        complete: bool | None = None,
    ) -> Explanation:
        """Say why a request of a tenant is, or is not, answered from the cache, and what would invalidate its answer.

        `request` is a path with its query, as a client sends it, or the parts of an ASGI scope. With `complete`
        (the default for a path) the host and other keyed fields are those of the latest such request that this
        process has answered. Without `principal` it is whom the header fields stand for. Changes nothing; raises
        ValueError for what is no path, InvalidName for what is no tenant, never for the store.
        """
        scope = scope_of(request, method=method, headers=headers)
        if complete is None:
            complete = isinstance(request, str)
        return await self._parts.explainer.explain(
            tuple(self._apps), tenant, scope, principal=principal, complete=complete
        )

    async def sample(self, tenant: str) -> Sample:
        """Take a bounded look at what a tenant has stored; never raises for the store."""
        return await self._parts.sampler.of(tenant)

    async def tenants(self) -> tuple[frozenset[str], bool]:
        """Return the tenants that this process or the store knows of, and whether these are all."""
        stored, complete = await self._parts.sampler.tenants()
        return stored | {tenant for tenant, _, _ in self.counts if tenant}, complete

    def metrics_text(self, tenant: str | None = None) -> tuple[str, str]:
        """Return this process's metrics for Prometheus, and their media type; of all tenants (None) or one."""
        return self._parts.prometheus.render(tenant), CONTENT_TYPE

    @property
    def alerts(self) -> Sequence[Alert]:
        """The alerts of this process and their state."""
        return self._parts.watch.alerts

    @property
    def store_name(self) -> str:
        """Where entries are kept, as the start-up line says it."""
        return self._parts.started.description

    @property
    def version(self) -> str:
        """NexCache's version."""
        return version()

    def disable(self, operation: str) -> None:
        """Send all requests of an operation to the app from now on, in this process."""
        self._disabled.add(operation)

    def enable(self, operation: str) -> None:
        """Undo `disable`."""
        self._disabled.discard(operation)

    def is_disabled(self, operation: str) -> bool:
        """Whether an operation was switched off by `disable`."""
        return operation in self._disabled

    async def stats(self, tenant: str) -> Statistics:
        """Return a tenant's statistics: of all processes, or of this one where there is no store or it is away."""
        return await self._parts.ledger.of(tenant)

    async def operations(self, tenant: str) -> frozenset[str]:
        """Return the operations that are known: those with a policy, and those that the tenant has entries of."""
        return frozenset().union(
            *(app.operations for app in self._apps), await self._parts.invalidations.operations(tenant)
        )

    async def warm(
        self,
        tenant: str,
        operation: str,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        progress: Callable[[Warmed], None] | None = None,
    ) -> Warmed:
        """Compute an operation's recent requests again, with the permissions that these header fields give.

        The requests are those that this process has seen; the app is called in process, a few at a time, and
        decides as for any request of the sender. Nothing that is requested elsewhere or from outside. `progress` is
        told after each of them how far it is.
        """
        started = time.perf_counter()
        targets = self._parts.recent.of(tenant, operation)
        apps = [app for app in self._apps if operation in app.operations]
        gate = asyncio.Semaphore(_WARMED_AT_ONCE)

        refreshed = done = 0

        def so_far() -> Warmed:
            ms = (time.perf_counter() - started) * 1000
            return Warmed(operation, len(targets), refreshed, done - refreshed, round(ms, 3))

        async def refresh(target: Target) -> None:
            nonlocal refreshed, done
            async with gate:
                kept = any([await app.refresh(tenant, target, headers) for app in apps])
                refreshed += kept
                done += 1
                if progress is not None:
                    progress(so_far())

        async with asyncio.TaskGroup() as group:
            for target in targets:
                group.create_task(refresh(target))
        return so_far()

    # --- rate limits ---------------------------------------------------------------------------------------

    def rate_limit(
        self,
        rate: str | Rate,
        *,
        name: str = "default",
        algorithm: Algorithm | str = Algorithm.GCRA,
        when_away: Literal["local", "open", "closed"] = "local",
        instances: int = 1,
    ) -> RateLimit:
        """Make a limit such as `"100/minute"`, counted in the store for all processes together.

        Limits of one name, rate and algorithm share their counts. Raises ConfigurationError for what is no rate.
        """
        return RateLimit(
            rate,
            name=name,
            algorithm=algorithm,
            when_away=when_away,
            instances=instances,
            store=self._parts.scripted,
            keys=self.keys,
            local=self._parts.limits,
            budget=self.store_budget,
        )

    async def check_rate_limit(
        self, api: str, limit: int, window: float | str, *, tenant: str = "default"
    ) -> tuple[bool, int]:
        """Count one call of an API if fewer than `limit` were allowed in this window; returns (allowed, count).

        `window` is seconds, or text such as `"1d"`, and begins with its first call.
        """
        rate = Rate(limit, seconds(window, "window"))
        decision = await self.rate_limit(rate, name="api", algorithm=Algorithm.FIXED_WINDOW).check(api, tenant=tenant)
        return decision.allowed, decision.count

    @property
    def queued(self) -> int:
        """How many tenants have invalidations that this process knows of and the store, being away, does not yet."""
        return self._parts.invalidations.queued

    async def health(self) -> StoreHealth:
        """Ask the store how it is."""
        return await self._parts.store.health()

    async def status(self) -> Health:
        """Ask the store how it is, and say in which state the cache answers."""
        parts = self._parts
        store = await parts.store.health()
        backplane = parts.coherence.connected if parts.coherence is not None else None
        return Health(
            store=store,
            state=rung_of(
                enabled=self.enabled,
                available=store.available,
                backplane=backplane,
                response_time=store.response_time_ms / 1000,
                timeout=self.settings.op_timeout_ms / 1000,
            ),
            backplane=backplane,
            queued=parts.invalidations.queued,
            running=parts.flights.running,
            listener_failures=self.emitter.failures,
            tracing_failures=parts.tracing.failures,
            alerts=tuple(alert.rule.name for alert in self.alerts if alert.firing),
        )
