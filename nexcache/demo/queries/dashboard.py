"""The dashboard's overview: what visitors see, how each service does, and how that developed."""

from sqlite3 import Connection
from typing import Final

from nexcache.demo.queries.question import Answer, Question, answered, milliseconds, share

_SERVICES: Final = """
WITH placed AS (
    SELECT service, duration_us, failed,
           ROW_NUMBER() OVER (PARTITION BY service ORDER BY duration_us) AS place,
           COUNT(*) OVER (PARTITION BY service) AS total
    FROM spans WHERE tenant = :tenant AND start_us >= :since
)
SELECT service, total AS spans, SUM(failed) AS failed,
       MIN(CASE WHEN place * 100 >= total * 50 THEN duration_us END) AS p50,
       MIN(CASE WHEN place * 100 >= total * 95 THEN duration_us END) AS p95,
       MIN(CASE WHEN place * 100 >= total * 99 THEN duration_us END) AS p99
FROM placed GROUP BY service ORDER BY spans DESC, service
"""
_VISITS: Final = """
WITH placed AS (
    SELECT (start_us - :since) / 60000000 AS minute, duration_us, failed,
           ROW_NUMBER() OVER (PARTITION BY (start_us - :since) / 60000000 ORDER BY duration_us) AS place,
           COUNT(*) OVER (PARTITION BY (start_us - :since) / 60000000) AS total
    FROM spans WHERE tenant = :tenant AND start_us >= :since AND parent_id IS NULL
)
SELECT minute, total AS visits, SUM(failed) AS failed,
       MIN(CASE WHEN place * 100 >= total * 95 THEN duration_us END) AS p95
FROM placed GROUP BY minute ORDER BY minute
"""
_FAILURES: Final = """
SELECT trace_id, service, operation, start_us FROM spans
WHERE tenant = :tenant AND start_us >= :since AND failed ORDER BY start_us DESC LIMIT 5
"""


def dashboard(connection: Connection, question: Question) -> Answer:
    """Answer with the visits per minute, every service's percentiles (ms) and failures, and the latest failures."""
    parameters = question.parameters
    visits = connection.execute(_VISITS, parameters).fetchall()
    services = connection.execute(_SERVICES, parameters).fetchall()
    failures = connection.execute(_FAILURES, parameters).fetchall()
    total, failed = sum(row["visits"] for row in visits), sum(row["failed"] for row in visits)
    return answered(
        connection,
        question,
        visits=total,
        failure_rate=share(failed, total),
        per_minute=[
            {
                "minute": row["minute"],
                "visits": row["visits"],
                "failed": row["failed"],
                "p95_ms": milliseconds(row["p95"]),
            }
            for row in visits
        ],
        services=[
            {
                "service": row["service"],
                "spans": row["spans"],
                "failure_rate": share(row["failed"], row["spans"]),
                "p50_ms": milliseconds(row["p50"]),
                "p95_ms": milliseconds(row["p95"]),
                "p99_ms": milliseconds(row["p99"]),
            }
            for row in services
        ],
        latest_failures=[
            {
                "trace_id": row["trace_id"].hex(),
                "service": row["service"],
                "operation": row["operation"],
                "at_us": row["start_us"],
            }
            for row in failures
        ],
    )
