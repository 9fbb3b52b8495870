"""A shared cache as HTTP has it (RFC 9111): what `CacheMiddleware(mode="rfc")` does with paths without a policy.

A request is answered from the response that it selects, or goes to the origin: to validate what is stored, or for
want of it. The rules are in `semantics`; what is done about them is here, from the request's arrival downwards.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Protocol

from nexcache.asgi import ASGIApp, Headers, Message, Receive, Scope, Send
from nexcache.collapse import end_of
from nexcache.entries import Missing
from nexcache.errors import OriginFailed, OverQuota
from nexcache.fill import Failed, Fill, Outcome, Unstorable
from nexcache.fill_lease import End
from nexcache.invalidation.apply import Invalidation
from nexcache.invalidation.targets import Targets
from nexcache.key import BYPASSING, KEYED, LONGEST_REQUEST, CacheKey
from nexcache.message import StoredResponse
from nexcache.policy import Policy
from nexcache.refresh import Refreshes
from nexcache.semantics import cache_status
from nexcache.semantics.asked import Asked, asked
from nexcache.semantics.choosing import ERRORS, Use, Validate, choose, stands_in
from nexcache.semantics.freshening import CONDITIONS, head_agrees, is_confirmed, updated, validating
from nexcache.semantics.freshness import initial_age
from nexcache.semantics.headers import end_to_end, first, spellings
from nexcache.semantics.invalidating import Target, groups_invalidated, groups_of, invalidated, named_by, target_of
from nexcache.semantics.keeping import Keepable, may_keep
from nexcache.semantics.partial import PARTIAL, combined, is_whole_part, missing_part, part_within
from nexcache.semantics.reuse import current_age
from nexcache.semantics.sending import outgoing, range_holds
from nexcache.semantics.stored import Facts, facts
from nexcache.semantics.storing import Storable
from nexcache.semantics.vary import nominated
from nexcache.telemetry.counts import Counts, OperationCounts
from nexcache.telemetry.events import Answered, Emitter, NotStored, RequestSpan
from nexcache.telemetry.names import Bypass, NotStoredReason, Result, Tier, Trigger
from nexcache.variants import Captured, NoneSelected, Parts, Place, Selected, Variants

OPERATION: Final = "http"
LONGEST_STORED: Final = 86_400.0
"""Seconds for which a response is stored, `CACHE_TTL_HTTP` unless that says otherwise."""
_NOT_MODIFIED: Final = 304
_OK: Final = 200
_REMEMBERED: Final = 1024
"""Requests whose keys need not be built again."""
_WAITS: Final = 2
"""Computations of others that a request waits for."""
_LONGEST_WAIT: Final = 10.0
"""Seconds for which it waits for one of them."""
_LONGEST_FILL: Final = 60.0
"""Seconds after which a computation whose client has left is ended."""
_NEEDED: Final = "what is stored must be validated, and the origin failed"
_OF_BODIES: Final = (b"content-length", b"transfer-encoding")
_ROLES: Final = {
    spelling: role
    for names, role in ((KEYED, "keyed"), (BYPASSING, "override"))
    for name in names
    for spelling in spellings(name.decode())
} | {b"content-length": "length", b"transfer-encoding": "body"}


class Caching(Parts, Protocol):
    """What is needed of a cache."""

    @property
    def counts(self) -> Counts:
        """Plain numbers."""

    @property
    def emitter(self) -> Emitter:
        """Takes events."""

    @property
    def refreshes(self) -> Refreshes:
        """The refreshes under way."""

    def ttl_of(self, policy: Policy) -> float:
        """Return the seconds for which a policy's responses are kept, settings included."""

    def tenant_ttl(self, tenant: str, operation: str) -> float | None:
        """Return the seconds that a tenant has of its own; None: none."""

    def is_disabled(self, operation: str, tenant: str | None = None) -> bool:
        """Whether an operation is switched off, for all tenants or for this one."""

    async def invalidate_targets(self, tenant: str, targets: Targets, *, trigger: Trigger) -> Invalidation:
        """Make everything that depends on the targets a miss."""


class _Release(Protocol):
    """Lets those go on who wait for a request to the origin."""

    def __call__(self, end: End, *, failed: bool) -> None:
        """Say how it has ended, and whether the origin failed."""


@dataclass(slots=True)
class Visit:
    """What is known of one request on its way through; local to one call."""

    scope: Scope
    receive: Receive
    send: Send
    tenant: str
    principal: str | None
    started: float
    asked: Asked
    span: RequestSpan | None
    counts: OperationCounts
    place: Place | None = None
    silent: bool = False
    """Nobody waits for the answer."""
    kept: bool = False
    ended: bool = False

    @property
    def method(self) -> str:
        """The request's method."""
        method: str = self.scope["method"]
        return method

    @property
    def target(self) -> Target:
        """The URI that the request is for."""
        return target_of(self.scope)


