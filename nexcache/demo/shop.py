"""The traffic of an online shop: which services call which, how long that takes and how often it fails.

One model serves both the history that the demo starts with and the spans that its services send afterwards.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

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


@dataclass(frozen=True, slots=True)
class Journey:
    """What a visitor does, how often in a hundred, and the call that it begins with."""

    name: str
    weight: float
    root: Call


def _inside(service: str, operation: str, median_ms: float) -> Call:
    """Something that a service does for itself: a database, a file, a template."""
    return Call(service, operation, median_ms, failure=0.001)


_ITEM = Call("catalog", "GetProduct", 3, 0.002, (_inside("catalog", "SELECT products", 6),))
_ITEMS = Call("catalog", "ListProducts", 14, 0.002)
_REVIEWS = Call("reviews", "ListReviews", 4, 0.004, (
    _inside("reviews", "GET summary", 1),
    _inside("reviews", "SELECT reviews", 9),
))  # fmt: skip
_PRICE = Call("pricing", "GetPrice", 2, 0.001, (_inside("pricing", "SELECT prices", 3),))
_STOCK = Call("inventory", "CheckStock", 3, 0.002, (
    _inside("inventory", "SELECT stock", 4),
    _inside("inventory", "SELECT reservations", 3),
))  # fmt: skip

JOURNEYS: Final = (
    Journey("product", 30, Call("frontend", "GET /products/{id}", 8, 0.001, (_ITEM, _REVIEWS, _PRICE))),
    Journey("search", 25, Call("frontend", "GET /search", 6, 0.001, (
        Call("search", "Query", 12, 0.003, (
            _inside("search", "lookup products", 18),
            _inside("search", "rank", 7),
            _ITEMS,
        )),
    ))),
    Journey("home", 20, Call("frontend", "GET /", 9, 0.001, (
        Call("recommendations", "ListFor", 14, 0.005, (
            _inside("recommendations", "GET features", 2),
            _inside("recommendations", "predict", 22),
            _ITEMS,
        )),
    ))),
    Journey("cart", 12, Call("frontend", "POST /cart", 5, 0.001, (
        Call("cart", "AddItem", 4, 0.002, (
            _inside("cart", "HGETALL cart", 1),
            _ITEMS,
            _STOCK,
            _inside("cart", "HSET cart", 1),
            _inside("cart", "EXPIRE cart", 1),
        )),
    ))),
    Journey("checkout", 8, Call("frontend", "POST /checkout", 7, 0.002, (
        Call("checkout", "PlaceOrder", 9, 0.004, (
            Call("cart", "GetCart", 2, 0.001, (_inside("cart", "HGETALL cart", 1),)),
            Call("pricing", "Quote", 5, 0.002, (_inside("pricing", "SELECT prices", 3),)),
            Call("payments", "Charge", 25, 0.015, (
                Call("payments", "POST bank /charges", 140, 0.01),
                _inside("payments", "INSERT payments", 5),
            )),
            Call("shipping", "CreateShipment", 12, 0.004, (
                _inside("shipping", "SELECT carriers", 4),
                _inside("shipping", "INSERT shipments", 8),
            )),
            Call("email", "SendReceipt", 18, 0.006, (_inside("email", "render receipt", 6),)),
            _inside("checkout", "INSERT orders", 10),
            _inside("checkout", "INSERT items", 6),
        )),
    ))),
    Journey("account", 5, Call("frontend", "GET /account", 5, 0.001, (
        Call("accounts", "GetProfile", 4, 0.002, (
            _inside("accounts", "SELECT users", 5),
            _inside("accounts", "SELECT addresses", 4),
        )),
    ))),
)  # fmt: skip
"""What visitors do."""

_WEIGHTS: Final = tuple(journey.weight for journey in JOURNEYS)


def services() -> tuple[str, ...]:
    """Name the services of the shop, in alphabetical order."""
    return tuple(sorted({call.service for journey in JOURNEYS for call in _calls(journey.root)}))


def visit(rng: Random, start_us: int) -> tuple[Journey, Done]:
    """Imagine one visit that begins at `start_us`, in microseconds since the epoch."""
    journey = rng.choices(JOURNEYS, _WEIGHTS)[0]
    return journey, happen(journey.root, rng, start_us)


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
