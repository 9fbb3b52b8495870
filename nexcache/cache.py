"""NexCache: the thin face of a cache. Every call goes on to the part that does it."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self, TypeVar
from weakref import WeakSet, ref

from nexcache.admission import Admission
from nexcache.after_commit import after_django, after_sqlalchemy
from nexcache.alerts import Alert
from nexcache.collapse import Flights
from nexcache.entries import Entries
from nexcache.errors import ConfigurationError, NoTenant, StoreUnavailable
from nexcache.explain import Behind, Explanation, scope_of
from nexcache.fill_lease import FillLeases
from nexcache.forgetting import Forgotten, forget
from nexcache.functions import Calls, Decorator, Options, Tags, TenantOf, question_of_parts
from nexcache.health import Health
from nexcache.invalidation.apply import Invalidation, check_invalidation
from nexcache.invalidation.targets import Targets
from nexcache.key import KeySpace
from nexcache.ladder import Rung, rung_of
from nexcache.ledger import Statistics
from nexcache.policy import LONGEST, Duration, Policy, Size, seconds
from nexcache.rate_limit import Algorithm, Rate, RateLimit
from nexcache.refresh import Recent, Refreshes, Target, Warmed
from nexcache.sample import Preview, Sample
from nexcache.sessions import Sessions
from nexcache.settings import Settings
from nexcache.shadowing import Shadows
from nexcache.stores.base import StoreHealth
from nexcache.switches import Switches
from nexcache.sync import SyncFace, keep_for_ever
from nexcache.telemetry.counts import Counts
from nexcache.telemetry.events import Emitter, Stopped
from nexcache.telemetry.names import Bypass, Trigger
from nexcache.telemetry.prometheus import CONTENT_TYPE
from nexcache.tenants import is_valid_id
from nexcache.trends import Trend
from nexcache.turns import Turns
from nexcache.value_codec import Types
from nexcache.values import Backend, FallbackValues, MemoryValues, Values
from nexcache.wiring import BUDGET_FACTOR, Parts, build, version

if TYPE_CHECKING:
    from nexcache.stores.redis import RedisCommands
    from nexcache.stores.target import CredentialProvider

T = TypeVar("T")
_WARMED_AT_ONCE: Final = 4
_GRACE: Final = 5.0


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
        default_tenant: str | None = None,
    ) -> None:
        self.settings: Settings = settings if settings is not None else Settings()
        self.default_tenant: str | None = default_tenant if default_tenant is not None else self.settings.default_tenant
        """Whose calls are those of cached functions that name no tenant; None: such a call is an error."""
        if self.default_tenant is not None and not is_valid_id(self.default_tenant):
            raise ConfigurationError(f"default_tenant is no tenant's id: {self.default_tenant!a}")
        self.types: Types = Types()
        """The classes that cached functions and values restore, beside those of their annotations."""
        self.sync: SyncFace = SyncFace(self)
        """The same calls for synchronous code."""
        self.home: asyncio.AbstractEventLoop | None = None
        """The event loop that the cache is used on."""
        self._store = store
        self._credentials = credential_provider
        self._use(build(self.settings, store=store, credentials=credential_provider))
        self._inside = self.emitter.listeners
        self._longest_ttl = 0.0
        self._entries_live(max(self.settings.tenant_ttls.values(), default=0.0))
        _caches.add(self)
        self._told = False
        self.enabled: bool = self.settings.enabled
        """Whether the cache is used at all; may be changed at any time, for this process."""
        self.store_budget: float = self.settings.op_timeout_ms / 1000 * BUDGET_FACTOR
        self._apps: WeakSet[Behind] = WeakSet()
        self._attached: WeakSet[Flushes] = WeakSet()

    @classmethod
    def from_env(cls, *, credential_provider: "CredentialProvider | None" = None, **overrides: Any) -> "NexCache":
        """Build a cache from the environment and `.env`; raises ConfigurationError naming a bad setting.

        `credential_provider` is the client's: it is asked for user and password at every new connection.
        """
        return cls(Settings(**overrides), credential_provider=credential_provider)

    # --- what the parts of the package use -----------------------------------------------------------------

    def _use(self, parts: Parts) -> None:
        # what each request reads are plain attributes: a property costs as much as what it is read for
        self._parts: Parts = parts
        owner = ref(self)
        parts.ladder.enabled = lambda: (cache := owner()) is None or cache.enabled
        self.entries: Entries = parts.entries
        """The entries."""
        self.flights: Flights = parts.flights
        """The computations under way."""
        self.counts: Counts = parts.counts
        """What happened so far in this process, as plain numbers."""
        self.emitter: Emitter = parts.emitter
        """Where events can be listened to."""
        self.recent: Recent = parts.recent
        """The requests that can be warmed."""
        self.shadows: Shadows = parts.shadows
        """The shadow checks."""
        self.refreshes: Refreshes = parts.refreshes
        """The refreshes under way."""
        self.admission: Admission = parts.admission
        """Which answers are stored."""
        self.turns: Turns = parts.turns
        """How many computations each tenant has under way."""
        self.leases: FillLeases | None = parts.leases
        """The leases of fills; None where there are no other nodes."""
        self.keys: KeySpace = parts.keys
        """The key space."""
        self.switches: Switches = parts.switches
        """Which operations are switched off."""

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
        ttl = self.ttl_for(policy.op, policy.ttl)
        if policy.window is not None:
            self._entries_live(policy.window.longest)
        return ttl

    def ttl_for(self, operation: str, given: Duration | None, *, tenant: str | None = None) -> float:
        """Return for how many seconds an operation's results are kept.

        CACHE_TENANT_TTLS, then CACHE_TTL_<OP>, what is given, the default.
        """
        ttl = self.settings.tenant_ttl(tenant, operation) if tenant is not None else None
        if ttl is None:
            ttl = self.settings.ttl_of(operation)
        if ttl is None:
            ttl = self.settings.ttl_seconds if given is None else seconds(given, "ttl")
            if not 0 < ttl <= LONGEST:
                raise ConfigurationError(f"{operation}: ttl must be more than 0 seconds and at most 30 days")
        self._entries_live(ttl)
        return ttl

    def tenant_ttl(self, tenant: str, operation: str) -> float | None:
        """Return the seconds that CACHE_TENANT_TTLS sets for a tenant's operation; None: none."""
        return self.settings.tenant_ttl(tenant, operation) if self.settings.tenant_ttls else None

    def _entries_live(self, ttl: float) -> None:
        if ttl > self._longest_ttl:
            self._longest_ttl = ttl
            for generations in self._parts.generations:
                generations.keep_for(ttl)

    @property
    def calls(self) -> Calls:
        """What answers the calls of cached functions."""
        return self._parts.calls

    # --- life cycle ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Say once which store is used. Sockets open at the first request.

        The cache is used on one event loop: that of the last caller that is not `cache.sync`.
        """
        loop = asyncio.get_running_loop()
        if self.home is loop:
            return
        await self.sync.hand_over(loop)
        self.home = loop
        if not self._told:
            self._told = True
            self.emitter.emit(self._parts.started)
        self._parts.ledger.start()
        self.switches.start()
        self._parts.watch.start()
        if self._parts.coherence is not None:
            self._parts.coherence.start()
        for part in tuple(self._attached):
            part.started(self.policies)

    async def aclose(self) -> None:
        """Let computations finish, deliver what is queued, and close the sockets."""
        if self.home is asyncio.get_running_loop():
            self.home = None
        self.emitter.emit(Stopped())
        for part in tuple(self._attached):
            await part.aclose()
        await self._parts.refreshes.aclose()
        await self._parts.shadows.aclose()
        await asyncio.gather(self._parts.flights.aclose(_GRACE), self._parts.calls.aclose(_GRACE))
        if self._parts.leases is not None:
            await self._parts.leases.aclose()
        await self._parts.invalidations.aclose()
        await self._parts.entries.aclose()
        await self._parts.ledger.aclose()
        await self.switches.aclose()
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
        soft: bool = False,
        wait: Literal["fast", "strict"] = "fast",
    ) -> Invalidation:
        """Make everything that depends on the targets a miss, at a cost that does not depend on its number.

        `operation` is a name or a glob, `"*"` the whole tenant; with `tags` it is the union. Once it is
        acknowledged, no request that starts later is answered from data captured before; with `wait="fast"` the
        memories of other nodes may lag behind by their lease (`CACHE_L1_LEASE_MS`), usually by a few milliseconds,
        with `"strict"` they may not. With `soft`, responses of policies with `stale_while_revalidate` may be served for
        that long yet, while they are computed anew. Raises InvalidName for a bad name and ValueError for no target,
        never for the store: see `Invalidation`.
        """
        targets = _targets(operation, tags, wait)
        return await self.invalidate_targets(tenant, targets, trigger=Trigger.API, strict=wait == "strict", soft=soft)

    async def invalidate_targets(
        self,
        tenant: str,
        targets: Targets,
        *,
        trigger: Trigger,
        strict: bool = False,
        soft: bool = False,
        links: Sequence[object] = (),
    ) -> Invalidation:
        """Do what `invalidate` does for targets that were collected elsewhere; `links` says by which requests."""
        return await self._parts.invalidations.apply(
            tenant, targets, trigger=trigger, strict=strict, soft=soft, links=links
        )

    def after_commit(
        self,
        tenant: str,
        operation: str | None = None,
        *,
        tags: Sequence[str] = (),
        soft: bool = False,
        wait: Literal["fast", "strict"] = "fast",
        session: Any = None,
        using: str | None = None,
    ) -> None:
        """Invalidate when the surrounding transaction has committed; what was rolled back invalidates nothing.

        The transaction is that of a SQLAlchemy `session` (`Session` or `AsyncSession`), without one that of this
        thread's Django connection to the database `using`. Where Django has none open it is done now. The commit
        returns when the invalidation has. Raises as `invalidate` does, and at once.
        """
        targets = _targets(operation, tags, wait)
        check_invalidation(tenant, targets)

        def invalidate() -> Coroutine[Any, Any, Invalidation]:
            return self.invalidate_targets(tenant, targets, trigger=Trigger.API, strict=wait == "strict", soft=soft)

        if session is not None:
            after_sqlalchemy(invalidate, self.sync.run, session)
        else:
            after_django(invalidate, self.sync.run, using)

    async def preview(self, tenant: str, operation: str | None = None, *, tags: Sequence[str] = ()) -> Preview:
        """Say what `invalidate` with these targets would reach, by operation and tag, and change nothing.

        The number of entries is exact as long as it is small; beyond that a bounded part is read and the rest
        projected (`estimated`). Raises as `invalidate` does.
        """
        return await self.preview_targets(tenant, _targets(operation, tags))

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
        """Send all requests of an operation to the app from now on, in this process; `switch` does it on all nodes."""
        self.switches.here(operation, off=True)

    def enable(self, operation: str) -> None:
        """Undo `disable`."""
        self.switches.here(operation, off=False)

    def is_disabled(self, operation: str, tenant: str | None = None) -> bool:
        """Whether an operation is switched off, for all tenants or for this one."""
        return self.switches.is_off(operation, tenant)

    async def switch(self, operation: str, *, tenant: str | None = None, off: bool) -> bool:
        """Send an operation's requests to the app, or no longer: a tenant's or everybody's, on all nodes.

        The others know within two seconds, and so do those that start later. False: the store is away, so that it
        holds here and the others are told when it is back. What is stored stays, and may be served again afterwards
        unless it was invalidated meanwhile.
        """
        return await self.switches.switch(operation, tenant, off=off)

    @property
    def shares(self) -> bool:
        """Whether there is a store that other processes may use, too."""
        return self._parts.scripted is not None

    async def stats(self, tenant: str | None = None, *, usage: bool = True) -> Statistics:
        """Return a tenant's statistics: of all processes, or of this one where there is no store or it is away.

        Without `tenant` they are those of the `default_tenant`; raises NoTenant if there is none. `usage` counts what
        the tenant holds, which takes a bounded look at the store.
        """
        tenant = tenant if tenant is not None else self.default_tenant
        if tenant is None:
            raise NoTenant("stats")
        return await self._parts.ledger.of(tenant, usage=usage)

    async def trend(self, tenant: str) -> Trend:
        """Return what happened to a tenant's requests within the last hour, in slots of half a minute."""
        return await self._parts.ledger.trend(tenant)

    @property
    def memory(self) -> tuple[int, int, int, int]:
        """This process's entries and their bytes, of all tenants together, and the most of both that it may hold."""
        entries, size = self._parts.held.size
        return entries, size, self.settings.l1_max_entries, self.settings.l1_max_bytes

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

    # --- functions and values ------------------------------------------------------------------------------

    def cached(
        self,
        operation: str,
        *,
        ttl: Duration | None = None,
        key: Callable[..., Any] | None = None,
        tags: Tags = (),
        tenant: TenantOf = None,
        exclude: Sequence[str] = (),
        cache_none: bool = True,
        condition: Callable[[Any], bool] | None = None,
        version: str = "",
        max_size: Size = "1MiB",
        types: Sequence[Any] = (),
    ) -> Decorator:
        """Cache the results of a coroutine function, or method, under an operation's name.

        A call is found by the function's name and all of its arguments, except those that `exclude` names; or, with
        `key`, by what that callable makes of the arguments, and nothing else. `tenant` names the argument that holds
        it, or is a callable of the arguments; without it, it is that of the request (`tenants.current`), or
        `default_tenant`. `tags` are templates of the arguments' names (`"user:{user_id}"`), or a callable of them.

        An exception is never cached. None is, unless `cache_none=False`; what `condition` refuses is not. `version`
        is to be changed with what the results mean. `types` are classes that may come back, beside those that the
        return annotation names. What cannot be written down is returned, and not kept.
        """
        return Decorator(
            self,
            Options(
                operation,
                ttl=ttl,
                key=key,
                tags=tags,
                tenant=tenant,
                exclude=exclude,
                cache_none=cache_none,
                condition=condition,
                version=version,
                max_size=max_size,
                types=tuple(types),
            ),
        )

    async def get_or_compute(
        self,
        tenant: str,
        operation: str,
        parts: Sequence[Any],
        compute: Callable[[], Awaitable[T]],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
    ) -> T:
        """Return what is kept for a tenant's operation under these parts, or compute and keep it.

        It is found by its parts alone: a function cached with a `key` that returns the same tuple shares it. Raises
        what `compute` raises, and keeps nothing then; InvalidName for a bad name or tag, CannotKey for a bad part.
        """
        started = time.perf_counter()
        asker, question = question_of_parts(self, tenant, operation, parts, ttl=ttl, tags=tags, started=started)
        if asker.is_off(question.tenant):
            try:
                return await compute()
            finally:
                asker.bypassed(question.tenant, Bypass.DISABLED, question.span, started)
        await self.start()
        return await self.calls.answer(question, compute)

    def tenant(
        self,
        name: str,
        *,
        when_away: Literal["raise", "memory"] = "raise",
        types: Sequence[Any] = (),
        encrypted: bool = False,
    ) -> Values:
        """Return a tenant's own values: get, set, delete, exists, increment, expire, get_many, set_many, pipeline.

        They are kept until they are deleted or their expiry is over, under a prefix that no invalidation reaches.
        While the store is away calls raise StoreUnavailable, or go on in this process with `when_away="memory"`.
        `types` are classes that may come back. `encrypted` needs `CACHE_ENCRYPTION_KEYS` where there is a store.
        """
        parts = self._parts
        backend, in_process = self._backend_of("values", name, when_away, encrypted=encrypted)
        if when_away == "memory" and not in_process:
            backend = FallbackValues(backend, parts.memory_values)
        return Values(
            tenant=name,
            backend=backend,
            keys=self.keys,
            codec=parts.codec,
            types=Types(types, others=self.types),
            seals=parts.vault if encrypted else None,
        )

    def sessions(
        self,
        *,
        ttl: Duration = "1h",
        max_age: Duration = "7d",
        tenant: str | None = None,
        when_away: Literal["raise", "memory"] = "raise",
        types: Sequence[Any] = (),
        encrypted: bool = False,
    ) -> Sessions:
        """Return an application's sessions: create, get, update, save, rotate, delete, revoke.

        They end `ttl` after their last use, and `max_age` after their beginning. `tenant` is whose they are: by
        default the `default_tenant`, or "default". While the store is away calls raise StoreUnavailable; with
        `when_away="memory"` new ones are held in this process and go over to the store later. `types` are classes
        that may come back. `encrypted` needs `CACHE_ENCRYPTION_KEYS` where there is a store.
        """
        tenant = tenant or self.default_tenant or "default"
        backend, in_process = self._backend_of("sessions", tenant, when_away, encrypted=encrypted)
        parts = self._parts
        return Sessions(
            ttl=ttl,
            max_age=max_age,
            tenant=tenant,
            backend=backend,
            memory=parts.memory_values if when_away == "memory" and not in_process else None,
            keys=self.keys,
            codec=parts.codec,
            types=Types(types, others=self.types),
            seals=parts.vault if encrypted else None,
        )

    def _backend_of(self, what: str, tenant: str, when_away: str, *, encrypted: bool) -> tuple[Backend, bool]:
        """Return where values are kept, and whether that is this process; raises for what cannot be."""
        if when_away not in ("raise", "memory"):
            raise ValueError(f'when_away is "raise" or "memory", not {when_away!a}')
        backend = self._parts.values
        in_process = isinstance(backend, MemoryValues)
        if encrypted and self._parts.vault is None and not in_process:
            raise ConfigurationError(f"the {what} of {tenant!a} are to be encrypted: set CACHE_ENCRYPTION_KEYS")
        return backend, in_process

    # --- rate limits ---------------------------------------------------------------------------------------

    def rate_limit(
        self,
        rate: str | Rate,
        *,
        name: str = "default",
        algorithm: Algorithm | str = Algorithm.GCRA,
        when_away: Literal["local", "open", "closed"] = "local",
        instances: int | None = None,
    ) -> RateLimit:
        """Make a limit such as `"100/minute"`, counted in the store for all processes together.

        Limits of one name, rate and algorithm share their counts. `instances` is how many processes there are:
        CACHE_INSTANCES by default. Raises ConfigurationError for what is no rate.
        """
        return RateLimit(
            rate,
            name=name,
            algorithm=algorithm,
            when_away=when_away,
            instances=self.settings.processes if instances is None else instances,
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

    # --- maintenance ---------------------------------------------------------------------------------------

    async def forget(
        self,
        tenant: str,
        *,
        resume: Forgotten | None = None,
        progress: Callable[[Forgotten], None] | None = None,
    ) -> Forgotten:
        """Remove everything that there is of a tenant, for good, on all nodes.

        That is its entries, generations, values, sessions, rate limits, quota account, statistics, switched-off
        operations and encryption key.
        First nothing of it can be read any more; then the store is looked through in steps that hold up nobody, after
        each of which `progress` is told how far it is. Repeating it is harmless, and `resume` goes on where it ended.
        What the tenant's requests do meanwhile is new. Raises InvalidName for a bad name, and StoreError if the
        store does not answer; what was done until then stays done.
        """
        done = await self.invalidate(tenant, "*", wait="strict")
        if not done.acknowledged:
            raise StoreUnavailable("connection", "the store does not answer: the tenant is not forgotten")
        parts = self._parts
        if parts.vault is not None:
            await parts.vault.shred(tenant)
        here = self.entries.forget(tenant)
        for family in (self.keys.values(tenant), self.keys.sessions(tenant)):
            here += parts.memory_values.forget(family)
        parts.limits.forget(self.keys.limits(tenant))
        parts.ledger.forget(tenant)
        parts.recent.forget(tenant)
        await parts.switches.forget(tenant)
        if parts.sweeps is None:
            so_far = Forgotten(tenant, here, done=True)
            if progress is not None:
                progress(so_far)
            return so_far
        begun = resume if resume is not None and resume.tenant == tenant else Forgotten(tenant)
        so_far = begun = replace(begun, removed=begun.removed + here)
        async for so_far in forget(parts.sweeps, self.keys, tenant, resume=begun):
            if progress is not None:
                progress(so_far)
        return so_far

    async def mend(self) -> int:
        """Give those entries and generations in the store an expiry that have none; returns how many now have one.

        What is kept on purpose (values, sessions) is not touched. Raises StoreUnavailable if a server does not answer.
        """
        if self._parts.mends is None:
            return 0
        return await self._parts.mends(int(LONGEST * 1000))

    @property
    def queued(self) -> int:
        """How many tenants have invalidations that this process knows of and the store, being away, does not yet."""
        return self._parts.invalidations.queued

    async def health(self) -> StoreHealth:
        """Ask the store how it is."""
        return await self._parts.store.health()

    @property
    def state(self) -> Rung:
        """The state in which the cache answers, as far as is known without asking the store."""
        return self._parts.ladder.rung

    async def status(self) -> Health:
        """Ask the store how it is, and say in which state the cache answers."""
        parts = self._parts
        store = await parts.store.health()
        backplane = parts.coherence.hears if parts.coherence is not None else None
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

    def forked(self) -> None:
        """In a forked child: begin anew, and leave alone what the parent still uses."""
        abandoned = self.sync.forked()
        if self.home is None:
            return
        keep_for_ever((abandoned, self.home, self._parts, vars(self._store).copy() if self._store else None))
        self.home = None
        switches = self.switches.known
        emitter = self.emitter  # stays: others listen to it, too
        for listener in self._inside:
            emitter.unsubscribe(listener)
        outside = emitter.listeners
        self._use(build(self.settings, store=self._store, credentials=self._credentials, emitter=emitter))
        self._inside = tuple(each for each in emitter.listeners if each not in outside)
        self.switches.take_over(switches)
        for generations in self._parts.generations:
            generations.keep_for(self._longest_ttl)


def _targets(operation: str | None, tags: Sequence[str], wait: str = "fast") -> Targets:
    if isinstance(tags, str):
        raise TypeError(f'tags takes a list, such as ["{tags}"], not one string')
    if wait not in ("fast", "strict"):
        raise ValueError(f'wait is "fast" or "strict", not {wait!a}')
    return Targets.of(() if operation is None else (operation,), tags)


_caches: "WeakSet[NexCache]" = WeakSet()


def _forked() -> None:
    for cache in tuple(_caches):
        cache.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
