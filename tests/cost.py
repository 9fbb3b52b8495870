"""What the paths that everything is arranged for cost, in operations counted: no clock, so the same on every machine.

    python -m tests.cost --write    takes what is measured now as the budget (tests/budget.json)

Counted are the calls of NexCache's own functions, by name, and the bytecode instructions that they execute. Of several
runs the cheapest counts: what a node does by the clock may fall into one of them. Instructions are those of one version
of Python, calls of any: comprehensions, which are functions in some, are not among them.
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

import nexcache
from benchmarks.hit import BODY, receive, scope
from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Message, Receive, Scope, Send

BUDGET: Final = Path(__file__).with_name("budget.json")
VERSION: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_OURS: Final = str(Path(nexcache.__file__).parent)
_RUNS: Final = 7


@dataclass
class Cost:
    """What one run cost."""

    calls: Counter[str] = field(default_factory=Counter)
    instructions: int = 0


def _name(frame: FrameType) -> str | None:
    code = frame.f_code
    if not code.co_filename.startswith(_OURS) or "<" in code.co_name:
        return None
    module = code.co_filename[len(_OURS) + 1 :].removesuffix(".py").replace("/", ".")
    return f"{module}.{code.co_qualname}".replace(".<locals>", "")


async def calls_of(run: Callable[[], Awaitable[object]]) -> Counter[str]:
    """Count the calls of NexCache's functions; a coroutine counts again when it goes on."""
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (name := _name(frame)) is not None:
            calls[name] += 1

    sys.setprofile(count)
    try:
        await run()
    finally:
        sys.setprofile(None)
    return calls


async def instructions_of(run: Callable[[], Awaitable[object]]) -> int:
    """Count the bytecode instructions of NexCache's functions."""
    number = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal number
        if event == "call":
            if not frame.f_code.co_filename.startswith(_OURS):
                return None
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
        elif event == "opcode":
            number += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        await run()
    finally:
        sys.settrace(before)
    return number


async def cost_of(run: Callable[[], Awaitable[object]]) -> Cost:
    """Return what the cheapest of several runs costs."""
    counted = [await calls_of(run) for _ in range(_RUNS)]
    instructions = [await instructions_of(run) for _ in range(_RUNS)]
    return Cost(min(counted, key=Counter.total), min(instructions))


async def _app(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": BODY})


async def _send(message: Message) -> None:
    pass


class Asking:
    """Asks a cache with everything on, for the same again or for something new."""

    def __init__(self, cache: NexCache) -> None:
        keys = tenants.api_key(keys={"acme": "a-long-random-key-of-the-tenant-acme"})
        policy = Policy("/api/v1/services/{service}", op="service", ttl="1h", tags=["service:{service}"], jitter=0.0)
        self._app = CacheMiddleware(_app, cache=cache, tenant=keys, principal=keys, policies=[policy])
        self._number = 0

    async def hit(self) -> None:
        """Ask for what was asked for before."""
        query = b"from=%d&to=now&step=60" % self._number  # of one path: what is known of that is not to count
        await self._app({**scope(0), "query_string": query}, receive, _send)

    async def miss(self) -> None:
        """Ask for what nobody has asked for."""
        self._number += 1
        await self.hit()


@asynccontextmanager
async def _asking(url: str | None, **settings: Any) -> AsyncIterator[Asking]:
    where = {"redis_url": url, "op_timeout_ms": 2000.0} if url is not None else {"redis_url": None, "redis_host": None}
    async with NexCache(Settings(**{**where, **settings})) as cache:
        asking = Asking(cache)
        for _ in range(3):
            await asking.hit()
        yield asking


async def measure(url: str) -> dict[str, Cost]:
    """Measure every path; `url` is a server's that may be filled."""
    found: dict[str, Cost] = {}
    async with _asking(None) as asking:
        found["hit in memory"] = await cost_of(asking.hit)
        found["miss in memory"] = await cost_of(asking.miss)
    async with _asking(url, l1_enabled=False) as asking:
        found["hit in Redis"] = await cost_of(asking.hit)
    async with NexCache(Settings(redis_url=None, redis_host=None), default_tenant="acme") as cache:

        @cache.cached("numbers", ttl="1h")
        async def number(value: int) -> str:
            return str(value)

        async def call() -> None:
            await number(1)

        for _ in range(3):
            await call()
        found["hit of a cached function"] = await cost_of(call)
    return found


def grown(cost: Cost, budget: dict[str, Any]) -> list[str]:
    """Say what has become more than its budget, in words; empty if nothing has."""
    calls: dict[str, int] = budget["calls"]
    said = []
    if cost.calls.total() > sum(calls.values()):
        more = {name: times - calls.get(name, 0) for name, times in cost.calls.items() if times > calls.get(name, 0)}
        said.append(f"{cost.calls.total()} calls instead of {sum(calls.values())}:")
        said += [f"  {name} {times} more" for name, times in sorted(more.items())]
    allowed = budget["instructions"].get(VERSION)
    if allowed is not None and cost.instructions > allowed * 1.02:
        said.append(f"{cost.instructions} instructions instead of {allowed}")
    return said


def main() -> None:
    """Print what is measured, or take it as the budget."""
    from nexcache.demo.valkey import EmbeddedValkey  # noqa: PLC0415 - only here

    with EmbeddedValkey() as server:
        found = asyncio.run(measure(server.url))
    before = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    written = {
        path: {
            "instructions": {**before.get(path, {}).get("instructions", {}), VERSION: cost.instructions},
            "calls": dict(sorted(cost.calls.items())),
        }
        for path, cost in found.items()
    }
    for path, cost in found.items():
        sys.stdout.write(f"{path}: {cost.calls.total()} calls, {cost.instructions} instructions\n")
    if "--write" in sys.argv:
        BUDGET.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
