"""Caching a FastAPI route behind its dependencies: what they refuse is refused, whatever is stored.

`CacheMiddleware` answers before the app runs, so it must know by itself who may see what. Here FastAPI solves the
dependencies first, on every request, and only the endpoint itself is spared. Key, entries, flights, statistics
and `Cache-Status` are the middleware's: to it, the endpoint is an app.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Annotated, Any, Final, ParamSpec, TypeAlias, TypeVar, get_args, get_origin, overload

from fastapi import Depends, Request, Response
from fastapi.params import Cookie, Header
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import Match

from nexcache import tenants
from nexcache.asgi import ASGIApp, Message, Receive, Scope, Send
from nexcache.errors import ConfigurationError
from nexcache.explain import Examined
from nexcache.middleware import CacheMiddleware, ResponseCache
from nexcache.policy import Duration, Matched, Policy, Query, Shadow, Size
from nexcache.semantics import cache_status
from nexcache.semantics.headers import first
from nexcache.telemetry.names import Bypass
from nexcache.tenants import Resolver

Identify: TypeAlias = str | Callable[..., str | Awaitable[str | None] | None]
"""A path into the endpoint's arguments (`"user.tenant"`), or a function of those arguments that it names."""

P = ParamSpec("P")
R = TypeVar("R")

_CALL: Final = "nexcache.call"
_EXCHANGE: Final = "nexcache_exchange"
_GIVEN: Final = (
    *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path"),
    *("client", "server", "state", "user", "auth", "session"),
)
"""What of a scope servers and the middlewares around an application make, and routing does not."""


def cached_route(
    cache: ResponseCache,
    *,
    op: str,
    tenant: Identify,
    principal: Identify | None = None,
    ttl: Duration | None = None,
    methods: Sequence[str] = ("GET",),
    statuses: Sequence[int] = (200,),
    vary: Sequence[str] = (),
    query: Query | None = None,
    tags: Sequence[str] = (),
    max_body: Size = "1MiB",
    share_authenticated: bool = False,
    version: str = "",
    early_refresh: bool = True,
    jitter: float = 0.1,
    fill_soft_limit: Duration = "30s",
    fill_hard_limit: Duration = "60s",
    shadow: Shadow | None = None,
    credentials: Sequence[str] = ("authorization", "cookie", "x-api-key"),
) -> "_Decorate":
    """Answer a route from the cache once its dependencies have run; put it below `@app.get(…)`.

    `tenant` and `principal` are taken from what the dependencies returned: a path such as `"user.tenant"` whose
    first step is a parameter of the endpoint, or a function of parameters of the endpoint, `request` and `scope`.
    The principal must name everything that dependencies let the answer depend on; header fields and cookies that
    the endpoint itself declares are part of the key. The other options are those of `Policy`.

    Header fields that dependencies set go out with every answer and are never stored; those of the endpoint are
    stored with it. A response that is not complete when the endpoint returns (a stream, a file) is passed on as
    it is and not stored. Raises ConfigurationError for what cannot work.
    """
    policy = Policy(
        "/{path:path}",
        op=op,
        ttl=ttl,
        methods=methods,
        statuses=statuses,
        vary=vary,
        query=query,
        tags=tags,
        max_body=max_body,
        share_authenticated=share_authenticated,
        version=version,
        early_refresh=early_refresh,
        jitter=jitter,
        fill_soft_limit=fill_soft_limit,
        fill_hard_limit=fill_hard_limit,
        shadow=shadow,
    )
    return _Decorate(cache, policy, tenant=tenant, principal=principal, credentials=credentials)


