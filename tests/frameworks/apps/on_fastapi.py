"""The conformance app on FastAPI; its report authenticates by a dependency, behind which `cached_route` looks up."""

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.responses import StreamingResponse

from nexcache import CacheMiddleware
from nexcache.fastapi import cached_route
from tests.frameworks.apps import shared


def user(request: Request) -> str:
    authorization = request.headers.get("authorization")
    if authorization is None or not shared.is_known(authorization):
        raise HTTPException(401, "who are you?")
    return authorization


router = APIRouter()


@router.api_route("/dashboard", methods=["GET", "HEAD"])
async def dashboard(response: Response, run: str = "") -> dict[str, int]:
    for name, value in shared.PARTS:
        response.headers.append(name, value)
    return shared.compute(run)


@router.post("/dashboard")
async def posted(request: Request, run: str = "") -> dict[str, int | str]:
    return shared.compute(run) | {"body": (await request.body()).decode()}


@router.get("/services/{service}")
async def service(service: str) -> dict[str, int]:
    return shared.compute(service)


@router.get("/cookies")
async def cookies(response: Response, run: str = "") -> dict[str, int]:
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return shared.compute(run)


@router.get("/stream")
async def stream(run: str = "") -> Response:
    return StreamingResponse(shared.stream(run), media_type="text/plain")


@router.get("/endless")
async def endless(run: str = "") -> Response:
    return StreamingResponse(shared.endless(run), media_type="text/plain")


@router.get("/fail")
async def fail(run: str = "") -> None:
    shared.compute(run)
    raise LookupError("as the test wants it")


@router.get("/report")
@cached_route(shared.cache, op="report", ttl="2m", tenant=shared.keys, principal="user")
async def report(user: Annotated[str, Depends(user)], run: str = "") -> dict[str, int]:
    return shared.compute(run)


app = FastAPI(lifespan=shared.lifespan)
app.include_router(router, prefix="/api")
app.include_router(router, prefix="/bare")
app.mount("/v1", shared.traces)
app.mount("/cache", shared.admin)
app.add_middleware(
    CacheMiddleware,
    cache=shared.cache,
    tenant=shared.keys,
    principal=shared.principal,
    policies=shared.POLICIES,
)


@app.get("/state")
async def state(run: str = "") -> dict[str, object]:
    return shared.state_of(run)


@app.post("/gate")
async def gate(run: str) -> None:
    shared.runs[run].gate.set()


@app.post("/invalidate")
async def invalidate(tenant: str) -> dict[str, object]:
    return await shared.invalidate(tenant)


@app.websocket("/ws")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("echo " + await websocket.receive_text())
    await websocket.close()
