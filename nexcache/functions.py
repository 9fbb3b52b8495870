"""Results of functions, cached like responses: the same generations, entries, stores, statistics and telemetry.

A call becomes a `Question`: whose it is, what it is found by, how its answer is written. `Calls` answers questions:
from memory, from the store, from a computation that somebody else has under way, or by saying that the asker is to
compute (`Lead`) and taking the result. That is all that happens on the event loop; the computation itself runs where
its caller is: in a task for a coroutine function, in the calling thread for a plain one (`nexcache.sync`).
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from threading import Lock
from typing import (
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    cast,
    get_type_hints,
    overload,
)

from nexcache import tenants
from nexcache.collapse import UntilSent
from nexcache.ending import end
from nexcache.entries import Entries, Found, Live, Missing, Raw
from nexcache.errors import CannotKey, ConfigurationError, InvalidName, NexCacheError, NoTenant, OverQuota
from nexcache.fill_lease import Captured, End, FillLeases, Lease
from nexcache.invalidation.apply import Invalidation
from nexcache.invalidation.generations import Snapshot
from nexcache.invalidation.tags import MOST_TAGS
from nexcache.invalidation.targets import Targets, check_name, is_glob
from nexcache.key import CALL, LONGEST_REQUEST, CacheKey, KeySpace, name_of
from nexcache.message import StoredResponse
from nexcache.parameters import Parameters
from nexcache.policy import Duration, Size, size_in_bytes
from nexcache.telemetry.counts import Counts, OperationCounts
from nexcache.telemetry.events import Answered, Emitter, Filled, HookFailed, NotStored, RequestSpan
from nexcache.telemetry.names import Bypass, NotStoredReason, Result, Tier, Trigger
from nexcache.tenants import is_valid_id
from nexcache.value_codec import NotDecodable, NotEncodable, Types, ValueCodec, encode_key, is_immutable

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")

Tags: TypeAlias = Sequence[str] | Callable[..., Iterable[str]]
TenantOf: TypeAlias = str | Callable[..., str | Awaitable[str | None] | None] | None

_FOLLOWS: Final = 2
"""Computations that a call follows while they fail: the first, and its one successor."""
_LEASED: Final = 600.0
"""Seconds for which a computation keeps other nodes from doing the same."""
_AWAITED: Final = 30.0
"""Seconds for which another's computation is waited for: it may be one that waits for this one."""
_DETACHED: Final = 30.0
"""Seconds that a computation may go on after its caller has left."""
_READ_ANEW: Final = object()
NOTHING: Final = object()
"""Stands for no result; None may be one."""
_END: Final = {
    None: End.OVER,
    NotStoredReason.INVALIDATED: End.OVER,
    NotStoredReason.QUOTA: End.OVER,
    NotStoredReason.BACKEND: End.LOST,
}
"""What other nodes are told of a result that was kept, or not for this reason; of all others, that it is alone."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the results of one function are kept."""

    operation: str
    ttl: Duration | None = None
    key: Callable[..., Any] | None = None
    tags: Tags = ()
    tenant: TenantOf = None
    exclude: Sequence[str] = ()
    cache_none: bool = True
    condition: Callable[[Any], bool] | None = None
    version: str = ""
    max_size: Size = "1MiB"
    types: Sequence[Any] = ()

    def __post_init__(self) -> None:
        check_name("operation", self.operation)
        if is_glob(self.operation):
            raise InvalidName(f"the operation {self.operation!a} is a pattern: give it a name without * and ?")
        if isinstance(self.tags, str):
            raise ConfigurationError(f'{self.operation}: tags takes a list, such as ["{self.tags}"], not one string')


class HookRaised(Exception):  # noqa: N818 - reads as what it says
    """A callable of the application raised: the call goes past the cache. Never seen outside."""

    def __init__(self, hook: str, error: Exception) -> None:
        super().__init__(hook)
        self.hook = hook
        self.error = error


