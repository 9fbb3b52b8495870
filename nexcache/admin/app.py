"""The admin endpoints as an ASGI app, to be mounted anywhere.

Answers are JSON; errors are `application/problem+json` (RFC 9457). The tenant comes from the credentials; what a
request says about itself can only be refused. `endpoints` is the table of what there is.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol
from urllib.parse import unquote

from nexcache.admin.answers import Answer, Streamed, document, problem, send_answer
from nexcache.admin.auth import Authorize, Caller, Denied, authenticate, tenant_of
from nexcache.admin.endpoints import ENDPOINTS, Endpoint
from nexcache.admin.live import MOST, Live
from nexcache.admin.openapi import openapi
from nexcache.admin.page import Page
from nexcache.alerts import Alert
from nexcache.asgi import Headers, Receive, Scope, Send
from nexcache.errors import ConfigurationError, InvalidName, StoreError
from nexcache.explain import Explanation
from nexcache.forgetting import Forgotten
from nexcache.health import Health
from nexcache.invalidation.apply import Invalidation
from nexcache.invalidation.targets import Targets, check_name, is_glob, matches
from nexcache.ledger import Statistics, trend_document
from nexcache.policy import query_parameters
from nexcache.refresh import CREDENTIALS, Warmed
from nexcache.sample import Preview, Sample
from nexcache.semantics.headers import first
from nexcache.semantics.reuse import current_age, time_to_live
from nexcache.telemetry.counts import OTHER_TENANTS
from nexcache.telemetry.events import Audited, Emitter, HookFailed
from nexcache.telemetry.names import Trigger
from nexcache.trends import Trend

_OTHERS: Final = "(all other tenants)"
"""What listings call the tenants beyond the bound of what is counted one by one."""
_LONGEST_TARGET: Final = 200
_NOT_ASKED: Final = frozenset(
    (
        b"cache-control",
        b"connection",
        b"content-length",
        b"content-type",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-unmodified-since",
        b"range",
        b"transfer-encoding",
    )
)
"""Fields of a request to explain another that are about itself."""


class Administered(Protocol):
    """What the admin endpoints need of a cache."""

    @property
    def emitter(self) -> Emitter:
        """Takes events."""

    @property
    def version(self) -> str:
        """NexCache's version."""

    @property
    def alerts(self) -> Sequence[Alert]:
        """The alerts and their state."""

    async def status(self) -> Health:
        """Say how cache and store are."""

    async def stats(self, tenant: str, *, usage: bool = True) -> Statistics:
        """Return a tenant's statistics."""

    async def trend(self, tenant: str) -> Trend:
        """Return a tenant's last hour."""

    async def operations(self, tenant: str) -> frozenset[str]:
        """Return the operations that are known for a tenant."""

    async def sample(self, tenant: str) -> Sample:
        """Take a bounded look at a tenant's entries."""

    async def tenants(self) -> tuple[frozenset[str], bool]:
        """Return the known tenants, and whether these are all."""

    async def invalidate_targets(
        self, tenant: str, targets: Targets, *, trigger: Trigger, soft: bool = False
    ) -> Invalidation:
        """Invalidate."""

    async def preview_targets(self, tenant: str, targets: Targets) -> Preview:
        """Say what an invalidation would reach."""

    async def forget(self, tenant: str) -> Forgotten:
        """Remove everything that there is of a tenant."""

    async def explain(
        self,
        tenant: str,
        request: str | Mapping[str, Any],
        *,
        method: str = "GET",
        principal: str | None = None,
        headers: Headers = (),
    ) -> Explanation:
        """Say why a request is, or is not, answered from the cache."""

    async def warm(
        self,
        tenant: str,
        operation: str,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        progress: Callable[[Warmed], None] | None = None,
    ) -> Warmed:
        """Compute an operation's recent requests again."""

    def metrics_text(self, tenant: str | None) -> tuple[str, str]:
        """Return this process's metrics as text, and its media type."""

    async def switch(self, operation: str, *, tenant: str | None = None, off: bool) -> bool:
        """Send an operation's requests to the app, or no longer; False: the other nodes will be told later."""

    def is_disabled(self, operation: str, tenant: str | None = None) -> bool:
        """Whether an operation is switched off, for all tenants or for this one."""

    @property
    def shares(self) -> bool:
        """Whether there is a store that other processes may use, too."""

    @property
    def memory(self) -> tuple[int, int, int, int]:
        """Entries and bytes in this process, and the most of both."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One request to an endpoint that exists, by a caller who is known."""

    scope: Scope
    caller: Caller
    endpoint: Endpoint
    place: Mapping[str, str]
    """The path's parameters."""
    query: Mapping[str, str]

    @property
    def target(self) -> str:
        """What the audit says was aimed at."""
        return next(iter(self.place.values()), "*")[:_LONGEST_TARGET]


