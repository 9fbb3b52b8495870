"""Metrics from spans, in time buckets: how often, how slow, how often failed."""

from collections.abc import Mapping
from sqlite3 import Connection
from typing import Final

from nexcache.demo.queries.question import Answer, Question, answered, milliseconds, share

EVERY_SERVICE: Final = "all"
"""Asked for in place of a service's name: all of them together."""

# Two statements rather than `:service IS NULL OR …`, so that each can use its index.
_ALL: Final = """
WITH placed AS (
    SELECT (start_us - :since) / :step AS bucket, duration_us, failed,
           ROW_NUMBER() OVER (PARTITION BY (start_us - :since) / :step ORDER BY duration_us) AS place,
           COUNT(*) OVER (PARTITION BY (start_us - :since) / :step) AS total
    FROM spans WHERE tenant = :tenant AND start_us >= :since
)
SELECT bucket, total AS spans, SUM(failed) AS failed,
       MIN(CASE WHEN place * 100 >= total * 50 THEN duration_us END) AS p50,
       MIN(CASE WHEN place * 100 >= total * 95 THEN duration_us END) AS p95
FROM placed GROUP BY bucket ORDER BY bucket
"""
_ONE: Final = """
WITH placed AS (
    SELECT (start_us - :since) / :step AS bucket, duration_us, failed,
           ROW_NUMBER() OVER (PARTITION BY (start_us - :since) / :step ORDER BY duration_us) AS place,
           COUNT(*) OVER (PARTITION BY (start_us - :since) / :step) AS total
    FROM spans WHERE tenant = :tenant AND service = :service AND start_us >= :since
)
SELECT bucket, total AS spans, SUM(failed) AS failed,
       MIN(CASE WHEN place * 100 >= total * 50 THEN duration_us END) AS p50,
       MIN(CASE WHEN place * 100 >= total * 95 THEN duration_us END) AS p95
FROM placed GROUP BY bucket ORDER BY bucket
"""

METRICS: Final[Mapping[str, tuple[str, ...]]] = {
    "latency": ("p50_ms", "p95_ms"),
    "throughput": ("per_second",),
    "failures": ("failed", "failure_rate"),
}
"""Each metric and the series that it consists of."""


def metrics(connection: Connection, question: Question, metric: str, step: int) -> Answer:
    """Answer with one point per `step` seconds for each series of a metric; buckets without spans are left out."""
    parameters = question.parameters | {"step": step * 1_000_000}
    rows = connection.execute(_ONE if question.service else _ALL, parameters).fetchall()
    points = [
        {
            "at_s": row["bucket"] * step,
            "p50_ms": milliseconds(row["p50"]),
            "p95_ms": milliseconds(row["p95"]),
            "per_second": round(row["spans"] / step, 3),
            "failed": row["failed"],
            "failure_rate": share(row["failed"], row["spans"]),
        }
        for row in rows
    ]
    return answered(
        connection,
        question,
        service=question.service or EVERY_SERVICE,
        metric=metric,
        step_s=step,
        points=[{name: point[name] for name in ("at_s", *METRICS[metric])} for point in points],
    )