class Question:
    """One call: whose, which, and how its result is kept; local to the call."""

    __slots__ = (
        "codec",
        "counts",
        "ended",
        "keeps",
        "key",
        "max_size",
        "operation",
        "raw",
        "span",
        "started",
        "tenant",
        "ttl",
    )  # fmt: skip

    def __init__(
        self,
        *,
        key: CacheKey,
        raw: Raw,
        codec: ValueCodec,
        ttl: float,
        max_size: int,
        keeps: Callable[[Any], bool],
        counts: OperationCounts,
        span: RequestSpan | None,
        started: float,
    ) -> None:
        self.operation: str = key.operation
        self.tenant: str = key.tenant
        self.key: CacheKey = key
        self.raw: Raw = raw
        self.codec: ValueCodec = codec
        self.ttl: float = ttl
        self.max_size: int = max_size
        self.keeps: Callable[[Any], bool] = keeps
        self.counts: OperationCounts = counts
        self.span: RequestSpan | None = span
        self.started: float = started
        self.ended: bool = False

    def encode(self, value: Any) -> "Written":
        """Write a result down, and say whether it is to be kept; never raises for the value."""
        try:
            body = self.codec.encode(value)
        except NotEncodable:
            return Written(None, NotStoredReason.VALUE)
        if not self.keeps(value):
            return Written(body, NotStoredReason.CONDITION)
        return Written(body, NotStoredReason.TOO_LARGE if len(body) > self.max_size else None)

    def computing(self) -> AbstractContextManager[None]:
        """Cover the computation with a span, in which its own spans nest."""
        return self.span.fill(self.operation) if self.span is not None else nullcontext()


@dataclass(frozen=True, slots=True)
class Written:
    """A result as bytes (None: it cannot be written), and why it is not kept, if it is not."""

    body: bytes | None
    reason: NotStoredReason | None


