"""Simulated readers: people with a page open, who ask for it again and again over a connection of their own."""

import asyncio
import json
import random
import time
from dataclasses import dataclass
from typing import Final

from nexcache.demo.checks import Acknowledgements, Expected, Judgement
from nexcache.demo.figures import Answered, Figures, Kind
from nexcache.demo.http_client import BadAnswer, Connection

READS_PER_SECOND: Final = 5.0
"""Of one reader, when every answer comes at once: it thinks for a fifth of a second between two pages."""

_OK: Final = 200


@dataclass(frozen=True, slots=True)
class Page:
    """A URL that readers ask for: its operation, the one service it is about, how often it is wanted."""

    target: str
    operation: str
    weight: float
    service: str | None = None


# How often each is wanted: most readers look at the overviews, some at a service, few at anything else.
_OVERVIEWS: Final = (
    Page("/api/v1/dashboard?window=30m", "dashboard_overview", 500),
    Page("/api/v1/architecture?window=30m", "architecture_map", 200),
    Page("/api/v1/services?window=30m", "service_list", 140),
    *(
        Page(target, operation, 1.5)
        for target, operation in (
            ("/api/v1/dashboard?window=15m", "dashboard_overview"),
            ("/api/v1/dashboard?window=1h", "dashboard_overview"),
            ("/api/v1/architecture?window=1h", "architecture_map"),
            ("/api/v1/services?window=1h", "service_list"),
            ("/api/v1/graph?analysis=critical_path&window=30m", "graph_analysis"),
            ("/api/v1/graph?analysis=depth&window=30m", "graph_analysis"),
            ("/api/v1/graph?analysis=fan_out&window=30m", "graph_analysis"),
            ("/api/v1/metrics?service=all&metric=latency&window=1h", "metrics_aggregation"),
            ("/api/v1/metrics?service=all&metric=throughput&window=1h", "metrics_aggregation"),
            ("/api/v1/metrics?service=all&metric=failures&window=1h", "metrics_aggregation"),
        )
    ),
)
_OF_A_SERVICE: Final = (
    ("/api/v1/services/{service}?window=3h", "service_details", 2),
    ("/api/v1/metrics?service={service}&metric=latency&window=3h", "metrics_aggregation", 1.5),
)


def pages(services: tuple[str, ...]) -> tuple[Page, ...]:
    """Return every page of a tenant that readers ask for."""
    return _OVERVIEWS + tuple(
        Page(target.format(service=service), operation, weight, service)
        for service in services
        for target, operation, weight in _OF_A_SERVICE
    )


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
        expected = Expected(self._tenant, promised, page.service, last_trace)
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
