"""The conformance app on Quart; it cannot mount ASGI apps, so OTLP and admin endpoints stand beside it."""

from collections.abc import AsyncGenerator

from quart import Blueprint, Quart, Response, abort, jsonify, request, websocket

from nexcache import CacheMiddleware
from tests.frameworks.apps import shared


def run_of() -> str:
    return request.args.get("run", "")


api = Blueprint("api", __name__)


@api.get("/dashboard")
async def dashboard() -> Response:
    response = jsonify(shared.compute(run_of()))
    for name, value in shared.PARTS:
        response.headers.add(name, value)
    return response


@api.post("/dashboard")
async def posted() -> Response:
    return jsonify(shared.compute(run_of()) | {"body": await request.get_data(as_text=True)})


@api.get("/services/<service>")
async def service(service: str) -> Response:
    return jsonify(shared.compute(service))


@api.get("/cookies")
async def cookies() -> Response:
    response = jsonify(shared.compute(run_of()))
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@api.get("/stream")
async def stream() -> Response:
    return Response(shared.stream(run_of()), content_type="text/plain")


@api.get("/endless")
async def endless() -> Response:
    return Response(shared.endless(run_of()), content_type="text/plain")


@api.get("/fail")
async def fail() -> Response:
    shared.compute(run_of())
    raise LookupError("as the test wants it")


@api.get("/report")
async def report() -> Response:
    if not shared.is_known(request.headers.get("authorization")):
        abort(401)
    return jsonify(shared.compute(run_of()))


quart = Quart(__name__)
quart.register_blueprint(api, url_prefix="/api", name="cached")
quart.register_blueprint(api, url_prefix="/bare", name="bare")


@quart.while_serving
async def lifespan() -> AsyncGenerator[None, None]:
    async with shared.lifespan(quart):
        yield


@quart.get("/state")
async def state() -> Response:
    return jsonify(shared.state_of(run_of()))


@quart.post("/gate")
async def gate() -> Response:
    shared.runs[run_of()].gate.set()
    return jsonify({})


@quart.post("/invalidate")
async def invalidate() -> Response:
    return jsonify(await shared.invalidate(request.args["tenant"]))


@quart.websocket("/ws")
async def echo() -> None:
    await websocket.accept()
    await websocket.send(f"echo {await websocket.receive()!s}")


cached = CacheMiddleware(
    quart,  # type: ignore[arg-type] # Quart's names for the same ASGI
    cache=shared.cache,
    tenant=shared.keys,
    principal=shared.principal,
    policies=[*shared.POLICIES, shared.REPORT],
)
app = shared.beside(cached, {"/v1": shared.traces, "/cache": shared.admin})
