"""Puts the demo together, runs it, and takes it apart again."""

import asyncio
import contextlib
import logging
import random
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn
from rich.console import Console
from rich.live import Live

from nexcache import NexCache, Settings, tenants
from nexcache.demo import display, shop
from nexcache.demo.app import RULES, UNCACHED, create_app
from nexcache.demo.backend import Backend
from nexcache.demo.board import Board
from nexcache.demo.checks import CANARY
from nexcache.demo.database import Database
from nexcache.demo.history import VISITS_PER_SECOND, history
from nexcache.demo.http_client import Connection
from nexcache.demo.readers import READS_PER_SECOND, Canary, Page, Reader, pages
from nexcache.demo.services import ROUND_SECONDS, Services
from nexcache.demo.valkey import EmbeddedValkey, ValkeyUnavailable
from nexcache.demo.verdict import verdicts
from nexcache.ingest.rules import IngestRule
from nexcache.telemetry.events import BackendChanged, Event, Invalidated
from nexcache.telemetry.names import Trigger

TENANTS: Final = ("acme", "globex")
HOST: Final = "127.0.0.1"
PORT: Final = 8080
"""Where it listens if no port is asked for; any free one if that is taken."""

_UNCACHED_PER_SECOND: Final = 0.8
_WARM_CONNECTIONS: Final = 4
_LINE_SECONDS: Final = 2.0
_FRAMES_PER_SECOND: Final = 4


class PortTaken(Exception):  # noqa: N818 - reads as what it says
    """The port that was asked for cannot be listened on; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to run: see `nexcache demo --help`."""

    duration: float | None = None
    port: int | None = None
    headless: bool = False
    readers: int = 60
    seed: int | None = None
    memory: bool = False
    """Keep entries in this process even where a Valkey could be started."""
    visits_per_second: float = VISITS_PER_SECOND
    """Of each tenant in the hours before; fewer make a faster start and faster queries."""


class _Notes(logging.Handler):
    """Keeps the log's warnings for the screen, which they would otherwise tear."""

    def __init__(self, board: Board) -> None:
        super().__init__(logging.WARNING)
        self._board = board

    def emit(self, record: logging.LogRecord) -> None:
        self._board.notes.append(record.getMessage())


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # the demo ends the readers first, then the server
        yield


