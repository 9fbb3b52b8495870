"""The back end itself, without a cache: it checks the key, asks the database and answers in JSON."""

import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from nexcache.demo import queries
from nexcache.demo.database import Database
from nexcache.demo.ingest import rows
from nexcache.demo.queries import Answer, Question
from nexcache.tenants import ApiKeys

WINDOWS: Final[Mapping[str, int]] = {"15m": 900, "1h": 3600, "3h": 10800, "6h": 21600}
"""What may be asked for, in seconds."""

ALL: Final = "all"
"""Asked for in place of a name: every service, every journey."""

_STEPS: Final = 60
"""How many points a metric has by default."""


def _now_us() -> int:
    return time.time_ns() // 1000


class Backend:
    """An observability back end over one SQLite file; `tenant` says whose data a request may read.

    `routes` are its pages, `store_spans` is the sink for OTLP. `now_us` is the clock, in microseconds.
    """

    def __init__(self, path: Path, tenant: ApiKeys, now_us: Callable[[], int] = _now_us) -> None:
        self.database: Database = Database(path)
        self._tenant = tenant
        self._now_us = now_us
        self.routes: list[Route] = [
            Route("/api/v1/dashboard", self.dashboard),
            Route("/api/v1/architecture", self.architecture),
            Route("/api/v1/services", self.services),
            Route("/api/v1/services/{service}", self.service),
            Route("/api/v1/metrics", self.metrics),
            Route("/api/v1/graph", self.graph),
        ]

    async def store_spans(self, tenant: str, request: ExportTraceServiceRequest) -> None:
        """Store a batch of spans; when this returns, every read that starts later sees them."""
        await self.database.store(tenant, list(rows(request)), self._now_us())

    async def dashboard(self, request: Request) -> JSONResponse:
        """Overview: visits, services, failures. `?window=15m|1h|3h|6h`."""
        return await self._answer(self._question(request, "1h"), queries.dashboard)

    async def architecture(self, request: Request) -> JSONResponse:
        """Map which service calls which. `?window=`."""
        return await self._answer(self._question(request, "1h"), queries.architecture)

    async def services(self, request: Request) -> JSONResponse:
        """List the services with their operations. `?window=`."""
        return await self._answer(self._question(request, "1h"), queries.service_list)

    async def service(self, request: Request) -> JSONResponse:
        """Details of one service. `?window=`."""
        question = self._question(request, "6h", request.path_params["service"])
        return await self._answer(question, queries.service_details)

    async def metrics(self, request: Request) -> JSONResponse:
        """Time series. `?service=NAME|all&metric=latency|throughput|failures&window=&step=SECONDS`.

        Or `?journey=NAME`, which also has the metric `own_time`: what each service spent itself.
        """
        service, journey = (request.query_params.get(name) or None for name in ("service", "journey"))
        if (service is None) is (journey is None):
            raise HTTPException(400, "either service (a name, or all) or journey")
        known = queries.METRICS if journey is None else [*queries.METRICS, queries.OWN_TIME]
        metric = _one_of("metric", request.query_params.get("metric", "latency"), known)
        if service == ALL:
            service = None
        question = self._question(request, "6h", service, journey)
        step = request.query_params.get("step", str(question.window // _STEPS))
        if not step.isdecimal() or not 1 <= int(step[:6]) <= question.window:
            raise HTTPException(400, "step: whole seconds, at most the window")
        return await self._answer(question, partial(queries.metrics, metric=metric, step=int(step[:6])))

    async def graph(self, request: Request) -> JSONResponse:
        """Analyse the calls of visits. `?journey=NAME|all&analysis=critical_path|depth|fan_out&window=`."""
        journey = request.query_params.get("journey")
        analysis = request.query_params.get("analysis", "critical_path")
        _one_of("analysis", analysis, queries.ANALYSES)
        question = self._question(request, "6h", journey=None if journey == ALL else journey)
        answer = await self._answer(question, partial(queries.graph, analysis=analysis))
        if journey is None:
            # what is kept is kept under a tag, and without the parameter there is none that a span could invalidate
            answer.headers["cache-control"] = "no-store"
        return answer

    def _question(
        self, request: Request, default_window: str, service: str | None = None, journey: str | None = None
    ) -> Question:
        tenant = self._tenant(request.scope)
        if tenant is None:
            raise HTTPException(401, "X-API-Key: a tenant's key", {"WWW-Authenticate": 'ApiKey realm="demo"'})
        window = _one_of("window", request.query_params.get("window", default_window), WINDOWS)
        return Question(tenant, WINDOWS[window], self._now_us(), service, journey)

    async def _answer(self, question: Question, query: Callable[[Connection, Question], Answer]) -> JSONResponse:
        answer = await self.database.read(lambda connection: query(connection, question))
        if question.subject is not None and not answer["seen"]:
            raise HTTPException(404, f"no spans of {question.subject!a}")
        return JSONResponse(answer)


def _one_of(name: str, value: str, allowed: Collection[str]) -> str:
    if value not in allowed:
        raise HTTPException(400, f"{name}: one of {', '.join(allowed)}")
    return value