class _Refused(Exception):  # noqa: N818 - how a handler ends early, not a failure
    def __init__(self, answer: Answer) -> None:
        self.answer = answer


class AdminApp:
    """The endpoints of `GET /openapi.json`, below any mount: health, statistics, listings, events, changes.

    `authorize` maps a request to its caller: a tenant's id, a `Caller`, or None. `tenants.api_key(…)` does, and
    `nexcache.admin.bearer.bearer_jwt(…)`. Cookies are no credential here, pages of other sites are refused, and no
    other origin is given access. Raises ConfigurationError without `authorize`: there are no endpoints for everybody.
    """

    def __init__(self, cache: Administered, *, authorize: Authorize | None = None) -> None:
        if authorize is None:
            raise ConfigurationError(
                "AdminApp needs authorize=…, for example tenants.api_key(keys=cache.settings.api_keys)"
            )
        self._cache = cache
        self._authorize = authorize
        self._live = Live(cache.emitter)
        self._page = Page()
        self._warming_now: set[str] = set()
        self._handlers: Mapping[str, Callable[[_Call], Awaitable[Answer | Streamed]]] = {
            "health": self._health,
            "whoami": self._whoami,
            "stats": self._stats,
            "trends": self._trends,
            "memory": self._memory,
            "operations": self._operations,
            "entries": self._entries,
            "tags": self._tags,
            "tenants": self._tenants,
            "forget": self._forget,
            "alerts": self._alerts,
            "explain": self._explain,
            "events": self._events,
            "metrics": self._metrics,
            "openapi": self._openapi,
            "invalidate_all": self._invalidate,
            "invalidate": self._invalidate,
            "invalidate_tag": self._invalidate_tag,
            "warm": self._warm,
            "disable": self._disable,
            "enable": self._enable,
            "enable_again": self._enable,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"AdminApp answers HTTP only, not {scope['type']}")
        await send_answer(await self._answer(scope), scope, receive, send)

    async def _answer(self, scope: Scope) -> Answer | Streamed:
        """Guard first: who calls, from where, for what; then the endpoint; then the audit."""
        segments = _segments(scope)
        if (shell := self._page.answer(scope, segments)) is not None:
            return shell  # it holds nothing that could be somebody's
        try:
            caller = await authenticate(scope, self._authorize)
        except Exception as error:  # noqa: BLE001 - who cannot be told is nobody
            self._cache.emitter.emit(HookFailed("authorize", type(error).__name__))
            caller = Denied(401, "An API key or token of a tenant is needed.")
        if isinstance(caller, Denied):
            challenges = ((b"www-authenticate", b'ApiKey realm="nexcache"'), (b"www-authenticate", b"Bearer"))
            return problem(caller.status, caller.detail, headers=challenges)
        found = [(each, place) for each in ENDPOINTS if (place := each.match(segments)) is not None]
        if not found:
            return problem(404, "There is no such endpoint.")
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        fitting = [(each, place) for each, place in found if each.method == method]
        if not fitting:
            allow = ", ".join(dict.fromkeys(each.method for each, _ in found))
            return problem(405, f"This endpoint takes {allow}.", headers=((b"allow", allow.encode()),))
        endpoint, place = fitting[0]
        call = _Call(scope, caller, endpoint, place, {})
        try:
            call = _Call(scope, caller, endpoint, place, _query(scope, endpoint))
            answer = await self._permitted(call)
        except _Refused as refused:
            answer = refused.answer
        self._audit(call, answer)
        return answer

    async def _permitted(self, call: _Call) -> Answer | Streamed:
        if _is_foreign(call.scope["headers"], changes=call.endpoint.changes):
            raise _Refused(problem(403, "A page of another site may not ask this."))
        if call.endpoint.operators and not call.caller.operator:
            raise _Refused(problem(403, "This is for operators."))
        return await self._handlers[call.endpoint.id](call)

    def _audit(self, call: _Call, answer: Answer | Streamed) -> None:
        if not call.endpoint.changes or call.query.get("dry_run") in ("1", "true"):
            return
        status = answer.status if isinstance(answer, Answer) else 200
        result = {200: "done", 202: "queued", 401: "refused", 403: "refused"}.get(status, "rejected")
        tenant = call.place.get("tenant", call.query.get("tenant", call.caller.tenant))
        self._cache.emitter.emit(
            Audited(tenant, call.caller.who, call.caller.operator, call.endpoint.id, call.target, result)
        )

    # --- what there is to see --------------------------------------------------------------------------------

    async def _health(self, call: _Call) -> Answer:
        return document(200, (await self._cache.status()).as_dict(operator=call.caller.operator))

    async def _stats(self, call: _Call) -> Answer:
        usage = call.query.get("usage") not in ("0", "false")
        return document(200, (await self._cache.stats(_tenant(call), usage=usage)).as_dict())

    async def _whoami(self, call: _Call) -> Answer:
        caller = call.caller
        return document(200, {"tenant": caller.tenant, "operator": caller.operator, "id": caller.who})

    async def _trends(self, call: _Call) -> Answer:
        tenant = _tenant(call)
        return document(
            200, trend_document(tenant, await self._cache.trend(tenant), since=int(call.query.get("since", "0")))
        )

    async def _memory(self, _: _Call) -> Answer:
        names = ("entries", "bytes", "max_entries", "max_bytes")
        return document(200, dict(zip(names, self._cache.memory, strict=True)))

    async def _operations(self, call: _Call) -> Answer:
        tenant = _tenant(call)
        counted = (await self._cache.stats(tenant)).operations
        names, following = _page(call, {*await self._cache.operations(tenant), *counted})
        found = [
            {
                "name": name,
                "disabled": self._cache.is_disabled(name, tenant),
                "requests": counted[name].requests if name in counted else 0,
                "hits": counted[name].hits if name in counted else 0,
            }
            for name in names
        ]
        return document(200, {"operations": found, "next": following})

    async def _entries(self, call: _Call) -> Answer:
        sample = await self._cache.sample(_tenant(call))
        by_name = {each.name.decode("utf-8", "replace"): each for each in sample.entries}
        names, following = _page(call, by_name)
        now = time.time()
        found = []
        for name in names:
            each = by_name[name]
            response = each.entry.response
            found.append(
                {
                    "operation": each.operation,
                    "hash": name.rpartition(":")[2],
                    "live": each.live,
                    "tags": list(each.tags),
                    "age": current_age(response, now),
                    "ttl": round(time_to_live(response, now), 3),
                    "status": response.status,
                    "bytes": len(response.body),
                }
            )
        return document(200, {"entries": found, "next": following, "estimated": sample.estimated})

    async def _tags(self, call: _Call) -> Answer:
        sample = await self._cache.sample(_tenant(call))
        numbers: dict[str, float] = {}
        for each in sample.entries:
            for tag in each.tags if each.live else ():
                numbers[tag] = numbers.get(tag, 0) + each.weight
        names, following = _page(call, numbers)
        found = [{"tag": name, "entries": round(numbers[name])} for name in names]
        return document(200, {"tags": found, "next": following, "estimated": sample.estimated})

    async def _tenants(self, call: _Call) -> Answer:
        known, complete = await self._cache.tenants()
        names, following = _page(call, known)
        found = [
            {"id": None if name == OTHER_TENANTS else name, "name": _OTHERS if name == OTHER_TENANTS else name}
            for name in names
        ]
        return document(200, {"tenants": found, "next": following, "estimated": not complete})

    async def _forget(self, call: _Call) -> Answer:
        try:
            done = await self._cache.forget(call.place["tenant"])
        except InvalidName as error:
            return problem(400, str(error))
        except StoreError:
            return problem(503, "The store does not answer: not all of the tenant is forgotten. Repeat it.")
        return document(200, {"tenant": done.tenant, "removed": done.removed, "done": done.done})

    async def _alerts(self, _: _Call) -> Answer:
        found = [
            {
                "alert": alert.rule.name,
                "firing": alert.firing,
                "value": None if alert.value is None else round(alert.value, 4),
                "threshold": alert.rule.threshold,
                "summary": alert.rule.summary,
            }
            for alert in self._cache.alerts
        ]
        return document(200, {"alerts": found})

    async def _explain(self, call: _Call) -> Answer:
        tenant = _tenant(call)
        principal = call.query.get("principal")
        if principal is not None and not call.caller.operator:
            return problem(403, "Only an operator may name whom a request acts for.")
        headers = tuple(pair for pair in call.scope["headers"] if pair[0] not in _NOT_ASKED)
        request = call.query["path"]
        try:
            explanation = await self._cache.explain(
                tenant, request, method=call.query.get("method", "GET"), principal=principal, headers=headers
            )
        except ValueError as error:
            return problem(400, str(error))
        return document(200, explanation.as_dict())

    async def _events(self, call: _Call) -> Answer | Streamed:
        named, caller = call.query.get("tenant"), call.caller
        tenant = None if caller.operator and named is None else _tenant(call)
        if self._live.watching >= MOST:
            return problem(503, "Too many are watching.", headers=((b"retry-after", b"5"),))
        answered = int(call.query["answered"]) if "answered" in call.query else None
        watching = self._live.watch(tenant, operator=caller.operator, answered=answered)
        return Streamed(watching, b"text/event-stream")

    async def _metrics(self, call: _Call) -> Answer:
        tenant = None if call.caller.operator and "tenant" not in call.query else _tenant(call)
        text, kind = self._cache.metrics_text(tenant)
        return Answer(200, text.encode(), kind.encode())

    async def _openapi(self, call: _Call) -> Answer:
        root: str = call.scope.get("root_path", "")
        return document(200, openapi(self._cache.version, root))

    # --- what there is to change -----------------------------------------------------------------------------

    async def _invalidate(self, call: _Call) -> Answer:
        tenant, operation = _tenant(call), call.place.get("operation", "*")
        if operation != "*":
            await self._known(tenant, operation)
        return await self._apply(call, tenant, Targets.of((operation,)))

    async def _invalidate_tag(self, call: _Call) -> Answer:
        tenant = _tenant(call)
        try:
            targets = Targets.of(tags=(call.place["tag"],))
        except InvalidName as error:
            return problem(400, str(error))
        return await self._apply(call, tenant, targets)

    async def _apply(self, call: _Call, tenant: str, targets: Targets) -> Answer:
        if call.query.get("dry_run") in ("1", "true"):
            return document(200, (await self._cache.preview_targets(tenant, targets)).as_dict())
        started = time.perf_counter()
        soft = call.query.get("soft") in ("1", "true")
        done = await self._cache.invalidate_targets(tenant, targets, trigger=Trigger.ADMIN, soft=soft)
        waited = (time.perf_counter() - started) * 1000
        return document(
            200 if done.acknowledged else 202,
            {
                "acknowledged": done.acknowledged,
                "queued": done.queued,
                "targets": list(done.targets),
                "waited_ms": round(waited, 3),
            },
        )

    async def _warm(self, call: _Call) -> Answer | Streamed:
        tenant, operation = _tenant(call), call.place["operation"]
        if tenant != call.caller.tenant:
            return problem(403, "A warm-up runs with the caller's own permissions, so only for its own tenant.")
        if is_glob(operation):
            return problem(404, "A warm-up takes one operation, not a pattern.")
        await self._known(tenant, operation)
        if tenant in self._warming_now:  # one request stands for many computations
            return problem(429, "A warm-up of this tenant is under way.", headers=((b"retry-after", b"1"),))
        credentials = [(name, value) for name, value in call.scope["headers"] if name in CREDENTIALS]
        accept = first(call.scope["headers"], b"accept") or b""
        for kind, frame in _PROGRESS.items():
            if kind in accept:
                return Streamed(self._warming(tenant, operation, credentials, frame), kind)
        self._warming_now.add(tenant)
        try:
            return document(200, asdict(await self._cache.warm(tenant, operation, headers=credentials)))
        finally:
            self._warming_now.discard(tenant)

    async def _warming(
        self,
        tenant: str,
        operation: str,
        credentials: Sequence[tuple[bytes, bytes]],
        frame: Callable[[str, Warmed], bytes],
    ) -> AsyncGenerator[bytes, None]:
        """Give a line for every request that was computed, and the result at the end; ends with its reader."""
        news: asyncio.Queue[Warmed] = asyncio.Queue()
        self._warming_now.add(tenant)
        warming = asyncio.create_task(
            self._cache.warm(tenant, operation, headers=credentials, progress=news.put_nowait), name="nexcache-warm"
        )
        warming.add_done_callback(lambda _: news.put_nowait(_END))
        try:
            while (state := await news.get()) is not _END:
                yield frame("progress", state)
            yield frame("result", warming.result())
        finally:
            self._warming_now.discard(tenant)
            warming.cancel()
            await asyncio.gather(warming, return_exceptions=True)

    async def _disable(self, call: _Call) -> Answer:
        return await self._switch(call, off=True)

    async def _enable(self, call: _Call) -> Answer:
        return await self._switch(call, off=False)

    async def _switch(self, call: _Call, *, off: bool) -> Answer:
        """Switch an operation that is known: a tenant's own, or by an operator who names nobody everybody's."""
        everybody = call.caller.operator and call.caller.tenant is None and "tenant" not in call.query
        tenant = None if everybody else _tenant(call)
        operation = call.place["operation"]
        if operation not in await self._cache.operations(tenant or "-"):
            return problem(404, "There is no operation of that name.")
        told = await self._cache.switch(operation, tenant=tenant, off=off)
        disabled = self._cache.is_disabled(operation, tenant)
        scope = "all-nodes" if self._cache.shares else "process"
        value = {"operation": operation, "disabled": disabled, "tenant": tenant, "scope": scope}
        return document(200 if told else 202, value)

    async def _known(self, tenant: str, operation: str) -> None:
        try:
            check_name("operation", operation)
        except InvalidName as error:
            raise _Refused(problem(400, str(error))) from None
        if not any(matches(operation, known) for known in await self._cache.operations(tenant)):
            raise _Refused(problem(404, "No operation of this tenant has that name, or matches that pattern."))


