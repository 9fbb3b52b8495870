"""The synchronous face: the same calls for plain functions, scripts and WSGI code.

There is one cache, on one event loop. Where the program has a loop that uses the cache (an ASGI app's), calls from
other threads go there; where it has none, a loop is started in a background thread at the first call. What memory
holds is answered in the calling thread, without a hop. A function computes in the thread that called it, with that
thread's connections and context.

A forked child inherits nothing of the parent's connections and threads: it begins with an empty memory and a loop of
its own, at its first call. At the end of the interpreter the loop is closed.
"""

import asyncio
import atexit
import ctypes
import inspect
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import update_wrapper
from threading import Lock, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, Literal, ParamSpec, Self, TypeVar, overload

from nexcache.ending import end
from nexcache.errors import InvalidName
from nexcache.explain import Explanation
from nexcache.forgetting import Forgotten
from nexcache.functions import (
    NOTHING,
    Asker,
    CallCache,
    Explained,
    HookRaised,
    Lead,
    Options,
    Question,
    Tags,
    TenantOf,
    awaited,
    bind,
    check_is_plain,
    question_of_parts,
)
from nexcache.health import Health
from nexcache.invalidation.apply import Invalidation
from nexcache.ledger import Statistics
from nexcache.policy import Duration, Size
from nexcache.rate_limit import Algorithm, Decision, Rate, RateLimit
from nexcache.refresh import Warmed
from nexcache.sample import Preview, Sample
from nexcache.sessions import Session, Sessions
from nexcache.stores.base import StoreHealth
from nexcache.telemetry.names import Bypass, Result, Trigger
from nexcache.trends import Trend
from nexcache.value_codec import NotDecodable
from nexcache.values import Pipeline, Values

if TYPE_CHECKING:
    from nexcache.cache import NexCache

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
_ANSWERED_WITHIN: Final = 1.0
"""Seconds after which a waiting thread looks whether its event loop is still there."""
_DRAINED_WITHIN: Final = 5.0


