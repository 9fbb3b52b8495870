"""Carries an invalidation out: in this process at once, in the store for all nodes, later if the store is away."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final, Protocol

from nexcache.ending import end
from nexcache.errors import InvalidName, StoreError, StoreRefused
from nexcache.invalidation.targets import Targets, is_glob, matches
from nexcache.key import KeySpace, name_of
from nexcache.stores.base import Store
from nexcache.stores.memory import MemoryStore
from nexcache.telemetry.counts import Counts
from nexcache.telemetry.events import Emitter, Invalidated
from nexcache.telemetry.names import Trigger
from nexcache.tenants import is_valid_id

_MOST_QUEUED: Final = 256
"""Generations queued per tenant; more become one, that of the whole tenant."""
_MOST_QUEUED_IN_ALL: Final = 20_000
"""Generations queued of all tenants; with more, each tenant's become one."""
_MOST_FAILED: Final = 64
"""Tenants whose invalidations could not be delivered, after which an attempt is given up."""
_FIRST_RETRY: Final = 0.1
_SLOWEST_RETRY: Final = 1.0
"""Seconds between attempts to deliver what is queued, where no request does it sooner."""


@dataclass(frozen=True, slots=True)
class Invalidation:
    """What became of an invalidation."""

    acknowledged: bool
    """Every node: no request that starts from now on is answered from data captured before."""
    queued: bool
    """The store was away: it holds in this process, and will reach the others when the store is back."""
    targets: tuple[str, ...]
    """What was invalidated: operations' names, `tag:…`, or `*`."""
    waited: float
    """Seconds."""


class Coherent(Protocol):
    """What is told of invalidations beside the store."""

    blocked: bool

    def invalidated(self, keys: Collection[bytes]) -> None:
        """Trust these generations no more in this process."""

    def message(self, keys: Sequence[bytes]) -> bytes:
        """Write the message down that tells other nodes."""

    async def confirmed(self, keys: Sequence[bytes]) -> None:
        """Return when no node trusts the old generations any more."""


