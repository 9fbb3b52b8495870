"""The table of the admin endpoints: what the app answers, and what `GET /openapi.json` says of it, is one thing.

A parameter's schema is what the app checks a value against, too.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

_NAME: Final = (
    "^[ -~\u00a1-\u00ac\u00ae-\u0377\u0400-\u0482\u048a-\u052f"
    "\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3]{1,60}$"
)
"""Names whose every character is printable, in any Unicode version, and that stay below every limit of bytes."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a path or a query."""

    name: str
    description: str
    schema: Mapping[str, Any]
    required: bool = False
    example: Any = None
    strict: bool = True
    """What the schema does not permit is refused; otherwise the schema names what is always accepted."""

    def accepts(self, value: str) -> bool:
        """Whether a value is one of those that the schema permits."""
        schema = self.schema
        if not self.strict:
            return True
        if "enum" in schema:
            return value in schema["enum"]
        if schema["type"] == "integer":
            return re.fullmatch("[0-9]{1,6}", value) is not None and (
                schema["minimum"] <= int(value) <= schema["maximum"]
            )
        return _pattern(schema["pattern"]).fullmatch(value) is not None


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text.removeprefix("^").removesuffix("$"))


TENANT: Final = Parameter(
    "tenant",
    "The tenant, for operators. Anybody else may name their own only.",
    {"type": "string", "pattern": _NAME},
    example="acme",
    strict=False,
)
DRY_RUN: Final = Parameter(
    "dry_run",
    "Say what would be reached, and change nothing.",
    {"type": "string", "enum": ["1", "0", "true", "false"]},
    example="1",
)
SOFT: Final = Parameter(
    "soft",
    "Let what a policy permits be served stale while it is computed anew.",
    {"type": "string", "enum": ["1", "0", "true", "false"]},
    example="1",
)
LIMIT: Final = Parameter(
    "limit", "How many at most.", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, example=100
)
CURSOR: Final = Parameter(
    "cursor",
    "What the page before gave as `next`.",
    {"type": "string", "pattern": "^(?:[0-9a-f]{2}){1,300}$"},
    example="6f76657276696577",
)
USAGE: Final = Parameter(
    "usage",
    "Count the entries and their bytes, too: a bounded look at the store.",
    {"type": "string", "enum": ["1", "0", "true", "false"], "default": "1"},
    example="0",
)
SINCE: Final = Parameter(
    "since",
    "Only slots that begin then or later: seconds since the epoch.",
    {"type": "string", "pattern": "^[0-9]{1,12}$"},
    example="1767225600",
)
ANSWERED: Final = Parameter(
    "answered",
    "At most so many `answered` events a second; 0: none.",
    {"type": "integer", "minimum": 0, "maximum": 1000},
    example=10,
)
PATH: Final = Parameter(
    "path",
    "The request's path with its query, as a client sends it, percent-encoded.",
    {"type": "string", "pattern": '^/[!"$-~]{0,4000}$'},
    required=True,
    example="/api/v1/dashboard?range=1h",
)
METHOD: Final = Parameter(
    "method", "The request's method.", {"type": "string", "enum": ["GET", "HEAD", "POST", "QUERY"]}, example="GET"
)
PRINCIPAL: Final = Parameter(
    "principal",
    "Whom the request acts for, for operators; otherwise it is the caller.",
    {"type": "string", "pattern": _NAME},
    example="viewer",
    strict=False,
)
OPERATION: Final = Parameter(
    "operation",
    "An operation's name; where it says so, a glob (`*` any characters, `?` one).",
    {"type": "string", "pattern": _NAME},
    required=True,
    example="dashboard_*",
    strict=False,
)
TAG: Final = Parameter(
    "tag", "A tag.", {"type": "string", "pattern": _NAME}, required=True, example="service:checkout", strict=False
)
NAMED: Final = Parameter("tenant", "The tenant.", TENANT.schema, required=True, example="acme", strict=False)
"""The tenant as a part of the path."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint: `path` in the notation of OpenAPI."""

    id: str
    """Its operation id, and the word of its audit."""
    method: str
    path: str
    summary: str
    query: Sequence[Parameter] = ()
    answers: Mapping[int, str] = field(default_factory=lambda: {200: "Document"})
    """Schemas by status; errors are the same everywhere."""
    media: Sequence[str] = ("application/json",)
    operators: bool = False
    """For operators only."""
    changes: bool = False
    """It changes something: audited, and refused to pages of another site."""

    @property
    def segments(self) -> Sequence[str]:
        """The path's segments."""
        return self.path.strip("/").split("/")

    @property
    def parameters(self) -> Iterator[Parameter]:
        """The parameters of the path."""
        known = {parameter.name: parameter for parameter in (OPERATION, TAG, NAMED)}
        return (known[name] for name in re.findall(r"\{(\w+)\}", self.path))

    def match(self, segments: Sequence[str]) -> dict[str, str] | None:
        """Return the values of the path's parameters, or None where the path is another."""
        own = self.segments
        if len(own) != len(segments):
            return None
        found = {}
        for mine, given in zip(own, segments, strict=True):
            if mine.startswith("{"):
                found[mine.strip("{}")] = given
            elif mine != given:
                return None
        return found


