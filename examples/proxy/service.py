"""A stand-in for a trace store: it answers searches slowly, for the tenant that `X-Scope-OrgID` names.

uvicorn service:app --port 3200
"""

import asyncio
import itertools

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

_calls = itertools.count(1)


async def search(request: Request) -> Response:
    """Search for half a second."""
    await asyncio.sleep(0.5)
    tenant = request.headers.get("x-scope-orgid", "")
    service = request.query_params.get("service", "")
    return JSONResponse({"tenant": tenant, "service": service, "traces": [], "call": next(_calls)})


app = Starlette(routes=[Route("/api/search", search)])
