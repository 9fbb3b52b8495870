"""The architecture map: which service calls which, found by joining every span to its parent."""

from sqlite3 import Connection
from typing import Final

from nexcache.demo.queries.question import Answer, Question, answered, milliseconds, share

_NODES: Final = """
SELECT service, COUNT(*) AS spans, SUM(failed) AS failed, COUNT(DISTINCT operation) AS operations
FROM spans WHERE tenant = :tenant AND start_us >= :since GROUP BY service ORDER BY service
"""
_EDGES: Final = """
WITH calls AS (
    SELECT caller.service AS caller, callee.service AS callee, callee.failed, callee.duration_us
    FROM spans AS callee
    JOIN spans AS caller
      ON caller.tenant = callee.tenant AND caller.trace_id = callee.trace_id
     AND caller.span_id = callee.parent_id AND caller.service <> callee.service
    WHERE callee.tenant = :tenant AND callee.start_us >= :since
),
placed AS (
    SELECT caller, callee, failed, duration_us,
           ROW_NUMBER() OVER (PARTITION BY caller, callee ORDER BY duration_us) AS place,
           COUNT(*) OVER (PARTITION BY caller, callee) AS total
    FROM calls
)
SELECT caller, callee, total AS calls, SUM(failed) AS failed, AVG(duration_us) AS mean,
       MIN(CASE WHEN place * 100 >= total * 95 THEN duration_us END) AS p95
FROM placed GROUP BY caller, callee ORDER BY calls DESC, caller, callee
"""


def architecture(connection: Connection, question: Question) -> Answer:
    """Answer with the services as nodes, and with the calls between them as edges (durations in ms)."""
    nodes = connection.execute(_NODES, question.parameters).fetchall()
    edges = connection.execute(_EDGES, question.parameters).fetchall()
    return answered(
        connection,
        question,
        nodes=[
            {
                "service": row["service"],
                "spans": row["spans"],
                "operations": row["operations"],
                "failure_rate": share(row["failed"], row["spans"]),
            }
            for row in nodes
        ],
        edges=[
            {
                "caller": row["caller"],
                "callee": row["callee"],
                "calls": row["calls"],
                "failure_rate": share(row["failed"], row["calls"]),
                "mean_ms": milliseconds(row["mean"]),
                "p95_ms": milliseconds(row["p95"]),
            }
            for row in edges
        ],
    )
