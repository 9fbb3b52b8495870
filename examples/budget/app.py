"""The budget application: `uvicorn examples.budget.app:app`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Path, Request
from pydantic import BaseModel

from examples.budget import calculations as calculate
from nexcache import AdminApp, tenants

cache = calculate.cache
keys = tenants.api_key("X-API-Key", keys=cache.settings.api_keys)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Make the database, and close the cache at the end."""
    calculate.prepare()
    async with cache:
        yield


def current_user(request: Request) -> str:
    """Return whose key the request carries."""
    user = keys(request.scope)
    if not isinstance(user, str):
        raise HTTPException(401, "send your key as X-API-Key")
    return user


User = Annotated[str, Depends(current_user)]
Month = Annotated[str, Path(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")]
app = FastAPI(title="Budget", lifespan=lifespan)


class Transaction(BaseModel):
    """What was spent."""

    day: date
    category: str
    cents: int


@app.get("/api/v1/summary/{month}")
def summary(user: User, month: Month) -> calculate.Summary:  # a plain endpoint: FastAPI runs it in a thread
    return calculate.summary(user, month)


@app.get("/api/v1/trends")
def trends(user: User) -> calculate.Trend:
    return calculate.trends(user)


@app.get("/api/v1/anomalies/{month}")
def anomalies(user: User, month: Month) -> tuple[calculate.Anomaly, ...]:
    return calculate.anomalies(user, month)


@app.get("/api/v1/prediction/{month}")
async def prediction(user: User, month: Month) -> dict[str, int]:
    return {"cents": await calculate.prediction(user, month)}


@app.post("/api/v1/transactions", status_code=201)
async def record(user: User, transaction: Transaction) -> None:
    await calculate.record(user, transaction.day, transaction.category, transaction.cents)


@app.delete("/api/v1/cache/invalidate/month/{month}")
async def invalidate_month(user: User, month: Month) -> dict[str, object]:
    done = await cache.invalidate(user, tags=[f"month:{month}"])
    return {"acknowledged": done.acknowledged, "queued": done.queued, "targets": done.targets}


@app.post("/api/v1/cache/warm/month/{month}")
async def warm_month(user: User, month: Month) -> dict[str, object]:
    return {"month": month, "refreshed": await calculate.warm(user, month)}


# the rest of the endpoints: DELETE …/invalidate (all of the current user), GET …/health, …/stats, …/metrics, …
app.mount("/api/v1/cache", AdminApp(cache, authorize=keys))