def run(options: Options, console: Console, rules: tuple[IngestRule, ...] = RULES) -> int:
    """Run the demo; returns the exit status: 0 if every promise was kept, else 1. Raises PortTaken."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(options.port))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nexcache-demo-")))
        valkey, store = _start_store(options)
        if valkey is not None:
            stack.enter_context(valkey)
        console.print(f"store: {store}", highlight=False)
        port: int = listener.getsockname()[1]
        keys = {tenant: f"{tenant}-{secrets.token_hex(6)}" for tenant in TENANTS}
        board = Board(f"{HOST}:{port}", keys, store, _try_lines(f"{HOST}:{port}", keys, valkey), options.duration)
        if console.is_terminal and not options.headless:
            notes = _Notes(board)
            logging.getLogger().addHandler(notes)
            stack.callback(logging.getLogger().removeHandler, notes)
        config = uvicorn.Config("", lifespan="on", log_config=None, access_log=False, timeout_keep_alive=60)
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            demo = _Demo(options, console, board, config, rules)
            return runner.run(demo.run(listener, directory / "spans.db", valkey))


class _Demo:
    """One run, from the seeding to the verdicts."""

    def __init__(
        self,
        options: Options,
        console: Console,
        board: Board,
        config: uvicorn.Config,
        rules: tuple[IngestRule, ...],
    ) -> None:
        self._options = options
        self._console = console
        self._board = board
        self._config = config
        self._rules = rules
        self._random = random.Random(options.seed)  # noqa: S311 - imagined traffic, no secret
        self._live = console.is_terminal and not options.headless
        self._interrupted = asyncio.Event()

    async def run(self, listener: socket.socket, path: Path, valkey: EmbeddedValkey | None) -> int:
        """Run until the time is over or it is interrupted; returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._interrupted.set)
        settings = Settings(
            enabled=True,
            redis_url=valkey.url if valkey else "",
            redis_host=None,
            signing_keys={"demo": secrets.token_hex()},
            api_keys=tuple(tenants.ApiKey.of(tenant, key) for tenant, key in self._board.keys.items()),
        )
        async with NexCache(settings) as cache:
            cache.emitter.subscribe(self._heard, Invalidated, BackendChanged)
            keys = tenants.api_key("X-API-Key", keys=settings.api_keys)
            backend = Backend(path, keys)
            try:
                await self._seed(backend.database)
                self._config.app = create_app(cache, backend, keys, self._rules)
                async with _serving(self._config, listener):
                    await self._warm_up()
                    await self._measure()
            finally:
                backend.database.close()
        return self._conclude()

    async def _seed(self, database: Database) -> None:
        now_us, often = time.time_ns() // 1000, self._options.visits_per_second
        for tenant in self._board.keys:
            if self._interrupted.is_set():
                return
            with self._doing(f"imagining the last six hours of {tenant}"):
                rng = random.Random(self._random.random())  # noqa: S311
                stored = await asyncio.to_thread(database.seed, tenant, history(rng, now_us, often))
            self._board.acknowledgements.start(tenant, stored)
            services = [count for subject, count in stored.items() if subject.startswith("service:")]
            self._console.print(f"{tenant}: {sum(services):,} spans of {len(services)} services", highlight=False)

    async def _warm_up(self) -> None:
        """Read every page once, as readers who were there before would have."""
        with self._doing("reading every page once"):
            async with asyncio.TaskGroup() as group:
                for tenant in self._board.keys:
                    every = iter(pages(shop.services()))
                    for _ in range(_WARM_CONNECTIONS):
                        group.create_task(self._read_all(self._reader(tenant), every))

    async def _read_all(self, reader: Reader, remaining: Iterator[Page]) -> None:
        for page in remaining:
            if self._interrupted.is_set():
                break
            await reader.read(page)
        reader.close()

    async def _measure(self) -> None:
        """Let services send and readers read, until the time is over."""
        board = self._board
        if self._interrupted.is_set():
            return
        for text in board.try_lines:
            self._console.print(text, highlight=False, soft_wrap=True)
        endpoint = f"http://{board.address}/v1/traces"
        with contextlib.ExitStack() as stack:
            ingests = []
            for tenant, key in board.keys.items():
                services = Services(endpoint, key, tenant, board.acknowledgements, self._rng())
                thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix=f"services-{tenant}"))
                ingests.append((tenant, services, thread))
            board.begin()
            # one after the other, so that not all the tenants' dashboards change in the same moment
            running = [
                asyncio.create_task(self._ingest(*each, first=ROUND_SECONDS * number / len(ingests)))
                for number, each in enumerate(ingests)
            ]
            running += self._readers()
            running.append(asyncio.create_task(self._show()))
            waiting = asyncio.create_task(self._interrupted.wait())
            await asyncio.wait([waiting, *running], timeout=self._options.duration, return_when=asyncio.FIRST_COMPLETED)
            board.stopped = time.monotonic()
            ended = [task for task in running if task.done()]
            for task in (waiting, *running):
                task.cancel()
            await asyncio.gather(waiting, *running, return_exceptions=True)
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.run_in_executor(thread, services.close) for _, services, thread in ingests))
            for task in ended:
                task.result()

    def _readers(self) -> list[asyncio.Task[None]]:
        every = pages(shop.services())
        started = []
        for number in range(self._options.readers):
            tenant = list(self._board.keys)[number % len(self._board.keys)]
            reading = self._reader(tenant).run(every, self._rng(), rate=READS_PER_SECOND)
            started.append(asyncio.create_task(reading))
        for tenant in self._board.keys:
            reading = self._reader(tenant).run(every, self._rng(), rate=_UNCACHED_PER_SECOND, prefix=UNCACHED)
            started.append(asyncio.create_task(reading))
        return started

    async def _ingest(self, tenant: str, services: Services, thread: ThreadPoolExecutor, *, first: float) -> None:
        """After `first` seconds send a round of spans about once a second, and look for the canary each time."""
        loop = asyncio.get_running_loop()
        wanted = canary_pages()
        canary = Canary([self._reader(tenant) for _ in wanted], wanted)
        looking: asyncio.Task[None] | None = None
        due = loop.time() + first
        try:
            while True:
                await asyncio.sleep(due - loop.time())
                trace_id = await loop.run_in_executor(thread, services.round, time.time_ns())
                if looking is None or looking.done():
                    looking = asyncio.create_task(canary.look(trace_id))
                due = max(due + ROUND_SECONDS, loop.time())
        finally:
            if looking is not None:
                looking.cancel()
            canary.close()

    async def _show(self) -> None:
        if not self._live:
            while True:
                await asyncio.sleep(_LINE_SECONDS)
                self._console.print(display.line(self._board), highlight=False, soft_wrap=True)
        with Live(console=self._console, screen=True, auto_refresh=False) as live:
            while True:
                now, size = time.monotonic(), self._console.size
                live.update(display.screen(self._board, now, size.width, size.height), refresh=True)
                await asyncio.sleep(1 / _FRAMES_PER_SECOND)

    def _conclude(self) -> int:
        board = self._board
        if board.stopped is None:
            self._console.print("stopped before it began", highlight=False)
            return 0
        found = verdicts(board.figures, board.judgement, board.invalidated(), board.seconds)
        self._console.print(display.summary(board, found))
        if self._interrupted.is_set():
            # whoever stops it early may not have let it run long enough for the rest
            return 1 if board.judgement.wrong else 0
        return 0 if all(verdict.kept for verdict in found) else 1

    def _reader(self, tenant: str) -> Reader:
        board = self._board
        host, _, port = board.address.partition(":")
        connection = Connection(host, int(port), {"X-API-Key": board.keys[tenant]})
        return Reader(connection, tenant, board.acknowledgements, board.judgement, board.figures)

    def _rng(self) -> random.Random:
        return random.Random(self._random.random())  # noqa: S311 - as above

    def _heard(self, event: Event) -> None:
        match event:
            case Invalidated(trigger=Trigger.INGEST):
                self._board.invalidations[event.tenant] += 1
                self._board.queued[event.tenant] += not event.acknowledged
            case BackendChanged():
                self._board.store_available = event.available
            case _:
                pass

    def _doing(self, what: str) -> contextlib.AbstractContextManager[object]:
        if self._live:
            return self._console.status(what)
        self._console.print(f"{what} ...", highlight=False)
        return contextlib.nullcontext()


