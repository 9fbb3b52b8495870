"""From a span to a fresh dashboard, through a server: what is acknowledged is seen by the next read."""

import asyncio

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from nexcache import CacheMiddleware, IngestHook, IngestRule, NexCache, OtlpEndpoint, Policy, tenants
from tests.wire.server import Client, serving

KEYS = tenants.api_key(keys={"acme": "k-acme", "globex": "k-globex"})


class BackEnd:
    """A small one: it counts the spans of each tenant's services."""

    def __init__(self, cache: NexCache) -> None:
        self.spans: dict[tuple[str, str], int] = {}
        self.reads = 0
        rules = [IngestRule(ops=["dashboard_*"]), IngestRule(tags=["service:{service.name}"])]
        hook = IngestHook(cache, rules=rules, min_interval=0)
        self.app = Starlette(
            routes=[
                Route("/dashboard", self.dashboard),
                Route("/services/{service}", self.service),
                Mount("/v1", OtlpEndpoint(hook, tenant=KEYS, sink=self.store)),
            ],
            middleware=[
                Middleware(
                    CacheMiddleware,
                    cache=cache,
                    tenant=KEYS,
                    principal=KEYS,
                    policies=[
                        Policy("/dashboard", op="dashboard_overview"),
                        Policy("/services/{service}", op="service", tags=["service:{service}"]),
                    ],
                )
            ],
        )

    def store(self, tenant: str, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            name = resource.resource.attributes[0].value.string_value
            number = sum(len(scope.spans) for scope in resource.scope_spans)
            self.spans[tenant, name] = self.spans.get((tenant, name), 0) + number

    async def dashboard(self, request: Request) -> Response:
        self.reads += 1
        who = KEYS(request.scope)
        return JSONResponse(sum(number for (tenant, _), number in self.spans.items() if tenant == who))

    async def service(self, request: Request) -> Response:
        self.reads += 1
        return JSONResponse(self.spans.get((str(KEYS(request.scope)), request.path_params["service"]), 0))


async def post(client: Client, key: str, service: str) -> None:
    export = ExportTraceServiceRequest()
    resource = export.resource_spans.add()
    attribute = resource.resource.attributes.add()
    attribute.key, attribute.value.string_value = "service.name", service
    span = resource.scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name = b"t" * 16, b"s" * 8, "GET /"
    fields = [("content-type", "application/x-protobuf"), ("x-api-key", key)]
    answer = await client.ask("/v1/traces", method="POST", fields=fields, body=export.SerializeToString())
    assert answer.status == 200


async def test_a_read_after_the_acknowledgement_sees_the_span(cache: NexCache, http: str) -> None:
    back_end = BackEnd(cache)
    async with serving(back_end.app, http=http, cache=cache) as client:
        for number in range(1, 6):
            await post(client, "k-acme", "cart")
            assert (await client.get("/dashboard", x_api_key="k-acme")).body == b"%d" % number
            assert (await client.get("/services/cart", x_api_key="k-acme")).body == b"%d" % number
            assert (await client.get("/dashboard", x_api_key="k-acme")).hit
            assert (await client.get("/services/cart", x_api_key="k-acme")).hit


async def test_what_the_span_could_not_have_changed_stays_a_hit(cache: NexCache, http: str) -> None:
    back_end = BackEnd(cache)
    async with serving(back_end.app, http=http, cache=cache) as client:
        for path in ("/services/cart", "/services/pay"):
            await client.get(path, x_api_key="k-acme")
        await client.get("/dashboard", x_api_key="k-globex")
        await post(client, "k-acme", "cart")
        assert not (await client.get("/services/cart", x_api_key="k-acme")).hit
        assert (await client.get("/services/pay", x_api_key="k-acme")).hit
        assert (await client.get("/dashboard", x_api_key="k-globex")).hit


async def test_no_reader_is_ever_behind_an_acknowledged_span(cache: NexCache, http: str) -> None:
    back_end = BackEnd(cache)
    acknowledged = 0
    done = False

    async def write() -> None:
        nonlocal acknowledged, done
        for number in range(1, 31):
            await post(client, "k-acme", "cart")
            acknowledged = number
        done = True

    async def read() -> int:
        reads = 0
        while not done:
            before = acknowledged
            assert int((await client.get("/dashboard", x_api_key="k-acme")).body) >= before
            reads += 1
        return reads

    async with serving(back_end.app, http=http) as client:
        writing = asyncio.create_task(write())
        reads = await asyncio.gather(*(read() for _ in range(4)))
        await writing
    assert all(reads)