def _is_foreign(headers: Headers, *, changes: bool) -> bool:
    """Whether a browser says that a page of another site sent this (Fetch Metadata; RFC 6454 §7 where it says no more).

    Browsers leave `Sec-Fetch-Site` out towards plain http; `Origin` is always there where something may be changed.
    """
    sites = [value for name, value in headers if name == b"sec-fetch-site"]
    if sites:
        allowed = (b"same-origin", b"none") if changes else (b"same-origin", b"none", b"same-site")
        return any(site not in allowed for site in sites)
    if not changes:
        return False
    host = first(headers, b"host")
    origins = [value for name, value in headers if name == b"origin"]
    return any(origin.partition(b"://")[2] != host for origin in origins)


_END: Final = Warmed("", 0, 0, 0, 0.0)


def _line(_: str, warmed: Warmed) -> bytes:
    return json.dumps(asdict(warmed)).encode() + b"\n"


def _frame(kind: str, warmed: Warmed) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), json.dumps(asdict(warmed)).encode())


_PROGRESS: Final = {b"application/x-ndjson": _line, b"text/event-stream": _frame}


def _segments(scope: Scope) -> list[str]:
    """Split the path below the mount; an encoded slash stays inside its segment where the server tells."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    raw: bytes | None = scope.get("raw_path")
    if raw is not None:
        raw_text = raw.partition(b"?")[0].decode("latin-1")
        segments = [unquote(part) for part in raw_text.strip("/").split("/")]
        depth = len([part for part in root.strip("/").split("/") if part]) if path.startswith(root) else 0
        if "/".join(segments).strip("/") == path.strip("/"):
            return [part for part in segments[depth:] if part]
    path = path.removeprefix(root)
    return [part for part in path.strip("/").split("/") if part]


def _query(scope: Scope, endpoint: Endpoint) -> dict[str, str]:
    """Return the parameters that the endpoint takes, each at most once and as its schema has it."""
    given = query_parameters(scope["query_string"])
    found = {}
    for parameter in endpoint.query:
        values = given.get(parameter.name, ())
        if len(values) > 1:
            raise _Refused(problem(400, f"Name one {parameter.name}."))
        if not values:
            if parameter.required:
                raise _Refused(problem(400, f"The parameter {parameter.name} is missing."))
            continue
        if not parameter.accepts(values[0]):
            raise _Refused(problem(400, f"The parameter {parameter.name} must match {json.dumps(parameter.schema)}."))
        found[parameter.name] = values[0]
    return found


def _tenant(call: _Call) -> str:
    tenant = tenant_of(call.caller, call.query.get("tenant"))
    if isinstance(tenant, Denied):
        raise _Refused(problem(tenant.status, tenant.detail))
    return tenant


def _page(call: _Call, names: "Mapping[str, Any] | set[str] | frozenset[str]") -> tuple[list[str], str | None]:
    """Return the page that the cursor asks for, and the next cursor: the last name of this page, in hexadecimal."""
    limit = int(call.query.get("limit", "100"))
    after = bytes.fromhex(call.query.get("cursor", ""))
    ordered = sorted((name.encode("utf-8", "surrogatepass"), name) for name in names)
    rest = [(encoded, name) for encoded, name in ordered if encoded > after]
    page = rest[:limit]
    return [name for _, name in page], page[-1][0].hex() if len(rest) > limit else None
