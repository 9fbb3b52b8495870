"""The conformance app on Litestar."""

from typing import Any

from litestar import (
    HttpMethod,
    Litestar,
    MediaType,
    Request,
    Response,
    Router,
    WebSocket,
    asgi,
    get,
    post,
    route,
    websocket,
)
from litestar.exceptions import NotAuthorizedException
from litestar.middleware import DefineMiddleware
from litestar.params import FromPath, FromQuery
from litestar.response import Stream
from litestar.response.base import ASGIResponse
from litestar.serialization import encode_json
from litestar.types import Receive, Scope, Send

from nexcache import CacheMiddleware
from tests.frameworks.apps import shared


@route("/dashboard", http_method=[HttpMethod.GET, HttpMethod.HEAD])
async def dashboard(request: Request[Any, Any, Any], run: FromQuery[str] = "") -> ASGIResponse:
    # Litestar's Response keeps its header fields in a dict; repeated ones take the class beneath it
    return ASGIResponse(
        body=encode_json(shared.compute(run)),
        media_type=MediaType.JSON,
        headers=shared.PARTS,
        is_head_response=request.method == "HEAD",
    )


@post("/dashboard", status_code=200)
async def posted(request: Request[Any, Any, Any], run: FromQuery[str] = "") -> dict[str, int | str]:
    return shared.compute(run) | {"body": (await request.body()).decode()}


@get("/services/{service:str}")
async def service(service: FromPath[str]) -> dict[str, int]:
    return shared.compute(service)


@get("/cookies")
async def cookies(run: FromQuery[str] = "") -> Response[dict[str, int]]:
    response = Response(shared.compute(run))
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@get("/stream", media_type=MediaType.TEXT)
async def stream(run: FromQuery[str] = "") -> Stream:
    return Stream(shared.stream(run))


@get("/endless", media_type=MediaType.TEXT)
async def endless(run: FromQuery[str] = "") -> Stream:
    return Stream(shared.endless(run))


@get("/fail")
async def fail(run: FromQuery[str] = "") -> None:
    shared.compute(run)
    raise LookupError("as the test wants it")


@get("/report")
async def report(request: Request[Any, Any, Any], run: FromQuery[str] = "") -> dict[str, int]:
    if not shared.is_known(request.headers.get("authorization")):
        raise NotAuthorizedException("who are you?")
    return shared.compute(run)


@get("/state")
async def state(run: FromQuery[str] = "") -> dict[str, object]:
    return shared.state_of(run)


@post("/gate")
async def gate(run: FromQuery[str]) -> None:
    shared.runs[run].gate.set()


@post("/invalidate", status_code=200)
async def invalidate(tenant: FromQuery[str]) -> dict[str, object]:
    return await shared.invalidate(tenant)


@websocket("/ws")
async def echo(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    await socket.send_text("echo " + await socket.receive_text())
    await socket.close()


@asgi("/v1", is_mount=True, copy_scope=True)
async def traces(scope: Scope, receive: Receive, send: Send) -> None:
    await shared.traces(scope, receive, send)  # type: ignore[arg-type] # Litestar's names for the same ASGI


@asgi("/cache", is_mount=True, copy_scope=True)
async def admin(scope: Scope, receive: Receive, send: Send) -> None:
    await shared.admin(scope, receive, send)  # type: ignore[arg-type] # Litestar's names for the same ASGI


handlers = [dashboard, posted, service, cookies, stream, endless, fail, report]
app = Litestar(
    [
        Router("/api", route_handlers=handlers),
        Router("/bare", route_handlers=handlers),
        state,
        gate,
        invalidate,
        echo,
        traces,
        admin,
    ],
    lifespan=[shared.lifespan],
    middleware=[
        DefineMiddleware(
            CacheMiddleware,  # type: ignore[arg-type] # Litestar's names for the same ASGI
            cache=shared.cache,
            tenant=shared.keys,
            principal=shared.principal,
            policies=[*shared.POLICIES, shared.REPORT],
        )
    ],
)
