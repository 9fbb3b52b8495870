"""What the five apps have in common: the cache, whose requests they are, and the work that their routes do.

Everything is told apart by `run`, a name that each test chooses, so that tests share servers and nothing else.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from nexcache import AdminApp, IngestHook, IngestRule, NexCache, OtlpEndpoint, Policy, Settings, principals, tenants
from nexcache.asgi import ASGIApp, Receive, Scope, Send

KEYS = {"acme": "the-key-of-acme", "globex": "the-key-of-globex"}
CHUNK = b"x" * 65_536
PARTS = (("x-part", "one"), ("x-between", "these"), ("x-part", "two"))

cache = NexCache(Settings(redis_url=None, redis_host=None))
keys = tenants.api_key(keys=KEYS)
principal = principals.per_credential()
traces = OtlpEndpoint(
    IngestHook(cache, rules=[IngestRule(tags=["service:{service.name}"])], min_interval=0), tenant=keys
)
admin = AdminApp(cache, authorize=keys)

REPORT = Policy("/api/report", op="report", ttl="2m")
POLICIES = [
    Policy("/api/dashboard", op="dashboard", ttl="2m"),
    Policy("/api/services/{service}", op="service", ttl="2m", tags=["service:{service}"]),
    Policy("/api/cookies", op="cookies", ttl="2m"),
    Policy("/api/stream", op="stream", ttl="2m"),
    Policy("/api/endless", op="endless", ttl="2m", max_body="128KiB"),
    Policy("/api/fail", op="fail", ttl="2m"),
]


@dataclass(slots=True)
class Run:
    """What happened in one test's run."""

    calls: int = 0
    stream: str = "not started"
    gate: asyncio.Event = field(default_factory=asyncio.Event)


runs: defaultdict[str, Run] = defaultdict(Run)
lifespan_seen: list[str] = []


def compute(run: str) -> dict[str, int]:
    """Count a call of a handler."""
    runs[run].calls += 1
    return {"calls": runs[run].calls}


async def stream(run: str) -> AsyncIterator[bytes]:
    """Give a first line, and a last one when the gate was opened."""
    state = runs[run]
    state.calls += 1
    state.stream = "running"
    try:
        yield b"first\n"
        await state.gate.wait()
        yield b"last\n"
        state.stream = "finished"
    finally:
        if state.stream == "running":
            state.stream = "ended"


async def endless(run: str) -> AsyncIterator[bytes]:
    """Give chunks until nobody wants them any more."""
    state = runs[run]
    state.stream = "running"
    try:
        while True:
            yield CHUNK
            await asyncio.sleep(0.002)
    finally:
        state.stream = "ended"


def state_of(run: str) -> dict[str, object]:
    """Tell what happened."""
    return {"calls": runs[run].calls, "stream": runs[run].stream, "lifespan": lifespan_seen}


async def invalidate(tenant: str) -> dict[str, object]:
    """Invalidate what a route of the app changed."""
    done = await cache.invalidate(tenant, "dashboard")
    return {"acknowledged": done.acknowledged}


def is_known(authorization: str | None) -> bool:
    """Authenticate inside a route."""
    return authorization == "Bearer ada"


@asynccontextmanager
async def lifespan(_app: object) -> AsyncIterator[None]:
    """Note that the app was started."""
    lifespan_seen.append("started")
    yield


def beside(app: ASGIApp, mounts: dict[str, ASGIApp]) -> ASGIApp:
    """Put ASGI apps beside one of a framework that cannot mount them; all else, lifespan included, is its own."""

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        for prefix, mounted in mounts.items():
            if path.startswith(prefix + "/"):
                await mounted({**scope, "root_path": scope.get("root_path", "") + prefix}, receive, send)
                return
        await app(scope, receive, send)

    return dispatch
