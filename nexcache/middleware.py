"""The middleware: receive → tenant → policy → key → lookup → decide → serve or compute → store → emit.

A hit runs from the top of `__call__` to its first `return` in `_answer`; everything below that is for misses.
"""

import asyncio
import inspect
import time
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, TypeAlias

from nexcache.asgi import ASGIApp, Message, Receive, Scope, Send
from nexcache.collapse import Flights
from nexcache.entries import Entries, Found, Live, Missing
from nexcache.errors import ConfigurationError
from nexcache.fill import Complete, Failed, Fill
from nexcache.invalidation.generations import Snapshot
from nexcache.key import LONGEST_REQUEST, CacheKey, Keyed, HeaderRules, KeySpace
from nexcache.message import StoredResponse
from nexcache.policy import Matched, Policies, Policy, TagsInvalid, size_in_bytes, tags_of
from nexcache.refresh import CREDENTIALS, REFRESH, Recent, Refreshing, Target, Warms
from nexcache.semantics import cache_status
from nexcache.semantics.headers import end_to_end, first
from nexcache.semantics.reuse import REVALIDATE, Prepared, answer, current_age, prepare, time_to_live
from nexcache.semantics.storing import may_store
from nexcache.semantics.validation import entity_tag, none_match
from nexcache.telemetry.counts import Counts, OperationCounts
from nexcache.telemetry.events import Answered, Emitter, Filled, HookFailed, NotStored, RequestSpan
from nexcache.telemetry.names import Bypass, NotStoredReason, Result, Tier
from nexcache.tenants import Resolver, is_valid_id

_BODY_KEYED: Final = 64 * 1024
"""Bytes of a request's body that may be part of a key."""


class ResponseCache(Protocol):
    """What the middleware needs of a cache."""

    @property
    def enabled(self) -> bool:
        """Whether the cache is used at all."""

    @property
    def store_budget(self) -> float:
        """Seconds that all asking of the store may take before the app is called."""

    @property
    def keys(self) -> KeySpace:
        """Builds keys."""

    @property
    def entries(self) -> Entries:
        """Finds and keeps entries."""

    @property
    def flights(self) -> Flights:
        """The computations under way."""

    @property
    def counts(self) -> Counts:
        """Plain numbers."""

    @property
    def emitter(self) -> Emitter:
        """Takes events."""

    @property
    def recent(self) -> Recent:
        """Remembers what was asked for."""

    def register(self, app: Warms) -> None:
        """Note an app whose operations can be warmed."""

    def ttl_of(self, policy: Policy) -> float:
        """Return the seconds for which a policy's responses are kept, settings included."""

    def is_disabled(self, operation: str) -> bool:
        """Whether an operation was switched off."""

    async def start(self) -> None:
        """Prepare the cache; called before the first request."""

    async def aclose(self) -> None:
        """Give back what the cache holds."""


