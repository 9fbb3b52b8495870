"""The hours before the demo began: the shop's visits at a steady rate, as rows of the database."""

from collections.abc import Iterator
from random import Random
from typing import Final

from nexcache.demo import shop
from nexcache.demo.database import RETENTION_US, Span

VISITS_PER_SECOND: Final = 0.5
"""Of each tenant; its services go on at this rate, so the amount of data stays what it is."""


def history(rng: Random, now_us: int, visits_per_second: float = VISITS_PER_SECOND) -> Iterator[Span]:
    """Imagine one tenant's spans from the beginning of the retention until now, visits evenly at random."""
    start_us = float(now_us - RETENTION_US)
    while (start_us := start_us + rng.expovariate(visits_per_second) * 1_000_000) < now_us:
        journey, done = shop.visit(rng, int(start_us))
        yield from _rows(rng, rng.randbytes(16), journey.name, done, None)


def _rows(rng: Random, trace_id: bytes, journey: str, done: shop.Done, parent_id: bytes | None) -> Iterator[Span]:
    span_id = rng.randbytes(8)
    yield Span(
        trace_id,
        span_id,
        parent_id,
        done.call.service,
        journey,
        done.call.operation,
        done.failed,
        done.start_us,
        done.duration_us,
    )
    for made in done.made:
        yield from _rows(rng, trace_id, journey, made, span_id)
