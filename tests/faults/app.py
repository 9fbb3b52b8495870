"""An app behind the cache in a process of its own, which watches itself.

`python -m tests.faults.app '<Task as JSON>'` serves `/page/<number>` for two tenants from data that change, the same
without a policy at `/bare/<number>`, and beside the cache what a test asks for: `/@change`, `/@report`, `/@state`,
`/@settle`, `/@reset`, `/@empty`. It prints its port.
"""

import asyncio
import gc
import json
import logging
import mmap
import os
import random
import socket
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import uvicorn

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Message, Receive, Scope, Send
from nexcache.telemetry.events import BackendChanged, BackendFailed, BackplaneChanged, Event

TENANTS: Final = ("acme", "umbrella")
PAGES: Final = 12
KEYS: Final = tuple((tenant, page) for tenant in TENANTS for page in range(PAGES))
_TURN: Final = 0.005
_RESOLUTION: Final = 100_000


class Versions:
    """The data: a version for each key, which all processes see."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    @staticmethod
    def make(path: Path) -> None:
        """Make them, each 0; and room for the number of computations."""
        path.write_bytes(bytes(8 * len(KEYS)))

    def __getitem__(self, key: int) -> int:
        return int(struct.unpack_from("=q", self._map, 8 * key)[0])

    def __setitem__(self, key: int, version: int) -> None:
        struct.pack_into("=q", self._map, 8 * key, version)


def body_of(key: int, version: int) -> bytes:
    """Return what the app answers: computed from nothing but these two, and readable."""
    tenant, page = KEYS[key]
    words = f"{tenant} {page} {version}".encode()
    digest = words
    for _ in range(20):
        digest = blake2b(digest, digest_size=16).digest()
    return b"%b %b %b" % (words, digest.hex().encode(), b"." * 400)


@dataclass(frozen=True)
class Task:
    """What a process is to do."""

    url: str
    versions: str
    http: str
    node: int = 0
    seed: int = 0
    longest: float = 0.005
    """Seconds that a computation takes at most; half of them take none."""
    least: float = 0.0
    """Seconds that every computation takes beside that."""
    settings: dict[str, Any] = field(default_factory=dict)

    def words(self) -> Sequence[str]:
        """Return the command line of the process."""
        return (sys.executable, "-W", "default", "-m", "tests.faults.app", json.dumps(asdict(self)))


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


class OwnTime:
    """A clock that stands still while this process could run and was not let: a busy machine is no row's fault."""

    def __init__(self) -> None:
        self._file = os.open("/proc/self/schedstat", os.O_RDONLY)

    def __call__(self) -> float:
        """Return seconds."""
        return time.perf_counter() - int(os.pread(self._file, 100, 0).split()[1]) / 1e9


