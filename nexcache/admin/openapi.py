"""The OpenAPI 3.1 document of the admin endpoints, made from their table."""

from collections.abc import Mapping
from typing import Any, Final

from nexcache.admin.endpoints import ENDPOINTS, Endpoint, Parameter

_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_NUMBER: Final = {"type": "number", "minimum": 0}
_FLAG: Final = {"type": "boolean"}
_TEXTS: Final = {"type": "array", "items": _TEXT}
_OPEN: Final = {"type": "object"}


def _object(properties: Mapping[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required}


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


def _page(name: str, item: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return _object({name: {"type": "array", "items": item}, "next": _or_null(_TEXT), **more})


_LATENCY: Final = _object(dict.fromkeys(("mean", "p50", "p95", "p99"), _NUMBER))
_SAVED: Final = {"computations": _COUNT, "seconds": _NUMBER}
_FIGURES: Final = {
    **dict.fromkeys(
        ("requests", "hits", "misses", "stale", "bypasses", "errors", "coalesced", "invalidations"), _COUNT
    ),
    "hit_rate": {"type": "number", "minimum": 0, "maximum": 1},
    "shadow": _object({"checks": _COUNT, "wrong": _COUNT}),
    "latency": _object({"hit": _LATENCY, "miss": _LATENCY}),
}
_DONE: Final = _object({"acknowledged": _FLAG, "queued": _FLAG, "targets": _TEXTS, "waited_ms": _NUMBER})
_COUNTS: Final = {"type": "object", "additionalProperties": _COUNT}
_PREVIEW: Final = _object(
    {
        "dry_run": {"const": True},
        "targets": _TEXTS,
        "entries": _COUNT,
        "operations": _COUNTS,
        "tags": _COUNTS,
        "estimated": _FLAG,
    }
)
_SCHEMAS: Final = {
    "Document": _OPEN,
    "Text": _TEXT,
    "Health": _object(
        {
            "status": {"enum": ["healthy", "degraded"]},
            "mode": {"enum": ["redis", "memory", "fallback"]},
            "state": _TEXT,
            "response_time_ms": _NUMBER,
            "connections": _COUNT,
            "commands": _COUNT,
            "details": _OPEN,
        }
    ),
    "Statistics": _object(
        {
            "tenant": _TEXT,
            **_FIGURES,
            "entries": _or_null(_COUNT),
            "bytes": _or_null(_COUNT),
            "estimated": _FLAG,
            "quota": _or_null(
                _object(
                    {
                        "limit": _or_null(_COUNT),
                        "used": _or_null(_COUNT),
                        "entries": _object({"limit": _or_null(_COUNT), "used": _or_null(_COUNT)}),
                        "fills_per_second": _or_null(_COUNT),
                        "refused": _COUNT,
                    }
                )
            ),
            "saved": _object(_SAVED),
            "operations": {
                "type": "object",
                "additionalProperties": _object(
                    {
                        **_FIGURES,
                        "saved": _object(
                            {**_SAVED, "verdict": {"enum": ["pays", "seldom-hit", "cheap", "too-few"]}},
                        ),
                        "entries": _or_null(_COUNT),
                        "bytes": _or_null(_COUNT),
                    }
                ),
            },
            "since": {"type": "string", "format": "date-time"},
            "merged": _FLAG,
        }
    ),
    "Caller": _object({"tenant": _or_null(_TEXT), "operator": _FLAG, "id": _TEXT}),
    "Trends": _object(
        {
            "tenant": _TEXT,
            "merged": _FLAG,
            "slot_seconds": _COUNT,
            "now": _COUNT,
            "slots": {"type": "array", "items": _object({"at": _COUNT, **_FIGURES})},
            "minutes": _object({"5": _object(_FIGURES), "60": _object(_FIGURES)}),
        }
    ),
    "Memory": _object(dict.fromkeys(("entries", "bytes", "max_entries", "max_bytes"), _COUNT)),
    "Operations": _page("operations", _object({"name": _TEXT, "disabled": _FLAG, "requests": _COUNT, "hits": _COUNT})),
    "Entries": _page(
        "entries",
        _object(
            {
                "operation": _TEXT,
                "hash": _TEXT,
                "live": _FLAG,
                "tags": _TEXTS,
                "age": _COUNT,
                "ttl": _NUMBER,
                "status": _COUNT,
                "bytes": _COUNT,
            }
        ),
        estimated=_FLAG,
    ),
    "Tags": _page("tags", _object({"tag": _TEXT, "entries": _COUNT}), estimated=_FLAG),
    "Tenants": _page("tenants", _object({"id": _or_null(_TEXT), "name": _TEXT}), estimated=_FLAG),
    "Forgotten": _object({"tenant": _TEXT, "removed": _COUNT, "done": _FLAG}),
    "Alerts": _object(
        {
            "alerts": {
                "type": "array",
                "items": _object(
                    {
                        "alert": _TEXT,
                        "firing": _FLAG,
                        "value": {"type": ["number", "null"]},
                        "threshold": {"type": "number"},
                        "summary": _TEXT,
                    }
                ),
            }
        }
    ),
    "Explanation": _object(
        {
            "tenant": _TEXT,
            "request": _OPEN,
            "verdict": {"enum": ["no-policy", "bypass", "stored", "not-stored"]},
            "policy": _or_null(_OPEN),
            "bypass": _or_null(_TEXT),
            "key": _or_null(_OPEN),
            "tags": _TEXTS,
            "generations": {"type": "array", "items": _object({"of": _TEXT, "present": _FLAG})},
            "copies": {"type": "array", "items": _OPEN},
            "store_failed": _or_null(_TEXT),
            "not_stored": _or_null(_OPEN),
            "invalidated_by": _object({"operations": _TEXTS, "tags": _TEXTS}),
        }
    ),
    "Invalidation": {"anyOf": [_DONE, _PREVIEW]},
    "Warmed": _object({"operation": _TEXT, "requested": _COUNT, "refreshed": _COUNT, "failed": _COUNT, "ms": _NUMBER}),
    "Switched": _object(
        {
            "operation": _TEXT,
            "disabled": _FLAG,
            "tenant": _or_null(_TEXT),
            "scope": {"enum": ["process", "all-nodes"]},
        }
    ),
    "Problem": _object({"type": _TEXT, "title": _TEXT, "status": _COUNT, "detail": _TEXT}),
}
_SAYS: Final = {200: "Done.", 202: "The store is away: it holds here, and is queued for the others."}
_ERRORS: Final = {
    "400": "The request cannot be understood.",
    "401": "Nobody is known by these credentials.",
    "403": "The caller may not do that.",
    "404": "There is no such thing for this caller.",
    "405": "The endpoint takes other methods.",
    "429": "A warm-up of this tenant is under way already.",
    "503": "Too many are watching already.",
}


def openapi(version: str, servers: str) -> dict[str, Any]:
    """Describe the endpoints; `servers` is the path that they are mounted at."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "NexCache admin", "version": version},
        "servers": [{"url": servers or "/"}],
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "responses": {
                status: {
                    "description": text,
                    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
                for status, text in _ERRORS.items()
            },
            "securitySchemes": {
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
            },
        },
        "security": [{"apiKey": []}, {"bearer": []}],
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    parameters = [
        *(_parameter(parameter, "path") for parameter in endpoint.parameters),
        *(_parameter(parameter, "query") for parameter in endpoint.query),
    ]
    answers: dict[str, Any] = {
        str(status): {
            "description": _SAYS[status],
            "content": {
                kind: {"schema": {"$ref": f"#/components/schemas/{name if kind == 'application/json' else 'Text'}"}}
                for kind in endpoint.media
            },
        }
        for status, name in endpoint.answers.items()
    }
    answers |= {status: {"$ref": f"#/components/responses/{status}"} for status in _ERRORS}
    return {
        "operationId": endpoint.id,
        "summary": endpoint.summary,
        "tags": ["operators" if endpoint.operators else "tenants"],
        **({"parameters": parameters} if parameters else {}),
        "responses": answers,
    }


def _parameter(parameter: Parameter, place: str) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": place,
        "description": parameter.description,
        "required": parameter.required,
        "schema": dict(parameter.schema),
        **({"example": parameter.example} if parameter.example is not None else {}),
    }
