"""One process of many: it asks, changes and invalidates as fast as it can, and writes down what it was told.

`python -m tests.model.worker '<Task as JSON>'`
"""

import asyncio
import json
import logging
import mmap
import random
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import pytest

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Message, Receive, Scope, Send
from nexcache.invalidation.targets import matches
from nexcache.telemetry.events import BackplaneChanged, Event
from tests.model.history import Acknowledged, Part
from tests.model.mutants import ALL

TENANTS: Final = ("acme", "globex")
OPERATIONS: Final = ("alpha", "alter")
PAGES: Final = 12
GLOBS: Final = ("al*", "alp*", "?lter")
KEYS: Final = tuple(
    (tenant, operation, page) for tenant in TENANTS for operation in OPERATIONS for page in range(PAGES)
)
LEASE: Final = 0.25
_TURN: Final = 0.02
_STRICT_EVERY: Final = 0.2


class Board:
    """Numbers that all processes see: the versions of the keys, and how far each process has come."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    @staticmethod
    def make(path: Path, workers: int) -> None:
        """Make one, with every number 0."""
        path.write_bytes(bytes(8 * (len(KEYS) + workers + 1)))

    def __getitem__(self, index: int) -> int:
        return int(struct.unpack_from("=q", self._map, 8 * index)[0])

    def __setitem__(self, index: int, value: int) -> None:
        struct.pack_into("=q", self._map, 8 * index, value)

    def progress(self, worker: int) -> int:
        """Return the place where a process says how many requests it has made."""
        return len(KEYS) + 1 + worker

    @property
    def stopped(self) -> bool:
        """Whether everybody is to end."""
        return bool(self[len(KEYS)])

    def stop(self) -> None:
        """Have everybody end."""
        self[len(KEYS)] = 1


@dataclass(frozen=True)
class Task:
    """What a process is to do."""

    url: str
    directory: str
    node: int
    workers: int
    requests: int
    """How many to make at most; it ends before where it is told to."""
    seed: int
    every: int
    """Requests of a process per invalidation of its own that is not strict."""
    mutant: str | None = None

    def words(self) -> Sequence[str]:
        """Return the command line of the process."""
        return (sys.executable, "-m", "tests.model.worker", json.dumps(asdict(self)))


class Worker:
    """A node, its readers, and whoever invalidates through it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.draw = random.Random(f"{task.seed} {task.node}")
        self.board = Board(Path(task.directory) / "board")
        self.part = Part(task.node)
        self.left = task.requests
        self.made = self.changes = 0
        settings = Settings(redis_url=task.url, redis_host=None, op_timeout_ms=2_000, l1_lease_ms=LEASE * 1000)
        self.cache = NexCache(settings)
        self.cache._parts.emitter.subscribe(self._backplane, BackplaneChanged)
        self.app = CacheMiddleware(
            self._handle,
            cache=self.cache,
            tenant=tenants.header("x-tenant", trusted=True),
            policies=[Policy(f"/{name}/{{page}}", op=name, ttl="1h", tags=["page:{page}"]) for name in OPERATIONS],
        )

    def _backplane(self, event: Event) -> None:
        self.part.deaf += isinstance(event, BackplaneChanged) and not event.connected

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, operation, page = scope["path"].split("/")
        key = KEYS.index((dict(scope["headers"])[b"x-tenant"].decode(), operation, int(page)))
        body = b"%d %d" % (key, self.board[key])
        if self.draw.random() < 0.5:
            await asyncio.sleep(self.draw.random() * 0.01)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": body})

    async def _ask(self, key: int) -> None:
        tenant, operation, page = KEYS[key]
        path = f"/{operation}/{page}"
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"node"), (b"x-tenant", tenant.encode())],
            "client": None,
            "server": None,
        }
        messages: list[Message] = []

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            messages.append(message)

        part, started = self.part, time.monotonic()
        await self.app(scope, receive, send)
        if messages[0]["status"] != 200:
            part.failed += 1
            return
        told = dict(messages[0]["headers"])[b"cache-status"]
        of, version = b"".join(message["body"] for message in messages[1:]).split()
        from_memory, collapsed = b"detail=memory" in told, b"collapsed" in told
        part.foreign += int(of) != key
        part.memory += from_memory
        part.collapsed += collapsed
        part.computed += b"fwd=" in told and not collapsed
        part.answers.add(started, key, int(version), memory=from_memory or collapsed)

    @property
    def over(self) -> bool:
        """Whether enough has been asked for."""
        return self.left <= 0 or self.board.stopped

    async def read(self) -> None:
        """Ask, again and again, and no faster than data change."""
        board, mine, every = self.board, self.board.progress(self.task.node), self.task.every
        while not self.over:
            while self.made > every * (self.changes + 2) and not self.over:  # noqa: ASYNC110 - counted, not announced
                await asyncio.sleep(0.001)
            self.left -= 1
            self.made += 1
            await self._ask(self.draw.randrange(len(KEYS)))
            board[mine] += 1
            if self.left % 16 == 0:
                await asyncio.sleep(0)

    async def change(self, *, strict: bool) -> None:
        """Change data of this process's keys and invalidate them, again and again."""
        draw, task = self.draw, self.task
        while not self.over:
            tenant, operations, tags = draw.choice(TENANTS), tuple[str, ...](), tuple[str, ...]()
            match draw.randrange(5):
                case 0:
                    operations = (draw.choice(OPERATIONS),)
                case 1:
                    operations = (draw.choice(GLOBS),)
                case 2 | 3:
                    tags = (f"page:{draw.randrange(PAGES)}",)
                case _:
                    operations = ("*",)
            changed = []
            for index, (whose, operation, page) in enumerate(KEYS):
                aimed = f"page:{page}" in tags or any(matches(each, operation) for each in operations)
                if whose == tenant and aimed and index % task.workers == task.node:
                    self.board[index] += 1
                    changed.append((index, self.board[index]))
            done = await self.cache.invalidate(
                tenant, operations[0] if operations else None, tags=tags, wait="strict" if strict else "fast"
            )
            at = time.monotonic()
            if done.acknowledged:
                self.part.acknowledged += [
                    Acknowledged(key, version, at, task.node, strict) for key, version in changed
                ]
            if strict:
                await asyncio.sleep(draw.random() * _STRICT_EVERY)
            else:
                self.changes += 1
                then = self.made + draw.randrange(2 * task.every)
                while self.made < min(then, task.every * (self.changes + 2)) and not self.over:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

    async def watch(self) -> None:
        """Notice having been stopped."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(_TURN)
            self.part.suspended += time.monotonic() - before > 1.0

    async def run(self) -> None:
        """Do it all."""
        async with self.cache:
            watching = asyncio.create_task(self.watch())
            await asyncio.gather(*(self.read() for _ in range(16)), self.change(strict=False), self.change(strict=True))
            watching.cancel()
        self.part.save(Path(self.task.directory) / f"part-{self.task.node}")


def main() -> None:
    """Do what the first argument says."""
    task = Task(**json.loads(sys.argv[1]))
    logging.getLogger("nexcache").setLevel(logging.ERROR)  # a backplane that is cut is what is wanted here
    with pytest.MonkeyPatch.context() as patch:
        if task.mutant is not None:
            ALL[task.mutant].apply(patch)
        asyncio.run(Worker(task).run())


if __name__ == "__main__":
    main()