def canary_pages() -> list[Page]:
    """Return the pages in which the canary is looked for: the overviews that readers want most, and its own."""
    every = sorted(pages((CANARY,)), key=lambda page: -page.weight)
    return [
        *[page for page in every if page.subject is None][:2],
        *[page for page in every if page.subject == f"service:{CANARY}"],
    ]


@contextlib.asynccontextmanager
async def _serving(config: uvicorn.Config, listener: socket.socket) -> AsyncIterator[None]:
    server = _Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    ready = asyncio.create_task(server.ready.wait())
    await asyncio.wait([serving, ready], return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    try:
        if not serving.done():
            yield
    finally:
        server.should_exit = True
        await serving


def _listen(port: int | None) -> socket.socket:
    for candidate in (PORT, 0) if port is None else (port,):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, candidate))
            listener.listen()
        except OSError as error:
            listener.close()
            if candidate in (port, 0):
                raise PortTaken(
                    f"cannot listen on {HOST}:{candidate}: {error.strerror}; choose another --port"
                ) from error
        else:
            return listener
    raise AssertionError


def _start_store(options: Options) -> tuple[EmbeddedValkey | None, str]:
    if options.memory:
        return None, "in memory"
    try:
        valkey = EmbeddedValkey()
    except ValkeyUnavailable as reason:
        return None, f"in memory, because {reason}"
    return valkey, f"Valkey on {HOST}:{valkey.port}, process {valkey.pid}"


def _try_lines(address: str, keys: Mapping[str, str], valkey: EmbeddedValkey | None) -> tuple[str, ...]:
    acme, globex = keys.values()
    lines = [
        f"curl -is -H X-API-Key:{acme} {address}/api/v1/dashboard",
        f"curl -is -H X-API-Key:{acme} {address}{UNCACHED}/api/v1/dashboard",
        f"curl -is -H X-API-Key:{globex} {address}/api/v1/services/cart",
    ]
    if valkey is not None:
        lines.append(f"kill {valkey.pid}; sleep 10; {valkey.restart}")
    return tuple(lines)
