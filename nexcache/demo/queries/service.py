"""The list of services, and the details of one. The details come from the spans of that service alone."""

from sqlite3 import Connection
from typing import Final

from nexcache.demo.queries.question import Answer, Question, answered, milliseconds, share

_POINTS: Final = 24
"""How many points the history of an endpoint has."""

_LIST: Final = """
WITH placed AS (
    SELECT service, operation, duration_us, failed,
           ROW_NUMBER() OVER (PARTITION BY service, operation ORDER BY duration_us) AS place,
           COUNT(*) OVER (PARTITION BY service, operation) AS total
    FROM spans WHERE tenant = :tenant AND start_us >= :since
)
SELECT service, operation, total AS calls, SUM(failed) AS failed, SUM(duration_us) AS busy,
       MIN(CASE WHEN place * 100 >= total * 95 THEN duration_us END) AS p95
FROM placed GROUP BY service, operation ORDER BY service, busy DESC
"""
# An entry is a span whose parent is not of this service: what others asked of it.
_ENDPOINTS: Final = """
WITH entries AS (
    SELECT span.operation, span.duration_us, span.failed,
           ROW_NUMBER() OVER (PARTITION BY span.operation ORDER BY span.duration_us) AS place,
           COUNT(*) OVER (PARTITION BY span.operation) AS total
    FROM spans AS span
    LEFT JOIN spans AS parent
      ON parent.tenant = span.tenant AND parent.trace_id = span.trace_id
     AND parent.span_id = span.parent_id AND parent.service = span.service
    WHERE span.tenant = :tenant AND span.service = :service AND span.start_us >= :since
      AND parent.span_id IS NULL
)
SELECT operation, total AS calls, SUM(failed) AS failed, SUM(duration_us) AS busy,
       MIN(CASE WHEN place * 100 >= total * 50 THEN duration_us END) AS p50,
       MIN(CASE WHEN place * 100 >= total * 95 THEN duration_us END) AS p95,
       MIN(CASE WHEN place * 100 >= total * 99 THEN duration_us END) AS p99
FROM entries GROUP BY operation ORDER BY busy DESC, operation
"""
_HISTORY: Final = """
WITH entries AS (
    SELECT span.operation, (span.start_us - :since) / :step AS bucket, span.duration_us,
           ROW_NUMBER() OVER (
               PARTITION BY span.operation, (span.start_us - :since) / :step ORDER BY span.duration_us) AS place,
           COUNT(*) OVER (PARTITION BY span.operation, (span.start_us - :since) / :step) AS total
    FROM spans AS span
    LEFT JOIN spans AS parent
      ON parent.tenant = span.tenant AND parent.trace_id = span.trace_id
     AND parent.span_id = span.parent_id AND parent.service = span.service
    WHERE span.tenant = :tenant AND span.service = :service AND span.start_us >= :since
      AND parent.span_id IS NULL
)
SELECT operation, bucket, total AS calls,
       MIN(CASE WHEN place * 100 >= total * 95 THEN duration_us END) AS p95
FROM entries GROUP BY operation, bucket ORDER BY operation, bucket
"""
_INTERNAL: Final = """
SELECT parent.operation AS endpoint, span.operation, COUNT(*) AS calls, SUM(span.failed) AS failed,
       SUM(span.duration_us) AS busy
FROM spans AS span
JOIN spans AS parent
  ON parent.tenant = span.tenant AND parent.trace_id = span.trace_id
 AND parent.span_id = span.parent_id AND parent.service = span.service
WHERE span.tenant = :tenant AND span.service = :service AND span.start_us >= :since
GROUP BY parent.operation, span.operation ORDER BY busy DESC, endpoint
"""
_SLOWEST: Final = """
SELECT trace_id, operation, start_us, duration_us FROM spans
WHERE tenant = :tenant AND service = :service AND start_us >= :since ORDER BY duration_us DESC LIMIT 5
"""


def service_list(connection: Connection, question: Question) -> Answer:
    """Answer with every service and its operations, those first that take the most time (durations in ms)."""
    rows = connection.execute(_LIST, question.parameters).fetchall()
    services: dict[str, list[Answer]] = {}
    for row in rows:
        services.setdefault(row["service"], []).append(
            {
                "operation": row["operation"],
                "calls": row["calls"],
                "failure_rate": share(row["failed"], row["calls"]),
                "busy_ms": milliseconds(row["busy"]),
                "p95_ms": milliseconds(row["p95"]),
            }
        )
    return answered(
        connection,
        question,
        services=[{"service": name, "operations": operations} for name, operations in services.items()],
    )


def service_details(connection: Connection, question: Question) -> Answer:
    """Answer with a service's endpoints and their history, what they do inside, and its slowest spans (in ms)."""
    step = question.window // _POINTS
    parameters = question.parameters | {"step": step * 1_000_000}
    endpoints = connection.execute(_ENDPOINTS, parameters).fetchall()
    history: dict[str, list[Answer]] = {}
    for row in connection.execute(_HISTORY, parameters):
        history.setdefault(row["operation"], []).append(
            {"at_s": row["bucket"] * step, "calls": row["calls"], "p95_ms": milliseconds(row["p95"])}
        )
    internal = connection.execute(_INTERNAL, parameters).fetchall()
    slowest = connection.execute(_SLOWEST, parameters).fetchall()
    busy = {row["operation"]: row["busy"] for row in endpoints}
    return answered(
        connection,
        question,
        service=question.service,
        endpoints=[
            {
                "operation": row["operation"],
                "calls": row["calls"],
                "failure_rate": share(row["failed"], row["calls"]),
                "p50_ms": milliseconds(row["p50"]),
                "p95_ms": milliseconds(row["p95"]),
                "p99_ms": milliseconds(row["p99"]),
                "history": history[row["operation"]],
            }
            for row in endpoints
        ],
        internal=[
            {
                "endpoint": row["endpoint"],
                "operation": row["operation"],
                "calls": row["calls"],
                "failure_rate": share(row["failed"], row["calls"]),
                "share_of_time": share(row["busy"], busy.get(row["endpoint"], 0)),
            }
            for row in internal
        ],
        slowest=[
            {
                "trace_id": row["trace_id"].hex(),
                "operation": row["operation"],
                "at_us": row["start_us"],
                "ms": milliseconds(row["duration_us"]),
            }
            for row in slowest
        ],
    )
