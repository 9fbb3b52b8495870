"""Analyses of the calls of one journey or of all: each follows every visit from its first span downwards."""

import re
from collections.abc import Callable, Mapping
from sqlite3 import Connection, Row
from typing import Final

from nexcache.demo.queries.question import Answer, Question, answered, milliseconds, share

_OF: Final = re.compile(r"/\* (\w+) of \*/")
"""Where a statement about one journey says so."""

# From every span on the path, follow the call that took longest: where a visit's time goes.
_CRITICAL_PATH: Final = """
WITH RECURSIVE path (trace_id, span_id, steps, services, visit_us, rest_us) AS (
    SELECT trace_id, span_id, 1, service, duration_us, duration_us
    FROM spans AS visit WHERE tenant = :tenant /* visit of */ AND start_us >= :since AND parent_id IS NULL
    UNION ALL
    SELECT call.trace_id, call.span_id, steps + 1, services || ' > ' || call.service, visit_us, call.duration_us
    FROM path JOIN spans AS call
      ON call.tenant = :tenant AND call.trace_id = path.trace_id AND call.span_id = (
          SELECT longest.span_id FROM spans AS longest
          WHERE longest.tenant = :tenant AND longest.trace_id = path.trace_id
            AND longest.parent_id = path.span_id /* longest of */
          ORDER BY longest.duration_us DESC, longest.span_id LIMIT 1)
),
ends AS (SELECT services, visit_us, rest_us, MAX(steps) FROM path GROUP BY trace_id)
SELECT services, COUNT(*) AS visits, AVG(visit_us) AS visit_us, SUM(rest_us) AS rest_us, SUM(visit_us) AS total_us
FROM ends GROUP BY services ORDER BY total_us DESC LIMIT 20
"""
_DEPTH: Final = """
WITH RECURSIVE chain (trace_id, span_id, depth) AS (
    SELECT trace_id, span_id, 1
    FROM spans AS visit WHERE tenant = :tenant /* visit of */ AND start_us >= :since AND parent_id IS NULL
    UNION ALL
    SELECT call.trace_id, call.span_id, depth + 1
    FROM chain JOIN spans AS call
      ON call.tenant = :tenant AND call.trace_id = chain.trace_id AND call.parent_id = chain.span_id /* call of */
),
visits AS (SELECT MAX(depth) AS depth, COUNT(*) AS spans FROM chain GROUP BY trace_id)
SELECT depth, COUNT(*) AS visits, AVG(spans) AS spans FROM visits GROUP BY depth ORDER BY depth
"""
_FAN_OUT: Final = """
WITH RECURSIVE chain (trace_id, span_id, service, operation) AS (
    SELECT trace_id, span_id, service, operation
    FROM spans AS visit WHERE tenant = :tenant /* visit of */ AND start_us >= :since AND parent_id IS NULL
    UNION ALL
    SELECT call.trace_id, call.span_id, call.service, call.operation
    FROM chain JOIN spans AS call
      ON call.tenant = :tenant AND call.trace_id = chain.trace_id AND call.parent_id = chain.span_id /* call of */
),
calls AS (
    SELECT chain.service, chain.operation, COUNT(call.span_id) AS calls, COUNT(DISTINCT call.service) AS services
    FROM chain JOIN spans AS call
      ON call.tenant = :tenant AND call.trace_id = chain.trace_id AND call.parent_id = chain.span_id /* call of */
    GROUP BY chain.trace_id, chain.span_id
)
SELECT service, operation, COUNT(*) AS spans, AVG(calls) AS mean, MAX(calls) AS most, MAX(services) AS services
FROM calls GROUP BY service, operation ORDER BY mean DESC, service, operation
"""


def _run(connection: Connection, question: Question, statement: str) -> list[Row]:
    # not `:journey IS NULL OR …`, so that each can use its index; and the calls must be of the journey too, for only
    # spans of the journey invalidate what is kept under its tag
    if question.journey is not None:
        statement = _OF.sub(lambda of: f"AND {of[1]}.journey = :journey", statement)
    return connection.execute(statement, question.parameters).fetchall()


def _critical_path(connection: Connection, question: Question) -> list[Answer]:
    return [
        {
            "path": row["services"].split(" > "),
            "visits": row["visits"],
            "mean_ms": milliseconds(row["visit_us"]),
            "share_of_last_call": share(row["rest_us"], row["total_us"]),
        }
        for row in _run(connection, question, _CRITICAL_PATH)
    ]


def _depth(connection: Connection, question: Question) -> list[Answer]:
    return [
        {"depth": row["depth"], "visits": row["visits"], "mean_spans": round(row["spans"], 2)}
        for row in _run(connection, question, _DEPTH)
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
        for row in _run(connection, question, _FAN_OUT)
    ]


ANALYSES: Final[Mapping[str, Callable[[Connection, Question], list[Answer]]]] = {
    "critical_path": _critical_path,
    "depth": _depth,
    "fan_out": _fan_out,
}


def graph(connection: Connection, question: Question, analysis: str) -> Answer:
    """Answer with one of the analyses: `critical_path`, `depth` or `fan_out`."""
    return answered(
        connection,
        question,
        journey=question.journey,
        analysis=analysis,
        found=ANALYSES[analysis](connection, question),
    )
