"""Batches of spans in both encodings of OTLP, and a cache that records what it is asked to invalidate."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache.asgi import Headers
from nexcache.ingest.spans import Span
from nexcache.invalidation.apply import Invalidation
from nexcache.invalidation.targets import Targets
from nexcache.refresh import Target
from nexcache.telemetry.counts import Counts
from nexcache.telemetry.events import Emitter, Event, HookFailed, Ingested, Reached, RuleDoubtful
from nexcache.telemetry.names import Trigger

Json: TypeAlias = dict[str, Any]

TRACE_ID = "5b8efff798038103d269b633813fc60c"
SPAN_ID = "eee19b7ec3c1b174"
START = 1_544_712_660_000_000_000


def attribute(key: str, value: object) -> Json:
    match value:
        case bool():
            return {"key": key, "value": {"boolValue": value}}
        case int():
            return {"key": key, "value": {"intValue": str(value)}}
        case float():
            return {"key": key, "value": {"doubleValue": value}}
        case list():
            values = [attribute("", each)["value"] for each in value]
            return {"key": key, "value": {"arrayValue": {"values": values}}}
        case _:
            return {"key": key, "value": {"stringValue": value}}


def json_batch(
    *services: str, attributes: Mapping[str, object] | None = None, scope: str = "shop", spans: int = 1
) -> Json:
    """Give each service a ResourceSpans with some spans."""
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": [attribute("service.name", service)]},
                "scopeSpans": [
                    {
                        "scope": {"name": scope},
                        "spans": [
                            {
                                "traceId": TRACE_ID,
                                "spanId": SPAN_ID,
                                "name": "GET /cart",
                                "kind": 2,
                                "startTimeUnixNano": str(START + index),
                                "endTimeUnixNano": str(START + index + 1_000),
                                "attributes": [attribute(*each) for each in (attributes or {}).items()],
                                "status": {"code": 1},
                            }
                            for index in range(spans)
                        ],
                    }
                ],
            }
            for service in services
        ]
    }


def protobuf_batch(
    *services: str, attributes: Mapping[str, str] | None = None, scope: str = "shop", spans: int = 1
) -> ExportTraceServiceRequest:
    """Build the same batch as `json_batch`, without its help."""
    request = ExportTraceServiceRequest()
    for service in services:
        resource_spans = request.resource_spans.add()
        pair = resource_spans.resource.attributes.add(key="service.name")
        pair.value.string_value = service
        scope_spans = resource_spans.scope_spans.add()
        scope_spans.scope.name = scope
        for index in range(spans):
            span = scope_spans.spans.add(
                trace_id=bytes.fromhex(TRACE_ID),
                span_id=bytes.fromhex(SPAN_ID),
                name="GET /cart",
                kind=2,
                start_time_unix_nano=START + index,
                end_time_unix_nano=START + index + 1_000,
            )
            span.status.code = 1
            for key, value in (attributes or {}).items():
                span.attributes.add(key=key).value.string_value = value
    return request


def span(
    attributes: Mapping[str, object] | None = None,
    resource: Mapping[str, object] | None = None,
    *,
    name: str = "GET /cart",
    scope: str = "shop",
    kind: int = 2,
    status: int = 0,
) -> Span:
    return Span(name, attributes or {}, resource or {}, scope, {}, kind, status, START, START + 1_000)


class RecordingCache:
    """Records invalidations and events in one sequence, in the order in which they came."""

    def __init__(self, sequence: list[object] | None = None) -> None:
        self.sequence: list[object] = [] if sequence is None else sequence
        self.invalidated: list[tuple[str, Targets, Trigger]] = []
        self.events: list[Event] = []
        self.emitter = Emitter()
        self.emitter.subscribe(self.events.append, Ingested, HookFailed, RuleDoubtful)
        self.reached: list[Event] = []
        self.emitter.subscribe(self.reached.append, Reached)
        self.counts = Counts()
        self.queued = False
        self.links: list[Sequence[object]] = []
        self.watched = False
        self.requests: list[tuple[str, Target]] = []
        self.refilled: list[tuple[str, str, Headers]] = []

    async def invalidate_targets(
        self, tenant: str, targets: Targets, *, trigger: Trigger, soft: bool = False, links: Sequence[object] = ()
    ) -> Invalidation:
        self.links.append(links)
        self.sequence.append("invalidated")
        self.invalidated.append((tenant, targets, trigger))
        names: Sequence[str] = (*sorted(targets.operations), *(f"tag:{tag}" for tag in sorted(targets.tags)))
        return Invalidation(not self.queued, self.queued, tuple(names), 0.0)

    def attach(self, part: object) -> None:
        self.attached = part

    def watch_hottest(self) -> None:
        self.watched = True

    def hottest(self, tenant: str, operations: Collection[str] | None, most: int) -> Sequence[tuple[str, Target]]:
        return [each for each in self.requests if operations is None or each[0] in operations][:most]

    async def refill(self, tenant: str, operation: str, target: Target, headers: Headers) -> bool:
        self.refilled.append((tenant, operation, headers))
        return True
