"""An app behind the cache for a row: served over a socket, asked by a client, and watched for what must never be."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import redis
from pydantic import SecretStr

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import ASGIApp, Receive, Scope, Send
from nexcache.telemetry.events import BackendChanged, BackendFailed, Event, HookFailed, NotStored
from tests.faults.rows import Place
from tests.servers import Valkey
from tests.wire.server import Answer, Client, serving, until

ROOT: Final = Path(__file__).parent.parent.parent
PATIENT: dict[str, Any] = {"redis_host": None, "op_timeout_ms": 1000}
"""A machine that is busy with other tests is not the fault of a row."""


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Require that no task and no descriptor is there afterwards that was not there before."""
    tasks, descriptors = asyncio.all_tasks(), _descriptors()
    yield
    await until(lambda: not left_over(tasks), f"the end of {left_over(tasks)}")
    await until(lambda: _descriptors() <= descriptors, f"{_descriptors() - descriptors} descriptors are closed")


def left_over(before: Iterable["asyncio.Task[Any]"]) -> set[str]:
    """Name the tasks that are there now and were not before."""
    return {task.get_name() for task in asyncio.all_tasks() - set(before) if not task.done()}


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@dataclass(slots=True)
class Site:
    """A cache, the app before which it stands, and what it has reported."""

    cache: NexCache
    app: CacheMiddleware
    client: Client
    changes: list[BackendChanged] = field(default_factory=list)
    failures: list[BackendFailed] = field(default_factory=list)
    hooks: list[HookFailed] = field(default_factory=list)
    not_stored: list[NotStored] = field(default_factory=list)
    disconnects: int = 0
    """How often the server told the cache that a client had gone."""

    async def quiet(self) -> None:
        """Wait until nothing is computed or stored any more."""
        await until(lambda: self.cache.flights.running == 0, "the end of all computations")

    def count(self, kind: str, operation: str = "get") -> int:
        """Count the calls of the store that failed in one way."""
        return sum(each.kind == kind and each.operation == operation for each in self.failures)


def no_crossing(answers: Iterable[tuple[Answer, bytes]]) -> None:
    """Require that each is the handler's own answer, and none a failure."""
    for answer, body in answers:
        assert (answer.status, answer.body) == (200, body)


@asynccontextmanager
async def site(
    app: ASGIApp,
    place: Place,
    server: Valkey | str | None,
    *,
    policies: Sequence[Policy] = (Policy("/{page}", op="page", ttl="1h"),),
    tenant: Any = None,
    principal: Any = None,
    cache: NexCache | None = None,
    raises: tuple[type[BaseException], ...] = (),
    alone: bool = True,
    **settings: Any,
) -> AsyncIterator[Site]:
    """Serve an app; afterwards nothing may be left of it, and nothing may have been raised but `raises`.

    Of several at once, which are not `alone`, the row itself has to look whether something is left.
    """
    async with nothing_left() if alone else nullcontext():
        where = server.url if isinstance(server, Valkey) else server
        url = SecretStr(where) if where is not None else None
        own = cache if cache is not None else NexCache(Settings(redis_url=url, **{**PATIENT, **settings}))
        made = CacheMiddleware(
            app,
            cache=own,
            tenant=tenant if tenant is not None else tenants.fixed("acme"),
            principal=principal,
            policies=policies,
        )

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            async def received() -> Any:
                message = await receive()
                at.disconnects += message["type"] == "http.disconnect"
                return message

            await made(scope, received if scope["type"] == "http" else receive, send)

        try:
            async with serving(watched, http=place.http) as client:
                at = Site(own, made, client)

                def hear(event: Event) -> None:
                    match event:
                        case BackendChanged():
                            at.changes.append(event)
                        case BackendFailed():
                            at.failures.append(event)
                        case HookFailed():
                            at.hooks.append(event)
                        case NotStored():
                            at.not_stored.append(event)

                own.emitter.subscribe(hear, BackendChanged, BackendFailed, HookFailed, NotStored)
                yield at
                await at.quiet()
        finally:
            await own.aclose()
    assert [error for error in client.errors if not isinstance(error, raises)] == []
    for before, after in zip(at.changes, at.changes[1:], strict=False):
        assert (before.available, before.kind) != (after.available, after.kind), "one line per change of state"


class Raw:
    """A connection to a server, past the cache, kept open for as long as it is needed."""

    def __init__(self, server: Valkey) -> None:
        self._client: Any = redis.Redis(port=server.port, protocol=2, socket_timeout=5)
        self.ask("PING")  # its socket is there before anybody counts

    def ask(self, *words: str | bytes | int) -> Any:
        """Send one command."""
        return self._client.execute_command(*words)

    def entries(self) -> list[bytes]:
        """Return the keys of the stored entries."""
        return sorted(key for key in self.ask("KEYS", "nexarch:*") if re.fullmatch(rb"nexarch(:[^:@]+){3}", key))

    def generations(self) -> list[bytes]:
        """Return the keys of the generations."""
        found = self.ask("KEYS", "nexarch:*")
        return sorted(key for key in found if b":@" in key and not key.endswith((b":@ops", b":@nodes")))

    def close(self) -> None:
        """Close it."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def output_of(module: str, *words: str) -> tuple[bytes, str]:
    """Run a module in a process of its own, which must end well; returns what it printed, and what it complained of."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *words),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    return out, complaints.decode()