class Portal:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
        self._thread = Thread(target=self._run, name="nexcache-sync", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(end(*asyncio.all_tasks(self.loop)))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Let calls that are under way end, run `last`, and end the loop and its thread."""
        try:
            asyncio.run_coroutine_threadsafe(_drain(last), self.loop).result(timeout=3 * _DRAINED_WITHIN)
        except TimeoutError:  # whatever hangs is ended with the loop
            pass
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=_DRAINED_WITHIN)


async def _drain(last: Callable[[], Coroutine[Any, Any, None]]) -> None:
    calls = [task for task in asyncio.all_tasks() if task.get_name() == _CALL]
    if calls:
        await asyncio.wait(calls, timeout=_DRAINED_WITHIN)
    await last()


_CALL: Final = "nexcache-sync-call"
_running: "set[SyncFace]" = set()
"""The faces with a loop of their own, to be closed at the end of the interpreter."""


def _close_all() -> None:
    for face in tuple(_running):
        face.close()


atexit.register(_close_all)


class SyncFace:
    """The cache for synchronous code; a context manager that closes what it has started.

    From a thread in which an event loop runs every call raises RuntimeError: it would hold that loop up.
    """

    def __init__(self, cache: "NexCache") -> None:
        self._cache = cache
        self._portal: Portal | None = None
        self._lock = Lock()

    # --- the way to the loop -------------------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the cache's event loop, and wait for its result."""
        try:
            refuse_in_loop()
            loop = self._loop()
        except BaseException:
            coroutine.close()
            raise
        return _wait(loop, _submit(loop, coroutine))

    def _loop(self) -> asyncio.AbstractEventLoop:
        home = self._cache.home
        if home is not None and home.is_running():
            return home
        with self._lock:
            home = self._cache.home
            if home is not None and home.is_running():
                return home
            portal = Portal()
            try:
                _wait(portal.loop, _submit(portal.loop, self._cache.start()))
            except BaseException:
                portal.close(_nothing)
                raise
            self._portal = portal
            _running.add(self)
            return portal.loop

    async def hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make room for an event loop that now uses the cache itself: the background one is closed."""
        if self._portal is not None and self._portal.loop is not loop:
            await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Close the background loop, if there is one; the next call opens it again."""
        with self._lock:
            portal, self._portal = self._portal, None
            _running.discard(self)
            if portal is not None:
                portal.close(self._cache.aclose)

    def forked(self) -> object:
        """In a forked child: forget the parent's loop and thread. Returns what must not be taken apart here."""
        portal, self._portal = self._portal, None
        self._lock = Lock()
        _running.discard(self)
        return portal

    def __enter__(self) -> Self:
        """Start nothing: the first call does."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close what was started."""
        self.close()

    # --- functions -----------------------------------------------------------------------------------------------

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
    ) -> "Decorator":
        """Cache the results of a plain function: as `NexCache.cached`."""
        options = Options(
            operation, ttl, key, tags, tenant, exclude, cache_none, condition, version, max_size, tuple(types)
        )
        return Decorator(self, self._cache, options)

    def get_or_compute(
        self,
        tenant: str,
        operation: str,
        parts: Sequence[Any],
        compute: Callable[[], T],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
    ) -> T:
        """Return what is kept under these parts, or compute and keep it: as `NexCache.get_or_compute`."""
        refuse_in_loop()
        started = time.perf_counter()
        asker, question = question_of_parts(self._cache, tenant, operation, parts, ttl=ttl, tags=tags, started=started)
        if asker.is_off(question.tenant):
            try:
                return compute()
            finally:
                asker.bypassed(question.tenant, Bypass.DISABLED, question.span, started)
        return self.answer(question, compute)

    def answer(self, question: Question, compute: Callable[[], T], *, anew: bool = False) -> T:
        """Return the answer to a question, computing in this thread if need be."""
        calls = self._cache.calls
        try:
            while True:
                looked = self.run(calls.look(question, anew=anew))
                if isinstance(looked, Lead):
                    value = self._compute(looked, compute)
                    calls.end(question, Result.MISS)
                    return value
                try:
                    found: T = question.codec.decode(looked.body)
                except NotDecodable:  # written by another version of the program
                    anew = True
                    continue
                calls.known(question, looked)
                return found
        except BaseException:
            calls.end(question, Result.ERROR)
            raise

    def _compute(self, lead: Lead, compute: Callable[[], T]) -> T:
        calls = self._cache.calls
        try:
            with lead.question.computing():
                value = compute()
            written = lead.question.encode(value)
        except BaseException:
            self.run(calls.failed(lead))
            raise
        self.run(calls.finish(lead, written))
        return value

    # --- by hand -------------------------------------------------------------------------------------------------

    def invalidate(
        self,
        tenant: str,
        operation: str | None = None,
        *,
        tags: Sequence[str] = (),
        soft: bool = False,
        wait: Literal["fast", "strict"] = "fast",
    ) -> Invalidation:
        """As `NexCache.invalidate`."""
        return self.run(self._cache.invalidate(tenant, operation, tags=tags, soft=soft, wait=wait))

    def warm(
        self,
        tenant: str,
        operation: str,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        progress: Callable[[Warmed], None] | None = None,
    ) -> Warmed:
        """As `NexCache.warm`; `progress` is told in the thread of the cache's event loop."""
        return self.run(self._cache.warm(tenant, operation, headers=headers, progress=progress))

    def explain(
        self,
        tenant: str,
        request: str | Mapping[str, Any],
        *,
        method: str = "GET",
        principal: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        complete: bool | None = None,
    ) -> Explanation:
        """As `NexCache.explain`."""
        asked = self._cache.explain(
            tenant, request, method=method, principal=principal, headers=headers, complete=complete
        )
        return self.run(asked)

    def preview(self, tenant: str, operation: str | None = None, *, tags: Sequence[str] = ()) -> Preview:
        """As `NexCache.preview`."""
        return self.run(self._cache.preview(tenant, operation, tags=tags))

    def switch(self, operation: str, *, tenant: str | None = None, off: bool) -> bool:
        """As `NexCache.switch`."""
        return self.run(self._cache.switch(operation, tenant=tenant, off=off))

    def forget(
        self,
        tenant: str,
        *,
        resume: Forgotten | None = None,
        progress: Callable[[Forgotten], None] | None = None,
    ) -> Forgotten:
        """As `NexCache.forget`; `progress` is told in the thread of the cache's event loop."""
        return self.run(self._cache.forget(tenant, resume=resume, progress=progress))

    def mend(self) -> int:
        """As `NexCache.mend`."""
        return self.run(self._cache.mend())

    def tenants(self) -> tuple[frozenset[str], bool]:
        """As `NexCache.tenants`."""
        return self.run(self._cache.tenants())

    def operations(self, tenant: str) -> frozenset[str]:
        """As `NexCache.operations`."""
        return self.run(self._cache.operations(tenant))

    def stats(self, tenant: str | None = None, *, usage: bool = True) -> Statistics:
        """As `NexCache.stats`."""
        return self.run(self._cache.stats(tenant, usage=usage))

    def trend(self, tenant: str) -> Trend:
        """As `NexCache.trend`."""
        return self.run(self._cache.trend(tenant))

    def health(self) -> StoreHealth:
        """As `NexCache.health`."""
        return self.run(self._cache.health())

    def status(self) -> Health:
        """As `NexCache.status`."""
        return self.run(self._cache.status())

    def sample(self, tenant: str) -> Sample:
        """As `NexCache.sample`."""
        return self.run(self._cache.sample(tenant))

    def check_rate_limit(
        self, api: str, limit: int, window: float | str, *, tenant: str = "default"
    ) -> tuple[bool, int]:
        """As `NexCache.check_rate_limit`."""
        return self.run(self._cache.check_rate_limit(api, limit, window, tenant=tenant))

    def tenant(
        self,
        name: str,
        *,
        when_away: Literal["raise", "memory"] = "raise",
        types: Sequence[Any] = (),
        encrypted: bool = False,
    ) -> "SyncValues":
        """As `NexCache.tenant`."""
        return SyncValues(self, self._cache.tenant(name, when_away=when_away, types=types, encrypted=encrypted))

    def sessions(
        self,
        *,
        ttl: Duration = "1h",
        max_age: Duration = "7d",
        tenant: str | None = None,
        when_away: Literal["raise", "memory"] = "raise",
        types: Sequence[Any] = (),
        encrypted: bool = False,
    ) -> "SyncSessions":
        """As `NexCache.sessions`."""
        sessions = self._cache.sessions(
            ttl=ttl, max_age=max_age, tenant=tenant, when_away=when_away, types=types, encrypted=encrypted
        )
        return SyncSessions(self, sessions)

    def rate_limit(
        self,
        rate: str | Rate,
        *,
        name: str = "default",
        algorithm: Algorithm | str = Algorithm.GCRA,
        when_away: Literal["local", "open", "closed"] = "local",
        instances: int | None = None,
    ) -> "SyncRateLimit":
        """As `NexCache.rate_limit`."""
        limit = self._cache.rate_limit(rate, name=name, algorithm=algorithm, when_away=when_away, instances=instances)
        return SyncRateLimit(self, limit)


