"""Analyses of the call graph: each follows the calls of every visit from the first span downwards."""

from collections.abc import Callable, Mapping
from sqlite3 import Connection
from typing import Final

from nexcache.demo.queries.question import Answer, Question, answered, milliseconds, share

# From every span on the path, follow the call that took longest: where a visit's time goes.
_CRITICAL_PATH: Final = """
WITH RECURSIVE path (trace_id, span_id, steps, services, visit_us, rest_us) AS (
    SELECT trace_id, span_id, 1, service, duration_us, duration_us
    FROM spans WHERE tenant = :tenant AND start_us >= :since AND parent_id IS NULL
    UNION ALL
    SELECT call.trace_id, call.span_id, steps + 1, services || ' > ' || call.service, visit_us, call.duration_us
    FROM path JOIN spans AS call
      ON call.tenant = :tenant AND call.trace_id = path.trace_id AND call.span_id = (
          SELECT longest.span_id FROM spans AS longest
          WHERE longest.tenant = :tenant AND longest.trace_id = path.trace_id
            AND longest.parent_id = path.span_id
          ORDER BY longest.duration_us DESC, longest.span_id LIMIT 1)
),
ends AS (SELECT services, visit_us, rest_us, MAX(steps) FROM path GROUP BY trace_id)
SELECT services, COUNT(*) AS visits, AVG(visit_us) AS visit_us, SUM(rest_us) AS rest_us, SUM(visit_us) AS total_us
FROM ends GROUP BY services ORDER BY total_us DESC LIMIT 20
"""
_DEPTH: Final = """
WITH RECURSIVE chain (trace_id, span_id, depth) AS (
    SELECT trace_id, span_id, 1 FROM spans WHERE tenant = :tenant AND start_us >= :since AND parent_id IS NULL
    UNION ALL
    SELECT call.trace_id, call.span_id, depth + 1
    FROM chain JOIN spans AS call
      ON call.tenant = :tenant AND call.trace_id = chain.trace_id AND call.parent_id = chain.span_id
),
visits AS (SELECT MAX(depth) AS depth, COUNT(*) AS spans FROM chain GROUP BY trace_id)
SELECT depth, COUNT(*) AS visits, AVG(spans) AS spans FROM visits GROUP BY depth ORDER BY depth
"""
_FAN_OUT: Final = """
WITH calls AS (
    SELECT caller.service, caller.operation, COUNT(call.span_id) AS calls,
           COUNT(DISTINCT call.service) AS services
    FROM spans AS caller
    LEFT JOIN spans AS call
      ON call.tenant = caller.tenant AND call.trace_id = caller.trace_id AND call.parent_id = caller.span_id
    WHERE caller.tenant = :tenant AND caller.start_us >= :since
    GROUP BY caller.trace_id, caller.span_id
)
SELECT service, operation, COUNT(*) AS spans, AVG(calls) AS mean, MAX(calls) AS most, MAX(services) AS services
FROM calls WHERE calls > 0 GROUP BY service, operation ORDER BY mean DESC, service, operation
"""


def _critical_path(connection: Connection, question: Question) -> list[Answer]:
    return [
        {
            "path": row["services"].split(" > "),
            "visits": row["visits"],
            "mean_ms": milliseconds(row["visit_us"]),
            "share_of_last_call": share(row["rest_us"], row["total_us"]),
        }
        for row in connection.execute(_CRITICAL_PATH, question.parameters)
    ]


def _depth(connection: Connection, question: Question) -> list[Answer]:
    return [
        {"depth": row["depth"], "visits": row["visits"], "mean_spans": round(row["spans"], 2)}
        for row in connection.execute(_DEPTH, question.parameters)
    ]


def _fan_out(connection: Connection, question: Question) -> list[Answer]:
    return [
        {
            "service": row["service"],
            "operation": row["operation"],
            "spans": row["spans"],
            "mean_calls": round(row["mean"], 2),
            "most_calls": row["most"],
            "services": row["services"],
        }
        for row in connection.execute(_FAN_OUT, question.parameters)
    ]


ANALYSES: Final[Mapping[str, Callable[[Connection, Question], list[Answer]]]] = {
    "critical_path": _critical_path,
    "depth": _depth,
    "fan_out": _fan_out,
}


def graph(connection: Connection, question: Question, analysis: str) -> Answer:
    """Answer with one of the analyses: `critical_path`, `depth` or `fan_out`."""
    return answered(connection, question, analysis=analysis, found=ANALYSES[analysis](connection, question))
