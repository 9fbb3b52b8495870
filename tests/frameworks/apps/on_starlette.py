"""The conformance app on Starlette."""

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from nexcache import CacheMiddleware
from tests.frameworks.apps import shared


def run_of(request: Request) -> str:
    return request.query_params.get("run", "")


async def dashboard(request: Request) -> Response:
    response = JSONResponse(shared.compute(run_of(request)))
    for name, value in shared.PARTS:
        response.headers.append(name, value)
    return response


async def posted(request: Request) -> Response:
    return JSONResponse(shared.compute(run_of(request)) | {"body": (await request.body()).decode()})


async def service(request: Request) -> Response:
    return JSONResponse(shared.compute(request.path_params["service"]))


async def cookies(request: Request) -> Response:
    response = JSONResponse(shared.compute(run_of(request)))
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


async def stream(request: Request) -> Response:
    return StreamingResponse(shared.stream(run_of(request)), media_type="text/plain")


async def endless(request: Request) -> Response:
    return StreamingResponse(shared.endless(run_of(request)), media_type="text/plain")


async def fail(request: Request) -> Response:
    shared.compute(run_of(request))
    raise LookupError("as the test wants it")


async def report(request: Request) -> Response:
    if not shared.is_known(request.headers.get("authorization")):
        return JSONResponse({"detail": "who are you?"}, 401)
    return JSONResponse(shared.compute(run_of(request)))


async def state(request: Request) -> Response:
    return JSONResponse(shared.state_of(run_of(request)))


async def gate(request: Request) -> Response:
    shared.runs[run_of(request)].gate.set()
    return JSONResponse({})


async def invalidate(request: Request) -> Response:
    return JSONResponse(await shared.invalidate(request.query_params["tenant"]))


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("echo " + await websocket.receive_text())
    await websocket.close()


routes: list[BaseRoute] = [
    Route("/state", state),
    Route("/gate", gate, methods=["POST"]),
    Route("/invalidate", invalidate, methods=["POST"]),
    WebSocketRoute("/ws", echo),
    Mount("/v1", shared.traces),
    Mount("/cache", shared.admin),
]
for prefix in ("/api", "/bare"):
    routes += [
        Route(f"{prefix}/dashboard", dashboard),
        Route(f"{prefix}/dashboard", posted, methods=["POST"]),
        Route(f"{prefix}/services/{{service}}", service),
        Route(f"{prefix}/cookies", cookies),
        Route(f"{prefix}/stream", stream),
        Route(f"{prefix}/endless", endless),
        Route(f"{prefix}/fail", fail),
        Route(f"{prefix}/report", report),
    ]

app = Starlette(
    routes=routes,
    lifespan=shared.lifespan,
    middleware=[
        Middleware(
            CacheMiddleware,
            cache=shared.cache,
            tenant=shared.keys,
            principal=shared.principal,
            policies=[*shared.POLICIES, shared.REPORT],
        )
    ],
)