class Stand:
    """The app, the cache around it, and what is measured around both."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.draw = random.Random(f"{task.seed} {task.node}")
        self.clock = OwnTime()
        self.versions = Versions(Path(task.versions))
        self.log = _Lines()
        logging.getLogger("nexcache").addHandler(self.log)
        logging.getLogger("nexcache").setLevel(logging.INFO)
        logging.getLogger("nexcache").propagate = False
        url, self.settings = task.url or None, {"redis_host": None, **task.settings}
        self.cache = NexCache(Settings(redis_url=url, **self.settings))
        self.cache.emitter.subscribe(self._heard, BackendChanged, BackplaneChanged, BackendFailed)
        self.changes: list[str] = []
        self.failures: dict[str, int] = {}
        self.calls = 0
        self.statuses: dict[int, int] = {}
        self.raised: list[str] = []
        self.added: list[tuple[float, float, bool]] = []
        self.bare: list[float] = []
        """The same for requests that have no policy, in seconds: what a busy machine adds to any app."""
        """When a request came, what was added to its computation (in seconds), and whether the breaker was shut."""
        self.stall = 0.0
        self.since: Counter[int] = Counter()
        """How often each key was computed since everything was invalidated."""
        self.site = CacheMiddleware(
            self._handle,
            cache=self.cache,
            tenant=tenants.header("x-tenant", trusted=True),
            policies=[Policy("/page/{page}", op="page", ttl="1h", tags=["page:{page}"])],
        )

    def _heard(self, event: Event) -> None:
        match event:
            case BackendChanged():
                self.changes.append(f"backend {'up' if event.available else 'down'} {event.kind}")
            case BackplaneChanged():
                self.changes.append(f"backplane {'up' if event.connected else 'down'}")
            case BackendFailed():
                self.failures[event.kind] = self.failures.get(event.kind, 0) + 1

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = self.clock()
        cached = scope["path"].startswith("/page/")
        self.calls += cached
        tenant = dict(scope["headers"])[b"x-tenant"].decode()
        key = KEYS.index((tenant, int(scope["path"].rpartition("/")[2])))
        version = self.versions[key]  # what follows is the time in which the data may change
        self.since[key] += cached
        body = body_of(key, version)
        if self.task.least or self.draw.random() < 0.5:
            await asyncio.sleep(self.task.least + self.draw.random() * self.task.longest)
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        scope["stand.took"][0] += self.clock() - began
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, and measure what the cache adds to the app's own time."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["path"].startswith("/@"):
            await self._control(scope, send)
            return
        took, shut = [0.0], self._shut
        scope["stand.took"] = took
        began, at = self.clock(), time.monotonic()
        collapsed = False

        async def watched(message: Message) -> None:
            nonlocal collapsed
            if message["type"] == "http.response.start":
                status = message["status"]
                self.statuses[status] = self.statuses.get(status, 0) + 1
                collapsed = b"collapsed" in dict(message["headers"]).get(b"cache-status", b"")
            elif not message.get("more_body", False) and not collapsed:  # those wait for another's computation
                spent = self.clock() - began - took[0]
                if scope["path"].startswith("/page/"):
                    self.added.append((at, spent, shut))
                else:
                    self.bare.append(spent)
            await send(message)

        try:
            await self.site(scope, receive, watched)
        except Exception as error:
            self.raised.append("".join(traceback.format_exception(error)[-4:]))
            raise

    @property
    def _shut(self) -> bool:
        """Whether the breaker lets calls through."""
        return bool(getattr(self.cache._parts.store, "available", True))

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        watching = asyncio.create_task(self._watch(), name="stand-watch")
        try:
            await self.site({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        """Notice for how long nothing else could run."""
        while True:
            before = self.clock()
            await asyncio.sleep(_TURN)
            self.stall = max(self.stall, self.clock() - before - _TURN)

    async def _control(self, scope: Scope, send: Send) -> None:
        asked = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
        match scope["path"]:
            case "/@change":
                told = await self._change(int(asked["key"]), asked["wait"])
            case "/@report":
                told = self._report()
            case "/@state":
                told = await self._state()
            case "/@settle":
                told = await self._settle()
            case "/@empty":
                for tenant in TENANTS:
                    await self.cache.invalidate(tenant, "*", wait="strict")
                self.since.clear()
                told = {}
            case _:
                self.added.clear()
                self.bare.clear()
                self.stall = 0.0
                told = {}
        body = json.dumps(told).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _change(self, key: int, wait: str) -> dict[str, Any]:
        """Change data, then invalidate what depends on them."""
        tenant, page = KEYS[key]
        self.versions[key] += 1
        version, began = self.versions[key], time.perf_counter()
        done = await self.cache.invalidate(
            tenant, tags=(f"page:{page}",), wait="strict" if wait == "strict" else "fast"
        )
        took = time.perf_counter() - began
        return {"version": version, "acknowledged": done.acknowledged, "at": time.monotonic(), "took": took}

    async def _state(self) -> dict[str, Any]:
        status = await self.cache.status()
        return {**status.as_dict(operator=True), "available": self._shut}

    async def _settle(self) -> dict[str, Any]:
        """Wait until nothing is under way, then count what is open."""
        for _ in range(400):
            if self.cache.flights.running == 0 and self.cache._parts.invalidations.queued == 0:
                break
            await asyncio.sleep(0.01)
        gc.collect()
        mine = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith(("nexcache", "Task"))]
        files = _files()
        return {
            # one of a kind may begin at any time; the connections' own are counted with these
            "tasks": sum(
                count - 1 for name, count in Counter(mine).items() if name.startswith("nexcache") and "lane" not in name
            ),
            "names": sorted(mine),
            "files": len([each for each in files if not each.startswith("socket:")]),
            "connections": (await self.cache.health()).connections,
            "sockets": len([each for each in files if each.startswith("socket:")]),
            "queued": self.cache._parts.invalidations.queued,
            "running": self.cache.flights.running,
        }

    def _report(self) -> dict[str, Any]:
        with open("/proc/self/statm") as file:  # noqa: PTH123 - no path of ours
            pages = int(file.read().split()[1])
        return {
            "calls": self.calls,
            "since": self.since,
            "statuses": self.statuses,
            "raised": self.raised,
            "lines": self.log.lines,
            "changes": self.changes,
            "failures": self.failures,
            "stall": self.stall,
            "added": self.added,
            "bare": self.bare,
            "rss": pages * os.sysconf("SC_PAGE_SIZE"),
            "available": self._shut,
            "hears": (coherence := self.cache._parts.coherence) is not None and coherence.connected,
        }


def _files() -> list[str]:
    """Say what this process has open."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(each.readlink()))
        except OSError:
            pass  # closed already: it is that by which this is read
    return found


def main() -> None:
    """Serve until SIGTERM."""
    task = Task(**json.loads(sys.argv[1]))
    stand = Stand(task)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    config = uvicorn.Config(
        stand,
        http=task.http,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        timeout_graceful_shutdown=5,
        timeout_keep_alive=600,  # a connection that is closed in between would look like one that was lost
    )
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
