"""Metrics from spans, in time buckets: how often, how slow, how often failed, and where the time goes."""

from collections.abc import Mapping
from sqlite3 import Connection
from typing import Final

from nexcache.demo.queries.question import Answer, Question, answered, milliseconds, share

_OF: Final = "AND /* of */"
_POINTS: Final = """
WITH placed AS (
    SELECT (start_us - :since) / :step AS bucket, duration_us, failed,
           ROW_NUMBER() OVER (PARTITION BY (start_us - :since) / :step ORDER BY duration_us) AS place,
           COUNT(*) OVER (PARTITION BY (start_us - :since) / :step) AS total
    FROM spans WHERE tenant = :tenant AND start_us >= :since AND /* of */
)
SELECT bucket, total AS spans, SUM(failed) AS failed,
       MIN(CASE WHEN place * 100 >= total * 50 THEN duration_us END) AS p50,
       MIN(CASE WHEN place * 100 >= total * 95 THEN duration_us END) AS p95
FROM placed GROUP BY bucket ORDER BY bucket
"""
_POINTS_OF_ALL: Final = _POINTS.replace(_OF, "")
_POINTS_OF_A_SERVICE: Final = _POINTS.replace(_OF, "AND service = :service")
_POINTS_OF_A_JOURNEY: Final = _POINTS.replace(_OF, "AND journey = :journey")
# A span's own time is what its calls did not take.
_OWN_TIME: Final = """
WITH own AS (
    SELECT (span.start_us - :since) / :step AS bucket, span.service,
           span.duration_us - COALESCE((
               SELECT SUM(call.duration_us) FROM spans AS call
               WHERE call.tenant = span.tenant AND call.trace_id = span.trace_id
                 AND call.parent_id = span.span_id AND call.journey = :journey
           ), 0) AS own_us
    FROM spans AS span
    WHERE span.tenant = :tenant AND span.journey = :journey AND span.start_us >= :since
)
SELECT bucket, service, SUM(own_us) AS own_us
FROM own GROUP BY bucket, service ORDER BY bucket, own_us DESC
"""

METRICS: Final[Mapping[str, tuple[str, ...]]] = {
    "latency": ("p50_ms", "p95_ms"),
    "throughput": ("per_second",),
    "failures": ("failed", "failure_rate"),
}
"""Each metric and the series that it consists of."""

OWN_TIME: Final = "own_time"
"""A metric of journeys only: what a span's calls took is known from the spans of other services."""


def metrics(connection: Connection, question: Question, metric: str, step: int) -> Answer:
    """Answer with one point per `step` seconds for each series of a metric; buckets without spans are left out."""
    parameters = question.parameters | {"step": step * 1_000_000}
    if metric == OWN_TIME:
        found = _own_time(connection, parameters, step)
    else:
        statement = _POINTS_OF_ALL
        if question.journey is not None:
            statement = _POINTS_OF_A_JOURNEY
        elif question.service is not None:
            statement = _POINTS_OF_A_SERVICE
        found = [
            {
                "at_s": row["bucket"] * step,
                "p50_ms": milliseconds(row["p50"]),
                "p95_ms": milliseconds(row["p95"]),
                "per_second": round(row["spans"] / step, 3),
                "failed": row["failed"],
                "failure_rate": share(row["failed"], row["spans"]),
            }
            for row in connection.execute(statement, parameters)
        ]
        found = [{name: point[name] for name in ("at_s", *METRICS[metric])} for point in found]
    return answered(connection, question, of=question.subject, metric=metric, step_s=step, points=found)


def _own_time(connection: Connection, parameters: Mapping[str, object], step: int) -> list[Answer]:
    points: dict[int, dict[str, float | None]] = {}
    for row in connection.execute(_OWN_TIME, parameters):
        points.setdefault(row["bucket"], {})[row["service"]] = milliseconds(row["own_us"])
    return [{"at_s": bucket * step, "own_ms": services} for bucket, services in points.items()]
