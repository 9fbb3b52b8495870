"""The traffic of an online shop: which services call which, how long that takes and how often it fails.

One model serves both the history that the demo starts with and the spans that its services send afterwards.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final, TypeAlias

SPREAD: Final = 0.45
"""Sigma of the lognormal distribution that durations follow."""


@dataclass(frozen=True, slots=True)
class Call:
    """One operation of a service: the work it does itself, and the calls it makes, one after the other."""

    service: str
    operation: str
    median_ms: float
    failure: float = 0.0
    """Probability that the operation fails by itself."""
    calls: tuple["Call", ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """A call that happened: when it began and how long it took, in microseconds."""

    call: Call
    start_us: int
    duration_us: int
    failed: bool
    made: tuple["Done", ...]

    def walk(self) -> Iterator["Done"]:
        """Give this call and all that it made, callers first."""
        yield self
        for child in self.made:
            yield from child.walk()


Journeys: TypeAlias = tuple[tuple[float, Call], ...]


def _database(service: str, statement: str, median_ms: float) -> Call:
    return Call(service, statement, median_ms, failure=0.001)


_PRODUCT = Call("catalog", "GetProduct", 3, 0.002, (_database("catalog", "SELECT products", 6),))
_PRODUCTS = Call("catalog", "ListProducts", 5, 0.002, (_database("catalog", "SELECT products WHERE id IN", 11),))
_REVIEWS = Call("reviews", "ListReviews", 4, 0.004, (_database("reviews", "SELECT reviews", 9),))
_PRICE = Call("pricing", "GetPrice", 2, 0.001)
_STOCK = Call("inventory", "CheckStock", 3, 0.002, (_database("inventory", "SELECT stock", 4),))
_CART = Call("cart", "GetCart", 2, 0.001, (_database("cart", "HGETALL cart", 1),))

JOURNEYS: Final[Journeys] = (
    (30, Call("frontend", "GET /products/{id}", 8, 0.001, (_PRODUCT, _REVIEWS, _PRICE))),
    (
        25,
        Call("frontend", "GET /search", 6, 0.001, (
            Call("search", "Query", 12, 0.003, (_database("search", "lookup products index", 18), _PRODUCTS)),
        )),
    ),
    (
        20,
        Call("frontend", "GET /", 9, 0.001, (
            Call("recommendations", "ListFor", 14, 0.005, (_PRODUCTS,)),
        )),
    ),
    (
        12,
        Call("frontend", "POST /cart", 5, 0.001, (
            Call("cart", "AddItem", 4, 0.002, (_PRODUCT, _STOCK, _database("cart", "HSET cart", 1))),
        )),
    ),
    (
        8,
        Call("frontend", "POST /checkout", 7, 0.002, (
            Call("checkout", "PlaceOrder", 9, 0.004, (
                _CART,
                Call("pricing", "Quote", 5, 0.002),
                Call("payments", "Charge", 25, 0.015, (Call("payments", "POST bank /charges", 140, 0.01),)),
                Call("shipping", "CreateShipment", 12, 0.004, (_database("shipping", "INSERT shipments", 8),)),
                Call("email", "SendReceipt", 18, 0.006),
                _database("checkout", "INSERT orders", 10),
            )),
        )),
    ),
    (
        5,
        Call("frontend", "GET /account", 5, 0.001, (
            Call("accounts", "GetProfile", 4, 0.002, (_database("accounts", "SELECT users", 5),)),
        )),
    ),
)  # fmt: skip
"""What visitors do, each with its weight."""

_WEIGHTS: Final = tuple(weight for weight, _ in JOURNEYS)
_ROOTS: Final = tuple(call for _, call in JOURNEYS)


def services() -> tuple[str, ...]:
    """Name the services of the shop, in alphabetical order."""
    return tuple(sorted({call.service for root in _ROOTS for call in _calls(root)}))


def spans_per_visit() -> float:
    """Return the mean number of spans that one visit leaves."""
    total = sum(weight * sum(1 for _ in _calls(root)) for weight, root in JOURNEYS)
    return total / sum(_WEIGHTS)


def visit(rng: Random, start_us: int) -> Done:
    """Imagine one visit that begins at `start_us`, in microseconds since the epoch."""
    return happen(rng.choices(_ROOTS, _WEIGHTS)[0], rng, start_us)


def happen(call: Call, rng: Random, start_us: int) -> Done:
    """Imagine one call: its own work, half of it before and half after the calls that it makes."""
    own_us = max(1, int(call.median_ms * 1000 * math.exp(rng.gauss(0.0, SPREAD))))
    now_us = start_us + own_us // 2
    made: list[Done] = []
    failed = rng.random() < call.failure
    for each in () if failed else call.calls:
        child = happen(each, rng, now_us)
        made.append(child)
        now_us += child.duration_us
        if child.failed:
            # what a call depends on has failed, so it fails too and calls nothing more
            failed = True
            break
    return Done(call, start_us, now_us + own_us - own_us // 2 - start_us, failed, tuple(made))


def _calls(call: Call) -> Iterator[Call]:
    yield call
    for each in call.calls:
        yield from _calls(each)
