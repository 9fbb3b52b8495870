"""The calculations: expensive queries over a user's transactions, month by month, and a model's predictions.

A user is a tenant of the cache: nothing of one user can be found by another, and a tag such as `month:2024-01` is the
user's own. The plain functions are for FastAPI's `def` endpoints, scripts and cron jobs; the coroutine function waits
for a model. All are behind the same cache.
"""

import asyncio
import os
import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

from nexcache import NexCache, tenants

# So that it runs as it is, with the keys `alice-demo-key` and `bob-demo-key`; `nexcache key USER` makes real ones.
USERS: Final = ("alice", "bob")
DEMO_KEYS: Final = [tenants.ApiKey.of(user, f"{user}-demo-key") for user in USERS]
os.environ.setdefault("CACHE_API_KEYS", ",".join(map(str, DEMO_KEYS)))
DATABASE: Final = Path(os.environ.get("BUDGET_DB", "budget.db"))
HISTORY: Final = 6
"""Months that an anomaly is told by."""

cache = NexCache.from_env()


@dataclass(frozen=True, slots=True)
class Summary:
    """What a user spent in a month, in cents."""

    month: str
    total: int
    by_category: tuple[tuple[str, int], ...]
    transactions: int


@dataclass(frozen=True, slots=True)
class Trend:
    """How spending changes."""

    months: tuple[tuple[str, int], ...]
    change: float
    """The last month's total over the first one's."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """A category in which much more was spent than in the months before."""

    category: str
    spent: int
    usual: int


# The operations are named as the environment names their lifetimes: REDIS_SUMMARY_TTL, REDIS_TRENDS_TTL,
# REDIS_ANOMALY_TTL; what has none of its own is kept for REDIS_DEFAULT_TTL.


@cache.sync.cached("summary", ttl=900, tenant="user", tags=["month:{month}"])
def summary(user: str, month: str) -> Summary:
    """Add a month up."""
    rows = _query(
        "SELECT category, SUM(cents), COUNT(*) FROM transactions WHERE user = ? AND substr(day, 1, 7) = ? GROUP BY 1",
        (user, month),
    )
    return Summary(
        month, sum(row[1] for row in rows), tuple((row[0], row[1]) for row in rows), sum(row[2] for row in rows)
    )


@cache.sync.cached("trends", ttl=1800, tenant="user")
def trends(user: str) -> Trend:
    """Follow the totals of all months."""
    rows = _query(
        "SELECT substr(day, 1, 7) AS month, SUM(cents) FROM transactions WHERE user = ? GROUP BY 1 ORDER BY 1", (user,)
    )
    return Trend(tuple(rows), rows[-1][1] / rows[0][1] if rows and rows[0][1] else 0.0)


def _compared(user: str, month: str) -> list[str]:  # noqa: ARG001 - a callable of tags gets all arguments
    return [f"month:{each}" for each in (month, *before(month, HISTORY))]


@cache.sync.cached("anomaly", ttl=600, tenant="user", tags=_compared)
def anomalies(user: str, month: str) -> tuple[Anomaly, ...]:
    """Find the categories of a month that are more than twice what they were in the months before."""
    spent = dict(summary(user, month).by_category)
    history = [dict(summary(user, each).by_category) for each in before(month, HISTORY)]
    usual = {category: sum(each.get(category, 0) for each in history) // HISTORY for category in spent}
    return tuple(
        Anomaly(category, cents, usual[category])
        for category, cents in spent.items()
        if usual[category] and cents > 2 * usual[category]
    )


@cache.cached("prediction", tenant="user", tags=_compared)
async def prediction(user: str, month: str) -> int:
    """Ask the model what will be spent in a month; it thinks for a while."""
    history = await asyncio.to_thread(lambda: [summary(user, each).total for each in before(month, HISTORY)])
    await asyncio.sleep(float(os.environ.get("MODEL_SECONDS", "0.5")))
    weights = range(HISTORY, 0, -1)
    return sum(cents * weight for cents, weight in zip(history, weights, strict=True)) // sum(weights)


async def record(user: str, day: date, category: str, cents: int) -> None:
    """Store a transaction; when this returns, no answer is older, and other months are still there."""
    await asyncio.to_thread(
        _execute, "INSERT INTO transactions VALUES (?, ?, ?, ?)", (user, day.isoformat(), category, cents)
    )
    await cache.invalidate(user, "trends", tags=[f"month:{day:%Y-%m}"])


async def warm(user: str, month: str) -> int:
    """Compute all that is asked for of a month, and the prediction of the next, before anybody asks."""
    for plain in (summary, anomalies):
        await asyncio.to_thread(plain.refresh, user, month)
    await asyncio.to_thread(trends.refresh, user)
    await prediction.refresh(user, after(month))
    return 4


def before(month: str, count: int) -> list[str]:
    """Return the months before a month, the last one first."""
    year, number = map(int, month.split("-"))
    return [
        f"{(year * 12 + number - 1 - back) // 12:04}-{(number - 1 - back) % 12 + 1:02}" for back in range(1, count + 1)
    ]


def after(month: str) -> str:
    """Return the next month."""
    year, number = map(int, month.split("-"))
    return f"{year + number // 12:04}-{number % 12 + 1:02}"


def prepare() -> None:
    """Make the database, with two years of two users."""
    _execute("CREATE TABLE IF NOT EXISTS transactions (user, day, category, cents)", ())
    if _query("SELECT COUNT(*) FROM transactions", ())[0][0]:
        return
    draw = random.Random(1)  # noqa: S311 - made-up data
    categories = ("rent", "food", "travel", "books", "music")
    rows = [
        (user, f"{year}-{month:02}-{draw.randrange(1, 29):02}", draw.choice(categories), draw.randrange(100, 9_000))
        for user in USERS
        for year in (2023, 2024)
        for month in range(1, 13)
        for _ in range(1_000)
    ]
    with _connection() as database:
        database.executemany("INSERT INTO transactions VALUES (?, ?, ?, ?)", rows)


@contextmanager
def _connection() -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(DATABASE)
    try:
        with database:
            yield database
    finally:
        database.close()


def _query(statement: str, parameters: tuple[object, ...]) -> list[Any]:
    with _connection() as database:
        return database.execute(statement, parameters).fetchall()


def _execute(statement: str, parameters: tuple[object, ...]) -> None:
    with _connection() as database:
        database.execute(statement, parameters)
