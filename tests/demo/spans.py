"""Hand-made spans with known answers."""

from collections.abc import Iterator
from pathlib import Path

from nexcache.demo.database import Database, Span

NOW = 1_800_000_000 * 1_000_000
SECOND = 1_000_000
MILLISECOND = 1_000


def made(
    trace: int,
    number: int,
    parent: int | None,
    name: str,
    *,
    ago: float,
    ms: float,
    failed: bool = False,
    journey: str | None = None,
) -> Span:
    """Make a span named `service operation` that began `ago` seconds before NOW."""
    service, _, operation = name.partition(" ")
    return Span(
        trace.to_bytes(16),
        number.to_bytes(8),
        None if parent is None else parent.to_bytes(8),
        service,
        journey,
        operation,
        failed,
        NOW - int(ago * SECOND),
        int(ms * MILLISECOND),
    )


def shop() -> Iterator[Span]:
    """Two visits in the last quarter of an hour, one of an hour ago; and a span of no journey.

    Visit 1 takes 100 ms: frontend > catalog (60 ms, of which 40 in its database), then reviews (20 ms, fails).
    Visit 2 takes 300 ms: frontend > catalog (200 ms). Visit 3 is old.
    """
    yield made(1, 11, None, "frontend GET /", ago=100, ms=100, failed=True, journey="home")
    yield made(1, 12, 11, "catalog List", ago=99.99, ms=60, journey="home")
    yield made(1, 13, 12, "catalog SELECT", ago=99.98, ms=40, journey="home")
    yield made(1, 14, 11, "reviews List", ago=99.93, ms=20, failed=True, journey="home")
    yield made(2, 21, None, "frontend GET /", ago=30, ms=300, journey="home")
    yield made(2, 22, 21, "catalog List", ago=29.95, ms=200, journey="home")
    yield made(3, 31, None, "frontend GET /", ago=3500, ms=900, journey="home")
    yield made(4, 41, 40, "accounts Clean", ago=20, ms=5)


def database(path: Path, **tenants: Iterator[Span]) -> Database:
    """Make a database with these spans."""
    found = Database(path / "spans.db")
    for tenant, spans in tenants.items():
        found.seed(tenant, spans)
    return found