@dataclass(slots=True)
class _Leading:
    """A request to the origin that others wait for."""

    ended: asyncio.Future[None]
    fill: Fill | None = None
    failed: bool = False
    """The origin did: those who wait need not find out for themselves."""

    @property
    def is_storing(self) -> bool:
        """Whether its client may have the whole answer already."""
        return self.fill is not None and self.fill.complete is not None


@dataclass(slots=True)
class _Asking:
    """One request to the origin, and what becomes of its answer."""

    captured: Captured | None
    stored: Selected | None
    """What it validates."""
    requested: float
    validates: bool = False
    """It carries the conditions that `stored` is validated by."""
    keepable: Keepable | None = None
    received: float = 0.0
    joins: bool = False
    """It asks for what is missing of `stored`."""
    whole: StoredResponse | None = None
    """Both together."""
    held: bool = False
    """Those who wait go on when what is stored has been brought up to date, and not before."""
    over: bool = False
    """The tenant held as much as it may a moment ago: the store is not asked to take more."""


class HttpCache:
    """Answers requests by the RFCs alone. `credentials` are fields that count as Authorization does (§3.5)."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        cache: Caching,
        credentials: Iterable[str] = ("authorization",),
        max_body: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._app = app
        self._cache = cache
        self._max_body = max_body
        self._clock = clock
        names = {name.lower() for name in credentials} - {"cookie"}
        self._credentials = frozenset(spelling for name in names for spelling in spellings(name))
        self._policy = Policy("/", op=OPERATION, ttl=LONGEST_STORED)
        self._longest = cache.ttl_of(self._policy)
        self._variants = Variants(cache)
        self._placed = lru_cache(maxsize=_REMEMBERED)(self._key)
        self._leading: dict[bytes, _Leading] = {}

    async def __call__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        tenant: str,
        principal: str | None,
        reason: Bypass | None,
        started: float,
    ) -> None:
        """Answer a request; `reason`: why it must go past the cache."""
        tracing = self._cache.emitter.tracing
        visit = Visit(
            scope,
            receive,
            send,
            tenant,
            principal,
            started,
            asked(scope["headers"], credentials=self._credentials),
            tracing.get(OPERATION) if tracing is not None else None,
            self._cache.counts.of(tenant or None, OPERATION),
        )
        try:
            await self._answer(visit, reason)
        except BaseException:
            self._end(visit, Result.ERROR)
            raise

    # --- which way -----------------------------------------------------------------------------------------

    async def _answer(self, visit: Visit, reason: Bypass | None) -> None:
        if reason is None and self._cache.is_disabled(OPERATION, visit.tenant):
            reason = Bypass.DISABLED
        if reason is None and visit.method not in ("GET", "HEAD"):
            await self._write(visit)
            return
        keyed = self._keyed(visit.scope["headers"]) if reason is None else ()
        if isinstance(keyed, Bypass):
            reason = keyed
        elif reason is None:
            reason = _unanswerable(visit.asked) or self._locate(visit, visit.scope, keyed)
        if reason is not None:
            await self._bypass(visit, reason)
            return
        await self._serve(visit)

    def _keyed(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers | Bypass:
        """Return the fields that are part of every key, or why the cache must not be asked."""
        kept, hosts = [], 0
        for name, value in headers:
            match _ROLES.get(name):
                case "keyed":
                    kept.append((name, value))
                    hosts += name == b"host"
                case "override":
                    return Bypass.OVERRIDE
                case "length" if value.strip() not in (b"", b"0"):
                    return Bypass.BODY
                case "body":
                    return Bypass.BODY
        return Bypass.HOST if hosts > 1 else tuple(kept)

    def _locate(self, visit: Visit, scope: Scope, keyed: Headers) -> Bypass | None:
        """Find the place of the request's URI in the store."""
        parts = (scope["path"], scope.get("raw_path"), scope["query_string"])
        around = (scope.get("scheme", "http"), scope.get("root_path", ""))
        found = self._placed(visit.tenant, visit.principal, keyed, *parts, *around)
        if found is None:
            return Bypass.KEY_TOO_LONG
        visit.place = Place(found[0], found[1], tuple(scope["headers"]))
        return None

    def _key(  # noqa: PLR0917 - every part of a request that decides, as what is remembered is found by
        self,
        tenant: str,
        principal: str | None,
        keyed: Headers,
        path: str,
        raw_path: bytes | None,
        query: bytes,
        scheme: str,
        root_path: str,
    ) -> tuple[CacheKey, tuple[str, ...]] | None:
        """Build the key of a URI for a tenant and principal, and the tag of the URI; None if it would be too long."""
        scope: Scope = {
            "method": "GET",
            "scheme": scheme,
            "root_path": root_path,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": keyed,
        }
        keys = self._cache.keys
        canonical = keys.canonical(scope, self._policy, keyed, tenant=tenant, principal=principal, query=query)
        if len(canonical) > LONGEST_REQUEST:
            return None
        tags = (target_of(scope).tag,)
        return keys.key(tenant, OPERATION, canonical, tags), tags

    async def _serve(self, visit: Visit) -> None:
        """Answer from what is stored if that may be, else from the origin."""
        place = visit.place
        assert place is not None  # noqa: S101 - for the type checker
        waits, anew, failed = 0, False, False
        waited_for: str | None = None
        while True:
            since = time.monotonic()
            selected = await self._variants.select(place, visit.counts, anew=anew)
            choice = self._choose(visit, selected)
            if not anew and self._may_be_elsewhere(visit, selected, choice):
                anew = True
                continue
            if isinstance(choice, Use) and isinstance(selected, Selected) and selected.response.status == PARTIAL:
                selected, choice = self._cut(visit, selected, choice)
            if isinstance(choice, Use) and isinstance(selected, Selected):
                await self._use(visit, selected, choice, waited_for)
                return
            if failed and isinstance(selected, Selected):
                asking = _Asking(None, selected, self._clock())
                if self._stands_in(visit, asking):
                    await self._stand_in(visit, asking, None, collapsed=True)
                    return
            flight = self._variants.flight(place, selected)
            under_way = self._leading.get(flight.name)
            shares = self._shares(visit) and waits < _WAITS
            if under_way is not None and waits < _WAITS and self._waits(visit, under_way, shares=shares):
                await asyncio.wait((under_way.ended,), timeout=_LONGEST_WAIT)
                failed = under_way.failed
            elif visit.asked.only_if_cached:  # §5.2.1.7
                await self._not_cached(visit)
                return
            else:
                end = await self._lead(visit, selected, choice, flight if shares else None, since=since)
                if end is None:
                    return
                anew = True
                if end is End.ALONE:
                    self._cache.flights.remember_alone(place.key)
                elif end in (End.LOST, End.OVERDUE):
                    waits = _WAITS
            waits, waited_for = waits + 1, choice.fwd if isinstance(choice, Validate) else waited_for

    def _choose(self, visit: Visit, selected: Selected | NoneSelected) -> Use | Validate:
        if isinstance(selected, NoneSelected):
            return Validate(selected.fwd)
        return choose(selected.facts, current_age(selected.response, self._clock()), visit.asked)

    def _cut(self, visit: Visit, selected: Selected, choice: Use) -> tuple[Selected, Use | Validate]:
        """Take what is asked for of a stored part, if it is there (§3.3)."""
        if visit.method == "GET" and range_holds(selected.facts, visit.asked, now=self._clock()):
            part = part_within(selected.response, visit.asked.range)
            if part is not None:
                return replace(selected, response=part), choice
        return selected, Validate("partial")

    def _shares(self, visit: Visit) -> bool:
        """Whether a request waits for another of the same URI."""
        place = visit.place
        return (
            place is not None
            and visit.method == "GET"
            and visit.asked.range is None
            and not visit.asked.no_cache
            and not visit.silent
            and self._cache.flights.waits(place.key)
        )

    def _waits(self, visit: Visit, under_way: _Leading, *, shares: bool) -> bool:
        """Whether a request waits for another: to share its answer, or until what its client has seen is stored."""
        if shares and not visit.asked.only_if_cached:
            return True
        return under_way.is_storing and not under_way.ended.done() and not visit.asked.no_cache and not visit.silent

    def _may_be_elsewhere(self, visit: Visit, selected: Selected | NoneSelected, choice: Use | Validate) -> bool:
        """Whether another node may have brought up to date what this one holds."""
        return (
            isinstance(selected, Selected)
            and isinstance(choice, Validate)
            and selected.tier is Tier.MEMORY
            and not self._cache.entries.in_process
            and not visit.asked.no_cache
            and not selected.facts.must_validate
        )

    # --- from what is stored -------------------------------------------------------------------------------

    async def _use(self, visit: Visit, selected: Selected, choice: Use, waited_for: str | None) -> None:
        """Send a stored response as it is; `waited_for`: why another request had to get it."""
        if waited_for is not None:
            status = cache_status.forwarded(waited_for, collapsed=True)
            visit.counts.coalesced += 1
        else:
            status = cache_status.hit(choice.ttl, selected.facts.rule if choice.ttl > 0 else "stale")
        result = Result.MISS if waited_for is not None else Result.HIT if choice.ttl > 0 else Result.STALE
        if choice.refresh:
            self._refresh_later(visit, selected)
        await self._send_stored(visit, selected.response, selected.facts, status, validated=False)
        self._end(visit, result, selected=selected)

    async def _send_stored(
        self, visit: Visit, response: StoredResponse, stored: Facts, status: bytes, *, validated: bool
    ) -> None:
        now = self._clock()
        sent = outgoing(response, stored, visit.asked, method=visit.method, now=now)
        withheld = stored.withheld if not validated else ()
        headers = [pair for pair in sent.headers if pair[0] not in withheld] if withheld else [*sent.headers]
        headers += [(b"age", b"%d" % current_age(response, now)), (cache_status.NAME, status)]
        await visit.send({"type": "http.response.start", "status": sent.status, "headers": headers})
        await visit.send({"type": "http.response.body", "body": sent.body, "more_body": False})

    async def _not_cached(self, visit: Visit) -> None:
        status = (cache_status.NAME, b"NexCache; detail=only-if-cached")
        headers = [(b"content-length", b"0"), (b"cache-control", b"no-store"), status]
        await visit.send({"type": "http.response.start", "status": 504, "headers": headers})
        await visit.send({"type": "http.response.body", "body": b"", "more_body": False})
        self._end(visit, Result.MISS)

    def _refresh_later(self, visit: Visit, selected: Selected) -> None:
        """Validate a stored response in the background, once per key at a time (RFC 5861 §3)."""
        if visit.silent:
            return
        scope = {**visit.scope, "method": "GET", "headers": _plain(visit.scope["headers"])}
        self._cache.refreshes.start(visit.tenant, selected.key.name, lambda: self._refresh(visit, scope))

    async def _refresh(self, visit: Visit, scope: Scope) -> bool:
        asked_first = False

        async def receive() -> Message:
            nonlocal asked_first
            if asked_first:
                return {"type": "http.disconnect"}
            asked_first = True
            return {"type": "http.request", "body": b"", "more_body": False}

        again = replace(
            visit,
            scope=scope,
            receive=receive,
            send=_nowhere,
            asked=Asked(authorized=visit.asked.authorized),
            span=None,
            silent=True,
            kept=False,
            ended=False,
        )
        if again.place is None:
            return False
        since = time.monotonic()
        selected = await self._variants.select(again.place, again.counts, anew=True)
        choice = self._choose(again, selected)
        if isinstance(choice, Use) and not choice.refresh:
            return True
        flight = self._variants.flight(again.place, selected)
        try:
            end = await self._lead(again, selected, Validate("stale"), flight, since=since)
        except Exception:  # noqa: BLE001 - nobody waits for it, and it is tried again
            return False
        return end is not None or again.kept  # by another node, or by this one

    # --- from the origin -----------------------------------------------------------------------------------

    async def _lead(
        self,
        visit: Visit,
        selected: Selected | NoneSelected,
        choice: Use | Validate,
        flight: CacheKey | None,
        *,
        since: float = 0.0,
    ) -> End | None:
        """Ask the origin; those who ask for the same meanwhile wait for the `flight`, on other nodes, too.

        Returns None; or, where another node was at it, how that has ended: nothing has been answered then.
        """
        if visit.method == "HEAD":
            await self._head(visit, selected, choice)
            return None
        mine = _Leading(asyncio.get_running_loop().create_future())
        name = flight.name if flight is not None else b""
        if flight is not None:
            self._leading.setdefault(name, mine)
        fwd = choice.fwd if isinstance(choice, Validate) else "stale"
        stored = selected if isinstance(selected, Selected) else None
        asking = _Asking(None, stored, self._clock())

        def release(end: End = End.OVER, *, failed: bool = False) -> None:
            mine.failed |= failed
            if asking.captured is not None and asking.captured.lease is not None:
                asking.captured.lease.end(end)
            if not mine.ended.done():
                mine.ended.set_result(None)
            if self._leading.get(name) is mine:
                del self._leading[name]

        try:
            asking.captured = captured = await self._capture(visit, selected, flight, since=since)
            if captured is not None and captured.elsewhere is not None:
                end = await self._elsewhere(visit, captured)
                release()
                return end
            if captured is not None and captured.lease is not None:
                captured.lease.keep(_LONGEST_FILL)
            while True:
                mine.fill = self._start(visit, asking, selected, release, fwd=fwd)
                if await self._pass(visit, mine.fill, asking, fwd):
                    break
                asking = _Asking(asking.captured, None, self._clock())  # the 304 was not about what is stored
        except BaseException:
            if mine.fill is not None:
                mine.fill.detach()
            if mine.fill is None or asking.held or mine.fill.task.done():
                release(End.FAILED)
            raise
        release()
        return None

    async def _elsewhere(self, visit: Visit, captured: Captured) -> End:
        """Wait until another node has asked the origin; not where nobody waits for the answer here."""
        leases = self._cache.leases
        if leases is None or captured.elsewhere is None or visit.silent:
            return End.OVER
        return await leases.ended(captured.elsewhere, since=captured.at, limit=_LONGEST_WAIT)

    async def _capture(
        self,
        visit: Visit,
        selected: Selected | NoneSelected,
        flight: CacheKey | None = None,
        *,
        since: float | None = None,
    ) -> Captured | None:
        """Capture the generations under which an answer may be stored."""
        if visit.place is None:
            return None
        missing = selected.missing if isinstance(selected, NoneSelected) else Missing(selected.tier, None)
        if missing.tier is Tier.MEMORY and not self._cache.entries.in_process:
            missing = Missing(Tier.REDIS, missing.generations)
        return await self._variants.capture(visit.place, missing, flight, since=since)

    def _start(
        self,
        visit: Visit,
        asking: _Asking,
        selected: Selected | NoneSelected,
        release: "_Release",
        *,
        fwd: str,
    ) -> Fill:
        """Call the app."""
        scope, stored = visit.scope, asking.stored
        if stored is not None and stored.facts.can_be_validated and stored.response.status == _OK:
            asking.validates = True
            scope = {**scope, "headers": validating(scope["headers"], stored.facts, visit.asked)}
        elif stored is not None and fwd == "partial" and visit.asked == Asked(authorized=visit.asked.authorized):
            missing = missing_part(stored.response)
            if missing is not None and stored.facts.etag is not None:
                asking.joins = True
                more = [(b"range", missing), (b"if-range", stored.facts.etag)]
                scope = {**scope, "headers": [*scope["headers"], *more]}
        elif stored is None and isinstance(selected, Selected):
            scope = {**scope, "headers": _plain(scope["headers"])}

        asking.over = self._is_over(visit)

        def decide(status: int, headers: Headers, trailers: bool) -> Storable | NotStoredReason:
            asking.received = self._clock()
            if asking.validates and status == _NOT_MODIFIED:
                asking.held = True
                return NotStoredReason.STATUS
            if status in ERRORS and self._stands_in(visit, asking):
                return NotStoredReason.FAILED
            kept = may_keep(
                visit.asked,
                status,
                headers,
                requested=asking.requested,
                received=asking.received,
                max_body=self._max_body,
                trailers=trailers,
                whole=visit.asked.range is None,
            )
            if asking.joins and status == PARTIAL:
                return Storable(None)
            if isinstance(kept, NotStoredReason):
                return kept
            asking.keepable = kept
            return Storable(kept.length)

        def build(status: int, headers: Headers, body: bytes, cost: float) -> StoredResponse:
            if asking.joins and status == PARTIAL:
                return self._joined(visit, asking, headers, body)
            keepable = asking.keepable
            assert keepable is not None  # noqa: S101 - for the type checker
            if status == PARTIAL and stored is not None:
                grown = combined(stored.response, keepable.headers, body)
                if grown is not None and len(grown[2]) <= self._max_body:
                    status, headers, body = grown
                    keepable = replace(keepable, headers=headers)
            return self._stored(visit, status, keepable, body, received=asking.received, cost=cost)

        async def keep(response: StoredResponse) -> NotStoredReason | None:
            return await self._keep(visit, asking, selected, response)

        def gave_up(outcome: Unstorable | Failed) -> None:
            if isinstance(outcome, Unstorable) and not asking.held and visit.place is not None:
                self._cache.flights.remember_alone(visit.place.key)
            if not asking.held:
                self._not_stored(visit, outcome.reason)

        def settled(outcome: Outcome) -> None:
            if not asking.held:
                release(end_of(outcome, fill.not_stored), failed=isinstance(outcome, Failed))

        fill = Fill(
            app=self._app,
            scope=scope,
            receive=visit.receive,
            body=None,
            ttl=self._longest,
            soft_limit=_LONGEST_WAIT,
            hard_limit=_LONGEST_FILL,
            max_body=self._max_body,
            decide=decide,
            keep=keep,
            gave_up=gave_up,
            around=visit.span.fill(OPERATION) if visit.span is not None else None,
            build=build,
        )
        fill.refused = NotStoredReason.QUOTA if asking.over else None
        fill.on_settled(settled)
        self._cache.flights.track(fill)
        return fill

    async def _pass(self, visit: Visit, fill: Fill, asking: _Asking, fwd: str) -> bool:
        """Pass the origin's answer on, or answer with what it says of the stored one; False: it must be asked again."""
        begun = False
        while (message := await fill.next()) is not None:
            if message["type"] == "http.response.start" and not begun:
                begun = True
                status: int = message["status"]
                if asking.held:
                    while await fill.next() is not None:  # a 304 ends at once
                        pass
                    return await self._not_modified(visit, message, asking, fwd)
                if asking.joins and status in (PARTIAL, 416):
                    while await fill.next() is not None:
                        pass
                    if not await self._send_joined(visit, asking, status):
                        return False
                    break
                if status in ERRORS and self._stands_in(visit, asking):
                    fill.detach()
                    await self._stand_in(visit, asking, status)
                    return True
                message = _told(message, self._forwarded(fwd, status, fill, asking))
            await visit.send(message)
        if fill.finished:
            self._end(visit, Result.MISS)  # what the app does in the background is not waited for by anyone
        elif not begun and isinstance(fill.error, Exception) and self._stands_in(visit, asking):
            await self._stand_in(visit, asking, None)
            return True
        try:
            await fill.join()
        except OriginFailed as error:
            if begun or not _is_needed(asking.stored):
                raise
            raise OriginFailed(504, _NEEDED) from error
        self._end(visit, Result.MISS)
        return True

    def _joined(self, visit: Visit, asking: _Asking, headers: Headers, body: bytes) -> StoredResponse:
        """Join what is stored and what was missing of it (§3.4)."""
        stored = asking.stored
        assert stored is not None  # noqa: S101 - for the type checker
        found = combined(stored.response, end_to_end(headers), body)
        if found is None or found[0] != _OK:
            return stored.response
        _, fields, content = found
        kept = may_keep(
            visit.asked,
            _OK,
            (*fields, *(pair for pair in headers if pair[0].lower() == b"age")),
            requested=asking.requested,
            received=asking.received,
            max_body=self._max_body,
        )
        if isinstance(kept, NotStoredReason):
            age = initial_age(headers, requested=asking.requested, received=asking.received)
            whole = StoredResponse(_OK, fields, content, stored.response.etag, asking.received, 0.0, age)
        else:
            asking.keepable = kept
            whole = self._stored(visit, _OK, kept, content, received=asking.received, cost=0.0)
        asking.whole = whole
        return whole

    async def _send_joined(self, visit: Visit, asking: _Asking, status: int) -> bool:
        """Send what has become whole; False: it has not, and must be asked for as a whole."""
        whole = asking.whole
        if whole is None:
            return False
        stored = facts(whole.status, whole.headers, received=whole.stored_at)
        kept = asking.keepable is not None
        told = cache_status.forwarded(
            "partial",
            status=status,
            stored=kept and not asking.over,
            detail=NotStoredReason.QUOTA if kept and asking.over else None,
        )
        await self._send_stored(visit, whole, stored, told, validated=True)
        self._end(visit, Result.MISS)
        return True

    def _forwarded(self, fwd: str, status: int, fill: Fill, asking: _Asking) -> bytes:
        reason = fill.not_stored or fill.refused
        stored = asking.keepable is not None and reason is None
        return cache_status.forwarded(fwd, status=status, stored=stored, detail=reason)

    # --- validation ----------------------------------------------------------------------------------------

    async def _not_modified(self, visit: Visit, message: Message, asking: _Asking, fwd: str) -> bool:
        """Bring the stored response up to date by a 304 and send it; False: it was about something else (§4.3.4)."""
        stored, headers = asking.stored, tuple((bytes(name), bytes(value)) for name, value in message["headers"])
        assert stored is not None  # noqa: S101 - for the type checker
        status = cache_status.forwarded(fwd, status=_NOT_MODIFIED)
        if not is_confirmed(stored.facts, headers, visit.asked):
            if visit.asked.if_none_match is None and visit.asked.if_modified_since is None:
                return False
            await visit.send(_told(message, status))
            await visit.send({"type": "http.response.body", "body": b"", "more_body": False})
            self._end(visit, Result.MISS)
            return True
        response, new = await self._freshen(visit, asking, headers)
        await self._send_stored(visit, response, new, status, validated=True)
        self._end(visit, Result.REVALIDATED, selected=stored)
        return True

    async def _freshen(self, visit: Visit, asking: _Asking, news: Headers) -> tuple[StoredResponse, Facts]:
        """Update a stored response's fields (§3.2) and store it again, if that is still allowed."""
        stored, received = asking.stored, asking.received
        assert stored is not None  # noqa: S101 - for the type checker
        old = stored.response
        headers = updated(old.headers, news)
        aged = tuple((name, value) for name, value in news if name.lower() == b"age")
        kept = may_keep(
            replace(visit.asked, no_store=False),
            old.status,
            (*headers, *aged),
            requested=asking.requested,
            received=received,
            max_body=self._max_body,
        )
        if isinstance(kept, NotStoredReason):
            self._not_stored(visit, kept)
            await self._forget(visit)
            age = initial_age((*headers, *aged), requested=asking.requested, received=received)
            response = replace(old, headers=headers, stored_at=received, initial_age=age)
            return response, facts(old.status, headers, received=received)
        response = self._stored(visit, old.status, kept, old.body, received=received, cost=old.cost)
        if asking.captured is not None:
            try:
                visit.kept = bool(await self._replace(visit, stored, response, asking.captured, kept))
            except OverQuota:
                self._not_stored(visit, NotStoredReason.QUOTA)
        return response, kept.facts

    async def _replace(
        self, visit: Visit, stored: Selected, response: StoredResponse, captured: Captured, kept: Keepable
    ) -> bool | None:
        tags, place = named_by(visit.target, response.headers), visit.place
        if place is None or kept.varies == nominated(stored.response.headers):
            return await self._variants.replace(stored.key, response, captured, visit.counts, tags=tags)
        return await self._variants.keep(  # §4.1: it has said only now by what it varies
            place, response, captured, visit.counts, varies=kept.varies, known=stored.known, tags=tags
        )

    def _stands_in(self, visit: Visit, asking: _Asking) -> bool:
        stored = asking.stored
        if stored is None or stored.response.status in ERRORS or stored.response.status == PARTIAL:
            return False
        return stands_in(stored.facts, current_age(stored.response, self._clock()), visit.asked)

    async def _stand_in(self, visit: Visit, asking: _Asking, failed: int | None, *, collapsed: bool = False) -> None:
        """Send what is stored in place of an origin that failed."""
        stored = asking.stored
        assert stored is not None  # noqa: S101 - for the type checker
        status = cache_status.forwarded("stale", status=failed, collapsed=collapsed, detail="stale")
        await self._send_stored(visit, stored.response, stored.facts, status, validated=False)
        self._end(visit, Result.STALE, selected=stored)

    async def _head(self, visit: Visit, selected: Selected | NoneSelected, choice: Use | Validate) -> None:
        """Ask the origin for a HEAD; what it says counts for the stored response to a GET, too (§4.3.5)."""
        stored = selected if isinstance(selected, Selected) else None
        asking = _Asking(None, stored, self._clock())
        begun, failed = False, 0

        async def tell(message: Message) -> None:
            nonlocal begun, failed
            if message["type"] == "http.response.start":
                begun = True
                status: int = message["status"]
                asking.received = self._clock()
                if status in ERRORS and self._stands_in(visit, asking):
                    failed = status
                headers = tuple((bytes(name), bytes(value)) for name, value in message.get("headers", ()))
                if status == _OK and stored is not None and stored.response.status == _OK:
                    await self._update_by_head(visit, asking, headers)
                fwd = choice.fwd if isinstance(choice, Validate) else "stale"
                message = _told(message, cache_status.forwarded(fwd, status=status))
            if not failed:
                await visit.send(message)

        try:
            await self._app(visit.scope, visit.receive, tell)
        except Exception as error:
            if begun:
                raise
            if isinstance(error, OriginFailed) and _is_needed(stored):
                raise OriginFailed(504, _NEEDED) from error
            if not self._stands_in(visit, asking):
                raise
            await self._stand_in(visit, asking, None)
        if failed:
            await self._stand_in(visit, asking, failed)
        self._end(visit, Result.MISS)

    async def _update_by_head(self, visit: Visit, asking: _Asking, headers: Headers) -> None:
        stored = asking.stored
        assert stored is not None  # noqa: S101 - for the type checker
        if head_agrees(stored.response.headers, headers):
            asking.captured = await self._capture(visit, stored)
            await self._freshen(visit, asking, headers)
        else:
            await self._forget(visit)

    # --- storing -------------------------------------------------------------------------------------------

    def _is_over(self, visit: Visit) -> bool:
        quotas = self._cache.entries.quotas
        return quotas is not None and quotas.is_over(visit.tenant)

    def _stored(
        self, visit: Visit, status: int, kept: Keepable, body: bytes, *, received: float, cost: float
    ) -> StoredResponse:
        headers = kept.headers
        if status not in (204, 205) and first(headers, b"content-length") is None:
            headers = (*headers, (b"content-length", b"%d" % len(body)))
        longest = self._cache.tenant_ttl(visit.tenant, OPERATION)
        ttl = min(kept.retention, self._longest if longest is None else longest)
        return StoredResponse(status, headers, body, kept.facts.etag or b"", received, ttl, kept.initial_age, cost)

    async def _keep(
        self, visit: Visit, asking: _Asking, selected: Selected | NoneSelected, response: StoredResponse
    ) -> NotStoredReason | None:
        place, captured, keepable = visit.place, asking.captured, asking.keepable
        if place is None or captured is None or keepable is None:
            return NotStoredReason.PARTIAL
        if response.status == PARTIAL and not is_whole_part(response.headers, response.body):
            return NotStoredReason.PARTIAL
        quotas = self._cache.entries.quotas
        with visit.span.put(OPERATION) if visit.span is not None else nullcontext():
            try:
                if asking.over and quotas is not None:
                    quotas.refuse(visit.tenant)
                kept = await self._variants.keep(
                    place,
                    response,
                    captured,
                    visit.counts,
                    varies=keepable.varies,
                    known=selected.known,
                    tags=named_by(visit.target, response.headers),
                )
                reason = NotStoredReason.BACKEND if kept is None else NotStoredReason.INVALIDATED
            except OverQuota:
                kept, reason = False, NotStoredReason.QUOTA
                self._cache.flights.remember_alone(place.key)
        visit.kept = bool(kept)
        if kept:
            return None
        self._not_stored(visit, reason)
        return reason

    async def _forget(self, visit: Visit) -> None:
        """Invalidate all that is stored of a URI."""
        await self._invalidate(visit, (visit.target.tag,))

    async def _invalidate(self, visit: Visit, tags: Sequence[str]) -> None:
        if tags:
            await self._cache.invalidate_targets(visit.tenant, Targets.of(tags=tags), trigger=Trigger.WRITE)

    def _not_stored(self, visit: Visit, reason: NotStoredReason) -> None:
        key = visit.place.key.hash if visit.place is not None else None
        self._cache.emitter.emit(NotStored(OPERATION, visit.tenant, reason, key))

    # --- past the cache ------------------------------------------------------------------------------------

    async def _write(self, visit: Visit) -> None:
        """Send a request on that may change something, and invalidate what it changes before its answer is seen."""
        target = visit.target

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.lower(), value) for name, value in message.get("headers", ())]
                tags = invalidated(
                    target, visit.method, message["status"], headers, also=visit.scope.get("nexcache.origin")
                )
                together = await self._grouped(visit) if tags else ()
                named = groups_invalidated(target, visit.method, headers)
                await self._invalidate(visit, (*tags, *named, *together))
                message = _told(message, cache_status.forwarded("method"))
            await visit.send(message)

        visit.counts.bypasses[Bypass.METHOD] += 1
        await self._app(visit.scope, visit.receive, tell)
        self._end(visit, Result.BYPASS, reason=Bypass.METHOD)

    async def _grouped(self, visit: Visit) -> tuple[str, ...]:
        """Return the groups of the stored response that a write makes invalid: they go with it (RFC 9875 §2.2.1)."""
        keyed = self._keyed(pair for pair in visit.scope["headers"] if pair[0] not in _OF_BODIES)
        scope = {**visit.scope, "method": "GET"}
        if isinstance(keyed, Bypass) or self._locate(visit, scope, keyed) is not None or visit.place is None:
            return ()
        selected = await self._variants.select(visit.place, visit.counts)
        return groups_of(visit.target, selected.response.headers) if isinstance(selected, Selected) else ()

    async def _bypass(self, visit: Visit, reason: Bypass) -> None:
        """Send a request on as if there were no cache."""
        visit.counts.bypasses[reason] += 1
        fwd = "request" if reason in (Bypass.NO_STORE, Bypass.PRECONDITION) else "bypass"
        status = cache_status.forwarded(fwd, detail=reason)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = _told(message, status)
            await visit.send(message)

        await self._app(visit.scope, visit.receive, tell)
        self._end(visit, Result.BYPASS, reason=reason)

    def _end(
        self, visit: Visit, result: Result, *, reason: Bypass | None = None, selected: Selected | None = None
    ) -> None:
        """Count and tell how a request was answered; only the first time."""
        if visit.ended:
            return
        visit.ended = True
        if visit.silent:
            return
        counts, duration = visit.counts, time.perf_counter() - visit.started
        tier = selected.tier if selected is not None else None
        match result:
            case Result.HIT:
                counts.memory_hits += tier is Tier.MEMORY
                counts.redis_hits += tier is Tier.REDIS
                counts.fallback_hits += tier is Tier.FALLBACK
                counts.hit_latency.add(duration)
            case Result.STALE:
                counts.stale += 1
            case Result.ERROR:
                counts.errors += 1
            case Result.MISS | Result.REVALIDATED:
                counts.misses += 1
                counts.miss_latency.add(duration)
        if visit.span is None and not self._cache.emitter.hears(Answered):
            return
        key = selected.key if selected is not None else visit.place.key if visit.place is not None else None
        answered = Answered(
            OPERATION,
            visit.tenant or None,
            result,
            tier,
            reason=reason,
            key_hash=key.hash if key is not None else None,
            size=len(selected.response.body) if selected is not None else None,
            duration=duration,
        )
        if visit.span is not None:
            visit.span.end(answered)
        self._cache.emitter.emit(answered)


def _is_needed(stored: Selected | None) -> bool:
    """Whether only the origin could have allowed the use of what is stored: its failure is a 504 then (§5.2.2.2)."""
    return stored is not None and stored.facts.never_stale


def _unanswerable(asked: Asked) -> Bypass | None:
    """Say why the cache cannot answer what is asked so."""
    if asked.no_store:  # §5.2.1.5
        return Bypass.NO_STORE
    return Bypass.PRECONDITION if asked.precondition else None  # RFC 9110 §13.1.1: only the origin can tell


def _told(message: Message, status: bytes) -> Message:
    headers = [*message.get("headers", ()), (cache_status.NAME, status)]
    if message["status"] == _NOT_MODIFIED:  # a server that counts bytes refuses a length without a body
        headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
    return {**message, "headers": headers}


def _plain(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Leave out what only concerns the client that asked: conditions, ranges, and what it says to caches."""
    dropped = CONDITIONS | {b"range", b"if-range", b"cache-control", b"pragma"}
    return [pair for pair in headers if pair[0] not in dropped]


async def _nowhere(_message: Message) -> None:
    pass