def refuse_in_loop() -> None:
    """Raise where waiting would hold an event loop up."""
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - documented; its public form raises, which costs more
        raise RuntimeError(
            "cache.sync would hold up the event loop that runs in this thread: await the same call of the cache itself"
        )


def _submit(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
    future: Future[T] = Future()

    def begin() -> None:
        task = loop.create_task(coroutine, name=_CALL)
        task.add_done_callback(ended)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(task.cancel) if future.cancelled() else None)

    def ended(task: "asyncio.Task[T]") -> None:
        if future.done():
            if not task.cancelled():
                task.exception()
        elif task.cancelled():
            future.set_exception(RuntimeError("the cache was closed during the call"))
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())

    try:
        loop.call_soon_threadsafe(begin)
    except BaseException:
        coroutine.close()
        raise
    return future


def _wait(loop: asyncio.AbstractEventLoop, future: "Future[T]") -> T:
    while True:
        try:
            return future.result(timeout=_ANSWERED_WITHIN)
        except TimeoutError:
            if future.done():
                raise
            if not loop.is_running():
                raise RuntimeError("the event loop that the cache runs on has ended during the call") from None
        except BaseException:
            future.cancel()
            raise


def keep_for_ever(what: object) -> None:
    """Keep an object until the process ends, its end included: sockets and tasks that another process goes on using.

    To take them apart would say goodbye in the other's name, and warn of what was not closed.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(what))


async def _nothing() -> None:
    """Leave nothing behind."""


class Decorator:
    """What `cache.sync.cached(…)` returns: turns a plain function into a cached one."""

    def __init__(self, face: SyncFace, cache: CallCache, options: Options) -> None:
        self._face = face
        self._cache = cache
        self._options = options

    def __call__(self, function: Callable[P, R]) -> "SyncCached[P, R]":
        """Cache a plain function; raises ConfigurationError for a coroutine function."""
        check_is_plain(function)
        return SyncCached(self._face, self._cache, function, self._options)


class SyncCached(Generic[P, R]):
    """A plain function whose results are cached. Called like the function; `f.refresh(…)` and so on."""

    def __init__(self, face: SyncFace, cache: CallCache, function: Callable[P, R], options: Options) -> None:
        self._face = face
        self._asker = Asker(cache, function, options)
        self._function = function
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the result, from the cache if it may be."""
        started = time.perf_counter()
        refuse_in_loop()
        asker = self._asker
        cache = asker.cache
        tenant: Any = None
        try:
            values, tenant, packed = asker.identify(args, kwargs)
        except HookRaised as raised:
            asker.passed(raised, None, started)
            return self._function(*args, **kwargs)
        span = asker.span()
        first = cache.entries.first
        off = asker.is_off(tenant)
        if first is not None and not off and tenant.__class__ is str:
            live = first.glance((asker.identity, tenant, asker.operation, packed))
            if live is not None:
                value: R = asker.remembered(live, tenant, span, started)
                if value is not NOTHING:
                    return value
        try:
            whose = self._whose(tenant)
            off = off or asker.is_off(whose)
            question = None if off else asker.question(values, whose, packed, span, started)
        except HookRaised as raised:
            asker.passed(raised, tenant, started)
            return self._function(*args, **kwargs)
        if question is None:
            reason = Bypass.DISABLED if off else Bypass.KEY_TOO_LONG
            try:
                return self._function(*args, **kwargs)
            finally:
                asker.bypassed(whose, reason, span, started)
        return self._face.answer(question, lambda: self._function(*args, **kwargs))

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compute the result anew, whatever is stored, and keep it."""
        refuse_in_loop()
        question = self._question(args, kwargs)
        if question is None or self._asker.is_off(question.tenant):
            return self._function(*args, **kwargs)
        return self._face.answer(question, lambda: self._function(*args, **kwargs), anew=True)

    def set(self, value: R, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Keep `value` as the result of this call; False if that did not work. Raises NotEncodable for what cannot."""
        question = self._question(args, kwargs)
        if question is None or self._asker.is_off(question.tenant):
            return False
        return self._face.run(self._asker.cache.calls.store(question, value)) is None

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Invalidation:
        """Make the result of this one call a miss, on every node, one under way included."""
        question = self._question(args, kwargs)
        if question is None:
            return Invalidation(acknowledged=True, queued=False, targets=(), waited=0.0)
        targets = self._asker.alone(question)
        return self._face.run(self._asker.cache.invalidate_targets(question.tenant, targets, trigger=Trigger.API))

    def bypass(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself: nothing is looked up, nothing is kept."""
        return self._function(*args, **kwargs)

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key in the store."""
        return self._asker.name(args, kwargs)

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explained:
        """Say what this call is kept under, for how long, and whether a result is there now; counts nothing."""
        question = self._question(args, kwargs)
        if question is None:
            raise InvalidName(f"{self._asker.operation}: the key of this call is too long, or a tag cannot be one")
        return self._face.run(self._asker.explain(question))

    def _question(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Question | None:
        try:
            values, tenant, packed = self._asker.identify(args, kwargs)
            return self._asker.question(values, self._whose(tenant), packed, None, time.perf_counter())
        except HookRaised as raised:
            raise raised.error from None

    def _whose(self, tenant: Any) -> str:
        return self._asker.checked(self._face.run(awaited(tenant)) if inspect.isawaitable(tenant) else tenant)

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> "SyncCached[P, R]": ...
    @overload
    def __get__(self: "SyncCached[Concatenate[S, Q], R]", instance: S, owner: type[Any]) -> "SyncCached[Q, R]": ...
    def __get__(self, instance: Any, owner: type[Any]) -> Any:
        """Bind to an instance, like a function."""
        return self if instance is None else bind(self, instance)


class SyncValues:
    """A tenant's values for synchronous code: as `nexcache.values.Values`, call by call."""

    def __init__(self, face: SyncFace, values: Values) -> None:
        self._face = face
        self._values = values

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value, or `default` where there is none."""
        return self._face.run(self._values.get(name, default))

    def set(self, name: str, value: Any, expiry: Duration | None = None) -> None:
        """Write a value; without `expiry` it is kept."""
        self._face.run(self._values.set(name, value, expiry))

    def add(self, name: str, value: Any, expiry: Duration | None = None) -> bool:
        """Write a value only where there is none, atomically; whether it was written."""
        return self._face.run(self._values.add(name, value, expiry))

    def delete(self, *names: str) -> int:
        """Remove values; returns how many there were."""
        return self._face.run(self._values.delete(*names))

    def exists(self, name: str) -> bool:
        """Whether there is a value."""
        return self._face.run(self._values.exists(name))

    def increment(self, name: str, by: int = 1, expiry: Duration | None = None) -> int:
        """Add to a number atomically and return the sum."""
        return self._face.run(self._values.increment(name, by, expiry))

    def expire(self, name: str, expiry: Duration | None) -> bool:
        """Let a value end in `expiry` seconds, or (None) keep it; whether there is one."""
        return self._face.run(self._values.expire(name, expiry))

    def get_many(self, names: Iterable[str]) -> dict[str, Any]:
        """Return those values that are there, by name."""
        return self._face.run(self._values.get_many(names))

    def set_many(self, values: Mapping[str, Any], expiry: Duration | None = None) -> None:
        """Write several values in one round trip."""
        self._face.run(self._values.set_many(values, expiry))

    def pipeline(self) -> "SyncPipeline":
        """Collect calls in a `with` block, and send them at its end in one round trip."""
        return SyncPipeline(self._face, self._values.pipeline())


class SyncSessions:
    """An application's sessions for synchronous code: as `nexcache.sessions.Sessions`, call by call."""

    def __init__(self, face: SyncFace, sessions: Sessions) -> None:
        self._face = face
        self._sessions = sessions

    def create(self, data: Mapping[str, Any] | None = None, *, user: str | None = None) -> Session:
        """Begin a session under a new id; `user` is whose it is, once that is known."""
        return self._face.run(self._sessions.create(data, user=user))

    def get(self, session_id: str) -> Session | None:
        """Return a session and prolong it; None where there is none, or none any more."""
        return self._face.run(self._sessions.get(session_id))

    def update(self, session_id: str, data: Mapping[str, Any]) -> Session | None:
        """Let a session hold `data` instead of what it held, and prolong it; None where there is none any more."""
        return self._face.run(self._sessions.update(session_id, data))

    def save(self, session: Session, data: Mapping[str, Any]) -> Session | None:
        """As `update`, for a session that was read before: what has ended meanwhile is not begun again."""
        return self._face.run(self._sessions.save(session, data))

    def rotate(self, session_id: str, *, user: str | None = None) -> Session | None:
        """Give a session a new id, and end the old one; with `user` it is that user's from now on."""
        return self._face.run(self._sessions.rotate(session_id, user=user))

    def delete(self, session_id: str) -> bool:
        """End a session; whether there was one."""
        return self._face.run(self._sessions.delete(session_id))

    def revoke(self, user: str) -> None:
        """End all sessions of a user, everywhere."""
        self._face.run(self._sessions.revoke(user))


class SyncRateLimit:
    """A limit for synchronous code: as `nexcache.rate_limit.RateLimit`."""

    def __init__(self, face: SyncFace, limit: RateLimit) -> None:
        self._face = face
        self._limit = limit

    def check(self, subject: str, *, tenant: str, cost: int = 1) -> Decision:
        """Count `cost` events of a subject if there is room for all of them; with 0 only look."""
        return self._face.run(self._limit.check(subject, tenant=tenant, cost=cost))


class SyncPipeline:
    """A pipeline in a `with` block: inside, it is the `nexcache.values.Pipeline` itself."""

    def __init__(self, face: SyncFace, pipeline: Pipeline) -> None:
        self._face = face
        self._pipeline = pipeline

    def __enter__(self) -> Pipeline:
        """Begin to collect."""
        return self._pipeline

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Send what was collected."""
        if kind is None:
            self._face.run(self._pipeline.send())
