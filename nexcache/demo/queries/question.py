"""What is asked of whom for which time, and the frame that every answer has."""

from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any, Final, TypeAlias

Answer: TypeAlias = dict[str, Any]

_SEEN: Final = "SELECT tenant, subject, spans, last_trace FROM seen WHERE tenant = :tenant ORDER BY subject"


@dataclass(frozen=True, slots=True)
class Question:
    """A tenant's question about the last `window` seconds before `now_us` (microseconds since the epoch)."""

    tenant: str
    window: int
    now_us: int
    service: str | None = None
    """Only the spans of this service are looked at; None: those of all."""
    journey: str | None = None
    """Only the spans of this journey are looked at; None: those of all."""

    @property
    def since_us(self) -> int:
        """Where the window begins, in microseconds since the epoch."""
        return self.now_us - self.window * 1_000_000

    @property
    def subject(self) -> str | None:
        """The service or the journey that it is about; None: all services."""
        if self.journey is not None:
            return f"journey:{self.journey}"
        return None if self.service is None else f"service:{self.service}"

    @property
    def parameters(self) -> dict[str, Any]:
        """What the statements are given."""
        return {
            "tenant": self.tenant,
            "since": self.since_us,
            "service": self.service,
            "journey": self.journey,
        }


def answered(connection: Connection, question: Question, **found: Any) -> Answer:
    """Frame what was found: whose it is, and what it has seen.

    `seen` says for each service (or the one journey) that was looked at how many spans were stored since the start
    and which trace came last. It is read in the same snapshot, so a reader can tell whether a span is in the answer.
    """
    rows = connection.execute(_SEEN, question.parameters).fetchall()
    return {
        "tenant": rows[0]["tenant"] if rows else question.tenant,
        "from_s": question.since_us // 1_000_000,
        "window_s": question.window,
        **found,
        "seen": {
            row["subject"]: {"spans": row["spans"], "last_trace": row["last_trace"].hex()}
            for row in rows
            if row["subject"] == question.subject
            or (question.subject is None and row["subject"].startswith("service:"))
        },
    }


def milliseconds(duration_us: float | None) -> float | None:
    """Microseconds as milliseconds, with the digits that a chart can show."""
    return None if duration_us is None else round(duration_us / 1000, 2)


def share(part: float, whole: float) -> float:
    """Return `part / whole` with four digits; 0 of nothing."""
    return round(part / whole, 4) if whole else 0.0