class Invalidations:
    """Removes generations. The cost is that of the number of targets, not of the number of entries."""

    def __init__(
        self,
        *,
        keys: KeySpace,
        local: MemoryStore,
        shared: Store | None,
        coherence: Coherent | None,
        emitter: Emitter,
        counts: Counts,
    ) -> None:
        self._coherence = coherence
        self._keys = keys
        self._local = local
        self._shared = shared
        self._emitter = emitter
        self._counts = counts
        self._queue: OrderedDict[str, dict[bytes, int]] = OrderedDict()
        """By tenant: generations' keys, each with the number of the failure that it was last queued by."""
        self._replaying: asyncio.Task[bool] | None = None
        self._retrying: asyncio.Task[None] | None = None
        self.failures: int = 0
        """How many invalidations the store was not told of when they were made. Whoever reads from the store while
        this number changes may have read what this process has invalidated."""

    @property
    def queued(self) -> int:
        """How many tenants have invalidations that the store does not know of yet."""
        return len(self._queue)

    async def apply(
        self,
        tenant: str,
        targets: Targets,
        *,
        trigger: Trigger,
        strict: bool = False,
        soft: bool = False,
        links: Sequence[object] = (),
    ) -> Invalidation:
        """Invalidate the union of the targets; raises for bad names and no target, never for the store.

        `strict` waits until no node answers from its memory what was invalidated. `soft` lets what a policy permits be
        served stale; where the store is away or can only remove, it is as if it had not been asked for. `links` are
        what `Tracing.current` gave for the requests that it is done for, where it was put off.
        """
        check_invalidation(tenant, targets)
        started = time.perf_counter()
        tracing = self._emitter.tracing
        with tracing.invalidate(links) if tracing is not None else nullcontext(lambda _: None) as describe:
            names, _ = await self._unlink(self._local, tenant, targets, soft=soft and self._shared is None)
            acknowledged = True
            if self._shared is not None:
                try:
                    names, tokens = await self._unlink(self._shared, tenant, targets, soft=soft)
                except StoreError:
                    acknowledged = False
                    self._enqueue(tenant, targets)
                except BaseException:  # cancelled half-way: what was begun is carried out
                    self._enqueue(tenant, targets)
                    raise
                else:
                    if self._coherence is not None:
                        self._coherence.invalidated(tokens)
                        if strict:
                            await self._coherence.confirmed(tokens)
            done = Invalidation(acknowledged, not acknowledged, names, time.perf_counter() - started)
            event = Invalidated(
                tenant=tenant,
                trigger=trigger,
                scope=targets.scope,
                operations=tuple(sorted(targets.operations)),
                tags=tuple(sorted(targets.tags)),
                acknowledged=acknowledged,
                duration=done.waited,
            )
            describe(event)
        for name in names:
            if not name.startswith("tag:"):
                self._counts.of(tenant, name).invalidations += 1
        self._emitter.emit(event)
        return done

    async def operations(self, tenant: str) -> frozenset[str]:
        """Return the operations that a tenant has, or had lately, entries of; never raises for the store."""
        found: set[str] = set()
        for store in (self._local, self._shared):
            try:
                members = await store.members(self._keys.registry(tenant)) if store is not None else None
            except StoreError:
                continue
            found.update(name_of(member) for member in members or ())
        return frozenset(found)

    async def caught_up(self, tenant: str | None = None, *, deadline: float | None = None) -> bool:
        """Tell the store what was queued while it was away; False while it still is, or at the deadline.

        Nothing of a tenant may be read from the store before this is true: an entry there may be one that this
        process has invalidated. Without a tenant, all of them are meant.
        """
        if not self._queue or (tenant is not None and tenant not in self._queue):
            return True
        loop = asyncio.get_running_loop()
        replaying = self._replaying
        if replaying is None or replaying.done() or replaying.get_loop() is not loop:
            replaying = self._replaying = loop.create_task(self._replay(), name="nexcache-replay")
        await asyncio.wait((replaying,), timeout=None if deadline is None else max(0.0, deadline - loop.time()))
        if not replaying.done() or replaying.cancelled():
            return False
        return replaying.result() or (tenant is not None and tenant not in self._queue)

    async def aclose(self) -> None:
        """Try once more to deliver what is queued."""
        retrying, self._retrying = self._retrying, None
        await end(retrying)
        await self.caught_up()

    async def _retry(self) -> None:
        """Deliver what is queued, even if nobody reads here any more: other nodes do."""
        delay = _FIRST_RETRY
        while self._queue:
            await asyncio.sleep(delay)
            delay = min(delay * 2, _SLOWEST_RETRY)
            await self.caught_up()

    async def _replay(self) -> bool:
        if self._shared is None:
            return True
        failed: set[str] = set()
        while self._queue:
            tenant, tokens = next(iter(self._queue.items()))
            if tenant in failed or len(failed) >= _MOST_FAILED:
                return False
            told = dict(tokens)
            try:
                await self._shared.unlink(tuple(told), message=self._message(tuple(told)))
            except StoreError:
                failed.add(tenant)  # on a cluster, other tenants' nodes may well be there
                self._queue.move_to_end(tenant)
                continue
            if self._coherence is not None:
                self._coherence.invalidated(told)  # what was read meanwhile was read too early
            for token, number in told.items():
                if tokens.get(token) == number:  # else it was queued again, and the server told too early
                    del tokens[token]
            if not tokens:
                self._queue.pop(tenant, None)
            elif self._queue.get(tenant) is tokens:
                self._queue.move_to_end(tenant)
        if self._coherence is not None:
            self._coherence.blocked = False
        return True

    async def _unlink(
        self, store: Store, tenant: str, targets: Targets, *, soft: bool
    ) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
        """Resolve globs in this store's registry, and remove the tokens.

        Returns what was invalidated, and the tokens that memories must not trust any longer.
        """
        words, tokens = await self._resolve(store, tenant, targets)
        doubtful = self._doubtful(tenant, targets, tokens)
        message = self._message(doubtful)
        if soft:
            try:
                await store.soften(tokens, message=message)
            except StoreRefused:
                pass  # it has no memory left, or permits no scripts: it can still remove
            else:
                return words, doubtful
        await store.unlink(tokens, message=message)
        return words, doubtful

    def _doubtful(self, tenant: str, targets: Targets, tokens: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Add the tenant's token to those that were removed where a glob was resolved.

        What a registry lost is not found in it again, and is dead because whoever restored it removed that token;
        but of this nobody was told, and it may still be trusted.
        """
        whole = self._keys.of_tenant(tenant)
        globs = any(is_glob(name) for name in targets.operations)
        return (*tokens, whole) if globs and whole not in tokens else tokens

    async def preview(self, tenant: str, targets: Targets) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
        """Say what `apply` would invalidate now, in words and as generations, and change nothing.

        Raises for bad names and no target as `apply` does, never for the store.
        """
        check_invalidation(tenant, targets)
        if self._shared is not None:
            try:
                return await self._resolve(self._shared, tenant, targets)
            except StoreError:
                pass
        return await self._resolve(self._local, tenant, targets)

    async def _resolve(self, store: Store, tenant: str, targets: Targets) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
        """Resolve globs in this store's registry; returns the targets' words, and the generations to remove."""
        if targets.whole_tenant:
            names = frozenset(("*",))
        else:
            globs = {name for name in targets.operations if is_glob(name)}
            names = targets.operations - globs
            if globs:
                members = await store.members(self._keys.registry(tenant))
                if members is None:
                    names = frozenset(("*",))
                else:
                    known = {name_of(member) for member in members}
                    names |= {name for name in known if any(matches(glob, name) for glob in globs)}
        words = (*sorted(names), *sorted(f"tag:{tag}" for tag in targets.tags))
        return words, self._tokens(tenant, names, targets.tags)

    def _message(self, tokens: Sequence[bytes]) -> bytes | None:
        return self._coherence.message(tokens) if self._coherence is not None else None

    def _tokens(self, tenant: str, names: frozenset[str], tags: frozenset[str]) -> tuple[bytes, ...]:
        keys = self._keys
        own = [keys.of_tag(tenant, tag) for tag in sorted(tags)]
        return (
            *(keys.of_tenant(tenant) if name == "*" else keys.of_operation(tenant, name) for name in sorted(names)),
            *own,
            *dict.fromkeys(keys.shared_by(each) for each in own),  # which of both an entry depends on, nobody knows
            keys.of_any(tenant),
        )

    def _enqueue(self, tenant: str, targets: Targets) -> None:
        """Queue the tokens; what cannot be named without the store, or is too much, becomes the whole tenant."""
        globs = any(is_glob(name) for name in targets.operations)
        names = frozenset(("*",)) if globs else targets.operations
        self.failures += 1
        queued = self._queue.setdefault(tenant, {})
        queued.update(dict.fromkeys(self._tokens(tenant, names, targets.tags), self.failures))
        if len(queued) > _MOST_QUEUED:
            self._widen(tenant, queued)
        if sum(map(len, self._queue.values())) > _MOST_QUEUED_IN_ALL:
            for each, tokens in self._queue.items():
                if len(tokens) > 2:  # noqa: PLR2004 - the tenant's and the one of every invalidation
                    self._widen(each, tokens)
        loop = asyncio.get_running_loop()
        if self._retrying is None or self._retrying.done() or self._retrying.get_loop() is not loop:
            self._retrying = loop.create_task(self._retry(), name="nexcache-queue")
        if self._coherence is not None:
            self._coherence.blocked = True
            self._coherence.invalidated(self._tokens(tenant, names, targets.tags))

    def _widen(self, tenant: str, queued: dict[bytes, int]) -> None:
        queued.clear()
        queued.update(dict.fromkeys(self._tokens(tenant, frozenset(("*",)), frozenset()), self.failures))


def check_invalidation(tenant: str, targets: Targets) -> None:
    """Raise InvalidName for what is no tenant's id, ValueError where there is no target."""
    if not is_valid_id(tenant):
        raise InvalidName(f"not a tenant's id: {tenant!a}")
    if not targets:
        raise ValueError('an invalidation needs a target: an operation, a tag, or "*" for the whole tenant')
