"""The hours before the demo began: the shop's visits at a steady rate, as rows of the database."""

from collections.abc import Iterator
from random import Random
from typing import Final

from nexcache.demo import shop
from nexcache.demo.database import RETENTION_US, Span

SPANS_PER_SECOND: Final = 6.0
"""Per tenant; the live services keep about this rate, so the amount of data stays what it is."""


def history(rng: Random, now_us: int, spans_per_second: float = SPANS_PER_SECOND) -> Iterator[Span]:
    """Imagine one tenant's spans from the beginning of the retention until now, visits evenly at random."""
    start_us = float(now_us - RETENTION_US)
    visits_per_us = spans_per_second / shop.spans_per_visit() / 1_000_000
    while (start_us := start_us + rng.expovariate(visits_per_us)) < now_us:
        yield from _rows(rng, rng.randbytes(16), shop.visit(rng, int(start_us)), None)


def _rows(rng: Random, trace_id: bytes, done: shop.Done, parent_id: bytes | None) -> Iterator[Span]:
    span_id = rng.randbytes(8)
    call = done.call
    yield Span(trace_id, span_id, parent_id, call.service, call.operation, done.failed, done.start_us, done.duration_us)
    for made in done.made:
        yield from _rows(rng, trace_id, made, span_id)