class _Request:
    """What is known of one request on its way through; local to one call."""

    __slots__ = ("counts", "if_none_match", "key", "operation", "policy", "principal", "span", "started", "tenant")

    def __init__(self, policy: Policy, started: float) -> None:
        self.policy = policy
        self.operation = policy.op
        self.started = started
        self.tenant = ""
        self.principal: str | None = None
        self.if_none_match: bytes | None = None
        self.span: RequestSpan | None = None
        self.key: CacheKey | None = None
        self.counts: OperationCounts


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
    ) -> None:
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
        self._started = False
        cache.register(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._lifespan(scope, receive, send)
            else:
                await self.app(scope, receive, send)
            return
        cache = self._cache
        matched = self._policies.match(_route_path(scope))
        if matched is None or not cache.enabled:
            await self.app(scope, receive, send)
            return
        if not self._started:
            await self._start()
        request = _Request(matched.policy, time.perf_counter())
        tracing = cache.emitter.tracing
        if tracing is not None:
            request.span = tracing.get(request.operation)
        try:
            await self._answer(request, matched, scope, receive, send)
        except BaseException:
            self._end(request, Result.ERROR)
            raise

    async def _answer(self, request: _Request, matched: Matched, scope: Scope, receive: Receive, send: Send) -> None:
        """Follow one request of a path with a policy: bypass, hit, or miss."""
        policy, cache = request.policy, self._cache
        identity = await self._identify(scope, matched)
        if isinstance(identity, Bypass):
            await self._bypass(request, identity, scope, receive, send)
            return
        request.tenant, request.principal = identity
        method: str = scope["method"]
        if method not in policy.methods and not (method == "HEAD" and "GET" in policy.methods):
            await self._bypass(request, Bypass.METHOD, scope, receive, send)
            return
        if cache.is_disabled(policy.op):
            await self._bypass(request, Bypass.DISABLED, scope, receive, send)
            return
        keyed = self._headers.read(method, scope["headers"], policy)
        if isinstance(keyed, Bypass):
            await self._bypass(request, keyed, scope, receive, send)
            return
        request.if_none_match = keyed.if_none_match
        body = b""
        if method in ("POST", "QUERY"):
            read = await _read_body(receive)
            if isinstance(read, _Replayed):
                await self._bypass(request, Bypass.BODY, scope, read.receive, send)
                return
            body = read
        raw = (
            request.tenant,
            request.principal,
            matched.index,
            "GET" if method == "HEAD" else method,
            scope["path"],
            scope.get("raw_path"),
            scope["query_string"],
            scope.get("root_path"),
            scope.get("scheme"),
            keyed.fields,
            body,
        )
        live: Live | None = None
        first = cache.entries.first
        if first is not None and REFRESH not in scope:
            live = first.peek(raw)
            if live is not None:
                request.counts = live.counts
                await self._hit(request, live.prepared, Tier.MEMORY, method, live.name, send)
                return
        await self._look(request, matched, keyed, raw, body, scope, receive, send)

    async def _look(
        self,
        request: _Request,
        matched: Matched,
        keyed: Keyed,
        raw: tuple[object, ...],
        body: bytes,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Build the key, ask the store, and serve or compute."""
        policy, cache = request.policy, self._cache
        query: bytes = scope["query_string"]
        tags = tags_of(policy, matched.parameters, query)
        canonical = cache.keys.canonical(
            scope,
            policy,
            keyed.fields,
            tenant=request.tenant,
            principal=request.principal,
            query=query if policy.query is None else policy.query.canonical(query),
            body=body,
        )
        if isinstance(tags, TagsInvalid) or len(canonical) > LONGEST_REQUEST:
            await self._bypass(request, Bypass.KEY_TOO_LONG, scope, _replay(body, receive), send)
            return
        request.counts = cache.counts.of(request.tenant, policy.op)
        key = request.key = cache.keys.key(request.tenant, policy.op, canonical, tags)
        refreshing: Refreshing | None = scope.get(REFRESH)
        if refreshing is None:
            cache.recent.note(request.tenant, policy.op, _target(scope, keyed, body))
        elif refreshing.tenant == request.tenant:
            request.counts = OperationCounts()  # nobody asked: nothing that the statistics tell of
        else:
            return
        takeovers = 0
        while True:
            deadline = asyncio.get_running_loop().time() + cache.store_budget
            looked = await self._lookup(key, request.counts, deadline)
            if isinstance(looked, Found) and refreshing is not None:
                looked = Missing(looked.tier, None)  # computed anew, whatever is stored
            if isinstance(looked, Found):
                if looked.live is not None and cache.entries.first is not None:
                    cache.entries.first.alias(raw, looked.live)
                await self._hit(request, looked.prepared, looked.tier, scope["method"], key.name, send)
                return
            if scope["method"] == "HEAD":  # a HEAD is answered from a GET's entry, and never makes one
                await self._forward(request, scope, receive, send)
                return
            waits = cache.flights.waits(key) and takeovers < 2  # noqa: PLR2004 - the first leader and one successor
            fill = cache.flights.get(key, looked.generations) if waits else None
            if fill is None:
                snapshot = await self._capture(key, looked, deadline)
                fill = cache.flights.get(key, snapshot.generations) if waits else None
                if fill is None:
                    fill = self._start_fill(request, matched, key, snapshot, body, scope, receive, shared=waits)
                    await self._lead(request, fill, snapshot, send)
                    return
            fill.followers += 1
            outcome = await asyncio.shield(fill.outcome)
            match outcome:
                case Complete():
                    if refreshing is not None:
                        refreshing.kept = True
                    await self._follow(request, outcome, send)
                    return
                case Failed():
                    takeovers += 1
                case _:
                    takeovers = 2

    # --- computing again, on request -----------------------------------------------------------------------

    @property
    def operations(self) -> frozenset[str]:
        """The operations of the policies."""
        return frozenset(policy.op for policy in self._policies.all)

    async def refresh(self, tenant: str, target: Target, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Compute a request for the sender of these header fields and store it; False if that did not work."""
        refreshing = Refreshing(tenant)
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if asked:
                return {"type": "http.disconnect"}
            asked = True
            return {"type": "http.request", "body": target.body, "more_body": False}

        async def send(_message: Message) -> None:
            pass

        try:
            await self(target.scope(headers, **{REFRESH: refreshing}), receive, send)
        except Exception as error:  # noqa: BLE001 - the app's failure is the result
            self._cache.emitter.emit(HookFailed("refresh", type(error).__name__))
            return False
        return refreshing.kept

    # --- whose request, and which --------------------------------------------------------------------------

    async def _identify(self, scope: Scope, matched: Matched) -> tuple[str, str | None] | Bypass:
        """Resolve tenant and principal; whatever goes wrong is a bypass, never somebody else's data."""
        if matched.parameters:
            scope["nexcache.parameters"] = matched.parameters
        tenant = await self._resolve("tenant", self._tenant, scope)
        if tenant is None or not is_valid_id(tenant):
            return Bypass.NO_TENANT
        if self._principal is None:
            return tenant, None
        if self._principal is self._tenant:
            return tenant, tenant
        principal = await self._resolve("principal", self._principal, scope)
        return Bypass.NO_PRINCIPAL if principal is None else (tenant, principal)

    async def _resolve(self, hook: str, resolver: Resolver, scope: Scope) -> str | None:
        try:
            found = resolver(scope)
            if found.__class__ is str:
                return found
            if inspect.isawaitable(found):
                found = await found
        except Exception as error:  # noqa: BLE001 - a resolver that fails must not name anybody
            self._cache.emitter.emit(HookFailed(hook, type(error).__name__))
            return None
        return found if isinstance(found, str) else None

    async def _lookup(self, key: CacheKey, counts: OperationCounts, deadline: float) -> Found | Missing:
        cache = self._cache
        here = cache.entries.lookup_here(key)
        if isinstance(here, Found):
            return here
        if here is not None and (cache.entries.in_process or cache.flights.get(key, here.generations) is not None):
            return here
        return await cache.flights.lookups.run(
            key.name + key.request,
            lambda on_sent: cache.entries.lookup(key, counts, deadline=deadline, on_sent=on_sent),
        )

    async def _capture(self, key: CacheKey, missing: Missing, deadline: float) -> Snapshot:
        cache = self._cache
        return await cache.flights.captures.run(
            key.name + key.request,
            lambda on_sent: cache.entries.capture(key, missing, deadline=deadline, on_sent=on_sent),
        )

    # --- the four ways to answer ---------------------------------------------------------------------------

    async def _hit(
        self, request: _Request, prepared: Prepared, tier: Tier, method: str, name: bytes, send: Send
    ) -> None:
        now = time.time()
        age = current_age(prepared.response, now)
        ttl = time_to_live(prepared.response, now)
        start, body = answer(
            prepared,
            method=method,
            if_none_match=request.if_none_match,
            age=age,
            status=cache_status.hit(ttl, tier),
        )
        counts = request.counts
        if tier is Tier.MEMORY:
            counts.memory_hits += 1
        elif tier is Tier.REDIS:
            counts.redis_hits += 1
        else:
            counts.fallback_hits += 1
        duration = time.perf_counter() - request.started
        counts.hit_latency.add(duration)
        if request.span is not None or self._cache.emitter.hears(Answered):
            self._tell(
                request,
                Answered(
                    request.operation,
                    request.tenant,
                    Result.HIT,
                    tier,
                    key_hash=name.rpartition(b":")[2].decode(),
                    age=age,
                    ttl=ttl,
                    size=len(prepared.response.body),
                    duration=duration,
                ),
            )
        await send(start)
        await send(body)

    async def _bypass(self, request: _Request, reason: Bypass, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the request to the app as if there were no cache, and say so."""
        request.counts = self._cache.counts.of(request.tenant or None, request.operation)
        request.counts.bypasses[reason] += 1
        fwd = "method" if reason is Bypass.METHOD else "bypass"
        status = cache_status.forwarded(fwd, detail=None if reason is Bypass.METHOD else reason)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (cache_status.NAME, status)]}
            await send(message)

        await self.app(scope, receive, tell)
        self._end(request, Result.BYPASS, reason=reason)

    async def _forward(self, request: _Request, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a HEAD that nothing is stored for to the app."""
        status = cache_status.forwarded("uri-miss", detail=NotStoredReason.METHOD)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (cache_status.NAME, status)]}
            await send(message)

        await self.app(scope, receive, tell)
        self._end(request, Result.MISS)

    async def _follow(self, request: _Request, complete: Complete, send: Send) -> None:
        """Answer with what was computed for another request that was waiting for the same."""
        request.counts.coalesced += 1
        prepared = prepare(_stored(complete, ttl=0.0))
        start, body = answer(
            prepared,
            method="GET",
            if_none_match=request.if_none_match,
            age=prepared.response.initial_age,
            status=cache_status.forwarded("uri-miss", collapsed=True),
        )
        await send(start)
        await send(body)
        self._end(request, Result.MISS, coalesced=True)

    def _start_fill(
        self,
        request: _Request,
        matched: Matched,
        key: CacheKey,
        snapshot: Snapshot,
        body: bytes,
        scope: Scope,
        receive: Receive,
        *,
        shared: bool,
    ) -> Fill:
        policy, cache, index = request.policy, self._cache, matched.index
        ttl, span, counts = self._ttl[index], request.span, request.counts
        keyed, max_body = self._keyed[index], self._max_body[index]
        began = time.perf_counter()

        refreshing: Refreshing | None = scope.get(REFRESH)

        async def keep(complete: Complete) -> None:
            if cache.emitter.hears(Filled):
                cache.emitter.emit(Filled(policy.op, key.tenant, time.perf_counter() - began, fill.followers))
            response = _stored(complete, ttl)
            if span is None:
                kept = await cache.entries.keep(key, snapshot, response, counts)
            else:
                with span.put(policy.op):
                    kept = await cache.entries.keep(key, snapshot, response, counts)
            if refreshing is not None:
                refreshing.kept = bool(kept)
            if not kept:
                reason = NotStoredReason.BACKEND if kept is None else NotStoredReason.INVALIDATED
                cache.emitter.emit(NotStored(policy.op, key.tenant, reason))

        fill = Fill(
            app=self.app,
            scope=_unconditional(scope),
            receive=receive,
            body=body,
            decide=lambda status, headers, trailers: may_store(
                status, headers, statuses=policy.statuses, keyed=keyed, max_body=max_body, trailers=trailers
            ),
            max_body=max_body,
            keep=keep,
            around=span.fill(policy.op) if span is not None else None,
        )
        cache.flights.add(key, snapshot, fill, shared=shared)
        return fill

    async def _lead(self, request: _Request, fill: Fill, snapshot: Snapshot, send: Send) -> None:
        """Pass the app's messages on as they come."""
        if_none_match, silent = request.if_none_match, False
        try:
            while (message := await fill.next()) is not None:
                if message["type"] == "http.response.start":
                    message, silent = _first_message(message, fill, snapshot, if_none_match)
                elif silent and message["type"] == "http.response.body":
                    message = {**message, "body": b""}
                await send(message)
            await fill.join()
        except BaseException:
            fill.detach()
            raise
        finally:
            if fill.not_stored is not None and request.key is not None:
                self._cache.flights.remember_alone(request.key)
                self._cache.emitter.emit(NotStored(request.operation, request.tenant, fill.not_stored))
        self._end(request, Result.MISS)

    # --- the end -------------------------------------------------------------------------------------------

    def _end(self, request: _Request, result: Result, *, reason: Bypass | None = None, coalesced: bool = False) -> None:
        duration = time.perf_counter() - request.started
        if result is Result.MISS:
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
        if request.span is not None:
            request.span.end(answered)
        self._cache.emitter.emit(answered)

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
                await self._cache.aclose()
            await send(message)

        try:
            await self.app(scope, watch, tell)
        except Exception:
            if answered:
                raise
        if answered:
            return
        # the app knows no lifespan (Django, plain callables): it needs none, the cache does
        if not asked:
            await receive()
            await self._start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._cache.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        self._started = True
        await self._cache.start()


_Headers: TypeAlias = list[tuple[bytes, bytes]]


def _first_message(
    message: Message, fill: Fill, snapshot: Snapshot, if_none_match: bytes | None
) -> tuple[Message, bool]:
    """Complete the start of an answer on its way to the client; True if no body is to follow (a 304).

    The entity tag is known here if the app sent one, or if its body has already come in one message.
    """
    headers: _Headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
    detail = fill.not_stored or (Tier.FALLBACK if snapshot.tier is Tier.FALLBACK else None)
    complete = fill.complete
    headers.append((cache_status.NAME, cache_status.forwarded("uri-miss", stored=complete is not None, detail=detail)))
    if fill.not_stored is not None:
        return {**message, "headers": headers}, False
    etag = first(headers, b"etag")
    if etag is None and complete is not None:
        etag = entity_tag(complete.body, first(headers, b"content-type"))
        headers.append((b"etag", etag))
    if first(headers, b"cache-control") is None:
        headers.append(REVALIDATE)
    if etag is not None and if_none_match is not None and none_match(if_none_match, etag):
        kept = [(name, value) for name, value in headers if name.lower() not in (b"content-length", b"content-type")]
        return {**message, "status": 304, "headers": kept}, True
    return {**message, "headers": headers}, False


def _target(scope: Scope, keyed: Keyed, body: bytes) -> Target:
    method = scope["method"]
    return Target(
        "GET" if method == "HEAD" else method,
        scope["path"],
        scope.get("raw_path"),
        scope["query_string"],
        scope.get("root_path", ""),
        scope.get("scheme", "http"),
        tuple(pair for pair in keyed.fields if pair[0] not in CREDENTIALS),
        body,
    )


def _stored(complete: Complete, ttl: float) -> StoredResponse:
    headers = tuple(
        (name, value) for name, value in end_to_end(complete.headers) if name not in (b"content-length", b"age")
    )
    etag = first(headers, b"etag")
    if etag is None:
        etag = entity_tag(complete.body, first(headers, b"content-type"))
        headers = (*headers, (b"etag", etag))
    headers = (*headers, (b"content-length", b"%d" % len(complete.body)))
    age = first(complete.headers, b"age") or b""
    initial = int(age) if age.isdigit() and len(age) < 10 else 0  # noqa: PLR2004
    return StoredResponse(complete.status, headers, complete.body, etag, time.time(), ttl, initial)


def _unconditional(scope: Scope) -> Scope:
    """Drop the client's conditions: the answer is for all, and each client's condition is tested against it."""
    conditions = (b"if-none-match", b"if-modified-since")
    if not any(name in conditions for name, _ in scope["headers"]):
        return scope
    return {**scope, "headers": [pair for pair in scope["headers"] if pair[0] not in conditions]}


def _route_path(scope: Scope) -> str:
    """Return the path below `root_path`, which servers put before it or leave out."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :] or "/"
    return path


class _Replayed:
    """A body that is too long to be keyed, to be read again from its start."""

    def __init__(self, messages: list[Message], receive: Receive) -> None:
        self._messages = messages
        self._receive = receive

    async def receive(self) -> Message:
        return self._messages.pop(0) if self._messages else await self._receive()


async def _read_body(receive: Receive) -> bytes | _Replayed:
    messages: list[Message] = []
    size = 0
    while True:
        message = await receive()
        messages.append(message)
        size += len(message.get("body", b""))
        if message["type"] != "http.request" or size > _BODY_KEYED:
            return _Replayed(messages, receive)
        if not message.get("more_body", False):
            return b"".join(each.get("body", b"") for each in messages)


def _replay(body: bytes, receive: Receive) -> Receive:
    if not body:
        return receive
    return _Replayed([{"type": "http.request", "body": body, "more_body": False}], receive).receive