_DONE: Final = {200: "Invalidation", 202: "Invalidation"}
_SWITCHED: Final = {200: "Switched", 202: "Switched"}
ENDPOINTS: Final = (
    Endpoint("health", "GET", "/health", "How the cache and its store are.", (), {200: "Health"}),
    Endpoint("whoami", "GET", "/whoami", "Who is known by these credentials.", (), {200: "Caller"}),
    Endpoint(
        "stats", "GET", "/stats", "A tenant's statistics, of all processes.", (TENANT, USAGE), {200: "Statistics"}
    ),
    Endpoint(
        "trends",
        "GET",
        "/trends",
        "What happened to a tenant's requests in the last hour, in slots of half a minute.",
        (TENANT, SINCE),
        {200: "Trends"},
    ),
    Endpoint(
        "memory",
        "GET",
        "/memory",
        "What this process holds in its memory, of all tenants together.",
        (),
        {200: "Memory"},
        operators=True,
    ),
    Endpoint(
        "operations",
        "GET",
        "/operations",
        "The operations that are known for a tenant.",
        (TENANT, LIMIT, CURSOR),
        {200: "Operations"},
    ),
    Endpoint(
        "entries",
        "GET",
        "/entries",
        "What a tenant has stored, as far as a bounded look tells.",
        (TENANT, LIMIT, CURSOR),
        {200: "Entries"},
    ),
    Endpoint(
        "tags",
        "GET",
        "/tags",
        "The tags of what a tenant has stored, as far as a bounded look tells.",
        (TENANT, LIMIT, CURSOR),
        {200: "Tags"},
    ),
    Endpoint(
        "tenants", "GET", "/tenants", "The tenants that are known.", (LIMIT, CURSOR), {200: "Tenants"}, operators=True
    ),
    Endpoint(
        "forget",
        "DELETE",
        "/tenants/{tenant}",
        "Remove everything that there is of a tenant, its encryption key included, for good and on all nodes.",
        (),
        {200: "Forgotten"},
        operators=True,
        changes=True,
    ),
    Endpoint(
        "alerts", "GET", "/alerts", "The alerts and their state in this process.", (), {200: "Alerts"}, operators=True
    ),
    Endpoint(
        "explain",
        "GET",
        "/explain",
        "Why a request is, or is not, answered from the cache, and what would invalidate its answer.",
        (PATH, METHOD, PRINCIPAL, TENANT),
        {200: "Explanation"},
    ),
    Endpoint(
        "events",
        "GET",
        "/events",
        "What happens, as server-sent events, until the client or the cache leaves (five minutes at most).",
        (TENANT, ANSWERED),
        {200: "Text"},
        ("text/event-stream",),
    ),
    Endpoint(
        "metrics",
        "GET",
        "/metrics",
        "This process's metrics of a tenant as Prometheus reads them; an operator who names none gets the sums.",
        (TENANT,),
        {200: "Text"},
        ("text/plain",),
    ),
    Endpoint("openapi", "GET", "/openapi.json", "This document.", (), {200: "Document"}),
    Endpoint(
        "invalidate_all",
        "DELETE",
        "/invalidate",
        "Invalidate all of a tenant.",
        (TENANT, DRY_RUN, SOFT),
        _DONE,
        changes=True,
    ),
    Endpoint(
        "invalidate",
        "DELETE",
        "/invalidate/{operation}",
        "Invalidate operations by name or glob; 404 where nothing known matches.",
        (TENANT, DRY_RUN, SOFT),
        _DONE,
        changes=True,
    ),
    Endpoint(
        "invalidate_tag",
        "DELETE",
        "/invalidate/tags/{tag}",
        "Invalidate everything that carries a tag.",
        (TENANT, DRY_RUN, SOFT),
        _DONE,
        changes=True,
    ),
    Endpoint(
        "warm",
        "POST",
        "/warm/{operation}",
        "Compute an operation's recent requests again, with the caller's permissions. "
        "With `Accept: application/x-ndjson` or `text/event-stream` the progress comes line by line.",
        (TENANT,),
        {200: "Warmed"},
        ("application/json", "application/x-ndjson", "text/event-stream"),
        changes=True,
    ),
    Endpoint(
        "disable",
        "POST",
        "/operations/{operation}/disable",
        "Send a tenant's requests of an operation to the app, on all nodes; an operator who names none, everybody's.",
        (TENANT,),
        _SWITCHED,
        changes=True,
    ),
    Endpoint(
        "enable",
        "DELETE",
        "/operations/{operation}/disable",
        "Undo it.",
        (TENANT,),
        _SWITCHED,
        changes=True,
    ),
    Endpoint(
        "enable_again",
        "POST",
        "/operations/{operation}/enable",
        "Undo it.",
        (TENANT,),
        _SWITCHED,
        changes=True,
    ),
)
