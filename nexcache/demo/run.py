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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn
from rich.console import Console
from rich.live import Live

from nexcache import NexCache, Settings, tenants
from nexcache.demo import display
from nexcache.demo.app import RULES, UNCACHED, create_app
from nexcache.demo.backend import Backend
from nexcache.demo.board import Board
from nexcache.demo.crowd import Crowd
from nexcache.demo.database import Database
from nexcache.demo.history import VISITS_PER_SECOND, history
from nexcache.demo.serving import HOST, listen, serving
from nexcache.demo.valkey import EmbeddedValkey, ValkeyUnavailable
from nexcache.demo.verdict import verdicts
from nexcache.ingest.rules import IngestRule
from nexcache.telemetry.events import BackendChanged, Event, Invalidated
from nexcache.telemetry.names import Trigger

TENANTS: Final = ("acme", "globex")

_LINE_SECONDS: Final = 2.0
_FRAMES_PER_SECOND: Final = 4


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


def run(options: Options, console: Console, rules: tuple[IngestRule, ...] = RULES) -> int:
    """Run the demo; returns the exit status: 0 if every promise was kept, else 1. Raises PortTaken."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(options.port))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nexcache-demo-")))
        valkey, store = _start_store(options)
        if valkey is not None:
            stack.enter_context(valkey)
        console.print(f"store: {store}", highlight=False)
        port: int = listener.getsockname()[1]
        keys = {tenant: f"{tenant}-{secrets.token_hex(6)}" for tenant in TENANTS}
        operator, address = f"operator-{secrets.token_hex(6)}", f"{HOST}:{port}"
        lines = _try_lines(address, keys, operator, valkey)
        board = Board(address, keys, store, lines, options.duration, operator)
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
            api_keys=(
                *(tenants.ApiKey.of(tenant, key) for tenant, key in self._board.keys.items()),
                tenants.ApiKey.parse(f"{tenants.ApiKey.of('operator', self._board.operator)};role=operator"),
            ),
        )
        async with NexCache(settings) as cache:
            cache.emitter.subscribe(self._heard, Invalidated, BackendChanged)
            keys = tenants.api_key("X-API-Key", keys=settings.api_keys)
            backend = Backend(path, keys)
            try:
                await self._seed(backend.database)
                self._config.app = create_app(cache, backend, keys, self._rules)
                async with serving(self._config, listener):
                    await self._use()
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

    async def _use(self) -> None:
        board, crowd = self._board, Crowd(self._board, self._random)
        with self._doing("reading every page once"):
            await crowd.warm_up(self._interrupted)
        if self._interrupted.is_set():
            return
        for text in board.try_lines:
            self._console.print(text, highlight=False, soft_wrap=True)
        await crowd.run(self._options.readers, self._show(), self._options.duration, self._interrupted)

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


def _start_store(options: Options) -> tuple[EmbeddedValkey | None, str]:
    if options.memory:
        return None, "in memory"
    try:
        valkey = EmbeddedValkey()
    except ValkeyUnavailable as reason:
        return None, f"in memory, because {reason}"
    return valkey, f"Valkey on {HOST}:{valkey.port}, process {valkey.pid}"


def _try_lines(address: str, keys: Mapping[str, str], operator: str, valkey: EmbeddedValkey | None) -> tuple[str, ...]:
    acme, globex = keys.values()
    page = f"http://{address}/api/v1/cache/#key="
    lines = [
        f"open {page}{acme}",
        f"open {page}{operator}",
        f"curl -is -H X-API-Key:{acme} {address}/api/v1/dashboard",
        f"curl -is -H X-API-Key:{acme} {address}{UNCACHED}/api/v1/dashboard",
        f"curl -is -H X-API-Key:{globex} {address}/api/v1/services/cart",
    ]
    if valkey is not None:
        lines.append(f"kill {valkey.pid}; sleep 10; {valkey.restart}")
    return tuple(lines)
