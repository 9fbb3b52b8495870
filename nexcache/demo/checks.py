"""What the demo promises, judged on every answer: whoever reads after an acknowledgement sees the spans.

Senders say what was acknowledged to them. A reader notes that before a read starts, and afterwards compares it
with what the answer says that it has seen. Nothing here looks into the back end or the cache.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from threading import Lock
from types import MappingProxyType
from typing import Any, Final, TypeAlias

Promised: TypeAlias = Mapping[str, int]
"""For each subject (a service, a journey), how many of its spans were acknowledged."""

CANARY: Final = "canary"
"""The service whose spans only the demo sends, to look for each of them by its trace."""

_EXAMPLES: Final = 5
_NOTHING: Final[Promised] = MappingProxyType({})


class Acknowledgements:
    """What was acknowledged to each tenant's senders; it only grows. Senders add to it from their own threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._promised: dict[str, Promised] = {}
        self.batches: Counter[str] = Counter()
        """By tenant; `spans` likewise."""
        self.spans: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        """Batches that were not acknowledged."""

    def start(self, tenant: str, stored: Promised) -> None:
        """Say how many spans of each subject were there before."""
        with self._lock:
            self._promised[tenant] = MappingProxyType(dict(stored))

    def add(self, tenant: str, spans: Mapping[str, int], count: int) -> None:
        """Count one batch of `count` spans, by subject. Call it after the acknowledgement was received."""
        with self._lock:
            self._promised[tenant] = MappingProxyType(Counter(self._promised.get(tenant, _NOTHING)) + Counter(spans))
            self.batches[tenant] += 1
            self.spans[tenant] += count

    def refuse(self, tenant: str) -> None:
        """Count a batch that was not acknowledged: nothing is promised of it."""
        with self._lock:
            self.refused[tenant] += 1

    def promised(self, tenant: str) -> Promised:
        """Return what a read of this tenant that starts now must see; the returned value never changes."""
        return self._promised.get(tenant, _NOTHING)


@dataclass(frozen=True, slots=True)
class Expected:
    """What must be in an answer to a read that starts now."""

    tenant: str
    promised: Promised
    subject: str | None = None
    """The answer is about this service or journey only; None: about all services."""
    last_trace: str | None = None
    """The trace of the canary's latest acknowledged span, where that very span is looked for."""


def violations(answer: Mapping[str, Any], expected: Expected) -> Iterator[str]:
    """Compare an answer with what it must hold; each violation in words."""
    tenant, promised = expected.tenant, expected.promised
    if answer.get("tenant") != tenant:
        yield f"{tenant} was answered with the data of {answer.get('tenant')}"
        return
    seen: Mapping[str, Any] = answer.get("seen", {})
    services = (subject for subject in promised if subject.startswith("service:"))
    for subject in services if expected.subject is None else (expected.subject,):
        spans = seen.get(subject, {}).get("spans", 0)
        if spans < promised.get(subject, 0):
            yield f"{tenant}: {promised[subject]} spans of {subject} were acknowledged, but only {spans} were seen"
    if expected.last_trace is not None:
        canary = seen.get(f"service:{CANARY}", {})
        # a later answer may already have a later canary; that is no violation
        latest = canary.get("spans") == promised.get(f"service:{CANARY}")
        if latest and canary.get("last_trace") != expected.last_trace:
            yield f"{tenant}: the span of the acknowledged trace {expected.last_trace} is not in the answer"


@dataclass(slots=True)
class Judgement:
    """The count of what was compared, and of what was found wrong, with the first few examples."""

    answers: int = 0
    """Answers of readers that were compared with what had been acknowledged before they asked."""
    canaries: int = 0
    """Answers in which one certain span was looked for, right after it had been acknowledged."""
    wrong: Counter[str] = field(default_factory=Counter)
    """Violations by operation."""
    examples: list[str] = field(default_factory=list)

    def judge(self, operation: str, answer: Mapping[str, Any], expected: Expected) -> None:
        """Compare an answer, and count it."""
        self.answers += expected.last_trace is None
        self.canaries += expected.last_trace is not None
        for violation in violations(answer, expected):
            self.wrong[operation] += 1
            if len(self.examples) < _EXAMPLES:
                self.examples.append(f"{operation}: {violation}")