class Computation:
    """A computation under way: what those who wait for the same follow."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[bytes | End] = asyncio.get_running_loop().create_future()
        """The result as bytes, or how it ended without one that can be shared."""
        self.elsewhere = False
        """Whether another node computes."""
        self.followers = 0


@dataclass(slots=True)
class Lead:
    """The asker is to compute, and to hand in what comes of it with `Calls.finish` or `Calls.fail`."""

    question: Question
    key: CacheKey
    snapshot: Snapshot
    computation: Computation
    lease: Lease | None
    began: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True, slots=True)
class Known:
    """The answer is there, as bytes: stored, or just computed for somebody else (`collapsed`)."""

    body: bytes
    tier: Tier | None = None
    age: float | None = None
    ttl: float | None = None
    collapsed: bool = False


class Calls:
    """Finds and keeps the results of calls; used on one event loop."""

    def __init__(self, *, entries: Entries, emitter: Emitter, leases: FillLeases | None, budget: float) -> None:
        self._entries = entries
        self._emitter = emitter
        self._leases = leases
        self._budget = budget
        self._computations: dict[tuple[bytes, tuple[bytes, ...]], Computation] = {}
        self._lookups: UntilSent[Found | Missing] = UntilSent()
        self._captures: UntilSent[Captured] = UntilSent()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waits: set[asyncio.Task[None]] = set()
        self.counting: AbstractContextManager[bool] = Lock()
        """Hits are counted by whatever thread has them."""

    async def look(self, question: Question, *, anew: bool = False) -> Known | Lead:
        """Find the answer, or hand the computation to the asker; `anew`: whatever is stored or under way."""
        followed, waits = _FOLLOWS if anew else 0, 0
        impatient = False
        while True:
            key = self._entries.known(question.key)
            since = time.monotonic()
            deadline = asyncio.get_running_loop().time() + self._budget
            looked: Found | Missing
            if anew:
                looked = Missing(Tier.MEMORY if self._entries.in_process else Tier.REDIS, None)
            else:
                looked = await self._lookup(question, key, deadline)
            if isinstance(looked, Found):
                return self._found(question, looked, collapsed=waits > 0)
            shared = followed < _FOLLOWS
            computation = self._under_way(key, looked.generations, impatient=impatient) if shared else None
            if computation is None:
                captured = await self._capture(key, looked, deadline, since=since, shared=shared)
                generations = captured.snapshot.generations
                computation = self._under_way(key, generations, impatient=impatient) if shared else None
                if computation is None and captured.elsewhere is not None and not impatient:
                    computation = self._wait_elsewhere(key, captured, captured.elsewhere)
                if computation is None:
                    if captured.lease is not None and not captured.lease.claim():  # its computation has ended meanwhile
                        continue
                    return self._lead(question, key, captured, shared=shared)
            computation.followers += 1
            await asyncio.wait((computation.outcome,), timeout=_AWAITED)
            match computation.outcome.result() if computation.outcome.done() else End.ALONE:
                case bytes(body):
                    return Known(body, collapsed=True)
                case End.OVER | End.LAPSED:
                    waits += 1
                    impatient = waits >= _FOLLOWS
                case End.LOST | End.OVERDUE:
                    followed, impatient = followed + 1, True
                case End.FAILED:
                    followed += 1
                case End.ALONE:
                    followed = _FOLLOWS

    async def peek(self, question: Question) -> Known | None:
        """Return what is stored, if anything is; counts nothing."""
        key = self._entries.known(question.key)
        looked = await self._lookup(question, key, asyncio.get_running_loop().time() + self._budget)
        return self._found(question, looked) if isinstance(looked, Found) else None

    async def finish(self, lead: Lead, written: Written) -> NotStoredReason | None:
        """Take a result for those who wait and, where it is to be kept, for the cache; returns why it was not kept."""
        question, computation = lead.question, lead.computation
        reason = written.reason
        try:
            if not computation.outcome.done():
                computation.outcome.set_result(written.body if written.body is not None else End.ALONE)
            if self._emitter.hears(Filled):
                duration = time.perf_counter() - lead.began
                self._emitter.emit(Filled(question.operation, question.tenant, duration, computation.followers))
            if reason is None and written.body is not None:
                response = StoredResponse(
                    status=200, headers=(), body=written.body, etag=b"", stored_at=time.time(), ttl=question.ttl
                )
                with question.span.put(question.operation) if question.span is not None else nullcontext():
                    try:
                        kept = await self._entries.keep(lead.key, lead.snapshot, response, question.counts)
                        if not kept:
                            reason = NotStoredReason.BACKEND if kept is None else NotStoredReason.INVALIDATED
                    except OverQuota:
                        reason = NotStoredReason.QUOTA
            if reason is not None:
                self._emitter.emit(NotStored(question.operation, question.tenant, reason))
        finally:
            self._over(lead, _END.get(reason, End.ALONE))
        return reason

    def fail(self, lead: Lead) -> None:
        """Note that a computation raised: an exception is never kept, and one who waits computes next."""
        if not lead.computation.outcome.done():
            lead.computation.outcome.set_result(End.FAILED)
        self._emitter.emit(NotStored(lead.question.operation, lead.question.tenant, NotStoredReason.FAILED))
        self._over(lead, End.FAILED)

    async def failed(self, lead: Lead) -> None:
        """Do what `fail` does, for another thread."""
        self.fail(lead)

    async def answer(self, question: Question, compute: Callable[[], Awaitable[R]], *, anew: bool = False) -> R:
        """Return the answer to a question, by `compute` if need be."""
        try:
            while True:
                looked = await self.look(question, anew=anew)
                if isinstance(looked, Lead):
                    value = await self._compute(looked, compute)
                    self.end(question, Result.MISS)
                    return value
                try:
                    found: R = question.codec.decode(looked.body)
                except NotDecodable:  # written by another version of the program
                    anew = True
                    continue
                self.known(question, looked)
                return found
        except BaseException:
            self.end(question, Result.ERROR)
            raise

    async def store(self, question: Question, value: Any) -> NotStoredReason | None:
        """Keep a given result; raises NotEncodable for one that cannot be kept."""
        body = question.codec.encode(value)
        looked = await self.look(question, anew=True)
        assert isinstance(looked, Lead)  # noqa: S101 - what `anew` means
        reason = NotStoredReason.TOO_LARGE if len(body) > question.max_size else None
        return await self.finish(looked, Written(body, reason))

    # --- telling -------------------------------------------------------------------------------------------------

    def known(self, question: Question, known: Known) -> None:
        """Count and tell an answer that need not be computed."""
        if known.collapsed:
            question.counts.coalesced += 1
            self.end(question, Result.MISS, coalesced=True)
            return
        if question.ended:
            return
        question.ended = True
        duration = time.perf_counter() - question.started
        counts = question.counts
        with self.counting:
            if known.tier is Tier.MEMORY:
                counts.memory_hits += 1
            elif known.tier is Tier.REDIS:
                counts.redis_hits += 1
            else:
                counts.fallback_hits += 1
            counts.hit_latency.add(duration)
        if question.span is not None or self._emitter.hears(Answered):
            self._tell(
                question.span,
                Answered(
                    question.operation,
                    question.tenant,
                    Result.HIT,
                    known.tier,
                    key_hash=question.key.hash,
                    age=known.age,
                    ttl=known.ttl,
                    size=len(known.body),
                    duration=duration,
                ),
            )

    def hit(self, live: Live, tenant: str, operation: str, span: RequestSpan | None, started: float) -> None:
        """Count and tell an answer out of this process's memory."""
        counts, duration = live.basis.counts, time.perf_counter() - started
        with self.counting:
            counts.memory_hits += 1
            counts.hit_latency.add(duration)
        if span is not None or self._emitter.hears(Answered):
            response, age = live, max(0.0, time.time() - live.stored_at)
            self._tell(
                span,
                Answered(
                    operation,
                    tenant,
                    Result.HIT,
                    Tier.MEMORY,
                    key_hash=live.name.rpartition(b":")[2].decode(),
                    age=age,
                    ttl=max(0.0, response.ttl - age),
                    size=len(response.body),
                    duration=duration,
                ),
            )

    def end(self, question: Question, result: Result, *, coalesced: bool = False) -> None:
        """Count and tell how a call was answered that was no hit; only the first time."""
        if question.ended:
            return
        question.ended = True
        duration = time.perf_counter() - question.started
        with self.counting:
            if result is Result.MISS:
                question.counts.misses += 1
                question.counts.miss_latency.add(duration)
            else:
                question.counts.errors += 1
        self._tell(
            question.span,
            Answered(
                question.operation,
                question.tenant,
                result,
                key_hash=question.key.hash,
                coalesced=coalesced,
                duration=duration,
            ),
        )

    def bypassed(self, answered: Answered, counts: OperationCounts, span: RequestSpan | None) -> None:
        """Count and tell a call that the cache was not asked about."""
        if answered.reason is not None:
            with self.counting:
                counts.bypasses[answered.reason] += 1
        self._tell(span, answered)

    def _tell(self, span: RequestSpan | None, answered: Answered) -> None:
        if span is not None:
            span.end(answered)
        self._emitter.emit(answered)

    # --- inside --------------------------------------------------------------------------------------------------

    async def _lookup(self, question: Question, key: CacheKey, deadline: float) -> Found | Missing:
        entries = self._entries
        here = entries.lookup_here(key)
        if isinstance(here, Found):
            return here
        if here is not None and (entries.in_process or self._under_way(key, here.generations) is not None):
            return here
        return await self._lookups.run(
            key.identity,
            lambda on_sent: entries.lookup(key, question.counts, deadline=deadline, on_sent=on_sent),
        )

    async def _capture(
        self, key: CacheKey, missing: Missing, deadline: float, *, since: float, shared: bool
    ) -> Captured:
        """Capture the generations of a key; with the lease, if the result is to be shared with other nodes."""
        leases = self._leases if shared and missing.tier is Tier.REDIS else None

        capture = partial(self._entries.capture, key, missing, deadline=deadline)

        async def call(on_sent: Callable[[], None]) -> Captured:
            if leases is None:
                return Captured(await capture(on_sent=on_sent))
            return await leases.capture(
                key, missing.generations, capture, deadline=deadline, since=since, on_sent=on_sent
            )

        return await self._captures.run(b"%d:%b" % (leases is not None, key.identity), call)

    def _found(self, question: Question, found: Found, *, collapsed: bool = False) -> Known:
        response = found.prepared.response
        if found.live is not None and self._entries.first is not None:
            self._entries.first.alias(question.raw, found.live)
        age = max(0.0, time.time() - response.stored_at)
        return Known(response.body, found.tier, age, max(0.0, response.ttl - age), collapsed)

    def _under_way(
        self, key: CacheKey, generations: tuple[bytes, ...] | None, *, impatient: bool = False
    ) -> Computation | None:
        """Return the computation that may be followed; who is impatient waits for no other node."""
        if generations is None:
            return None
        computation = self._computations.get((key.identity, generations))
        return None if computation is None or (impatient and computation.elsewhere) else computation

    def _wait_elsewhere(self, key: CacheKey, captured: Captured, name: bytes) -> Computation:
        """Wait for another node's computation, all of this node together."""
        computation = Computation()
        computation.elsewhere = True
        flight = (key.identity, captured.snapshot.generations)
        self._computations[flight] = computation

        async def wait() -> None:
            end = End.LAPSED
            try:
                if self._leases is not None:
                    end = await self._leases.ended(name, since=captured.at, limit=_AWAITED)
            finally:
                if self._computations.get(flight) is computation:
                    del self._computations[flight]
                computation.outcome.set_result(end)

        task = asyncio.get_running_loop().create_task(wait(), name="nexcache-wait")
        self._waits.add(task)
        task.add_done_callback(self._waits.discard)
        return computation

    def _lead(self, question: Question, key: CacheKey, captured: Captured, *, shared: bool) -> Lead:
        computation = Computation()
        if shared:
            self._computations[key.identity, captured.snapshot.generations] = computation
        if captured.lease is not None:
            captured.lease.keep(_LEASED)
        return Lead(question, key, captured.snapshot, computation, captured.lease)

    def _over(self, lead: Lead, end: End) -> None:
        flight = (lead.key.identity, lead.snapshot.generations)
        if self._computations.get(flight) is lead.computation:
            del self._computations[flight]
        if lead.lease is not None:
            lead.lease.end(end)

    async def _compute(self, lead: Lead, compute: Callable[[], Awaitable[R]]) -> R:
        """Compute in a task of its own, which goes on for those who wait when its caller leaves."""
        loop = asyncio.get_running_loop()
        computed: asyncio.Future[R] = loop.create_future()
        task = loop.create_task(self._run(lead, compute, computed), name="nexcache-compute")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            value = await asyncio.shield(computed)
        except asyncio.CancelledError:
            if not computed.done():
                leave = loop.call_later(_DETACHED, task.cancel)
                task.add_done_callback(lambda _: leave.cancel())
                computed.add_done_callback(_retrieved)
            raise
        if not task.done():
            await asyncio.wait((task,), timeout=self._budget)  # so that the next call finds it stored
        return value

    async def _run(self, lead: Lead, compute: Callable[[], Awaitable[R]], computed: "asyncio.Future[R]") -> None:
        try:
            with lead.question.computing():
                value = await compute()
        except Exception as error:  # noqa: BLE001 - the caller gets it
            self.fail(lead)
            computed.set_exception(error)
            return
        except BaseException:
            self.fail(lead)
            computed.cancel()
            raise
        try:
            written = lead.question.encode(value)
        except Exception as error:  # noqa: BLE001 - the condition raised; the function did not
            self._emitter.emit(HookFailed("condition", type(error).__name__))
            written = Written(None, NotStoredReason.CONDITION)
        computed.set_result(value)
        await self.finish(lead, written)

    async def aclose(self, grace: float) -> None:
        """Let computations finish for `grace` seconds, then end them."""
        for task in self._waits:
            task.cancel()
        tasks = list(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        await end(*tasks, *self._waits)


def _retrieved(computed: "asyncio.Future[Any]") -> None:
    """Take note of an exception that nobody waits for any more."""
    if not computed.cancelled():
        computed.exception()


class CallCache(Protocol):
    """What cached functions need of a cache."""

    @property
    def enabled(self) -> bool:
        """Whether the cache is used at all."""

    @property
    def default_tenant(self) -> str | None:
        """Whose calls are those that name no tenant."""

    @property
    def types(self) -> Types:
        """The classes that were registered for all functions."""

    @property
    def keys(self) -> KeySpace:
        """Builds keys."""

    @property
    def entries(self) -> Entries:
        """Finds and keeps entries."""

    @property
    def calls(self) -> Calls:
        """Answers questions."""

    @property
    def counts(self) -> Counts:
        """Plain numbers."""

    @property
    def emitter(self) -> Emitter:
        """Takes events."""

    def is_disabled(self, operation: str, tenant: str | None = None) -> bool:
        """Whether an operation is switched off, for all tenants or for this one."""

    def ttl_for(self, operation: str, ttl: Duration | None, *, tenant: str | None = None) -> float:
        """Return the seconds for which results are kept, settings included."""

    async def start(self) -> None:
        """Prepare the cache on this event loop; cheap when that is done."""

    async def invalidate_targets(self, tenant: str, targets: Targets, *, trigger: Trigger) -> Invalidation:
        """Invalidate a union of targets."""


@dataclass(frozen=True, slots=True)
class Explained:
    """What one call is kept under, and what is there now."""

    operation: str
    tenant: str
    key: str
    """In the store."""
    tags: tuple[str, ...]
    ttl: float
    """Seconds for which a result is kept."""
    stored: bool
    tier: str | None
    """Where the result is: `memory`, `redis` or `fallback`."""
    remaining: float | None
    """Seconds for which it will still be used."""


class Asker:
    """Turns the calls of one function into questions. What `Cached` and `SyncCached` share."""

    def __init__(self, cache: CallCache, function: Callable[..., Any], options: Options) -> None:
        self.cache = cache
        self.options = options
        self.operation: str = options.operation
        tenant = options.tenant if isinstance(options.tenant, str) else None
        self.parameters: Parameters = Parameters(function, exclude=options.exclude, tenant=tenant)
        self._function = function
        self._tenant_of = options.tenant if callable(options.tenant) else None
        self._by_argument = tenant is not None
        name = "" if options.key is not None else f"{function.__module__}:{self.parameters.function}"
        self.identity: bytes = encode_key([options.version, name])
        self._key = options.key
        self._max_size = size_in_bytes(options.max_size, "max_size")
        self._codec: ValueCodec | None = None
        if not callable(options.tags):
            for template in options.tags:
                self._tag(template, dict.fromkeys(self.parameters.names, ""), check=True)

    @property
    def codec(self) -> ValueCodec:
        """Writes and reads results, of the classes that the return annotation names."""
        if self._codec is None:
            types = Types(self.options.types, others=self.cache.types)
            types.learn(_returned(self._function))
            self._codec = ValueCodec(types)
        return self._codec

    def identify(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Sequence[Any], Any, bytes]:
        """Return the arguments in order, the tenant (perhaps still to be awaited), and what the call is keyed by.

        Raises HookRaised, as all that follows does, where a callable of the application raised.
        """
        values = self.parameters.values(args, kwargs)
        if self._by_argument:
            tenant = self.parameters.tenant(values)
        elif self._tenant_of is not None:
            tenant = _called("tenant", self._tenant_of, *args, **kwargs)
        else:
            tenant = tenants.current.get()
            if tenant is None:
                tenant = self.cache.default_tenant
            elif not isinstance(tenant, str):
                tenant = tenant.resolve()
        if self._key is None:
            return values, tenant, self.parameters.key(values)
        try:
            return values, tenant, encode_key([_called("key", self._key, *args, **kwargs)])
        except NotEncodable as error:
            raise CannotKey(self.parameters.function, "key", error.kind) from error

    def checked(self, tenant: Any) -> str:
        """Return the tenant; raises NoTenant for what is none."""
        if is_valid_id(tenant):
            return cast("str", tenant)
        if inspect.iscoroutine(tenant):
            tenant.close()  # nobody can wait for it here
        if tenant is None or inspect.isawaitable(tenant):
            raise NoTenant(self.operation)
        raise InvalidName(f"{self.operation}: not a tenant's id: {tenant!a}")

    def cache_key(self, values: Sequence[Any], tenant: str, packed: bytes) -> CacheKey | None:
        """Return the key of a call; None if it is too long or its tags cannot be tags."""
        request = self.cache.keys.call(tenant, self.operation, self.identity, packed)
        if len(request) > LONGEST_REQUEST:
            return None
        key = self.cache.keys.key(tenant, self.operation, request)
        try:
            tags = self.tags(values)
        except InvalidName:
            return None
        return self.cache.keys.key(tenant, self.operation, request, (CALL + key.hash, *tags))

    def tags(self, values: Sequence[Any]) -> tuple[str, ...]:
        """Return a call's own tags; raises InvalidName for what cannot be one, or for too many."""
        options = self.options
        by_name = self.parameters.by_name(values)
        if callable(options.tags):
            found = [check_name("tag", tag) for tag in _called("tags", options.tags, **by_name)]
        else:
            found = [_called("tags", self._tag, template, by_name) for template in options.tags]
        if len(found) >= MOST_TAGS:
            raise InvalidName(f"{self.operation}: more than {MOST_TAGS - 1} tags")
        return tuple(dict.fromkeys(found))

    def question(
        self, values: Sequence[Any], tenant: str, packed: bytes, span: RequestSpan | None, started: float
    ) -> Question | None:
        """Return what is to be asked; None: the cache cannot be asked about this call."""
        key = self.cache_key(values, tenant, packed)
        if key is None:
            return None
        return Question(
            key=key,
            raw=(self.identity, tenant, self.operation, packed),
            codec=self.codec,
            ttl=self.cache.ttl_for(self.operation, self.options.ttl, tenant=tenant),
            max_size=self._max_size,
            keeps=self._keeps_value,
            counts=self.cache.counts.of(tenant, self.operation),
            span=span,
            started=started,
        )

    def remembered(self, live: Live, tenant: str, span: RequestSpan | None, started: float) -> Any:
        """Return the result that an entry in memory holds, and count the hit; NOTHING if it cannot be read.

        One that nobody can change is read once and shared, any other is read anew for every caller. What another
        version of the program wrote cannot be read: the long way computes it again.
        """
        value = live.result
        try:
            if value is _READ_ANEW:
                found = self.codec.decode(live.body)
            elif value is None:
                found = self.codec.decode(live.body)
                live.result = (found,) if is_immutable(found) else _READ_ANEW
            else:
                found = value[0]  # type: ignore[index]
        except NotDecodable:
            return NOTHING
        self.cache.calls.hit(live, tenant, self.operation, span, started)
        return found

    def alone(self, question: Question) -> Targets:
        """Return what invalidates this one call."""
        return Targets(tags=frozenset((CALL + question.key.hash,)))

    def name(self, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
        """Return the key of a call in the store."""
        try:
            _, tenant, packed = self.identify(args, kwargs)
        except HookRaised as raised:
            raise raised.error from None
        tenant = self.checked(tenant)
        request = self.cache.keys.call(tenant, self.operation, self.identity, packed)
        return self.cache.keys.key(tenant, self.operation, request).name.decode()

    async def explain(self, question: Question) -> Explained:
        """Say what a call is kept under, and what is there now."""
        looked = await self.cache.calls.peek(question)
        remaining = tier = None
        if isinstance(looked, Known):
            remaining, tier = looked.ttl, looked.tier
        prefix = self.cache.keys.of_tag(question.tenant, "")
        tags = tuple(name_of(name.removeprefix(prefix)) for name in question.key.generations[2:])
        return Explained(
            self.operation,
            question.tenant,
            question.key.name.decode(),
            tags,
            question.ttl,
            stored=isinstance(looked, Known),
            tier=tier,
            remaining=remaining,
        )

    def bypassed(self, tenant: str, reason: Bypass, span: RequestSpan | None, started: float) -> None:
        """Count and tell that a call went past the cache."""
        duration = time.perf_counter() - started
        answered = Answered(self.operation, tenant, Result.BYPASS, reason=reason, duration=duration)
        self.cache.calls.bypassed(answered, self.cache.counts.of(tenant, self.operation), span)

    def passed(self, raised: HookRaised, tenant: object, started: float) -> None:
        """Count and tell that a call went past the cache because a callable of the application raised."""
        self.cache.emitter.emit(HookFailed(raised.hook, type(raised.error).__name__))
        reason = Bypass.NO_TENANT if raised.hook == "tenant" else Bypass.KEY_TOO_LONG
        whose = tenant if isinstance(tenant, str) else None
        duration = time.perf_counter() - started
        answered = Answered(self.operation, whose, Result.BYPASS, reason=reason, duration=duration)
        self.cache.calls.bypassed(answered, self.cache.counts.of(whose, self.operation), None)

    def is_off(self, tenant: object) -> bool:
        """Whether calls go past the cache, those of this tenant if it is known already."""
        known = tenant if isinstance(tenant, str) else None
        return not self.cache.enabled or self.cache.is_disabled(self.operation, known)

    def span(self) -> RequestSpan | None:
        """Open a call's span, where somebody records it."""
        tracing = self.cache.emitter.tracing
        return tracing.get(self.operation) if tracing is not None else None

    def _keeps_value(self, value: Any) -> bool:
        if value is None and not self.options.cache_none:
            return False
        return self.options.condition is None or self.options.condition(value)

    def _tag(self, template: str, by_name: dict[str, Any], *, check: bool = False) -> str:
        try:
            return check_name("tag", template.format_map(by_name))
        except (KeyError, IndexError, ValueError) as error:
            if isinstance(error, InvalidName):
                raise
            raise ConfigurationError(
                f"{self.operation}: the tag {template!a} names no parameter of {self.parameters.function}"
            ) from error
        except AttributeError:
            if check:  # "{user.id}": known at the first call
                return template
            raise


def _called(hook: str, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Call what the application gave; what it raises of ours, it means to."""
    try:
        return function(*args, **kwargs)
    except NexCacheError:
        raise
    except Exception as error:
        raise HookRaised(hook, error) from error


async def awaited(tenant: Any) -> Any:
    """Wait for a tenant that has to be waited for; raises HookRaised."""
    if not inspect.isawaitable(tenant):
        return tenant
    try:
        return await tenant
    except NexCacheError:
        raise
    except Exception as error:
        raise HookRaised("tenant", error) from error


def _returned(function: Callable[..., Any]) -> Any:
    try:
        return get_type_hints(function, include_extras=True).get("return")
    except Exception:  # noqa: BLE001 - an annotation may name what is not there at run time: `types` names it then
        return None


class Cached(Generic[P, R]):
    """A coroutine function whose results are cached. Called like the function; `await f.refresh(…)` and so on."""

    def __init__(self, cache: CallCache, function: Callable[P, Awaitable[R]], options: Options) -> None:
        self._asker = Asker(cache, function, options)
        self._function = function
        update_wrapper(self, function)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the result, from the cache if it may be."""
        started = time.perf_counter()
        asker = self._asker
        cache = asker.cache
        tenant: Any = None
        try:
            values, tenant, packed = asker.identify(args, kwargs)
        except HookRaised as raised:
            asker.passed(raised, None, started)
            return await self._function(*args, **kwargs)
        span = asker.span()
        first = cache.entries.first
        off = asker.is_off(tenant)
        if first is not None and not off and tenant.__class__ is str:
            live = first.peek((asker.identity, tenant, asker.operation, packed))
            if live is not None:
                value: R = asker.remembered(live, tenant, span, started)
                if value is not NOTHING:
                    return value
        try:
            tenant = asker.checked(await awaited(tenant))
            off = off or asker.is_off(tenant)
            reason = Bypass.DISABLED if off else Bypass.KEY_TOO_LONG
            question = None if off else asker.question(values, tenant, packed, span, started)
        except HookRaised as raised:
            asker.passed(raised, tenant, started)
            return await self._function(*args, **kwargs)
        if question is None:
            try:
                return await self._function(*args, **kwargs)
            finally:
                asker.bypassed(tenant, reason, span, started)
        await cache.start()
        return await cache.calls.answer(question, lambda: self._function(*args, **kwargs))

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compute the result anew, whatever is stored, and keep it."""
        question = await self._question(args, kwargs)
        if question is None or self._asker.is_off(question.tenant):
            return await self._function(*args, **kwargs)
        return await self._asker.cache.calls.answer(question, lambda: self._function(*args, **kwargs), anew=True)

    async def set(self, value: R, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Keep `value` as the result of this call; False if that did not work. Raises NotEncodable for what cannot."""
        question = await self._question(args, kwargs)
        if question is None or self._asker.is_off(question.tenant):
            return False
        return await self._asker.cache.calls.store(question, value) is None

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Invalidation:
        """Make the result of this one call a miss, on every node, one under way included."""
        question = await self._question(args, kwargs)
        if question is None:
            return Invalidation(acknowledged=True, queued=False, targets=(), waited=0.0)
        return await self._asker.cache.invalidate_targets(
            question.tenant, self._asker.alone(question), trigger=Trigger.API
        )

    async def bypass(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself: nothing is looked up, nothing is kept."""
        return await self._function(*args, **kwargs)

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key in the store; raises NoTenant where the tenant must be waited for."""
        return self._asker.name(args, kwargs)

    async def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explained:
        """Say what this call is kept under, for how long, and whether a result is there now; counts nothing."""
        question = await self._question(args, kwargs)
        if question is None:
            raise InvalidName(f"{self._asker.operation}: the key of this call is too long, or a tag cannot be one")
        return await self._asker.explain(question)

    async def _question(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Question | None:
        asker = self._asker
        try:
            values, tenant, packed = asker.identify(args, kwargs)
            tenant = asker.checked(await awaited(tenant))
            await asker.cache.start()
            return asker.question(values, tenant, packed, None, time.perf_counter())
        except HookRaised as raised:  # what is asked for by name cannot be done without
            raise raised.error from None

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> "Cached[P, R]": ...
    @overload
    def __get__(self: "Cached[Concatenate[S, Q], R]", instance: S, owner: type[Any]) -> "Cached[Q, R]": ...
    def __get__(self, instance: Any, owner: type[Any]) -> Any:
        """Bind to an instance, like a function."""
        return self if instance is None else bind(self, instance, _BoundCoroutine)


class _Bound:
    __slots__ = ("__doc__", "_cached", "_instance")

    def __init__(self, cached: Any, instance: Any) -> None:
        self._cached = cached
        self._instance = instance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._cached(self._instance, *args, **kwargs)

    def set(self, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Keep `value` as the result of this call."""
        return self._cached.set(value, self._instance, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._cached, name)
        if name in ("refresh", "invalidate", "bypass", "key", "explain"):
            return lambda *args, **kwargs: found(self._instance, *args, **kwargs)
        return found


class _BoundCoroutine(_Bound):
    __slots__ = ("__doc__",)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await self._cached(self._instance, *args, **kwargs)


def bind(cached: Any, instance: Any, kind: type[_Bound] = _Bound) -> Any:
    """Bind a cached function to an instance."""
    return kind(cached, instance)


class Decorator:
    """What `cache.cached(…)` returns: turns a coroutine function into a cached one."""

    def __init__(self, cache: CallCache, options: Options) -> None:
        self._cache = cache
        self._options = options

    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> Cached[P, R]:
        """Cache a coroutine function; raises ConfigurationError for another."""
        if not inspect.iscoroutinefunction(inspect.unwrap(function)):
            name = getattr(function, "__qualname__", repr(function))
            raise ConfigurationError(f"{name} is no coroutine function: decorate it with cache.sync.cached")
        return Cached(self._cache, function, self._options)


def check_is_plain(function: Callable[..., Any]) -> None:
    """Raise ConfigurationError for what is no plain function."""
    name = getattr(function, "__qualname__", repr(function))
    unwrapped = inspect.unwrap(function)
    if inspect.iscoroutinefunction(unwrapped):
        raise ConfigurationError(f"{name} is a coroutine function: decorate it with cache.cached")
    if inspect.isgeneratorfunction(unwrapped) or inspect.isasyncgenfunction(unwrapped):
        raise ConfigurationError(f"{name} is a generator: its result can be read only once; return a list instead")


def question_of_parts(
    cache: CallCache,
    tenant: str,
    operation: str,
    parts: Sequence[Any],
    *,
    ttl: Duration | None,
    tags: Sequence[str],
    started: float,
) -> tuple[Asker, Question]:
    """Return the question of `get_or_compute`: keyed by its parts alone; raises for what cannot be a key or a tag."""
    asker = Asker(cache, _nothing, Options(operation, ttl=ttl, key=lambda: tuple(parts), tags=lambda: tags))
    values, _, packed = asker.identify((), {})
    question = asker.question(values, asker.checked(tenant), packed, asker.span(), started)
    if question is None:
        asker.tags(values)
        raise InvalidName(f"{operation}: the parts are longer than {LONGEST_REQUEST} bytes")
    return asker, question


def _nothing() -> None:
    """Stand for a function without parameters."""
