"""The middleware: receive → tenant → policy → key → lookup → decide → serve or compute → store → emit.

A hit in memory runs from the top of `__call__` through `_in_memory`, on one screen; where nothing is held in memory, a
hit in the store through `_in_store`. Everything below that is for misses, and for what is seen the first time.
"""

import asyncio
import inspect
import random
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any, Final, Literal, Protocol, TypeAlias

from nexcache.admission import Admission
from nexcache.asgi import ASGIApp, Headers, Message, Receive, Scope, Send, route_path
from nexcache.collapse import Elsewhere, end_of
from nexcache.compression import compressed
from nexcache.entries import Found, Missing, Raw
from nexcache.errors import ConfigurationError, InvalidName, OverQuota, StoreError
from nexcache.explain import Behind, Examined
from nexcache.fill import Complete, Failed, Fill, Outcome, Over, Overdue, Unstorable
from nexcache.fill_lease import Captured, End, FillLeases, Lease
from nexcache.http_cache import Caching, HttpCache
from nexcache.invalidation.generations import Snapshot
from nexcache.invalidation.targets import check_name
from nexcache.key import LONGEST_REQUEST, CacheKey, HeaderRules, Keyed, Layouts
from nexcache.known import Known
from nexcache.ladder import Rung
from nexcache.message import StoredResponse
from nexcache.policy import Covered, Matched, Policies, Policy, TagsInvalid, covered_by, seconds, size_in_bytes
from nexcache.refresh import AGAIN, CREDENTIALS, REFRESH, Recent, Refreshing, Target
from nexcache.semantics import cache_status
from nexcache.semantics.early_refresh import jittered
from nexcache.semantics.encoding import is_encodable, varying_by_encoding
from nexcache.semantics.groups import tags_in
from nexcache.semantics.headers import first, spellings
from nexcache.semantics.reuse import (
    NOT_MODIFIED,
    REVALIDATE,
    Prepared,
    answer,
    current_age,
    for_client,
    time_to_live,
    varying,
)
from nexcache.semantics.storing import may_store
from nexcache.semantics.validation import none_match, not_modified_headers
from nexcache.shadow import Computed, alike
from nexcache.shadowing import Shadows
from nexcache.switches import Switches
from nexcache.telemetry.counts import OperationCounts
from nexcache.telemetry.events import Answered, Filled, HookFailed, NotStored, RequestSpan
from nexcache.telemetry.names import Bypass, NotStoredReason, Result, Tier
from nexcache.tenants import ApiKeys, Caller, Resolver, current, is_valid_id
from nexcache.turns import Turn, Turns

_BODY_KEYED: Final = 64 * 1024
"""Bytes of a request's body that may be part of a key."""

_WITH_BODY: Final = ("POST", "QUERY")
_WITHOUT_BODY: Final = ("GET", "HEAD")

_DISABLED: Final = (cache_status.NAME, cache_status.forwarded("bypass", detail=Bypass.DISABLED))
_UNASKED: Final = object()

_MEMORY: Final = Tier.MEMORY
_REDIS: Final = Tier.REDIS
"""By names of their own: in Python 3.11 a member of an enumeration costs as much as a function each time."""

_NOTED_FOR: Final = 1.0
"""Seconds for which a request that is asked for again and again counts as noted."""
_FOLLOWS: Final = 2
"""Fills that a request follows while they fail: the first, and its one successor."""


Flight: TypeAlias = Fill | Elsewhere
Resolved: TypeAlias = str | Awaitable[str | None] | None


class ResponseCache(Caching, Protocol):
    """What the middleware needs of a cache."""

    def tenant_ttl(self, tenant: str, operation: str) -> float | None:
        """Return the seconds that settings name for a tenant's operation, if they do."""

    @property
    def enabled(self) -> bool:
        """Whether the cache is used at all."""

    @property
    def switches(self) -> Switches:
        """Which operations are switched off."""

    @property
    def state(self) -> Rung:
        """In which state the cache answers."""

    @property
    def leases(self) -> FillLeases | None:
        """The leases of fills; None where there are no other nodes."""

    @property
    def turns(self) -> Turns:
        """How many computations each tenant has under way."""

    @property
    def admission(self) -> Admission:
        """Which answers are stored."""

    @property
    def recent(self) -> Recent:
        """Remembers what was asked for."""

    @property
    def shadows(self) -> Shadows:
        """The shadow checks."""

    def register(self, app: Behind) -> None:
        """Note an app whose operations can be warmed."""

    async def start(self) -> None:
        """Prepare the cache; called before the first request."""

    async def aclose(self) -> None:
        """Give back what the cache holds."""


class _Request:
    """What is known of one request on its way through; local to one call."""

    __slots__ = (
        "ahead",
        "body",
        "client",
        "conditional",
        "counts",
        "deadline",
        "ended",
        "if_none_match",
        "index",
        "instead",
        "key",
        "matched",
        "method",
        "operation",
        "policy",
        "principal",
        "receive",
        "refreshing",
        "scope",
        "send",
        "span",
        "started",
        "tenant",
        "ttl",
        "turn",
        "waited",
    )

    def __init__(self, matched: Matched, scope: Scope, receive: Receive, send: Send) -> None:
        self.started = time.perf_counter()
        self.matched = matched
        self.policy = matched.policy
        self.index = matched.index
        self.operation = matched.policy.op
        self.scope = scope
        self.client = receive
        """What comes from the client next."""
        self.receive = receive
        """What the app reads: the request from its start."""
        self.send = send
        self.method: str = scope["method"]
        self.tenant = ""
        self.ttl = 0.0
        self.principal: str | None = None
        self.if_none_match: bytes | None = None
        self.conditional = True
        """It may have conditions of its own, which the app is not to see."""
        self.ahead: _Ahead | None = None
        self.body: bytes | None = None
        """None where there is none, and nobody has read that."""
        self.key: CacheKey | None = None
        self.span: RequestSpan | None = None
        self.refreshing: Refreshing | None = None
        self.instead: Prepared | None = None
        """What is stored, and stale, and may be sent if the app fails."""
        self.counts: OperationCounts
        self.ended = False
        self.deadline = 0.0
        """Until when it may wait for the store, where it has waited already; 0: it has not."""
        self.turn: Turn | None = None
        """Its place among the tenant's computations, from before it captures generations until it leads or follows."""
        self.waited = False
        """It has waited for its turn, which nobody does twice."""

    def give_back(self) -> None:
        """Let another of the tenant's requests compute."""
        if self.turn is not None:
            self.turn.give_back()
            self.turn = None


