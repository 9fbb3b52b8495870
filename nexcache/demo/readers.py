"""Simulated readers: people with a page open, who ask for it again and again over a connection of their own."""

import asyncio
import json
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from nexcache.demo.checks import Acknowledgements, Expected, Judgement
from nexcache.demo.figures import Answered, Figures, Kind
from nexcache.demo.http_client import BadAnswer, Connection
from nexcache.demo.shop import JOURNEYS

READS_PER_SECOND: Final = 5.0
"""Of one reader, when every answer comes at once: it thinks for a fifth of a second between two pages."""

_OK: Final = 200


@dataclass(frozen=True, slots=True)
class Page:
    """A URL that readers ask for: its operation, how often it is wanted, the one service or journey it is about."""

    target: str
    operation: str
    weight: float
    subject: str | None = None


# How often each is wanted: half of the reads are of the overviews, the others of one service or one journey.
_OVERVIEWS: Final = (
    Page("/api/v1/dashboard?window=1h", "dashboard_overview", 300),
    Page("/api/v1/architecture?window=1h", "architecture_map", 200),
    Page("/api/v1/dashboard?window=15m", "dashboard_overview", 0.3),
    Page("/api/v1/dashboard?window=3h", "dashboard_overview", 0.2),
    Page("/api/v1/architecture?window=15m", "architecture_map", 0.3),
)
_SERVICES: Final = {
    "cart": 40,
    "pricing": 40,
    "reviews": 40,
    "search": 40,
    "recommendations": 20,
    # part of nearly every visit, so few look at them for themselves
    "frontend": 0.5,
    "catalog": 0.5,
}
_OTHER_SERVICES: Final = 5


def pages(services: Iterable[str]) -> tuple[Page, ...]:
    """Return every page of a tenant with these services that readers ask for."""
    return (*_OVERVIEWS, *map(_of_service, services), *(page for each in JOURNEYS for page in _of_journey(each.name)))


def _of_service(service: str) -> Page:
    weight = _SERVICES.get(service, _OTHER_SERVICES)
    return Page(f"/api/v1/services/{service}?window=6h", "service_details", weight, f"service:{service}")


def _of_journey(journey: str) -> Iterator[Page]:
    for path, operation, weight in (
        ("graph?analysis=critical_path", "graph_analysis", 25),
        ("metrics?metric=own_time", "metrics_aggregation", 20),
        ("metrics?metric=latency", "metrics_aggregation", 0.3),
        ("metrics?metric=throughput", "metrics_aggregation", 0.3),
        ("metrics?metric=failures", "metrics_aggregation", 0.3),
    ):
        yield Page(f"/api/v1/{path}&window=6h&journey={journey}", operation, weight, f"journey:{journey}")


class Reader:
    """Reads pages of one tenant over one connection, times each answer and has it judged."""

    def __init__(
        self,
        connection: Connection,
        tenant: str,
        acknowledgements: Acknowledgements,
        judgement: Judgement,
        figures: Figures,
    ) -> None:
        self._connection = connection
        self._tenant = tenant
        self._acknowledgements = acknowledgements
        self._judgement = judgement
        self._figures = figures

    async def read(self, page: Page, *, last_trace: str | None = None, prefix: str = "") -> None:
        """Read a page once. What was acknowledged before must be in the answer; failures are counted."""
        promised = self._acknowledgements.promised(self._tenant)
        start = time.perf_counter()
        try:
            answer = await self._connection.get(prefix + page.target)
            seconds = time.perf_counter() - start
            found = json.loads(answer.body) if answer.status == _OK else None
        except (BadAnswer, OSError, ValueError) as error:
            self._figures.failed(page.operation, type(error).__name__)
            return
        if found is None:
            self._figures.failed(page.operation, str(answer.status))
            return
        kind = Kind.UNCACHED if prefix else Kind.of(answer.headers.get("cache-status", ""))
        self._figures.answered(Answered(self._tenant, page.operation, page.target, kind, seconds))
        expected = Expected(self._tenant, promised, page.subject, last_trace)
        self._judgement.judge(page.operation, found, expected)

    async def run(self, wanted: tuple[Page, ...], rng: random.Random, *, rate: float, prefix: str = "") -> None:
        """Read pages by their weight, about `rate` of them per second, until cancelled."""
        weights = [page.weight for page in wanted]
        try:
            while True:
                await asyncio.sleep(rng.expovariate(rate))
                await self.read(rng.choices(wanted, weights)[0], prefix=prefix)
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Canary:
    """Looks for one certain span right after it was acknowledged, in pages that were cached before."""

    def __init__(self, readers: list[Reader], wanted: list[Page]) -> None:
        if len(readers) != len(wanted):
            raise ValueError("one reader for each page: they read at the same time")
        self._readers = readers
        self._wanted = wanted

    async def look(self, trace_id: str) -> None:
        """Read all the pages at the same time; each must hold the span of this trace."""
        await asyncio.gather(
            *(reader.read(page, last_trace=trace_id) for reader, page in zip(self._readers, self._wanted, strict=True))
        )

    def close(self) -> None:
        """Close the readers' connections."""
        for reader in self._readers:
            reader.close()