class _Decorate:
    def __init__(
        self,
        cache: ResponseCache,
        policy: Policy,
        *,
        tenant: Identify,
        principal: Identify | None,
        credentials: Sequence[str],
    ) -> None:
        self._cache = cache
        self._policy = policy
        self._tenant = tenant
        self._principal = principal
        self._credentials = credentials

    @overload
    def __call__(self, endpoint: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(self, endpoint: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]: ...

    def __call__(self, endpoint: Callable[..., Any]) -> Callable[..., Any]:
        where = f"cached_route(op={self._policy.op!a})"
        if inspect.isgeneratorfunction(endpoint) or inspect.isasyncgenfunction(endpoint):
            raise ConfigurationError(f"{where}: an endpoint that yields is a stream; there is nothing to store")
        signature = inspect.signature(endpoint)
        known = signature.parameters.keys()
        route = _Route(
            cache=self._cache,
            tenant=_resolver(self._tenant, known, f"{where}: tenant"),
            principal=None if self._principal is None else _resolver(self._principal, known, f"{where}: principal"),
            credentials=self._credentials,
            policies=[_varying(self._policy, endpoint)],
        )
        route.endpoint = endpoint
        compute = endpoint if inspect.iscoroutinefunction(endpoint) else partial(run_in_threadpool, endpoint)

        @wraps(endpoint)
        async def answer(*args: Any, **arguments: Any) -> Any:
            exchange = arguments.pop(_EXCHANGE, None)
            if exchange is None:  # called as a plain function, by a test perhaps
                return await compute(*args, **arguments)
            return await route.answer(_Call(compute, arguments, exchange))

        exchange = inspect.Parameter(
            _EXCHANGE, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[_Exchange, Depends(_exchange)]
        )
        parameters = list(signature.parameters.values())
        several = parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
        parameters.insert(len(parameters) - 1 if several else len(parameters), exchange)
        # what FastAPI reads, and inspect.signature too (PEP 362)
        answer.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return answer


@dataclass(frozen=True, slots=True)
class _Exchange:
    """The request, and the response whose header fields and status dependencies and endpoint may set."""

    request: Request
    response: Response


async def _exchange(request: Request, response: Response) -> _Exchange:
    return _Exchange(request, response)


class _Call:
    """One call of an endpoint whose dependencies are solved."""

    __slots__ = ("arguments", "compute", "exchange", "refusal", "result", "task", "unstored")

    def __init__(
        self, compute: Callable[..., Awaitable[Any]], arguments: Mapping[str, Any], exchange: _Exchange
    ) -> None:
        self.compute = compute
        self.arguments = arguments
        self.exchange = exchange
        self.task: asyncio.Task[Any] | None = None
        self.result: Any = None
        self.refusal: HTTPException | None = None
        self.unstored: Response | None = None

    async def end(self) -> None:
        """End the endpoint before its dependencies are closed: it must not go on with their connections."""
        task = self.task
        if task is not None and task is not asyncio.current_task() and not task.done():
            task.cancel()
            await asyncio.wait((task,))


class _Route(CacheMiddleware):
    """The middleware of one endpoint; the app that it stands before is the call in the scope."""

    def __init__(
        self,
        *,
        cache: ResponseCache,
        tenant: Resolver,
        principal: Resolver | None,
        credentials: Sequence[str],
        policies: Sequence[Policy],
    ) -> None:
        super().__init__(
            self._endpoint,
            cache=cache,
            tenant=tenant,
            principal=principal,
            credentials=credentials,
            policies=policies,
        )
        self.endpoint: Callable[..., Any] | None = None
        self._application: ASGIApp | None = None
        self._serialisers: dict[int, tuple[object, Callable[[Request], Awaitable[Response]]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _CALL in scope:
            await super().__call__(scope, receive, send)
        elif self._application is not None:  # a request computed again (`refresh`) meets the dependencies too
            await self._application(scope, receive, send)

    def _scope_again(self, scope: Scope) -> dict[str, Any]:
        """Return the request as the application got it: its dependencies are solved again, not used again."""
        return {**{name: scope[name] for name in _GIVEN if name in scope}, "headers": [*scope["headers"]]}

    async def examine(self, tenant: str, scope: Scope, principal: str | None = None) -> Examined | None:
        """Say what would become of a request if it led to this route; its dependencies are not called.

        So whom the request acts for is known only where it is named.
        """
        for route in _routes(self._application.routes if isinstance(self._application, Starlette) else ()):
            match, child = route.matches(scope)
            if match is Match.FULL and getattr(child.get("endpoint"), "__wrapped__", None) is self.endpoint:
                if principal is None and self._principal is not None:
                    return Examined(self._policies.all[0], self._ttl[0], Bypass.NO_PRINCIPAL, self._secret)
                return await super().examine(tenant, {**scope, **child}, principal)
        return None

    def _match(self, scope: Scope) -> Matched:
        """Return the route's policy: FastAPI has matched the path."""
        parameters = {name: str(value) for name, value in scope.get("path_params", {}).items()}
        return Matched(self._policies.all[0], 0, parameters)

    async def answer(self, call: _Call) -> Response:
        """Answer a request whose dependencies are solved; raises what the endpoint raises."""
        request, of_dependencies = call.exchange.request, call.exchange.response.raw_headers
        set_before = [*of_dependencies]
        of_dependencies.clear()
        if self._application is None:
            self._application = request.app
        start: Message | None = None
        body: list[bytes] = []

        async def send(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
            elif message["type"] == "http.response.body":
                body.append(message.get("body", b""))

        try:
            await self({**request.scope, _CALL: call}, _receive(request), send)
        finally:
            await call.end()
        headers = list(start["headers"]) if start is not None else []
        status = first(headers, cache_status.NAME)
        if call.refusal is not None:
            raise call.refusal
        if call.unstored is not None:
            if status is not None:
                call.unstored.raw_headers.append((cache_status.NAME, status))
            return call.unstored
        if start is None:  # a warm-up that turned out to be of another tenant
            return Response(status_code=403)
        response = Response(status_code=start["status"])
        response.body = b"".join(body)
        response.raw_headers = [*headers, *set_before]
        if isinstance(call.result, Response):
            response.background = call.result.background
        return response

    async def _endpoint(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Compute and serialise: the app that the cache stands before."""
        call: _Call = scope[_CALL]
        call.task = asyncio.current_task()
        try:
            call.result = await call.compute(**call.arguments)
        except HTTPException as refusal:  # an answer, but FastAPI's to give: dependencies must see it raised
            call.refusal = refusal
            await _send_unstorable(send, refusal.status_code)
            return
        response = call.result
        if not isinstance(response, Response):
            response = await self._serialiser(scope)(Request(scope, receive))
        if not isinstance(getattr(response, "body", None), bytes | memoryview):
            call.unstored = response
            await _send_unstorable(send, response.status_code)
            return
        later, response.background = response.background, None  # for after the answer, not before it
        await response(scope, receive, send)
        response.background = later

    def _serialiser(self, scope: Scope) -> Callable[[Request], Awaitable[Response]]:
        """Return what makes a response of an endpoint's result: FastAPI itself, by a route without dependencies."""
        route = scope["route"]
        included = scope.get("fastapi", {}).get("effective_route_context")  # FastAPI ≥ 0.137: an included router's
        if included is not None and included.original_route is route:
            route = included
        kept = self._serialisers.get(id(route))
        if kept is None:
            handler = APIRoute(
                "/",
                _result,
                response_model=route.response_model,
                status_code=route.status_code,
                response_model_include=route.response_model_include,
                response_model_exclude=route.response_model_exclude,
                response_model_by_alias=route.response_model_by_alias,
                response_model_exclude_unset=route.response_model_exclude_unset,
                response_model_exclude_defaults=route.response_model_exclude_defaults,
                response_model_exclude_none=route.response_model_exclude_none,
                response_class=route.response_class,
            ).get_route_handler()
            kept = self._serialisers[id(route)] = (route, handler)
        return kept[1]


async def _result(request: Request, response: Response) -> Any:
    call: _Call = request.scope[_CALL]
    given = call.exchange.response
    response.raw_headers.extend(given.raw_headers)
    if given.status_code:  # FastAPI's is None until somebody sets it
        response.status_code = given.status_code
    return call.result


async def _send_unstorable(send: Send, status: int) -> None:
    """Tell the cache of an answer that goes another way: of a path-send there is nothing to store."""
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.pathsend"})


def _routes(routes: Iterable[Any]) -> Iterator[Any]:
    """Give routes, and those of included routers, which FastAPI ≥ 0.137 keeps apart."""
    for route in routes:
        included = getattr(route, "effective_candidates", None)
        if included is None:
            yield route
        else:
            yield from _routes(included())


def _receive(request: Request) -> Receive:
    """Give the body again, which FastAPI has read; one that is gone (a form) cannot be keyed."""
    asked = False

    async def receive() -> Message:
        nonlocal asked
        if asked:
            return await request.receive()
        asked = True
        try:
            return {"type": "http.request", "body": await request.body(), "more_body": False}
        except RuntimeError:
            return {"type": "http.disconnect"}

    return receive


def _resolver(identify: Identify, known: Collection[str], where: str) -> Resolver:
    if isinstance(identify, str):
        path = tenants.scope(identify)
        if identify.partition(".")[0] not in known:
            raise ConfigurationError(f"{where}: the endpoint has no parameter {identify.partition('.')[0]!a}")
        return lambda scope: path(scope[_CALL].arguments)
    wanted = tuple(inspect.signature(identify).parameters)
    for name in wanted:
        if name not in known and name not in ("request", "scope"):
            raise ConfigurationError(f"{where}: the endpoint has no parameter {name!a}")

    def resolve(scope: Scope) -> str | Awaitable[str | None] | None:
        call: _Call = scope[_CALL]
        request = call.exchange.request
        arguments = {"request": request, "scope": request.scope, **call.arguments}
        return identify(**{name: arguments[name] for name in wanted})

    return resolve


def _varying(policy: Policy, endpoint: Callable[..., Any]) -> Policy:
    """Add the request fields that the endpoint declares to read to those that are part of the key."""
    declared = {*policy.vary, *_declared(endpoint)}
    return replace(policy, vary=tuple(declared))


def _declared(endpoint: Callable[..., Any]) -> Iterator[str]:
    try:
        signature = inspect.signature(endpoint, eval_str=True)
    except NameError:  # a name for type checkers only; FastAPI cannot read such a parameter either
        signature = inspect.signature(endpoint)
    for name, parameter in signature.parameters.items():
        kind, *extra = get_args(parameter.annotation) if get_origin(parameter.annotation) is Annotated else (None,)
        for source in (*extra, parameter.default):
            if isinstance(source, Cookie):
                yield "cookie"
            elif isinstance(source, Header):
                kind = kind if kind is not None else parameter.annotation
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    fields = [field.alias or each for each, field in kind.model_fields.items()]
                else:
                    fields = [source.alias or name]
                yield from (each.replace("_", "-") if source.convert_underscores else each for each in fields)