class _Ahead:
    """What was worked out of a request whose answer is not in memory, and what is known of it."""

    __slots__ = ("fields", "keyed", "known", "raw")

    def __init__(self, known: Known | None, fields: Headers, keyed: Keyed | None, raw: Raw) -> None:
        self.known = known
        self.fields = fields
        """Those that are watched."""
        self.keyed = keyed
        """What they contribute, where that was looked at."""
        self.raw = raw


class CacheMiddleware:
    """Answers the requests of paths that have a policy from the cache; everything else passes untouched.

    `tenant` and `principal` resolve whose request it is: no tenant, or no principal where one is configured, is a
    bypass. A request that carries one of the `credentials` header fields while no principal is configured is a
    bypass too, unless its policy says `share_authenticated=True`. Raises ConfigurationError for what cannot work.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        cache: ResponseCache,
        tenant: Resolver,
        principal: Resolver | None = None,
        credentials: Sequence[str] = ("authorization", "cookie", "x-api-key"),
        policies: Iterable[Policy] = (),
        mode: Literal["policy", "rfc"] = "policy",
        max_body: int | str = "1MiB",
    ) -> None:
        if mode not in ("policy", "rfc"):
            raise ConfigurationError(f'mode is "policy" or "rfc", not {mode!a}')
        self.app = app
        self._cache = cache
        self._tenant = tenant
        self._principal = principal
        self._policies = Policies(policies)
        names = [policy.op for policy in self._policies.all]
        for policy in self._policies.all:
            if names.count(policy.op) > 1 and any(
                other.op == policy.op and other.ttl != policy.ttl for other in self._policies.all
            ):
                raise ConfigurationError(f"the operation {policy.op!a} has two policies with different ttl")
        self._headers = HeaderRules(credentials, self._policies.all, principal=principal is not None)
        self._max_body = [size_in_bytes(policy.max_body) for policy in self._policies.all]
        self._keyed = [self._headers.covered(policy) for policy in self._policies.all]
        self._ttl = [cache.ttl_of(policy) for policy in self._policies.all]
        self._soft_limit = [seconds(policy.fill_soft_limit) for policy in self._policies.all]
        self._hard_limit = [seconds(policy.fill_hard_limit) for policy in self._policies.all]
        self._revalidate = [seconds(policy.stale_while_revalidate) for policy in self._policies.all]
        self._on_error = [seconds(policy.stale_if_error) for policy in self._policies.all]
        self._watched = [self._headers.watched(policy) for policy in self._policies.all]
        self._api_keys = tenant if type(tenant) is ApiKeys else None
        """What finds the tenant by one of the fields that are looked at anyway."""
        reads: frozenset[bytes] = frozenset() if self._api_keys is None else self._api_keys.reads
        layouts = {watched: Layouts(watched, reads) for watched in self._watched}
        self._layouts = [layouts[watched] for watched in self._watched]
        self._marks = [object() for _ in self._policies.all]
        self._secret = CREDENTIALS | {spelling for name in credentials for spelling in spellings(name)}
        self._started = False
        self._http: HttpCache | None = None
        if mode == "rfc":
            self._http = HttpCache(app, cache=cache, credentials=credentials, max_body=size_in_bytes(max_body))
        cache.register(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, from the cache if it may be; everything that is no HTTP request passes untouched."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        cache = self._cache
        matched = self._match(scope) if kind == "http" else None
        if matched is None or not cache.enabled:
            if matched is not None:
                send = _disabled(send)
            token = current.set(Caller(self._tenant, scope))
            try:
                if self._http is not None and cache.enabled and kind == "http":
                    await self._by_rfc(self._http, scope, receive, send)
                else:
                    await self.app(scope, receive, send)
            finally:
                current.reset(token)
            return
        if not self._started:
            await self._start()
        started = time.perf_counter()
        if matched.parameters:
            scope["nexcache.parameters"] = matched.parameters
        tracing = cache.emitter.tracing
        span = None if tracing is None else tracing.get(matched.policy.op)
        headers = scope["headers"]
        layout = self._layouts[matched.index].of(headers)
        try:
            if self._api_keys is None:
                tenant = self._tenant(scope)
            else:
                tenant = None if layout.api_key < 0 else self._api_keys.whose(headers[layout.api_key][1])
        except Exception as error:  # noqa: BLE001 - a resolver that fails must not name anybody
            tenant = None
            self._tell_of("tenant", error)
        principal: Resolved | object = _UNASKED
        deadline = 0.0
        ahead: _Ahead | None = None
        if type(tenant) is str and span is None and Answered not in cache.emitter.heard:
            if self._principal is not None:
                shared = self._principal is self._tenant
                principal = tenant if shared else self._found("principal", self._principal, scope)
            else:
                principal = None
            found = self._in_memory(matched, scope, layout.watched(headers), tenant, principal, started)
            if type(found) is _Ahead:
                ahead, found = found, found.known
            if type(found) is Known and (asked := cache.entries.read_again(found, started, cache.store_budget)):
                deadline = asked[1].until
                try:
                    same = await asked[0]
                except (StoreError, RuntimeError) as error:  # or: they wait on another event loop
                    same = cache.entries.not_read_again(asked, error)
                if same and cache.entries.may_use(found, asked):
                    found = self._in_store(found, ahead, matched, scope, started)
            if type(found) is tuple:
                await send(found[0])
                await send(found[1])
                return
        request = _Request(matched, scope, receive, send)
        request.started, request.span = started, span
        request.deadline, request.ahead = deadline, ahead
        try:
            await self._answer(request, tenant, principal)
        except BaseException:
            self._end(request, Result.ERROR)
            raise

    async def _by_rfc(self, http: HttpCache, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of a path without a policy as any HTTP cache would."""
        if not self._started:
            await self._start()
        started = time.perf_counter()
        tenant, principal, reason = await self._identify(scope, self._found("tenant", self._tenant, scope), _UNASKED)
        await http(scope, receive, send, tenant=tenant, principal=principal, reason=reason, started=started)

    def _match(self, scope: Scope) -> Matched | None:
        return self._policies.match(route_path(scope) if scope.get("root_path") else scope["path"])

    def _in_memory(  # noqa: PLR0917 - a keyword costs as much as what is passed
        self,
        matched: Matched,
        scope: Scope,
        fields: Headers,
        tenant: str,
        principal: Resolved | object,
        started: float,
    ) -> tuple[Message, Message] | Known | _Ahead | None:
        """Answer what this process holds, without waiting: the path that all is arranged for.

        All that decides about a request is part of what it is found by: who finds an entry has been the long way
        before, and was not sent past the cache. The same is true of a request whose key is known, where nothing is
        held in memory: that is returned, as is what was worked out of one that is not. `fields` are those of the
        header that may decide.
        """
        cache, method, policy = self._cache, scope["method"], matched.policy
        first, recent = cache.entries.at_hand, cache.recent
        if method not in _WITHOUT_BODY or REFRESH in scope:
            return None
        if cache.switches.some and cache.is_disabled(policy.op, tenant):
            return None
        if policy.shadow is not None and policy.op in cache.shadows.distrusted:
            return None
        if recent.watched and (first is None or recent.samples()):  # the long way, which counts it
            return None
        keyed = if_none_match = None
        if len(fields) > 1:  # more than the host
            found = self._headers.read(method, fields, policy)
            if isinstance(found, Bypass):
                return None
            keyed, if_none_match = found, found.if_none_match
        raw = self._raw(matched.index, scope, tenant, principal, fields if keyed is None else keyed.fields)
        if first is None:
            known = recent.known.get(raw)
            if known is not None and started - known.noted_at > _NOTED_FOR:
                known.noted_at = started
                recent.note(tenant, policy.op, known.target)
            if known is not None and if_none_match is None:
                return known
            return _Ahead(known, fields, keyed, raw)
        live = first.peek(raw)
        if live is None:
            return _Ahead(None, fields, keyed, raw)
        messages = self._messages(live, first.tier, scope, if_none_match)
        if messages is None:
            return None
        counts = live.basis.counts
        if first.tier is _MEMORY:
            counts.memory_hits += 1
        else:
            counts.fallback_hits += 1
        counts.hit_latency.add(time.perf_counter() - started)
        if policy.shadow is not None and cache.shadows.draws(policy.shadow):
            self._check_later(policy, scope, b"", tenant=tenant, counts=counts, served=live.response)
        return messages

    def _in_store(
        self, known: Known, ahead: _Ahead | None, matched: Matched, scope: Scope, started: float
    ) -> tuple[Message, Message] | None:
        """Answer a request that is known, of which the store still says the same; None: go the long way."""
        prepared, policy = known.prepared, matched.policy
        if_none_match = None if ahead is None or ahead.keyed is None else ahead.keyed.if_none_match
        messages = None if prepared is None else self._messages(prepared, _REDIS, scope, if_none_match)
        if prepared is None or messages is None:
            return None
        counts = known.counts
        counts.redis_hits += 1
        counts.hit_latency.add(time.perf_counter() - started)
        if policy.shadow is not None and self._cache.shadows.draws(policy.shadow):
            self._check_later(policy, scope, b"", tenant=known.key.tenant, counts=counts, served=prepared.response)
        return messages

    @staticmethod
    def _messages(
        prepared: Prepared, tier: Tier, scope: Scope, if_none_match: bytes | None
    ) -> tuple[Message, Message] | None:
        """Build the answer of a fresh entry; None where it is to be computed again, which the long way does."""
        now = time.time()
        if now >= prepared.refresh_at:
            return None
        if prepared.codings:
            prepared = for_client(prepared, scope["headers"], if_none_match)
        return answer(prepared, scope["method"], if_none_match, prepared.varying(now, tier))

    async def _answer(self, request: _Request, tenant: Resolved, principal: Resolved | object) -> None:
        """Follow one request of a path with a policy: bypass, hit, or miss."""
        policy, cache, scope = request.policy, self._cache, request.scope
        request.tenant, request.principal, reason = await self._identify(scope, tenant, principal)
        if reason is not None:
            await self._bypass(request, reason)
            return
        method = request.method
        if method not in policy.methods and not (method == "HEAD" and "GET" in policy.methods):
            await self._bypass(request, Bypass.METHOD)
            return
        ahead = request.ahead
        keyed: Keyed | Bypass | None = None
        if ahead is not None:  # all of this was looked at
            keyed, fields = ahead.keyed, ahead.fields
        else:
            if cache.is_disabled(policy.op, request.tenant):
                await self._bypass(request, Bypass.DISABLED)
                return
            if policy.shadow is not None and policy.op in cache.shadows.distrusted:
                await self._bypass(request, Bypass.DISTRUSTED)
                return
            fields = self._layouts[request.index].of(scope["headers"]).watched(scope["headers"])
        if keyed is None:
            keyed = self._headers.read(method, fields, policy)
        if isinstance(keyed, Bypass):
            await self._bypass(request, keyed)
            return
        request.if_none_match = keyed.if_none_match
        request.conditional = keyed.conditional or keyed.if_none_match is not None
        if method in _WITH_BODY:
            request.body = await self._read_body(request)
            if request.body is None:
                await self._bypass(request, Bypass.BODY)
                return
        if ahead is not None and request.principal is principal and (ahead.keyed or keyed.fields == ahead.fields):
            raw, first = ahead.raw, None  # where it was not found
        else:
            raw = self._raw(request.index, scope, request.tenant, request.principal, keyed.fields)
            first = cache.entries.at_hand
        if request.body:
            raw = (*raw, _digest(request.body))
        if first is not None and REFRESH not in scope:
            live = first.peek(raw)
            if live is not None:
                request.counts = live.basis.counts
                if cache.recent.watched:
                    self._note(request, keyed, hit=True)
                await self._hit(request, live, first.tier, live.name)
                return
        try:
            await self._look(request, keyed, raw)
        finally:
            request.give_back()
            if request.key is not None and request.refreshing is None:
                self._note(request, keyed)

    async def _look(self, request: _Request, keyed: Keyed, raw: Raw) -> None:
        """Build the key, ask the store, and serve or compute."""
        policy, cache, scope = request.policy, self._cache, request.scope
        self._policies.missed(route_path(scope), request.tenant)
        covered = self._covered(request.matched, scope, request.tenant)
        if isinstance(covered, TagsInvalid):
            await self._bypass(request, Bypass.KEY_TOO_LONG)
            return
        request.ttl = covered.ttl
        if covered.query is not scope["query_string"]:  # the window is rounded: the handler is asked for what is keyed
            scope = request.scope = {**scope, "query_string": covered.query}
        key = self._key(
            request.matched,
            scope,
            keyed,
            covered.tags,
            tenant=request.tenant,
            principal=request.principal,
            body=request.body or b"",
        )
        if key is None:
            await self._bypass(request, Bypass.KEY_TOO_LONG)
            return
        request.counts = cache.counts.of(request.tenant, policy.op)
        asked = request.key = key
        refreshing = request.refreshing = scope.get(REFRESH)
        if refreshing is not None:
            if refreshing.tenant != request.tenant:
                return
            if refreshing.shadow is not None:
                refreshing.key = key
                await self._compute(request, refreshing.shadow)
                return
        first = cache.entries.at_hand
        stale_for = max(self._revalidate[request.index], self._on_error[request.index]) if refreshing is None else 0.0
        followed = waits = 0
        impatient = False
        over: Flight | None = None
        while True:
            since = time.perf_counter()
            deadline = asyncio.get_running_loop().time() + cache.store_budget
            if request.deadline:  # it has waited for the store before
                deadline, request.deadline = request.deadline, 0.0
            key = cache.entries.known(asked)
            looked = self._lookup_here(key, stale_for, anew=refreshing is not None)
            if looked is None:
                looked = await cache.flights.lookups.run(
                    b"%b%b" % (b"" if stale_for > 0 else b"fresh:", key.identity),
                    partial(cache.entries.lookup, key, request.counts, deadline=deadline, stale_for=stale_for),
                    since=since,
                )
            if isinstance(looked, Found) and refreshing is not None:
                if waits or (refreshing.replaces is not None and looked.prepared.stored_at > refreshing.replaces):
                    refreshing.kept = True  # by somebody else
                    return
                if refreshing.if_missing:
                    refreshing.kept = True
                    return
                looked = Missing(looked.tier, None)  # computed anew, whatever is stored
            if isinstance(looked, Found) and looked.stale is not None:
                if looked.stale < self._revalidate[request.index]:
                    await self._hit(request, looked.prepared, looked.tier, key.name, stale=True)
                    return
                request.instead = looked.prepared  # should the app fail
                looked = Missing(looked.tier, None)
            if isinstance(looked, Found):
                if looked.live is not None and first is not None:
                    first.alias(raw, looked.live)
                elif looked.read is not None and first is None and policy.window is None and request.body is None:
                    known = Known(asked, request.counts, self._target(request, keyed), request.started)
                    cache.entries.remember(known, looked)
                    cache.recent.known.keep(raw, known)
                if waits:
                    await self._follow(request, looked.prepared.response)
                else:
                    await self._hit(request, looked.prepared, looked.tier, key.name)
                return
            if request.method == "HEAD":  # a HEAD is answered from a GET's entry, and never makes one
                status = cache_status.forwarded("uri-miss", detail=NotStoredReason.METHOD)
                await self._forward(request, status)
                self._end(request, Result.MISS)
                return
            shared = followed < _FOLLOWS and cache.flights.waits(key)
            flight = self._flight(key, looked.generations, impatient=impatient, over=over) if shared else None
            if flight is None:
                name = key.name if shared else request
                if not self._turn_at_once(request, name):
                    request.waited = True
                    limit = self._soft_limit[request.index]
                    request.turn = await cache.turns.wait(request.tenant, name, limit)
                    continue  # it is to look again
                if looked.tier is _REDIS:
                    recalled = await cache.entries.recalled(key, deadline=deadline)
                    if recalled is not key:
                        key, looked = recalled, Missing(looked.tier, None)
                if looked.tier is _REDIS:
                    captured = await self._capture(key, looked, deadline, since=since, shared=shared)
                else:  # nothing leaves this process: there is nothing to share
                    captured = Captured(cache.entries.capture_here(key))
                snapshot, lease = captured.snapshot, captured.lease
                flight = self._flight(key, snapshot.generations, impatient=impatient, over=over) if shared else None
                if flight is None and captured.elsewhere is not None and not impatient:
                    if refreshing is not None and refreshing.replaces is not None:
                        return  # another node is at it
                    limit = self._soft_limit[request.index]
                    flight = cache.flights.add_elsewhere(key, snapshot, self._elsewhere(key, captured, limit))
                if flight is None:
                    if lease is not None and not lease.claim():  # its computation has ended meanwhile
                        continue
                    fill = self._start_fill(request, key, snapshot, lease, shared=shared)
                    await self._lead(request, fill, snapshot)
                    return
            request.give_back()
            flight.followers += 1
            over = flight
            match await asyncio.shield(flight.outcome):
                case Complete(response):
                    await self._follow(request, response)
                    return
                case Over(failed):
                    waits += 1
                    followed += failed
                    impatient = waits >= _FOLLOWS
                case Overdue():
                    followed += 1
                    impatient = True
                case Failed():
                    if request.instead is not None:
                        await self._send_instead(request, request.instead)
                        return
                    followed += 1
                case Unstorable():
                    followed = _FOLLOWS

    def _turn_at_once(self, request: _Request, name: Hashable) -> bool:
        """Take a place among the tenant's computations; False if it must wait for one, which nobody does twice."""
        if request.turn is not None:
            if request.turn.name == name:
                return True
            request.give_back()
        request.turn = self._cache.turns.at_once(request.tenant, name)
        return request.turn is not None or request.waited

    def _flight(
        self, key: CacheKey, generations: tuple[bytes, ...] | None, *, impatient: bool, over: Flight | None
    ) -> Flight | None:
        """Return what may be waited for: not what is over; who is impatient waits for no other node."""
        flight = self._cache.flights.get(key, generations)
        return None if flight is over or (impatient and isinstance(flight, Elsewhere)) else flight

    async def _elsewhere(self, key: CacheKey, captured: Captured, limit: float) -> Outcome:
        """Wait until another node has computed."""
        leases, name = self._cache.leases, captured.elsewhere
        if leases is None or name is None:
            return Over()
        match await leases.ended(name, since=captured.at, limit=limit):
            case End.OVER | End.LAPSED:
                return Over()
            case End.FAILED:
                return Over(failed=True)
            case End.ALONE:
                self._cache.flights.remember_alone(key)
                return Unstorable(NotStoredReason.PRIVATE)
            case End.LOST | End.OVERDUE:
                return Overdue()

    def _key(
        self,
        matched: Matched,
        scope: Scope,
        keyed: Keyed,
        tags: Sequence[str],
        *,
        tenant: str,
        principal: str | None,
        body: bytes,
    ) -> CacheKey | None:
        """Build the key of a request; None if it would be too long."""
        policy, keys = matched.policy, self._cache.keys
        query: bytes = scope["query_string"]
        canonical = keys.canonical(
            scope,
            policy,
            keyed.fields,
            tenant=tenant,
            principal=principal,
            query=query if policy.query is None else policy.query.canonical(query),
            body=body,
        )
        if len(canonical) > LONGEST_REQUEST:
            return None
        return keys.key(tenant, policy.op, canonical, tags)

    async def examine(self, tenant: str, scope: Scope, principal: str | None = None) -> Examined | None:
        """Say what would become of a request of a tenant, without doing it; None: no policy is for it.

        A request with a body is examined as if it had none. Without `principal` it is whom the scope's credentials
        stand for.
        """
        matched = self._match(scope)
        if matched is None:
            return None
        policy, method = matched.policy, scope["method"]
        examined = Examined(policy, self._ttl[matched.index], None, self._secret)
        if self._principal is None:
            principal = None
        elif principal is None:
            if self._principal is self._tenant:
                principal = tenant
            else:
                known = {**scope, "nexcache.parameters": matched.parameters}
                principal = await self._awaited("principal", self._found("principal", self._principal, known))
            if principal is None:
                return replace(examined, bypass=Bypass.NO_PRINCIPAL)
        if method not in policy.methods and not (method == "HEAD" and "GET" in policy.methods):
            return replace(examined, bypass=Bypass.METHOD)
        if not self._cache.enabled or self._cache.is_disabled(policy.op, tenant):
            return replace(examined, bypass=Bypass.DISABLED)
        keyed = self._headers.read(method, scope["headers"], policy)
        if isinstance(keyed, Bypass):
            return replace(examined, bypass=keyed)
        covered = self._covered(matched, scope, tenant)
        if isinstance(covered, TagsInvalid):
            return replace(examined, bypass=Bypass.KEY_TOO_LONG)
        scope = {**scope, "query_string": covered.query}
        key = self._key(matched, scope, keyed, covered.tags, tenant=tenant, principal=principal, body=b"")
        if key is None:
            return replace(examined, bypass=Bypass.KEY_TOO_LONG)
        return replace(examined, ttl=covered.ttl, principal=principal, fields=keyed.fields, tags=covered.tags, key=key)

    def _covered(self, matched: Matched, scope: Scope, tenant: str) -> Covered | TagsInvalid:
        """Say what the answer to a request depends on, for how long it is kept, and what the handler is asked for."""
        ttl = self._cache.tenant_ttl(tenant, matched.policy.op)
        if ttl is None:
            ttl = self._ttl[matched.index]
        return covered_by(matched, scope["query_string"], ttl=ttl, now=time.time())

    def _note(self, request: _Request, keyed: Keyed, *, hit: bool = False) -> None:
        """Remember what was asked for, but not by whom."""
        recent, target = self._cache.recent, self._target(request, keyed)
        (recent.hit if hit else recent.note)(request.tenant, request.operation, target)

    def _target(self, request: _Request, keyed: Keyed) -> Target:
        fields = tuple(pair for pair in keyed.fields if pair[0] not in self._secret)
        return _target(request.scope, fields, request.body or b"")

    # --- computing again, on request -----------------------------------------------------------------------

    @property
    def operations(self) -> frozenset[str]:
        """The operations of the policies."""
        return frozenset(policy.op for policy in self._policies.all)

    @property
    def policies(self) -> Sequence[Policy]:
        """The policies, in their order."""
        return self._policies.all

    async def refresh(
        self, tenant: str, target: Target, headers: Sequence[tuple[bytes, bytes]], *, if_missing: bool = False
    ) -> bool:
        """Compute a request for the sender of these header fields and store it; False if that did not work."""
        refreshing = Refreshing(tenant, if_missing=if_missing)
        return await self._again(target.scope(headers, **{REFRESH: refreshing}), target.body, refreshing)

    def _refresh_later(self, request: _Request, name: bytes, stored: Prepared) -> None:
        """Compute a request again in the background, as the one who sent it, to replace what is stored of it.

        At most once per key at a time; not at all where the tenant has as many refreshes under way as it may.
        """
        if request.refreshing is None:
            refreshing = Refreshing(request.tenant, replaces=stored.stored_at)
            scope, body = self._scope_again(request.scope), request.body or b""
            scope |= {"method": "GET" if request.method == "HEAD" else request.method, REFRESH: refreshing}
            self._cache.refreshes.start(request.tenant, name, lambda: self._again(scope, body, refreshing))

    def _scope_again(self, scope: Scope) -> dict[str, Any]:
        """Return a copy of a request's scope for computing it again."""
        return {**scope, "headers": [*scope["headers"]]}

    async def _again(self, scope: Scope, body: bytes, refreshing: Refreshing) -> bool:
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if asked:
                return {"type": "http.disconnect"}
            asked = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(_message: Message) -> None:
            pass

        try:
            await self(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - the app's failure is the result
            self._cache.emitter.emit(HookFailed("refresh", type(error).__name__))
            return False
        return refreshing.kept

    def _check_later(
        self,
        policy: Policy,
        scope: Scope,
        body: bytes,
        *,
        tenant: str,
        counts: OperationCounts,
        served: StoredResponse,
    ) -> None:
        """Compute what was just answered from the cache again, as the one who asked, and compare."""
        shadow = policy.shadow
        assert shadow is not None  # noqa: S101 - asked by the callers
        again, asked = self._scope_again(scope), Computed()
        refreshing = Refreshing(tenant, shadow=asked)
        again |= {"method": "GET" if again["method"] == "HEAD" else again["method"], REFRESH: refreshing}

        async def check() -> bool | None:
            await self._again(again, body, refreshing)
            if not asked.complete or asked.status >= 500 or refreshing.key is None:  # noqa: PLR2004 - it failed
                return None
            if alike(served, asked, shadow.ignore):
                return False
            await asyncio.sleep(seconds(shadow.grace))
            copies = (await self._cache.entries.inspect(refreshing.key)).copies
            still = any(
                copy.why is None and copy.entry is not None and copy.entry.response.stored_at == served.stored_at
                for copy in copies
            )
            return True if still else None  # what was answered has been invalidated or replaced since

        self._cache.shadows.start(tenant, policy.op, shadow, counts, check)

    async def _compute(self, request: _Request, computed: Computed) -> None:
        """Ask the app, for nobody's sake but to compare: nothing is stored."""
        longest, size = self._max_body[request.index], 0

        async def take(message: Message) -> None:
            nonlocal size
            if message["type"] == "http.response.start":
                computed.status, computed.headers = message["status"], tuple(message.get("headers", ()))
            elif message["type"] == "http.response.body":
                body = message.get("body", b"")
                size += len(body)
                if size <= longest:
                    computed.body += body
                computed.complete = size <= longest and not message.get("more_body", False)
            await request.send(message)

        try:
            async with asyncio.timeout(self._hard_limit[request.index]):
                encoded = request.policy.compress and b"accept-encoding" not in self._watched[request.index]
                await self.app(_for_all(request.scope, encoded=encoded), request.receive, take)
        finally:
            self._end(request, Result.MISS)

    # --- whose request, and which --------------------------------------------------------------------------

    async def _identify(
        self, scope: Scope, tenant: Resolved, principal: Resolved | object
    ) -> tuple[str, str | None, Bypass | None]:
        """Take tenant and principal; whatever goes wrong is a bypass, never somebody else's data."""
        whose = tenant if type(tenant) is str else await self._awaited("tenant", tenant)
        acting: str | None = None
        if self._principal is self._tenant:
            acting = whose
        elif self._principal is not None and whose is not None:
            if principal is _UNASKED:
                principal = self._found("principal", self._principal, scope)
            acting = principal if type(principal) is str else await self._awaited("principal", principal)
        if whose is None or not is_valid_id(whose):
            return "", None, Bypass.NO_TENANT
        return whose, acting, Bypass.NO_PRINCIPAL if self._principal is not None and acting is None else None

    def _found(self, hook: str, resolver: Resolver, scope: Scope) -> Resolved:
        try:
            return resolver(scope)
        except Exception as error:  # noqa: BLE001 - a resolver that fails must not name anybody
            self._tell_of(hook, error)
            return None

    def _tell_of(self, hook: str, error: Exception) -> None:
        self._cache.emitter.emit(HookFailed(hook, type(error).__name__))

    async def _awaited(self, hook: str, found: object) -> str | None:
        try:
            if inspect.isawaitable(found):
                found = await found
        except Exception as error:  # noqa: BLE001 - as above
            self._cache.emitter.emit(HookFailed(hook, type(error).__name__))
            return None
        return found if isinstance(found, str) else None

    def _raw(self, index: int, scope: Scope, tenant: object, principal: object, fields: Headers) -> Raw:
        """Return the request as it came, as far as it decides about the answer."""
        method = scope["method"]
        fixed = (
            self._marks[index],  # another middleware of the same cache has other policies
            tenant,
            principal,
            "GET" if method == "HEAD" else method,
            scope["path"],
            scope.get("raw_path"),
            scope.get("root_path"),
            scope.get("scheme"),
            fields,
        )
        return fixed, scope["query_string"]

    def _lookup_here(self, key: CacheKey, stale_for: float, *, anew: bool) -> Found | Missing | None:
        """Look for an entry in this process; `anew`: others may know a newer one. None: ask the store."""
        cache = self._cache
        here = cache.entries.lookup_here(key, stale_for)
        if isinstance(here, Found) and (not anew or cache.entries.in_process or here.tier is Tier.FALLBACK):
            return here
        if isinstance(here, Missing) and (
            cache.entries.in_process
            or here.tier is Tier.FALLBACK  # the store is away
            or cache.flights.get(key, here.generations) is not None
        ):
            return here
        return None

    def _capture(
        self, key: CacheKey, missing: Missing, deadline: float, *, since: float, shared: bool
    ) -> Awaitable[Captured]:
        """Capture the generations of a key; with the lease, if the answer is to be shared with other nodes."""
        cache = self._cache
        leases = cache.leases if shared else None
        capture = partial(cache.entries.capture, key, missing, deadline=deadline)

        async def alone(on_sent: Callable[[], None]) -> Captured:
            return Captured(await capture(on_sent=on_sent))

        call: Callable[..., Awaitable[Captured]] = alone
        if leases is not None:
            call = partial(leases.capture, key, missing.generations, capture, deadline=deadline)
        return cache.flights.captures.run(b"%d:%b" % (leases is not None, key.identity), call, since=since)

    async def _read_body(self, request: _Request) -> bytes | None:
        """Read the body for the key; None if it is too long, or cut short. The app can read it again from its start."""
        messages: list[Message] = []
        receive, size = request.client, 0

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        request.receive = replay
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if message["type"] != "http.request" or size > _BODY_KEYED:
                return None
            if not message.get("more_body", False):
                return b"".join(each.get("body", b"") for each in messages)

    # --- the four ways to answer ---------------------------------------------------------------------------

    async def _hit(
        self, request: _Request, prepared: Prepared, tier: Tier, name: bytes, *, stale: bool = False
    ) -> None:
        """Send a stored response, without a task, a timer or a copy of the body."""
        now, stored = time.time(), prepared
        if prepared.codings:
            prepared = for_client(prepared, request.scope["headers"], request.if_none_match)
        fields = prepared.varying(now, "stale" if stale else tier)
        start, body = answer(prepared, method=request.method, if_none_match=request.if_none_match, varying=fields)
        counts = request.counts
        if stale:
            counts.stale += 1
        elif tier is Tier.MEMORY:
            counts.memory_hits += 1
        elif tier is Tier.REDIS:
            counts.redis_hits += 1
        else:
            counts.fallback_hits += 1
        request.ended = True
        duration = time.perf_counter() - request.started
        counts.hit_latency.add(duration)
        if request.span is not None or self._cache.emitter.hears(Answered):
            self._tell(
                request,
                Answered(
                    request.operation,
                    request.tenant,
                    Result.STALE if stale else Result.HIT,
                    tier,
                    key_hash=name.rpartition(b":")[2].decode(),
                    age=current_age(prepared, now),
                    ttl=time_to_live(prepared, now),
                    size=len(prepared.body),
                    duration=duration,
                    filled_by=_span_of(prepared),
                ),
            )
        await request.send(start)
        await request.send(body)
        if stale:
            self._refresh_later(request, name, stored)
        elif now >= stored.refresh_at:
            stored.refresh_at = now + AGAIN  # one asks, the others need not
            if request.policy.early_refresh and tier is not Tier.FALLBACK:
                self._refresh_later(request, name, stored)
        policy = request.policy
        if policy.shadow is not None and request.refreshing is None and self._cache.shadows.draws(policy.shadow):
            self._check_later(
                policy,
                request.scope,
                request.body or b"",
                tenant=request.tenant,
                counts=counts,
                served=stored.response,
            )

    async def _bypass(self, request: _Request, reason: Bypass) -> None:
        """Send the request to the app as if there were no cache."""
        request.counts = self._cache.counts.of(request.tenant or None, request.operation)
        request.counts.bypasses[reason] += 1
        if reason is Bypass.METHOD:
            status = cache_status.forwarded("method")
        else:
            status = cache_status.forwarded("bypass", detail=reason)
        await self._forward(request, status)
        self._end(request, Result.BYPASS, reason=reason)

    async def _forward(self, request: _Request, status: bytes) -> None:
        """Call the app directly; `status` tells the client why."""
        send = request.send

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (cache_status.NAME, status)]}
            await send(message)

        token = current.set(request.tenant or None)
        try:
            await self.app(request.scope, request.receive, tell)
        finally:
            current.reset(token)

    async def _follow(self, request: _Request, response: StoredResponse) -> None:
        """Answer with what was computed for another request that was waiting for the same."""
        if request.refreshing is not None:
            request.refreshing.kept = True
        else:
            request.counts.coalesced += 1
        prepared = Prepared(response)
        if request.policy.compress and is_encodable(response.status, response.headers):
            prepared = Prepared(replace(response, headers=varying_by_encoding(response.headers)))
        start, body = answer(
            prepared,
            method=request.method,
            if_none_match=request.if_none_match,
            varying=varying(response.initial_age, cache_status.forwarded("uri-miss", collapsed=True)),
        )
        await request.send(start)
        await request.send(body)
        self._end(request, Result.MISS, coalesced=True)

    def _start_fill(
        self, request: _Request, key: CacheKey, snapshot: Snapshot, lease: Lease | None, *, shared: bool
    ) -> Fill:
        """Call the app for this request and for those that wait for the same."""
        policy, cache, index = request.policy, self._cache, request.index
        span, counts, refreshing = request.span, request.counts, request.refreshing
        keyed, max_body, watched = self._keyed[index], self._max_body[index], self._watched[index]
        began = time.perf_counter()
        turn, request.turn = request.turn, None
        quotas = cache.entries.quotas
        over = quotas is not None and quotas.is_over(key.tenant)

        named: tuple[bytes, ...] | None = None

        def shareable(response: StoredResponse) -> bool:
            """Those who wait may have begun after an invalidation of what is not captured."""
            nonlocal named
            named = self._named(policy, key, response)
            return named is not None and (not named or all(name in key.generations for name in named))

        async def keep(response: StoredResponse) -> NotStoredReason | None:
            if named is None:
                cache.emitter.emit(NotStored(policy.op, key.tenant, NotStoredReason.TAGS, key.hash))
                return NotStoredReason.TAGS
            if cache.emitter.hears(Filled):
                cache.emitter.emit(Filled(policy.op, key.tenant, time.perf_counter() - began, fill.followers))
            if not cache.admission.admits(key.name):
                cache.emitter.emit(NotStored(policy.op, key.tenant, NotStoredReason.ADMISSION, key.hash))
                return NotStoredReason.ADMISSION
            if span is not None and span.filling:
                response = replace(response, filled_by=span.filling)
            with span.put(policy.op) if span is not None else nullcontext():
                if policy.compress:
                    response = await compressed(response)
                try:
                    if over and quotas is not None:
                        quotas.refuse(key.tenant)
                    kept = await cache.entries.keep(key, snapshot, response, counts, named)
                    reason = NotStoredReason.BACKEND if kept is None else NotStoredReason.INVALIDATED
                except OverQuota:
                    kept, reason = False, NotStoredReason.QUOTA
            if refreshing is not None:
                refreshing.kept = bool(kept)
            if kept:
                return None
            cache.emitter.emit(NotStored(policy.op, key.tenant, reason, key.hash))
            return reason

        def gave_up(outcome: Unstorable | Failed) -> None:
            if isinstance(outcome, Unstorable):
                cache.flights.remember_alone(key)
            cache.emitter.emit(NotStored(policy.op, key.tenant, outcome.reason, key.hash))

        encoded = policy.compress and b"accept-encoding" not in watched
        token = current.set(key.tenant)  # the app runs in a task, which takes a copy of the context
        fill = Fill(
            app=self.app,
            scope=_for_all(request.scope, encoded=encoded) if encoded or request.conditional else request.scope,
            receive=request.client,
            body=request.body,
            ttl=jittered(request.ttl, policy.jitter, random.random()),  # noqa: S311 - no secret
            kept_on=max(self._revalidate[index], self._on_error[index]),
            soft_limit=self._soft_limit[index],
            hard_limit=self._hard_limit[index],
            max_body=max_body,
            decide=lambda status, headers, trailers: may_store(
                status, headers, statuses=policy.statuses, keyed=keyed, max_body=max_body, trailers=trailers
            ),
            keep=keep,
            shareable=shareable,
            gave_up=gave_up,
            around=span.fill(policy.op) if span is not None else None,
        )
        current.reset(token)
        fill.refused = NotStoredReason.QUOTA if over else None
        cache.flights.add(key, snapshot, fill, shared=shared)
        if lease is not None:
            lease.keep(self._hard_limit[index])

        def settled(outcome: Outcome) -> None:
            if turn is not None:
                turn.give_back()
            if lease is not None:
                lease.end(end_of(outcome, fill.not_stored))

        fill.on_settled(settled)
        return fill

    def _named(self, policy: Policy, key: CacheKey, response: StoredResponse) -> tuple[bytes, ...] | None:
        """Return the generations of the tags that a response names; None: it could not be invalidated by them."""
        try:
            tags = set(tags_in(response.headers))
            for derive in policy.derived:
                found = derive(response)
                if isinstance(found, str):
                    raise TypeError("a tag's callable returns a list, not one string")  # noqa: TRY301 - told like others
                tags.update(check_name("tag", tag) for tag in found)
        except InvalidName:
            return None
        except Exception as error:  # noqa: BLE001 - the application's callable
            self._cache.emitter.emit(HookFailed("tags", type(error).__name__))
            return None
        return self._cache.entries.named(key, tuple(sorted(tags))) if tags else ()

    async def _lead(self, request: _Request, fill: Fill, snapshot: Snapshot) -> None:
        """Pass the app's messages on as they come."""
        silent = False
        try:
            while (message := await fill.next()) is not None:
                if (
                    request.instead is not None
                    and message["type"] == "http.response.start"
                    and message["status"] >= 500  # noqa: PLR2004
                ):
                    fill.detach()
                    await self._send_instead(request, request.instead)
                    return
                if message["type"] == "http.response.start":
                    message, silent = _first_message(message, fill, snapshot, request, self._cache.state)
                elif silent and message["type"] == "http.response.body":
                    message = {**message, "body": b""}
                await request.send(message)
            if fill.finished:
                self._end(request, Result.MISS)  # what the app does in the background is not waited for by anyone
            await fill.join()
        except BaseException as error:
            fill.detach()
            if request.instead is not None and not fill.started and isinstance(error, Exception):
                self._cache.emitter.emit(HookFailed("handler", type(error).__name__))
                await self._send_instead(request, request.instead)
                return
            raise
        self._end(request, Result.MISS)

    async def _send_instead(self, request: _Request, prepared: Prepared) -> None:
        """Send what is stored, and stale, in place of the app's failure (RFC 5861 §4)."""
        fields = prepared.varying(time.time(), "stale-if-error")
        start, body = answer(prepared, method=request.method, if_none_match=request.if_none_match, varying=fields)
        request.counts.stale += 1
        await request.send(start)
        await request.send(body)
        self._end(request, Result.STALE)

    # --- the end -------------------------------------------------------------------------------------------

    def _end(self, request: _Request, result: Result, *, reason: Bypass | None = None, coalesced: bool = False) -> None:
        """Count and tell how a request was answered; only the first time."""
        if request.ended:
            return
        request.ended = True
        duration = time.perf_counter() - request.started
        if request.refreshing is not None:
            pass  # nobody asked: nothing that the statistics tell of
        elif result is Result.MISS:
            request.counts.misses += 1
            request.counts.miss_latency.add(duration)
        elif result is Result.ERROR:
            self._cache.counts.of(request.tenant or None, request.operation).errors += 1
        key_hash = request.key.hash if request.key is not None else None
        self._tell(
            request,
            Answered(
                request.operation,
                request.tenant or None,
                result,
                reason=reason,
                key_hash=key_hash,
                coalesced=coalesced,
                duration=duration,
            ),
        )

    def _tell(self, request: _Request, answered: Answered) -> None:
        if request.span is None:
            self._cache.emitter.emit(answered)
            return
        with request.span.current():
            self._cache.emitter.emit(answered)
        request.span.end(answered)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start and end the cache with the app; an app without lifespan gets one."""
        asked = answered = False

        async def watch() -> Message:
            nonlocal asked
            message = await receive()
            if message["type"] == "lifespan.startup":
                asked = True
                await self._start()
            return message

        async def tell(message: Message) -> None:
            nonlocal answered
            answered = True
            if message["type"].startswith("lifespan.shutdown."):
                await self._close()
            await send(message)

        try:
            await self.app(scope, watch, tell)
        except Exception:
            if answered:
                await self._close()
                raise
        if answered:
            return
        # the app knows no lifespan (Django, plain callables): it needs none, the cache does
        if not asked:
            await receive()
            await self._start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        self._started = True
        await self._cache.start()

    async def _close(self) -> None:
        self._started = False
        await self._cache.aclose()


def _disabled(send: Send) -> Send:
    """Say of an answer that the cache is switched off."""

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), _DISABLED]}
        await send(message)

    return tell


def _first_message(
    message: Message, fill: Fill, snapshot: Snapshot, request: _Request, state: Rung
) -> tuple[Message, bool]:
    """Complete the start of an answer on its way to the client; True if no body is to follow (a 304).

    The entity tag is known here if the app sent one, or if its body has already come in one message.
    """
    headers: list[tuple[bytes, bytes]] = list(message["headers"])
    if request.policy.compress and is_encodable(message["status"], headers):
        headers = list(varying_by_encoding(tuple(headers)))
    complete, reason = fill.complete, fill.not_stored or fill.refused
    if snapshot.tier is Tier.FALLBACK and state not in (Rung.SLOW, Rung.DOWN):
        state = Rung.DOWN  # for this request it was
    detail: str | None = state if state is not Rung.OK else None
    if reason is not None and not (reason is NotStoredReason.BACKEND and detail is not None):
        detail = reason
    stored = complete is not None and reason is None and not snapshot.lost
    status = (cache_status.NAME, cache_status.forwarded("uri-miss", stored=stored, detail=detail))
    headers.append(status)
    if reason is not None and complete is None:
        return {**message, "headers": headers}, False
    etag = first(headers, b"etag")
    if etag is None and complete is not None:
        etag = complete.etag
        headers.append((b"etag", etag))
    if first(headers, b"cache-control") is None:
        headers.append(REVALIDATE)
    conditional = request.method != "POST" and 200 <= message["status"] < 300  # RFC 9110 §13.2.1  # noqa: PLR2004
    if conditional and etag is not None and request.if_none_match and none_match(request.if_none_match, etag):
        kept = [*not_modified_headers((name.lower(), value) for name, value in headers), status]
        return {**message, "status": NOT_MODIFIED, "headers": kept}, True
    return {**message, "headers": headers}, False


def _span_of(response: StoredResponse | Prepared) -> str | None:
    """Return the trace and the span that computed a response, as events tell it."""
    filled_by = response.filled_by.hex()
    return f"{filled_by[:32]}-{filled_by[32:]}" if filled_by else None


def _target(scope: Scope, fields: Headers, body: bytes) -> Target:
    method = scope["method"]
    return Target(
        "GET" if method == "HEAD" else method,
        scope["path"],
        scope.get("raw_path"),
        scope["query_string"],
        scope.get("root_path", ""),
        scope.get("scheme", "http"),
        fields,
        body,
    )


def _for_all(scope: Scope, *, encoded: bool) -> Scope:
    """Drop the client's conditions: the answer is for all, and each client's condition is tested against it.

    `encoded`: the cache encodes the answer itself, for each client as that accepts it.
    """
    dropped = (b"if-none-match", b"if-modified-since", b"accept-encoding" if encoded else b"")
    if not any(name in dropped for name, _ in scope["headers"]):
        return scope
    return {**scope, "headers": [pair for pair in scope["headers"] if pair[0] not in dropped]}


def _digest(body: bytes) -> tuple[int, bytes]:
    return len(body), blake2b(body, digest_size=16).digest()
